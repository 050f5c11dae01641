"""Where the model looked, beside the tokens: against full forwards of eager attention."""

import pytest
import torch
from models import FAMILIES, PROMPTS, TEXT, lfm2, lfm2_inputs
from models import llava as build_llava
from transformers import MistralConfig

from sightline import PAI, VDD, Contrastive, Recipe, UnknownImage

TOLERANCE = dict(atol=1e-5, rtol=1e-4)  # float32: cached against full forwards
LONG_AMATEUR = Recipe(contrasts=(UnknownImage((9,) * 40),), rule=Contrastive(1.0, 0.0))
WAYS = {"plain": Recipe(), "vdd": VDD(alpha=1.0), "long amateur": LONG_AMATEUR}


def looked(model, inputs, decoder, wanted=True, **kwargs):
    return model.generate(
        **inputs,
        custom_generate=decoder,
        max_new_tokens=5,
        return_dict_in_generate=True,
        output_image_attention=wanted,
        **kwargs,
    )


def by_full_forward(model, inputs, row, answer, layers):
    """`[T]` at one row's prompt: what the last of its tokens gives to each, without any cache."""
    prompt = inputs["input_ids"].shape[1]
    given = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
    ids = torch.cat([inputs["input_ids"], answer.expand(len(inputs["input_ids"]), -1)], dim=1)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(ids[:, prompt:])], dim=1)
    if "mm_token_type_ids" in given:
        kinds = given["mm_token_type_ids"]
        given["mm_token_type_ids"] = torch.cat([kinds, kinds.new_zeros(ids[:, prompt:].shape)], 1)
    with torch.no_grad():
        prepared = model.prepare_inputs_for_generation(
            ids, attention_mask=mask, is_first_iteration=True, use_cache=False, **given
        )
        positions = model._prepare_position_ids_for_generation(
            ids, {"attention_mask": mask, **given}
        )
        prepared["position_ids"] = positions
        out = model(**prepared, output_attentions=True)
    mean = torch.stack([out.attentions[layer][row].mean(dim=0) for layer in layers]).mean(dim=0)
    return mean[-1, :prompt]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_each_token_comes_with_where_the_model_looked(name, way):
    build, make_inputs = FAMILIES[name]
    model, inputs = build(), make_inputs(PROMPTS)
    out = looked(model, inputs, WAYS[way], wanted=(1, 3))
    eager = build()
    eager.set_attn_implementation("eager")
    prompt = inputs["input_ids"].shape[1]
    images = inputs["input_ids"] == model.config.image_token_id
    assert torch.equal(out.image_mask, images)
    assert len(out.image_attention) == out.sequences.shape[1] - prompt
    for step, seen in enumerate(out.image_attention):
        assert seen.shape == inputs["input_ids"].shape
        for row in range(len(seen)):
            answer = out.sequences[row, prompt : prompt + step]
            full = by_full_forward(eager, inputs, row, answer, layers=(1, 2))
            torch.testing.assert_close(seen[row], full * images[row], **TOLERANCE)
    assert out.image_attention[1].sum() > 0


def test_rows_of_several_returned_sequences_have_their_own(llava):
    model, make_inputs = llava
    inputs = make_inputs(PROMPTS)
    torch.manual_seed(0)
    out = looked(model, inputs, VDD(), do_sample=True, num_return_sequences=2)
    assert out.image_attention[0].shape == (4, inputs["input_ids"].shape[1])
    torch.testing.assert_close(out.image_attention[0][0], out.image_attention[0][1], **TOLERANCE)
    assert not torch.equal(out.sequences[0], out.sequences[1])
    assert not torch.allclose(out.image_attention[-1][0], out.image_attention[-1][1])


def test_an_edit_of_attention_shows(llava):
    model, make_inputs = llava
    inputs = make_inputs(PROMPTS)
    edited = PAI.without_guidance(alpha=3.0)  # from the third layer on

    def share(decoder):
        return looked(model, inputs, decoder, wanted=(2, 3)).image_attention[0].sum(dim=1)

    assert (share(edited) > share(Recipe())).all()


def test_tokens_are_those_of_a_call_that_does_not_look(family):
    _, model, make_inputs = family
    inputs = make_inputs(PROMPTS)
    plain = model.generate(**inputs, max_new_tokens=5)
    assert torch.equal(looked(model, inputs, Recipe()).sequences, plain)
    assert model.config.get_text_config()._attn_implementation == "sdpa"


def test_layers_without_all_keys_are_left_out():
    """Layers 0 and 2 of four keep states of a convolution; the middle is layer 1 and 2."""
    model, inputs = lfm2(), lfm2_inputs(PROMPTS)
    chosen = looked(model, inputs, Recipe())
    only = looked(model, inputs, Recipe(), wanted=(1, 2))
    torch.testing.assert_close(chosen.image_attention[0], only.image_attention[0])
    with pytest.raises(ValueError, match=r"layers \[1, 3\] do"):
        looked(model, inputs, Recipe(), wanted=(2, 3))


def test_a_model_of_windows_alone_is_refused():
    model = build_llava(MistralConfig(**TEXT, sliding_window=8))
    with pytest.raises(ValueError, match="sees every key"):
        looked(model, FAMILIES["llava"][1](PROMPTS), Recipe())


@pytest.mark.parametrize("wanted", [(0, 4), (2, 2), (-1, 2)])
def test_layers_outside_the_model_are_refused(llava, wanted):
    model, make_inputs = llava
    with pytest.raises(ValueError, match=r"within \(0, 3\), got"):
        looked(model, make_inputs(PROMPTS), Recipe(), wanted=wanted)


def test_what_cannot_be_returned_is_refused(llava):
    model, make_inputs = llava
    with pytest.raises(ValueError, match="return_dict_in_generate=True"):
        model.generate(**make_inputs(PROMPTS), custom_generate=VDD(), output_image_attention=True)
