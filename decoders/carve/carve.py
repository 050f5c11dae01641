"""Contrastive Attention Refinement for Visual Enhancement, Ge et al. (arXiv:2509.06461)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import torch
from PIL import Image
from torch import Tensor
from transformers import StoppingCriteria

from sightline.decoders.carve.regions import Fill, contrasted, kept_regions, refined
from sightline.engine.attention_maps import layouts_by_row
from sightline.engine.branch import Branch
from sightline.engine.chat_prompts import PromptEditor
from sightline.engine.ensemble import Ensemble
from sightline.engine.inputs import encode
from sightline.engine.kv_cache import layers_with_every_key
from sightline.engine.prefill import read_images
from sightline.engine.reprocessing import check_reproduced, image_inputs, repainted, settings_of
from sightline.engine.search_range import SearchRange
from sightline.engine.strategy import Decoder, Recipe
from sightline.engine.subgeneration import eos_token_ids, generate_text
from sightline.model_protocol import Model, UnsupportedModelError
from sightline.settings import Checked, Count, Layers, Positive, Processor, Share, Words
from sightline.vision.features import alternating, image_lengths

GENERAL = "Write a general description of the image."
SUFFIX = "Answer with a single word or phrase."
DEPTH = (0.65, 0.8)  # the authors' layers 20 to 25 of 32
FEWEST = 4
Steps = Literal["full", "start", "end"]
Final = Literal["both", "refined"]


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
        self.eos = torch.tensor(eos, dtype=torch.long, device="cpu")
        self.maps: list[Tensor] = []  # one [N] for each pair
        self.open: list[bool] = []

    def on_step(self, ensemble: Ensemble, answer: Tensor) -> None:
        recorder = ensemble.blocks[0].recorder
        pairs = len(answer) // 2
        if not self.maps:
            self.maps, self.open = [torch.zeros((), device="cpu")] * pairs, [True] * pairs
        elif self.steps == "start":
            return
        step = answer.shape[1] + 1
        for pair in (pair for pair in range(pairs) if self.open[pair]):
            asked, told = recorder.image_mask[2 * pair : 2 * pair + 2]
            contrast = sum(
                contrasted(
                    recorder.row[layer][2 * pair, : len(asked)][asked],
                    recorder.row[layer][2 * pair + 1, : len(told)][told],
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
class RefinedImage(Checked):
    """A preparation: the image once more, cut down to what the question looks at.

    Settings are those of `CARVE`. One image in each row.
    """

    processor: Processor = field(repr=False)
    layers: Layers | None = None
    steps: Steps = "full"
    share: Share = 0.2
    regions: Count = 3
    smoothing: Positive = 1e-8
    final: Final = "both"
    fill: Fill = "black"
    tokens: Count = 32
    general: Words = GENERAL
    suffix: str = SUFFIX
    answer_suffix: bool = False

    needs_images = True
    needs_pixels = True

    def check(self, expert: Branch, model: Model) -> None:
        check_one_image(expert)
        editor = PromptEditor(self.processor, model, expert.call.chat_template_kwargs)
        check_reproduced(self.processor, expert, model)
        self._asking(editor, expert)  # raises where no layer sees all that is asked

    def __call__(self, expert: Branch, model: Model) -> Branch:
        editor = PromptEditor(self.processor, model, expert.call.chat_template_kwargs)
        expert = read_images(expert, model)
        layouts = [layout for (layout,) in layouts_by_row(expert, model, self.processor)]
        images = [image for (image,) in expert.call.images]
        smaller = []
        for image, layout, values in zip(
            images, layouts, self._contrast(editor, expert), strict=True
        ):
            relevance = layout.to_pixels(values.cpu())
            kept = kept_regions(relevance, self.share, self.regions, layout.covered())
            smaller.append(refined(image, kept, self.fill))
        if self.answer_suffix:
            texts = [self._ended(asked.question) for asked in editor.asked(expert)]
            expert = editor.ask(expert, range(len(texts)), texts)
        if self.final == "refined":
            return instead(expert, smaller, editor)
        return beside(expert, smaller, editor)

    def _compared(self, config: Any, longest: int) -> tuple[int, ...]:
        """Those of the asked layers that see all of `longest` tokens, the image with them."""
        depth = config.num_hidden_layers
        asked = range(*(self.layers or middle(depth)))
        if asked.stop > depth:
            raise ValueError(
                f"layers {self.layers} end outside the model, which has {depth} decoder layers: "
                "name (first, first after) of those, or layers=None, which scales 20 to 25 of 32"
            )
        whole = layers_with_every_key(config, longest)
        compared = tuple(layer for layer in whole if layer in asked)
        if not compared:
            if not whole:
                raise UnsupportedModelError(
                    "CARVE compares attention to the whole image, and no layer of this model "
                    "sees it: use a method without attention (VCD, VDD)"
                )
            raise ValueError(
                f"none of the layers {asked.start} to {asked.stop - 1}, whose attention CARVE "
                f"compares, sees the whole image: choose layers= among {whole}"
            )
        return compared

    def _ended(self, text: str) -> str:
        """A text that ends in the suffix."""
        return text if text.endswith(self.suffix) else f"{text} {self.suffix}"

    @property
    def _longest(self) -> int:
        """The most tokens of a short answer."""
        return 1 if self.steps == "start" else self.tokens

    def _asking(self, editor: PromptEditor, expert: Branch) -> tuple[Branch, tuple[int, ...]]:
        """Each row twice, with its question and with the plain request, and the layers compared."""
        texts, rows = [], []
        for row, asked in enumerate(editor.asked(expert)):
            texts += [self._ended(asked.question), self._ended(self.general)]
            rows += [row, row]
        asking = editor.ask(expert, rows, texts)
        config = editor.model.config.get_text_config(decoder=True)
        return asking, self._compared(config, asking.length + self._longest - 1)

    def _contrast(self, editor: PromptEditor, expert: Branch) -> list[Tensor]:
        """For each row, the contrast of each token of its image, `[N]`."""
        asking, layers = self._asking(editor, expert)
        eos = eos_token_ids(expert.call.generation_config)
        contrast = Contrasted(layers, self.steps, self.smoothing, eos)
        generate_text(
            editor.model,
            asking,
            self._longest,
            records=dict.fromkeys(layers, frozenset({"row"})),
            on_step=contrast.on_step,
            criteria=[contrast],
        )
        return contrast.maps


def check_one_image(expert: Branch) -> None:
    counts = [len(row) for row in expert.call.images]
    if set(counts) != {1}:
        raise ValueError(
            f"one image is refined at a time, and the rows of this prompt have {counts}: ask "
            "about each image by itself"
        )


def middle(depth: int) -> Layers:
    """Layers 20 to 25 of 32, scaled to the model, four at least where there are as many."""
    first, after = int(DEPTH[0] * depth), math.ceil(DEPTH[1] * depth)
    return max(0, min(first, after - FEWEST)), after


def beside(expert: Branch, images: list[Image.Image], editor: PromptEditor) -> Branch:
    """Each row with one more image after its own; what was read of the first is kept.

    Where the processor cuts an image otherwise beside another, both are read again.
    """
    both = [[own, more] for (own,), more in zip(expert.call.images, images, strict=True)]
    made = repainted(expert, both, editor)
    model, own = editor.model, (expert.features or {})["image"]
    first = expert.image_mask.sum(dim=1).tolist()
    second = (made.image_mask.sum(dim=1) - expert.image_mask.sum(dim=1)).tolist()
    rows = [[image] for image in images]
    pixels = image_inputs(rows, editor, expert.call.processor_kwargs)
    more = encode(expert, settings_of(expert) | pixels, model)["image"]
    counted = [image_lengths({"image": entries}, "image") for entries in (own, more)]
    if counted == [first, second]:
        features = {**(expert.features or {}), "image": alternating(own, more)}
        return replace(made, features=features)
    return replace(made, prefix=None)


def instead(expert: Branch, images: list[Image.Image], editor: PromptEditor) -> Branch:
    """Each row with another image in the place of its own."""
    made = repainted(expert, [[image] for image in images], editor)
    return replace(made, features=encode(made, made.pixels, editor.model), prefix=None)


@dataclass(frozen=True)
class CARVE(Decoder):
    """Look where the question looks and a description does not, then answer.

    Attention to the image mixes what is striking in it with what the question needs. Divided by
    the attention under a plain description, the second is left; its strongest regions are cut out
    of the image, the rest is black, and the model answers with the image and the enlarged cut.

    Args:
        processor: The model's own.
        layers: (first, first after) whose attention is taken; None: 20 to 25 of 32, scaled.
        steps: Of the two short answers whose attention is taken: "full" weighs step t by t,
            "start" takes the first alone, "end" the last (the paper's best, and not in its code).
        share: p, pixels kept before regions are chosen, in (0, 1]. At 1 the cut is the image:
            the control that shows what a second copy does.
        regions: K, the most regions kept.
        smoothing: lambda, added to the description's attention.
        final: "both" images, as the authors' code asks, or the "refined" one alone, as their
            text says; models that take one image need the latter.
        fill: Of what is masked: "black", "mean" or "blur".
        tokens: Longest of the two short answers.
        general: The plain description's request.
        suffix: Put after the question and the request while attention is taken.
        answer_suffix: Put the suffix after the question that is answered, too, as the authors do.
            Off, because it asks for a word where the user may have asked for a description.

    Differs from the authors' code: the layers are scaled to the model's depth, where theirs are 20
    to 25 of every model (of 28 to 40 layers), and the suffix is left out of the last question,
    both unless asked for (`paper_best`); K is the most and not the least; cells are mapped to the
    pixels that the tower saw; the enlarged cut has no more pixels than the image; keys of the
    image are read once; two answers end with the shorter.
    """

    processor: Processor = field(repr=False, kw_only=True)
    layers: Layers | None = None
    steps: Steps = "full"
    share: Annotated[Share, SearchRange(0.05, 1)] = 0.2
    regions: Annotated[Count, SearchRange(1, 5)] = 3
    smoothing: Annotated[Positive, SearchRange(1e-8, 1e-3)] = 1e-8
    final: Final = "both"
    fill: Fill = "black"
    tokens: Annotated[Count, SearchRange(1, 64)] = 32
    general: Words = GENERAL
    suffix: str = SUFFIX
    answer_suffix: bool = False

    @classmethod
    def paper_best(cls, *, processor: Processor) -> "CARVE":
        """The paper's best: layers 20 to 25, its suffix throughout, 0.4, two regions, last step."""
        return cls(
            processor=processor,
            layers=(20, 26),
            share=0.4,
            regions=2,
            steps="end",
            answer_suffix=True,
        )

    def recipe(self) -> Recipe:
        return Recipe(
            preparations=(
                RefinedImage(
                    self.processor,
                    self.layers,
                    self.steps,
                    self.share,
                    self.regions,
                    self.smoothing,
                    self.final,
                    self.fill,
                    self.tokens,
                    self.general,
                    self.suffix,
                    self.answer_suffix,
                ),
            )
        )
