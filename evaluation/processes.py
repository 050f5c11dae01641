"""Several processes, each with batches and a device of its own.

    accelerate launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no \\
        --dynamo_backend no -m sightline.evaluation lab --decoder vdd --out runs/x

`--multi_gpu` is what makes accelerate 1.15 start more than one process, on a machine without GPUs
too: with `--num_processes 2` alone it starts one there, and so it does with `--cpu`. Answers go to
one folder, which all machines must see.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any

LONGEST_WAIT = timedelta(days=30)  # of a process that has done its share for the others
LOOK_EVERY = 1.0  # seconds between two looks for the launcher
MEETING = 60.0  # seconds in which it answers at its port
STARTED_ONE = (
    "accelerate was asked for several processes and started one: add --multi_gpu, on a machine "
    "without GPUs too"
)


@dataclass(frozen=True)
class Processes:
    """This process among those of a run.

    Args:
        rank: Its place, 0 to `count` - 1.
        count: How many there are.
        local: Its place among those of this machine.
        state: What they wait for one another with; None where there is one process.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    state: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this one opens and closes the run, and prints."""
        return self.rank == 0

    def wait(self) -> None:
        """Returns when all processes have come here.

        Whoever waits has nothing to save, and Python sees no signal until the wait is over: one
        that ends a run ends the process at once.
        """
        if self.state is not None:
            with handled(signal.SIG_DFL, signal.SIGTERM, signal.SIGINT):
                self.state.wait_for_everyone()

    def device(self, name: str) -> str:
        """The device of this process: "cuda" is another GPU for each of a machine."""
        import torch

        if name != "cuda" or self.count == 1:
            return name
        return f"cuda:{self.local % max(torch.cuda.device_count(), 1)}"


class Terminated(KeyboardInterrupt):
    """SIGTERM came: the run ends as it does by Ctrl+C."""


def terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one is not waited for
    raise Terminated


@contextmanager
def handled(handler: Any, *numbers: signal.Signals) -> Iterator[None]:
    """Signals have another handler meanwhile, where this thread is the one that gets them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def exit_status(error: KeyboardInterrupt) -> int:
    """Of a command that a signal has ended, as shells have it."""
    return 128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)


def end_with_launcher() -> None:
    """Ends this process soon after the one that started it has ended, by a kill too.

    Lines that are half written are cut off when the run is continued.
    """
    launcher = os.getppid()

    def watch() -> None:
        is_there = not has_lost_launcher()
        while is_there and os.getppid() == launcher:
            time.sleep(LOOK_EVERY)
        os._exit(1)

    threading.Thread(target=watch, name="launcher", daemon=True).start()


def has_lost_launcher() -> bool:
    """Whether torch's launcher has ended already: nobody listens where its processes meet.

    The parent of this process is another one then, and never changes.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return False
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        socket.create_connection(place, MEETING).close()
    except ConnectionRefusedError:
        return True
    except OSError:  # another machine, which is slow
        return False
    return False


def find_processes() -> Processes:
    """The process that this is, by the environment that a launcher has set.

    Raises:
        ValueError: There are several, and accelerate is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Processes()
    try:
        from accelerate import PartialState
    except ImportError:
        raise ValueError(
            'several processes need accelerate: pip install "sightline-vlm[eval]"'
        ) from None
    # They exchange no tensors and only wait, which the CPU's backend does without a GPU's memory.
    state = PartialState(cpu=True, timeout=LONGEST_WAIT)
    return Processes(state.process_index, state.num_processes, state.local_process_index, state)


def started_one() -> bool:
    """Whether accelerate was asked for several processes and has started this one alone."""
    names = os.environ.keys()
    return {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"} <= names and "WORLD_SIZE" not in names
