"""A tiny random model of every vision-language family that transformers offers.

The families are read from transformers' own mapping, so one that a newer version adds appears as
an untested row. Each is made from its default config, every size in it replaced by name.
"""

import importlib.util
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from models import BOS, EOS, IMAGE, PAD, UNK, VIDEO, VISION_END, VISION_START
from packaging.version import Version
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import BPE
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

VOCABULARY = 120
OTHER = 100  # tokens that no prompt here holds: audio, separators
SIDE, PATCH = 32, 8  # of an image and of its patches, in pixels
GRID = (4, 4)  # patches of an image, for families that take them flattened

SIZES = dict(
    adapter_in_dim=32,
    adapter_input_size=32,
    adapter_out_dim=32,
    alignment_intermediate_size=64,
    attention_heads=4,
    cross_attention_frequency=1,
    d_ff=64,
    d_kv=8,
    d_model=32,
    decoder_attention_heads=4,
    decoder_ffn_dim=64,
    decoder_layers=2,
    deepstack_visual_indexes=[0],
    dense_intermediate_size=64,
    embed_dim=32,
    encoder_attention_heads=4,
    encoder_ffn_dim=64,
    encoder_hidden_size=32,
    encoder_layers=2,
    ffn_dim=64,
    first_k_dense_replace=1,
    fullatt_block_indexes=[1],
    hidden_size=32,
    image_grid_pinpoints=[[SIDE, 2 * SIDE]],
    image_seq_length=16,
    image_text_hidden_size=32,
    index_head_dim=8,
    index_n_heads=2,
    index_topk=128,
    intermediate_size=64,
    kv_lora_rank=16,
    layers=2,
    downsample_hidden_size=8,
    linear_head_dim=8,
    linear_key_head_dim=8,
    linear_num_heads=4,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_value_head_dim=8,
    merged_hidden_size=128,
    mlp_dim=64,
    mel_vocab_size=8,
    max_image_size=SIDE,
    mm_tokens_per_image=4,
    moe_hidden_size=32,
    moe_intermediate_size=32,
    moe_k=2,
    moe_num_experts=4,
    moe_topk=2,
    n_group=1,
    n_routed_experts=4,
    n_shared_experts=1,
    num_attention_heads=4,
    num_experts=4,
    num_experts_per_tok=2,
    num_hidden_layers=2,
    num_key_value_heads=2,
    num_local_experts=4,
    num_query_tokens=4,
    output_channels=8,
    projection_dim=32,
    projection_intermediate_size=64,
    projection_hidden_dim=64,
    projection_hidden_size=32,
    projector_hidden_size=32,
    q_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    rel_extent=64,
    resampler_depth=1,
    resampler_head_dim=16,
    resampler_n_heads=2,
    resampler_n_latents=4,
    scale=4,
    shared_expert_intermediate_size=32,
    shared_experts_intermediate_size=32,
    shared_intermediate_size=64,
    top_k_experts=2,
    swa_head_dim=8,
    swa_num_attention_heads=4,
    swa_num_key_value_heads=2,
    tie_word_embeddings=False,
    topk_group=1,
    v_head_dim=8,
    vocab_size=VOCABULARY,
    word_embed_proj_dim=32,
)
TEXT = dict(
    SIZES,
    head_dim=8,
    max_position_embeddings=512,
    num_hidden_layers=3,
    sliding_window=16,
    sliding_window_size=16,
)
VISION = dict(
    SIZES,
    attention_heads=2,
    depth=2,
    embed_dim=32,
    head_dim=16,
    image_size=SIDE,
    n_layers=2,
    num_attention_heads=2,
    num_channels=3,
    num_heads=2,
    num_patches=16,
    num_position_embeddings=16,
    out_hidden_size=32,
    patch_size=PATCH,
    text_hidden_size=32,
    vision_output_dim=64,
    window_size=SIDE,
)
NOT_GIVEN = {"_name_or_path", "architectures", "dtype", "id2label", "label2id"}
NOT_GIVEN |= {"model_type", "per_layer_config", "transformers_version"}
SPECIAL = dict(pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS)


def shrunk(defaults: Mapping[str, Any], sizes: Mapping[str, Any]) -> dict[str, Any]:
    """A config's values with its sizes and its special tokens replaced."""
    layers = defaults.get("num_hidden_layers")
    made: dict[str, Any] = {}
    for name, value in defaults.items():
        if name in NOT_GIVEN - ({"model_type"} if sizes is not SIZES else set()):
            continue
        if isinstance(value, dict) and name.endswith(("_config", "coder")):
            made[name] = shrunk(value, VISION if "vision" in name or "sam" in name else TEXT)
        elif name.endswith(("_token_id", "_token_index")):
            made[name] = special_token(name)
        elif name in sizes and value is not None:
            size = sizes[name]
            is_pair = isinstance(value, list | tuple) and not isinstance(size, list)
            made[name] = [size] * len(value) if is_pair else size
        elif isinstance(value, list) and len(value) == layers:
            made[name] = shortened(value, sizes["num_hidden_layers"])
        elif name == "rope_parameters" and sizes is TEXT and "rope_theta" in value:
            made[name] = {**value, "partial_rotary_factor": 1.0, "mrope_section": [2, 1, 1]}
        else:
            made[name] = value
    return made


def special_token(name: str) -> int:
    if name in SPECIAL:
        return SPECIAL[name]
    if name.startswith(("image_token", "video_token")):
        return IMAGE if name.startswith("image") else VIDEO
    if name.startswith(("audio", "video", "boa", "eoa")):
        return OTHER
    opens, closes = ("start" in name or "boi" in name), ("end" in name or "eoi" in name)
    return VISION_START if opens else VISION_END if closes else OTHER


def shortened(values: list, length: int) -> list:
    """One entry per layer: each kind of layer in turn, then the last kind."""
    kinds = list(dict.fromkeys(values))
    return (kinds + kinds[-1:] * length)[:length]


OPENING = ("vision_start_token_id", "image_start_token_id", "boi_token_id", "boi_token_index")

TOKENS = ("<pad>", "<s>", "</s>", "<see>", "</see>", "<image>", "<video>", "<unk>")
PAIRS = (
    "th",
    "he",
    "in",
    "er",
    "an",
    "re",
    "on",
    "at",
    "en",
    "nd",
    "ti",
    "es",
    "or",
    "te",
    "of",
    "ed",
)
CHAT = """\
<s>{%- for message in messages -%}
{{- 'Q: ' if message['role'] == 'user' else 'A: ' -}}
{%- if message['content'] is string -%}{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{{- '<image>' if part['type'] == 'image' else part['text'] -}}
{%- endfor -%}
{%- endif -%}
{{- '\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'A:' -}}{%- endif -%}
"""

Layout = Callable[[Any, torch.Tensor], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Family:
    """How one family is made and asked, or why it is not.

    Args:
        layout: `(config, pixels [N, 3, SIDE, SIDE]) -> inputs`, as its processor arranges them.
        by_row: Its inputs hold images by row, `[B, N, ...]`, with zeros where a row has fewer.
        changes: Config values that its sizes alone do not give, by dotted name.
        marked: Its processor opens and closes an image by tokens that its config does not name.
        single: Why it takes no prompt with two images.
        every: Why it takes no row without an image.
        mixed: Why a row's answer depends on its neighbours in the batch.
        seed: Of its weights; by it a step is decided, and no answer is one token repeated.
        reason: Why there is no model of it.
        needs: A package that it cannot be built without.
        since: The release of transformers that the record is written for; older ones name the
            inputs otherwise, or answer a row differently beside others.
        tokens: That an image fills in a prompt, where the encoder's output does not tell.
        beside: `(ids [B, T], images of each row) -> inputs` that a prompt with images needs.
    """

    layout: Layout | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    needs: str = ""
    since: str = ""
    tokens: int | None = None
    beside: Callable[[torch.Tensor, list[int]], dict[str, torch.Tensor]] | None = None
    seed: int = 0
    by_row: bool = False
    marked: bool = False
    single: str = ""
    every: str = ""
    mixed: str = ""

    @property
    def why_untested(self) -> str:
        if self.needs and importlib.util.find_spec(self.needs) is None:
            return f"needs {self.needs}, which is not installed"
        if self.since and Version(transformers.__version__) < Version(self.since):
            return f"its record is for transformers {self.since}, not {transformers.__version__}"
        return self.reason


def squares(config, pixels):
    return {"pixel_values": pixels}


def sized(config, pixels):
    sizes = torch.tensor([[SIDE, SIDE]] * len(pixels))
    return {"pixel_values": pixels, "image_sizes": sizes}


def tiled(config, pixels):
    """The whole image, then its halves on two tiles side by side, black around them."""
    black = torch.full_like(pixels[..., : SIDE // 2], -1.0)
    left, right = pixels.split(SIDE // 2, dim=-1)
    tiles = [pixels, torch.cat([black, left], dim=-1), torch.cat([right, black], dim=-1)]
    return {**sized(config, pixels), "pixel_values": torch.stack(tiles, dim=1)}


def cut(pixels: torch.Tensor, size: int, group: int = 1) -> torch.Tensor:
    """`[N, patches, 3, size, size]`: in reading order, or so by groups of `group` x `group`."""
    groups = pixels.unflatten(-1, (-1, group, size)).unflatten(-4, (-1, group, size))
    return groups.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(1, 4)


def repeated(config, patches: torch.Tensor, dim: int) -> torch.Tensor:
    """A still image as often as the encoder takes frames at once, at a new dimension."""
    names = ("temporal_patch_size", "patch_temporal")
    frames = next((v for n in names if (v := getattr(config.vision_config, n, None))), 1)
    return torch.stack([patches] * frames, dim=dim)


def gridded(config, patches: torch.Tensor) -> dict[str, torch.Tensor]:
    """Patches `[N, patches, ...]` of all images, each flat, with the grids of the images."""
    grids = torch.tensor([[1, *GRID]] * len(patches))
    return {"pixel_values": patches.flatten(2).flatten(0, 1), "image_grid_thw": grids}


def grouped(config, pixels):
    """Patches of a token follow each other: colours, frames, lines, columns."""
    return gridded(config, repeated(config, cut(pixels, PATCH, group=2), 3))


def merged(config, pixels):
    """As `grouped`, with how many patches a token is wide."""
    return {**grouped(config, pixels), "image_merge_sizes": torch.tensor([2] * len(pixels))}


def colours_last(config, pixels):
    """As `grouped`, in a patch lines, columns, colours, frames."""
    patches = cut(pixels, PATCH, group=2).movedim(2, -1)
    return gridded(config, repeated(config, patches, -1))


def in_lines(config, pixels):
    """Patches in reading order: colours, frames, lines, columns."""
    return gridded(config, repeated(config, cut(pixels, PATCH), 3))


def frames_first(config, pixels):
    """Patches in reading order: frames, colours, lines, columns."""
    return gridded(config, repeated(config, cut(pixels, PATCH), 2))


def small_squares(config, pixels):
    """A tensor of patches that keep their shape, in reading order."""
    patches = cut(pixels, PATCH)
    return {**gridded(config, patches), "pixel_values": patches.flatten(0, 1)}


def packed(config, pixels):
    """All patches of all images side by side in one long strip."""
    strip = cut(pixels, PATCH).permute(2, 3, 0, 1, 4).flatten(2)
    sizes = torch.tensor([GRID] * len(pixels), dtype=torch.int32)
    return {"pixel_values": strip[None], "target_sizes": sizes}


def blocks(config, pixels):
    """What each token sees, colours last, with the grids of tokens."""
    seen = cut(pixels, 2 * PATCH).movedim(2, -1).flatten(0, 1)
    height, width = GRID
    sizes = torch.tensor([[1, height // 2, width // 2]] * len(pixels))
    return {"pixel_values": seen, "image_grid_thw": sizes}


def pooled(config, pixels):
    """Each image twice, coarse and as its one tile; which patches make which token."""
    count = 2 * len(pixels)
    patches = patch_rows(config, pixels)["pixel_values"].repeat_interleave(2, dim=0)
    height, width = GRID
    places = torch.arange(count * height * width).view(count, 1, height, width)
    windows = cut(places, 2).flatten(0, 1).flatten(1)
    grids = torch.tensor([[height // 2, width // 2] * 2] * len(pixels))
    return {
        "pixel_values": patches,
        "image_token_pooling": windows,
        "image_grids": grids,
        "image_num_crops": torch.tensor([2] * len(pixels)),
    }


def still_blocks(config, pixels):
    """A tensor of patches, each a token: frames, lines, columns, colours."""
    patches = cut(pixels, PATCH).movedim(2, -1).flatten(0, 1)
    return {"pixel_values": repeated(config, patches, 1)}


def two_sided(config, pixels):
    """Flat patches of all images, with their grids of rows and columns."""
    patches = cut(pixels, PATCH).flatten(2).flatten(0, 1)
    return {"pixel_values": patches, "image_grid_hw": torch.tensor([GRID] * len(pixels))}


def patch_rows(config, pixels):
    """Flat patches of each image, colours last."""
    return {"pixel_values": cut(pixels, PATCH).movedim(2, -1).flatten(2)}


def fine(config, pixels):
    """For two towers, of which one sees more pixels."""
    return {"pixel_values": pixels, "high_res_pixel_values": pixels}


def placed(config, pixels):
    """As `patch_rows`, with the column and the row of each patch."""
    height, width = GRID
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).flip(-1)
    return {
        **patch_rows(config, pixels),
        "image_position_ids": places.expand(len(pixels), -1, -1),
    }


def shaped(config, pixels):
    """As `patch_rows`, with the grids, and a mask for images with fewer patches."""
    patches = patch_rows(config, pixels)["pixel_values"]
    return {
        "pixel_values": patches,
        "spatial_shapes": torch.tensor([GRID] * len(pixels)),
        "pixel_attention_mask": torch.ones(patches.shape[:2], dtype=torch.long),
    }


def masked_tiles(config, pixels):
    return {
        "pixel_values": pixels,
        "pixel_attention_mask": torch.ones(len(pixels), dtype=torch.bool),
    }


def asked(config, pixels):
    """The query transformer reads the question too."""
    question = torch.tensor([[BOS, 20, 21]] * len(pixels))
    return {"pixel_values": pixels, "qformer_input_ids": question}


def tile_lists(config, pixels):
    """One tile an image, each with the number of its shape; 0 where a row has fewer images."""
    return {
        "pixel_values": pixels[:, None],
        "aspect_ratio_ids": torch.ones(len(pixels), dtype=torch.long),
        "aspect_ratio_mask": torch.ones(len(pixels), 1, dtype=torch.long),
    }


def numbered(config, pixels):
    """As `patch_rows`, with the row and the column of each patch, from 1, before its values."""
    height, width = GRID
    places = torch.cartesian_prod(torch.arange(1, height + 1), torch.arange(1, width + 1))
    patches = patch_rows(config, pixels)["pixel_values"]
    places = places.to(patches.dtype).expand(len(pixels), -1, -1)
    return {"flattened_patches": torch.cat([places, patches], dim=-1)}


def latest(ids: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """`[B, T, N]`, 1 where a token looks: at the last image that came before it."""
    number = (ids == IMAGE).cumsum(dim=1)
    return (number[..., None] == torch.arange(1, max(counts) + 1)).long()


def looked_at(ids, counts):
    return {"image_attention_mask": latest(ids, counts)}


def crossed(ids, counts):
    return {"cross_attention_mask": latest(ids, counts)[..., None]}


def marked_places(ids, counts):
    return {"image_embeds_position_mask": (ids == IMAGE).long()}


ENCODER_DECODER = Family(reason="an encoder-decoder model, which decoders refuse by that name")
OF_ROW = "it takes one image with each row of the batch"
NEEDED = "its forward asks for an image"
PADDED = "it counts padding in its positions"
VISUAL_TOKENS = {"<image>": IMAGE} | {f"IMGIMG{a}Z": 60 + i for i, a in enumerate("ABCDEFGH")}
VISUAL_WORDS = {"<image>": IMAGE, "<|extra_200|>": 68} | {
    f"<|visual token {i:06}|>": 60 + i for i in range(8)
}
CODEBOOK = {
    "vq_config.base_channels": 32,
    "vq_config.channel_multiplier": [1, 1, 1, 1],
    "vq_config.latent_channels": 32,
    "vq_config.embed_dim": 32,
    "vq_config.num_embeddings": 8,
    "vq_config.codebook_size": 8,
    "vq_config.num_res_blocks": 1,
    "vq_config.resolution": SIDE,
}

RECORDS: dict[str, Family] = {
    "aria": Family(squares, {"projector_patch_to_query_dict": {16: 4}}, seed=2),
    "aya_vision": Family(squares),
    "blip": Family(squares, tokens=0, single=OF_ROW, every=NEEDED),
    "blip-2": Family(squares, every=NEEDED),
    "chameleon": Family(
        squares, {"vocabulary_map": VISUAL_TOKENS, "num_hidden_layers": 3, **CODEBOOK}, seed=1
    ),
    "cohere2_vision": Family(squares),
    "cohere_compass": Family(
        grouped,
        {
            "text_config.rope_parameters": {
                "full_attention": {
                    "rope_type": "default",
                    "rope_theta": 1e4,
                    "mrope_section": [2, 1, 1],
                }
            }
        },
        seed=4,
    ),
    "cosmos3_edge": Family(colours_last, seed=3),
    "cosmos3_omni": Family(grouped),
    "deepseek_ocr2": Family(
        squares,
        {
            "text_config.mlp_layer_types": ["dense", "sparse", "sparse"],
            "text_config.num_experts_per_tok": 2,
            "vision_config.sam_config.downsample_channels": [16, 32],
        },
        seed=1,
    ),
    "deepseek_vl": Family(squares, seed=1),
    "deepseek_vl_hybrid": Family(fine, {"high_res_vision_config.global_attn_indexes": [0, 1]}),
    "diffusion_gemma": Family(reason="decodes blocks by diffusion, not token by token"),
    "dots3_note": Family(
        grouped,
        {
            "text_config.num_key_value_heads": 4,
            "text_config.swa_num_attention_heads": 4,
            "text_config.swa_num_key_value_heads": 4,
            "text_config.swa_q_lora_rank": 16,
            "text_config.swa_kv_lora_rank": 16,
            "text_config.swa_head_dim": 16,
            "text_config.swa_qk_nope_head_dim": 8,
            "text_config.swa_v_head_dim": 8,
        },
    ),
    "emu3": Family(sized, {"vocabulary_map": VISUAL_WORDS, **CODEBOOK}, seed=10),
    "ernie4_5_vl_moe": Family(grouped, {"text_config.rope_parameters.mrope_section": [1, 1, 2]}),
    "evolla": Family(reason="reads proteins, not images"),
    "exaone4_5": Family(grouped),
    "fast_vlm": Family(squares, needs="timm"),
    "florence2": Family(
        squares,
        {
            "vision_config.patch_size": [7, 3, 3, 3],
            "vision_config.depths": [1, 1, 1, 1],
            "vision_config.num_groups": [2, 2, 2, 2],
            "vision_config.window_size": 4,
        },
        mixed=PADDED,
    ),
    "fuyu": Family(patch_rows, {"patch_size": PATCH}, since="5.23"),
    "gemma3": Family(squares, seed=1),
    "gemma3n": Family(squares, needs="timm"),
    "gemma4": Family(
        placed,
        {
            "vision_config": dict(
                model_type="gemma4_vision",
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
                head_dim=16,
                patch_size=PATCH,
                pooling_kernel_size=2,
                position_embedding_size=16,
            ),
            "text_config.global_head_dim": 8,
            "text_config.vocab_size_per_layer_input": VOCABULARY,
            "text_config.hidden_size_per_layer_input": 8,
        },
    ),
    "gemma4_unified": Family(
        placed,
        {
            "vision_config": dict(
                patch_size=PATCH,
                pooling_kernel_size=1,
                mm_embed_dim=32,
                mm_posemb_size=16,
                output_proj_dims=32,
            ),
            "text_config.global_head_dim": 8,
        },
    ),
    "git": Family(squares, tokens=0, single=OF_ROW, mixed=PADDED),
    "glm46v": Family(grouped),
    "glm4v": Family(grouped),
    "glm4v_moe": Family(grouped),
    "glm5_next": Family(
        grouped,
        {"text_config.num_key_value_heads": 4, "text_config.qk_rope_head_dim": 0},
        seed=1,
        since="5.23",
    ),
    "glm_ocr": Family(grouped, seed=1),
    "glmga": Family(grouped),
    "got_ocr2": Family(squares, seed=1),
    "granite4_vision": Family(
        tiled,
        {
            "vision_config.hidden_size": 64,
            "downsample_rate": "1/2",
            "deepstack_layer_map": [[-1, 0]],
            "spatial_target_layers": [1, 1, 1, 1],
        },
        since="5.23",
    ),
    "granite_docling": Family(masked_tiles, by_row=True, seed=2),
    "hunyuan_vl": Family(
        in_lines,
        {"text_config.head_dim": 8},
        marked=True,
        mixed="it numbers the images of all rows in one sequence",
        seed=1,
    ),
    "hyperclovax_vision_v2": Family(grouped),
    "idefics": Family(
        squares,
        {"alpha_initializer": "ones"},
        tokens=1,
        by_row=True,
        beside=looked_at,
        every=NEEDED,
    ),
    "idefics2": Family(squares, by_row=True, seed=1),
    "idefics3": Family(squares, by_row=True),
    "inkling2": Family(blocks),
    "inkling_mm_model": Family(
        still_blocks,
        {"vision_config.n_layers": 5, "text_config.logits_mup_width_multiplier": 1.0},
        seed=1,
    ),
    "instructblip": Family(asked, seed=1, every=NEEDED),
    "instructblipvideo": Family(reason="reads videos alone"),
    "internvl": Family(squares, seed=1),
    "janus": Family(squares, CODEBOOK, seed=2),
    "kimi_k25": Family(small_squares, {"text_config.num_key_value_heads": 4}),
    "kosmos-2": Family(
        squares,
        {"latent_query_num": 4},
        tokens=4,
        beside=marked_places,
        seed=1,
        every=NEEDED,
    ),
    "kosmos-2.5": Family(
        numbered,
        {"latent_query_num": 4, "vision_config.patch_embed_hidden_size": 192},
        tokens=4,
        beside=marked_places,
    ),
    "lfm2_vl": Family(shaped),
    "lfm3_vl": Family(grouped),
    "lighton_ocr": Family(sized, seed=2),
    "llama4": Family(
        squares,
        {
            "vision_config.intermediate_size": 128,
            "vision_config.projector_input_dim": 32,
            "vision_config.projector_output_dim": 32,
            "vision_config.vision_output_dim": 32,
        },
    ),
    "llava": Family(squares, seed=1),
    "llava_next": Family(tiled),
    "llava_next_video": Family(tiled),
    "llava_onevision": Family(tiled),
    "minicpm_ocr": Family(packed, {"insert_layer_id": 0}),
    "minicpmv4_6": Family(packed, {"insert_layer_id": 0}, seed=1),
    "minicpmv4_7": Family(packed, {"insert_layer_id": 0}),
    "minimax_m3_vl": Family(grouped, since="5.23"),
    "mistral3": Family(sized, seed=2),
    "mistral4": Family(reason="a text model"),
    "mistral_large4": Family(sized, {"text_config.num_key_value_heads": 4}, seed=1),
    "mllama": Family(
        tile_lists,
        {
            "text_config.cross_attention_layers": [1],
            "vision_config.intermediate_layers_indices": [0, 1],
            "vision_config.max_num_tiles": 1,
            "vision_config.num_global_layers": 1,
            "vision_config.supported_aspect_ratios": [[1, 1]],
            "vision_config.vision_output_dim": 96,
        },
        tokens=1,
        by_row=True,
        beside=crossed,
        mixed="a token before any image looks at those of all rows, padding too",
    ),
    "molmo2": Family(
        pooled,
        {
            "image_patch_id": IMAGE,
            "vision_config.image_size": [SIDE, SIDE],
            "adapter_config": dict(
                VISION, vision_feature_layer=[-1, -2], num_key_value_heads=2, text_hidden_size=32
            ),
            "text_config.additional_vocab_size": 0,
            "text_config.rope_scaling_layers": None,
        },
        seed=2,
    ),
    "muse_glimmer": Family(frames_first, {"out_hidden_size": 128}, seed=1),
    "muse_spark": Family(
        frames_first,
        {
            "out_hidden_size": 128,
            "audio_config.out_hidden_size": 32,
            "audio_config.hidden_sizes": [8, 16],
            "audio_config.patch_sizes": [16, 6],
            "audio_config.depths": [1, 1],
            "audio_config.num_hidden_layers": 2,
        },
        seed=11,
    ),
    "nemotron_h_omni": Family(
        two_sided,
        {
            "vision_hidden_size": 32,
            "vision_config.patch_dim": 192,
            "vision_config.max_img_size": SIDE,
            "text_config.mamba_head_dim": 8,
            "text_config.mamba_num_heads": 8,
            "text_config.n_groups": 2,
            "text_config.ssm_state_size": 8,
            "text_config.moe_shared_expert_intermediate_size": 32,
        },
        seed=2,
    ),
    "ovis2": Family(squares, seed=1),
    "paddleocr_vl": Family(small_squares),
    "paligemma": Family(squares),
    "perception_lm": Family(squares, needs="timm"),
    "pi0": Family(reason="answers with actions of a robot: it has no generate"),
    "pix2struct": ENCODER_DECODER,
    "pp_chart2table": Family(squares, seed=1),
    "pp_formulanet": ENCODER_DECODER,
    "qianfan_ocr": Family(squares, seed=1),
    "qwen2_5_omni_thinker": Family(grouped, {"vision_start_token_id": VISION_START}, seed=2),
    "qwen2_5_vl": Family(grouped),
    "qwen2_vl": Family(grouped),
    "qwen3_5": Family(grouped),
    "qwen3_5_moe": Family(grouped),
    "qwen3_omni_moe_thinker": Family(grouped, {"vision_start_token_id": VISION_START}),
    "qwen3_vl": Family(grouped),
    "qwen3_vl_moe": Family(grouped, seed=4),
    "qwen4_exp": Family(
        grouped,
        {
            "text_config.indexer_n_heads": 2,
            "text_config.indexer_kv_heads": 1,
            "text_config.indexer_head_dim": 8,
            "text_config.indexer_budget": 64,
            "text_config.indexer_compress_ratio": 4,
        },
        since="5.23",
    ),
    "shieldgemma2": Family(squares, seed=1),
    "smolvlm": Family(squares, by_row=True),
    "step3p7": Family(squares, {"text_config.sliding_window": 16}, seed=2),
    "t5gemma2": Family(squares, tokens=4, seed=5),
    "udop": ENCODER_DECODER,
    "unlimited_ocr": Family(squares, {"vision_config.sam_config.downsample_channels": [16, 32]}),
    "video_llama_3": Family(merged, seed=1),
    "video_llava": Family(squares, since="5.23"),
    "vipllava": Family(squares, {"vision_feature_layers": [-1, -2]}, seed=7),
    "vision-encoder-decoder": ENCODER_DECODER,
}


def families() -> dict[str, Family]:
    """A record for every model type of transformers' mapping."""
    untested = Family(reason="untested: no record of it in tests/tiny_families.py")
    return {
        config.model_type: RECORDS.get(config.model_type, untested)
        for config in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    }


TELLING = {  # of each kind of tower, of prompt, of cache and of text model, one or two
    "fuyu",
    "gemma3",
    "gemma4",
    "glm4v",
    "idefics3",
    "instructblip",
    "internvl",
    "kosmos-2",
    "lfm2_vl",
    "llama4",
    "llava",
    "llava_next",
    "llava_onevision",
    "minicpmv4_6",
    "mllama",
    "molmo2",
    "paligemma",
    "qwen2_5_vl",
    "qwen3_5",
    "qwen3_vl",
    "smolvlm",
    "video_llama_3",
}


def by_family(names: Iterable[str]) -> list[Any]:
    """Parameters of a test of families: of those that tell least, it is slow."""
    return [
        name if name in TELLING else pytest.param(name, marks=pytest.mark.slow) for name in names
    ]


def configure(name: str, changes: Mapping[str, Any]) -> Any:
    """The family's default config made small."""
    (kind,) = (c for c in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING if c.model_type == name)
    values = shrunk(kind().to_dict(), SIZES)
    change(values, changes)
    return kind(**values)


def change(values: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Config values, set by dotted name."""
    for path, value in changes.items():
        *parents, last = path.split(".")
        place = values
        for parent in parents:
            place = place[parent]
        place[last] = dict(value) if isinstance(value, dict) else value  # may be changed again


def build(name: str, changes: Mapping[str, Any], seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = configure(name, changes)
    model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)](config)
    return enlivened(model).eval()


def enlivened(model: Any, head: int = VOCABULARY) -> Any:
    """Weights as large as keep a signal's size, so that what it sees reaches what it says.

    `head` is how many logits its last layer gives.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            inputs = parameter.shape[-1] if "experts" in name else parameter[0].numel()
            torch.nn.init.normal_(parameter, std=inputs**-0.5)
        elif "gate" in name and not parameter.any():  # it lets no image through
            torch.nn.init.ones_(parameter)
    *_, last = (m for m in model.modules() if getattr(m, "out_features", 0) == head)
    last.weight.data *= 3
    return model


@dataclass
class Tiny:
    """A family's model, and inputs for it."""

    name: str
    family: Family
    model: Any

    def __post_init__(self):
        given = self.family.tokens
        self.tokens = self.encoded_tokens() if given is None else given

    @classmethod
    def of(cls, name: str) -> "Tiny":
        family = families()[name]
        if family.why_untested:
            raise ValueError(f"no tiny model of {name}: {family.why_untested}")
        return cls(name, family, build(name, family.changes, family.seed))

    def encoded_tokens(self) -> int:
        """Tokens that the encoder makes of one image."""
        features = self.model.base_model.get_image_features(
            **self.images([[IMAGE]]), return_dict=True
        )
        encoded = features.get("pooler_output")
        layers = features.get("deepstack_features")
        if encoded is None:
            encoded = layers[0][1] if layers else features.last_hidden_state
        parts = [encoded] if isinstance(encoded, torch.Tensor) else encoded
        return sum(part[..., 0].numel() for part in parts)

    @property
    def takes(self) -> set[str]:
        return set(inspect.signature(self.model.forward).parameters)

    def images(self, rows: list[list[int]]) -> dict[str, torch.Tensor]:
        return self.arranged(self.drawn(rows), [row.count(IMAGE) for row in rows])

    @staticmethod
    def drawn(rows: list[list[int]]) -> torch.Tensor:
        """`[N, 3, SIDE, SIDE]`: depends on a row's text alone, not on its place in the batch."""
        pixels = []
        for row in rows:
            generator = torch.Generator().manual_seed(sum(row))
            for _ in range(row.count(IMAGE)):
                pixels.append(torch.rand((3, SIDE, SIDE), generator=generator) * 2 - 1)
        return torch.stack(pixels)

    def arranged(self, pixels: torch.Tensor, counts: list[int]) -> dict[str, torch.Tensor]:
        """Images `[N, 3, SIDE, SIDE]`, row `r` has `counts[r]`, as the model wants."""
        laid = self.family.layout(self.model.config, pixels)
        if not self.family.by_row:
            return laid
        return {
            name: pad_sequence(values.split(counts), batch_first=True)
            for name, values in laid.items()
        }

    def inputs(self, rows: list[list[int]]) -> dict[str, torch.Tensor]:
        """`rows`: tokens in which each IMAGE stands for one image; left-padded to a batch."""
        counts = [row.count(IMAGE) for row in rows]
        prompts = [[x for token in row for x in self.run(token)] for row in rows]
        return self.batch(prompts, self.images(rows) if any(counts) else {}, counts)

    def batch(
        self, prompts: list[list[int]], images: dict[str, torch.Tensor], counts: list[int]
    ) -> dict[str, torch.Tensor]:
        """Prompts with as many tokens for an image as it fills, and what the encoder takes."""
        width = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
        given = dict(input_ids=ids, attention_mask=(ids != PAD).long())
        types = (ids == IMAGE).long()
        given |= {n: types for n in ("mm_token_type_ids", "token_type_ids") if n in self.takes}
        beside = self.family.beside
        return given | images | (beside(ids, counts) if images and beside else {})

    def run(self, token: int) -> list[int]:
        """A token as it stands in a prompt."""
        return [x for marked in self.marked(token) for x in self.filled(marked)]

    def filled(self, token: int) -> list[int]:
        """An image's token as often as an image needs it, another as it is."""
        return [token] * self.tokens if token == IMAGE else [token]

    def marked(self, token: int) -> list[int]:
        """An image's token with those that open and close it, another as it is."""
        opened = token == IMAGE and self.is_marked
        return [VISION_START, token, VISION_END] if opened else [token]

    @cached_property
    def processor(self) -> "Processor":
        return Processor(self)

    @property
    def is_marked(self) -> bool:
        config = self.model.config
        return self.family.marked or VISION_START in (
            getattr(config, name, None) for name in OPENING
        )


@dataclass(eq=False)
class ImageProcessor:
    """Images of any size to SIDE x SIDE, about -1 to 1, as the family arranges them."""

    tiny: Tiny = field(repr=False)

    @property
    def merge_size(self) -> int:
        return getattr(self.tiny.model.config.vision_config, "spatial_merge_size", 1)

    def __call__(self, images: Any, return_tensors: str = "pt") -> BatchFeature:
        """Of one image, or of a row's."""
        listed = images if isinstance(images, list | tuple) else [images]
        return BatchFeature(self.arranged(listed, [len(listed)]))

    def arranged(self, images: Sequence[Image.Image], counts: list[int]) -> dict[str, Any]:
        return self.tiny.arranged(torch.stack([pixels_of(p) for p in images]), counts)


def pixels_of(image: Image.Image) -> torch.Tensor:
    small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(small)).movedim(-1, 0) / 127.5 - 1


class Processor:
    """A family's processor: letters, images of one size, and prompts as chats write them."""

    image_token = TOKENS[IMAGE]

    def __init__(self, tiny: Tiny):
        self.tiny = tiny
        self.tokenizer = letters()
        self.image_processor = ImageProcessor(tiny)
        image = "".join(TOKENS[token] for token in tiny.marked(IMAGE))
        self.chat_template = CHAT.replace(TOKENS[IMAGE], image)

    def apply_chat_template(
        self, turns: list[dict], add_generation_prompt: bool = True, tokenize: bool = False
    ) -> str:
        return self.tokenizer.apply_chat_template(
            turns,
            chat_template=self.chat_template,
            add_generation_prompt=add_generation_prompt,
            tokenize=tokenize,
        )

    def __call__(
        self,
        text: list[str],
        images: Sequence[Any] | None = None,
        add_special_tokens: bool = False,
        padding: bool = True,
        padding_side: str = "left",
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Prompts as the template writes them; their images one after the other, or by prompt."""
        rows = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        counts = [row.count(IMAGE) for row in rows]
        filled = [[x for t in row for x in self.tiny.filled(t)] for row in rows]
        shown = [p for own in images or () for p in (own if isinstance(own, list) else [own])]
        images = self.image_processor.arranged(shown, counts) if shown else {}
        return BatchFeature(self.tiny.batch(filled, images, counts))

    def decode(self, tokens: torch.Tensor, **settings: Any) -> str:
        return self.tokenizer.decode(tokens, **settings)


def letters() -> PreTrainedTokenizerFast:
    """A token for each printable letter of ASCII, and for a few pairs of them."""
    listed = ["\n", *(chr(code) for code in range(32, 127))]
    vocabulary = {token: place for place, token in enumerate([*TOKENS, *listed, *PAIRS])}
    merges = [(first, second) for first, second in PAIRS]
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token=TOKENS[UNK]))
    tokenizer.decoder = Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=TOKENS[PAD],
        bos_token=TOKENS[BOS],
        eos_token=TOKENS[EOS],
        unk_token=TOKENS[UNK],
        additional_special_tokens=list(TOKENS[VISION_START:UNK]),
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
