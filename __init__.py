"""Decoding strategies that keep vision-language models to what is in the picture.

Each method is one argument of the stock `generate`:

    model.generate(**inputs, custom_generate=VDD(alpha=1.0))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Imported on first use: `import sightline` must not wait for torch.
_HOMES = {
    "CalibrationProcessor": "logits.processors",
    "PlausibilityProcessor": "logits.processors",
    "Additive": "logits.rules",
    "Contrastive": "logits.rules",
    "Guidance": "logits.rules",
    "Plausibility": "logits.rules",
    "Rule": "logits.rules",
    "State": "logits.rules",
    "Branch": "decoders.branch",
    "NoImage": "decoders.contrasts",
    "NoisyImage": "decoders.contrasts",
    "UnknownImage": "decoders.contrasts",
    "Decoder": "decoders.decoder",
    "Recipe": "decoders.decoder",
    "PostHocDebias": "decoders.posthoc",
    "VCD": "decoders.vcd",
    "VDD": "decoders.vdd",
    "answer": "chat",
    "open_picture": "pictures",
}

__all__ = [
    "VCD",
    "VDD",
    "Additive",
    "Branch",
    "CalibrationProcessor",
    "Contrastive",
    "Decoder",
    "Guidance",
    "NoImage",
    "NoisyImage",
    "Plausibility",
    "PlausibilityProcessor",
    "PostHocDebias",
    "Recipe",
    "Rule",
    "State",
    "UnknownImage",
    "__version__",
    "answer",
    "open_picture",
]

if TYPE_CHECKING:
    from sightline.chat import answer
    from sightline.decoders.branch import Branch
    from sightline.decoders.contrasts import NoImage, NoisyImage, UnknownImage
    from sightline.decoders.decoder import Decoder, Recipe
    from sightline.decoders.posthoc import PostHocDebias
    from sightline.decoders.vcd import VCD
    from sightline.decoders.vdd import VDD
    from sightline.logits.processors import CalibrationProcessor, PlausibilityProcessor
    from sightline.logits.rules import (
        Additive,
        Contrastive,
        Guidance,
        Plausibility,
        Rule,
        State,
    )
    from sightline.pictures import open_picture


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sightline' has no attribute {name!r}")
    return getattr(import_module(f"sightline.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
