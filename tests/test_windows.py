"""Windows that hold the prompt and its answer: then they cut nothing, and nothing is refused."""

import pytest
import torch
from methods import TOKEN_METHODS
from models import PROMPTS, TEXT, llava, llava_inputs
from transformers import LlamaConfig, MistralConfig

from sightline import VASparse

TOKENS = 8
LONGEST = llava_inputs(PROMPTS)["input_ids"].shape[1] + TOKENS - 1  # the last one is not read
NEEDS_EVERY_KEY = ("sid", "vasparse", "keys leave")
MODES = {"greedy": {}, "beams": dict(num_beams=2), "static": dict(cache_implementation="static")}


def generate(window, decoder, **asked):
    """What a model answers whose layers all have a window; None: none has."""
    text = LlamaConfig(**TEXT) if window is None else MistralConfig(**TEXT, sliding_window=window)
    settings = dict(max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)
    inputs = llava_inputs(PROMPTS)
    return llava(text).generate(**inputs, custom_generate=decoder, **{**settings, **asked})


def strong(method):
    return VASparse(keep=0.5, every=2) if method == "keys leave" else TOKEN_METHODS[method].strong


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", [*TOKEN_METHODS, "keys leave"])
def test_a_window_that_holds_everything_changes_nothing(method, mode):
    if mode == "static" and (method == "keys leave" or TOKEN_METHODS[method].cuts_cache):
        pytest.skip("keys leave no static cache, whatever the window")
    decoder = strong(method)
    whole = generate(None, decoder, **MODES[mode])
    assert torch.equal(generate(LONGEST, decoder, **MODES[mode]), whole)


@pytest.mark.parametrize("method", NEEDS_EVERY_KEY)
def test_a_window_that_cuts_the_answer_is_refused_with_the_way_out(method):
    decoder = strong(method)
    with pytest.raises(ValueError, match="fewer new tokens"):
        generate(LONGEST - 1, decoder)
    shorter = dict(max_new_tokens=TOKENS - 1, min_new_tokens=TOKENS - 1)
    assert torch.equal(
        generate(LONGEST - 1, decoder, **shorter), generate(None, decoder, **shorter)
    )
