"""A small world of pictures with known truth, and the small vision-language model trained on it."""

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
PICTURES = Path(__file__).parent / "pictures"

__all__ = [
    "CHECKPOINT",
    "CONTEXTS",
    "OBJECTS",
    "PICTURES",
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
