"""Tables and plots of what `benchmarks/decoding.py` measured, from one file of it or several.

    python benchmarks/report.py a.json b.json --markdown table.md --plot plot.png

Runs stand one under another as they were measured. A file's numbers are of its own machine, which
is named above its tables.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import views
from rows import CACHES
from targets import verdicts
from timing import Row, Spread, ratios, spread

LEGEND = (
    "Median (lowest to highest round). Ratios are to greedy with the same cache in the same round; "
    "the last column is what the peak is above greedy's, in caches of the row's amateurs at full "
    "length."
)
HEAD = (
    "decoder",
    "cache",
    "first token, ms",
    "ms / token",
    "first token",
    "per token",
    "peak MB",
    "peak",
    "caches",
)

COLORS = {cache: f"C{number}" for number, cache in enumerate(CACHES)}
TARGET = "C3"


def describe(row: Row, greedy: Row, run: dict[str, Any]) -> dict[str, Any]:
    """A row as it is written down: beside what was measured, the ratios to greedy."""
    model = run["model_bytes"]
    return {
        "key": row.key,
        "decoder": row.name,
        "cache": row.cache,
        "amateurs": row.amateurs,
        "first_ms": asdict(spread(row.first)),
        "token_ms": asdict(spread(row.per_token)),
        "first_ratio": asdict(spread(ratios(row.first, greedy.first))),
        "token_ratio": asdict(spread(ratios(row.per_token, greedy.per_token))),
        "peak_mb": (model + row.peak) / 1e6,
        "peak_ratio": (model + row.peak) / (model + greedy.peak),
        "beyond": beyond(row, greedy, run),
        "rounds": {"first": row.first, "per_token": row.per_token},
    }


def beyond(row: Row, greedy: Row, run: dict[str, Any]) -> float | None:
    """The peak above greedy's, in keys and values of all amateurs as long as the expert's."""
    if not row.amateurs:
        return None
    keys = run["batch"] * (run["prompt"] + run["tokens"]) * run["key_bytes"]
    return (row.peak - greedy.peak) / (row.amateurs * keys)


def title(run: dict[str, Any]) -> str:
    whole = "" if "rows" in run else "whole answers, "
    return f"{run['model']}, {run['dtype']}, batch {run['batch']}, {whole}{run['tokens']} tokens"


def table(run: dict[str, Any]) -> str:
    """Markdown of one run."""
    lines = [
        [
            row["decoder"],
            row["cache"],
            spelled(row["first_ms"], 0),
            spelled(row["token_ms"], 2),
            spelled(row["first_ratio"], 2, "x"),
            spelled(row["token_ratio"], 2, "x"),
            f"{row['peak_mb']:.0f}",
            f"{row['peak_ratio']:.2f}x",
            "" if row["beyond"] is None else f"{row['beyond']:.2f}",
        ]
        for row in run["rows"]
    ]
    return aligned(HEAD, lines, 2)


def spelled(found: dict[str, float], digits: int, unit: str = "") -> str:
    low, high = (f"{found[name]:.{digits}f}" for name in ("low", "high"))
    return f"{found['median']:.{digits}f}{unit} ({low} to {high})"


def aligned(head: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> str:
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *lines))


def target_table(found: Sequence[dict[str, Any]]) -> str:
    lines = [
        [
            line["target"],
            line["row"],
            line["cache"],
            f"{line['model']}, {line['dtype']}, {line['batch']} x {line['tokens']}",
            f"{line['sense']} {line['limit']:.2f}",
            "" if line["measured"] is None else spelled(as_spread(line), 2),
            line["verdict"],
        ]
        for line in found
    ]
    head = ("target", "row", "cache", "run", "wanted", "measured", "verdict")
    return aligned(head, lines, len(head))


def as_spread(line: dict[str, Any]) -> dict[str, float]:
    return asdict(Spread(line["measured"], line["low"], line["high"]))


def markdown(result: dict[str, Any]) -> str:
    """One file's tables: machine, command, runs and targets."""
    machine = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    parts = [f"`{result['command']}`; {machine}", LEGEND]
    parts += [section(run) for run in result["runs"]]
    return "\n\n".join([*parts, targets(result)]) + "\n"


def section(run: dict[str, Any]) -> str:
    """Markdown of one run under its heading."""
    failed = [f"FAILED, not timed: {failure}" for failure in run.get("failures", [])]
    parts = [f"### {title(run)}", *run.get("notes", []), *failed]
    parts.append(table(run) if "rows" in run else views.table(run["views"]))
    return "\n\n".join(parts)


def targets(result: dict[str, Any]) -> str:
    """Markdown: a line for each target and row."""
    found = verdicts(result)
    return "### Targets\n\n" + (target_table(found) if found else "None is set for these runs.")


def plot(results: Sequence[dict[str, Any]], path: Path) -> str:
    """Time per token over greedy's, a panel for each run. Says what it did.

    Bars are medians and lines across their ends the lowest and highest round; a mark in red is the
    target of that row.
    """
    try:
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch
    except ImportError as error:
        return f"no plot: {error}"
    runs = [(result, run) for result in results for run in result["runs"] if "rows" in run]
    if not runs:
        return "no plot: nothing was measured"
    columns = min(2, len(runs))
    height = max(len(run["rows"]) for _, run in runs)
    lines = -(-len(runs) // columns)
    figure, panels = pyplot.subplots(
        lines,
        columns,
        figsize=(5 * columns, lines * (1 + 0.2 * height)),
        squeeze=False,
        layout="constrained",
    )
    for panel, (result, run) in zip(panels.flat, runs, strict=False):
        draw(panel, run, limits(result, run))
    for panel in list(panels.flat)[len(runs) :]:
        panel.axis("off")
    used = {row["cache"] for _, run in runs for row in run["rows"]}
    handles = [
        Patch(color=COLORS[cache], alpha=0.75, label=cache) for cache in CACHES if cache in used
    ]
    handles.append(Line2D([], [], color=TARGET, linewidth=2, label="target"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return f"plot: {path}"


def limits(result: dict[str, Any], run: dict[str, Any]) -> dict[tuple[str, str], float]:
    """The largest ratio per token that a row may have, by key and cache."""
    return {
        (line["row"], line["cache"]): line["limit"]
        for line in verdicts({**result, "runs": [run]})
        if line["measure"] == "per_token"
    }


def draw(panel: Any, run: dict[str, Any], limits: dict[tuple[str, str], float]) -> None:
    rows = run["rows"]
    for place, row in enumerate(rows):
        found = row["token_ratio"]
        reach = [[found["median"] - found["low"]], [found["high"] - found["median"]]]
        panel.barh(
            place,
            found["median"],
            xerr=reach,
            color=COLORS[row["cache"]],
            alpha=0.75,
            error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "0.25"},
        )
        limit = limits.get((row["key"], row["cache"]))
        if limit is not None:
            panel.vlines(limit, place - 0.45, place + 0.45, color=TARGET, linewidth=2)
    panel.set_yticks(range(len(rows)), [row["decoder"] for row in rows], fontsize=8)
    panel.invert_yaxis()
    panel.axvline(1, color="0.4", linewidth=0.8)
    panel.set_xlabel("time per token / greedy's (same cache)", fontsize=8)
    panel.tick_params(axis="x", labelsize=8)
    panel.set_title(title(run), fontsize=9)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+", help="JSON of decoding.py")
    parser.add_argument("--markdown", type=Path, help="write the tables")
    parser.add_argument("--plot", type=Path, help="draw time per token, a PNG")
    options = parser.parse_args()
    results = [json.loads(file.read_text()) for file in options.files]
    text = "\n".join(markdown(result) for result in results)
    print(text)
    if options.markdown:
        options.markdown.write_text(text)
    if options.plot:
        print(plot(results, options.plot))


if __name__ == "__main__":
    main()
