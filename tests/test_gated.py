"""Gated contrasts: the same answers, with the amateurs asked only where they can matter."""

import math

import pytest
import torch
from methods import METHODS
from models import EOS, FAMILIES, IMAGE, PROMPTS, VIDEO, VISION_END, VISION_START, lfm2, lfm2_inputs
from transformers import MistralConfig

from sightline import (
    SID,
    VCD,
    VDD,
    ConfidenceGate,
    Contrastive,
    EntropyGate,
    Gated,
    NoImage,
    Plausibility,
    PlausibilityGate,
    Recipe,
)

STEPS = 12
BETA = 0.6  # so high that one token alone is often plausible to a random model
CONTRASTED = {
    "vdd": VDD(alpha=2.0, beta=BETA),
    "vcd": VCD(alpha=2.0, beta=BETA, noise_step=900, seed=1),
    "vdd both": VDD(alpha=2.0, beta=BETA, variant="both", unk_token_id=7),
}
MODES = {
    "greedy": {},
    "sampling": dict(do_sample=True, top_k=0),
    "3 beams": dict(num_beams=3),
    "2 beams, 2 returned": dict(num_beams=2, num_return_sequences=2),
    "3 samples": dict(do_sample=True, num_return_sequences=3),
    "static cache": dict(cache_implementation="static"),
    "not yet the end": dict(min_new_tokens=STEPS, eos_token_id=[EOS, *range(20, 60)]),
}
IMAGE_TOKENS = [IMAGE, VIDEO, VISION_START, VISION_END]
decoder = pytest.mark.parametrize("decoder", CONTRASTED.values(), ids=CONTRASTED)
mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


def generate(model, inputs, **kwargs):
    torch.manual_seed(1)
    asked = {"max_new_tokens": STEPS, "suppress_tokens": IMAGE_TOKENS, **kwargs}
    return model.generate(**inputs, **asked)


class Forwards:
    """Rows and tokens of each forward of a model's text part."""

    def __init__(self, model):
        self.model = model
        self.sizes = []

    def __enter__(self):
        text = self.model.get_decoder()
        self.handle = text.register_forward_pre_hook(self.count, with_kwargs=True)
        return self.sizes

    def __exit__(self, *_):
        self.handle.remove()

    def count(self, module, args, kwargs):
        self.sizes.append(tuple(kwargs["inputs_embeds"].shape[:2]))


@mode
@decoder
@pytest.mark.parametrize("rows", [PROMPTS, PROMPTS[:1]], ids=["padded batch", "one row"])
def test_an_exact_gate_changes_no_token(family, decoder, mode, rows):
    _, model, make_inputs = family
    ungated = generate(model, make_inputs(rows), custom_generate=decoder, **mode)
    gated = generate(model, make_inputs(rows), custom_generate=Gated(decoder), **mode)
    assert torch.equal(gated, ungated)


def test_the_amateur_reads_what_it_missed_in_one_forward(family):
    """What was missed is counted by hand, of the plausible tokens of each step, banned ones out."""
    _, model, make_inputs = family
    decoder, inputs = CONTRASTED["vdd"], make_inputs(PROMPTS[:1])
    asked = dict(output_logits=True, return_dict_in_generate=True)
    out = generate(model, inputs, custom_generate=decoder, **asked)
    allowed = [token for token in range(120) if token not in IMAGE_TOKENS]
    chances = [logits[0, allowed].exp() for logits in out.logits]
    plausible = [int((chance >= BETA * chance.max()).sum()) for chance in chances]
    assert 1 in plausible and max(plausible) > 1, "the gate opens and closes"
    expected, missed, has_read = [], 0, False
    for step, count in enumerate(plausible):
        expected.append(inputs["input_ids"].shape[1] if step == 0 else 1)
        missed += step > 0
        if count > 1:
            expected += [] if has_read else [len(PROMPTS[0]) - 1]  # all but the image
            expected += [missed] if missed else []
            has_read, missed = True, 0
    with Forwards(model) as sizes:
        generate(model, inputs, custom_generate=Gated(decoder))
    assert [length for _, length in sizes] == expected
    assert {rows for rows, _ in sizes} == {1}


def test_a_gate_that_never_opens_never_asks(llava):
    model, make_inputs = llava
    with Forwards(model) as sizes:
        out = generate(
            model,
            make_inputs(PROMPTS),
            custom_generate=Gated(CONTRASTED["vdd"], ConfidenceGate(1e-9)),
            output_logits=True,
            return_dict_in_generate=True,
        )
    assert {rows for rows, _ in sizes} == {len(PROMPTS)} and len(sizes) == len(out.logits)
    assert all(step[1].isnan().all() and step[0].isfinite().all() for step in out.branch_logits)
    greedy = generate(model, make_inputs(PROMPTS))
    assert torch.equal(out.sequences, greedy)


def test_rows_open_by_themselves(llava):
    """A row whose gate is closed is scored as if its amateur agreed, whatever its neighbour's."""
    model, make_inputs = llava
    gate = ConfidenceGate(0.5)
    together = generate(model, make_inputs(PROMPTS), custom_generate=Gated(VDD(2.0, 0.0), gate))
    width = make_inputs(PROMPTS)["input_ids"].shape[1]
    for row, prompt in enumerate(PROMPTS):
        inputs = make_inputs([prompt])
        alone = generate(model, inputs, custom_generate=Gated(VDD(2.0, 0.0), gate))
        answer = alone[0, inputs["input_ids"].shape[1] :].tolist()
        assert together[row, width:].tolist()[: len(answer)] == answer


def test_scores_where_it_is_open_are_the_formulas(family):
    _, model, make_inputs = family
    asked = dict(output_scores=True, output_logits=True, return_dict_in_generate=True)
    decoder = VDD(alpha=1.5, beta=0.05)
    out = generate(model, make_inputs(PROMPTS), custom_generate=Gated(decoder), **asked)
    seen = 0
    for scores, branches in zip(out.scores, out.branch_logits, strict=True):
        expert, amateur = branches.double()
        left = expert.clone()
        left[:, IMAGE_TOKENS] = -math.inf
        plausible = left.exp() >= 0.05 * left.exp().amax(-1, keepdim=True)
        for row in torch.nonzero(plausible.sum(-1) > 1)[:, 0]:
            expected = 2.5 * expert[row] - 1.5 * amateur[row]
            expected = torch.where(plausible[row], expected, -math.inf)
            kept = expected.isfinite()
            assert torch.equal(scores[row].isfinite(), kept)
            torch.testing.assert_close(
                scores[row][kept].double(),
                expected[kept],
                atol=1e-4,
                rtol=1e-5,  # float32
            )
            seen += 1
    assert seen


def test_gates_by_hand():
    """p = (0.9, 0.1), (0.5, 0.5), (1, 0)."""
    logits = torch.tensor([[0.9, 0.1], [0.5, 0.5], [1.0, 1e-30]]).log()
    rule = Plausibility(beta=0.2)
    assert PlausibilityGate().opens(logits, rule).tolist() == [False, True, False]
    assert ConfidenceGate(0.95).opens(logits, rule).tolist() == [True, True, False]
    assert ConfidenceGate(0.7).opens(logits, rule).tolist() == [False, True, False]
    # entropies: 0.325, 0.693, 0
    assert EntropyGate(0.3).opens(logits, rule).tolist() == [True, True, False]
    assert EntropyGate(0.4).opens(logits, rule).tolist() == [False, True, False]


@pytest.mark.parametrize("probability", [0, -0.1, 1.1, math.nan])
def test_no_such_probability(probability):
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        ConfidenceGate(probability)


@pytest.mark.parametrize("entropy", [-0.1, math.inf, math.nan])
def test_no_such_entropy(entropy):
    with pytest.raises(ValueError, match="finite number"):
        EntropyGate(entropy)


def test_gates_of_added_recipes():
    one = Recipe(contrasts=(NoImage(),), rule=Contrastive(), gate=PlausibilityGate())
    assert (one + Recipe()).gate == (Recipe() + one).gate == PlausibilityGate()
    with pytest.raises(ValueError, match="two gates"):
        one + Recipe(gate=ConfidenceGate())


def test_what_cannot_be_gated_is_refused(llava):
    model, make_inputs = llava
    with pytest.raises(ValueError, match=r"edited token by token \(SID\)"):
        generate(model, make_inputs(PROMPTS), custom_generate=Gated(SID(start=1)))
    with pytest.raises(ValueError, match="keep more than keys and values"):
        generate(lfm2(), lfm2_inputs(PROMPTS), custom_generate=Gated(VDD()))


def test_sliding_windows():
    build, make_inputs = FAMILIES["llava"]
    from models import TEXT

    model = build(MistralConfig(**TEXT, sliding_window=8))
    decoder = CONTRASTED["vdd"]
    plain = generate(model, make_inputs(PROMPTS), custom_generate=decoder)
    assert torch.equal(generate(model, make_inputs(PROMPTS), custom_generate=Gated(decoder)), plain)


def test_a_method_without_amateurs_is_as_it_was(llava):
    model, make_inputs = llava
    strong = METHODS["deco"].strong
    plain = generate(model, make_inputs(PROMPTS), custom_generate=strong)
    assert torch.equal(generate(model, make_inputs(PROMPTS), custom_generate=Gated(strong)), plain)
