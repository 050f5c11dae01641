"""Logits of earlier layers of a forward, for rules that compare a model with itself."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sightline.logits.finite import check_finite
from sightline.logits.rules import Rule
from sightline.model_protocol import Model, UnsupportedModelError

NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f")


class EarlyLogits:
    """What a rule wants to see of earlier layers at the last position.

    Args:
        model: Whose layers they are.
        rule: Names the layers, and whether the model's last norm comes before the head.
    """

    def __init__(self, model: Model, rule: Rule):
        config = model.config.get_text_config(decoder=True)
        head = model.get_output_embeddings()
        tied = head is not None and head.weight is model.get_input_embeddings().weight
        self.model = model
        needs = rule.needs
        self.layers = needs.early(config.num_hidden_layers, tied) if needs.early else ()
        self.norm = last_norm(model) if self.layers and needs.normed else None
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


def check_shapes(model: Model, early: list[Tensor], last: Tensor) -> None:
    """Raises `ValueError` unless earlier layers' states are what the head reads."""
    if any(state.shape != last.shape for state in early):
        raise UnsupportedModelError(
            f"between its layers {type(model).__name__} holds states of shape "
            f"{list(early[0].shape)}, and its head reads {list(last.shape)}: several streams run "
            "side by side, so earlier layers cannot be read. Use a method that compares inputs "
            "instead of layers (VCD, VDD)"
        )


def last_norm(model: Model) -> nn.Module:
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
    raise UnsupportedModelError(
        f"found no last norm in {type(decoder).__name__} (looked for {', '.join(NORMS)}), which "
        "this rule applies to earlier layers: use a rule without it (LayerContrast)"
    )


@dataclass(frozen=True)
class Head:
    """Hidden states to logits, as the model does it: cap * tanh(scale * projection(h) / cap).

    Args:
        projection: The model's head, `[..., D]` -> `[..., V]`.
        scale: On its logits, before the cap; 1 in most models.
        cap: The soft cap; None in most models.
    """

    projection: Any
    scale: float = 1.0
    cap: float | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """`[..., D]` -> `[..., V]`, float32."""
        return self.shape(self.projection(hidden).float())

    def shape(self, raw: Tensor) -> Tensor:
        """Logits from what the projection gives, both `[..., V]`."""
        logits = raw * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    @classmethod
    @torch.no_grad()
    def fit(cls, model: Model, hidden: Tensor, logits: Tensor) -> "Head":
        """The head that makes the model's `logits` `[..., V]` of its last `hidden` `[..., D]`.

        Measured, because configs do not say: in transformers 5.23 `logits_scaling` divides in
        Granite and multiplies in HyperCLOVAX, and several wrappers of a text model with a scale
        or a cap apply neither.
        """
        projection = projection_of(model)
        raw, logits = projection(hidden).float(), logits.float()
        check_finite(logits.flatten(0, -2))
        usable = logits.abs() < 1e4  # some models ban tokens in their forward
        raw, logits = raw[usable], logits[usable]
        config = model.config.get_text_config(decoder=True)
        caps = dict.fromkeys((None, getattr(config, "final_logit_softcapping", None)))
        heads = [cls(projection, scale_between(raw, logits, cap), cap) for cap in caps]
        errors = [misfit(head.shape(raw), logits) for head in heads]
        if not min(errors) < TOLERANCE:
            raise UnsupportedModelError(
                f"the logits of {type(model).__name__} are not its head on its last hidden state, "
                "scaled or soft-capped, so earlier layers cannot be read as it would read them: "
                "use a method that compares inputs instead of layers (VCD, VDD)"
            )
        return heads[errors.index(min(errors))]


TOLERANCE = 0.02  # of the largest value: bfloat16 rounds each by up to 0.004


def scale_between(before: Tensor, after: Tensor, cap: float | None = None) -> float:
    """The factor from `before` to `after`, past a soft cap; exactly 1 where it is about 1."""
    if cap is not None:
        clear = after.abs() < 0.9 * cap  # past it the cap is too flat to be undone
        before, after = before[clear], cap * torch.atanh(after[clear] / cap)
    before, after = before.double(), after.double()
    scale = float((before * after).sum() / (before * before).sum())
    return 1.0 if abs(scale - 1) < 0.01 else scale


def misfit(values: Tensor, wanted: Tensor) -> float:
    """The largest difference, as a share of the largest value wanted; infinite if undefined."""
    share = (values - wanted).abs().max() / wanted.abs().max()
    return float(share.nan_to_num(nan=torch.inf))


def projection_of(model: Model) -> Any:
    """The head, `[..., D]` -> `[..., V]`, before any scale or cap."""
    projection = model.get_output_embeddings()
    if projection is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} exposes no head (get_output_embeddings() is None): load it "
            "with a class that generates, such as AutoModelForImageTextToText"
        )
    return projection


@torch.no_grad()
def one_token(model: Model) -> tuple[Tensor, Any]:
    """A token's embedding `[1, 1, D]`, and the output of the model for this token alone.

    Leaves nothing behind: no cache, and with explicit positions Qwen's helper writes nothing.
    """
    if model.config.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{type(model).__name__} is an encoder-decoder model, and reading its embeddings with "
            "its head needs a decoder-only one: use a contrast of inputs instead (VCD, VDD)"
        )
    projection_of(model)  # without one the forward would give no logits
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    # Not a special token: those stand at either end, and padding may be embedded as zeros.
    token = torch.tensor([[vocabulary // 2]], device=model.device)
    outputs = model(
        input_ids=token,
        position_ids=torch.zeros_like(token),
        use_cache=False,
        output_hidden_states=True,
    )
    return model.get_input_embeddings()(token), outputs


def embedding_scale(model: Model, embedded: Tensor, received: Tensor) -> float:
    """The factor from token embeddings to what the first layer receives, each `[1, 1, D]`."""
    if embedded.shape == received.shape:
        embedded, received = embedded.float(), received.float()
        scale = scale_between(embedded, received)
        if misfit(embedded * scale, received) < TOLERANCE:
            return scale
    raise UnsupportedModelError(
        f"the first layer of {type(model).__name__} does not receive token embeddings alone "
        "(positions are added to them, or they are several streams), so they cannot be looked "
        "up by token: use the rule EmbeddingContrastive in a decoder, which reads the layer"
    )
