"""MME (arXiv:2306.13394): two questions about an image, one to be answered yes and one no.

The hallucination subset that papers report has four tasks: existence and count (object level),
position and color (attribute level). The other tasks of the same layout are read by name.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from sightline.evaluation import metrics
from sightline.evaluation.benchmark import Item, Prediction, Task, asked, unasked
from sightline.evaluation.files import (
    Malformed,
    as_list,
    check_images,
    check_length,
    check_name,
    digest,
    open_inside,
    pick,
    read_lines,
    read_text,
    sift,
)
from sightline.evaluation.metrics import NO, YES, Metric
from sightline.evaluation.pope import (
    ACCURACY,
    OPPOSITE,
    UNPARSED,
    YES_RATE,
    all_right,
    yes_no_ratios,
)
from sightline.evaluation.pope import SUFFIXES as POPE_SUFFIXES
from sightline.evaluation.statistics import HIGHER, Ratio
from sightline.messages import clipped, short
from sightline.vision.images import path_is

PUBLISHED = (
    "MME's images and questions are given out by its authors, see "
    "github.com/BradyFU/Awesome-Multimodal-Large-Language-Models, branch Evaluation."
)
OBJECT_LEVEL = ("existence", "count")
ATTRIBUTE_LEVEL = ("position", "color")
TASKS = OBJECT_LEVEL + ATTRIBUTE_LEVEL
OTHER = "other"
SUFFIXES = {
    "mme": "",
    "one-word": POPE_SUFFIXES["one-word"],
    "llava": POPE_SUFFIXES["llava"],
}
"""What follows the question: nothing, since MME's questions end in its own request; VCD's words
after that; LLaVA's and lmms-eval's words in its place."""
REPLACING = ("llava",)
OWN_REQUEST = re.compile(r"\s*Please answer yes or no\.\s*$")
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
METRICS = (
    ACCURACY,
    Metric("accuracy_plus", "accuracy+", HIGHER),
    Metric("score", "score (of 200)", HIGHER),
    YES_RATE,
    UNPARSED,
)

# Parsers

INITIALS = {"y": YES, "n": NO}


def official(answer: str) -> str:
    """MME's own: yes, else no, within the first four characters; else other.

    White space at the start counts, and so do parts of words: "Snow" is a no, "**Yes**" is other.
    """
    start = answer.lower()[:4]
    return next((word for word in OPPOSITE if word in start), OTHER)


def lmms_eval(answer: str) -> str:
    """lmms-eval's: as `official`, after white space at the ends and all full stops are dropped.

    Then "y" and "n" alone count as well.
    """
    text = answer.lower().strip().replace(".", "")
    return INITIALS.get(text) or official(text)


def word(answer: str) -> str:
    """The first whole word yes or no, in any case."""
    return metrics.parse(answer) or OTHER


PARSERS: dict[str, Callable[[str], str]] = {
    "official": official,
    "lmms-eval": lmms_eval,
    "word": word,
}


def parse(answer: str, parser: str = "official") -> str:
    """An answer as "yes", "no" or "other"; `parser` is a name of `PARSERS`."""
    return pick("parser", parser, PARSERS)(answer)


# Metrics


@dataclass(frozen=True)
class Result:
    """A question and its answer: the four columns of the file that MME's own tool reads.

    Args:
        image: The image's name, which makes the pair.
        question: As it was asked, or as it stands in the benchmark.
        label: "yes" or "no".
        answer: What the model said.
    """

    image: str
    question: str
    label: str
    answer: str


@dataclass(frozen=True)
class TaskScore:
    """One task's figures. An answer that is neither yes nor no is wrong.

    Args:
        tp: Label yes, answered yes.
        fn: Label yes, answered no.
        tn: Label no, answered no.
        fp: Label no, answered yes.
        other: Answers that are neither; left out of the four counts, of precision and recall.
        precision: tp / (tp + fp); 0 where that divides by zero.
        recall: tp / (tp + fn); 0 where that divides by zero.
        accuracy: Right answers / questions.
        accuracy_plus: Images with both answers right / images.
        score: 100 accuracy + 100 accuracy_plus, 200 at most.
    """

    tp: int
    fn: int
    tn: int
    fp: int
    other: int
    precision: float
    recall: float
    accuracy: float
    accuracy_plus: float
    score: float


@dataclass(frozen=True)
class MMEScore:
    """The score of each task, and the sums that papers report."""

    tasks: Mapping[str, TaskScore]

    @property
    def object_level(self) -> float | None:
        """Existence + count, 400 at most; None unless both are there."""
        return self._sum(OBJECT_LEVEL)

    @property
    def attribute_level(self) -> float | None:
        """Position + color, 400 at most; None unless both are there."""
        return self._sum(ATTRIBUTE_LEVEL)

    @property
    def total(self) -> float:
        """The sum over all tasks that are there; 800 at most for the hallucination subset."""
        return sum(task.score for task in self.tasks.values())

    def _sum(self, names: Iterable[str]) -> float | None:
        scores = [self.tasks[name].score for name in names if name in self.tasks]
        return sum(scores) if len(scores) == 2 else None


def score(results: Mapping[str, Sequence[Result]], parser: str = "official") -> MMEScore:
    """Scores the answers to each task.

    The two questions of an image are found by its name. MME's own tool takes neighbouring lines
    for a pair, so that another order changes its accuracy+ and nothing warns.

    Args:
        results: Task -> its questions and answers, in any order.
        parser: A name of `PARSERS`.

    Raises:
        ValueError: No task, an unknown parser, or an image without one question to be answered
            yes and one to be answered no.
    """
    if not results:
        raise ValueError("there is nothing to score: pass at least one task")
    read = pick("parser", parser, PARSERS)
    return MMEScore({task: _score_task(task, some, read) for task, some in results.items()})


def _score_task(task: str, results: Sequence[Result], read: Callable[[str], str]) -> TaskScore:
    check_pairs(task, [(result.image, result.label) for result in results])
    predictions = [read(result.answer) for result in results]
    counts = Counter(zip((r.label for r in results), predictions, strict=True))
    right: defaultdict[str, int] = defaultdict(int)
    for result, prediction in zip(results, predictions, strict=True):
        right[result.image] += prediction == result.label
    tp, fp, fn = counts[YES, YES], counts[NO, YES], counts[YES, NO]
    accuracy = sum(right.values()) / len(results)
    accuracy_plus = sum(n == 2 for n in right.values()) / len(right)
    return TaskScore(
        tp=tp,
        fn=fn,
        tn=counts[NO, NO],
        fp=fp,
        other=predictions.count(OTHER),
        precision=tp / (tp + fp) if tp + fp else 0.0,
        recall=tp / (tp + fn) if tp + fn else 0.0,
        accuracy=accuracy,
        accuracy_plus=accuracy_plus,
        score=100 * accuracy + 100 * accuracy_plus,
    )


def check_pairs(task: str, labelled: Iterable[tuple[str, str]]) -> None:
    """Raises `ValueError` unless each image has one question of each label.

    Args:
        task: Or a file of it; named in the message.
        labelled: The image and the label of each question.
    """
    labels: defaultdict[str, list[str]] = defaultdict(list)
    for image, label in labelled:
        labels[image].append(label)
    if not labels:
        raise ValueError(f"{task}: there are no questions")
    for image, some in labels.items():
        if sorted(some) != [NO, YES]:
            raise ValueError(
                f"{task}: {image} must have two questions, one to be answered yes and one to be "
                f"answered no, and its answers are {', '.join(some)}"
            )


# Files


@dataclass(frozen=True)
class Question:
    """A question of the benchmark; `image` is the path below its folder."""

    image: str
    text: str
    label: str


def read_task(folder: Path, task: str) -> list[list[Question] | Malformed]:
    """The pairs of questions of a task, in the order of the images' names.

    Texts lie beside the images, or in `questions_answers_YN/` and the images in `images/`. Each
    `<name>.txt` has two lines, `question<TAB>Yes` or `No`, about the image `<name>`. Hidden files
    (`._<name>.txt`, left by macOS) are left out, and so are a README and other notes: texts
    without a tab and without an image of their name.

    A pair with a malformed line is no pair, and `Malformed` as a whole, as accuracy+ and the score
    are over images with both questions: where a line has other columns or another answer, or
    the image has not one question of each answer.

    Raises:
        ValueError: The task, its texts or an image is missing; most pairs are malformed.
    """
    home = Path(folder) / task
    if not path_is(home, Path.is_dir):
        raise ValueError(f"{clipped(folder)} holds no folder {clipped(task)}. {PUBLISHED}")
    images = _images(_part(home, "images"))
    texts = [
        file
        for file in _texts(_part(home, "questions_answers_YN"))
        if file.stem in images or "\t" in read_text(file)
    ]
    if not texts:
        raise ValueError(f"{home} holds no questions, as <image>.txt. {PUBLISHED}")

    def image(file: Path) -> str:
        # An image that is missing gets a name as well, for the message of the check.
        path = images.get(file.stem, _part(home, "images") / f"{file.stem}.jpg")
        return path.relative_to(folder).as_posix()

    def read(place: str, file: Path) -> tuple[str, list[Question]]:
        pair = [Question(image(file), text, label) for text, label in _read_pair(file)]
        check_pairs(place, [(question.image, question.label) for question in pair])
        return image(file), pair

    check_images(folder, map(image, texts))
    return sift([(f"{task}, {file.name}", file) for file in texts], read, "the pair of")


def read_results(path: Path) -> dict[str, list[Result]]:
    """Answer files of MME's own tool: `<task>.txt`, or a folder of such files.

    A line is `image<TAB>question<TAB>Yes|No<TAB>answer`. Of a folder, hidden files and a README
    are left out.
    """
    path = Path(path)
    files = _texts(path) if path_is(path, Path.is_dir) else [path]
    if not files:
        raise ValueError(f"{path} holds no answers, as <task>.txt")
    return {file.stem: [_result(*line) for line in read_lines(file)] for file in files}


def _part(home: Path, name: str) -> Path:
    return home / name if path_is(home / name, Path.is_dir) else home


def _visible(folder: Path, endings: Sequence[str]) -> list[Path]:
    """Files with one of some endings, in any case, that are not hidden; in order."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in endings and not path.name.startswith(".")
    )


def _texts(folder: Path) -> list[Path]:
    return [path for path in _visible(folder, (".txt",)) if path.stem.lower() != "readme"]


def _images(folder: Path) -> dict[str, Path]:
    """Images by their names without the ending."""
    found: dict[str, Path] = {}
    for path in _visible(folder, IMAGES):
        if path.stem in found:
            raise ValueError(
                f"{folder} has {found[path.stem].name} and {path.name}, and the questions of "
                f"{path.stem}.txt are about one image: take one of them away"
            )
        found[path.stem] = path
    return found


def _read_pair(file: Path) -> list[tuple[str, str]]:
    """Questions with their labels."""
    pairs = []
    for place, line in read_lines(file):
        question, label = _columns(place, line, "question<TAB>Yes or No", 2)
        pairs.append((question, _label(place, label)))
    return pairs


def _result(place: str, line: str) -> Result:
    wanted = "image<TAB>question<TAB>Yes or No<TAB>answer"
    image, question, label, answer = _columns(place, line, wanted, 4)
    return Result(image, question, _label(place, label), answer)


def _columns(place: str, line: str, wanted: str, count: int) -> list[str]:
    columns = line.split("\t")
    if len(columns) != count:
        raise ValueError(f"{place}: {wanted} is wanted, got {len(columns)} columns")
    return columns


def _label(place: str, text: str) -> str:
    label = text.strip().lower()
    if label not in OPPOSITE:
        raise ValueError(f"{place}: the answer must be Yes or No, got {short(text)}")
    return label


# The benchmark


class MME:
    """MME's tasks, read from the benchmark's own folders.

    Both questions of a pair with a malformed line become error rows.

    Args:
        folder: Holds a folder for each task.
        tasks: Names of these folders; the hallucination subset unless others are named.
        parser: A name of `PARSERS`.
        suffix: A name of `SUFFIXES`.
        max_new_tokens: Longest answer.

    Raises:
        ValueError: As `read_task`; no task, a task twice, or a name that does not exist.
    """

    name = "mme"

    def __init__(
        self,
        folder: Path,
        tasks: str | Sequence[str] = TASKS,
        parser: str = "official",
        suffix: str = "mme",
        max_new_tokens: int = 16,
    ):
        check_length(max_new_tokens)
        check_name("parser", parser, PARSERS)
        check_name("suffix", suffix, SUFFIXES)
        tasks = as_list(tasks)
        if not tasks or len(set(tasks)) < len(tasks):
            raise ValueError(f"tasks must be different names, at least one, got {short(tasks)}")
        self.folder, self.parser, self.suffix = Path(folder), parser, suffix
        self.max_new_tokens = max_new_tokens
        items: list[Item] = []
        self.files: list[dict[str, Any]] = []
        for task in tasks:
            pairs = read_task(self.folder, task)
            for pair in pairs:
                items += _items(task, pair, suffix)
            self.files.append(_fingerprint(task, pairs))
        self.items: Sequence[Item] = items
        self.tasks: tuple[Task, ...] = tuple(
            Task(task, f"MME, {task}", max_new_tokens, yes_no=True, metrics=METRICS)
            for task in tasks
        )

    def load_image(self, item: Item) -> Image.Image:
        return open_inside(self.folder, item.image)

    def prediction(self, item: Item, text: str) -> str | None:
        prediction = parse(text, self.parser)
        return None if prediction == OTHER else prediction

    def ratios(
        self, task: Task, said: Sequence[Prediction], units: Mapping[str, int]
    ) -> dict[str, Ratio]:
        """The figures of `score`, and `yes_rate` and `unparsed`."""
        predictions = [self.prediction(entry.item, entry.text) for entry in said]
        ratios = yes_no_ratios(said, predictions, units)
        plus = all_right(said, predictions, [entry.item.image for entry in said], units)
        right = ratios["accuracy"].numerator
        # Two questions an image: each is worth 50 of its accuracy.
        points = Ratio(50 * right + 100 * plus.numerator, plus.denominator)
        return {**ratios, "accuracy_plus": plus, "score": points}

    def fixed(self) -> dict[str, Any]:
        return {
            "files": self.files,
            "images": len({item.image for item in asked(self.items)}),
            "suffix": self.suffix,
            "parser": self.parser,
            "max_new_tokens": self.max_new_tokens,
        }


def _items(task: str, pair: list[Question] | Malformed, suffix: str) -> list[Item]:
    """Numbered within their image, as they stand in its file."""
    if isinstance(pair, Malformed):
        return [unasked(task, replace(pair, place=f"{pair.place}#{n}")) for n in (1, 2)]
    return [
        Item(
            task=task,
            id=f"{Path(question.image).name}#{n}",
            question=worded(question.text, suffix),
            image=question.image,
            unit=question.image,
            label=question.label,
        )
        for n, question in enumerate(pair, start=1)
    ]


def worded(question: str, suffix: str) -> str:
    """The prompt of a question under a suffix of `SUFFIXES`."""
    start = OWN_REQUEST.sub("", question) if suffix in REPLACING else question
    return start + SUFFIXES[suffix]


def _fingerprint(task: str, pairs: Sequence[list[Question] | Malformed]) -> dict[str, Any]:
    """Of the questions in their order, since they lie in a file for each image."""
    rows: list[str] = []
    for pair in pairs:
        if isinstance(pair, Malformed):
            rows.append(pair.error)
        else:
            rows += [f"{q.image}\t{q.text}\t{q.label}" for q in pair]
    return {"name": task, "rows": 2 * len(pairs), "sha256": digest("\n".join(rows).encode())}
