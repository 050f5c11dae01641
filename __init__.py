"""Decoding strategies that keep vision-language models to what is in the picture.

Each method is one argument of the stock `generate`:

    model.generate(**inputs, custom_generate=VDD(alpha=1.0))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Imported on first use: `import sightline` must not wait for torch.
_HOMES = {
    "AttentionEdit": "attention.base",
    "CacheEviction": "attention.base",
    "ImageGain": "attention.edits",
    "ImageScale": "attention.edits",
    "LeastAttended": "attention.edits",
    "SinkPenalty": "attention.edits",
    "KeyWeights": "attention.reference",
    "WeakAnswerKeys": "attention.eviction",
    "answer": "chat",
    "AGLA": "decoders.agla.agla",
    "MaskedImage": "decoders.agla.agla",
    "SelfMatcher": "decoders.agla.agla",
    "Branch": "engine.branch",
    "CARVE": "decoders.carve.carve",
    "RefinedPicture": "decoders.carve.carve",
    "NoImage": "decoders.contrasts",
    "NoisyImage": "decoders.contrasts",
    "UnknownImage": "decoders.contrasts",
    "DAMRO": "decoders.damro.damro",
    "DeCo": "decoders.deco",
    "Decoder": "engine.strategy",
    "Gated": "engine.strategy",
    "Recipe": "engine.strategy",
    "PromptCached": "engine.strategy",
    "DoLa": "decoders.dola",
    "ICD": "decoders.icd",
    "OtherInstruction": "decoders.icd",
    "M3ID": "decoders.m3id",
    "BlipMatcher": "decoders.agla.matching",
    "Matcher": "decoders.agla.matching",
    "MVP": "decoders.mvp.mvp",
    "PAI": "decoders.pai",
    "PostHocDebias": "decoders.posthoc",
    "SID": "decoders.sid",
    "Unattended": "decoders.sid",
    "VAF": "decoders.vaf",
    "VASparse": "decoders.vasparse.vasparse",
    "VCD": "decoders.vcd",
    "VDD": "decoders.vdd",
    "Described": "decoders.vdgd",
    "FullTwice": "decoders.controls",
    "PlausibilityOnly": "decoders.controls",
    "PrefixOnly": "decoders.vdgd",
    "VDGD": "decoders.vdgd",
    "EmbeddingContrast": "decoders.vasparse.embedding",
    "EmbeddingContrastive": "decoders.vasparse.embedding",
    "Gate": "logits.gates",
    "EntropyGate": "logits.gates",
    "PlausibilityGate": "logits.gates",
    "ConfidenceGate": "logits.gates",
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
    "open_picture": "vision.images",
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
    "AttentionEdit",
    "BlipMatcher",
    "Branch",
    "CacheEviction",
    "CalibrationProcessor",
    "ConfidenceGate",
    "Contrastive",
    "DeCo",
    "Decoder",
    "Described",
    "DoLa",
    "EmbeddingContrast",
    "EmbeddingContrastive",
    "EntropyGate",
    "FullTwice",
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
    "PlausibilityGate",
    "PlausibilityOnly",
    "PlausibilityProcessor",
    "PostHocDebias",
    "PrefixOnly",
    "PromptCached",
    "Recipe",
    "RefinedPicture",
    "Rule",
    "SelfMatcher",
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
    from sightline.attention.base import AttentionEdit, CacheEviction
    from sightline.attention.edits import ImageGain, ImageScale, LeastAttended, SinkPenalty
    from sightline.attention.eviction import WeakAnswerKeys
    from sightline.attention.reference import KeyWeights
    from sightline.chat import answer
    from sightline.decoders.agla.agla import AGLA, MaskedImage, SelfMatcher
    from sightline.decoders.agla.matching import BlipMatcher, Matcher
    from sightline.decoders.carve.carve import CARVE, RefinedPicture
    from sightline.decoders.contrasts import NoImage, NoisyImage, UnknownImage
    from sightline.decoders.controls import FullTwice, PlausibilityOnly
    from sightline.decoders.damro.damro import DAMRO
    from sightline.decoders.deco import DeCo
    from sightline.decoders.dola import DoLa
    from sightline.decoders.icd import ICD, OtherInstruction
    from sightline.decoders.m3id import M3ID
    from sightline.decoders.mvp.mvp import MVP
    from sightline.decoders.pai import PAI
    from sightline.decoders.posthoc import PostHocDebias
    from sightline.decoders.sid import SID, Unattended
    from sightline.decoders.vaf import VAF
    from sightline.decoders.vasparse.embedding import EmbeddingContrast, EmbeddingContrastive
    from sightline.decoders.vasparse.vasparse import VASparse
    from sightline.decoders.vcd import VCD
    from sightline.decoders.vdd import VDD
    from sightline.decoders.vdgd import VDGD, Described, PrefixOnly
    from sightline.engine.branch import Branch
    from sightline.engine.strategy import Decoder, Gated, PromptCached, Recipe
    from sightline.logits.gates import ConfidenceGate, EntropyGate, Gate, PlausibilityGate
    from sightline.logits.grounding import Grounded
    from sightline.logits.growing import GrowingGuidance
    from sightline.logits.layers import LayerContrast, LayerCorrection
    from sightline.logits.processors import CalibrationProcessor, PlausibilityProcessor
    from sightline.logits.rules import Additive, Contrastive, Guidance, Plausibility, Rule, State
    from sightline.vision.images import open_picture


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sightline' has no attribute {name!r}")
    return getattr(import_module(f"sightline.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
