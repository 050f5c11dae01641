"""Every family of vision-language models x every decoder x every way to generate.

    PYTHONPATH=build/vision python -m tests.families --markdown docs/families.md

What a cell tests is in conformance.py; here is the page that shows it.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # as pytest has it

import torch
import transformers
from conformance import METHODS_SHOWN, MODES, TEXT_METHODS, Conformance, TextConformance
from tiny_families import Tiny, families

COLUMNS = (*METHODS_SHOWN, *TEXT_METHODS)
REAL = "real template"
Row = dict[str, dict[str, str]]  # method -> mode -> outcome


def row_of(name: str, modes: Sequence[str] = tuple(MODES)) -> Row:
    """The cells of one family, in these ways to generate."""
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    tiny = Tiny.of(name)
    tokens, text = Conformance(tiny), TextConformance(tiny)
    return {
        **{method: {m: tokens.outcome(method, m) for m in modes} for method in METHODS_SHOWN},
        **{method: {m: text.outcome(method, m) for m in modes} for method in TEXT_METHODS},
    }


def real_template(name: str) -> dict[str, str]:
    """By decoder, "" if it answers with every checkpoint of the family; {} where there is none."""
    from checkpoints.decoders import answers  # needs torchvision
    from checkpoints.records import RECORDS

    found: dict[str, str] = {}
    for checkpoint, record in RECORDS.items():
        if record.family == name:
            for method, outcome in answers(checkpoint).items():
                found[method] = found.get(method) or outcome
    return found


def cell(found: Mapping[str, str]) -> tuple[str, str]:
    """What stands in the table, and the note to it: which modes do not work, and why.

    In the column of real templates it is decoders that do not.
    """
    if not found:
        return "untried", "no checkpoint of it is in tests/checkpoints"
    works = [mode for mode, outcome in found.items() if not outcome]
    if len(works) == len(found):
        return "yes", ""
    text = f"{len(works)} of {len(found)}" if works else "no"
    reasons: dict[str, list[str]] = {}
    for mode, outcome in found.items():
        if outcome:
            reasons.setdefault(outcome, []).append(mode)
    if len(reasons) == 1 and not works:
        return text, next(iter(reasons))
    return text, "; ".join(f"{', '.join(modes)}: {reason}" for reason, modes in reasons.items())


def outcomes(text: str, note: str) -> dict[str, str]:
    """Back from a cell and its note: by way to generate, "" or why not."""
    if text == "no" and note.split(", ")[0].split(": ")[0] not in MODES:
        return dict.fromkeys(MODES, note)
    found = dict.fromkeys(MODES, "")
    for part in note.split("; ") if note else ():
        modes, reason = part.split(": ", 1)
        found.update(dict.fromkeys(modes.split(", "), reason))
    return found


@dataclass(frozen=True)
class Table:
    """What the committed page says: cells with their notes, and families without a model.

    Args:
        cells: By family and method, as `cell` makes them.
        reasons: By family, why there is no row.
        transformers, torch: Releases that it was made with.
    """

    cells: Mapping[str, Mapping[str, tuple[str, str]]]
    reasons: Mapping[str, str]
    transformers: str = transformers.__version__
    torch: str = torch.__version__.split("+")[0]

    @classmethod
    def of(cls, rows: Mapping[str, Row], real: Mapping[str, Mapping[str, str]]) -> "Table":
        cells = {
            name: {m: cell(o) for m, o in {**row, REAL: real[name]}.items()}
            for name, row in rows.items()
        }
        found = families()
        return cls(cells, {n: f.why_untested for n, f in found.items() if f.why_untested})

    def markdown(self) -> str:
        notes: dict[str, int] = {}
        lines = [f"| family | {' | '.join((*COLUMNS, REAL))} |"]
        lines.append("|---" * (len(COLUMNS) + 2) + "|")
        for name, row in self.cells.items():
            shown = [name]
            for text, note in row.values():
                number = notes.setdefault(note, len(notes) + 1) if note else 0
                shown.append(f"{text} [{number}]" if number else text)
            lines.append(f"| {' | '.join(shown)} |")
        listed = [f"{number}. {note}" for note, number in notes.items()]
        absent = [f"| {name} | {why} |" for name, why in self.reasons.items()]
        return INTRODUCTION.format(
            command=COMMAND,
            transformers=self.transformers,
            torch=self.torch,
            contrastive=", ".join(CONTRASTIVE),
            working=sum(self.serves(name) for name in self.cells),
            more=sum(self.serves(name, by_norm=True) for name in self.cells),
            families=len(self.cells) + len(self.reasons),
            modes=", ".join(MODES),
            table="\n".join(lines),
            notes="\n".join(listed),
            absent="\n".join(["| family | why there is no row |", "|---|---|", *absent]),
        )

    def serves(self, name: str, by_norm: bool = False) -> bool:
        """Whether every contrastive decoder works, in every mode that the model itself knows."""
        row = self.cells[name]
        asked = [m if m != "damro" or not by_norm else "damro, norm" for m in CONTRASTIVE]
        found = [reason for m in asked for reason in outcomes(*row[m]).values()]
        return all(
            not reason or reason.startswith("generate itself") for reason in found
        ) and not all(found)

    @classmethod
    def read(cls, text: str) -> "Table":
        notes = {n: note for n, note in re.findall(r"^(\d+)\. (.+)$", text, re.MULTILINE)}
        lines = [
            [part.strip() for part in line.strip("|").split("|")]
            for line in text.splitlines()
            if line.startswith("| ")
        ]
        (_, *methods), *lines = lines
        cells, reasons = {}, {}
        for name, *parts in lines:
            if len(parts) == len(methods):
                found = [re.fullmatch(r"(.+?)(?: \[(\d+)\])?", part) for part in parts]
                row = [(m[1], notes[m[2]] if m[2] else "") for m in found if m]
                cells[name] = dict(zip(methods, row, strict=True))
            elif name != "family":
                (reasons[name],) = parts
        made_with = re.search(r"with transformers (\S+) and torch (\S+);", text)
        assert made_with, "the page names the releases that it was made with"
        return cls(cells, reasons, *made_with.groups())


CONTRASTIVE = ("vcd", "vdd", "damro", "sid", "m3id", "pai", "icd", "agla")
COMMAND = "PYTHONPATH=build/vision python -m tests.families --markdown docs/families.md"
INTRODUCTION = """\
# Families of models

Every vision-language family that transformers offers with `AutoModelForImageTextToText`, as a tiny
random model, with every decoder and in every way to generate ({modes}). Of {families} families
every contrastive decoder ({contrastive}) works with {working}, and with {more} where DAMRO may
choose by `score="norm"`.

Made by `{command}` with transformers {transformers} and torch {torch};
`tests/test_families.py` holds each cell to the code. In a cell that works,

- all of the method's branches run and none counts: the tokens are `generate`'s own;
- with strong settings the branches' logits of the first two tokens (with beams, of the first) are
  those of full forwards of one row without a cache, and the scores are the method's formula of
  them, in float32 within 0.003 of logits of about 10.

Less is tested of five columns, whose arithmetic has tests of its own on fewer families: of `damro`
the expert's logits and the scores (the amateur's tokens are chosen by the vision tower; `damro,
norm` is tested whole), and of `agla, own`, `vdgd`, `mvp` and `carve` that they answer, and a row of
a batch as it is answered alone. From `icd` on the columns need a processor: here one that splits
text into letters and makes every image 32 pixels wide. `PostHocDebias` has no column: it reads
the first logits of the two branches of `vdd`, and is tested with every family that has them.

The last column, "real template", counts the decoders that answer a question about one image with
the processor, the special tokens and the prompts of published checkpoints of the family, on a tiny
model of the same class (DAMRO also with `score="norm"`, VDD also with `variant="unk"`; for other
families `untried`). `tests/checkpoints/prompts.txt` shows what each of them reads.

`yes`: all six ways. `no`: none of them. The numbers lead to the reasons below; "refused" is an
error of the library's that says why, before the first token; "generate itself does not" is what the
model does without a decoder.

{table}

{notes}

## Families without a row

{absent}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Fills the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.families", description=__doc__)
    parser.add_argument("--markdown", type=Path, help="write the page here; else print it")
    parser.add_argument("--only", nargs="*", help="families, for a look; all without it")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(arguments)
    names = [name for name, family in families().items() if not family.why_untested]
    names = [name for name in names if not options.only or name in options.only]
    rows, real = {}, {}
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        for name, row in zip(names, pool.map(row_of, names), strict=True):
            rows[name] = row
            print(f"{len(rows)} of {len(names)}: {name}", file=sys.stderr, flush=True)
        real.update(zip(names, pool.map(real_template, names), strict=True))
    table = Table.of(rows, real)
    if options.markdown is None:
        print(table.markdown())
    else:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(table.markdown())


if __name__ == "__main__":
    main()
