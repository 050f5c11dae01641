"""Asks a processor what it writes into a prompt for an image or a video."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from sightline.engine.prompt_text import (
    CLIP,
    RUN,
    Writing,
    alike,
    is_blank,
    like_both,
    one_of,
    pieces_of,
)
from sightline.messages import short
from sightline.model_protocol import UnsupportedModelError
from sightline.vision.features import (
    PLACEHOLDERS,
    token_ids,
)
from sightline.weak_lru import Memory

BEFORE, WORDS = "SIGHTLINE0BEFORE", "SIGHTLINE1WORDS"
SIZES = ((56, 56), (224, 224), (1008, 336), (448, 1344))  # of images that are asked about
FRAMES = (4, 8)  # of videos that are asked about
REMEMBERED = 16  # settings of one processor that are kept


WRITINGS: Memory[str, Writing] = Memory(REMEMBERED)


def can_be_asked(processor: Any) -> bool:
    """Whether it writes images into prompts; a tokenizer alone does not."""
    return hasattr(processor, "image_processor") and hasattr(processor, "tokenizer")


def writing_of(processor: Any, config: Any, arguments: Mapping[str, Any] | None = None) -> Writing:
    """What a processor writes for an image; it is asked once for each of its settings.

    Args:
        arguments: What its chat template is given besides the messages.

    Raises:
        ValueError: It writes no image token of the model's, or cannot be asked.
    """
    image, video = (token_ids(config, (name,)) for name in PLACEHOLDERS)
    plain = {n: v for n, v in vars(processor).items() if isinstance(v, str | int | float | None)}
    given = dict(arguments or {})
    key = repr((plain, vars(processor.image_processor), len(processor.tokenizer), image, given))

    def asked(missing: list[str]) -> list[Writing]:
        writing = _asked(processor, set(image), given)
        clip = _video(processor, writing, set(image), set(video), given)
        return [replace(writing, video=clip)]

    (writing,) = WRITINGS.recall(processor, [key], asked)
    return writing


def _asked(processor: Any, image: set[int], arguments: Mapping[str, Any]) -> Writing:
    unit, words, labels = _unit(processor, arguments)
    inner = unit.strip()
    blank = Writing(processor.tokenizer, unit, (), (), (), None, "", "")
    starts, parts = zip(
        *(_written(processor, blank, unit, size, image) for size in SIZES), strict=True
    )
    lead, trail = unit.partition(inner)[::2]
    shown = [text.removeprefix(lead).removesuffix(trail).split(RUN) for text in parts]
    counts = {len(part) - 1 for part in shown}
    first, last = processor.tokenizer.bos_token, processor.tokenizer.eos_token
    return Writing(
        processor.tokenizer,
        unit,
        _distinct(_after(part[0], first, last) for part in shown),
        _distinct(gap for part in shown for gap in part[1:-1]),
        _distinct(_before(part[-1], first, last) for part in shown),
        counts.pop() if len(counts) == 1 else None,
        trail + words,
        starts[0],
        labels,
        opening=_opening(processor, unit, trail + words, arguments),
    )


def _opening(
    processor: Any, unit: str, behind: str, arguments: Mapping[str, Any]
) -> tuple[str, str]:
    """How turns begin with an image, and what those that begin with words have besides.

    Args:
        behind: What stands between an image and words: where that is the same, nothing is missing.
    """
    if getattr(processor, "chat_template", None) is None:
        return "", ""
    try:
        shown, told = (_rendered(processor, count, arguments, "image") for count in (1, 0))
    except Exception:  # a template may refuse a turn without an image
        return "", ""
    shown, told = shown.partition(unit)[0], told.partition(WORDS)[0]
    names = [str(name) for name in processor.tokenizer.added_tokens_decoder.values()]
    opening = re.split("|".join(["\n", *map(re.escape, names)]), shown)[-1]
    space = told[len(shown) :] if told.startswith(shown) else ""
    is_missing = is_blank(space) and not behind.startswith(space)
    return (opening, space) if opening and is_missing else ("", "")


def _distinct(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))


def _before(text: str, *tokens: str | None) -> str:
    """What stands before the first of the tokens: a prompt's own beginning is no image's."""
    for token in filter(None, tokens):
        text = text.partition(token)[0]
    return text


def _after(text: str, *tokens: str | None) -> str:
    for token in filter(None, tokens):
        text = text.rpartition(token)[2]
    return text


def _unit(processor: Any, arguments: Mapping[str, Any]) -> tuple[str, str, tuple[str, str]]:
    """What the template writes for an image, between it and the user's words, and its labels."""
    token = getattr(processor, "image_token", None)
    if getattr(processor, "chat_template", None) is None:
        if token is None:
            raise UnsupportedModelError(
                f"{type(processor).__name__} has neither a chat template nor an image_token, so "
                "what it writes for an image cannot be asked: leave processor= out"
            )
        return str(token), "", ("", "")
    found = _rendered_unit(processor, "image", arguments)
    if found is None:
        raise UnsupportedModelError(
            f"the chat template of {type(processor).__name__} writes nothing for an image: use "
            "the model's own processor"
        )
    return found


def _rendered_unit(
    processor: Any, kind: str, arguments: Mapping[str, Any]
) -> tuple[str, str, tuple[str, str]] | None:
    """As `_unit`, of an image or a video; None where the template writes nothing for it."""
    one = _rendered(processor, 1, arguments, kind)
    for fewer, more in ((0, 1), (1, 2)):
        try:
            texts = (_rendered(processor, images, arguments, kind) for images in (fewer, more))
            label, unit = _labelled(processor, _added(*texts))
        except Exception:  # a template may refuse a turn without an image, or with two
            continue
        if unit.strip() and unit in one:
            words = one.partition(unit)[2].partition(WORDS)[0]
            return unit, words, (label, _label_of_two(processor, unit, arguments, kind))
    return None


def _labelled(processor: Any, unit: str) -> tuple[str, str]:
    """A label with a number, which stands before all special tokens, and the rest."""
    names = [str(name) for name in processor.tokenizer.added_tokens_decoder.values()]
    special = [place for name in names if not is_blank(name) and (place := unit.find(name)) >= 0]
    start = min(special, default=0)
    return (unit[:start], unit[start:]) if re.search(r"\d", unit[:start]) else ("", unit)


def _label_of_two(processor: Any, unit: str, arguments: Mapping[str, Any], kind: str) -> str:
    """What the template writes before the second of two images, and not for the first alone."""
    try:
        texts = _rendered(processor, 2, arguments, kind).split(unit)
    except Exception:  # it may refuse two images
        return ""
    space = unit[: len(unit) - len(unit.lstrip())]
    return texts[1] + space if len(texts) == 3 and not is_blank(texts[1]) else ""


def _rendered(processor: Any, count: int, arguments: Mapping[str, Any], kind: str) -> str:
    content = [*[{"type": kind}] * count, {"type": "text", "text": WORDS}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        **{**arguments, "add_generation_prompt": True, "tokenize": False},
    )


def _added(fewer: str, more: str) -> str:
    """What a text has more than another; "" unless the rest is the same, up to white space."""
    start = alike(fewer, more)
    end = len(more) - min(alike(fewer[::-1], more[::-1]), len(fewer) - start)
    rest = more[:start] + more[end:]
    return more[start:end] if "".join(rest.split()) == "".join(fewer.split()) else ""


def _bounds(tokenizer: Any) -> tuple[str, str]:
    """Two texts that the tokenizer can spell; one that knows whole words alone has no others."""

    def is_spelled(text: str) -> bool:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokenizer.decode(ids).strip() == text

    if is_spelled(BEFORE) and is_spelled(WORDS):
        return BEFORE, WORDS
    words = sorted(filter(str.isalnum, tokenizer.get_vocab()), key=lambda word: (-len(word), word))
    own = [word for word in words if is_spelled(word)][:2]
    return (own[0], own[1]) if len(own) == 2 else (BEFORE, WORDS)


def _written(
    processor: Any, blank: Writing, unit: str, size: tuple[int, int], image: set[int]
) -> tuple[str, str]:
    """What the processor puts before a prompt, and in an image's place in it, as text."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    try:
        ids = _ids_of(processor, unit, images=[[Image.fromarray(pixels)]])
    except Exception as error:
        raise UnsupportedModelError(
            f"{type(processor).__name__} was asked what it writes for an image of {size[0]} x "
            f"{size[1]} pixels in {short(unit)}, and failed: {error}"
        ) from error
    start, found = _in_place(ids, blank, image)
    special = Counter(token for token in ids if token in blank.special)
    if RUN not in found or max(special.values(), default=0) > max(special[t] for t in image):
        raise ValueError(
            f"the processor belongs to another model: {type(processor).__name__} does not fill an "
            f"image's place with the model's image token ({', '.join(map(str, image))}). Load both "
            "from one checkpoint"
        )
    return start, found


def _ids_of(processor: Any, unit: str, **shown: Any) -> list[int]:
    before, after = _bounds(processor.tokenizer)
    with torch.device("cpu"):
        made = processor(text=[f"{before}{unit}{after}"], return_tensors="pt", **shown)
    return [int(token) for token in made["input_ids"][0]]


def _in_place(
    ids: list[int], blank: Writing, placeholders: set[int], videos: AbstractSet[int] = frozenset()
) -> tuple[str, str]:
    """What stands before a prompt, and in the place of `unit` in it, as text."""
    read = "".join(piece.text for piece in pieces_of(ids, blank, placeholders, (), videos))
    before, after = _bounds(blank.tokenizer)
    start, _, rest = read.partition(before)
    return start, rest.rpartition(after)[0]


def _video(
    processor: Any,
    writing: Writing,
    image: set[int],
    video: set[int],
    arguments: Mapping[str, Any],
) -> re.Pattern[str] | None:
    """A pattern of what a processor writes for a video, asked about two lengths.

    None where that cannot be told from an image: then what its tokens enclose goes.
    """
    token = getattr(processor, "video_token", None)
    if getattr(processor, "video_processor", None) is None or token is None:
        return None
    unit, labels = str(token), ("", "")
    try:
        found = _rendered_unit(processor, "video", arguments)
        if found is not None and unit in found[0]:
            unit, labels = found[0].strip(), found[2]
        texts = [
            _in_place(
                _ids_of(processor, unit, **_clip(frames)), writing, image | video, video - image
            )[1]
            for frames in FRAMES
        ]
    except Exception:  # a processor may refuse short videos, and most prompts have none
        return None
    (run, *others) = {mark for text in texts for mark in text if mark in (RUN, CLIP)} or {""}
    if others or not run:
        return None
    shown = [text.split(run) for text in texts]
    around = [(part[0], part[-1]) for part in shown]
    opening, closing = (like_both(*texts) for texts in zip(*around, strict=True))
    if run == RUN and not _is_apart([before for before, _ in around], writing.openings):
        return None
    gaps = _distinct(gap for part in shown for gap in part[1:-1])
    if not any((*gaps, *around[0])):
        return None
    inside = f"(?:{one_of(gaps)}{run})*" if gaps else ""
    label = f"{one_of(labels)}?"
    return re.compile(f"{label}{opening}{run}{inside}{closing}")


def _is_apart(openings: Iterable[str], others: Iterable[str]) -> bool:
    """Whether texts begin what the other texts do not."""
    pattern = re.compile(one_of(others))
    return not any(pattern.fullmatch(opening) for opening in openings)


def _clip(frames: int) -> dict[str, Any]:
    """Arguments of a processor's call: a video of two frames a second."""
    shape = (frames, *SIZES[0][::-1], 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    known = {
        "fps": 2.0,
        "total_num_frames": frames,
        "duration": frames / 2,
        "frames_indices": list(range(frames)),
    }
    return {"videos": [pixels], "video_metadata": [known], "do_sample_frames": False}
