"""Tiny models that are asked in words, by rows of tokens: for decoders that need a processor."""

from functools import cache

import numpy as np
import torch
from models import IMAGE, VISION_END, VISION_START
from PIL import Image
from tiny_families import SIDE, Tiny, letters, pixels_of

QUESTIONS = ("Is it red?", "What is it, and where?")


class Spoken(Tiny):
    """A row is the prompt of a chat: letters, of which each IMAGE stands for one image."""

    __hash__ = object.__hash__

    def row(self, question, before=""):
        """The prompt of a question, with words before its image."""
        parts = [{"type": "text", "text": before}] if before else []
        parts += [{"type": "image"}, {"type": "text", "text": question}]
        text = self.processor.apply_chat_template([{"role": "user", "content": parts}])
        tokens = letters()(text, add_special_tokens=False)["input_ids"]
        return [token for token in tokens if token not in (VISION_START, VISION_END)]

    def question(self, row):
        asked = letters().decode(row[row.index(IMAGE) + 1 :])
        return asked.removesuffix("\nA:")

    @property
    def rows(self):
        return [self.row(question) for question in QUESTIONS]

    @staticmethod
    def drawn(rows):
        return torch.stack([pixels_of(image) for row in rows for image in images_of(row)])

    def shown(self, images):
        """What the encoder takes of one row's images."""
        return self.arranged(torch.stack([pixels_of(image) for image in images]), [len(images)])


def images_of(row):
    """They depend on the row's tokens alone."""
    rng = np.random.default_rng(sum(row))
    return [
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
        for _ in range(row.count(IMAGE))
    ]


SPOKEN = {  # family of models.py -> the same model by its type in transformers
    "llava": cache(lambda: Spoken.of("llava")),
    "qwen": cache(lambda: Spoken.of("qwen2_5_vl")),
}
