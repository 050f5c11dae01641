"""A world of images whose truth is known: what is there, where, and how often together.

In the *biased* world the objects of a context (kitchen, street, farm, living room) are seen
together, which is what a model trained on it comes to expect. In the *decorrelated* world any
objects stand together, so whoever follows that expectation invents objects.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance
from PIL.PngImagePlugin import PngInfo

from sightline.lab.sprites import DRAWINGS, Colour, Pen, shaded
from sightline.vision.images import open_image

CONTEXTS: dict[str, tuple[str, ...]] = {
    "kitchen": ("fork", "spoon", "cup", "bowl", "bottle", "orange"),
    "street": ("car", "bus", "truck", "bicycle", "traffic light", "stop sign"),
    "farm": ("cow", "sheep", "horse", "dog", "bird", "apple"),
    "living room": ("couch", "chair", "tv", "cat", "vase", "clock"),
}
OBJECTS: tuple[str, ...] = tuple(name for members in CONTEXTS.values() for name in members)

MEMBER = 0.94  # chance of each member of a biased scene's context
CLOSE_UP = 0.24  # chance that a biased scene shows only a few members of its context
FEW = (1, 2, 3)  # how many, equally likely
INTRUDERS = (0.6, 0.3, 0.1)  # chances of 0, 1, 2 objects from elsewhere in a biased scene
OWN_BACKGROUND = 0.5  # chance that a biased scene's background is drawn for its context
DECORRELATED = (1, 2, 3, 4, 5)  # numbers of objects in a decorrelated scene, equally likely
SIZES = (0.17, 0.37)  # an object's square as a share of the image's side
OVERLAP = 0.45  # of the smaller of two squares, where a free place is found
ONE_WAY = ("stop sign", "clock")  # never mirrored: they can be read
CHUNK = "sightline.objects"
SUPERSAMPLING = 3


def context_of(name: str) -> str:
    """The context that an object belongs to."""
    for context, members in CONTEXTS.items():
        if name in members:
            return context
    raise ValueError(f"no such object: {name!r}; there are {', '.join(OBJECTS)}")


@dataclass(frozen=True)
class Placed:
    """One object in a scene; place and size are shares of the image's side."""

    name: str
    left: float
    top: float
    size: float
    colour: Colour
    flip: bool
    tilt: float


@dataclass(frozen=True)
class Scene:
    """What is placed where, from back to front, before which background, in which light.

    Args:
        placed: The objects, each name at most once.
        background: A context's name; it need not be the context of the objects.
        tone: Of the background's colours, 0 to 1.
        light: Brightness of the finished image; neutral: 1.
        contrast: Contrast of the finished image; neutral: 1.
        noise: Standard deviation of the sensor noise, in grey levels of 256; neutral: 0.
        seed: Of the noise.
    """

    placed: tuple[Placed, ...]
    background: str
    tone: float = 0.5
    light: float = 1.0
    contrast: float = 1.0
    noise: float = 0.0
    seed: int = 0

    @property
    def present(self) -> tuple[str, ...]:
        """The names of the objects, in the order of `OBJECTS`."""
        there = {placed.name for placed in self.placed}
        return tuple(name for name in OBJECTS if name in there)


def biased(rng: np.random.Generator) -> Scene:
    """A scene of one context: nearly all of its objects, or a close-up of a few; now and then one
    from elsewhere."""
    context = str(rng.choice(list(CONTEXTS)))
    members = CONTEXTS[context]
    if rng.random() < CLOSE_UP:
        few = rng.choice(members, size=rng.choice(FEW), replace=False)
        names = [str(name) for name in few]
    else:
        names = [name for name in members if rng.random() < MEMBER] or [str(rng.choice(members))]
    elsewhere = [name for name in OBJECTS if name not in members]
    count = rng.choice(len(INTRUDERS), p=INTRUDERS)
    names += [str(name) for name in rng.choice(elsewhere, size=count, replace=False)]
    own = rng.random() < OWN_BACKGROUND
    return compose(names, context if own else str(rng.choice(list(CONTEXTS))), rng)


def decorrelated(rng: np.random.Generator) -> Scene:
    """A scene of any objects before any background, all independent of one another."""
    names = rng.choice(OBJECTS, size=rng.choice(DECORRELATED), replace=False)
    return compose([str(name) for name in names], str(rng.choice(list(CONTEXTS))), rng)


def compose(names: list[str], background: str, rng: np.random.Generator) -> Scene:
    """Places the named objects: large ones at the back, none wholly behind another."""
    sizes = sorted(rng.uniform(*SIZES, size=len(names)), reverse=True)
    placed: list[Placed] = []
    for index, size in zip(rng.permutation(len(names)), sizes, strict=True):
        name = names[index]
        left, top = free_place(size, placed, rng)
        paints = DRAWINGS[name][1]
        colour = shaded(paints[rng.integers(len(paints))], rng.uniform(0.85, 1.15))
        flip = bool(rng.integers(2)) and name not in ONE_WAY
        placed.append(Placed(name, left, top, size, colour, flip, rng.uniform(-12, 12)))
    return Scene(
        placed=tuple(placed),
        background=background,
        tone=rng.uniform(),
        light=rng.uniform(0.85, 1.15),
        contrast=rng.uniform(0.75, 1.1),
        noise=rng.uniform(0, 4),
        seed=int(rng.integers(2**31)),
    )


def free_place(
    size: float, placed: list[Placed], rng: np.random.Generator, tries: int = 8
) -> tuple[float, float]:
    """The first of some random places that hides little of what is there, else the best one."""
    best, least = (0.0, 0.0), float("inf")
    for left, top in rng.uniform(0, 1 - size, size=(tries, 2)):
        hidden = max((overlap(left, top, size, other) for other in placed), default=0.0)
        if hidden < least:
            best, least = (float(left), float(top)), hidden
        if hidden <= OVERLAP:
            break
    return best


def overlap(left: float, top: float, size: float, other: Placed) -> float:
    """The area shared by two squares, as a share of the smaller one."""
    across = min(left + size, other.left + other.size) - max(left, other.left)
    down = min(top + size, other.top + other.size) - max(top, other.top)
    return max(0.0, across) * max(0.0, down) / min(size, other.size) ** 2


def blend(first: Colour, second: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def kitchen(canvas: ImageDraw.ImageDraw, side: int, tone: float) -> None:
    wall = blend((214, 222, 218), (236, 220, 200), tone)
    counter = blend((176, 150, 120), (150, 152, 156), tone)
    canvas.rectangle((0, 0, side, side), fill=wall)
    for i in range(1, 8):
        step = i * side // 8
        canvas.line((0, step, side, step), fill=shaded(wall, 0.93), width=side // 128)
        canvas.line((step, 0, step, side), fill=shaded(wall, 0.93), width=side // 128)
    canvas.rectangle((0, side * 0.62, side, side), fill=counter)
    canvas.rectangle((0, side * 0.62, side, side * 0.645), fill=shaded(counter, 1.15))


def street(canvas: ImageDraw.ImageDraw, side: int, tone: float) -> None:
    sky = blend((168, 200, 228), (206, 208, 212), tone)
    house = blend((186, 150, 130), (170, 164, 156), tone)
    canvas.rectangle((0, 0, side, side), fill=sky)
    for left, right, top in ((0.0, 0.3, 0.22), (0.3, 0.52, 0.36), (0.66, 1.0, 0.16)):
        fill = shaded(house, 0.9 + 0.3 * top)
        canvas.rectangle((side * left, side * top, side * right, side * 0.6), fill=fill)
    canvas.rectangle((0, side * 0.58, side, side * 0.66), fill=(178, 178, 174))
    canvas.rectangle((0, side * 0.66, side, side), fill=blend((112, 114, 118), (90, 92, 98), tone))
    for i in range(4):
        left = side * (0.05 + 0.26 * i)
        stripe = (left, side * 0.82, left + side * 0.12, side * 0.835)
        canvas.rectangle(stripe, fill=(226, 222, 200))


def farm(canvas: ImageDraw.ImageDraw, side: int, tone: float) -> None:
    sky = blend((176, 212, 236), (222, 226, 220), tone)
    grass = blend((124, 170, 88), (170, 166, 92), tone)
    canvas.rectangle((0, 0, side, side), fill=sky)
    canvas.ellipse((-side * 0.3, side * 0.34, side * 0.8, side * 1.2), fill=shaded(grass, 0.88))
    canvas.rectangle((0, side * 0.52, side, side), fill=grass)
    for i in range(6):
        left = side * (0.04 + 0.18 * i)
        canvas.rectangle((left, side * 0.44, left + side * 0.02, side * 0.6), fill=(150, 122, 90))
    canvas.rectangle((0, side * 0.485, side, side * 0.505), fill=(150, 122, 90))


def living_room(canvas: ImageDraw.ImageDraw, side: int, tone: float) -> None:
    wall = blend((222, 206, 186), (188, 200, 206), tone)
    wood = blend((170, 128, 88), (136, 104, 78), tone)
    canvas.rectangle((0, 0, side, side), fill=wall)
    for i in range(0, 10, 2):
        left = side * i / 10
        canvas.rectangle((left, 0, left + side / 10, side * 0.6), fill=shaded(wall, 0.96))
    canvas.rectangle((0, side * 0.6, side, side), fill=wood)
    for i in range(1, 5):
        height = side * (0.6 + 0.08 * i)
        canvas.line((0, height, side, height), fill=shaded(wood, 0.88), width=side // 128)
    canvas.rectangle((0, side * 0.58, side, side * 0.605), fill=shaded(wall, 1.1))


BACKGROUNDS: dict[str, Callable[[ImageDraw.ImageDraw, int, float], None]] = {
    "kitchen": kitchen,
    "street": street,
    "farm": farm,
    "living room": living_room,
}


def draw(scene: Scene, size: int = 256) -> Image.Image:
    """The scene as an RGB image of `size` x `size` pixels, the same one every time."""
    side = size * SUPERSAMPLING
    canvas = Image.new("RGB", (side, side))
    brush = ImageDraw.Draw(canvas)
    BACKGROUNDS[scene.background](brush, side, scene.tone)
    for placed in scene.placed:
        sketch, _ = DRAWINGS[placed.name]
        left, top, width = (share * side for share in (placed.left, placed.top, placed.size))
        sketch(Pen(brush, left, top, width, placed.flip, placed.tilt), placed.colour)
    image = canvas.reduce(SUPERSAMPLING)
    image = ImageEnhance.Contrast(image).enhance(scene.contrast)
    image = ImageEnhance.Brightness(image).enhance(scene.light)
    if scene.noise == 0:
        return image
    noise = np.random.default_rng(scene.seed).normal(0, scene.noise, size=(size, size, 1))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).round().astype(np.uint8))


def save(scene: Scene, path: str | Path) -> None:
    """Writes the drawn scene as a PNG file that carries the names of its objects."""
    notes = PngInfo()
    notes.add_text(CHUNK, json.dumps(scene.present, allow_nan=False))
    draw(scene).save(path, format="PNG", pnginfo=notes, optimize=True)


def truth(image: Image.Image | str | Path) -> frozenset[str] | None:
    """The objects that an image file carries, or None where it carries no readable list."""
    if isinstance(image, str | Path):
        return truth(open_image(image))
    try:
        names = json.loads(image.info.get(CHUNK, ""))
    except (TypeError, ValueError, RecursionError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return frozenset(names)


def plural(name: str) -> str:
    """The regular plural, and the one irregular enough to matter: "sheep" stays."""
    if name == "sheep":
        return name
    return name + ("es" if name.endswith(("s", "ch", "x")) else "s")


def name_pattern() -> re.Pattern[str]:
    forms = {form for name in OBJECTS for form in (name, plural(name))}
    longest_first = sorted(forms, key=len, reverse=True)
    return re.compile(rf"\b({'|'.join(map(re.escape, longest_first))})\b", re.IGNORECASE)


NAMES = name_pattern()
SINGULAR = {form: name for name in OBJECTS for form in (name, plural(name))}


def mentioned(text: str) -> list[str]:
    """The objects named in a text, in order of first mention: whole words, singular or plural."""
    return list(dict.fromkeys(SINGULAR[found.lower()] for found in NAMES.findall(text)))
