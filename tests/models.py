"""Tiny vision-language models, built from configs in the test process."""

import torch
from transformers import (
    CLIPVisionConfig,
    Lfm2Config,
    Lfm2VlConfig,
    LlamaConfig,
    LlavaConfig,
    Qwen2_5_VLConfig,
    Siglip2VisionConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

PAD, BOS, EOS, VISION_START, VISION_END, IMAGE, VIDEO, UNK = range(8)
VOCABULARY = 120
TEXT = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    pad_token_id=PAD,
    bos_token_id=BOS,
    eos_token_id=EOS,
    vocab_size=VOCABULARY,
)


TOWER = dict(hidden_size=32, intermediate_size=64, num_attention_heads=2)
CLIP = dict(TOWER, num_hidden_layers=2, image_size=32, patch_size=8, projection_dim=32)


def sharpen(model):
    """Random weights made larger, so that answers differ between inputs."""
    for parameter in model.parameters():
        parameter.data *= 3
    return model.eval()


def built(config):
    torch.manual_seed(0)
    return sharpen(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)](config))


def llava(text=None, *, clip=None, kind=LlavaConfig, **settings):
    """Llama, or another text config of the same sizes, behind a CLIP tower changed by `clip`."""
    settings = dict(image_seq_length=16, vision_feature_layer=-1) | settings
    return built(
        kind(
            vision_config=CLIPVisionConfig(**CLIP | (clip or {})),
            text_config=text or LlamaConfig(**TEXT),
            image_token_index=IMAGE,
            pad_token_id=PAD,
            **settings,
        )
    )


def qwen(text=None, **tokens):
    """Qwen2.5-VL; `text` changes its text config, `tokens` the ids of its special tokens."""
    rope = dict(rope_type="default", rope_theta=1e4, mrope_section=[1, 1, 2])
    vision = dict(
        depth=2,
        hidden_size=32,
        intermediate_size=64,
        num_heads=2,
        patch_size=14,
        spatial_merge_size=2,
        temporal_patch_size=2,
        out_hidden_size=32,
        window_size=56,
        fullatt_block_indexes=[1],
    )
    ids = dict(
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )
    text = dict(TEXT, rope_parameters=rope) | (text or {})
    return built(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids | tokens))


def lfm2():
    """Half of its layers keep convolution states in place of keys and values."""
    layers = ["conv", "full_attention", "conv", "full_attention"]
    text = TEXT | dict(num_hidden_layers=4, layer_types=layers, block_auto_adjust_ff_dim=False)
    return built(
        Lfm2VlConfig(
            vision_config=Siglip2VisionConfig(
                **TOWER, num_hidden_layers=2, num_patches=16, patch_size=8
            ),
            text_config=Lfm2Config(**text),
            image_token_id=IMAGE,
            projector_hidden_size=32,
            downsample_factor=2,
        )
    )


def lfm2_inputs(rows):
    """As `llava_inputs`; every image is a 4 x 4 grid of patches, 4 tokens."""
    batch = _batch([_expanded(row, 4) for row in rows], _images(rows, (16, 192)))
    if "pixel_values" in batch:
        count = len(batch["pixel_values"])
        batch["spatial_shapes"] = torch.tensor([[4, 4]] * count)
        batch["pixel_attention_mask"] = torch.ones(count, 16, dtype=torch.long)
    return batch


def llava_inputs(rows):
    """`rows`: token lists in which each IMAGE stands for one image; left-padded to a batch."""
    return _batch([_expanded(row, 16) for row in rows], _images(rows, (3, 32, 32)))


def qwen_inputs(rows):
    """As `llava_inputs`; every image is a 4 x 6 grid of patches, 6 tokens."""
    wrapped = [_wrapped(row) for row in rows]
    batch = _batch([_expanded(row, 6) for row in wrapped], _images(rows, (24, 1176)))
    if "pixel_values" in batch:
        count = len(batch["pixel_values"])
        batch["pixel_values"] = batch["pixel_values"].flatten(0, 1)
        batch["image_grid_thw"] = torch.tensor([[1, 4, 6]] * count)
    batch["mm_token_type_ids"] = (batch["input_ids"] == IMAGE).long()
    return batch


def _wrapped(row):
    return [t for x in row for t in ((VISION_START, x, VISION_END) if x == IMAGE else (x,))]


def _expanded(row, tokens):
    return [t for x in row for t in ([x] * tokens if x == IMAGE else [x])]


def _images(rows, shape):
    """An image's content depends on its row's text alone, not on its place in the batch."""
    images = []
    for row in rows:
        generator = torch.Generator().manual_seed(sum(row))
        for _ in range(row.count(IMAGE)):
            images.append(torch.randn(shape, generator=generator))
    return images


def _batch(rows, images):
    width = max(len(row) for row in rows)
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    batch = dict(input_ids=ids, attention_mask=(ids != PAD).long())
    if images:
        batch["pixel_values"] = torch.stack(images)
    return batch


PROMPTS = [
    [BOS, 8, 9, IMAGE, 20, 21, 22],
    [BOS, IMAGE, 12, 13],
]
FAMILIES = {"llava": (llava, llava_inputs), "qwen": (qwen, qwen_inputs)}
