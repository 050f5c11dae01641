"""Generation strategies: what is passed as `custom_generate`."""

from sightline.decoders.damro import DAMRO
from sightline.decoders.deco import DeCo
from sightline.decoders.dola import DoLa
from sightline.decoders.pai import PAI
from sightline.decoders.posthoc import PostHocDebias
from sightline.decoders.sid import SID
from sightline.decoders.vaf import VAF
from sightline.decoders.vasparse import VASparse
from sightline.decoders.vcd import VCD
from sightline.decoders.vdd import VDD

DECODERS = {
    "vcd": VCD,
    "vdd": VDD,
    "damro": DAMRO,
    "sid": SID,
    "vasparse": VASparse,
    "pai": PAI,
    "vaf": VAF,
    "deco": DeCo,
    "dola": DoLa,
}
"""Lower-case name -> class, for the command line and the demo."""

__all__ = [
    "DAMRO",
    "DECODERS",
    "PAI",
    "SID",
    "VAF",
    "VCD",
    "VDD",
    "DeCo",
    "DoLa",
    "PostHocDebias",
    "VASparse",
]
