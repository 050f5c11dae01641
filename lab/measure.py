"""What the model says of decorrelated scenes, against what is there.

python -m sightline.lab.measure CHECKPOINT --scenes 1000

Presence is asked as in POPE (arXiv:2305.10355), captions are scored as in CHAIR
(arXiv:1809.02156); truth is exact, since the scenes are our own.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from sightline.json_text import json_text
from sightline.lab.dialogue import DESCRIBE, YES, question
from sightline.lab.scenes import CONTEXTS, OBJECTS, Scene, context_of, decorrelated, draw, mentioned
from sightline.model_protocol import Model

KINDS = ("present", "usual", "other")
SEED = 20261121


@dataclass(frozen=True)
class Question:
    """Whether an object is in a scene.

    Args:
        scene: Index into the list of scenes.
        object: The object asked about.
        kind: "present"; absent but "usual" beside something present; "other", absent and
            with nothing of its context present.
    """

    scene: int
    object: str
    kind: str

    @property
    def text(self) -> str:
        return question(self.object)

    @property
    def answer(self) -> bool:
        return self.kind == "present"


def held_out(count: int, seed: int = SEED) -> list[Scene]:
    """Decorrelated scenes for measuring."""
    rng = np.random.default_rng([seed, 0])
    return [decorrelated(rng) for _ in range(count)]


def questions(scenes: Sequence[Scene], rng: np.random.Generator) -> list[Question]:
    """Of each scene: up to two present objects, one absent but usual, one absent other."""
    asked = []
    for index, scene in enumerate(scenes):
        present = scene.present
        contexts = {context_of(name) for name in present}
        usual = [n for context in contexts for n in CONTEXTS[context] if n not in present]
        other = [name for name in OBJECTS if context_of(name) not in contexts]
        pools = zip(KINDS, (present, sorted(usual), other), (2, 1, 1), strict=True)
        for kind, pool, count in pools:
            chosen = rng.permutation(pool)[:count]
            asked += [Question(index, str(name), kind) for name in chosen]
    return asked


def chat(image: Image.Image, text: str) -> list[dict]:
    """One user message that shows an image and asks about it."""
    content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def batches(items: Sequence, size: int) -> Iterator[Sequence]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


@torch.no_grad()
def answers(
    model: Model,
    processor: Any,
    pairs: Sequence[tuple[Image.Image, str]],
    batch: int = 64,
    **settings,
) -> list[str]:
    """What `generate` says of each image and text, in batches; `settings` are for it."""
    said = []
    for some in batches(pairs, batch):
        inputs = processor.apply_chat_template(
            [chat(image, text) for image, text in some],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(model.device, model.dtype)
        tokens = model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]
        said += processor.batch_decode(tokens, skip_special_tokens=True)
    return said


def presence(model: Model, processor: Any, scenes: Sequence[Scene]) -> dict:
    """The share of right answers by kind of question, and the share of "Yes"."""
    asked = questions(scenes, np.random.default_rng([SEED, 1]))
    images = [draw(scene) for scene in scenes]
    pairs = [(images[q.scene], q.text) for q in asked]
    yes = [said.startswith(YES) for said in answers(model, processor, pairs, max_new_tokens=1)]
    right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for q, said in zip(asked, yes, strict=True):
        right[q.kind].append(said == q.answer)
    return {kind: float(np.mean(r)) for kind, r in right.items()} | {"yes": float(np.mean(yes))}


def describe(model: Model, processor: Any, scenes: Sequence[Scene]) -> list[str]:
    """A caption of each scene."""
    return answers(model, processor, [(draw(scene), DESCRIBE[0]) for scene in scenes])


def chair(captions: Sequence[str], scenes: Sequence[Scene]) -> dict:
    """CHAIR_i (invented among named objects), CHAIR_s (captions with an invented object), recall.

    An empty caption invents nothing and finds nothing.
    """
    named = [set(mentioned(text)) for text in captions]
    there = [set(scene.present) for scene in scenes]
    invented = [n - t for n, t in zip(named, there, strict=True)]
    found = [n & t for n, t in zip(named, there, strict=True)]
    return {
        "chair_i": sum(map(len, invented)) / max(1, sum(map(len, named))),
        "chair_s": sum(map(bool, invented)) / len(scenes),
        "recall": sum(map(len, found)) / sum(map(len, there)),
        "named": sum(map(len, named)) / len(scenes),
    }


def figures(model: Model, processor: Any, scenes: Sequence[Scene]) -> dict:
    """Presence and captions of the model's plain greedy decoding."""
    said = describe(model, processor, scenes)
    return presence(model, processor, scenes) | chair(said, scenes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=SEED, help="of the scenes")
    options = parser.parse_args()
    model = AutoModelForImageTextToText.from_pretrained(options.checkpoint).float().eval()
    processor = AutoProcessor.from_pretrained(options.checkpoint)
    result = figures(model, processor, held_out(options.scenes, options.seed))
    print(json_text({name: round(value, 3) for name, value in result.items()}))


if __name__ == "__main__":
    main()
