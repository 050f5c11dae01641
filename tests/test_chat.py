"""`answer` is `generate` on the chat template's prompt, with images of any kind."""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pytest
import torch
from lab_copies import random_lab
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    TextStreamer,
)

from sightline import CARVE, MVP, VCD, VDD, Recipe, answer, lab
from sightline.chat import prompt_inputs, reply


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(lab.CHECKPOINT)


@pytest.fixture(scope="module")
def model():
    """The lab's architecture with random weights, so that every prompt is answered differently."""
    model = random_lab()
    model.generation_config.max_new_tokens = 8
    return model


def image(seed=0):
    return lab.draw(lab.decorrelated(np.random.default_rng(seed)))


def by_hand(model, processor, shown, text, **generate_kwargs):
    """The prompt as the lab's template writes it."""
    prompt = f"<s><user>{'<image>' * len(shown)}{text}<assistant>"
    inputs = processor(images=shown, text=prompt, add_special_tokens=False, return_tensors="pt")
    tokens = model.generate(**inputs, **generate_kwargs)[0, inputs["input_ids"].shape[1] :]
    return processor.decode(tokens, skip_special_tokens=True).strip()


@pytest.mark.parametrize("decoder", [None, VDD(), VCD(alpha=3.0)])
def test_answer_is_generate_on_the_chat_prompt(model, processor, decoder):
    expected = by_hand(model, processor, [image()], "What is it?", custom_generate=decoder)
    assert expected
    assert answer(model, processor, image(), "What is it?", decoder) == expected


def test_the_labs_checkpoint_answers_as_by_hand(processor):
    model = AutoModelForImageTextToText.from_pretrained(lab.CHECKPOINT, dtype=torch.float32)
    expected = by_hand(model, processor, [image()], "Describe the image.")
    assert answer(model, processor, image(), "Describe the image.") == expected


def test_several_images_of_any_kind_come_in_their_order(model, processor, tmp_path):
    first, second = image(0), image(1)
    path = tmp_path / "second.png"
    second.save(path)
    expected = by_hand(model, processor, [first, second], "Compare.")
    assert answer(model, processor, [first, path], "Compare.") == expected
    assert answer(model, processor, (first, path.read_bytes()), "Compare.") == expected
    assert answer(model, processor, [path, first], "Compare.") != expected


def test_images_are_made_fit_for_the_model(model, processor):
    clear = Image.new("RGBA", (64, 64), (9, 9, 9, 0))
    white = Image.new("RGB", (64, 64), "white")
    inputs = prompt_inputs(model, processor, [clear, white], "What?")
    assert torch.equal(inputs["pixel_values"][0], inputs["pixel_values"][1])


def test_inputs_have_the_models_dtype_and_device(processor):
    model = random_lab().to(torch.bfloat16)
    inputs = prompt_inputs(model, processor, image(), "What?")
    assert inputs["pixel_values"].dtype == torch.bfloat16
    assert inputs["input_ids"].dtype == torch.long
    assert all(value.device == model.device for value in inputs.values())


def test_generate_kwargs_are_passed_on(model, processor):
    longer = answer(model, processor, image(), "What?", max_new_tokens=9)
    shorter = answer(model, processor, image(), "What?", max_new_tokens=3)
    assert longer.startswith(shorter) and len(longer) > len(shorter)
    output = answer(
        model, processor, image(), "What?", max_new_tokens=9, return_dict_in_generate=True
    )
    assert output == longer


@pytest.mark.parametrize("decoder", [None, VDD()])
def test_a_streamer_gets_the_whole_answer_and_not_the_prompt(model, processor, decoder, capsys):
    streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    text = answer(model, processor, image(), "What?", decoder, streamer=streamer)
    assert text and capsys.readouterr().out.strip() == text


@dataclass(frozen=True)
class Looking:
    """A preparation that notes the images it was given, and changes nothing."""

    seen: list
    needs_images: bool = True

    def __call__(self, expert, model):
        self.seen.extend(expert.call.images)
        return expert


class Once:
    """A file that can be read once, as one that comes over a network."""

    def __init__(self, content):
        self.content = content

    def read(self, *size):
        content, self.content = self.content, b""
        return content


def test_decoders_that_look_again_get_the_images_opened(model, processor):
    first, second = image(0), image(1)
    content = BytesIO()
    second.save(content, "PNG")
    file = Once(content.getvalue())
    seen: list = []
    recipe = Recipe(preparations=(Looking(seen),))
    text = answer(model, processor, [first, file], "Compare.", recipe)
    assert text == answer(model, processor, [first, second], "Compare.") != ""
    assert [[p.tobytes() for p in row] for row in seen] == [[first.tobytes(), second.tobytes()]]


def test_decoders_that_do_not_look_again_get_none(model, processor):
    seen: list = []
    recipe = Recipe(preparations=(Looking(seen, needs_images=False),))
    assert answer(model, processor, image(), "What?", recipe)
    assert seen == []


@pytest.mark.parametrize(
    "decoder",
    [
        lambda words: CARVE(processor=words, tokens=2),
        lambda words: MVP(processor=words, caption_tokens=2),
    ],
)
def test_answer_is_generate_with_the_image(model, processor, decoder):
    expected = by_hand(
        model, processor, [image()], "What?", custom_generate=decoder(processor), images=image()
    )
    assert answer(model, processor, image(), "What?", decoder(processor)) == expected != ""


def test_a_prompt_without_its_image_is_refused(model, processor):
    inputs = prompt_inputs(model, processor, image(), "What?")
    with pytest.raises(ValueError, match=r"looks at the image again.*images=image"):
        reply(model, processor, inputs, CARVE(processor=processor, tokens=2))
    assert reply(model, processor, inputs, CARVE(processor=processor, tokens=2), image())


@pytest.mark.parametrize("text", ["", " \n", None])
def test_without_a_question_there_is_no_answer(model, processor, text):
    with pytest.raises(ValueError, match="a question or instruction in words is needed"):
        answer(model, processor, image(), text)


def test_without_an_image_there_is_no_answer(model, processor):
    with pytest.raises(ValueError, match="no image came"):
        answer(model, processor, [], "What?")
    with pytest.raises(TypeError, match="images is an image or a list of images, got NoneType"):
        answer(model, processor, None, "What?")
    with pytest.raises(TypeError, match="an image is a path"):
        answer(model, processor, [None], "What?")


def test_a_processor_must_have_a_template_and_take_images(model):
    processor = AutoProcessor.from_pretrained(lab.CHECKPOINT)
    processor.chat_template = None
    with pytest.raises(ValueError, match=r"LlavaProcessor has no chat template.*use a checkpoint"):
        answer(model, processor, image(), "What?")
    with pytest.raises(ValueError, match="a processor of images and text is needed, got"):
        answer(model, processor.tokenizer, image(), "What?")
