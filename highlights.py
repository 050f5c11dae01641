"""What is worth marking in answers: words that changed, objects found, invented and missed."""

import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

NAME_WORDS = 3  # most words in an object's name


def known_truth(image: Any, question: str) -> frozenset[str] | None:
    """The objects that an image carries, unless the question is about one of them.

    "Is there a fork?" is not answered by a list, and "no fork" invents none.
    """
    from sightline.lab import mentioned, truth

    return None if mentioned(question) else truth(image)


def listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def remarks(text: str, first: str, truth: frozenset[str] | None) -> list[str]:
    """What marks in the text cannot show: objects missed, and those no longer invented."""
    from sightline.lab import mentioned

    if truth is None:
        return []
    dropped = set(mentioned(first)) - truth - set(mentioned(text))
    lines = {"missed": missed(text, truth), "no longer invented": dropped}
    return [f"{name}: {listed(objects)}" for name, objects in lines.items() if objects]


def missed(text: str, truth: frozenset[str] | None) -> frozenset[str]:
    """The objects in the image that the text does not name; none where truth is not known."""
    from sightline.lab import mentioned

    return frozenset() if truth is None else truth.difference(mentioned(text))


@dataclass(frozen=True)
class Span:
    """A part of an answer that is marked.

    Args:
        start: Its first character's place.
        end: The place after its last character.
        kinds: Among "new", not in the first answer; "found", an object of the image;
            "invented", an object that is not in it.
    """

    start: int
    end: int
    kinds: frozenset[str]


def spans(text: str, first: str, truth: frozenset[str] | None) -> list[Span]:
    """The marked parts of an answer, from left to right; none overlap.

    Words marked alike are one span, with the blanks between them. Punctuation around words is in
    none, and two names next to each other are two spans.

    Args:
        text: The answer.
        first: The answer that it is compared with; the text itself for the first one.
        truth: The objects in the image. None: not known, so that no name is marked.
    """
    places = [match.span() for match in re.finditer(r"\S+", text)]
    words = [text[start:end] for start, end in places]
    new, (found, invented) = new_words(words, first.split()), named_words(words, truth)
    names = {i: name for name in (*found, *invented) for i in name}
    parts: list[Span] = []
    for i, ((start, _), word) in enumerate(zip(places, words, strict=True)):
        before, core, _ = cut(word)
        start, name = start + len(before), names.get(i)
        says = {"new": i in new, "found": name in found, "invented": name in invented}
        kinds = frozenset(kind for kind, is_so in says.items() if is_so)
        alike = parts and parts[-1].kinds == kinds and names.get(i - 1) == name
        if alike and text[parts[-1].end : start].isspace():
            start = parts.pop().start
        parts.append(Span(start, places[i][0] + len(before) + len(core), kinds))
    return [part for part in parts if part.kinds]


def cut(word: str) -> tuple[str, str, str]:
    """A word between the punctuation around it; a sign that stands alone is a word."""
    core = word.strip(string.punctuation) or word
    before, _, after = word.partition(core)
    return before, core, after


def new_words(words: Sequence[str], first: Sequence[str]) -> set[int]:
    """The places of words that the first answer does not have there; case does not count."""
    old, new = ([cut(word)[1].lower() for word in text] for text in (first, words))
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    changes = [place for tag, *place in matcher.get_opcodes() if tag != "equal"]
    return {i for _, _, start, end in changes for i in range(start, end)}


def named_words(
    words: Sequence[str], truth: frozenset[str] | None
) -> tuple[list[range], list[range]]:
    """Where the words name objects: those in the image, and those that are not in it.

    A name has up to three words. Nothing is named where truth is not known.
    """
    from sightline.lab import mentioned

    found: list[range] = []
    invented: list[range] = []
    start = 0
    while truth is not None and start < len(words):
        for end in range(start + 1, min(start + NAME_WORDS, len(words)) + 1):
            names = mentioned(" ".join(words[start:end]))
            # Without its first word the span must name less, or it begins too early.
            if names and names != mentioned(" ".join(words[start + 1 : end])):
                (found if truth.intersection(names) else invented).append(range(start, end))
                start = end - 1
                break
        start += 1
    return found, invented
