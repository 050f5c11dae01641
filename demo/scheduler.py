"""Many answers on one model: one forward at a time, each in its turn.

A model on one device does not get faster by being asked from several threads at once. So answers
take turns before every forward, and clients share the model's time alike, however many answers each
of them has asked for. That lets answers grow side by side, makes the time that the model works for
each of them measurable, keeps each answer's random draws its own, and is where an answer stops.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sightline.demo.turns import Turn, Turns


class Stopped(Exception):
    """Ends an answer in the middle; its text says why."""


class Work:
    """One answer's work on the model.

    Args:
        turns: Of the model.
        seconds: Longest time from now, waiting included.
        seed: Of what this work draws; None: it draws nothing.
        device: Whose memory is watched.
        client: Whose work it is.
    """

    def __init__(
        self,
        turns: Turns,
        seconds: float,
        seed: int | None = None,
        device: torch.device | None = None,
        client: str = "",
    ):
        self.turns = turns
        self.client = client
        self.seconds = seconds
        self.seed = seed
        self.device = device if device is not None and device.type == "cuda" else None
        self.peak: int | None = None
        self.forwards = 0
        self._deadline = time.monotonic() + seconds
        self._stop = threading.Event()
        self._worked = 0.0
        self._since: float | None = None
        self._random: list[Any] | None = None
        self._turn: Turn | None = None

    @property
    def worked(self) -> float:
        """Seconds in which it was this work's turn, so far."""
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return self._worked + running

    def stop(self) -> None:
        """Ends the work before its next forward."""
        self._stop.set()

    def check(self) -> None:
        """Raises `Stopped` when it is over."""
        if self._stop.is_set():
            raise Stopped("stopped")
        if time.monotonic() > self._deadline:
            raise Stopped(f"stopped after {self.seconds:g} s, the longest that is allowed here")

    def begin(self) -> None:
        """Waits for this work's turn; raises `Stopped` when it is over."""
        self._turn = self.turns.ask(self.client)
        self._turn.wait()
        if self.device is not None:
            torch.cuda.reset_peak_memory_stats(self.device)
        if self.seed is not None:
            self._restore_random()
        self._since = time.perf_counter()
        self.check()

    def step_back(self) -> None:
        """Lets others work; raises `Stopped` when it is over. Called before each forward."""
        self.finish()
        self.begin()
        self.forwards += 1

    def finish(self) -> None:
        """Gives up the turn."""
        turn, self._turn = self._turn, None
        if turn is None:
            return
        try:
            self._end()
        finally:
            self.turns.end(turn)

    def _end(self) -> None:
        if self.device is not None:
            torch.cuda.synchronize(self.device)  # or its kernels run in the next one's time
        self._worked, self._since = self.worked, None
        if self.device is not None:
            self.peak = max(self.peak or 0, torch.cuda.max_memory_allocated(self.device))
        if self.seed is not None:
            self._random = [torch.get_rng_state()]
            if self.device is not None:
                self._random.append(torch.cuda.get_rng_state(self.device))

    def _restore_random(self) -> None:
        if self._random is None:
            torch.manual_seed(self.seed or 0)
            return
        torch.set_rng_state(self._random[0])
        if self.device is not None:
            torch.cuda.set_rng_state(self._random[1], self.device)


class ForwardScheduler:
    """Hangs on a model, and makes whoever works on it take turns.

    Threads that work without a `Work` of this crew are left alone.
    """

    def __init__(self, model: Any):
        self.turns = Turns()
        self.device = model.device
        self._own = threading.local()
        self._hook = model.register_forward_pre_hook(self._before_forward)

    def work(self, seconds: float, seed: int | None = None, client: str = "") -> Work:
        return Work(self.turns, seconds, seed, self.device, client)

    @contextmanager
    def working(self, work: Work) -> Iterator[None]:
        """This thread works, from its first turn to its last."""
        try:
            work.begin()
            self._own.work = work
            yield
        finally:
            self._own.work = None
            work.finish()

    def clock(self) -> float:
        """Seconds that the model has worked for the work at hand."""
        return self._own.work.worked

    def leave(self) -> None:
        """Takes the hook off the model."""
        self._hook.remove()

    def _before_forward(self, *_: Any) -> None:
        work = getattr(self._own, "work", None)
        if work is not None:
            work.step_back()
