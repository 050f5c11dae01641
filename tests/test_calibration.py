"""Worked numbers of debias.md 5.2 to 5.4, and the two logits processors in a plain generate."""

import math

import pytest
import torch
from models import PROMPTS
from torch import tensor
from transformers import LogitsProcessorList

from sightline import CalibrationProcessor, PlausibilityProcessor
from sightline.logits.calibration import (
    affine,
    calibrate,
    diagonal_map,
    label_masses,
    normalise,
    reference,
)


def close(actual, expected):
    wanted = tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual, wanted, atol=1.5e-6, rtol=0)  # six digits in float64


ASKED = tensor([0.62, 0.30], dtype=torch.float64)
NONE = tensor([0.80, 0.12], dtype=torch.float64)
UNK = tensor([0.55, 0.35], dtype=torch.float64)


@pytest.mark.parametrize(
    ("references", "r", "s", "calibrated", "answer"),
    [
        ([NONE], [0.869565, 0.130435], [0.774911, 2.498085], [0.236759, 0.763241], 1),
        ([UNK], [0.611111, 0.388889], [1.102586, 0.838294], [0.568086, 0.431914], 0),
        ([NONE, UNK], [0.741758, 0.258242], [0.908412, 1.262231], [0.418499, 0.581501], 1),
    ],
)
def test_yes_no(references, r, s, calibrated, answer):
    close(normalise(ASKED), [0.673913, 0.326087])
    close(reference(*references), r)
    close(affine(normalise(ASKED), *diagonal_map(reference(*references))), s)
    result = calibrate(ASKED, reference(*references))
    close(result, calibrated)
    assert result.argmax() == answer


def test_four_options():
    asked = tensor([0.50, 0.28, 0.12, 0.06], dtype=torch.float64)
    none = tensor([0.60, 0.10, 0.20, 0.05], dtype=torch.float64)
    weight_bias = diagonal_map(reference(none))
    close(affine(normalise(asked), *weight_bias), [0.824522, 2.768204, 0.593468, 1.185248])
    result = calibrate(asked, reference(none))
    close(result, [0.153501, 0.515356, 0.110486, 0.220657])
    assert result.argmax() == 1


def test_a_truncated_reference_would_flip_the_answer():
    """Regression for the released code's ten best tokens: full-vocabulary masses are never 0."""
    asked = tensor([0.90, 0.05], dtype=torch.float64)
    truncated = tensor([0.97, 0.0], dtype=torch.float64)
    s = affine(normalise(asked), *diagonal_map(reference(truncated)))
    close(s, [0.947274, 526.315789])
    close(calibrate(asked, reference(truncated)), [0.001797, 0.998203])
    logits = torch.linspace(8, -8, 200, dtype=torch.float64)[None]
    full = label_masses(logits.softmax(-1), [tensor([0]), tensor([150])])
    assert (full > 0).all()


def test_label_mass_takes_the_best_form_or_the_sum():
    probabilities = tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    labels = [tensor([0, 1]), tensor([2])]
    close(label_masses(probabilities, labels)[0], [0.2, 0.3])
    close(label_masses(probabilities, labels, "sum")[0], [0.3, 0.3])
    with pytest.raises(ValueError, match="aggregate"):
        label_masses(probabilities, labels, "mean")


def test_temperature_does_not_change_the_answer():
    """Property 2.4: the ratio of softmaxes at T is the ratio at 1 to the power 1/T."""
    logits = tensor([1.0, 0.4], dtype=torch.float64)
    free = tensor([2.0, 0.1], dtype=torch.float64)
    for temperature in (0.2, 1.0, 5.0):
        asked = (logits / temperature).softmax(-1)
        none = (free / temperature).softmax(-1)
        assert calibrate(asked, none, smoothing=1e-12).argmax() == (logits - free).argmax()


def test_plausibility_processor_in_a_plain_generate(family):
    _, model, make_inputs = family
    inputs = make_inputs(PROMPTS)
    asked = dict(output_scores=True, output_logits=True, return_dict_in_generate=True)
    for beams in (1, 3):
        out = model.generate(
            **inputs,
            max_new_tokens=6,
            num_beams=beams,
            logits_processor=LogitsProcessorList([PlausibilityProcessor(0.3)]),
            **asked,
        )
        for logits, scores in zip(out.logits, out.scores, strict=True):
            probabilities = logits.double().softmax(-1)
            share = probabilities / probabilities.amax(-1, keepdim=True)
            assert torch.equal(scores.isfinite(), share >= 0.3)


def test_plausibility_processor_off_and_out_of_range():
    scores = torch.randn(2, 5)
    assert PlausibilityProcessor(0)(None, scores) is scores
    assert PlausibilityProcessor(1)(None, scores).isfinite().sum(-1).tolist() == [1, 1]
    with pytest.raises(ValueError, match="beta must be in"):
        PlausibilityProcessor(1.5)


def test_calibration_processor_in_a_plain_generate(llava):
    """The first token is the calibrated label; what follows is the model's own."""
    model, make_inputs = llava
    inputs = make_inputs(PROMPTS)
    length = inputs["input_ids"].shape[1]
    labels = [[30, 31], [40]]
    first = model(**inputs).logits[:, -1].detach().double().softmax(-1)
    masses = label_masses(first, [tensor(ids) for ids in labels])
    prior = tensor([0.9, 0.1], dtype=torch.float64)
    expected = (normalise(masses) / (prior + 1e-4)).argmax(-1)
    processor = CalibrationProcessor(labels, diagonal_map(prior)[0], prompt_length=length)
    out = model.generate(**inputs, max_new_tokens=4, logits_processor=[processor])
    for row, label in enumerate(expected.tolist()):
        forms = tensor(labels[label])
        assert out[row, length] == forms[first[row, forms].argmax()]
    plain_rest = model.generate(
        input_ids=out[:, : length + 1],
        attention_mask=torch.cat([inputs["attention_mask"], torch.ones(2, 1).long()], 1),
        pixel_values=inputs["pixel_values"],
        max_new_tokens=3,
    )
    assert torch.equal(out, plain_rest)


def test_calibration_processor_scores_are_log_probabilities():
    scores = tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
    weight, _ = diagonal_map(tensor([0.8, 0.2], dtype=torch.float64))
    processed = CalibrationProcessor([[0], [1]], weight, prompt_length=3)(torch.zeros(1, 3), scores)
    p = math.e / (1 + math.e)
    ratio = [p / 0.8001, (1 - p) / 0.2001]
    expected = [r / sum(ratio) for r in ratio]
    close(processed.exp()[0, :2], expected)
    assert processed[0, 2:].tolist() == [-math.inf, -math.inf]


@pytest.mark.parametrize("labels", [[[1]], [[1], []]])
def test_calibration_processor_wants_two_labels(labels):
    with pytest.raises(ValueError, match="two or more labels"):
        CalibrationProcessor(labels, torch.ones(2), prompt_length=1)


def test_calibration_processor_wants_a_weight_for_each_label():
    with pytest.raises(ValueError, match="C = 2 labels"):
        CalibrationProcessor([[1], [2]], torch.ones(3), prompt_length=1)
