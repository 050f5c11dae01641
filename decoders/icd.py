"""Instruction Contrastive Decoding, Wang et al., Findings of ACL 2024 (arXiv:2403.18715)."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from sightline.decoders.asking import Chat
from sightline.decoders.branch import Branch
from sightline.decoders.decoder import Decoder, Recipe
from sightline.decoders.ranges import Usual
from sightline.logits.rules import Contrastive

INSTRUCTION = "You are a careless observer who mixes up objects."


@dataclass(frozen=True)
class OtherInstruction:
    """The same pictures and question after an instruction that disturbs.

    Args:
        processor: The model's own.
        instruction: Put before the question, in the user's turn.
    """

    processor: Any = field(repr=False)
    instruction: str = INSTRUCTION

    shares_picture = True

    def __post_init__(self):
        if self.processor is None:
            raise ValueError("another instruction needs processor= to be put into words of tokens")
        if not self.instruction.strip():
            raise ValueError("instruction must be words that disturb, got none")

    def __call__(self, expert: Branch, model: Any) -> Branch:
        chat = Chat(self.processor, model, expert.call.chat_template_kwargs)
        texts = [f"{self.instruction} {asked.question}" for asked in chat.asked(expert)]
        return chat.ask(expert, range(len(texts)), texts)


@dataclass
class ICD(Decoder):
    """Take off what the model would say if it were told to be careless.

    An instruction that disturbs makes a model lean on what it expects, image and all; what is
    said under it is contrasted away, among the tokens that are plausible under the prompt as
    asked. Both branches begin with the same image, which is read once.

    Args:
        processor: The model's own.
        alpha: Contrast strength, 0 or more; neutral: 0, with beta=0.
        beta: Plausibility threshold in [0, 1].
        instruction: What disturbs.

    The idea is the paper's; the rule is VCD's, and the wording of the instruction is ours: no
    specification of the authors' was at hand.
    """

    processor: Any = field(default=None, repr=False)
    alpha: Annotated[float, Usual(0, 3)] = 1.0
    beta: Annotated[float, Usual(0, 1)] = 0.1
    instruction: str = INSTRUCTION

    def recipe(self) -> Recipe:
        return Recipe(
            contrasts=(OtherInstruction(self.processor, self.instruction),),
            rule=Contrastive(self.alpha, self.beta),
        )
