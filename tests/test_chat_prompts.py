"""Other words about the same image: prompts, positions, keys that are shared, refusals."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from chat_models import CHAT_MODELS, own_positions, positions_of, scene, unpadded, within
from PIL import Image

from sightline import AGLA, CARVE, ICD, MVP, VDGD
from sightline.chat import prompt_inputs
from sightline.decoders.carve.carve import beside, instead
from sightline.engine.chat_prompts import PromptEditor
from sightline.engine.inputs import complete
from sightline.engine.prefill import read_images
from sightline.engine.prompt_edits import continued
from sightline.engine.subgeneration import generate_text

QUESTIONS = ["Is there a cup in the image?", "Do you see an orange or a vase?\nSay it.", "Why?"]
OTHERS = ["What is in the image?", "Describe this picture.", "Is there a dog in the picture?"]


def conversations(vlm):
    """(prompts, those with another last question), rows of different lengths."""
    before = [
        lambda q: vlm.chat(q),
        lambda q: vlm.chat("Describe the image.", "The image contains a cat.", q),
        lambda q: vlm.chat(["Look well.\n", None, "Is there a cow?"], "No", "Sure?", "Yes", q),
    ]
    return [
        [make(q) for make, q in zip(before, asked, strict=True)] for asked in (QUESTIONS, OTHERS)
    ]


def chatted(vlm, inputs, action, **kwargs):
    return within(vlm, inputs, lambda e, m: action(PromptEditor(vlm.processor, m), e), **kwargs)


# Reading and writing


def test_lead_question_and_closing_are_found_in_each_row(vlm):
    prompts, _ = conversations(vlm)
    inputs = vlm.inputs(prompts, vlm.images)
    found = chatted(vlm, inputs, lambda chat, expert: chat.asked(expert))
    assert [asked.question for asked in found] == QUESTIONS
    for row, asked in enumerate(found):
        assert inputs["input_ids"][row, asked.start - 1] == vlm.image
        assert not (inputs["input_ids"][row, asked.start :] == vlm.image).any()
        ids = inputs["input_ids"][row, asked.start :]
        assert asked.lead + asked.question + asked.closing == vlm.processor.decode(ids)
        assert asked.closing.strip().endswith(vlm.chat("x").rpartition("x")[2].strip())


def test_question_tokens_are_the_words_of_the_last_question(vlm):
    prompts, _ = conversations(vlm)
    inputs = vlm.inputs(prompts, vlm.images)
    chosen = chatted(vlm, inputs, lambda chat, expert: chat.question_tokens(expert))
    for row, question in enumerate(QUESTIONS):
        words = vlm.processor.decode(inputs["input_ids"][row][chosen[row]])
        assert words.strip() == question


def test_a_rows_own_question_gives_its_own_tokens(vlm):
    prompts, _ = conversations(vlm)
    inputs = vlm.inputs(prompts, vlm.images)
    asked = chatted(vlm, inputs, lambda chat, expert: chat.ask(expert, range(3), QUESTIONS))
    mask = inputs["attention_mask"]
    assert unpadded(asked.input_ids, asked.attention_mask) == unpadded(inputs["input_ids"], mask)
    check_positions(asked, vlm, inputs)


@pytest.mark.parametrize("shares", [True, False], ids=["prefix", "whole"])
def test_another_question_gives_the_processors_prompt(vlm, shares):
    prompts, wanted = conversations(vlm)

    def ask(chat, expert):
        expert = read_images(expert, chat.model) if shares else expert
        made = chat.ask(expert, [2, 0, 1, 0], [OTHERS[r] for r in (2, 0, 1, 0)])
        assert (made.prefix is not None) == shares
        return made

    made = chatted(vlm, vlm.inputs(prompts, vlm.images), ask)
    rows = [2, 0, 1, 0]
    expected = vlm.inputs([wanted[r] for r in rows], [vlm.images[r] for r in rows])
    check_prompt(made, vlm, expected)


@pytest.mark.parametrize("shares", [True, False], ids=["prefix", "whole"])
def test_a_reply_and_more_words_give_the_processors_prompt(vlm, shares):
    replies = ["The image contains a fork.", "No", "x"]

    def go_on(chat, expert):
        expert = read_images(expert, chat.model) if shares else expert
        return chat.go_on(expert, replies, OTHERS)

    made = chatted(vlm, vlm.asked(QUESTIONS), go_on)
    turns = zip(QUESTIONS, replies, OTHERS, strict=True)
    expected = vlm.inputs([vlm.chat(*turn) for turn in turns], vlm.images)
    check_prompt(made, vlm, expected)


def test_words_before_the_image_give_the_processors_prompt(vlm):
    made = chatted(vlm, vlm.asked(QUESTIONS), lambda chat, expert: chat.put_before(expert, OTHERS))
    pairs = zip(OTHERS, QUESTIONS, strict=True)
    prompts = [vlm.chat([f"{other}\n", None, question]) for other, question in pairs]
    check_prompt(made, vlm, vlm.inputs(prompts, vlm.images))


@pytest.mark.parametrize("shares", [True, False], ids=["prefix", "whole"])
def test_a_second_image_gives_the_processors_prompt(vlm, shares):
    more = [scene(40).resize((84, 140)), scene(41).resize((112, 84)), scene(42)]

    def add(chat, expert):
        expert = read_images(expert, chat.model) if shares else expert
        return complete(beside(expert, more, chat), chat.model, expert.call.generation_config)

    made = chatted(vlm, vlm.asked(QUESTIONS), add, images=list(vlm.images))
    images = [p for pair in zip(vlm.images, more, strict=True) for p in pair]
    prompts = [vlm.chat([None, None, question]) for question in QUESTIONS]
    expected = vlm.inputs(prompts, images)
    check_prompt(made, vlm, expected)
    check_features(made, vlm, expected)


def test_another_image_gives_the_processors_prompt(vlm):
    others = [scene(40).resize((84, 140)), scene(41).resize((168, 168)), scene(42)]

    def change(chat, expert):
        made = instead(read_images(expert, chat.model), others, chat)
        return complete(made, chat.model, expert.call.generation_config)

    made = chatted(vlm, vlm.asked(QUESTIONS), change, images=list(vlm.images))
    expected = vlm.asked(QUESTIONS, others)
    check_prompt(made, vlm, expected)
    check_features(made, vlm, expected)


def check_prompt(branch, vlm, expected):
    mask = expected["attention_mask"]
    rows = unpadded(branch.input_ids, branch.attention_mask)
    assert rows == unpadded(expected["input_ids"], mask)
    assert torch.equal(branch.image_mask, branch.input_ids == vlm.image)
    if "mm_token_type_ids" in expected:
        kept = unpadded(branch.aligned["mm_token_type_ids"], branch.attention_mask)
        assert kept == unpadded(expected["mm_token_type_ids"], mask)
    check_positions(branch, vlm, expected)


def check_positions(branch, vlm, expected):
    for ours, theirs in zip(positions_of(branch), own_positions(vlm, expected), strict=True):
        assert torch.equal(ours, theirs)


def check_features(branch, vlm, expected):
    names = ("pixel_values", "image_grid_thw")
    given = {name: expected[name] for name in names if name in expected}
    own = vlm.model.model.get_image_features(**given, return_dict=True).pooler_output
    for ours, theirs in zip(branch.features["image"].pooler_output, own, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)  # float32, other batches


def test_inserted_words_are_never_read_as_special_tokens(vlm):
    special = "".join(vlm.processor.tokenizer.all_special_tokens)
    texts = [f"{special}Look {special} here{special}"] * 3

    def count(branch):
        ids = torch.tensor(vlm.processor.tokenizer.all_special_ids)
        return torch.isin(branch.input_ids, ids).logical_and(branch.attention_mask.bool()).sum(1)

    def write(chat, expert):
        words = ["Look here"] * 3
        return [
            (count(make(texts)), count(make(words)))
            for make in (
                lambda given: chat.ask(expert, range(3), given),
                lambda given: chat.put_before(expert, given),
                lambda given: chat.go_on(expert, given, given),
            )
        ]

    for made, expected in chatted(vlm, vlm.asked(QUESTIONS), write):
        assert torch.equal(made, expected)


# Keys that are shared


@pytest.mark.parametrize("copies", [1, 2])
def test_an_answer_after_a_shared_prefix_is_that_of_the_whole_prompt(vlm, copies):
    """Rows of different lengths before, in and after the image: padding between keys."""
    prompts, wanted = conversations(vlm)
    rows = [2, 0, 1]

    def both(chat, expert):
        found = []
        for source in (expert, read_images(expert, chat.model)):
            asking = chat.ask(source, rows, [OTHERS[r] for r in rows])
            steps = []
            said = generate_text(
                chat.model,
                asking,
                6,
                copies=copies,
                on_step=lambda ensemble, answer, steps=steps: steps.append(ensemble.latest[0]),
            )
            found.append((asking, said, torch.stack(steps)))
        return found

    inputs = vlm.inputs(prompts, vlm.images)
    (whole, said, logits), (shared, again, others) = chatted(vlm, inputs, both)
    assert whole.prefix is None and shared.prefix is not None
    assert torch.equal(said, again)
    torch.testing.assert_close(logits, others, atol=1e-4, rtol=1e-4)  # float32
    expected = vlm.inputs([wanted[r] for r in rows], [vlm.images[r] for r in rows])
    with torch.no_grad():
        first = vlm.model(**expected).logits[:, -1].repeat_interleave(copies, dim=0)
    torch.testing.assert_close(others[0], first, atol=2e-4, rtol=1e-4)


def test_a_prefix_is_dropped_where_it_would_not_hold(vlm):
    """A row without an image, and text cut before the prefix's end."""

    def read(chat, expert):
        ends_in_image = replace(expert, image_mask=expert.attention_mask.bool())
        assert read_images(ends_in_image, chat.model).prefix is None
        without = replace(expert, image_mask=expert.image_mask & False)
        assert read_images(without, chat.model).prefix is None
        shared = read_images(expert, chat.model)
        made = continued(shared, torch.arange(3), [5, 5, 9], [[7], [8], [9]], chat.model.config)
        return made.prefix

    assert chatted(vlm, vlm.asked(QUESTIONS), read) is None


@contextmanager
def calls_of(module, *names):
    """What a module is given under the first of some names, call by call."""
    found = []

    def remember(module, args, kwargs):
        found.append((*args, *(kwargs[name] for name in names if name in kwargs))[0])

    hook = module.register_forward_pre_hook(remember, with_kwargs=True)
    try:
        yield found
    finally:
        hook.remove()


SHARING = {
    "icd": (lambda p: ICD(processor=p), 1),
    "vdgd": (lambda p: VDGD(processor=p, tokens=4), 1),
    "vdgd continue": (lambda p: VDGD(processor=p, tokens=4, layout="continue"), 1),
    "carve": (lambda p: CARVE(processor=p, tokens=3), 2),
    "mvp": (lambda p: MVP(processor=p, tokens=3, caption_tokens=4), 1),
    "agla": (lambda p: AGLA(processor=p), 2),
}


@pytest.mark.parametrize("name", SHARING)
def test_images_are_encoded_once_and_their_keys_read_once(vlm, name):
    build, distinct = SHARING[name]
    images = vlm.images[:2]
    inputs = vlm.asked(QUESTIONS[:2], images)
    with (
        calls_of(vlm.tower, "pixel_values", "hidden_states") as encoded,
        calls_of(vlm.model.model, "input_ids") as read,
    ):
        vlm.model.generate(
            **inputs,
            images=list(images),
            custom_generate=build(vlm.processor),
            max_new_tokens=3,
        )
    assert len(encoded) == distinct
    assert encoded[0].shape == inputs["pixel_values"].shape
    tokens = [count for ids in read if (count := int((ids == vlm.image).sum()))]
    assert len(tokens) == distinct
    assert tokens[0] == (inputs["input_ids"] == vlm.image).sum()


# Refusals


def test_refusals(lab_vlm):
    vlm = lab_vlm
    processor, image = vlm.processor, vlm.images[0]
    fine = vlm.asked(QUESTIONS[:1])
    nothing = vlm.inputs([vlm.chat([None, " "])], [image])
    unfinished = {
        "input_ids": fine["input_ids"][:, :-1],
        "attention_mask": fine["attention_mask"][:, :-1],
        "pixel_values": fine["pixel_values"],
    }
    two = vlm.inputs([vlm.chat([None, None, "Which?"])], [image, image])
    decoders = [
        VDGD(processor=processor),
        ICD(processor=processor),
        CARVE(processor=processor),
        AGLA(processor=processor),
        MVP(processor=processor),
    ]
    for decoder in decoders:
        refused(vlm, nothing, decoder, [image], "found no question after the image")
        refused(vlm, unfinished, decoder, [image], "add_generation_prompt=True")
        if getattr(decoder, "needs_images", False):
            refused(vlm, fine, decoder, None, "images=image")
            refused(vlm, fine, decoder, [image] * 2, "holds 2 images and the prompt 1")
            refused(vlm, two, decoder, [image], "holds 1 images and the prompt 2")
            refused(vlm, fine, decoder, [__file__], "is not an image that can be read")
    refused(vlm, two, CARVE(processor=processor), [image] * 2, "one image is refined at a time")


def refused(vlm, inputs, decoder, images, match):
    given = {} if images is None else {"images": images}
    with pytest.raises(ValueError, match=match):
        vlm.model.generate(**inputs, **given, custom_generate=decoder, max_new_tokens=1)


@pytest.mark.parametrize("build", [VDGD, ICD, CARVE, AGLA, MVP])
def test_a_processor_is_asked_for_and_its_own(build):
    with pytest.raises(TypeError, match="'processor'"):
        build()
    with pytest.raises(ValueError, match="processor="):
        build(processor=None)
    lab, qwen = (CHAT_MODELS[name]() for name in ("lab", "qwen"))
    fine, images = lab.asked(QUESTIONS[:1]), lab.images[:1]
    refused(lab, fine, build(processor=qwen.processor), list(images), "belongs to another model")
    template, lab.processor.chat_template = lab.processor.chat_template, None
    try:
        refused(lab, fine, build(processor=lab.processor), list(images), "no chat template")
    finally:
        lab.processor.chat_template = template


# Images


@pytest.mark.parametrize("build", [CARVE, AGLA])
def test_images_of_every_kind_go_through(vlm, build):
    seen = vlm.images[0].convert("RGBA")
    seen.paste((200, 0, 0, 0), (0, 0, seen.width // 2, seen.height))
    upright = vlm.images[0].copy()
    upright.paste((255, 255, 255), (0, 0, seen.width // 2, seen.height))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.info["exif"] = exif.tobytes()
    inputs = prompt_inputs(vlm.model, vlm.processor, upright, QUESTIONS[0])
    decoder = build(processor=vlm.processor)
    asked = dict(output_logits=True, return_dict_in_generate=True, max_new_tokens=2)
    expected, *others = (
        vlm.model.generate(**inputs, images=[p], custom_generate=decoder, **asked)
        for p in (upright, seen, turned)
    )
    for out in others:
        for ours, theirs in zip(logits_of(out), logits_of(expected), strict=True):
            assert torch.equal(ours, theirs)


def logits_of(out):
    return out.branch_logits if "branch_logits" in out else out.logits
