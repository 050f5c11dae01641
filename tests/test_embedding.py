"""SVCD: worked numbers of vasparse.md 5, and the processor in a plain generate."""

import math

import models
import pytest
import torch
from models import PROMPTS, TEXT
from torch import tensor
from torch.nn.functional import linear
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    Cohere2Config,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    LlamaModel,
    OPTConfig,
)

from sightline import Recipe, State
from sightline.decoders.vasparse.embedding import EmbeddingContrast, EmbeddingContrastive
from sightline.engine.early_exit import Head
from sightline.logits.rules import Needs

INF = math.inf
LAST = tensor([[2.0, 1.7, 0.3, -1.0, -5.0]], dtype=torch.float64)
PRIOR = tensor([[0.8, -0.5, 0.2, 0.1, -0.3]], dtype=torch.float64)
STATE = State(early=(PRIOR,))


def close(actual, expected):
    wanted = tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual, wanted, atol=1.5e-6, rtol=0)  # six digits in float64


def test_svcd_worked_example():
    rule = EmbeddingContrastive()
    close(rule.combine([LAST], STATE)[0], [2.12, 1.92, 0.31, -1.11, -5.47])
    scores = rule([LAST], STATE)
    close(scores[0], [2.12, 1.92, 0.31, -INF, -INF])
    close(scores.log_softmax(-1)[0], [-0.684301, -0.884301, -2.494301, -INF, -INF])
    close(scores.softmax(-1)[0], [0.504443, 0.413003, 0.082554, 0, 0])
    assert scores.argmax() == 0


def test_what_the_released_code_would_compute():
    scores = EmbeddingContrastive.released()([LAST], STATE)
    close(scores[0], [1.12, 2.25, 0.08, -INF, -INF])
    close(scores.log_softmax(-1)[0], [-1.492704, -0.362704, -2.532704, -INF, -INF])
    assert scores.argmax() == 1
    long_form = LAST.log_softmax(-1) - PRIOR.log_softmax(-1) - 0.1 * PRIOR
    close(long_form[0, :3], [0.214698, 1.344698, -0.825302])
    kept = long_form.masked_fill(~scores.isfinite(), -INF)
    torch.testing.assert_close(kept.log_softmax(-1), scores.log_softmax(-1))


def test_the_rule_asks_for_the_embeddings_unless_it_does_nothing_with_them():
    assert EmbeddingContrastive().needs.early(32, tied=True) == (0,)
    assert not EmbeddingContrastive().needs.normed
    assert not EmbeddingContrastive().needs.others
    assert EmbeddingContrastive(0, 0.1).needs.early is None
    close(EmbeddingContrastive(0, 0.1)([LAST])[0], [2.0, 1.7, 0.3, -INF, -INF])
    assert EmbeddingContrastive(0, 0).needs == Needs()
    assert EmbeddingContrastive(0, 0.1).needs != Needs()
    assert EmbeddingContrastive(0.1, 0).needs != Needs()
    with pytest.raises(ValueError, match=r"state\.early holds none"):
        EmbeddingContrastive()([LAST])


def reference(model, tokens, scores, alpha=0.1, beta=0.1, weight=None):
    """The equation in float64, on weights looked up by hand: llava's and qwen's head is linear."""
    embedded = model.get_input_embeddings().weight[tokens].double()
    prior = linear(embedded, model.get_output_embeddings().weight.double())
    scores = scores.double()
    contrast = (1 + alpha if weight is None else weight) * scores - alpha * prior
    cutoff = scores.amax(-1, keepdim=True) + math.log(beta)
    return contrast.masked_fill(scores < cutoff, -INF).log_softmax(-1).detach()


@pytest.mark.parametrize("released", [False, True])
def test_processor_and_rule_agree(family, released):
    _, model, _ = family
    torch.manual_seed(0)
    scores, ids = torch.randn(3, models.VOCABULARY), tensor([[5, 30], [5, 31], [9, 30]])
    if released:
        processor, settings = EmbeddingContrast.released(model), dict(alpha=1.1, weight=1)
    else:
        processor, settings = EmbeddingContrast(model, 0.7, 0.2), dict(alpha=0.7, beta=0.2)
    processed = processor(ids, scores)
    wanted = reference(model, ids[:, -1], scores, **settings)
    torch.testing.assert_close(processed.double(), wanted, atol=1e-5, rtol=0)  # float32
    early = State(early=(processor.prior(ids[:, -1]),))
    assert torch.equal(processor.rule([scores], early).log_softmax(-1), processed)
    # The last token is all that l_phi knows.
    assert torch.equal(early.early[0][0], early.early[0][2])
    # Beam search hands log-probabilities, the other loops logits: the same up to float32.
    normalised = processor(ids, scores.log_softmax(-1))
    torch.testing.assert_close(normalised, processed, atol=1e-5, rtol=0)


@pytest.mark.parametrize("beams", [1, 3])
def test_in_a_plain_generate(family, beams):
    """Every score of every step, from the logits and the last token of its row, by hand."""
    _, model, make_inputs = family
    inputs = make_inputs(PROMPTS)
    seen = []

    class Recorded(EmbeddingContrast):
        def __call__(self, input_ids, scores):
            processed = super().__call__(input_ids, scores)
            seen.append((input_ids[:, -1], processed))
            return processed

    out = model.generate(
        **inputs,
        max_new_tokens=6,
        num_beams=beams,
        logits_processor=[Recorded(model, 50.0, 0.1, sum_to_one=False)],
        output_logits=True,
        output_scores=True,
        return_dict_in_generate=True,
    )
    assert len(seen) == len(out.logits)
    for (tokens, processed), logits in zip(seen, out.logits, strict=True):
        wanted = reference(model, tokens, logits, alpha=50.0, weight=1)
        torch.testing.assert_close(processed.double(), wanted, atol=1e-4, rtol=0)  # float32
        total = processed.double().exp().sum(-1)
        torch.testing.assert_close(total, torch.ones_like(total), atol=1e-5, rtol=0)
    plain = model.generate(**inputs, max_new_tokens=6, num_beams=beams)
    assert not torch.equal(out.sequences, plain)


@pytest.mark.parametrize("beams", [1, 3])
def test_as_a_rule_in_a_decoder_it_says_the_same(family, beams):
    _, model, make_inputs = family
    inputs = make_inputs(PROMPTS)
    processor = EmbeddingContrast(model, 50.0, 0.1, sum_to_one=False)
    asked = dict(max_new_tokens=6, num_beams=beams)
    ours = model.generate(**inputs, **asked, logits_processor=[processor])
    rule = model.generate(**inputs, **asked, custom_generate=Recipe(rule=processor.rule))
    assert torch.equal(ours, rule)


@pytest.mark.parametrize("beams", [1, 3])
def test_neutral_settings_are_generate_itself(family, beams):
    _, model, make_inputs = family
    inputs = make_inputs(PROMPTS)
    asked = dict(max_new_tokens=6, num_beams=beams, return_dict_in_generate=True)
    plain = model.generate(**inputs, **asked, output_scores=True)
    processor = EmbeddingContrast(model, alpha=0, beta=0)
    ours = model.generate(**inputs, **asked, output_scores=True, logits_processor=[processor])
    assert torch.equal(ours.sequences, plain.sequences)
    assert all(torch.equal(a, b) for a, b in zip(ours.scores, plain.scores, strict=True))


def test_at_alpha_0_the_cut_is_left():
    processor = EmbeddingContrast.__new__(EmbeddingContrast)
    processor.rule = EmbeddingContrastive(0, 0.1)
    scores = processor(tensor([[1]]), LAST)
    torch.testing.assert_close(scores.exp().sum(), tensor(1.0, dtype=torch.float64))
    assert scores[0].isfinite().tolist() == [True, True, True, False, False]


@torch.no_grad()
def test_the_image_cannot_reach_the_contrast(family):
    """The embeddings' logits at the last position are the processor's, whatever the image."""
    _, model, make_inputs = family
    inputs = make_inputs(PROMPTS[:1])
    other = {**inputs, "pixel_values": inputs["pixel_values"].flip(-1)}
    processor = EmbeddingContrast(model)
    prior = processor.prior(inputs["input_ids"][:, -1])
    states = [model(**given, output_hidden_states=True).hidden_states for given in (inputs, other)]
    assert not torch.equal(states[0][-1][:, -1], states[1][-1][:, -1])
    for hidden in states:
        assert torch.equal(processor.head(hidden[0][:, -1]), prior)


def causal(config):
    torch.manual_seed(0)
    return models.sharpen(AutoModelForCausalLM.from_config(config))


SCALED = {
    "granite": (GraniteConfig, dict(embedding_multiplier=12.0, logits_scaling=8.0)),
    "cohere": (CohereConfig, dict(logit_scale=0.25)),
    "gemma": (Gemma2Config, dict(head_dim=8, final_logit_softcapping=1.5)),
    "llama": (LlamaConfig, {}),
}


@pytest.mark.parametrize("name", sorted(SCALED))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_scales_and_caps_are_the_models(name, dtype):
    """What layer 0 receives, scaled as in the model, and the logits, capped as in the model."""
    kind, settings = SCALED[name]
    model = causal(kind(**TEXT, **settings)).to(dtype)
    ids = tensor([[1, 40, 50]])
    out = model(input_ids=ids, output_hidden_states=True)
    exact = dict(atol=1e-5, rtol=1e-5)
    close_enough = exact if dtype == torch.float32 else dict(atol=0.02, rtol=0.02)
    wanted = out.logits.float()
    processor = EmbeddingContrast(model)
    torch.testing.assert_close(processor.head(out.hidden_states[-1]), wanted, **close_enough)
    received = processor.embedding(ids) * processor.scale
    torch.testing.assert_close(received, out.hidden_states[0], **close_enough)
    layer = out.hidden_states[0][:, -1]
    torch.testing.assert_close(processor.prior(ids[:, -1]), processor.head(layer), **close_enough)


@torch.no_grad()
def test_scales_and_caps_by_hand():
    ids = tensor([20, 30])
    granite = causal(GraniteConfig(**TEXT, embedding_multiplier=12.0, logits_scaling=8.0))
    raw = linear(granite.get_input_embeddings().weight[ids], granite.lm_head.weight)
    wanted = 12 * raw / 8
    torch.testing.assert_close(EmbeddingContrast(granite).prior(ids), wanted, atol=1e-5, rtol=1e-5)
    gemma = causal(Gemma2Config(**TEXT, head_dim=8, final_logit_softcapping=1.5))
    raw = linear(gemma.get_input_embeddings().weight[ids], gemma.lm_head.weight) * 32**0.5
    wanted = 1.5 * (raw / 1.5).tanh()
    torch.testing.assert_close(EmbeddingContrast(gemma).prior(ids), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        Cohere2Config(**TEXT, logit_scale=0.25),
        Gemma2Config(**TEXT, head_dim=8, final_logit_softcapping=1.5),
        GraniteConfig(**TEXT, logits_scaling=8.0),
    ],
    ids=lambda text: text.model_type,
)
def test_what_a_config_says_and_the_model_does_not_do(text):
    """transformers 5.23: Llava's head ignores the text config's scale and cap."""
    head = EmbeddingContrast(models.llava(text)).head
    assert head.scale == 1
    assert head.cap is None


def test_a_model_banned_token_does_not_disturb_the_measure(llava):
    model, _ = llava
    hidden = torch.randn(4, 32)
    logits = model.lm_head(hidden).detach() * 0.5
    logits[:, 3] = torch.finfo(torch.float32).min
    assert Head.fit(model, hidden, logits).scale == pytest.approx(0.5)


def test_making_one_leaves_nothing_on_the_model(family):
    _, model, make_inputs = family
    model.generate(**make_inputs(PROMPTS), max_new_tokens=1)
    before = getattr(model.model, "rope_deltas", None)
    config = model.config.to_dict()
    EmbeddingContrast(model)
    assert getattr(model.model, "rope_deltas", None) is before
    assert model.config.to_dict() == config


@pytest.mark.parametrize("make", [EmbeddingContrast, lambda model, *a: EmbeddingContrastive(*a)])
def test_settings_are_checked(llava, make):
    with pytest.raises(ValueError, match="alpha must be a finite number >= 0"):
        make(llava[0], -1.0, 0.1)
    with pytest.raises(ValueError, match="beta must be in"):
        make(llava[0], 0.1, 1.1)


def test_models_that_it_cannot_read():
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="LlamaModel exposes no head"):
        EmbeddingContrast(LlamaModel(LlamaConfig(**TEXT)))
    bart = BartForConditionalGeneration(
        BartConfig(
            vocab_size=120,
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
        )
    )
    with pytest.raises(ValueError, match="encoder-decoder"):
        EmbeddingContrast(bart)
    # Positions are added to its embeddings.
    opt = causal(
        OPTConfig(
            vocab_size=120,
            hidden_size=32,
            word_embed_proj_dim=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
        )
    )
    with pytest.raises(ValueError, match="does not receive token embeddings alone"):
        EmbeddingContrast(opt)


def test_logits_that_are_not_the_heads(llava):
    model, _ = llava
    hidden = torch.randn(1, 32)
    with pytest.raises(ValueError, match="are not its head on its last hidden state"):
        Head.fit(model, hidden, torch.randn(1, models.VOCABULARY))


def test_inputs_that_it_cannot_use(llava):
    processor = EmbeddingContrast(llava[0])
    with pytest.raises(ValueError, match="pass input_ids to generate"):
        processor(torch.zeros(1, 0, dtype=torch.long), torch.randn(1, models.VOCABULARY))
    with pytest.raises(ValueError, match=r"\[1, 120\], got \[1, 121\]: make one for each model"):
        processor(tensor([[3]]), torch.randn(1, 121))
