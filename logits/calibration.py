"""Post-Hoc Debias: closed-set answers divided by what the model says of no image.

arXiv:2403.05262. Everything here is arithmetic on probabilities of C labels.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from sightline.settings import wrong

Aggregate = Literal["max", "sum"]
SMOOTHING = 1e-4  # added to the reference, so that a label it never gives is not divided by 0


def label_masses(
    probabilities: Tensor, labels: Sequence[Tensor], aggregate: Aggregate = "max"
) -> Tensor:
    """Probability of each label under the whole vocabulary: `[B, V]` -> `[B, C]`.

    Args:
        probabilities: `[B, V]`, over the full vocabulary: a label outside some top-10 is not 0.
        labels: C tensors of token ids, the surface forms of each label ("Yes", " yes", ...).
        aggregate: "max" takes the most probable form, as the paper's code does; "sum" adds them.
    """
    if aggregate not in get_args(Aggregate):
        raise wrong("aggregate", f"one of {', '.join(get_args(Aggregate))}", aggregate)
    forms = [probabilities[:, ids.to(probabilities.device)] for ids in labels]
    return torch.stack([f.amax(-1) if aggregate == "max" else f.sum(-1) for f in forms], dim=-1)


def normalise(masses: Tensor) -> Tensor:
    """`[..., C]` divided by its sum over the labels."""
    return masses / masses.sum(dim=-1, keepdim=True)


def reference(*masses: Tensor) -> Tensor:
    """The content-free distribution over labels: masses `[..., C]` added, then normalised.

    With two references ("none" and "unk") the masses are added before normalising, so the one
    that speaks of the labels with more confidence weighs more.
    """
    return normalise(torch.stack(masses).sum(dim=0))


def diagonal_map(reference: Tensor, smoothing: float = SMOOTHING) -> tuple[Tensor, Tensor]:
    """Weight and bias, each `[..., C]`, that make the reference itself come out uniform.

    W = diag(reference + smoothing)^-1 is kept as its diagonal, b = 0.
    """
    return 1 / (reference + smoothing), torch.zeros_like(reference)


def affine(probabilities: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Scores `W q + b` of the labels, `[..., C]`, with W given as its diagonal."""
    return weight * probabilities + bias


def calibrate(masses: Tensor, reference: Tensor, smoothing: float = SMOOTHING) -> Tensor:
    """Label masses `[..., C]` -> calibrated probabilities `[..., C]`.

    Divides by the sum, not by a softmax: the scores are ratios of probabilities.
    """
    return normalise(affine(normalise(masses), *diagonal_map(reference, smoothing)))
