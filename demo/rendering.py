"""Answers and their explanations as HTML: pure functions, which escape what comes from outside."""

import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO

import numpy as np
from PIL import Image

from sightline.demo.comparison import Answer, Comparison, Explained, Row, SourceImage, slow_down
from sightline.demo.decoding import PREVIEW
from sightline.highlights import Span, listed, missed, spans
from sightline.lab import mentioned
from sightline.specs import Spec

SAYS = {
    "new": "not in the first answer",
    "invented": "not in the image",
    "found": "in the image",
}
"""What a mark means."""
HEAT = np.array([[16, 24, 64], [92, 40, 128], [196, 60, 96], [246, 140, 60], [252, 232, 150]])
"""Colours from nothing to the strongest place."""
LONGEST = 28  # characters of a setting in a heading
LEAST = 0.0001  # smaller probabilities are not told apart


# Figures


def duration(seconds: float) -> str:
    """ "8.4 ms", "230 ms", "1.2 s"."""
    if seconds >= 0.9995:
        return f"{seconds:.1f} s"
    return f"{1000 * seconds:.1f} ms" if seconds < 0.01 else f"{1000 * seconds:.0f} ms"


def memory(count: int) -> str:
    """ "310 MB", "14.2 GB"."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def percent(share: float) -> str:
    """ "93.1 %", "0.25 %", "< 0.01 %"."""
    if 0 < share < LEAST:
        return "< 0.01 %"
    return f"{100 * share:.1f} %" if share >= 0.01 else f"{100 * share:.2f} %"


def figures(
    comparison: Comparison, answers: Sequence[Answer], number: int
) -> list[tuple[str, str]]:
    """What was measured of an answer, by name: only what is known."""
    answer = answers[number]
    slower = slow_down(comparison.ways, answers, number)
    plain = next((way.label for way in comparison.ways if way.is_plain), "")
    known = {
        "first token": None if answer.first is None else duration(answer.first),
        "per token": None if answer.each is None else duration(answer.each),
        "slow-down": None if slower is None else f"{slower:.1f}\N{MULTIPLICATION SIGN} {plain}",
        "peak memory": None if answer.peak is None else memory(answer.peak),
    }
    return [(name, text) for name, text in known.items() if text is not None]


# Answers


def truth_of(comparison: Comparison) -> frozenset[str] | None:
    """The objects that answers are held to: none known if the question is about one of them."""
    return None if mentioned(comparison.question) else comparison.image.truth


def card(comparison: Comparison, answers: Sequence[Answer], number: int, place: int) -> str:
    """One answer: its way, state, tokens and figures.

    Args:
        number: Of the way in the comparison.
        place: Of its column on the page.
    """
    way, answer = comparison.ways[number], answers[number]
    truth, first = truth_of(comparison), answers[0]
    against = first.text if first.is_over else answer.text
    marks = spans(answer.text, against, truth)
    rows = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>"
        for name, text in figures(comparison, answers, number)
    )
    return (
        f'<article id="answer-{place}" class="answer" data-state="{answer.state}" '
        f'aria-label="Answer of {escape(way.label)}">'
        f'<header><h3>{heading(way)}</h3><span class="state" role="status">{answer.state}</span>'
        f"{stop_button(way, answer, place)}</header>"
        f"{tokens(answer, marks, way.label)}"
        f'<p class="remark">{escape(remark(answer, truth))}</p>'
        f'<dl class="figures">{rows}</dl></article>'
    )


def blank_card(place: int) -> str:
    """A column before its first answer."""
    return (
        f'<article id="answer-{place}" class="answer" data-state="none" aria-label="Answer">'
        '<p class="hint">The answer will grow here.</p></article>'
    )


def heading(way: Spec) -> str:
    terms = []
    for method in way.methods:
        texts = [shortened(f"{key}={text}") for key, text in method.texts]
        settings = "".join(f" <span>{escape(text)}</span>" for text in texts)
        terms.append(f"{escape(method.name)}{settings}")
    return "+".join([*terms, way.way] if way.way else terms)


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"


def stop_button(way: Spec, answer: Answer, place: int) -> str:
    hidden = " hidden" if answer.is_over else ""
    return (
        f'<button type="button" class="minor" id="stop-{place}" data-halt{hidden} '
        f'aria-label="Stop {escape(way.label)}">Stop</button>'
    )


def remark(answer: Answer, truth: frozenset[str] | None) -> str:
    """What cannot be marked in the text: why it ended, and what it misses."""
    said = [] if answer.note in ("", answer.state) else [answer.note]
    if answer.state == "done" and not answer.text.strip():
        said.append("the answer is empty")
    if answer.state == "done" and (lacking := missed(answer.text, truth)):
        said.append(f"missed: {listed(lacking)}")
    return "; ".join(said)


def tokens(answer: Answer, marks: Sequence[Span], label: str) -> str:
    """An answer's tokens, each of which can be chosen; one of them is reached by Tab."""
    start, made = 0, []
    for index, piece in enumerate(answer.pieces):
        is_end = answer.state == "done" and index == len(answer.pieces) - 1
        made.append(token(piece, start, marks, index, is_end))
        start += len(piece)
    return (
        f'<div class="tokens" role="toolbar" aria-label="Tokens of {escape(label)}: arrow keys '
        f'move, Enter explains">{"".join(made)}</div>'
    )


def token(piece: str, start: int, marks: Sequence[Span], index: int, is_end: bool) -> str:
    """One token as a button, the blanks before it left outside.

    Args:
        piece: Its text.
        start: Where it begins in the answer.
        is_end: Whether nothing comes after it.
    """
    word = piece.lstrip() or piece
    blanks = piece[: len(piece) - len(word)]
    begin, end = start + len(blanks), start + len(piece)
    inside = [mark for mark in marks if mark.start < end and mark.end > begin]
    kinds = {kind for mark in inside for kind in mark.kinds}
    says = [word.strip() or ("blank" if word else "end" if is_end else "no text of its own")]
    says += [meaning for kind, meaning in SAYS.items() if kind in kinds]
    label = "" if says == [word] else f' aria-label="{escape(", ".join(says))}"'
    sign = "" if word.strip() else ' data-sign="end"' if is_end and not word else ' data-sign="·"'
    return (
        f'{escape(blanks)}<span class="token" role="button" data-index="{index}" '
        f'tabindex="{-1 if index else 0}"{label}{sign}>'
        f"{''.join(segments(word, begin, inside))}</span>"
    )


def segments(word: str, begin: int, marks: Sequence[Span]) -> list[str]:
    """A token's text with its marked parts; a mark over several tokens has one first, one last."""
    made, place = [], begin
    for mark in marks:
        start, end = max(mark.start, begin), min(mark.end, begin + len(word))
        made.append(escape(word[place - begin : start - begin]))
        ends = [
            name for name, at in (("first", mark.start), ("last", mark.end)) if at in (start, end)
        ]
        kinds = " ".join([*sorted(mark.kinds), *ends])
        made.append(f'<mark class="{kinds}">{escape(word[start - begin : end - begin])}</mark>')
        place = end
    return [*made, escape(word[place - begin :])]


def legend(comparison: Comparison) -> str:
    """What marks, truth and times mean, as far as they occur."""
    truth = truth_of(comparison)
    signs = {"new": len(comparison.ways) > 1, "invented": bool(truth), "found": bool(truth)}
    marks = "".join(
        f'<li><mark class="{kind} first last">word</mark> {SAYS[kind]}</li>'
        for kind, occurs in signs.items()
        if occurs
    )
    inside = "" if truth is None else f"<p><b>In the image:</b> {escape(listed(truth))}</p>"
    return (
        f'<div class="legend">{inside}<ul>{marks}</ul><p>Click a token, or choose it with the '
        "arrow keys and Enter, to see why it came. Answers take turns on one model, token by "
        "token: times are those in which it worked for that answer alone. The first answer of a "
        "decoder that the page did not begin with takes longer: press Compare again before you "
        "compare times.</p></div>"
    )


# Why a token came


def panel(
    comparison: Comparison,
    number: int,
    place: int,
    answer: Answer,
    explained: Explained,
    index: int,
) -> str:
    """The candidates of one token, and where the model looked."""
    way, last = comparison.ways[number], len(explained.tables) - 1
    word = answer.pieces[index].strip() if index < len(answer.pieces) else ""
    return (
        f'<section class="why" aria-label="Why this token" data-place="{place}" '
        f'data-index="{index}"><header><h2 aria-live="polite">Why {quoted(word)}?</h2>'
        f"<p>Token {index + 1} of {last + 1} of {escape(way.label)}</p>"
        f'<nav aria-label="Tokens">{step("previous-token", "Previous", index - 1, last)}'
        f"{step('next-token', 'Next', index + 1, last)}</nav></header>"
        f'<div class="halves"><div>{table(explained, index)}</div>'
        f"{attention_panel(comparison.image, explained, index)}</div></section>"
    )


def refusal(text: str) -> str:
    """In the panel's place, where there is nothing to explain."""
    return f'<section class="why"><p role="alert" class="error">{escape(text)}</p></section>'


def quoted(word: str) -> str:
    return (
        f"\N{LEFT DOUBLE QUOTATION MARK}{escape(word)}\N{RIGHT DOUBLE QUOTATION MARK}"
        if word
        else "this token"
    )


def step(name: str, label: str, index: int, last: int) -> str:
    """A button to another token; off where there is none."""
    off = "" if 0 <= index <= last else " disabled"
    return (
        f'<button type="button" class="minor" id="{name}" data-go="{index}" '
        f'aria-label="{label} token"{off}>{label}</button>'
    )


def table(explained: Explained, index: int) -> str:
    """The best tokens of one step, under each branch and after the rule."""
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in explained.names)
    rows = "".join(map(row, explained.tables[index]))
    cut = explained.cuts[index]
    told = (
        "The rule leaves no token out."
        if cut is None
        else f"The rule leaves out what has less than {percent(cut)} in the first column."
    )
    return (
        '<div class="scroll" role="region" aria-label="Candidates" tabindex="0">'
        '<table id="token-table"><caption>The most probable tokens at this place. '
        f'{told}</caption><thead><tr><th scope="col">token</th>{names}'
        f'<th scope="col">after the rule</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def row(candidate: Row) -> str:
    classes = " ".join(
        name
        for name, holds in (("chosen", candidate.is_chosen), ("cut", candidate.score is None))
        if holds
    )
    came = ' <span class="came">came</span>' if candidate.is_chosen else ""
    cells = "".join(map(cell, candidate.branches))
    score = "<td>left out</td>" if candidate.score is None else cell(candidate.score)
    name = f'<th scope="row"><code>{escape(candidate.token)}</code>{came}</th>'
    return f'<tr class="{classes}">{name}{cells}{score}</tr>'


def cell(share: float) -> str:
    return f'<td style="--share:{share:.4f}">{percent(share)}</td>'


def attention_panel(image: SourceImage, explained: Explained, index: int) -> str:
    """Where the model looked while it chose a token."""
    share = explained.shares[index] if explained.shares else None
    said = "" if share is None else f"{percent(share)} of the attention fell on the image"
    if explained.attention is None:
        told = ". ".join(filter(None, (said, explained.note)))
        return f'<figure id="overlay"><figcaption>{escape(told)}</figcaption></figure>'
    source = data_url(heated(image.image, explained.attention[index]))
    return (
        f'<figure id="overlay"><img src="{source}" alt="The image, coloured by attention">'
        f"<figcaption>{said}, most of it where the colours are bright."
        '<span class="scale"><span>least</span><i></i><span>most</span></span>'
        "</figcaption></figure>"
    )


# Images


def smaller(image: Image.Image, side: int = PREVIEW) -> Image.Image:
    """The image, its longest side at most `side`."""
    scale = side / max(image.size)
    if scale >= 1:
        return image
    width, height = (max(1, round(scale * length)) for length in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)


def heated(image: Image.Image, attention: Image.Image) -> Image.Image:
    """An image in grey, coloured where it was looked at.

    Args:
        image: RGB.
        attention: 8-bit grey in the same proportions, of any size.
    """
    under = smaller(image)
    grey = np.asarray(under.convert("L"), dtype=np.float32)[..., None].repeat(3, axis=2)
    values = np.asarray(attention.resize(under.size, Image.Resampling.BICUBIC), np.float32) / 255
    stops = np.linspace(0, 1, len(HEAT))
    colours = np.stack([np.interp(values, stops, HEAT[:, i]) for i in range(3)], axis=-1)
    weight = 0.12 + 0.63 * values[..., None]
    return Image.fromarray((grey * (1 - weight) + colours * weight).round().astype(np.uint8))


def data_url(image: Image.Image) -> str:
    """An image inside a page: nothing of it lies on the server's disk."""
    file = BytesIO()
    image.save(file, "WEBP", quality=90)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def shown_image(image: SourceImage) -> str:
    """The image that is asked about, with where it comes from and its size in pixels."""
    kind, _, name = image.source.partition(":")
    caption = f"scene {name} of the lab" if kind == "scene" else name
    size = dimensions(image.image.size)
    if image.original is not None:
        size = f"{dimensions(image.original)}, made smaller: {size}"
    return (
        f'<img src="{data_url(smaller(image.image))}" alt="The image asked about">'
        f"<figcaption>{escape(caption)}, {size}</figcaption>"
    )


def dimensions(size: tuple[int, int]) -> str:
    return f"{size[0]} \N{MULTIPLICATION SIGN} {size[1]}"


def thumbnail(name: str, image: SourceImage) -> str:
    """A button that chooses an image which ships with the package."""
    bare = name.rpartition(".")[0] or name
    source = data_url(smaller(image.image, 128))
    return (
        f'<button type="button" data-name="{escape(name)}" title="{escape(bare)}">'
        f'<img src="{source}" alt="Image {escape(bare)}"></button>'
    )


def error(place: str, text: str = "") -> str:
    """A sentence next to a control, spoken when it appears; no place is taken without one."""
    return f'<p id="error-{place}" class="error" role="alert">{escape(text)}</p>'


# Take it with you


def code(text: str) -> str:
    """A script as it is, to be read and copied."""
    return f'<pre id="script" tabindex="0" aria-label="Python script">{escape(text)}</pre>'


def progress(done: int, total: int, is_over: bool = False) -> str:
    """How far an evaluation is, in answers."""
    if is_over:
        return f'<p class="hint" role="status">{done} of {total} answers.</p>'
    most = f' max="{total}" value="{done}"' if total else ""
    said = f"{done} of {total} answers" if total else "SamplingSettings scenes"
    return (
        f'<div class="headway"><progress{most} aria-label="Answers"></progress>'
        f"<span>{said}</span></div>"
    )


def plots(images: Sequence[Image.Image]) -> str:
    """An evaluation's plots; what they show stands in its table too."""
    return "".join(
        f'<img class="plot" src="{data_url(image.convert("RGB"))}" alt="A plot of the table">'
        for image in images
    )
