"""What must hold for every method, in every mode, for every family (style.md, "Tests")."""

import forwards
import pytest
import torch
from methods import METHODS
from models import FAMILIES, IMAGE, PROMPTS, VIDEO, VISION_END, VISION_START
from neutral_parts import with_all_branches

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
# A random model may say "<image>"; a full forward of such an answer would ask for a picture.
PICTURE_TOKENS = [IMAGE, VIDEO, VISION_START, VISION_END]
TOLERANCE = dict(atol=2e-4, rtol=1e-4)  # float32, N x B rows against one row


def generate(model, inputs, seed=1, **kwargs):
    torch.manual_seed(seed)
    return model.generate(**inputs, max_new_tokens=STEPS, **kwargs)


def skip_cut_static_caches(method, mode):
    if method.cuts_cache and "cache_implementation" in mode:
        pytest.skip("keys cannot leave a static cache; test_selections.py sees it refused")


@mode
@method
@pytest.mark.parametrize("rows", [PROMPTS, PROMPTS[:1]], ids=["padded batch", "one row"])
def test_neutral_settings_equal_generate(family, method, mode, rows):
    skip_cut_static_caches(method, mode)
    _, model, make_inputs = family
    inputs = make_inputs(rows)
    plain = generate(model, inputs, **mode)
    if method.neutral is not None:
        assert torch.equal(generate(model, inputs, custom_generate=method.neutral, **mode), plain)
    present = generate(model, inputs, custom_generate=with_all_branches(method), **mode)
    assert torch.equal(present, plain)


@pytest.mark.parametrize("name", FAMILIES)
def test_best_two_tokens_are_apart(name):
    """What makes equality of tokens above a fair demand: no step is decided by rounding."""
    build, make_inputs = FAMILIES[name]
    asked = dict(output_logits=True, return_dict_in_generate=True)
    for rows in (PROMPTS, PROMPTS[:1]):
        for step in generate(build(), make_inputs(rows), **asked).logits:
            best, second = step.topk(2).values.unbind(-1)
            assert ((best - second) > 1e-3).all()


@method
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_neutral_logits_are_bit_identical(family, method, dtype):
    if method.neutral is None:
        pytest.skip("the method has no neutral setting")
    name, _, make_inputs = family
    model = FAMILIES[name][0]().to(dtype)
    inputs = make_inputs(PROMPTS)
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    asked = dict(output_logits=True, return_dict_in_generate=True)
    plain = generate(model, inputs, **asked)
    neutral = generate(model, inputs, custom_generate=method.neutral, **asked)
    assert torch.equal(plain.sequences, neutral.sequences)
    for a, b in zip(plain.logits, neutral.logits, strict=True):
        assert torch.equal(a, b)


@mode
@method
def test_strong_settings_change_the_answer(family, method, mode):
    skip_cut_static_caches(method, mode)
    _, model, make_inputs = family
    inputs = make_inputs(PROMPTS)
    strong = generate(model, inputs, custom_generate=method.strong, **mode)
    plain = generate(model, inputs, **mode)
    if method.is_gentle:
        pytest.skip("a random model's earlier layers are near uniform: scores change, below")
    assert strong.shape != plain.shape or not torch.equal(strong, plain)


@method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_answers_and_scores_in_float32(family, method, dtype):
    name, _, make_inputs = family
    model = FAMILIES[name][0]().to(dtype)
    inputs = make_inputs(PROMPTS)
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    asked = dict(output_scores=True, output_logits=True, return_dict_in_generate=True)
    out = generate(model, inputs, custom_generate=method.strong, **asked)
    for step, (scores, branches) in enumerate(zip(out.scores, out.branch_logits, strict=True)):
        assert scores.dtype == branches.dtype == torch.float32
        expert, *amateurs = branches
        if method.layers:
            continue  # what it compares with is not in the output
        for row in range(len(PROMPTS)):
            expected = method.scores(expert[row], [a[row] for a in amateurs], step)
            kept = expected.isfinite()
            assert torch.equal(kept, scores[row].isfinite())
            # float32 against float64 arithmetic on the same logits
            torch.testing.assert_close(
                scores[row][kept].double(), expected[kept], atol=1e-4, rtol=1e-5
            )


@method
def test_every_step_equals_full_forwards(family, method):
    """Scores of the first and all later steps, against each branch's own prompt without a cache."""
    _, model, make_inputs = family
    asked = dict(output_scores=True, output_logits=True, return_dict_in_generate=True)
    inputs = make_inputs(PROMPTS)
    out = generate(
        model, inputs, custom_generate=method.strong, suppress_tokens=PICTURE_TOKENS, **asked
    )
    answers = out.sequences[:, inputs["input_ids"].shape[1] :]
    for row, prompt in enumerate(PROMPTS):
        for step in range(len(out.scores)):
            answer = answers[row, :step].tolist()
            if model.generation_config.eos_token_id in answer:
                break
            branches, layers = full_branches(family, method, prompt, answer)
            others = [*branches[1:], *layers]
            expected = method.scores(branches[0], others, step, PICTURE_TOKENS)
            for i, logits in enumerate(branches):
                torch.testing.assert_close(out.branch_logits[step][i, row], logits, **TOLERANCE)
            kept = expected.isfinite()
            assert torch.equal(out.scores[step][row].isfinite(), kept)
            torch.testing.assert_close(
                out.scores[step][row][kept], expected[kept].float(), atol=1e-3, rtol=1e-3
            )


@method
def test_beam_scores_equal_full_forwards(family, method):
    """A beam's score is the sum over its own answer: caches of all branches followed the beams."""
    _, model, make_inputs = family
    inputs = make_inputs(PROMPTS)
    out = generate(
        model,
        inputs,
        custom_generate=method.strong,
        num_beams=3,
        length_penalty=0.0,
        suppress_tokens=PICTURE_TOKENS,
        output_scores=True,
        return_dict_in_generate=True,
    )
    answers = out.sequences[:, inputs["input_ids"].shape[1] :]
    for row, prompt in enumerate(PROMPTS):
        total, answer = 0.0, []
        for token in answers[row].tolist():
            branches, layers = full_branches(family, method, prompt, answer)
            others = [*branches[1:], *layers]
            scores = method.log_scores(branches[0], others, len(answer), PICTURE_TOKENS)
            total += float(scores[token])
            answer.append(token)
            if token == model.generation_config.eos_token_id:
                break
        assert float(out.sequences_scores[row]) == pytest.approx(total, abs=2e-3)  # float32


@method
def test_a_row_does_not_depend_on_its_neighbours(family, method):
    _, model, make_inputs = family
    together = generate(model, make_inputs(PROMPTS), custom_generate=method.strong)
    width = make_inputs(PROMPTS)["input_ids"].shape[1]
    for row, prompt in enumerate(PROMPTS):
        inputs = make_inputs([prompt])
        alone = generate(model, inputs, custom_generate=method.strong)
        answer = alone[0, inputs["input_ids"].shape[1] :].tolist()
        assert together[row, width:].tolist()[: len(answer)] == answer


@method
def test_nothing_remains(family, method):
    _, model, make_inputs = family
    inputs = make_inputs(PROMPTS)
    generate(model, inputs)
    before, given = snapshot(model), {k: v.clone() for k, v in inputs.items()}
    first = generate(model, inputs, custom_generate=method.strong)
    assert snapshot(model) == before
    assert all(torch.equal(inputs[k], given[k]) for k in given)
    assert torch.equal(generate(model, inputs, custom_generate=method.strong), first)


def full_branches(family, method, prompt, answer):
    """As `forwards.full_branches`, for a family of `models.py`."""
    name, model, make_inputs = family
    prompts = [method.expert(prompt), *method.amateurs(name, prompt)]
    return forwards.full_branches(model, make_inputs, method, prompts, prompt, answer)


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
