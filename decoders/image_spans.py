"""Which tokens of a prompt belong to its images: all that the processor wrote for each of them.

Markers, tokens of tiles, rows and columns, and the line breaks between them differ from processor
to processor and with the size of an image. With the processor they are exact: it is asked to write
a few images, and the prompt is compared with what it wrote. Without it, an image is what its image
tokens enclose and the markers that the model's config names.
"""

import re
import warnings
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, groupby, pairwise, takewhile
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sightline.decoders.features import (
    Features,
    picture_lengths,
    pictures_by_row,
    token_ids,
)
from sightline.decoders.memory import Memory
from sightline.messages import short

PLACEHOLDERS = ("image_token_id", "video_token_id")

# Where a config names the tokens that open and close an image.
MARKERS = (
    "boi_token_id",
    "boi_token_index",
    "eoi_token_id",
    "eoi_token_index",
    "frame_end_token_id",
    "frame_start_token_id",
    "image_bos_token_id",
    "image_end_token_id",
    "image_start_token_id",
    "low_res_image_start_token_id",
    "video_end_token_id",
    "video_start_token_id",
    "vision_end_token_id",
    "vision_start_token_id",
    "visual_indicator_token_ids",
)

RUN, CLIP = "\ufffc", "\ufffb"  # in a prompt's text, a run of image tokens, and of a video's own
BEFORE, WORDS = "SIGHTLINE0BEFORE", "SIGHTLINE1WORDS"
SIZES = ((56, 56), (224, 224), (1008, 336), (448, 1344))  # of images that are asked about
FRAMES = (4, 8)  # of videos that are asked about
REMEMBERED = 16  # settings of one processor that are kept
# A token whose id is this close to the image token's looks like a marker; less in a vocabulary
# that is small.
NEAR, SHARE = 16, 48

Entry = tuple[int, int | None]  # a token of the old row by its number, and a new one in its place


@dataclass(frozen=True)
class Owned:
    """An image (or video) in a row.

    Args:
        tokens: Its image tokens, by number in the row, padding left out.
        start, stop: All that belongs to it, from the first to after the last: tokens by number
            in a `BareRow`, characters of the text in a `WrittenRow`.
        label: Characters at its start that are the template's label ("Image 1: ").
    """

    tokens: tuple[int, ...]
    start: int
    stop: int
    label: int = 0


# What a processor writes


@dataclass(frozen=True)
class Writing:
    """What a processor and its chat template write for an image.

    Args:
        tokenizer: The processor's.
        unit: What the template writes for an image, in whose place the processor writes.
        openings: Texts before the first image token, of images of several sizes.
        gaps: Texts between two image tokens of one image.
        closings: Texts after the last image token.
        parts: Runs of image tokens that every image has; None: it depends on its size.
        words: What the template puts between an image and the user's words.
        start: What the processor puts before a text by itself.
        labels: What the template puts before `unit`, where a chat has one image and where it has
            more; numbers may be others.
        video: A pattern of a video, with its label and the words between frames; None: a video is
            like an image, or cannot be asked about.
        opening: What a turn that begins with an image has before it, and the white space that a
            turn of words alone has there besides; both "" where turns begin alike.
    """

    tokenizer: Any = field(repr=False)
    unit: str
    openings: tuple[str, ...]
    gaps: tuple[str, ...]
    closings: tuple[str, ...]
    parts: int | None
    words: str
    start: str
    labels: tuple[str, str] = ("", "")
    video: re.Pattern[str] | None = None
    opening: tuple[str, str] = ("", "")

    @cached_property
    def special(self) -> dict[int, str]:
        """Tokens that no text around them is merged with, by id."""
        added = self.tokenizer.added_tokens_decoder.items()
        return {token: str(name) for token, name in added if not _is_blank(str(name))}

    @property
    def is_marked(self) -> bool:
        """Whether anything but image tokens stands at an end of an image."""
        return any((*self.openings, *self.closings))

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches an image; numbers (of tiles, frames and seconds) may be others than those seen.

        An image that was not cut into tiles is opened like the last of its parts would be.
        """
        openings = {*self.openings, *(gap.lstrip() for gap in self.gaps)}
        most = "*" if self.parts is None else f"{{0,{self.parts - 1}}}"
        run = f"[{RUN}{CLIP}]"
        inside = f"(?:{_one_of(self.gaps)}{run}){most}" if self.gaps else ""
        return re.compile(f"{_one_of(openings)}?{run}{inside}{_one_of(self.closings)}?")

    def label_before(self, text: str, images: int) -> str:
        """The template's label that a text before one of so many images ends in."""
        found = re.search(f"{_one_of([self.labels[images > 1]])}$", text)
        return found.group() if found else ""

    def encode(self, text: str, after: int | None) -> list[int]:
        """Token ids of a text that follows a special token; None: that a prompt begins with."""
        name = "" if after is None else self._name(after)
        ids = self.tokenizer(name + text, add_special_tokens=False)["input_ids"]
        return list(ids) if after is None else list(ids[1:])

    def decode(self, ids: Sequence[int], after: int | None) -> str:
        """The text of tokens that follow a special token."""
        before = [] if after is None else [after]
        text = self.tokenizer.decode(
            [*before, *ids], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text if after is None else text.removeprefix(self._name(after))

    def _name(self, token: int) -> str:
        return self.tokenizer.convert_ids_to_tokens(token)


def _is_blank(text: str) -> bool:
    return not text.replace("\u2581", " ").strip()


def _one_of(texts: Iterable[str]) -> str:
    """A pattern of any of the texts, the longest first."""
    escaped = {re.sub(r"\d+", r"\\d+", re.escape(text)) for text in texts}
    return f"(?:{'|'.join(sorted(escaped, key=len, reverse=True))})"


def _like_both(one: str, other: str) -> str:
    """A pattern of two texts; numbers, and the one word that they differ in, may be others."""
    one, other = (re.sub(r"\d+", "0", text) for text in (one, other))
    start = _alike(one, other)
    end = min(_alike(one[::-1], other[::-1]), min(len(one), len(other)) - start)
    words = one[start : len(one) - end], other[start : len(other) - end]
    if one == other or any(re.search(r"\s|^$", word) for word in words):
        return _one_of((one, other))
    return _one_of([one[:start]]) + r"\S+?" + _one_of([one[len(one) - end :]])


WRITINGS: Memory[str, Writing] = Memory(REMEMBERED)


def can_be_asked(processor: Any) -> bool:
    """Whether it writes images into prompts; a tokenizer alone does not."""
    return hasattr(processor, "image_processor") and hasattr(processor, "tokenizer")


def writing_of(processor: Any, config: Any, arguments: Mapping[str, Any] | None = None) -> Writing:
    """What a processor writes for an image; it is asked once for each of its settings.

    Args:
        arguments: What its chat template is given besides the messages.

    Raises:
        ValueError: It writes no image token of the model's, or cannot be asked.
    """
    image, video = (token_ids(config, (name,)) for name in PLACEHOLDERS)
    plain = {n: v for n, v in vars(processor).items() if isinstance(v, str | int | float | None)}
    given = dict(arguments or {})
    key = repr((plain, vars(processor.image_processor), len(processor.tokenizer), image, given))

    def asked(missing: list[str]) -> list[Writing]:
        writing = _asked(processor, set(image), given)
        clip = _video(processor, writing, set(image), set(video), given)
        return [replace(writing, video=clip)]

    (writing,) = WRITINGS.recall(processor, [key], asked)
    return writing


def _asked(processor: Any, image: set[int], arguments: Mapping[str, Any]) -> Writing:
    unit, words, labels = _unit(processor, arguments)
    inner = unit.strip()
    blank = Writing(processor.tokenizer, unit, (), (), (), None, "", "")
    starts, parts = zip(
        *(_written(processor, blank, unit, size, image) for size in SIZES), strict=True
    )
    lead, trail = unit.partition(inner)[::2]
    shown = [text.removeprefix(lead).removesuffix(trail).split(RUN) for text in parts]
    counts = {len(part) - 1 for part in shown}
    first, last = processor.tokenizer.bos_token, processor.tokenizer.eos_token
    return Writing(
        processor.tokenizer,
        unit,
        _distinct(_after(part[0], first, last) for part in shown),
        _distinct(gap for part in shown for gap in part[1:-1]),
        _distinct(_before(part[-1], first, last) for part in shown),
        counts.pop() if len(counts) == 1 else None,
        trail + words,
        starts[0],
        labels,
        opening=_opening(processor, unit, trail + words, arguments),
    )


def _opening(
    processor: Any, unit: str, behind: str, arguments: Mapping[str, Any]
) -> tuple[str, str]:
    """How turns begin with an image, and what those that begin with words have besides.

    Args:
        behind: What stands between an image and words: where that is the same, nothing is missing.
    """
    if getattr(processor, "chat_template", None) is None:
        return "", ""
    try:
        shown, told = (_rendered(processor, count, arguments, "image") for count in (1, 0))
    except Exception:  # a template may refuse a turn without an image
        return "", ""
    shown, told = shown.partition(unit)[0], told.partition(WORDS)[0]
    names = [str(name) for name in processor.tokenizer.added_tokens_decoder.values()]
    opening = re.split("|".join(["\n", *map(re.escape, names)]), shown)[-1]
    space = told[len(shown) :] if told.startswith(shown) else ""
    is_missing = _is_blank(space) and not behind.startswith(space)
    return (opening, space) if opening and is_missing else ("", "")


def _distinct(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))


def _before(text: str, *tokens: str | None) -> str:
    """What stands before the first of the tokens: a prompt's own beginning is no image's."""
    for token in filter(None, tokens):
        text = text.partition(token)[0]
    return text


def _after(text: str, *tokens: str | None) -> str:
    for token in filter(None, tokens):
        text = text.rpartition(token)[2]
    return text


def _unit(processor: Any, arguments: Mapping[str, Any]) -> tuple[str, str, tuple[str, str]]:
    """What the template writes for an image, between it and the user's words, and its labels."""
    token = getattr(processor, "image_token", None)
    if getattr(processor, "chat_template", None) is None:
        if token is None:
            raise ValueError(
                f"{type(processor).__name__} has neither a chat template nor an image_token, so "
                "what it writes for an image cannot be asked: leave processor= out"
            )
        return str(token), "", ("", "")
    found = _rendered_unit(processor, "image", arguments)
    if found is None:
        raise ValueError(
            f"the chat template of {type(processor).__name__} writes nothing for an image: use "
            "the model's own processor"
        )
    return found


def _rendered_unit(
    processor: Any, kind: str, arguments: Mapping[str, Any]
) -> tuple[str, str, tuple[str, str]] | None:
    """As `_unit`, of an image or a video; None where the template writes nothing for it."""
    one = _rendered(processor, 1, arguments, kind)
    for fewer, more in ((0, 1), (1, 2)):
        try:
            texts = (_rendered(processor, images, arguments, kind) for images in (fewer, more))
            label, unit = _labelled(processor, _added(*texts))
        except Exception:  # a template may refuse a turn without an image, or with two
            continue
        if unit.strip() and unit in one:
            words = one.partition(unit)[2].partition(WORDS)[0]
            return unit, words, (label, _label_of_two(processor, unit, arguments, kind))
    return None


def _labelled(processor: Any, unit: str) -> tuple[str, str]:
    """A label with a number, which stands before all special tokens, and the rest."""
    names = [str(name) for name in processor.tokenizer.added_tokens_decoder.values()]
    special = [place for name in names if not _is_blank(name) and (place := unit.find(name)) >= 0]
    start = min(special, default=0)
    return (unit[:start], unit[start:]) if re.search(r"\d", unit[:start]) else ("", unit)


def _label_of_two(processor: Any, unit: str, arguments: Mapping[str, Any], kind: str) -> str:
    """What the template writes before the second of two images, and not for the first alone."""
    try:
        texts = _rendered(processor, 2, arguments, kind).split(unit)
    except Exception:  # it may refuse two images
        return ""
    space = unit[: len(unit) - len(unit.lstrip())]
    return texts[1] + space if len(texts) == 3 and not _is_blank(texts[1]) else ""


def _rendered(processor: Any, count: int, arguments: Mapping[str, Any], kind: str) -> str:
    content = [*[{"type": kind}] * count, {"type": "text", "text": WORDS}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        **{**arguments, "add_generation_prompt": True, "tokenize": False},
    )


def _added(fewer: str, more: str) -> str:
    """What a text has more than another; "" unless the rest is the same, up to white space."""
    start = _alike(fewer, more)
    end = len(more) - min(_alike(fewer[::-1], more[::-1]), len(fewer) - start)
    rest = more[:start] + more[end:]
    return more[start:end] if "".join(rest.split()) == "".join(fewer.split()) else ""


def _alike(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many characters or tokens both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _bounds(tokenizer: Any) -> tuple[str, str]:
    """Two texts that the tokenizer can spell; one that knows whole words alone has no others."""

    def is_spelled(text: str) -> bool:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokenizer.decode(ids).strip() == text

    if is_spelled(BEFORE) and is_spelled(WORDS):
        return BEFORE, WORDS
    words = sorted(filter(str.isalnum, tokenizer.get_vocab()), key=lambda word: (-len(word), word))
    own = [word for word in words if is_spelled(word)][:2]
    return (own[0], own[1]) if len(own) == 2 else (BEFORE, WORDS)


def _written(
    processor: Any, blank: Writing, unit: str, size: tuple[int, int], image: set[int]
) -> tuple[str, str]:
    """What the processor puts before a prompt, and in an image's place in it, as text."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    try:
        ids = _ids_of(processor, unit, images=[[Image.fromarray(pixels)]])
    except Exception as error:
        raise ValueError(
            f"{type(processor).__name__} was asked what it writes for an image of {size[0]} x "
            f"{size[1]} pixels in {short(unit)}, and failed: {error}"
        ) from error
    start, found = _in_place(ids, blank, image)
    special = Counter(token for token in ids if token in blank.special)
    if RUN not in found or max(special.values(), default=0) > max(special[t] for t in image):
        raise ValueError(
            f"the processor belongs to another model: {type(processor).__name__} does not fill an "
            f"image's place with the model's image token ({', '.join(map(str, image))}). Load both "
            "from one checkpoint"
        )
    return start, found


def _ids_of(processor: Any, unit: str, **shown: Any) -> list[int]:
    before, after = _bounds(processor.tokenizer)
    with torch.device("cpu"):
        made = processor(text=[f"{before}{unit}{after}"], return_tensors="pt", **shown)
    return [int(token) for token in made["input_ids"][0]]


def _in_place(
    ids: list[int], blank: Writing, placeholders: set[int], videos: AbstractSet[int] = frozenset()
) -> tuple[str, str]:
    """What stands before a prompt, and in the place of `unit` in it, as text."""
    read = "".join(piece.text for piece in pieces_of(ids, blank, placeholders, (), videos))
    before, after = _bounds(blank.tokenizer)
    start, _, rest = read.partition(before)
    return start, rest.rpartition(after)[0]


def _video(
    processor: Any,
    writing: Writing,
    image: set[int],
    video: set[int],
    arguments: Mapping[str, Any],
) -> re.Pattern[str] | None:
    """A pattern of what a processor writes for a video, asked about two lengths.

    None where that cannot be told from an image: then what its tokens enclose goes.
    """
    token = getattr(processor, "video_token", None)
    if getattr(processor, "video_processor", None) is None or token is None:
        return None
    unit, labels = str(token), ("", "")
    try:
        found = _rendered_unit(processor, "video", arguments)
        if found is not None and unit in found[0]:
            unit, labels = found[0].strip(), found[2]
        texts = [
            _in_place(
                _ids_of(processor, unit, **_clip(frames)), writing, image | video, video - image
            )[1]
            for frames in FRAMES
        ]
    except Exception:  # a processor may refuse short videos, and most prompts have none
        return None
    (run, *others) = {mark for text in texts for mark in text if mark in (RUN, CLIP)} or {""}
    if others or not run:
        return None
    shown = [text.split(run) for text in texts]
    around = [(part[0], part[-1]) for part in shown]
    opening, closing = (_like_both(*texts) for texts in zip(*around, strict=True))
    if run == RUN and not _is_apart([before for before, _ in around], writing.openings):
        return None
    gaps = _distinct(gap for part in shown for gap in part[1:-1])
    if not any((*gaps, *around[0])):
        return None
    inside = f"(?:{_one_of(gaps)}{run})*" if gaps else ""
    label = f"{_one_of(labels)}?"
    return re.compile(f"{label}{opening}{run}{inside}{closing}")


def _is_apart(openings: Iterable[str], others: Iterable[str]) -> bool:
    """Whether texts begin what the other texts do not."""
    pattern = re.compile(_one_of(others))
    return not any(pattern.fullmatch(opening) for opening in openings)


def _clip(frames: int) -> dict[str, Any]:
    """Arguments of a processor's call: a video of two frames a second."""
    shape = (frames, *SIZES[0][::-1], 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    known = {
        "fps": 2.0,
        "total_num_frames": frames,
        "duration": frames / 2,
        "frames_indices": list(range(frames)),
    }
    return {"videos": [pixels], "video_metadata": [known], "do_sample_frames": False}


# A prompt's row as text


@dataclass(frozen=True)
class Piece:
    """Tokens `first` to `after` of a row: text, one special token, or a run of image tokens."""

    first: int
    after: int
    text: str
    is_text: bool


def pieces_of(
    ids: Sequence[int],
    writing: Writing,
    placeholders: AbstractSet[int],
    starts: Sequence[int] = (),
    videos: AbstractSet[int] = frozenset(),
) -> list[Piece]:
    """A row in pieces that the tokenizer treats by themselves.

    Args:
        ids: Without padding.
        placeholders: Ids of image tokens.
        starts: Where a run of image tokens ends and another begins, though nothing is between.
        videos: Those of the placeholders that are videos' alone.
    """

    def kind(numbered: tuple[int, int]) -> Any:
        number, token = numbered
        if token in placeholders:
            return token, sum(start <= number for start in starts)
        return number if token in writing.special else "text"

    pieces: list[Piece] = []
    for of, run in groupby(enumerate(ids), kind):
        numbers = [number for number, _ in run]
        first, after = numbers[0], numbers[-1] + 1
        if isinstance(of, tuple):
            text = CLIP if ids[first] in videos else RUN
        elif of == "text":
            text = writing.decode(ids[first:after], ids[first - 1] if first else None)
            text = re.sub(f"[{RUN}{CLIP}]", "\ufffd", text)
        else:
            text = writing.special[ids[first]]
        pieces.append(Piece(first, after, text, of == "text"))
    return pieces


@dataclass(frozen=True)
class Edit:
    """Characters `start` to `stop` of a row's text, and what is put in their place."""

    start: int
    stop: int
    put: str | tuple[int, ...] = ""


class WrittenRow:
    """A row of a prompt, compared with what its processor writes.

    Args:
        ids: Its tokens, without padding.
        placeholders: Ids of image tokens.
        starts: Numbers of tokens at which an entry of the encoder's output begins.
        writing: The processor's.
        named: Ids of markers, the config's and the caller's.
        videos: Ids of tokens that are videos' alone.
    """

    def __init__(
        self,
        ids: Sequence[int],
        placeholders: set[int],
        starts: set[int],
        writing: Writing,
        named: AbstractSet[int] = frozenset(),
        videos: AbstractSet[int] = frozenset(),
    ):
        self.ids = ids
        self.named = named
        self.placeholders = placeholders
        self.writing = writing
        # Where nothing stands around an image, two may stand side by side.
        cuts = () if writing.is_marked or writing.gaps else sorted(starts)
        self.pieces = pieces_of(ids, writing, placeholders, cuts, videos)
        self.text = "".join(piece.text for piece in self.pieces)
        self.images = list(self._images())

    def _images(self) -> Iterator[Owned]:
        runs = [piece for piece in self.pieces if piece.text in (RUN, CLIP)]
        matches = list(self.writing.pattern.finditer(self.text))
        for match in matches:
            count = sum(match.group().count(run) for run in (RUN, CLIP))
            own, runs = runs[:count], runs[count:]
            tokens = (token for run in own for token in range(run.first, run.after))
            before = self.text[: match.start()]
            label = len(self.writing.label_before(before, len(matches)))
            yield Owned(tuple(tokens), match.start() - label, match.end(), label)

    def without_images(self, replacement: tuple[int, ...]) -> list[Entry]:
        """The row with other tokens in the place of each image and video, none by default.

        Markers that are named go too, where a video has them and no image.
        """
        edits = self._videos(replacement)
        edits += [
            edit
            for image in self.images
            if not any(edit.start < image.stop and image.start < edit.stop for edit in edits)
            for edit in (
                Edit(image.start, image.start, self._space_at(image.start)),
                Edit(image.start, image.stop, replacement),
            )
        ]
        if edits:
            edits += self._named(edits)
        return self.edited(sorted(edits, key=lambda edit: edit.start))

    def _space_at(self, start: int) -> str:
        """What the template puts before words in the place of an image that begins its turn."""
        opening, space = self.writing.opening
        return space if opening and self.text[:start].endswith(opening) else ""

    def _videos(self, replacement: tuple[int, ...]) -> list[Edit]:
        video = self.writing.video
        matches = () if video is None else video.finditer(self.text)
        return [Edit(match.start(), match.end(), replacement) for match in matches]

    def _named(self, edits: Sequence[Edit]) -> Iterator[Edit]:
        """Named markers that are in no other edit."""
        for piece, start in zip(self.pieces, self._places, strict=True):
            inside = any(edit.start <= start < edit.stop for edit in edits)
            if self.ids[piece.first] in self.named and not piece.is_text and not inside:
                yield Edit(start, start + len(piece.text))

    def left_over(self, template: str) -> set[str]:
        """Words before images that end in the image's number, and stay.

        Args:
            template: Text of the chat template: only words that it has before a number are meant.
        """
        found = set()
        for number, image in enumerate(self.images, start=1):
            label = re.search(rf"([^\W\d]+)\W?{number}\W*$", self.text[: image.start])
            if label and re.search(rf"{label[1]}\W?[{{'\"]", template):
                found.add(label.group())
        return found

    def with_text_before(self, text: str, space: str) -> list[Entry]:
        """The row with a text before its first image or video.

        Args:
            space: What the template puts behind such a text, up to the image's own markers.
        """
        unit = self.writing.unit
        videos = (video.start for video in self._videos(()))
        stop = min((*(image.start for image in self.images), *videos))
        own = unit[: len(unit) - len(unit.lstrip())]
        start = stop - len(own) if self.text[:stop].endswith(own) else stop
        return self.edited([Edit(start, stop, self._space_at(start) + text + space)])

    def as_asked(self, unit: str) -> str:
        """The row's text as the processor is given it, `unit` in the place of each image.

        Labels of images stay.
        """
        ends = [0, *(image.stop for image in self.images)]
        begins = [*(image.start + image.label for image in self.images), len(self.text)]
        kept = (self.text[end:begin] for end, begin in zip(ends, begins, strict=True))
        return unit.join(kept)

    def like(self, ids: Sequence[int]) -> "WrittenRow":
        """Another row of the same processor's."""
        return WrittenRow(ids, self.placeholders, set(), self.writing)

    def compared(self, ids: Sequence[int]) -> list[Entry]:
        """Another row as entries of this one: what both begin and end with, and between them
        tokens of this row's first image for the same ones of other images.
        """
        head = _alike(self.ids, ids)
        tail = min(_alike(self.ids[::-1], ids[::-1]), min(len(self.ids), len(ids)) - head)
        own = range(self.images[0].tokens[0], self.images[0].tokens[-1] + 1)
        known = {self.ids[number]: number for number in own}
        entries: list[Entry] = [(number, None) for number in range(head)]
        for token in ids[head : len(ids) - tail]:
            is_known = token in known
            entries.append((known[token], None) if is_known else (max(head - 1, 0), token))
        return [*entries, *((n, None) for n in range(len(self.ids) - tail, len(self.ids)))]

    def edited(self, edits: Sequence[Edit]) -> list[Entry]:
        """The row with edits, in their order; text that one touches is made into tokens again.

        Raises:
            ValueError: A part of a token would have to go, and the tokenizer does not make the
                row's tokens of its text.
        """
        entries: list[Entry] = []
        for is_text, run in groupby(self._parts(edits), lambda part: part.is_text):
            if is_text:
                entries += self._joined(list(run))
            else:
                entries += [entry for part in run for entry in part.tokens]
        return entries

    def _parts(self, edits: Sequence[Edit]) -> Iterator["Part"]:
        """Kept pieces and parts of them, and what is put between them."""
        start = 0
        for edit in edits:
            yield from self._kept(start, edit.start)
            if edit.put:
                yield Part(edit.put, self._token_at(edit.start), None)
            start = edit.stop
        yield from self._kept(start, len(self.text))

    def _kept(self, start: int, stop: int) -> Iterator["Part"]:
        for piece, place in zip(self.pieces, self._places, strict=True):
            text = piece.text[max(start - place, 0) : max(stop - place, 0)]
            if text:
                yield Part(text, piece.first, piece)

    @cached_property
    def _places(self) -> list[int]:
        """The first character of each piece."""
        return list(accumulate((len(piece.text) for piece in self.pieces), initial=0))[:-1]

    def _token_at(self, place: int) -> int:
        """The first token of the piece that a character is in."""
        return self.pieces[min(bisect_right(self._places, place), len(self.pieces)) - 1].first

    def _before(self, number: int) -> int | None:
        """The token that a piece follows."""
        return self.ids[number - 1] if number else None

    def _joined(self, parts: Sequence["Part"]) -> list[Entry]:
        """Text of several parts as tokens; those of a whole piece, as they are."""
        (first, *others) = parts
        if not others and first.is_whole:
            return first.tokens
        olds = list(dict.fromkeys(part.piece for part in parts if part.piece is not None))
        is_exact = all(
            self.writing.encode(old.text, self._before(old.first))
            == list(self.ids[old.first : old.after])
            for old in olds
        )
        if is_exact:
            after = self._before(olds[0].first if olds else first.number)
            text = "".join(str(part.put) for part in parts)
            return [(first.number, token) for token in self.writing.encode(text, after)]
        if all(part.is_whole for part in parts):
            return [entry for part in parts for entry in part.tokens]
        raise ValueError(
            f"the text {short(olds[0].text[-40:])} of the prompt holds a part of "
            "what the processor "
            "wrote for an image, and its tokens are not those that the tokenizer makes of it: "
            "build the prompt with the processor's chat template"
        )


@dataclass(frozen=True)
class Part:
    """Of an edited row: what is kept of a piece, or is put in.

    Args:
        put: Text, or token ids.
        number: Of the token in whose place it stands.
        piece: That it is kept of; None: it is new.
    """

    put: str | tuple[int, ...]
    number: int
    piece: Piece | None

    @property
    def is_text(self) -> bool:
        return isinstance(self.put, str) if self.piece is None else self.piece.is_text

    @property
    def is_whole(self) -> bool:
        return self.piece is not None and self.put == self.piece.text

    @property
    def tokens(self) -> list[Entry]:
        """Where it is not to be made of text."""
        if self.piece is not None:
            return [(number, None) for number in range(self.piece.first, self.piece.after)]
        assert isinstance(self.put, tuple)
        return [(self.number, token) for token in self.put]


# Without a processor


class BareRow:
    """A row of a prompt of which only ids are known.

    An image is what its image tokens enclose. Where several entries of the encoder's output stand
    apart, they are tiles of one image if marker-like tokens are between them that neither end one
    image and begin the next, nor stand around text.

    Args:
        ids: Its tokens, without padding.
        placeholders: Ids of image tokens.
        videos: Those of them that are a video's.
        starts: Numbers of tokens at which an entry of the encoder's output begins.
        named: Ids of markers, the config's and the caller's.
        is_near: Whether an id looks like a marker's.
        bounds: Ids that begin, end or pad a text or a turn.
    """

    def __init__(
        self,
        ids: Sequence[int],
        placeholders: set[int],
        videos: set[int],
        starts: set[int],
        named: set[int],
        is_near: Callable[[int], bool],
        bounds: set[int],
    ):
        self.ids = ids
        self.videos = videos
        self.named = named
        self.is_near = is_near
        self.bounds = bounds
        self.images = [
            Owned(tuple(own), own[0], own[-1] + 1) for own in self._grouped(placeholders, starts)
        ]

    def _is_mark(self, token: int) -> bool:
        return token in self.named or self.is_near(token)

    def _grouped(self, placeholders: set[int], starts: set[int]) -> list[list[int]]:
        """Numbers of image tokens, image by image."""
        tokens = [number for number, token in enumerate(self.ids) if token in placeholders]
        if not tokens:
            return []
        gaps = {after: list(self.ids[before + 1 : after]) for before, after in pairwise(tokens)}
        opening, closing = self._opening(tokens[0]), self._closing(tokens[-1])
        between = {after for after, gap in gaps.items() if self._is_between(gap, opening, closing)}
        # A gap within an entry and an image: then entries are whole images, and no tiles.
        is_whole = any(gap and not {after} & (starts | between) for after, gap in gaps.items())
        is_marked = bool(closing) or self._has_mark(self.ids[max(tokens[0] - 1, 0) : tokens[0]])
        groups = [[tokens[0]]]
        for before, after in pairwise(tokens):
            gap = gaps[after]
            if self._has_mark(gap):
                ends = after in between or (is_whole and after in starts)
            else:
                ends = after in starts and (bool(gap) or not is_marked)
            if ends or self.ids[before] != self.ids[after]:
                groups.append([])
            groups[-1].append(after)
        return groups

    def _opening(self, first: int) -> list[int]:
        """The last marker-like token of the three before an image, and what follows it."""
        before = list(self.ids[max(first - 3, 0) : first])
        marks = [place for place, token in enumerate(before) if self._is_mark(token)]
        return before[marks[-1] :] if marks else []

    def _closing(self, last: int) -> list[int]:
        """Marker-like tokens behind an image."""
        return list(takewhile(self._is_mark, self.ids[last + 1 : last + 4]))

    def _is_between(self, gap: list[int], opening: list[int], closing: list[int]) -> bool:
        """Whether a gap closes an image and opens the next, or has text within markers."""
        marks = [place for place, token in enumerate(gap) if self._is_mark(token)]
        if len(marks) > 1 and len(marks) <= marks[-1] - marks[0]:
            return True
        around = gap[: len(closing)] == closing and gap[len(gap) - len(opening) :] == opening
        return bool(marks) and len(opening) + len(closing) <= len(gap) and around

    def _has_mark(self, gap: Sequence[int]) -> bool:
        return any(map(self._is_mark, gap))

    def without_images(self, replacement: tuple[int, ...]) -> list[Entry]:
        """The row with other tokens in the place of each image, none by default."""
        if not self.images:
            return [(number, None) for number in range(len(self.ids))]
        gone = {n for image in self.images for n in self._enclosed(image)}
        gone |= {number for number, token in enumerate(self.ids) if token in self.named}
        begins = {image.start for image in self.images}
        entries: list[Entry] = []
        for number in range(len(self.ids)):
            if number in begins:
                entries += [(number, token) for token in replacement]
            if number not in gone:
                entries.append((number, None))
        return entries

    def _enclosed(self, image: Owned) -> Iterable[int]:
        """Tokens of an image with all between them; text between a video's frames stays."""
        is_video = self.ids[image.start] in self.videos
        return image.tokens if is_video else range(image.start, image.stop)

    def left_over(self) -> set[int]:
        """Tokens next to images that look like their markers, and stay.

        Before an image alone, with no marker behind it, they are taken for the role's, which many
        templates put there, unless they follow words or another image. Single tokens between
        images, not the same ones, are tiles' numbers.
        """
        found = set()
        for image in self.images:
            sides = self.ids[image.stop :], self.ids[: image.start][::-1]
            after, before = (
                next((token for token in side if token not in self.named), None) for side in sides
            )
            near = {t for t in (before, after) if t is not None and self.is_near(t)}
            is_inside = before in near and self._is_inside_turn(image.start - 1)
            if after in near or (sides[0] and sides[0][0] in self.named) or is_inside:
                found |= near
        pairs = pairwise(self.images)
        alone = {self.ids[one.stop] for one, next_one in pairs if next_one.start - one.stop == 1}
        return found | (alone - self.named if len(alone) > 1 else set())

    def _is_inside_turn(self, number: int) -> bool:
        """Whether a token follows words or an image, and no special token of a turn's beginning."""
        before = self.ids[number - 1] if number else None
        return before is not None and before not in self.bounds and not self.is_near(before)


# Rows of a batch


def rows_of(
    input_ids: Tensor,
    attention_mask: Tensor,
    features: Features | None,
    model: Any,
    processor: Any = None,
    markers: tuple[int, ...] = (),
    arguments: Mapping[str, Any] | None = None,
) -> list[Any]:
    """The rows of a batch with their images: `WrittenRow`s with a processor, else `BareRow`s.

    Args:
        input_ids: `[B, T]`.
        attention_mask: `[B, T]`, 0 on padding.
        features: Encoded images, whose entries may be images or tiles.
        model: Names the image tokens in its config.
        processor: The model's own; one that cannot write images counts as none.
        markers: Ids of tokens around an image that the config does not name.
        arguments: What the processor's chat template was given besides the messages.
    """
    config = model.config
    placeholders = set(token_ids(config, PLACEHOLDERS))
    rows, masks = input_ids.tolist(), attention_mask.tolist()
    kept = [
        [token for token, is_kept in zip(row, mask, strict=True) if is_kept]
        for row, mask in zip(rows, masks, strict=True)
    ]
    starts = _entry_starts(kept, features, config)
    named = {*named_markers(config), *markers} - placeholders
    images, videos = (set(token_ids(config, (name,))) for name in PLACEHOLDERS)
    if can_be_asked(processor):
        writing = writing_of(processor, config, arguments)
        return [
            WrittenRow(row, placeholders, own, writing, named, videos - images)
            for row, own in zip(kept, starts, strict=True)
        ]
    bounds = _ends(model)
    is_near = _nearness(model, placeholders, bounds)
    return [
        BareRow(row, placeholders, videos, own, named, is_near, bounds)
        for row, own in zip(kept, starts, strict=True)
    ]


def named_markers(config: Any) -> tuple[int, ...]:
    """Ids of the markers that a config names, or one of the configs in it."""
    found = list(token_ids(config, MARKERS))
    for name in getattr(config, "sub_configs", {}):
        inner = getattr(config, name, None)
        found += [] if inner is None else named_markers(inner)
    return tuple(dict.fromkeys(found))


def _ends(model: Any) -> set[int]:
    """Ids that begin, end or pad a text or a turn."""
    settings = getattr(model, "generation_config", model.config)
    return set(token_ids(settings, ("bos_token_id", "eos_token_id", "pad_token_id")))


def _nearness(model: Any, placeholders: set[int], bounds: set[int]) -> Callable[[int], bool]:
    """Whether an id is close to an image token's, and none of a text's bounds."""
    size = model.get_input_embeddings().num_embeddings
    most = min(NEAR, size // SHARE)
    others = {*placeholders, *bounds}
    return lambda token: (
        token not in others and any(abs(token - own) <= most for own in placeholders)
    )


def _entry_starts(
    rows: Sequence[Sequence[int]], features: Features | None, config: Any
) -> list[set[int]]:
    """By row, numbers of the tokens at which an entry of the encoder's output begins.

    Two images may stand side by side with nothing between them, so how many tokens each fills is
    asked of the encoder's output; without it a run of image tokens is one entry.
    """
    starts: list[set[int]] = [set() for _ in rows]
    for modality in ("image", "video"):
        ids = set(token_ids(config, (f"{modality}_token_id",)))
        places = [[n for n, token in enumerate(row) if token in ids] for row in rows]
        lengths = picture_lengths(features, modality)
        entries = pictures_by_row([len(own) for own in places], lengths)
        for own, found, entry in zip(starts, places, entries, strict=True):
            sizes = accumulate((lengths[e] for e in entry[:-1]), initial=0)
            if entry:
                own.update(found[offset] for offset in sizes)
            else:
                own.update(set(found) - {n + 1 for n in found})
    return starts


_WARNED: WeakSet[Any] = WeakSet()  # models


def warn_of_rest(model: Any, rows: Sequence[Any], processor: Any) -> None:
    """Once for a model, of what looks like a part of images and stays in image-free prompts."""
    if can_be_asked(processor):
        template = str(getattr(processor, "chat_template", ""))
        labels = sorted(set().union(*(row.left_over(template) for row in rows)))
        rest = labels and (
            f"{', '.join(map(short, labels))} before it stays, which looks like a label of "
            "its chat template's: if the template was given arguments (add_vision_id), pass them "
            "to generate as chat_template_kwargs="
        )
    else:
        left = sorted(set().union(*(row.left_over() for row in rows)))
        rest = left and (
            f"tokens {left} next to it stay, which look like its markers: pass processor=, the "
            "model's own, which says what belongs to an image, or name those that are by markers="
        )
    if rest and model not in _WARNED:
        _WARNED.add(model)
        warnings.warn(
            f"the image is taken out of the prompt of {type(model).__name__}, and {rest}",
            stacklevel=2,
        )
