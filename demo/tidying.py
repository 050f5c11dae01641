"""What the server does now and then, whether somebody comes or not."""

import ctypes
import sys
import threading
import time
from collections.abc import Callable, Sequence

EVERY = 20.0  # seconds


def tidy(tasks: Sequence[Callable[[], None]], every: float = EVERY) -> None:
    """Does the tasks in the background, for good; the last of them hands memory back."""

    def go() -> None:
        while True:
            time.sleep(every)
            for task in (*tasks, hand_back):
                task()

    threading.Thread(target=go, name="tidying", daemon=True).start()


def hand_back() -> None:
    """Gives memory that is free back to the system.

    glibc keeps what threads have freed: 60 to 90 MB after thirty comparisons, as pages in the
    middle of its arenas. Other C libraries give it back by themselves.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
