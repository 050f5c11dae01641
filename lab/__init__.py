"""A small world of images with known truth, and the small vision-language model trained on it."""

from pathlib import Path

from sightline.lab.dialogue import caption, question
from sightline.lab.scenes import (
    CONTEXTS,
    OBJECTS,
    Placed,
    Scene,
    biased,
    context_of,
    decorrelated,
    draw,
    mentioned,
    save,
    truth,
)

CHECKPOINT = Path(__file__).parent / "checkpoint"
IMAGES = Path(__file__).parent / "images"

__all__ = [
    "CHECKPOINT",
    "CONTEXTS",
    "IMAGES",
    "OBJECTS",
    "Placed",
    "Scene",
    "biased",
    "caption",
    "context_of",
    "decorrelated",
    "draw",
    "mentioned",
    "question",
    "save",
    "truth",
]
