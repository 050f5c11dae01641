"""Rules that compare a model with its own earlier layers. They cost head products, no forward.

LayerContrast is DoLa, Chuang et al., ICLR 2024 (arXiv:2309.03883); LayerCorrection is DeCo, Wang
et al., ICLR 2025 (arXiv:2410.11779). Layers are counted as in transformers' `hidden_states`: 0 is
the embeddings, n the output of n blocks. The last entry is already normed and never asked for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from sightline.logits.rules import Needs, Rule, State
from sightline.settings import Share, Strength, UnitInterval, Wanted, Whole

DEEP = 40  # blocks; in deeper models candidates come from the first or last EDGE blocks only
EDGE = 20


def all_different(layers: Any) -> bool:
    return isinstance(layers, str) or 0 < len(layers) == len(set(layers))


def is_window(ends: tuple[Any, Any]) -> bool:
    """Whether first and last are of one kind, and in order."""
    return type(ends[0]) is type(ends[1]) and ends[0] <= ends[1]


Divergence = Literal["jsd", "code"]
Candidates = Annotated[
    Literal["low", "high"] | tuple[Whole, ...],
    Wanted('"low", "high" or a tuple of different layer numbers', all_different),
]
Window = Annotated[
    tuple[UnitInterval, UnitInterval] | tuple[Whole, Whole],
    Wanted("two shares of the depth in [0, 1], or two layer numbers, first and last", is_window),
]


@dataclass(frozen=True)
class LayerContrast(Rule):
    """Favour what the model came to think late: log p(last layer) - log p(an earlier layer).

    Facts tend to form in late layers, while what an earlier layer already says is mostly syntax
    and habit (DoLa, arXiv:2309.03883). At every step each row takes, among its candidates, the
    layer whose distribution diverges most from the last one's. Only tokens plausible to the last
    layer are kept, the best one always. The head reads earlier layers without the last norm.

    There is no neutral setting: to turn it off, leave it out. Expect little on images: neutral
    to harmful in DeCo's tables.

    Args:
        layers: Candidates. "low" is every other layer of the first half, "high" of the second (of
            the first or last 20 blocks in models of more than 40). A tuple names them, and one
            alone is used throughout. "low" is the default because the paper takes it for answers
            of whole sentences (StrategyQA, GSM8K), and the higher half for TruthfulQA's choices.
        divergence: "jsd", the paper's Jensen-Shannon divergence, (KL(P||M) + KL(Q||M)) / 2 with
            M = (P + Q) / 2; or "code", the authors' (KL(M||P) + KL(M||Q)) / 2V, in which the
            arguments are swapped. Random pairs of layers are ranked differently in about 15 %.
        beta: Plausibility threshold in [0, 1], a share of the best probability; 0 keeps all.

    Differs from the authors' code: the divergence is the paper's, and each row has its own layer;
    there the divergences are averaged over the batch.
    """

    layers: Candidates = "low"
    divergence: Divergence = "jsd"
    beta: UnitInterval = 0.1

    @property
    def needs(self) -> Needs:
        return Needs(cut=self.beta > 0, early=self.candidates)

    def candidates(self, blocks: int, tied: bool) -> tuple[int, ...]:
        """The candidates. With tied embeddings layer 0 would say the last token again, so "low"
        starts at 2."""
        if isinstance(self.layers, tuple):
            return checked(self.layers, blocks)
        edge = EDGE if blocks > DEEP else None
        if self.layers == "low":
            candidates = tuple(range(2 if tied else 0, edge or blocks // 2, 2))
        else:
            candidates = tuple(range(blocks - edge if edge else blocks // 2, blocks, 2))
        if not candidates:
            raise ValueError(
                f'layers="{self.layers}" leaves no layer of a model of {blocks} blocks with '
                f"{'tied' if tied else 'separate'} embeddings: name some of 0 to {blocks - 1}, as "
                f"in layers=({blocks // 2},)"
            )
        return candidates

    def divergences(self, expert: Tensor, early: Tensor) -> Tensor:
        """Of each candidate from the last layer: `[B, V]`, `[L, B, V]` logits -> `[L, B]`."""
        last, other = expert.log_softmax(dim=-1), early.log_softmax(dim=-1)
        middle = torch.logaddexp(last, other) - math.log(2)
        if self.divergence == "jsd":
            return (kl(last, middle) + kl(other, middle)) / 2
        return (kl(middle, last) + kl(middle, other)) / 2 / expert.shape[-1]

    def combine(self, logits: Sequence[Tensor], state: State) -> Tensor:
        expert = logits[0]
        early = stacked(state)
        if len(early) > 1:
            chosen = self.divergences(expert, early).argmax(dim=0)
            early = early[chosen, torch.arange(len(expert), device=expert.device)]
        else:
            early = early[0]
        return expert.log_softmax(dim=-1) - early.log_softmax(dim=-1)


@dataclass(frozen=True)
class LayerCorrection(Rule):
    """Give back what the model saw before its last layers talked it out of it.

    Layers at five to seven eighths of the depth often rank the object that is in the image
    first, and the last layers replace it by what usually goes there (DeCo, arXiv:2410.11779).
    Among the candidates C, the last layer's nucleus, the earlier layer A that is surest of any
    one of them is found, row by row, and its logits are added, as much as it is sure:

        o(v) = l(v) + alpha * p * l_A(v) for v in C, others -inf,   p = max of P_A over C

    Logits are added, not log-probabilities: a shift of all l_A changes no ranking. Earlier layers
    pass the model's last norm before the head.

    Args:
        alpha: Strength; 0 leaves the logits of the candidates as they are, and with `top_k=0` and
            `top_p=1` all of them.
        layers: First and last layer looked at, both included. Two floats are shares of the depth;
            the default is 20 to 28 of 32 blocks. Two ints are layer numbers.
        top_k: Candidates at most; 0 is no limit.
        top_p: In (0, 1]. The most likely tokens up to the one with which their probabilities
            reach it are candidates, one at least; 1 keeps all.

    Differs from the authors' code: each row has its own layer and its own confidence (there
    batches are of one); layers are compared by the log-odds of their surest candidate, which tell
    them apart where probabilities round to 1; the window scales with the depth.
    """

    alpha: Strength = 0.6
    layers: Window = (0.625, 0.875)
    top_k: Whole = 20
    top_p: Share = 0.9

    @property
    def needs(self) -> Needs:
        cut = self.top_k > 0 or self.top_p < 1
        return Needs(cut=cut) if self.alpha == 0 else Needs(cut=cut, early=self.window, normed=True)

    def window(self, blocks: int, tied: bool) -> tuple[int, ...]:
        """The layers looked at. Shares are rounded inwards."""
        first, last = self.layers
        if isinstance(first, int):
            return checked(tuple(range(first, int(last) + 1)), blocks)
        # Rounded first, so that 0.55 * 100 = 55.00000000000001 does not lose a layer.
        first, last = (round(end * blocks, 6) for end in (first, last))
        window = tuple(range(math.ceil(first), min(math.floor(last), blocks - 1) + 1))
        if not window:
            raise ValueError(
                f"layers={self.layers} holds no layer of a model of {blocks} blocks: widen it, or "
                f"name two of 0 to {blocks - 1}"
            )
        return window

    def keep(self, expert: Tensor) -> Tensor:
        """The candidates: logits or log-probabilities `[B, V]` -> `[B, V]` bool."""
        probabilities = expert.softmax(dim=-1)
        size = expert.shape[-1]
        best, ids = probabilities.topk(min(self.top_k, size) if self.top_k else size, dim=-1)
        kept = torch.ones_like(best, dtype=torch.bool)
        if self.top_p < 1:  # a sum of all of them may reach 1 before the last
            kept[:, 1:] = best.cumsum(dim=-1)[:, :-1] < self.top_p
        return torch.zeros_like(expert, dtype=torch.bool).scatter(1, ids, kept)

    def combine(self, logits: Sequence[Tensor], state: State) -> Tensor:
        expert = logits[0]
        if self.alpha == 0:
            return expert
        early = stacked(state)
        best, token = early.masked_fill(~self.keep(expert), -math.inf).max(dim=-1)  # [L, B]
        others = early.scatter(-1, token[..., None], -math.inf).logsumexp(dim=-1)
        # Log-odds: near 1 probabilities are equal in float32, and so are their logarithms.
        odds, chosen = (best - others).max(dim=0)
        surest = early[chosen, torch.arange(len(expert), device=expert.device)]
        return expert + self.alpha * odds.sigmoid()[:, None] * surest


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p||q) over the last dimension, of log-probabilities; a p of 0 counts for nothing."""
    share = p.exp()
    return torch.where(share > 0, share * (p - q), 0).sum(dim=-1)


def stacked(state: State) -> Tensor:
    """The earlier layers' logits, `[L, B, V]`."""
    if len(state.early) == 0:
        raise ValueError(
            "this rule reads earlier layers and state.early holds none: put it in a Recipe, or "
            "pass State(early=...) with the logits of the layers that the rule needs"
        )
    return torch.stack(tuple(state.early))


def checked(layers: tuple[int, ...], blocks: int) -> tuple[int, ...]:
    """The same layers; raises `ValueError` unless the model has them all before its last block."""
    outside = [layer for layer in layers if layer >= blocks]
    if outside:
        raise ValueError(
            f"layers must be in 0 to {blocks - 1} for a model of {blocks} blocks (the output of "
            f"the last is what they are compared with), got {outside}"
        )
    return layers
