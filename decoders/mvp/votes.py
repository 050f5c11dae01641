"""MVP: many views and many paths vote on one answer, Qu et al., COLING 2025 (arXiv:2408.17150).

For each view of an image each of the K likeliest first tokens begins a path; the path votes for
the answer it reaches, with the probability of its first token times how sure the model was where
the answer was said. Everything here is arithmetic on texts, logits and probabilities.

`surfaces` are the ways to say each label: `{"Yes": ("yes",), "No": ("no",)}`.
"""

import math
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from sightline.messages import check_list, short

Surfaces = Mapping[str, Sequence[str]]

WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")  # "isn't" and "no-one" are one word each
NEGATIONS = frozenset({"no", "not", "none", "without", "cannot"})
CONTRACTED = re.compile(r"n['\u2019]t$", re.IGNORECASE)


@dataclass(frozen=True)
class FirstToken:
    """How a path begins.

    Args:
        token: Its id.
        probability: Under the whole vocabulary.
        label: What it says by itself; None where the path has yet to answer.
    """

    token: int
    probability: float
    label: str | None


@dataclass(frozen=True)
class SaidLabel:
    """A label and where the text says it: characters `start` to `end`, or nowhere (None)."""

    label: str
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True)
class Path:
    """One decoded continuation and what it votes for.

    Args:
        view: Which prompt it belongs to.
        first_probability: Of its first token.
        label: The answer it reached; None for none, which votes for nothing.
        gap: How sure it was there; None where the first token was the answer.
        text: What it says, the first token included.
    """

    view: Hashable
    first_probability: float
    label: str | None
    gap: float | None = None
    text: str = ""

    @property
    def vote(self) -> float:
        """c, in [0, 1]."""
        return 0.0 if self.label is None else vote(self.first_probability, self.gap)


def check_surfaces(surfaces: Surfaces) -> None:
    """Raises `ValueError` unless two or more labels can be said, each in ways of its own."""
    for label, ways in surfaces.items():
        check_list(f"the surfaces of {short(label)}", ways, '("yes", "yeah")')
    forms = [words_of(form) for ways in surfaces.values() for form in ways]
    if len(surfaces) < 2 or not all(surfaces.values()):
        raise ValueError(
            "surfaces must hold two or more labels, each with at least one way to say it, as in "
            f'{{"Yes": ("yes",), "No": ("no",)}}, got {short(dict(surfaces))}'
        )
    if not all(forms):
        raise ValueError(
            f"surfaces must have letters or digits in each form, got {short(surfaces)}"
        )
    owners = [set(map(words_of, ways)) for ways in surfaces.values()]
    if len(set(forms)) < sum(map(len, owners)):
        raise ValueError(f"surfaces must not be shared by two labels, got {short(surfaces)}")


def first_tokens(
    logits: Tensor,
    k: int,
    decode: Callable[[int], str],
    surfaces: Surfaces,
    threshold: float = 0.001,
    dedup: bool = True,
) -> list[list[FirstToken]]:
    """How the paths of each view begin: logits `[B, V]` -> B lists, the likeliest token first.

    Args:
        logits: Of the first answer token, as the model gives them.
        k: Slots for each row.
        decode: A token id by itself -> its text, compared without white space around and case.
        surfaces: Ways to say each label; only those of one token can be met here.
        threshold: Tokens that are no label and less probable are dropped from the k.
        dedup: One slot for each label, of its likeliest variant ("Yes", " yes", "YES"), with that
            variant's probability; the slots of the others go to the next tokens. False, as in
            the authors' code: one slot for each variant.
    """
    label_of = {form.strip().lower(): label for label, forms in surfaces.items() for form in forms}
    sorted_rows = logits.float().softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    rows = []
    for probabilities, ids in zip(*(values.tolist() for values in sorted_rows), strict=True):
        slots: list[FirstToken] = []
        taken: set[str] = set()
        for probability, token in zip(probabilities, ids, strict=True):
            if len(slots) == k:
                break
            label = label_of.get(decode(token).strip().lower())
            if label is None or not dedup or label not in taken:
                slots.append(FirstToken(token, probability, label))
            if label is not None:
                taken.add(label)
        rows.append([s for s in slots if s.label is not None or s.probability >= threshold])
    return rows


def gaps(logits: Tensor) -> Tensor:
    """Probability of the best token less that of the second: logits `[..., V]` -> `[...]`."""
    best = logits.float().softmax(dim=-1).topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]


def find_answer(text: str, surfaces: Surfaces, ended: bool = True) -> SaidLabel | None:
    """The first label that the text says in whole words; of several that begin there, the longest.

    Case and punctuation do not count. `ended=False` is for a text that is still being written:
    an answer is given only where nothing that follows could change it ("No" may become "Nothing").
    """
    words = list(WORD.finditer(text))
    said = words_of(text)
    forms = [(words_of(form), label) for label, ways in surfaces.items() for form in ways]
    forms.sort(key=lambda form: -len(form[0]))
    closed = len(said)
    if words and not ended and text[words[-1].end() :] in ("", "'", "\u2019", "-"):
        closed -= 1
    for first in range(len(said)):
        for form, label in forms:
            if form and said[first : first + len(form)] == form:
                if not ended and first + len(forms[0][0]) > closed:
                    return None
                return SaidLabel(label, words[first].start(), words[first + len(form) - 1].end())
    return None


def words_of(text: str) -> tuple[str, ...]:
    """Its words, in lower case."""
    return tuple(word.lower() for word in WORD.findall(text))


def affirmative(text: str, yes: str = "Yes", no: str = "No") -> SaidLabel:
    """What an ended text answers that says neither yes nor no: yes unless it has a negation.

    The authors' policy for unresolved paths, made robust: theirs finds "There isn't a dog"
    affirmative. For n't the place is that of the n't itself. Yes is said nowhere.
    """
    for word in WORD.finditer(text):
        contracted = CONTRACTED.search(word.group())
        if contracted:
            return SaidLabel(no, word.start() + contracted.start(), word.end())
        if word.group().lower() in NEGATIONS:
            return SaidLabel(no, word.start(), word.end())
    return SaidLabel(yes)


def covering_token(prefixes: Sequence[str], place: int) -> int:
    """The first token with which the decoded text reaches over character `place`.

    `prefixes[i]` is the text of tokens 0 to i, and the last the text that was searched.
    """
    for token, prefix in enumerate(prefixes):
        if len(prefix) > place:
            return token
    raise ValueError(
        f"character {place} is beyond the text: {short(prefixes[-1] if prefixes else '')}"
    )


def certainty(answer: SaidLabel, prefixes: Sequence[str], gaps: Sequence[float]) -> float | None:
    """Delta of an answer: the mean gap over the tokens that say it.

    Args:
        answer: Found in the last of the prefixes. One said nowhere is certain: 1.
        prefixes: Of the path, the first token included.
        gaps: Of the distribution that each token was taken from; the first is not looked at.

    None for an answer that begins in the first token, whose probability is its vote.
    """
    if answer.start is None or answer.end is None:
        return 1.0
    first = covering_token(prefixes, answer.start)
    if first == 0:
        return None
    span = gaps[first : covering_token(prefixes, answer.end - 1) + 1]
    return math.fsum(span) / len(span)


def vote(first_probability: float, gap: float | None = None) -> float:
    """c = p of the first token, times the gap where the answer came later."""
    return first_probability if gap is None else first_probability * gap


def view_totals(paths: Iterable[Path], labels: Iterable[str]) -> dict[Hashable, dict[str, float]]:
    """S_v: for each view the votes for each label, 0 for one that no path reached."""
    labels = tuple(labels)
    paths = tuple(paths)
    return {
        view: {
            label: math.fsum(p.vote for p in paths if p.view == view and p.label == label)
            for label in labels
        }
        for view in dict.fromkeys(path.view for path in paths)
    }


def tally(
    paths: Iterable[Path], weights: Mapping[Hashable, float], labels: Iterable[str]
) -> dict[str, float]:
    """S: the weighted sum over views of the votes for each label, whatever their order."""
    labels = tuple(labels)
    views = view_totals(paths, labels)
    return {
        label: math.fsum(weights[view] * totals[label] for view, totals in views.items())
        for label in labels
    }


def decide(totals: Mapping[str, float], tie: str | None = None) -> str | None:
    """The label with the largest total; None where nobody voted.

    `tie` wins where it is among equals ("No", for yes/no questions), else the first of them.
    """
    best = max(totals.values(), default=0.0)
    if best == 0:
        return None
    equal = [label for label, total in totals.items() if total == best]
    return tie if tie in equal else equal[0]


def spokesman(paths: Iterable[Path], weights: Mapping[Hashable, float], label: str) -> Path | None:
    """The path that adds most to the label's total, whose text tells the answer."""
    saying = (path for path in paths if path.label == label)
    return max(saying, key=lambda path: weights[path.view] * path.vote, default=None)
