"""What is needed of a model, and the error of those that lack it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # the command line's help does not wait for torch
    import torch
    from torch import nn


class Model(Protocol):
    """What decoders use of a model of transformers that generates: public names alone.

    Its prompts hold image tokens, which its forward fills with images that were encoded before.
    Private names, which it needs besides, are in `sightline.compat`.
    """

    config: Any
    generation_config: Any

    @property
    def base_model(self) -> Any: ...

    @property
    def device(self) -> "torch.device": ...

    @property
    def dtype(self) -> "torch.dtype": ...

    def __call__(self, **inputs: Any) -> Any:
        """Inputs of N rows -> `logits` `[N, T, V]`, and the caches and states asked for."""

    def generate(self, **arguments: Any) -> Any:
        """Takes a decoder as `custom_generate`."""

    def prepare_inputs_for_generation(self, input_ids: Any, **given: Any) -> Any:
        """What a forward of the latest tokens takes."""

    def get_compiled_call(self, compile_config: Any) -> Any:
        """Its forward, compiled for a cache of fixed size."""

    def get_input_embeddings(self) -> Any:
        """The token embeddings, `[B, T]` -> `[B, T, D]`."""

    def get_output_embeddings(self) -> Any:
        """The head, `[..., D]` -> `[..., V]`; None where it has none."""

    def get_decoder(self) -> Any:
        """The text model."""

    def set_attn_implementation(self, implementation: Any) -> None:
        """Switches the attention back end, of the text model alone if it is named."""

    def get_encoder(self, modality: Any = None) -> Any:
        """The vision tower, of the modality "image"."""

    def modules(self) -> "Iterator[nn.Module]": ...

    def parameters(self) -> "Iterator[nn.Parameter]": ...

    def state_dict(self) -> dict[str, Any]: ...

    def eval(self) -> Any: ...


class UnsupportedModelError(ValueError):
    """This model, or its processor, cannot do what the decoder needs.

    Raised before the first token. A setting or an argument that is wrong is a plain `ValueError`.
    """
