"""Asks the model something else about the same image, in its own chat template."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jinja2 import TemplateError

from sightline.chat import check_template
from sightline.engine.branch import Branch
from sightline.engine.chat_template import MORE, WORDS, Template, tokenizer_of, turn, words_part
from sightline.engine.image_spans import rows_of
from sightline.engine.processor_probe import writing_of
from sightline.engine.prompt_edits import continued, inserted
from sightline.engine.prompt_text import Writing, WrittenRow
from sightline.messages import short
from sightline.model_protocol import Model, UnsupportedModelError

TAIL = 64  # last tokens of a prompt, among which its answer's header stands


@dataclass(frozen=True)
class ParsedPrompt:
    """What a row's prompt says after its last image, as text.

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
class PromptEditor:
    """Reads and writes prompts with a processor's chat template.

    Prompts are cut and continued behind their last image, token by token: what stands before,
    images included, stays as the caller built it, so its keys can be shared.

    Args:
        processor: The model's own.
        model: Names the tokens of images.
        arguments: Of the chat template, as `apply_chat_template` takes them. Needed only where
            they change what stands around the user's words; what they put before an answer is
            taken from the prompt.

    Raises:
        ValueError: The processor has no chat template, or belongs to another model.
    """

    processor: Any
    model: Model
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        check_template(self.processor)
        _ = self._writing  # of this model's images

    @property
    def _writing(self) -> Writing:
        return writing_of(self.processor, self.model.config, self.arguments)

    def asked(self, branch: Branch) -> list[ParsedPrompt]:
        """What each row asks; `ValueError` for a row that asks nothing about an image in words."""
        openings = self._before_words()
        found = []
        for row, mask in enumerate(branch.image_mask):
            places = torch.nonzero(mask, as_tuple=True)[0]
            if not len(places):
                raise ValueError(
                    f"row {row} of the prompt holds no image, and this decoder asks about one in "
                    "every row: answer rows without images by themselves"
                )
            start = int(places[-1]) + 1
            text = self._text(
                branch.input_ids[row, start:][branch.attention_mask[row, start:] != 0]
            )
            found.append(self._parsed(start, text, openings))
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
        before, between = self.template.before_reply, self.template.between_turns
        asked = self.asked(branch)
        tails = [
            f"{a.lead}{a.question}{before}{self._plain(reply)}{between}{self._plain(text)}{a.closing}"
            for a, reply, text in zip(asked, replies, texts, strict=True)
        ]
        return self._continued(branch, range(len(tails)), asked, tails)

    def put_before(self, branch: Branch, texts: Sequence[str]) -> Branch:
        """Each row with a text before its first image, in the turn that the image is in."""
        parts = [words_part(f"{WORDS}\n"), {"type": "image"}, words_part(MORE)]
        written = self.template.rendered([{"role": "user", "content": parts}])
        after, unit, _ = written.partition(WORDS)[2].partition(self.shown(1))
        space = after if unit and not after.strip() else "\n"  # a template may put images first
        rows = zip(self.rows(branch), branch.columns(), texts, strict=True)
        return inserted(
            branch,
            [
                [
                    (columns[number], token)
                    for number, token in row.with_text_before(self._plain(text), space)
                ]
                for row, columns, text in rows
            ],
        )

    def rows(self, branch: Branch) -> list[WrittenRow]:
        """The prompts as the processor wrote them."""
        return rows_of(
            branch.input_ids,
            branch.attention_mask,
            branch.features,
            self.model,
            self.processor,
            arguments=self.arguments,
        )

    def check_answered_next(self, asked: Sequence[ParsedPrompt]) -> None:
        """Raises `ValueError` for a prompt that opens a thought: a reply would be that thought."""
        for row in asked:
            check_no_open_thought(self.template, row.closing)

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
        """What the template writes for so many images of one turn, side by side.

        The first has no label where it has one alone: it is to stand behind that.
        """
        writing = self._writing
        unit = writing.unit.strip()
        if count == 1:
            return unit
        rendered = self.template.rendered([turn("user", WORDS, images=count)])
        found = re.search(rf"{re.escape(unit)}(.*{re.escape(unit)})?", rendered, re.DOTALL)
        if rendered.count(unit) != count or found is None:
            raise UnsupportedModelError(
                f"{count} images are shown together, and the chat template of "
                f"{type(self.processor).__name__} does not write so many in one turn: use a model "
                "that takes several"
            )
        label = writing.label_before(rendered[: found.start()], count)
        return found.group() if writing.labels[0] else label + found.group()

    def replies(self, tokens: torch.Tensor) -> list[str]:
        """Answers `[R, L]` as text, without special tokens."""
        texts = self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _continued(
        self,
        branch: Branch,
        index: Sequence[int],
        asked: Sequence[ParsedPrompt],
        tails: Sequence[str],
    ) -> Branch:
        starts = [asked[row].start for row in index]
        last = [int(branch.input_ids[row, asked[row].start - 1]) for row in index]
        ids = [self._tokens(text, after) for text, after in zip(tails, last, strict=True)]
        rows = torch.tensor(list(index), device=branch.input_ids.device)
        return continued(branch, rows, starts, ids, self.model.config)

    def _parsed(self, start: int, text: str, openings: Sequence[str]) -> ParsedPrompt:
        end = self.template.answer_start(text)
        if end is None:
            raise ValueError(
                f"the prompt ends in {short(text[-40:])} and the processor's chat template ends a "
                f"question in {short(self.template.closing[:40])}: build it with "
                "apply_chat_template(..., add_generation_prompt=True) or sightline.chat."
                "prompt_inputs. Arguments that change the template's words go to generate(..., "
                "chat_template_kwargs={...}); a prompt that ends within an answer "
                "(continue_final_message) is for methods that ask nothing else (VCD, VDD)"
            )
        body = text[:end]
        between = self.template.between_turns
        lead = next((len(opening) for opening in openings if body.startswith(opening)), 0)
        if between.strip() and between in body:
            lead = body.rindex(between) + len(between)
        words = body[lead:].strip()
        if not words:
            raise ValueError(
                "found no question after the image: this decoder asks it again, so put words "
                "behind the last image of each prompt"
            )
        cut = body.index(words, lead)
        return ParsedPrompt(start, body[:cut], words, text[cut + len(words) :])

    def _before_words(self) -> list[str]:
        """What may stand between image tokens and the user's words, the longest first."""
        writing = self._writing
        openings = {
            closing + after for closing in writing.closings for after in (writing.words, "")
        }
        return sorted(openings, key=len, reverse=True)

    @cached_property
    def template(self) -> Template:
        return Template(self.processor, self.arguments)

    def _text(self, ids: torch.Tensor) -> str:
        return self.processor.tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def _tokens(self, text: str, after: int) -> list[int]:
        """Token ids of a text that follows the special token `after`."""
        tokenizer = self.processor.tokenizer
        first = tokenizer.convert_ids_to_tokens(after)
        ids = tokenizer(first + text, add_special_tokens=False)["input_ids"]
        assert ids[0] == after, "an image's token is a token of its own"
        return ids[1:]

    def _plain(self, text: str) -> str:
        """Without anything that the tokenizer would read as a special token."""
        for token in self.processor.tokenizer.all_special_tokens:
            text = text.replace(token, " ")
        return text.strip()


def check_answers_next(processor: Any, branch: Branch) -> None:
    """Raises `ValueError` for a prompt that opens a thought, of a processor with a chat template.

    Prompts that were not made by that template are let through.
    """
    template, tokenizer = Template(processor), tokenizer_of(processor)
    try:
        _ = template.closing
    except (TemplateError, TypeError):
        return  # a tokenizer's template, of text alone
    for ids, mask in zip(branch.input_ids, branch.attention_mask, strict=True):
        end = ids[mask.bool()][-TAIL:]
        check_no_open_thought(template, tokenizer.decode(end, skip_special_tokens=False))


def check_no_open_thought(template: Template, text: str) -> None:
    """Raises `ValueError` for a prompt's text that ends in an open thought."""
    marker = template.open_thought(text)
    if marker is not None:
        raise ValueError(
            f"the prompt opens a thought ({marker}), and this decoder takes what comes next for "
            "the answer: build it with the thought closed, as with enable_thinking=False in "
            "apply_chat_template(...), or answer(..., chat_template_kwargs={...})"
        )
