"""Plots of a summary: score against yes-rate, CHAIR against recall, and time.

A plot is first a record of what it shows (`Scatter`, `Bars`), then a figure. Setups have one
number, colour and marker in all plots of a summary; numbers stand at the points, names at the side,
so that neither many setups nor long names hide a point.
"""

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sightline.evaluation.statistics import HIGHER, LOWER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREEDY = "greedy"
YES_NO_PAIRS = (("f1", "yes_rate"), ("accuracy", "yes_rate"))
CAPTION_PAIRS = (("chair_i", "recall"), ("chair", "cover"))
"""Metrics of a scatter plot, upright and across; the first pair that a task has is drawn."""
MEASURES = {"ms_per_token": "time per token", "ms_per_answer": "time per answer"}
FEW_TOKENS = 8  # answers shorter than this are timed whole: what they cost is the prompt
DIRECTIONS = {HIGHER: "higher is better", LOWER: "lower is better", None: "no side is better"}

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Okabe's and Ito's, which the colour-blind can tell apart; without those too pale for a point."""
MARKERS = ("o", "s", "^", "D", "v", "P")
GREYS = ("#404040", "#8C8C8C")  # greedy, and all other controls
GREY_MARKERS = ("o", "X", "d", "h", "<", ">", "p", "s", "^", "v", "P", "D")

DPI = 150
PANEL = (5.6, 4.4)  # inches, of a scatter plot without its side
LINE = 0.19  # inches, of a line of names
EDGE = 0.15  # inches, around everything
NAME_WIDTH = 30  # characters, of a line of a name at the side
SIZES = {"title": 12.0, "text": 9.0, "small": 8.0}  # points
CHARACTER = 0.0081  # inches a character is wide, for each point of its size, at most


@dataclass(frozen=True)
class Span:
    """A value between the ends of its 95 % interval, which are None where it has none."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def arms(self) -> tuple[float, float]:
        """How far the interval reaches to each side; never below 0."""
        low = self.value if self.low is None else self.low
        high = self.value if self.high is None else self.high
        return max(0.0, self.value - low), max(0.0, high - self.value)


@dataclass(frozen=True)
class Style:
    """How a setup looks in every plot of a summary."""

    number: int
    colour: str
    marker: str


@dataclass(frozen=True)
class Scatter:
    """One metric of a task against another.

    Args:
        name: Of the file.
        title: What is shown.
        source: What made it: model, questions, how intervals were taken.
        across: The title of the horizontal axis.
        upright: The title of the vertical axis.
        points: Across and upright, by setup.
        notes: Below the plot.
    """

    name: str
    title: str
    source: str
    across: str
    upright: str
    points: Mapping[str, tuple[Span, Span]]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Bars:
    """What an answer or a token costs.

    Args:
        name: Of the file.
        title: What is shown.
        source: What made it.
        across: The title of the axis.
        lengths: By setup; relative to greedy where that was measured.
        texts: At the ends of the bars, by setup.
        is_relative: Whether 1 is greedy.
        notes: Below the plot.
    """

    name: str
    title: str
    source: str
    across: str
    lengths: Mapping[str, float]
    texts: Mapping[str, str]
    is_relative: bool
    notes: tuple[str, ...]


def draw(summary: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes the plots of a `summary.json` as PNG files; which ones, in the order of its tasks.

    A plot that has nothing to show is not written.

    Args:
        summary: Its content.
        folder: Must exist.

    Raises:
        ImportError: Where matplotlib is missing, with what to install.
    """
    check_matplotlib()
    looks = styles(summary)
    written = []
    for plot in plots(summary):
        path = folder / f"{plot.name}.png"
        made = (
            scatter_figure(plot, looks) if isinstance(plot, Scatter) else bars_figure(plot, looks)
        )
        made.savefig(path, format="png", dpi=DPI, metadata={"Software": None})
        written.append(path)
    return written


def check_matplotlib() -> None:
    """Raises `ImportError` that says what to install, where plots cannot be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'plots need matplotlib, which is not installed: pip install "sightline-vlm[eval]"'
        ) from error


# What is shown


def plots(summary: Mapping[str, Any]) -> list[Scatter | Bars]:
    """All plots of a summary that have something to show."""
    found: list[Scatter | Bars | None] = []
    for name, task in summary["tasks"].items():
        found += [scatter(summary, name, task), bars(summary, name, task)]
    return [plot for plot in found if plot is not None]


def scatter(summary: Mapping[str, Any], name: str, task: Mapping[str, Any]) -> Scatter | None:
    """Score against yes-rate or CHAIR against recall; None where no setup has both."""
    metrics = {metric["name"]: metric for metric in task["metrics"]}
    pairs = YES_NO_PAIRS if task["yes_no"] else CAPTION_PAIRS
    pair = next((pair for pair in pairs if set(pair) <= metrics.keys()), None)
    if pair is None:
        return None
    upright, across = pair
    points = {}
    for label, row in task["rows"].items():
        x, y = span(row.get(across)), span(row.get(upright))
        if x is not None and y is not None:
            points[label] = x, y
    if not points:
        return None
    missing = [label for label in task["rows"] if label not in points]
    titles = [metrics[metric]["title"] for metric in pair]
    return Scatter(
        name=file_name(f"{name}-{upright}-{across}"),
        title=f"{headline(summary, task)}: {titles[0]} against {titles[1]}",
        source=f"{source(summary, task)}. Bars are 95 % intervals by bootstrap.",
        across=axis_title(metrics[across]),
        upright=axis_title(metrics[upright]),
        points=points,
        notes=notes(
            "Grey: controls." if controls(summary) & points.keys() else "",
            f"Not defined, and left out: {', '.join(missing)}." if missing else "",
            errors(task),
        ),
    )


def bars(summary: Mapping[str, Any], name: str, task: Mapping[str, Any]) -> Bars | None:
    """Time by setup, relative to greedy's; None where nothing was timed."""
    cost = task["cost"]
    measure = next((m for m in measures(task) if any(finite(c.get(m)) for c in cost.values())), "")
    times = {label: float(c[measure]) for label, c in cost.items() if finite(c.get(measure))}
    if not times:
        return None
    base = times.get(GREEDY, 0.0)
    is_relative = base > 0
    what = MEASURES[measure]
    missing = [label for label in cost if label not in times]
    return Bars(
        name=file_name(f"{name}-time"),
        title=f"{headline(summary, task)}: {what}",
        source=f"{source(summary, task)}. {machine(summary)}",
        across=f"{what}, relative to greedy (lower is better)"
        if is_relative
        else f"{what}, ms (lower is better)",
        lengths={label: ms / base if is_relative else ms for label, ms in times.items()},
        texts={
            label: f"{ms / base:.2f} x  {milliseconds(ms)}" if is_relative else milliseconds(ms)
            for label, ms in times.items()
        },
        is_relative=is_relative,
        notes=notes(
            "Medians over batches; grey: controls.",
            f"Not measured, and left out: {', '.join(missing)}." if missing else "",
        ),
    )


def measures(task: Mapping[str, Any]) -> tuple[str, ...]:
    """What is timed, the better measure first."""
    tokens = task["cost"].get(GREEDY, {}).get("tokens")
    is_short = tokens < FEW_TOKENS if finite(tokens) else task["yes_no"]
    return ("ms_per_answer", "ms_per_token") if is_short else ("ms_per_token", "ms_per_answer")


def span(estimate: Mapping[str, Any] | None) -> Span | None:
    """None where there is no value."""
    if estimate is None or not finite(estimate["value"]):
        return None
    low, high = (estimate[end] if finite(estimate[end]) else None for end in ("low", "high"))
    return Span(estimate["value"], low, high)


def finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def controls(summary: Mapping[str, Any]) -> set[str]:
    """Labels drawn in grey."""
    shifts = (label for task in summary["tasks"].values() for label in task.get("shifts", ()))
    return {*summary["controls"], *shifts}


def headline(summary: Mapping[str, Any], task: Mapping[str, Any]) -> str:
    """Benchmark and task, each once."""
    benchmark, title = summary["run"]["fixed"]["benchmark"], task["title"]
    return title if benchmark.lower() in title.lower() else f"{benchmark}, {title}"


def source(summary: Mapping[str, Any], task: Mapping[str, Any]) -> str:
    return f"{summary['run']['fixed']['model']}, {task['questions']:,} questions"


def machine(summary: Mapping[str, Any]) -> str:
    fixed = summary["run"]["fixed"]
    name = summary["run"].get("machine", {}).get("device") or fixed.get("device", "")
    return f"{name}, {fixed['dtype']}, batches of {fixed['batch_size']}."


def errors(task: Mapping[str, Any]) -> str:
    count = task.get("errors", 0)
    source = "image or line" if task.get("malformed") else "image"
    return f"Left out: {count:,} questions whose {source} could not be read." if count else ""


def notes(*sentences: str) -> tuple[str, ...]:
    return tuple(filter(None, sentences))


def axis_title(metric: Mapping[str, Any]) -> str:
    return f"{metric['title']} ({DIRECTIONS[metric['better']]})"


def milliseconds(value: float) -> str:
    return (
        f"{value:.2f} ms"
        if value < 10
        else f"{value:,.1f} ms"
        if value < 100
        else f"{value:,.0f} ms"
    )


def file_name(text: str) -> str:
    """Letters, digits, points and strokes alone."""
    return re.sub(r"[^\w.]+", "-", text.replace("_", "-")).strip("-")


def styles(summary: Mapping[str, Any]) -> dict[str, Style]:
    """A number and a look of its own for each setup, in the order of the tables."""
    tasks = summary["tasks"].values()
    labels = dict.fromkeys(label for task in tasks for label in (*task["rows"], *task["cost"]))
    grey = controls(summary)
    made: dict[str, Style] = {}
    plain = coloured = 0
    for number, label in enumerate(labels, start=1):
        if label in grey or label == GREEDY:
            shade = GREYS[label != GREEDY]
            made[label] = Style(number, shade, GREY_MARKERS[plain % len(GREY_MARKERS)])
            plain += 1
        else:
            turn, colour = divmod(coloured, len(COLOURS))
            made[label] = Style(number, COLOURS[colour], MARKERS[turn % len(MARKERS)])
            coloured += 1
    return made


# Figures


@dataclass(frozen=True)
class Page:
    """A figure's parts in inches: lines of text above and below a panel, names beside it.

    Args:
        panel: Width and height of the panel, without the titles of its axes.
        left: Between the figure's edge and the panel.
        right: Between the panel and the figure's other edge.
        above: Lines of title and source.
        below: Lines of notes.
    """

    panel: tuple[float, float]
    left: float
    right: float
    above: tuple[tuple[str, float], ...]
    below: tuple[str, ...]

    AXIS = 0.62  # inches, of the horizontal axis' numbers and title

    @property
    def width(self) -> float:
        return self.left + self.panel[0] + self.right

    @property
    def top(self) -> float:
        return 2 * EDGE + sum(line_height(size) for _, size in self.above)

    @property
    def bottom(self) -> float:
        return self.AXIS + EDGE + len(self.below) * line_height(SIZES["small"])

    @property
    def height(self) -> float:
        return self.top + self.panel[1] + self.bottom


def page(panel: tuple[float, float], left: float, right: float, plot: Scatter | Bars) -> Page:
    """A page on which the plot's texts are as wide as the figure allows."""
    width = left + panel[0] + right - 2 * EDGE
    above = [(line, SIZES["title"]) for line in wrapped(plot.title, width, SIZES["title"])]
    above += [(line, SIZES["small"]) for line in wrapped(plot.source, width, SIZES["small"])]
    below = wrapped(" ".join(plot.notes), width, SIZES["small"]) if plot.notes else []
    return Page(panel, left, right, tuple(above), tuple(below))


def line_height(size: float) -> float:
    """Inches, of a line of text of a size in points."""
    return size * 1.35 / 72


def wrapped(text: str, inches: float, size: float) -> list[str]:
    """Lines of a text that fit a width; long words are broken."""
    return textwrap.wrap(text, max(8, int(inches / (size * CHARACTER))))


def named(label: str, width: int = NAME_WIDTH) -> list[str]:
    """A setup's name in lines, broken between its settings or words where that is enough."""
    lines = [""]
    for piece in re.findall(r"\+?[^,:+ ]*[,: ]?", label):
        if len(lines[-1]) + len(piece.rstrip()) > width and lines[-1]:
            lines.append("")
        lines[-1] += piece
    return [part for line in lines for part in textwrap.wrap(line, width)]


def new_figure(sheet: Page) -> "tuple[Figure, Axes]":
    """A figure with its texts, and the axes of its panel. No state of pyplot is touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(sheet.width, sheet.height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes(
        (
            sheet.left / sheet.width,
            sheet.bottom / sheet.height,
            sheet.panel[0] / sheet.width,
            sheet.panel[1] / sheet.height,
        )
    )
    height = sheet.height - EDGE
    for line, size in sheet.above:
        write(figure, EDGE / sheet.width, height / sheet.height, line, size)
        height -= line_height(size)
    height = EDGE + len(sheet.below) * line_height(SIZES["small"])
    for line in sheet.below:
        write(figure, EDGE / sheet.width, height / sheet.height, line, SIZES["small"], "#555555")
        height -= line_height(SIZES["small"])
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=SIZES["small"])
    axes.grid(color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def write(
    figure: "Figure", left: float, top: float, text: str, size: float, colour: str = "black"
) -> None:
    """A line of text below and right of a place; `$` and `_` are no mathematics."""
    figure.text(left, top, text, fontsize=size, color=colour, va="top", parse_math=False)


def label_axes(axes: "Axes", across: str, upright: str = "") -> None:
    axes.set_xlabel(across, fontsize=SIZES["text"], parse_math=False)
    axes.set_ylabel(upright, fontsize=SIZES["text"], parse_math=False)


def figure_of(plot: Scatter | Bars, looks: Mapping[str, Style]) -> "Figure":
    return scatter_figure(plot, looks) if isinstance(plot, Scatter) else bars_figure(plot, looks)


def scatter_figure(plot: Scatter, looks: Mapping[str, Style]) -> "Figure":
    """Points with their intervals, numbered; names at the side."""
    names = {label: named(label) for label in plot.points}
    lines = sum(map(len, names.values()))
    panel = (PANEL[0], max(PANEL[1], lines * LINE + EDGE))
    longest = max(len(line) for lines_of in names.values() for line in lines_of)
    side = 0.75 + longest * SIZES["text"] * CHARACTER + EDGE
    sheet = page(panel, 0.85, side, plot)
    figure, axes = new_figure(sheet)
    axes.margins(0.08)
    for label, (across, upright) in plot.points.items():
        look = looks[label]
        axes.errorbar(
            across.value,
            upright.value,
            xerr=[[arm] for arm in across.arms],
            yerr=[[arm] for arm in upright.arms],
            color=look.colour,
            marker=look.marker,
            markersize=7,
            markeredgecolor="white",
            markeredgewidth=0.5,
            elinewidth=0.9,
            ecolor=faded(look.colour),
            zorder=3,
        )
    label_axes(axes, plot.across, plot.upright)
    number_points(figure, axes, plot, looks)
    list_names(figure, sheet, names, looks)
    return figure


def faded(colour: str, share: float = 0.55) -> tuple[float, float, float]:
    """A colour `#rrggbb` on its way to white, so that a crowd of intervals hides no point."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return 1 - share * (1 - red), 1 - share * (1 - green), 1 - share * (1 - blue)


def number_points(
    figure: "Figure", axes: "Axes", plot: Scatter, looks: Mapping[str, Style]
) -> None:
    """Each setup's number near its point, none over another number or a point."""
    figure.draw_without_rendering()  # limits are final from here on
    values = [(across.value, upright.value) for across, upright in plot.points.values()]
    points = axes.transData.transform(np.array(values))
    pixel = DPI / 72
    texts = [str(looks[label].number) for label in plot.points]
    sizes = np.array([(len(t) * 0.68 + 0.3, 1.25) for t in texts]) * SIZES["small"] * pixel
    box = axes.get_window_extent()
    corners = (box.x0, box.y0, box.x1, box.y1)
    places = spread(points, sizes, corners, 4.0 * pixel)
    back = axes.transData.inverted()
    for point, place, label, text in zip(points, places, plot.points, texts, strict=True):
        colour = looks[label].colour
        (x, y), (x0, y0) = back.transform(place), back.transform(point)
        if np.hypot(*(place - point)) > 16 * pixel:
            axes.plot([x0, x], [y0, y], color=faded(colour), linewidth=0.6, zorder=2)
        axes.text(
            x,
            y,
            text,
            fontsize=SIZES["small"],
            fontweight="bold",
            color=colour,
            ha="center",
            va="center",
            path_effects=halo(),
            zorder=5,
        )


def halo() -> list[Any]:
    """A white edge, so that text can be read on a line."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=2, foreground="white")]


def spread(
    points: np.ndarray,
    sizes: np.ndarray,
    box: tuple[float, float, float, float],
    radius: float,
) -> np.ndarray:
    """Where labels stand so that they cover neither one another nor a point.

    Each label in turn takes the nearest free place on rings around its point; where none is free,
    the one that covers least.

    Args:
        points: `[N, 2]`.
        sizes: Width and height of each label, `[N, 2]`.
        box: Left, bottom, right and top of where labels may be.
        radius: Of what marks a point.

    Returns:
        The labels' centres, `[N, 2]`.
    """
    diagonal, straight = np.arange(45, 360, 90), np.arange(0, 360, 90)
    angles = np.deg2rad(np.concatenate([diagonal, straight, np.arange(22.5, 360, 45)]))
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    ring /= np.abs(ring).max(axis=1, keepdims=True)  # a square's: labels have corners
    marks = np.concatenate([points - radius, points + radius], axis=1)
    taken = np.empty((0, 4))
    centres = np.empty_like(points, dtype=float)
    for i, (point, size) in enumerate(zip(points, sizes, strict=True)):
        away = radius + np.arange(24)[:, None, None] * size.min() / 2
        places = (point + ring * (size / 2 + away)).reshape(-1, 2)
        low, high = np.array(box[:2]) + size / 2, np.array(box[2:]) - size / 2
        places = np.clip(places, low, high)
        boxes = np.concatenate([places - size / 2, places + size / 2], axis=1)
        hidden = shared_area(boxes, marks).sum(axis=1) + shared_area(boxes, taken).sum(axis=1)
        best = int(hidden.round(6).argmin())  # the first of the least hiding
        centres[i] = places[best]
        taken = np.concatenate([taken, boxes[best : best + 1]])
    return centres


def shared_area(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of boxes (left, bottom, right, top): `[N, 4]`, `[M, 4]` -> `[N, M]`."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return np.clip(high - low, 0, None).prod(axis=2)


def list_names(
    figure: "Figure",
    sheet: Page,
    names: Mapping[str, Sequence[str]],
    looks: Mapping[str, Style],
) -> None:
    """Marker, number and name of each setup, beside the panel from its top."""
    from matplotlib.lines import Line2D

    left = sheet.left + sheet.panel[0] + 0.25
    height = sheet.height - sheet.top
    for label, lines in names.items():
        look = looks[label]
        middle = (height - 0.6 * SIZES["text"] / 72) / sheet.height
        mark = Line2D([left / sheet.width], [middle], color=look.colour, marker=look.marker)
        mark.set(markersize=7, linestyle="none", transform=figure.transFigure, figure=figure)
        figure.add_artist(mark)
        place = (left + 0.14) / sheet.width
        write(figure, place, height / sheet.height, str(look.number), SIZES["text"], look.colour)
        for line in lines:
            write(figure, (left + 0.4) / sheet.width, height / sheet.height, line, SIZES["text"])
            height -= LINE


def bars_figure(plot: Bars, looks: Mapping[str, Style]) -> "Figure":
    """One bar for each setup from the top, its name before it and its time at its end."""
    names = {label: named(label, 34) for label in plot.lengths}
    heights = [max(0.28, len(lines) * LINE + 0.06) for lines in names.values()]
    longest = max(len(line) for lines in names.values() for line in lines)
    left = 2 * EDGE + longest * SIZES["text"] * CHARACTER
    sheet = page((4.6, sum(heights) + 0.1), max(1.0, left), 1.5, plot)
    figure, axes = new_figure(sheet)
    edges = np.cumsum([0.05, *heights])
    middles = (edges[:-1] + edges[1:]) / 2
    axes.barh(
        middles,
        list(plot.lengths.values()),
        height=[height * 0.72 for height in heights],
        color=[looks[label].colour for label in plot.lengths],
        zorder=3,
    )
    axes.set_ylim(sheet.panel[1], 0)
    axes.set_yticks(middles, ["\n".join(lines) for lines in names.values()])
    for tick in axes.get_yticklabels():
        tick.set(fontsize=SIZES["text"], parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1.02 * max(plot.lengths.values()))
    if plot.is_relative:
        axes.axvline(1, color=GREYS[0], linewidth=0.8, linestyle=(0, (4, 3)), zorder=4)
    for middle, (label, length) in zip(middles, plot.lengths.items(), strict=True):
        axes.annotate(
            plot.texts[label],
            (length, middle),
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=SIZES["small"],
            va="center",
            annotation_clip=False,
            path_effects=halo(),
            zorder=5,
        )
    label_axes(axes, plot.across)
    return figure
