"""Layers that attend to another layer's keys, and get the last query of a prompt alone."""

from types import SimpleNamespace

import pytest
import torch
from forwards import full_forward
from methods import Prompt
from models import PROMPTS
from oracles import image_gain, image_scale, least_attended
from test_model_quirks import CLOSE, PRESENT, SUPPRESSED, tiny

from sightline import SID, VAF, Recipe, VASparse
from sightline.attention.edits import ImageGain, ImageScale, LeastAttended
from sightline.attention.hook import KEYWORD, AttentionPlan, BranchAttention, recalibrated
from sightline.attention.recorder import AttentionRecorder
from sightline.decoders.carve.carve import RefinedImage
from sightline.engine.attention_maps import watch
from sightline.engine.inputs import complete, expert_branch
from sightline.engine.kv_cache import layers_with_every_key, layers_without_attention
from sightline.setting_text import STAND_IN

EDITS = {
    "gain": ImageGain(2.0, layers=(0, 4)),
    "scale": ImageScale(3.0, 0.3, layers=(0, 4)),
    "least": LeastAttended(start=1, ratio=0.5),
}


def sharing(name="gemma4", **changes):
    """Layer 2, which has a window, attends to the keys of layer 1, and layer 3 to those of 0."""
    kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    shared = dict(num_hidden_layers=4, num_kv_shared_layers=2, layer_types=kinds, **changes)
    return tiny(name, **{f"text_config__{key}": value for key, value in shared.items()})


# One layer: the latest queries alone are read like the latest of all


def recorder(rows=3, width=9):
    """A row padded on the left, one whose image comes late, and one without an image."""
    image = torch.zeros(rows, width, dtype=torch.bool)
    image[0, 3:5] = image[1, 6:8] = True
    mask = torch.ones_like(image)
    mask[0, :2] = False
    made = AttentionRecorder(image, mask, layers=4)
    made.begin(0, width)
    made.row[0] = torch.rand(rows, width, generator=torch.Generator().manual_seed(1))
    return made


def read(parts, latest, asked=frozenset({"row", "groups", "mass"})):
    """Output and records of layer 1, which gets the `latest` of 9 queries."""
    kept = recorder()
    kept.queried = torch.zeros(3, 9, dtype=torch.bool)
    kept.queried[:, 7:] = True
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 3, 2, 9, 4, generator=generator).unbind(0)
    hidden = torch.ones(9, 9, dtype=torch.bool).triu(1) | ~kept.mask[:, None, None]
    plan = AttentionPlan([BranchAttention(kept, parts, {1: asked})])
    module = SimpleNamespace(layer_idx=1)
    output, _ = recalibrated(
        torch.nn.functional.scaled_dot_product_attention,  # not called: all of it is edited
        module,
        query[:, :, -latest:],
        key,
        value,
        ~hidden[..., -latest:, :],
        scaling=0.5,
        **{KEYWORD: plan},
    )
    return output[:, -2:], {name: getattr(kept, name)[1] for name in asked}


@pytest.mark.parametrize("latest", [2, 3])
@pytest.mark.parametrize("edit", EDITS)
def test_the_latest_queries_alone_are_edited_and_recorded_alike(monkeypatch, edit, latest):
    monkeypatch.setattr(
        "sightline.attention.hook.first_concerned", lambda *_: 0
    )  # so that every query is read by the edited attention
    asked = frozenset({"row", "groups", "mass", "chosen"})
    whole, records = read((EDITS[edit],), 9, asked)
    some, found = read((EDITS[edit],), latest, asked)
    plain, _ = read((), 9, asked)
    torch.testing.assert_close(some, whole)
    torch.testing.assert_close(found, records)
    assert not torch.allclose(whole, plain, atol=1e-3)


@pytest.mark.parametrize("asked", ["columns", "chosen"])
def test_attention_of_queries_that_a_layer_did_not_get_is_refused(asked):
    with pytest.raises(ValueError, match="layer 1 of this model reads the last 1"):
        read((), 1, frozenset({asked}))


# Whole models


@pytest.mark.parametrize("layers", [(0, 4), (2, 4), (3, 4)], ids=str)
@pytest.mark.parametrize("edit", ["gain", "scale", "least"])
def test_every_answered_token_is_edited(edit, layers):
    """The logits of the first tokens are those of whole matrices without a cache."""
    first = layers[0]
    part, oracle = {
        "gain": (ImageGain(3.0, layers), image_gain(3.0, first)),
        "scale": (ImageScale(4.0, 0.3, layers), image_scale(4.0, 0.3, range(*layers))),
        "least": (LeastAttended(max(1, first), 0.3), least_attended(max(1, first), 0.3)),
    }[edit]
    made = sharing(sliding_window=64)
    told = dict(output_logits=True, return_dict_in_generate=True, max_new_tokens=3)
    asked = dict(do_sample=False, **SUPPRESSED, **told)
    got = made.model.generate(
        **made.inputs(PROMPTS), custom_generate=Recipe(attention_edits=(part,)), **asked
    )
    for place, row in enumerate(PROMPTS):
        answer = got.sequences[place, -3:].tolist()
        for step, logits in enumerate(got.logits):
            edited = Prompt(row, lambda pixels: pixels, oracle)
            plain = Prompt(row, lambda pixels: pixels)
            wanted, unedited = (
                full_forward(made.model, made.inputs, row, prompt, answer[:step]).logits[0, -1]
                for prompt in (edited, plain)
            )
            torch.testing.assert_close(logits[place], wanted, **CLOSE)
            assert (wanted - unedited).abs().max() > 0.01


def test_what_each_layer_sees_and_shares():
    config = sharing(sliding_window=16).model.config.text_config
    assert layers_with_every_key(config, 16) == (0, 1, 2, 3)
    assert layers_with_every_key(config, 17) == (0, 3)
    assert layers_without_attention(config) == frozenset()


def test_attention_of_a_whole_prompt_is_read_in_every_layer():
    """As the model's own eager attention gives it."""
    made = sharing(sliding_window=6)
    inputs = made.inputs([PROMPTS[0]])
    seen = {}

    def reading(model, input_ids, generation_config, **given):
        given = {k: v for k, v in given.items() if not k.endswith(("processor", "criteria"))}
        expert = expert_branch(model, input_ids, 1, {}, given, generation_config)
        expert = complete(expert, model, generation_config)
        chosen = torch.zeros_like(expert.image_mask)
        chosen[:, -4:-1] = True
        seen.update(watch(model, expert, range(4), chosen))
        return input_ids

    made.model.generate(**inputs, custom_generate=reading, max_new_tokens=1)
    made.model.set_attn_implementation("eager")
    with torch.no_grad():
        whole = made.model(**inputs, output_attentions=True).attentions
    for layer, attention in enumerate(whole):
        wanted = attention[0, :, -4:-1].mean(dim=(0, 1))
        torch.testing.assert_close(seen[layer][0], wanted, atol=1e-5, rtol=1e-4)  # float32


def test_such_models_answer_as_generate_does():
    made = sharing()
    asked = dict(made.inputs(PROMPTS), max_new_tokens=6, do_sample=False, **SUPPRESSED)
    for beams in (1, 2):
        plain = made.model.generate(**asked, num_beams=beams)
        assert torch.equal(
            made.model.generate(**asked, num_beams=beams, custom_generate=PRESENT), plain
        )


def test_regions_are_compared_in_layers_that_share_keys_too():
    config = sharing(sliding_window=8).model.config.text_config
    part = RefinedImage(STAND_IN, layers=(2, 4))
    assert part._compared(config, 20) == (3,)


@pytest.mark.parametrize(
    "decoder", [VASparse(keep=0.5, every=4), VASparse(keep=1, sink=0.1)], ids=["keys leave", "sink"]
)
def test_keys_of_several_layers_cannot_be_cut_or_summed(decoder):
    made = sharing(sliding_window=64)
    with pytest.raises(ValueError, match=r"layers \[2, 3\] of this model do not keep every key"):
        made.model.generate(**made.inputs(PROMPTS), custom_generate=decoder, max_new_tokens=4)


@pytest.mark.parametrize("decoder", [VAF(layers=(2, 3)), SID(start=3)], ids=["vaf", "sid"])
def test_decoders_that_edit_layers_with_shared_keys_run(decoder):
    made = sharing()
    got = made.model.generate(**made.inputs(PROMPTS), custom_generate=decoder, max_new_tokens=4)
    assert got.shape[1] == made.inputs(PROMPTS)["input_ids"].shape[1] + 4
