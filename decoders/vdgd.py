"""Visual Description Grounded Decoding, Ghosh et al., ICLR 2025 (arXiv:2405.15683)."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch

from sightline.engine.branch import Branch
from sightline.engine.chat_prompts import PromptEditor
from sightline.engine.prefill import read_images
from sightline.engine.search_range import SearchRange
from sightline.engine.strategy import Decoder, Recipe
from sightline.engine.subgeneration import eos_token_ids, generate_text
from sightline.logits.grounding import SUPPORT, Grounded, Reduction, Support, Truncation
from sightline.logits.rules import Rule
from sightline.model_protocol import Model
from sightline.settings import Checked, Count, Processor, Share, UnitInterval, Words, holding

REQUEST = (
    "The task is: {question}. Before answering it, describe the image thoroughly. For a natural "
    "scene, cover every foreground and background object, its attributes, how many there are and "
    "how they relate. For a chart, table, diagram or document, give all text, every number and the "
    "layout."
)
STATEMENT = "The image can be summarised as: {description}"
Layout = Literal["image_first", "official", "continue"]
Statement = Annotated[str, holding("{description}")]


@dataclass(frozen=True)
class Described(Checked):
    """A preparation: the model describes the image, and the description joins the prompt.

    Leaves the note "support" `[B, V]`: for each token the log-probability that the description's
    distributions gave it, reduced over the description. The image is read once for both
    prompts where it stands first in both.

    Args:
        processor: The model's own.
        tokens: Longest description.
        layout: "image_first" is image, description, question; "official" is description, image,
            question, as published, which reads the image again; "continue" keeps request and
            description as a turn of their own and asks the question after it.
        reduction: "min" of the divergence, a token's best position; "avg" or "sum".
        request: What is asked first; may hold {question}.
        statement: What the description is put into; holds {description}.
    """

    processor: Processor = field(repr=False)
    tokens: Count = 256
    layout: Layout = "image_first"
    reduction: Reduction = "min"
    request: Words = REQUEST
    statement: Statement = STATEMENT

    about_images = True

    def __call__(self, expert: Branch, model: Model) -> Branch:
        editor = PromptEditor(self.processor, model, expert.call.chat_template_kwargs)
        expert = read_images(expert, model)
        asked = editor.asked(expert)
        editor.check_answered_next(asked)
        questions = [row.question for row in asked]
        rows = range(len(questions))
        requests = [self.request.replace("{question}", question) for question in questions]
        asking = editor.ask(expert, rows, requests)
        support = Support(self.reduction, eos_token_ids(expert.call.generation_config))
        said = generate_text(model, asking, self.tokens, processors=[support])
        notes = {SUPPORT: support.finish(torch.cat([asking.input_ids, said], dim=1))}
        descriptions = editor.replies(said)
        if self.layout == "continue":
            return replace(editor.go_on(asking, descriptions, questions), notes=notes)
        statements = [self.statement.replace("{description}", text) for text in descriptions]
        if self.layout == "official":
            return replace(editor.put_before(expert, statements), notes=notes)
        texts = [f"{s} {question}" for s, question in zip(statements, questions, strict=True)]
        return replace(editor.ask(expert, rows, texts), notes=notes)


@dataclass(frozen=True)
class VDGD(Decoder):
    """Describe the image first, then say what that description supports.

    Of the tokens that are plausible next, the one is taken to which the model gave most
    probability at some point of its description: what never came to mind while it looked is not
    said now. As this support is the same at every step it is one vector per row, and an answer
    costs one forward per token. Function words have the highest support and win wherever they are
    plausible; what must be worked out rather than seen is not favoured.

    Args:
        processor: The model's own.
        alpha: Plausibility threshold in (0, 1]; at 1 each step takes the best token, so that only
            the longer prompt is left (see `PrefixOnly`).
        truncation: What is plausible: "plausibility", "nucleus" (T 0.5, p 0.5, the release's) or
            "knee" (before the largest drop in probability).
        reduction: Over the description: "min", "avg" or "sum".
        mix: Weight in [0, 1] of the support against the model's own log-probability; 1 is the
            paper's, below is ours.
        tokens: Longest description; the authors' is 1024.
        layout: "image_first", "official" or "continue": see `Described`.
        request: What is asked first; may hold {question}.
        statement: What the description is put into.

    Differs from the authors' code: the divergence is not divided by the vocabulary's size (which
    makes grounding inert), the distribution that ends the description does not count, and the
    answer keeps its cache. `layout="official"` has their order of prompt.
    """

    processor: Processor = field(repr=False, kw_only=True)
    alpha: Annotated[Share, SearchRange(0.01, 1)] = 0.1
    truncation: Truncation = "plausibility"
    reduction: Reduction = "min"
    mix: Annotated[UnitInterval, SearchRange(0, 1)] = 1.0
    tokens: Annotated[Count, SearchRange(1, 1024)] = 256
    layout: Layout = "image_first"
    request: Words = REQUEST
    statement: Statement = STATEMENT

    def described(self) -> Described:
        return Described(
            self.processor, self.tokens, self.layout, self.reduction, self.request, self.statement
        )

    def rule(self) -> Rule | None:
        return Grounded(self.alpha, self.truncation, mix=self.mix)

    def recipe(self) -> Recipe:
        return Recipe(preparations=(self.described(),), rule=self.rule())


@dataclass(frozen=True)
class PrefixOnly(VDGD):
    """VDGD's control: the description joins the prompt, and nothing is ranked by it.

    Without this row a table cannot tell what grounding does from what a longer prompt does.
    """

    def rule(self) -> Rule | None:
        return None
