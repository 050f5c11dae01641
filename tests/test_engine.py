"""What the ensemble promises beside the invariants: modes, caches, batches, refusals."""

import inspect
import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest
import torch
from methods import METHODS
from models import (
    BOS,
    EOS,
    FAMILIES,
    IMAGE,
    PROMPTS,
    TEXT,
    UNK,
    VISION_END,
    VISION_START,
    lfm2,
    lfm2_inputs,
)
from models import llava as build_llava
from neutral_parts import ExpertOnly
from transformers import (
    DynamicCache,
    LogitsProcessor,
    MistralConfig,
    StaticCache,
    StoppingCriteria,
    StoppingCriteriaList,
    cache_utils,
)
from transformers.generation import BaseStreamer, CompileConfig

from sightline import MVP, VCD, VDD, Gated, NoImage, NoisyImage, Plausibility, PostHocDebias, Recipe
from sightline.engine.branch import ENCODER_INPUTS, PIXELS, image_mask, token_ids
from sightline.engine.image_spans import MARKERS

VDD_STRONG = VDD(alpha=1.5, beta=0.05)


EVERY_BRANCH = Recipe(contrasts=(NoImage(), NoisyImage()), rule=ExpertOnly())


def generate(model, inputs, decoder=None, **kwargs):
    torch.manual_seed(1)
    return model.generate(**inputs, **{"max_new_tokens": 8, "custom_generate": decoder, **kwargs})


def answers(out, inputs):
    return out[:, inputs["input_ids"].shape[1] :]


# Branches


def test_image_free_prompt_loses_the_whole_image_block(family):
    """Placeholders and the tokens around them go; text, roles and row lengths stay."""
    _, model, make_inputs = family
    seen = prompts_of(model, make_inputs(PROMPTS), NoImage())
    assert seen == [[BOS, 8, 9, 20, 21, 22], [BOS, 12, 13]]


# Of 120 tokens the words are as close to the image's as markers are in a real vocabulary.
@pytest.mark.filterwarnings("ignore:the image is taken out of the prompt")
def test_one_unknown_token_stands_for_each_image(family):
    _, model, make_inputs = family
    rows = [[BOS, 8, IMAGE, IMAGE, 9], [BOS, IMAGE, 10, IMAGE], [BOS, 11]]
    decoder = VDD(variant="unk", unk_token_id=UNK)
    seen = prompts_of(model, make_inputs(rows), decoder.recipe().contrasts[0])
    assert seen == [[BOS, 8, UNK, UNK, 9], [BOS, UNK, 10, UNK], [BOS, 11]]


def test_unknown_text_may_be_several_tokens(llava):
    model, make_inputs = llava
    decoder = VDD(variant="both", processor=TokenizerWithoutUnknown())
    seen = prompts_of(model, make_inputs(PROMPTS[1:]), decoder.recipe().contrasts[1])
    assert seen == [[BOS, 70, 71, 12, 13]]


def prompts_of(model, inputs, contrast):
    """The amateur's rows without padding, as the ensemble would run them."""
    found = []

    @dataclass(frozen=True)
    class Spy:
        def __call__(self, expert, model):
            found.append(contrast(expert, model))
            return found[-1]

    recipe = Recipe(contrasts=(Spy(),), rule=ExpertOnly())
    generate(model, inputs, recipe, max_new_tokens=1)
    branch = found[0]
    assert not branch.image_mask.any()
    masks = branch.attention_mask.bool()
    return [ids[mask].tolist() for ids, mask in zip(branch.input_ids, masks, strict=True)]


class TokenizerWithoutUnknown:
    unk_token_id = None

    def __call__(self, text, add_special_tokens):
        assert text == "None" and not add_special_tokens
        return {"input_ids": [70, 71]}


@pytest.mark.parametrize("mode", [{}, dict(num_beams=2)], ids=["greedy", "beams"])
@pytest.mark.parametrize("decoder", [VDD_STRONG, VCD(1.5, 0.05, 700)], ids=["vdd", "vcd"])
def test_rows_with_none_one_and_several_images(family, decoder, mode):
    name, model, make_inputs = family
    rows = [[BOS, 8, IMAGE, 9, IMAGE, 20], [BOS, 30, 31], [BOS, IMAGE, 12]]
    if name == "qwen" and mode:
        rows = rows[:1] + rows[2:]  # transformers loses track of such a batch in plain generate
    inputs = make_inputs(rows)
    together = answers(generate(model, inputs, decoder, **mode), inputs)
    for row, tokens in enumerate(rows):
        if IMAGE not in tokens:
            continue
        alone_inputs = make_inputs([tokens])
        alone = answers(generate(model, alone_inputs, decoder, **mode), alone_inputs)[0].tolist()
        assert together[row].tolist()[: len(alone)] == alone


def test_a_row_without_an_image_is_left_as_it_is(llava):
    """Its amateur is its expert, so nothing is contrasted: only the plausibility cut acts."""
    model, make_inputs = llava
    rows = [[BOS, 30, 31], [BOS, IMAGE, 12]]
    inputs = make_inputs(rows)
    plain = generate(model, make_inputs(rows[:1]))
    contrasted = answers(generate(model, inputs, VDD_STRONG), inputs)[0].tolist()
    expected = plain[0, 3:].tolist()
    assert contrasted[: len(expected)] == expected


@pytest.mark.parametrize("mode", [{}, dict(num_beams=3)], ids=["greedy", "beams"])
def test_the_vision_tower_runs_once_per_distinct_image(family, mode):
    name, model, make_inputs = family
    tower = model.model.vision_tower if name == "llava" else model.model.visual
    inputs = make_inputs(PROMPTS)
    for decoder, distinct in ((VDD_STRONG, 1), (VDD(1.5, variant="both", unk_token_id=UNK), 1)):
        with counted(tower) as calls:
            generate(model, inputs, decoder, **mode)
        assert [len(c) for c in calls] == [len(inputs["pixel_values"])] * distinct
    with counted(tower) as calls:
        generate(model, inputs, VCD(), **mode)
    assert sum(len(c) for c in calls) == 2 * len(inputs["pixel_values"])


def test_nobody_pays_prefill_for_anothers_padding(llava):
    """Two prompts of 7 and 4 tokens with images of 16: 22 wide; without them 6 wide."""
    model, make_inputs = llava
    with counted(model.model.language_model, "inputs_embeds") as calls:
        generate(model, make_inputs(PROMPTS), VDD_STRONG, max_new_tokens=3, num_beams=2)
    assert [tuple(c.shape[:2]) for c in calls] == [(2, 22), (2, 6), (8, 1), (8, 1)]


class counted:
    """Records the first argument, or a named one, of every call of a module."""

    def __init__(self, module, name=None):
        self.module, self.name, self.calls = module, name, []

    def __enter__(self):
        def remember(module, args, kwargs):
            self.calls.append(kwargs[self.name] if self.name else (args or [*kwargs.values()])[0])

        self.hook = self.module.register_forward_pre_hook(remember, with_kwargs=True)
        return self.calls

    def __exit__(self, *error):
        self.hook.remove()


def test_the_amateur_has_a_cache_of_its_own(family):
    """The bug of the paper's first code: from the second token on expert and amateur were one."""
    _, model, make_inputs = family
    inputs = make_inputs(PROMPTS[:1])
    for decoder in (VCD(alpha=1.0, beta=0.1, noise_step=999), VDD()):
        out = generate(model, inputs, decoder, output_logits=True, return_dict_in_generate=True)
        expert, amateur = out.branch_logits[1][:, 0]
        assert (expert - amateur).abs().max() > 0.1


def test_preparations_rewrite_the_expert_and_not_what_is_returned(llava):
    """Here: a word less. Sequences begin with the caller's prompt, contrasts see the new one."""
    model, make_inputs = llava

    def shorten(expert, model):
        kept = expert.input_ids[0] != 12
        return replace(
            expert,
            input_ids=expert.input_ids[:, kept],
            attention_mask=expert.attention_mask[:, kept],
            image_mask=expert.image_mask[:, kept],
            position_ids=None,
        )

    inputs = make_inputs([[BOS, IMAGE, 12, 13]])
    shorter = make_inputs([[BOS, IMAGE, 13]]) | {"pixel_values": inputs["pixel_values"]}
    for mode in ({}, dict(cache_implementation="static"), dict(num_beams=2)):
        out = generate(model, inputs, Recipe(preparations=(shorten,)) + VDD_STRONG.recipe(), **mode)
        expected = generate(model, shorter, VDD_STRONG, **mode)
        assert torch.equal(out[:, :19], inputs["input_ids"])
        assert torch.equal(out[:, 19:], expected[:, 18:])
        prepared = generate(model, inputs, Recipe(preparations=(shorten,)), **mode)
        assert torch.equal(prepared[:, 19:], generate(model, shorter, **mode)[:, 18:])
        assert not torch.equal(prepared, generate(model, inputs, **mode))


# Outputs and stopping


def test_outputs_carry_every_branch(family):
    _, model, make_inputs = family
    inputs = make_inputs(PROMPTS)
    out = generate(
        model,
        inputs,
        EVERY_BRANCH,
        output_logits=True,
        output_scores=True,
        output_hidden_states=True,
        return_dict_in_generate=True,
    )
    plain = generate(
        model,
        inputs,
        output_logits=True,
        output_hidden_states=True,
        return_dict_in_generate=True,
    )
    assert len(out.branch_logits) == len(out.scores) == len(plain.logits)
    assert out["branch_logits"] is out.branch_logits
    for step in range(len(out.scores)):
        assert out.branch_logits[step].shape == (3, 2, 120)
        # float32; three branches in one forward against one
        torch.testing.assert_close(out.logits[step], plain.logits[step], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(out.branch_logits[step][0], out.logits[step])
        for ours, theirs in zip(out.hidden_states[step], plain.hidden_states[step], strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert out.past_key_values is None


def test_stopping_criteria_see_the_callers_sequences(llava):
    model, make_inputs = llava
    inputs = make_inputs(PROMPTS)
    seen = []

    class AtThree(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            seen.append(input_ids.clone())
            return torch.full((len(input_ids),), input_ids.shape[1] >= 25)

    out = generate(model, inputs, VDD_STRONG, stopping_criteria=StoppingCriteriaList([AtThree()]))
    assert out.shape[1] == 25
    assert all(torch.equal(ids[:, :22], inputs["input_ids"]) for ids in seen)


def test_token_streamer_receives_the_prompt_and_every_token(llava):
    model, make_inputs = llava
    inputs = make_inputs(PROMPTS[1:])

    class Kept(BaseStreamer):
        def __init__(self):
            self.values, self.ended = [], 0

        def put(self, value):
            self.values.append(value)

        def end(self):
            self.ended += 1

    for decoder in (VDD_STRONG, VDD(alpha=0, beta=0)):
        streamer = Kept()
        out = generate(model, inputs, decoder, token_streamer=streamer)
        assert torch.equal(streamer.values[0], inputs["input_ids"])
        assert torch.cat(streamer.values[1:]).tolist() == answers(out, inputs)[0].tolist()
        assert streamer.ended == 1
    with pytest.raises(ValueError, match="num_beams=1"):
        generate(model, inputs, VDD_STRONG, token_streamer=Kept(), num_beams=2)


class Ban(LogitsProcessor):
    def __init__(self, *tokens):
        self.tokens = list(tokens)

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        scores[:, self.tokens] = -math.inf
        return scores


@pytest.mark.parametrize("beams", [1, 2])
def test_a_row_emptied_by_a_ban_is_cut_again(llava, beams):
    """vcd.md 2.4: beta = 1 leaves one token; banned, the cut is taken from what is left."""
    model, make_inputs = llava
    inputs = make_inputs(PROMPTS)
    asked = dict(
        output_scores=True, output_logits=True, return_dict_in_generate=True, num_beams=beams
    )
    decoder = VDD(alpha=1.0, beta=1.0)
    first = generate(model, inputs, decoder, max_new_tokens=1, **asked)
    best = first.logits[0].argmax(-1)[:1]
    out = generate(
        model, inputs, decoder, max_new_tokens=1, logits_processor=[Ban(int(best[0]))], **asked
    )
    expert = out.branch_logits[0][0].clone()
    expert[:, best] = -math.inf
    kept = out.scores[0].isfinite()
    assert kept.sum(-1).tolist() == [1] * len(kept)
    emptied = first.logits[0].argmax(-1) == best
    assert emptied.any() and (beams > 1 or not emptied.all())
    assert torch.equal(out.scores[0].argmax(-1), expert.argmax(-1))


def test_if_nothing_plausible_is_allowed_the_cut_is_dropped(llava):
    """A processor that only lets one unlikely token through, whatever the scores."""
    model, make_inputs = llava

    class OnlyFifty(LogitsProcessor):
        def __call__(self, input_ids, scores):
            kept = torch.full_like(scores, -math.inf)
            kept[:, 50] = scores[:, 50]
            return kept

    out = generate(model, make_inputs(PROMPTS), VDD(), logits_processor=[OnlyFifty()])
    assert (out[:, 22:] == 50).all()


def test_min_new_tokens_against_a_lone_plausible_end(llava):
    model, make_inputs = llava
    inputs = make_inputs(PROMPTS)
    first = generate(model, inputs, VDD(1.0, 1.0), max_new_tokens=1)[:, -1]
    config = dict(eos_token_id=first.tolist(), min_new_tokens=4, max_new_tokens=6)
    for mode in (dict(do_sample=True), {}, dict(num_beams=2)):
        out = generate(model, inputs, VDD(1.0, 1.0), **config, **mode)
        assert not torch.isin(out[:, 22:26], first).any()


# Caches


@pytest.mark.parametrize("decoder", [VDD_STRONG, VCD(1.5, 0.05, 700)], ids=["vdd", "vcd"])
def test_sliding_window_layers(decoder):
    """Window 6, shorter than every prompt: against the same steps with all keys recomputed."""
    config = MistralConfig(**TEXT, sliding_window=6)
    sliding = build_llava(config)
    inputs = FAMILIES["llava"][1](PROMPTS)
    cache = DynamicCache(config=sliding.config.text_config)
    assert all(cache.is_sliding)
    for mode in ({}, dict(cache_implementation="static"), dict(num_beams=2)):
        plain = generate(sliding, inputs, **mode)
        assert torch.equal(generate(sliding, inputs, EVERY_BRANCH, **mode), plain)
    asked = dict(output_logits=True, return_dict_in_generate=True)
    out = generate(sliding, inputs, decoder, **asked)
    static = generate(sliding, inputs, decoder, cache_implementation="static", **asked)
    assert torch.equal(out.sequences, static.sequences)
    amateur = prompts_of(sliding, inputs, NoImage())[0]
    if decoder is VDD_STRONG:
        for step, logits in enumerate(out.branch_logits):
            ids = torch.tensor([amateur + out.sequences[0, 22 : 22 + step].tolist()])
            full = sliding(input_ids=ids).logits[0, -1]
            torch.testing.assert_close(logits[1, 0], full, atol=2e-4, rtol=1e-4)  # float32


@pytest.mark.skipif(
    not hasattr(cache_utils, "Fp8QuantizedLayer"),
    reason="this transformers has no quantised cache that runs without further packages",
)
def test_quantized_cache(llava):
    """transformers' fp8 backend, which runs everywhere. Its one scale per layer spans all rows of
    all branches, so the expert's keys round otherwise than in plain generate: no further off.
    """
    model, make_inputs = llava
    inputs = make_inputs(PROMPTS)
    quantized = dict(cache_implementation="quantized", cache_config={"backend": "fp8"})
    asked = dict(output_logits=True, return_dict_in_generate=True, max_new_tokens=2)
    exact = generate(model, inputs, **asked).logits[1]
    plain = generate(model, inputs, **asked, **quantized).logits[1]
    ours = generate(model, inputs, EVERY_BRANCH, **asked, **quantized).logits[1]
    assert 0 < (ours - exact).abs().mean() < 2 * (plain - exact).abs().mean()
    for mode in ({}, dict(num_beams=2)):
        strong = generate(model, inputs, VDD_STRONG, **quantized, **mode)
        assert strong.shape == (2, 30)


@pytest.mark.parametrize("decoder", [VDD_STRONG, VCD(1.5, 0.05, 700)], ids=["vdd", "vcd"])
def test_layers_that_keep_states_in_place_of_keys(decoder):
    """A text model of convolution and attention layers: states are stacked as they are."""
    model = lfm2()
    inputs = lfm2_inputs(PROMPTS)
    for mode in ({}, dict(num_beams=2), dict(do_sample=True, num_return_sequences=2)):
        plain = generate(model, inputs, **mode)
        assert torch.equal(generate(model, inputs, EVERY_BRANCH, **mode), plain)
        assert not torch.equal(generate(model, inputs, decoder, **mode), plain)
    out = generate(model, inputs, VDD_STRONG, output_logits=True, return_dict_in_generate=True)
    prompt = prompts_of(model, inputs, NoImage())[0]
    width = inputs["input_ids"].shape[1]
    for step, logits in enumerate(out.branch_logits):
        ids = torch.tensor([prompt + out.sequences[0, width : width + step].tolist()])
        full = model(input_ids=ids).logits[0, -1]
        torch.testing.assert_close(logits[1, 0], full, atol=2e-4, rtol=1e-4)  # float32


def test_compiled_static_cache(family):
    _, model, make_inputs = family
    inputs = make_inputs(PROMPTS)
    config = CompileConfig(backend="eager", fullgraph=False)
    config._compile_all_devices = True
    compiled = generate(
        model, inputs, VDD_STRONG, cache_implementation="static", compile_config=config
    )
    assert torch.equal(compiled, generate(model, inputs, VDD_STRONG))


def test_a_callers_own_empty_cache_is_used(llava):
    model, make_inputs = llava
    inputs = make_inputs(PROMPTS)
    expected = generate(model, inputs, VDD_STRONG)
    for cache in (
        DynamicCache(config=model.config.text_config),
        StaticCache(config=model.config.text_config, max_cache_len=40),
    ):
        out = generate(model, inputs, VDD_STRONG, past_key_values=cache)
        assert torch.equal(out, expected)
        assert cache.layers[0].keys.shape[0] == 4  # two rows in two branches
    short = StaticCache(config=model.config.text_config, max_cache_len=24)
    with pytest.raises(ValueError, match="room for 24 tokens and the longest branch needs 29"):
        generate(model, inputs, VDD_STRONG, past_key_values=short)


def test_an_amateur_may_be_longer_than_the_expert(llava):
    model, make_inputs = llava
    longer = VDD(1.5, 0.05, variant="unk", processor=LongUnknown())
    inputs = make_inputs(PROMPTS)
    out = generate(model, inputs, longer)
    static = generate(model, inputs, longer, cache_implementation="static")
    assert torch.equal(out, static)
    assert not torch.equal(out, generate(model, inputs))


class Named:
    """A tokenizer that knows two words."""

    def __len__(self):
        return 2

    def batch_decode(self, rows):
        return ["yes", "no"]


class LongUnknown:
    unk_token_id = None

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [60] * 30}


# Threads


def test_two_threads_on_one_model(family):
    _, model, make_inputs = family
    jobs = [(make_inputs(PROMPTS), VDD_STRONG), (make_inputs(PROMPTS[1:]), VCD(1.5, 0.05, 700))]
    alone = [model.generate(**i, max_new_tokens=8, custom_generate=d) for i, d in jobs]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            futures = [
                pool.submit(model.generate, **i, max_new_tokens=8, custom_generate=d)
                for i, d in jobs
            ]
            for future, expected in zip(futures, alone, strict=True):
                assert torch.equal(future.result(), expected)


# Refusals: clear, and before the language model's first forward


def refused(model, inputs, decoder, match, **kwargs):
    watched = counted(model.model.language_model, "inputs_embeds")
    with watched as calls, pytest.raises(ValueError, match=match):
        generate(model, inputs, decoder, **kwargs)
    assert calls == []


@pytest.mark.parametrize("decoder", [VDD(), VCD()], ids=["vdd", "vcd"])
def test_refusals(llava, decoder):
    model, make_inputs = llava
    inputs = make_inputs(PROMPTS)
    no_tokens = make_inputs([[BOS, 8, 9]]) | {"pixel_values": inputs["pixel_values"]}
    refused(model, no_tokens, decoder, "no image token")
    no_pixels = {k: v for k, v in inputs.items() if k != "pixel_values"}
    refused(model, no_pixels, decoder, "pixel_values")
    refused(model, inputs, decoder, "leave the cache on", use_cache=False)
    refused(model, inputs, decoder, "prefill_chunk_size", prefill_chunk_size=4)
    refused(model, inputs, decoder, "generation mode", prompt_lookup_num_tokens=3)
    filled = DynamicCache(config=model.config.text_config)
    for layer in range(3):
        filled.update(torch.zeros(2, 2, 5, 8), torch.zeros(2, 2, 5, 8), layer)
    refused(model, inputs, decoder, "already holds 5 tokens", past_key_values=filled)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    refused(
        model, {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]}, decoder,
        "got inputs_embeds",
    )  # fmt: skip


@pytest.mark.parametrize("decoder", [VDD(), VDD(alpha=0, beta=0), PostHocDebias(processor=Named())])
def test_training_with_gradient_checkpointing_is_refused(decoder):
    """Its layers drop the cache they are given, with no more than a warning."""
    model, inputs = build_llava(), FAMILIES["llava"][1](PROMPTS)
    model.gradient_checkpointing_enable()
    generate(model, inputs, decoder)  # in evaluation it does nothing
    model.get_decoder().layers[1].train()
    refused(model, inputs, decoder, r"model\.eval\(\)")
    model.gradient_checkpointing_disable()
    generate(model, inputs, decoder)


@pytest.mark.parametrize("when", ["in the prompt", "in the answer", "between two tokens"])
@pytest.mark.parametrize("mode", [{}, dict(num_beams=2)], ids=["greedy", "beams"])
@pytest.mark.parametrize("decoder", [VDD_STRONG, METHODS["vasparse"].strong, Gated(VDD(2.0, 0.1))])
def test_a_cache_that_somebody_else_shortens_is_noticed(llava, decoder, mode, when):
    """As compressing hooks do: the oldest key of one layer leaves."""
    model, make_inputs = llava

    def shorten(cache):
        layer = cache.layers[1]
        layer.keys, layer.values = layer.keys[:, :, 1:], layer.values[:, :, 1:]

    def hook(module, args, kwargs, output):
        if (kwargs["hidden_states"].shape[1] > 1) == (when == "in the prompt"):
            shorten(kwargs["past_key_values"])

    class Shortening(LogitsProcessor):
        def __call__(self, input_ids, scores):
            for cache in caches[-1:] if when == "between two tokens" else []:
                shorten(cache)
            return scores

    def keep(module, args, kwargs, output):
        if kwargs["hidden_states"].shape[1] == 1:
            caches.append(kwargs["past_key_values"])

    caches = []
    attention = model.get_decoder().layers[1].self_attn
    hooked = keep if when == "between two tokens" else hook
    handle = attention.register_forward_hook(hooked, with_kwargs=True)
    try:
        with pytest.raises(ValueError, match=r"layer 1 of the cache .* hooks of another library"):
            generate(
                model,
                make_inputs(PROMPTS),
                decoder,
                logits_processor=[Shortening()],
                eos_token_id=-1,
                **mode,
            )
    finally:
        handle.remove()


@pytest.mark.parametrize("made", [VDD, VCD, Recipe, Gated, MVP, PostHocDebias])
def test_a_class_in_place_of_a_decoder(llava, made):
    model, make_inputs = llava
    name = made.__name__
    with pytest.raises(TypeError, match=rf"class {name}: .*custom_generate={name}\(\)"):
        generate(model, make_inputs(PROMPTS), made)


def test_pre_encoded_images_are_refused_where_pixels_are_needed(llava):
    model, make_inputs = llava
    inputs = make_inputs(PROMPTS)
    pixels = inputs.pop("pixel_values")
    encoded = {"image": model.get_image_features(pixels, return_dict=True)}
    refused(model, inputs, VCD(), "needs pixel_values, got pre-encoded", mm_encoder_outputs=encoded)
    with_features = generate(model, inputs, VDD_STRONG, mm_encoder_outputs=encoded)
    expected = generate(model, {**inputs, "pixel_values": pixels}, VDD_STRONG)
    assert torch.equal(with_features, expected)


def test_models_that_are_no_decoder_only_vision_language_models():
    from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

    ids = torch.tensor([[1, 7, 8]])
    llama = LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=64, vocab_size=50,
        num_hidden_layers=1, num_attention_heads=2, bos_token_id=1, eos_token_id=2))  # fmt: skip
    with pytest.raises(ValueError, match="need a vision-language model"):
        llama.generate(ids, max_new_tokens=2, custom_generate=VDD())
    t5 = T5ForConditionalGeneration(T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1,
        num_heads=2, vocab_size=50, decoder_start_token_id=0))  # fmt: skip
    with pytest.raises(ValueError, match="encoder-decoder"):
        t5.generate(ids, max_new_tokens=2, custom_generate=VDD())


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: VCD(alpha=-1), "alpha"),
        (lambda: VCD(alpha=math.nan), "alpha"),
        (lambda: VDD(alpha=math.inf), "alpha"),
        (lambda: VDD(beta=1.2), "beta"),
        (lambda: VCD(beta=math.nan), "beta"),
        (lambda: VCD(noise_step=1000), "noise_step must be a whole number from 0 to 999, got 1000"),
        (lambda: VCD(noise_step=-1), "noise_step"),
        (lambda: VCD(noise_step=1.5), "noise_step must be a whole number"),
        (lambda: VCD(noise_step=math.nan), "noise_step"),
        (lambda: VDD(variant="zero"), "variant must be one of none, unk, both"),
        (lambda: VDD(variant="unk"), "pass processor= or unk_token_id="),
        (lambda: VDD(variant="unk", unk_token_id=-2), "unk_token_id must be a whole number"),
    ],
)
def test_settings_are_checked_when_a_decoder_is_made(make, match):
    with pytest.raises(ValueError, match=match):
        make()


# Recipes


def test_recipes_are_strategies_and_add_up(llava):
    model, make_inputs = llava
    inputs = make_inputs(PROMPTS)
    none, unk = VDD(1.5, 0.05), VDD(1.5, 0.05, variant="unk", unk_token_id=UNK)
    both = VDD(1.5, 0.05, variant="both", unk_token_id=UNK)
    summed = none.recipe() + unk.recipe()
    assert summed == both.recipe()
    assert torch.equal(generate(model, inputs, summed), generate(model, inputs, both))
    with pytest.raises(ValueError, match="two rules"):
        none.recipe() + VDD(1.0, 0.05).recipe()
    with pytest.raises(ValueError, match="need a rule"):
        Recipe(contrasts=(NoImage(),))
    with pytest.raises(ValueError, match="rule must be a Rule or None"):
        Recipe(rule=lambda logits: logits[0])


def test_a_decoder_that_is_off_has_no_branches():
    assert VCD(alpha=0, beta=0).recipe().simplified().is_plain
    assert VCD(alpha=0, beta=0.1).recipe().simplified() == Recipe(rule=Contrastive0())
    assert not VCD(alpha=0, beta=0.1).needs_pixels
    assert VCD().needs_pixels


def Contrastive0():
    from sightline import Contrastive

    return Contrastive(0, 0.1)


def test_plausibility_alone_runs_one_branch(llava):
    model, make_inputs = llava
    inputs = make_inputs(PROMPTS)
    with counted(model.model.language_model, "inputs_embeds") as calls:
        out = generate(model, inputs, VDD(alpha=0, beta=0.1))
    assert all(len(c) == 2 for c in calls)
    assert torch.equal(out, generate(model, inputs))  # greedy never leaves the best token
    sampled = generate(model, inputs, Recipe(rule=Plausibility(0.9)), do_sample=True)
    assert not torch.equal(sampled, generate(model, inputs, do_sample=True))


# What transformers names


def test_only_strategies_that_edit_images_name_pixels():
    assert set(PIXELS) <= set(inspect.signature(VCD()).parameters)
    assert not set(ENCODER_INPUTS) & set(inspect.signature(VDD()).parameters)
    assert not set(ENCODER_INPUTS) & set(inspect.signature(VCD(alpha=0)).parameters)
    inspect.signature(VCD)  # the class keeps a signature of its own


def test_inputs_of_image_encoders_are_all_named():
    """Recomputed from transformers: one that it adds would be lost before it reached a contrast."""
    named, markers = Counter(), Counter()
    for model_class in image_text_classes():
        module = inspect.getmodule(model_class)
        for _, member in inspect.getmembers(module, inspect.isclass):
            for name in ("get_image_features", "get_video_features"):
                if member.__module__ == module.__name__ and hasattr(member, name):
                    parameters = inspect.signature(getattr(member, name)).parameters.values()
                    named.update(p.name for p in parameters if p.kind not in (2, 4))
        config = model_class.config_class
        fields = getattr(config, "__dataclass_fields__", {})
        markers.update(
            f for f in fields
            if f.endswith(("start_token_id", "end_token_id", "boi_token_id", "eoi_token_id",
                           "boi_token_index", "eoi_token_index", "indicator_token_ids"))
            and "audio" not in f and "decoder" not in f
        )  # fmt: skip
    # "output_hidden_states" is an argument of `generate`, which must not be taken from it
    assert set(named) - {"self", "output_hidden_states"} <= set(ENCODER_INPUTS)
    assert {name for name in named if name.startswith("pixel_values")} <= set(PIXELS)
    assert set(markers) <= set(MARKERS)


def image_text_classes():
    import transformers
    from transformers.models.auto import modeling_auto

    for entry in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values():
        for name in entry if isinstance(entry, tuple | list) else [entry]:
            model_class = getattr(transformers, name, None)
            if model_class is not None and model_class.config_class is not None:
                yield model_class


def test_image_mask_covers_images_and_not_the_tokens_around(qwen):
    model, make_inputs = qwen
    ids = make_inputs(PROMPTS)["input_ids"]
    assert torch.equal(image_mask(ids, model.config), ids == IMAGE)
    assert set(token_ids(model.config, MARKERS)) == {VISION_START, VISION_END}
    assert EOS not in token_ids(model.config, MARKERS)
