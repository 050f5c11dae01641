"""Instruction Contrastive Decoding, Wang et al., Findings of ACL 2024 (arXiv:2403.18715)."""

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Annotated

from sightline.engine.branch import Branch
from sightline.engine.chat_prompts import PromptEditor
from sightline.engine.search_range import SearchRange
from sightline.engine.strategy import Decoder, Recipe
from sightline.logits.rules import Contrastive
from sightline.messages import short
from sightline.model_protocol import Model
from sightline.settings import Checked, Processor, Strength, UnitInterval

INSTRUCTIONS = {
    "careless": "You are a careless observer who mixes up objects.",
    "detector": "Act as a detector that tells all the different objects apart.",
    "details": "Act as a detector that tells objects apart by shape, by colour and by how they "
    "stand to each other.",
    "vague": "Do not name any object in particular, nor the kind it belongs to.",
    "confused": "You confuse objects when you detect them: give a blurred idea of the image.",
    "overview": "Act as a detector that sums up the image as a whole.",
}
"""What disturbs, by name, all in our words: one of ours, then the five that the authors try."""


@dataclass(frozen=True)
class OtherInstruction(Checked):
    """The same images and question after an instruction that disturbs.

    Args:
        processor: The model's own.
        instruction: A name of `INSTRUCTIONS`, or words of one's own; put before the question, in
            the user's turn.
    """

    processor: Processor = field(repr=False)
    instruction: str = "careless"

    about_images = True
    shares_image = True

    def __post_init__(self):
        super().__post_init__()
        words = self.instruction.split()
        is_mistyped = len(words) == 1 and get_close_matches(words[0], INSTRUCTIONS)
        if not words or (is_mistyped and self.instruction not in INSTRUCTIONS):
            raise ValueError(
                f"instruction must be words that disturb, or one of {', '.join(INSTRUCTIONS)}, got "
                f"{short(self.instruction)}"
            )

    def __call__(self, expert: Branch, model: Model) -> Branch:
        editor = PromptEditor(self.processor, model, expert.call.chat_template_kwargs)
        words = INSTRUCTIONS.get(self.instruction, self.instruction)
        texts = [f"{words} {asked.question}" for asked in editor.asked(expert)]
        return editor.ask(expert, range(len(texts)), texts)


@dataclass(frozen=True)
class ICD(Decoder):
    """Take off what the model would say if it were told to be careless.

    An instruction that disturbs makes a model lean on what it expects, image and all; what is
    said under it is contrasted away, among the tokens that are plausible under the prompt as
    asked. Both branches begin with the same image, which is read once. The instruction is about how
    the image is seen: a row without one is not given it.

    Args:
        processor: The model's own.
        alpha: Contrast strength, 0 or more; neutral: 0, with beta=0.
        beta: Plausibility threshold in [0, 1].
        instruction: What disturbs: "careless" (ours), one of the authors' five by what it asks for,
            "detector", "details", "vague", "confused" or "overview", all in our words, or words of
            your own. The authors report each of theirs and choose none.

    The rule, (1 + alpha) * expert - alpha * amateur over the plausible tokens, and alpha 1 and beta
    0.1 are those of the authors' code and its scripts.

    Differs from the authors' code: the instruction stands before the question, in the user's turn,
    so that the image is read once; theirs is LLaVA's system prompt, and goes to the Q-Former alone
    for InstructBLIP and MiniGPT-4. Logits are combined in float32, and greedy and beam search are
    contrasted too. Where their sampler is called without alpha it takes 0.5.
    """

    processor: Processor = field(repr=False, kw_only=True)
    alpha: Annotated[Strength, SearchRange(0, 3)] = 1.0
    beta: Annotated[UnitInterval, SearchRange(0, 1)] = 0.1
    instruction: str = "careless"

    def recipe(self) -> Recipe:
        return Recipe(
            contrasts=(OtherInstruction(self.processor, self.instruction),),
            rule=Contrastive(self.alpha, self.beta),
        )
