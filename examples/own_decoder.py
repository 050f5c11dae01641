"""A decoder of one's own: a contrast, a rule, and a dataclass that names them."""

from dataclasses import dataclass

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from sightline import Decoder, Recipe, Rule, answer
from sightline.lab import CHECKPOINT, IMAGES


@dataclass(frozen=True)
class MirroredImage:
    """The image turned left to right: what does not change by that is not about places."""

    needs_pixels = True  # so that pixels come before they are encoded

    def __call__(self, expert, model):
        return expert.with_pixels(lambda name, pixels: pixels.flip(-1))


@dataclass(frozen=True)
class MostCautious(Rule):
    """The smaller of both probabilities: say what holds for the image and its mirror image."""

    def combine(self, logits, state):
        return torch.stack([x.log_softmax(-1) for x in logits]).amin(dim=0)


@dataclass(frozen=True)
class Mirror(Decoder):
    """Say only what the mirrored image supports too."""

    def recipe(self) -> Recipe:
        return Recipe(contrasts=(MirroredImage(),), rule=MostCautious())


model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT)
processor = AutoProcessor.from_pretrained(CHECKPOINT)
print(answer(model, processor, IMAGES / "corner.png", "Describe the image.", Mirror()))
