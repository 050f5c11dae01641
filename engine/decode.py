"""A call of `generate` from its arguments to its result, in numbered stages."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from transformers.generation import (
    GenerationMode,
    LogitsProcessorList,
)

from sightline.attention.hook import switched
from sightline.compat import is_callers_cache, loop_of, new_cache
from sightline.engine.attention_plan import separate
from sightline.engine.branch import Branch, Call
from sightline.engine.ensemble import PER_TOKEN, CallConfig, Ensemble
from sightline.engine.inputs import (
    complete,
    expert_branch,
    given_processor,
    images_asked,
    position_offset_kept,
)
from sightline.engine.kv_cache import check_layers, make_room, scratch_cache
from sightline.engine.mixed_batch import concerned, merged
from sightline.engine.prefill import is_row_tensor, read_images
from sightline.engine.processor_order import around_cut
from sightline.engine.validation import (
    check_audio,
    check_call,
    check_capacity,
    check_cuttable,
    check_image_attention,
    check_images,
    check_outputs,
    check_vision_language,
    is_text_only,
    wants,
    warn_of_two_starts,
)
from sightline.logits.finite import FiniteRows
from sightline.model_protocol import Model


@dataclass(frozen=True)
class GenerateCall:
    """What `generate` hands a strategy, as `Strategy.__call__` takes it.

    Args:
        input_ids: `[B * copies, T]`, expanded by `generate` for beams and returned sequences.
        logits_processor: Those of the call.
        stopping_criteria: Those of the call.
        generation_config: As `generate` prepared it.
        token_streamer: Gets tokens as they come.
        images: The prompts' images, one, a list of all, or a list with an entry for each row (see
            `images_asked`): PIL images, paths, bytes or open files.
        processor_kwargs: What the processor was told when it made the prompt.
        processor: The model's own, for parts that were made without one.
        chat_template_kwargs: What the prompt's chat template was given besides the messages.
        output_image_attention: Whether, or from which layers, `image_attention` is wanted.
        pixels: The raw inputs of the image encoder, unexpanded, where the strategy asked for them.
        model_kwargs: The rest of what `generate` hands a loop.
    """

    input_ids: Tensor
    logits_processor: Any
    stopping_criteria: Any
    generation_config: Any
    token_streamer: Any
    images: Any
    processor_kwargs: Mapping[str, Any]
    processor: Any
    chat_template_kwargs: Mapping[str, Any]
    output_image_attention: bool | tuple[int, int]
    pixels: Mapping[str, Any]
    model_kwargs: dict[str, Any]


@dataclass(frozen=True)
class Loop:
    """The loop that `generate` would have run, with what every call of it gets.

    Args:
        model: Whose class has the loop.
        stopping_criteria: The call's.
        generation_config: As `generate` prepared it.
        token_streamer: Gets tokens as they come; beams cannot be streamed.
    """

    model: Model
    stopping_criteria: Any
    generation_config: Any
    token_streamer: Any = None

    @property
    def mode(self) -> GenerationMode:
        return self.generation_config.get_generation_mode()

    @property
    def is_beam(self) -> bool:
        return self.mode in (GenerationMode.BEAM_SEARCH, GenerationMode.BEAM_SAMPLE)

    def __call__(
        self, decoded: Any, input_ids: Tensor, logits_processor: Any, **kwargs: Any
    ) -> Any:
        """Decodes the model, or what stands in for it."""
        streaming = {} if self.is_beam else {"streamer": self.token_streamer}
        show_prompt(self.token_streamer, input_ids)
        return loop_of(self.model, self.mode)(
            decoded,
            input_ids,
            logits_processor=logits_processor,
            stopping_criteria=self.stopping_criteria,
            generation_config=self.generation_config,
            **streaming,
            **kwargs,
        )


def decode(recipe: Any, model: Model, call: GenerateCall) -> Any:
    """Runs a recipe in the loop that `generate` would have run. Called by `generate`.

    Returns:
        What that loop returns; with `output_logits`, also `branch_logits`; with
        `output_image_attention`, also `image_attention` and `image_mask`.
    """
    input_ids, generation_config = call.input_ids, call.generation_config
    model_kwargs, logits_processor = call.model_kwargs, call.logits_processor
    images, image_attention = call.images, call.output_image_attention

    # 1. Check: what cannot be decoded so is refused before the first forward.
    loop = Loop(model, call.stopping_criteria, generation_config, call.token_streamer)
    check_call(model, generation_config, loop.mode, call.token_streamer, model_kwargs)
    check_image_attention(image_attention, generation_config)
    text_only = not recipe.is_plain and is_text_only(
        model, input_ids, images, call.pixels, model_kwargs
    )
    if text_only:
        recipe, images = recipe.without_images(), None
    if recipe.is_plain and not image_attention:
        return plain(loop, input_ids, logits_processor, model_kwargs)
    check_vision_language(model)
    scratch_cache(model)  # raises for layers that branches cannot share

    # 2. Expert: the branch as asked, one row per prompt, with its images encoded.
    copies = max(generation_config.num_beams, generation_config.num_return_sequences)
    expert = expert_branch(model, input_ids, copies, call.pixels, model_kwargs, generation_config)
    expert = complete(expert, model, generation_config)
    parts = (*recipe.preparations, *recipe.contrasts)
    if image_attention or (parts and not text_only):
        check_images(expert, recipe.needs_pixels)
        check_audio(model, model_kwargs)
    warn_of_two_starts(expert, model)
    processor = given_processor(call.processor, parts)
    own = images_asked(images, expert, model, recipe.needs_images, processor)
    told = (call.chat_template_kwargs, call.processor_kwargs)
    expert = replace(expert, call=Call(own, generation_config, processor, *told))
    for part in parts:
        if hasattr(part, "check"):
            part.check(concerned(part, expert, model.config), model)

    with position_offset_kept(model):
        # 3. Preparations rewrite the expert.
        if any(getattr(part, "shares_image", False) for part in parts):
            expert = read_images(expert, model)
        for prepare in recipe.preparations:
            expert = applied(prepare, expert, model, generation_config)

        # 4. Contrasts: each makes one more branch of it.
        others = [applied(part, expert, model, generation_config) for part in recipe.contrasts]

    # 5. Plan: all branches in one ensemble, its cache, and how its attention is read.
    branches = [replace(expert, attention_edits=recipe.attention_edits), *others]
    branches = [ready_to_read(branch, generation_config) for branch in branches]
    del expert, others  # the ensemble lets go of what is read
    before: Any = LogitsProcessorList()
    if recipe.rule is not None and recipe.rule.needs.cut:
        before, logits_processor = around_cut(logits_processor)
    call_config = CallConfig(
        prompt_length=input_ids.shape[1],
        most=generation_config.max_length - input_ids.shape[1],
        copies=copies,
        keep_logits=wants(generation_config, "output_logits"),
        cache_evictions=recipe.cache_evictions,
        output_image_attention=image_attention,
        prompt_cache=recipe.prompt_cache if recipe.contrasts else None,
        processors=before,
        is_beam=loop.is_beam,
    )
    ensemble = recipe.ensemble(model, branches, call_config)
    del branches
    kwargs = loop_kwargs(ensemble, model_kwargs, generation_config, loop.mode)
    if recipe.cache_evictions:
        check_cuttable(kwargs["past_key_values"])
    check_outputs(model, generation_config, ensemble.watches)
    if not wants(generation_config, "output_attentions"):
        lengths = [branch.length for branch in ensemble.branches]
        ensemble.row_groups = separate(model, ensemble.blocks, lengths, kwargs["past_key_values"])

    # 6. Loop: transformers' own decodes the ensemble as it decodes any model.
    with switched(model) if ensemble.watches else nullcontext():
        outputs = loop(ensemble, input_ids, logits_processor, **kwargs)

    # 7. Finish: logits were finite, and outputs are the expert's.
    ensemble.finite.check()
    return outputs if isinstance(outputs, Tensor) else finish(outputs, ensemble)


def plain(
    loop: Loop, input_ids: Tensor, logits_processor: Any, model_kwargs: dict[str, Any]
) -> Any:
    """What `generate` does without a decoder."""
    finite = FiniteRows()
    checked = LogitsProcessorList([finite, *logits_processor])
    outputs = loop(loop.model, input_ids, checked, **model_kwargs)
    finite.check()
    return outputs


def ready_to_read(branch: Branch, generation_config: Any) -> Branch:
    """Without pixels, which are encoded by now, and without a prefix that cannot be used.

    A prefix was read without edits, without a record of them, and without outputs.
    """
    in_one = any(wants(generation_config, f"output_{name}") for name in PER_TOKEN)
    is_read_anew = in_one or branch.attention_edits
    return replace(branch, pixels={}, prefix=None if is_read_anew else branch.prefix)


def show_prompt(token_streamer: Any, input_ids: Tensor) -> None:
    """A streamer's first value is the prompt: without it `skip_prompt` eats a token."""
    if token_streamer is not None:
        token_streamer.put(input_ids.cpu())


def applied(part: Any, expert: Branch, model: Model, generation_config: Any) -> Branch:
    """A part's branch, completed; one about images leaves rows without one as they are."""
    given = concerned(part, expert, model.config)
    made = complete(part(given, model), model, generation_config)
    return made if given is expert else merged(expert, made, model.config)


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
    if is_callers_cache(given):
        check_layers(given, ensemble.model)
        check_capacity(given, ensemble.longest)
    else:
        kwargs.pop("past_key_values", None)
        rows = len(branches) * len(expert.input_ids)
        new_cache(ensemble.model, generation_config, kwargs, mode, rows, ensemble.longest)
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
        answered = outputs.sequences.shape[1] - ensemble.call_config.prompt_length
        further["image_attention"] = tuple(ensemble.image_attention[:answered])
        further["image_mask"] = ensemble.image_mask
    finished = type(outputs)(**fields)
    for name, value in further.items():
        finished[name] = value
    return finished
