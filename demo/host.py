"""One model that answers for everybody on the page. Knows nothing of the page."""

import logging
import math
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.generation import BaseStreamer

from sightline import lab
from sightline.chat import check_arguments, check_question, prompt_inputs, reply
from sightline.checkpoints import Dtype, check_device, load_model, load_processor
from sightline.demo.comparison import Answer, Comparison, Explained, FieldError, Picture
from sightline.demo.decoding import SECONDS, Bounds, Decoded
from sightline.demo.explanation import explain
from sightline.demo.scheduler import ForwardScheduler, Stopped, Work
from sightline.evaluation.lab import WORDINGS
from sightline.messages import short
from sightline.specs import BEAM, Spec, parse_spec, settable, written
from sightline.vision.images import open_picture

LAB = "sightline.lab"
TEMPERATURES = (0.0, 5.0)
SEEDS = 2**32
UNEXPECTED = "this failed; whoever runs this page finds the reason in its log"
NO_MEMORY = "there is not enough memory: ask for fewer tokens, or show a smaller picture"

FIRST_WAYS = ("greedy", "vcd", "vdd", "pai")
"""What the columns of a page begin with."""
PROBE = 2048  # side of the image that a processor is asked about
LARGEST_SIDE = 2 * PROBE
MOST_PARTS = 8  # of a setting that has several

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Args:
        max_new_tokens: Longest answer.
        seconds: Longest time of an answer from its start, others' turns included; of a file that is
            opened too, where that is less than `sightline.demo.decoding.SECONDS`.
        question: Longest question, in characters.
        pixels: Largest picture.
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

    # Pictures

    @cached_property
    def bounds(self) -> Bounds:
        """Of files that visitors send. Larger images are scaled to what model and page need."""
        side = min(
            2 * math.isqrt(pixels_seen(self.model, self.processor, self.template)), LARGEST_SIDE
        )
        return Bounds(self.limits.pixels, side, min(self.limits.seconds, SECONDS))

    def own(self, found: Decoded, name: str) -> Picture:
        """Somebody's picture.

        Args:
            found: The file, decoded.
            name: Of the file, without folders.
        """
        assert found.image is not None
        return Picture(found.image, f"file:{name}", lab.truth(found.image), found.original)

    def scene(self, seed: int) -> Picture:
        """A scene of the lab, drawn from its seed."""
        scene = lab.decorrelated(np.random.default_rng(seed))
        return Picture(lab.draw(scene), f"scene:{seed}", frozenset(scene.present))

    def shipped(self) -> list[str]:
        """Names of the lab's pictures that come with the package."""
        return sorted(path.name for path in lab.PICTURES.glob("*.png"))

    def open_shipped(self, name: str) -> Picture:
        """One of them."""
        if name not in self.shipped():
            raise ValueError(
                f"no shipped picture is called {short(name)}: {', '.join(self.shipped())}"
            )
        image = open_picture(lab.PICTURES / name)
        return Picture(image, f"shipped:{name}", lab.truth(image))

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

    def start(self, comparison: Comparison) -> "Running":
        """Answers, side by side. Whoever calls looks at `Running` and stops it.

        Raises:
            ValueError: With the first complaint of `check`.
        """
        for complaint in self.check(comparison):
            raise ValueError(complaint.text)
        return Running(self, comparison)

    def explain(self, comparison: Comparison, number: int, answer: Answer) -> Explained:
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
        work = self.scheduler.work(self.limits.seconds)
        try:
            with self.scheduler.working(work), torch.no_grad():
                return explain(
                    self.model,
                    self.processor,
                    comparison.picture.image,
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
            image = comparison.picture.image
            given: dict[str, Any] = {"chat_template_kwargs": self.template}
            inputs = prompt_inputs(self.model, self.processor, image, comparison.question, **given)
            given |= {"streamer": streamer, **drawing.arguments(way)}
            reply(self.model, self.processor, inputs, decoder, image, **given)

    def work(self, comparison: Comparison, number: int) -> Work:
        drawing = comparison.drawing
        draws = drawing.draws(comparison.ways[number])
        return self.scheduler.work(self.limits.seconds, drawing.seed if draws else None)

    def warm_up(self) -> None:
        """Answers once in every column, so that start-up is in no visitor's times.

        Raises:
            ValueError: Where the model cannot answer.
        """
        picture = self.open_shipped(self.shipped()[0])
        ways = tuple(self.way(name) for name in FIRST_WAYS[: self.limits.ways])
        asked = Comparison(picture, lab.dialogue.DESCRIBE[0], ways)
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


def pixels_seen(model: Any, processor: Any, template: Mapping[str, Any] | None = None) -> int:
    """How many pixels a model gets of a large square image; as many as it has where it is not cut
    down to fewer."""
    image = Image.new("RGB", (PROBE, PROBE))
    question = lab.dialogue.DESCRIBE[0]
    inputs = prompt_inputs(model, processor, image, question, chat_template_kwargs=template)
    floats = [one for one in inputs.values() if torch.is_tensor(one) and one.is_floating_point()]
    return max((one.numel() // 3 for one in floats), default=PROBE**2)


def whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class Running:
    """A comparison under way. Threads answer; `answers` is what they have said so far.

    Args:
        host: Whose model answers.
        comparison: Checked.
    """

    def __init__(self, host: Host, comparison: Comparison):
        self.comparison = comparison
        self._host = host
        self._changed = threading.Condition()
        self._version = self._seen = 0
        self._answers = [Answer() for _ in comparison.ways]
        self._works = [host.work(comparison, i) for i in range(len(comparison.ways))]
        for number in range(len(comparison.ways)):
            name = f"answer {number}"
            threading.Thread(target=self._run, args=(number,), name=name, daemon=True).start()

    @property
    def answers(self) -> tuple[Answer, ...]:
        with self._changed:
            return tuple(self._answers)

    @property
    def is_over(self) -> bool:
        return all(answer.is_over for answer in self.answers)

    def wait(self, seconds: float) -> bool:
        """Until something has changed since the last time, or time is up; whether it has."""
        with self._changed:
            changed = self._changed.wait_for(lambda: self._version > self._seen, seconds)
            self._seen = self._version
        return changed

    def stop(self, number: int | None = None) -> None:
        """Ends one answer, or all; what was said stays."""
        chosen = range(len(self._works)) if number is None else [number]
        for one in chosen:
            self._works[one].stop()
            self.change(one, state="stopped", note="stopped")

    def change(self, number: int, **fields: Any) -> None:
        """What is new about an answer; one that is over stays as it is."""
        with self._changed:
            if self._answers[number].is_over:
                return
            self._answers[number] = replace(self._answers[number], **fields)
            self._version += 1
            self._changed.notify_all()

    def _run(self, number: int) -> None:
        work = self._works[number]
        listener = Listener(self._host.processor, work, lambda **new: self.change(number, **new))
        try:
            self._host.answer(self.comparison, number, work, listener)
        except Stopped as error:
            self.change(number, state="stopped", note=str(error))
        except Exception as error:
            self.change(number, state="failed", note=reason(error))
        else:
            self.change(number, state="done", peak=work.peak)
        finally:  # a panic in a tokenizer is no Exception
            self.change(number, state="failed", note=UNEXPECTED)


def reason(error: Exception) -> str:
    """What a client is told: our own sentences, and nothing of what others raise."""
    if isinstance(error, torch.OutOfMemoryError):
        return NO_MEMORY
    frames = traceback.extract_tb(error.__traceback__)
    own = Path(lab.__file__).parents[1]
    if isinstance(error, ValueError) and frames and Path(frames[-1].filename).is_relative_to(own):
        return str(error)
    logger.error("an answer failed", exc_info=error)
    return UNEXPECTED


class Listener(BaseStreamer):
    """Hears of each token, while its answer has the turn.

    Args:
        processor: Turns tokens into text.
        work: Whose time is taken.
        tell: Called with what is new of the answer.
    """

    def __init__(self, processor: Any, work: Work, tell: Callable[..., None]):
        self._tokenizer = processor.tokenizer
        self._work = work
        self._tell = tell
        self._is_prompt = True
        self._ids: list[int] = []
        self._pieces: list[str] = []
        self._first: float | None = None
        self._forwards = 0

    def put(self, value: torch.Tensor) -> None:
        if self._is_prompt:
            self._is_prompt = False
            self._tell(state="answering")
            return
        now = self._work.worked
        if self._first is None:
            self._first, self._forwards = now, self._work.forwards
        for token in value.reshape(-1).tolist():
            self._ids.append(token)
            self._pieces.append(next_piece(self._tokenizer, self._ids, self._pieces))
        self._tell(
            ids=tuple(self._ids),
            pieces=tuple(self._pieces),
            first=self._first,
            # Votes are told at once, when all has been said: no token came later.
            later=now - self._first if self._work.forwards > self._forwards else 0.0,
        )

    def end(self) -> None:
        """The answer is complete."""


def next_piece(tokenizer: Any, ids: list[int], pieces: list[str]) -> str:
    """What the last token adds to the text; "" while it is the first half of a character."""
    text = tokenizer.decode(ids, skip_special_tokens=True).lstrip()
    return "" if text.endswith("\N{REPLACEMENT CHARACTER}") else text[len("".join(pieces)) :]
