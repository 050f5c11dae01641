"""What must hold for every method, in every mode, for every family (style.md, "Tests")."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import forwards
import pytest
import torch
from methods import METHODS, Method
from models import FAMILIES, IMAGE, PROMPTS, VIDEO, VISION_END, VISION_START
from neutral_parts import with_all_branches
from spoken import SPOKEN, images_of

from sightline.decoders import DECODERS

MODES = {
    "greedy": {},
    "sampling": dict(do_sample=True, top_p=0.9),
    "3 beams": dict(num_beams=3),
    "2 beams, 2 returned": dict(num_beams=2, num_return_sequences=2),
    "beam sampling": dict(num_beams=2, do_sample=True),
    "3 samples": dict(do_sample=True, num_return_sequences=3),
    "repetition penalty": dict(repetition_penalty=1.3),
    "static cache": dict(cache_implementation="static"),
}
STEPS = 10
mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
# A random model may say "<image>"; a full forward of such an answer would ask for an image.
IMAGE_TOKENS = [IMAGE, VIDEO, VISION_START, VISION_END]
EVERYTHING = dict(output_scores=True, output_logits=True, return_dict_in_generate=True)
TOLERANCE = dict(atol=2e-4, rtol=1e-4)  # float32, N x B rows against one row


@dataclass
class Case:
    """A method on a model, and the prompts that it is asked.

    Args:
        family: As `amateurs` of the method takes it.
        make_inputs: Of prompts, each a list of tokens.
    """

    method: Method
    family: Any
    model: Any
    make_inputs: Any
    rows: list[list[int]]

    def generate(self, decoder=None, rows=None, seed=1, **kwargs):
        """What a model answers, with as many images as the rows have."""
        rows = rows or self.rows
        if getattr(decoder, "needs_images", False):
            kwargs["images"] = [image for row in rows for image in images_of(row)]
        torch.manual_seed(seed)
        inputs = self.make_inputs(rows)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        return self.model.generate(
            **inputs, max_new_tokens=STEPS, custom_generate=decoder, **kwargs
        )

    def width(self, rows=None):
        return self.make_inputs(rows or self.rows)["input_ids"].shape[1]

    def full(self, prompt, answer):
        """(logits of the branches, of early layers and what preparations left), as `forwards`."""
        method = self.method
        prompts = [method.expert(self.family, prompt), *method.amateurs(self.family, prompt)]
        branches, layers = forwards.full_branches(
            self.model, self.make_inputs, method, prompts, prompt, answer
        )
        return branches, [*layers, *method.notes(self.family, prompt)]


def case_of(family, method, dtype=torch.float32):
    name, model, make_inputs = family
    if method.needs_processor:
        spoken = SPOKEN[name]()
        method = method.of(spoken.processor)
        case = Case(method, spoken, spoken.model, spoken.inputs, spoken.rows)
    else:
        case = Case(method, name, model, make_inputs, PROMPTS)
    if dtype != torch.float32:
        case.model = deepcopy(case.model).to(dtype)
    return case


@pytest.fixture
def case(family, method):
    return case_of(family, method)


def skip_what_is_refused(method, mode):
    if method.cuts_cache and "cache_implementation" in mode:
        pytest.skip("keys cannot leave a static cache; test_cache_evictions.py sees it refused")
    if method.is_closed and mode:
        pytest.skip(f"it chooses one answer of a few; {method.elsewhere} sees other modes refused")


def test_every_decoder_is_here():
    assert {type(method.strong) for method in METHODS.values()} >= set(DECODERS.values())
    assert set(METHODS) >= set(DECODERS)


@mode
@method
@pytest.mark.parametrize("rows", [2, 1], ids=["padded batch", "one row"])
def test_neutral_settings_equal_generate(case, mode, rows):
    skip_what_is_refused(case.method, mode)
    rows = case.rows[:rows]
    plain = case.generate(rows=rows, **mode)
    if case.method.neutral is not None:
        assert torch.equal(case.generate(case.method.neutral, rows, **mode), plain)
    if not case.method.rewrites:
        present = case.generate(with_all_branches(case.method), rows, **mode)
        assert torch.equal(present, plain)


@pytest.mark.parametrize("name", FAMILIES)
def test_best_two_tokens_are_apart(name):
    """What makes equality of tokens above a fair demand: no step is decided by rounding."""
    build, make_inputs = FAMILIES[name]
    asked = dict(output_logits=True, return_dict_in_generate=True)
    for rows in (PROMPTS, PROMPTS[:1]):
        out = build().generate(**make_inputs(rows), max_new_tokens=STEPS, **asked)
        for step in out.logits:
            best, second = step.topk(2).values.unbind(-1)
            assert ((best - second) > 1e-3).all()


def test_best_two_spoken_tokens_are_apart(family):
    spoken = SPOKEN[family[0]]()
    asked = dict(output_logits=True, return_dict_in_generate=True)
    for rows in (spoken.rows, spoken.rows[:1]):
        out = spoken.model.generate(**spoken.inputs(rows), max_new_tokens=STEPS, **asked)
        for step in out.logits:
            best, second = step.topk(2).values.unbind(-1)
            assert ((best - second) > 1e-3).all()


@method
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_neutral_logits_are_bit_identical(family, method, dtype):
    if method.neutral is None:
        pytest.skip("the method has no neutral setting")
    if method.rewrites:
        pytest.skip("an image that is encoded again is rounded otherwise; tokens are equal, above")
    case = case_of(family, method, dtype)
    asked = dict(output_logits=True, return_dict_in_generate=True)
    plain, neutral = case.generate(**asked), case.generate(case.method.neutral, **asked)
    assert torch.equal(plain.sequences, neutral.sequences)
    for a, b in zip(plain.logits, neutral.logits, strict=True):
        assert torch.equal(a, b)


@mode
@method
def test_strong_settings_change_the_answer(case, mode):
    skip_what_is_refused(case.method, mode)
    strong, plain = case.generate(case.method.strong, **mode), case.generate(**mode)
    if case.method.is_gentle:
        pytest.skip("a random model's earlier layers are near uniform: scores change, below")
    assert strong.shape != plain.shape or not torch.equal(strong, plain)


@method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_answers_and_scores_in_float32(family, method, dtype):
    skip_scored_elsewhere(method)
    case = case_of(family, method, dtype)
    method = case.method
    out = case.generate(method.strong, **EVERYTHING)
    for step, (scores, branches) in enumerate(zip(out.scores, out.branch_logits, strict=True)):
        assert scores.dtype == branches.dtype == torch.float32
        expert, *amateurs = branches
        if method.layers or method.prepared:
            continue  # what it compares with is not in the output
        for row in range(len(case.rows)):
            expected = method.scores(expert[row], [a[row] for a in amateurs], step)
            kept = expected.isfinite()
            assert torch.equal(kept, scores[row].isfinite())
            # float32 against float64 arithmetic on the same logits
            torch.testing.assert_close(
                scores[row][kept].double(), expected[kept], atol=1e-4, rtol=1e-5
            )


def skip_scored_elsewhere(method):
    if method.elsewhere:
        pytest.skip(f"tests/{method.elsewhere} compares it with full forwards")


@method
def test_every_step_equals_full_forwards(case):
    """Scores of the first and all later steps, against each branch's own prompt without a cache."""
    skip_scored_elsewhere(case.method)
    out = case.generate(case.method.strong, suppress_tokens=IMAGE_TOKENS, **EVERYTHING)
    answers = out.sequences[:, case.width() :]
    for row, prompt in enumerate(case.rows):
        for step in range(len(out.scores)):
            answer = answers[row, :step].tolist()
            if case.model.generation_config.eos_token_id in answer:
                break
            branches, others = case.full(prompt, answer)
            others = [*branches[1:], *others]
            expected = case.method.scores(branches[0], others, step, IMAGE_TOKENS)
            for i, logits in enumerate(branches):
                torch.testing.assert_close(out.branch_logits[step][i, row], logits, **TOLERANCE)
            kept = expected.isfinite()
            assert torch.equal(out.scores[step][row].isfinite(), kept)
            torch.testing.assert_close(
                out.scores[step][row][kept], expected[kept].float(), atol=1e-3, rtol=1e-3
            )


@method
def test_beam_scores_equal_full_forwards(case):
    """A beam's score is the sum over its own answer: caches of all branches followed the beams."""
    skip_scored_elsewhere(case.method)
    beams = dict(num_beams=3, length_penalty=0.0, suppress_tokens=IMAGE_TOKENS)
    asked = dict(output_scores=True, return_dict_in_generate=True)
    out = case.generate(case.method.strong, **beams, **asked)
    answers = out.sequences[:, case.width() :]
    for row, prompt in enumerate(case.rows):
        total, answer = 0.0, []
        for token in answers[row].tolist():
            branches, others = case.full(prompt, answer)
            others = [*branches[1:], *others]
            scores = case.method.log_scores(branches[0], others, len(answer), IMAGE_TOKENS)
            total += float(scores[token])
            answer.append(token)
            if token == case.model.generation_config.eos_token_id:
                break
        assert float(out.sequences_scores[row]) == pytest.approx(total, abs=2e-3)  # float32


@method
def test_a_row_does_not_depend_on_its_neighbours(case):
    together = case.generate(case.method.strong)[:, case.width() :]
    for row, prompt in enumerate(case.rows):
        alone = case.generate(case.method.strong, [prompt])
        answer = alone[0, case.width([prompt]) :].tolist()
        assert together[row].tolist()[: len(answer)] == answer[: together.shape[1]]


@method
def test_nothing_remains(case):
    case.generate()
    before, settings = snapshot(case.model), repr(case.method.strong)
    first = case.generate(case.method.strong)
    assert snapshot(case.model) == before and repr(case.method.strong) == settings
    assert torch.equal(case.generate(case.method.strong), first)


@method
def test_inputs_are_left_as_they_were(case):
    inputs = case.make_inputs(case.rows)
    given = {name: values.clone() for name, values in inputs.items()}
    images = [image for row in case.rows for image in images_of(row)]
    shown = [image.copy() for image in images]
    asked = dict(images=images) if getattr(case.method.strong, "needs_images", False) else {}
    case.model.generate(**inputs, **asked, custom_generate=case.method.strong, max_new_tokens=STEPS)
    assert all(torch.equal(inputs[name], given[name]) for name in given)
    assert images == shown


def snapshot(model):
    """Everything that a call could leave behind on a model."""
    offset = getattr(model.base_model, "rope_deltas", None)
    return (
        model.config.to_dict(),
        model.config.get_text_config()._attn_implementation,
        model.generation_config.to_dict(),
        {name: float(p.detach().double().sum()) for name, p in model.named_parameters()},
        [
            (name, sorted(module.__dict__), len(module._forward_hooks), type(module).__name__)
            for name, module in model.named_modules()
        ],
        None if offset is None else offset.tolist(),
    )
