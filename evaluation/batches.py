"""Which questions are answered together, and their preparation while others are answered."""

import multiprocessing
import os
import signal
import threading
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader

from sightline.evaluation.benchmark import Benchmark, Item, Task

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
        seed: What its samples are drawn from, by every contender.
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
    picture where the benchmark has `size(item)`, so that little is padded; ties stay in order.

    Args:
        size: Items in a batch, but for the last of each task.
        seed: Of the run.
    """
    measure = getattr(benchmark, "size", None)
    batches: list[Batch] = []
    for task in benchmark.tasks:
        items = [item for item in benchmark.items if item.task == task.name]
        lengths = text_lengths(tokenizer, [item.question for item in items])
        sizes = [measure(item) if measure else (0, 0) for item in items]
        order = sorted(range(len(items)), key=lambda i: (lengths[i], sizes[i]))
        for index, start in enumerate(range(0, len(items), size)):
            some = tuple(items[i] for i in order[start : start + size])
            drawn_from = sample_seed(seed, task.name, index)
            batches.append(Batch(task, index, len(batches), drawn_from, some))
    return batches


def text_lengths(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Tokens of each text."""
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return []
    tokens = tokenizer(distinct, add_special_tokens=False)["input_ids"]
    known = {text: len(ids) for text, ids in zip(distinct, tokens, strict=True)}
    return [known[text] for text in texts]


def sample_seed(seed: int, task: str, index: int) -> int:
    """One for each batch, the same for all contenders."""
    place = [STREAM, seed, zlib.crc32(task.encode()), index]
    return int(np.random.SeedSequence(place).generate_state(1)[0])


@dataclass(frozen=True)
class Work(Generic[A, B]):
    """What a worker makes of each thing, as `DataLoader` asks for it.

    Errors come as values: `DataLoader` would wrap them in the worker's traceback.
    """

    make: Callable[[A], B]
    things: Sequence[A]

    def __len__(self) -> int:
        return len(self.things)

    def __getitem__(self, place: int) -> B | Exception:
        try:
            return self.make(self.things[place])
        except Exception as error:
            return error


def ahead(make: Callable[[A], B], things: Sequence[A]) -> Generator[B, None, None]:
    """What `make` makes of each thing, in order, by a process that stays a little ahead.

    A process and not a thread: decoding and drawing pictures holds the interpreter's lock as long
    as `generate` does in its loop. It begins at once and ends with the iterator. Results should
    hold arrays, not tensors, which would go through shared memory.

    Raises:
        Exception: From the iterator, what `make` raised.
    """
    can_fork = "fork" in multiprocessing.get_all_start_methods()
    loader: DataLoader[Any] = DataLoader(
        Work(make, things),  # type: ignore[arg-type]
        batch_size=None,
        num_workers=1 if things else 0,
        prefetch_factor=AHEAD if things else None,
        collate_fn=as_it_is,
        worker_init_fn=begin,
        multiprocessing_context="fork" if can_fork and things else None,
        generator=torch.Generator(),  # else it draws from the global one
    )
    return fetched(iter(loader))


def fetched(made: Iterator[Any]) -> Generator[Any, None, None]:
    """What comes, each fetched by a thread while the one before is in use; errors are raised."""
    end = object()
    try:
        with ThreadPoolExecutor(max_workers=1) as thread:
            coming = thread.submit(next, made, end)
            while (one := coming.result()) is not end:
                if isinstance(one, Exception):
                    raise one
                coming = thread.submit(next, made, end)
                yield one
    finally:
        del made  # ends the process, though a traceback may keep this frame


def as_it_is(made: Any) -> Any:
    return made


def begin(worker: int) -> None:
    """In the new process: it ends with its parent, and Ctrl+C is for the parent.

    Tokenizers warn of a fork unless they are told to work in one thread.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def end_with_parent() -> None:
    """Ends this process when its parent has ended, by a kill too: a pipe to it is closed then.

    `DataLoader` looks for its parent only while it waits for work, and a process whose parent was
    killed waits for ever for someone to take what it has made.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    parent.join()
    os._exit(1)
