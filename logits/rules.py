"""How the logits of several branches become the scores of one answer.

A rule sees `[expert, *others]`, each `[B, V]` and float32. It combines them before any of the
user's logits processors act, and sets implausible tokens to -inf after those that ban or penalise.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sightline.settings import Checked, Strength, UnitInterval, Whole


@dataclass
class State:
    """What a rule may know of the call besides the logits. Lives as long as one `generate`.

    Args:
        has_image: `[R]` bool, the rows whose prompt has an image; None: all have one.
        step: Tokens answered so far: 0 when the first one is scored.
        early: Logits of the expert's layers that the rule asked for, each `[B, V]` float32, in the
            order asked.
        notes: What preparations left, by name, one entry for each of the R rows.
    """

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


EarlyLayers = Callable[[int, bool], tuple[int, ...]]
"""Of a model's number of blocks, and whether its head is the embedding matrix: hidden states, 0 the
embeddings, n the output of n blocks. Raises `ValueError` for what the model does not have."""


@dataclass(frozen=True)
class Needs:
    """What a rule takes besides the expert's logits; nothing: it leaves them as they are.

    Args:
        others: The other branches' logits.
        cut: Bans and penalties before it leaves tokens out: whether `keep` leaves any out.
        early: Logits of the expert's earlier layers, in `state.early`; None: of none.
        normed: Whether the model's last norm comes before the head in these.
        log_softmax: Log-probabilities: a penalty acts on them otherwise than on logits.
    """

    others: bool = False
    cut: bool = False
    early: EarlyLayers | None = None
    normed: bool = False
    log_softmax: bool = False


@dataclass(frozen=True)
class Rule(Checked, ABC):
    """Base of all rules: combine the branches, then keep what the expert finds plausible.

    Subclasses define `combine`, and a field `beta` where they cut by plausibility; one with a cut
    of its own defines `keep`. A decoder calls `combine`, the user's processors, `cut`. By what a
    rule `needs`, a call leaves out branches and arithmetic that could change nothing.
    """

    beta = 0.0  # not annotated, so not a field: a rule without one keeps every token

    @property
    def needs(self) -> Needs:
        return Needs(others=True, cut=self.beta > 0)

    def keep(self, expert: Tensor) -> Tensor:
        """The tokens that stay possible: logits or log-probabilities `[B, V]` -> bool."""
        return plausible(expert, self.beta)

    @abstractmethod
    def combine(self, logits: Sequence[Tensor], state: State) -> Tensor:
        """Scores `[B, V]` of every token, plausible or not."""

    def cut(self, scores: Tensor, expert: Tensor) -> Tensor:
        """Scores `[B, V]`, implausible tokens at -inf, by the expert's logits `[B, V]`.

        A token whose score is -inf already, as a ban leaves it, is no candidate: the threshold is
        relative to the expert's best token among the others, so that a row keeps one if it can.
        """
        if not self.needs.cut:
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

    @property
    def needs(self) -> Needs:
        return replace(self.rule.needs, others=True)

    def keep(self, expert: Tensor) -> Tensor:
        return self.rule.keep(expert)

    def combine(self, logits: Sequence[Tensor], state: State) -> Tensor:
        return self.rule.combine((*logits, *[logits[0]] * self.missing), state)


@dataclass(frozen=True)
class Plausibility(Rule):
    """The expert's own logits, over its plausible tokens: what is left of a contrast at alpha 0.

    The control that a table of contrastive decoding needs (arXiv:2504.10020).
    """

    beta: UnitInterval = 0.1

    @property
    def needs(self) -> Needs:
        return Needs(cut=self.beta > 0)

    def combine(self, logits: Sequence[Tensor], state: State) -> Tensor:
        return logits[0]


@dataclass(frozen=True)
class Weighted(Rule):
    """Base of rules in which the other branches weigh `alpha`; at 0 only the expert is left."""

    alpha: Strength = 1.0
    beta: UnitInterval = 0.1

    @property
    def needs(self) -> Needs:
        return Needs(others=self.alpha != 0, cut=self.beta > 0)

    def combine(self, logits: Sequence[Tensor], state: State) -> Tensor:
        expert, *others = logits
        return expert if self.alpha == 0 else self.weigh(expert, mean(others))

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
    def needs(self) -> Needs:
        if self.gamma == 1:
            return Needs(log_softmax=True)
        return Needs(others=True, cut=self.beta > 0, log_softmax=True)

    def keep(self, expert: Tensor) -> Tensor:
        return plausible(expert, self.beta if self.needs.cut else 0)

    def combine(self, logits: Sequence[Tensor], state: State) -> Tensor:
        expert, *others = logits
        if self.gamma == 1:
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
