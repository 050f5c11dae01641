"""Several branches, one forward, inside transformers' own generation loops.

`Ensemble` looks like a model with R rows. It runs N x R rows, one block for each of N branches,
and returns the rule's scores as logits, so that transformers' loops (greedy, sampling, beams,
stopping, scores) decode the ensemble as they decode any model.

Every private method of transformers' `GenerationMixin` that the library calls is called here.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from transformers import __version__ as transformers_version
from transformers.generation import (
    EosTokenCriteria,
    GenerationMode,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
)
from transformers.generation.utils import GENERATION_MODES_MAPPING
from transformers.modeling_outputs import CausalLMOutputWithPast

from sightline.attention.interface import KEYWORD, Run, Stream, Streams, switched
from sightline.attention.parts import Selection
from sightline.attention.selections import cut_cache
from sightline.decoders.branch import PIXELS, Branch, Call, Prefix, image_mask
from sightline.decoders.caches import (
    cached_heads,
    check_layers,
    fill,
    make_room,
    scratch_cache,
)
from sightline.decoders.checks import (
    check_audio,
    check_cached,
    check_call,
    check_capacity,
    check_cuttable,
    check_looks,
    check_outputs,
    check_padding,
    check_pictures,
    check_reached,
    check_reusable,
    wants,
    warn_of_two_starts,
)
from sightline.decoders.features import Features, token_ids
from sightline.decoders.head import EarlyLogits
from sightline.decoders.memory import ReadTexts
from sightline.decoders.mixed import concerned, merged
from sightline.decoders.processing import around_cut
from sightline.decoders.prompts import (
    can_share,
    encoded_pictures,
    forward_prompt,
    given_processor,
    in_as_many_parts,
    is_about_images,
    is_row_tensor,
    pictures_asked,
    prepare_inputs,
)
from sightline.decoders.streams import layers_that_look, recording, separate, stream
from sightline.logits.finite import FiniteRows
from sightline.logits.rules import Plausibility, Rule, State
from sightline.pictures import are_none

PER_TOKEN = ("hidden_states", "attentions")  # of a forward, by layer
COMPILED = Lock()  # the next replay of a recorded graph, by any thread, writes over its outputs


@dataclass(frozen=True)
class Asked:
    """The settings of one call, whatever its branches.

    Args:
        prompt_length: T of the caller's prompt; a preparation may have given the expert another.
        most: Tokens that are answered at most.
        copies: Rows per prompt: beams, or returned sequences. R = B * copies.
        keep_logits: Remember every branch's logits of every step in `branch_logits`.
        selections: Which keys leave the cache, in every branch alike.
        records: By layer, what every branch's ledger is to keep, whatever parts ask for.
        looks: Remember in `image_attention` where the expert looked at every step: True, or the
            layers to take the mean of, as (first, first after).
        texts: What earlier calls read of prompts without pictures, to be read from and added to.
        processors: The user's, those that act before the rule's cut.
        is_beam: Whether these expect log-probabilities, as in beam search.
    """

    prompt_length: int
    most: int
    copies: int = 1
    keep_logits: bool = False
    selections: tuple[Selection, ...] = ()
    records: Mapping[int, frozenset[str]] | None = None
    looks: bool | tuple[int, int] = False
    texts: ReadTexts | None = None
    processors: LogitsProcessorList = field(default_factory=LogitsProcessorList)
    is_beam: bool = False


class Ensemble:
    """Stands in for a model of R rows; holds N branches of R rows each.

    Args:
        model: The model that every branch runs on.
        branches: The expert first. Each has B rows, of a prompt length of its own.
        rule: `([expert, *others], state) -> scores`, each `[R, V]`.
        asked: The settings of the call.
    """

    def __init__(self, model: Any, branches: list[Branch], rule: Rule, asked: Asked):
        if asked.texts is not None:
            check_reusable(model, branches)
        self.model = model
        self.branches = branches
        self.rule = rule
        self.asked = asked
        self.state = State(
            image_masks=tuple(b.image_mask for b in branches),
            has_image=branches[0].image_mask.any(dim=1).repeat_interleave(asked.copies),
            notes={
                name: values.repeat_interleave(asked.copies, dim=0)
                for name, values in branches[0].notes.items()
            },
        )
        self.width = max(b.length for b in branches)
        self.prompts = self.stack([b.input_ids for b in branches])
        self.input_ids = self.prompts  # the loop's, [R, T + t]
        self.latest: tuple[Tensor, ...] = ()
        self.branch_logits: list[Tensor] | None = [] if asked.keep_logits else None
        self.blocks = [
            stream(model, branch, asked.selections, asked.records or {}, self.longest)
            for branch in branches
        ]
        self.image_attention: list[Tensor] | None = None
        if asked.looks:
            self.image_attention = []
            self.look_layers = layers_that_look(self.blocks[0].ledger, asked.looks)
            self.blocks[0] = recording(self.blocks[0], self.look_layers, "row")
        self.early = EarlyLogits(model, rule)
        self.finite = FiniteRows()
        self.runs: tuple[Run, ...] = ()

    @property
    def watches(self) -> bool:
        """Whether any branch's attention is edited, recorded or read by itself."""
        return len(self.runs) > 1 or not all(block.is_idle for block in self.blocks)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    @property
    def rows(self) -> int:
        """R, the rows that the generation loop sees."""
        return len(self.prompts) // len(self.branches)

    @property
    def longest(self) -> int:
        """Tokens of prompt and answer that are read at most, padding included."""
        return self.width + self.asked.most - 1

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
            shape[rows_dim] *= len(values) * self.asked.copies
            shape[prompt_dim] = self.width
            into = values[0].new_empty(shape)
        for block, value in zip(into.chunk(len(values), dim=rows_dim), values, strict=True):
            padding = self.width - value.shape[prompt_dim]
            block.narrow(prompt_dim, 0, padding).zero_()
            place = block.narrow(prompt_dim, padding, value.shape[prompt_dim])
            place.unflatten(rows_dim, (-1, self.asked.copies)).copy_(value.unsqueeze(rows_dim + 1))
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
        with self._watched(self.blocks, 1, self.runs) as watching:
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
        self, blocks: list[Stream], queries: int, runs: tuple[Run, ...] = ()
    ) -> Iterator[dict[str, Any]]:
        """A forward of these blocks' rows: the keyword that carries their edits and records."""
        for block in blocks:
            block.ledger.begin(self.state.step, queries)
        streams, is_idle = Streams(blocks, runs), all(block.is_idle for block in blocks)
        yield {} if is_idle and not streams.runs else {KEYWORD: streams}
        if is_idle:
            return
        check_reached(self.model, streams)
        for block in blocks:
            block.ledger.end()

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> Any:
        """The loop's `input_ids` `[R, T + t]` -> model inputs of N*R rows: t is the same answer."""
        self.input_ids = input_ids
        if self.state.step:
            removed = self.blocks[0].ledger.removed
            check_cached(kwargs["past_key_values"], self.width + self.state.step - 1 - removed)
        answer = input_ids[:, self.asked.prompt_length :].repeat(len(self.branches), 1)
        ids = torch.cat([self.prompts, answer], dim=1)
        return prepare_inputs(self.model, ids, kwargs)

    def _reorder_cache(self, cache: Any, beam_index: Tensor) -> Any:
        index = torch.cat([beam_index + len(beam_index) * i for i in range(len(self.branches))])
        for block in self.blocks:
            block.ledger.reorder(beam_index)
        if hasattr(self.model, "_reorder_cache"):
            return self.model._reorder_cache(cache, index)
        cache.reorder_cache(index)
        return cache

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
        shared.update({name: shared[name][: self.rows : self.asked.copies] for name in own})
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
        fill(outputs.past_key_values, caches, self.stack, self.asked.copies)
        for block in self.blocks:
            block.ledger.kv_heads = heads
            block.ledger.widen(self.width, self.asked.copies)
        return self._combine(outputs)

    def _read(self, number: int, cache: Any, shared: Mapping[str, Any], own: set[str]) -> Any:
        """One branch's prompt into a cache of B rows; of equal rows one is read for all.

        Its pictures are not kept.

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
        if is_untouched and self.asked.texts is not None and not branch.features:
            outputs = self._recalled(branch, cache, shared)
        else:
            with self._watched([block], branch.length - cache.get_seq_length()) as watching:
                given = {**shared, **watching, **compared}
                outputs = forward_prompt(self.model, branch, cache, given)
        self.branches[number] = replace(self.branches[number], features={})
        if len(branch.input_ids) < len(index):
            cache.reorder_cache(index)
        index = index.repeat_interleave(self.asked.copies)
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
        """A prompt without pictures into its cache; what an earlier call read is not read again."""
        assert self.asked.texts is not None

        def read(unknown: Branch) -> tuple[Tensor, Any]:
            own = unknown.cache(self.model)
            return forward_prompt(self.model, unknown, own, shared).logits[:, -1:], own

        return CausalLMOutputWithPast(logits=self.asked.texts.read(self.model, branch, cache, read))

    def _combine(self, outputs: Any) -> Any:
        """Replaces the logits of N*R rows by the rule's scores `[R, 1, V]`, in float32."""
        logits = self.finite(None, outputs.logits[:, -1].float())
        self.latest = logits.chunk(len(self.branches))
        if self.image_attention is not None:
            self.image_attention.append(self._look())
        outputs.logits = self._cut_scores()[:, None]
        if self.asked.selections:
            cut_cache(outputs.past_key_values, self.asked.selections, self.blocks)
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
        if self.asked.processors:
            scores = self._processed(scores.log_softmax(dim=-1) if self.asked.is_beam else scores)
        return self.rule.cut(scores, self.latest[0])

    def _scores(self) -> Tensor:
        """The rule's, of the latest logits, before the cut: `[R, V]`."""
        return self.rule.combine(self.latest, self.state)

    def _processed(self, scores: Tensor) -> Tensor:
        """A copy of scores `[R, V]` after the processors that act before the cut."""
        ids: Any = self.input_ids
        return self.asked.processors(ids, scores.to(ids.device, copy=True)).to(scores.device)

    def _look(self) -> Tensor:
        """What the expert's latest query gave to image tokens, `[R, T]` over its own prompt."""
        ledger, length = self.blocks[0].ledger, self.branches[0].length
        seen = torch.stack([ledger.row[layer] for layer in self.look_layers]).mean(dim=0)
        if ledger.reads_prompt:
            seen = seen.repeat_interleave(self.asked.copies, dim=0)
        else:
            seen = seen[:, self.width - length : self.width]
        return seen * self.image_mask

    @property
    def image_mask(self) -> Tensor:
        """`[R, T]` bool, true on image tokens of the expert's own prompt."""
        return self.branches[0].image_mask.repeat_interleave(self.asked.copies, dim=0)


def decode(
    recipe: Any,
    model: Any,
    input_ids: Tensor,
    *,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    token_streamer: Any = None,
    images: Any = None,
    processor_kwargs: Mapping[str, Any] | None = None,
    processor: Any = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    looks: bool | tuple[int, int] = False,
    pixels: Mapping[str, Any],
    model_kwargs: dict[str, Any],
) -> Any:
    """Runs a recipe in the loop that `generate` would have run. Called by `generate`.

    Args:
        recipe: Preparations, contrasts and rule.
        input_ids: `[B * copies, T]`, expanded by `generate` for beams and returned sequences.
        images: The prompts' pictures, one, a list of all, or a list with an entry for each row (see
            `pictures_asked`): PIL images, paths, bytes or open files.
        processor_kwargs: What the processor was told when it made the prompt.
        processor: The model's own, for parts that were made without one.
        chat_template_kwargs: What the prompt's chat template was given besides the messages.
        looks: Whether, or from which layers, `image_attention` is wanted.
        pixels: The raw inputs of the picture encoder, unexpanded, where the recipe asked for them.
        model_kwargs: The rest of what `generate` hands a loop.

    Returns:
        What that loop returns; with `output_logits`, also `branch_logits`; with `looks`, also
        `image_attention` and `image_mask`.
    """
    mode = generation_config.get_generation_mode()
    check_call(model, generation_config, mode, token_streamer, model_kwargs)
    check_looks(looks, generation_config)
    loop = getattr(type(model), GENERATION_MODES_MAPPING[mode])
    is_beam = mode in (GenerationMode.BEAM_SEARCH, GenerationMode.BEAM_SAMPLE)
    streaming = {} if is_beam else {"streamer": token_streamer}
    calling: dict[str, Any] = {
        "stopping_criteria": stopping_criteria,
        "generation_config": generation_config,
        **streaming,
    }
    text_only = not recipe.is_plain and is_text_only(model, input_ids, images, pixels, model_kwargs)
    if text_only:
        recipe, images = recipe.without_images(), None
    if recipe.is_plain and not looks:
        show_prompt(token_streamer, input_ids)
        finite = FiniteRows()
        checked = LogitsProcessorList([finite, *logits_processor])
        outputs = loop(model, input_ids, logits_processor=checked, **calling, **model_kwargs)
        finite.check()
        return outputs

    copies = max(generation_config.num_beams, generation_config.num_return_sequences)
    check_vision_language(model)
    scratch_cache(model)  # raises for layers that branches cannot share
    expert = expert_branch(model, input_ids, copies, pixels, model_kwargs, generation_config)
    expert = complete(expert, model, generation_config)
    if looks or (not text_only and (recipe.contrasts or recipe.preparations)):
        check_pictures(expert, recipe.needs_pixels)
        check_audio(model, model_kwargs)
    warn_of_two_starts(expert, model)
    parts = (*recipe.preparations, *recipe.contrasts)
    processor = given_processor(processor, parts)
    pictures = pictures_asked(images, expert, model, recipe.needs_images, processor)
    told = (chat_template_kwargs or {}, processor_kwargs or {})
    expert = replace(expert, call=Call(pictures, generation_config, processor, *told))
    for part in parts:
        if hasattr(part, "check"):
            part.check(concerned(part, expert, model.config), model)
    with position_offset_kept(model):
        if any(getattr(part, "shares_picture", False) for part in parts):
            expert = read_pictures(expert, model)
        for prepare in recipe.preparations:
            expert = applied(prepare, expert, model, generation_config)
        branches = [replace(expert, recalibrations=recipe.recalibrations)]
        for contrast in recipe.contrasts:
            branches.append(applied(contrast, expert, model, generation_config))
    # A prefix was read without edits, without a record of them, and without outputs.
    in_one = any(wants(generation_config, f"output_{name}") for name in PER_TOKEN)
    branches = [
        replace(b, pixels={}, prefix=None if in_one or b.recalibrations else b.prefix)
        for b in branches
    ]
    del expert
    before: Any = LogitsProcessorList()
    if recipe.rule is not None and recipe.rule.cuts:
        before, logits_processor = around_cut(logits_processor)
    asked = Asked(
        prompt_length=input_ids.shape[1],
        most=generation_config.max_length - input_ids.shape[1],
        copies=copies,
        keep_logits=wants(generation_config, "output_logits"),
        selections=recipe.selections,
        looks=looks,
        texts=recipe.texts if recipe.contrasts else None,
        processors=before,
        is_beam=is_beam,
    )
    ensemble = recipe.ensemble(model, branches, asked)
    del branches  # the ensemble lets go of what is read
    kwargs = loop_kwargs(ensemble, model_kwargs, generation_config, mode)
    if recipe.selections:
        check_cuttable(kwargs["past_key_values"])
    check_outputs(model, generation_config, ensemble.watches)
    if not wants(generation_config, "output_attentions"):
        lengths = [branch.length for branch in ensemble.branches]
        ensemble.runs = separate(model, ensemble.blocks, lengths, kwargs["past_key_values"])
    show_prompt(token_streamer, input_ids)
    with switched(model) if ensemble.watches else nullcontext():
        outputs = loop(ensemble, input_ids, logits_processor=logits_processor, **calling, **kwargs)
    ensemble.finite.check()
    return outputs if isinstance(outputs, Tensor) else finish(outputs, ensemble)


def show_prompt(token_streamer: Any, input_ids: Tensor) -> None:
    """A streamer's first value is the prompt: without it `skip_prompt` eats a token."""
    if token_streamer is not None:
        token_streamer.put(input_ids.cpu())


def read_pictures(branch: Branch, model: Any) -> Branch:
    """The same branch, its columns up to each row's last picture read and kept as its prefix.

    Left as it is where keys cannot be shared: a row without a picture, layers that keep a state in
    place of keys, a window over keys that padding would shift, or text that earlier tokens attend
    to (a prefix language model).
    """
    if branch.prefix is not None or not can_share(branch, model):
        return branch
    branch = branch.split([int(torch.nonzero(mask)[-1]) + 1 for mask in branch.image_mask])
    read = int(torch.nonzero(branch.image_mask[0])[-1]) + 1  # in every row alike
    assert branch.position_ids is not None, "a completed branch has positions"
    head = replace(
        branch,
        input_ids=branch.input_ids[:, :read],
        attention_mask=branch.attention_mask[:, :read],
        image_mask=branch.image_mask[:, :read],
        position_ids=branch.position_ids[..., :read],
        aligned={name: values[:, :read] for name, values in branch.aligned.items()},
    )
    cache = head.cache(model)
    forward_prompt(model, head, cache, last_logits(model))
    layers: Any = cache.layers
    return replace(branch, prefix=Prefix(tuple((la.keys, la.values) for la in layers)))


def say(
    model: Any,
    branch: Branch,
    tokens: int,
    *,
    copies: int = 1,
    processors: Sequence[Any] = (),
    criteria: Sequence[Any] = (),
    records: Mapping[int, frozenset[str]] | None = None,
    listen: Callable[[Ensemble, Tensor], None] | None = None,
) -> Tensor:
    """What the model says after a branch, `[B * copies, L]`, L at most `tokens`; for preparations.

    Greedy, but for what `processors` do to the scores `[B * copies, V]`. A row that ended, by the
    caller's end of sequence or by `criteria`, goes on with padding.

    Args:
        records: By layer, what the ledger is to keep of the attention.
        listen: Called with the ensemble and the answer so far, `[B * copies, t]`, at every step
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
    asked = Asked(branch.length, tokens, copies, records=records)
    ensemble = Ensemble(model, [branch], Plausibility(beta=0), asked)
    mode = GenerationMode.GREEDY_SEARCH
    kwargs = loop_kwargs(ensemble, last_logits(model), config, mode)
    chosen = LogitsProcessorList(processors)
    if listen is not None:
        chosen.insert(0, Listening(listen, ensemble))
    stops = StoppingCriteriaList([MaxLengthCriteria(config.max_length), *criteria])
    if config._eos_token_tensor is not None:
        stops.append(EosTokenCriteria(config._eos_token_tensor))
    prompts = branch.input_ids.repeat_interleave(copies, dim=0)
    with switched(model) if ensemble.watches else nullcontext():
        said = getattr(type(model), GENERATION_MODES_MAPPING[mode])(
            ensemble,
            prompts,
            logits_processor=chosen,
            stopping_criteria=stops,
            generation_config=config,
            **kwargs,
        )
    ensemble.finite.check()
    return said[:, branch.length :]


def watch(model: Any, branch: Branch, layers: Iterable[int], chosen: Tensor) -> dict[int, Tensor]:
    """Reads a prompt for where it looks; for preparations and contrasts.

    Args:
        layers: Decoder layers to record.
        chosen: `[B, T]` bool, the tokens whose attention is averaged, none in a prefix.

    Returns:
        By layer, the mean over heads and chosen tokens, `[B, T]` float32.
    """
    read = 0 if branch.prefix is None else branch.prefix.length
    block = stream(model, branch, (), dict.fromkeys(layers, frozenset({"chosen"})), branch.length)
    block.ledger.queried = chosen[:, read:]
    block.ledger.begin(0, branch.length - read)
    streams = Streams([block])
    given = {**last_logits(model), KEYWORD: streams}
    if "logits_to_keep" in given:  # a number would have some layers read the last query alone
        given["logits_to_keep"] = torch.tensor([-1], device=branch.input_ids.device)
    with switched(model):
        forward_prompt(model, branch, branch.cache(model), given)
    check_reached(model, streams)
    return block.ledger.chosen


def last_logits(model: Any) -> dict[str, Any]:
    """Keywords of a forward of which the last position's logits are wanted."""
    keep = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}
    return {"use_cache": True, **keep}


def ends(generation_config: Any) -> list[int]:
    """Token ids that end an answer."""
    eos = generation_config._eos_token_tensor
    return [] if eos is None else eos.reshape(-1).tolist()


class Listening(LogitsProcessor):
    """Changes nothing; tells `listen` of every step."""

    def __init__(self, listen: Callable[[Ensemble, Tensor], None], ensemble: Ensemble):
        self.listen = listen
        self.ensemble = ensemble

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.listen(self.ensemble, input_ids[:, self.ensemble.asked.prompt_length :])
        return scores


def expert_branch(
    model: Any,
    input_ids: Tensor,
    copies: int,
    pixels: Mapping[str, Any],
    model_kwargs: dict[str, Any],
    generation_config: Any,
) -> Branch:
    """The branch as asked, from what `generate` hands a strategy, one row per prompt."""
    ids = input_ids[::copies]
    shape = input_ids.shape
    mask = model_kwargs.get("attention_mask")
    if mask is not None:
        check_padding(mask[::copies])
    positions = model_kwargs.get("position_ids")
    if positions is not None:
        positions = positions.expand(*positions.shape[:-2], shape[0], shape[1])
        positions = positions[..., ::copies, :]
    aligned = {
        name: value[::copies]
        for name, value in model_kwargs.items()
        if name not in ("attention_mask", "position_ids")
        and isinstance(value, Tensor)
        and value.shape[:2] == shape
    }
    branch = Branch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids) if mask is None else mask[::copies],
        image_mask=image_mask(ids, model.config),
        position_ids=positions,
        aligned=aligned,
        features=encoded_pictures(model_kwargs, input_ids, copies, model.config),
    )
    pixels = {name: value for name, value in pixels.items() if value is not None}
    if not pixels:
        return branch
    # `generate` made positions without the grids that the recipe asked for, so they are made
    # again, unless they are the caller's own.
    stock = prepare_positions(model, replace(branch, position_ids=None))
    if positions is None or torch.equal(positions, stock):
        branch = replace(branch, position_ids=None)
    return complete(replace(branch, pixels=pixels, features=None), model, generation_config)


def applied(part: Any, expert: Branch, model: Any, generation_config: Any) -> Branch:
    """A part's branch, completed; one about images leaves rows without one as they are."""
    given = concerned(part, expert, model.config)
    made = complete(part(given, model), model, generation_config)
    return made if given is expert else merged(expert, made, model.config)


def complete(branch: Branch, model: Any, generation_config: Any) -> Branch:
    """The branch with its pictures encoded and its positions set."""
    if branch.position_ids is None:
        branch = replace(branch, position_ids=prepare_positions(model, branch))
    if branch.features is None:
        call = replace(branch.call, generation_config=generation_config)
        branch = replace(branch, features=encode(replace(branch, call=call), branch.pixels, model))
    return branch


def encode(branch: Branch, pixels: Mapping[str, Any], model: Any) -> Features:
    """Pictures through the model's encoder, by modality; `pixels` are its inputs."""
    given = model._maybe_prepare_encoder_kwargs_for_generation(
        branch.input_ids, dict(pixels), "input_ids", branch.call.generation_config
    )
    if not given.get("mm_encoder_outputs"):
        raise ValueError(
            f"transformers {transformers_version} does not encode the pictures of "
            f"{type(model).__name__} ahead of its text, which decoders build on: use a newer one"
        )
    return given["mm_encoder_outputs"]


def prepare_positions(model: Any, branch: Branch) -> Tensor:
    """Positions as the model counts them, `[B, T]` or `[P, B, T]`."""
    given = {"attention_mask": branch.attention_mask, **branch.aligned, **branch.pixels}
    positions = model._prepare_position_ids_for_generation(branch.input_ids, given)
    return positions.expand(*positions.shape[:-2], *branch.input_ids.shape)


@contextmanager
def position_offset_kept(model: Any) -> Iterator[None]:
    """Qwen's helper leaves the offset of its latest prompt on the model: the expert's must stay."""
    owner = model.base_model
    had_offset = hasattr(owner, "rope_deltas")
    offset = getattr(owner, "rope_deltas", None)
    try:
        yield
    finally:
        if had_offset:
            owner.rope_deltas = offset


def loop_kwargs(
    ensemble: Ensemble, model_kwargs: dict[str, Any], generation_config: Any, mode: GenerationMode
) -> dict[str, Any]:
    """What the loop needs to carry N*R rows from step to step."""
    branches = ensemble.branches
    expert = branches[0]
    kwargs = {k: v for k, v in model_kwargs.items() if k != "mm_encoder_outputs"}
    for name, value in kwargs.items():
        if name in expert.aligned:
            kwargs[name] = ensemble.stack([branch.aligned[name] for branch in branches])
        elif is_row_tensor(value, ensemble.prompts[: ensemble.rows]):
            kwargs[name] = value.repeat(len(branches), *[1] * (value.ndim - 1))
    kwargs["position_ids"] = ensemble.prompt_positions()
    mask = ensemble.prompt_mask()
    kwargs["attention_mask"] = None if mask.all() else mask
    given = model_kwargs.get("past_key_values")
    if getattr(given, "_is_user_defined", False):
        check_layers(given, ensemble.model)
        check_capacity(given, ensemble.longest)
    else:
        kwargs.pop("past_key_values", None)
        ensemble.model._prepare_cache_for_generation(
            generation_config, kwargs, mode, len(branches) * len(expert.input_ids), ensemble.longest
        )
        make_room(kwargs["past_key_values"], ensemble.longest - ensemble.width, ensemble.longest)
    return kwargs


def finish(outputs: Any, ensemble: Ensemble) -> Any:
    """The loop's output, with every branch's logits and without a cache of all branches.

    `logits` are the expert's, one `[R, V]` per step; `branch_logits` are all, `[N, R, V]`;
    `image_attention` is the expert's, `[R, T]`.
    """
    fields = {k: v for k, v in outputs.items() if k != "past_key_values"}
    further: dict[str, Any] = {}
    if ensemble.branch_logits is not None:
        steps = tuple(ensemble.branch_logits[: len(outputs.logits)])
        fields["logits"] = tuple(step[0] for step in steps)
        further["branch_logits"] = steps
    if ensemble.image_attention is not None:
        answered = outputs.sequences.shape[1] - ensemble.asked.prompt_length
        further["image_attention"] = tuple(ensemble.image_attention[:answered])
        further["image_mask"] = ensemble.image_mask
    finished = type(outputs)(**fields)
    for name, value in further.items():
        finished[name] = value
    return finished


def is_text_only(
    model: Any,
    input_ids: Tensor,
    images: Any,
    pixels: Mapping[str, Any],
    model_kwargs: Mapping[str, Any],
) -> bool:
    """Whether no prompt of a batch has an image or a video, and none came beside them."""
    check_vision_language(model)
    encoded = model_kwargs.get("mm_encoder_outputs") or {}
    came = [*(pixels.get(name) for name in PIXELS), *encoded.values()]
    has_tokens = bool(image_mask(input_ids, model.config).any())
    return not has_tokens and are_none(images) and all(value is None for value in came)


def check_vision_language(model: Any) -> None:
    """Raises `ValueError` unless the model takes encoded pictures by placeholder tokens."""
    if not model._supports_mm_encoder_outputs() or not token_ids(
        model.config, ("image_token_id", "video_token_id")
    ):
        raise ValueError(
            f"decoders need a vision-language model whose pictures stand in the prompt as "
            f"placeholder tokens, got {type(model).__name__}"
        )
