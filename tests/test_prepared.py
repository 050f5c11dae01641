"""Images prepared again: by the real processors' own calls, with the arguments of the prompt."""

import re
from dataclasses import dataclass
from functools import cache

import pytest
import torch
import transformers
from neutral_parts import ExpertOnly
from packaging.version import Version

if Version(transformers.__version__) < Version("5.23"):
    pytest.skip("the records are written for transformers 5.23", allow_module_level=True)
pytest.importorskip("torchvision", reason="make build/vision/ready, then PYTHONPATH=build/vision")

from checkpoints.records import RECORDS

from checkpoints import chat, load, names, random_image
from sightline import AGLA, CARVE, MVP, VDD, Recipe, answer
from sightline.chat import prompt_inputs
from sightline.decoders.agla.agla import MaskedImage
from sightline.decoders.agla.matching import Matcher, Relevance
from sightline.engine.branch import ENCODER_INPUTS
from sightline.vision.processor_call import processed

# Mllama's images are no placeholder tokens; nothing asks again without a chat template.
TEMPLATED = [n for n in names() if RECORDS[n].has_template and n != "mllama"]
WIDE, TALL = random_image(200, 120), random_image(90, 140)
QUESTION = "Is there a cup?"
# Some processors know some of them; those that change a prompt are used.
ARGUMENTS = {
    "no tiles": dict(crop_to_patches=False),
    "no splitting": dict(do_image_splitting=False),
    "few pixels": dict(min_pixels=28 * 28, max_pixels=84 * 84),
    "small": dict(size=dict(longest_edge=64)),
    "few tokens": dict(max_soft_tokens=70),
    "pixels as they are": dict(do_normalize=False),
}
ELSEWHERE = (
    "not known here|mixes all of it|placeholder tokens|turns, mirrors|do not fit|does not write"
)


@dataclass(frozen=True)
class NothingMasked(Matcher):
    def __call__(self, images, questions, attention_maps=()):
        return [Relevance(torch.zeros(p.height, p.width), 0.0) for p in images]


def asked(checkpoint, images, arguments):
    """A batch of prompts, one for each image."""
    chats = [chat([image], QUESTION) for image in images]
    made = checkpoint.processor.apply_chat_template(
        chats,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs=dict(arguments, padding=True, padding_side="left"),
    )
    return dict(made.to(checkpoint.model.dtype))


def generate(checkpoint, inputs, decoder=None, **given):
    asked = dict(max_new_tokens=3, do_sample=False, custom_generate=decoder)
    return checkpoint.model.generate(**inputs, **asked, **given)


def with_decoder(checkpoint, inputs, decoder, **given):
    """As `generate`; what another part of the library refuses is no matter of these tests."""
    try:
        return generate(checkpoint, inputs, decoder, **given)
    except ValueError as error:
        if re.search(ELSEWHERE, str(error)):
            pytest.skip(f"refused: {error}")
        raise


@cache
def changing(name):
    """By name, the arguments that change what the processor makes of WIDE, with the prompt."""
    made = {key: told(name, ARGUMENTS[key]) for key in ARGUMENTS}
    return {key: inputs for key, inputs in made.items() if inputs is not None}


def told(name, arguments):
    """A prompt of WIDE made with arguments, or None where they change nothing."""
    checkpoint = load(name)
    plain = asked(checkpoint, [WIDE], {})
    try:
        made = asked(checkpoint, [WIDE], arguments)
    except Exception:
        return None
    try:
        checkpoint.model.generate(**made, max_new_tokens=1, do_sample=False)
    except ValueError:
        return None  # the processor's text does not follow its arguments
    known = [k for k in made if k in ENCODER_INPUTS and isinstance(made[k], torch.Tensor)]
    same = all(k in plain and torch.equal(made[k], plain[k]) for k in known)
    return None if same else made


def decoders(processor):
    """They prepare an image again that is the image itself, and so answer as `generate`."""
    matcher = NothingMasked()
    yield AGLA(processor=processor, matcher=matcher, alpha=1.0, beta=0.0)
    yield CARVE(processor=processor, share=1.0, final="refined", tokens=1)


@pytest.mark.parametrize("count", [1, 2], ids=["one prompt", "a batch"])
@pytest.mark.parametrize("name", TEMPLATED)
def test_the_pixels_are_the_callers_own(name, count):
    checkpoint = load(name)
    images = [WIDE, TALL][:count]
    inputs = asked(checkpoint, images, {})
    made = processed(checkpoint.processor, [[image] for image in images], {})
    for key, own in inputs.items():
        if key in ENCODER_INPUTS and isinstance(own, torch.Tensor):
            assert torch.equal(torch.as_tensor(made[key]).to(own.dtype), own), key


@pytest.mark.parametrize("name", TEMPLATED)
def test_arguments_of_the_prompt_reach_every_image_made_again(name):
    checkpoint = load(name)
    seen = []

    class Watched(MaskedImage):
        def __call__(self, expert, model):
            made = super().__call__(expert, model)
            seen.append((expert.pixels, made.pixels))
            return made

    recipe = Recipe(contrasts=(Watched(checkpoint.processor, NothingMasked()),), rule=ExpertOnly())
    assert changing(name)
    for key, inputs in changing(name).items():
        given = dict(images=[WIDE], processor_kwargs=ARGUMENTS[key])
        with_decoder(checkpoint, inputs, recipe, **given)
        own, again = seen.pop()
        for name, value in own.items():
            assert not isinstance(value, torch.Tensor) or torch.equal(again[name], value), key


@pytest.mark.parametrize("number", [0, 1], ids=["agla", "carve"])
@pytest.mark.parametrize("name", TEMPLATED)
def test_an_image_that_stays_as_it_is_changes_no_answer(name, number):
    checkpoint = load(name)
    decoder = list(decoders(checkpoint.processor))[number]
    for key, inputs in {None: asked(checkpoint, [WIDE], {}), **changing(name)}.items():
        given = dict(images=[WIDE], processor_kwargs=ARGUMENTS.get(key))
        got = with_decoder(checkpoint, inputs, decoder, **given)
        assert torch.equal(got, generate(checkpoint, inputs)), key


@pytest.mark.parametrize("name", TEMPLATED)
def test_images_that_do_not_make_the_prompt_again_are_refused(name):
    """Before the first forward: the prompt was made with arguments that are not passed on."""
    checkpoint = load(name)
    plain, changed = asked(checkpoint, [WIDE], {}), changing(name)  # which asks the model itself
    ran = []
    handle = checkpoint.model.get_output_embeddings().register_forward_pre_hook(
        lambda *_: ran.append(1)
    )
    try:
        for inputs in changed.values():
            if torch.equal(inputs["input_ids"], plain["input_ids"]):
                continue  # other pixels in as many tokens
            for decoder in decoders(checkpoint.processor):
                with pytest.raises(ValueError, match="do not make this prompt again"):
                    with_decoder(checkpoint, inputs, decoder, images=[WIDE])
    finally:
        handle.remove()
    assert not ran


def test_a_turned_image_is_refused_by_its_grid():
    """As many tokens, in rows of another length."""
    checkpoint = load("qwen25vl")
    inputs = asked(checkpoint, [WIDE], {})
    for decoder in decoders(checkpoint.processor):
        with pytest.raises(ValueError, match="they make image_grid_thw"):
            generate(checkpoint, inputs, decoder, images=[WIDE.rotate(90, expand=True)])


def test_answer_passes_the_processors_arguments_on():
    checkpoint = load("qwen25vl")
    model, processor = checkpoint.model, checkpoint.processor
    few = dict(ARGUMENTS["few pixels"])
    inputs = prompt_inputs(model, processor, WIDE, QUESTION, processor_kwargs=few)
    shorter = inputs["input_ids"].shape[1]
    assert shorter < prompt_inputs(model, processor, WIDE, QUESTION)["input_ids"].shape[1]
    asked = dict(max_new_tokens=2, do_sample=False)
    plain = answer(model, processor, WIDE, QUESTION, processor_kwargs=few, **asked)
    matcher = NothingMasked()
    for decoder in (AGLA(processor=processor, matcher=matcher, beta=0.0), VDD(alpha=0, beta=0)):
        got = answer(model, processor, WIDE, QUESTION, decoder, processor_kwargs=few, **asked)
        assert got == plain
    answer(
        model, processor, WIDE, QUESTION, MVP(processor=processor), processor_kwargs=few, **asked
    )
    assert few == ARGUMENTS["few pixels"]
