"""VDGD: answers ranked by what the model said of the image, Ghosh et al., ICLR 2025.

arXiv:2405.15683. While it describes the image the model gives every token of the vocabulary some
probability at every position j. The grounding of token w is g(w) = -KL(onehot_w || p_j), reduced
over j. As the first argument is one-hot this is log p_j(w), so one vector g `[V]` for each
description holds all that the answer needs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from transformers import LogitsProcessor

from sightline.logits.rules import Needs, Rule, State, plausible
from sightline.settings import Positive, Share, UnitInterval, wrong

Truncation = Literal["plausibility", "nucleus", "knee"]
Reduction = Literal["min", "avg", "sum"]
SUPPORT = "support"  # the note that `Grounded` reads


@dataclass(frozen=True)
class Grounded(Rule):
    """Say, of what could come next, what the description of the image supports most.

    Among the candidates C of a step, taken from the model's logits z, the scores are

        s(w) = (1 - mix) * log p(w) + mix * g(w) for w in C, others -inf,   p = softmax(z)

    with g = `state.notes["support"]` `[R, V]`, as `Support` makes it; rows without an image have no
    description, and s(w) = log p(w). g is the same at every step:
    two tokens are ranked alike throughout, function words win wherever they are candidates, and
    what must be worked out rather than seen is not favoured. With one candidate a step is greedy.

    Where several candidates share the best score, the one with the largest z, then the lowest id,
    stays in front by one float32 step, so that argmax is determined.

    Args:
        alpha: For "plausibility", in (0, 1]: candidates have at least this share of the best
            token's probability; 1 is greedy.
        truncation: "plausibility", the first published code's and the paper's; "nucleus", the
            released code's; "knee": sorted by probability, all before the largest drop.
        temperature: For "nucleus", above 0: divides the logits for the choice of candidates.
        top_p: For "nucleus", in (0, 1]: the probability that candidates add up to.
        mix: Weight of g in [0, 1]. At 1, the paper's, the model's own ranking of the candidates
            is discarded; below it is ours, and 0 needs no description.

    Differs from the authors' release, in which the division leaves grounding inert and tokens are
    drawn from the nucleus at random; the defaults are those of its first version.
    """

    alpha: Share = 0.1
    truncation: Truncation = "plausibility"
    temperature: Positive = 0.5
    top_p: Share = 0.5
    mix: UnitInterval = 1.0

    @property
    def needs(self) -> Needs:
        return Needs(cut=True)

    def keep(self, expert: Tensor) -> Tensor:
        """The candidates: logits or log-probabilities `[B, V]` -> `[B, V]` bool."""
        if self.truncation == "nucleus":
            return nucleus(expert, self.temperature, self.top_p)
        if self.truncation == "knee":
            return before_the_drop(expert)
        return plausible(expert, self.alpha)

    def combine(self, logits: Sequence[Tensor], state: State) -> Tensor:
        expert = logits[0]
        own = expert.log_softmax(dim=-1)
        if self.mix == 0 or (SUPPORT not in state.notes and state.is_text_only):
            return own
        if SUPPORT not in state.notes:
            raise ValueError(
                "this rule ranks by the support that a description of the image gives, and "
                'state.notes holds no "support": put a preparation that describes the image in '
                "the Recipe, or use VDGD, which has one"
            )
        scores = state.notes[SUPPORT].float()
        if self.mix < 1:
            scores = (1 - self.mix) * own.float() + self.mix * scores
        return state.about_images(scores, own)

    def cut(self, scores: Tensor, expert: Tensor) -> Tensor:
        return best_apart(super().cut(scores, expert), expert)


class Support(LogitsProcessor):
    """Listens to the description of an image: how strongly it supports each token at its best.

    Give it alone to a greedy or sampled `generate` (beams reorder rows), then ask `finish` for g.
    It changes no score, and takes one `[B, V]` at a time: nothing of size `[L, V]` is kept.

    Row by row, a distribution counts once the token drawn from it is known. The one that gave the
    end of sequence does not count, nor what follows: at an end of sequence that was said, g would
    be near 0, the highest value, and answers would stop wherever they could. A row that ended with
    its first token has no description; its g is 0 throughout, so candidates tie, and
    `Grounded` takes the one that greedy decoding takes.

    Args:
        reduction: Over positions: "min" of the divergence, so a token's best position counts
            (the paper's); "avg" or "sum".
        eos: Token ids that end a row; may be empty.

    One instance serves one call of `generate`.
    """

    def __init__(self, reduction: Reduction, eos: Sequence[int]):
        if reduction not in get_args(Reduction):
            raise wrong("reduction", f"one of {', '.join(get_args(Reduction))}", reduction)
        self.reduction = reduction
        self.eos = torch.tensor(list(eos), dtype=torch.long, device="cpu")
        self.length = -1  # tokens before the one that `latest` predicts; -1 before the first call
        self.latest = torch.empty(0)  # log-probabilities [B, V]
        self.total = torch.empty(0)  # [B, V]: best or sum of the positions that count
        self.count = torch.empty(0)  # [B]: how many count
        self.open = torch.empty(0)  # [B] bool: rows that have not ended

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`input_ids` `[B, T + t]`, raw logits `[B, V]` of any dtype -> the same scores."""
        latest = scores.float().log_softmax(dim=-1)
        if self.length >= 0:
            self._settle(input_ids)
        else:
            self.total = torch.full_like(latest, -math.inf if self.reduction == "min" else 0)
            self.count = torch.zeros_like(latest[:, 0])
            self.open = torch.ones_like(self.count, dtype=torch.bool)
        self.length, self.latest = input_ids.shape[1], latest
        return scores

    def finish(self, sequences: Tensor) -> Tensor:
        """What `generate` returned, `[B, T + L]` -> g `[B, V]` float32."""
        if self.length < 0:
            raise ValueError(
                "Support has seen no distribution: pass it in logits_processor to a generate of "
                "at least one new token, then give finish the sequences"
            )
        self._settle(sequences)
        count = self.count[:, None]
        total = self.total / count.clamp_min(1) if self.reduction == "avg" else self.total
        return total.masked_fill(count == 0, 0)

    def _settle(self, ids: Tensor) -> None:
        """Counts the latest distribution in rows whose next token is there and ends nothing.

        It need not be there: a loop that checks for the end one step late draws one in vain.
        """
        if ids.shape[1] <= self.length:
            return
        token = ids[:, self.length].to(self.open.device)
        self.open = self.open & ~torch.isin(token, self.eos.to(token.device))
        if self.reduction == "min":
            total = torch.maximum(self.total, self.latest)
        else:
            total = self.total + self.latest
        self.total = torch.where(self.open[:, None], total, self.total)
        self.count = self.count + self.open


def nucleus(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """The likeliest tokens that add up to `top_p`, one at least: `[B, V]` -> bool `[B, V]`.

    From the least likely up, those within the first 1 - top_p of the probability are left out.
    """
    probabilities, ids = (logits / temperature).softmax(dim=-1).sort(descending=True, stable=True)
    rest = probabilities.flip(-1).cumsum(dim=-1).flip(-1)  # of each token and all less likely
    kept = rest > 1 - top_p
    kept[:, 0] = True
    return torch.zeros_like(kept).scatter(-1, ids, kept)


def before_the_drop(logits: Tensor) -> Tensor:
    """The likeliest tokens before the largest fall in probability: `[B, V]` -> bool `[B, V]`."""
    probabilities, ids = logits.softmax(dim=-1).sort(descending=True, stable=True)
    drop = (probabilities[:, :-1] - probabilities[:, 1:]).argmax(dim=-1, keepdim=True)
    kept = torch.arange(logits.shape[-1], device=logits.device) <= drop
    return torch.zeros_like(kept).scatter(-1, ids, kept)


def best_apart(scores: Tensor, logits: Tensor) -> Tensor:
    """Scores `[B, V]` whose best is one token, the others equal to it a float32 step below.

    It is the one with the largest logit, then the lowest id. All else stays.
    """
    best = scores.amax(dim=-1, keepdim=True)
    equal = scores == best
    tied = logits.masked_fill(~equal, -math.inf)
    first = equal & (tied == tied.amax(dim=-1, keepdim=True))
    first &= first.cumsum(dim=-1) == 1
    below = torch.nextafter(best, torch.full_like(best, -math.inf))
    return torch.where(equal & ~first, below, scores)
