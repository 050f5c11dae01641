"""The user's logits processors beside a rule that leaves tokens out."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.generation import logits_process

if TYPE_CHECKING:
    from sightline.decoders.ensemble import Ensemble

# Of what is possible these leave at least one token possible (read in 5.18 and 5.23).
SPARING = frozenset(
    {
        logits_process.EncoderRepetitionPenaltyLogitsProcessor,
        logits_process.EpsilonLogitsWarper,
        logits_process.EtaLogitsWarper,
        logits_process.ExponentialDecayLengthPenalty,
        logits_process.InfNanRemoveLogitsProcessor,
        logits_process.LogitNormalization,
        logits_process.MinPLogitsWarper,
        logits_process.RepetitionPenaltyLogitsProcessor,
        logits_process.TemperatureLogitsWarper,
        logits_process.TopHLogitsWarper,
        logits_process.TopKLogitsWarper,
        logits_process.TopPLogitsWarper,
        logits_process.TypicalLogitsWarper,
    }
)


class RescuedProcessors:
    """The user's logits processors, with a way out where they ban every plausible token.

    A ban (`min_new_tokens` against a lone plausible end of sequence) after the plausibility cut
    can leave a row without a candidate. Such a row is scored again with the cut taken from the
    expert's processed logits and, if that is empty too, without a cut. To know of such a row costs
    a look at the scores by the host for each token, where a processor may ban and a rule cuts.

    Args:
        processors: As `generate` hands them to a loop.
        ensemble: Whose scores they process.
        takes_log_probabilities: Whether the loop's scores are log-probabilities, as in beam search.
    """

    def __init__(self, processors: Any, ensemble: "Ensemble", takes_log_probabilities: bool):
        self.processors = processors
        self.ensemble = ensemble
        self.takes_log_probabilities = takes_log_probabilities
        self.may_ban = any(type(processor) not in SPARING for processor in processors)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores` `[R, V]` -> `[R, V]`."""
        processed = self.processors(input_ids, scores)
        if not self.may_ban or not self.ensemble.rule.cuts:
            return processed
        for rescore in (self._cut_after_processing, self._uncut):
            empty = torch.isneginf(processed).all(dim=-1, keepdim=True)
            if not empty.any():
                break
            processed = torch.where(empty, rescore(input_ids), processed)
        return processed

    def _cut_after_processing(self, input_ids: Tensor) -> Tensor:
        expert = self.processors(input_ids, self._prepared(self.ensemble.latest[0]))
        keep = self.ensemble.rule.keep(expert)
        return self.processors(
            input_ids, self._prepared(self._scores().masked_fill(~keep, -math.inf))
        )

    def _uncut(self, input_ids: Tensor) -> Tensor:
        return self.processors(input_ids, self._prepared(self._scores()))

    def _scores(self) -> Tensor:
        state = replace(self.ensemble.state, step=self.ensemble.state.step - 1)
        return self.ensemble.rule.combine(self.ensemble.all_latest(), state)

    def _prepared(self, scores: Tensor) -> Tensor:
        """Beam search processes log-probabilities, the other loops logits."""
        return scores.log_softmax(dim=-1) if self.takes_log_probabilities else scores.clone()
