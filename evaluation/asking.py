"""A batch put to the model: the prompt, one call of `generate`, what was said, and its cost."""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from sightline.chat import has_template, input_device, processor_for, templated, untemplated
from sightline.checkpoints import Dtype, check_device, load_model, load_processor, refused_as
from sightline.evaluation.answers import Answer
from sightline.evaluation.batches import Batch
from sightline.evaluation.benchmark import Benchmark, Item
from sightline.evaluation.metrics import NO, YES
from sightline.evaluation.processes import find_processes
from sightline.evaluation.setups import Setup
from sightline.lab import CHECKPOINT
from sightline.logits.finite import FiniteRows
from sightline.messages import LONGEST, clipped
from sightline.model_protocol import Model
from sightline.spec_text import GREEDY
from sightline.vision.images import user_turn

LAB = "sightline.lab"


@dataclass(eq=False)
class Source:
    """Where the model comes from. Processor and weights are read once, when they are needed.

    Args:
        checkpoint: A folder or a name on the hub; None: the lab's own.
        device: Of the weights; "cuda" is another GPU for each of several processes.
        dtype: Of the weights; "auto": as stored.
        device_map: Spreads the weights over devices, "auto" for example; None: all on `device`.
    """

    checkpoint: str | None = None
    device: str = "cpu"
    dtype: str = "float32"
    device_map: str | None = None

    @classmethod
    def loaded(cls, name: str, model: Model, processor: Any) -> "Source":
        """One whose weights are there already; `name` is what reports call it.

        The processor is copied: what is set in it for batches is not set in that of others, and a
        tokenizer must not be used by two threads at once.
        """
        source = cls(None if name == LAB else name, str(model.device))
        source.model, source.processor = model, for_batches(copy.deepcopy(processor))
        return source

    @property
    def place(self) -> str:
        return self.checkpoint or str(CHECKPOINT)

    @property
    def name(self) -> str:
        """What reports call it."""
        return LAB if self.place == str(CHECKPOINT) else self.place

    @cached_property
    def processor(self) -> Any:
        """Raises `ValueError` where the checkpoint has none for images and chat."""
        return for_batches(load_processor(self.place))

    @cached_property
    def model(self) -> Any:
        """Raises `ValueError` where weights or device cannot be used."""
        if self.device_map is None:
            device = find_processes().device(self.device)
            check_device(device)
            if device.startswith("cuda:"):
                torch.cuda.set_device(device)  # kernels start on the current one
            return load_model(self.place, device, Dtype(self.dtype))
        from transformers import AutoModelForImageTextToText

        with refused_as(f"--model {self.place}: its weights cannot be loaded", ImportError):
            model: Model = AutoModelForImageTextToText.from_pretrained(
                self.place, dtype=self.dtype, device_map=self.device_map
            )
        return model.eval()


def for_batches(processor: Any) -> Any:
    """The processor, with a token that pads."""
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor


@dataclass(frozen=True)
class Prepared:
    """A batch with its images, ready to be asked.

    Args:
        batch: Errors and all.
        items: Those whose image could be read, in the batch's order.
        errors: Why the others' image or line could not, by id.
        images: Of `items`.
        inputs: The processor's output for `items`, as arrays; empty where there are none.
    """

    batch: Batch
    items: tuple[Item, ...]
    errors: Mapping[str, str]
    images: Sequence[Image.Image]
    inputs: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Preparation:
    """Opens the images of a batch and makes the model's inputs.

    Args:
        benchmark: Has the images.
        processor: The model's.
        broken: Items whose image could not be read before, with the reason: `(task, id)`. They
            stay out, so that a batch that is repeated is the same batch.
        keeps_images: Whether anyone looks at the images again.
        chat_template_kwargs: Arguments of the chat template besides the messages.
    """

    benchmark: Benchmark
    processor: Any
    broken: Mapping[tuple[str, str], str] = field(default_factory=dict)
    keeps_images: bool = True
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, batch: Batch) -> Prepared:
        opened: dict[str, Image.Image | str] = {}
        for item in batch.items:
            if not item.error and item.image not in opened:
                opened[item.image] = self.open(item)
        items, images, errors = [], [], {}
        for item in batch.items:
            known = item.error or self.broken.get((item.task, item.id))
            found = known or opened[item.image]
            if isinstance(found, str):
                errors[item.id] = found
            else:
                items.append(item)
                images.append(found)
        inputs, refused = self.inputs(items, images) if items else ({}, {})
        usable = [(i, p) for i, p in zip(items, images, strict=True) if i.id not in refused]
        kept = [image for _, image in usable] if self.keeps_images else []
        return Prepared(batch, tuple(i for i, _ in usable), errors | refused, kept, inputs)

    def open(self, item: Item) -> Image.Image | str:
        """The image, or why it cannot be read."""
        try:
            return self.benchmark.load_image(item)
        except MemoryError:
            raise
        except Exception as error:  # whatever a decoder of damaged files trips over
            return reason(error)

    def inputs(
        self, items: Sequence[Item], images: Sequence[Image.Image]
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """The model's inputs for the items that the processor takes, and by id why not others.

        Raises:
            ValueError: It takes none of several, so that the fault is none of theirs.
        """
        try:
            return self.encode(images, [item.question for item in items]), {}
        except MemoryError:
            raise
        except Exception as error:
            refused = self.refused(items, images)
            if not refused or len(refused) == len(items) > 1:
                raise ValueError(
                    f"the processor cannot prepare these questions: {reason(error)}"
                ) from error
            left = [
                (p, i.question) for i, p in zip(items, images, strict=True) if i.id not in refused
            ]
            return self.encode(*zip(*left, strict=True)) if left else {}, refused

    def refused(self, items: Sequence[Item], images: Sequence[Image.Image]) -> dict[str, str]:
        """Items that the processor does not take by themselves, by id, with the reason."""
        found = {}
        for item, image in zip(items, images, strict=True):
            try:
                self.encode([image], [item.question])
            except MemoryError:
                raise
            except Exception as error:
                found[item.id] = reason(error)
        return found

    def encode(self, images: Sequence[Image.Image], texts: Sequence[str]) -> dict[str, Any]:
        """The processor's output, through its chat template if it has one, padded on the left."""
        padding: dict[str, Any] = {"padding": True, "padding_side": "left"}
        arguments = self.chat_template_kwargs
        if has_template(self.processor):
            chats = [user_turn([p], text) for p, text in zip(images, texts, strict=True)]
            encoded = templated(self.processor, chats, arguments, **padding)
        else:
            own = [[image] for image in images]
            encoded = untemplated(self.processor, own, texts, **padding)
        return {name: value.numpy() for name, value in encoded.items()}


def reason(error: Exception) -> str:
    """An error in one line."""
    return clipped(" ".join(str(error).split()) or type(error).__name__, 5 * LONGEST)


class Clock(StoppingCriteria):
    """Stops nothing; notes when the first tokens were there and how many steps were made.

    Args:
        now: Seconds by the clock.
    """

    def __init__(self, now: Callable[[], float]):
        self.now = now
        self.first: float | None = None
        self.steps = 0

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if self.first is None:
            synchronize(input_ids.device)
            self.first = self.now()
        self.steps += 1
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class ModelRunner:
    """The model and its processor, for one run.

    Args:
        model: With its weights.
        processor: The model's.
        temperature: Of setups that sample.
        versions: Written with each answer.
        clock: Seconds, where others use the model too; None: the machine's clock. With one, memory
            is not told, as it is everybody's.
        chat_template_kwargs: With which the prompts are made, for decoders that ask in it again.
    """

    def __init__(
        self,
        model: Model,
        processor: Any,
        temperature: float,
        versions: Mapping[str, str],
        clock: Callable[[], float] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ):
        self.clock = clock
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.model = model
        self.processor = processor
        self.temperature = temperature
        self.versions = versions

    @cached_property
    def yes_no(self) -> list[list[int]]:
        """Ids of the single tokens that read as "yes", and as "no"."""
        return [answer_tokens(self.processor.tokenizer, word) for word in (YES, NO)]

    def tensors(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """Inputs on the model's device, pixels in its dtype."""
        device, dtype = input_device(self.model), self.model.dtype
        found = {name: torch.from_numpy(value) for name, value in inputs.items()}
        return {
            name: value.to(device, dtype if value.is_floating_point() else None)
            for name, value in found.items()
        }

    def answer(
        self, setup: Setup, prepared: Prepared, inputs: Mapping[str, Tensor]
    ) -> list[Answer]:
        """What a setup says to each item of a batch, and an error row for the unreadable.

        Args:
            inputs: Those of `prepared`, from `tensors`.
        """
        said = {
            i.id: a for i, a in zip(prepared.items, self.say(setup, prepared, inputs), strict=True)
        }
        settings, batch = setup.settings, prepared.batch
        nothing = Reply("", 0, 0.0, None, 0, None)
        return [
            Answer(
                task=item.task,
                id=item.id,
                decoder=setup.label,
                question=item.question,
                batch=batch.index,
                settings=settings,
                seed=batch.seed,
                versions=self.versions,
                error=prepared.errors.get(item.id),
                **vars(said.get(item.id, nothing)),
            )
            for item in batch.items
        ]

    def say(self, setup: Setup, prepared: Prepared, inputs: Mapping[str, Tensor]) -> "list[Reply]":
        """The replies to the items whose image could be read."""
        if not prepared.items:
            return []
        task = prepared.batch.task
        watched = setup.label == GREEDY and task.yes_no
        now, device = self.clock or time.perf_counter, input_device(self.model)
        clock = Clock(now)
        reset_peak(device)
        synchronize(device)
        started = now()
        outputs = self.generate(
            setup,
            prepared,
            inputs,
            max_new_tokens=task.max_new_tokens,
            stopping_criteria=StoppingCriteriaList([clock]),
            return_dict_in_generate=True,
            output_logits=watched,
        )
        synchronize(device)
        ms = round((now() - started) * 1000, 3)
        first = None if clock.first is None else round((clock.first - started) * 1000, 3)
        tokens = outputs.sequences[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(tokens, skip_special_tokens=True)
        lengths = answer_lengths(tokens, self.model.generation_config.eos_token_id)
        logits = self.first_logits(outputs.logits[0]) if watched else [None] * len(texts)
        peak = peak_mb(device) if self.clock is None else None
        return [
            Reply(text, length, ms, first, clock.steps, peak, three)
            for text, length, three in zip(texts, lengths, logits, strict=True)
        ]

    def generate(
        self,
        setup: Setup,
        prepared: Prepared,
        inputs: Mapping[str, Tensor],
        **settings: Any,
    ) -> Any:
        """One call of the model's `generate`, its samples drawn from the batch's seed.

        Raises:
            ValueError: Logits are not finite. Decoders look themselves.
        """
        finite = FiniteRows()
        watched = {"logits_processor": LogitsProcessorList([finite])}
        looked_at = {"images": list(prepared.images)} if setup.needs_images else {}
        told = processor_for(setup.strategy, self.processor, self.chat_template_kwargs)
        cards = range(torch.cuda.device_count()) if input_device(self.model).type == "cuda" else ()
        with torch.random.fork_rng(devices=cards):
            torch.manual_seed(prepared.batch.seed)
            outputs = self.model.generate(
                **inputs,
                **setup.generation(self.temperature),
                **looked_at,
                **told,
                **(watched if setup.strategy is None else {}),
                **settings,
            )
        finite.check()
        return outputs

    def first_logits(self, logits: Tensor) -> list[tuple[float, float, float] | None]:
        """The best "yes", the best "no" and the best of the rest: `[B, V]` -> B triples.

        None where one of them is banned: no constant turns such an answer.
        """
        yes, no = self.yes_no
        if not yes or not no:
            return [None] * len(logits)
        rest = logits.float().clone()
        rest[:, yes + no] = -torch.inf
        best = [logits[:, yes].amax(-1), logits[:, no].amax(-1), rest.amax(-1)]
        rows = torch.stack([b.float() for b in best], dim=-1).tolist()
        return [tuple(row) if all(map(math.isfinite, row)) else None for row in rows]


@dataclass(frozen=True)
class Reply:
    """What an `Answer` has from the model."""

    answer: str
    tokens: int
    ms: float
    first_ms: float | None
    steps: int
    peak_mb: float | None
    logits: tuple[float, float, float] | None = None


def answer_tokens(tokenizer: Any, word: str) -> list[int]:
    """Ids of the single tokens that read as a word, in any case, with or without a space."""
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    return [i for i, text in enumerate(texts) if text.strip().lower() == word]


def answer_lengths(said: Tensor, ends: int | Sequence[int] | None) -> list[int]:
    """Tokens of each row before its first end of sequence: `[B, T]` -> B lengths."""
    stops = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    is_end = torch.isin(said, torch.tensor(stops, dtype=said.dtype, device=said.device))
    return (is_end.cumsum(dim=1) == 0).sum(dim=1).tolist()


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_mb(device: torch.device) -> float | None:
    """Peak of memory allocated since `reset_peak`, where the platform tells it by call."""
    if device.type != "cuda":
        return None
    return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
