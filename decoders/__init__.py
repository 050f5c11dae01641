"""Generation strategies: what is passed as `custom_generate`."""

from sightline.decoders.agla.agla import AGLA
from sightline.decoders.carve.carve import CARVE
from sightline.decoders.controls import FullTwice, PlausibilityOnly
from sightline.decoders.damro.damro import DAMRO
from sightline.decoders.deco import DeCo
from sightline.decoders.dola import DoLa
from sightline.decoders.icd import ICD
from sightline.decoders.m3id import M3ID
from sightline.decoders.mvp.mvp import MVP
from sightline.decoders.pai import PAI
from sightline.decoders.posthoc import PostHocDebias
from sightline.decoders.sid import SID
from sightline.decoders.vaf import VAF
from sightline.decoders.vasparse.vasparse import VASparse
from sightline.decoders.vcd import VCD
from sightline.decoders.vdd import VDD
from sightline.decoders.vdgd import VDGD, PrefixOnly

DECODERS = {
    "vcd": VCD,
    "vdd": VDD,
    "damro": DAMRO,
    "sid": SID,
    "agla": AGLA,
    "vasparse": VASparse,
    "pai": PAI,
    "vaf": VAF,
    "deco": DeCo,
    "dola": DoLa,
    "icd": ICD,
    "m3id": M3ID,
    "vdgd": VDGD,
    "mvp": MVP,
    "carve": CARVE,
    "posthoc": PostHocDebias,
}
"""Lower-case name -> class, wherever decoders are named."""

CONTROLS = {"plausibility": PlausibilityOnly, "vdgd-prefix": PrefixOnly, "agla-full": FullTwice}
"""What decoders are held against, by name; they are named as decoders are."""

NAMED = {**DECODERS, **CONTROLS}

__all__ = [
    "AGLA",
    "CARVE",
    "CONTROLS",
    "DAMRO",
    "DECODERS",
    "ICD",
    "M3ID",
    "MVP",
    "NAMED",
    "PAI",
    "SID",
    "VAF",
    "VCD",
    "VDD",
    "VDGD",
    "DeCo",
    "DoLa",
    "FullTwice",
    "PlausibilityOnly",
    "PostHocDebias",
    "PrefixOnly",
    "VASparse",
]
