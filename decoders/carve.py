"""Contrastive Attention Refinement for Visual Enhancement, Ge et al. (arXiv:2509.06461)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import torch
from PIL import Image
from torch import Tensor
from transformers import StoppingCriteria

from sightline.attention.recalibrations import Layers, check_layers
from sightline.decoders.asking import Chat
from sightline.decoders.branch import Branch
from sightline.decoders.caches import layers_with_every_key
from sightline.decoders.decoder import Decoder, Recipe
from sightline.decoders.ensemble import Ensemble, encode, ends, read_pictures, say
from sightline.decoders.features import alternating, picture_lengths
from sightline.decoders.looking import (
    check_reproduced,
    layouts_by_row,
    picture_inputs,
    repainted,
)
from sightline.decoders.ranges import Usual
from sightline.decoders.regions import FILLS, contrasted, kept_regions, refined
from sightline.logits.rules import in_unit_interval

GENERAL = "Write a general description of the image."
SUFFIX = "Answer with a single word or phrase."
DEPTH = (0.65, 0.8)  # the authors' layers 20 to 25 of 32
FEWEST = 4
STEPS = ("full", "start", "end")
FINAL = ("both", "refined")


class Contrasted(StoppingCriteria):
    """Listens to pairs of rows, question and description: the contrast of where they look.

    Steps are paired by number, and a pair ends with the shorter of its two answers.

    Args:
        layers: Whose attention is taken.
        steps: "full" weighs step t by t, "start" takes the first alone, "end" the last.
        smoothing: Added to the description's attention.
        eos: Token ids that end an answer.
    """

    def __init__(self, layers: Sequence[int], steps: str, smoothing: float, eos: list[int]):
        self.layers = layers
        self.steps = steps
        self.smoothing = smoothing
        self.eos = torch.tensor(eos, dtype=torch.long)
        self.maps: list[Tensor] = []  # one [N] for each pair
        self.open: list[bool] = []

    def listen(self, ensemble: Ensemble, answer: Tensor) -> None:
        ledger = ensemble.blocks[0].ledger
        pairs = len(answer) // 2
        if not self.maps:
            self.maps, self.open = [torch.zeros(())] * pairs, [True] * pairs
        elif self.steps == "start":
            return
        step = answer.shape[1] + 1
        for pair in (pair for pair in range(pairs) if self.open[pair]):
            asked, told = ledger.image_mask[2 * pair : 2 * pair + 2]
            contrast = sum(
                contrasted(
                    ledger.row[layer][2 * pair, : len(asked)][asked],
                    ledger.row[layer][2 * pair + 1, : len(told)][told],
                    self.smoothing,
                )
                for layer in self.layers
            )
            assert isinstance(contrast, Tensor)
            weighed = step * contrast if self.steps == "full" else contrast
            self.maps[pair] = weighed if self.steps == "end" else self.maps[pair] + weighed

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Ends both rows of a pair with the first of them."""
        ended = torch.isin(input_ids[:, -1], self.eos.to(input_ids.device))
        pairs = ended.view(-1, 2).any(dim=1).tolist()
        self.open = [was and not now for was, now in zip(self.open, pairs, strict=True)]
        still = torch.tensor(self.open, device=input_ids.device)
        return ~still.repeat_interleave(2)


@dataclass(frozen=True)
class RefinedPicture:
    """A preparation: the picture once more, cut down to what the question looks at.

    Settings are those of `CARVE`. One picture in each row.
    """

    processor: Any = field(repr=False)
    layers: Layers | None = None
    steps: str = "full"
    share: float = 0.2
    regions: int = 3
    smoothing: float = 1e-8
    final: str = "both"
    fill: str = "black"
    tokens: int = 32
    general: str = GENERAL
    suffix: str = SUFFIX

    needs_images = True

    def __post_init__(self):
        if self.processor is None:
            raise ValueError(
                "a refined picture needs processor=, the model's own, to ask about the picture and "
                "to prepare it again"
            )
        if self.layers is not None:
            check_layers(self.layers)
        for name, known in (("steps", STEPS), ("final", FINAL), ("fill", FILLS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        in_unit_interval("share", self.share)
        if self.share == 0:
            raise ValueError("share must be above 0: something of the picture must stay")
        if self.regions < 1 or self.tokens < 1:
            raise ValueError(
                f"regions and tokens must be 1 or more, got {self.regions} and {self.tokens}"
            )
        if not (math.isfinite(self.smoothing) and self.smoothing > 0):
            raise ValueError(f"smoothing must be a finite number > 0, got {self.smoothing}")

    def __call__(self, expert: Branch, model: Any) -> Branch:
        check_one_picture(expert)
        chat = Chat(self.processor, model)
        expert = read_pictures(expert, model)
        layouts = [layout for (layout,) in layouts_by_row(expert, model, self.processor)]
        pictures = [picture for (picture,) in expert.call.pictures]
        smaller = []
        for picture, layout, values in zip(
            pictures, layouts, self._contrast(chat, expert, model), strict=True
        ):
            relevance = layout.to_pixels(values.cpu())
            kept = kept_regions(relevance, self.share, self.regions, layout.covered())
            smaller.append(refined(picture, kept, self.fill))
        if self.final == "refined":
            return instead(expert, smaller, chat)
        return beside(expert, smaller, chat)

    def _compared(self, config: Any) -> tuple[int, ...]:
        """Those of the asked layers that see the whole picture."""
        depth = config.num_hidden_layers
        asked = range(*(self.layers or middle(depth)))
        if asked.stop > depth:
            raise ValueError(
                f"layers {self.layers} end outside the model, which has {depth} decoder layers"
            )
        whole = layers_with_every_key(config)
        compared = tuple(layer for layer in whole if layer in asked)
        if not compared:
            raise ValueError(
                f"none of the layers {asked.start} to {asked.stop - 1}, whose attention CARVE "
                f"compares, sees the whole picture: choose layers= among {whole}"
                if whole
                else "CARVE compares attention to the whole picture, and no layer of this model "
                "sees it: use a method without attention (VCD, VDD)"
            )
        return compared

    def _contrast(self, chat: Chat, expert: Branch, model: Any) -> list[Tensor]:
        """For each row, the contrast of each token of its picture, `[N]`."""
        layers = self._compared(model.config.get_text_config(decoder=True))
        texts, rows = [], []
        for row, asked in enumerate(chat.asked(expert)):
            texts += [f"{asked.question} {self.suffix}", f"{self.general} {self.suffix}"]
            rows += [row, row]
        eos = ends(expert.call.generation_config)
        contrast = Contrasted(layers, self.steps, self.smoothing, eos)
        say(
            model,
            chat.ask(expert, rows, texts),
            1 if self.steps == "start" else self.tokens,
            records=dict.fromkeys(layers, frozenset({"row"})),
            listen=contrast.listen,
            criteria=[contrast],
        )
        return contrast.maps


def check_one_picture(expert: Branch) -> None:
    counts = [len(row) for row in expert.call.pictures]
    if set(counts) != {1}:
        raise ValueError(
            f"one picture is refined at a time, and the rows of this prompt have {counts}: ask "
            "about each picture by itself"
        )


def middle(depth: int) -> Layers:
    """Layers 20 to 25 of 32, scaled to the model, four at least where there are as many."""
    first, after = int(DEPTH[0] * depth), math.ceil(DEPTH[1] * depth)
    return max(0, min(first, after - FEWEST)), after


def beside(expert: Branch, pictures: list[Image.Image], chat: Chat) -> Branch:
    """Each row with one more picture after its own; what was read of the first is kept.

    Where the processor cuts a picture otherwise beside another, both are read again.
    """
    both = [[own, more] for (own,), more in zip(expert.call.pictures, pictures, strict=True)]
    made = repainted(expert, both, chat)
    model, own = chat.model, (expert.features or {})["image"]
    first = expert.image_mask.sum(dim=1).tolist()
    second = (made.image_mask.sum(dim=1) - expert.image_mask.sum(dim=1)).tolist()
    pixels = picture_inputs([[picture] for picture in pictures], chat)
    more = encode(expert, pixels, model)["image"]
    counted = [picture_lengths({"image": entries}, "image") for entries in (own, more)]
    if counted == [first, second]:
        return replace(made, features={"image": alternating(own, more)})
    check_reproduced(expert, chat)
    return replace(made, prefix=None)


def instead(expert: Branch, pictures: list[Image.Image], chat: Chat) -> Branch:
    """Each row with another picture in the place of its own."""
    made = repainted(expert, [[picture] for picture in pictures], chat)
    return replace(made, features=encode(made, made.pixels, chat.model), prefix=None)


@dataclass
class CARVE(Decoder):
    """Look where the question looks and a description does not, then answer.

    Attention to the picture mixes what is striking in it with what the question needs. Divided by
    the attention under a plain description, the second is left; its strongest regions are cut out
    of the picture, the rest is black, and the model answers with the picture and the enlarged cut.

    Args:
        processor: The model's own.
        layers: (first, first after) whose attention is taken; None: 20 to 25 of 32, scaled.
        steps: Of the two short answers whose attention is taken: "full" weighs step t by t,
            "start" takes the first alone, "end" the last (the paper's best, and not in its code).
        share: p, pixels kept before regions are chosen, in (0, 1]. At 1 the cut is the picture:
            the control that shows what a second copy does.
        regions: K, the most regions kept.
        smoothing: lambda, added to the description's attention.
        final: "both" pictures, as the authors' code asks, or the "refined" one alone, as their
            text says; models that take one picture need the latter.
        fill: Of what is masked: "black", "mean" or "blur".
        tokens: Longest of the two short answers.
        general: The plain description's request.
        suffix: Put after the question and the request while attention is taken.

    Differs from the authors' code: K is the most and not the least; cells are mapped to the pixels
    that the tower saw; the enlarged cut has no more pixels than the picture; keys of the picture
    are read once; two answers end with the shorter.
    """

    processor: Any = field(default=None, repr=False)
    layers: Layers | None = None
    steps: Literal["full", "start", "end"] = "full"
    share: Annotated[float, Usual(0.05, 1)] = 0.2
    regions: Annotated[int, Usual(1, 5)] = 3
    smoothing: Annotated[float, Usual(1e-8, 1e-3)] = 1e-8
    final: Literal["both", "refined"] = "both"
    fill: Literal["black", "mean", "blur"] = "black"
    tokens: Annotated[int, Usual(1, 64)] = 32
    general: str = GENERAL
    suffix: str = SUFFIX

    @classmethod
    def paper_best(cls, processor: Any = None) -> "CARVE":
        """The best cell of the paper's grid: share 0.4, two regions, the last step."""
        return cls(processor, share=0.4, regions=2, steps="end")

    def recipe(self) -> Recipe:
        return Recipe(
            preparations=(
                RefinedPicture(
                    self.processor,
                    None if self.layers is None else (self.layers[0], self.layers[1]),
                    self.steps,
                    self.share,
                    self.regions,
                    self.smoothing,
                    self.final,
                    self.fill,
                    self.tokens,
                    self.general,
                    self.suffix,
                ),
            )
        )
