"""From a record to a model with its processor, and to prompts."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tiny_families import SIZES, change, enlivened, families, shrunk
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from sightline import Recipe

from .records import RECORDS

TEMPLATES = Path(__file__).parent / "templates"
OWN = ("pad_token_id", "bos_token_id", "eos_token_id")  # the tokenizer's


@dataclass(frozen=True)
class Checkpoint:
    """A model and its processor.

    Args:
        name: As `names` lists it.
        model: In float32, evaluated, with random weights of a fixed seed.
        processor: Of the checkpoint's own class, with a chat template unless it has none.
    """

    name: str
    model: Any
    processor: Any

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def has_template(self) -> bool:
        return getattr(self.processor, "chat_template", None) is not None

    def chat(self, images: Sequence[Image.Image], text: str, **template: Any) -> dict[str, Any]:
        """Inputs of `generate` for a user's turn: images, then text."""
        return self.inputs(chat(images, text), **template)

    def inputs(self, messages: list[dict[str, Any]], **template: Any) -> dict[str, Any]:
        """Inputs of `generate` for a conversation."""
        if not self.has_template:
            return self.untemplated(messages)
        made = self.processor.apply_chat_template(
            messages,
            **{"add_generation_prompt": True, **template},
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        return dict(made.to(self.model.dtype))

    def untemplated(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        """Images and words as the processor takes them by itself."""
        (message,) = messages
        images = [part["image"] for part in message["content"] if part["type"] == "image"]
        words = "".join(part["text"] for part in message["content"] if part["type"] == "text")
        if not images:  # which PaliGemma's processor refuses
            return dict(self.tokenizer(f"<bos>{words}\n", return_tensors="pt"))
        marks = self.processor.image_token * len(images)
        return dict(self.processor(images=images, text=marks + words, return_tensors="pt"))

    def prompt(self, messages: list[dict[str, Any]], **template: Any) -> str:
        """A conversation as the template writes it."""
        return self.processor.apply_chat_template(
            messages, **{"add_generation_prompt": True, **template}, tokenize=False
        )

    def within(
        self, inputs: Mapping[str, Any], action: Callable[[Any, Any], Any], **given: Any
    ) -> Any:
        """What `action(expert, model)` gives where a decoder would make its branches.

        Args:
            given: What else `generate` is given.
        """
        found = []

        def prepare(expert: Any, model: Any) -> Any:
            found.append(action(expert, model))
            return expert

        recipe = Recipe(preparations=(prepare,))
        self.model.generate(**inputs, **given, custom_generate=recipe, max_new_tokens=1)
        return found[0]

    def amateurs(self, inputs: Mapping[str, Any], decoder: Any, **given: Any) -> list[Any]:
        """What a decoder compares with, as branches; `given` as in `within`."""
        contrasts = decoder.recipe().contrasts
        return self.within(
            inputs, lambda expert, model: [c(expert, model) for c in contrasts], **given
        )

    def text(self, branch: Any) -> str:
        """The prompt of a branch of one row as text, special tokens included."""
        return self.tokenizer.decode(branch.input_ids[branch.attention_mask.bool()])

    def shown(self, ids: torch.Tensor) -> str:
        """Token ids for a reader: runs of one special token once, with how often."""
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
        return "".join(self._runs(ids.tolist(), special))

    def _runs(self, ids: list[int], special: set[int]) -> Iterator[str]:
        plain: list[int] = []
        for token, run in groupby(ids):
            times = len(list(run))
            if token not in special:
                plain += [token] * times
                continue
            if plain:
                yield self._plain(plain)
                plain = []
            name = self.tokenizer.convert_ids_to_tokens(token)
            yield name if times == 1 else f"{name}*{times} "
        if plain:
            yield self._plain(plain)

    def _plain(self, ids: list[int]) -> str:
        pieces = "".join(self.tokenizer.convert_ids_to_tokens(ids))
        for token, shown in (("Ġ", " "), ("▁", " "), ("Ċ", "\n"), ("<0x0A>", "\n")):
            pieces = pieces.replace(token, shown)
        return pieces


def names() -> list[str]:
    return list(RECORDS)


def template_of(name: str) -> str:
    """The chat template of a checkpoint that has one."""
    written = TEMPLATES / f"{RECORDS[name].written or name}.jinja"
    return written.read_text(encoding="utf-8")


@cache
def load(name: str) -> Checkpoint:
    """One checkpoint, built once per process."""
    record = RECORDS[name]
    processor = record.processor()
    if record.has_template:
        processor.chat_template = template_of(name)
    vocabulary = len(processor.tokenizer) + 3  # padded, as vocabularies are
    config = configured(record, processor.tokenizer, vocabulary)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)](config)
    enlivened(model, head=config.get_text_config().vocab_size).eval()
    tokenizer = processor.tokenizer
    ends = tokenizer.convert_tokens_to_ids(record.ends) if record.ends else tokenizer.eos_token_id
    special = {own: getattr(tokenizer, own) for own in OWN} | {"eos_token_id": ends}
    model.generation_config.update(**special, **record.generation)
    return Checkpoint(name, model, processor)


def configured(record: Any, tokenizer: Any, vocabulary: int) -> Any:
    """The default config of the family made small, with the checkpoint's tokens.

    Raises:
        AssertionError: The config names a token and the record does not.
    """
    (kind,) = (c for c in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING if c.model_type == record.family)
    values = shrunk(kind().to_dict(), SIZES)
    change(values, families()[record.family].changes)
    used: set[str] = set()

    def renumber(values: dict[Any, Any]) -> None:
        for key, value in values.items():
            name = str(key).lstrip("_")
            if isinstance(value, dict):
                renumber(value)
            elif name in OWN:
                values[key] = getattr(tokenizer, name)
            elif name.startswith("vocab_size"):
                values[key] = vocabulary
            elif name in record.tokens:
                used.add(name)
                values[key] = tokenizer.convert_tokens_to_ids(record.tokens[name])
            else:
                is_token = name.endswith(("_token_id", "_token_index", "_token_ids"))
                assert not is_token or value is None, f"the config names {name}"

    renumber(values)
    assert used == set(record.tokens), f"not in the config: {set(record.tokens) - used}"
    change(values, {n: v(tokenizer) if callable(v) else v for n, v in record.changes.items()})
    return kind(**values)


def chat(images: Sequence[Image.Image], *turns: str) -> list[dict[str, Any]]:
    """Messages: the user shows images and says the first turn, the model the second, and so on."""
    shown = [{"type": "image", "image": image} for image in images]
    said = [[{"type": "text", "text": turn}] for turn in turns]
    return [
        {
            "role": "assistant" if place % 2 else "user",
            "content": words if place else [*shown, *words],
        }
        for place, words in enumerate(said)
    ]


def random_image(width: int, height: int, seed: int = 0) -> Image.Image:
    """Coloured noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
