"""Several branches, one forward, inside transformers' own generation loops.

`Ensemble` looks like a model with R rows. It runs N x R rows, one block for each of N branches,
and returns the rule's scores as logits, so that transformers' loops (greedy, sampling, beams,
stopping, scores) decode the ensemble as they decode any model.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from transformers.generation import (
    LogitsProcessorList,
)

from sightline.attention.base import CacheEviction
from sightline.attention.eviction import cut_cache
from sightline.attention.hook import KEYWORD, AttentionPlan, BranchAttention, RowGroup
from sightline.compat import CausalLMOutputWithPast, reorder_cache
from sightline.engine.attention_plan import branch_attention, image_attention_layers, recording
from sightline.engine.branch import Branch
from sightline.engine.early_exit import EarlyLogits
from sightline.engine.inputs import is_about_images
from sightline.engine.kv_cache import cached_heads, fill
from sightline.engine.prefill import forward_prompt, in_as_many_parts, is_row_tensor, prepare_inputs
from sightline.engine.prompt_cache import PromptCache
from sightline.engine.validation import check_cached, check_reached, check_reusable
from sightline.logits.finite import FiniteRows
from sightline.logits.rules import Rule, State
from sightline.model_protocol import Model

PER_TOKEN = ("hidden_states", "attentions")  # of a forward, by layer
COMPILED = Lock()  # the next replay of a recorded graph, by any thread, writes over its outputs


@dataclass(frozen=True)
class CallConfig:
    """The settings of one call, whatever its branches.

    Args:
        prompt_length: T of the caller's prompt; a preparation may have given the expert another.
        most: Tokens that are answered at most.
        copies: Rows per prompt: beams, or returned sequences. R = B * copies.
        keep_logits: Remember every branch's logits of every step in `branch_logits`.
        cache_evictions: Which keys leave the cache, in every branch alike.
        records: By layer, what every branch's recorder is to keep, whatever parts ask for.
        output_image_attention: Remember the expert's attention to the image of every step in
            `image_attention`: True, or the layers to take the mean of, as (first, first after).
        prompt_cache: Prompts without images that earlier calls read; this one adds its own.
        processors: The user's, those that act before the rule's cut.
        is_beam: Whether these expect log-probabilities, as in beam search.
    """

    prompt_length: int
    most: int
    copies: int = 1
    keep_logits: bool = False
    cache_evictions: tuple[CacheEviction, ...] = ()
    records: Mapping[int, frozenset[str]] | None = None
    output_image_attention: bool | tuple[int, int] = False
    prompt_cache: PromptCache | None = None
    processors: LogitsProcessorList = field(default_factory=LogitsProcessorList)
    is_beam: bool = False


class Ensemble:
    """Stands in for a model of R rows; holds N branches of R rows each.

    Args:
        model: The model that every branch runs on.
        branches: The expert first. Each has B rows, of a prompt length of its own.
        rule: `([expert, *others], state) -> scores`, each `[R, V]`.
        call_config: The settings of the call.
    """

    def __init__(self, model: Model, branches: list[Branch], rule: Rule, call_config: CallConfig):
        if call_config.prompt_cache is not None:
            check_reusable(model, branches)
        self.model = model
        self.branches = branches
        self.rule = rule
        self.call_config = call_config
        self.state = State(
            has_image=branches[0].image_mask.any(dim=1).repeat_interleave(call_config.copies),
            notes={
                name: values.repeat_interleave(call_config.copies, dim=0)
                for name, values in branches[0].notes.items()
            },
        )
        self.width = max(b.length for b in branches)
        self.prompts = self.stack([b.input_ids for b in branches])
        self.input_ids = self.prompts  # the loop's, [R, T + t]
        self.latest: tuple[Tensor, ...] = ()
        self.branch_logits: list[Tensor] | None = [] if call_config.keep_logits else None
        self.blocks = [
            branch_attention(
                model, branch, call_config.cache_evictions, call_config.records or {}, self.longest
            )
            for branch in branches
        ]
        self.image_attention: list[Tensor] | None = None
        if call_config.output_image_attention:
            self.image_attention = []
            self.image_attention_layers = image_attention_layers(
                self.blocks[0].recorder, call_config.output_image_attention
            )
            self.blocks[0] = recording(self.blocks[0], self.image_attention_layers, "row")
        self.early = EarlyLogits(model, rule)
        self.finite = FiniteRows()
        self.row_groups: tuple[RowGroup, ...] = ()

    @property
    def watches(self) -> bool:
        """Whether any branch's attention is edited, recorded or read by itself."""
        return len(self.row_groups) > 1 or not all(block.is_idle for block in self.blocks)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    @property
    def rows(self) -> int:
        """R, the rows that the generation loop sees."""
        return len(self.prompts) // len(self.branches)

    @property
    def longest(self) -> int:
        """Tokens of prompt and answer that are read at most, padding included."""
        return self.width + self.call_config.most - 1

    def stack(
        self,
        values: list[Tensor],
        rows_dim: int = 0,
        prompt_dim: int = 1,
        into: Tensor | None = None,
    ) -> Tensor:
        """One tensor per branch -> one of all rows, left-padded along the prompt with zeros.

        Each value has B rows and its branch's own prompt length; the result has N*R rows, branch
        by branch, each prompt's copies side by side. It is written to `into` where that is given.
        """
        rows_dim %= values[0].ndim
        prompt_dim %= values[0].ndim
        if into is None:
            shape = list(values[0].shape)
            shape[rows_dim] *= len(values) * self.call_config.copies
            shape[prompt_dim] = self.width
            into = values[0].new_empty(shape)
        for block, value in zip(into.chunk(len(values), dim=rows_dim), values, strict=True):
            padding = self.width - value.shape[prompt_dim]
            block.narrow(prompt_dim, 0, padding).zero_()
            place = block.narrow(prompt_dim, padding, value.shape[prompt_dim])
            place.unflatten(rows_dim, (-1, self.call_config.copies)).copy_(
                value.unsqueeze(rows_dim + 1)
            )
        return into

    def prompt_mask(self) -> Tensor:
        """`[N*R, T]`, 1 on the prompts' tokens."""
        return self.stack([branch.attention_mask for branch in self.branches])

    def prompt_positions(self) -> Tensor:
        """`[N*R, T]`, or `[P, N*R, T]` where positions have P parts."""
        known = [b.position_ids for b in self.branches if b.position_ids is not None]
        return self.stack(in_as_many_parts(known), rows_dim=-2, prompt_dim=-1)

    def __call__(self, **inputs: Any) -> Any:
        return self._combine(self._forward(self.model, inputs))

    def get_compiled_call(self, compile_config: Any) -> Any:
        """As the model's; the rule runs outside the compiled graph, edited attention inside.

        Edits that grow with the answer, and those under sliding windows, run eagerly.
        """
        if not all(block.is_idle or block.is_alike for block in self.blocks):
            return self
        compiled = self.model.get_compiled_call(compile_config)

        def call(**inputs: Any) -> Any:
            with COMPILED:
                outputs = self._forward(compiled, inputs)
                outputs.logits = outputs.logits.clone()
                return self._combine(outputs)

        return call

    def _forward(self, call: Any, inputs: dict[str, Any]) -> Any:
        """One answered token of every row through the model."""
        with self._watched(self.blocks, 1, self.row_groups) as watching:
            outputs = call(**{**inputs, **watching, **self.early.keywords})
        self.state.early = tuple(
            self.finite(None, logits) for logits in self.early.take(outputs, self.rows)
        )
        if not inputs.get("output_hidden_states"):
            outputs.hidden_states = None
        if outputs.get("attentions") is not None:
            outputs.attentions = tuple(self._own_columns(layer) for layer in outputs.attentions)
        return outputs

    def _own_columns(self, attention: Tensor) -> Tensor:
        """`[N*R, H, 1, K]` without the columns that pad the expert's prompt.

        A layer with a window has lost the oldest columns already.
        """
        padding = self.width - self.branches[0].length
        lost = self.width + self.state.step - attention.shape[-1]
        return attention[..., max(0, padding - max(0, lost)) :]

    @contextmanager
    def _watched(
        self, blocks: list[BranchAttention], queries: int, row_groups: tuple[RowGroup, ...] = ()
    ) -> Iterator[dict[str, Any]]:
        """A forward of these blocks' rows: the keyword that carries their edits and records."""
        for block in blocks:
            block.recorder.begin(self.state.step, queries)
        plan, is_idle = AttentionPlan(blocks, row_groups), all(block.is_idle for block in blocks)
        yield {} if is_idle and not plan.row_groups else {KEYWORD: plan}
        if is_idle:
            return
        check_reached(self.model, plan)
        for block in blocks:
            block.recorder.end()

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> Any:
        """The loop's `input_ids` `[R, T + t]` -> model inputs of N*R rows: t is the same answer."""
        self.input_ids = input_ids
        if self.state.step:
            removed = self.blocks[0].recorder.removed
            check_cached(kwargs["past_key_values"], self.width + self.state.step - 1 - removed)
        answer = input_ids[:, self.call_config.prompt_length :].repeat(len(self.branches), 1)
        ids = torch.cat([self.prompts, answer], dim=1)
        return prepare_inputs(self.model, ids, kwargs)

    def _reorder_cache(self, cache: Any, beam_index: Tensor) -> Any:
        index = torch.cat([beam_index + len(beam_index) * i for i in range(len(self.branches))])
        for block in self.blocks:
            block.recorder.reorder(beam_index)
        return reorder_cache(self.model, cache, index)

    def _prefill(
        self,
        input_ids: Tensor,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        is_first_iteration: bool = True,
    ) -> Any:
        """Each branch at its own length, then one cache: nobody pays for another's padding."""
        self.input_ids = input_ids
        shared = {
            name: value
            for name, value in model_kwargs.items()
            if name not in ("attention_mask", "position_ids", "past_key_values")
            and name not in self.branches[0].aligned
        }
        own = {name for name, value in shared.items() if is_row_tensor(value, self.prompts)}
        shared.update({name: shared[name][: self.rows : self.call_config.copies] for name in own})
        caches = [branch.cache(self.model) for branch in self.branches]
        # From here on a prefix is the caches' alone, and each lets go of it as it is read.
        self.branches[:] = [replace(branch, prefix=None) for branch in self.branches]
        outputs = self._read(0, caches[0], shared, own)
        logits = [outputs.logits]
        for number, cache in enumerate(caches[1:], start=1):
            logits.append(self._read(number, cache, shared, own).logits)
        outputs.logits = torch.cat(logits)
        heads = cached_heads(caches[0])
        outputs.past_key_values = model_kwargs["past_key_values"]
        fill(outputs.past_key_values, caches, self.stack, self.call_config.copies)
        for block in self.blocks:
            block.recorder.kv_heads = heads
            block.recorder.widen(self.width, self.call_config.copies)
        return self._combine(outputs)

    def _read(self, number: int, cache: Any, shared: Mapping[str, Any], own: set[str]) -> Any:
        """One branch's prompt into a cache of B rows; of equal rows one is read for all.

        Its images are not kept.

        Args:
            shared: Keywords of every branch's forward; what tells of images is given only to one
                that has any.
            own: Those of them that tell rows apart.

        Returns:
            The model's outputs, of R rows; logits of the last position alone, `[R, 1, V]`.
        """
        branch, block = self.branches[number], self.blocks[number]
        compared = self.early.keywords if number == 0 else {}
        index = torch.arange(len(branch.input_ids), device=branch.input_ids.device)
        if not branch.features:
            processor = branch.call.processor
            shared = {n: v for n, v in shared.items() if not is_about_images(n, processor)}
        is_untouched = block.is_idle and own.isdisjoint(shared)
        if is_untouched:
            branch, index = branch.distinct(self.model.config)
        if is_untouched and self.call_config.prompt_cache is not None and not branch.features:
            outputs = self._recalled(branch, cache, shared)
        else:
            with self._watched([block], branch.length - cache.get_seq_length()) as watching:
                given = {**shared, **watching, **compared}
                outputs = forward_prompt(self.model, branch, cache, given)
        self.branches[number] = replace(self.branches[number], features={})
        if len(branch.input_ids) < len(index):
            cache.reorder_cache(index)
        index = index.repeat_interleave(self.call_config.copies)
        if number == 0:
            early = self.early.take(outputs, len(branch.input_ids))
            self.state.early = tuple(self.finite(None, logits)[index] for logits in early)
        if not shared.get("output_hidden_states"):
            outputs.hidden_states = None
        outputs.logits = outputs.logits[:, -1:][index]
        for name in PER_TOKEN:
            if outputs.get(name) is not None:
                setattr(outputs, name, tuple(layer[index] for layer in outputs[name]))
        return outputs

    def _recalled(self, branch: Branch, cache: Any, shared: Mapping[str, Any]) -> Any:
        """A prompt without images into its cache; what an earlier call read is not read again."""
        assert self.call_config.prompt_cache is not None

        def read(unknown: Branch) -> tuple[Tensor, Any]:
            own = unknown.cache(self.model)
            return forward_prompt(self.model, unknown, own, shared).logits[:, -1:], own

        return CausalLMOutputWithPast(
            logits=self.call_config.prompt_cache.read(self.model, branch, cache, read)
        )

    def _combine(self, outputs: Any) -> Any:
        """Replaces the logits of N*R rows by the rule's scores `[R, 1, V]`, in float32."""
        logits = self.finite(None, outputs.logits[:, -1].float())
        self.latest = logits.chunk(len(self.branches))
        if self.image_attention is not None:
            self.image_attention.append(self._look())
        outputs.logits = self._cut_scores()[:, None]
        if self.call_config.cache_evictions:
            cut_cache(outputs.past_key_values, self.call_config.cache_evictions, self.blocks)
        self.state.step += 1
        if self.branch_logits is not None:
            self.branch_logits.append(torch.stack(self.latest))
        for name in PER_TOKEN:
            if outputs.get(name) is not None:
                setattr(outputs, name, tuple(layer[: self.rows] for layer in outputs[name]))
        return outputs

    def _cut_scores(self) -> Tensor:
        """The rule's, after bans, penalties and the cut: `[R, V]`. Beam search normalises them.

        A token that the model itself bans stays banned: a contrast of -inf with -inf is NaN.
        """
        scores = self._scores()
        scores = scores.masked_fill(self.latest[0].isneginf(), -torch.inf)
        if self.call_config.processors:
            scores = self._processed(
                scores.log_softmax(dim=-1) if self.call_config.is_beam else scores
            )
        return self.rule.cut(scores, self.latest[0])

    def _scores(self) -> Tensor:
        """The rule's, of the latest logits, before the cut: `[R, V]`."""
        return self.rule.combine(self.latest, self.state)

    def _processed(self, scores: Tensor) -> Tensor:
        """A copy of scores `[R, V]` after the processors that act before the cut."""
        ids: Any = self.input_ids
        return self.call_config.processors(ids, scores.to(ids.device, copy=True)).to(scores.device)

    def _look(self) -> Tensor:
        """What the expert's latest query gave to image tokens, `[R, T]` over its own prompt."""
        recorder, length = self.blocks[0].recorder, self.branches[0].length
        seen = torch.stack([recorder.row[layer] for layer in self.image_attention_layers]).mean(
            dim=0
        )
        if recorder.reads_prompt:
            seen = seen.repeat_interleave(self.call_config.copies, dim=0)
        else:
            seen = seen[:, self.width - length : self.width]
        return seen * self.image_mask

    @property
    def image_mask(self) -> Tensor:
        """`[R, T]` bool, true on image tokens of the expert's own prompt."""
        return self.branches[0].image_mask.repeat_interleave(self.call_config.copies, dim=0)
