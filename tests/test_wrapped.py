"""Models as people load them: in half precision, quantised, offloaded, compiled, with adapters.

Decoders are held to full forwards of the model as it was loaded, one row at a time and without a
cache; the same holds of the plain tiny models in test_invariants.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from forwards import full_branches
from methods import METHODS
from models import EOS, FAMILIES, IMAGE, PROMPTS, VIDEO, VISION_END, VISION_START
from neutral_parts import with_all_branches
from oracles import image_gain
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    TextIteratorStreamer,
    pipeline,
)

from sightline import PAI, VCD, VDD, answer
from sightline.chat import prompt_inputs
from sightline.lab import CHECKPOINT, IMAGES

STEPS = 4
IMAGE_TOKENS = [IMAGE, VIDEO, VISION_START, VISION_END]
CORNER = IMAGES / "corner.png"
DESCRIBE = "Describe the image."


@dataclass(frozen=True)
class Loaded:
    """A model as it was loaded.

    Args:
        model: What `generate` is called on.
        own: The model within, whose full forwards count.
        tolerance: Of its logits, which are below 4 in size: N x B rows against one row.
        dtype: Of its activations.
    """

    model: Any
    own: Any
    tolerance: float = 2e-4  # float32
    dtype: torch.dtype = torch.float32


def bfloat16(build: Callable, folder: Path) -> Loaded:
    model = build().to(torch.bfloat16)
    return Loaded(model, model, 0.3, torch.bfloat16)


def float16(build: Callable, folder: Path) -> Loaded:
    model = build().to(torch.float16)
    return Loaded(model, model, 0.04, torch.float16)


def int8_by_torchao(build: Callable, folder: Path) -> Loaded:
    """Weights in int8, activations in float32, the head quantised too."""
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    model = build()
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert type(model.lm_head.weight).__module__.startswith("torchao")
    return Loaded(model, model)


def int8_by_bitsandbytes(build: Callable, folder: Path) -> Loaded:
    """Activations are rounded to int8 as well, each row by itself (no columns of outliers)."""
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    build().save_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(
        folder,
        quantization_config=BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0),
        device_map="cpu",
        dtype=torch.float16,
    )
    assert isinstance(
        model.model.language_model.layers[0].mlp.up_proj, bitsandbytes.nn.Linear8bitLt
    )
    return Loaded(model, model, 0.3, torch.float16)


def offloaded(build: Callable, folder: Path) -> Loaded:
    """A layer of the text model, its head and the image's encoder lie on disk between uses."""
    build().save_pretrained(folder)
    model = build()
    places = {f"model.{name}": "disk" for name, _ in model.model.named_children()}
    del places["model.language_model"]
    text = {f"model.language_model.{n}": "cpu" for n, _ in model.get_decoder().named_children()}
    del text["model.language_model.layers"]
    layers = {f"model.language_model.layers.{n}": "cpu" for n in range(3)}
    layers["model.language_model.layers.1"] = "disk"
    model = AutoModelForImageTextToText.from_pretrained(
        folder,
        device_map={**places, **text, **layers, "lm_head": "disk"},
        offload_folder=folder / "offloaded",
    )
    assert model.device == model.lm_head.weight.device == torch.device("meta")
    return Loaded(model, model)


def adapted(build: Callable, folder: Path) -> Loaded:
    """LoRA of rank 4 on the text model, and on Qwen's image encoder; A and B random."""
    model = with_adapter(build)
    return Loaded(model, model.get_base_model())


def merged(build: Callable, folder: Path) -> Loaded:
    """As `adapted`, the adapter added to the weights."""
    return Loaded(with_adapter(build).merge_and_unload(), with_adapter(build).get_base_model())


def with_adapter(build: Callable) -> Any:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    torch.manual_seed(5)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "v_proj", "up_proj"],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(build(), config).eval()


def compiled(build: Callable, folder: Path) -> Loaded:
    """`generate` of an OptimizedModule is the model's own, on the model within."""
    return Loaded(torch.compile(build(), backend="eager"), build())


LOADERS = (
    bfloat16,
    float16,
    int8_by_torchao,
    int8_by_bitsandbytes,
    offloaded,
    adapted,
    merged,
    compiled,
)
PAIRS = [(family, load) for family in FAMILIES for load in LOADERS]


@pytest.fixture(
    scope="module", params=PAIRS, ids=[f"{family}-{load.__name__}" for family, load in PAIRS]
)
def wrapped(request, tmp_path_factory):
    """(family, model as loaded, inputs for rows of tokens)."""
    name, load = request.param
    build, make_inputs = FAMILIES[name]
    loaded = load(build, tmp_path_factory.mktemp(load.__name__))

    def inputs_for(rows):
        inputs = make_inputs(rows)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(loaded.dtype)
        return inputs

    return name, loaded, inputs_for


# PAI edits attention; DeCo reads the last norm and the head by themselves.
method = pytest.mark.parametrize("method", ["pai", "vdd", "vcd", "deco"])


def generate(model, inputs, decoder=None, **kwargs):
    settings = dict(max_new_tokens=STEPS, custom_generate=decoder) | kwargs
    return model.generate(**inputs, **settings)


@method
def test_neutral_settings_equal_generate(wrapped, method):
    _, loaded, make_inputs = wrapped
    inputs = make_inputs(PROMPTS)
    plain = generate(loaded.model, inputs)
    assert torch.equal(generate(loaded.model, inputs, METHODS[method].neutral), plain)
    if loaded.dtype == torch.float32:  # in half precision more rows may decide near ties otherwise
        present = generate(loaded.model, inputs, with_all_branches(METHODS[method]))
        assert torch.equal(present, plain)


@method
def test_every_step_equals_full_forwards(wrapped, method):
    name, loaded, make_inputs = wrapped
    check_steps(name, loaded, make_inputs, METHODS[method])


def check_steps(family, loaded, make_inputs, method, rows=PROMPTS, steps=STEPS):
    """Branches against the model's full forwards, and scores against the formula on the branches;
    where early layers are not in the output, on the full forwards."""
    inputs = make_inputs(rows)
    asked = dict(output_scores=True, output_logits=True, return_dict_in_generate=True)
    asked |= dict(suppress_tokens=IMAGE_TOKENS, max_new_tokens=steps)
    out = generate(loaded.model, inputs, method.strong, **asked)
    answers = out.sequences[:, inputs["input_ids"].shape[1] :].tolist()
    for row, prompt in enumerate(rows):
        prompts = [method.expert(family, prompt), *method.amateurs(family, prompt)]
        for step, (scores, branches) in enumerate(zip(out.scores, out.branch_logits, strict=True)):
            so_far = answers[row][:step]
            if EOS in so_far:
                break
            full, early = full_branches(loaded.own, make_inputs, method, prompts, prompt, so_far)
            for given, logits in zip(branches[:, row], full, strict=True):
                assert float((given - logits.float()).abs().max()) < loaded.tolerance
            for amateur in full[1:]:  # or the lines above would not tell the branches apart
                assert float((full[0] - amateur).abs().max()) > 2 * loaded.tolerance
            expert, *others = branches[:, row]
            others = [*others, *(e.float() for e in early)]
            expected = method.scores(expert, others, step, IMAGE_TOKENS)
            check_scores(scores[row], expected, loaded.tolerance if early else 1e-4)


def check_scores(scores, expected, tolerance):
    """Of one row; float32 against float64."""
    kept = expected.isfinite()
    assert scores.dtype == torch.float32
    assert torch.equal(scores.isfinite(), kept)
    torch.testing.assert_close(
        scores[kept].double(), expected[kept], atol=10 * tolerance, rtol=1e-4
    )


@pytest.fixture
def dynamo():
    """Dynamo without what others had it trace."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_a_compiled_forward_is_edited_anew_in_every_call(llava, dynamo):
    """Of torch.compile this is Dynamo's part: graphs, guards, recompilations; backends, which make
    code of a graph, take minutes. What one call edits must not stay in the graph of the next."""
    model, make_inputs = llava
    compiled = FAMILIES["llava"][0]()
    compiled.forward = torch.compile(compiled.forward, backend="eager")
    gentler = replace(
        METHODS["pai"],
        strong=PAI(alpha=0.5, gamma=2.0, beta=0.05, layers=(0, 3)),
        attention=image_gain(alpha=0.5, first=0),
    )
    for method in (METHODS["pai"], gentler, METHODS["vdd"]):
        check_steps("llava", Loaded(compiled, model), make_inputs, method, PROMPTS[:1], steps=2)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_counts_where_it_is_on(family):
    build, make_inputs = FAMILIES[family]
    base, adapted = build(), with_adapter(build)
    for decoder in (METHODS["vdd"].strong, METHODS["vcd"].strong):
        asked = dict(output_logits=True, return_dict_in_generate=True, decoder=decoder)
        without = generate(base, make_inputs(PROMPTS), **asked)
        on = generate(adapted, make_inputs(PROMPTS), **asked)
        with adapted.disable_adapter():
            off = generate(adapted, make_inputs(PROMPTS), **asked)
        assert torch.equal(off.sequences, without.sequences)
        for one, other in zip(off.branch_logits, without.branch_logits, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)  # float32
        moved = (on.branch_logits[0] - without.branch_logits[0]).abs().amax(dim=-1)
        assert moved.shape == (2, len(PROMPTS)) and float(moved.min()) > 0.1  # every branch's


# The lab's model and its processor

DECODERS = pytest.mark.parametrize("decoder", [VDD(), VCD()], ids=["vdd", "vcd"])


@pytest.fixture(scope="module")
def lab():
    """(model in float32, its processor)."""
    model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT, dtype=torch.float32)
    return model, AutoProcessor.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def plain_answer(lab):
    return answer(*lab, CORNER, DESCRIBE)


@DECODERS
@pytest.mark.parametrize("first", ["disk", "cpu"], ids=["first weights on disk", "last on disk"])
def test_an_offloaded_model_answers_as_in_memory(lab, plain_answer, decoder, first, tmp_path):
    """`model.device` is "meta" where its first weights lie on disk: inputs go elsewhere."""
    model, processor = lab
    last = "cpu" if first == "disk" else "disk"
    spread = AutoModelForImageTextToText.from_pretrained(
        CHECKPOINT,
        dtype=torch.float32,
        device_map={
            "model.vision_tower": first,
            "model.multi_modal_projector": first,
            "model.language_model": "cpu",
            "lm_head": last,
        },
        offload_folder=tmp_path,
    )
    assert {str(weights.device) for weights in spread.parameters()} == {"cpu", "meta"}
    said = answer(spread, processor, CORNER, DESCRIBE, decoder=decoder)
    assert said == answer(model, processor, CORNER, DESCRIBE, decoder=decoder) != plain_answer


def test_a_wholly_offloaded_model_is_read_from_the_cpu(lab, tmp_path):
    model, processor = lab
    spread = AutoModelForImageTextToText.from_pretrained(
        CHECKPOINT, dtype=torch.float32, device_map={"": "disk"}, offload_folder=tmp_path
    )
    said = answer(spread, processor, CORNER, DESCRIBE, decoder=VDD(), max_new_tokens=4)
    assert said == answer(model, processor, CORNER, DESCRIBE, decoder=VDD(), max_new_tokens=4)


@DECODERS
def test_a_pipeline_passes_a_decoder_on(lab, plain_answer, decoder):
    model, processor = lab
    ask = pipeline("image-text-to-text", model=model, processor=processor)
    content = [dict(type="image", image=str(CORNER)), dict(type="text", text=DESCRIBE)]
    chat = [dict(role="user", content=content)]
    (said,) = ask(text=chat, return_full_text=False, generate_kwargs=dict(custom_generate=decoder))
    decoded = answer(model, processor, CORNER, DESCRIBE, decoder=decoder)
    assert said["generated_text"] == decoded != plain_answer


@DECODERS
def test_words_can_be_read_while_a_thread_generates(lab, decoder):
    model, processor = lab
    inputs = prompt_inputs(model, processor, CORNER, DESCRIBE)
    words = TextIteratorStreamer(
        processor.tokenizer, skip_prompt=True, timeout=60, skip_special_tokens=True
    )
    settings = dict(max_new_tokens=64, custom_generate=decoder, token_streamer=words)
    thread = Thread(target=model.generate, kwargs={**inputs, **settings})
    thread.start()
    pieces = [piece for piece in words if piece]
    thread.join()
    assert "".join(pieces) == answer(model, processor, CORNER, DESCRIBE, decoder=decoder)
    assert len(pieces) > 5
