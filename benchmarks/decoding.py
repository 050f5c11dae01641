"""Speed and memory of every decoder against plain greedy decoding, in one interleaved run.

    python benchmarks/decoding.py --device cpu

Rows: greedy, VDD, VCD, and the same contrasts as published code does them, two forwards in turn;
`mitigv`'s VCD where that package is installed (lab's model only: it takes a processor).
Models: "0.25b", a random LLaVA (576 image tokens, hidden 1024, 12 layers, vocabulary 32,064), and
"lab", the shipped one. Batch 1. A ratio is the median over rounds of the same round's ratio to
greedy with the same cache: all rows of a round run one after another, so drift cancels.
"""

import argparse
import ctypes
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

import sightline
from sightline import VCD, VDD
from sightline.chat import prompt_inputs
from sightline.lab import CHECKPOINT, PICTURES
from sightline.logits.rules import Contrastive

IMAGE_TOKEN = 32000
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        image_seq_length=576,
        pad_token_id=0,
    )
    return LlavaForConditionalGeneration(config)


def load(name: str, dtype: torch.dtype, device: str) -> tuple[Any, dict[str, Any], Any]:
    """Model, inputs of one prompt, and what `mitigv` needs (None for the random model)."""
    if name == "lab":
        model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT, dtype=dtype).to(device)
        processor = AutoProcessor.from_pretrained(CHECKPOINT)
        picture = sorted(PICTURES.glob("*.png"))[0]
        inputs = prompt_inputs(model, processor, picture, "Describe the image.")
        return model.eval(), dict(inputs), (processor, picture)
    model = random_llava().to(dtype=dtype, device=device).eval()
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(5, 30000, (60,), generator=generator).tolist()
    ids = torch.tensor([[1, *text[:35], *[IMAGE_TOKEN] * 576, *text[35:]]], device=device)
    pixels = torch.randn(1, 3, 336, 336, generator=generator).to(dtype=dtype, device=device)
    inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels)
    return model, inputs, None


def contenders(model, inputs, mitigv_needs) -> list[tuple[Row, Callable[[int], Any]]]:
    """Rows with what answers `tokens` tokens for them."""

    def stock(decoder, cache):
        config = {} if cache == "dynamic" else {"cache_implementation": "static"}

        def run(tokens):
            return model.generate(
                **inputs,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                disable_compile=True,
                custom_generate=decoder,
                **config,
            )

        return run

    rows: list[tuple[Row, Callable[[int], Any]]] = []
    for cache in ("dynamic", "static"):
        rows += [
            (Row("greedy", cache), stock(None, cache)),
            (Row("VDD none", cache), stock(VDD(), cache)),
            (Row("VCD", cache), stock(VCD(), cache)),
        ]
    for name, noise_step in (("VDD none, in turn", None), ("VCD, in turn", 500)):
        in_turn = InTurn(noise_step)
        rows.append((Row(name, "dynamic"), lambda n, f=in_turn: f(model, inputs, n)))
    if mitigv_needs is not None:
        rows += mitigv_rows(model, *mitigv_needs)
    return rows


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


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def reset_peak(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    elif platform.system() == "Linux":
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: str) -> float:
    """Bytes at the peak since `reset_peak`; on the CPU the whole process, NaN where not known."""
    if device.startswith("cuda"):
        return float(torch.cuda.max_memory_allocated())
    if platform.system() != "Linux":
        return math.nan
    status = Path("/proc/self/status").read_text()
    return 1024.0 * int(status.split("VmHWM:")[1].split()[0])


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


def machine(device: str) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if device.startswith("cuda") else cpu_name()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sightline": sightline.__version__,
        "date": date.today().isoformat(),
    }


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="+", default=["0.25b", "lab"], choices=["0.25b", "lab"])
    parser.add_argument("--dtypes", nargs="+", default=["bf16", "fp32"], choices=list(DTYPES))
    parser.add_argument("--tokens", type=int, default=17, help="new tokens of a timed answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write everything measured as JSON")
    options = parser.parse_args()
    if options.tokens < 2 or options.rounds < 1:
        parser.error("--tokens must be 2 or more and --rounds 1 or more")

    transformers.logging.set_verbosity_error()
    result: dict[str, Any] = {"machine": machine(options.device), "runs": []}
    print(json.dumps(result["machine"]))
    for name in options.models:
        for dtype in options.dtypes:
            model, inputs, needs = load(name, DTYPES[dtype], options.device)
            rows = contenders(model, inputs, needs)
            measure(rows, options.tokens, options.rounds, options.device)
            summary = summarise([row for row, _ in rows])
            parameters = sum(p.numel() for p in model.parameters())
            print(f"\n{name} ({parameters / 1e6:.0f} M parameters), {dtype}, batch 1")
            print(table(summary), flush=True)
            result["runs"].append({"model": name, "dtype": dtype, "rows": summary})
            if options.out:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
