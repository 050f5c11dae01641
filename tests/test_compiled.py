"""Compiled decoding: one graph for all branches, edited attention inside it.

Of torch.compile this is Dynamo's part: graphs, guards, recompilations; backends, which make code
of a graph, take minutes. `fullgraph` raises where a forward would fall into several graphs.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from methods import TOKEN_METHODS
from models import FAMILIES, PROMPTS, TEXT, llava_inputs
from models import llava as build_llava
from torch._dynamo.utils import counters
from transformers import MistralConfig
from transformers.generation import CompileConfig

from sightline import PAI, ImageGain, Recipe, SinkPenalty

STATIC = [("llava", name) for name, method in TOKEN_METHODS.items() if not method.cuts_cache]
STATIC += [("qwen", name) for name in ("vcd", "vdd", "pai", "sid")]


@pytest.fixture(autouse=True)
def dynamo():
    """Dynamo without what others had it trace."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def generate(model, inputs, decoder, **kwargs):
    torch.manual_seed(1)
    return model.generate(
        **inputs,
        **{"max_new_tokens": 8, "custom_generate": decoder, "do_sample": False, **kwargs},
    )


def compiled(model, inputs, decoder, **kwargs):
    config = CompileConfig(backend="eager", mode=None, fullgraph=True)
    config._compile_all_devices = True
    static = dict(cache_implementation="static", compile_config=config)
    return generate(model, inputs, decoder, **static, **kwargs)


def graphs():
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("family_name, name", STATIC)
def test_compiled_answers_are_the_eager_ones(family_name, name):
    """One graph, recorded at the first answered token and used again by later calls."""
    build, make_inputs = FAMILIES[family_name]
    model, decoder = build(), TOKEN_METHODS[name].strong
    for rows in (PROMPTS, PROMPTS[::-1]):
        inputs = make_inputs(rows)
        assert torch.equal(compiled(model, inputs, decoder), generate(model, inputs, decoder))
        assert graphs() == 1


def test_edits_of_one_call_do_not_stay_for_the_next(llava):
    model, make_inputs = llava
    strong, gentle = (Recipe(attention_edits=(ImageGain(alpha),)) for alpha in (4.0, 0.5))
    inputs = make_inputs(PROMPTS)
    answers = [compiled(model, inputs, decoder) for decoder in (strong, gentle, None, strong)]
    expected = [generate(model, inputs, decoder) for decoder in (strong, gentle, None, strong)]
    assert not torch.equal(expected[0], expected[2])
    for answer, eager in zip(answers, expected, strict=True):
        assert torch.equal(answer, eager)
    assert graphs() == 3


def test_two_threads_decode_compiled_on_one_model(llava):
    model, make_inputs = llava
    asked = [(make_inputs(PROMPTS), TOKEN_METHODS[name].strong) for name in ("vdd", "pai")]
    eager = [generate(model, inputs, decoder) for inputs, decoder in asked]
    with ThreadPoolExecutor(2) as pool:
        answers = [[pool.submit(compiled, model, *each) for each in asked] for _ in range(4)]
    for round_ in answers:
        for answer, expected in zip(round_, eager, strict=True):
            assert torch.equal(answer.result(), expected)


def test_where_a_compiled_answer_looked(llava):
    model, make_inputs = llava
    asked = dict(output_image_attention=True, return_dict_in_generate=True)
    inputs, decoder = make_inputs(PROMPTS), TOKEN_METHODS["pai"].strong
    eager = generate(model, inputs, decoder, **asked).image_attention
    traced = compiled(model, inputs, decoder, **asked).image_attention
    assert graphs() == 1
    assert len(traced) == len(eager)
    for one, other in zip(traced, eager, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)  # float32


def test_edits_that_grow_with_the_answer_run_eagerly(llava):
    model, make_inputs = llava
    inputs, decoder = make_inputs(PROMPTS), Recipe(attention_edits=(SinkPenalty(5.0),))
    assert torch.equal(compiled(model, inputs, decoder), generate(model, inputs, decoder))
    assert graphs() == 0


def test_edits_under_sliding_windows_run_eagerly():
    model = build_llava(MistralConfig(**TEXT, sliding_window=8))
    inputs, decoder = llava_inputs(PROMPTS), PAI(alpha=3.0, gamma=2.0, beta=0.05)
    assert torch.equal(compiled(model, inputs, decoder), generate(model, inputs, decoder))
    assert graphs() == 0
    compiled(model, inputs, TOKEN_METHODS["vdd"].strong)  # no edits, so a graph
    assert graphs() > 0
