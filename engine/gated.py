"""An ensemble whose amateurs stay behind while they are not needed."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessorList

from sightline.engine.branch import Branch
from sightline.engine.ensemble import CallConfig, Ensemble
from sightline.engine.kv_cache import make_room
from sightline.engine.prefill import is_row_tensor, last_logits, prepare_inputs
from sightline.engine.processor_order import are_stateless
from sightline.engine.validation import check_cached, check_gated
from sightline.logits.gates import Gate
from sightline.logits.rules import Plausibility, Rule
from sightline.model_protocol import Model


class GatedEnsemble(Ensemble):
    """The expert decodes alone; the others catch up, in one forward, when the gate opens.

    Where it is closed for a row, that row's scores are those of branches that agree with the
    expert. One look at the scores by the host for each token.

    Args:
        branches: The expert, and at least one more.
        gate: Says of which rows the others are asked.
    """

    def __init__(
        self, model: Model, branches: list[Branch], rule: Rule, call_config: CallConfig, gate: Gate
    ):
        check_gated(model, branches)
        expert, *others = branches
        super().__init__(model, [expert], rule, replace(call_config, prompt_cache=None))
        self.gate = gate
        behind = replace(
            call_config,
            keep_logits=False,
            cache_evictions=(),
            output_image_attention=False,
            processors=LogitsProcessorList(),
        )
        self.others = Ensemble(model, others, Plausibility(beta=0), behind)
        self.others.finite = self.finite
        self.cache: Any = None  # the others', once they have read anything
        self.read = -1  # tokens of the answer that are in it; -1: not even the prompt
        self.starting: tuple[Any, dict[str, Any]] = (None, {})

    @property
    def answer(self) -> Tensor:
        """What was answered so far, `[R, t]`."""
        return self.input_ids[:, self.call_config.prompt_length :]

    def _prefill(
        self,
        input_ids: Tensor,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        is_first_iteration: bool = True,
    ) -> Any:
        # What the expert's loop keeps for it alone is not the others'.
        self.starting = (
            generation_config,
            {
                name: value
                for name, value in model_kwargs.items()
                if name not in ("attention_mask", "position_ids", "past_key_values")
            },
        )
        return super()._prefill(input_ids, generation_config, model_kwargs, is_first_iteration)

    def _reorder_cache(self, cache: Any, beam_index: Tensor) -> Any:
        if self.cache is not None:
            self.cache = self.others._reorder_cache(self.cache, beam_index)
        return super()._reorder_cache(cache, beam_index)

    def _scores(self) -> Tensor:
        (expert,) = self.latest
        count = len(self.others.branches)
        opens = self._opens(expert)
        scores = self.rule.combine((expert,) * (1 + count), self.state)
        if not opens.any():
            self.latest = (expert, *[torch.full_like(expert, torch.nan)] * count)
            return scores
        self.latest = (expert, *self._caught_up())
        return torch.where(opens[:, None], super()._scores(), scores)

    def _opens(self, expert: Tensor) -> Tensor:
        """Rows whose others are asked, `[R]` bool, by what bans leave of the expert's `[R, V]`."""
        if are_stateless(self.call_config.processors):
            banned = self._processed(expert).isneginf()
            expert = expert.masked_fill(banned, -torch.inf)
        elif self.gate.is_exact:  # the bans are known only once the scores are
            return torch.ones_like(expert[:, 0], dtype=torch.bool)
        return self.gate.opens(expert, self.rule)

    def _caught_up(self) -> tuple[Tensor, ...]:
        """The others' logits after the whole answer so far, `[R, V]` each."""
        if self.cache is None:
            self._read_prompts()
        if missed := self.answer.shape[1] - self.read:
            self._read_on(missed)
        return self.others.latest

    def _read_prompts(self) -> None:
        others = self.others
        config, given = self.starting
        kwargs = {
            name: value.repeat(len(others.branches), *[1] * (value.ndim - 1))
            if is_row_tensor(value, self.prompts)
            else value
            for name, value in given.items()
        }
        self.cache = DynamicCache(config=self.model.config.get_text_config(decoder=True))
        make_room(self.cache, others.longest - others.width, others.longest)
        others._prefill(others.prompts, config, {**kwargs, "past_key_values": self.cache})
        self.read = 0

    def _read_on(self, missed: int) -> None:
        others = self.others
        check_cached(self.cache, others.width + self.read)
        count = self.answer.shape[1]
        mask, positions = others.prompt_mask(), others.prompt_positions()
        later = torch.arange(1, count + 1, device=positions.device)
        inputs = prepare_inputs(
            self.model,
            torch.cat([others.prompts, self.answer.repeat(len(others.branches), 1)], dim=1),
            {
                **last_logits(self.model),
                "next_sequence_length": missed,
                "past_key_values": self.cache,
                "attention_mask": torch.cat([mask, mask.new_ones(len(mask), count)], dim=1),
                "position_ids": torch.cat([positions, positions[..., -1:] + later], dim=-1),
                "is_first_iteration": False,
            },
        )
        others._combine(others._forward(self.model, inputs))
        self.read = count
