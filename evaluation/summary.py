"""From answers to figures: metrics with intervals, costs, and paired differences."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, median
from typing import Any

import numpy as np

from sightline.evaluation.answers import Answer
from sightline.evaluation.benchmark import Benchmark, Prediction, Task, asked
from sightline.evaluation.metrics import NO, YES, Logits, fit_shift
from sightline.evaluation.setups import YES_SHIFT, PlausibilityOnly, Setup
from sightline.evaluation.statistics import RESAMPLES, Estimate, Ratio, estimate, resample, verdict
from sightline.spec_text import GREEDY

TEXTS: dict[str | None, str] = {YES: "Yes", NO: "No", None: ""}
"""What an answer that the shift has turned reads as."""


@dataclass(frozen=True)
class Shift:
    """Greedy with a constant on the logit of "yes", made to say yes as often as a decoder.

    Args:
        decoder: The label of the decoder.
        constant: Added to the logit of "yes".
        said: Greedy's answers; those that the constant turns are a bare "Yes" or "No".
    """

    decoder: str
    constant: float
    said: tuple[Prediction, ...]

    @property
    def label(self) -> str:
        return f"{YES_SHIFT}({self.decoder})"


@dataclass(frozen=True)
class Shiftable:
    """What greedy answers to one yes/no question, and its logits."""

    said: Prediction
    prediction: str | None
    logits: Logits | None

    @property
    def can_turn(self) -> bool:
        """Whether the first token alone is the answer, so that a constant on it is a control."""
        return self.logits is not None and self.logits.answer() == self.prediction

    def shifted(self, constant: float) -> Prediction:
        if not self.can_turn or self.logits is None:
            return self.said
        answer = self.logits.answer(constant)
        if answer == self.prediction:
            return self.said
        return replace(self.said, text=TEXTS[answer], tokens=1)


def shifts(greedy: Sequence[Shiftable], yes_counts: Mapping[str, int]) -> list[Shift]:
    """One control for each decoder that says yes more or less often than greedy.

    Answers that do not follow from their first token stay as they are; the others are turned
    until as many say yes as the decoder does, where so many can be.

    Args:
        greedy: Its answers to a task.
        yes_counts: By decoder, how often it says yes.
    """
    free = [entry.logits for entry in greedy if entry.can_turn and entry.logits is not None]
    own = sum(entry.prediction == YES for entry in greedy)
    stays = sum(entry.prediction == YES for entry in greedy if not entry.can_turn)
    made = []
    for decoder, count in yes_counts.items():
        wanted = count - stays
        if count == own or not free or not 0 <= wanted <= len(free):
            continue
        constant = fit_shift(free, wanted)
        made.append(Shift(decoder, constant, tuple(entry.shifted(constant) for entry in greedy)))
    return made


def costs(answers: Sequence[Answer]) -> dict[str, float | None]:
    """Time, memory and length of one decoder's answers to a task; None where not measured.

    A token's time is that of one step, in which every row of the batch gets one. Medians over
    batches, because other work on the machine comes in bursts.
    """
    batches = {a.batch: a for a in reversed(answers)}
    sizes = Counter(a.batch for a in answers)
    each = [b.ms / sizes[index] for index, b in batches.items()]
    steps = [
        (b.ms - b.first_ms) / (b.steps - 1) for b in batches.values() if b.first_ms and b.steps > 1
    ]
    first = [b.first_ms for b in batches.values() if b.first_ms]
    peaks = [b.peak_mb for b in batches.values() if b.peak_mb is not None]
    return {
        "ms_per_answer": median(each) if each else None,
        "ms_per_token": median(steps) if steps else None,
        "first_token_ms": median(first) if first else None,
        "peak_mb": max(peaks) if peaks else None,
        "tokens": fmean(a.tokens for a in answers) if answers else None,
    }


def comparisons(setups: Sequence[Setup], made: Sequence[Shift]) -> list[tuple[str, str]]:
    """What is compared with what: all with greedy, and each decoder with its own controls."""
    pairs = [(c.label, GREEDY) for c in setups if c.label != GREEDY]
    pairs += [(shift.decoder, shift.label) for shift in made]
    plausible = [c for c in setups if isinstance(c.strategy, PlausibilityOnly)]
    pairs += [
        (c.label, control.label)
        for c in setups
        for control in plausible
        if not c.is_control and c.way == control.way != GREEDY
    ]
    return pairs + [
        (c.label, control.label)
        for c in setups
        for control in setups
        if not c.is_control and c.name == control.control_of and c.way == control.way
    ]


def summarise(
    benchmark: Benchmark,
    answers: Iterable[Answer],
    setups: Sequence[Setup],
    yes_shift: bool = True,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Everything that the tables show, as plain values; None where a metric is not defined.

    Args:
        benchmark: Whose questions were answered.
        answers: Of all setups.
        setups: In the order of the tables.
        yes_shift: Whether to make the control of that name, for tasks of yes and no.
        seed: Of the bootstrap.
        resamples: Of the bootstrap.
    """
    units = {
        unit: i for i, unit in enumerate(dict.fromkeys(i.unit for i in asked(benchmark.items)))
    }
    weights = resample(len(units), resamples, seed)
    by_task: dict[str, list[Answer]] = {task.name: [] for task in benchmark.tasks}
    for answer in answers:
        by_task[answer.task].append(answer)
    tasks, differences = {}, []
    for task in benchmark.tasks:
        figures = task_figures(
            benchmark, task, by_task[task.name], setups, units, weights, yes_shift
        )
        tasks[task.name] = figures.summary
        differences += figures.differences
    return {
        "resamples": resamples,
        "units": len(units),
        "tasks": tasks,
        "controls": [c.label for c in setups if c.is_control],
        "differences": differences,
    }


@dataclass(frozen=True)
class Figures:
    """Of one task: its part of `summary.json`, and its differences."""

    summary: dict[str, Any]
    differences: list[dict[str, Any]]


def task_figures(
    benchmark: Benchmark,
    task: Task,
    answers: Sequence[Answer],
    setups: Sequence[Setup],
    units: Mapping[str, int],
    weights: np.ndarray,
    yes_shift: bool,
) -> Figures:
    """The figures of a task; items whose image or line could not be read are in none of them."""
    items = {item.id: item for item in benchmark.items if item.task == task.name}
    broken = {answer.id for answer in answers if answer.error is not None}
    by_label: dict[str, list[Answer]] = {c.label: [] for c in setups}
    for answer in answers:
        if answer.id not in broken:
            by_label[answer.decoder].append(answer)
    present = {label: some for label, some in by_label.items() if some}
    said = {
        label: [Prediction(items[a.id], a.answer, a.tokens) for a in some]
        for label, some in present.items()
    }
    made: list[Shift] = []
    invalid: dict[str, int] = {}
    if task.yes_no:
        readings = {label: predictions(benchmark, some) for label, some in said.items()}
        counts = {
            c.label: readings[c.label].count(YES)
            for c in setups
            if not c.is_control and c.label in readings
        }
        if yes_shift and GREEDY in said:
            made = shifts(shiftable(said[GREEDY], readings[GREEDY], present[GREEDY]), counts)
        said |= {shift.label: list(shift.said) for shift in made}
        readings |= {s.label: predictions(benchmark, s.said) for s in made}
        invalid = {label: some.count(None) for label, some in readings.items()}
    ratios = {label: benchmark.ratios(task, some, units) for label, some in said.items()}
    sampled = resampled(task, ratios, weights)
    pairs = comparisons(setups, made)
    summary = {
        "title": task.title,
        "yes_no": task.yes_no,
        "questions": len(items),
        "errors": len(broken),
        "malformed": sum(bool(item.error) for item in items.values()),
        "metrics": [asdict(metric) for metric in task.metrics],
        "rows": rows(task, sampled),
        "invalid": invalid,
        "shifts": {shift.label: shift.constant for shift in made},
        "cost": {label: costs(some) for label, some in present.items()},
    }
    return Figures(summary, differences(task, sampled, pairs))


def predictions(benchmark: Benchmark, said: Iterable[Prediction]) -> list[str | None]:
    return [benchmark.prediction(entry.item, entry.text) for entry in said]


def shiftable(
    said: Sequence[Prediction], readings: Sequence[str | None], answers: Sequence[Answer]
) -> list[Shiftable]:
    return [
        Shiftable(entry, reading, None if answer.logits is None else Logits(*answer.logits))
        for entry, reading, answer in zip(said, readings, answers, strict=True)
    ]


@dataclass(frozen=True)
class Resampled:
    """A metric's value, and its value under every resample, `[R]`."""

    value: float
    draws: np.ndarray


Sampled = Mapping[str, Mapping[str, Resampled]]


def resampled(
    task: Task, ratios: Mapping[str, Mapping[str, Ratio]], weights: np.ndarray
) -> dict[str, dict[str, Resampled]]:
    """All metrics of all decoders under the same resamples, in one product of matrices."""
    places = [(label, metric.name) for label in ratios for metric in task.metrics]
    if not places:
        return {}
    chosen = [ratios[label][name] for label, name in places]
    sums = np.stack([r.numerator for r in chosen] + [r.denominator for r in chosen], axis=1)
    over, under = np.split(weights @ sums.astype(np.float64), 2, axis=1)
    draws = np.divide(over, under, out=np.full_like(over, math.nan), where=under != 0)
    found: dict[str, dict[str, Resampled]] = {label: {} for label in ratios}
    for column, ((label, name), ratio) in enumerate(zip(places, chosen, strict=True)):
        found[label][name] = Resampled(ratio.value, draws[:, column])
    return found


def rows(task: Task, sampled: Sampled) -> dict[str, dict[str, Any]]:
    return {
        label: {
            m.name: plain(estimate(some[m.name].value, some[m.name].draws)) for m in task.metrics
        }
        for label, some in sampled.items()
    }


def differences(
    task: Task, sampled: Sampled, pairs: Sequence[tuple[str, str]]
) -> list[dict[str, Any]]:
    """One entry for each comparison and metric."""
    found = []
    for label, against in pairs:
        if label not in sampled or against not in sampled:
            continue
        for metric in task.metrics:
            one, other = sampled[label][metric.name], sampled[against][metric.name]
            gap = estimate(one.value - other.value, one.draws - other.draws)
            found.append(
                {
                    "decoder": label,
                    "against": against,
                    "task": task.name,
                    "metric": metric.name,
                    **plain(gap),
                    "verdict": verdict(gap, metric.better),
                }
            )
    return found


def plain(found: Estimate) -> dict[str, float | None]:
    return {k: None if math.isnan(v) else v for k, v in asdict(found).items()}
