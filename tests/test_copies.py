"""Decoders that have been used are pickled and copied: settings stay, what they remember goes."""

import copy
import pickle
from dataclasses import fields, is_dataclass

import pytest
import torch

from sightline import (
    AGLA,
    MVP,
    PAI,
    VDD,
    ConfidenceGate,
    EmbeddingContrast,
    Gated,
    PlausibilityProcessor,
    PostHocDebias,
    PromptCached,
    SelfMatcher,
)
from sightline.decoders import DECODERS
from sightline.weak_lru import Memory

NEW_TOKENS = 3
SHORT = {
    "mvp": dict(tokens=2, caption_tokens=2),
    "vdgd": dict(tokens=2),
    "carve": dict(tokens=2),
}
WRAPPED = {
    "vdd unk": lambda processor: VDD(variant="both", processor=processor),
    "agla matcher": lambda processor: AGLA(SelfMatcher(masked=0.3), processor=processor),
    "posthoc": lambda processor: PostHocDebias(processor=processor),
    "posthoc sequences": lambda processor: PostHocDebias(
        processor=processor, labels=("yes, it is", "no")
    ),
    "gated": lambda processor: Gated(PAI(), ConfidenceGate(0.5)),
    "reusing": lambda processor: PromptCached(VDD(processor=processor), capacity=3),
    "reusing gated": lambda processor: PromptCached(Gated(VDD()), capacity=3),
    "recipe": lambda processor: PromptCached(VDD(alpha=2)).recipe(),
}
COPIES = {
    "pickle": lambda made: pickle.loads(pickle.dumps(made)),
    "deepcopy": copy.deepcopy,
}


@pytest.fixture
def vlm(lab_vlm):
    return lab_vlm


def made(name, processor):
    if name in WRAPPED:
        return WRAPPED[name](processor)
    takes = {"processor"} & {field.name for field in fields(DECODERS[name])}
    return DECODERS[name](**dict.fromkeys(takes, processor), **SHORT.get(name, {}))


def settings_of(value):
    """All settings, those of parts too, without the processor, which has no equality of its own."""
    if is_dataclass(value):
        return type(value), {
            field.name: settings_of(getattr(value, field.name))
            for field in fields(value)
            if field.name != "processor"
        }
    if isinstance(value, Memory):
        return type(value), value.capacity
    return value


def memories_of(value):
    """What it remembers by, its parts too."""
    if isinstance(value, Memory):
        yield value
    elif hasattr(value, "__dict__"):
        for part in vars(value).values():
            yield from memories_of(part)


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("name", [*DECODERS, *WRAPPED])
def test_a_used_decoder_is_copied(vlm, name, copied):
    decoder, images = made(name, vlm.processor), list(vlm.images[:1])
    inputs = vlm.asked(["Is there a vase?"], images)
    given = dict(images=images) if getattr(decoder, "needs_images", False) else {}

    def answered(decoder):
        return vlm.model.generate(
            **inputs, **given, custom_generate=decoder, max_new_tokens=NEW_TOKENS
        )

    expected = answered(decoder)
    remembered = [len(memory.by_owner) for memory in memories_of(decoder)]
    other = copied(decoder)
    assert settings_of(other) == settings_of(decoder)
    assert [len(memory.by_owner) for memory in memories_of(other)] == [0] * len(remembered)
    assert torch.equal(answered(other), expected)
    assert remembered == [len(memory.by_owner) for memory in memories_of(decoder)]
    if name in ("mvp", "posthoc", "reusing"):
        assert sum(remembered) == 1


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_used_processor_is_copied(vlm, copied):
    inputs = vlm.asked(["Is there a vase?"], list(vlm.images[:1]))
    for processor in (PlausibilityProcessor(0.3), EmbeddingContrast(vlm.model, 0.4)):
        asked = dict(do_sample=True, top_k=0, max_new_tokens=NEW_TOKENS)
        answers = []
        for used in (processor, copied(processor)):
            torch.manual_seed(0)
            answers.append(vlm.model.generate(**inputs, logits_processor=[used], **asked))
        assert torch.equal(*answers)


def test_memories_are_not_shared_by_what_was_copied(vlm):
    decoder = MVP(processor=vlm.processor, **SHORT["mvp"])
    decoder._known.recall(vlm.model, ["a"], lambda keys: keys)
    other = pickle.loads(pickle.dumps(decoder))
    assert other._known.recall(vlm.model, ["a"], lambda keys: ["found anew"]) == ["found anew"]
