"""What is passed as `custom_generate`: a recipe of parts, or a named method with settings."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor

from sightline import hub, serialization
from sightline.attention.base import AttentionEdit, CacheEviction
from sightline.engine.branch import ENCODER_INPUTS, POSITION_INPUTS, Branch
from sightline.engine.decode import GenerateCall, decode
from sightline.engine.ensemble import CallConfig, Ensemble
from sightline.engine.gated import GatedEnsemble
from sightline.engine.parts import about_images, needs_images, needs_pixels
from sightline.engine.prompt_cache import PromptCache
from sightline.logits.gates import Gate, PlausibilityGate
from sightline.logits.rules import Alone, Needs, Plausibility, Rule
from sightline.model_protocol import Model
from sightline.settings import Checked, Count, Wanted

Contrast = Callable[[Branch, Model], Branch]
Preparation = Callable[[Branch, Model], Branch]


class _Signature:
    """The signature that `generate` reads off a strategy.

    `generate` encodes images before it calls a strategy, and hands over raw inputs only where
    the signature names them. So inputs of the image encoder are named only if a part edits
    images; all other strategies get them encoded, whatever a model calls them.
    """

    def __get__(self, strategy: Any, owner: type) -> inspect.Signature:
        if strategy is None:
            raise AttributeError("__signature__")
        signature = inspect.signature(type(strategy).__call__)
        _, *parameters = signature.parameters.values()
        if strategy.needs_pixels:
            named = [
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
                for name in (*ENCODER_INPUTS, *POSITION_INPUTS)
            ]
            parameters = [*parameters[:-1], *named, parameters[-1]]
        return signature.replace(parameters=parameters)


class Strategy(Checked, ABC):
    """Anything that `generate` takes as `custom_generate=`."""

    __signature__ = _Signature()

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if "logits_processor" in kwargs:  # `generate` calls what it was given
            raise TypeError(
                f"custom_generate= takes a decoder, and got the class {cls.__name__}: make one, as "
                f"in custom_generate={cls.__name__}()"
            )
        return super().__new__(cls)

    def to_dict(self) -> dict[str, Any]:
        """The class and all settings but the processor, as JSON has them; for `from_dict`.

        Raises:
            ValueError: A setting or a part holds a function, a model or another object.
        """
        return serialization.to_dict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, processor: Any = None) -> Any:
        """What `to_dict` wrote. `Decoder.from_dict` makes any decoder, `VDD.from_dict` a VDD.

        Args:
            values: From anywhere; settings that are missing keep their defaults.
            processor: The model's own, for decoders and parts that take one.

        Raises:
            ValueError: Names and values are checked as where a decoder is made.
        """
        wanted: Any = Strategy if inspect.isabstract(cls) else cls
        decoder = serialization.from_dict(values, processor, wanted)
        if not isinstance(decoder, wanted):
            kind = "decoder" if wanted is Strategy else wanted.__name__
            raise ValueError(f"a {kind} was wanted, got a {type(decoder).__name__}")
        return decoder

    def save_pretrained(self, folder: str | Path, *, force: bool = False) -> list[Path]:
        """Writes the folder that `custom_generate=folder` takes; see `sightline.hub.export`."""
        return hub.export(self, folder, force=force)

    def push_to_hub(self, repo: str, **arguments: Any) -> str:
        """Writes that folder to a repository of the hub; see `sightline.hub.push`."""
        return hub.push(self, repo, **arguments)

    @abstractmethod
    def run(self, model: Model, call: GenerateCall) -> Any:
        """What `generate` returns for a call."""

    @property
    def needs_pixels(self) -> bool:
        """Whether it edits images before they are encoded."""
        return False

    @property
    def needs_images(self) -> bool:
        """Whether it looks at the image itself, passed to `generate` as `images=`."""
        return False

    def __call__(
        self,
        model: Model,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        token_streamer: Any = None,
        images: Any = None,
        processor_kwargs: dict[str, Any] | None = None,
        processor: Any = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        output_image_attention: bool | tuple[int, int] = False,
        **model_kwargs: Any,
    ) -> Any:
        """Called by `generate`, not by users.

        What looks at the image again gets it by `generate(..., images=image)`: one, a list of
        all images of the batch in the order of the prompts, or a list with an entry for each row
        (an image, a list, or None where it has none). What prepares it again does so by
        the processor's own call, with the arguments that the prompt was made with
        (`processor_kwargs=dict(max_pixels=...)`). `chat_template_kwargs=` are the arguments of the
        prompt's chat template, for decoders that ask in it; only those that change its words are
        needed.

        `generate(..., processor=processor)`, the model's own, tells image-free branches exactly
        what belongs to an image, where a decoder was made without one.

        `generate(..., return_dict_in_generate=True, output_image_attention=True)` also returns
        where the model looked: `image_attention`, for each token `[R, T]` over the expert's prompt,
        the softmax weights of the query that predicted it, mean over heads and the middle layers
        (or those of (first, first after)), 0 off `image_mask`, which is `[R, T]` bool.

        `output_attentions` and `output_hidden_states` give the expert's, over its own prompt, from
        eager attention that no part edits or records; else they are refused.

        Logits processors act once per token. Those that ban or penalise, and those that are not
        known to transformers, act on the rule's scores of every token. Then the plausibility cut is
        taken, relative to the expert's best token that they did not ban, so that a ban makes room
        for the next best. Beams normalise what is left, then temperature and the other warpers,
        watermarks and normalisation act. So a penalty or a bias weighs plausible tokens against
        each other, by their contrasted scores, and makes no implausible token possible.

        Streaming goes by `generate(..., token_streamer=TextStreamer(...))`: transformers drops
        `streamer=` when a strategy decodes. It drops `assistant_model` too, unseen by us.
        """
        named = (*ENCODER_INPUTS, *POSITION_INPUTS) if self.needs_pixels else ()
        pixels = {name: model_kwargs.pop(name) for name in named if name in model_kwargs}
        call = GenerateCall(
            input_ids=input_ids,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            generation_config=generation_config,
            token_streamer=token_streamer,
            images=images,
            processor_kwargs=processor_kwargs or {},
            processor=processor,
            chat_template_kwargs=chat_template_kwargs or {},
            output_image_attention=output_image_attention,
            pixels=pixels,
            model_kwargs=model_kwargs,
        )
        return self.run(model, call)


class RecipeStrategy(Strategy):
    """A strategy that is made of parts, and decodes token by token."""

    @abstractmethod
    def recipe(self) -> "Recipe":
        """The parts that this strategy is made of."""

    def run(self, model: Model, call: GenerateCall) -> Any:
        return decode(self.recipe().simplified(), model, call)

    def __add__(self, other: "RecipeStrategy") -> "RecipeStrategy":
        """A decoder of both's parts: `VDD() + VAF()`.

        Raises:
            ValueError: Both have a rule, or both a gate, and they differ.
        """
        return Combined((self, other)) if isinstance(other, RecipeStrategy) else NotImplemented

    @property
    def needs_pixels(self) -> bool:
        """Whether a part edits images before they are encoded."""
        recipe = self.recipe().simplified()
        return any(needs_pixels(part) for part in (*recipe.preparations, *recipe.contrasts))

    @property
    def needs_images(self) -> bool:
        """Whether a part looks at the image itself, passed to `generate` as `images=`."""
        recipe = self.recipe().simplified()
        return any(needs_images(part) for part in (*recipe.preparations, *recipe.contrasts))


MADE_OF_PARTS = "made of parts, which one that chooses whole answers is not"
MadeOfParts = Annotated[
    RecipeStrategy,
    Wanted(f"a decoder that is {MADE_OF_PARTS}"),
]


@dataclass(frozen=True)
class Recipe(RecipeStrategy):
    """The parts of a decoding method; itself a strategy for `custom_generate`.

    Args:
        preparations: `(expert, model) -> Branch`, each rewrites the expert once, before any token.
        contrasts: `(expert, model) -> Branch`, each adds one more branch.
        rule: How the branches' logits become scores.
        attention_edits: What the expert's attention weighs more or less.
        cache_evictions: Which keys leave the cache between steps.
        gate: When the contrasts are asked; None: at every token.
        prompt_cache: Image-free prompts as they were read, for later calls; None: are not kept.
    """

    preparations: tuple[Preparation, ...] = ()
    contrasts: tuple[Contrast, ...] = ()
    rule: Rule | None = None
    attention_edits: tuple[AttentionEdit, ...] = ()
    cache_evictions: tuple[CacheEviction, ...] = ()
    gate: Gate | None = None
    prompt_cache: PromptCache | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.contrasts and self.rule is None:
            raise ValueError("contrasts need a rule that says how their logits are combined")

    def recipe(self) -> "Recipe":
        return self

    @property
    def is_plain(self) -> bool:
        """Whether nothing is left to do but what `generate` does."""
        return self.rule is None and not any(
            (self.preparations, self.attention_edits, self.cache_evictions)
        )

    def ensemble(self, model: Model, branches: list[Branch], call_config: CallConfig) -> Ensemble:
        """What holds these branches, the expert first."""
        rule = self.rule or Plausibility(beta=0)
        if self.gate is None or len(branches) == 1:
            return Ensemble(model, branches, rule, call_config)
        return GatedEnsemble(model, branches, rule, call_config, self.gate)

    def simplified(self) -> "Recipe":
        """Without branches that the rule gives no weight, and without parts that do nothing."""
        recipe = replace(
            self,
            attention_edits=tuple(part for part in self.attention_edits if not part.is_neutral),
            cache_evictions=tuple(part for part in self.cache_evictions if not part.is_neutral),
        )
        rule = self.rule
        if rule is None or rule.needs.others:
            return recipe
        return replace(recipe, contrasts=(), rule=None if rule.needs == Needs() else rule)

    def without_images(self) -> "Recipe":
        """The recipe for prompts without an image: parts about images do nothing, the rest acts.

        A contrast that is left out counts as if it said what the expert says.
        """

        def others(parts: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(part for part in parts if not about_images(part))

        left = replace(
            self,
            preparations=others(self.preparations),
            contrasts=others(self.contrasts),
            attention_edits=others(self.attention_edits),
            cache_evictions=others(self.cache_evictions),
        )
        missing = len(self.contrasts) - len(left.contrasts)
        if self.rule is None or not missing:
            return left
        return replace(left, rule=Alone(self.rule, missing))

    def __add__(self, other: RecipeStrategy) -> RecipeStrategy:
        return self.joined(other) if isinstance(other, Recipe) else super().__add__(other)

    def joined(self, other: "Recipe") -> "Recipe":
        """Both recipes' parts; rules and gates must be equal, or one of them missing."""
        if self.gate and other.gate and self.gate != other.gate:
            raise ValueError(f"two gates cannot both decide: {self.gate} and {other.gate}")
        if self.rule and other.rule and self.rule != other.rule:
            raise ValueError(
                f"two rules cannot both score: {self.rule} and {other.rule}. Choose one with "
                "dataclasses.replace(recipe, rule=...)"
            )
        return Recipe(
            self.preparations + other.preparations,
            self.contrasts + other.contrasts,
            self.rule or other.rule,
            self.attention_edits + other.attention_edits,
            self.cache_evictions + other.cache_evictions,
            self.gate or other.gate,
            self.prompt_cache or other.prompt_cache,
        )


@dataclass(frozen=True)
class Combined(RecipeStrategy):
    """The parts of several decoders in one, as their recipes are added.

    Args:
        decoders: Two or more; at most one kind of rule and one gate among them.
    """

    decoders: Annotated[
        tuple[MadeOfParts, ...],
        Wanted(f"two decoders or more, each {MADE_OF_PARTS}", lambda given: len(given) > 1),
    ]

    def __post_init__(self):
        super().__post_init__()
        self.recipe()

    def recipe(self) -> Recipe:
        return reduce(Recipe.joined, (decoder.recipe() for decoder in self.decoders))


@dataclass(frozen=True)
class Gated(RecipeStrategy):
    """A decoder whose contrasts are asked only where a gate opens.

    A closed gate leaves the other branches behind; when it opens they read the tokens they missed
    in one forward. With `PlausibilityGate()`, the default, answers are those of the decoder itself,
    token for token: where one token is plausible no contrast can change it. Worth it where a
    second row of a forward costs as much as a second forward (float32 on a CPU); it costs a look
    at the scores at every token. Beside a processor that may know more than the tokens so far (a
    grammar's), which tokens are left is not known in time, and `PlausibilityGate` opens at every
    token.

    Args:
        decoder: Whose contrasts are gated.
        gate: When they are asked: `PlausibilityGate`, `ConfidenceGate` or `EntropyGate`, of
            `sightline.logits.gates`.
    """

    decoder: MadeOfParts
    gate: Gate = field(default_factory=PlausibilityGate)

    def recipe(self) -> Recipe:
        return replace(self.decoder.recipe(), gate=self.gate)


@dataclass(frozen=True)
class PromptCached(RecipeStrategy):
    """A decoder that remembers image-free prompts: the same question of the next image.

    An amateur that sees no image (VDD, M3ID, PAI) reads the same text whatever the image, so
    keys, values and last logits of the latest texts are kept, by model, and not computed again.

    After a change of weights or adapters that `Memory` sees, texts are read again; after any other
    (a write through `.data`) call `clear()`.

    Args:
        decoder: Has a branch without an image; any other raises `ValueError` when it is used.
        capacity: Texts that are kept for each model, 1 or more. One of T tokens takes
            2 * layers * KV heads * head size * T numbers: of 60 tokens and LLaVA-1.5-7B in 16
            bits 31 MB.
    """

    decoder: MadeOfParts
    capacity: Count = 8
    _prompt_cache: PromptCache = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "_prompt_cache", PromptCache(self.capacity))

    def clear(self) -> None:
        """Forgets the texts, of every model."""
        self._prompt_cache.clear()

    def recipe(self) -> Recipe:
        return replace(self.decoder.recipe(), prompt_cache=self._prompt_cache)


@dataclass(frozen=True)
class Decoder(RecipeStrategy):
    """A named method: a dataclass of settings, whose `recipe()` names its parts.

    Settings are checked when the decoder is made, by their types and limits
    (`sightline.settings`) and by the parts that use them. To stream, pass
    `generate(..., token_streamer=...)`: transformers drops `streamer=` when a decoder decodes.
    """

    def __post_init__(self):
        super().__post_init__()
        self.recipe()
