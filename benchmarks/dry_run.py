"""A benchmark on tiny shapes on a CPU, for `device.py --dry-run`.

Needs `TRITON_INTERPRET=1`, set before Triton is imported.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import decoding
import kernel_cases
import rows
import timing
import torch

import attention
from sightline.attention import hook, kernel

# The heads of the real ones in small: of their own, and seven on one.
TINY = {
    "LLaVA-1.5-7B": attention.Family(2, 2, 32, (80,)),
    "Qwen2.5-VL-7B": attention.Family(7, 1, 32, (80,)),
}


def run(script: str, arguments: Sequence[str]) -> int:
    """Runs "attention" or "decoding" with a GPU's arguments, all that takes long cut down."""
    with kernel_cases.bf16_products():
        return attention_steps(arguments) if script == "attention" else tokens(arguments)


def attention_steps(arguments: Sequence[str]) -> int:
    """The kernel and FlexAttention run as they are written, not compiled."""
    small = ["--device", "cpu", "--rounds", "1", "--minutes", "60", "--shapes", "*b1-*"]
    with (
        patch.object(attention, "FAMILIES", TINY),
        patch.object(attention, "BATCHES", (1,)),
        patch.object(attention, "cache_bytes", lambda device: 2**15),
        patch.object(attention, "copy_bandwidth", lambda device: 1e9),
        patch.object(attention, "attend_for", lambda device: kernel.attend),
        patch.object(attention.Bench, "targets", attention.Bench.every_target),
        patch.object(torch, "compile", lambda function, **options: function),
    ):
        return attention.main([*arguments, *small])


def tokens(arguments: Sequence[str]) -> int:
    """Tiny models; the kernel runs in the check of each row."""
    small = ["--device", "cpu", "--tiny", "--dtypes", "bf16", "--views", "none", "--rounds", "1"]
    small += ["--tokens", "2", "--minutes", "60"]
    if "16" in arguments:
        small += ["--batch", "2"]
    if "dynamic" not in arguments:  # each row that is compiled has those before it measured anew
        small += ["--decoders", "pai-alone", "deco"]
    wrong = rows.wrong
    walked: list[Any] = []

    def through_the_kernel(subject: Any, decoder: Any, *runs: Any) -> str:
        """The first decoder that edits attention: an interpreted prompt takes seconds."""
        if walked or decoder is None or not decoder.recipe().attention_edits:
            return wrong(subject, decoder, *runs)
        walked.append(decoder)
        with patch.object(hook, "attend_for", lambda device: kernel.attend):
            return wrong(subject, decoder, *runs)

    with (
        patch.object(decoding, "copy_bandwidth", lambda device: 1e9),
        patch.object(rows, "wrong", through_the_kernel),
        patch.object(timing, "allocated_peak", lambda run, tokens, device: 0.0),
    ):
        return decoding.main([*arguments, *small])
