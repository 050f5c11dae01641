"""Logits of earlier layers of a forward, for rules that compare a model with itself."""

from typing import Any

import torch
from torch import Tensor, nn

from sightline.logits.embedding import Head
from sightline.logits.rules import Rule

NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f")


class EarlyLogits:
    """What a rule wants to see of earlier layers at the last position.

    Args:
        model: Whose layers they are.
        rule: Names the layers, and whether the model's last norm comes before the head.
    """

    def __init__(self, model: Any, rule: Rule):
        config = model.config.get_text_config(decoder=True)
        head = model.get_output_embeddings()
        tied = head is not None and head.weight is model.get_input_embeddings().weight
        self.model = model
        self.layers = rule.early_layers(config.num_hidden_layers, tied)
        self.norm = last_norm(model) if self.layers and rule.early_norm else None
        self.head: Head | None = None

    @property
    def keywords(self) -> dict[str, Any]:
        """What to add to a forward's keywords."""
        return {"output_hidden_states": True} if self.layers else {}

    def take(self, outputs: Any, rows: int) -> tuple[Tensor, ...]:
        """The first `rows` rows' logits of each layer, `[rows, V]` float32.

        The first call learns from its outputs how the model makes logits of hidden states.
        """
        if not self.layers:
            return ()
        states = [state[:rows, -1] for state in outputs.hidden_states]
        if self.head is None:
            self.head = Head.fit(self.model, states[-1], outputs.logits[:rows, -1])
        chosen = torch.stack([states[layer] for layer in self.layers])  # one read of the head
        return self.head(chosen if self.norm is None else self.norm(chosen)).unbind(0)


def last_norm(model: Any) -> nn.Module:
    """The norm between the last block and the head."""
    decoder = model.get_decoder()
    for name in NORMS:
        norm = getattr(decoder, name, None)
        if isinstance(norm, nn.Module):
            return norm
    raise ValueError(
        f"found no last norm in {type(decoder).__name__} (looked for {', '.join(NORMS)}), which "
        "this rule applies to earlier layers: use a rule without it (LayerContrast)"
    )
