"""What decoders share that answer from a closed set: one answer for each row."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from sightline.compat import GenerateDecoderOnlyOutput
from sightline.engine.branch import Branch, Call
from sightline.engine.decode import GenerateCall, show_prompt
from sightline.engine.inputs import complete, expert_branch, images_asked, position_offset_kept
from sightline.engine.strategy import Strategy
from sightline.engine.validation import (
    check_audio,
    check_call,
    check_images,
    check_vision_language,
    is_text_only,
    wants,
)
from sightline.model_protocol import Model

OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


class ClosedSet(Strategy):
    """A strategy that chooses one of given answers as a whole, without parts.

    A subclass has a field `processor`, a `run`, and `label_probabilities`.
    """

    processor: Any

    def probabilities(self, model: Model, **inputs: Any) -> Tensor:
        """The probability of each label, `[B, C]` float32.

        Args:
            inputs: As for `generate`: the processor's output, and `images=` where it is needed.
        """
        # `generate` encodes the images, makes mask and positions, and returns what we return.
        return model.generate(**inputs, custom_generate=LabelProbabilities(self), max_new_tokens=1)

    @abstractmethod
    def label_probabilities(self, model: Model, call: GenerateCall) -> Tensor:
        """The probability of each label, `[B, C]` float32, for a call of `generate`."""

    def expert(self, model: Model, call: GenerateCall) -> Branch:
        """The prompts as asked, one row each, with their images; checked."""
        config, given = call.generation_config, call.model_kwargs
        check_one_answer(self, call)
        check_call(model, config, config.get_generation_mode(), None, given)
        check_vision_language(model)
        with position_offset_kept(model):
            expert = expert_branch(model, call.input_ids, 1, {}, given, config)
            expert = complete(expert, model, config)
        text_only = is_text_only(model, call.input_ids, call.images, {}, given)
        if not text_only:
            check_images(expert, needs_pixels=False)
            check_audio(model, given)
        are_needed = self.needs_images and not text_only
        images = images_asked(call.images, expert, model, are_needed, self.processor)
        own = Call(images, config, self.processor, call.chat_template_kwargs)
        return replace(expert, call=own)


@dataclass(frozen=True)
class LabelProbabilities(Strategy):
    """Makes `generate` return the probabilities of a closed set's labels in place of tokens."""

    decoder: ClosedSet

    @property
    def needs_images(self) -> bool:
        return self.decoder.needs_images

    def run(self, model: Model, call: GenerateCall) -> Tensor:
        return self.decoder.label_probabilities(model, call)


def check_one_answer(decoder: ClosedSet, call: GenerateCall) -> None:
    """Raises `ValueError` for more answers than one, and for outputs of each of its tokens."""
    name, config = type(decoder).__name__, call.generation_config
    asked = [output for output in OUTPUTS if wants(config, output)]
    if call.output_image_attention:
        asked.append("output_image_attention")
    if asked:
        raise ValueError(
            f"{name} chooses a whole answer from a closed set, so {asked[0]} has nothing to "
            f"return: leave it out, and ask {name}(...).probabilities(model, **inputs) for the "
            "probability of each label"
        )
    if max(config.num_beams, config.num_return_sequences) > 1:
        raise ValueError(
            f"{name} gives one answer from a closed set: num_beams and num_return_sequences must "
            "be 1"
        )


def as_generated(call: GenerateCall, answers: Sequence[Sequence[int]], fill: int) -> Any:
    """What `generate` returns for these answers: prompts `[B, T]`, each with its tokens behind.

    Args:
        answers: Token ids of each row.
        fill: Stands behind shorter ones.
    """
    input_ids, config, streamer = call.input_ids, call.generation_config, call.token_streamer
    rows = [torch.tensor(list(answer), dtype=torch.long, device="cpu") for answer in answers]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)
    sequences = torch.cat([input_ids, padded.to(input_ids)], dim=1)
    sequences = sequences[:, : config.max_length]
    if streamer is not None:
        show_prompt(streamer, input_ids)
        for token in sequences[:, input_ids.shape[1] :].T:
            streamer.put(token.cpu())
        streamer.end()
    if config.return_dict_in_generate:
        return GenerateDecoderOnlyOutput(sequences=cast(torch.LongTensor, sequences))
    return sequences
