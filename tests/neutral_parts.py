"""All that runs under a method, and none of what it changes."""

from dataclasses import dataclass, replace

import torch

from sightline import Rule
from sightline.attention.base import AttentionEdit, CacheEviction
from sightline.attention.reference import KeyWeights
from sightline.logits.rules import Needs


@dataclass(frozen=True)
class ExpertOnly(Rule):
    """Every branch and early layer runs and none but the expert's last counts."""

    layers: tuple[int, ...] = ()

    @property
    def needs(self):
        return Needs(others=True, early=lambda blocks, tied: self.layers)

    def combine(self, logits, state):
        return logits[0]


@dataclass(frozen=True)
class NeutralWeights(AttentionEdit):
    """Every score of every layer is edited, by nothing."""

    def __call__(self, layer, recorder):
        ones = torch.ones(len(recorder.mask), 1, recorder.prompt)
        return KeyWeights(scale=ones, gain=0 * ones, bias=0 * ones)


@dataclass(frozen=True)
class KeepAll(CacheEviction):
    """Chooses after every step, and lets nothing go."""

    def __call__(self, layer, recorder):
        rows = len(recorder.mask)
        return torch.ones(rows, recorder.kv_heads, recorder.total, dtype=torch.bool)


def with_all_branches(method):
    """The method's recipe with a rule, edits and cache evictions that change nothing."""
    recipe = method.strong.recipe()
    return replace(
        recipe,
        rule=ExpertOnly(method.layers),
        attention_edits=(NeutralWeights(),) if recipe.attention_edits else (),
        cache_evictions=(KeepAll(),) if recipe.cache_evictions else (),
    )
