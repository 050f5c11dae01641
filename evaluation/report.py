"""Tables of a summary: in Markdown, and in the terminal."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as Drawn
from rich.text import Text

from sightline.evaluation.statistics import BETTER, HIGHER, LOWER, NOTHING_SHOWN, WORSE

NONE = "-"
SHORT = {NOTHING_SHOWN: "none shown"}
STYLES = {BETTER: "green", WORSE: "red", HIGHER: "bold", LOWER: "bold"}
COSTS = {
    "tokens": ("tokens", "{:.1f}"),
    "ms_per_answer": ("ms/answer", "{:.1f}"),
    "ms_per_token": ("ms/token", "{:.1f}"),
    "first_token_ms": ("ms to first", "{:.0f}"),
    "peak_mb": ("peak MB", "{:,.0f}"),
}
"""Names in `summary.json` -> titles and forms."""

MARKS = re.compile(r"[\\`*\[\]<>|!&$~#]|(?<!\w)_|_(?!\w)")
"""What Markdown, with HTML and formulas in it, does not take for itself."""


@dataclass(frozen=True)
class Table:
    """Rows of cells; a cell is one or more pieces that belong together.

    Args:
        title: Above it.
        columns: Their heads.
        rows: As many cells each.
        notes: Below it.
        split: Where a narrow terminal may begin a second table, which repeats the first column;
            0: nowhere.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[tuple[str, ...], ...], ...]
    notes: tuple[str, ...] = ()
    split: int = 0

    def markdown(self) -> str:
        lines = [f"### {self.title}", "", _row(self.columns), _row(["---"] * len(self.columns))]
        lines += [
            _row([escaped(" ".join(first)), *(" ".join(cell) for cell in others)])
            for first, *others in self.rows
        ]
        return "\n".join([*lines, "", *self.notes, ""] if self.notes else [*lines, ""])

    def drawn(self, places: Sequence[int] | None = None, title: str | None = None) -> Drawn:
        """For a terminal, with some of the columns or all."""
        places = range(len(self.columns)) if places is None else places
        table = Drawn(title=title or self.title, box=box.SIMPLE_HEAD, show_lines=True)
        table.title_justify = "left"
        for i in places:
            justify = "left" if i == 0 else "right"
            table.add_column(self.columns[i], justify=justify, overflow="fold")  # type: ignore[arg-type]
        for row in self.rows:
            table.add_row(*(_stacked(row[i]) for i in places))
        return table

    def fitted(self, console: Console) -> list[Drawn]:
        """The table, or its two parts where it is wider than the terminal."""
        whole = self.drawn()
        unbounded = console.options.update(max_width=10**4)
        if not self.split or Measurement.get(console, unbounded, whole).maximum <= console.width:
            return [whole]
        return [
            self.drawn(range(self.split)),
            self.drawn([0, *range(self.split, len(self.columns))], f"{self.title}: cost"),
        ]


def tables(summary: Mapping[str, Any]) -> list[Table]:
    """One for each task, then the differences of each."""
    shown = [task_table(summary, name) for name in summary["tasks"]]
    differences = [differences_table(summary, name) for name in summary["tasks"]]
    return shown + [table for table in differences if table.rows]


def task_table(summary: Mapping[str, Any], name: str) -> Table:
    """Metrics with their intervals, what could not be read, and costs."""
    task = summary["tasks"][name]
    metrics = task["metrics"]
    digits = {m["name"]: _digits(task["rows"].values(), m["name"]) for m in metrics}
    costs = [
        cost
        for cost in COSTS
        if cost not in digits and any(c[cost] is not None for c in task["cost"].values())
    ]
    counted = ["invalid"] if task["yes_no"] else []
    rows = []
    for label in dict.fromkeys([*summary["run"]["fixed"]["decoders"], *task["rows"]]):
        values, cost = task["rows"].get(label), task["cost"].get(label, {})
        rows.append(
            (
                (label,),
                *(
                    _estimate(values[m["name"]], digits[m["name"]]) if values else (NONE,)
                    for m in metrics
                ),
                *((str(task["invalid"].get(label, NONE)),) for _ in counted),
                *((_number(cost.get(c), COSTS[c][1]),) for c in costs),
            )
        )
    titles = [m["title"] for m in metrics]
    columns = ("decoder", *titles, *counted, *(COSTS[c][0] for c in costs))
    split = 1 + len(titles) + len(counted)
    notes = tuple(task_notes(summary, name))
    return Table(task["title"], columns, tuple(rows), notes, split if costs else 0)


def task_notes(summary: Mapping[str, Any], name: str) -> list[str]:
    """What a reader needs to know of a task's table; what holds for all is said at the first."""
    task = summary["tasks"][name]
    told = [f"{task['questions']:,} questions."]
    if task["yes_no"]:
        told.append("`invalid` answers are neither yes nor no, and wrong.")
    malformed = task.get("malformed", 0)  # absent in summaries of older versions
    if images := task["errors"] - malformed:
        told.append(
            f"Images that could not be read: those of {images:,} questions, which are "
            "left out of all figures."
        )
    if malformed:
        told.append(
            f"Malformed lines of the question files: those of {malformed:,} questions, "
            "which are left out of all figures."
        )
    notes = [*told]
    if name == next(iter(summary["tasks"])):
        notes.append(
            "ms/answer: a batch's time by answer. ms/token: the time of one step, which gives each "
            f"of up to {summary['run']['fixed']['batch_size']} answers a token; ms to first token: "
            "for the whole batch. Medians over batches."
        )
        if not any(cost["peak_mb"] is not None for cost in task["cost"].values()):
            notes.append("Peak memory is measured on CUDA alone.")
    notes = [" ".join(notes)]
    if task["yes_no"] and any(re.split("[:+]", row)[0] == "plausibility" for row in task["rows"]):
        notes.append(
            "`plausibility` is sampled: it is the control of sampled contrast. Under greedy "
            "decoding the best token is always plausible, so it would be `greedy`."
        )
    if task["shifts"]:
        constants = ", ".join(f"{escaped(k)} {v:+.2f}" for k, v in task["shifts"].items())
        notes.append(
            "`yes-shift(x)` is greedy with a constant on the logit of yes, so that it says yes as "
            f"often as x; fitted on these questions and held fixed in the bootstrap: {constants}."
        )
    return notes


def differences_table(summary: Mapping[str, Any], name: str) -> Table:
    task = summary["tasks"][name]
    metrics = task["metrics"]
    digits = {m["name"]: _digits(task["rows"].values(), m["name"]) for m in metrics}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in summary["differences"]:
        if entry["task"] == name:
            found.setdefault((entry["decoder"], entry["against"]), {})[entry["metric"]] = entry
    rows = tuple(
        (
            (f"{label}", f"- {against}"),
            *(_difference(by_metric[m["name"]], digits[m["name"]]) for m in metrics),
        )
        for (label, against), by_metric in found.items()
    )
    count = len(rows) * len(metrics)
    notes = (
        f"Paired over {summary['units']:,} units. Each interval stands alone: of {count} such "
        f"intervals about {count * 0.05:.0f} would exclude 0 if nothing differed at all.",
    )
    columns = ("difference", *(m["title"] for m in metrics))
    return Table(f"Paired differences: {task['title']}", columns, rows, notes)


def heading(summary: Mapping[str, Any]) -> list[str]:
    """What made the figures, as Markdown lines."""
    run = summary["run"]
    fixed, versions = run["fixed"], run["fixed"]["versions"]
    settings = ", ".join(
        f"{name} {_said(value)}" for name, value in fixed["benchmark_settings"].items()
    )
    return [
        f"{as_code(run['command'])}, {run['started'][:10]}: {fixed['benchmark']} ({settings}), "
        f"{fixed['model']}, {fixed['dtype']} on {run['machine']['device']} "
        f"(torch threads: {run['machine']['threads']}), seed {fixed['seed']}, batches of "
        f"{fixed['batch_size']}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f". Sampled rows at temperature {fixed['temperature']:g}. "
        f"In brackets 95 % intervals: bootstrap over {summary['units']:,} units (images, or "
        f"questions that belong together), {summary['resamples']:,} resamples.",
    ]


def _said(value: Any) -> str:
    """A setting in words, without the marks of JSON."""
    if isinstance(value, Mapping):
        return " ".join(_said(part) for part in value.values())
    if isinstance(value, list | tuple):
        return "; ".join(map(_said, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else repr(value)


def markdown(summary: Mapping[str, Any]) -> str:
    parts = ["\n".join(heading(summary)) + "\n", *(t.markdown() for t in tables(summary))]
    return "\n".join(parts)


def escaped(text: str) -> str:
    """A text as Markdown that shows it letter by letter: the labels of rows hold settings."""
    return MARKS.sub(r"\\\g<0>", " ".join(text.split()))


def as_code(text: str) -> str:
    """A text as a code span, whatever it holds."""
    line = " ".join(text.split())
    runs = re.findall("`+", line)
    fence = "`" * (max(map(len, runs), default=0) + 1)
    return f"{fence} {line} {fence}" if runs else f"`{line}`"


def show(summary: Mapping[str, Any], console: Console) -> None:
    """Prints all tables."""
    for table in tables(summary):
        for drawn in table.fitted(console):
            console.print(drawn)
        for note in table.notes:
            console.print(Text(note, style="dim"))
        console.print()


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else form.format(value)


def _digits(rows: Iterable[Mapping[str, Any]], metric: str) -> int:
    """Decimals: three for shares, fewer for what is larger."""
    values = [abs(row[metric]["value"]) for row in rows if row[metric]["value"] is not None]
    largest = max(values, default=0.0)
    return 3 if largest <= 1 else 2 if largest < 100 else 1


def _estimate(entry: Mapping[str, Any], digits: int) -> tuple[str, ...]:
    if entry["value"] is None:
        return (NONE,)
    return (
        f"{entry['value']:.{digits}f}",
        f"[{entry['low']:.{digits}f}, {entry['high']:.{digits}f}]",
    )


def _difference(entry: Mapping[str, Any], digits: int) -> tuple[str, ...]:
    if entry["value"] is None:
        return (NONE,)
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
