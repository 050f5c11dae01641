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
    "AGLA": "decoders.agla",
    "MaskedImage": "decoders.agla",
    "SelfMatcher": "decoders.agla",
    "Branch": "decoders.branch",
    "CARVE": "decoders.carve",
    "RefinedPicture": "decoders.carve",
    "NoImage": "decoders.contrasts",
    "NoisyImage": "decoders.contrasts",
    "UnknownImage": "decoders.contrasts",
    "DAMRO": "decoders.damro",
    "DeCo": "decoders.deco",
    "Decoder": "decoders.decoder",
    "Gated": "decoders.decoder",
    "Recipe": "decoders.decoder",
    "Reusing": "decoders.decoder",
    "DoLa": "decoders.dola",
    "ICD": "decoders.icd",
    "OtherInstruction": "decoders.icd",
    "M3ID": "decoders.m3id",
    "BlipMatcher": "decoders.matching",
    "Matcher": "decoders.matching",
    "MVP": "decoders.mvp",
    "PAI": "decoders.pai",
    "PostHocDebias": "decoders.posthoc",
    "SID": "decoders.sid",
    "Unattended": "decoders.sid",
    "VAF": "decoders.vaf",
    "VASparse": "decoders.vasparse",
    "VCD": "decoders.vcd",
    "VDD": "decoders.vdd",
    "Described": "decoders.vdgd",
    "PrefixOnly": "decoders.vdgd",
    "VDGD": "decoders.vdgd",
    "EmbeddingContrast": "logits.embedding",
    "EmbeddingContrastive": "logits.embedding",
    "Gate": "logits.gates",
    "Spread": "logits.gates",
    "Undecided": "logits.gates",
    "Unsure": "logits.gates",
    "Grounded": "logits.grounding",
    "GrowingGuidance": "logits.growing",
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
    "AGLA",
    "CARVE",
    "DAMRO",
    "ICD",
    "M3ID",
    "MVP",
    "PAI",
    "SID",
    "VAF",
    "VCD",
    "VDD",
    "VDGD",
    "Additive",
    "BlipMatcher",
    "Branch",
    "CalibrationProcessor",
    "Contrastive",
    "DeCo",
    "Decoder",
    "Described",
    "DoLa",
    "EmbeddingContrast",
    "EmbeddingContrastive",
    "Gate",
    "Gated",
    "Grounded",
    "GrowingGuidance",
    "Guidance",
    "ImageGain",
    "ImageScale",
    "KeyWeights",
    "LayerContrast",
    "LayerCorrection",
    "LeastAttended",
    "MaskedImage",
    "Matcher",
    "NoImage",
    "NoisyImage",
    "OtherInstruction",
    "Plausibility",
    "PlausibilityProcessor",
    "PostHocDebias",
    "PrefixOnly",
    "Recalibration",
    "Recipe",
    "RefinedPicture",
    "Reusing",
    "Rule",
    "Selection",
    "SelfMatcher",
    "SinkPenalty",
    "Spread",
    "State",
    "Unattended",
    "Undecided",
    "UnknownImage",
    "Unsure",
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
    from sightline.decoders.agla import AGLA, MaskedImage, SelfMatcher
    from sightline.decoders.branch import Branch
    from sightline.decoders.carve import CARVE, RefinedPicture
    from sightline.decoders.contrasts import NoImage, NoisyImage, UnknownImage
    from sightline.decoders.damro import DAMRO
    from sightline.decoders.deco import DeCo
    from sightline.decoders.decoder import Decoder, Gated, Recipe, Reusing
    from sightline.decoders.dola import DoLa
    from sightline.decoders.icd import ICD, OtherInstruction
    from sightline.decoders.m3id import M3ID
    from sightline.decoders.matching import BlipMatcher, Matcher
    from sightline.decoders.mvp import MVP
    from sightline.decoders.pai import PAI
    from sightline.decoders.posthoc import PostHocDebias
    from sightline.decoders.sid import SID, Unattended
    from sightline.decoders.vaf import VAF
    from sightline.decoders.vasparse import VASparse
    from sightline.decoders.vcd import VCD
    from sightline.decoders.vdd import VDD
    from sightline.decoders.vdgd import VDGD, Described, PrefixOnly
    from sightline.logits.embedding import EmbeddingContrast, EmbeddingContrastive
    from sightline.logits.gates import Gate, Spread, Undecided, Unsure
    from sightline.logits.grounding import Grounded
    from sightline.logits.growing import GrowingGuidance
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
