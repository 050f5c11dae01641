"""Text that a preparation generates before the answer itself."""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor
from transformers.generation import (
    EosTokenCriteria,
    GenerationMode,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
)

from sightline.attention.hook import switched
from sightline.compat import end_tokens, loop_of
from sightline.engine.branch import Branch
from sightline.engine.decode import loop_kwargs
from sightline.engine.ensemble import CallConfig, Ensemble
from sightline.engine.prefill import (
    last_logits,
)
from sightline.logits.rules import Plausibility
from sightline.model_protocol import Model


def generate_text(
    model: Model,
    branch: Branch,
    tokens: int,
    *,
    copies: int = 1,
    processors: Sequence[Any] = (),
    criteria: Sequence[Any] = (),
    records: Mapping[int, frozenset[str]] | None = None,
    on_step: Callable[[Ensemble, Tensor], None] | None = None,
) -> Tensor:
    """What the model says after a branch, `[B * copies, L]`, L at most `tokens`; for preparations.

    Greedy, but for what `processors` do to the scores `[B * copies, V]`. A row that ended, by the
    caller's end of sequence or by `criteria`, goes on with padding.

    Args:
        records: By layer, what the recorder is to keep of the attention.
        on_step: Called with the ensemble and the answer so far, `[B * copies, t]`, at every step
            before the next token is chosen.
    """
    config = copy.deepcopy(branch.call.generation_config)
    config.update(
        num_beams=1,
        do_sample=False,
        num_return_sequences=1,
        max_length=branch.length + tokens,
        return_dict_in_generate=False,
        **dict.fromkeys(config.extra_output_flags, False),  # not without a dict, which is warned of
        cache_implementation=None,
        disable_compile=True,
    )
    call_config = CallConfig(branch.length, tokens, copies, records=records)
    ensemble = Ensemble(model, [branch], Plausibility(beta=0), call_config)
    mode = GenerationMode.GREEDY_SEARCH
    kwargs = loop_kwargs(ensemble, last_logits(model), config, mode)
    chosen = LogitsProcessorList(processors)
    if on_step is not None:
        chosen.insert(0, StepCallback(on_step, ensemble))
    stops = StoppingCriteriaList([MaxLengthCriteria(config.max_length), *criteria])
    if (eos := end_tokens(config)) is not None:
        stops.append(EosTokenCriteria(eos))
    prompts = branch.input_ids.repeat_interleave(copies, dim=0)
    with switched(model) if ensemble.watches else nullcontext():
        said = loop_of(model, mode)(
            ensemble,
            prompts,
            logits_processor=chosen,
            stopping_criteria=stops,
            generation_config=config,
            **kwargs,
        )
    ensemble.finite.check()
    return said[:, branch.length :]


def eos_token_ids(generation_config: Any) -> list[int]:
    """Token ids that end an answer."""
    eos = end_tokens(generation_config)
    return [] if eos is None else eos.reshape(-1).tolist()


class StepCallback(LogitsProcessor):
    """Changes nothing; tells `on_step` of every step."""

    def __init__(self, on_step: Callable[[Ensemble, Tensor], None], ensemble: Ensemble):
        self.on_step = on_step
        self.ensemble = ensemble

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.on_step(self.ensemble, input_ids[:, self.ensemble.call_config.prompt_length :])
        return scores
