"""Speed and memory of every decoder against plain greedy decoding, in one interleaved run.

    python benchmarks/decoding.py --device cpu

Rows: greedy and the decoders, each one forward per token; VDD and VCD also as published code does
them, two forwards in turn; `mitigv`'s VCD where that package is installed (lab's model only: it
takes a processor). Models, with random weights: "0.25b", a LLaVA of 576 image tokens, hidden 1024,
12 layers, vocabulary 32,064, and "7b", of the shape of LLaVA-1.5-7B; and "lab", the shipped one.
Batch 1. A ratio is the median over rounds of the same round's ratio to greedy with the same cache:
all rows of a round run one after another, so drift cancels.

Caches: "dynamic"; "static", not compiled; and on CUDA "static compiled", where `generate` compiles
by itself. Decoders that edit or record attention run eagerly there too, beside a compiled greedy,
which is what a caller gets; decoders that take keys from the cache need a dynamic one. On the CPU
static rows are measured for greedy, VDD and VCD alone. VASparse first takes keys when `every`
(32) tokens are answered: with fewer `--tokens` a row has its other parts only.

The exact gate leaves VDD's amateur behind where one token alone is plausible: how often that is
with the lab's model is printed. With random weights it is hardly ever, so "exact gate" is its worst
case there, and a gate that opens at one token in six stands for a trained model.

A second table has the decoders that look twice, as whole answers: see `views.py`. `--views only`
measures nothing else, `--views none` leaves it out.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
import views
from machine import DTYPES, is_cuda, machine, peak, reset_peak, synchronise
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from sightline.chat import prompt_inputs
from sightline.decoders import DAMRO, PAI, SID, VAF, VCD, VDD, VASparse
from sightline.decoders.decoder import Gated
from sightline.lab import CHECKPOINT, PICTURES
from sightline.logits.gates import Gate, Undecided
from sightline.logits.rules import Contrastive

IMAGE_TOKEN = 32000


@dataclass(frozen=True)
class Entry:
    """A decoder's rows.

    Args:
        edits: Its attention is edited or recorded, so it runs eagerly whatever is compiled.
        cuts: It takes keys from the cache, so the cache is dynamic.
        static_on_cpu: It has a row with a static cache on the CPU too.
    """

    name: str
    decoder: Any
    edits: bool = False
    cuts: bool = False
    static_on_cpu: bool = False


@dataclass(frozen=True)
class EveryNth(Gate):
    """Open at every n-th token, whatever is said: random weights leave no token alone plausible."""

    n: int
    asked: list[int] = field(default_factory=lambda: [0], compare=False)

    def opens(self, expert: torch.Tensor, rule: Any) -> torch.Tensor:
        self.asked[0] += 1
        return expert.new_full((len(expert),), self.asked[0] % self.n == 0, dtype=torch.bool)


DECODERS = {
    "greedy": Entry("greedy", None, static_on_cpu=True),
    "vdd": Entry("VDD none", VDD(), static_on_cpu=True),
    "vcd": Entry("VCD", VCD(), static_on_cpu=True),
    "vdd-gated": Entry("VDD, exact gate", Gated(VDD())),
    "vdd-sixth": Entry("VDD, gate open at 1 in 6", Gated(VDD(), EveryNth(6))),
    "damro": Entry("DAMRO", DAMRO()),
    "sid": Entry("SID", SID(), edits=True),
    "pai-alone": Entry("PAI without guidance", PAI.without_guidance(), edits=True),
    "pai": Entry("PAI", PAI(), edits=True),
    "vaf": Entry("VAF", VAF(), edits=True),
    "vasparse": Entry("VASparse", VASparse(), edits=True, cuts=True),
    "vasparse-sink": Entry("VASparse, sink", VASparse.paper(), edits=True, cuts=True),
}
IN_TURN = {"vdd": ("VDD none, in turn", None), "vcd": ("VCD, in turn", 500)}


@dataclass
class Row:
    """Measurements of one decoder, one per round: milliseconds, and bytes at the peak."""

    name: str
    cache: str
    prefill: list[float] = field(default_factory=list)
    per_token: list[float] = field(default_factory=list)
    peak: list[float] = field(default_factory=list)


class InTurn:
    """A contrast as published code runs it: a second forward after the first, at every token."""

    def __init__(self, noise_step: int | None):
        self.noise_step = noise_step

    def __call__(self, model, inputs, tokens):
        amateur = dict(inputs)
        if self.noise_step is None:
            kept = inputs["input_ids"][0] != model.config.image_token_id
            amateur = {k: inputs[k][:, kept] for k in ("input_ids", "attention_mask")}
        else:
            amateur["pixel_values"] = inputs["pixel_values"] + torch.randn_like(
                inputs["pixel_values"]
            )
        rule, answer = Contrastive(1.0, 0.1), []
        forwards = [self._start(model, dict(inputs)), self._start(model, amateur)]
        for _ in range(tokens):
            token = rule([logits.float() for logits, *_ in forwards]).argmax(-1, keepdim=True)
            answer.append(token)
            if len(answer) < tokens:
                forwards = [self._next(model, token, *state) for _, *state in forwards]
        return torch.cat(answer, dim=1)

    @staticmethod
    def _start(model, inputs):
        out = model(**inputs, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1], out.past_key_values, inputs["attention_mask"]

    @staticmethod
    def _next(model, token, cache, mask):
        mask = torch.cat([mask, mask.new_ones(1, 1)], dim=1)
        out = model(input_ids=token, past_key_values=cache, attention_mask=mask, use_cache=True)
        return out.logits[:, -1], out.past_key_values, mask


def random_llava() -> LlavaForConditionalGeneration:
    """0.25 B parameters; weights are random, so it is good for speed and for nothing else."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=6,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=32064,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=16,
        num_key_value_heads=16,
        max_position_embeddings=2048,
        pad_token_id=0,
    )
    return LlavaForConditionalGeneration(llava_config(vision, text))


def random_llava_7b(dtype: torch.dtype, device: str) -> LlavaForConditionalGeneration:
    """The shape of LLaVA-1.5-7B, drawn where it is used: 14 GB in 16 bits."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(vocab_size=32064, max_position_embeddings=4096, pad_token_id=0)
    with torch.device(device):
        return LlavaForConditionalGeneration._from_config(llava_config(vision, text), dtype=dtype)


def llava_config(vision: CLIPVisionConfig, text: LlamaConfig) -> LlavaConfig:
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        image_seq_length=576,
        pad_token_id=0,
    )


def load(name: str, dtype: torch.dtype, device: str) -> tuple[Any, dict[str, Any], Any]:
    """Model, inputs of one prompt, and what `mitigv` needs (None for the random models)."""
    if name == "lab":
        model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT, dtype=dtype).to(device)
        processor = AutoProcessor.from_pretrained(CHECKPOINT)
        picture = sorted(PICTURES.glob("*.png"))[0]
        inputs = prompt_inputs(model, processor, picture, "Describe the image.")
        return model.eval(), dict(inputs), (processor, picture)
    if name == "7b":
        model = random_llava_7b(dtype, device).eval()
    else:
        model = random_llava().to(dtype=dtype, device=device).eval()
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(5, 30000, (60,), generator=generator).tolist()
    ids = torch.tensor([[1, *text[:35], *[IMAGE_TOKEN] * 576, *text[35:]]], device=device)
    pixels = torch.randn(1, 3, 336, 336, generator=generator).to(dtype=dtype, device=device)
    inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels)
    return model, inputs, None


def contenders(
    model, inputs, mitigv_needs, names: list[str], device: str
) -> list[tuple[Row, Callable[[int], Any]]]:
    """Rows with what answers `tokens` tokens for them."""

    def stock(decoder, cache):
        config = {} if cache == "dynamic" else {"cache_implementation": "static"}

        def run(tokens):
            return model.generate(
                **inputs,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                disable_compile=cache != "static compiled",
                custom_generate=decoder,
                **config,
            )

        return run

    entries = [DECODERS[name] for name in names]
    rows: list[tuple[Row, Callable[[int], Any]]] = []
    for cache in caches(device):
        for entry in entries:
            if cache == "dynamic" or has_static_row(entry, device):
                rows.append((Row(entry.name, cache), stock(entry.decoder, cache)))
    for name, (title, noise_step) in IN_TURN.items():
        if name in names:
            in_turn = InTurn(noise_step)
            rows.append((Row(title, "dynamic"), lambda n, f=in_turn: f(model, inputs, n)))
    if mitigv_needs is not None and "vcd" in names:
        rows += mitigv_rows(model, *mitigv_needs)
    return rows


def caches(device: str) -> tuple[str, ...]:
    return ("dynamic", "static", "static compiled") if is_cuda(device) else ("dynamic", "static")


def has_static_row(entry: Entry, device: str) -> bool:
    return not entry.cuts and (is_cuda(device) or entry.static_on_cpu)


def mitigv_rows(model, processor, picture) -> list[tuple[Row, Callable[[int], Any]]]:
    try:
        from mitigv import load_mitigator
    except ImportError:
        print("mitigv is not installed: its row is left out (pip install mitigv)")
        return []
    from PIL import Image

    image = Image.open(picture).convert("RGB")
    vcd = load_mitigator("vcd", model=model, processor=processor, model_type="llava")
    return [
        (
            Row("mitigv VCD", "dynamic"),
            lambda n: vcd.generate(image, "Describe the image.", max_new_tokens=n),
        )
    ]


def measure(rows, tokens: int, rounds: int, device: str) -> None:
    for _, run in rows:
        if is_cuda(device):
            # At full length, since a static cache of another one is compiled again; the second
            # call records the compiled steps as a graph.
            run(tokens)
            run(tokens)
        run(2)
    for round_ in range(rounds):
        for row, run in rows:
            reset_peak(device)
            first = timed(run, 1, device)
            whole = timed(run, tokens, device)
            row.prefill.append(first)
            row.per_token.append((whole - first) / (tokens - 1))
            row.peak.append(peak(device))
        print(f"round {round_ + 1} of {rounds}", file=sys.stderr, flush=True)


@torch.no_grad()
def timed(run, tokens: int, device: str) -> float:
    """Milliseconds."""
    synchronise(device)
    start = time.perf_counter()
    run(tokens)
    synchronise(device)
    return 1000 * (time.perf_counter() - start)


def ratios(values: list[float], base: list[float]) -> float:
    return statistics.median(v / b for v, b in zip(values, base, strict=True))


def summarise(rows: list[Row]) -> list[dict[str, Any]]:
    greedy = {row.cache: row for row in rows if row.name == "greedy"}
    return [
        {
            "decoder": row.name,
            "cache": row.cache,
            "prefill_ms": statistics.median(row.prefill),
            "ms_per_token": statistics.median(row.per_token),
            "peak_mb": statistics.median(row.peak) / 1e6,
            "prefill_ratio": ratios(row.prefill, greedy[row.cache].prefill),
            "token_ratio": ratios(row.per_token, greedy[row.cache].per_token),
            "peak_ratio": ratios(row.peak, greedy[row.cache].peak),
            "rounds": asdict(row),
        }
        for row in rows
    ]


def table(summary: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| decoder | cache | prefill ms | ms / token | peak MB | prefill | per token | peak |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in summary:
        lines.append(
            f"| {row['decoder']} | {row['cache']} | {row['prefill_ms']:.1f} "
            f"| {row['ms_per_token']:.2f} | {row['peak_mb']:.0f} | {row['prefill_ratio']:.2f}x "
            f"| {row['token_ratio']:.2f}x | {row['peak_ratio']:.2f}x |"
        )
    return "\n".join(lines)


def alone(model, processor) -> float:
    """Share of the tokens said of the shipped pictures at which one token alone is plausible."""
    counts = []
    for picture in sorted(PICTURES.glob("*.png")):
        out = model.generate(
            **prompt_inputs(model, processor, picture, "Describe the image."),
            custom_generate=VDD(),
            max_new_tokens=64,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        rule = VDD().recipe().rule
        counts += [not Undecided().opens(logits.float(), rule).any() for logits in out.logits]
    return sum(counts) / len(counts)


def looked_twice(model, needs, options) -> list[dict[str, Any]]:
    processor, picture = needs or (views.random_processor(), views.random_picture())
    rows = views.views(model, needs is not None, processor, picture, options.answer)
    views.measure(rows, options.rounds, options.device)
    return views.summarise(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    models = ["0.25b", "7b", "lab"]
    parser.add_argument("--models", nargs="+", default=["0.25b", "lab"], choices=models)
    parser.add_argument(
        "--decoders",
        nargs="+",
        default=list(DECODERS),
        choices=list(DECODERS),
        help="default: all; greedy is always measured, and vdd and vcd also in turn",
    )
    parser.add_argument("--dtypes", nargs="+", default=["bf16", "fp32"], choices=list(DTYPES))
    parser.add_argument("--tokens", type=int, default=17, help="new tokens of a timed answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--views", default="too", choices=["too", "only", "none"])
    parser.add_argument("--answer", type=int, default=32, help="tokens of a whole answer")
    parser.add_argument("--out", type=Path, help="write everything measured as JSON")
    options = parser.parse_args()
    if options.tokens < 2 or options.rounds < 1:
        parser.error("--tokens must be 2 or more and --rounds 1 or more")

    transformers.logging.set_verbosity_error()
    result: dict[str, Any] = {"machine": machine(options.device), "runs": []}
    print(json.dumps(result["machine"]))
    names = [name for name in DECODERS if name == "greedy" or name in options.decoders]
    eager = [DECODERS[name].name for name in names if DECODERS[name].edits]
    if is_cuda(options.device) and eager:
        print(f"edit or record attention, so never compiled: {'; '.join(eager)}")
    for name in options.models:
        for dtype in options.dtypes:
            model, inputs, needs = load(name, DTYPES[dtype], options.device)
            parameters = sum(p.numel() for p in model.parameters())
            run: dict[str, Any] = {"model": name, "dtype": dtype}
            result["runs"].append(run)
            print(f"\n{name} ({parameters / 1e6:.0f} M parameters), {dtype}, batch 1")
            if needs is not None:
                run["alone"] = alone(model, needs[0])
                print(f"one token alone is plausible at {run['alone']:.0%} of a caption's tokens")
            if options.views != "only":
                rows = contenders(model, inputs, needs, names, options.device)
                measure(rows, options.tokens, options.rounds, options.device)
                run["rows"] = summarise([row for row, _ in rows])
                print(table(run["rows"]), flush=True)
            if options.views != "none":
                run["views"] = looked_twice(model, needs, options)
                print("\n" + views.table(run["views"]), flush=True)
            if options.out:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
