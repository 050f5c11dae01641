"""Which of the user's logits processors act before a rule's plausibility cut, and which after it.

Before it: what bans or penalises a token, and what is not known. After it: what shapes the
distribution that is left. Each acts once per generated token.
"""

from collections.abc import Iterable

from transformers import LogitsProcessor, LogitsProcessorList

from sightline.compat import logits_process


class AfterCut(LogitsProcessor):
    """Base of processors that act on the scores that the plausibility cut left."""


# Warpers, watermarks and normalisation (read in 5.18 and 5.23), with their subclasses.
AFTER = (
    AfterCut,
    logits_process.EpsilonLogitsWarper,
    logits_process.EtaLogitsWarper,
    logits_process.InfNanRemoveLogitsProcessor,
    logits_process.LogitNormalization,
    logits_process.MinPLogitsWarper,
    logits_process.SynthIDTextWatermarkLogitsProcessor,
    logits_process.TemperatureLogitsWarper,
    logits_process.TopHLogitsWarper,
    logits_process.TopKLogitsWarper,
    logits_process.TopPLogitsWarper,
    logits_process.TypicalLogitsWarper,
    logits_process.WatermarkLogitsProcessor,
)
# What these ban depends on the tokens so far alone, so a second call bans the same. Not their
# subclasses, which may count calls.
STATELESS = frozenset(
    {
        logits_process.EncoderNoRepeatNGramLogitsProcessor,
        logits_process.EncoderRepetitionPenaltyLogitsProcessor,
        logits_process.ExponentialDecayLengthPenalty,
        logits_process.ForcedBOSTokenLogitsProcessor,
        logits_process.ForcedEOSTokenLogitsProcessor,
        logits_process.MinLengthLogitsProcessor,
        logits_process.MinNewTokensLengthLogitsProcessor,
        logits_process.NoBadWordsLogitsProcessor,
        logits_process.NoRepeatNGramLogitsProcessor,
        logits_process.RepetitionPenaltyLogitsProcessor,
        logits_process.SequenceBiasLogitsProcessor,
        logits_process.SuppressTokensAtBeginLogitsProcessor,
        logits_process.SuppressTokensLogitsProcessor,
    }
)


def around_cut(processors: Iterable) -> tuple[LogitsProcessorList, LogitsProcessorList]:
    """The processors that act before the cut and those that act after it, each in their order."""
    before, after = LogitsProcessorList(), LogitsProcessorList()
    for processor in processors:
        (after if isinstance(processor, AFTER) else before).append(processor)
    return before, after


def are_stateless(processors: Iterable) -> bool:
    """Whether a second call in one step bans the same tokens and changes nothing else."""
    return all(type(processor) in STATELESS for processor in processors)
