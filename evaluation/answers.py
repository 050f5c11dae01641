"""Answers on disk: one JSON line each, written as they come, and nothing lost by a kill."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Key = tuple[str, str, int, str]


@dataclass(frozen=True)
class Answer:
    """One answer of one decoder.

    Args:
        task: "presence" or "caption".
        decoder: The label of the decoder; its settings stand in `run.json`.
        scene: Index of the scene.
        object: The object asked about; empty for a caption.
        kind: The kind of question; empty for a caption.
        question: The text of the question.
        answer: What was said, without special tokens.
        tokens: Length of the answer, without the end of sequence.
        batch: Index of the batch of its task that it was answered in.
        ms: Time of that whole batch in `generate`, milliseconds.
        first_ms: Time until the batch's first tokens; None where no step was seen.
        steps: Tokens that the batch's loop made for each row.
        peak_mb: The device's peak of allocated memory in the batch; None on a CPU.
        logits: For greedy presence, the first token's best "yes", best "no" and best other logit.
    """

    task: str
    decoder: str
    scene: int
    object: str
    kind: str
    question: str
    answer: str
    tokens: int
    batch: int
    ms: float
    first_ms: float | None
    steps: int
    peak_mb: float | None
    logits: tuple[float, float, float] | None = None

    @property
    def key(self) -> Key:
        return self.task, self.decoder, self.scene, self.object


def append(path: Path, answers: Sequence[Answer]) -> None:
    """Adds the answers and hands them to the system before returning."""
    lines = [json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers]
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(lines))


def repair(path: Path) -> None:
    """Cuts off a last line that a killed run left half-written."""
    if not path.exists():
        return
    whole = path.read_bytes().rfind(b"\n") + 1
    if whole < path.stat().st_size:
        os.truncate(path, whole)


def read(path: Path) -> dict[Key, Answer]:
    """The answers of a file by key, in its order.

    Raises:
        ValueError: For a line that is no answer and for an answer that stands there twice.
    """
    answers: dict[Key, Answer] = {}
    if not path.exists():
        return answers
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                fields = json.loads(line)
                fields["logits"] = fields["logits"] and tuple(fields["logits"])
                answer = Answer(**fields)
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path}, line {number} is no answer: {error}") from None
            if answer.key in answers:
                raise ValueError(f"{path}, line {number} answers {answer.key} a second time")
            answers[answer.key] = answer
    return answers


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes the whole file or none of it."""
    draft = path.with_suffix(".draft")
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    draft.write_text(text + "\n", encoding="utf-8")
    draft.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def open_run(out: Path, header: Mapping[str, Any], resume: bool) -> dict[Key, Answer]:
    """Starts or continues a run in a folder: what it has answered already.

    Args:
        out: Holds `run.json` and `answers.jsonl`.
        header: Under "fixed", what must be the same for answers to stand in one file; the rest is
            kept as the first run wrote it.
        resume: Whether to continue.

    Raises:
        ValueError: Where a run lies there and `resume` is not asked for, or its fixed settings
            differ.
    """
    run, answers = out / "run.json", out / "answers.jsonl"
    out.mkdir(parents=True, exist_ok=True)
    if not run.exists():
        if answers.exists():
            raise ValueError(f"{answers} has no run.json beside it: choose another --out")
        write_json(run, header)
        return {}
    if not resume:
        raise ValueError(
            f"{out} already holds a run: pass --resume to continue it, or another --out"
        )
    saved = read_json(run)["fixed"]
    wanted = json.loads(json.dumps(header["fixed"]))
    changed = [
        f"{name}: {saved.get(name)} then, {wanted.get(name)} now"
        for name in {**saved, **wanted}
        if saved.get(name) != wanted.get(name)
    ]
    if changed:
        raise ValueError(
            f"{out} holds a run with other settings, choose another --out. " + "; ".join(changed)
        )
    repair(answers)
    return read(answers)
