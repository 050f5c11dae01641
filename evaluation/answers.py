"""Answers on disk: one JSON line each, written as they come, and nothing lost by a kill.

Of several processes each writes a file of its own, `answers.jsonl` and `answers.<rank>.jsonl`. At
the end they are merged into the first: by task, batch, setup and item.
"""

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sightline.messages import LONGEST, clipped, short

MEASURED = ("ms", "first_ms", "peak_mb")  # what differs between two runs of one batch
Key = tuple[str, str, str]
Asked = Mapping[tuple[str, str], str]
"""The question of each task and id."""


@dataclass(frozen=True)
class Answer:
    """One answer of one decoder.

    Args:
        task: The name of the task.
        id: Of the question, unique in its task.
        decoder: The label of the decoder.
        question: The prompt, without the image's marker.
        answer: What was said, without special tokens.
        tokens: Length of the answer, without the end of sequence.
        batch: Index of the batch of its task that it was answered in.
        settings: Of the decoder.
        seed: What the batch's samples were drawn from.
        versions: Of the packages, by name.
        ms: Time of that whole batch in `generate`, milliseconds.
        first_ms: Time until the batch's first tokens; None where no step was seen.
        steps: Tokens that the batch's loop made for each row.
        peak_mb: The device's peak of allocated memory in the batch; None on a CPU.
        logits: For greedy yes/no, the first token's best "yes", best "no" and best other logit.
        error: Why the image or the question's line could not be read; None where it could.
    """

    task: str
    id: str
    decoder: str
    question: str
    answer: str
    tokens: int
    batch: int
    settings: Mapping[str, Any]
    seed: int
    versions: Mapping[str, str]
    ms: float
    first_ms: float | None
    steps: int
    peak_mb: float | None
    logits: tuple[float, float, float] | None = None
    error: str | None = None

    @property
    def key(self) -> Key:
        return self.task, self.decoder, self.id

    def is_again(self, other: "Answer") -> bool:
        """Whether both say the same, whatever it took."""
        return replace(self, **{name: getattr(other, name) for name in MEASURED}) == other

    def line(self) -> str:
        return json.dumps(vars(self), ensure_ascii=False, allow_nan=False) + "\n"


# One file


def part(out: Path, rank: int) -> Path:
    """The answers file of a process."""
    return out / ("answers.jsonl" if rank == 0 else f"answers.{rank}.jsonl")


def parts(out: Path) -> list[Path]:
    """The answers files of a folder, by rank."""
    others = [path for path in out.glob("answers.*.jsonl") if path.suffixes[0][1:].isdecimal()]
    first = [path for path in (part(out, 0),) if path.exists()]
    return first + sorted(others, key=lambda path: int(path.suffixes[0][1:]))


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """A full disk ends the run with a sentence that says what is kept."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{path} cannot be written ({error.strerror or error}): the run has stopped, and what "
            "was answered before is kept. Make room, then continue with --resume"
        ) from error


def append(path: Path, answers: Sequence[Answer]) -> None:
    """Adds the answers and hands them to the system before returning.

    Raises:
        OSError: The disk is full or gone; a line may stand half-written, which `repair` cuts off.
    """
    lines = "".join(answer.line() for answer in answers).encode()
    with saving(path), path.open("ab") as file:
        file.write(lines)


def repair(path: Path) -> None:
    """Cuts off a last line that a killed run left half-written."""
    if not path.exists():
        return
    whole = path.read_bytes().rfind(b"\n") + 1
    if whole < path.stat().st_size:
        os.truncate(path, whole)


def read(
    path: Path, asked: Asked | None = None, decoders: Collection[str] | None = None
) -> dict[Key, Answer]:
    """The answers of a file by key, in its order.

    An answer that stands there twice, equal but for times and memory, counts once: two runs at a
    time, as older versions let happen, leave such.

    Args:
        path: May not exist.
        asked: The questions of the run; None: not checked.
        decoders: The labels of the run; None: not checked.

    Raises:
        ValueError: For a line that is no answer, two different answers to a question, and answers
            to other questions or of other decoders.
    """
    answers: dict[Key, Answer] = {}
    if not path.exists():
        return answers
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}, line {number}"
            try:
                fields = json.loads(line, parse_constant=refuse_constant)
                fields["logits"] = fields["logits"] and tuple(fields["logits"])
                answer = Answer(**fields)
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise ValueError(f"{place} is no answer: {clipped(error)}") from None
            if answer.key in answers:
                if answer.is_again(answers[answer.key]):
                    continue
                raise ValueError(f"{place} answers {answer.key} a second time, and differently")
            if asked is not None and asked.get((answer.task, answer.id)) != answer.question:
                raise ValueError(
                    f"{place} answers {answer.id} of {answer.task}, "
                    f"{short(answer.question)}, which is "
                    "not asked here: this is an answers file from another question file"
                )
            if decoders is not None and answer.decoder not in decoders:
                raise ValueError(
                    f"{place} is an answer of {answer.decoder}, which is no decoder of this run: "
                    f"there are {', '.join(decoders)}"
                )
            answers[answer.key] = answer
    return answers


# All files of a run


def read_all(
    out: Path, asked: Asked | None = None, decoders: Collection[str] | None = None
) -> dict[Key, Answer]:
    """The answers of all processes by key.

    An answer that stands in two files, equal but for times and memory, counts once: a run that is
    killed while its files are merged leaves such.

    Raises:
        ValueError: As `read`, and where two files answer a question differently.
    """
    answers: dict[Key, Answer] = {}
    for path in parts(out):
        for key, answer in read(path, asked, decoders).items():
            if not answers.setdefault(key, answer).is_again(answer):
                raise ValueError(
                    f"{path} answers {key}, and another answers file of {out} does so differently"
                )
    return answers


def merge(out: Path, answers: Mapping[Key, Answer], order: Sequence[Key]) -> dict[Key, Answer]:
    """Leaves all answers in `answers.jsonl`, in order, and no other answers file; returns them."""
    ordered = {key: answers[key] for key in order}
    first, *others = [part(out, 0), *(path for path in parts(out) if path != part(out, 0))]
    text = "".join(answer.line() for answer in ordered.values())
    if not first.exists() or first.read_bytes() != text.encode():
        write_whole(first, text)
    for path in others:
        path.unlink()
    return ordered


def write_whole(path: Path, text: str) -> None:
    """Writes the whole file or none of it."""
    draft = path.with_suffix(".draft")
    with saving(path):
        draft.write_bytes(text.encode())
        draft.replace(path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes the whole file or none of it."""
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def read_run(out: Path) -> dict[str, Any]:
    """What a run's `run.json` says, or `ValueError` for another file of that name."""
    path = out / "run.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        content = clipped(error)
    if not isinstance(content, dict) or not isinstance(content.get("fixed"), dict):
        raise ValueError(
            f"{path} is not what a run has written ({clipped(content, LONGEST)}): choose another "
            "--out"
        )
    return content


# A run's folder


def check_folder(out: Path, resume: bool) -> None:
    """Raises `ValueError` where a run lies there and `resume` is not asked for."""
    run, answers = out / "run.json", parts(out)
    if answers and not run.exists():
        raise ValueError(f"{answers[0]} has no run.json beside it: choose another --out")
    if run.exists() and not resume:
        raise ValueError(
            f"{out} already holds a run: pass --resume to continue it, or another --out"
        )


def check_run(out: Path, header: Mapping[str, Any]) -> None:
    """Raises `ValueError` where the run that lies there is another one."""
    saved = read_run(out)
    wanted = json.loads(json.dumps(header, allow_nan=False))
    changed = differences(saved["fixed"], wanted["fixed"])
    changed += [f"{name}: now, not then" for name in wanted if name not in saved]
    if changed:
        raise ValueError(
            f"{out} holds a run with other settings, choose another --out. " + "; ".join(changed)
        )


def differences(saved: Mapping[str, Any], wanted: Mapping[str, Any], inside: str = "") -> list[str]:
    """Where two plain values differ, down to the setting, as messages say it."""
    found = []
    for name in {**saved, **wanted}:
        then, now = saved.get(name), wanted.get(name)
        if isinstance(then, dict) and isinstance(now, dict):
            found += differences(then, now, f"{inside}{name}.")
        elif name not in wanted:
            found.append(f"{inside}{name}: then, not now")
        elif name not in saved:
            found.append(f"{inside}{name}: now, not then")
        elif then != now:
            found.append(f"{inside}{name}: {short(then)} then, {short(now)} now")
    return found


def open_run(out: Path, header: Mapping[str, Any], resume: bool) -> None:
    """Starts or continues a run in a folder; last lines that a kill cut off are repaired.

    Args:
        out: Holds `run.json` and the answers.
        header: Under "fixed", what must be the same for answers to stand in one file; the rest is
            kept as the first run wrote it.
        resume: Whether to continue.

    Raises:
        ValueError: Where a run lies there and `resume` is not asked for, or its fixed settings
            differ.
    """
    check_folder(out, resume)
    if not (out / "run.json").exists():
        write_json(out / "run.json", header)
    check_run(out, header)
    for path in parts(out):
        repair(path)
