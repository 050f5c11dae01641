"""AGLA against full forwards about images that are masked by hand."""

from dataclasses import dataclass

import torch
from chat_answers import (
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
from chat_models import Fixed, blacked_out

from sightline import AGLA
from sightline.decoders.agla.agla import SelfMatcher
from sightline.decoders.agla.matching import Matcher


def test_agla_adds_the_answer_about_the_masked_image_at_every_step(vlm):
    """The authors' code does at the first alone: from then on both views share a cache."""
    fixed = Fixed()

    def prompts(row, question, image):
        local = blacked_out(image, fixed.values(image), fixed.masked(question))
        return [(vlm.chat(question), [seen]) for seen in (image, local)]

    decoder = AGLA(fixed, processor=vlm.processor, alpha=1.5, beta=0.2)
    out = check_scores(vlm, decoder, prompts, additive(1.5, 0.2))
    for step in range(1, 4):
        whole, local = out.branch_logits[step][:, 0]
        assert (whole - local).abs().max() > 0.05


def test_agla_asks_the_matcher_without_the_suffix(vlm):
    seen = []

    @dataclass(frozen=True)
    class StepCallback(Matcher):
        def __call__(self, images, questions, attention_maps=()):
            seen.append((images, questions, attention_maps))
            return Fixed()(images, questions)

    suffix = "Please answer this question with one word."
    decoder = AGLA(StepCallback(), processor=vlm.processor, suffix=suffix)
    generate(vlm, decoder, [f"{question} {suffix}" for question in QUESTIONS], steps=1)
    ((images, questions, attention_maps),) = seen
    assert list(questions) == QUESTIONS and list(attention_maps) == []
    assert [p.size for p in images] == [p.size for p in vlm.images[:2]]


def test_agla_can_ask_the_models_own_attention(vlm):
    """Mean over heads, middle layers and the question's tokens; the highest are cut off."""
    depth = vlm.model.config.text_config.num_hidden_layers

    def prompts(row, question, image):
        out = full(vlm, vlm.chat(question), [image], model=eager(vlm), **ATTENTION)
        ids = vlm.inputs([vlm.chat(question)], [image])["input_ids"][0]
        places = question_places(vlm, ids, question)
        is_image = ids == vlm.image
        layers = out.attentions[int(0.4 * depth) : int(0.75 * depth)]
        look = torch.stack([layer[0][:, places][:, :, is_image] for layer in layers]).mean(
            (0, 1, 2)
        )
        look = look.clamp(max=look.quantile(0.98))
        values = to_pixels(vlm, look, image)
        values = (values - values.min()) / (values.max() - values.min())
        local = blacked_out(image, values, 0.15)
        return [(vlm.chat(question), [seen]) for seen in (image, local)]

    decoder = AGLA(SelfMatcher(), processor=vlm.processor, alpha=1.5, beta=0.2)
    check_scores(vlm, decoder, prompts, additive(1.5, 0.2), steps=3)


def test_a_flat_map_masks_nothing(vlm):
    decoder = AGLA(Fixed(flat=0.0), processor=vlm.processor)
    out, _ = generate(vlm, decoder, **ASKED)
    for step in out.branch_logits:
        torch.testing.assert_close(step[0], step[1], **TOLERANCE)
