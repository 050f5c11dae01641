"""Training rows: several conversations about one image behind one copy of its image tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sightline.lab.dialogue import Turn
from sightline.lab.model import ASSISTANT, BOS, EOS, IMAGE, IMAGE_TOKENS, PAD, USER

SHARED, PADDING = 0, -1  # segment numbers of the prefix and of what fills a row up
IGNORED = -100


@dataclass(frozen=True)
class TrainingBatch:
    """Rows padded on the right to one length T.

    Args:
        ids: Tokens, [B, T].
        targets: The next token where it is to be learned, else `IGNORED`, [B, T].
        positions: Of each token as if its conversation were alone behind the prefix, [B, T].
        segments: 0 for the prefix, then the number of the conversation, -1 for padding, [B, T].
    """

    ids: Tensor
    targets: Tensor
    positions: Tensor
    segments: Tensor

    def mask(self) -> Tensor:
        """Where a query (rows) may see a key (columns): back to its own conversation and the
        prefix, never to another conversation; bool, [B, 1, T, T]."""
        query, key = self.segments[:, :, None], self.segments[:, None, :]
        length = self.ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        return (((query == key) | (key == SHARED)) & causal)[:, None]


class Packer:
    """Turns conversations into the very tokens that the chat template makes of them.

    Args:
        tokenizer: Of the lab's processor.
        questions: Learn the users' words too, not only the answers.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, questions: bool = False):
        self.encode = lru_cache(maxsize=4096)(lambda text: tuple(tokenizer(text).input_ids))
        self.questions = questions

    def conversation(self, turns: Sequence[Turn]) -> tuple[list[int], list[bool]]:
        """The tokens after the first `<user>` and the image, and which of them to learn."""
        ids: list[int] = []
        learned: list[bool] = []
        for index, (question, answer) in enumerate(turns):
            asked = [*([USER] if index else []), *self.encode(question), ASSISTANT]
            said = [*self.encode(answer), EOS]
            ids += asked + said
            learned += [self.questions] * len(asked) + [True] * len(said)
        return ids, learned

    def row(self, conversations: Sequence[Sequence[Turn]], image: bool) -> list[list[int]]:
        """One row: its ids, targets, positions and segments, each [T]."""
        ids = [BOS, USER] + [IMAGE] * (IMAGE_TOKENS if image else 0)
        shared = len(ids)
        targets, segments = [IGNORED] * shared, [SHARED] * shared
        positions = list(range(shared))
        for number, turns in enumerate(conversations, start=1):
            tokens, learned = self.conversation(turns)
            ids += tokens
            following = zip(tokens[1:], learned[1:], strict=True)
            targets += [token if learn else IGNORED for token, learn in following] + [IGNORED]
            positions += range(shared, shared + len(tokens))
            segments += [number] * len(tokens)
        return [ids, targets, positions, segments]

    def batch(self, rows: Sequence[list[list[int]]]) -> TrainingBatch:
        length = max(len(row[0]) for row in rows)
        fills = (PAD, IGNORED, 0, PADDING)
        columns = [
            torch.tensor([row[i] + [fill] * (length - len(row[i])) for row in rows])
            for i, fill in enumerate(fills)
        ]
        return TrainingBatch(*columns)
