"""How the logits of several branches become the scores of one answer.

A rule sees `[expert, *others]`, each `[B, V]` and float32. It combines them before any of the
user's logits processors act, and sets implausible tokens to -inf after those that ban or penalise.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sightline.settings import Checked, Strength, UnitInterval, Whole


@dataclass
class State:
    """What a rule may know of the call besides the logits. Lives as long as one `generate`.

    Args:
        image_masks: One `[B, T]` bool per branch, true on the tokens of pictures in its prompt.
        has_image: `[R]` bool, the rows whose prompt has an image; None: all have one.
        step: Tokens answered so far: 0 when the first one is scored.
        early: Logits of the expert's layers that the rule asked for, each `[B, V]` float32, in the
            order asked.
        notes: What preparations left, by name, one entry for each of the R rows.
    """

    image_masks: tuple[Tensor, ...] = ()
    has_image: Tensor | None = None
    step: int = 0
    early: tuple[Tensor, ...] = ()
    notes: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def is_text_only(self) -> bool:
        """Whether no row's prompt has an image."""
        return self.has_image is not None and not bool(self.has_image.any())

    def about_images(self, scores: Tensor, others: Tensor) -> Tensor:
        """Scores `[R, V]`; those of `others` in rows without an image."""
        if self.has_image is None:
            return scores
        return torch.where(self.has_image[:, None].to(scores.device), scores, others)


def plausible(logits: Tensor, beta: float) -> Tensor:
    """Tokens with at least `beta` times the probability of the best one: `[B, V]` bool.

    Adaptive plausibility, Li et al., arXiv:2210.15097. Softmax is shift invariant, so logits and
    log-probabilities give the same answer. A token exactly at the threshold stays, and
    `beta = 0` keeps every token.
    """
    if beta == 0:
        return torch.ones_like(logits, dtype=torch.bool)
    cutoff = logits.amax(dim=-1, keepdim=True) + math.log(beta)
    return logits >= cutoff


@dataclass(frozen=True)
class Rule(Checked, ABC):
    """Base of all rules: combine the branches, then keep what the expert finds plausible.

    Subclasses define `combine`, and a field `beta` where they cut by plausibility; one with a cut
    of its own defines `cuts` and `keep`. A decoder calls `combine`, the user's processors, `cut`.
    `uses_others` and `is_identity` let a call leave out branches and arithmetic that could change
    nothing.
    """

    beta = 0.0  # not annotated, so not a field: a rule without one keeps every token
    early_norm = False  # whether the model's last norm comes before the head in early layers

    @property
    def threshold(self) -> float:
        """The plausibility threshold in force, in [0, 1]; 0 keeps every token."""
        return self.beta

    @property
    def uses_others(self) -> bool:
        """Whether any branch but the expert can change the scores."""
        return True

    @property
    def cuts(self) -> bool:
        """Whether any token can be left out."""
        return self.threshold > 0

    @property
    def is_identity(self) -> bool:
        """Whether the scores are the expert's logits, untouched."""
        return not self.uses_others and not self.cuts

    def keep(self, expert: Tensor) -> Tensor:
        """The tokens that are not left out: logits or log-probabilities `[B, V]` -> bool."""
        return plausible(expert, self.threshold)

    def early_layers(self, blocks: int, tied: bool) -> tuple[int, ...]:
        """Hidden states of the expert whose logits `state.early` is to hold.

        0 is the embeddings, n the output of n of the `blocks`; `tied` says whether the head is the
        embedding matrix. Raises `ValueError` for what the model does not have.
        """
        return ()

    @abstractmethod
    def combine(self, logits: Sequence[Tensor], state: State) -> Tensor:
        """Scores `[B, V]` of every token, plausible or not."""

    def cut(self, scores: Tensor, expert: Tensor) -> Tensor:
        """Scores `[B, V]`, implausible tokens at -inf, by the expert's logits `[B, V]`.

        A token whose score is -inf already, as a ban leaves it, is no candidate: the threshold is
        relative to the expert's best token among the others, so that a row keeps one if it can.
        """
        if not self.cuts:
            return scores
        left = expert.masked_fill(scores.isneginf(), -math.inf)
        return scores.masked_fill(~self.keep(left), -math.inf)

    def __call__(self, logits: Sequence[Tensor], state: State | None = None) -> Tensor:
        """`[expert, *others]`, each `[B, V]` -> scores `[B, V]`, implausible tokens at -inf."""
        return self.cut(self.combine(logits, state or State()), logits[0])


@dataclass(frozen=True)
class Alone(Rule):
    """A rule some of whose branches are left out, because they agree with the expert.

    Args:
        rule: Whose they are.
        missing: How many.
    """

    rule: Rule
    missing: Whole

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "early_norm", self.rule.early_norm)

    @property
    def threshold(self) -> float:
        return self.rule.threshold

    @property
    def cuts(self) -> bool:
        return self.rule.cuts

    def keep(self, expert: Tensor) -> Tensor:
        return self.rule.keep(expert)

    def early_layers(self, blocks: int, tied: bool) -> tuple[int, ...]:
        return self.rule.early_layers(blocks, tied)

    def combine(self, logits: Sequence[Tensor], state: State) -> Tensor:
        return self.rule.combine((*logits, *[logits[0]] * self.missing), state)


@dataclass(frozen=True)
class Plausibility(Rule):
    """The expert's own logits, over its plausible tokens: what is left of a contrast at alpha 0.

    The control that a table of contrastive decoding needs (arXiv:2504.10020).
    """

    beta: UnitInterval = 0.1

    @property
    def uses_others(self) -> bool:
        return False

    def combine(self, logits: Sequence[Tensor], state: State) -> Tensor:
        return logits[0]


@dataclass(frozen=True)
class Weighted(Rule):
    """Base of rules in which the other branches weigh `alpha`; at 0 only the expert is left."""

    alpha: Strength = 1.0
    beta: UnitInterval = 0.1

    @property
    def uses_others(self) -> bool:
        return self.alpha != 0

    def combine(self, logits: Sequence[Tensor], state: State) -> Tensor:
        expert, *others = logits
        return self.weigh(expert, mean(others)) if self.uses_others else expert

    @abstractmethod
    def weigh(self, expert: Tensor, others: Tensor) -> Tensor:
        """Scores `[B, V]` from the expert's logits and the mean of the others', each `[B, V]`."""


@dataclass(frozen=True)
class Contrastive(Weighted):
    """(1 + alpha) * expert - alpha * mean(amateurs), over the plausible tokens.

    The mean is over logits, not probabilities (VCD, arXiv:2311.16922; VDD, arXiv:2403.05262).
    """

    def weigh(self, expert: Tensor, others: Tensor) -> Tensor:
        return torch.lerp(others, expert, 1 + self.alpha)


@dataclass(frozen=True)
class Additive(Weighted):
    """expert + alpha * mean(views), over the tokens plausible to the expert (arXiv:2406.12718).

    A row without an image has no view: its scores are the expert's.

    Args:
        normalize: Divides by 1 + alpha, so that branches that agree give their own logits and not
            sharper ones (ours).
        first_only: After the first token the expert stands in for the views: (1 + alpha) * expert,
            what AGLA's released code computes by mistake.
    """

    normalize: bool = False
    first_only: bool = False

    def combine(self, logits: Sequence[Tensor], state: State) -> Tensor:
        if self.first_only and state.step > 0:
            logits = (logits[0], logits[0])
        return state.about_images(super().combine(logits, state), logits[0])

    def weigh(self, expert: Tensor, others: Tensor) -> Tensor:
        total = torch.add(expert, others, alpha=self.alpha)
        return total / (1 + self.alpha) if self.normalize else total


@dataclass(frozen=True)
class Guidance(Rule):
    """gamma * log p(expert) + (1 - gamma) * log p(other), over the plausible tokens.

    Classifier-free guidance on log-probabilities (PAI, arXiv:2407.21771, section 3.3). As in the
    paper's code `gamma = 1` gives the expert's log-probabilities without the cut, and needs no
    other branch. That is no identity: a penalty acts on log-probabilities otherwise than on logits.
    """

    gamma: Strength = 1.1
    beta: UnitInterval = 0.1

    @property
    def threshold(self) -> float:
        return self.beta if self.uses_others else 0.0

    @property
    def uses_others(self) -> bool:
        return self.gamma != 1

    @property
    def is_identity(self) -> bool:
        return False

    def combine(self, logits: Sequence[Tensor], state: State) -> Tensor:
        expert, *others = logits
        if not self.uses_others:
            return expert.log_softmax(dim=-1)
        other = mean(others).log_softmax(dim=-1)
        return other + self.gamma * (expert.log_softmax(dim=-1) - other)


def mean(logits: Sequence[Tensor]) -> Tensor:
    """Mean of branches, each `[B, V]`."""
    if len(logits) == 0:
        raise ValueError(
            "this rule compares the expert with other branches and got none: name a contrast "
            "in the recipe, or use Plausibility, which needs none"
        )
    return logits[0] if len(logits) == 1 else torch.stack(tuple(logits)).mean(dim=0)
