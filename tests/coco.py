"""The lab's scenes laid out as COCO and POPE are published: images, annotations, questions.

    laid_out = lay_out(tmp_path, scenes=4)
    laid_out.coco / "val2014" / "COCO_val2014_000000000100.jpg"
    laid_out.coco / "annotations" / "instances_val2014.json", "captions_val2014.json"
    laid_out.pope / "coco_pope_random.json", "coco_pope_popular.json", "coco_pope_adversarial.json"

Of each scene the questions alternate yes and no, as many as `pairs` and the scene allow.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sightline.lab import CONTEXTS, OBJECTS, Scene, caption, context_of, decorrelated, draw
from sightline.lab.dialogue import question

SIDE = 256  # pixels
CATEGORIES = {
    "bicycle": 2, "car": 3, "bus": 6, "truck": 8, "traffic light": 10, "stop sign": 13,
    "bird": 16, "cat": 17, "dog": 18, "horse": 19, "sheep": 20, "cow": 21, "bottle": 44,
    "cup": 47, "fork": 48, "spoon": 50, "bowl": 51, "apple": 53, "orange": 55, "chair": 62,
    "couch": 63, "tv": 72, "clock": 85, "vase": 86,
}  # fmt: skip
"""COCO's ids of the lab's objects."""


@dataclass(frozen=True)
class LaidOut:
    """Where everything lies, and the truth.

    Args:
        coco: Holds `val2014/` and `annotations/`.
        pope: Holds the three files of questions.
        scenes: By image id.
    """

    coco: Path
    pope: Path
    scenes: dict[int, Scene]

    @property
    def images(self) -> Path:
        return self.coco / "val2014"

    @property
    def instances(self) -> Path:
        return self.coco / "annotations" / "instances_val2014.json"

    @property
    def captions(self) -> Path:
        return self.coco / "annotations" / "captions_val2014.json"

    @property
    def questions(self) -> list[Path]:
        return [self.pope / f"coco_pope_{split}.json" for split in ABSENT]


def lay_out(folder: Path, scenes: int = 4, pairs: int = 1, seed: int = 0) -> LaidOut:
    """Draws decorrelated scenes into `folder / "coco"` and asks of them in `folder / "pope"`."""
    rng = np.random.default_rng(seed)
    drawn = {100 + 7 * i: decorrelated(rng) for i in range(scenes)}
    made = LaidOut(folder / "coco", folder / "pope", drawn)
    for parent in (made.images, made.instances.parent, made.pope):
        parent.mkdir(parents=True)
    for image, scene in drawn.items():
        draw(scene, SIDE).save(made.images / file_name(image), quality=95)
    write(made.instances, instances(drawn))
    write(made.captions, captions(drawn))
    for path, absent in zip(made.questions, ABSENT.values(), strict=True):
        rows = asked(drawn, pairs, absent)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def file_name(image: int) -> str:
    return f"COCO_val2014_{image:012d}.jpg"


def instances(scenes: dict[int, Scene]) -> dict[str, Any]:
    """COCO's annotations of objects, with boxes in pixels."""
    placed = [(image, thing) for image, scene in scenes.items() for thing in scene.placed]
    return {
        "images": [
            {"id": image, "file_name": file_name(image), "height": SIDE, "width": SIDE}
            for image in scenes
        ],
        "categories": [{"id": number, "name": name} for name, number in CATEGORIES.items()],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": CATEGORIES[thing.name],
                "bbox": [round(SIDE * x, 2) for x in (thing.left, thing.top, *[thing.size] * 2)],
                "iscrowd": 0,
            }
            for number, (image, thing) in enumerate(placed, start=1)
        ],
    }


def captions(scenes: dict[int, Scene]) -> dict[str, Any]:
    """One reference caption of each image."""
    return {
        "annotations": [
            {"id": number, "image_id": image, "caption": caption(scene.present)}
            for number, (image, scene) in enumerate(scenes.items(), start=1)
        ]
    }


def asked(
    scenes: dict[int, Scene], pairs: int, absent: Callable[[Scene], Sequence[str]]
) -> list[dict[str, Any]]:
    """Rows of a file of questions."""
    rows: list[dict[str, Any]] = []
    for image, scene in scenes.items():
        for pair in list(zip(scene.present, absent(scene), strict=False))[:pairs]:
            for name, label in zip(pair, ("yes", "no"), strict=True):
                rows.append(
                    {
                        "question_id": len(rows) + 1,
                        "image": file_name(image),
                        "text": question(name),
                        "label": label,
                    }
                )
    return rows


def elsewhere(scene: Scene) -> list[str]:
    """Objects of contexts that the scene has nothing of, else any that are absent."""
    contexts = {context_of(name) for name in scene.present}
    others = [name for name in OBJECTS if context_of(name) not in contexts]
    return others or not_there(scene)


def usual(scene: Scene) -> list[str]:
    """Absent objects of the contexts that the scene has something of."""
    there = scene.present
    contexts = dict.fromkeys(context_of(name) for name in there)
    return [n for context in contexts for n in CONTEXTS[context] if n not in there]


def not_there(scene: Scene) -> list[str]:
    return [name for name in reversed(OBJECTS) if name not in scene.present]


ABSENT = {"random": elsewhere, "popular": not_there, "adversarial": usual}
"""Which absent objects each file asks about, the first first."""
