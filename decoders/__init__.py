"""Generation strategies: what is passed as `custom_generate`."""

from sightline.decoders.posthoc import PostHocDebias
from sightline.decoders.vcd import VCD
from sightline.decoders.vdd import VDD

DECODERS = {"vcd": VCD, "vdd": VDD}
"""Lower-case name -> class, for the command line and the demo."""

__all__ = ["DECODERS", "VCD", "VDD", "PostHocDebias"]
