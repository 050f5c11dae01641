"""Settings of every decoder and part: numpy's numbers are Python's, and nonsense is refused."""

import dataclasses
import importlib
import inspect
import math
import pkgutil
import sys
import types
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from chat_models import CHAT_MODELS
from methods import TOKEN_METHODS
from models import PROMPTS

import sightline

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
import attack_settings

from sightline import (
    AGLA,
    CARVE,
    ICD,
    MVP,
    VDGD,
    ConfidenceGate,
    EmbeddingContrast,
    PlausibilityProcessor,
    PostHocDebias,
    PromptCached,
    UnknownImage,
)
from sightline.attention.edits import ImageGain, ImageScale
from sightline.attention.reference import KeyWeights
from sightline.chat import prompt_inputs
from sightline.decoders import DECODERS
from sightline.decoders.agla.agla import SelfMatcher
from sightline.settings import Limits

GIVEN = {  # what has no default
    UnknownImage: dict(tokens=(7,)),
    ImageGain: dict(alpha=0.2),
    ImageScale: dict(image=1.2, system=0.9),
    PromptCached: dict(decoder=sightline.VDD()),
    sightline.VDD: dict(variant="unk"),
    PostHocDebias: dict(reference="unk"),
}
OPTIONAL = dict(
    cap=2.0, confidence=0.5, k=3, count=4, unk_token_id=7, layers=(1, 3), heads=(0, 1), markers=(7,)
)


def parts():
    """(name, setting, a value of it, a maker) of every number that a dataclass is set by."""
    classes = {*DECODERS.values(), PostHocDebias, MVP}
    for folder in ("attention", "decoders", "engine", "logits"):
        package = importlib.import_module(f"sightline.{folder}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            found = vars(importlib.import_module(module.name)).values()
            classes |= {each for each in found if is_part(each)}
    classes -= {KeyWeights, sightline.PrefixOnly}  # data; settings of VDGD that it leaves unread
    for made in sorted(classes, key=lambda each: each.__name__):
        for field in dataclasses.fields(made):
            value = GIVEN.get(made, {}).get(field.name, field.default)
            if value in (None, ()):
                value = OPTIONAL.get(field.name, value)
            if field.init and holds_numbers(value):
                yield pytest.param(made, field.name, value, id=f"{made.__name__} {field.name}")


def is_part(each: Any) -> bool:
    """A dataclass of settings, as it says by checking them."""
    return (
        isinstance(each, type)
        and dataclasses.is_dataclass(each)
        and each.__module__.startswith("sightline.")
        and "__post_init__" in dir(each)
        and not getattr(each, "__abstractmethods__", None)
        and all(
            field.default is not dataclasses.MISSING or field.name in GIVEN.get(each, {})
            or field.name == "processor"
            for field in dataclasses.fields(each) if field.init
        )
    )  # fmt: skip


def holds_numbers(value):
    values = value if isinstance(value, tuple) else (value,)
    return bool(values) and all(
        isinstance(each, int | float) and not isinstance(each, bool) for each in values
    )


@pytest.fixture(scope="module")
def processor():
    return CHAT_MODELS["lab"]().processor


def make(made, name, value, processor):
    given = dict(GIVEN.get(made, {}))
    if any(field.name == "processor" for field in dataclasses.fields(made)):
        given["processor"] = processor
    return made(**{**given, name: value})


def numpys(value):
    """The same in each of numpy's types that can hold it."""
    if isinstance(value, tuple):
        return [tuple(each) for each in zip(*map(numpys, value), strict=True)]
    if isinstance(value, int):
        return [np.int64(value), np.int32(value), np.uint16(value), np.array([value])[0]]
    return [np.float64(value), np.float32(value), np.float16(value) if value > 1e-6 else value]


def types_in(value):
    return {type(each) for each in (value if isinstance(value, tuple | list) else [value])}


@pytest.mark.parametrize(("made", "name", "value"), list(parts()))
def test_numpys_numbers_are_pythons(made, name, value, processor):
    for given in numpys(value):
        part = make(made, name, given, processor)
        kept = getattr(part, name)
        assert types_in(kept) <= {int, float}
        assert kept == pytest.approx(value, rel=1e-3)  # float16 has eleven bits
        if hasattr(part, "recipe"):
            for each in everything_in(part.recipe()):
                assert not isinstance(each, np.generic)


def everything_in(value):
    if isinstance(value, tuple | list):
        for each in value:
            yield from everything_in(each)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from everything_in(getattr(value, field.name))
    else:
        yield value


@pytest.mark.parametrize(("made", "name", "value"), list(parts()))
def test_what_is_no_number_is_refused_by_name(made, name, value, processor):
    """One short sentence each; where a number may be None or a word, these are left out."""
    none: list = []
    wrong = ["much", math.nan, math.inf, torch.tensor(0.5), torch.ones(2000, 30), True, {}, none]
    wrong += [np.float32("nan"), np.bool_(True), np.ones(9000), 1j]
    if isinstance(value, tuple):
        wrong = [*wrong, (True, 1), ("a", "b"), (math.nan, 1.0), (None, None)]
    if name == "markers":
        wrong = [each for each in wrong if each is not none]
    for given in wrong:
        with pytest.raises((ValueError, TypeError)) as raised:
            make(made, name, given, processor)
        message = str(raised.value)
        assert len(message) < 250
        assert name in message, (given, message)


WRONG = {
    where: list(tried)
    for where, tried in groupby(
        [*attack_settings.wrong_python(), *attack_settings.wrong_text()], lambda each: each.where
    )
}


@pytest.mark.parametrize("where", WRONG)
def test_every_wrong_kind_is_refused_in_our_words(where):
    said = {f"{each.value!r:.60}": attack_settings.complaint(each) for each in WRONG[where]}
    assert {value: text for value, text in said.items() if text} == {}


def test_the_wrong_kinds_are_those_of_every_public_class():
    """A class of settings that is added is attacked too; what has no field has nothing to."""
    public = {
        name for name in sightline.__all__
        if dataclasses.is_dataclass(kind := getattr(sightline, name))
        and dataclasses.fields(kind) and not inspect.isabstract(kind)
    }  # fmt: skip
    attacked = {where.partition(".")[0] for where in WRONG}
    assert public - attacked == attack_settings.DATA - {"UnsupportedModelError"}
    assert attacked >= {"EmbeddingContrast", "MVP", "PostHocDebias", "Gated", *DECODERS}


def test_limits_are_wider_than_what_is_usually_tried():
    legal = [sightline.VCD(alpha=4), sightline.VCD(alpha=1e9), sightline.VCD(seed=-5)]
    assert [each.alpha for each in legal] == [4, 1e9, 1.0]
    for alpha in (1e9 + 1, 1e308, 10**400):
        with pytest.raises(ValueError, match=r"alpha must be a finite number >= 0, at most 1e\+09"):
            sightline.VCD(alpha=alpha)


def test_lists_become_tuples_and_numpys_words_pythons():
    decoder = sightline.VDD(variant=np.str_("none"), markers=[np.int64(3), 4])
    assert decoder.markers == (3, 4) and types_in(decoder.markers) == {int}
    assert type(decoder.variant) is str
    released = AGLA(processor=types.SimpleNamespace(tokenizer=None), normalize=np.bool_(True))
    assert released.normalize is True
    recipe = sightline.Recipe([], [sightline.NoImage()], sightline.Contrastive())
    assert recipe + sightline.Recipe() == replace(recipe)
    assert recipe.contrasts == (sightline.NoImage(),)


def test_fields_of_ones_own_are_checked_by_their_types():
    @dataclasses.dataclass(frozen=True)
    class Sharper(sightline.Rule):
        power: Annotated[float, Limits(1, 3)] = 2.0
        table: torch.Tensor | None = None
        how: "OnlyForTypeCheckers" = None  # noqa: F821

        def combine(self, logits, state):
            return self.power * logits[0]

    assert Sharper(np.float32(1.5)).power == 1.5
    with pytest.raises(ValueError, match=r"power must be in \[1, 3\], got 4"):
        Sharper(4)


def test_processors_take_them_too(llava):
    model, _ = llava
    assert type(PlausibilityProcessor(np.float32(0.5)).beta) is float
    assert type(EmbeddingContrast(model, np.float32(0.5), np.float64(0.1)).rule.alpha) is float
    assert type(ConfidenceGate(np.float32(0.5)).probability) is float
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\], got 'half'"):
        PlausibilityProcessor("half")


# A default device that is not the model's


@contextmanager
def default_device(name):
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device("cpu")


@pytest.mark.parametrize("asked", [{}, dict(suppress_tokens=[50], repetition_penalty=1.2)])
@pytest.mark.parametrize("method", TOKEN_METHODS.values(), ids=TOKEN_METHODS)
def test_the_default_device_is_not_where_a_call_runs(llava, method, asked):
    """meta holds no values, so whatever is made there cannot be read. (5.23: beam search of
    transformers and Qwen's tower make tensors there themselves.)"""
    model, make_inputs = llava
    inputs = make_inputs(PROMPTS)
    asked = dict(asked, custom_generate=method.strong, max_new_tokens=4)
    expected = model.generate(**inputs, **asked)
    with default_device("meta"):
        found = model.generate(**inputs, **asked)
    assert torch.equal(found, expected)


def test_nor_where_a_prompt_is_made(monkeypatch):
    """With a chat template, and by a processor that finds image tokens in a text by itself."""
    vlm = CHAT_MODELS["lab"]()
    said = []
    for device in ("cpu", "meta"):
        with default_device(device):
            said.append(prompt_inputs(vlm.model, vlm.processor, vlm.images[0], "What?"))
    for name, values in said[0].items():
        assert torch.equal(said[1][name], values)
    monkeypatch.setattr(vlm.processor, "chat_template", None)
    with default_device("meta"):
        made = prompt_inputs(vlm.model, vlm.processor, vlm.images[0], "<image> What?")
    assert (made["input_ids"] == vlm.image).any() and made["pixel_values"].device.type == "cpu"


ASKING = {
    "agla": lambda processor: AGLA(SelfMatcher(), processor=processor),
    "carve": lambda processor: CARVE(processor=processor, tokens=2),
    "icd": lambda processor: ICD(processor=processor),
    "mvp": lambda processor: MVP(processor=processor, tokens=3, caption_tokens=3),
    "posthoc": lambda processor: PostHocDebias(processor=processor),
    "posthoc sequences": lambda processor: PostHocDebias(
        processor=processor, labels=("yes, it is", "no")
    ),
    "vdgd": lambda processor: VDGD(processor=processor, tokens=3),
}


@pytest.mark.parametrize("make_decoder", ASKING.values(), ids=ASKING)
def test_nor_of_decoders_that_ask_again(make_decoder):
    vlm = CHAT_MODELS["lab"]()
    images = list(vlm.images[:1])
    inputs = vlm.asked(["Is there a vase?"], images)
    found = []
    for device in ("cpu", "meta"):
        decoder = make_decoder(vlm.processor)
        given = dict(images=images) if getattr(decoder, "needs_images", False) else {}
        with default_device(device):
            found.append(
                vlm.model.generate(**inputs, **given, custom_generate=decoder, max_new_tokens=4)
            )
    assert torch.equal(*found)
