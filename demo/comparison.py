"""What is put side by side, and what came of it: plain data, without model or page."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from PIL import Image

from sightline.spec_text import GREEDY, SAMPLE
from sightline.specs import Spec

ROW = 1_000  # bytes of a `Row`, about
State = Literal["waiting", "answering", "done", "stopped", "failed"]


def is_whole(text: str) -> bool:
    """Whether it has no halves of characters, which JSON can write and nothing can show."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True, eq=False)
class SourceImage:
    """The image asked about.

    Args:
        image: RGB.
        source: Where it comes from: "shipped:corner.png", "scene:17" (of the lab, by its seed) or
            "file:holiday.jpg" (somebody's own, by its bare name).
        truth: The objects that are in it, where that is known.
        original: Width and height of the file, where the image is a smaller one made of it.
    """

    image: Image.Image
    source: str
    truth: frozenset[str] | None = None
    original: tuple[int, int] | None = None

    @property
    def weights(self) -> dict[int, int]:
        """Bytes of the image, by its identity; Pillow takes four for a pixel."""
        return {id(self.image): 4 * self.image.width * self.image.height}


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are taken, in all answers of a comparison.

    Args:
        max_new_tokens: Longest answer.
        temperature: Of sampling; 0 takes the best token. The way "sample" draws at 1 then.
        seed: Of sampling.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0

    def draws(self, spec: Spec) -> bool:
        """Whether a spec's tokens are drawn."""
        return self.arguments(spec)["do_sample"]

    def arguments(self, spec: Spec) -> dict[str, Any]:
        """For `generate`, whose `custom_generate` a spec's decoder is."""
        usual = SAMPLE if self.temperature > 0 else GREEDY
        return {
            "max_new_tokens": self.max_new_tokens,
            **spec.arguments(usual, self.temperature or 1.0),
        }


@dataclass(frozen=True)
class Comparison:
    """One image, one question, several ways to answer."""

    image: SourceImage
    question: str
    ways: tuple[Spec, ...]
    drawing: SamplingSettings = field(default_factory=SamplingSettings)


@dataclass(frozen=True)
class FieldError:
    """What cannot be done, and which control it is about.

    Args:
        where: "image", "question", "drawing", "way" or, for the whole, "page".
        text: One sentence with the way out.
        way: The number of the way.
    """

    where: Literal["image", "question", "drawing", "way", "page"]
    text: str
    way: int | None = None


@dataclass(frozen=True)
class Answer:
    """What one way has said so far.

    Args:
        state: Where it stands.
        ids: Token ids, special ones included.
        pieces: The text that each token adds, "" for special ones; joined they are the text.
        first: Seconds that the model worked until the first token; None before it.
        later: Seconds that it worked from there on.
        peak: Bytes of the most memory that was held while it worked, where the device tells.
        note: Why it stopped or failed, in one sentence.
    """

    state: State = "waiting"
    ids: tuple[int, ...] = ()
    pieces: tuple[str, ...] = ()
    first: float | None = None
    later: float = 0.0
    peak: int | None = None
    note: str = ""

    @cached_property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def each(self) -> float | None:
        """Seconds per token after the first; None where none came later."""
        return self.later / (len(self.ids) - 1) if len(self.ids) > 1 and self.later else None

    @property
    def is_over(self) -> bool:
        return self.state in ("done", "stopped", "failed")


def slow_down(ways: Sequence[Spec], answers: Sequence[Answer], number: int) -> float | None:
    """Time per token against the first plain way; None where one of the two is not known."""
    plain = next((i for i, way in enumerate(ways) if way.is_plain), None)
    if plain is None or plain == number:
        return None
    mine, theirs = answers[number].each, answers[plain].each
    return mine / theirs if mine and theirs else None


@dataclass(frozen=True)
class Row:
    """One token that could have come.

    Args:
        token: As text, visible even where it is blank.
        branches: Its probability under the expert, then under each amateur.
        score: Its probability after the rule, before temperature; None where the rule left it out.
        is_chosen: Whether it came.
    """

    token: str
    branches: tuple[float, ...]
    score: float | None
    is_chosen: bool = False


@dataclass(frozen=True, eq=False)
class Explained:
    """Why an answer's tokens came.

    Args:
        names: Of the branches: the expert's, then each amateur's.
        tables: For each token of the answer its ten best rows, best first, and the one that came.
        cuts: For each token the probability under the expert below which the rule leaves tokens
            out; None where it leaves none out.
        attention: For each token how much of the image's attention fell on each place: 8-bit grey
            in the image's proportions, white where it is strongest; None without.
        shares: For each token the share of attention that fell on the image, in [0, 1].
        note: why there is no attention.
    """

    names: tuple[str, ...]
    tables: tuple[tuple[Row, ...], ...]
    cuts: tuple[float | None, ...]
    attention: Sequence[Image.Image] | None = None
    shares: tuple[float, ...] | None = None
    note: str = ""

    @property
    def weights(self) -> dict[int, int]:
        """Bytes of the tables and looks, by its identity."""
        rows = sum(map(len, self.tables))
        return {id(self): ROW * rows + getattr(self.attention, "nbytes", 0)}
