"""What a benchmark is to the runner: images, questions, and figures of what was answered.

A benchmark reads its own files, words its prompts, reads answers and knows its metrics. What asks
the model, keeps the answers and draws the tables knows none of that, and is written once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from sightline.evaluation.files import Malformed
from sightline.evaluation.metrics import Metric
from sightline.evaluation.statistics import Ratio


@dataclass(frozen=True)
class Task:
    """One kind of question of a benchmark, answered in batches of its own.

    Args:
        name: In answers, tables and plots; a word.
        title: Of its tables.
        max_new_tokens: Longest answer.
        yes_no: Whether it is answered with yes or no, so that decoders of a closed set can answer
            and a constant on "yes" is a control.
        metrics: Columns of its table, in order.
    """

    name: str
    title: str
    max_new_tokens: int
    yes_no: bool
    metrics: tuple[Metric, ...]


@dataclass(frozen=True)
class Item:
    """One question about one image.

    Args:
        task: The name of its task.
        id: Unique in its task.
        question: The prompt as the model gets it, without the image's marker.
        image: The image's name: a file below the folder of images, or a scene's number.
        unit: What the bootstrap draws again: the image, or a set of questions that belong
            together. Units of different tasks are the same where their names are.
        label: "yes" or "no" where that is the truth; None for captions.
        kind: The kind of question within its task; empty where there is one kind.
        error: Why it cannot be asked: its line of the question file is malformed. Empty where it
            can be asked; else the item is in no figure, and its question and image are empty.
    """

    task: str
    id: str
    question: str
    image: str
    unit: str
    label: str | None = None
    kind: str = ""
    error: str = ""


def unasked(task: str, line: Malformed) -> Item:
    """The item of a malformed line, which becomes an error row."""
    return Item(task, id=line.place, question="", image="", unit="", error=line.error)


@dataclass(frozen=True)
class Prediction:
    """An item and what one decoder answered.

    Args:
        item: What was asked.
        text: The answer without special tokens.
        tokens: Its length.
    """

    item: Item
    text: str
    tokens: int


class Benchmark(Protocol):
    """Implemented once for each benchmark.

    One that knows the sizes of its images without opening them may have `size(item)`, width and
    height: images of a size then stand in one batch.
    """

    @property
    def name(self) -> str:
        """Of the benchmark, a word."""
        ...

    @property
    def tasks(self) -> tuple[Task, ...]:
        """In the order of the tables."""
        ...

    @property
    def items(self) -> Sequence[Item]:
        """All questions, in the order of their files, malformed lines among them (`unasked`).
        Batches follow from them alone."""
        ...

    def load_image(self, item: Item) -> Image.Image:
        """The image, opened. Raises `OSError` or `ValueError` where it cannot be read."""
        ...

    def prediction(self, item: Item, text: str) -> str | None:
        """ "yes", "no", or None for an answer that is neither; of tasks with `yes_no`."""
        ...

    def ratios(
        self, task: Task, said: Sequence[Prediction], units: Mapping[str, int]
    ) -> dict[str, Ratio]:
        """Every metric of the task, by its name, as sums over units.

        Args:
            task: One of `tasks`.
            said: Answers of one decoder to that task's items, without those whose image or
                line could not be read.
            units: Unit -> its place in the arrays of a `Ratio`.
        """
        ...

    def fixed(self) -> dict[str, Any]:
        """What decides questions and figures, for `run.json`: files by name with the number of
        their rows and a hash, prompt suffix, parser or pipeline. Plain values; no path of this
        machine."""
        ...


def asked(items: Iterable[Item]) -> list[Item]:
    """Those whose line is not malformed."""
    return [item for item in items if not item.error]


def by_unit(
    said: Sequence[Prediction], values: Iterable[float], units: Mapping[str, int]
) -> np.ndarray:
    """Values summed over the answers of each unit, `[N]`."""
    places = [units[entry.item.unit] for entry in said]
    return np.bincount(places, weights=[float(v) for v in values], minlength=len(units))
