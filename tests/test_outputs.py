"""Attention, hidden states and scores beside a decoder: whole and aligned, or refused in words."""

import pytest
import torch
from chat_models import CHAT_MODELS
from models import FAMILIES, PROMPTS, TEXT, UNK
from models import llava as build_llava
from neutral_parts import ExpertOnly
from test_engine import counted
from transformers import MistralConfig

from sightline import (
    MVP,
    PAI,
    SID,
    VDD,
    VDGD,
    Gated,
    NoImage,
    PostHocDebias,
    Recipe,
    UnknownImage,
    VASparse,
)
from sightline.engine import attention_plan

LONG = UnknownImage(tokens=(UNK,) * 40)  # longer than the expert's 16 tokens of an image
CONTRASTS = {"shorter": (NoImage(),), "longer": (LONG,), "both": (NoImage(), LONG)}
ASKED = dict(
    output_attentions=True,
    output_hidden_states=True,
    return_dict_in_generate=True,
    max_new_tokens=6,
)


@pytest.fixture(scope="module", params=["full", "windows"])
def eager(request):
    """Windows of 6 tokens are shorter than every prompt, and than what pads one."""
    text = MistralConfig(**TEXT, sliding_window=6) if request.param == "windows" else None
    model = build_llava(text)
    model.set_attn_implementation("eager")
    return model


@pytest.mark.parametrize("one_by_one", [False, True], ids=["", "branches read one by one"])
@pytest.mark.parametrize(
    "mode",
    [{}, dict(num_beams=2), dict(cache_implementation="static")],
    ids=["greedy", "beams", "static cache"],
)
@pytest.mark.parametrize("contrasts", CONTRASTS.values(), ids=CONTRASTS)
def test_the_experts_equal_those_of_generate(eager, contrasts, mode, one_by_one, monkeypatch):
    """Every layer, the expert's rows, the columns of its own prompt and answer."""
    if one_by_one:
        monkeypatch.setitem(attention_plan.SPARED, "cpu", 0)
    inputs = FAMILIES["llava"][1](PROMPTS)
    recipe = Recipe(contrasts=contrasts, rule=ExpertOnly())
    plain = eager.generate(**inputs, **ASKED, **mode)
    ours = eager.generate(**inputs, custom_generate=recipe, **ASKED, **mode)
    assert torch.equal(ours.sequences, plain.sequences)
    assert len(ours.attentions) == len(ours.hidden_states) == len(plain.attentions)
    for step in range(len(plain.attentions)):
        assert len(ours.attentions[step]) == 3
        asking = inputs["attention_mask"].repeat_interleave(len(plain.attentions[0][0]) // 2, dim=0)
        asking = asking.bool() if step == 0 else asking[:, -1:].bool()  # what padding asks is free
        for a, b in zip(ours.attentions[step], plain.attentions[step], strict=True):
            if "cache_implementation" not in mode:
                assert a.shape == b.shape
            a, b = (layer.transpose(1, 2)[asking] for layer in (a, b))
            columns = min(a.shape[-1], b.shape[-1])  # a static cache has room for the longest
            assert columns >= 6 and not (a[..., columns:].any() or b[..., columns:].any())
            close(a[..., :columns], b[..., :columns])  # float32, several branches against one
        for a, b in zip(ours.hidden_states[step], plain.hidden_states[step], strict=True):
            close(a[asking], b[asking])


def close(ours, plain):
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)


def test_a_gate_gives_the_experts(eager):
    inputs = FAMILIES["llava"][1](PROMPTS)
    gated = eager.generate(**inputs, custom_generate=Gated(VDD(2.0, 0.6)), **ASKED)
    ungated = eager.generate(**inputs, custom_generate=VDD(2.0, 0.6), **ASKED)
    for ours, theirs in zip(gated.attentions, ungated.attentions, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            close(a, b)


EDITING = {
    "PAI": PAI.without_guidance(alpha=3.0),
    "SID": SID(alpha=1.5, start=1, ratio=0.3),
    "VASparse": VASparse(keep=0.6, every=5),
}


@pytest.mark.parametrize("decoder", EDITING.values(), ids=EDITING)
def test_edited_attention_is_refused_by_name(decoder):
    model = build_llava()
    model.set_attn_implementation("eager")
    inputs = FAMILIES["llava"][1](PROMPTS)
    with counted(model.model.language_model, "inputs_embeds") as calls:
        with pytest.raises(ValueError, match="output_image_attention=True"):
            model.generate(**inputs, custom_generate=decoder, **ASKED)
        with pytest.raises(ValueError, match="edits or records"):
            model.generate(**inputs, custom_generate=VDD(), output_image_attention=True, **ASKED)
    assert calls == []
    without = {**ASKED, "output_attentions": False}
    out = model.generate(**inputs, custom_generate=decoder, **without)
    assert all(len(step) == 4 for step in out.hidden_states)


def test_attention_that_gives_no_weights_is_refused(llava):
    model, make_inputs = llava
    inputs = make_inputs(PROMPTS)
    with pytest.raises(ValueError, match=r"eager.*output_image_attention"):
        model.generate(**inputs, custom_generate=VDD(), **ASKED)
    not_returned = {**ASKED, "return_dict_in_generate": False}
    assert isinstance(model.generate(**inputs, custom_generate=VDD(), **not_returned), torch.Tensor)


def test_a_prompt_that_parts_share_is_read_in_one():
    """Its states would begin behind the image."""
    vlm = CHAT_MODELS["lab"]()
    inputs = vlm.asked(["Describe the image."], list(vlm.images[:1]))
    vlm.model.set_attn_implementation("eager")
    decoder = VDGD(processor=vlm.processor, tokens=4)
    out = vlm.model.generate(**inputs, custom_generate=decoder, **ASKED)
    length = out.hidden_states[0][0].shape[1]
    assert length > inputs["input_ids"].shape[1]  # the description is in it
    assert all(layer.shape[-2:] == (length, length) for layer in out.attentions[0])
    assert all(layer.shape[-1] == length + 1 for layer in out.attentions[1])


OUTPUTS = ["output_scores", "output_logits", "output_attentions", "output_hidden_states"]


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", ["PostHocDebias", "MVP"])
def test_closed_sets_have_nothing_for_each_token(name, output):
    vlm = CHAT_MODELS["lab"]()
    images = list(vlm.images[:1])
    inputs = vlm.asked(["Is there a vase?"], images)
    if name == "MVP":
        decoder, given = (
            MVP(processor=vlm.processor, tokens=4, caption_tokens=4),
            dict(images=images),
        )
    else:
        decoder, given = PostHocDebias(processor=vlm.processor), {}
    asked = dict(given, custom_generate=decoder, max_new_tokens=4)
    with pytest.raises(ValueError, match=rf"{name} chooses .*{output}.*probabilities"):
        vlm.model.generate(**inputs, **asked, **{output: True}, return_dict_in_generate=True)
    plain = vlm.model.generate(**inputs, **asked)
    unread = vlm.model.generate(**inputs, **asked, **{output: True})
    assert torch.equal(unread, plain)
