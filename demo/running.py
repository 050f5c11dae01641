"""Answers under way: threads that give them, and what they have said so far."""

import logging
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers.generation import BaseStreamer

from sightline import lab
from sightline.demo.comparison import Answer
from sightline.demo.scheduler import Stopped, Work

UNEXPECTED = "this failed; whoever runs this page finds the reason in its log"
NO_MEMORY = "there is not enough memory: ask for fewer tokens, or show a smaller image"

logger = logging.getLogger(__name__)


class Running:
    """A comparison under way. Threads answer; `answers` is what they have said so far.

    Args:
        works: One for each answer.
        answer: Gives one, told to a streamer; raises `Stopped` when its work is over before it.
        processor: Turns tokens into text.
    """

    def __init__(
        self,
        works: Sequence[Work],
        answer: Callable[[int, Work, BaseStreamer], None],
        processor: Any,
    ):
        self._works, self._answer, self._processor = works, answer, processor
        self._changed = threading.Condition()
        self._version = self._seen = 0
        self._answers = [Answer() for _ in works]
        for number in range(len(works)):
            name = f"answer {number}"
            threading.Thread(target=self._run, args=(number,), name=name, daemon=True).start()

    @property
    def answers(self) -> tuple[Answer, ...]:
        with self._changed:
            return tuple(self._answers)

    @property
    def is_over(self) -> bool:
        return all(answer.is_over for answer in self.answers)

    def wait(self, seconds: float) -> bool:
        """Until something has changed since the last time, or time is up; whether it has."""
        with self._changed:
            changed = self._changed.wait_for(lambda: self._version > self._seen, seconds)
            self._seen = self._version
        return changed

    def stop(self, number: int | None = None) -> None:
        """Ends one answer, or all; what was said stays."""
        chosen = range(len(self._works)) if number is None else [number]
        for one in chosen:
            self._works[one].stop()
            self.change(one, state="stopped", note="stopped")

    def change(self, number: int, **fields: Any) -> None:
        """What is new about an answer; one that is over stays as it is."""
        with self._changed:
            if self._answers[number].is_over:
                return
            self._answers[number] = replace(self._answers[number], **fields)
            self._version += 1
            self._changed.notify_all()

    def _run(self, number: int) -> None:
        work = self._works[number]
        listener = Listener(self._processor, work, lambda **new: self.change(number, **new))
        try:
            self._answer(number, work, listener)
        except Stopped as error:
            self.change(number, state="stopped", note=str(error))
        except Exception as error:
            self.change(number, state="failed", note=reason(error))
        else:
            self.change(number, state="done", peak=work.peak)
        finally:  # a panic in a tokenizer is no Exception
            self.change(number, state="failed", note=UNEXPECTED)


def reason(error: Exception) -> str:
    """What a client is told: our own sentences, and nothing of what others raise."""
    if isinstance(error, torch.OutOfMemoryError):
        return NO_MEMORY
    frames = traceback.extract_tb(error.__traceback__)
    own = Path(lab.__file__).parents[1]
    if isinstance(error, ValueError) and frames and Path(frames[-1].filename).is_relative_to(own):
        return str(error)
    logger.error("an answer failed", exc_info=error)
    return UNEXPECTED


class Listener(BaseStreamer):
    """Hears of each token, while its answer has the turn.

    Args:
        processor: Turns tokens into text.
        work: Whose time is taken.
        tell: Called with what is new of the answer.
    """

    def __init__(self, processor: Any, work: Work, tell: Callable[..., None]):
        self._tokenizer = processor.tokenizer
        self._work = work
        self._tell = tell
        self._is_prompt = True
        self._ids: list[int] = []
        self._pieces: list[str] = []
        self._first: float | None = None
        self._forwards = 0

    def put(self, value: torch.Tensor) -> None:
        if self._is_prompt:
            self._is_prompt = False
            self._tell(state="answering")
            return
        now = self._work.worked
        if self._first is None:
            self._first, self._forwards = now, self._work.forwards
        for token in value.reshape(-1).tolist():
            self._ids.append(token)
            self._pieces.append(next_piece(self._tokenizer, self._ids, self._pieces))
        self._tell(
            ids=tuple(self._ids),
            pieces=tuple(self._pieces),
            first=self._first,
            # Votes are told at once, when all has been said: no token came later.
            later=now - self._first if self._work.forwards > self._forwards else 0.0,
        )

    def end(self) -> None:
        """The answer is complete."""


def next_piece(tokenizer: Any, ids: list[int], pieces: list[str]) -> str:
    """What the last token adds to the text; "" while it is the first half of a character."""
    text = tokenizer.decode(ids, skip_special_tokens=True).lstrip()
    return "" if text.endswith("\N{REPLACEMENT CHARACTER}") else text[len("".join(pieces)) :]
