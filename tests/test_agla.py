"""AGLA against full forwards about images that are masked by hand."""

from dataclasses import dataclass

import torch
from chat_models import Fixed, blacked_out
from views import (
    ASKED,
    ATTENTION,
    QUESTIONS,
    TOLERANCE,
    additive,
    check_scores,
    eager,
    full,
    generate,
    question_places,
    to_pixels,
)

from sightline import AGLA
from sightline.decoders.agla.agla import SelfMatcher
from sightline.decoders.agla.matching import Matcher


def test_agla_adds_the_answer_about_the_masked_picture_at_every_step(talker):
    """The authors' code does at the first alone: from then on both views share a cache."""
    fixed = Fixed()

    def prompts(row, question, picture):
        local = blacked_out(picture, fixed.values(picture), fixed.masked(question))
        return [(talker.chat(question), [seen]) for seen in (picture, local)]

    decoder = AGLA(fixed, processor=talker.processor, alpha=1.5, beta=0.2)
    out = check_scores(talker, decoder, prompts, additive(1.5, 0.2))
    for step in range(1, 4):
        whole, local = out.branch_logits[step][:, 0]
        assert (whole - local).abs().max() > 0.05


def test_agla_asks_the_matcher_without_the_suffix(talker):
    seen = []

    @dataclass(frozen=True)
    class StepCallback(Matcher):
        def __call__(self, pictures, questions, looks=()):
            seen.append((pictures, questions, looks))
            return Fixed()(pictures, questions)

    suffix = "Please answer this question with one word."
    decoder = AGLA(StepCallback(), processor=talker.processor, suffix=suffix)
    generate(talker, decoder, [f"{question} {suffix}" for question in QUESTIONS], steps=1)
    ((pictures, questions, looks),) = seen
    assert list(questions) == QUESTIONS and list(looks) == []
    assert [p.size for p in pictures] == [p.size for p in talker.pictures[:2]]


def test_agla_can_ask_the_models_own_attention(talker):
    """Mean over heads, middle layers and the question's tokens; the highest are cut off."""
    depth = talker.model.config.text_config.num_hidden_layers

    def prompts(row, question, picture):
        out = full(talker, talker.chat(question), [picture], model=eager(talker), **ATTENTION)
        ids = talker.inputs([talker.chat(question)], [picture])["input_ids"][0]
        places = question_places(talker, ids, question)
        image = ids == talker.image
        layers = out.attentions[int(0.4 * depth) : int(0.75 * depth)]
        look = torch.stack([layer[0][:, places][:, :, image] for layer in layers]).mean((0, 1, 2))
        look = look.clamp(max=look.quantile(0.98))
        values = to_pixels(talker, look, picture)
        values = (values - values.min()) / (values.max() - values.min())
        local = blacked_out(picture, values, 0.15)
        return [(talker.chat(question), [seen]) for seen in (picture, local)]

    decoder = AGLA(SelfMatcher(), processor=talker.processor, alpha=1.5, beta=0.2)
    check_scores(talker, decoder, prompts, additive(1.5, 0.2), steps=3)


def test_a_flat_map_masks_nothing(talker):
    decoder = AGLA(Fixed(flat=0.0), processor=talker.processor)
    out, _ = generate(talker, decoder, **ASKED)
    for step in out.branch_logits:
        torch.testing.assert_close(step[0], step[1], **TOLERANCE)
