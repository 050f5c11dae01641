"""What a decoder holds at its peak: `generate`'s own, and a little more than its amateurs' keys."""

import weakref
from dataclasses import dataclass, replace

import pytest
import torch
from methods import METHODS
from models import BOS, IMAGE, TEXT, llava_inputs
from models import llava as build_llava
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig

from sightline import ConfidenceGate, Contrastive, Gated, Recipe
from sightline.engine.prompt_edits import continued

LAYERS, HEADS, HEAD_SIZE, FLOAT = 16, 4, 8, 4
IMAGES, AFTER, NEW = 20, 3, 4
PROMPT = [BOS, 8, 9, *[IMAGE] * IMAGES, 20, 21, 22]


class Peak(TorchDispatchMode):
    """Bytes of all storages that operations make and somebody still holds, and the most of it."""

    def __init__(self):
        super().__init__()
        self.held, self.bytes, self.most = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {storage(value)._cdata for value in tensors((args, kwargs))}
        for value in tensors(out):
            made = storage(value)
            if made._cdata not in given and made._cdata not in self.held:
                self.held[made._cdata] = made.nbytes()
                self.bytes += made.nbytes()
                weakref.finalize(made, self.free, made._cdata)
        self.most = max(self.most, self.bytes)
        return out

    def free(self, number):
        self.bytes -= self.held.pop(number)


def tensors(values):
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def storage(value):
    return value.untyped_storage()


def test_peaks_by_hand():
    with Peak() as peak:
        first = torch.zeros(10)  # 40 bytes
        second = first + 1  # 80
        view = second[2:]
        del first, second  # 40, which the view holds
        third = torch.cat([view, view])  # 40 + 64
        third.add_(1)
        del view
        assert peak.bytes == 64
    assert peak.most == 104


@pytest.fixture(scope="module")
def deep():
    """So many layers that one of them is little beside the cache of all."""
    text = LlamaConfig(**{**TEXT, "num_hidden_layers": LAYERS, "num_key_value_heads": HEADS})
    model = build_llava(text)
    for parameter in model.parameters():
        parameter.data /= 3
    return model


@pytest.fixture(scope="module")
def plain_peaks():
    """By mode, of `generate` itself, once known."""
    return {}


def peak_of(model, inputs, decoder, **asked):
    torch.manual_seed(0)
    with Peak() as peak:
        model.generate(
            **inputs, custom_generate=decoder, max_new_tokens=NEW, eos_token_id=-1, **asked
        )
    return peak.most


@dataclass(frozen=True)
class OtherEnd:
    """Another question of the same image, which is read once for both."""

    shares_image = True

    def __call__(self, expert, model):
        rows = range(len(expert.input_ids))
        starts = [expert.length - AFTER] * len(rows)
        branch = continued(expert, torch.tensor(rows), starts, [[30, 31]] * len(rows), model.config)
        assert branch.prefix is not None
        return branch


DECODERS = {
    "vdd": METHODS["vdd"].strong,
    "vdd both": METHODS["vdd-both"].strong,
    "vcd": METHODS["vcd"].strong,
    "m3id": METHODS["m3id"].strong,
    "damro": METHODS["damro"].strong,
    "pai": METHODS["pai"].strong,
    "a shared image": Recipe(contrasts=(OtherEnd(),), rule=Contrastive(1.0, 0.1)),
}
GATED = {
    "a gate": Gated(DECODERS["vcd"], ConfidenceGate(1.0)),
    "a gate, a shared image": replace(DECODERS["a shared image"], gate=ConfidenceGate(1.0)),
}
MODES = {
    "greedy": {},
    "static cache": dict(cache_implementation="static", disable_compile=True),
    "3 beams": dict(num_beams=3),
    "2 samples": dict(do_sample=True, num_return_sequences=2),
}


CASES = {f"{name}, {mode}": (name, mode) for name in DECODERS for mode in MODES}
CASES |= {f"{name}, greedy": (name, "greedy") for name in GATED}


@pytest.mark.parametrize(("name", "mode"), CASES.values(), ids=CASES)
def test_a_branch_costs_little_more_than_its_keys(deep, plain_peaks, name, mode):
    """The extra over `generate`'s peak is at most 1.1 times the amateurs' keys and values.

    Recalibrated attention is left out: off CUDA its reference makes whole matrices of a prompt.
    """
    asked, decoder, inputs = MODES[mode], (DECODERS | GATED)[name], llava_inputs([PROMPT])
    if mode not in plain_peaks:
        plain_peaks[mode] = peak_of(deep, inputs, None, **asked)
    rows = asked.get("num_beams", asked.get("num_return_sequences", 1))
    length = inputs["input_ids"].shape[1] + NEW - 1
    keys = 2 * LAYERS * HEADS * HEAD_SIZE * FLOAT * length * rows
    amateurs = len(decoder.recipe().contrasts)
    extra = peak_of(deep, inputs, decoder, **asked) - plain_peaks[mode]
    assert extra <= 1.1 * amateurs * keys


def test_an_amateurs_images_go_when_they_are_read(deep):
    """As do the expert's, unless `generate` encoded them and holds them itself."""
    encoded, alive = [], []

    def remember(module, args, output):
        encoded.append(weakref.ref(storage(output)))

    def look(module, args, kwargs):
        if kwargs["inputs_embeds"].shape[1] == 1:
            alive.append([ref() is not None for ref in encoded])

    hooks = [
        deep.model.multi_modal_projector.register_forward_hook(remember),
        deep.get_decoder().register_forward_pre_hook(look, with_kwargs=True),
    ]
    try:
        deep.generate(
            **llava_inputs([PROMPT]),
            custom_generate=DECODERS["vcd"],
            max_new_tokens=3,
            eos_token_id=-1,
        )
    finally:
        for hook in hooks:
            hook.remove()
    assert alive == [[False, False]] * 2
