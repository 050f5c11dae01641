"""Visual Debias Decoding, Zhang et al. (arXiv:2403.05262)."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from sightline.decoders.contrasts import NoImage, UnknownImage
from sightline.engine.processor_probe import can_be_asked
from sightline.engine.search_range import SearchRange
from sightline.engine.strategy import Decoder, Recipe
from sightline.logits.rules import Contrastive
from sightline.settings import Markers, Processor, Strength, TokenId, UnitInterval

Variant = Literal["none", "unk", "both"]


@dataclass(frozen=True)
class VDD(Decoder):
    """Take off what the model would say without the image.

    A model asked of an image that it was not given still answers, from its language prior; that
    answer is contrasted away among the tokens plausible with the image.

    Args:
        alpha: Contrast strength, 0 or more; 0 leaves the logits as they are.
        beta: Plausibility threshold in [0, 1], a share of the expert's best probability; 0 keeps
            every token.
        variant: What stands in the image's place: "none" nothing, "unk" one unknown token for
            each image, "both" the mean of the two amateurs' logits (the paper's scripts).
        processor: The model's processor or tokenizer, for "unk" and "both"; a processor also says
            exactly what belongs to an image, and for that can be passed to `generate` instead.
            Where its tokenizer has no unknown token the text "None" stands in, as in the paper's
            code for Qwen-VL.
        unk_token_id: The unknown token's id, in place of `processor`.
        markers: Ids of tokens around an image that the model's config does not name.

    Differs from the authors' code: the tokens that open and close an image go with it, so the
    amateur is image-free for every family (in theirs it kept the image for Qwen-VL); rows of a
    batch are edited one by one; greedy and beam search are contrasted too. The default variant is
    "none", which needs no tokenizer.
    """

    alpha: Annotated[Strength, SearchRange(0, 3)] = 1.0
    beta: Annotated[UnitInterval, SearchRange(0, 1)] = 0.1
    variant: Variant = "none"
    processor: Processor | None = field(default=None, repr=False)
    unk_token_id: TokenId | None = None
    markers: Markers = ()

    @classmethod
    def paper(cls, processor: Any = None) -> "VDD":
        """Both amateurs, as the paper's scripts: nothing and the unknown token for the image."""
        return cls(variant="both", processor=processor)

    def recipe(self) -> Recipe:
        return Recipe(
            contrasts=image_free(
                self.variant,
                self.processor,
                self.unk_token_id,
                self.markers,
            ),
            rule=Contrastive(self.alpha, self.beta),
        )


def image_free(
    variant: Variant, processor: Any, unk_token_id: int | None, markers: tuple[int, ...] = ()
) -> tuple[NoImage | UnknownImage, ...]:
    """The amateurs of a variant: "none", "unk" or "both"."""
    written_by = processor if can_be_asked(processor) else None
    if variant == "none":
        return (NoImage(markers, written_by),)
    if unk_token_id is not None:
        tokens: tuple[int, ...] = (unk_token_id,)
    elif processor is not None:
        tokens = unknown_tokens(processor)
    else:
        raise ValueError(
            f'variant "{variant}" puts an unknown token in the image\'s place: pass processor= '
            'or unk_token_id=, or use variant="none"'
        )
    unknown = UnknownImage(tokens, markers, written_by)
    return (unknown,) if variant == "unk" else (NoImage(markers, written_by), unknown)


def unknown_tokens(processor: Any) -> tuple[int, ...]:
    """The tokenizer's unknown token, or the tokens of "None" where it has none."""
    tokenizer = getattr(processor, "tokenizer", processor)
    if tokenizer.unk_token_id is not None:
        return (tokenizer.unk_token_id,)
    return tuple(tokenizer("None", add_special_tokens=False)["input_ids"])
