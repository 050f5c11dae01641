"""One model that answers for everybody on the page. Knows nothing of the page."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.generation import BaseStreamer

from sightline import lab
from sightline.chat import check_arguments, check_question, prompt_inputs, reply
from sightline.checkpoints import Dtype, check_device, load_model, load_processor
from sightline.demo.comparison import Answer, Comparison, Explained, FieldError, SourceImage
from sightline.demo.decoding import SECONDS, Bounds, Decoded
from sightline.demo.explanation import explain
from sightline.demo.running import Running, reason
from sightline.demo.scheduler import ForwardScheduler, Stopped, Work
from sightline.evaluation.lab import WORDINGS
from sightline.messages import short
from sightline.model_protocol import Model
from sightline.setting_text import settable, written
from sightline.spec_text import BEAM
from sightline.specs import Spec, parse_spec
from sightline.vision.images import open_image

LAB = "sightline.lab"
TEMPERATURES = (0.0, 5.0)
SEEDS = 2**32

FIRST_WAYS = ("greedy", "vcd", "vdd", "pai")
"""What the columns of a page begin with."""
PROBE = 2048  # side of the image that a processor is asked about
LARGEST_SIDE = 2 * PROBE
MOST_PARTS = 8  # of a setting that has several


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Args:
        max_new_tokens: Longest answer.
        seconds: Longest time of an answer from its start, others' turns included; of a file that is
            opened too, where that is less than `sightline.demo.decoding.SECONDS`.
        question: Longest question, in characters.
        pixels: Largest image.
        ways: Most answers side by side.
        waiting: Most requests that wait their turn: one of each visitor who may be here.
    """

    max_new_tokens: int = 256
    seconds: float = 120.0
    question: int = 2000
    pixels: int = 50_000_000
    ways: int = 4
    waiting: int = 64

    def __post_init__(self):
        for name in ("max_new_tokens", "seconds", "question", "pixels", "ways", "waiting"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")


class Host:
    """A model with its processor, and all that is done with it.

    Args:
        checkpoint: A folder or a name on the hub; None: the lab's own.
        device: Of the weights.
        dtype: Of the weights.
        limits: Of one request.
        chat_template_kwargs: Arguments of the chat template besides the messages.

    Raises:
        ValueError: For what is no vision-language checkpoint, a device that is not there, or an
            argument that the chat template does not take.
    """

    def __init__(
        self,
        checkpoint: str | None = None,
        device: str = "cpu",
        dtype: Dtype = Dtype.float32,
        limits: Limits | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ):
        self.limits = limits or Limits()
        self.checkpoint = checkpoint or str(lab.CHECKPOINT)
        self.device, self.dtype = device, dtype
        check_device(device)
        self.processor = load_processor(self.checkpoint)
        self.template = check_arguments(self.processor, chat_template_kwargs)
        self.model = load_model(self.checkpoint, device, dtype)
        self.scheduler = ForwardScheduler(self.model)

    @property
    def is_lab(self) -> bool:
        """Whether the model is the lab's own, which knows the lab's words alone."""
        return Path(self.checkpoint) == lab.CHECKPOINT

    @property
    def name(self) -> str:
        """Of the model, without the place of a folder."""
        path = Path(self.checkpoint)
        return LAB if self.is_lab else path.name if path.is_dir() else self.checkpoint

    # Images

    @cached_property
    def bounds(self) -> Bounds:
        """Of files that visitors send. Larger images are scaled to what model and page need."""
        side = min(
            2 * math.isqrt(pixels_seen(self.model, self.processor, self.template)), LARGEST_SIDE
        )
        return Bounds(self.limits.pixels, side, min(self.limits.seconds, SECONDS))

    def own(self, found: Decoded, name: str) -> SourceImage:
        """Somebody's image.

        Args:
            found: The file, decoded.
            name: Of the file, without folders.
        """
        assert found.image is not None
        return SourceImage(found.image, f"file:{name}", lab.truth(found.image), found.original)

    def scene(self, seed: int) -> SourceImage:
        """A scene of the lab, drawn from its seed."""
        scene = lab.decorrelated(np.random.default_rng(seed))
        return SourceImage(lab.draw(scene), f"scene:{seed}", frozenset(scene.present))

    def shipped(self) -> list[str]:
        """Names of the lab's images that come with the package."""
        return sorted(path.name for path in lab.IMAGES.glob("*.png"))

    def open_shipped(self, name: str) -> SourceImage:
        """One of them."""
        if name not in self.shipped():
            raise ValueError(
                f"no shipped image is called {short(name)}: {', '.join(self.shipped())}"
            )
        image = open_image(lab.IMAGES / name)
        return SourceImage(image, f"shipped:{name}", lab.truth(image))

    # Answers

    def way(self, name: str) -> Spec:
        """A decoder with what it asks this model: the lab's own is asked in words that it knows."""
        wordings = WORDINGS.get(name.partition(".")[0], {}) if self.is_lab else {}
        return parse_spec(name, [f"{key}={written(value)}" for key, value in wordings.items()])

    def check(self, comparison: Comparison) -> list[FieldError]:
        """What stands in the way of this comparison; empty if nothing does."""
        found = [
            *self._complaints_of_question(comparison),
            *self._complaints_of_drawing(comparison),
        ]
        if not 1 <= len(comparison.ways) <= self.limits.ways:
            found.append(
                FieldError("page", f"1 to {self.limits.ways} answers, got {len(comparison.ways)}")
            )
        for number, way in enumerate(comparison.ways):
            try:
                way.build(self.processor)
                check_cost(way, self.limits)
            except ValueError as error:
                found.append(FieldError("way", str(error), number))
        return found

    def start(self, comparison: Comparison, client: str = "") -> Running:
        """Answers, side by side. Whoever calls looks at `Running` and stops it.

        Args:
            client: Who shares the model's time with other clients.

        Raises:
            ValueError: With the first complaint of `check`.
        """
        for complaint in self.check(comparison):
            raise ValueError(complaint.text)
        return Running(
            [self.work(comparison, number, client) for number in range(len(comparison.ways))],
            partial(self.answer, comparison),
            self.processor,
        )

    def explain(
        self, comparison: Comparison, number: int, answer: Answer, client: str = ""
    ) -> Explained:
        """Why the tokens of an answer came: it is given once more, and watched.

        Raises:
            ValueError: Where there is nothing to show.
        """
        way = comparison.ways[number]
        if not answer.ids:
            raise ValueError("this answer has no token yet")
        known = self.model.get_input_embeddings().num_embeddings
        if len(answer.ids) > self.limits.max_new_tokens or max(answer.ids) >= known:
            raise ValueError("these tokens are not this model's: press Compare for its own answer")
        work = self.scheduler.work(self.limits.seconds, client=client)
        try:
            with self.scheduler.working(work), torch.no_grad():
                return explain(
                    self.model,
                    self.processor,
                    comparison.image.image,
                    comparison.question,
                    way.build(self.processor),
                    answer.ids,
                    self.template,
                )
        except Stopped as error:
            raise ValueError(f"the explanation was {error}") from None
        except Exception as error:
            raise ValueError(reason(error)) from None

    def answer(
        self, comparison: Comparison, number: int, work: Work, streamer: BaseStreamer
    ) -> None:
        """One answer, told to the streamer. Raises `Stopped` when the work is over before it."""
        way, drawing = comparison.ways[number], comparison.drawing
        with self.scheduler.working(work):
            decoder = way.build(self.processor)
            image = comparison.image.image
            given: dict[str, Any] = {"chat_template_kwargs": self.template}
            inputs = prompt_inputs(self.model, self.processor, image, comparison.question, **given)
            given |= {"streamer": streamer, **drawing.arguments(way)}
            reply(self.model, self.processor, inputs, decoder, image, **given)

    def work(self, comparison: Comparison, number: int, client: str) -> Work:
        drawing = comparison.drawing
        draws = drawing.draws(comparison.ways[number])
        return self.scheduler.work(self.limits.seconds, drawing.seed if draws else None)

    def warm_up(self) -> None:
        """Answers once in every column, so that start-up is in no visitor's times.

        Raises:
            ValueError: Where the model cannot answer.
        """
        image = self.open_shipped(self.shipped()[0])
        ways = tuple(self.way(name) for name in FIRST_WAYS[: self.limits.ways])
        asked = Comparison(image, lab.dialogue.DESCRIBE[0], ways)
        short = replace(asked.drawing, max_new_tokens=min(8, self.limits.max_new_tokens))
        running = self.start(replace(asked, drawing=short))
        while not running.is_over:
            running.wait(1.0)
        said = running.answers[0]
        if said.state != "done":
            raise ValueError(f"{self.name} cannot answer: {said.note}")

    def _complaints_of_question(self, comparison: Comparison) -> list[FieldError]:
        question, most = comparison.question, self.limits.question
        if len(question) > most:
            return [
                FieldError(
                    "question",
                    f"the question has {len(question)} characters, and at most {most} are allowed: "
                    "make it shorter",
                )
            ]
        try:
            check_question(question)
            question.encode()
        except UnicodeEncodeError:
            return [FieldError("question", "the question holds half a character: write it again")]
        except ValueError:
            return [FieldError("question", "there is no question: write one, or an instruction")]
        return []

    def _complaints_of_drawing(self, comparison: Comparison) -> list[FieldError]:
        drawing, most = comparison.drawing, self.limits.max_new_tokens
        low, high = TEMPERATURES
        found = []
        if not whole(drawing.max_new_tokens) or not 1 <= drawing.max_new_tokens <= most:
            found.append(f"the longest answer is 1 to {most} tokens, got {drawing.max_new_tokens}")
        if not math.isfinite(drawing.temperature) or not low <= drawing.temperature <= high:
            found.append(f"the temperature is {low:g} to {high:g}, got {drawing.temperature}")
        if not whole(drawing.seed) or not 0 <= drawing.seed < SEEDS:
            found.append(f"the seed is a whole number from 0 to {SEEDS - 1}, got {drawing.seed}")
        return [FieldError("drawing", text) for text in found]


def check_cost(way: Spec, limits: Limits) -> None:
    """Raises `ValueError` for what a page does not offer: it costs without a bound, or cannot be
    told token by token."""
    if way.way == BEAM:
        raise ValueError(
            "beams tell no token before their last one, and this page shows each as it comes: "
            "leave beam out, or use the command line"
        )
    for method in way.methods:
        known, kind = settable(method.kind), method.kind.__name__
        for name, value in method.settings.items():
            usual = known[name].usual
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if usual is not None and is_number and not usual.low <= value <= usual.high:
                raise ValueError(
                    f"{name} of {kind} is {usual.low:g} to {usual.high:g} on this page, got "
                    f"{value}: the command line and Python take others"
                )
            parts = value if isinstance(value, tuple) else (value,)
            if len(parts) > MOST_PARTS or any(len(str(part)) > limits.question for part in parts):
                raise ValueError(
                    f"{name} of {kind} has at most {MOST_PARTS} parts of {limits.question} "
                    "characters on this page"
                )


def pixels_seen(model: Model, processor: Any, template: Mapping[str, Any] | None = None) -> int:
    """How many pixels a model gets of a large square image; as many as it has where it is not cut
    down to fewer."""
    image = Image.new("RGB", (PROBE, PROBE))
    question = lab.dialogue.DESCRIBE[0]
    inputs = prompt_inputs(model, processor, image, question, chat_template_kwargs=template)
    floats = [one for one in inputs.values() if torch.is_tensor(one) and one.is_floating_point()]
    return max((one.numel() // 3 for one in floats), default=PROBE**2)


def whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
