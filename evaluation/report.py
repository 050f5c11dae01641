"""Tables of a summary: in Markdown, and in the terminal."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as Drawn
from rich.text import Text

from sightline.evaluation.metrics import CAPTIONS, PRESENCE, Metric
from sightline.evaluation.statistics import BETTER, HIGHER, LOWER, NOTHING_SHOWN, WORSE

NONE = "-"
COUNTS = ("tokens", "named")
SHORT = {NOTHING_SHOWN: "none shown"}
STYLES = {BETTER: "green", WORSE: "red", HIGHER: "bold", LOWER: "bold"}


@dataclass(frozen=True)
class Table:
    """Rows of cells; a cell is one or more pieces that belong together."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[tuple[str, ...], ...], ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        lines = [f"### {self.title}", "", _row(self.columns), _row(["---"] * len(self.columns))]
        lines += [_row([" ".join(cell) for cell in row]) for row in self.rows]
        return "\n".join([*lines, "", *self.notes, ""] if self.notes else [*lines, ""])

    def drawn(self) -> Drawn:
        table = Drawn(title=self.title, title_justify="left", box=box.SIMPLE_HEAD, show_lines=True)
        for i, column in enumerate(self.columns):
            table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*(_stacked(cell) for cell in row))
        return table


def tables(summary: Mapping[str, Any]) -> list[Table]:
    """Presence, captions, and the differences of each."""
    return [
        presence_table(summary),
        captions_table(summary),
        *(
            table
            for table in (
                differences_table(summary, "presence", PRESENCE),
                differences_table(summary, "caption", CAPTIONS),
            )
            if table.rows
        ),
    ]


def presence_table(summary: Mapping[str, Any]) -> Table:
    rows = []
    for label, values in summary["presence"].items():
        cost = summary["cost"].get(label, {}).get("ms_per_question")
        shown = [_estimate(values[m.name], m) for m in PRESENCE]
        rows.append(
            ((label,), *shown, (str(summary["invalid"][label]),), (_number(cost, "{:.1f}"),))
        )
    notes = [
        f"{summary['questions']:,} questions. Shares of right answers by kind of question; "
        "`invalid` answers are neither yes nor no, and wrong. ms each: a batch's time by question.",
        "`plausibility` is sampled: it is the control of sampled contrast. Under greedy decoding "
        "the best token is always plausible, so it would be `greedy`.",
    ]
    if summary["shifts"]:
        constants = ", ".join(f"{k} {v:+.2f}" for k, v in summary["shifts"].items())
        notes.append(
            "`yes-shift(x)` is greedy with a constant on the logit of yes, so that it says yes as "
            f"often as x; fitted on these questions and held fixed in the bootstrap: {constants}."
        )
    columns = ("decoder", *(m.title for m in PRESENCE), "invalid", "ms each")
    return Table("Presence", columns, tuple(rows), tuple(notes))


def captions_table(summary: Mapping[str, Any]) -> Table:
    rows = []
    for label, cost in summary["cost"].items():
        values = summary["caption"].get(label)
        shown = [_estimate(values[m.name], m) if values else (NONE,) for m in CAPTIONS]
        spent = [
            (_number(cost["ms_per_token"], "{:.1f}"),),
            (_number(cost["first_token_ms"], "{:.0f}"),),
            (_number(cost["peak_mb"], "{:,.0f}"),),
        ]
        rows.append(((label,), *shown, *spent))
    batch = summary["run"]["fixed"]["batch_size"]
    notes = (
        f"ms/token: the time of one step, which gives each of up to {batch} captions a token; "
        "ms to first token: for the whole batch. Medians over batches.",
    )
    columns = ("decoder", *(m.title for m in CAPTIONS), "ms/token", "ms to first", "peak MB")
    return Table("Captions", columns, tuple(rows), notes)


def differences_table(summary: Mapping[str, Any], task: str, metrics: Sequence[Metric]) -> Table:
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in summary["differences"]:
        if entry["task"] == task:
            found.setdefault((entry["decoder"], entry["against"]), {})[entry["metric"]] = entry
    rows = tuple(
        ((f"{label}", f"- {against}"), *(_difference(by_metric[m.name], m) for m in metrics))
        for (label, against), by_metric in found.items()
    )
    count = len(rows) * len(metrics)
    notes = (
        f"Paired over scenes. Each interval stands alone: of {count} such intervals about "
        f"{count * 0.05:.0f} would exclude 0 if nothing differed at all.",
    )
    title = f"Paired differences: {'presence' if task == 'presence' else 'captions'}"
    return Table(title, ("difference", *(m.title for m in metrics)), rows, notes)


def heading(summary: Mapping[str, Any]) -> list[str]:
    """What made the figures, as Markdown lines."""
    run = summary["run"]
    fixed, versions = run["fixed"], run["fixed"]["versions"]
    return [
        f"`{run['command']}`, {run['started'][:10]}: {fixed['model']}, {fixed['scenes']:,} scenes "
        f"(seed {fixed['seed']}), {fixed['dtype']} on {run['machine']['device']} "
        f"(torch threads: {run['machine']['threads']}), "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f". Sampled rows at temperature {fixed['temperature']:g}. "
        "In brackets 95 % intervals: bootstrap over scenes, "
        f"{summary['resamples']:,} resamples.",
    ]


def markdown(summary: Mapping[str, Any]) -> str:
    parts = ["\n".join(heading(summary)) + "\n", *(t.markdown() for t in tables(summary))]
    return "\n".join(parts)


def show(summary: Mapping[str, Any], console: Console) -> None:
    """Prints all tables."""
    for table in tables(summary):
        console.print(table.drawn())
        for note in table.notes:
            console.print(Text(note, style="dim"))
        console.print()


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else form.format(value)


def _digits(metric: Metric) -> int:
    return 2 if metric.name in COUNTS else 3


def _estimate(entry: Mapping[str, Any], metric: Metric) -> tuple[str, ...]:
    if entry["value"] is None:
        return (NONE,)
    digits = _digits(metric)
    return (
        f"{entry['value']:.{digits}f}",
        f"[{entry['low']:.{digits}f}, {entry['high']:.{digits}f}]",
    )


def _difference(entry: Mapping[str, Any], metric: Metric) -> tuple[str, ...]:
    if entry["value"] is None:
        return (NONE,)
    digits = _digits(metric)
    return (
        f"{entry['value']:+.{digits}f}",
        f"[{entry['low']:+.{digits}f}, {entry['high']:+.{digits}f}]",
        entry["verdict"],
    )


def _stacked(cell: Sequence[str]) -> Text:
    """The pieces of a cell under one another, short enough for a terminal."""
    text = Text(cell[0])
    for piece in cell[1:]:
        text.append("\n")
        text.append(SHORT.get(piece, _narrow(piece)), style=STYLES.get(piece, "dim"))
    return text


def _narrow(piece: str) -> str:
    """ "[0.893, 0.930]" -> ".893 .930"; anything else as it is."""
    if not piece.startswith("["):
        return piece
    ends = piece.strip("[]").split(", ")
    return " ".join(re.sub(r"^([+-]?)0\.", r"\1.", end) for end in ends)
