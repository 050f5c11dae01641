"""What ends a run while it answers, in a sentence that says what is kept and how to go on."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sightline.evaluation.batches import Batch
from sightline.evaluation.setups import Setup
from sightline.model_protocol import UnsupportedModelError

NO_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
)


@contextmanager
def explained(batch_size: int) -> Iterator[None]:
    """Memory that is out, and a process that was killed, become an `OSError`."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise OSError(
                f"out of memory with {batch_size} questions in a batch: what was answered before "
                "is kept. Where another program took the memory, continue with --resume; else "
                "begin another run with a smaller --batch-size (batches decide how answers are "
                "rounded, so a run keeps its own)"
            ) from error
        if isinstance(error, ChildProcessError):
            raise OSError(
                f"{error}: what was answered before is kept, continue with --resume"
            ) from error
        raise


@contextmanager
def named(setup: Setup, batch: Batch) -> Iterator[None]:
    """A `ValueError` says who was answering, and what."""
    try:
        yield
    except ValueError as error:
        where = f"{setup.label}, batch {batch.index} of {batch.task.name}"
        is_models = isinstance(error, UnsupportedModelError)
        kind = UnsupportedModelError if is_models else ValueError
        raise kind(f"{where}: {error}") from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory of any device is out, as Python, the system or torch says it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in NO_MEMORY)
