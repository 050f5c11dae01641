"""Background tasks of the server that run at fixed intervals."""

import ctypes
import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence

EVERY = 20.0  # seconds
LOG = logging.getLogger(__name__)


def tidy(tasks: Sequence[Callable[[], None]], every: float = EVERY) -> None:
    """Runs the tasks in a daemon thread every `every` seconds, then returns free memory."""

    def go() -> None:
        while True:
            time.sleep(every)
            for task in (*tasks, hand_back):
                try:
                    task()
                except Exception:  # the next round is due all the same
                    LOG.exception("a background task failed")

    threading.Thread(target=go, name="tidying", daemon=True).start()


def hand_back() -> None:
    """Gives memory that is free back to the system.

    glibc keeps what threads have freed: 60 to 90 MB after thirty comparisons, as pages in the
    middle of its arenas. Other C libraries give it back by themselves.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
