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
        logits = outputs.logits[:rows, -1]
        check_shapes(self.model, [states[layer] for layer in self.layers], states[-1])
        if self.head is None:
            self.head = Head.fit(self.model, states[-1], logits)
        chosen = torch.stack([states[layer] for layer in self.layers])  # one read of the head
        read = self.head(chosen if self.norm is None else self.norm(chosen))
        # Some models ban tokens in their forward, by the lowest number there is.
        banned = logits <= torch.finfo(logits.dtype).min
        return read.masked_fill(banned, torch.finfo(read.dtype).min).unbind(0)


def check_shapes(model: Any, early: list[Tensor], last: Tensor) -> None:
    """Raises `ValueError` unless earlier layers' states are what the head reads."""
    if any(state.shape != last.shape for state in early):
        raise ValueError(
            f"between its layers {type(model).__name__} holds states of shape "
            f"{list(early[0].shape)}, and its head reads {list(last.shape)}: several streams run "
            "side by side, so earlier layers cannot be read. Use a method that compares inputs "
            "instead of layers (VCD, VDD)"
        )


def last_norm(model: Any) -> nn.Module:
    """The norm between the last block and the head."""
    decoder = model.get_decoder()
    decoder = getattr(decoder, "model", decoder)  # Llama 4's has a head of its own
    for name in NORMS:
        norm = getattr(decoder, name, None)
        if isinstance(norm, nn.Module):
            return norm
    norms = [child for child in decoder.children() if "Norm" in type(child).__name__]
    if len(norms) == 1:
        return norms[0]
    raise ValueError(
        f"found no last norm in {type(decoder).__name__} (looked for {', '.join(NORMS)}), which "
        "this rule applies to earlier layers: use a rule without it (LayerContrast)"
    )
