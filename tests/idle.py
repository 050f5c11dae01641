"""All that runs under a method, and none of what it changes."""

from dataclasses import dataclass, replace

import torch

from sightline import Rule
from sightline.attention.parts import Recalibration, Selection
from sightline.attention.reference import KeyWeights


@dataclass(frozen=True)
class ExpertOnly(Rule):
    """Every branch and early layer runs and none but the expert's last counts."""

    layers: tuple[int, ...] = ()

    def early_layers(self, blocks, tied):
        return self.layers

    def combine(self, logits, state):
        return logits[0]


@dataclass(frozen=True)
class NeutralWeights(Recalibration):
    """Every score of every layer is edited, by nothing."""

    def __call__(self, layer, ledger):
        ones = torch.ones(len(ledger.mask), 1, ledger.prompt)
        return KeyWeights(scale=ones, gain=0 * ones, bias=0 * ones)


@dataclass(frozen=True)
class KeepAll(Selection):
    """Chooses after every step, and lets nothing go."""

    def __call__(self, layer, ledger):
        rows = len(ledger.mask)
        return torch.ones(rows, ledger.kv_heads, ledger.total, dtype=torch.bool)


def with_all_branches(method):
    """The method's recipe with a rule, edits and selections that change nothing."""
    recipe = method.strong.recipe()
    return replace(
        recipe,
        rule=ExpertOnly(method.layers),
        recalibrations=(NeutralWeights(),) if recipe.recalibrations else (),
        selections=(KeepAll(),) if recipe.selections else (),
    )
