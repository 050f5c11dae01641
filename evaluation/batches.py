"""Which questions are answered together, and their preparation while others are answered."""

import multiprocessing
import os
import signal
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from sightline.evaluation.benchmark import Benchmark, Item, Task, asked

STREAM = 20261122  # keeps samples of this module apart from others of the same seed
AHEAD = 2  # batches that are prepared before they are asked for
A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Batch:
    """Items of one task that are answered together, at a fixed place in the run.

    Args:
        task: Of all its items.
        index: Its place among the batches of the task.
        place: Its place among all batches.
        seed: What its samples are drawn from, by every setup.
        items: In order of their length.
    """

    task: Task
    index: int
    place: int
    seed: int
    items: tuple[Item, ...]


def cut(benchmark: Benchmark, tokenizer: Any, size: int, seed: int) -> list[Batch]:
    """The batches of a benchmark, which follow from it, the tokenizer and the size alone.

    Items of a task are sorted by the tokens of their text, then by the width and height of their
    image where the benchmark has `size(item)`, so that little is padded; ties stay in order.
    Malformed lines have batches of their own at the end of their task: the others are those of a
    file without these lines.

    Args:
        size: Items in a batch, but for the last of each task and of its malformed lines.
        seed: Of the run.
    """
    measure = getattr(benchmark, "size", None)
    batches: list[Batch] = []
    for task in benchmark.tasks:
        items = [item for item in benchmark.items if item.task == task.name]
        malformed = [item for item in items if item.error]
        items = asked(items)
        lengths = text_lengths(tokenizer, [item.question for item in items])
        sizes = [measure(item) if measure else (0, 0) for item in items]
        order = sorted(range(len(items)), key=lambda i: (lengths[i], sizes[i]))
        dealt = [*split([items[i] for i in order], size), *split(malformed, size)]
        for index, some in enumerate(dealt):
            drawn_from = sample_seed(seed, task.name, index)
            batches.append(Batch(task, index, len(batches), drawn_from, some))
    return batches


def split(items: Sequence[Item], size: int) -> list[tuple[Item, ...]]:
    """Parts of one size, but for the last."""
    return [tuple(items[start : start + size]) for start in range(0, len(items), size)]


def text_lengths(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Tokens of each text."""
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return []
    tokens = tokenizer(distinct, add_special_tokens=False)["input_ids"]
    known = {text: len(ids) for text, ids in zip(distinct, tokens, strict=True)}
    return [known[text] for text in texts]


def sample_seed(seed: int, task: str, index: int) -> int:
    """One for each batch, the same for all setups."""
    place = [STREAM, seed, zlib.crc32(task.encode()), index]
    return int(np.random.SeedSequence(place).generate_state(1)[0])


class Ahead(Generic[A, B]):
    """What `make` makes of each thing, in order, by a process that stays a little ahead.

    A process and not a thread: decoding and drawing images holds the interpreter's lock as long
    as `generate` does in its loop. It begins at once, and ends with the last thing, an error,
    `close`, or its parent. Results should hold arrays, not tensors, which would go through shared
    memory.

    Each end of the pipe is open in one process alone, so that whoever waits for another that was
    killed is told at once, half-way through a result too.

    Args:
        make: Called in the other process; its errors are raised here.
        things: What it is called with.

    Raises:
        ChildProcessError: From the iterator, where the process was killed.
    """

    def __init__(self, make: Callable[[A], B], things: Sequence[A]):
        self.left = len(things)  # to be handed out
        self.process: Any = None
        if not things:
            return
        can_fork = "fork" in multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("fork" if can_fork else None)
        self.pipe, other = context.Pipe()
        self.process = context.Process(
            target=serve, args=(make, things, other, self.pipe), daemon=True
        )
        self.process.start()
        other.close()
        for _ in things[:AHEAD]:
            self.pipe.send(None)
        self._fetch()

    def __iter__(self) -> Iterator[B]:
        return self

    def __next__(self) -> B:
        if self.process is None or not self.left:
            self.close()
            raise StopIteration
        try:
            made = self.coming.result()
            if isinstance(made, Exception):
                raise made
            self.left -= 1
            if self.left >= AHEAD:
                self.pipe.send(None)
            if self.left:
                self._fetch()
        except (EOFError, ConnectionError):
            self.close()
            raise ChildProcessError(
                "the process that prepares images has ended, by a kill or because memory was out"
            ) from None
        except Exception:
            self.close()
            raise
        return made

    def _fetch(self) -> None:
        """Begins to receive the next one, while the one before is in use."""
        self.coming: Future[Any] = Future()
        self.thread = threading.Thread(target=receive, args=(self.pipe, self.coming), daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Ends the process, whatever it does: it holds nothing that could be lost."""
        if self.process is None:
            return
        self.process.kill()
        self.process.join()
        self.thread.join()
        self.pipe.close()
        self.process = None


def receive(pipe: Any, coming: Future[Any]) -> None:
    try:
        coming.set_result(pipe.recv())
    except Exception as error:
        coming.set_exception(error)


def serve(make: Callable[[A], Any], things: Sequence[A], pipe: Any, other: Any) -> None:
    """In the new process: makes one thing each time that it is asked to.

    Ctrl+C is for the parent. Tokenizers warn of a fork unless they are told to work in one thread,
    and torch's threads are not there after it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=end_with_parent, daemon=True).start()
    other.close()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    for thing in things:
        pipe.recv()
        try:
            made = make(thing)
        except Exception as error:
            made = error
        pipe.send(made)


def end_with_parent() -> None:
    """Ends this process when its parent has ended, by a kill too: a pipe to it is closed then."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this process was started by another"
    parent.join()
    os._exit(1)
