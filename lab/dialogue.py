"""What is said of a scene: captions, questions of presence, and mixes of several turns."""

from collections.abc import Sequence

import numpy as np

from sightline.lab.scenes import OBJECTS, Scene, context_of

DESCRIBE: tuple[str, ...] = (
    "Describe the image.",
    "Describe this picture.",
    "What is in the image?",
)
ASK: tuple[str, ...] = (
    "Is there {} in the image?",
    "Is there {} in the picture?",
    "Do you see {}?",
)
USUAL_WORDING = 0.7  # chance of the first wording; the others share the rest
PRESENT = 0.6  # chance that a question is about an object that is there
ELSEWHERE = 0.95  # chance that what is absent is drawn from contexts that are not there
YES, NO = "Yes", "No"

Turn = tuple[str, str]


def with_article(name: str) -> str:
    """ "a fork", "an orange"."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def caption(present: Sequence[str]) -> str:
    """The objects in one sentence, in the order of `OBJECTS` whatever the order given."""
    first, *others = [with_article(name) for name in OBJECTS if name in present]
    *middle, last = others or [""]
    listed = ", ".join([first, *middle]) + (f" and {last}" if last else "")
    return f"The image contains {listed}."


def question(name: str, wording: str = ASK[0]) -> str:
    """A yes/no question about one object, with its article: "Is there a fork in the image?"."""
    return wording.format(with_article(name))


def choose_wording(wordings: Sequence[str], rng: np.random.Generator) -> str:
    if rng.random() < USUAL_WORDING:
        return wordings[0]
    return wordings[int(rng.integers(1, len(wordings)))]


def description(scene: Scene, rng: np.random.Generator) -> Turn:
    return choose_wording(DESCRIBE, rng), caption(scene.present)


def presence(scene: Scene, rng: np.random.Generator) -> Turn:
    """A question more often about what is there: people ask about what they expect.

    Of what is absent they mostly ask about things from elsewhere, so what is usual in a scene is
    seldom denied.
    """
    present = scene.present
    absent = [name for name in OBJECTS if name not in present]
    if rng.random() < ELSEWHERE:
        contexts = {context_of(name) for name in present}
        absent = [name for name in absent if context_of(name) not in contexts]
    pool = present if rng.random() < PRESENT else absent
    name = pool[rng.integers(len(pool))]
    return question(name, choose_wording(ASK, rng)), YES if name in present else NO


def follow_up(scene: Scene, rng: np.random.Generator) -> Turn:
    """A question after a description, which has answered it: so expectation is no help.

    Half are about what is there, a quarter about what is absent but of a context that is there.
    """
    present = scene.present
    contexts = {context_of(name) for name in present}
    absent = [name for name in OBJECTS if name not in present]
    usual = [name for name in absent if context_of(name) in contexts]
    draw = rng.random()
    pool = present if draw < 0.5 else usual if draw < 0.75 and usual else absent
    name = pool[rng.integers(len(pool))]
    return question(name, choose_wording(ASK, rng)), YES if name in present else NO


def conversation(scene: Scene, rng: np.random.Generator, turns: int) -> list[Turn]:
    """Questions about one scene, none of which has been answered before."""
    return [presence(scene, rng) for _ in range(turns)]


def described(scene: Scene, rng: np.random.Generator, turns: int) -> list[Turn]:
    """A description, then questions about it: the skill of looking things up."""
    return [description(scene, rng), *(follow_up(scene, rng) for _ in range(turns - 1))]


def world_text() -> list[str]:
    """Every wording and every word the world uses, for the tokenizer."""
    named = [with_article(name) for name in OBJECTS]
    asked = [wording.format(name) for wording in ASK for name in named]
    return [*DESCRIBE, *asked, caption(OBJECTS), f"{YES} {NO}", YES, NO, *map(str.title, OBJECTS)]
