"""Decoding strategies that keep vision-language models to what is in the picture.

Each method is one argument of the stock `generate`:

    model.generate(**inputs, custom_generate=VDD(alpha=1.0))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Imported on first use: `import sightline` must not wait for torch.
_HOMES = {
    "Recalibration": "attention.parts",
    "Selection": "attention.parts",
    "ImageGain": "attention.recalibrations",
    "ImageScale": "attention.recalibrations",
    "LeastAttended": "attention.recalibrations",
    "SinkPenalty": "attention.recalibrations",
    "KeyWeights": "attention.reference",
    "WeakAnswerKeys": "attention.selections",
    "answer": "chat",
    "Branch": "decoders.branch",
    "NoImage": "decoders.contrasts",
    "NoisyImage": "decoders.contrasts",
    "UnknownImage": "decoders.contrasts",
    "DAMRO": "decoders.damro",
    "DeCo": "decoders.deco",
    "Decoder": "decoders.decoder",
    "Recipe": "decoders.decoder",
    "DoLa": "decoders.dola",
    "PAI": "decoders.pai",
    "PostHocDebias": "decoders.posthoc",
    "SID": "decoders.sid",
    "Unattended": "decoders.sid",
    "VAF": "decoders.vaf",
    "VASparse": "decoders.vasparse",
    "VCD": "decoders.vcd",
    "VDD": "decoders.vdd",
    "EmbeddingContrast": "logits.embedding",
    "EmbeddingContrastive": "logits.embedding",
    "LayerContrast": "logits.layers",
    "LayerCorrection": "logits.layers",
    "CalibrationProcessor": "logits.processors",
    "PlausibilityProcessor": "logits.processors",
    "Additive": "logits.rules",
    "Contrastive": "logits.rules",
    "Guidance": "logits.rules",
    "Plausibility": "logits.rules",
    "Rule": "logits.rules",
    "State": "logits.rules",
    "open_picture": "pictures",
}

__all__ = [
    "DAMRO",
    "PAI",
    "SID",
    "VAF",
    "VCD",
    "VDD",
    "Additive",
    "Branch",
    "CalibrationProcessor",
    "Contrastive",
    "DeCo",
    "Decoder",
    "DoLa",
    "EmbeddingContrast",
    "EmbeddingContrastive",
    "Guidance",
    "ImageGain",
    "ImageScale",
    "KeyWeights",
    "LayerContrast",
    "LayerCorrection",
    "LeastAttended",
    "NoImage",
    "NoisyImage",
    "Plausibility",
    "PlausibilityProcessor",
    "PostHocDebias",
    "Recalibration",
    "Recipe",
    "Rule",
    "Selection",
    "SinkPenalty",
    "State",
    "Unattended",
    "UnknownImage",
    "VASparse",
    "WeakAnswerKeys",
    "__version__",
    "answer",
    "open_picture",
]

if TYPE_CHECKING:
    from sightline.attention.parts import Recalibration, Selection
    from sightline.attention.recalibrations import ImageGain, ImageScale, LeastAttended, SinkPenalty
    from sightline.attention.reference import KeyWeights
    from sightline.attention.selections import WeakAnswerKeys
    from sightline.chat import answer
    from sightline.decoders.branch import Branch
    from sightline.decoders.contrasts import NoImage, NoisyImage, UnknownImage
    from sightline.decoders.damro import DAMRO
    from sightline.decoders.deco import DeCo
    from sightline.decoders.decoder import Decoder, Recipe
    from sightline.decoders.dola import DoLa
    from sightline.decoders.pai import PAI
    from sightline.decoders.posthoc import PostHocDebias
    from sightline.decoders.sid import SID, Unattended
    from sightline.decoders.vaf import VAF
    from sightline.decoders.vasparse import VASparse
    from sightline.decoders.vcd import VCD
    from sightline.decoders.vdd import VDD
    from sightline.logits.embedding import EmbeddingContrast, EmbeddingContrastive
    from sightline.logits.layers import LayerContrast, LayerCorrection
    from sightline.logits.processors import CalibrationProcessor, PlausibilityProcessor
    from sightline.logits.rules import Additive, Contrastive, Guidance, Plausibility, Rule, State
    from sightline.pictures import open_picture


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sightline' has no attribute {name!r}")
    return getattr(import_module(f"sightline.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
