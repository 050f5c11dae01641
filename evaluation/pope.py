"""POPE (arXiv:2305.10355): is an object in the image, yes or no.

Papers read "yes" and "no" out of an answer in several ways, and their tables differ by it. All
of them are here by name, beside metrics that need no model, and the benchmark for the runner.
"""

import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sightline.evaluation import metrics
from sightline.evaluation.benchmark import Item, Prediction, Task, asked, by_unit, unasked
from sightline.evaluation.files import (
    Malformed,
    Row,
    as_list,
    check_images,
    check_length,
    check_name,
    fingerprint,
    open_inside,
    pick,
    read_sifted,
)
from sightline.evaluation.metrics import NO, YES, Metric
from sightline.evaluation.statistics import HIGHER, LOWER, Ratio
from sightline.messages import short

PUBLISHED = (
    "The question files of POPE are published at github.com/AoiDragon/POPE, below output/; those "
    "of A-OKVQA and GQA also at github.com/DAMO-NLP-SG/VCD, below experiments/data/POPE/."
)
SUFFIXES = {
    "none": "",
    "one-word": " Please answer this question with one word.",
    "llava": "\nAnswer the question using a single word or phrase.",
    "yes-no": " Please just answer yes or no.",
}
"""What follows the question: nothing (POPE, OPERA, SID), as in VCD and AGLA, as in LLaVA and
lmms-eval, as in ClearSight."""
SPLITS = ("random", "popular", "adversarial")

ACCURACY = Metric("accuracy", "accuracy", HIGHER)
YES_RATE = Metric("yes_rate", "yes-rate", None)
UNPARSED = Metric("unparsed", "unparsed", LOWER)
METRICS = (
    ACCURACY,
    Metric("precision", "precision", HIGHER),
    Metric("recall", "recall", HIGHER),
    Metric("f1", "F1", HIGHER),
    YES_RATE,
    UNPARSED,
)

# Parsers

OPPOSITE = {YES: NO, NO: YES}
OFFICIAL_NO = frozenset({"No", "no", "not"})
OPERA_NO = frozenset({"No", "NO", "no", "not"})
VQA_MARKS = ';/[]"{}()=+\\_-><@`,?!'


def official(answer: str) -> str:
    """POPE's own: no, if the text before the first full stop has the word No, no or not; else yes.

    Commas are deleted and words split at single blanks, so "NO", "Not", "No!", "isn't" and an
    empty answer are all yes.
    """
    words = answer.split(".")[0].replace(",", "").split(" ")
    return YES if OFFICIAL_NO.isdisjoint(words) else NO


def opera(answer: str) -> str:
    """OPERA's (arXiv:2311.17911): no, if any word is No, NO, no, not or ends in n't; else yes.

    The whole text counts, without full stops and commas: "Yes. There is no doubt." is no.
    """
    words = answer.replace(".", "").replace(",", "").split(" ")
    return NO if any(w in OPERA_NO or w.endswith("n't") for w in words) else YES


def lmms_eval(answer: str) -> str | None:
    """lmms-eval's: the whole answer is yes or no, in any case, between white space; else None."""
    text = answer.lower().strip()
    return text if text in OPPOSITE else None


def vlmevalkit(answer: str) -> str | None:
    """VLMEvalKit's: yes or no where the words have one of the two and not the other; else None.

    Marks are dropped beside a blank and part words elsewhere; all of them are dropped from a text
    with a comma between digits. Full stops are dropped, but not before a digit. What is None here
    goes to a language model there.
    """
    text = answer.lower()
    thousands = re.search(r"\d,\d", text) is not None
    bare = text
    for mark in VQA_MARKS:
        dropped = thousands or f"{mark} " in text or f" {mark}" in text
        bare = bare.replace(mark, "" if dropped else " ")
    words = re.sub(r"\.(?!\d)", "", bare).split()
    said = [word for word in OPPOSITE if word in words]
    return said[0] if len(said) == 1 else None


def implied_prediction(text: str, label: str) -> str:
    """What VCD's script (arXiv:2311.16922) counts an answer as, which depends on the label.

    An answer is right where it has the label in it as a part of any word: "snowing" is a right
    no, and so is "know"; an answer with both words is always right. What is not right counts as
    the opposite of the label. Never use this where no label is known.
    """
    if label not in OPPOSITE:
        raise ValueError(f"the label must be yes or no, got {short(label)}")
    return label if label in text.lower() else OPPOSITE[label]


BY_ANSWER: dict[str, Callable[[str], str | None]] = {
    "word": metrics.parse,
    "official": official,
    "opera": opera,
    "lmms-eval": lmms_eval,
    "vlmevalkit": vlmevalkit,
}
"""Parsers that see the answer alone."""
PARSERS = (*BY_ANSWER, "vcd")


def parse(answer: str, parser: str = "word", label: str | None = None) -> str | None:
    """An answer as "yes", "no", or None where the parser finds neither.

    Args:
        answer: As the model gave it.
        parser: "word": the first whole word yes or no, in any case; the published ones: "official",
            "opera", "lmms-eval", "vlmevalkit", and "vcd", see `implied_prediction`.
        label: Read by "vcd" alone, which has no prediction without it.

    Raises:
        ValueError: An unknown parser, or "vcd" without a label.
    """
    check_name("parser", parser, PARSERS)
    if parser != "vcd":
        return BY_ANSWER[parser](answer)
    if label is None:
        raise ValueError(
            'the parser "vcd" looks for the label in the answer: pass label="yes" or label="no", '
            "or choose another parser"
        )
    return implied_prediction(answer, label)


# Metrics


@dataclass(frozen=True)
class PopeScore:
    """The metrics of one split, with yes as the positive class.

    Args:
        accuracy: Right answers / questions.
        precision: Right yes / predicted yes; 0 where yes is never predicted.
        recall: Right yes / (right yes + wrong no); 0 where that is nothing.
        f1: The harmonic mean of the two; 0 where both are 0.
        yes_ratio: Predicted yes / questions.
        invalid: How many predictions are None.

    The original scripts divide by zero where 0 is said here.
    """

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float
    invalid: int


def score(predictions: Sequence[str | None], labels: Sequence[str]) -> PopeScore:
    """Scores one split.

    A prediction of None is wrong, and no yes. As in lmms-eval it is left out of precision and of
    recall, so read both beside `invalid`.

    Args:
        predictions: "yes", "no" or None, as `parse` gives them.
        labels: "yes" or "no", in the same order.

    Raises:
        ValueError: Not equally many, none at all, or other words.
    """
    if len(predictions) != len(labels):
        raise ValueError(
            f"each prediction needs its label, got {len(predictions)} predictions and "
            f"{len(labels)} labels"
        )
    if not labels:
        raise ValueError("there is nothing to score: pass at least one prediction and its label")
    counts = Counter(zip(predictions, labels, strict=True))
    wrong = [pair for pair in counts if pair[0] not in (YES, NO, None) or pair[1] not in OPPOSITE]
    if wrong:
        raise ValueError(
            "predictions are yes, no or None and labels yes or no, got the prediction "
            f"{short(wrong[0][0])} for the label {short(wrong[0][1])}"
        )
    hits, alarms, misses = counts[YES, YES], counts[YES, NO], counts[NO, YES]
    return PopeScore(
        accuracy=(hits + counts[NO, NO]) / len(labels),
        precision=_share(hits, hits + alarms),
        recall=_share(hits, hits + misses),
        f1=_share(2 * hits, 2 * hits + alarms + misses),
        yes_ratio=(hits + alarms) / len(labels),
        invalid=sum(prediction is None for prediction in predictions),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def yes_no_ratios(
    said: Sequence[Prediction], predictions: Sequence[str | None], units: Mapping[str, int]
) -> dict[str, Ratio]:
    """What every benchmark of yes/no questions tells: `accuracy`, `yes_rate` and `unparsed`.

    `unparsed` is the share of answers without yes or no as a word, whatever the parser: most
    published parsers take those for a yes.
    """
    ones = by_unit(said, [1] * len(said), units)
    pairs = zip(said, predictions, strict=True)
    values = {
        ACCURACY.name: [prediction == entry.item.label for entry, prediction in pairs],
        YES_RATE.name: [prediction == YES for prediction in predictions],
        UNPARSED.name: [metrics.parse(entry.text) is None for entry in said],
    }
    return {name: Ratio(by_unit(said, some, units), ones) for name, some in values.items()}


def all_right(
    said: Sequence[Prediction],
    predictions: Sequence[str | None],
    groups: Sequence[Hashable],
    units: Mapping[str, int],
) -> Ratio:
    """The share of groups in which every answer is right.

    Args:
        groups: The group of each answer; its answers are of one unit.
    """
    right: dict[Hashable, bool] = {}
    first: dict[Hashable, Prediction] = {}
    for entry, prediction, group in zip(said, predictions, groups, strict=True):
        first.setdefault(group, entry)
        right[group] = right.get(group, True) and prediction == entry.item.label
    one_each = list(first.values())
    return Ratio(
        by_unit(one_each, right.values(), units), by_unit(one_each, [1] * len(one_each), units)
    )


# The benchmark


class Pope:
    """POPE's question files, each a task named by its split.

    JSON lines and JSON arrays are read alike. Questions are asked as they stand in the file, with
    their grammar and typing errors, since figures of other people were made with them.

    Args:
        questions: Question files of one image folder: of COCO, A-OKVQA or GQA.
        images: The folder of the images that the files name.
        parser: A name of `PARSERS`.
        suffix: A name of `SUFFIXES`.
        max_new_tokens: Longest answer.

    Raises:
        ValueError: A file is missing, empty, or most of its lines are malformed (fewer become
            error rows); an image is missing; a name does not exist.
    """

    name = "pope"

    def __init__(
        self,
        questions: Path | Sequence[Path],
        images: Path,
        parser: str = "word",
        suffix: str = "none",
        max_new_tokens: int = 16,
    ):
        check_length(max_new_tokens)
        check_name("parser", parser, PARSERS)
        ending = pick("suffix", suffix, SUFFIXES)
        if not questions:
            raise ValueError(f"pass at least one file of questions. {PUBLISHED}")
        self.images, self.parser, self.suffix = Path(images), parser, suffix
        self.max_new_tokens = max_new_tokens
        files = [Path(file) for file in as_list(questions)]
        items: list[Item] = []
        tasks: list[Task] = []
        self.files: list[dict[str, Any]] = []
        for file, name in zip(files, task_names(files), strict=True):
            read = read_questions(file, name, ending)
            items += read
            self.files.append({"task": name, **fingerprint(file, len(read))})
            tasks.append(Task(name, f"POPE, {name}", max_new_tokens, yes_no=True, metrics=METRICS))
        self.items: Sequence[Item] = items
        self.tasks: tuple[Task, ...] = tuple(tasks)
        check_images(self.images, (item.image for item in asked(self.items)))

    def load_image(self, item: Item) -> Image.Image:
        return open_inside(self.images, item.image)

    def prediction(self, item: Item, text: str) -> str | None:
        return parse(text, self.parser, item.label)

    def ratios(
        self, task: Task, said: Sequence[Prediction], units: Mapping[str, int]
    ) -> dict[str, Ratio]:
        """The figures of `score` and `unparsed`. What is 0 / 0 there has no value here."""
        predictions = [self.prediction(entry.item, entry.text) for entry in said]
        labels = [entry.item.label for entry in said]

        def sums(prediction: str, label: str) -> Any:
            pairs = zip(predictions, labels, strict=True)
            return by_unit(said, [pair == (prediction, label) for pair in pairs], units)

        hits, alarms, misses = sums(YES, YES), sums(YES, NO), sums(NO, YES)
        return {
            **yes_no_ratios(said, predictions, units),
            "precision": Ratio(hits, hits + alarms),
            "recall": Ratio(hits, hits + misses),
            "f1": Ratio(2 * hits, 2 * hits + alarms + misses),
        }

    def fixed(self) -> dict[str, Any]:
        return {
            "files": self.files,
            "images": len({item.image for item in asked(self.items)}),
            "suffix": self.suffix,
            "parser": self.parser,
            "max_new_tokens": self.max_new_tokens,
        }


def read_questions(file: Path, task: str, ending: str = "") -> list[Item]:
    """The questions of one file, in its order; a malformed line is an item with its error.

    A line is malformed where it is no JSON object, a field is missing or of another kind, the label
    is neither yes nor no, or the question_id was there before.

    Args:
        file: JSON lines or an array of `{"question_id", "image", "text", "label"}`.
        task: The name of their task.
        ending: Put after each question, as it is.
    """

    def check(row: Row) -> str:
        return _item(row, task, ending).id

    return [
        unasked(task, line) if isinstance(line, Malformed) else _item(line, task, ending)
        for line in read_sifted(file, check, "question_id", PUBLISHED)
    ]


def _item(row: Row, task: str, ending: str) -> Item:
    if isinstance(row.get("text"), list):
        raise ValueError(
            f"{row.place}: this is PAI's variant of several turns, in which one conversation asks "
            "all questions of an image. Pass a file with one question per row"
        )
    image = row.text("image")
    return Item(
        task=task,
        id=row.key("question_id"),
        question=row.text("text") + ending,
        image=image,
        unit=image,
        label=row.choice("label", OPPOSITE),
    )


def task_names(files: Sequence[Path]) -> list[str]:
    """A name for each file: its split, or its stem where it has none of the three in its name.

    Files of one name are told apart by the words of their stems that differ, or else of their
    folders: `coco_pope_random.json` and `gqa_pope_random.json` are coco_random and gqa_random.
    """
    names = [_split(file) for file in files]
    for words_of in (_stem_words, _folder_words):
        names = _told_apart(names, [words_of(file) for file in files])
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        of_it = [str(file) for file, name in zip(files, names, strict=True) if name == twice]
        raise ValueError(
            f"these files of questions cannot be told apart: {', '.join(of_it)}. Pass each once, "
            "or rename one"
        )
    return names


def _split(file: Path) -> str:
    found = [split for split in SPLITS if split in file.stem.lower()]
    return found[0] if len(found) == 1 else "-".join(file.stem.split())


def _stem_words(file: Path) -> list[str]:
    split = _split(file)
    return [word for word in re.split(r"[\W_]+", file.stem) if word and word.lower() != split]


def _folder_words(file: Path) -> list[str]:
    return [word for word in re.split(r"[\W_]+", file.resolve().parent.name) if word]


def _told_apart(names: Sequence[str], words: Sequence[Sequence[str]]) -> list[str]:
    """Names that occur once as they are, others after those words that not all of them have."""
    told = []
    for name, own in zip(names, words, strict=True):
        rivals = [set(w) for n, w in zip(names, words, strict=True) if n == name]
        shared = set.intersection(*rivals)
        told.append("_".join([*(word for word in own if word not in shared), name]))
    return told
