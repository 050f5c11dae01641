"""One press of "Compare": what was asked, and what comes of it."""

from dataclasses import replace
from threading import Lock

from sightline.demo.comparison import Answer, Comparison
from sightline.demo.host import Host
from sightline.demo.running import Running

STOPPED = "stopped"


class ComparisonRun:
    """A comparison on its way from the queue to its last token, of one session.

    It can be stopped at any time, before it has begun too.

    Args:
        comparison: What was asked.
        places: The column of each way.
        answers: Where it is over already, as one that was loaded.
    """

    def __init__(
        self,
        comparison: Comparison,
        places: tuple[int, ...],
        answers: tuple[Answer, ...] | None = None,
    ):
        self.comparison = comparison
        self.places = places
        self.is_left = False
        self._answers = answers or tuple(Answer() for _ in comparison.ways)
        self._running: Running | None = None
        self._is_followed = False
        self._lock = Lock()

    @property
    def weights(self) -> dict[int, int]:
        """Bytes of what it holds, by identity."""
        return self.comparison.image.weights

    @property
    def answers(self) -> tuple[Answer, ...]:
        """What has been said so far."""
        running = self._running
        return self._answers if running is None else running.answers

    @property
    def is_over(self) -> bool:
        return all(answer.is_over for answer in self.answers)

    @property
    def has_begun(self) -> bool:
        return self._running is not None

    def claim(self) -> bool:
        """Whether nobody has claimed it before: one event alone waits for its turn and shows it."""
        with self._lock:
            was_followed, self._is_followed = self._is_followed, True
        return not was_followed

    def leave(self) -> None:
        """Ends all answers; the page shows others now."""
        self.is_left = True
        self.stop()

    def begin(self, host: Host, client: str) -> None:
        """Answers start, all but those that have been stopped by now."""
        with self._lock:
            if self._running is not None or self.is_over:
                return
            running = host.start(self.comparison, client)
            for number, answer in enumerate(self._answers):
                if answer.is_over:
                    running.stop(number)
            self._running = running

    def wait(self, seconds: float) -> bool:
        """Until something has changed, or time is up; whether it has."""
        return self._running is not None and self._running.wait(seconds)

    def stop(self, number: int | None = None) -> None:
        """Ends one answer, or all; what was said stays."""
        with self._lock:
            if self._running is not None:
                self._running.stop(number)
                return
            self._answers = tuple(
                replace(answer, state="stopped", note=STOPPED)
                if number in (None, i) and not answer.is_over
                else answer
                for i, answer in enumerate(self._answers)
            )
