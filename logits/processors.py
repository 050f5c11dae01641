"""Logits processors that stand on their own, in a plain `generate(logits_processor=[...])`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor
from transformers import LogitsProcessor

from sightline.logits.calibration import affine, label_masses, normalise
from sightline.logits.rules import plausible
from sightline.settings import Checked, Count, TokenId, UnitInterval, Wanted

Labels = Annotated[
    Sequence[Sequence[TokenId]],
    Wanted(
        "two or more labels with at least one token id each, as [[3869], [1939]]",
        lambda labels: len(labels) > 1 and all(labels),
    ),
]


@dataclass(eq=False)
class PlausibilityProcessor(Checked, LogitsProcessor):
    """Never say what is much less likely than the best token.

    Keeps tokens with at least `beta` times the best token's probability (adaptive plausibility,
    arXiv:2210.15097) and sets the others to -inf. The control "plausibility only" for contrastive
    decoding. Takes logits or log-probabilities, so beam search is served too.

    Args:
        beta: Threshold in [0, 1]; 0 keeps every token, 1 only the best.
    """

    beta: UnitInterval

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores` `[B, V]` -> `[B, V]`."""
        if self.beta == 0:
            return scores
        return scores.masked_fill(~plausible(scores, self.beta), -math.inf)


@dataclass(eq=False)
class CalibrationProcessor(Checked, LogitsProcessor):
    """Answer with one of C labels, weighed by an affine map of their probabilities.

    At the first token of the answer, q = the labels' probabilities, normalised, becomes
    `weight * q + bias` (arXiv:2403.05262); the best surface form of each label carries its
    calibrated log-probability and every other token is -inf. Later tokens pass unchanged.

    Args:
        labels: C sequences of token ids, the single-token surface forms of each label.
        weight: `[C]` or `[B, C]`, the diagonal of W; `diagonal_map(reference)` makes one.
        bias: The same shape; 0 when left out.
        prompt_length: Tokens before the answer, `input_ids.shape[1]` of the prompt.
    """

    labels: Labels
    weight: Tensor
    bias: Tensor | None = None
    prompt_length: Count = field(kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        self._bias = torch.zeros_like(self.weight) if self.bias is None else self.bias
        for name, shape in (("weight", self.weight.shape), ("bias", self._bias.shape)):
            if shape[-1:] != (len(self.labels),):
                raise ValueError(
                    f"{name} must be [C] or [B, C] with C = {len(self.labels)} labels, "
                    f"got shape {tuple(shape)}"
                )
        self._ids = [torch.tensor(forms, device="cpu") for forms in self.labels]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores` `[B, V]` -> `[B, V]`."""
        if input_ids.shape[1] != self.prompt_length:
            return scores
        probabilities = scores.float().softmax(dim=-1)
        q = normalise(label_masses(probabilities, self._ids))
        calibrated = affine(q, self.weight.to(q.device), self._bias.to(q.device)).clamp_min(0)
        answer = torch.full_like(scores, -math.inf)
        for label, ids in enumerate(self._ids):
            ids = ids.to(scores.device)
            best = ids[probabilities[:, ids].argmax(dim=-1)]
            answer[torch.arange(len(scores), device=scores.device), best] = (
                normalise(calibrated)[:, label].log().to(scores.dtype)
            )
        return answer
