"""Videos for the tiny models that take them, as their processors lay them out."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from models import IMAGE, PAD, VIDEO, VISION_END
from tiny_families import GRID, PATCH, SIDE, Tiny, cut

VIDEO_START, VIDEO_END = 101, 102
FRAMES = 4
STEPS = 2  # of a video's grid in time
PATCHES = GRID[0] * GRID[1]
SECOND = 30  # the word before each run of a video's tokens, where processors write the time

Draw = Callable[[tuple[int, ...]], torch.Tensor]


@dataclass(frozen=True)
class Clips:
    """How a family takes videos.

    Args:
        layout: `(config, count, draw) -> inputs` of `count` videos; `draw(shape)` is random
            numbers `[count, *shape]`, which depend on the video alone.
        runs: Of tokens that a video fills, each behind a word.
        token: That a video fills.
        is_bounded: Whether tokens of its own open and close it.
        markers: Tokens around a video that the config does not name.
        pieces: Equal parts, `(number, dimension)`, each with noise of its own.
        alone: Why images and videos do not go into one batch, without a decoder.
        no_beams: Why beams do not go, without a decoder.
        no_edits: Why its attention is not edited, as the library says.
        reason: Why there is no test of it.
        since: The release of transformers that the record is written for; older ones read its
            videos otherwise.
    """

    layout: Callable[[Any, int, Draw], dict[str, torch.Tensor]] | None = None
    runs: int = 1
    token: int = VIDEO
    is_bounded: bool = False
    markers: tuple[int, ...] = ()
    pieces: tuple[int, int] = (1, 0)
    alone: str = ""
    no_beams: str = ""
    no_edits: str = ""
    reason: str = ""
    since: str = ""


def frames(config, count, draw):
    return {"pixel_values_videos": draw((FRAMES, 3, SIDE, SIDE))}


def pooled(config, count, draw):
    """Flat patches of each frame, which of them make which token, and the grids of tokens."""
    height, width = GRID
    places = torch.arange(count * FRAMES * PATCHES).view(-1, 1, height, width)
    return {
        "pixel_values_videos": draw((FRAMES, PATCHES, 3 * PATCH**2)).flatten(0, 1),
        "video_token_pooling": cut(places, 2).flatten(0, 1).flatten(1),
        "video_grids": torch.tensor([[FRAMES, height // 2, width // 2]] * count),
    }


def patches(config, count, draw):
    """Flat patches of all videos, with the grids."""
    vision = config.vision_config
    names = ("temporal_patch_size", "patch_temporal")
    depth = next((v for name in names if (v := getattr(vision, name, None))), 1)
    grids = torch.tensor([[STEPS, *GRID]] * count)
    flat = draw((STEPS * PATCHES, 3 * depth * PATCH**2)).flatten(0, 1)
    return {"pixel_values_videos": flat, "video_grid_thw": grids}


def timed(name):
    """As `patches`, with the seconds from one step of the grid to the next under `name`."""

    def layout(config, count, draw):
        return {**patches(config, count, draw), name: torch.tensor([2.0] * count)}

    return layout


def merged(config, count, draw):
    """As `patches`, with how many patches a token is wide; some tokens are left out."""
    given = patches(config, count, draw)
    kept = torch.tensor([True] * (STEPS * PATCHES // 4 - 2) + [False] * 2)
    sizes = torch.tensor([2] * count)
    return {**given, "video_merge_sizes": sizes, "video_compression_mask": kept.repeat(count)}


def chunks(config, count, draw):
    """A tensor of patches that keep their shape, with the grids of each video's chunks."""
    squares = draw((STEPS * PATCHES, 3, PATCH, PATCH)).flatten(0, 1)
    grids = torch.tensor([[1, *GRID]] * STEPS * count)
    return {"pixel_values_videos": squares, "video_grid_thw": grids}


def packed(config, count, draw):
    """All patches of all frames of all videos side by side in one long strip."""
    strips = draw((3, PATCH, FRAMES * PATCHES * PATCH))
    sizes = torch.tensor([GRID] * count * FRAMES, dtype=torch.int32)
    return {
        "pixel_values_videos": torch.cat(list(strips), dim=-1)[None],
        "target_sizes_videos": sizes,
    }


def placed(config, count, draw):
    """Flat patches of each frame, with the column and the row of each."""
    height, width = GRID
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).flip(-1)
    return {
        "pixel_values_videos": draw((FRAMES, PATCHES, 3 * PATCH**2)).flatten(0, 1),
        "video_position_ids": places.expand(count * FRAMES, -1, -1),
        "num_frames_per_video": torch.tensor([FRAMES] * count),
    }


GLM = Clips(
    patches,
    runs=STEPS,
    token=IMAGE,
    is_bounded=True,
    alone="transformers takes all image tokens for the images', and a video's are such",
    no_beams="transformers looks for the video token of the config, which no prompt holds",
)
RECORDS = {
    "cohere_compass": Clips(patches, runs=STEPS),
    "cosmos3_edge": Clips(patches, runs=STEPS),
    "cosmos3_omni": Clips(patches, runs=STEPS),
    "dots3_note": Clips(patches, no_edits="attention chooses its keys by indices"),
    "ernie4_5_vl_moe": Clips(patches),
    "exaone4_5": Clips(patches),
    "gemma4": Clips(placed, runs=FRAMES, pieces=(FRAMES, 0), since="5.23"),
    "gemma4_unified": Clips(placed, runs=FRAMES, pieces=(FRAMES, 0), since="5.23"),
    "glm46v": GLM,
    "glm4v": GLM,
    "glm4v_moe": GLM,
    "glm_ocr": GLM,
    "glmga": GLM,
    "glm5_next": replace(GLM, alone=""),
    "hyperclovax_vision_v2": Clips(patches),
    "instructblipvideo": Clips(reason="its text model gets no tokens, which decoders refuse"),
    "kimi_k25": Clips(chunks, runs=STEPS, pieces=(STEPS, 0), since="5.23"),
    "lfm3_vl": Clips(patches, runs=STEPS),
    "llava_next_video": Clips(frames, pieces=(FRAMES, 1), since="5.23"),
    "llava_onevision": Clips(frames, pieces=(FRAMES, 1)),
    "minicpm_ocr": Clips(packed, runs=FRAMES, pieces=(FRAMES, -1)),
    "minicpmv4_6": Clips(packed, runs=FRAMES, pieces=(FRAMES, -1), since="5.23"),
    "minicpmv4_7": Clips(packed, runs=FRAMES, pieces=(FRAMES, -1), since="5.23"),
    "minimax_m3_vl": Clips(patches, runs=STEPS),
    "molmo2": Clips(
        pooled,
        runs=FRAMES,
        token=IMAGE,
        pieces=(FRAMES, 0),
        alone="transformers takes images or videos, not both",
    ),
    "muse_glimmer": Clips(patches, runs=STEPS),
    "muse_spark": Clips(patches, runs=STEPS),
    "nemotron_h_omni": Clips(
        reason="transformers does not answer: it joins a list of videos, and encodes a tensor"
    ),
    "qwen2_5_omni_thinker": Clips(timed("video_second_per_grid"), markers=(VISION_END,)),
    "qwen2_5_vl": Clips(timed("second_per_grid_ts")),
    "qwen2_vl": Clips(patches),
    "qwen3_5": Clips(patches, runs=STEPS),
    "qwen3_5_moe": Clips(patches, runs=STEPS),
    "qwen3_omni_moe_thinker": Clips(timed("video_second_per_grid"), markers=(VISION_END,)),
    "qwen3_vl": Clips(patches, runs=STEPS),
    "qwen3_vl_moe": Clips(patches, runs=STEPS),
    "qwen4_exp": Clips(patches, runs=STEPS),
    "video_llama_3": Clips(
        merged,
        runs=FRAMES,
        no_beams="transformers counts the tokens that the processor leaves out of a video",
    ),
    "video_llava": Clips(frames, pieces=(FRAMES, 1)),
}


def typed(
    before: list[int | None], filled: list[int], kind: int, after: list[int | None]
) -> list[tuple[int, int]]:
    """A run of tokens of a kind between those of text that are there."""
    opening, closing = ([(t, 0) for t in side if t is not None] for side in (before, after))
    return [*opening, *((t, kind) for t in filled), *closing]


@dataclass
class Watcher:
    """A family's tiny model, and prompts with videos for it."""

    tiny: Tiny
    clips: Clips

    def __post_init__(self):
        if self.clips.is_bounded:
            self.model.config.video_start_token_id = VIDEO_START
            self.model.config.video_end_token_id = VIDEO_END
        encoder = self.model.base_model.get_video_features
        given = self.videos([[VIDEO]])
        mask = given.get("video_compression_mask")
        read = {n: v for n, v in given.items() if n in inspect.signature(encoder).parameters}
        with torch.no_grad():
            encoded = encoder(**read, return_dict=True).pooler_output
        count = sum(part.shape[:-1].numel() for part in encoded)
        self.tokens = count if mask is None else int(mask.sum())

    @property
    def model(self) -> Any:
        return self.tiny.model

    def videos(self, rows: list[list[int]]) -> dict[str, torch.Tensor]:
        """A video's content depends on its row's text alone, not on its place in the batch."""
        seeds = [sum(row) + 1 for row in rows for token in row if token == VIDEO]

        def draw(shape):
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            return torch.stack([torch.randn(shape, generator=g) for g in generators])

        return self.clips.layout(self.model.config, len(seeds), draw) if seeds else {}

    def seen(self, rows: list[list[int]]) -> dict[str, torch.Tensor]:
        """What the encoders read."""
        has_images = any(IMAGE in row for row in rows)
        return {**(self.tiny.images(rows) if has_images else {}), **self.videos(rows)}

    def inputs(
        self, rows: list[list[int]], answer: tuple[int, ...] = ()
    ) -> dict[str, torch.Tensor]:
        """`rows`: tokens in which each IMAGE stands for one image and each VIDEO for one video;
        left-padded to a batch, and the same answer behind each."""
        filled = [
            [*(x for token in row for x in self.run(token)), *((t, 0) for t in answer)]
            for row in rows
        ]
        width = max(map(len, filled))
        pairs = torch.tensor([[(PAD, 0)] * (width - len(row)) + row for row in filled])
        ids, types = pairs.unbind(-1)
        given = dict(input_ids=ids, attention_mask=(ids != PAD).long())
        names = {"mm_token_type_ids", "token_type_ids"} & self.tiny.takes
        return {**given, **dict.fromkeys(names, types), **self.seen(rows)}

    def run(self, token: int) -> list[tuple[int, int]]:
        """A token as it stands in a prompt, each with its type: text 0, an image 1, a video 2."""
        marked = self.tiny.marked(IMAGE)
        opening, closing = (marked[0], marked[-1]) if len(marked) == 3 else (None, None)
        if token == IMAGE:
            return typed([opening], [IMAGE] * self.tiny.tokens, 1, [closing])
        if token != VIDEO:
            return [(token, 0)]
        each, rest = divmod(self.tokens, self.clips.runs)
        made: list[tuple[int, int]] = []
        for run in range(self.clips.runs):
            filled = [self.clips.token] * (each + (run < rest))
            made += typed([SECOND, opening], filled, 2, [closing])
        return [(VIDEO_START, 0), *made, (VIDEO_END, 0)] if self.clips.is_bounded else made

    def without_videos(self, row: list[int]) -> list[int]:
        """A row without images and videos; the words before a video's runs are text, and stay."""
        words = {VIDEO: [SECOND] * self.clips.runs, IMAGE: []}
        return [t for token in row for t in words.get(token, [token])]
