"""What decoders do to the lab's model, on scenes whose truth is known: `sightline evaluate lab`.

Presence questions as in POPE (arXiv:2305.10355) and captions as in CHAIR (arXiv:1809.02156), over
decorrelated scenes; no file is needed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from sightline.evaluation.benchmark import Item, Prediction, Task, by_unit
from sightline.evaluation.metrics import NO, YES, Metric, parse
from sightline.evaluation.statistics import HIGHER, LOWER, Ratio
from sightline.lab import CONTEXTS, OBJECTS, Scene, context_of, decorrelated, draw, mentioned
from sightline.lab.dialogue import DESCRIBE, question

STREAM = 20261122  # keeps these scenes apart from those of training and of choosing the model
MAX_NEW_TOKENS = {"presence": 8, "caption": 96}
WORDINGS: dict[str, dict[str, Any]] = {
    "vdgd": dict(layout="continue", request=DESCRIBE[0], tokens=96),
    "vdgd-prefix": dict(layout="continue", request=DESCRIBE[0], tokens=96),
    "mvp": dict(requests=DESCRIBE, template="{caption} {question}", caption_tokens=96, tokens=8),
    "carve": dict(general=DESCRIBE[1], suffix=""),
}
"""What decoders that ask something themselves ask here, unless a user sets it.

The lab's model knows the words of `lab/dialogue.py` and no others, so it is asked in these and has
room for its longest caption. They were chosen for that and not by results. CARVE describes in
other words than those that ask for a caption, as the contrast of a prompt with itself is flat.
"""

PRESENT = 3  # questions about what is there, at most, as in POPE
ABSENT = ("random", "popular", "adversarial")
KINDS = ("present", *ABSENT)
PRESENCE = (
    Metric("present", "present", HIGHER),
    *(Metric(kind, kind, HIGHER) for kind in ABSENT),
    Metric("accuracy", "accuracy", HIGHER),
    Metric("f1", "F1", HIGHER),
    Metric("yes_rate", "yes-rate", None),
)
CAPTIONS = (
    Metric("chair_i", "CHAIR_i", LOWER),
    Metric("chair_s", "CHAIR_s", LOWER),
    Metric("recall", "recall", HIGHER),
    Metric("tokens", "tokens", None),
    Metric("named", "objects named", None),
)


# Questions


@dataclass(frozen=True)
class Question:
    """Whether an object is in a scene.

    Args:
        scene: Index of the scene.
        object: The object asked about.
        kind: One of `KINDS`, see `questions`.
    """

    scene: int
    object: str
    kind: str


def questions(scenes: Sequence[Scene], rng: np.random.Generator) -> list[Question]:
    """Of each scene: up to three objects that are there, and one absent object of each kind.

    adversarial: of the context of something that is there, so the model expects it.
    random: of a context that nothing present belongs to.
    popular: frequent in the images that the model has seen. There every object is as frequent as
    any other, but for the background: before a kitchen's, kitchen things are the most frequent.
    So it is a member of the background's context, and no object that was asked about already.

    A kind that a scene has no object for is not asked.
    """
    asked = []
    for index, scene in enumerate(scenes):
        pools = absent_pools(scene)
        chosen = {"present": drawn(scene.present, PRESENT, rng)}
        for kind in ("adversarial", "random", "popular"):
            taken = {name for names in chosen.values() for name in names}
            chosen[kind] = drawn([n for n in pools[kind] if n not in taken], 1, rng)
        asked += [Question(index, name, kind) for kind in KINDS for name in chosen[kind]]
    return asked


def absent_pools(scene: Scene) -> dict[str, list[str]]:
    """What may be asked about by each kind, in the order of `OBJECTS`."""
    contexts = {context_of(name) for name in scene.present}
    absent = [name for name in OBJECTS if name not in scene.present]
    return {
        "adversarial": [name for name in absent if context_of(name) in contexts],
        "random": [name for name in absent if context_of(name) not in contexts],
        "popular": [name for name in absent if name in CONTEXTS[scene.background]],
    }


def drawn(pool: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    return [str(name) for name in rng.permutation(np.array(pool, dtype=object))[:count]]


# The benchmark


class LabBenchmark:
    """Presence questions and captions over drawn scenes.

    Args:
        scenes: How many, 1 or more.
        seed: Of the scenes and of what is asked.
    """

    name = "lab"
    tasks = (
        Task("presence", "Presence", MAX_NEW_TOKENS["presence"], True, PRESENCE),
        Task("caption", "Captions", MAX_NEW_TOKENS["caption"], False, CAPTIONS),
    )

    def __init__(self, scenes: int = 1000, seed: int = 0):
        if scenes < 1:
            raise ValueError(f"scenes must be at least 1, got {scenes}")
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}")
        self.seed = seed
        rng = np.random.default_rng([STREAM, 0, seed])
        self.scenes = [decorrelated(rng) for _ in range(scenes)]
        asked = questions(self.scenes, np.random.default_rng([STREAM, 1, seed]))
        captions = [
            Item("caption", str(i), DESCRIBE[0], str(i), str(i)) for i in range(len(self.scenes))
        ]
        self.items: Sequence[Item] = [*map(presence_item, asked), *captions]
        self._drawn: dict[int, Image.Image] = {}

    def load_image(self, item: Item) -> Image.Image:
        """Its scene, which several questions share and which is drawn once (38 kB each)."""
        scene = int(item.image)
        if scene not in self._drawn:
            self._drawn[scene] = draw(self.scenes[scene])
        return self._drawn[scene]

    def prediction(self, item: Item, text: str) -> str | None:
        return parse(text)

    def ratios(
        self, task: Task, said: Sequence[Prediction], units: Mapping[str, int]
    ) -> dict[str, Ratio]:
        if task.name == "presence":
            return presence_ratios(said, units)
        return caption_ratios(said, [self.present(entry.item) for entry in said], units)

    def present(self, item: Item) -> frozenset[str]:
        """What is in the item's scene."""
        return frozenset(self.scenes[int(item.image)].present)

    def fixed(self) -> dict[str, Any]:
        return {"scenes": len(self.scenes), "scene_seed": self.seed}


def presence_item(asked: Question) -> Item:
    scene = str(asked.scene)
    label = YES if asked.kind == "present" else NO
    name = f"{scene}-{asked.object}"
    return Item("presence", name, question(asked.object), scene, scene, label, asked.kind)


def presence_ratios(said: Sequence[Prediction], units: Mapping[str, int]) -> dict[str, Ratio]:
    """The metrics named in `PRESENCE`.

    An answer that is neither yes nor no is wrong, and no yes. F1 is of "present":
    2 TP / (answers yes + questions whose object is there).
    """
    present = [entry.item.label == YES for entry in said]
    answers = [parse(entry.text) for entry in said]
    yes = [answer == YES for answer in answers]
    right = [a == entry.item.label for a, entry in zip(answers, said, strict=True)]
    hits = [p and y for p, y in zip(present, yes, strict=True)]

    def sums(values: Iterable[float]) -> np.ndarray:
        return by_unit(said, values, units)

    ones = sums([1] * len(said))
    ratios = {"accuracy": Ratio(sums(right), ones), "yes_rate": Ratio(sums(yes), ones)}
    for kind in KINDS:
        of_kind = [entry.item.kind == kind for entry in said]
        both = [r and k for r, k in zip(right, of_kind, strict=True)]
        ratios[kind] = Ratio(sums(both), sums(of_kind))
    ratios["f1"] = Ratio(2 * sums(hits), sums(yes) + sums(present))
    return ratios


def caption_ratios(
    said: Sequence[Prediction], truth: Sequence[frozenset[str]], units: Mapping[str, int]
) -> dict[str, Ratio]:
    """The metrics named in `CAPTIONS`.

    CHAIR_i is the share of invented among named objects, CHAIR_s the share of captions with an
    invented object, recall the share of objects that are named. An empty caption invents nothing
    and finds nothing.

    Args:
        truth: The objects that are there, of each caption.
    """
    names_in = {text: frozenset(mentioned(text)) for text in {entry.text for entry in said}}
    named = [names_in[entry.text] for entry in said]
    pairs = list(zip(named, truth, strict=True))

    def sums(values: Iterable[float]) -> np.ndarray:
        return by_unit(said, values, units)

    ones, names = sums([1] * len(said)), sums(map(len, named))
    return {
        "chair_i": Ratio(sums(len(n - t) for n, t in pairs), names),
        "chair_s": Ratio(sums(not n <= t for n, t in pairs), ones),
        "recall": Ratio(sums(len(n & t) for n, t in pairs), sums(map(len, truth))),
        "tokens": Ratio(sums(entry.tokens for entry in said), ones),
        "named": Ratio(names, ones),
    }
