"""Each method with strong settings, neutral ones, and its branches built by hand.

`amateurs(family, row)` gives, for one row of tokens, the prompts that the method compares with:
pairs of (tokens, pixels edit or None for no pictures). Nothing here calls the library's own
editing of prompts or pictures.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from models import IMAGE, UNK

from sightline import VCD, VDD
from sightline.decoders.decoder import Strategy


@dataclass(frozen=True)
class Method:
    strong: Strategy
    neutral: Strategy
    amateurs: Callable[[str, list[int]], list[tuple[list[int], Any]]]
    alpha: float
    beta: float

    def scores(self, expert, amateurs):
        """The formula of the notes, in float64: expert and amateurs `[V]` -> scores `[V]`."""
        expert = expert.double()
        mean = sum(a.double() for a in amateurs) / len(amateurs)
        scores = expert + self.alpha * (expert - mean)
        share = expert.exp() / expert.exp().max()
        return torch.where(share >= self.beta, scores, -math.inf)


def without_pictures(family, row):
    return [([t for t in row if t != IMAGE], None)]


def with_unknown(family, row):
    return [([UNK if t == IMAGE else t for t in row], None)]


def both(family, row):
    return without_pictures(family, row) + with_unknown(family, row)


def noised(family, row):
    """Step 700 of the schedule, its constants from the table of the method's note."""

    def edit(pixels):
        generator = torch.Generator().manual_seed(3)
        if family == "llava":
            noise = torch.randn(pixels.shape, generator=generator)
        else:  # one frame's noise, in both temporal copies of each channel
            frame = torch.randn(len(pixels), 3, 1, 14 * 14, generator=generator)
            noise = torch.cat([frame, frame], dim=2).reshape(len(pixels), -1)
        return 0.592677 * pixels + 0.805440 * noise

    return [(row, edit)]


METHODS = {
    "vcd": Method(
        VCD(alpha=1.5, beta=0.05, noise_step=700, seed=3),
        VCD(alpha=0, beta=0),
        noised,
        alpha=1.5,
        beta=0.05,
    ),
    "vdd": Method(
        VDD(alpha=1.5, beta=0.05), VDD(alpha=0, beta=0), without_pictures, alpha=1.5, beta=0.05
    ),
    "vdd-unk": Method(
        VDD(alpha=1.5, beta=0.05, variant="unk", unk_token_id=UNK),
        VDD(alpha=0, beta=0, variant="unk", unk_token_id=UNK),
        with_unknown,
        alpha=1.5,
        beta=0.05,
    ),
    "vdd-both": Method(
        VDD(alpha=1.5, beta=0.05, variant="both", unk_token_id=UNK),
        VDD(alpha=0, beta=0, variant="both", unk_token_id=UNK),
        both,
        alpha=1.5,
        beta=0.05,
    ),
}
