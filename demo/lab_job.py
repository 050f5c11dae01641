"""The lab's evaluation in the background, watched by one session."""

import threading
import time
from collections.abc import Sequence

from sightline.demo.comparison import SamplingSettings
from sightline.demo.host import Host
from sightline.demo.lab_run import LabRun, run
from sightline.demo.running import reason
from sightline.specs import Spec

SECONDS = 900.0  # the longest that is allowed


class LabJob:
    """One evaluation. It takes turns with the answers of others, and can be stopped.

    Args:
        host: Whose model is evaluated.
        ways: As the page's columns ask for.
        scenes: How many are drawn.
        drawing: How tokens are taken.
        client: Whose it is.
    """

    def __init__(
        self,
        host: Host,
        ways: Sequence[Spec],
        scenes: int,
        drawing: SamplingSettings,
        client: str = "",
    ):
        self.host, self.ways, self.scenes, self.drawing = host, tuple(ways), scenes, drawing
        self.client = client
        self.done, self.total = 0, 0
        self.result: LabRun | None = None
        self.refused = ""
        self._deadline = time.monotonic() + SECONDS
        self._stop = threading.Event()
        self._over = threading.Event()

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    @property
    def is_stopped(self) -> bool:
        return self._stop.is_set()

    def start(self) -> None:
        threading.Thread(target=self._run, name="lab run", daemon=True).start()

    def stop(self) -> None:
        """Ends it before its next batch; what is there by then is the result."""
        self._stop.set()

    def wait(self, seconds: float) -> None:
        """Until it is over, or time is up."""
        self._over.wait(seconds)

    def _run(self) -> None:
        try:
            scheduler = self.host.scheduler
            self.result = run(
                self.ways,
                self.scenes,
                self.host,
                self.drawing,
                progress=self._count,
                stopped=lambda: self._stop.is_set() or time.monotonic() > self._deadline,
                turn=lambda: scheduler.working(
                    scheduler.work(2 * SECONDS, self.drawing.seed, self.client)
                ),
                clock=scheduler.clock,
            )
        except Exception as error:
            self.refused = reason(error)
        finally:
            self._over.set()

    def _count(self, done: int, total: int) -> None:
        self.done, self.total = done, total
