"""HallusionBench (arXiv:2310.14566): the same question of a figure, and of the figure changed.

Three accuracies: of answers (aAcc), of figures with all their answers right (fAcc), and of
questions answered right on all their figures (qAcc).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from sightline.evaluation import metrics
from sightline.evaluation.benchmark import Item, Prediction, Task, asked, unasked
from sightline.evaluation.files import (
    Malformed,
    Row,
    check_images,
    check_length,
    check_name,
    check_unique,
    fingerprint,
    open_inside,
    pick,
    read_sifted,
    sound,
)
from sightline.evaluation.metrics import NO, YES, Metric
from sightline.evaluation.pope import SUFFIXES, UNPARSED, YES_RATE, all_right, yes_no_ratios
from sightline.evaluation.statistics import HIGHER, Ratio
from sightline.messages import short

PUBLISHED = (
    "HallusionBench.json and its images are published at github.com/tianyi-lab/HallusionBench."
)
PREFIX = "hallusion_bench"  # the folder that published paths begin with
DEPENDENT, SUPPLEMENT = "vd", "vs"
LABELS = {"0": NO, "1": YES}
WRONG, RIGHT, UNCLEAR = "0", "1", "2"  # a judge's verdicts
NO_IMAGE = "0"  # of visual_input; 1 is an original figure, 2 a changed one
TASK = "hallusionbench"
METRICS = (
    Metric("aAcc", "aAcc", HIGHER),
    Metric("fAcc", "fAcc", HIGHER),
    Metric("qAcc", "qAcc", HIGHER),
    YES_RATE,
    UNPARSED,
)


def lmms_eval(answer: str) -> str:
    """lmms-eval's rule without a judge: yes, if "yes" is a part of any word; else no."""
    return YES if YES in answer.lower() else NO


PARSERS: dict[str, Callable[[str], str | None]] = {"word": metrics.parse, "lmms-eval": lmms_eval}


def parse(answer: str, parser: str = "word") -> str | None:
    """An answer as "yes", "no", or None where it is neither; `parser` is a name of `PARSERS`."""
    return pick("parser", parser, PARSERS)(answer)


@dataclass(frozen=True)
class Place:
    """Where a row belongs.

    Args:
        category: "VD" (the question needs the figure) or "VS" (a figure supplements it).
        subcategory: Such as "chart".
        set_id: Figures and questions that belong together.
        figure_id: Within its set; of "VS" 0 stands for no figure.
        question_id: Within its set.
    """

    category: str
    subcategory: str
    set_id: str
    figure_id: str
    question_id: str

    @property
    def id(self) -> str:
        return f"{self.unit}/{self.figure_id}/{self.question_id}"

    @property
    def unit(self) -> str:
        """Its set, whose figures and questions depend on one another."""
        return f"{self.category}/{self.subcategory}/{self.set_id}"

    @property
    def figure(self) -> tuple[str, str]:
        return self.unit, self.figure_id

    @property
    def question(self) -> tuple[str, str]:
        return self.unit, self.question_id

    @property
    def has_figure(self) -> bool:
        return self.category.lower() == DEPENDENT or self.figure_id != "0"


# Metrics


@dataclass(frozen=True)
class HallusionScore:
    """The three accuracies, from 0 to 1; some publish them times 100.

    Args:
        aAcc: Right rows / rows.
        fAcc: Figures with all their rows right / figures.
        qAcc: Questions right on all their figures / questions.
        rows: How many.
        figures: How many, of those that count for fAcc.
        questions: How many.
        consistency: Of the figures: "correct" with all rows right, "wrong" with none,
            "inconsistent" with some.
        error_types: Of judged rows: "LH" (language hallucination, wrong without an image), "VI"
            (visual illusion: unclear on an image, or wrong on the first figure of a set that
            needs it), "Mix" (wrong on another image). None without a judge.
    """

    aAcc: float
    fAcc: float
    qAcc: float
    rows: int
    figures: int
    questions: int
    consistency: Mapping[str, int]
    error_types: Mapping[str, int] | None


def score(
    rows: Iterable[Mapping[str, Any]], judged: bool = False, parser: str = "lmms-eval"
) -> HallusionScore:
    """Scores answered rows, by a rule or by a judge's verdicts.

    Args:
        rows: With the fields of the published file, and `model_prediction`; of judged rows
            `correctness` instead: 0 wrong, 1 right, 2 unclear.
        judged: Whether verdicts are read. Then an unclear answer without a figure is right, and
            rows without a figure are no figure of fAcc. By rule they are one.
        parser: Of answers that no judge saw; a name of `PARSERS`.

    Raises:
        ValueError: No rows, a row twice, a field that is missing or holds another value.
    """
    read = pick("parser", parser, PARSERS)
    placed = [Row(row, f"row {n}") for n, row in enumerate(rows, start=1)]
    if not placed:
        raise ValueError("there is nothing to score: pass at least one row")
    check_unique(placed, "the row", lambda row: _place(row).id)
    right = [_judged_right(row) if judged else _read_right(row, read) for row in placed]
    places = [_place(row) for row in placed]
    counted = [place.has_figure or not judged for place in places]
    figures = _tally(
        (place.figure, r) for place, r, c in zip(places, right, counted, strict=True) if c
    )
    questions = _tally((place.question, r) for place, r in zip(places, right, strict=True))
    consistency = Counter(_consistency(some) for some in figures.values())
    return HallusionScore(
        aAcc=sum(right) / len(right),
        fAcc=consistency["correct"] / len(figures) if figures else 0.0,
        qAcc=sum(map(all, questions.values())) / len(questions),
        rows=len(right),
        figures=len(figures),
        questions=len(questions),
        consistency={kind: consistency[kind] for kind in ("correct", "inconsistent", "wrong")},
        error_types=_error_types(placed) if judged else None,
    )


def _read_right(row: Row, read: Callable[[str], str | None]) -> bool:
    answer = row.get("model_prediction")
    if not isinstance(answer, str):
        raise ValueError(f"{row.place}: model_prediction must be text, got {short(answer)}")
    return read(answer) == LABELS[row.choice("gt_answer", LABELS)]


def _judged_right(row: Row) -> bool:
    verdict = _verdict(row)
    return verdict == RIGHT or (verdict == UNCLEAR and not _place(row).has_figure)


def _verdict(row: Row) -> str:
    return row.choice("correctness", (WRONG, RIGHT, UNCLEAR))


def _tally(keyed: Iterable[tuple[tuple[str, str], bool]]) -> dict[tuple[str, str], list[bool]]:
    groups: dict[tuple[str, str], list[bool]] = {}
    for key, right in keyed:
        groups.setdefault(key, []).append(right)
    return groups


def _consistency(right: Sequence[bool]) -> str:
    if all(right):
        return "correct"
    return "inconsistent" if any(right) else "wrong"


def _error_types(rows: Iterable[Row]) -> dict[str, int]:
    counts = Counter(_error_type(row) for row in rows)
    return {kind: counts[kind] for kind in ("LH", "VI", "Mix")}


def _error_type(row: Row) -> str | None:
    verdict, place = _verdict(row), _place(row)
    dependent = place.category.lower() == DEPENDENT
    if verdict == RIGHT:
        return None
    if not dependent and row.key("visual_input") == NO_IMAGE:
        return "LH" if verdict == WRONG else None
    if verdict == UNCLEAR or (dependent and place.figure_id == "0"):
        return "VI"
    return "Mix"


# Files


def read_questions(file: Path) -> list[Row | Malformed]:
    """The rows of the published file, each checked; those without an image among them."""
    return read_sifted(file, _check, "the row", PUBLISHED)


def _check(row: Row) -> str:
    row.text("question")
    row.choice("gt_answer", LABELS)
    if row.choice("visual_input", ("0", "1", "2")) != NO_IMAGE:
        row.text("filename")
    return _place(row).id


def _has_no_image(row: Row | Malformed) -> bool:
    return isinstance(row, Row) and row.key("visual_input") == NO_IMAGE


def _place(row: Row) -> Place:
    row.choice("category", (DEPENDENT, SUPPLEMENT))
    fields = ("category", "subcategory", "set_id", "figure_id", "question_id")
    return Place(*(row.key(field) for field in fields))


def image_name(published: str, images: Path) -> str:
    """The path of an image below `images`, which may be the folder `hallusion_bench` itself."""
    path = PurePosixPath(published)  # drops a leading "./"
    inside = path.parts[:1] == (PREFIX,) and not (images / PREFIX).is_dir()
    return str(path.relative_to(PREFIX) if inside else path)


# The benchmark


class HallusionBench:
    """The questions that come with an image.

    Rows without an image are left out, as nothing is there to decode against; so fAcc and qAcc
    are over the figures that were asked. A malformed row becomes an error row, and since it may not
    even say which figure and question it belongs to, fAcc and qAcc are those of the file without
    it: a figure or question has right answers on all of its other rows.

    Args:
        questions: The published file.
        images: The folder of images: `hallusion_bench`, or the one that holds it.
        parser: A name of `PARSERS`.
        suffix: A name of `sightline.evaluation.pope.SUFFIXES`.
        max_new_tokens: Longest answer.

    Raises:
        ValueError: The file or an image is missing; most rows are malformed: come twice, or have
            a field that is missing or wrong; a name does not exist.
    """

    name = "hallusionbench"

    def __init__(
        self,
        questions: Path,
        images: Path,
        parser: str = "word",
        suffix: str = "none",
        max_new_tokens: int = 64,
    ):
        check_length(max_new_tokens)
        check_name("parser", parser, PARSERS)
        ending = pick("suffix", suffix, SUFFIXES)
        self.images, self.parser, self.suffix = Path(images), parser, suffix
        rows = read_questions(Path(questions))
        kept = [row for row in rows if not _has_no_image(row)]
        if not sound(kept):
            raise ValueError(f"{questions}: no row has an image (visual_input is 0 everywhere)")
        self.file = fingerprint(Path(questions), len(rows))
        self.left_out = len(rows) - len(kept)
        self.places = {place.id: place for place in map(_place, sound(kept))}
        self.items: Sequence[Item] = [
            unasked(TASK, row) if isinstance(row, Malformed) else self._item(row, ending)
            for row in kept
        ]
        self.tasks: tuple[Task, ...] = (
            Task(TASK, "HallusionBench", max_new_tokens, yes_no=True, metrics=METRICS),
        )
        check_images(self.images, (item.image for item in asked(self.items)))

    def _item(self, row: Row, ending: str) -> Item:
        place = _place(row)
        return Item(
            task=TASK,
            id=place.id,
            question=row.text("question") + ending,
            image=image_name(row.text("filename"), self.images),
            unit=place.unit,
            label=LABELS[row.choice("gt_answer", LABELS)],
            kind=place.category,
        )

    def load_image(self, item: Item) -> Image.Image:
        return open_inside(self.images, item.image)

    def prediction(self, item: Item, text: str) -> str | None:
        return parse(text, self.parser)

    def ratios(
        self, task: Task, said: Sequence[Prediction], units: Mapping[str, int]
    ) -> dict[str, Ratio]:
        """The three accuracies of `score` by rule, and `yes_rate` and `unparsed`."""
        predictions = [self.prediction(entry.item, entry.text) for entry in said]
        places = [self.places[entry.item.id] for entry in said]
        ratios = yes_no_ratios(said, predictions, units)
        return {
            "aAcc": ratios.pop("accuracy"),
            "fAcc": all_right(said, predictions, [p.figure for p in places], units),
            "qAcc": all_right(said, predictions, [p.question for p in places], units),
            **ratios,
        }

    def fixed(self) -> dict[str, Any]:
        return {
            "files": [self.file],
            "images": len({item.image for item in asked(self.items)}),
            "rows without an image left out": self.left_out,
            "suffix": self.suffix,
            "parser": self.parser,
            "max_new_tokens": self.tasks[0].max_new_tokens,
        }
