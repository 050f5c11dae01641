"""What is measured: models of published shapes with random weights, and prompts about images.

| name | shape |
|---|---|
| 0.25b | a LLaVA of 242 M parameters: hidden 1024, 12 layers, 16 heads, vocabulary 32,064 |
| 7b | LLaVA-1.5-7B |
| 13b | LLaVA-1.5-13B |
| qwen2.5-vl-7b | Qwen2.5-VL-7B-Instruct |
| lab | the shipped model of 2.5 M, the only one that was trained |

Weights are random, drawn on the device where they are used: good for speed and for nothing else. A
prompt is 61 words and the tokens of the image, 576 of a LLaVA and 391 of Qwen2.5-VL. Every token
of a random model is a word of its own, so texts keep their lengths. A batch asks the same of
images of its own for each row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from machine import DTYPES
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from sightline.chat import input_device
from sightline.lab import CHECKPOINT, IMAGES, decorrelated, draw
from sightline.lab.dialogue import DESCRIBE
from sightline.vision.images import user_turn

WORDS = " ".join(f"w{i}" for i in range(100, 123))  # a question of as many tokens
BEFORE, AFTER = range(10, 45), (8, 9)  # words around image and question
UNKNOWN = 3
TEMPLATE = """\
{{{{- '{start}' -}}}}
{{%- for part in messages[0]['content'] -%}}
{{{{- ' {image}' if part['type'] == 'image' else ' ' ~ part['text'] -}}}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}{{{{- '{end}' -}}}}{{%- endif -%}}
"""


@dataclass(frozen=True)
class Text:
    """Sizes of a text model."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    positions: int


@dataclass(frozen=True)
class Vision:
    """Sizes of an image encoder."""

    hidden: int
    intermediate: int
    layers: int
    heads: int


@dataclass(frozen=True)
class Shape:
    """A model's sizes, by which it is built."""

    text: Text
    vision: Vision

    kind: ClassVar[Any]

    def config(self) -> Any:
        raise NotImplementedError

    def model(self, dtype: torch.dtype, device: str) -> Any:
        """The model, drawn on its device from seed 0."""
        torch.manual_seed(0)
        with torch.device(device):
            return self.kind._from_config(self.config(), dtype=dtype).eval()

    def tiny(self) -> "Shape":
        """As the same structure in small: images and vocabulary as they are."""
        ratio = self.text.heads // self.text.kv_heads
        text = replace(
            self.text, hidden=16 * ratio, intermediate=64, layers=4, heads=ratio, kv_heads=1
        )
        return replace(
            self,
            text=text,
            vision=replace(self.vision, hidden=32, intermediate=64, heads=2, layers=9),
        )


@dataclass(frozen=True)
class Llava(Shape):
    kind = LlavaForConditionalGeneration
    special = (("<pad>", 0), ("<s>", 1), ("<unk>", UNKNOWN), ("<image>", 32000))

    def config(self) -> LlavaConfig:
        vision = CLIPVisionConfig(
            hidden_size=self.vision.hidden,
            intermediate_size=self.vision.intermediate,
            num_hidden_layers=self.vision.layers,
            num_attention_heads=self.vision.heads,
            image_size=336,
            patch_size=14,
        )
        text = LlamaConfig(**text_sizes(self.text), pad_token_id=0)
        return LlavaConfig(  # type: ignore[call-arg]  # a base class takes pad_token_id
            vision_config=vision,
            text_config=text,
            image_token_index=dict(self.special)["<image>"],
            image_seq_length=576,
            pad_token_id=0,
        )

    def processor(self) -> LlavaProcessor:
        words = tokenizer(self.text.vocabulary, self.special, "<pad>", "<unk>")
        images = CLIPImageProcessorPil(
            size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
        )
        return LlavaProcessor(
            image_processor=images,
            tokenizer=words,
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            image_token="<image>",
            chat_template=template("<s>", "<image>"),
        )


class ImageProcessor(Qwen2_5_VLProcessor):
    """Qwen's without its videos, which ask for torchvision."""

    def __init__(self, image_processor: Any, tokenizer: Any, **kwargs: Any):
        super().__init__(image_processor, tokenizer, None, **kwargs)

    def check_argument_for_proper_class(self, name: str, argument: Any) -> None:
        if argument is not None:
            super().check_argument_for_proper_class(name, argument)


@dataclass(frozen=True)
class Qwen(Shape):
    kind = Qwen2_5_VLForConditionalGeneration
    special = (
        ("<|endoftext|>", 151643),
        ("<|im_end|>", 151645),
        ("<|vision_start|>", 151652),
        ("<|vision_end|>", 151653),
        ("<|image_pad|>", 151655),
        ("<|video_pad|>", 151656),
    )

    def config(self) -> Qwen2_5_VLConfig:
        """Where the defaults of transformers are those of 72 B, as the 7 B was published."""
        ids = dict(self.special)
        half = self.text.hidden // self.text.heads // 2
        sections = [half // 4, half * 3 // 8, half * 3 // 8]
        rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
        text = {
            **text_sizes(self.text),
            "rope_parameters": rope,
            "rms_norm_eps": 1e-6,
            "pad_token_id": ids["<|endoftext|>"],
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
        }
        vision = {
            "depth": self.vision.layers,
            "hidden_size": self.vision.hidden,
            "intermediate_size": self.vision.intermediate,
            "num_heads": self.vision.heads,
            "out_hidden_size": self.text.hidden,
            "tokens_per_second": 2,
        }
        return Qwen2_5_VLConfig(
            text_config=text,
            vision_config=vision,
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
            tie_word_embeddings=False,
        )

    def processor(self) -> Qwen2_5_VLProcessor:
        words = tokenizer(self.text.vocabulary, self.special, "<|endoftext|>", None)
        return ImageProcessor(
            Qwen2VLImageProcessorPil(),
            words,
            chat_template=template(
                f"w{BEFORE.stop}", "<|vision_start|><|image_pad|><|vision_end|>"
            ),
        )


def text_sizes(text: Text) -> dict[str, int]:
    return {
        "hidden_size": text.hidden,
        "intermediate_size": text.intermediate,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "num_key_value_heads": text.kv_heads,
        "vocab_size": text.vocabulary,
        "max_position_embeddings": text.positions,
    }


def tokenizer(
    vocabulary: int, special: Sequence[tuple[str, int]], padding: str, unknown: str | None
) -> PreTrainedTokenizerFast:
    """A tokenizer of the words w0, w1, ..., each the token of that number."""
    names = dict(special)
    words = {f"w{i}": i for i in sorted({*range(vocabulary)} - {*names.values()})} | names
    made = Tokenizer(models.WordLevel(words, unk_token=unknown or f"w{UNKNOWN}"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token=padding,
        unk_token=unknown,
        additional_special_tokens=[AddedToken(name, special=True) for name in names],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def template(start: str, image: str) -> str:
    """A chat template of one turn."""
    return TEMPLATE.format(
        start=" ".join([start, *(f"w{i}" for i in BEFORE)]),
        image=image,
        end="".join(f" w{i}" for i in AFTER),
    )


SHAPES: dict[str, Any] = {
    "0.25b": Llava(
        Text(1024, 3072, 12, 16, 16, 32064, 2048),
        Vision(384, 1536, 6, 6),
    ),
    "7b": Llava(
        Text(4096, 11008, 32, 32, 32, 32064, 4096),
        Vision(1024, 4096, 24, 16),
    ),
    "13b": Llava(
        Text(5120, 13824, 40, 40, 40, 32064, 4096),
        Vision(1024, 4096, 24, 16),
    ),
    "qwen2.5-vl-7b": Qwen(
        Text(3584, 18944, 28, 28, 4, 152064, 128000),
        Vision(1280, 3420, 32, 16),
    ),
}
NAMES = (*SHAPES, "lab")


@dataclass(frozen=True)
class Subject:
    """A model and what it is asked.

    Args:
        model: Of transformers, on its device.
        processor: Its processor.
        question: The user's words, alike in every row.
        images: By row, all of one size.
        inputs: Of `generate`, B rows.
        trained: Whether its answers mean something.
    """

    model: Any
    processor: Any
    question: str
    images: tuple[tuple[Image.Image, ...], ...]
    inputs: dict[str, Any]
    trained: bool = False

    @property
    def batch(self) -> int:
        return len(self.images)

    @property
    def prompt(self) -> int:
        """Tokens of a row's prompt."""
        return self.inputs["input_ids"].shape[1]

    @property
    def image_tokens(self) -> int:
        """Tokens of a row's images."""
        return int((self.inputs["input_ids"][0] == self.model.config.image_token_id).sum())

    @property
    def parameters(self) -> int:
        return sum(weights.numel() for weights in self.model.parameters())

    @property
    def weight_bytes(self) -> int:
        """What one answered token must read of the text model: all but unread embeddings."""
        text = self.model.get_decoder()
        head, embeddings = self.model.get_output_embeddings(), self.model.get_input_embeddings()
        read = {id(weights): weights for weights in (*text.parameters(), *head.parameters())}
        if head.weight is not embeddings.weight:
            read.pop(id(embeddings.weight), None)
        return sum(weights.nbytes for weights in read.values())

    @property
    def head_bytes(self) -> int:
        """Of the LM head."""
        return sum(weights.nbytes for weights in self.model.get_output_embeddings().parameters())

    @property
    def key_bytes(self) -> int:
        """Of the keys and values of one token, all layers."""
        text = self.model.config.get_text_config(decoder=True)
        size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        values = 2 * text.num_hidden_layers * text.num_key_value_heads * size
        return values * self.model.dtype.itemsize


def load(name: str, dtype: str, device: str, tiny: bool = False) -> tuple[Any, Any]:
    """Model and processor of one of `NAMES`; `tiny` ones are for trying a command."""
    if name == "lab":
        model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT, dtype=DTYPES[dtype])
        return model.to(device).eval(), AutoProcessor.from_pretrained(CHECKPOINT)
    shape = SHAPES[name]
    if tiny:
        shape = shape.tiny()
    return shape.model(DTYPES[dtype], device), shape.processor()


def ask(name: str, model: Any, processor: Any, batch: int = 1, images: int = 1) -> Subject:
    """A batch of prompts, each with as many images."""
    trained = name == "lab"
    question = DESCRIBE[0] if trained else WORDS
    show = scene if trained else noise
    shown = tuple(tuple(show(images * r + p) for p in range(images)) for r in range(batch))
    inputs = processor.apply_chat_template(
        [user_turn(own, question) for own in shown],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    inputs = dict(inputs.to(input_device(model), model.dtype))
    return Subject(model, processor, question, shown, inputs, trained)


def noise(number: int) -> Image.Image:
    values = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((640, 480))


def scene(number: int) -> Image.Image:
    """The shipped images first, then further scenes of the lab."""
    shipped: list[Path] = sorted(IMAGES.glob("*.png"))
    if number < len(shipped):
        return Image.open(shipped[number]).convert("RGB")
    return draw(decorrelated(np.random.default_rng(number)))
