"""Whole answers of decoders that look twice, against plain answers of the same length.

Measured by `benchmarks/decoding.py`. A look twice is paid once per answer and not per token, so a
row is the time of all of it. What each is compared with, all of the same round:

VDGD          one plain generation as long as description and answer together
CARVE         a plain answer of the same length, its two short answers as long as that
MVP           the same; "cold" with the captions, otherwise they are known from another question
ICD, M3ID     the same; AGLA too, and up to the first token

Random models never end an answer, and no path of theirs reaches a label, so MVP's nine paths run
to the full length. On the lab's model MVP is compared with the answer as the model ends it.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from machine import peak, reset_peak, synchronise
from rows import NEVER
from subjects import WORDS, Subject

from sightline import AGLA, CARVE, ICD, M3ID, MVP, VCD, VDGD
from sightline.chat import prompt_inputs
from sightline.lab.dialogue import DESCRIBE

DESCRIPTION = 32
CAPTION = 64


@dataclass
class View:
    """One row: what is run, and what it is compared with.

    Args:
        name: Of the row.
        run: Answers once.
        against: The row that its time is divided by; None for plain answers.
        limit: What the ratio is to reach at most, on the CPU.
        ms: Measured, one per round.
        peak: Bytes, one per round.
    """

    name: str
    run: Callable[[], Any]
    against: str | None = None
    limit: float | None = None
    ms: list[float] = field(default_factory=list)
    peak: list[float] = field(default_factory=list)


def views(subject: Subject, tokens: int) -> list[View]:
    """The rows, plain answers first, for a batch of one.

    Args:
        tokens: Of an answer.
    """
    model, processor, is_lab = subject.model, subject.processor, subject.trained
    ((image,),) = subject.images
    question, general, captions = WORDS, WORDS, tuple(f"{WORDS} w{i}" for i in range(10, 13))
    describe, suffix = {"statement": "{description}"}, "w4"
    if is_lab:  # it understands its own words only
        question, general, captions = "Is there a bus in the image?", DESCRIBE[0], DESCRIBE
        describe, suffix = {"request": DESCRIBE[0], "layout": "continue"}, ""
    inputs = prompt_inputs(model, processor, image, question)

    def answer(decoder: Any, length: int, ends: bool = False) -> Callable[[], Any]:
        lengths = {} if ends else {"eos_token_id": NEVER}
        images = [image] if getattr(decoder, "needs_images", False) else None

        def run():
            return model.generate(
                **inputs,
                max_new_tokens=length,
                do_sample=False,
                disable_compile=True,
                pad_token_id=0,
                custom_generate=decoder,
                **({"images": images} if images else {}),
                **lengths,
            )

        return run

    voting: dict[str, Any] = {
        "requests": captions,
        "template": "{caption} {question}",
        "tokens": tokens - 1,
        "caption_tokens": CAPTION,
    }
    warm = MVP(processor=processor, **voting)
    plain, first, long = f"plain, {tokens}", "plain, 1", f"plain, {DESCRIPTION + tokens}"
    ended = "plain, to its end" if is_lab else plain
    carve = {"general": general, "suffix": suffix, "tokens": tokens}
    rows = [
        View(plain, answer(None, tokens)),
        View(first, answer(None, 1)),
        View(long, answer(None, DESCRIPTION + tokens)),
        View(
            "VDGD",
            answer(VDGD(processor=processor, tokens=DESCRIPTION, **describe), tokens),
            long,
            1.15,
        ),
        View("CARVE", answer(CARVE(processor=processor, **carve), tokens), plain, 2.6),
        View("MVP", answer(warm, tokens, is_lab), ended, 3.0),
        View(
            "MVP, cold", lambda: answer(MVP(processor=processor, **voting), tokens, is_lab)(), ended
        ),
        View("AGLA, first token", answer(AGLA(processor=processor), 1), first, 2.2),
        View("VCD, first token", answer(VCD(), 1), first),
        View("AGLA", answer(AGLA(processor=processor), tokens), plain),
        View("VCD", answer(VCD(), tokens), plain),
        View("ICD", answer(ICD(processor=processor), tokens), plain),
        View("M3ID", answer(M3ID(), tokens), plain),
    ]
    if is_lab:
        rows.insert(3, View(ended, answer(None, tokens, ends=True)))
    return rows


def measure(rows: list[View], rounds: int, device: str) -> None:
    for row in rows:
        row.run()
    for _ in range(rounds):
        for row in rows:
            reset_peak(device)
            synchronise(device)
            start = time.perf_counter()
            row.run()
            synchronise(device)
            row.ms.append(1000 * (time.perf_counter() - start))
            row.peak.append(peak(device))


def summarise(rows: list[View]) -> list[dict[str, Any]]:
    named = {row.name: row for row in rows}
    return [
        {
            "decoder": row.name,
            "ms": statistics.median(row.ms),
            "peak_mb": statistics.median(row.peak) / 1e6,
            "against": row.against,
            "ratio": None if row.against is None else ratio(row, named[row.against]),
            "limit": row.limit,
            "rounds": {"ms": row.ms, "peak": row.peak},
        }
        for row in rows
    ]


def ratio(row: View, base: View) -> float:
    return statistics.median(a / b for a, b in zip(row.ms, base.ms, strict=True))


def table(summary: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| answer | ms | peak MB | times | of | limit |",
        "|---|---:|---:|---:|---|---|",
    ]
    for row in summary:
        times = "" if row["ratio"] is None else f"{row['ratio']:.2f}x"
        limit = "" if row["limit"] is None else verdict(row["ratio"], row["limit"])
        lines.append(
            f"| {row['decoder']} | {row['ms']:.0f} | {row['peak_mb']:.0f} | {times} "
            f"| {row['against'] or ''} | {limit} |"
        )
    return "\n".join(lines)


def verdict(reached: float, limit: float) -> str:
    return f"{limit}x: {'reached' if reached <= limit else 'NOT reached'}"
