"""Everyday objects as a few polygons each, in a square of 100 x 100 units with y pointing down."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

BLACK, DARK, GREY, STEEL = (28, 28, 32), (62, 62, 68), (128, 130, 134), (196, 200, 206)
WHITE, CREAM, GLASS, RUBBER = (246, 246, 242), (240, 226, 196), (168, 208, 226), (36, 36, 40)
RED, AMBER, GREEN, LEAF = (204, 40, 40), (238, 176, 40), (52, 160, 76), (70, 140, 60)
WOOD, BROWN, TAN, PINK = (150, 104, 62), (112, 72, 44), (196, 156, 108), (226, 160, 160)

CRIMSON, NAVY, YELLOW, MOSS = (192, 52, 52), (48, 92, 172), (232, 180, 52), (58, 134, 92)
PURPLE, COPPER, TEAL, SILVER = (122, 72, 148), (224, 122, 48), (88, 160, 176), (196, 200, 206)


def shaded(colour: Colour, factor: float) -> Colour:
    """The colour darker (`factor` below 1) or lighter (above), clipped to what a byte holds."""
    red, green, blue = (min(255, max(0, round(c * factor))) for c in colour)
    return red, green, blue


@dataclass(frozen=True)
class Pen:
    """Draws in an object's own 100 x 100 units onto a canvas of pixels.

    Args:
        canvas: What is drawn on, in pixels.
        left, top, size: The object's square on the canvas, in pixels.
        flip: Mirrored left to right.
        tilt: Turned about the middle of its square, in degrees.
    """

    canvas: ImageDraw.ImageDraw
    left: float
    top: float
    size: float
    flip: bool = False
    tilt: float = 0.0

    def pixels(self, points: Sequence[Point]) -> list[Point]:
        cosine, sine = math.cos(math.radians(self.tilt)), math.sin(math.radians(self.tilt))
        side, unit = (-1 if self.flip else 1), self.size / 100
        placed = []
        for x, y in points:
            across, down = side * (x - 50), y - 50
            placed.append(
                (
                    self.left + (50 + across * cosine - down * sine) * unit,
                    self.top + (50 + across * sine + down * cosine) * unit,
                )
            )
        return placed

    def polygon(self, *points: Point, fill: Colour) -> None:
        self.canvas.polygon(self.pixels(points), fill=fill)

    def box(self, left: float, top: float, right: float, bottom: float, fill: Colour) -> None:
        self.polygon((left, top), (right, top), (right, bottom), (left, bottom), fill=fill)

    def arc(
        self,
        middle: Point,
        across: float,
        down: float,
        fill: Colour,
        start: float = 0,
        end: float = 360,
    ) -> None:
        """A filled ellipse with the given half axes, or its segment between two angles."""
        steps = 28
        angles = [math.radians(start + (end - start) * i / steps) for i in range(steps + 1)]
        x, y = middle
        points = [(x + across * math.cos(a), y + down * math.sin(a)) for a in angles]
        self.polygon(*points, fill=fill)

    def line(self, *points: Point, width: float, fill: Colour) -> None:
        pixels = self.pixels(points)
        thick = max(1, round(width * self.size / 100))
        self.canvas.line(pixels, fill=fill, width=thick, joint="curve")
        radius = thick / 2
        for x, y in (pixels[0], pixels[-1]):
            self.canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)

    def ring(self, middle: Point, radius: float, width: float, fill: Colour) -> None:
        x, y = middle
        angles = [2 * math.pi * i / 24 for i in range(25)]
        points = [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]
        self.line(*points, width=width, fill=fill)


def fork(pen: Pen, paint: Colour) -> None:
    pen.line((50, 50), (50, 95), width=9, fill=paint)
    pen.arc((50, 38), 19, 18, fill=paint, start=0, end=180)
    for x in (33.5, 44.5, 55.5, 66.5):
        pen.line((x, 6), (x, 40), width=5.5, fill=paint)


def spoon(pen: Pen, paint: Colour) -> None:
    pen.line((50, 40), (50, 95), width=8, fill=paint)
    pen.arc((50, 25), 17, 22, fill=paint)
    pen.arc((50, 25), 11, 16, fill=shaded(paint, 0.8))


def cup(pen: Pen, paint: Colour) -> None:
    pen.ring((76, 50), 15, 7, fill=shaded(paint, 0.8))
    pen.polygon((18, 22), (74, 22), (69, 84), (23, 84), fill=paint)
    pen.arc((46, 84), 23, 6, fill=paint)
    pen.arc((46, 22), 28, 8, fill=shaded(paint, 0.75))
    pen.arc((46, 23), 23, 5.5, fill=BROWN)
    pen.polygon((25, 34), (31, 34), (34, 80), (29, 80), fill=shaded(paint, 1.2))


def bowl(pen: Pen, paint: Colour) -> None:
    pen.box(36, 76, 64, 86, fill=shaded(paint, 0.65))
    pen.arc((50, 42), 44, 40, fill=paint, start=0, end=180)
    pen.arc((50, 42), 44, 11, fill=shaded(paint, 0.7))
    pen.arc((50, 43), 37, 8, fill=CREAM)
    pen.polygon((14, 56), (86, 56), (84, 61), (16, 61), fill=shaded(paint, 1.25))


def bottle(pen: Pen, paint: Colour) -> None:
    pen.box(42, 4, 58, 12, fill=DARK)
    pen.box(44, 12, 56, 34, fill=paint)
    pen.arc((50, 46), 20, 17, fill=paint, start=180, end=360)
    pen.box(30, 44, 70, 94, fill=paint)
    pen.box(30, 56, 70, 80, fill=CREAM)
    pen.box(35, 46, 39, 92, fill=shaded(paint, 1.3))


def orange(pen: Pen, paint: Colour) -> None:
    pen.arc((50, 52), 42, 41, fill=paint)
    pen.arc((45, 47), 33, 32, fill=shaded(paint, 1.12))
    pen.arc((36, 36), 8, 7, fill=shaded(paint, 1.5))
    for x, y in ((66, 66), (52, 74), (74, 48), (34, 66), (58, 56)):
        pen.arc((x, y), 2, 2, fill=shaded(paint, 0.85))
    pen.polygon((48, 12), (66, 5), (72, 14), (56, 19), fill=LEAF)


def wheel(pen: Pen, x: float, y: float, radius: float) -> None:
    pen.arc((x, y), radius, radius, fill=RUBBER)
    pen.arc((x, y), radius * 0.5, radius * 0.5, fill=STEEL)


def car(pen: Pen, paint: Colour) -> None:
    pen.polygon((20, 50), (34, 28), (68, 28), (84, 50), fill=paint)
    pen.polygon((27, 49), (37, 33), (49, 33), (49, 49), fill=GLASS)
    pen.polygon((53, 33), (66, 33), (77, 49), (53, 49), fill=GLASS)
    pen.polygon((3, 54), (14, 48), (90, 48), (98, 56), (98, 70), (3, 70), fill=paint)
    pen.box(3, 66, 98, 71, fill=shaded(paint, 0.6))
    pen.box(93, 54, 98, 60, fill=AMBER)
    wheel(pen, 24, 71, 11)
    wheel(pen, 76, 71, 11)


def bus(pen: Pen, paint: Colour) -> None:
    pen.box(3, 18, 97, 76, fill=paint)
    pen.box(3, 18, 97, 24, fill=shaded(paint, 0.75))
    for left in (8, 25, 42, 59):
        pen.box(left, 30, left + 13, 47, fill=GLASS)
    pen.box(78, 30, 92, 74, fill=shaded(GLASS, 0.8))
    pen.box(84.5, 30, 86, 74, fill=DARK)
    pen.box(3, 56, 76, 61, fill=WHITE)
    wheel(pen, 22, 77, 10)
    wheel(pen, 66, 77, 10)


def truck(pen: Pen, paint: Colour) -> None:
    pen.box(2, 16, 64, 70, fill=shaded(WHITE, 0.93))
    for x in (14, 27, 40, 53):
        pen.box(x, 18, x + 1.5, 68, fill=GREY)
    pen.polygon((66, 34), (84, 34), (97, 52), (97, 74), (66, 74), fill=paint)
    pen.polygon((71, 39), (82, 39), (90, 52), (71, 52), fill=GLASS)
    pen.box(2, 70, 97, 76, fill=DARK)
    for x in (16, 36, 82):
        wheel(pen, x, 77, 10)


def bicycle(pen: Pen, paint: Colour) -> None:
    for x in (23, 77):
        pen.ring((x, 64), 19, 4.5, fill=RUBBER)
    pen.line((23, 64), (38, 36), (66, 36), (48, 64), (23, 64), width=4.5, fill=paint)
    pen.line((48, 64), (36, 30), width=4.5, fill=paint)
    pen.line((77, 64), (64, 24), (74, 20), width=4.5, fill=paint)
    pen.line((28, 29), (43, 29), width=6, fill=BLACK)
    pen.arc((48, 64), 5, 5, fill=DARK)


def traffic_light(pen: Pen, paint: Colour) -> None:
    pen.box(46, 66, 54, 98, fill=GREY)
    pen.box(31, 3, 69, 70, fill=paint)
    pen.box(34, 6, 66, 67, fill=shaded(paint, 0.7))
    for y, light in ((17, RED), (36.5, AMBER), (56, GREEN)):
        pen.arc((50, y), 8.5, 8.5, fill=light)


def stop_sign(pen: Pen, paint: Colour) -> None:
    pen.box(47, 60, 53, 99, fill=GREY)
    for radius, fill in ((35, WHITE), (31.5, paint)):
        corners = [math.radians(22.5 + 45 * i) for i in range(8)]
        points = [(50 + radius * math.cos(a), 36 + radius * math.sin(a)) for a in corners]
        pen.polygon(*points, fill=fill)
    pen.line((36, 30), (29, 30), (29, 36), (36, 36), (36, 43), (28, 43), width=3, fill=WHITE)
    pen.line((39, 30), (47, 30), width=3, fill=WHITE)
    pen.line((43, 30), (43, 43), width=3, fill=WHITE)
    pen.line((50.5, 30), (58, 30), (58, 43), (50.5, 43), (50.5, 30), width=3, fill=WHITE)
    pen.line((62, 43), (62, 30), (70, 30), (70, 37), (62, 37), width=3, fill=WHITE)


def legs(pen: Pen, places: Sequence[float], top: float, bottom: float, fill: Colour) -> None:
    for x in places:
        pen.box(x, top, x + 7, bottom, fill=fill)


def cow(pen: Pen, paint: Colour) -> None:
    legs(pen, (22, 32, 60, 70), 58, 92, fill=WHITE)
    pen.line((14, 38), (9, 66), width=3, fill=DARK)
    pen.box(14, 34, 78, 66, fill=WHITE)
    pen.arc((16, 50), 7, 16, fill=WHITE)
    pen.arc((30, 44), 11, 9, fill=paint)
    pen.arc((54, 54), 12, 9, fill=paint)
    pen.arc((62, 36), 9, 5, fill=paint)
    pen.arc((42, 67), 6, 5, fill=PINK)
    pen.polygon((72, 24), (92, 22), (94, 50), (80, 52), fill=paint)
    pen.arc((89, 48), 8.5, 7, fill=PINK)
    pen.line((76, 24), (71, 15), width=3.5, fill=CREAM)
    pen.line((88, 22), (93, 14), width=3.5, fill=CREAM)
    pen.arc((84, 32), 2.5, 2.5, fill=WHITE)


def sheep(pen: Pen, paint: Colour) -> None:
    legs(pen, (26, 38, 56, 67), 64, 90, fill=BLACK)
    for x, y in ((26, 46), (40, 38), (56, 38), (68, 46), (64, 60), (48, 63), (32, 60), (47, 50)):
        pen.arc((x, y), 15, 14, fill=paint)
    pen.arc((83, 42), 10, 13, fill=BLACK)
    pen.arc((82, 29), 10, 7, fill=paint)
    pen.arc((71, 38), 6, 3, fill=BLACK)
    pen.arc((85, 39), 2, 2, fill=WHITE)


def horse(pen: Pen, paint: Colour) -> None:
    mane = shaded(paint, 0.5)
    legs(pen, (22, 31, 58, 66), 56, 96, fill=shaded(paint, 0.85))
    for x in (22, 31, 58, 66):
        pen.box(x, 91, x + 7, 97, fill=BLACK)
    pen.line((18, 46), (9, 56), (8, 76), width=6, fill=mane)
    pen.arc((45, 52), 31, 14, fill=paint)
    pen.polygon((58, 46), (72, 12), (84, 14), (78, 56), fill=paint)
    pen.polygon((72, 10), (84, 8), (99, 28), (92, 34), (78, 26), fill=paint)
    pen.polygon((56, 44), (69, 6), (75, 12), (65, 46), fill=mane)
    pen.polygon((74, 10), (76, 2), (81, 9), fill=paint)
    pen.arc((84, 16), 2, 2, fill=BLACK)


def dog(pen: Pen, paint: Colour) -> None:
    legs(pen, (24, 33, 58, 67), 60, 92, fill=shaded(paint, 0.85))
    pen.line((18, 50), (6, 30), width=6, fill=paint)
    pen.arc((46, 56), 31, 13, fill=paint)
    pen.arc((78, 36), 15, 14, fill=paint)
    pen.box(80, 36, 97, 48, fill=shaded(paint, 1.15))
    pen.arc((96, 38), 4, 4, fill=BLACK)
    pen.polygon((64, 24), (74, 22), (72, 50), (64, 48), fill=shaded(paint, 0.55))
    pen.arc((82, 32), 2.3, 2.3, fill=BLACK)
    pen.line((66, 48), (72, 52), width=4, fill=RED)


def bird(pen: Pen, paint: Colour) -> None:
    pen.line((46, 70), (44, 92), width=3, fill=AMBER)
    pen.line((56, 70), (58, 92), width=3, fill=AMBER)
    pen.polygon((28, 58), (2, 44), (4, 66), fill=shaded(paint, 0.7))
    pen.arc((50, 56), 29, 19, fill=paint)
    pen.arc((74, 36), 14, 13, fill=paint)
    pen.polygon((86, 31), (99, 37), (86, 42), fill=AMBER)
    pen.arc((44, 54), 18, 10, fill=shaded(paint, 0.65))
    pen.arc((78, 33), 2.5, 2.5, fill=BLACK)


def apple(pen: Pen, paint: Colour) -> None:
    pen.arc((36, 54), 27, 33, fill=paint)
    pen.arc((64, 54), 27, 33, fill=paint)
    pen.arc((50, 74), 26, 18, fill=paint)
    pen.arc((34, 42), 8, 10, fill=shaded(paint, 1.4))
    pen.line((50, 28), (54, 8), width=4.5, fill=BROWN)
    pen.polygon((54, 16), (70, 6), (80, 12), (66, 20), fill=LEAF)


def couch(pen: Pen, paint: Colour) -> None:
    pen.box(12, 22, 88, 62, fill=shaded(paint, 0.8))
    pen.box(49.3, 24, 50.7, 50, fill=shaded(paint, 0.55))
    pen.box(14, 50, 86, 76, fill=paint)
    pen.box(49.3, 50, 50.7, 62, fill=shaded(paint, 0.6))
    pen.box(14, 62, 86, 64, fill=shaded(paint, 0.6))
    for x in (9, 91):
        pen.arc((x, 44), 8, 8, fill=shaded(paint, 1.15))
        pen.box(x - 8, 44, x + 8, 78, fill=shaded(paint, 1.15))
    pen.box(6, 78, 14, 84, fill=BROWN)
    pen.box(86, 78, 94, 84, fill=BROWN)


def chair(pen: Pen, paint: Colour) -> None:
    for x in (28, 70):
        pen.box(x, 6, x + 6, 96, fill=paint)
    for y in (10, 22, 34):
        pen.box(30, y, 74, y + 6, fill=paint)
    pen.polygon((24, 54), (78, 54), (86, 64), (16, 64), fill=shaded(paint, 0.8))
    pen.box(17, 64, 23, 98, fill=shaded(paint, 0.9))
    pen.box(79, 64, 85, 98, fill=shaded(paint, 0.9))


def tv(pen: Pen, paint: Colour) -> None:
    pen.box(4, 16, 96, 76, fill=BLACK)
    pen.box(8, 20, 92, 70, fill=paint)
    pen.polygon((8, 20), (44, 20), (18, 70), (8, 70), fill=shaded(paint, 1.4))
    pen.box(44, 76, 56, 84, fill=DARK)
    pen.box(28, 84, 72, 89, fill=DARK)


def cat(pen: Pen, paint: Colour) -> None:
    pen.line((28, 86), (12, 78), (10, 56), (18, 46), width=7, fill=shaded(paint, 0.85))
    pen.arc((46, 70), 23, 25, fill=paint)
    pen.box(44, 60, 70, 94, fill=paint)
    pen.box(56, 72, 58, 94, fill=shaded(paint, 0.6))
    pen.arc((62, 34), 21, 18, fill=paint)
    pen.polygon((42, 30), (43, 5), (58, 18), fill=paint)
    pen.polygon((82, 30), (81, 5), (66, 18), fill=paint)
    for x in (54, 70):
        pen.arc((x, 32), 3.6, 4.2, fill=(206, 214, 80))
        pen.arc((x, 32), 1.4, 3.6, fill=BLACK)
    pen.polygon((59, 39), (65, 39), (62, 43), fill=PINK)


def vase(pen: Pen, paint: Colour) -> None:
    for x, tip in ((36, (24, 12)), (50, (50, 6)), (64, (76, 12))):
        pen.line((50, 42), (x, 26), tip, width=2.5, fill=LEAF)
        pen.arc(tip, 8, 7, fill=PINK)
        pen.arc(tip, 3, 3, fill=AMBER)
    pen.box(41, 36, 59, 54, fill=paint)
    pen.arc((50, 37), 13, 3.5, fill=shaded(paint, 0.7))
    pen.arc((50, 70), 24, 21, fill=paint)
    pen.box(38, 86, 62, 96, fill=paint)
    pen.arc((50, 70), 24, 4, fill=shaded(paint, 1.3))


def clock(pen: Pen, paint: Colour) -> None:
    pen.arc((50, 50), 44, 44, fill=paint)
    pen.arc((50, 50), 37, 37, fill=WHITE)
    for i in range(12):
        angle = math.radians(30 * i)
        x, y = math.cos(angle), math.sin(angle)
        pen.line((50 + 29 * x, 50 + 29 * y), (50 + 33 * x, 50 + 33 * y), width=3, fill=DARK)
    pen.line((50, 50), (50, 24), width=4, fill=BLACK)
    pen.line((50, 50), (67, 58), width=4.5, fill=BLACK)


DRAWINGS: dict[str, tuple[Callable[[Pen, Colour], None], tuple[Colour, ...]]] = {
    "fork": (fork, (SILVER, (170, 174, 182))),
    "spoon": (spoon, ((206, 188, 150), (190, 150, 100))),
    "cup": (cup, (NAVY, TEAL)),
    "bowl": (bowl, (MOSS, YELLOW)),
    "bottle": (bottle, ((46, 110, 66), (122, 74, 36))),
    "orange": (orange, ((232, 136, 36), (224, 118, 28), (236, 150, 52))),
    "car": (car, (CRIMSON, NAVY)),
    "bus": (bus, (YELLOW, COPPER)),
    "truck": (truck, (CRIMSON, NAVY, MOSS)),
    "bicycle": (bicycle, (NAVY, CRIMSON)),
    "traffic light": (traffic_light, ((58, 60, 62), (204, 164, 40), (44, 74, 58))),
    "stop sign": (stop_sign, ((196, 34, 38), (178, 30, 34))),
    "cow": (cow, ((44, 40, 40), (112, 72, 44))),
    "sheep": (sheep, ((242, 240, 232), (222, 214, 198))),
    "horse": (horse, ((112, 72, 44), (150, 84, 44))),
    "dog": (dog, ((208, 178, 138), (196, 140, 80))),
    "bird": (bird, ((60, 120, 200), CRIMSON)),
    "apple": (apple, ((196, 40, 44), (150, 180, 56), (214, 84, 48))),
    "couch": (couch, (PURPLE, MOSS)),
    "chair": (chair, (WOOD, BROWN)),
    "tv": (tv, ((74, 92, 116), (60, 66, 74), (92, 132, 170))),
    "cat": (cat, ((132, 128, 126), (58, 48, 44))),
    "vase": (vase, (PURPLE, TEAL)),
    "clock": (clock, (CRIMSON, NAVY, WOOD)),
}
