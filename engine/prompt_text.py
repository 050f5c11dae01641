"""A prompt's row as text: pieces of it, edits of them, and back to token ids."""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, groupby, takewhile
from typing import Any

from sightline.messages import short

RUN, CLIP = "\ufffc", "\ufffb"  # in a prompt's text, a run of image tokens, and of a video's own

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
        return {token: str(name) for token, name in added if not is_blank(str(name))}

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
        inside = f"(?:{one_of(self.gaps)}{run}){most}" if self.gaps else ""
        return re.compile(f"{one_of(openings)}?{run}{inside}{one_of(self.closings)}?")

    def label_before(self, text: str, images: int) -> str:
        """The template's label that a text before one of so many images ends in."""
        found = re.search(f"{one_of([self.labels[images > 1]])}$", text)
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


def is_blank(text: str) -> bool:
    return not text.replace("\u2581", " ").strip()


def one_of(texts: Iterable[str]) -> str:
    """A pattern of any of the texts, the longest first."""
    escaped = {re.sub(r"\d+", r"\\d+", re.escape(text)) for text in texts}
    return f"(?:{'|'.join(sorted(escaped, key=len, reverse=True))})"


def like_both(one: str, other: str) -> str:
    """A pattern of two texts; numbers, and the one word that they differ in, may be others."""
    one, other = (re.sub(r"\d+", "0", text) for text in (one, other))
    start = alike(one, other)
    end = min(alike(one[::-1], other[::-1]), min(len(one), len(other)) - start)
    words = one[start : len(one) - end], other[start : len(other) - end]
    if one == other or any(re.search(r"\s|^$", word) for word in words):
        return one_of((one, other))
    return one_of([one[:start]]) + r"\S+?" + one_of([one[len(one) - end :]])


def alike(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many characters or tokens both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


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
        head = alike(self.ids, ids)
        tail = min(alike(self.ids[::-1], ids[::-1]), min(len(self.ids), len(ids)) - head)
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
