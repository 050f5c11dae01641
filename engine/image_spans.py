"""Which tokens of a prompt belong to its images: all that the processor wrote for each of them.

Markers, tokens of tiles, rows and columns, and the line breaks between them differ from processor
to processor and with the size of an image. With the processor they are exact: it is asked to write
a few images, and the prompt is compared with what it wrote. Without it, an image is what its image
tokens enclose and the markers that the model's config names.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate, pairwise, takewhile
from typing import Any
from weakref import WeakSet

from torch import Tensor

from sightline.engine.processor_probe import can_be_asked, writing_of
from sightline.engine.prompt_text import Entry, Owned, WrittenRow
from sightline.messages import short
from sightline.model_protocol import Model
from sightline.vision.features import (
    PLACEHOLDERS,
    Features,
    image_lengths,
    images_by_row,
    token_ids,
)

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
# A token whose id is this close to the image token's looks like a marker; less in a vocabulary
# that is small.
NEAR, SHARE = 16, 48


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
                # An entry may hold all images of a row: where no marker is, words are between them.
                ends |= bool(gap) and not is_marked and self.ids[after] not in self.videos
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


def rows_of(
    input_ids: Tensor,
    attention_mask: Tensor,
    features: Features | None,
    model: Model,
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


def _ends(model: Model) -> set[int]:
    """Ids that begin, end or pad a text or a turn."""
    settings = getattr(model, "generation_config", model.config)
    return set(token_ids(settings, ("bos_token_id", "eos_token_id", "pad_token_id")))


def _nearness(model: Model, placeholders: set[int], bounds: set[int]) -> Callable[[int], bool]:
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
        lengths = image_lengths(features, modality)
        entries = images_by_row([len(own) for own in places], lengths)
        for own, found, entry in zip(starts, places, entries, strict=True):
            sizes = accumulate((lengths[e] for e in entry[:-1]), initial=0)
            if entry:
                own.update(found[offset] for offset in sizes)
            else:
                own.update(set(found) - {n + 1 for n in found})
    return starts


_WARNED: WeakSet[Any] = WeakSet()  # models


def warn_of_rest(model: Model, rows: Sequence[Any], processor: Any) -> None:
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
