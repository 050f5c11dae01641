"""A comparison as a Python script, which anybody with sightline can run."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from sightline.codegen import Code, Group, Piece, Sum, Text, assigned, call, group, literal, piece
from sightline.demo.comparison import Comparison, SamplingSettings, SourceImage
from sightline.lab import CHECKPOINT, IMAGES
from sightline.messages import short
from sightline.setting_text import FILLED, STAND_IN
from sightline.specs import Method, Spec

LAB = ("sightline.lab", str(CHECKPOINT))
LONGEST_SEED = 20  # digits
DRAWN = ("do_sample", "temperature")
FOREIGN = "# ruff: noqa: RUF001, RUF100"
"""For texts that are not ASCII: ruff takes some letters of other scripts for Latin ones."""
OWN_FILE = "# The image's file; edit the path where it lies elsewhere."
SCRIPT = '''\
"""One question about one image, answered in several ways.

Needs sightline: pip install sightline-vlm
"""

{imports}

{constants}

processor = AutoProcessor.from_pretrained(CHECKPOINT)
{model}

image = {image}
if sha256(image.tobytes()).hexdigest() != SHA256:
    print("warning: this is not the image that was compared", file=sys.stderr)

{ways}

for label, decoder, drawing in ways:
    torch.manual_seed({drawing.seed})
    said = answer(
        model,
        processor,
        image,
        QUESTION,
        decoder,
        max_new_tokens={drawing.max_new_tokens},
        num_beams=1,{template}
        **drawing,
    )
    print(f"{{label}}: {{said}}")
'''


def to_python(
    comparison: Comparison,
    model: str,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """A script that asks the same question in the same ways and prints each label and answer.

    It is formatted as by `ruff format`. It warns on standard error where its image has other
    pixels than the one that was compared.

    Args:
        comparison: Its image is found again by its source: a shipped one by its name, a scene by
            its seed, a file by a path at the top of the script, which the user edits.
        model: The checkpoint; "sightline.lab" is the lab's own.
        device: Of the weights.
        dtype: Of the weights; "auto": as stored.
        chat_template_kwargs: Arguments of the chat template besides the messages.

    Raises:
        ValueError: For a decoder, a setting or a source of the image that does not exist.
    """
    labels = [Text(way.label) for way in comparison.ways]
    decoders = [construction(way) for way in comparison.ways]
    drawings = [drawn(way, comparison.drawing) for way in comparison.ways]
    ways = [group("(", row, ")") for row in zip(labels, decoders, drawings, strict=True)]
    template = (
        assigned("TEMPLATE", piece(dict(chat_template_kwargs))) if chat_template_kwargs else []
    )
    origin = find_origin(comparison.image)
    digest = sha256(comparison.image.image.tobytes()).hexdigest()
    checkpoint = [] if model in LAB else assigned("CHECKPOINT", Text(model))
    loaded = call("AutoModelForImageTextToText.from_pretrained", Code("CHECKPOINT"), dtype=dtype)
    moved = [] if device == "cpu" else call("model.to", Text(device)).lines()
    script = SCRIPT.format(
        imports="\n".join(imports(comparison.ways, origin, model in LAB)),
        constants="\n".join(
            [
                *origin.head,
                *assigned("SHA256", Text(digest)),
                *checkpoint,
                *assigned("QUESTION", Text(comparison.question)),
                *template,
            ]
        ),
        model="\n".join([*assigned("model", loaded), *moved]),
        image=origin.expression,
        ways="\n".join(assigned("ways", group("[", ways, "]"))),
        drawing=comparison.drawing,
        template="\n        chat_template_kwargs=TEMPLATE," if template else "",
    )
    return script if script.isascii() else f"{FOREIGN}\n{script}"


# Parts of the script


@dataclass(frozen=True)
class Origin:
    """How a script gets the image.

    Args:
        expression: What it is.
        lab: Names in it from `sightline.lab`.
        own: Names in it from `sightline`.
        others: Lines that import what others wrote.
        head: Lines of a constant in it.
    """

    expression: str
    lab: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    head: tuple[str, ...] = ()


def find_origin(image: SourceImage) -> Origin:
    """Raises `ValueError` for a source that is none of those of `Image`."""
    kind, _, name = image.source.partition(":")
    if kind == "shipped" and name in {path.name for path in IMAGES.iterdir()}:
        return Origin(f"open_image(IMAGES / {literal(name)})", lab=("IMAGES",), own=("open_image",))
    if kind == "scene" and is_seed(name):
        return Origin(
            f"draw(decorrelated(np.random.default_rng({int(name)})))",
            lab=("decorrelated", "draw"),
            others=("import numpy as np",),
        )
    if kind == "file" and name:
        head = (OWN_FILE, *assigned("IMAGE", Text(name)))
        scaled = "" if image.original is None else f".resize({image.image.size})"
        return Origin(f"open_image(IMAGE){scaled}", own=("open_image",), head=head)
    raise ValueError(
        "an image's source is shipped:NAME (of the lab's images), scene:SEED or file:NAME, got "
        f"{short(image.source[:80])}"
    )


def is_seed(text: str) -> bool:
    """Whether a text is a scene's seed, of a bearable length."""
    return text.isascii() and text.isdecimal() and len(text) <= LONGEST_SEED


def construction(way: Spec) -> Piece:
    """The decoder, made with the settings that differ from what it has without them."""
    if way.is_plain:
        return Code("None")
    made = tuple(map(made_with, way.methods))
    return made[0] if len(made) == 1 else Sum(made)


def made_with(method: Method) -> Group:
    name, preset, changes = method.kind.__name__, method.preset, changed(method)
    filled = {FILLED: Code(FILLED)} if method.takes_a_processor else {}
    if preset is None:
        return call(name, **filled, **changes)
    taken = filled if FILLED in inspect.signature(preset.make).parameters else {}
    changes = changes if taken else {**filled, **changes}
    made = call(f"{name}.{preset.name}", **taken)
    return call("replace", made, **changes) if changes else made


def changed(method: Method) -> dict[str, Any]:
    """The settings that differ from what the decoder has without them."""
    plain = replace(method, texts=()).build(STAND_IN)
    return {key: v for key, v in method.settings.items() if v != getattr(plain, key)}


def drawn(way: Spec, drawing: SamplingSettings) -> Piece:
    """What differs between ways of how tokens are taken, for `generate`."""
    given = drawing.arguments(way)
    items = [(f'"{key}": ', piece(given[key])) for key in DRAWN if key in given]
    return Group("{", tuple(items), "}")


def imports(ways: Sequence[Spec], origin: Origin, is_lab: bool) -> Iterator[str]:
    """Lines in isort's order: the standard library, what others wrote, sightline."""
    methods = [method for way in ways for method in way.methods]
    kinds = {method.kind.__name__ for method in methods}
    lab = [*origin.lab, *["CHECKPOINT"] * is_lab]
    yield "import sys"
    if any(made_with(method).opening == "replace(" for method in methods):
        yield "from dataclasses import replace"
    yield "from hashlib import sha256"
    yield ""
    yield from origin.others
    yield "import torch"
    yield "from transformers import AutoModelForImageTextToText, AutoProcessor"
    yield ""
    yield from_import("sightline", {"answer", *kinds, *origin.own})
    if lab:
        yield from_import("sightline.lab", lab)


def from_import(module: str, names: Sequence[str] | set[str]) -> str:
    """Constants come first, then classes, then functions."""
    ordered = sorted(names, key=lambda name: (not name.isupper(), name[0].islower(), name))
    return f"from {module} import {', '.join(ordered)}"
