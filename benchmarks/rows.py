"""The rows of the benchmark: every decoder, and what it is held against.

`ENTRIES` has what is measured by its name on the command line. Beside VDD and VCD stand the same
contrasts as published code runs them, two forwards in turn, and VCD of the package `mitigv`.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from correctness import Forward, wrong
from machine import is_cuda
from subjects import Subject
from timing import Row
from transformers import CompileConfig

from sightline import (
    AGLA,
    DAMRO,
    ICD,
    M3ID,
    PAI,
    SID,
    VAF,
    VCD,
    VDD,
    DeCo,
    DoLa,
    Gated,
    PromptCached,
    VASparse,
)
from sightline.engine.image_spans import MARKERS
from sightline.logits.gates import Gate
from sightline.logits.rules import Contrastive, Rule
from sightline.vision.features import is_one_of, token_ids

NEVER = 10**6  # no token has this id: an answer runs to its full length
CACHES = ("dynamic", "static", "compiled")


def plain(subject: Subject) -> None:
    return None


@dataclass(frozen=True)
class Entry:
    """A decoder that is measured.

    Args:
        name: In tables.
        make: The decoder, as the subject's model needs it; None for plain `generate`.
        branches: Whether it is made of branches alone, so that its cache is known.
        dynamic_only: It takes keys from the cache or reorders it, so the cache is dynamic.
        static_on_cpu: It has a row with a static cache on the CPU too.
        keywords: Further ones of `generate`.
    """

    name: str
    make: Callable[[Subject], Any] = plain
    branches: bool = True
    dynamic_only: bool = False
    static_on_cpu: bool = False
    keywords: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EveryNth(Gate):
    """Open at every n-th token, whatever is said: random weights leave no token alone plausible."""

    n: int
    asked: list[int] = field(default_factory=lambda: [0], compare=False)

    def opens(self, expert: torch.Tensor, rule: Rule) -> torch.Tensor:
        self.asked[0] += 1
        return expert.new_full((len(expert),), self.asked[0] % self.n == 0, dtype=torch.bool)


ENTRIES = {
    "greedy": Entry("greedy", static_on_cpu=True),
    "beam": Entry("beam 3", branches=False, dynamic_only=True, keywords={"num_beams": 3}),
    "vdd": Entry("VDD none", lambda s: VDD(), static_on_cpu=True),
    "vdd-reusing": Entry("VDD, text known", lambda s: PromptCached(VDD())),
    "vdd-both": Entry("VDD both", lambda s: VDD(variant="both", processor=s.processor)),
    "vcd": Entry("VCD", lambda s: VCD(), static_on_cpu=True),
    "damro": Entry("DAMRO", lambda s: DAMRO()),
    "icd": Entry("ICD", lambda s: ICD(processor=s.processor)),
    "m3id": Entry("M3ID", lambda s: M3ID()),
    "agla": Entry("AGLA", lambda s: AGLA(processor=s.processor)),
    "sid": Entry("SID", lambda s: SID()),
    "pai": Entry("PAI", lambda s: PAI()),
    "pai-alone": Entry("PAI without guidance", lambda s: PAI.without_guidance()),
    "vaf": Entry("VAF", lambda s: VAF()),
    "vasparse": Entry("VASparse", lambda s: VASparse(), dynamic_only=True),
    "vasparse-sink": Entry("VASparse, sink", lambda s: VASparse.paper(), dynamic_only=True),
    "deco": Entry("DeCo", lambda s: DeCo()),
    "dola": Entry("DoLa", lambda s: DoLa()),
    "vdd-gated": Entry("VDD, exact gate", lambda s: Gated(VDD()), branches=False),
    "vdd-sixth": Entry(
        "VDD, gate open at 1 in 6", lambda s: Gated(VDD(), EveryNth(6)), branches=False
    ),
}


def setups(
    subject: Subject, keys: Sequence[str], caches: Sequence[str], device: str
) -> tuple[list[Row], list[str]]:
    """The rows of these decoders, and what is to be said of rows that are left out."""
    rows = [
        stock(subject, key, ENTRIES[key], cache)
        for cache in CACHES
        if cache in caches
        for key in keys
        if has_row(ENTRIES[key], cache, device)
    ]
    if "dynamic" not in caches:
        return rows, []
    if "vdd" in keys:
        rows.append(in_turn(subject, "vdd-in-turn", "VDD none, in turn", without_images))
    if "vcd" in keys:
        rows.append(in_turn(subject, "vcd-in-turn", "VCD, in turn", noisy))
        try:
            rows.append(mitigv(subject))
        except Exception as reason:  # another's package: whatever it stumbles over is a reason
            return rows, [f"mitigv's VCD is left out: {type(reason).__name__}: {reason}"]
    return rows, []


def default_caches(device: str) -> tuple[str, ...]:
    return CACHES if is_cuda(device) else CACHES[:2]


def has_row(entry: Entry, cache: str, device: str) -> bool:
    if cache == "dynamic":
        return True
    is_measured = is_cuda(device) or entry.static_on_cpu or cache == "compiled"
    return is_measured and not entry.dynamic_only


def stock(subject: Subject, key: str, entry: Entry, cache: str) -> Row:
    """A row of `generate`."""
    decoder = entry.make(subject)
    amateurs = None
    if entry.branches:
        amateurs = 0 if decoder is None else len(decoder.recipe().simplified().contrasts)
    run = answering(subject, decoder, cache, **entry.keywords)
    eager = answering(subject, decoder, "dynamic", **entry.keywords)
    is_beam = "num_beams" in entry.keywords  # their logits are not those of one greedy answer
    check = None if is_beam else partial(wrong, subject, decoder, run, eager)
    return Row(key, entry.name, cache, run, amateurs, check=check)


def answering(subject: Subject, decoder: Any, cache: str, **keywords: Any) -> Callable[..., Any]:
    """What answers, greedily and with as many tokens as it is given: `[B, T + tokens]`."""
    given: dict[str, Any] = {"cache_implementation": "static"} if cache != "dynamic" else {}
    if cache == "compiled":
        given["compile_config"] = compile_config(subject.model.device)
    if getattr(decoder, "needs_images", False):
        given["images"] = [image for own in subject.images for image in own]

    def run(tokens: int, **further: Any) -> Any:
        return subject.model.generate(
            **subject.inputs,
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=NEVER,
            pad_token_id=0,
            disable_compile=cache != "compiled",
            custom_generate=decoder,
            **given,
            **keywords,
            **further,
        )

    return run


def compile_config(device: torch.device) -> CompileConfig:
    """Each shape is compiled by itself, whatever ran on the model before.

    Elsewhere than on CUDA, where `generate` does not compile, the graphs are made and run as they
    are: good for trying a command.
    """
    if device.type == "cuda":
        return CompileConfig(dynamic=False)
    config = CompileConfig(dynamic=False, backend="eager", mode=None)
    config._compile_all_devices = True
    return config


def in_turn(
    subject: Subject, key: str, name: str, weaken: Callable[[Subject], dict[str, Any]]
) -> Row:
    """A contrast as published code runs it: a second forward after the first, at every token.

    Without what `generate` does around a forward, so in its favour.
    """
    rule = Contrastive(1.0, 0.1)

    def run(tokens: int) -> torch.Tensor:
        given = (subject.inputs, weaken(subject))
        forwards = [Forward.start(subject.model, inputs) for inputs in given]
        answer: list[torch.Tensor] = []
        for _ in range(tokens):
            if answer:
                forwards = [forward.next(answer[-1]) for forward in forwards]
            answer.append(rule([f.logits for f in forwards]).argmax(-1, keepdim=True))
        return torch.cat(answer, dim=1)

    return Row(key, name, "dynamic", run, amateurs=1)


def without_images(subject: Subject) -> dict[str, Any]:
    """The prompts without images and the tokens around them, alike in all rows."""
    config = subject.model.config
    ids = subject.inputs["input_ids"]
    names = ("image_token_id", *MARKERS)
    kept = ~is_one_of(ids[0], token_ids(config, names))
    return {
        name: values[:, kept]
        for name, values in subject.inputs.items()
        if values.shape[:2] == ids.shape
    }


def noisy(subject: Subject) -> dict[str, Any]:
    pixels = subject.inputs["pixel_values"]
    return {**subject.inputs, "pixel_values": pixels + torch.randn_like(pixels)}


def mitigv(subject: Subject) -> Row:
    """VCD of the package `mitigv`, which also prepares the image before its first token.

    Raises:
        ImportError: The package is not installed.
        ValueError: The batch has more than one prompt.
    """
    if subject.batch > 1:
        raise ValueError(f"it answers one prompt at a time, and a batch has {subject.batch}")
    try:
        from mitigv import load_mitigator
    except ImportError as reason:
        raise ImportError(f"{reason}: pip install mitigv") from reason
    endless = copy.deepcopy(subject.processor)
    endless.tokenizer.eos_token = None
    (images,) = subject.images
    vcd = load_mitigator("vcd", model=subject.model, processor=endless)

    def run(tokens: int) -> Any:
        return vcd.generate(images[0], subject.question, max_new_tokens=tokens)

    run(1)
    return Row("mitigv", "VCD, mitigv", "dynamic", run, amateurs=1)
