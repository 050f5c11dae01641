"""What a processor's chat template writes around a user's words and a model's replies, as text."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from typing import Any

WORDS, REPLY, MORE = "SIGHTLINE0WORDS", "SIGHTLINE1REPLY", "SIGHTLINE2MORE"
TAG = re.compile(r"<[^<>\s]+>")


@dataclass(frozen=True)
class Template:
    """A processor's chat template, asked by rendering chats of known words.

    Args:
        processor: With a chat template.
        arguments: What else the template takes (`enable_thinking`), as `apply_chat_template` does.
    """

    processor: Any
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def rendered(self, turns: list[dict[str, Any]], generation_prompt: bool = True) -> str:
        asked = {"add_generation_prompt": generation_prompt, "tokenize": False}
        return self.processor.apply_chat_template(turns, **{**self.arguments, **asked})

    @cached_property
    def closing(self) -> str:
        """What stands after the user's words where the model is to answer."""
        return self.rendered([turn("user", WORDS, images=1)]).partition(WORDS)[2]

    @cached_property
    def before_reply(self) -> str:
        """What stands between the user's words and an earlier reply; `closing` if that is unknown.

        A template may open an answer by a thought that it leaves out of earlier replies.
        """
        return self._conversation[0] or self.closing

    @cached_property
    def between_turns(self) -> str:
        """What stands between a reply and the user's next words."""
        return self._conversation[1]

    def answer_start(self, text: str) -> int | None:
        """Where, in a prompt's text, the user's last words have ended and the answer begins.

        None for a prompt that does not end there. After the header of an answer only markers may
        follow, as of a thought that is open or left empty: with which arguments a prompt was
        rendered need not be known.
        """
        start = text.rfind(self._header)
        rest = text[start + len(self._header) :].strip()
        usual = self.closing.strip().removeprefix(self._header).strip()
        return start if start >= 0 and (rest == usual or not self._without_markers(rest)) else None

    def open_thought(self, text: str) -> str | None:
        """The marker of a thought that a prompt leaves open; None where there is none.

        A marker that is not closed opens a thought, unless the template writes it directly before
        a finished answer as well.
        """
        start = self.answer_start(text)
        if start is None:
            return None
        markers = self._markers.findall(text[start + len(self._header) :])
        if len(markers) % 2 == 0 or self._before_last_reply.rstrip().endswith(markers[-1]):
            return None
        return markers[-1]

    @cached_property
    def _header(self) -> str:
        """What an answer begins with, whatever else a template may put there."""
        pairs = zip(self.closing.strip(), self.before_reply.strip(), strict=False)
        return "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)).rstrip()

    @cached_property
    def _conversation(self) -> tuple[str, str]:
        """What stands before a reply and after it, in an earlier turn; both "" if unknown."""
        asked, more = turn("user", WORDS, images=1), turn("user", MORE)
        for reply in self._replies():
            before, _, after = self._tried([asked, reply, more], True).partition(REPLY)
            if after:
                return before.partition(WORDS)[2], after.partition(MORE)[0]
        return "", ""

    @cached_property
    def _before_last_reply(self) -> str:
        for reply in self._replies():
            before, found, _ = self._tried([turn("user", WORDS, images=1), reply], False).partition(
                REPLY
            )
            if found:
                return before.partition(WORDS)[2]
        return ""

    @staticmethod
    def _replies() -> list[dict[str, Any]]:
        """A reply in the two forms that templates take: as a list of parts, and as a string."""
        return [turn("assistant", REPLY), {"role": "assistant", "content": REPLY}]

    def _tried(self, turns: list[dict[str, Any]], generation_prompt: bool) -> str:
        """A rendered chat; "" where the template refuses it, or prints a list as Python would."""
        try:
            text = self.rendered(turns, generation_prompt)
        except Exception:  # templates and processors refuse a form each in its own way
            return ""
        return "" if re.search(rf"""['"]{REPLY}['"]""", text) else text

    @cached_property
    def _markers(self) -> re.Pattern[str]:
        """Matches tokens that are no words: those added to the vocabulary, and tags."""
        added = sorted(tokenizer_of(self.processor).get_added_vocab(), key=len, reverse=True)
        return re.compile("|".join([*map(re.escape, added), TAG.pattern]))

    def _without_markers(self, text: str) -> str:
        return self._markers.sub("", text).strip()


def tokenizer_of(processor: Any) -> Any:
    """A processor's tokenizer, or the tokenizer that came in its place."""
    return getattr(processor, "tokenizer", processor)


def turn(role: str, words: str, images: int = 0) -> dict[str, Any]:
    content: list[dict[str, str]] = [{"type": "image"}] * images
    return {"role": role, "content": [*content, words_part(words)]}


def words_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
