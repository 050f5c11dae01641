"""Attention edits by their worked numbers, and the switch that brings them to attention."""

import math
import threading

import pytest
import torch
from models import FAMILIES, PROMPTS, llava, llava_inputs
from transformers import Gemma2Config, LogitsProcessor, StoppingCriteria, StoppingCriteriaList

from sightline import PAI, SID, VAF, Contrastive, NoImage, NoisyImage, Recipe, UnknownImage
from sightline.attention.base import AttentionEdit
from sightline.attention.edits import (
    ImageGain,
    ImageScale,
    LeastAttended,
    SinkPenalty,
    fusion_layers,
    kept_count,
)
from sightline.attention.hook import AttentionPlan, BranchAttention
from sightline.attention.recorder import AttentionRecorder
from sightline.attention.reference import KeyWeights, attend

WORKED = dict(atol=1e-6, rtol=1e-5)  # the notes print six decimals; float32


def recorder(image, queries=1, step=1, layers=32, **kwargs):
    """Of prompts whose image tokens are the true ones in `image`."""
    image = torch.tensor(image, dtype=torch.bool)
    made = AttentionRecorder(image_mask=image, mask=torch.ones_like(image), layers=layers, **kwargs)
    made.begin(step, queries)
    return made


def probabilities(scores, weights):
    """Of one query with these scores, `[K]`: keys are unit vectors."""
    query = torch.tensor(scores)[None, None, None]
    keys = torch.eye(len(scores))[None, None]
    out, _ = attend(query, keys, keys, scaling=1.0, weights=weights)
    return out[0, 0, 0]


@pytest.mark.parametrize(
    "alpha, expected",
    [
        (0.2, [0.214789, 0.143977, 0.057378, 0.583856]),
        (0.5, [0.208408, 0.162308, 0.062771, 0.566512]),
    ],
)
def test_image_gain_worked_numbers(alpha, expected):
    weights = ImageGain(alpha)(5, recorder([[False, True, True, False]]))
    found = probabilities([1.0, 0.5, -0.4, 2.0], weights)
    torch.testing.assert_close(found, torch.tensor(expected), **WORKED)


def test_image_scale_worked_numbers():
    seen = recorder([[False, False, True, True, False]])
    found = probabilities([1.2, 0.8, 1.0, -0.6, 0.3], ImageScale(1.15, 0.95)(9, seen))
    expected = [0.304318, 0.208111, 0.307377, 0.048817, 0.131377]
    torch.testing.assert_close(found, torch.tensor(expected), **WORKED)


def test_image_scale_by_size_never_lowers_an_image_score():
    """By hand: -0.6 + 0.15 * 0.6 = -0.51, where "scale" makes it -0.69."""
    seen = recorder([[True, False]])
    found = probabilities([-0.6, 0.0], ImageScale(1.15, 1.0, mode="abs")(9, seen))
    assert float(found[0] / found[1]) == pytest.approx(math.exp(-0.51), rel=1e-6)


def test_image_scale_of_some_heads():
    seen = recorder([[True, False]], heads=3)
    factor = ImageScale(2.0, 1.0, heads=(2,))(9, seen).scale
    assert factor[0].tolist() == [[1, 1], [1, 1], [2, 1]]


def test_image_scale_acts_on_the_queries_after_the_image_alone():
    seen = recorder([[False, True, True, False, False], [True, False, False, False, False]], 5, 0)
    assert ImageScale(2.0, 1.0)(9, seen).first_query.tolist() == [3, 1]


def test_layers_of_the_notes():
    seen = recorder([[True, False]])
    assert [n for n in range(32) if ImageGain(0.2)(n, seen)] == list(range(2, 32))
    assert fusion_layers(32) == (9, 15)
    assert [n for n in range(32) if ImageScale(1.1, 0.9)(n, seen)] == list(range(9, 15))


FIRST = [
    [0.30, 0.05, 0.10, 0.02, 0.08, 0.01, 0.06, 0.03, 0.15, 0.20],
    [0.20, 0.10, 0.02, 0.06, 0.12, 0.05, 0.03, 0.02, 0.10, 0.30],
]
SECOND = [
    [0.25, 0.05, 0.09, 0.01, 0.07, 0.06, 0.02, 0.05, 0.10, 0.10, 0.20],
    [0.20, 0.05, 0.05, 0.03, 0.10, 0.07, 0.02, 0.06, 0.12, 0.10, 0.20],
]


def test_least_attended_worked_numbers():
    """Two image tokens hidden at the first step are seen again at the second."""
    part = LeastAttended(start=3, count=2)
    seen = recorder([[False] * 2 + [True] * 6 + [False] * 2], 10, 0)
    for step, (attention, stay) in enumerate([(FIRST, {5, 7}), (SECOND, {3, 6})]):
        seen.begin(step, 1 if step else 10)
        seen.write(2, {"row": torch.tensor(attention).mean(dim=0)[None]})
        hidden = torch.isneginf(part(3, seen).bias[0, 0])
        assert set(hidden.nonzero().flatten().tolist()) == set(range(2, 8)) - stay
        assert part(2, seen) is None


def test_least_attended_counts_of_the_note():
    images = torch.tensor([576, 32, 256, 2304, 0])
    assert kept_count(images, 0.1, None).tolist()[:4] == [58, 3, 26, 230]
    assert kept_count(images, 0.1, 100).tolist() == [100, 32, 100, 100, 0]


def test_sink_penalty_worked_numbers():
    seen = recorder([[False] * 4], 1, 1, layers=1)
    seen.columns[0] = torch.tensor([[[2.8, 0.5, 0.4, 0.3]]])
    scale = SinkPenalty(0.1)(0, seen).scale
    expected = [1.021449, 1.092125, 1.092874, 1.093552]
    torch.testing.assert_close(scale[0, 0, :4], torch.tensor(expected), **WORKED)
    assert scale.shape[-1] == 5  # the latest key has drawn nothing
    found = torch.tensor([3, 1, 0.5, 2]) * scale[0, 0, :4]
    torch.testing.assert_close(
        found.softmax(dim=-1), torch.tensor([0.611358, 0.085069, 0.049293, 0.254281]), **WORKED
    )


def test_ledger_sums_columns_over_queries():
    """The note's causal rows: [1], [.7, .3], [.6, .1, .3], [.5, .1, .1, .3]."""
    seen = recorder([[False]], 1, 0, layers=1)
    for step, row in enumerate([[1], [0.7, 0.3], [0.6, 0.1, 0.3], [0.5, 0.1, 0.1, 0.3]]):
        seen.begin(step, 1)
        seen.write(0, {"columns": torch.tensor([[row]], dtype=torch.float32)})
    torch.testing.assert_close(seen.columns[0], torch.tensor([[[2.8, 0.5, 0.4, 0.3]]]), **WORKED)


def test_edits_of_one_branch_stand_side_by_side():
    image = [[False, True]]
    parts = (ImageGain(0.5), ImageGain(0.25, (2, 3)))
    plan = AttentionPlan([BranchAttention(recorder(image), parts)])
    assert plan.weights(2, 1, 3, torch.device("cpu")).gain.tolist() == [[[0, 0.75]]]
    assert plan.weights(3, 1, 3, torch.device("cpu")).gain.tolist() == [[[0, 0.5]]]
    with pytest.raises(ValueError, match="different queries"):
        clash = (ImageGain(0.5), ImageScale(2.0, 1.0))
        AttentionPlan([BranchAttention(recorder(image, 4, 0), clash)]).weights(
            9, 4, 4, torch.device("cpu")
        )


def test_one_edit_of_several_layers_is_put_together_once():
    image = [[True, False]]
    first, second = (BranchAttention(recorder(image), (ImageGain(0.5, (n, 8)),)) for n in (2, 4))
    plan = AttentionPlan([first, second])
    at = [plan.weights(layer, 1, 2, torch.device("cpu")) for layer in (2, 3, 4, 5)]
    assert at[0] is at[1] and at[2] is at[3]
    assert at[0].gain[:, 0].tolist() == [[0.5, 0.0], [0.0, 0.0]]
    assert at[2].gain[:, 0].tolist() == [[0.5, 0.0], [0.5, 0.0]]
    assert plan.weights(1, 1, 2, torch.device("cpu")) is None


def test_edits_of_one_branch_and_of_another_are_told_apart():
    gain = torch.tensor([[[0.5, 0.0]]])

    class In(AttentionEdit):
        def __init__(self, layer):
            self.layer = layer

        def __call__(self, layer, recorder):
            return KeyWeights(gain=gain) if layer == self.layer else None

    blocks = [BranchAttention(recorder([[True, False]]), (In(layer),)) for layer in (2, 3)]
    plan = AttentionPlan(blocks)
    at = [plan.weights(layer, 1, 2, torch.device("cpu")) for layer in (2, 3)]
    assert at[0].gain[:, 0].tolist() == [[0.5, 0.0], [0.0, 0.0]]
    assert at[1].gain[:, 0].tolist() == [[0.0, 0.0], [0.5, 0.0]]


def test_the_other_branch_is_neutral():
    image = [[False, True]]
    plan = AttentionPlan(
        [BranchAttention(recorder(image), (ImageGain(0.5),)), BranchAttention(recorder(image))]
    )
    found = plan.weights(2, 1, 3, torch.device("cpu"))
    assert found.gain.tolist() == [[[0, 0.5]], [[0, 0]]] and found.scale is None
    assert plan.weights(0, 1, 3, torch.device("cpu")) is None


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: PAI(alpha=math.nan), "alpha must be a finite number"),
        (lambda: PAI(alpha=-1), "alpha must be a finite number >= 0"),
        (lambda: PAI(layers=(3, 2)), "first after"),
        (lambda: PAI(layers=(1.5, 2)), "first after"),
        (lambda: VAF(enhance=math.inf), "enhance must be a finite number"),
        (lambda: VAF(suppress=1.0), r"suppress must be in \[-1e\+09, 1\)"),
        (lambda: VAF(mode="add"), "mode must be one of scale, abs"),
        (lambda: VAF(heads=()), "one or more head numbers"),
        (lambda: SID(start=0), "start must be a whole number from 1 to"),
        (lambda: SID(ratio=0), r"ratio must be in \(0, 1\]"),
        (lambda: SID(count=0), "count must be a whole number from 1 to"),
        (lambda: SinkPenalty(math.nan), "b must be a finite number"),
    ],
)
def test_settings_out_of_range(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    "decoder, words",
    [
        (PAI(layers=(2, 9)), "end outside the model, which has 3 decoder layers"),
        (VAF(layers=(0, 4)), "end outside the model"),
        (VAF(heads=(7,)), "has 4 query heads"),
        (SID(start=3), "start=3 is outside the model"),
        (SID(start=1, count=99), "more than the image tokens"),
    ],
)
def test_settings_that_the_model_does_not_have(decoder, words, monkeypatch):
    model = llava()
    monkeypatch.setattr(model.model.language_model, "forward", None)  # no forward comes that far
    with pytest.raises(ValueError, match=words):
        model.generate(**llava_inputs(PROMPTS), custom_generate=decoder, max_new_tokens=2)


def test_softcapped_attention_is_refused():
    text = Gemma2Config(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=120,
        attn_logit_softcapping=5.0,
        attn_implementation="eager",
    )
    model = llava(text)
    model.set_attn_implementation({"text_config": "eager"})
    with pytest.raises(ValueError, match="softcap"):
        model.generate(**llava_inputs(PROMPTS), custom_generate=PAI(), max_new_tokens=2)
    assert model.config.text_config._attn_implementation == "eager"


@pytest.mark.parametrize("name", ["sdpa", "eager"])
@pytest.mark.parametrize("family_name", FAMILIES)
def test_any_attention_of_the_model_may_be_stood_in_for(family_name, name):
    build, make_inputs = FAMILIES[family_name]
    inputs = make_inputs(PROMPTS)
    answers = []
    for chosen in ("sdpa", name):
        model = build()
        model.set_attn_implementation({"text_config": chosen})
        settings = dict(max_new_tokens=8, custom_generate=PAI(alpha=1.0, gamma=2.0))
        answers.append(model.generate(**inputs, **settings))
        assert model.config.text_config._attn_implementation == chosen
    assert torch.equal(*answers)


def test_flash_attention_is_refused():
    model = llava()
    model.config.text_config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match='attn_implementation="sdpa"'):
        model.generate(**llava_inputs(PROMPTS), custom_generate=PAI(), max_new_tokens=2)


class Meet(StoppingCriteria):
    """Waits at every step for the other call's same step."""

    def __init__(self, barrier):
        self.barrier = barrier

    def __call__(self, input_ids, scores, **kwargs):
        self.barrier.wait(timeout=60)
        return torch.zeros(len(input_ids), dtype=torch.bool)


@pytest.mark.parametrize(
    "decoder", [PAI(alpha=3.0, gamma=2.0), SID(start=1, ratio=0.2)], ids=["pai", "sid"]
)
def test_two_threads_on_one_model(decoder):
    """One edits attention and the other does not, step by step at once; then both edit."""
    model = llava()
    length = dict(max_new_tokens=8, min_new_tokens=8)
    inputs = llava_inputs(PROMPTS)
    alone = {
        "plain": model.generate(**inputs, **length),
        "edited": model.generate(**inputs, **length, custom_generate=decoder),
    }
    assert not torch.equal(alone["plain"], alone["edited"])
    for names in (("plain", "edited"), ("edited", "edited")):
        barrier, found = threading.Barrier(2), {}

        def call(place, name, barrier=barrier, found=found):
            custom = {} if name == "plain" else {"custom_generate": decoder}
            criteria = StoppingCriteriaList([Meet(barrier)])
            found[place] = model.generate(**inputs, **length, **custom, stopping_criteria=criteria)

        threads = [threading.Thread(target=call, args=pair) for pair in enumerate(names)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for place, name in enumerate(names):
            assert torch.equal(found[place], alone[name])
    assert model.config.text_config._attn_implementation == "sdpa"


class Fail(LogitsProcessor):
    def __call__(self, input_ids, scores):
        if input_ids.shape[1] > 27:
            raise RuntimeError("in the middle")
        return scores


def test_nothing_remains_after_an_exception():
    model = llava()
    inputs = llava_inputs(PROMPTS)
    before = model.generate(**inputs, max_new_tokens=8)
    with pytest.raises(RuntimeError, match="in the middle"):
        model.generate(
            **inputs, max_new_tokens=8, custom_generate=PAI(alpha=3.0), logits_processor=[Fail()]
        )
    assert model.config.text_config._attn_implementation == "sdpa"
    assert torch.equal(model.generate(**inputs, max_new_tokens=8), before)


def first_logits(recipe, steps=4):
    """Every branch's logits `[N, R, V]` of each step, the answer being forced."""
    model = llava()
    out = model.generate(
        **llava_inputs(PROMPTS),
        max_new_tokens=steps,
        custom_generate=recipe,
        prefix_allowed_tokens_fn=lambda row, ids: [20 + len(ids) % 7],
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack(out.branch_logits)


def test_an_amateur_with_images_is_left_alone():
    contrast = dict(contrasts=(NoisyImage(500),), rule=Contrastive(1.0, 0.0))
    plain = first_logits(Recipe(**contrast))
    edited = first_logits(Recipe(**contrast, attention_edits=(ImageGain(2.0),)))
    torch.testing.assert_close(plain[:, 1], edited[:, 1], atol=1e-4, rtol=1e-4)  # float32
    assert (plain[:, 0] - edited[:, 0]).abs().max() > 0.1


def test_an_expert_shorter_than_its_amateur_finds_its_image():
    """Its keys move to the right when the branches are stacked."""
    edit = (ImageGain(2.0),)
    rule = Contrastive(1.0, 0.0)
    alone = first_logits(Recipe(attention_edits=edit, rule=rule, contrasts=(NoImage(),)))
    longer = UnknownImage((9,) * 40)
    beside = first_logits(Recipe(attention_edits=edit, rule=rule, contrasts=(longer,)))
    torch.testing.assert_close(alone[:, 0], beside[:, 0], atol=1e-4, rtol=1e-4)  # float32


def test_recipes_join_their_recalibrations():
    both = PAI.without_guidance().recipe() + Recipe(attention_edits=(ImageGain(0.1, (0, 1)),))
    assert len(both.attention_edits) == 2
