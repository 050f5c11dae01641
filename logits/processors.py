"""Logits processors that stand on their own, in a plain `generate(logits_processor=[...])`."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from sightline.logits.calibration import affine, label_masses, normalise
from sightline.logits.rules import plausible
from sightline.messages import check_list, short
from sightline.settings import in_unit_interval


class PlausibilityProcessor(LogitsProcessor):
    """Never say what is much less likely than the best token.

    Keeps tokens with at least `beta` times the best token's probability (adaptive plausibility,
    arXiv:2210.15097) and sets the others to -inf. The control "plausibility only" for contrastive
    decoding. Takes logits or log-probabilities, so beam search is served too.

    Args:
        beta: Threshold in [0, 1]; 0 keeps every token, 1 only the best.
    """

    def __init__(self, beta: float):
        self.beta = beta
        in_unit_interval(self, "beta")

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores` `[B, V]` -> `[B, V]`."""
        if self.beta == 0:
            return scores
        return scores.masked_fill(~plausible(scores, self.beta), -math.inf)


class CalibrationProcessor(LogitsProcessor):
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

    def __init__(
        self,
        labels: Sequence[Sequence[int]],
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        prompt_length: int,
    ):
        check_list("labels", labels, "[[3869], [1939]]")
        for forms in labels:
            check_list("each label", forms, "[3869, 4874] (token ids)")
        if len(labels) < 2 or any(len(forms) == 0 for forms in labels):
            raise ValueError(
                "labels must hold two or more labels with at least one token id each, "
                f"got {short(list(labels))}"
            )
        if weight.shape[-1] != len(labels):
            raise ValueError(
                f"weight must be [C] or [B, C] with C = {len(labels)} labels, "
                f"got shape {tuple(weight.shape)}"
            )
        self.labels = [torch.as_tensor(forms, device="cpu") for forms in labels]
        self.weight = weight
        self.bias = torch.zeros_like(weight) if bias is None else bias
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores` `[B, V]` -> `[B, V]`."""
        if input_ids.shape[1] != self.prompt_length:
            return scores
        probabilities = scores.float().softmax(dim=-1)
        q = normalise(label_masses(probabilities, self.labels))
        calibrated = affine(q, self.weight.to(q.device), self.bias.to(q.device)).clamp_min(0)
        answer = torch.full_like(scores, -math.inf)
        for label, ids in enumerate(self.labels):
            ids = ids.to(scores.device)
            best = ids[probabilities[:, ids].argmax(dim=-1)]
            answer[torch.arange(len(scores), device=scores.device), best] = (
                normalise(calibrated)[:, label].log().to(scores.dtype)
            )
        return answer
