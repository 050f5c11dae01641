"""Decoding strategies that keep vision-language models to what is in the image.

Each method is one argument of the stock `generate`:

    model.generate(**inputs, custom_generate=VDD(alpha=1.0))
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Public names by module; each is imported on first use, as `import sightline` must not wait for
# torch. Type checkers read __init__.pyi, which `python -m tests.stub` writes of this table.
_NAMES = {
    "attention.base": ("AttentionEdit", "CacheEviction"),
    "attention.edits": ("ImageGain", "ImageScale", "LeastAttended", "SinkPenalty"),
    "attention.eviction": ("WeakAnswerKeys",),
    "attention.reference": ("KeyWeights",),
    "chat": ("answer",),
    "decoders.agla.agla": ("AGLA", "MaskedImage", "SelfMatcher"),
    "decoders.agla.matching": ("BlipMatcher", "Matcher"),
    "decoders.carve.carve": ("CARVE", "RefinedImage"),
    "decoders.contrasts": ("NoImage", "NoisyImage", "UnknownImage"),
    "decoders.controls": ("FullTwice", "PlausibilityOnly"),
    "decoders.damro.damro": ("DAMRO",),
    "decoders.deco": ("DeCo",),
    "decoders.dola": ("DoLa",),
    "decoders.icd": ("ICD", "OtherInstruction"),
    "decoders.m3id": ("M3ID",),
    "decoders.mvp.mvp": ("MVP",),
    "decoders.pai": ("PAI",),
    "decoders.posthoc": ("PostHocDebias",),
    "decoders.sid": ("SID", "Unattended"),
    "decoders.vaf": ("VAF",),
    "decoders.vasparse.embedding": ("EmbeddingContrast", "EmbeddingContrastive"),
    "decoders.vasparse.vasparse": ("VASparse",),
    "decoders.vcd": ("VCD",),
    "decoders.vdd": ("VDD",),
    "decoders.vdgd": ("VDGD", "Described", "PrefixOnly"),
    "engine.branch": ("Branch",),
    "engine.strategy": ("Combined", "Decoder", "Gated", "PromptCached", "Recipe"),
    "logits.gates": ("ConfidenceGate", "EntropyGate", "Gate", "PlausibilityGate"),
    "logits.grounding": ("Grounded",),
    "logits.growing": ("GrowingGuidance",),
    "logits.layers": ("LayerContrast", "LayerCorrection"),
    "logits.processors": ("CalibrationProcessor", "PlausibilityProcessor"),
    "logits.rules": (
        "Additive",
        "Contrastive",
        "Guidance",
        "Needs",
        "Plausibility",
        "Rule",
        "State",
    ),
    "model_protocol": ("UnsupportedModelError",),
    "vision.images": ("open_image",),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sightline' has no attribute {name!r}")
    return getattr(import_module(f"sightline.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
