"""CHAIR: which COCO objects a caption names that its image does not have (arXiv:1809.02156).

A caption is cut into words, each word brought to its base form, compounds are merged ("hot dog"),
and what then stands in the vocabulary names an object. The truth of an image is found by the same
steps, so a truth made by one pipeline serves no other. Published figures use the tables of
LisaAnne/Hallucination, which are read from files of yours; without them the package's own
vocabulary is used (`objects.py`).

Differs from the published scripts: an image id without annotations is an error, where they take
every object of its caption for invented; sums of nothing divide to 0, where they fail.
"""

import json
import random
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, cast

from PIL import Image

from sightline.evaluation import objects
from sightline.evaluation.benchmark import Item, Prediction, Task, by_unit, unasked
from sightline.evaluation.files import (
    Line,
    Malformed,
    as_list,
    check_images,
    check_length,
    digest,
    fingerprint,
    open_inside,
    pick,
    read_entries,
    read_json,
    read_lines,
    read_row,
    read_rows,
    sift,
    sound,
)
from sightline.evaluation.metrics import Metric
from sightline.evaluation.objects import Vocabulary
from sightline.evaluation.statistics import HIGHER, LOWER, Ratio
from sightline.messages import check_characters, enumerated, short
from sightline.vision.images import path_is

SYNONYMS_PUBLISHED = (
    "The synonym table is published as data/synonyms.txt in github.com/LisaAnne/Hallucination"
)
DOUBLE_WORDS_PUBLISHED = (
    "The double words are published as the lists in utils/chair.py of "
    'github.com/LisaAnne/Hallucination: write {"hot dog": "hot dog", "bow tie": "tie", ...}'
)
WORD_FORMS_MADE = (
    'Word forms are {"wordnet": {form: {"n": base, "v": base}}, "pattern": {form: base}}, made by '
    "running NLTK's WordNetLemmatizer and pattern's singularize over the words of the table"
)
COCO_PUBLISHED = (
    "COCO publishes instances_{train,val}2014.json and captions_{train,val}2014.json on "
    "cocodataset.org, in annotations_trainval2014.zip"
)
IDS_WANTED = (
    "Image ids are numbers or file names such as COCO_val2014_000000000042.jpg: one in each line, "
    "a JSON array of them, or JSON lines that hold one under image_id, image or file_name"
)
ID_KEYS = ("image_id", "image", "file_name", "filename", "image_name", "img_id", "id")
"""Fields in which published lists name an image, those that say so first."""

DESCRIBE = "Please describe this image in detail."
HELP_DESCRIBE = "Please help me describe the image in detail."
PROMPTS = dict.fromkeys(("opera", "halc", "vasparse", "sid", "only", "memvr", "agla"), DESCRIBE) | {
    "pai": HELP_DESCRIBE,
    "vista": HELP_DESCRIBE,
}

METRICS = (
    Metric("chair_i", "CHAIR_i", LOWER),
    Metric("chair_s", "CHAIR_s", LOWER),
    Metric("recall", "recall", HIGHER),
    Metric("tokens", "tokens", None),
    Metric("named", "objects named", None),
)

IMAGE_NAME = re.compile(r"(?:.*[/\\])?(?:COCO_[a-z]+\d{4}_)?(\d+)(?:\.[A-Za-z]+)?")
CLITICS = "'(?:s|re|ve|ll|d|m)\\b"
WORD_END = re.compile(rf"(?<=\w)(?={CLITICS})")
TOKEN = re.compile(rf"{CLITICS}|[a-z0-9]+(?:[-'/.][a-z0-9]+)*|[^\sa-z0-9]")

Source = Path | str | Mapping[str, Any]
SynonymTable = Path | str | Sequence[Sequence[str]]


# Words


def tokenize(caption: str) -> list[str]:
    """Words and punctuation of a caption, in lower case: "The rider's hat." -> the rider 's hat .

    As NLTK's word_tokenize for the words of the vocabulary, but without its sentences. A full stop
    without a blank after it glues two words ("sink.There"), there and here.
    """
    return TOKEN.findall(WORD_END.sub(" ", caption.lower()))


def cut_unfinished(caption: str) -> str:
    """The caption up to its last full stop; a caption without one is left as it is.

    An answer cut off by its token limit ends in half a sentence, which OPERA drops at 64 tokens
    before it is scored. That moves CHAIR_s by several points: say whether it was done.
    """
    return caption[: caption.rfind(".") + 1] or caption


def _noun_only(forms: Mapping[str, Any], words: Collection[str]) -> dict[str, str]:
    return {form: base["n"] for form, base in forms["wordnet"].items() if "n" in base}


def _original_pattern(forms: Mapping[str, Any], words: Collection[str]) -> dict[str, str]:
    return dict(forms["pattern"])


def _opera_nltk(forms: Mapping[str, Any], words: Collection[str]) -> dict[str, str]:
    """Without a tagger: -ed and -ing are verbs, unless they stand in the vocabulary."""
    verbs = {
        form: base["v"]
        for form, base in forms["wordnet"].items()
        if "v" in base and form.endswith(("ed", "ing")) and form not in words
    }
    return verbs | _noun_only(forms, words)


# Variant -> the base forms that it reads from the table of word forms.
VARIANTS: dict[str, Callable[[Mapping[str, Any], Collection[str]], dict[str, str]]] = {
    "noun_only": _noun_only,
    "original_pattern": _original_pattern,
    "opera_nltk": _opera_nltk,
}


def read_synonyms(path: Path) -> list[list[str]]:
    """The published table: an object in each line, its own name first, parted by ", " exactly.

    So " cheesecake", with two blanks before it in the file, keeps one and matches nothing.
    """
    lines = [line.strip().split(", ") for _, line in read_lines(path, SYNONYMS_PUBLISHED)]
    if not lines:
        raise ValueError(f"{Path(path).name} is empty. {SYNONYMS_PUBLISHED}")
    return lines


def read_double_words(path: Path) -> dict[str, str]:
    """Two words -> the word that they become: a JSON object, or one under "double_words"."""
    content = read_json(path, DOUBLE_WORDS_PUBLISHED)
    table = content.get("double_words", content) if isinstance(content, dict) else None
    if not table or not all(isinstance(value, str) for value in table.values()):
        raise ValueError(f"{Path(path).name} holds no table of words. {DOUBLE_WORDS_PUBLISHED}")
    return table


def read_word_forms(path: Path) -> dict[str, Any]:
    """Base forms by way of making: under "wordnet" by part of speech, under "pattern"."""
    content = read_json(path, WORD_FORMS_MADE)
    if not isinstance(content, dict) or not {"wordnet", "pattern"} <= content.keys():
        raise ValueError(f"{Path(path).name} holds no word forms. {WORD_FORMS_MADE}")
    return content


# One caption


@dataclass(frozen=True)
class Reading:
    """What was read in one caption.

    Args:
        words: After merging, punctuation among them; their number is the published length.
        named: (word, object) in the order of the caption, repeated mentions repeated.
        places: For each mention, its first token and the one after its last.
    """

    words: tuple[str, ...]
    named: tuple[tuple[str, str], ...]
    places: tuple[tuple[int, int], ...]

    @property
    def nodes(self) -> list[str]:
        return [node for _, node in self.named]

    def hallucinated(self, truth: Collection[str]) -> list[tuple[str, str]]:
        """The mentions of objects that are not in the truth."""
        return [(word, node) for word, node in self.named if node not in truth]

    def count(self, truth: Collection[str]) -> "Counts":
        """This caption's part in the sums of the metrics; `truth` is the image's objects."""
        truth, distinct = set(truth), set(self.nodes)
        return Counts(
            words=len(self.words),
            mentions=len(self.named),
            invented=len(self.hallucinated(truth)),
            named=len(distinct),
            found=len(distinct & truth),
            truth=len(truth),
        )


@dataclass(frozen=True)
class Mention:
    """An object named in a caption, at `caption[start:end]`."""

    word: str
    node: str
    start: int
    end: int


@dataclass(frozen=True)
class Counts:
    """Of one caption, or summed over many.

    Args:
        words: After merging.
        mentions: Of objects, repetitions counted.
        invented: Mentions of objects that the image does not have, repetitions counted.
        named: Distinct objects named.
        found: Distinct objects named that the image has.
        truth: Objects that the image has.
    """

    words: int
    mentions: int
    invented: int
    named: int
    found: int
    truth: int


# Many captions


@dataclass(frozen=True)
class ChairDetail:
    """What stands beside CHAIR in some papers, and what it was counted from.

    Args:
        precision: Of distinct objects as in PAI (arXiv:2407.21771): found / named. It is not
            1 - CHAIR_i, which counts mentions.
        f1: Of that precision and the recall.
        captions: Number of captions.
        sums: Over all captions.
        pipeline: By which objects were found; figures of two pipelines are not comparable.
    """

    precision: float
    f1: float
    captions: int
    sums: Counts
    pipeline: str


@dataclass(frozen=True)
class ChairScore:
    """CHAIR over captions. Shares are between 0 and 1; tables of papers print 100 times as much.

    Args:
        chair_s: Captions with an invented object / captions.
        chair_i: Invented mentions / mentions of objects, over all captions together; 0 where no
            object is named (the published scripts then divide by zero).
        recall: Objects found / objects in the images, summed over captions; 0 without any.
        length: Mean number of words after merging; OPERA's `Len` is a hundredth of it.
    """

    chair_s: float
    chair_i: float
    recall: float
    length: float
    detail: ChairDetail


class Chair:
    """Finds objects in captions and compares them with the truth.

    Args:
        synonyms: The published synonym table, as a file or as rows of words with the object's
            name first. None, with `double_words` None: the package's own vocabulary.
        double_words: The published table of double words, as a file or a mapping.
        word_forms: Base forms of inflected words, as a file or a mapping (see
            `read_word_forms`). None: "noun_only" knows plurals by `objects.plurals`, the other
            variants take only given lemmas.
        variant: How words are brought to their base form. "original_pattern": the singular by
            pattern, as in the original script. "opera_nltk": the lemma by part of speech, as in
            OPERA and most papers since; from a table of forms that is an approximation, and is
            named so. "noun_only": every word as a noun, which no paper uses, and which neither
            loses "bus" nor makes "seated" a chair.
        lemmatizer: Caption -> base forms of its tokens, lower-cased, in place of `word_forms`: the
            exact "opera_nltk" for those who have a tagger and its data.

    Attributes:
        pipeline: The name of all this, for reports and for a saved truth.
        tables: A hash of all tables.

    Raises:
        ValueError: For an unknown variant, one table without the other, or a variant of published
            tables without them.
    """

    def __init__(
        self,
        synonyms: SynonymTable | None = None,
        double_words: Source | None = None,
        word_forms: Source | None = None,
        variant: str = "noun_only",
        lemmatizer: Callable[[str], Sequence[str]] | None = None,
    ):
        base_forms = pick("variant", variant, VARIANTS)
        self.variant = variant
        self.lemmatizer = lemmatizer
        self.vocabulary = _tables(synonyms, double_words, word_forms, variant)
        self._forms: Mapping[str, str] | None = self.vocabulary.forms
        self.pipeline = variant
        if synonyms is None:
            self.pipeline = f"{variant}, sightline objects"
        elif word_forms is not None:
            if isinstance(word_forms, Path | str):
                word_forms = read_word_forms(Path(word_forms))
            self._forms = base_forms(word_forms, _parts(self.vocabulary))
            if variant == "opera_nltk":
                self.pipeline = f"{variant}, approximate"
        elif variant == "noun_only":
            self.pipeline = f"{variant}, sightline plurals"
        else:
            self._forms = None
            self.pipeline = f"{variant}, given lemmas"
        if lemmatizer is not None:
            name = getattr(lemmatizer, "__name__", type(lemmatizer).__name__)
            self.pipeline = f"{variant}, lemmas by {name}"
        self.tables = _hash(
            [dict(self.vocabulary.nodes), dict(self.vocabulary.compounds), self._forms]
        )
        self._compounds = _by_first_word(self.vocabulary.compounds)

    def lemmas(self, caption: str) -> list[str]:
        """Base forms of the caption's words and punctuation."""
        if self.lemmatizer is not None:
            return list(self.lemmatizer(caption))
        if self._forms is None:
            raise ValueError(
                f"{self.variant} needs word_forms or a lemmatizer to read a caption; without them "
                f"it takes given lemmas (`read_lemmas`). {WORD_FORMS_MADE}"
            )
        return [self._forms.get(token, token) for token in tokenize(caption)]

    def read_lemmas(self, lemmas: Sequence[str]) -> Reading:
        """Merges compounds and looks up objects; of two compounds at one place the longer wins."""
        merged = list(self._merged(lemmas))
        words = [word for word, _, _ in merged]
        # A seat beside a toilet is the toilet's: a rule of the original script.
        dropped = {"seat"} if "toilet" in words else set()
        nodes = self.vocabulary.nodes
        named = [(w, b, e) for w, b, e in merged if w in nodes and w not in dropped]
        return Reading(
            tuple(words),
            tuple((word, nodes[word]) for word, _, _ in named),
            tuple((begin, end) for _, begin, end in named),
        )

    def read(self, caption: str) -> Reading:
        return self.read_lemmas(self.lemmas(caption))

    def nodes(self, caption: str) -> list[str]:
        """The objects that a caption names, in its order, with repetitions."""
        return self.read(caption).nodes

    def hallucinated(self, caption: str, truth: Collection[str]) -> list[tuple[str, str]]:
        """The words, each with its object, that name what is not in the truth."""
        return self.read(caption).hallucinated(truth)

    def mentions(self, caption: str) -> list[Mention]:
        """Where in the caption objects are named, for showing them.

        Raises:
            ValueError: With a lemmatizer, whose tokens have no known place.
        """
        if self.lemmatizer is not None:
            raise ValueError("places are known for the package's own tokens: leave the lemmatizer")
        lowered, places, at = caption.lower(), [], 0
        for token in tokenize(caption):
            at = lowered.index(token, at)
            places.append((at, at + len(token)))
            at += len(token)
        reading = self.read(caption)
        return [
            Mention(word, node, places[begin][0], places[end - 1][1])
            for (word, node), (begin, end) in zip(reading.named, reading.places, strict=True)
        ]

    def score(
        self,
        captions: Mapping[Any, str | Sequence[str]],
        truth: Mapping[int, Collection[str]],
    ) -> ChairScore:
        """CHAIR over captions by image, each counted on its own.

        Args:
            captions: Image id or file name (see `image_number`) -> its caption or captions.
            truth: Image id -> the objects of the image, from `truth_from_coco`.

        Raises:
            ValueError: Without captions, and for an image that the truth does not know.
        """
        told = by_number(captions, "captions")
        check_ids(told, truth)
        counts = [
            self.read(caption).count(truth[image])
            for image, said in told.items()
            for caption in said
        ]
        return summed(counts, self.pipeline)

    def truth_from_coco(
        self,
        instances: Source | Iterable[Source],
        captions: Source | Iterable[Source] = (),
        ids: Iterable[Any] | None = None,
    ) -> dict[int, frozenset[str]]:
        """The objects of each image: those annotated, and those its reference captions name.

        Args:
            instances: COCO's instances_*.json, as files or loaded; papers use train and val.
            captions: COCO's captions_*.json. Without them the truth is what is annotated: smaller,
                so that more is called invented.
            ids: The images wanted, by number or file name; all that the files know by default.

        Raises:
            ValueError: For a file of another kind, a category that the vocabulary lacks, and a
                wanted image that no file knows.
        """
        truth: dict[int, set[str]] = {}
        wanted = None if ids is None else frozenset(check_listed(ids, "ids"))
        for source in as_list(instances):
            name, content = _coco(source, "instances", "category_id")
            nodes = {c["id"]: self._category(c["name"], name) for c in content["categories"]}
            for image, annotation in _annotated(content, truth, wanted):
                if annotation["category_id"] not in nodes:
                    raise ValueError(f"{name}: no category has id {annotation['category_id']}")
                image.add(nodes[annotation["category_id"]])
        for source in as_list(captions):
            _, content = _coco(source, "captions", "caption")
            for image, annotation in _annotated(content, truth, wanted):
                image.update(self.nodes(annotation["caption"]))
        if wanted is not None:
            check_ids(sorted(wanted), truth)
        return {image: frozenset(nodes) for image, nodes in truth.items()}

    def save_truth(self, path: Path, truth: Mapping[int, Collection[str]]) -> None:
        """Writes a truth with the names of the pipeline and the tables that made it."""
        content = {
            "pipeline": self.pipeline,
            "tables": self.tables,
            "truth": {str(image): sorted(nodes) for image, nodes in truth.items()},
        }
        Path(path).write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")

    def load_truth(self, path: Path) -> dict[int, frozenset[str]]:
        """Reads what `save_truth` wrote.

        Raises:
            ValueError: For a truth that another pipeline or other tables made.
        """
        content = read_json(path)
        if not isinstance(content, dict) or not {"pipeline", "tables", "truth"} <= content.keys():
            raise ValueError(f"{path} is no saved truth: make it with save_truth")
        saved = content["pipeline"], content["tables"]
        if saved != (self.pipeline, self.tables):
            raise ValueError(
                f"{path} was made by {saved[0]} (tables {saved[1]}), and captions are read by "
                f"{self.pipeline} (tables {self.tables}): make the truth again"
            )
        return {int(image): frozenset(nodes) for image, nodes in content["truth"].items()}

    def _merged(self, lemmas: Sequence[str]) -> Iterable[tuple[str, int, int]]:
        """Words after merging, each with its first token and the one after its last."""
        at = 0
        while at < len(lemmas):
            word, end = lemmas[at], at + 1
            for rest, replacement in self._compounds.get(word, ()):
                if tuple(lemmas[end : end + len(rest)]) == rest:
                    word, end = replacement, end + len(rest)
                    break
            yield word, at, end
            at = end

    def _category(self, name: str, file: str) -> str:
        if name not in self.vocabulary.nodes:
            raise ValueError(
                f"{file}: the category {short(name)} is not in the vocabulary, which knows "
                "COCO's 80"
            )
        return self.vocabulary.nodes[name]


def summed(counts: Sequence[Counts], pipeline: str) -> ChairScore:
    """The metrics over the counts of all captions, one `Counts` each."""
    if not counts:
        raise ValueError("no captions to score")
    columns = zip(*(asdict(count).values() for count in counts), strict=True)
    sums = Counts(*map(sum, columns))
    precision = _quotient(sums.found, sums.named)
    recall = _quotient(sums.found, sums.truth)
    return ChairScore(
        chair_s=sum(count.invented > 0 for count in counts) / len(counts),
        chair_i=_quotient(sums.invented, sums.mentions),
        recall=recall,
        length=sums.words / len(counts),
        detail=ChairDetail(
            precision=precision,
            f1=_quotient(2 * precision * recall, precision + recall),
            captions=len(counts),
            sums=sums,
            pipeline=pipeline,
        ),
    )


def image_number(name: Any) -> int | None:
    """The number of an image, of itself or of COCO's file name: "COCO_val2014_000000000042.jpg".

    None for what is no image id.
    """
    if isinstance(name, str):
        found = IMAGE_NAME.fullmatch(name.strip())
        return int(found[1]) if found else None
    whole = isinstance(name, Integral) or (isinstance(name, float) and name.is_integer())
    return int(name) if whole and not isinstance(name, bool) else None


def check_ids(ids: Iterable[int], truth: Mapping[int, Any]) -> None:
    """Raises `ValueError` for an image that the truth does not know.

    The published script takes such an image for empty, and all that is said of it for invented.
    """
    unknown = [image for image in ids if image not in truth]
    if unknown:
        raise ValueError(
            f"{len(unknown)} image ids have no annotations, the first is {unknown[0]}: give the "
            "files of both splits, train and val, or leave these images out"
        )


def _quotient(over: float, under: float) -> float:
    return over / under if under else 0.0


def _tables(
    synonyms: SynonymTable | None,
    double_words: Source | None,
    word_forms: Source | None,
    variant: str,
) -> Vocabulary:
    if synonyms is None and double_words is None and word_forms is None:
        if variant != "noun_only":
            raise ValueError(
                f"{variant} belongs to the published tables: give synonyms and double_words. "
                f"{SYNONYMS_PUBLISHED}. {DOUBLE_WORDS_PUBLISHED}"
            )
        return objects.own()
    if synonyms is None:
        raise ValueError(f"synonyms are missing beside the other tables. {SYNONYMS_PUBLISHED}")
    if double_words is None:
        raise ValueError(f"double_words are missing beside synonyms. {DOUBLE_WORDS_PUBLISHED}")
    lines = read_synonyms(Path(synonyms)) if isinstance(synonyms, Path | str) else synonyms
    if isinstance(double_words, Path | str):
        double_words = read_double_words(Path(double_words))
    nodes = {word: line[0] for line in lines for word in line if word}
    # The published script merges by two, so that its "stove top oven" never matches.
    pairs = {pair: word for pair, word in double_words.items() if len(pair.split()) == 2}
    return Vocabulary(nodes, pairs, objects.inflections([*nodes, *pairs]))


def _parts(vocabulary: Vocabulary) -> set[str]:
    """Every word of the vocabulary, and every part of a compound."""
    return {part for name in (*vocabulary.nodes, *vocabulary.compounds) for part in name.split()}


def _by_first_word(compounds: Mapping[str, str]) -> dict[str, list[tuple[tuple[str, ...], str]]]:
    """First word -> (the other words, replacement), most words first."""
    table: dict[str, list[tuple[tuple[str, ...], str]]] = {}
    for compound, replacement in compounds.items():
        first, *rest = compound.split()
        table.setdefault(first, []).append((tuple(rest), replacement))
    for entries in table.values():
        entries.sort(key=lambda entry: -len(entry[0]))
    return table


def _hash(content: Any) -> str:
    return digest(json.dumps(content, sort_keys=True, allow_nan=False).encode())


# Files


def _coco(source: Source, kind: str, field: str) -> tuple[str, Mapping[str, Any]]:
    """The name and the content of a COCO file whose annotations have a field."""
    name, content = f"{kind} as loaded", cast(Any, source)
    if isinstance(source, Path | str):
        name, content = Path(source).name, read_json(Path(source), COCO_PUBLISHED)
    if not isinstance(content, Mapping) or not _have(
        content.get("annotations"), {"image_id", field}
    ):
        raise ValueError(
            f"{name} is no {kind} file: an object with annotations that have image_id and {field} "
            f"is wanted. {COCO_PUBLISHED}"
        )
    if kind == "instances" and not _have(content.get("categories"), {"id", "name"}):
        raise ValueError(f"{name} lists no categories. {COCO_PUBLISHED}")
    if not _have(content.get("images", []), {"id"}):
        raise ValueError(f"{name}: its images have no id. {COCO_PUBLISHED}")
    return name, content


def _have(rows: Any, fields: set[str]) -> bool:
    """Whether these are rows, and each has the fields."""
    return isinstance(rows, list) and all(
        isinstance(row, Mapping) and row.keys() >= fields for row in rows
    )


def _annotated(
    content: Mapping[str, Any], truth: dict[int, set[str]], wanted: frozenset[int] | None
) -> Iterable[tuple[set[str], Mapping[str, Any]]]:
    """Each annotation with its image's set in `truth`; images without any get an empty set."""
    listed = [image["id"] for image in content.get("images", ())]
    rows = content["annotations"]
    for image in (*listed, *(row["image_id"] for row in rows)):
        if wanted is None or image in wanted:
            truth.setdefault(image, set())
    for row in rows:
        if row["image_id"] in truth:
            yield truth[row["image_id"]], row


def read_captions(
    path: Path, id_key: str | None = None, caption_key: str = "caption"
) -> dict[int, list[str]]:
    """Captions that somebody else's run wrote, for `Chair.score`.

    JSON lines or an array of objects with the two keys, as OPERA writes them; one object of
    captions by image; or the original's, with such an object under "imgToEval". Images are named
    by their number or by COCO's file name.

    Args:
        path: The file.
        id_key: The field that names the image; None: the first of `ID_KEYS` that a row has.
        caption_key: The field of the caption.

    Raises:
        ValueError: For rows without the keys.
    """
    name = Path(path).name
    rows = read_rows(path)
    captions: dict[int, list[str]] = {}
    if len(rows) == 1 and caption_key not in rows[0]:
        table = rows[0].get("imgToEval", rows[0])
        if isinstance(table, Mapping) and all(image_number(key) is not None for key in table):
            return by_number(table, name, caption_key)
    for row in rows:
        key = id_key or next((key for key in ID_KEYS if key in row), ID_KEYS[0])
        image, caption = image_number(row.get(key)), row.get(caption_key)
        if image is None or not isinstance(caption, str):
            raise ValueError(
                f"{row.place}: {key} must be a number or COCO's file name and {caption_key} text, "
                f"got {short(row.get(key))} and {short(caption)}"
            )
        captions.setdefault(image, []).append(caption)
    return captions


def by_number(
    table: Mapping[Any, Any], where: str, caption_key: str = "caption"
) -> dict[int, list[str]]:
    """Captions by image number.

    Args:
        table: Image id or file name -> a caption, several, or an object that holds one.
        where: Named in messages.
        caption_key: Of the object.
    """
    captions: dict[int, list[str]] = {}
    for name, entry in table.items():
        image = image_number(name)
        said = entry.get(caption_key) if isinstance(entry, Mapping) else entry
        said = [said] if isinstance(said, str) else said
        if image is None or not isinstance(said, list | tuple) or not all_text(said):
            raise ValueError(
                f"{where}: captions by image id or file name are wanted, got {short(entry)} for "
                f"{short(name)}"
            )
        captions.setdefault(image, []).extend(said)
    return captions


def all_text(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def read_ids(path: Path) -> list[int | Malformed]:
    """Image ids from a file: numbers or COCO's file names, one in each line or in a JSON array.

    JSON lines are read too, and a JSON object that holds one such array; where there are several,
    none is chosen. What is no id, or an id for the second time, is `Malformed`; where most are, the
    file is refused.
    """
    name, entries = Path(path).name, read_entries(path, IDS_WANTED)
    if len(entries) == 1 and _is_object(entries[0][1]):
        row = read_row(*entries[0])
        lists = [value for value in row.values() if isinstance(value, list)]
        if not any(key in row for key in ID_KEYS):
            if len(lists) != 1:
                raise ValueError(
                    f"{name} is an object with {enumerated(row) or 'nothing'}: write the one list "
                    f"that you want to a file of its own. {IDS_WANTED}"
                )
            entries = _numbered(lists[0], name)
    return sift(entries, _listed, "image id")


def check_listed(ids: Iterable[Any], where: str) -> list[int]:
    """The ids as a list, or `ValueError` for none, for what is no id, and for a repetition."""
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise ValueError(f"{where} must be a list, got {short(ids)}. {IDS_WANTED}")
    found = sift(_numbered(ids, where), _listed, "image id")
    for line in found:
        if isinstance(line, Malformed):
            raise ValueError(line.error)
    return sound(found)


def _numbered(ids: Iterable[Any], where: str) -> list[tuple[str, Any]]:
    """Each id after its place."""
    entries = [(f"{where}, entry {n}", entry) for n, entry in enumerate(ids, start=1)]
    if not entries:
        raise ValueError(f"{where} holds no image ids. {IDS_WANTED}")
    return entries


def _listed(place: str, entry: Any) -> tuple[str, int]:
    """The image id of an entry, as key and as number."""
    if _is_object(entry):
        row = read_row(place, entry)
        value = next((row[key] for key in ID_KEYS if key in row), None)
    else:
        value = entry.text.strip() if isinstance(entry, Line) else entry
    image = image_number(value)
    if image is None:
        shown = entry.text if isinstance(entry, Line) else entry
        raise ValueError(f"{place}: {short(shown)} is no image id. {IDS_WANTED}")
    return str(image), image


def _is_object(entry: Any) -> bool:
    """Whether this is an object, or a line that is meant to be one."""
    if isinstance(entry, Line):
        return entry.text.lstrip().startswith("{")
    return isinstance(entry, Mapping)


def draw_ids(instances: Source, count: int, seed: int = 0) -> list[int]:
    """The first `count` images of a seeded shuffle of all in an instances file.

    Sorted before they are shuffled, so that no order of a file or a folder decides. Draws of 500
    differ by several points: name the seed, or better keep the ids in a file.
    """
    name, content = _coco(instances, "instances", "category_id")
    ids = sorted({image["id"] for image in content.get("images", ())})
    if not 1 <= count <= len(ids):
        raise ValueError(f"{name} lists {len(ids)} images, and {count} are wanted")
    random.Random(seed).shuffle(ids)
    return ids[:count]


# The benchmark


class ChairBenchmark:
    """Captions of COCO's images, asked for by one prompt.

    Papers take 500 images of val2014; the draw moves the figures by several points, so the ids
    are given and not drawn here (`draw_ids` draws some).

    Args:
        images: The folder of images, named as COCO 2014 or 2017 names them, or as the instances
            file does.
        image_ids: The images to describe, by number or file name, or a file of them (`read_ids`).
        instances: COCO's instances_*.json that know these images; papers load train and val.
        captions: COCO's captions_*.json; without them the truth is what is annotated.
        prompt: See `PROMPTS` for what projects use.
        max_new_tokens: Papers use 512 and 64.
        cut: Whether an unfinished last sentence is dropped before scoring (`cut_unfinished`).
        metric: Finds the objects; the package's own vocabulary by default.

    Raises:
        ValueError: For files of another kind, images without annotations, missing images, and a
            list of ids of which most are malformed; fewer become error rows.
    """

    name = "chair"

    def __init__(
        self,
        images: Path,
        image_ids: Iterable[Any] | Path | str,
        instances: Path | Sequence[Path],
        captions: Path | Sequence[Path] = (),
        prompt: str = DESCRIBE,
        max_new_tokens: int = 512,
        cut: bool = False,
        metric: Chair | None = None,
    ):
        check_length(max_new_tokens)
        if not prompt.strip():
            raise ValueError("the prompt is empty: pass one of PROMPTS or your own")
        if not instances:
            raise ValueError(f"no instances file is given. {COCO_PUBLISHED}")
        if isinstance(image_ids, Path | str):
            listed = read_ids(Path(image_ids))
        else:
            listed = [*check_listed(image_ids, "image_ids")]
        ids = sound(listed)
        check_characters(prompt, "the prompt")
        self.images, self.prompt, self.cut = Path(images), prompt, cut
        self.metric = metric or Chair()
        annotated = {
            path: _coco(path, "instances", "category_id")[1] for path in as_list(instances)
        }
        described = {path: _coco(path, "captions", "caption")[1] for path in as_list(captions)}
        self.truth = self.metric.truth_from_coco(annotated.values(), described.values(), ids)
        published = {
            image["id"]: image["file_name"]
            for content in (*annotated.values(), *described.values())
            for image in content.get("images", ())
            if "file_name" in image
        }
        files = {image: image_name(self.images, image, published.get(image)) for image in ids}
        check_images(self.images, files.values())
        self.tasks: tuple[Task, ...] = (Task("caption", "CHAIR", max_new_tokens, False, METRICS),)
        self.items: Sequence[Item] = [
            unasked("caption", line)
            if isinstance(line, Malformed)
            else Item("caption", str(line), prompt, files[line], files[line])
            for line in listed
        ]
        self._fixed = {
            "image_ids": {
                "count": len(listed),
                "sha256": _hash(
                    [line.error if isinstance(line, Malformed) else line for line in listed]
                ),
            },
            "instances": _fingerprints(annotated),
            "captions": _fingerprints(described) or "none: the truth is what is annotated",
            "prompt": prompt,
            "max_new_tokens": max_new_tokens,
            "unfinished_sentence": "cut" if cut else "kept",
            "pipeline": self.metric.pipeline,
            "tables": self.metric.tables,
        }

    def load_image(self, item: Item) -> Image.Image:
        return open_inside(self.images, item.image)

    def prediction(self, item: Item, text: str) -> str | None:
        """Captions say neither yes nor no."""
        return None

    def count(self, entry: Prediction) -> Counts:
        """What one answer adds to the sums."""
        text = cut_unfinished(entry.text) if self.cut else entry.text
        return self.metric.read(text).count(self.truth[int(entry.item.id)])

    def ratios(
        self, task: Task, said: Sequence[Prediction], units: Mapping[str, int]
    ) -> dict[str, Ratio]:
        """As `Chair.score`, over images; where that says 0 of nothing, a `Ratio` is NaN."""
        counts = [self.count(entry) for entry in said]
        captions = by_unit(said, [1] * len(said), units)
        mentions = by_unit(said, [c.mentions for c in counts], units)
        truth = by_unit(said, [c.truth for c in counts], units)
        return {
            "chair_i": Ratio(by_unit(said, [c.invented for c in counts], units), mentions),
            "chair_s": Ratio(by_unit(said, [c.invented > 0 for c in counts], units), captions),
            "recall": Ratio(by_unit(said, [c.found for c in counts], units), truth),
            "tokens": Ratio(by_unit(said, [entry.tokens for entry in said], units), captions),
            "named": Ratio(mentions, captions),
        }

    def fixed(self) -> dict[str, Any]:
        return self._fixed


def image_name(folder: Path, image: int, published: str | None = None) -> str:
    """The file of an image: as its instances file names it, or as COCO 2014 or 2017 does.

    The first of these that is there; where none is, the first of them, to be missed by name.
    """
    candidates = [f"COCO_val2014_{image:012d}.jpg", f"{image:012d}.jpg"]
    if published:
        candidates.insert(0, published)
    return next(
        (name for name in candidates if path_is(folder / name, Path.is_file)), candidates[0]
    )


def _fingerprints(files: Mapping[Path, Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [fingerprint(path, len(content["annotations"])) for path, content in files.items()]
