"""The README's two tables of the lab, from the summaries of its runs.

python benchmarks/lab_tables.py runs/table runs/attention runs/views

Prints Markdown. A run's `summary.json` holds every figure; which of them the README shows, and
under which name, is said here.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ONE_VIEW = "mvp:requests=Describe the image.,weights=1"
NAMES = {
    "greedy": "greedy",
    "sample": "sampling",
    "plausibility": "plausibility only, sampled",
    "vcd": "VCD",
    "vdd": "VDD none",
    "vdd:variant=unk": "VDD unk",
    "vdd:variant=both": "VDD both",
    "posthoc": "Post-Hoc none",
    "beam": "3 beams",
    "plausibility+beam": "3 beams, plausibility only",
    "damro": "DAMRO",
    "sid": "SID",
    "vasparse": "VASparse",
    "vasparse.paper+beam": "VASparse, all parts, 3 beams",
    "pai": "PAI",
    "pai.without_guidance": "PAI without guidance",
    "vaf": "VAF",
    "deco": "DeCo",
    "dola": "DoLa",
    "m3id": "M3ID",
    "icd": "ICD",
    "agla": "AGLA (its `SelfMatcher`)",
    "agla-full": "AGLA's control: full image twice",
    "vdgd": "VDGD",
    "vdgd-prefix": "VDGD's control: description as prefix",
    "mvp": "MVP",
    ONE_VIEW: "MVP's control: one view",
    "carve": "CARVE",
    "carve:share=1": "CARVE's control: full image twice",
}
SHIFTED = {
    "vcd": "VCD",
    "vdd": "VDD",
    "posthoc": "Post-Hoc",
    "damro": "DAMRO",
    "icd": "ICD",
    "vdgd": "VDGD",
    "mvp": "MVP",
}
"""Decoders whose yes-rate the shift of greedy is shown at."""
ABSENT = ("random", "popular", "adversarial")


def read(folders: list[Path]) -> dict[str, Any]:
    """The runs as one: rows, shifts and differences to greedy, of which all runs have the same."""
    found: dict[str, Any] = {"rows": {}, "shifts": {}, "differences": {}}
    for folder in folders:
        summary = json.loads((folder / "summary.json").read_text())
        for task, values in summary["tasks"].items():
            for name, row in values["rows"].items():
                known = found["rows"].setdefault((task, name), row)
                if known != row:
                    raise SystemExit(f"{folder}: {name} differs from the run before it in {task}")
            found["shifts"].update(values["shifts"])
        for entry in summary["differences"]:
            if entry["against"] == "greedy":
                key = entry["task"], entry["decoder"], entry["metric"]
                found["differences"][key] = entry
    return found


def interval(entry: dict[str, Any], sign: str = "") -> str:
    value, low, high = (entry[name] for name in ("value", "low", "high"))
    return f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def difference(found: dict[str, Any], *key: str) -> str:
    entry = found["differences"].get(key)
    return interval(entry, "+") if entry else ""


def captions(found: dict[str, Any]) -> Iterator[list[str]]:
    yield ["captions", "CHAIR_i", "recall", "tokens", "CHAIR_i - greedy", "recall - greedy"]
    for name, shown in NAMES.items():
        row = found["rows"].get(("caption", name))
        if row is not None:
            differences = [difference(found, "caption", name, m) for m in ("chair_i", "recall")]
            scores = [interval(row[metric]) for metric in ("chair_i", "recall")]
            yield [shown, *scores, f"{row['tokens']['value']:.1f}", *differences]


def presence(found: dict[str, Any]) -> Iterator[list[str]]:
    """Beams are left out: an answer of one word has none."""
    yield ["presence questions", "present", *ABSENT, "F1", "yes-rate", "F1 - greedy"]
    shown = {name: text for name, text in NAMES.items() if "beam" not in name}
    shifts = {
        f"yes-shift({name})": "greedy, yes shifted by "
        f"{found['shifts'].get(f'yes-shift({name})', 0):+.2f} (to {text}'s yes-rate)"
        for name, text in SHIFTED.items()
    }
    for name, text in {**shown, **shifts}.items():
        row = found["rows"].get(("presence", name))
        if row is not None:
            columns = ("present", *ABSENT, "f1", "yes_rate")
            scores = [f"{row[column]['value']:.3f}" for column in columns]
            yield [text, *scores, difference(found, "presence", name, "f1")]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="FOLDER")
    found = read(parser.parse_args().runs)
    for table in (captions, presence):
        header, *rows = table(found)
        for line in (header, ["---"] * len(header), *rows):
            print("|", " | ".join(line), "|")
        print()


if __name__ == "__main__":
    main()
