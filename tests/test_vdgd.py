"""VDGD against full forwards of prompts that the processor builds."""

import math

import pytest
import torch
from chat_answers import (
    ASKED,
    QUESTIONS,
    TOLERANCE,
    answers,
    check_row,
    described,
    ended,
    full,
    generate,
    plain,
    prepared,
)

from sightline import VDGD, PrefixOnly
from sightline.decoders.vdgd import REQUEST


@pytest.mark.parametrize("layout", ["image_first", "official", "continue"])
def test_vdgd_ranks_plausible_tokens_by_the_description(vlm, layout):
    decoder = VDGD(processor=vlm.processor, layout=layout, tokens=20)
    found = [
        described(vlm, question, image, layout, 20)
        for question, image in zip(QUESTIONS, vlm.images, strict=False)
    ]
    differs = []
    out, inputs = generate(vlm, decoder, **ASKED)
    for row, answer in enumerate(answers(vlm, out, inputs)):
        support, prompt = found[row]
        logits = full(vlm, prompt, [vlm.images[row]], answer[:-1]).logits
        for step, token in enumerate(answer):
            z = logits[step].double()
            torch.testing.assert_close(out.logits[step][row], logits[step], **TOLERANCE)
            plausible = z.exp() >= 0.1 * z.exp().max()
            check_row(out.scores[step][row], torch.where(plausible, support, -math.inf))
            assert token == int(out.scores[step][row].argmax())
            differs.append(token != int(z.argmax()))
    assert any(differs) or vlm.name == "lab"


def test_beams_are_scored_by_their_own_rows_description(vlm):
    decoder = VDGD(processor=vlm.processor, tokens=8)
    mode = dict(num_beams=2, num_return_sequences=2, length_penalty=0.0)
    out, inputs = generate(vlm, decoder, **mode, **ASKED)
    for place, answer in enumerate(answers(vlm, out, inputs)):
        row = place // 2
        image = vlm.images[row]
        support, prompt = described(vlm, QUESTIONS[row], image, "image_first", 8)
        logits = full(vlm, prompt, [image], answer[:-1]).logits.double()
        plausible = logits.exp() >= 0.1 * logits.exp().amax(-1, keepdim=True)
        scores = torch.where(plausible, support, -math.inf).log_softmax(-1)
        total = float(scores[range(len(answer)), answer].sum())
        assert float(out.sequences_scores[place]) == pytest.approx(total, abs=5e-3)  # float32


def test_vdgd_counts_no_distribution_that_ended_the_description(lab_vlm):
    """Its g would be near 0 for the end of sequence: the best there is."""
    vlm = lab_vlm
    decoder = VDGD(processor=vlm.processor, tokens=40)
    question, image = QUESTIONS[1], vlm.images[0]
    said, logits = plain(vlm, vlm.chat(REQUEST.replace("{question}", question)), [image], 40)
    assert said[-1] in vlm.eos
    branch = prepared(vlm, decoder, [question], [image])
    support = branch.notes["support"][0]
    expected = logits[:-1].double().log_softmax(-1).amax(0)
    torch.testing.assert_close(support.double(), expected, atol=1e-4, rtol=1e-4)
    assert float(support[said[-1]]) < float(logits[-1].log_softmax(-1)[said[-1]]) - 0.1


@pytest.mark.parametrize("layout", ["image_first", "official", "continue"])
def test_vdgd_alpha_1_and_prefix_only_are_greedy_on_the_longer_prompt(vlm, layout):
    settings = dict(processor=vlm.processor, layout=layout, tokens=8)
    greedy, inputs = generate(vlm, VDGD(alpha=1, **settings))
    only, _ = generate(vlm, PrefixOnly(**settings))
    assert torch.equal(greedy, only)
    for row, answer in enumerate(answers(vlm, only, inputs)):
        _, prompt = described(vlm, QUESTIONS[row], vlm.images[row], layout, 8)
        assert answer == plain(vlm, prompt, [vlm.images[row]])[0]


def test_prefix_only_samples_as_generate_does_on_the_longer_prompt(vlm):
    decoder = PrefixOnly(processor=vlm.processor, tokens=8)
    sampling = dict(do_sample=True, top_p=0.9, temperature=0.8)
    questions, image = QUESTIONS[:1], vlm.images[0]
    out, inputs = generate(vlm, decoder, questions, steps=8, **sampling)
    _, prompt = described(vlm, questions[0], image, "image_first", 8)
    longer = vlm.inputs([prompt], [image])
    torch.manual_seed(1)
    own = vlm.model.generate(**longer, max_new_tokens=8, **sampling)
    (answer,) = answers(vlm, out, inputs)
    assert answer == ended(vlm, own[0, longer["input_ids"].shape[1] :].tolist())
