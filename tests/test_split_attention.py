"""Branches read one by one: the same answers, and nobody's padding is read."""

import math

import pytest
import torch
from methods import TOKEN_METHODS
from models import FAMILIES, PAD, PROMPTS, TEXT, llava
from transformers import DynamicCache, MistralConfig, StaticCache

from sightline import PAI, VCD, VDD
from sightline.attention import hook
from sightline.attention.hook import AttentionPlan, BranchAttention, RowGroup, row_groups
from sightline.attention.recorder import AttentionRecorder
from sightline.engine import attention_plan
from sightline.engine.kv_cache import make_room

CLOSE = dict(atol=1e-4, rtol=1e-4)  # float32: other numbers of rows round otherwise
MODES = {"greedy": {}, "beams": dict(num_beams=3), "copies": dict(num_return_sequences=2)}


def generate(model, inputs, decoder, **kwargs):
    torch.manual_seed(1)
    asked = dict(output_logits=True, return_dict_in_generate=True, max_new_tokens=6)
    asked |= dict(eos_token_id=-1, pad_token_id=PAD, do_sample="num_return_sequences" in kwargs)
    return model.generate(**inputs, custom_generate=decoder, **(asked | kwargs))


def together(monkeypatch):
    """As where a launch costs more than padding."""
    monkeypatch.setitem(attention_plan.SPARED, "cpu", math.inf)


@pytest.fixture(autouse=True)
def one_by_one(monkeypatch):
    """Prompts of a tiny model are too short for it."""
    monkeypatch.setitem(attention_plan.SPARED, "cpu", 0)


@pytest.fixture
def calls(monkeypatch):
    """(rows, keys, whether by a mask) of every call of torch's attention for one token.

    Under a mask transformers hands two heads that share keys over as two queries.
    """
    seen = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def spied(query, key, value, attn_mask=None, **kwargs):
        if query.shape[2] <= 2:
            seen.append((len(query), key.shape[2], attn_mask is not None))
        return attend(query, key, value, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spied)
    return seen


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "name", [name for name in TOKEN_METHODS if not TOKEN_METHODS[name].cuts_cache]
)
@pytest.mark.parametrize("family_name", ["llava", "qwen"])
def test_answers_are_those_of_one_call(family_name, name, mode, monkeypatch):
    build, make_inputs = FAMILIES[family_name]
    model, inputs, decoder = build(), make_inputs(PROMPTS), TOKEN_METHODS[name].strong
    apart = generate(model, inputs, decoder, **MODES[mode])
    together(monkeypatch)
    whole = generate(model, inputs, decoder, **MODES[mode])
    assert torch.equal(apart.sequences, whole.sequences)
    torch.testing.assert_close(torch.stack(apart.logits), torch.stack(whole.logits), **CLOSE)


ROW = PROMPTS[0]


@pytest.mark.parametrize(
    "decoder, read",
    [
        (VDD(1.0, 0.1), [(1, 0, False), (1, 1, False)]),
        (
            VDD(1.0, 0.1, variant="both", unk_token_id=3),
            [(1, 0, False), (1, 1, False), (1, 2, False)],
        ),
        (VCD(1.0, 0.1), [(2, 0, False)]),
    ],
    ids=["vdd", "vdd both", "vcd"],
)
def test_each_prompt_is_read_at_its_own_length(decoder, read, calls):
    """Branch 0 is the prompt, 1 without its image, 2 with one token for it."""
    model, make_inputs = llava(), FAMILIES["llava"][1]
    inputs = make_inputs([ROW])
    lengths = [inputs["input_ids"].shape[1]]
    images = int((inputs["input_ids"] == model.config.image_token_id).sum())
    lengths += [lengths[0] - images, lengths[0] - images + 1]
    generate(model, inputs, decoder, max_new_tokens=3)
    once = [(rows, lengths[branch] + 1, masked) for rows, branch, masked in read]
    twice = [(rows, keys + 1, masked) for rows, keys, masked in once]
    layers = model.config.text_config.num_hidden_layers
    assert calls == once * layers + twice * layers


def test_rows_of_a_batch_keep_the_mask_of_their_own_padding(calls):
    model, make_inputs = llava(), FAMILIES["llava"][1]
    generate(model, make_inputs(PROMPTS), VDD(1.0, 0.1), max_new_tokens=2)
    assert {masked for _, _, masked in calls} == {True}
    assert {rows for rows, _, _ in calls} == {len(PROMPTS)}


def test_padding_is_not_read(monkeypatch):
    """What is not read may be anything."""
    model, make_inputs = llava(), FAMILIES["llava"][1]
    inputs = make_inputs([ROW])
    expected = generate(model, inputs, VDD(1.5, 0.05)).sequences
    attend = hook.one_by_one
    poisoned = []

    def poison(own, plan, query, key, value, mask):
        for number, (run, _) in enumerate(plan.row_groups):
            key[number, :, : run.start] = math.nan
            value[number, :, : run.start] = math.nan
            poisoned.append(run.start)
        return attend(own, plan, query, key, value, mask)

    monkeypatch.setattr(hook, "one_by_one", poison)
    assert torch.equal(generate(model, inputs, VDD(1.5, 0.05)).sequences, expected)
    assert max(poisoned) > 0


def test_eager_attention_gives_whole_attentions(monkeypatch):
    """With `output_attentions`, of the expert; each row sums to 1 over all keys."""
    model, make_inputs = llava(), FAMILIES["llava"][1]
    model.set_attn_implementation("eager")
    inputs = make_inputs(PROMPTS)
    asked = dict(output_attentions=True)
    apart = generate(model, inputs, VDD(1.5, 0.05), **asked)
    together(monkeypatch)
    whole = generate(model, inputs, VDD(1.5, 0.05), **asked)
    assert torch.equal(apart.sequences, whole.sequences)
    for one, other in zip(apart.attentions[1:], whole.attentions[1:], strict=True):
        for layer, expected in zip(one, other, strict=True):
            torch.testing.assert_close(layer, expected, **CLOSE)
            torch.testing.assert_close(layer.sum(dim=-1), torch.ones(layer.shape[:-1]), **CLOSE)


def static(model):
    return StaticCache(config=model.config.text_config, max_cache_len=64)


@pytest.mark.parametrize(
    "given",
    [
        lambda model: dict(past_key_values=DynamicCache(config=model.config.text_config)),
        lambda model: dict(past_key_values=static(model)),
        lambda model: dict(cache_implementation="static", disable_compile=True),
    ],
    ids=["own", "own static", "static"],
)
def test_other_caches_are_read_in_one_call(given, calls):
    model, make_inputs = llava(), FAMILIES["llava"][1]
    generate(model, make_inputs([ROW]), VDD(1.5, 0.05), **given(model))
    assert {rows for rows, _, _ in calls} == {2}


def test_windows_are_read_in_one_call(calls):
    windowed = MistralConfig(**TEXT, sliding_window=5)
    model, make_inputs = llava(windowed), FAMILIES["llava"][1]
    generate(model, make_inputs([ROW]), VDD(1.5, 0.05))
    assert {rows for rows, _, _ in calls} == {2}


def test_an_attention_that_ours_does_not_stand_in_for_is_left_alone(calls, monkeypatch):
    model, make_inputs = llava(), FAMILIES["llava"][1]
    monkeypatch.setattr(hook, "STANDS_IN_FOR", ("eager",))
    generate(model, make_inputs([ROW]), VDD(1.5, 0.05))
    assert {rows for rows, _, _ in calls} == {2}


def test_a_shared_model_has_its_own_attention_again():
    model, make_inputs = llava(), FAMILIES["llava"][1]
    generate(model, make_inputs([ROW]), VDD(1.5, 0.05))
    assert model.config.text_config._attn_implementation == "sdpa"


def block(lengths, is_idle=True):
    """Rows of so many tokens, padded on the left to the longest."""
    width = max(lengths)
    mask = torch.tensor([[0] * (width - n) + [1] * n for n in lengths], dtype=torch.bool)
    recorder = AttentionRecorder(image_mask=mask & False, mask=mask, layers=2)
    return BranchAttention(recorder, asked={} if is_idle else {0: frozenset({"row"})})


def test_runs_of_neighbours():
    """By hand, of a prompt of 9: alike neighbours are one run, edited keys count from column 0."""
    blocks = [block([9, 9]), block([9, 9]), block([4, 4]), block([4, 3]), block([4, 4], False)]
    assert row_groups(blocks, [9, 9, 4, 4, 4]) == (
        RowGroup(blocks=2, start=0, is_padded=False, is_idle=True),
        RowGroup(blocks=1, start=5, is_padded=False, is_idle=True),
        RowGroup(blocks=1, start=5, is_padded=True, is_idle=True),
        RowGroup(blocks=1, start=0, is_padded=True, is_idle=False),
    )


def test_one_run_is_one_call():
    blocks = [block([5]), block([5])]
    assert AttentionPlan(blocks, row_groups(blocks, [5, 5])).row_groups == []


def test_padding_worth_a_call_of_its_own(monkeypatch):
    """Per padded column 2 (key and value) x KV heads x head size x 4 bytes (float32)."""
    model = llava()
    config = model.config.text_config
    per_token = 2 * config.num_key_value_heads * config.head_dim * 4
    assert attention_plan.key_bytes(model) == per_token
    blocks, lengths = [block([9, 9]), block([4, 4])], [9, 4]
    cache = DynamicCache(config=config)
    make_room(cache, 4, 13)
    monkeypatch.setitem(attention_plan.SPARED, "cpu", 5 * 2 * per_token)
    assert len(attention_plan.separate(model, blocks, lengths, cache)) == 2
    monkeypatch.setitem(attention_plan.SPARED, "cpu", 5 * 2 * per_token + 1)
    assert attention_plan.separate(model, blocks, lengths, cache) == ()


def test_guidance_edits_the_expert_alone(calls):
    """PAI's blind branch is the model's own, and reads what it has."""
    model, make_inputs = llava(), FAMILIES["llava"][1]
    inputs = make_inputs([ROW])
    decoder = PAI(alpha=1.5, gamma=2.0, layers=(0, model.config.text_config.num_hidden_layers))
    generate(model, inputs, decoder, max_new_tokens=2)
    images = int((inputs["input_ids"] == model.config.image_token_id).sum())
    blind = inputs["input_ids"].shape[1] - images + 1
    assert set(calls) == {(1, blind, False)}


def test_an_edited_amateur_is_not_read_with_the_expert(calls):
    model, make_inputs = llava(), FAMILIES["llava"][1]
    generate(model, make_inputs([ROW]), TOKEN_METHODS["sid"].strong)
    assert {rows for rows, _, _ in calls} == {1}


def test_probabilities_are_put_back_where_their_keys_are():
    """Two rows of 4 keys, the second's first three padding: an even share of each one's own."""
    blocks = [block([4]), block([1])]
    for each in blocks:
        each.recorder.begin(0, 1)
    both = AttentionPlan(blocks, row_groups(blocks, [4, 1]))
    keys, mask = torch.ones(2, 1, 4, 2), torch.ones(2, 1, 1, 4, dtype=torch.bool)

    def attend(query, key, value, hidden, **keywords):
        assert hidden is None
        return query.transpose(1, 2), torch.full((1, 1, 1, key.shape[2]), 1 / key.shape[2])

    query = torch.arange(4.0).view(2, 1, 1, 2)
    output, shares = hook.one_by_one(attend, both, query, keys, keys, mask)
    assert torch.equal(output, query.transpose(1, 2))
    assert shares[:, 0, 0].tolist() == [[0.25] * 4, [0, 0, 0, 1]]


def test_what_is_spared():
    """By hand, of a prompt of 9: padding, and what need not go through edited attention."""
    expert, blind = block([9]), block([4])
    alike = row_groups([expert, blind], [9, 4])
    assert [attention_plan.spared(run, alike, 9) for run in alike] == [0, 5]
    mixed = row_groups([expert, block([9], is_idle=False)], [9, 9])
    assert [attention_plan.spared(run, mixed, 9) for run in mixed] == [9, 0]
    mixed = row_groups([block([9], is_idle=False), blind], [9, 4])
    assert [attention_plan.spared(run, mixed, 9) for run in mixed] == [0, 9]
