"""Asks the model something else about the same picture, in its own chat template."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from sightline.chat import check_processor
from sightline.decoders.branch import Branch
from sightline.decoders.image_spans import Writing, WrittenRow, rows_of, writing_of

WORDS, REPLY, MORE = "SIGHTLINE0WORDS", "SIGHTLINE1REPLY", "SIGHTLINE2MORE"


@dataclass(frozen=True)
class Asked:
    """What a row's prompt says after its last picture, as text.

    Args:
        start: Column of the first token of it.
        lead: What stands before the question: the template's own, and earlier turns.
        question: The last user's words.
        closing: What the template puts after them, up to where the answer begins.
    """

    start: int
    lead: str
    question: str
    closing: str


@dataclass(frozen=True)
class Chat:
    """Reads and writes prompts with a processor's chat template.

    Prompts are cut and continued behind their last picture, token by token: what stands before,
    pictures included, stays as the caller built it, so its keys can be shared.

    Args:
        processor: The model's own.
        model: Names the tokens of pictures.

    Raises:
        ValueError: The processor has no chat template, or belongs to another model.
    """

    processor: Any
    model: Any

    def __post_init__(self):
        check_processor(self.processor)
        _ = self._writing  # of this model's images

    @property
    def _writing(self) -> Writing:
        return writing_of(self.processor, self.model.config)

    def asked(self, branch: Branch) -> list[Asked]:
        """What each row asks; `ValueError` for a row that asks nothing about a picture in words."""
        openings, closing = self._around_words()
        found = []
        for row, mask in enumerate(branch.image_mask):
            places = torch.nonzero(mask, as_tuple=True)[0]
            if not len(places):
                raise ValueError(
                    f"row {row} of the prompt holds no picture, and this decoder asks about one in "
                    "every row: answer rows without pictures by themselves"
                )
            start = int(places[-1]) + 1
            text = self._text(
                branch.input_ids[row, start:][branch.attention_mask[row, start:] != 0]
            )
            found.append(self._parsed(start, text, openings, closing))
        return found

    def ask(self, branch: Branch, index: Sequence[int], texts: Sequence[str]) -> Branch:
        """Rows `index` of a branch, each with another text in the place of its last question."""
        asked = self.asked(branch)
        tails = [
            asked[row].lead + self._plain(text) + asked[row].closing
            for row, text in zip(index, texts, strict=True)
        ]
        return self._continued(branch, index, asked, tails)

    def go_on(self, branch: Branch, replies: Sequence[str], texts: Sequence[str]) -> Branch:
        """Each row's prompt, a reply to it, and the user's next words."""
        following = self._between_turns()
        asked = self.asked(branch)
        tails = [
            f"{a.lead}{a.question}{a.closing}{self._plain(reply)}{following}{self._plain(text)}{a.closing}"
            for a, reply, text in zip(asked, replies, texts, strict=True)
        ]
        return self._continued(branch, range(len(tails)), asked, tails)

    def put_before(self, branch: Branch, texts: Sequence[str]) -> Branch:
        """Each row with a text before its first picture, in the turn that the picture is in."""
        turn = {"role": "user", "content": [_words(f"{WORDS}\n"), {"type": "image"}, _words(MORE)]}
        after, unit, _ = self._rendered([turn]).partition(WORDS)[2].partition(self.shown(1))
        space = after if unit and not after.strip() else "\n"  # a template may put images first
        rows = zip(self.rows(branch), branch.columns(), texts, strict=True)
        return branch.inserted(
            [
                [
                    (columns[number], token)
                    for number, token in row.with_text_before(self._plain(text), space)
                ]
                for row, columns, text in rows
            ]
        )

    def rows(self, branch: Branch) -> list[WrittenRow]:
        """The prompts as the processor wrote them."""
        return rows_of(
            branch.input_ids, branch.attention_mask, branch.features, self.model, self.processor
        )

    def question_tokens(self, branch: Branch) -> torch.Tensor:
        """`[B, T]` bool, true on the tokens of each row's question, the template's left out."""
        chosen = torch.zeros_like(branch.image_mask)
        for row, asked in enumerate(self.asked(branch)):
            after = int(branch.input_ids[row, asked.start - 1])
            first = len(self._tokens(asked.lead, after))
            last = len(self._tokens(asked.lead + asked.question, after))
            tail = torch.nonzero(branch.attention_mask[row, asked.start :])[:, 0] + asked.start
            chosen[row, tail[first:last]] = True
        return chosen

    def shown(self, count: int) -> str:
        """What the template writes for so many pictures of one turn, side by side."""
        unit = self._writing.unit.strip()
        if count == 1:
            return unit
        rendered = self._rendered([_turn("user", WORDS, pictures=count)])
        found = re.search(rf"{re.escape(unit)}(.*{re.escape(unit)})?", rendered, re.DOTALL)
        if rendered.count(unit) != count or found is None:
            raise ValueError(
                f"{count} pictures are shown together, and the chat template of "
                f"{type(self.processor).__name__} does not write so many in one turn: use a model "
                "that takes several"
            )
        return found.group()

    def replies(self, tokens: torch.Tensor) -> list[str]:
        """Answers `[R, L]` as text, without special tokens."""
        texts = self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _continued(
        self, branch: Branch, index: Sequence[int], asked: Sequence[Asked], tails: Sequence[str]
    ) -> Branch:
        starts = [asked[row].start for row in index]
        last = [int(branch.input_ids[row, asked[row].start - 1]) for row in index]
        ids = [self._tokens(text, after) for text, after in zip(tails, last, strict=True)]
        rows = torch.tensor(list(index), device=branch.input_ids.device)
        return branch.continued(rows, starts, ids, self.model.config)

    def _parsed(self, start: int, text: str, openings: Sequence[str], closing: str) -> Asked:
        stripped = text.rstrip()
        if not stripped.endswith(closing.strip()):
            raise ValueError(
                f"the prompt ends in {text[-40:]!r} and the processor's chat template ends a "
                f"question in {closing!r}: build it with apply_chat_template(..., "
                "add_generation_prompt=True), or sightline.chat.prompt_inputs"
            )
        body = stripped.removesuffix(closing.strip())
        following = self._between_turns()
        lead = next((len(opening) for opening in openings if body.startswith(opening)), 0)
        if following.strip() and following in body:
            lead = body.rindex(following) + len(following)
        words = body[lead:].strip()
        if not words:
            raise ValueError(
                "found no question after the picture: this decoder asks it again, so put words "
                "behind the last picture of each prompt"
            )
        cut = body.index(words, lead)
        return Asked(start, body[:cut], words, text[cut + len(words) :])

    def _around_words(self) -> tuple[list[str], str]:
        """What may stand between image tokens and the user's words, the longest first, and what
        the template puts after the words.
        """
        writing = self._writing
        openings = {
            closing + after for closing in writing.closings for after in (writing.words, "")
        }
        rendered = self._rendered([_turn("user", WORDS, pictures=1)])
        return sorted(openings, key=len, reverse=True), rendered.partition(WORDS)[2]

    def _between_turns(self) -> str:
        """What the template puts between a reply and the user's next words."""
        asked, more = _turn("user", WORDS, pictures=1), _turn("user", MORE)
        # A template may take a reply as parts or as text alone: it fails, prints the parts as they
        # are, or leaves the text out.
        rendered = []
        for reply in (_turn("assistant", REPLY), {"role": "assistant", "content": REPLY}):
            with suppress(Exception):
                rendered.append(self._rendered([asked, reply, more]))
        shown = min((text for text in rendered if REPLY in text), key=len, default="")
        return shown.partition(REPLY)[2].partition(MORE)[0]

    def _rendered(self, turns: list[dict[str, Any]]) -> str:
        return self.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)

    def _text(self, ids: torch.Tensor) -> str:
        return self.processor.tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def _tokens(self, text: str, after: int) -> list[int]:
        """Token ids of a text that follows the special token `after`."""
        tokenizer = self.processor.tokenizer
        first = tokenizer.convert_ids_to_tokens(after)
        ids = tokenizer(first + text, add_special_tokens=False)["input_ids"]
        assert ids[0] == after, "a picture's token is a token of its own"
        return ids[1:]

    def _plain(self, text: str) -> str:
        """Without anything that the tokenizer would read as a special token."""
        for token in self.processor.tokenizer.all_special_tokens:
            text = text.replace(token, " ")
        return text.strip()


def _turn(role: str, words: str, pictures: int = 0) -> dict[str, Any]:
    content: list[dict[str, str]] = [{"type": "image"}] * pictures
    return {"role": role, "content": [*content, _words(words)]}


def _words(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
