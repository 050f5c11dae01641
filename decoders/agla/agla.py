"""Assembly of Global and Local Attention, An et al., CVPR 2025 (arXiv:2406.12718)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Annotated

from PIL import Image

from sightline.decoders.agla.matching import (
    Matcher,
    Relevance,
    entropy_share,
    kept_pixels,
    masked_image,
    stretched,
)
from sightline.engine.attention_maps import AttentionMap, question_attention_maps
from sightline.engine.branch import Branch
from sightline.engine.chat_prompts import PromptEditor
from sightline.engine.reprocessing import check_reproduced, image_inputs
from sightline.engine.search_range import SearchRange
from sightline.engine.strategy import Decoder, Recipe
from sightline.logits.rules import Additive
from sightline.model_protocol import Model
from sightline.settings import Checked, Layers, Processor, Share, Strength, UnitInterval


@dataclass(frozen=True)
class SelfMatcher(Matcher):
    """Takes the model's own word for what the question is about: where its tokens look.

    Attention of the question's tokens to the image, mean over heads and middle layers; tokens
    above the `clip` quantile, sinks more often than not, count as if at it. No second model and no
    gradient. Ours and experimental: it has not been shown to match BLIP.

    Args:
        masked: Share of the pixels to black out. None: the more peaked the map the more, half at
            most and nothing for a uniform one, by its entropy.
        layers: (first, first after) of the model. None: from 40 % to 75 % of its depth.
        clip: Quantile in (0, 1].
    """

    masked: UnitInterval | None = 0.15
    layers: Layers | None = None
    clip: Share = 0.98

    needs_attention = True

    def __call__(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        attention_maps: Sequence[AttentionMap] = (),
    ) -> list[Relevance]:
        return [self._relevance(each) for each in attention_maps]

    def _relevance(self, attention_map: AttentionMap) -> Relevance:
        values = attention_map.values.float().cpu()
        values = values.clamp(max=values.quantile(self.clip))
        masked = entropy_share(values) if self.masked is None else self.masked
        return Relevance(stretched(attention_map.layout.to_pixels(values)), masked)


@dataclass(frozen=True)
class MaskedImage(Checked):
    """The same prompt, each image black where it has nothing to do with the question.

    Args:
        processor: The model's own.
        matcher: Says what the question is about, and how much to mask.
        suffix: End of the user's words that is no part of the question.
    """

    processor: Processor = field(repr=False)
    matcher: Matcher = SelfMatcher()
    suffix: str = ""

    needs_images = True
    needs_pixels = True

    @property
    def shares_image(self) -> bool:
        """Whether the expert's prompt is read in parts, to watch it."""
        return self.matcher.needs_attention

    def check(self, expert: Branch, model: Model) -> None:
        PromptEditor(
            self.processor, model, expert.call.chat_template_kwargs
        )  # raises for another model's
        check_reproduced(self.processor, expert, model)

    def __call__(self, expert: Branch, model: Model) -> Branch:
        editor = PromptEditor(self.processor, model, expert.call.chat_template_kwargs)
        asked = editor.asked(expert)
        pairs = [
            (image, row.question.removesuffix(self.suffix).strip())
            for row, own in zip(asked, expert.call.images, strict=True)
            for image in own
        ]
        images, questions = zip(*pairs, strict=True)
        attention_maps: list[AttentionMap] = []
        if self.matcher.needs_attention:
            attention_maps = question_attention_maps(
                expert, model, self.processor, self.matcher.layers
            )
        relevances = self.matcher(images, questions, attention_maps)
        masked = iter(
            masked_image(image, kept_pixels(relevance.values, relevance.masked))
            for image, relevance in zip(images, relevances, strict=True)
        )
        rows = [list(islice(masked, len(own))) for own in expert.call.images]
        masked_inputs = image_inputs(rows, editor, expert.call.processor_kwargs)
        pixels = {**expert.pixels, **masked_inputs}
        return replace(expert, pixels=pixels, features=None, prefix=None)


@dataclass(frozen=True)
class AGLA(Decoder):
    """Look a second time, at what the question is about alone.

    The image as it is gives the whole; a second one, black where a matching model finds nothing
    that the question is about, gives the detail. Logits of both are added, over the tokens that
    are plausible on the whole image.

    Args:
        processor: The model's own.
        matcher: `BlipMatcher(model, processor)`, as published, or `SelfMatcher()`, which asks the
            model's own attention and needs no second model (ours, experimental). None: the latter.
        alpha: Weight of the masked image, 0 or more; neutral: 0, with beta=0.
        beta: Plausibility threshold in [0, 1].
        normalize: Divides the sum by 1 + alpha. Without it the sum is sharper than either: at
            alpha 2, where the branches agree, as sampling at a third of the temperature.
        suffix: End of the user's words that is no part of the question, as "Please answer this
            question with one word."
        first_only: The masked image counts at the first token alone; later ones are sharpened
            by 1 + alpha.

    Differs from the authors' code: the masked image counts at every token, not at the first
    alone (`released`); both images are cut alike; long questions work.
    """

    processor: Processor = field(repr=False, kw_only=True)
    matcher: Matcher | None = field(default=None, repr=False)
    alpha: Annotated[Strength, SearchRange(0, 4)] = 2.0
    beta: Annotated[UnitInterval, SearchRange(0, 1)] = 0.5
    normalize: bool = False
    suffix: str = ""
    first_only: bool = False

    @classmethod
    def released(cls, *, processor: Processor, matcher: Matcher | None = None) -> "AGLA":
        """The released code's mistake, to repeat its numbers: the masked image counts once."""
        return cls(matcher, first_only=True, processor=processor)

    def recipe(self) -> Recipe:
        matcher = SelfMatcher() if self.matcher is None else self.matcher
        return Recipe(
            contrasts=(MaskedImage(self.processor, matcher, self.suffix),),
            rule=Additive(self.alpha, self.beta, self.normalize, self.first_only),
        )
