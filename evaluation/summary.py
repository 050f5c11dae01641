"""From answers to figures: metrics with intervals, costs, and paired differences."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np

from sightline.evaluation.answers import Answer
from sightline.evaluation.contenders import YES_SHIFT, Contender, PlausibilityOnly
from sightline.evaluation.metrics import (
    CAPTIONS,
    PRESENCE,
    YES,
    Asked,
    Described,
    Logits,
    Metric,
    captions,
    fit_shift,
    parse,
    presence,
)
from sightline.evaluation.statistics import (
    Estimate,
    Ratio,
    bootstrap,
    paired_difference,
    resample,
    verdict,
)

GREEDY = "greedy"
TASKS: dict[str, tuple[Metric, ...]] = {"presence": PRESENCE, "caption": CAPTIONS}


@dataclass(frozen=True)
class Shift:
    """Greedy with a constant on the logit of "yes", made to say yes as often as a decoder."""

    decoder: str
    constant: float
    asked: tuple[Asked, ...]

    @property
    def label(self) -> str:
        return f"{YES_SHIFT}({self.decoder})"


def asked_of(answers: Iterable[Answer]) -> list[Asked]:
    return [Asked(a.scene, a.kind, parse(a.answer)) for a in answers if a.task == "presence"]


def shifts(answers: Mapping[str, Sequence[Answer]], decoders: Sequence[str]) -> list[Shift]:
    """One control for each decoder that says yes more or less often than greedy."""
    plain = [a for a in answers[GREEDY] if a.task == "presence"]
    logits = [Logits(*a.logits) for a in plain if a.logits is not None]
    made = []
    for decoder in decoders:
        yes = sum(a.answer == YES for a in asked_of(answers[decoder]))
        if yes == sum(entry.answer() == YES for entry in logits):
            continue
        constant = fit_shift(logits, yes)
        shifted = (
            Asked(a.scene, a.kind, entry.answer(constant))
            for a, entry in zip(plain, logits, strict=True)
        )
        made.append(Shift(decoder, constant, tuple(shifted)))
    return made


def costs(answers: Sequence[Answer]) -> dict[str, float | None]:
    """Time and memory of one decoder; None where it was not measured.

    A token's time is that of one step, in which every row of the batch gets one. Medians over
    batches, because other work on the machine comes in bursts.
    """
    batches = {(a.task, a.batch): a for a in reversed(answers)}
    sizes = Counter((a.task, a.batch) for a in answers)
    asking = [b.ms / sizes[key] for key, b in batches.items() if b.task == "presence"]
    described = [b for (task, _), b in batches.items() if task == "caption"]
    steps = [(b.ms - b.first_ms) / (b.steps - 1) for b in described if b.first_ms and b.steps > 1]
    first = [b.first_ms for b in described if b.first_ms]
    peaks = [b.peak_mb for b in batches.values() if b.peak_mb is not None]
    return {
        "ms_per_question": median(asking) if asking else None,
        "ms_per_token": median(steps) if steps else None,
        "first_token_ms": median(first) if first else None,
        "peak_mb": max(peaks) if peaks else None,
    }


def comparisons(contenders: Sequence[Contender], made: Sequence[Shift]) -> list[tuple[str, str]]:
    """What is compared with what: all with greedy, and each decoder with its own controls."""
    pairs = [(c.label, GREEDY) for c in contenders if c.label != GREEDY]
    pairs += [(shift.decoder, shift.label) for shift in made]
    plausible = [c for c in contenders if isinstance(c.strategy, PlausibilityOnly)]
    pairs += [
        (c.label, control.label)
        for c in contenders
        for control in plausible
        if not c.is_control and c.mode == control.mode != "greedy"
    ]
    return pairs + [
        (c.label, control.label)
        for c in contenders
        for control in contenders
        if not c.is_control and c.name == control.control_of and c.mode == control.mode
    ]


def summarise(
    answers: Iterable[Answer],
    contenders: Sequence[Contender],
    truth: Sequence[frozenset[str]],
    mentioned: Any,
    yes_shift: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything that the tables show, as plain values; None where a metric is not defined.

    Args:
        answers: Of all contenders.
        contenders: In the order of the tables.
        truth: The objects that are present, by scene.
        mentioned: `(text) -> names of objects`.
        yes_shift: Whether to make the control of that name.
        seed: Of the bootstrap.
    """
    by_decoder: dict[str, list[Answer]] = {c.label: [] for c in contenders}
    for answer in answers:
        by_decoder[answer.decoder].append(answer)
    decoders = [c.label for c in contenders if not c.is_control]
    made = shifts(by_decoder, decoders) if yes_shift else []
    asked = {label: asked_of(some) for label, some in by_decoder.items()}
    asked |= {shift.label: list(shift.asked) for shift in made}
    described = {
        label: [
            Described(a.scene, frozenset(mentioned(a.answer)), truth[a.scene], a.tokens)
            for a in some
            if a.task == "caption"
        ]
        for label, some in by_decoder.items()
    }
    scenes = len(truth)
    ratios = {
        "presence": {label: presence(some, scenes) for label, some in asked.items()},
        "caption": {label: captions(some, scenes) for label, some in described.items() if some},
    }
    weights = resample(scenes, seed=seed)
    return {
        "presence": estimates(ratios["presence"], PRESENCE, weights),
        "invalid": {label: sum(a.answer is None for a in some) for label, some in asked.items()},
        "questions": len(asked[GREEDY]),
        "shifts": {shift.label: shift.constant for shift in made},
        "caption": estimates(ratios["caption"], CAPTIONS, weights),
        "cost": {label: costs(some) for label, some in by_decoder.items()},
        "differences": differences(ratios, comparisons(contenders, made), weights),
    }


def estimates(
    ratios: Mapping[str, Mapping[str, Ratio]], metrics: Sequence[Metric], weights: np.ndarray
) -> dict[str, dict[str, Any]]:
    return {
        label: {m.name: plain(bootstrap(some[m.name], weights)) for m in metrics}
        for label, some in ratios.items()
    }


def differences(
    ratios: Mapping[str, Mapping[str, Mapping[str, Ratio]]],
    pairs: Sequence[tuple[str, str]],
    weights: np.ndarray,
) -> list[dict[str, Any]]:
    """One entry for each comparison and metric."""
    found = []
    for label, against in pairs:
        for task, metrics in TASKS.items():
            if label not in ratios[task] or against not in ratios[task]:
                continue
            one, other = ratios[task][label], ratios[task][against]
            for metric in metrics:
                gap = paired_difference(one[metric.name], other[metric.name], weights)
                found.append(
                    {
                        "decoder": label,
                        "against": against,
                        "task": task,
                        "metric": metric.name,
                        **plain(gap),
                        "verdict": verdict(gap, metric.better),
                    }
                )
    return found


def plain(estimate: Estimate) -> dict[str, float | None]:
    return {k: None if math.isnan(v) else v for k, v in asdict(estimate).items()}
