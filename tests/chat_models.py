"""Models that can be talked to: each with a processor, a chat template and images."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from models import qwen
from PIL import Image
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from sightline import Recipe, lab
from sightline.decoders.agla.matching import Matcher, Relevance
from sightline.lab.dialogue import world_text

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHATML = """\
{%- if messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\n' -}}
{%- if message['content'] is string -%}{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- else -%}{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""


class ImageProcessor(Qwen2_5_VLProcessor):
    """Qwen's without its video part, which needs torchvision."""

    def __init__(self, image_processor, tokenizer, **kwargs):
        super().__init__(image_processor, tokenizer, None, **kwargs)

    def check_argument_for_proper_class(self, name, argument):
        if argument is not None:
            super().check_argument_for_proper_class(name, argument)


@dataclass(frozen=True)
class ChatModel:
    """A model, its processor, and images that it takes."""

    name: str
    model: Any
    processor: Any
    images: tuple[Image.Image, ...]

    @property
    def image(self):
        return self.model.config.image_token_id

    @property
    def tower(self):
        return self.model.model.vision_tower if self.name == "lab" else self.model.model.visual

    @property
    def eos(self):
        ids = self.model.generation_config.eos_token_id
        return ids if isinstance(ids, list) else [ids]

    def chat(self, *turns):
        """A conversation as the template writes it: the user's turn, the model's, and so on.

        A turn is words, or parts of which None is an image; words alone in the first turn are
        about one image.
        """
        said = []
        for place, turn in enumerate(turns):
            if isinstance(turn, str):
                turn = [turn] if place else [None, turn]
            parts = [{"type": "text", "text": t} if t else {"type": "image"} for t in turn]
            said.append({"role": "assistant" if place % 2 else "user", "content": parts})
        return self.processor.apply_chat_template(said, add_generation_prompt=True, tokenize=False)

    def inputs(self, prompts, images=()):
        """What the processor makes of prompts as `chat` writes them."""
        made = self.processor(
            text=list(prompts),
            images=list(images) or None,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        return {k: v for k, v in made.items() if k != "second_per_grid_ts"}

    def asked(self, questions, images=None):
        """A batch of questions, each about an image of its own."""
        images = self.images[: len(questions)] if images is None else images
        return self.inputs([self.chat(question) for question in questions], images)


def scene(number, size=256):
    return lab.draw(lab.decorrelated(np.random.default_rng(number)), size)


def lab_vlm():
    model = AutoModelForImageTextToText.from_pretrained(lab.CHECKPOINT, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(lab.CHECKPOINT)
    return ChatModel("lab", model.eval(), processor, tuple(scene(n) for n in (11, 12, 13)))


def qwen_vlm():
    tokenizer = chatml_tokenizer()
    ids = dict(zip(SPECIAL, range(len(SPECIAL)), strict=True))
    model = qwen(
        text=dict(
            vocab_size=len(tokenizer) + 5,  # padded, as vocabularies are
            num_hidden_layers=4,
            max_position_embeddings=2048,
            bos_token_id=None,
            eos_token_id=ids["<|im_end|>"],
            pad_token_id=ids["<|endoftext|>"],
        ),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    model.lm_head.weight.data *= 3
    for name in SPECIAL[1:]:
        if name != "<|im_end|>":  # what it would say is no image
            model.lm_head.weight.data[ids[name]] = 0
    settings = model.generation_config
    settings.eos_token_id = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    settings.pad_token_id = ids["<|endoftext|>"]
    images = Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 40 * 28 * 28})
    processor = ImageProcessor(images, tokenizer, chat_template=CHATML)
    sizes = ((140, 84), (84, 168), (112, 112))
    shown = tuple(scene(20 + n).resize(size) for n, size in enumerate(sizes))
    return ChatModel("qwen", model, processor, shown)


def chatml_tokenizer():
    """Byte-level BPE of the lab's words, with Qwen's special tokens."""
    tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(world_text(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=list(SPECIAL[1:]),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


CHAT_MODELS = {"lab": lab_vlm, "qwen": qwen_vlm}


def within(vlm, inputs, action, images=None):
    """What `action(expert, model)` gives where a preparation would be called."""
    found = []

    def prepare(expert, model):
        found.append(action(expert, model))
        return expert

    recipe = Recipe(preparations=(prepare,))
    vlm.model.generate(**inputs, images=images, custom_generate=recipe, max_new_tokens=1)
    return found[0]


def unpadded(values, mask):
    """`[B, T]` -> rows of a list each, without padding."""
    return [row[kept.bool()].tolist() for row, kept in zip(values, mask, strict=True)]


def positions_of(branch):
    """By row, `[P, tokens]`."""
    positions = branch.position_ids
    positions = positions[None] if positions.ndim == 2 else positions
    return [positions[:, r, kept.bool()] for r, kept in enumerate(branch.attention_mask)]


def own_positions(vlm, inputs):
    """Those that the model makes for the processor's output."""
    given = {k: v for k, v in inputs.items() if k not in ("input_ids", "pixel_values")}
    owner, before = vlm.model.model, getattr(vlm.model.model, "rope_deltas", None)
    positions = vlm.model._prepare_position_ids_for_generation(inputs["input_ids"], given)
    if hasattr(owner, "rope_deltas"):
        owner.rope_deltas = before
    positions = positions.expand(*positions.shape[:-2], *inputs["input_ids"].shape)
    positions = positions[None] if positions.ndim == 2 else positions
    return [positions[:, r, kept.bool()] for r, kept in enumerate(inputs["attention_mask"])]


@dataclass(frozen=True)
class Fixed(Matcher):
    """A map that grows from left to right, more of it masked the longer the question is."""

    flat: float | None = None

    def __call__(self, images, questions, attention_maps=()):
        return [
            Relevance(self.values(image), self.masked(question))
            for image, question in zip(images, questions, strict=True)
        ]

    def values(self, image):
        if self.flat is not None:
            return torch.full((image.height, image.width), self.flat)
        ramp = torch.linspace(0, 1, image.width * image.height)
        return ramp.view(image.width, image.height).T.contiguous()

    def masked(self, question):
        return min(0.9, len(question) / 50)


def blacked_out(image, values, share):
    """All but the pixels that no more than `share` of all are below: sorted, by hand."""
    pixels = np.asarray(image.convert("RGB")).copy()
    order = np.sort(values.numpy().ravel())[::-1]
    index = min(math.floor(order.size * (1 - share)), order.size - 1)
    pixels[values.numpy() < order[index]] = 0
    return Image.fromarray(pixels)
