"""The user's logits processors beside a rule: bans, penalties, the cut, then all that follows."""

import math
from dataclasses import dataclass, field, replace

import pytest
import torch
from methods import TOKEN_METHODS
from models import EOS, PROMPTS
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    SynthIDTextWatermarkingConfig,
    TemperatureLogitsWarper,
    WatermarkingConfig,
)

from sightline import (
    VDD,
    ConfidenceGate,
    DoLa,
    EntropyGate,
    Gated,
    NoImage,
    Plausibility,
    Recipe,
    Rule,
)
from sightline.engine.processor_order import AFTER, STATELESS, AfterCut, around_cut

STEPS = 3
MODES = {
    "greedy": {},
    "sampling": dict(do_sample=True, temperature=1.5, top_k=0),
    "beams": dict(num_beams=3),
}
CUTTING = {
    name: method.strong
    for name, method in TOKEN_METHODS.items()
    if (rule := method.strong.recipe().simplified().rule) is not None and rule.needs.cut
}
CUTTING["dola"] = DoLa(layers=(0, 1), beta=0.5)  # 0.01 leaves every token of a random model
CUTTING["one token"] = VDD(alpha=1.0, beta=1.0)
CUTTING["gated"] = Gated(VDD(alpha=1.5, beta=0.6))
CUTTING["without branches"] = Recipe(rule=Plausibility(0.9))
SYNTHID = SynthIDTextWatermarkingConfig(keys=[11, 22, 33], ngram_len=2)
CLEANING = {
    "nothing": {},
    "remove_invalid_values": dict(remove_invalid_values=True),
    "renormalize_logits": dict(renormalize_logits=True),
    "SynthID": dict(watermarking_config=SYNTHID),
    "all": dict(
        watermarking_config=WatermarkingConfig(),
        remove_invalid_values=True,
        renormalize_logits=True,
    ),
}
mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
decoder = pytest.mark.parametrize("decoder", CUTTING.values(), ids=CUTTING)
cleaning = pytest.mark.parametrize("cleaning", CLEANING.values(), ids=CLEANING)


def generate(model, inputs, decoder, **asked):
    torch.manual_seed(1)
    asked = {"max_new_tokens": STEPS, "pad_token_id": 0, **asked}
    out = dict(output_scores=True, output_logits=True, return_dict_in_generate=True)
    return model.generate(**inputs, custom_generate=decoder, **asked, **out)


def answers(out, inputs):
    return out.sequences[:, inputs["input_ids"].shape[1] :]


class Banned(LogitsProcessor):
    """A processor that the library does not know."""

    def __init__(self, tokens):
        self.tokens = tokens

    def __call__(self, input_ids, scores):
        scores[:, self.tokens] = -math.inf  # in place, as older ones do
        return scores


class BestBanned(LogitsProcessor):
    """Whatever is best among the scores it gets, so that a lone candidate never stays."""

    def __call__(self, input_ids, scores):
        return scores.scatter(1, scores.argmax(dim=-1, keepdim=True), -math.inf)


def bans(tokens):
    """By argument, how it bans these tokens at the first step, at least."""
    rest = [token for token in range(120) if token not in tokens]
    return {
        "bad_words_ids": dict(bad_words_ids=[[token] for token in tokens]),
        "suppress_tokens": dict(suppress_tokens=tokens),
        "begin_suppress_tokens": dict(begin_suppress_tokens=tokens),
        "min_new_tokens": dict(min_new_tokens=STEPS, eos_token_id=tokens),
        "min_length": dict(min_length=22 + STEPS, eos_token_id=tokens),
        "sequence_bias": dict(sequence_bias=[[[token], -math.inf] for token in tokens]),
        "prefix_allowed_tokens_fn": dict(prefix_allowed_tokens_fn=lambda row, ids: rest),
        "a processor": dict(logits_processor=[Banned(tokens)]),
    }


@cleaning
@mode
@decoder
def test_bans_of_all_that_is_plausible(llava, decoder, mode, cleaning):
    """The best tokens of what is left are said, neither banned ones nor implausible ones."""
    model, make_inputs = llava
    inputs = make_inputs(PROMPTS)
    first = generate(model, inputs, decoder, max_new_tokens=1, eos_token_id=-1)
    tokens = first.scores[0].isfinite().any(dim=0).nonzero()[:, 0].tolist()
    for name, banned in bans(tokens).items():
        asked = {"eos_token_id": -1, **mode, **cleaning, **banned}
        said = said_tokens(generate(model, inputs, decoder, **asked))
        steps = said[: len(PROMPTS)] if name == "begin_suppress_tokens" else said
        for token, expert in steps:
            assert token not in tokens, name
            assert is_kept(decoder.recipe().rule, expert, tokens, token), name


@cleaning
@mode
@decoder
def test_tokens_that_were_said_are_not_said_again(llava, decoder, mode, cleaning):
    model, make_inputs = llava
    inputs = make_inputs(PROMPTS)
    for banned in (dict(no_repeat_ngram_size=1), dict(encoder_no_repeat_ngram_size=1)):
        out = generate(model, inputs, decoder, **mode, **cleaning, **banned)
        for row, answer in zip(out.sequences, answers(out, inputs), strict=True):
            answer = answer[: answer.tolist().index(EOS) + 1 if EOS in answer else None]
            prompt = row[: inputs["input_ids"].shape[1]]
            assert not torch.isin(answer, prompt).any()
            assert "no_repeat_ngram_size" not in banned or len(answer.unique()) == len(answer)


@mode
@decoder
def test_a_forced_end(llava, decoder, mode):
    model, make_inputs = llava
    inputs = make_inputs(PROMPTS)
    asked = dict(forced_bos_token_id=50, forced_eos_token_id=60, eos_token_id=60)
    asked |= CLEANING["all"]
    out = generate(model, inputs, decoder, min_new_tokens=2, **asked, **mode)
    assert (answers(out, inputs)[:, -1] == 60).all()


def said_tokens(out):
    """Each token said with the expert's logits that it was said by, step by step, `(id, [V])`."""
    said = []
    start = out.sequences.shape[1] - len(out.logits)
    beams = getattr(out, "beam_indices", None)
    for step, logits in enumerate(out.logits):
        for row, sequence in enumerate(out.sequences):
            place = row if beams is None else int(beams[row, step])
            if start + step < len(sequence) and place >= 0:
                said.append((int(sequence[start + step]), logits[place]))
    return said


def is_kept(rule, expert, banned, token):
    """Whether a token is plausible beside the best that is not banned, by the formula."""
    expert = expert.double().clone()
    expert[banned] = -math.inf
    if hasattr(rule, "top_k"):
        best, ids = expert.softmax(dim=-1).sort(descending=True)
        needed = int((best.cumsum(dim=-1) < rule.top_p - 1e-6).sum()) + 1
        return token in ids[: min(needed, rule.top_k)].tolist()
    return expert[token] >= expert.max() + math.log(rule.beta) - 1e-4  # float32 logits


@mode
def test_a_ban_that_depends_on_scores_is_asked_once(llava, mode):
    """beta = 1: the best contrasted token is banned, and the expert's best of the rest is said."""
    model, make_inputs = llava
    out = generate(
        model,
        make_inputs(PROMPTS),
        VDD(alpha=1.0, beta=1.0),
        logits_processor=[BestBanned()],
        max_new_tokens=1,
        **mode,
    )
    expert, amateur = out.branch_logits[0]
    best = (2 * expert - amateur).argmax(dim=-1, keepdim=True)
    left = expert.scatter(1, best, -math.inf)
    assert torch.equal(out.scores[0].argmax(dim=-1), left.argmax(dim=-1))
    assert (out.scores[0].isfinite().sum(dim=-1) == 1).all()


class OncePerStep(LogitsProcessor):
    """As a grammar's: it reads the latest token, and a second call for one length is an error."""

    def __init__(self):
        self.seen = []

    def __call__(self, input_ids, scores):
        assert not self.seen or input_ids.shape[1] == self.seen[-1].shape[1] + 1
        self.seen.append(input_ids.clone())
        banned = scores.clone()
        banned[torch.arange(len(scores)), scores.argmax(dim=-1)] = -math.inf
        return banned


@mode
@decoder
def test_a_stateful_processor_is_called_once_for_each_token(llava, decoder, mode):
    model, make_inputs = llava
    inputs = make_inputs(PROMPTS)
    processor = OncePerStep()
    asked = dict(max_new_tokens=6, eos_token_id=-1, min_new_tokens=2, **CLEANING["all"])
    out = generate(model, inputs, decoder, logits_processor=[processor], **asked, **mode)
    assert len(processor.seen) == 6
    width = inputs["input_ids"].shape[1]
    copies = mode.get("num_beams", 1)
    prompts = inputs["input_ids"].repeat_interleave(copies, dim=0)
    for ids in processor.seen:
        assert torch.equal(ids[:, :width], prompts)
    if copies == 1:
        for step, ids in enumerate(processor.seen):
            assert torch.equal(ids, out.sequences[:, : width + step])


@mode
def test_guidance_of_transformers_reads_each_token_once(llava, mode):
    """Its unconditional branch keeps a cache of its own, which grows by one token a step."""
    model, make_inputs = llava
    inputs = make_inputs(PROMPTS)
    seen = []
    hook = model.register_forward_pre_hook(  # the loop's own calls are by keyword
        lambda module, args: seen.extend(ids.shape[1] for ids in args)
    )
    asked = dict(guidance_scale=1.5, eos_token_id=-1, max_new_tokens=4)
    out = generate(model, inputs, VDD(1.5, 0.05), **asked, **mode)
    hook.remove()
    assert seen == [1] * 4
    assert out.sequences.shape[1] == 26


# The definition, written out


@dataclass(frozen=True)
class Precut(Rule):
    """Another rule's scores, cut, as a rule that leaves all processors to `generate`."""

    rule: Rule = field(default_factory=Plausibility)

    @property
    def needs(self):
        return replace(self.rule.needs, others=True, cut=False)

    def keep(self, expert):
        return self.rule.keep(expert)

    def combine(self, logits, state):
        return self.rule(logits, state)


SHAPING = {
    "nothing": {},
    "warpers": dict(do_sample=True, temperature=0.7, top_k=30, top_p=0.9, min_p=0.02),
    "others": dict(do_sample=True, typical_p=0.9, epsilon_cutoff=1e-3, eta_cutoff=1e-3),
    "penalties": dict(do_sample=True, repetition_penalty=1.3, sequence_bias=[[[50], 4.0]]),
    "beams": dict(num_beams=3),
    "beam sampling": dict(num_beams=2, do_sample=True, temperature=0.7, top_p=0.9),
    "SynthID": dict(do_sample=True, watermarking_config=SYNTHID),
    "watermark": dict(watermarking_config=WatermarkingConfig()),
    "normalised": dict(num_beams=2, renormalize_logits=True, remove_invalid_values=True),
}


@pytest.mark.parametrize("asked", SHAPING.values(), ids=SHAPING)
@decoder
def test_without_bans_the_cut_comes_first(llava, decoder, asked):
    """Bit for bit what a rule gives that cuts its own scores before all processors."""
    model, make_inputs = llava
    inputs = make_inputs(PROMPTS)
    recipe = decoder.recipe().simplified()
    cut = Recipe(
        contrasts=recipe.contrasts,
        rule=Precut(recipe.rule),
        attention_edits=recipe.attention_edits,
        cache_evictions=recipe.cache_evictions,
        gate=recipe.gate,
    )
    ours = generate(model, inputs, decoder, max_new_tokens=8, **asked)
    plain = generate(model, inputs, cut, max_new_tokens=8, **asked)
    assert torch.equal(ours.sequences, plain.sequences)
    for a, b in zip(ours.scores, plain.scores, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("beams", [1, 3])
def test_the_order_by_hand(llava, beams):
    """Contrast, repetition penalty, ban, cut by what is left, (log-softmax,) temperature, top-k."""
    model, make_inputs = llava
    inputs = make_inputs(PROMPTS)
    first = generate(model, inputs, VDD(), max_new_tokens=1).logits[0]
    banned = sorted({int(token) for token in first.argmax(dim=-1)})
    out = generate(
        model,
        inputs,
        VDD(alpha=1.0, beta=0.2),
        num_beams=beams,
        do_sample=True,
        repetition_penalty=1.5,
        suppress_tokens=banned,
        temperature=0.5,
        top_k=4,
        eos_token_id=-1,
    )
    expert, amateur = (branch.double() for branch in out.branch_logits[0])
    scores = 2 * expert - amateur
    if beams > 1:
        scores = scores.log_softmax(dim=-1)
    prompts = inputs["input_ids"].repeat_interleave(beams, dim=0)
    for row, prompt in enumerate(prompts):
        for token in set(prompt[prompt != 0].tolist()):
            value = float(scores[row, token])
            scores[row, token] = value / 1.5 if value > 0 else value * 1.5
    scores[:, banned] = -math.inf
    left = expert.clone()
    left[:, banned] = -math.inf
    share = left.exp() / left.exp().amax(dim=-1, keepdim=True)
    scores = torch.where(share >= 0.2, scores, -math.inf)
    if beams > 1:
        scores = scores.log_softmax(dim=-1)
    scores = scores / 0.5
    fourth = scores.topk(4, dim=-1).values[:, -1:]
    scores = torch.where(scores >= fourth, scores, -math.inf)
    assert torch.equal(out.scores[0].isfinite(), scores.isfinite())
    kept = scores.isfinite()
    # float32 logits against float64 arithmetic on them
    torch.testing.assert_close(out.scores[0][kept].double(), scores[kept], atol=1e-4, rtol=1e-5)


# Gates


@mode
@pytest.mark.parametrize("beta", [0.6, 1.0])
def test_an_exact_gate_changes_no_token_beside_any_processor(llava, beta, mode):
    model, make_inputs = llava
    inputs = make_inputs(PROMPTS)
    decoder = VDD(alpha=2.0, beta=beta)
    first = generate(model, inputs, decoder, max_new_tokens=1, eos_token_id=-1)
    tokens = first.scores[0].isfinite().any(dim=0).nonzero()[:, 0].tolist()
    asked = {**bans(tokens), "penalty": dict(repetition_penalty=1.4, min_new_tokens=6)}
    asked["both"] = dict(asked["a processor"], repetition_penalty=1.4, no_repeat_ngram_size=1)
    for given in asked.values():
        plain = generate(model, inputs, decoder, max_new_tokens=6, **given, **mode)
        gated = generate(model, inputs, Gated(decoder), max_new_tokens=6, **given, **mode)
        assert torch.equal(plain.sequences, gated.sequences)
    plain, gated = (
        generate(model, inputs, each, max_new_tokens=6, logits_processor=[OncePerStep()], **mode)
        for each in (decoder, Gated(decoder))
    )
    assert torch.equal(plain.sequences, gated.sequences)


@pytest.mark.parametrize("gate", [ConfidenceGate(1e-9), EntropyGate(1e9)], ids=["unsure", "spread"])
def test_a_gate_that_is_shut_stays_shut_beside_unknown_processors(llava, gate):
    """The scores are those of branches that agree, and a ban acts on them."""
    model, make_inputs = llava
    inputs = make_inputs(PROMPTS)
    best = generate(model, inputs, Recipe(rule=Plausibility(1.0)), max_new_tokens=1)
    tokens = answers(best, inputs)[:, 0].tolist()
    shut = Gated(VDD(alpha=2.0, beta=1.0), gate)
    ours = generate(model, inputs, shut, logits_processor=[Banned(tokens)])
    alone = Recipe(rule=Plausibility(1.0))
    expected = generate(model, inputs, alone, logits_processor=[Banned(tokens)])
    assert torch.equal(ours.sequences, expected.sequences)


# The table


def test_every_warper_of_generate_acts_after_the_cut(llava):
    """Asked of transformers: what sampling adds to the list, and what it puts at its end."""
    model, _ = llava
    banning = dict(
        sequence_bias=[[[5], 1.0]],
        encoder_repetition_penalty=1.2,
        repetition_penalty=1.2,
        no_repeat_ngram_size=2,
        encoder_no_repeat_ngram_size=2,
        bad_words_ids=[[5]],
        min_length=3,
        min_new_tokens=3,
        forced_bos_token_id=5,
        forced_eos_token_id=5,
        exponential_decay_length_penalty=(1, 1.1),
        suppress_tokens=[6],
        begin_suppress_tokens=[6],
        eos_token_id=2,
        max_length=9,
    )
    shaping = dict(
        do_sample=True,
        temperature=0.5,
        top_h=0.5,
        top_k=5,
        top_p=0.5,
        min_p=0.1,
        typical_p=0.5,
        epsilon_cutoff=0.1,
        eta_cutoff=0.1,
        remove_invalid_values=True,
        renormalize_logits=True,
    )
    made = [
        type(processor)
        for config in (WatermarkingConfig(), SYNTHID)
        for processor in listed(model, dict(banning, **shaping, watermarking_config=config))
    ]
    banned = [type(processor) for processor in listed(model, dict(banning, do_sample=False))]
    assert set(banned) == STATELESS
    assert set(made) - set(banned) == set(AFTER) - {AfterCut}  # ours


def listed(model, asked):
    config = GenerationConfig(**asked)
    model._prepare_special_tokens(config)
    return model._get_logits_processor(
        config, input_ids_seq_length=4, encoder_input_ids=torch.tensor([[7, 8]]), device="cpu"
    )


def test_subclasses_of_warpers_are_warpers_and_order_is_kept():
    class Cooling(TemperatureLogitsWarper):
        pass

    ban, cooling, unknown = Banned([1]), Cooling(0.5), lambda ids, scores: scores
    before, after = around_cut([cooling, ban, TemperatureLogitsWarper(2.0), unknown])
    assert before == [ban, unknown]
    assert after[0] is cooling and len(after) == 2


def test_what_bans_leave_for_a_rule_with_candidates_of_its_own():
    """DeCo's nucleus by hand: 0.5 is banned, of the rest 0.3 and 0.15 reach 0.75 of the rest."""
    from sightline.logits.layers import LayerCorrection

    rule = LayerCorrection(alpha=0, top_k=0, top_p=0.75)
    expert = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64).log()
    scores = expert.clone()
    scores[0, 0] = -math.inf
    assert rule.cut(scores, expert).isfinite().tolist() == [[False, True, True, False]]
    assert rule([expert]).isfinite().tolist() == [[True, True, False, False]]


def test_recipes_without_a_cut_leave_processors_to_generate(llava):
    """beta = 0: there is nothing to be done about bans, in any mode."""
    model, make_inputs = llava
    inputs = make_inputs(PROMPTS)
    decoder = Recipe(contrasts=(NoImage(),), rule=VDD(alpha=1.0, beta=0).recipe().rule)
    out = generate(model, inputs, decoder, repetition_penalty=1.5, suppress_tokens=[50])
    expert, amateur = out.branch_logits[0]
    assert (out.scores[0].isneginf().sum(dim=-1) == 1).all()
    assert out.scores[0][0, 60] == 2 * expert[0, 60] - amateur[0, 60]
