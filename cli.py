"""The command line: `sightline describe | compare | evaluate | decoders`.

Decoders, their settings, ranges, presets and papers are read off the classes and their docstrings,
so a new decoder appears here by its name in `sightline.decoders.DECODERS` alone.
"""

import inspect
import math
import re
import string
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import SequenceMatcher
from enum import Enum
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

import sightline
from sightline.evaluation.command import app as evaluation

if TYPE_CHECKING:
    from sightline.decoders.parse import Request

PLAIN = {"greedy": False, "sample": True}
"""Names of the model's own decoding -> whether it samples."""
NAME_WORDS = 3  # most words in an object's name
LONGEST = 16  # a default that is shown in the column of defaults
INVENTED, NEW = "bold red", "underline"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Dtype(str, Enum):
    """What weights are computed in; "auto" is what they are stored in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    auto = "auto"


PictureArgument = Annotated[str, typer.Argument(metavar="PICTURE", help="A picture file.")]
QuestionArgument = Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask of it.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        metavar="CHECKPOINT",
        help="A folder, or the Hugging Face hub id, of an image-text-to-text model. "
        "Default: the small model that comes with sightline.",
    ),
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, ...")]
DtypeOption = Annotated[Dtype, typer.Option(help="Of the weights; auto: as stored.")]
LengthOption = Annotated[int, typer.Option(min=1, help="Longest answer.")]
SeedOption = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of sampling.")]
SampleOption = Annotated[
    bool, typer.Option("--sample/--no-sample", help="Draw tokens instead of taking the best one.")
]
TemperatureOption = Annotated[
    float | None, typer.Option(help="Of sampling. Default: the checkpoint's.")
]
DESCRIBE = "Describe the image."
app.add_typer(evaluation, name="evaluate")


def main() -> None:
    """Runs the command line."""
    app()


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sightline {sightline.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Ask vision-language models about pictures, and keep them to what is there."""


@app.command()
def describe(
    picture: PictureArgument,
    question: QuestionArgument = DESCRIBE,
    decoder: Annotated[
        str | None, typer.Option(metavar="NAME", help="As `sightline decoders` lists them.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A decoder's setting; may be repeated."),
    ] = None,
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = Dtype.float32,
    max_new_tokens: LengthOption = 128,
    seed: SeedOption = 0,
    sample: SampleOption = False,
    temperature: TemperatureOption = None,
    stream: Annotated[
        bool, typer.Option("--stream/--no-stream", help="Show words as they come.")
    ] = True,
) -> None:
    """Answer a question about a picture, with a decoder or without."""
    with refusing():
        image = open_checked(picture, question)
        name = plain_name(sample) if decoder is None else decoder.strip().lower()
        choice = parse_choice(name, settings or [])
        sampling = Sampling(max_new_tokens, seed, sample, temperature)
        sampling.check([choice])
        with quiet():
            [way], processor = prepare(model, device, dtype, image, question, [choice], sampling)
            text = way.answer(word_streamer(processor) if stream else None)
    if not stream:
        typer.echo(text)
    if not text:
        typer.echo("(the model's answer is empty)", err=True)


@app.command()
def compare(
    picture: PictureArgument,
    question: QuestionArgument = DESCRIBE,
    decoders: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Joined by commas, with settings or a preset where wanted: "
            "greedy,vdd:alpha=0.5,beta=0.2,vcd.pope_paper. "
            "The model's own decoding is greedy or sample. Default: greedy,vcd,vdd.",
        ),
    ] = None,
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = Dtype.float32,
    max_new_tokens: LengthOption = 128,
    seed: SeedOption = 0,
    sample: SampleOption = False,
    temperature: TemperatureOption = None,
) -> None:
    """Put the answers of several decoders under one another."""
    with refusing():
        image = open_checked(picture, question)
        choices = parse_choices(decoders or f"{plain_name(sample)},vcd,vdd")
        sampling = Sampling(max_new_tokens, seed, sample, temperature)
        sampling.check(choices)
        with quiet():
            ways, _ = prepare(model, device, dtype, image, question, choices, sampling)
            show_comparison(ways, known_truth(image, question))


@app.command("decoders")
def list_decoders() -> None:
    """List the decoders with their settings, ranges, presets and papers."""
    from sightline.decoders import DECODERS
    from sightline.decoders.parse import presets, settable

    width = new_console().width
    for name, kind in DECODERS.items():
        documentation = inspect.getdoc(kind) or ""
        meanings = read_arguments(documentation)
        typer.echo(fill(f"{name}  {paper(kind)}", width, 2))
        typer.echo(fill(documentation.partition("\n")[0], width, 2, "  "))
        known = settable(kind)
        column = max(map(len, known), default=0)
        long = {key for key, setting in known.items() if len(setting.default) > LONGEST}
        defaults = {key: "below" if key in long else s.default for key, s in known.items()}
        second = max(map(len, defaults.values()), default=0)
        for key, default in defaults.items():
            start = f"    {key:<{column}}  {default:<{second}}  "
            says = meanings.get(key, "") + f" Default: {known[key].default}" * (key in long)
            typer.echo(fill(says, width, min(len(start), width // 2), start))
        for preset in presets(kind).values():
            changes = ", ".join(f"{key}={text}" for key, text in preset.changes().items())
            says = ". ".join(filter(None, (changes, preset.meaning)))
            typer.echo(fill(says, width, 4, f"  {name}.{preset.name}  "))
        typer.echo()
    typer.echo(
        fill(f"Without a decoder: {', '.join(PLAIN)}. With decoders and settings:", width, 0)
    )
    typer.echo("  sightline describe PICTURE --decoder NAME --set SETTING=VALUE")
    typer.echo("  sightline compare PICTURE --decoders greedy,NAME:SETTING=VALUE,SETTING=VALUE")
    typer.echo(
        fill(
            "Several values are joined by +: layers=1+3. NAME.PRESET begins with other settings "
            "than the defaults, and SETTING=VALUE changes them: vcd.pope_paper:alpha=0.5.",
            width,
            0,
        )
    )


def fill(text: str, width: int, indent: int, start: str = "") -> str:
    """The text in lines; the first one begins with `start`, the others with `indent` blanks."""
    return textwrap.fill(text, width, initial_indent=start, subsequent_indent=" " * indent)


# What was asked for


@dataclass(frozen=True)
class Choice:
    """One way to decode.

    Args:
        label: The name in lower case, with the settings as the user wrote them.
        request: The decoder that was asked for. None: the model's own decoding.
        sample: Whether tokens are drawn. None: as `--sample` says.
    """

    label: str
    request: "Request | None" = None
    sample: bool | None = None

    def build(self, processor: Any) -> Any:
        """The decoder; None for the model's own decoding."""
        return None if self.request is None else self.request.build(processor)


@dataclass(frozen=True)
class Sampling:
    """How tokens are taken from the scores, and how many."""

    max_new_tokens: int
    seed: int
    sample: bool
    temperature: float | None

    def draws(self, choice: Choice) -> bool:
        return self.sample if choice.sample is None else choice.sample

    def check(self, choices: Iterable[Choice]) -> None:
        """Raises `ValueError` for a temperature that is none, or that nothing would use."""
        if self.temperature is None:
            return
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"--temperature must be a number > 0, got {self.temperature}")
        if not any(map(self.draws, choices)):
            raise ValueError("--temperature has no effect where nothing is drawn: add --sample")

    def arguments(self, choice: Choice) -> dict[str, Any]:
        """For `generate`."""
        draws = self.draws(choice)
        heat = {"temperature": self.temperature} if draws and self.temperature else {}
        return dict(max_new_tokens=self.max_new_tokens, do_sample=draws, num_beams=1, **heat)


def plain_name(sample: bool) -> str:
    return next(name for name, draws in PLAIN.items() if draws == sample)


def parse_choices(text: str) -> list[Choice]:
    """`greedy,vdd:alpha=0.5,beta=0.2` -> choices, or `ValueError`."""
    from sightline.decoders.parse import split_decoders

    return [parse_choice(name, assignments) for name, assignments in split_decoders(text)]


def parse_choice(name: str, assignments: Sequence[str]) -> Choice:
    """A name and its `name=value` settings -> a choice, or `ValueError`."""
    from sightline.decoders.parse import choose

    if name not in PLAIN:
        request = choose(name, assignments, others=PLAIN)
        return Choice(request.label, request)
    if assignments:
        raise ValueError(f"{name} has no settings, got {', '.join(assignments)}")
    return Choice(name, sample=PLAIN[name])


# What decoders say of themselves


def read_arguments(docstring: str) -> dict[str, str]:
    """The meanings of the arguments in a docstring's `Args`, by name, each on one line."""
    meanings: dict[str, str] = {}
    _, _, section = docstring.partition("\nArgs:\n")
    name = ""
    for line in section.splitlines():
        if line and not line.startswith(" "):
            break
        if entry := re.match(r" {4}(\w+): (.*)", line):
            name, meanings[entry[1]] = entry[1], entry[2]
        elif name:
            meanings[name] = f"{meanings[name]} {line.strip()}".strip()
    return meanings


def paper(kind: type) -> str:
    """The first line of the docstring of the module that defines a decoder: method and paper."""
    return (inspect.getdoc(sys.modules[kind.__module__]) or "").partition("\n")[0].rstrip(".")


# Pictures and models


@contextmanager
def refusing() -> Iterator[None]:
    """A user's mistake ends the command with one line and exit code 2."""
    try:
        yield
    except ValueError as error:
        typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
        typer.echo(" ".join(str(error).split()), err=True)
        raise typer.Exit(2) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers' notes and bars off the screen, all but the bars of downloads."""
    from huggingface_hub import utils as hub
    from transformers.utils import logging

    levels = logging.get_verbosity(), hub.logging.get_verbosity()
    bars, downloads = logging.is_progress_bar_enabled(), not hub.are_progress_bars_disabled()
    logging.set_verbosity_error()
    hub.logging.set_verbosity_error()
    logging.disable_progress_bar()
    if downloads:
        hub.enable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(levels[0])
        hub.logging.set_verbosity(levels[1])
        if bars:
            logging.enable_progress_bar()


def open_checked(picture: str, question: str) -> Any:
    """The picture, once it and the question are known to be usable."""
    from sightline.chat import check_question
    from sightline.pictures import open_picture

    check_question(question)
    return open_picture(picture)


@dataclass(frozen=True)
class Way:
    """One way to answer the question: `answer(streamer, longest=...) -> text`."""

    label: str
    answer: Callable[..., str]


def prepare(
    checkpoint: str | None,
    device: str,
    dtype: Dtype,
    image: Any,
    question: str,
    choices: Sequence[Choice],
    sampling: Sampling,
) -> tuple[list[Way], Any]:
    """A way to answer for each choice, and the processor.

    What can be refused is refused before the weights are read.
    """
    from sightline.chat import prompt_inputs
    from sightline.lab import CHECKPOINT

    checkpoint = checkpoint or str(CHECKPOINT)
    check_device(device)
    processor = load_processor(checkpoint)
    decoders = [choice.build(processor) for choice in choices]
    model = load_model(checkpoint, device, dtype)
    inputs = prompt_inputs(model, processor, image, question)
    ways = [
        Way(
            choice.label,
            partial(
                respond,
                model,
                processor,
                inputs,
                image,
                decoder,
                sampling.seed,
                sampling.arguments(choice),
            ),
        )
        for choice, decoder in zip(choices, decoders, strict=True)
    ]
    return ways, processor


def respond(
    model: Any,
    processor: Any,
    inputs: Mapping[str, Any],
    image: Any,
    decoder: Any,
    seed: int,
    arguments: Mapping[str, Any],
    streamer: Any,
    longest: int | None = None,
) -> str:
    """One answer; the same seed draws the same tokens whatever was answered before."""
    import torch

    from sightline.chat import reply

    torch.manual_seed(seed)
    if longest is not None:
        arguments = {**arguments, "max_new_tokens": longest}
    return reply(model, processor, dict(inputs), decoder, image, streamer=streamer, **arguments)


def load_processor(checkpoint: str) -> Any:
    """The processor of a vision-language checkpoint, or `ValueError`."""
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig, AutoProcessor

    from sightline.chat import check_processor

    path = Path(checkpoint)
    is_path = path.is_absolute() or checkpoint.startswith(".") or checkpoint.count("/") > 1
    if is_path and not path.is_dir():
        raise ValueError(f"--model {checkpoint}: no such folder")
    where = "in this folder" if path.is_dir() else "in a folder or on the hub under this name"
    with refused_as(f"--model {checkpoint}: no usable checkpoint {where}"):
        config = AutoConfig.from_pretrained(checkpoint)
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ValueError(
            f"--model {checkpoint} is a {config.model_type} model: a vision-language "
            "(image-text-to-text) model is needed"
        )
    with refused_as(f"--model {checkpoint}: its processor cannot be loaded"):
        processor = AutoProcessor.from_pretrained(checkpoint)
    check_processor(processor)
    return processor


def load_model(checkpoint: str, device: str, dtype: Dtype) -> Any:
    """The model on its device, or `ValueError`."""
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText

    with refused_as(f"--model {checkpoint}: its weights cannot be loaded", SafetensorError):
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            checkpoint, dtype=dtype.value, output_loading_info=True
        )
        model, report = loaded[0].to(device).eval(), loaded[1]
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"--model {checkpoint} is incomplete: {len(missing)} of the model's weights are not "
            f"in it ({missing[0]}, ...)"
        )
    return model


@contextmanager
def refused_as(reason: str, *further: type[Exception]) -> Iterator[None]:
    """What a library raises for an input becomes a `ValueError`: `reason` and one sentence."""
    kinds: tuple[type[Exception], ...] = (OSError, ValueError, RuntimeError, *further)
    try:
        yield
    except kinds as error:
        sentence = re.split(r"(?<=\.)\s|\n", str(error).strip(), maxsplit=1)[0]
        raise ValueError(f"{reason}: {sentence}") from error


def check_device(name: str) -> None:
    """Raises `ValueError` unless tensors can be made on the device."""
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {name} cannot be used here: {error}") from error


# Answers on the screen


def new_console() -> Console:
    return Console(highlight=False, markup=False, emoji=False)


def word_streamer(processor: Any) -> Any:
    """Prints the answer's words as they come."""
    from transformers import TextStreamer

    return TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)


class Stopwatch:
    """A streamer that takes the time of the prompt, then of each token."""

    def __init__(self):
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(perf_counter())

    def end(self) -> None:
        """Called when the answer is complete."""


@dataclass(frozen=True)
class Timed:
    """An answer with its times in seconds; `each` is None where only one token came."""

    label: str
    text: str
    first: float
    each: float | None

    @property
    def times(self) -> str:
        first = f"first token after {milliseconds(self.first)}"
        return first if self.each is None else f"{milliseconds(self.each)} per token, {first}"


def milliseconds(seconds: float) -> str:
    value = 1000 * seconds
    return f"{value:.1f} ms" if value < 10 else f"{value:.0f} ms"


def timed(way: Way) -> Timed:
    """The answer of one way, and how long it took."""
    watch = Stopwatch()
    start = perf_counter()
    text = way.answer(watch)
    _, first, *later = watch.times
    return Timed(
        way.label, text, first - start, (later[-1] - first) / len(later) if later else None
    )


def known_truth(image: Any, question: str) -> frozenset[str] | None:
    """The objects that a picture carries, unless the question is about one of them.

    "Is there a fork?" is not answered by a list, and "no fork" invents none.
    """
    from sightline.lab import mentioned, truth

    return None if mentioned(question) else truth(image)


def show_comparison(ways: Sequence[Way], truth: frozenset[str] | None) -> None:
    """Prints each answer as soon as it is there."""
    console = new_console()
    signs = console.color_system is None or console.no_color
    if truth is not None:
        console.print(f"In the picture: {listed(truth)}\n")
    ways[-1].answer(None, longest=2)  # so that start-up is not charged to the first answer
    first: str | None = None
    for way in ways:
        answer = timed(way)
        first = answer.text if first is None else first
        console.print(Text.assemble((answer.label, "bold"), "  ", (answer.times, "dim")))
        remarked = [Text(line, "dim") for line in remarks(answer.text, first, truth)]
        shown = marked(answer.text, first, truth, signs) if answer.text else Text("(empty)", "dim")
        for text in (shown, *remarked):
            for line in text.wrap(console, max(console.width - 2, 1)):
                line.rstrip()
                console.print("  ", line, sep="", end="\n")
        console.print()
    console.print(legend(signs, len(ways) > 1, truth))


def listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def remarks(text: str, first: str, truth: frozenset[str] | None) -> list[str]:
    """What marks in the text cannot show: objects missed, and those no longer invented."""
    from sightline.lab import mentioned

    if truth is None:
        return []
    said = set(mentioned(text))
    lines = {"missed": truth - said, "no longer invented": set(mentioned(first)) - truth - said}
    return [f"{name}: {listed(objects)}" for name, objects in lines.items() if objects]


def marked(text: str, first: str, truth: frozenset[str] | None, signs: bool) -> Text:
    """The answer with its invented objects, and the words not in the first answer, marked.

    By colour, or by signs where there is none: `[cup]`, `*a clock*`.
    """
    pieces = re.split(r"(\s+)", text)
    words, gaps = pieces[::2], [*pieces[1::2], ""]
    new, invented = new_words(words, first.split()), invented_words(words, truth)
    result = Text()
    for i, (word, gap) in enumerate(zip(words, gaps, strict=True)):
        before, core, after = cut(word)
        span = next((span for span in invented if i in span), None)
        if signs:
            opening = "*" if i in new and i - 1 not in new else ""
            opening += "[" if span and i == span[0] else ""
            closing = "]" if span and i == span[-1] else ""
            closing += "*" if i in new and i + 1 not in new else ""
            result.append(f"{before}{opening}{core}{closing}{after}{gap}")
        else:
            style = f"{INVENTED if span else ''} {NEW if i in new else ''}".strip()
            result.append(before).append(core, style).append(after + gap)
    return result


def legend(signs: bool, several: bool, truth: frozenset[str] | None) -> Text:
    """What the marks mean, those that can occur."""
    result = Text()
    if truth is not None:
        result.append("[word]" if signs else "word", "" if signs else INVENTED)
        result.append(" not in the picture   ")
    if several:
        result.append("*word*" if signs else "word", "" if signs else NEW)
        result.append(" not in the first answer")
    return result


def cut(word: str) -> tuple[str, str, str]:
    """A word between the punctuation around it; a sign that stands alone is a word."""
    core = word.strip(string.punctuation) or word
    before, _, after = word.partition(core)
    return before, core, after


def new_words(words: Sequence[str], first: Sequence[str]) -> set[int]:
    """The places of words that the first answer does not have there; case does not count."""
    old, new = ([cut(word)[1].lower() for word in text] for text in (first, words))
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    changes = [place for tag, *place in matcher.get_opcodes() if tag != "equal"]
    return {i for _, _, start, end in changes for i in range(start, end)}


def invented_words(words: Sequence[str], truth: frozenset[str] | None) -> list[range]:
    """Where the words name objects that are not in the picture; names have up to three words."""
    from sightline.lab import mentioned

    spans, start = [], 0
    while truth is not None and start < len(words):
        for end in range(start + 1, min(start + NAME_WORDS, len(words)) + 1):
            names = mentioned(" ".join(words[start:end]))
            # Without its first word the span must name less, or it begins too early.
            if names and names != mentioned(" ".join(words[start + 1 : end])):
                if not truth.intersection(names):
                    spans.append(range(start, end))
                start = end - 1
                break
        start += 1
    return spans


if __name__ == "__main__":
    main()
