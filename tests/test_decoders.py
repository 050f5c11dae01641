"""What holds for every decoder as an object: frozen, hashable, added to others."""

import inspect
from dataclasses import FrozenInstanceError, fields, replace

import pytest

from sightline import (
    MVP,
    SID,
    VAF,
    VCD,
    VDD,
    Gated,
    PlausibilityGate,
    PostHocDebias,
    PromptCached,
    VASparse,
)
from sightline.decoders import DECODERS
from sightline.engine.strategy import Combined, Strategy
from sightline.specs import parse_spec


class Processor:
    """Has what decoders ask for when they are made, and is hashable as real ones are."""

    unk_token_id = 0


PROCESSOR = Processor()


def made(name):
    return parse_spec(name).build(PROCESSOR)


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_cannot_be_changed(name):
    decoder = made(name)
    first = fields(decoder)[0].name
    for field in (first, "alfa"):
        with pytest.raises(FrozenInstanceError):
            setattr(decoder, field, -5)


@pytest.mark.parametrize("name", DECODERS)
def test_equal_decoders_have_equal_hashes(name):
    one, other = made(name), made(name)
    assert one == other and hash(one) == hash(other)
    assert {one: "kept"}[other] == "kept"


def test_wrappers_are_frozen_and_hashable():
    for strategy in (Gated(VDD()), PromptCached(VDD()), VDD() + VAF()):
        hash(strategy)
        with pytest.raises(FrozenInstanceError):
            strategy.decoder = VCD()
    with pytest.raises(FrozenInstanceError):
        PostHocDebias(processor=PROCESSOR).labels = ("a", "b")


def test_a_changed_copy_is_checked():
    assert replace(VCD(), alpha=0.5).alpha == 0.5
    with pytest.raises(ValueError, match="alpha must be"):
        replace(VCD(), alpha=-5)


def test_a_sum_has_the_parts_of_both():
    vdd, vaf = VDD(alpha=0.5), VAF()
    both = vdd + vaf
    assert both.recipe() == vdd.recipe() + vaf.recipe()
    assert both.recipe().contrasts == vdd.recipe().contrasts
    assert both.recipe().attention_edits == vaf.recipe().attention_edits
    three = both + Gated(vdd, PlausibilityGate())
    assert three.recipe().gate == PlausibilityGate()
    assert (vdd.recipe() + vaf).recipe() == both.recipe()


@pytest.mark.parametrize("kind", [MVP, PostHocDebias])
def test_what_chooses_whole_answers_is_a_strategy_without_parts(kind):
    closed = kind(processor=PROCESSOR)
    assert isinstance(closed, Strategy) and "__call__" not in vars(kind)
    assert inspect.signature(closed) == inspect.signature(VDD())
    for wrapper in (Gated, PromptCached, lambda decoder: Combined((VDD(), decoder))):
        with pytest.raises(ValueError, match="made of parts, which one that chooses whole answers"):
            wrapper(closed)
    with pytest.raises(TypeError):
        VDD() + closed


def test_sums_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="two rules cannot both score"):
        VDD(alpha=0.5) + SID(alpha=1.5)
    with pytest.raises(ValueError, match="two rules cannot both score"):
        VDD() + VASparse()
    with pytest.raises(TypeError):
        VDD() + 3
