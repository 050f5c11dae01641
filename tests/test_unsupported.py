"""What a model cannot do is told from a setting that is wrong: `UnsupportedModelError` or not.

Of all decoders and families tests/conformance.py takes no other error for a model's refusal, and
benchmarks/attack_settings.py no such error for that of a setting.
"""

from types import SimpleNamespace

import pytest
from models import PROMPTS
from tiny_families import Tiny

from sightline import DAMRO, PAI, SID, VAF, VDD, DeCo, DoLa, Gated, UnsupportedModelError
from sightline.evaluation.failures import named

OF_SETTINGS = {
    "layers": PAI(layers=(1, 99)),
    "scaled layers": VAF(layers=(50, 60)),
    "heads": VAF(heads=(99,)),
    "first layer": SID(start=99),
    "more tokens than there are": SID(start=1, count=10**5),
    "more tokens than an image has": DAMRO(k=10**5, score="norm"),
    "early layers": DeCo(layers=(70, 80)),
    "candidate layers": DoLa(layers=(99,)),
    "an unknown token": VDD(variant="unk", unk_token_id=10**6),
    "a gate over edits": Gated(SID(start=1)),
}
OF_MODELS = {
    "no image tokens in the prompt": ("git", VDD()),
    "an encoder and a decoder": ("florence2", VDD()),
    "no class token": ("qwen2_5_vl", DAMRO(score="concat")),
    "attention of another kind": ("inkling_mm_model", PAI()),
}


@pytest.mark.parametrize("decoder", OF_SETTINGS.values(), ids=OF_SETTINGS)
def test_a_wrong_setting_is_not_the_models_fault(llava, decoder):
    model, make_inputs = llava
    with pytest.raises(ValueError) as caught:
        model.generate(**make_inputs(PROMPTS), custom_generate=decoder, max_new_tokens=2)
    assert not isinstance(caught.value, UnsupportedModelError)


@pytest.mark.parametrize(("family", "decoder"), OF_MODELS.values(), ids=OF_MODELS)
def test_what_a_model_lacks_is_said_as_such(family, decoder):
    tiny = Tiny.of(family)
    with pytest.raises(UnsupportedModelError):
        tiny.model.generate(
            **tiny.inputs(PROMPTS[:1]), custom_generate=decoder, max_new_tokens=2, do_sample=False
        )


@pytest.mark.parametrize("kind", [UnsupportedModelError, ValueError])
def test_an_evaluation_keeps_the_difference(kind):
    setup = SimpleNamespace(label="vdd")
    batch = SimpleNamespace(index=3, task=SimpleNamespace(name="flags"))
    with (
        pytest.raises(ValueError, match="vdd, batch 3 of flags: no") as caught,
        named(setup, batch),
    ):
        raise kind("no")
    assert type(caught.value) is kind
