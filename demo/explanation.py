"""Why an answer's tokens came: it is given once more, token by token, and watched."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch
from PIL import Image
from torch import Tensor

from sightline.chat import processor_for, prompt_inputs
from sightline.demo.comparison import Explained, Row
from sightline.engine.processor_order import AfterCut
from sightline.engine.strategy import Recipe, RecipeStrategy
from sightline.logits.rules import Rule
from sightline.model_protocol import Model
from sightline.vision.token_layout import Layout, locate

BEST = 10
SIDE = 448  # longest side of an image of attention, in pixels
EXPERT = "as asked"


def explain(
    model: Model,
    processor: Any,
    image: Image.Image,
    question: str,
    decoder: Any,
    ids: Sequence[int],
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Explained:
    """The ten best tokens at each step of an answer, and where the model looked.

    Args:
        decoder: What gave the answer; None: the model's own decoding.
        ids: The answer's tokens, which are forced.
        chat_template_kwargs: Arguments of the chat template, as the answer's prompt had them.

    Raises:
        ValueError: For a decoder that does not choose token by token.
    """
    strategy = Recipe() if decoder is None else decoder
    if not isinstance(strategy, RecipeStrategy):
        raise ValueError(
            f"{type(decoder).__name__} lets whole answers vote, so no single token was chosen"
        )
    recipe = strategy.recipe().simplified()
    forced = Forced(ids)
    images = {"images": image} if strategy.needs_images else {}
    inputs = prompt_inputs(
        model, processor, image, question, chat_template_kwargs=chat_template_kwargs
    )
    output = model.generate(
        **inputs,
        custom_generate=strategy,
        max_new_tokens=len(ids),
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        logits_processor=[forced],
        return_dict_in_generate=True,
        output_logits=True,
        output_image_attention=True,
        **images,
        **processor_for(strategy, processor, chat_template_kwargs),
    )
    steps = [logits[:, 0].float() for logits in output.branch_logits]
    tables, cuts = [], []
    for chosen, branches, scores in zip(ids, steps, forced.scores, strict=False):
        tables.append(table(processor.tokenizer, branches.softmax(dim=-1), scores, chosen))
        cuts.append(cut(recipe.rule, branches[0]))
    values = torch.stack([seen[0][output.image_mask[0]] for seen in output.image_attention])
    attention, note = None, ""
    try:
        # Of the prompt as asked: a preparation may have added images.
        count = int((inputs["input_ids"] == model.config.image_token_id).sum())
        attention = AttentionImages(values, locate(processor, model.config, image, count))
    except ValueError as error:
        note = str(error)
    return Explained(
        names=(EXPERT, *map(words, recipe.contrasts)),
        tables=tuple(tables),
        cuts=tuple(cuts),
        attention=attention,
        shares=tuple(values.sum(dim=1).tolist()),
        note=note,
    )


class Forced(AfterCut):
    """Lets nothing be said but one answer, and keeps what would have been chosen from.

    Args:
        ids: The answer's tokens.
    """

    def __init__(self, ids: Sequence[int]):
        self.ids = ids
        self.scores: list[Tensor] = []  # of each token, `[V]`, after the rule

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        token = self.ids[len(self.scores)]
        self.scores.append(scores[0].float())
        return torch.full_like(scores, -torch.inf).index_fill(
            1, torch.tensor([token], device=scores.device), 0.0
        )


def table(tokenizer: Any, branches: Tensor, scores: Tensor, chosen: int) -> tuple[Row, ...]:
    """The rows of the best tokens, and of the one that came if it is not among them.

    Best is what the expert or the rule finds most probable.

    Args:
        branches: Probabilities `[N, V]`.
        scores: After the rule, `[V]`, -inf where left out.
    """
    after = scores.softmax(dim=-1)
    best = torch.maximum(branches[0], after).topk(min(BEST, len(after))).indices.tolist()
    shown = [*best, *({chosen} - set(best))]
    return tuple(
        Row(
            token=visible(tokenizer, token),
            branches=tuple(branches[:, token].tolist()),
            score=None if scores[token] == -torch.inf else float(after[token]),
            is_chosen=token == chosen,
        )
        for token in shown
    )


def cut(rule: Rule | None, expert: Tensor) -> float | None:
    """The expert's probability below which the rule leaves tokens out; None if it has none."""
    if rule is None or not rule.needs.cut:
        return None
    return float(expert.softmax(dim=-1)[rule.keep(expert[None])[0]].min())


def visible(tokenizer: Any, token: int) -> str:
    """A token as text that can be seen, blanks included."""
    text = tokenizer.decode([token])
    return text.replace(" ", "\N{OPEN BOX}").replace(
        "\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"
    )


def words(part: Any) -> str:
    """The words of a part's class: "no image"."""
    return re.sub(r"(?<!^)(?=[A-Z])", " ", type(part).__name__).lower()


class AttentionImages(Sequence[Image.Image]):
    """Images of attention, painted when they are looked at.

    Args:
        values: `[T, I]`, of each token to each image token of its prompt; those of the image
            as it was given come first.
        layout: Where the image's tokens lie in it.
    """

    def __init__(self, values: Tensor, layout: Layout):
        self.values = values[:, : layout.count].float().cpu()
        self.layout = layout.within(SIDE)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def nbytes(self) -> int:
        return self.values.nbytes

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Image.Image]: ...
    def __getitem__(self, index: int | slice) -> Image.Image | Sequence[Image.Image]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        pixels = self.layout.to_pixels(self.values[index])
        strongest = pixels.max().clamp_min(torch.finfo(pixels.dtype).tiny)
        return Image.fromarray((pixels / strongest * 255).round().byte().numpy())
