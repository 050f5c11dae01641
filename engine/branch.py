"""What one answer is conditioned on: a prompt and the pictures in it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sightline.attention.base import AttentionEdit
from sightline.engine.image_spans import rows_of, warn_of_rest
from sightline.engine.kv_cache import has_windows, scratch_cache
from sightline.model_protocol import Model, UnsupportedModelError
from sightline.vision.features import (
    PLACEHOLDERS,
    is_one_of,
    picture_lengths,
    pictures_by_row,
    select_rows,
    token_ids,
)

PIXELS = (
    "pixel_values",
    "pixel_values_images",
    "pixel_values_local",
    "pixel_values_videos",
    "high_res_pixel_values",
)

# Everything that transformers' `get_image_features` and `get_video_features` take. `generate`
# removes the lot once it has encoded the pictures, unless a strategy's signature names it.
ENCODER_INPUTS = (
    *PIXELS,
    "batch_num_images",
    "downsample_mode",
    "image_grid_hw",
    "image_grid_thw",
    "image_grids",
    "image_merge_sizes",
    "image_position_ids",
    "image_sizes",
    "image_token_pooling",
    "interpolate_pos_encoding",
    "num_frames_per_video",
    "num_local_patches",
    "patches_grid",
    "pixel_attention_mask",
    "pixel_mask",
    "qformer_attention_mask",
    "qformer_input_ids",
    "spatial_shapes",
    "target_sizes",
    "target_sizes_videos",
    "tile_fine_mask",
    "video_grid_thw",
    "video_grids",
    "video_merge_sizes",
    "video_position_ids",
    "video_token_pooling",
    "vision_aspect_ratio",
    "vision_feature_layer",
    "vision_feature_layers",
    "vision_feature_select_strategy",
)

# What a video's positions are made of, besides its grid: seconds from one step to the next.
POSITION_INPUTS = ("second_per_grid_ts", "video_second_per_grid")


@dataclass(frozen=True)
class Prefix:
    """Keys and values of a branch's first columns, read once for all that begin with them.

    Args:
        layers: Keys and values of each layer, `[B, Hkv, W, D]` each.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]

    @property
    def length(self) -> int:
        """W, padding included."""
        return self.layers[0][0].shape[2]

    def rows(self, index: Tensor) -> "Prefix":
        return Prefix(tuple((keys[index], values[index]) for keys, values in self.layers))


@dataclass(frozen=True)
class Call:
    """What `generate` was asked for, besides the prompt.

    Args:
        pictures: Of each row, in the order of its prompt; empty where the caller gave none.
        generation_config: As `generate` prepared it.
        processor: The model's own; None where the caller gave none.
        chat_template_kwargs: What the prompt's chat template was given besides the messages.
        processor_kwargs: The arguments that it made the prompt with.
    """

    pictures: tuple[tuple[Any, ...], ...] = ()
    generation_config: Any = None
    processor: Any = field(default=None, repr=False)
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    processor_kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Branch:
    """One block of B rows of the ensemble.

    Args:
        input_ids: `[B, T]`, ending in the last column. Padding stands on the left, and, where a
            prefix ends, also between it and the rest.
        attention_mask: `[B, T]`, 1 on tokens and 0 on padding.
        image_mask: `[B, T]` bool, true on the tokens that pictures and videos fill.
        position_ids: `[B, T]`, or `[P, B, T]` where positions have P parts (M-RoPE). None: those
            that the model gives these tokens.
        aligned: Further tensors that run along the prompt, `[B, T, ...]` (token types).
        features: Encoded pictures by modality, as in transformers' `mm_encoder_outputs`; empty for
            a branch that sees none. None: to be encoded from `pixels`.
        pixels: The processor's pictures and their companions; empty where no part asked for them.
        attention_edits: What its attention weighs more or less.
        prefix: Its first columns, where they were read before.
        notes: What preparations leave to rules, one entry per row.
        call: What the caller asked for.
    """

    input_ids: Tensor
    attention_mask: Tensor
    image_mask: Tensor
    position_ids: Tensor | None = None
    aligned: Mapping[str, Tensor] = field(default_factory=dict)
    features: Mapping[str, Any] | None = field(default_factory=dict)
    pixels: Mapping[str, Any] = field(default_factory=dict)
    attention_edits: tuple[AttentionEdit, ...] = ()
    prefix: Prefix | None = None
    notes: Mapping[str, Tensor] = field(default_factory=dict)
    call: Call = Call()

    @property
    def length(self) -> int:
        """T, padding included."""
        return self.input_ids.shape[1]

    def rows(self, index: Tensor, config: Any) -> "Branch":
        """The chosen rows, in the order of `index`, with their pictures."""
        positions, chosen = self.position_ids, index.tolist()
        pictures = self.call.pictures
        return replace(
            self,
            input_ids=self.input_ids[index],
            attention_mask=self.attention_mask[index],
            image_mask=self.image_mask[index],
            position_ids=None if positions is None else positions[..., index, :],
            aligned={name: values[index] for name, values in self.aligned.items()},
            features=self.features and select_rows(self.features, self.input_ids, config, chosen),
            pixels={},
            prefix=None if self.prefix is None else self.prefix.rows(index),
            notes={name: values[index] for name, values in self.notes.items()},
            call=replace(
                self.call, pictures=tuple(pictures[row] for row in chosen) if pictures else ()
            ),
        )

    def cache(self, model: Model) -> Any:
        """To read the prompt into: it holds what was read of it before, the prefix."""
        return scratch_cache(model, () if self.prefix is None else self.prefix.layers)

    def texts(self) -> list[tuple]:
        """Of each row all that its keys depend on, where it has no picture: tokens, places, types.

        Padding is among it.
        """
        assert self.position_ids is not None, "a completed branch has positions"
        positions = self.position_ids.reshape(-1, *self.input_ids.shape)
        read = (self.input_ids, self.attention_mask, *positions, *self.aligned.values())
        rows = zip(*(values.flatten(1).tolist() for values in read), strict=True)
        return [tuple(map(tuple, row)) for row in rows]

    def distinct(self, config: Any) -> tuple["Branch", Tensor]:
        """One of each kind of equal rows, and `[B]`: which of them each row is.

        Rows are equal when their keys must be: same tokens, places and types. Where pictures or a
        prefix may tell rows apart, each is of a kind of its own.
        """
        count = len(self.input_ids)
        every = torch.arange(count, device=self.input_ids.device)
        if self.features or self.prefix is not None or count == 1:
            return self, every
        kinds: dict[tuple, int] = {}
        kind_of = [kinds.setdefault(row, len(kinds)) for row in self.texts()]
        if len(kinds) == count:
            return self, every
        firsts = [kind_of.index(kind) for kind in range(len(kinds))]
        return self.rows(every.new_tensor(firsts), config), every.new_tensor(kind_of)

    def split(self, starts: Sequence[int]) -> "Branch":
        """The same rows, what stands before column `starts[r]` of row r padded by itself.

        So columns are the same in every row up to one, and a prefix can be shared from there.
        """
        heads, tails = [], []
        for row, start in enumerate(starts):
            tokens = torch.nonzero(self.attention_mask[row], as_tuple=True)[0].tolist()
            heads.append([(place, None) for place in tokens if place < start])
            tails.append([(place, None) for place in tokens if place >= start])
        return self.gathered(side_by_side(heads, tails), keeps_pictures=True)

    def regathered(self, rows: Sequence[Sequence[tuple[int, int | None]]]) -> "Branch":
        """Rows of entries as `gathered` takes them; the prefix stays if all of it does, in each."""
        width = 0 if self.prefix is None else self.prefix.length
        counts = self.attention_mask[:, :width].sum(dim=1).tolist()
        heads = [list(row[:count]) for row, count in zip(rows, counts, strict=True)]
        tails = [row[count:] for row, count in zip(rows, counts, strict=True)]
        is_kept = all(token is None and column < width for head in heads for column, token in head)
        if not width or not is_kept:
            return self.gathered(rows, keeps_pictures=True)
        made = self.gathered(side_by_side(heads, tails, width), keeps_pictures=True)
        return replace(made, prefix=self.prefix)

    def continued(
        self, index: Tensor, starts: Sequence[int], texts: Sequence[Sequence[int]], config: Any
    ) -> "Branch":
        """Other text after the same beginnings: rows `index`, each cut and continued.

        Args:
            index: Rows of this branch, one for each new row.
            starts: The column of each new row from which on its source is left out.
            texts: Token ids of each new row, none of them a picture's.
            config: The model's.

        Tokens with which the old text begins as well stay as they are, with what runs along them:
        an image's closing marker may be among them. The first new token has the positions of the
        first that is left out, a text's too. A prefix stays where the cut is not within it, and
        where no padding behind it takes up a window.
        """
        branch = self.rows(index, config)
        cuts = [
            branch._differing(row, *cut) for row, cut in enumerate(zip(starts, texts, strict=True))
        ]
        starts, texts = zip(*cuts, strict=True)
        shared = 0 if branch.prefix is None else branch.prefix.length
        own = [
            int(branch.attention_mask[row, shared:start].sum()) + len(text)
            for row, (start, text) in enumerate(zip(starts, texts, strict=True))
        ]
        is_padded = len(set(own)) > 1
        if any(start < shared for start in starts) or (is_padded and has_windows(config)):
            branch, shared = replace(branch, prefix=None), 0
        heads, tails, bases = [], [], []
        assert branch.position_ids is not None, "a completed branch has positions"
        for row, (start, text) in enumerate(zip(starts, texts, strict=True)):
            cut = start + int(torch.nonzero(branch.attention_mask[row, start:])[0])
            bases.append(branch.position_ids[..., row, cut, None])
            kept = torch.nonzero(branch.attention_mask[row, :start], as_tuple=True)[0].tolist()
            heads.append([(place, None) for place in kept if place < shared])
            tail = [(place, None) for place in kept if place >= shared]
            tails.append([*tail, *((start - 1, token) for token in text)])
        made = branch.gathered(side_by_side(heads, tails, shared), keeps_pictures=True)
        assert made.position_ids is not None
        for row, text in enumerate(texts):
            count = torch.arange(len(text), device=made.input_ids.device)
            made.position_ids[..., row, made.length - len(text) :] = bases[row] + count
        return replace(made, prefix=branch.prefix)

    def _differing(self, row: int, start: int, text: Sequence[int]) -> tuple[int, Sequence[int]]:
        """Where a row's tokens from `start` on first differ from a text's, and the text from there.

        At least the last token of each counts as different.
        """
        ids, mask = self.input_ids[row].tolist(), self.attention_mask[row].tolist()
        columns = [column for column in range(start, self.length) if mask[column]]
        same = 0
        while same < min(len(columns), len(text)) - 1 and ids[columns[same]] == text[same]:
            same += 1
        return columns[same], text[same:]

    def inserted(self, rows: Sequence[Sequence[tuple[int, int | None]]]) -> "Branch":
        """The same rows with one run of new text in each, which may stand in the place of old text.

        What follows, pictures included, moves on by as many positions.

        Args:
            rows: Of (column of an old token, None), and (column, id) of the new ones, the column
                being that of the first old token that they stand for or before.
        """
        made = self.gathered(rows, keeps_pictures=True)
        assert made.position_ids is not None, "a completed branch has positions"
        for row, (entries, columns) in enumerate(zip(rows, self.columns(), strict=True)):
            text = [number for number, (_, token) in enumerate(entries) if token is not None]
            first = made.length - len(entries) + text[0]
            moved = torch.arange(len(text), device=made.input_ids.device)
            made.position_ids[..., row, first : first + len(text)] += moved
            made.position_ids[..., row, first + len(text) :] += len(entries) - len(columns)
        return made

    def with_pixels(self, edit: Callable[[str, Tensor], Tensor]) -> "Branch":
        """The same prompt with other pictures: `edit(name, pixels)` for each tensor of pixels."""
        pixels = {
            name: edit(name, value) if name in PIXELS else value
            for name, value in self.pixels.items()
        }
        return replace(self, pixels=pixels, features=None)

    def without_pictures(
        self,
        model: Model,
        replacement: tuple[int, ...] = (),
        markers: tuple[int, ...] = (),
        processor: Any = None,
    ) -> "Branch":
        """Text only: all that the processor wrote for an image, taken out.

        A row without images stays as it is. Everything else in the prompt stays: system text,
        roles, newlines of the chat template.

        Args:
            model: Names the tokens that open and close an image in its config.
            replacement: Token ids left in the place of each image.
            markers: Ids of further tokens that belong to an image, for models whose config does
                not name them.
            processor: The model's own, which then says what belongs to an image. None: all that
                stands between an image's tokens goes, and markers that are named.
        """
        rows = self._rows(model, processor, markers)
        warn_of_rest(model, rows, processor)
        return self.gathered(
            [
                [(columns[number], token) for number, token in row.without_images(replacement)]
                for row, columns in zip(rows, self.columns(), strict=True)
            ]
        )

    def images(self, model: Model, processor: Any = None) -> list[list[tuple[int, ...]]]:
        """By row and image, without videos, the columns of its image tokens.

        Args:
            model: Names the image tokens in its config.
            processor: As in `without_pictures`.
        """
        rows = self._rows(model, processor)
        ids = token_ids(model.config, ("image_token_id",))
        return [
            [
                tuple(columns[number] for number in image.tokens)
                for image in row.images
                if row.ids[image.tokens[0]] in ids
            ]
            for row, columns in zip(rows, self.columns(), strict=True)
        ]

    def _rows(self, model: Model, processor: Any, markers: tuple[int, ...] = ()) -> list[Any]:
        return rows_of(
            self.input_ids,
            self.attention_mask,
            self.features,
            model,
            processor,
            markers,
            self.call.chat_template_kwargs,
        )

    def columns(self) -> list[list[int]]:
        """By row, the columns that hold tokens and no padding."""
        return [
            [column for column, is_kept in enumerate(mask) if is_kept]
            for mask in self.attention_mask.tolist()
        ]

    def with_fewer_image_tokens(self, model: Model, encoded: Any) -> "Branch":
        """The same prompt, each picture's run of tokens as short as the features in `encoded`.

        Positions are made again, without a gap. Where a model gives a picture's tokens the rows
        and columns of its grid (M-RoPE), what is left of the grid is none: they are counted on
        like text, so the pixels and their grid go.

        Args:
            model: Names the tokens that pictures fill in its config.
            encoded: An encoder's output for the same pictures, `[k, D]` of each, with k at most the
                tokens that the picture fills now.
        """
        places = is_one_of(self.input_ids, token_ids(model.config, ("image_token_id",)))
        lengths = picture_lengths(self.features, "image")
        left_of = picture_lengths({"image": encoded}, "image")
        by_row = pictures_by_row(places.sum(dim=1).tolist(), lengths)
        rows: list[list[tuple[int, int | None]]] = []
        for row, pictures in enumerate(by_row):
            kept = self.attention_mask[row] != 0  # a new tensor, whatever the mask's dtype
            left = torch.nonzero(places[row], as_tuple=True)[0].tolist()
            for picture in pictures:
                run, left = left[: lengths[picture]], left[lengths[picture] :]
                if run[-1] - run[0] != len(run) - 1:
                    raise UnsupportedModelError(
                        "a picture can be shortened only where its tokens stand side by side, and "
                        "here other tokens stand between them: use a contrast that keeps its length"
                    )
                kept[run[left_of[picture] :]] = False
            rows.append([(int(place), None) for place in torch.nonzero(kept, as_tuple=True)[0]])
        shorter = self.gathered(rows)
        return replace(
            shorter,
            image_mask=image_mask(shorter.input_ids, model.config),
            features={**(self.features or {}), "image": encoded},
        )

    def gathered(
        self, rows: Sequence[Sequence[tuple[int, int | None] | None]], keeps_pictures: bool = False
    ) -> "Branch":
        """Rows of (place in the old prompt, new token or None), or None for padding.

        Left-padded. Positions go with the old tokens where pictures are kept, and are to be made
        again where they are not; a new token's position is its place's.
        """
        width = max(len(row) for row in rows)
        index = torch.zeros(len(rows), width, dtype=torch.long, device="cpu")
        new = torch.full((len(rows), width), -1, device="cpu")
        mask = torch.zeros(len(rows), width, dtype=torch.long, device="cpu")
        for r, row in enumerate(rows):
            start = width - len(row)
            filled = [(start + i, *entry) for i, entry in enumerate(row) if entry is not None]
            columns = torch.tensor([column for column, _, _ in filled], device="cpu")
            mask[r, columns] = 1
            index[r, columns] = torch.tensor([place for _, place, _ in filled], device="cpu")
            new[r, columns] = torch.tensor(
                [-1 if t is None else t for _, _, t in filled], device="cpu"
            )
        device = self.input_ids.device
        index, new, mask = index.to(device), new.to(device), mask.to(device)
        is_old = new < 0
        kept = mask.bool() & is_old

        def along(values: Tensor, keep: Tensor) -> Tensor:
            places = index.view(*index.shape, *[1] * (values.ndim - 2))
            picked = values.gather(1, places.expand(-1, -1, *values.shape[2:]))
            return picked * keep.view(*keep.shape, *[1] * (values.ndim - 2)).to(picked.dtype)

        ids = torch.where(is_old, self.input_ids.gather(1, index), new)
        padding = self.input_ids[self.attention_mask == 0]
        ids = ids.masked_fill(mask == 0, int(padding[0]) if len(padding) else 0)
        positions = self.position_ids
        if positions is not None:
            positions = positions.gather(-1, index.expand(*positions.shape[:-1], -1))
        return replace(
            self,
            input_ids=ids,
            attention_mask=mask.to(self.attention_mask.dtype),
            image_mask=along(self.image_mask, kept),
            position_ids=positions if keeps_pictures else None,
            aligned={name: along(values, kept) for name, values in self.aligned.items()},
            features=self.features if keeps_pictures else {},
            pixels=self.pixels if keeps_pictures else {},
            prefix=None,
        )


def side_by_side(
    heads: Sequence[Sequence[Any]], tails: Sequence[Sequence[Any]], width: int = 0
) -> list[list[Any]]:
    """Each row's head, left-padded to the widest head or to `width`, then its tail, left-padded."""
    first = max(width, *(len(head) for head in heads))
    second = max(len(tail) for tail in tails)
    return [
        [*[None] * (first - len(head)), *head, *[None] * (second - len(tail)), *tail]
        for head, tail in zip(heads, tails, strict=True)
    ]


def image_mask(input_ids: Tensor, config: Any) -> Tensor:
    """`[B, T]` bool, true on placeholder tokens of pictures and videos."""
    return is_one_of(input_ids, token_ids(config, PLACEHOLDERS))
