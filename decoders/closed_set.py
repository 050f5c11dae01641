"""What decoders share that answer from a closed set: one answer for each row."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from sightline.compat import GenerateDecoderOnlyOutput
from sightline.engine.decode import show_prompt
from sightline.engine.validation import wants

LOOP_ARGUMENTS = ("logits_processor", "stopping_criteria")


OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


def check_one_answer(name: str, generation_config: Any) -> None:
    """Raises `ValueError` for more answers than one, and for outputs of each of its tokens."""
    for output in OUTPUTS:
        if wants(generation_config, output):
            raise ValueError(
                f"{name} chooses a whole answer from a closed set, so {output} has nothing to "
                f"return: leave it out, and ask {name}(...).probabilities(model, **inputs) for the "
                "probability of each label"
            )
    if max(generation_config.num_beams, generation_config.num_return_sequences) > 1:
        raise ValueError(
            f"{name} gives one answer from a closed set: num_beams and num_return_sequences must "
            "be 1"
        )


def as_generated(
    input_ids: Tensor,
    answers: Sequence[Sequence[int]],
    fill: int,
    generation_config: Any,
    token_streamer: Any,
) -> Any:
    """What `generate` returns for these answers: prompts `[B, T]`, each with its tokens behind.

    Args:
        answers: Token ids of each row.
        fill: Stands behind shorter ones.
    """
    rows = [torch.tensor(list(answer), dtype=torch.long, device="cpu") for answer in answers]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)
    sequences = torch.cat([input_ids, padded.to(input_ids)], dim=1)
    sequences = sequences[:, : generation_config.max_length]
    if token_streamer is not None:
        show_prompt(token_streamer, input_ids)
        for token in sequences[:, input_ids.shape[1] :].T:
            token_streamer.put(token.cpu())
        token_streamer.end()
    if generation_config.return_dict_in_generate:
        return GenerateDecoderOnlyOutput(sequences=cast(torch.LongTensor, sequences))
    return sequences
