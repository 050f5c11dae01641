"""AMBER: invented objects in descriptions, and yes/no questions about 1004 images
(arXiv:2311.07397).

Descriptions: the nouns of a response that AMBER's vocabulary knows are compared with what is in
the image and with what is likely to be invented for it. Questions: of existence, attributes and
relations, with "no" as the positive class. All files are AMBER's own and are read from yours.

The published script needs a tagger and spaCy's word vectors (`en_core_web_lg`). Here nouns are
looked up in a table and words are similar only if they are equal, unless a similarity is given;
both names stand in the result, since figures of two of them are not comparable.

Published figures are `score_generative` and `score_discriminative`: percent with one decimal, each
denominator begun at 0.001, so that 0 / 0 is 0 and 1 / 1 is 99.9, and F1 from rounded precision and
recall. The benchmark's `Ratio`s are plain quotients between 0 and 1, which differ from them in the
last decimal, and by more where a denominator is small.
"""

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from sightline.evaluation import metrics, objects, pope
from sightline.evaluation.benchmark import Item, Prediction, Task, asked, by_unit, unasked
from sightline.evaluation.files import (
    Malformed,
    Row,
    as_list,
    check_images,
    check_length,
    check_unique,
    fingerprint,
    open_inside,
    pick,
    read_json,
    read_lines,
    read_rows,
    read_sifted,
    sound,
)
from sightline.evaluation.metrics import NO, YES, Metric
from sightline.evaluation.statistics import HIGHER, LOWER, Ratio
from sightline.messages import clipped, short

PUBLISHED = "It is published in github.com/junyangwang0410/AMBER, under data/"
RELATION_PUBLISHED = (
    "The vocabulary is published as data/relation.json in github.com/junyangwang0410/AMBER"
)
SAFE_WORDS_PUBLISHED = (
    "Words that are never judged are published as data/safe_words.txt in "
    "github.com/junyangwang0410/AMBER"
)
FORMS_MADE = (
    'Noun forms are {"forms": {form: base}}, made by running NLTK\'s WordNetLemmatizer over the '
    "words of relation.json"
)

THRESHOLD = 0.8  # words more similar than this are taken for one another
FIRST = 0.001  # where each published denominator begins
NO_NOUN = frozenset({"can", "hot"})  # in the vocabulary, and in captions hardly ever as nouns

GENERATIVE = "generative"
EXISTENCE, STATE, NUMBER, ACTION, RELATION = (
    "existence",
    "attribute-state",
    "attribute-number",
    "attribute-action",
    "relation",
)
# Types of the annotations -> tasks. Relation has one name where yes is true and one where no is.
TYPES = {
    "generative": GENERATIVE,
    "discriminative-hallucination": EXISTENCE,
    "discriminative-attribute-state": STATE,
    "discriminative-attribute-number": NUMBER,
    "discriminative-attribute-action": ACTION,
    "discriminative-relation": RELATION,
    "relation": RELATION,
}
TITLES = {
    GENERATIVE: "AMBER, descriptions",
    EXISTENCE: "AMBER, existence",
    STATE: "AMBER, attribute: state",
    NUMBER: "AMBER, attribute: number",
    ACTION: "AMBER, attribute: action",
    RELATION: "AMBER, relation",
}
# The published tables, each of one or more tasks.
GROUPS = {
    "all": (EXISTENCE, STATE, NUMBER, ACTION, RELATION),
    "existence": (EXISTENCE,),
    "attribute": (STATE, NUMBER, ACTION),
    "attribute-state": (STATE,),
    "attribute-number": (NUMBER,),
    "attribute-action": (ACTION,),
    "relation": (RELATION,),
}
GENERATIVE_METRICS = (
    Metric("chair", "CHAIR", LOWER),
    Metric("cover", "cover", HIGHER),
    Metric("hal", "Hal", LOWER),
    Metric("cog", "Cog", LOWER),
    Metric("tokens", "tokens", None),
)
DISCRIMINATIVE_METRICS = (
    pope.ACCURACY,
    Metric("precision", "precision of no", HIGHER),
    Metric("recall", "recall of no", HIGHER),
    Metric("f1", "F1 of no", HIGHER),
    pope.YES_RATE,
    pope.UNPARSED,
)

Similarity = Callable[[str, str], float]
Source = Path | str | Mapping[str, Any]


# Answers


def _official(answer: str) -> str | None:
    return {"Yes": YES, "No": NO}.get(answer)


def _lmms_eval(answer: str) -> str | None:
    lowered = answer.lower()
    return next((word for word in (YES, NO) if word in lowered), None)


PARSERS: dict[str, Callable[[str], str | None]] = {
    "word": metrics.parse,
    "official": _official,
    "opera": pope.opera,
    "lmms-eval": _lmms_eval,
}


def parse(answer: str, parser: str = "word") -> str | None:
    """The "yes" or "no" of an answer, None for neither.

    Args:
        answer: As the model said it.
        parser: "word": the first whole word yes or no. "official": exactly `Yes` or `No`, as the
            published script wants them (the authors compare two logits). "opera": the word rule
            of OPERA, by which every answer without a no is a yes. "lmms-eval": yes as a part of
            the text, else no as a part of it.
    """
    return pick("parser", parser, PARSERS)(answer)


# Descriptions


def exact(word: str, other: str) -> float:
    """1 for equal words, else 0."""
    return float(word == other)


@dataclass(frozen=True)
class Tables:
    """AMBER's vocabulary and how nouns are looked up in it.

    Args:
        association: Object -> words that go with it.
        safe_words: Words that are never judged.
        forms: Inflected noun -> base form, upper and lower case told apart.
        noun_step: By what nouns are found, for reports.
    """

    association: Mapping[str, Sequence[str]]
    safe_words: frozenset[str]
    forms: Mapping[str, str]
    noun_step: str

    @cached_property
    def vocabulary(self) -> frozenset[str]:
        words = {word for words in self.association.values() for word in words}
        return frozenset(words | self.association.keys())

    def nouns(self, response: str) -> list[str]:
        """The nouns of a response that are in the vocabulary, with repetitions.

        Taken as written: "Mountains" at the start of a sentence is not matched. Without a tagger
        a verb in the vocabulary is matched too; "can" and "hot", the most frequent, are left out.
        """
        lemmas = (self.forms.get(token, token) for token in TOKEN.findall(response))
        return [word for word in lemmas if word in self.vocabulary and word not in NO_NOUN]

    def associated(self, things: Sequence[str]) -> list[tuple[str, int]]:
        """Words that stand for one of the objects, each with its object's place in `things`.

        First the words that go with each object in turn, then the objects themselves.
        """
        unknown = [thing for thing in things if thing not in self.association]
        if unknown:
            raise ValueError(
                f"the object {short(unknown[0])} of an annotation is not in the relation table: "
                f"annotations and table belong to two versions. {RELATION_PUBLISHED}"
            )
        words = [(word, n) for n, thing in enumerate(things) for word in self.association[thing]]
        return words + [(thing, n) for n, thing in enumerate(things)]


TOKEN = re.compile(r"[A-Za-z0-9]+(?:[-/.][A-Za-z0-9]+)*")


def read_tables(
    relation: Source | None,
    safe_words: Path | str | Iterable[str] | None,
    noun_forms: Source | None = None,
) -> Tables:
    """AMBER's tables, from files or as loaded.

    Args:
        relation: relation.json.
        safe_words: safe_words.txt.
        noun_forms: Base forms of nouns. None: plurals by `objects.plurals`, which also matches
            what WordNet does not ("leaves" is "leave", a word of the vocabulary).

    Raises:
        ValueError: Where one of the first two is not given: no vocabulary of the package's own
            can stand in for them.
    """
    if relation is None:
        raise ValueError(f"descriptions are scored with AMBER's vocabulary. {RELATION_PUBLISHED}")
    if safe_words is None:
        raise ValueError(f"descriptions are scored with AMBER's safe words. {SAFE_WORDS_PUBLISHED}")
    if isinstance(relation, Path | str):
        relation = read_json(Path(relation), RELATION_PUBLISHED)
    if not isinstance(relation, Mapping) or not all(isinstance(w, list) for w in relation.values()):
        raise ValueError(f"relation must be object -> list of words. {RELATION_PUBLISHED}")
    if isinstance(safe_words, Path | str):
        lines = read_lines(Path(safe_words), SAFE_WORDS_PUBLISHED)
        safe_words = [line.strip() for _, line in lines]
    if noun_forms is None:
        vocabulary = [*relation, *(word for words in relation.values() for word in words)]
        forms: Any = objects.inflections(vocabulary)
        return Tables(relation, frozenset(safe_words), forms, "sightline plurals")
    if isinstance(noun_forms, Path | str):
        noun_forms = read_json(Path(noun_forms), FORMS_MADE)
    forms = noun_forms.get("forms", noun_forms) if isinstance(noun_forms, Mapping) else None
    if not forms or not all(isinstance(base, str) for base in forms.values()):
        raise ValueError(f"noun_forms is no table of forms. {FORMS_MADE}")
    return Tables(relation, frozenset(safe_words), forms, "word forms")


@dataclass(frozen=True)
class Counts:
    """Of one response, or summed over many.

    Args:
        nouns: Of the vocabulary, repetitions counted.
        invented: Those of them judged invented.
        covered: Objects of the image that are named.
        truth: Objects of the image, as listed: an object listed twice counts twice, and only
            its first entry can be named.
        likely_named: Likely inventions that are named, also where a similar safe word rescues
            the noun.
        likely: Likely inventions, as listed.
    """

    nouns: int
    invented: int
    covered: int
    truth: int
    likely_named: int
    likely: int


def count(
    nouns: Sequence[str],
    annotation: Mapping[str, Any],
    tables: Tables,
    similarity: Similarity = exact,
) -> Counts:
    """What the nouns of one response add to the sums.

    Args:
        nouns: In order, with repetitions; those outside the vocabulary are left out here.
        annotation: A row of annotations.json with "truth" and "hallu".
        tables: From `read_tables`.
        similarity: Of a noun and a word; above 0.8 the word's object is taken to be named.
    """
    safe = tables.associated(annotation["truth"])
    likely = tables.associated(annotation["hallu"])
    covered: set[int | None] = set()
    likely_named: set[int | None] = set()
    invented = 0

    def equal(noun: str, words: Sequence[tuple[str, int]]) -> int | None:
        return next((place for word, place in words if word == noun), None)

    def similar(noun: str, words: Sequence[tuple[str, int]]) -> int | None:
        return next((p for word, p in words if similarity(noun, word) > THRESHOLD), None)

    judged = [noun for noun in nouns if noun in tables.vocabulary]
    for noun in judged:
        if noun in tables.safe_words:
            continue
        place = equal(noun, safe)
        if place is None:
            # A noun is similar to itself, so an earlier entry may be marked beside its own.
            likely_named |= {equal(noun, likely), similar(noun, likely)}
            place = similar(noun, safe)
        if place is None:
            invented += 1
        covered.add(place)
    return Counts(
        nouns=len(judged),
        invented=invented,
        covered=len(covered - {None}),
        truth=len(annotation["truth"]),
        likely_named=len(likely_named - {None}),
        likely=len(annotation["hallu"]),
    )


@dataclass(frozen=True)
class GenerativeScore:
    """The published table of descriptions, in percent with one decimal.

    Args:
        chair: Invented nouns / nouns of the vocabulary.
        cover: Objects of the image that are named / objects of the image.
        hal: 100 less the share of responses without an invented noun.
        cog: Likely inventions that are named / likely inventions.
        responses: Their number.
        sums: Over all responses.
        noun_step: By what nouns were found.
        similarity: The name of the similarity.
    """

    chair: float
    cover: float
    hal: float
    cog: float
    responses: int
    sums: Counts
    noun_step: str
    similarity: str


def score_generative(
    rows: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
    relation: Source | None = None,
    safe_words: Path | str | Iterable[str] | None = None,
    noun_forms: Source | None = None,
    similarity: Similarity = exact,
) -> GenerativeScore:
    """AMBER's figures of descriptions.

    Args:
        rows: {"id", "response"}, in AMBER's own form; with "nouns" where a tagger found them, and
            then all must have them. Rows of other tasks are left out.
        annotations: Rows of annotations.json.
        relation: See `read_tables`, as for the next two.
        safe_words: See `read_tables`.
        noun_forms: See `read_tables`.
        similarity: Of two words, 0 to 1; by default only equal words are similar.

    Raises:
        ValueError: Without the published tables, for ids that are unknown or come twice, and
            where no row belongs to this task.
    """
    tables = read_tables(relation, safe_words, noun_forms)
    chosen = _of_tasks(rows, annotations, (GENERATIVE,))
    given = ["nouns" in row for row, _ in chosen]
    if any(given) and not all(given):
        raise ValueError(f"{sum(given)} of {len(given)} rows have nouns: give them for all or none")
    counts = [
        count(
            row["nouns"] if all(given) else tables.nouns(row["response"]), note, tables, similarity
        )
        for row, note in chosen
    ]
    sums = Counts(
        **{name: sum(getattr(c, name) for c in counts) for name in Counts.__dataclass_fields__}
    )
    clean = sum(c.invented == 0 for c in counts)
    return GenerativeScore(
        chair=_percent(sums.invented, sums.nouns),
        cover=_percent(sums.covered, sums.truth),
        hal=round(100 - clean / (len(counts) + FIRST) * 100, 1),
        cog=_percent(sums.likely_named, sums.likely),
        responses=len(counts),
        sums=sums,
        noun_step="given nouns" if all(given) else tables.noun_step,
        similarity=_name(similarity),
    )


# Questions


@dataclass(frozen=True)
class DiscriminativeScore:
    """One published table of questions, in percent with one decimal. "no" is the positive class.

    Args:
        accuracy: Right answers / questions. An answer that is neither yes nor no is wrong.
        precision: Right answers no / answers no.
        recall: Right answers no / questions whose truth is no.
        f1: Of these two as rounded.
        yes_rate: Answers yes / questions.
        unparsed: Answers that are neither / questions.
        questions: Their number.
    """

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_rate: float
    unparsed: float
    questions: int


def score_discriminative(
    rows: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
    parser: str = "word",
) -> dict[str, DiscriminativeScore]:
    """AMBER's figures of questions, by the names of `GROUPS`; groups without questions are absent.

    Every question of existence has the truth no: its precision is 100 as soon as one answer is no,
    and a model that always says no scores 100.

    Args:
        rows: {"id", "response"}, in AMBER's own form. Rows of other tasks are left out.
        annotations: Rows of annotations.json.
        parser: See `parse`; "official" is what the published script does with such rows.

    Raises:
        ValueError: For an unknown parser, for ids that are unknown or come twice, and where no row
            belongs to these tasks.
    """
    read = pick("parser", parser, PARSERS)
    judged: dict[str, list[tuple[str | None, str]]] = {name: [] for name in GROUPS["all"]}
    for row, note in _of_tasks(rows, annotations, GROUPS["all"]):
        judged[TYPES[note["type"]]].append((read(row["response"]), note["truth"]))
    groups = {
        group: [judged[task] for task in tasks if judged[task]] for group, tasks in GROUPS.items()
    }
    return {group: _table(parts, group) for group, parts in groups.items() if parts}


def _table(parts: Sequence[Sequence[tuple[str | None, str]]], group: str) -> DiscriminativeScore:
    """The table of a group. The published script adds up the three parts of an attribute, with
    the beginnings of their denominators, and counts all questions together in one more sum."""
    pairs = [pair for part in parts for pair in part]
    begin = FIRST * (len(GROUPS[group]) if group == "attribute" else 1)

    def share(over: Iterable[bool], under: Iterable[bool]) -> float:
        return _percent(sum(over), sum(under), begin)

    said_no = [answer == NO for answer, _ in pairs]
    is_no = [truth == NO for _, truth in pairs]
    hits = [s and t for s, t in zip(said_no, is_no, strict=True)]
    precision, recall = share(hits, said_no), share(hits, is_no)
    p, r = precision / 100, recall / 100
    every = [True] * len(pairs)
    return DiscriminativeScore(
        accuracy=share((answer == truth for answer, truth in pairs), every),
        precision=precision,
        recall=recall,
        f1=round(2 * p * r / (p + r + (FIRST if group == EXISTENCE else 0.0001)) * 100, 1),
        yes_rate=share((answer == YES for answer, _ in pairs), every),
        unparsed=share((answer is None for answer, _ in pairs), every),
        questions=len(pairs),
    )


def _percent(over: float, under: float, begin: float = FIRST) -> float:
    return round(over / (under + begin) * 100, 1)


def _name(similarity: Similarity) -> str:
    return getattr(similarity, "__name__", type(similarity).__name__)


# Files


def read_annotations(path: Path) -> list[Row]:
    """Rows of annotations.json, checked.

    Raises:
        ValueError: For a row without a known type, without a truth, or whose id comes twice.
    """
    rows = read_rows(path, PUBLISHED)
    for row in rows:
        row.key("id")
        row["type"] = row.choice("type", TYPES)
        if TYPES[row["type"]] != GENERATIVE:
            row["truth"] = row.choice("truth", (YES, NO))
        elif not all(isinstance(row.get(field), list) for field in ("truth", "hallu")):
            raise ValueError(f"{row.place}: truth and hallu must be lists of objects")
    check_unique(rows, "id", lambda row: row.key("id"))
    return rows


def read_queries(
    path: Path, known: Container[str] | None = None, seen: dict[str, str] | None = None
) -> list[Row | Malformed]:
    """Rows of one of query_*.json: id, image, query.

    Args:
        path: The file.
        known: The ids of annotations.json; None: not checked.
        seen: The ids of files read before, with their places; new ones are added.
    """

    def check(row: Row) -> str:
        row.text("image")
        row.text("query")
        key = row.key("id")
        if known is not None and key not in known:
            raise ValueError(
                f"{row.place}: id {clipped(key)} is not in the annotations. {PUBLISHED}"
            )
        return key

    return read_sifted(path, check, "id", PUBLISHED, seen)


def read_responses(path: Path) -> list[Row]:
    """Rows of somebody else's run, in AMBER's own form: id, response, which may be empty."""
    rows = read_rows(path)
    for row in rows:
        row.key("id")
        if not isinstance(row.get("response"), str):
            raise ValueError(
                f"{row.place}: response must be text, got {short(row.get('response'))}"
            )
    check_unique(rows, "id", lambda row: row.key("id"))
    return rows


def _of_tasks(
    rows: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
    tasks: Sequence[str],
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Rows of some tasks, each with its annotation, found by id and not by place."""
    notes = {str(note["id"]): note for note in annotations}
    answered: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        if "id" not in row or not ("nouns" in row or isinstance(row.get("response"), str)):
            raise ValueError(f'a row is {{"id", "response"}}, got {short(dict(row))}')
        key = str(row["id"])
        if key not in notes:
            raise ValueError(f"id {short(row['id'])} is not in the annotations. {PUBLISHED}")
        if key in answered:
            raise ValueError(f"id {key} is answered twice")
        answered[key] = row
    chosen = [
        (row, notes[key])
        for key, row in answered.items()
        if pick("annotation type", notes[key]["type"], TYPES) in tasks
    ]
    if not chosen:
        raise ValueError(f"none of {len(rows)} rows belongs to {', '.join(tasks)}")
    return chosen


# The benchmark


class Amber:
    """AMBER's descriptions and questions, one task for each kind.

    Args:
        images: The folder of AMBER_1.jpg to AMBER_1004.jpg.
        queries: query_all.json, or others of query_*.json; only their questions are asked.
        annotations: annotations.json.
        relation: relation.json; it and the next are needed where descriptions are asked for.
        safe_words: safe_words.txt.
        noun_forms: See `read_tables`.
        similarity: Of two words; by default only equal words are similar.
        parser: Of yes and no, see `parse`.
        suffix: Added to yes/no questions, by its name in `pope.SUFFIXES`; AMBER's authors add none.
        max_new_tokens: Of a description; the authors name none, scripts use 64 to 2048.
        answer_tokens: Of an answer to a yes/no question.

    Raises:
        ValueError: For files of another kind, queries of which most are malformed or have no
            annotation (fewer become error rows), a malformed row of the annotations, tables that
            are not given, and missing images.
    """

    name = "amber"

    def __init__(
        self,
        images: Path,
        queries: Path | Sequence[Path],
        annotations: Path,
        relation: Path | None = None,
        safe_words: Path | None = None,
        noun_forms: Path | None = None,
        similarity: Similarity = exact,
        parser: str = "word",
        suffix: str = "none",
        max_new_tokens: int = 512,
        answer_tokens: int = 16,
    ):
        check_length(max_new_tokens)
        check_length(answer_tokens)
        self.images, self.similarity = Path(images), similarity
        self._parse = pick("parser", parser, PARSERS)
        ending = pick("suffix", suffix, pope.SUFFIXES)
        files = [Path(file) for file in as_list(queries)]
        notes = read_annotations(annotations)
        self._notes = {note.key("id"): note for note in notes}
        seen: dict[str, str] = {}
        read = [read_queries(path, self._notes, seen) for path in files]
        self.items: Sequence[Item] = [item for lines in read for item in self._items(lines, ending)]
        kinds = {item.task for item in self.items}
        self.tables = read_tables(relation, safe_words, noun_forms) if GENERATIVE in kinds else None
        for item in asked(self.items):
            if self.tables is not None and item.task == GENERATIVE:
                note = self._notes[item.id]
                self.tables.associated([*note["truth"], *note["hallu"]])  # or raises
        check_images(self.images, [item.image for item in asked(self.items)])
        self.tasks: tuple[Task, ...] = tuple(
            Task(GENERATIVE, title, max_new_tokens, False, GENERATIVE_METRICS)
            if name == GENERATIVE
            else Task(name, title, answer_tokens, True, DISCRIMINATIVE_METRICS)
            for name, title in TITLES.items()
            if name in kinds
        )
        self._fixed: dict[str, Any] = {
            "queries": [
                fingerprint(path, len(lines)) for path, lines in zip(files, read, strict=True)
            ],
            "annotations": fingerprint(annotations, len(notes)),
            "suffix": ending,
            "parser": parser,
            "max_new_tokens": {task.name: task.max_new_tokens for task in self.tasks},
        }
        if self.tables is not None:
            assert relation is not None and safe_words is not None  # or there were no tables
            self._fixed |= {
                "relation": fingerprint(relation, len(self.tables.association)),
                "safe_words": fingerprint(safe_words, len(self.tables.safe_words)),
                "noun_step": self.tables.noun_step,
                "noun_forms": noun_forms and fingerprint(noun_forms, len(self.tables.forms)),
                "similarity": _name(similarity),
            }

    def _items(self, lines: Sequence[Row | Malformed], ending: str) -> Iterator[Item]:
        """A malformed line is counted at the task of the line before it, or of the first that is
        not malformed: queries are published task by task."""
        task = TYPES[self._notes[sound(lines)[0].key("id")]["type"]]
        for line in lines:
            if isinstance(line, Malformed):
                yield unasked(task, line)
            else:
                item = self._item(line, ending)
                task = item.task
                yield item

    def _item(self, row: Row, ending: str) -> Item:
        note = self._notes[row.key("id")]
        task = TYPES[note["type"]]
        image = row.text("image")
        if task == GENERATIVE:
            return Item(task, row.key("id"), row.text("query"), image, image)
        question = row.text("query") + ending
        return Item(task, row.key("id"), question, image, image, note["truth"])

    def load_image(self, item: Item) -> Image.Image:
        return open_inside(self.images, item.image)

    def prediction(self, item: Item, text: str) -> str | None:
        return self._parse(text)

    def ratios(
        self, task: Task, said: Sequence[Prediction], units: Mapping[str, int]
    ) -> dict[str, Ratio]:
        """The task's metrics as plain quotients, 0 to 1 (see the head of this file)."""
        if task.name == GENERATIVE:
            return self._generative(said, units)
        return self._discriminative(said, units)

    def count(self, entry: Prediction) -> Counts:
        """What one description adds to the sums."""
        assert self.tables is not None
        nouns = self.tables.nouns(entry.text)
        return count(nouns, self._notes[entry.item.id], self.tables, self.similarity)

    def _generative(self, said: Sequence[Prediction], units: Mapping[str, int]) -> dict[str, Ratio]:
        counts = [self.count(entry) for entry in said]
        ones = by_unit(said, [1] * len(said), units)

        def share(over: Iterable[float], under: Iterable[float]) -> Ratio:
            return Ratio(by_unit(said, over, units), by_unit(said, under, units))

        return {
            "chair": share([c.invented for c in counts], [c.nouns for c in counts]),
            "cover": share([c.covered for c in counts], [c.truth for c in counts]),
            "hal": Ratio(by_unit(said, [c.invented > 0 for c in counts], units), ones),
            "cog": share([c.likely_named for c in counts], [c.likely for c in counts]),
            "tokens": Ratio(by_unit(said, [entry.tokens for entry in said], units), ones),
        }

    def _discriminative(
        self, said: Sequence[Prediction], units: Mapping[str, int]
    ) -> dict[str, Ratio]:
        answers = [self._parse(entry.text) for entry in said]
        labels = [entry.item.label for entry in said]
        said_no = by_unit(said, [answer == NO for answer in answers], units)
        is_no = by_unit(said, [label == NO for label in labels], units)
        both = [a == b == NO for a, b in zip(answers, labels, strict=True)]
        hits = by_unit(said, both, units)
        return {
            **pope.yes_no_ratios(said, answers, units),
            "precision": Ratio(hits, said_no),
            "recall": Ratio(hits, is_no),
            "f1": Ratio(2 * hits, said_no + is_no),
        }

    def fixed(self) -> dict[str, Any]:
        return self._fixed
