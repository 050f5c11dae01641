"""The command line: `sightline describe | compare | demo | evaluate | export | decoders`.

Decoders, their settings, ranges, presets and papers are read off the classes and their docstrings,
so a new decoder appears here by its name in `sightline.decoders.DECODERS` alone.
"""

import inspect
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Event
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

import sightline
from sightline.checkpoints import Dtype, check_device, load_model, load_processor, quiet
from sightline.evaluation.command import TemplateOption
from sightline.evaluation.command import app as evaluation
from sightline.highlights import cut, known_truth, listed, named_words, new_words, remarks
from sightline.model_protocol import Model

if TYPE_CHECKING:
    from sightline.specs import Spec

LONGEST = 16  # a default that is shown in the column of defaults
INVENTED, NEW = "bold red", "underline"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ImageArgument = Annotated[str, typer.Argument(metavar="IMAGE", help="An image file.")]
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
    """Ask vision-language models about images, and keep them to what is there."""


@app.command()
def describe(
    image: ImageArgument,
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
    template: TemplateOption = None,
    stream: Annotated[
        bool, typer.Option("--stream/--no-stream", help="Show words as they come.")
    ] = True,
) -> None:
    """Answer a question about an image, with a decoder or without."""
    with refusing():
        opened = open_checked(image, question)
        from sightline.specs import parse_spec

        spec = parse_spec(usual_way(sample) if decoder is None else decoder, settings or [])
        asked = keywords([spec], sample, temperature, max_new_tokens, template)
        stream = stream and asked[0]["num_beams"] == 1
        with quiet():
            [answer], processor = prepare(
                model, device, dtype, opened, question, [spec], asked, seed
            )
            text = answer(word_streamer(processor) if stream else None)
    if not stream:
        typer.echo(text)
    if not text:
        typer.echo("(the model's answer is empty)", err=True)


@app.command()
def compare(
    image: ImageArgument,
    question: QuestionArgument = DESCRIBE,
    decoders: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Joined by commas, with settings or a preset where wanted: "
            "greedy,vdd:alpha=0.5,beta=0.2,vcd.pope_paper,vdd+vaf,vcd+sample. "
            "The model's own decoding is greedy, sample or beam. Default: greedy,vcd,vdd.",
        ),
    ] = None,
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = Dtype.float32,
    max_new_tokens: LengthOption = 128,
    seed: SeedOption = 0,
    sample: SampleOption = False,
    temperature: TemperatureOption = None,
    template: TemplateOption = None,
) -> None:
    """Put the answers of several decoders under one another."""
    with refusing():
        opened = open_checked(image, question)
        from sightline.specs import parse_specs

        specs = parse_specs(decoders or f"{usual_way(sample)},vcd,vdd")
        asked = keywords(specs, sample, temperature, max_new_tokens, template)
        with quiet():
            answers, _ = prepare(model, device, dtype, opened, question, specs, asked, seed)
            labelled = [(s.label, answer) for s, answer in zip(specs, answers, strict=True)]
            show_comparison(labelled, known_truth(opened, question))


@app.command("demo")
def serve(
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = Dtype.float32,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Default: the first free one from 7860."),
    ] = None,
    share: Annotated[
        bool, typer.Option("--share", help="Make the page reachable from anywhere, by a tunnel.")
    ] = False,
    auth: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:PASSWORD", help="Who may use the page; may be repeated."),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="The longest answer that a visitor may ask for.")
    ] = 256,
    max_seconds: Annotated[
        float,
        typer.Option(
            help="The longest time of an answer, or of the explanation of its tokens, from its "
            "start: the model's work on it and the turns of others in between, but not the wait in "
            "the queue before it starts. A visitor's file may take as long to open, and 20 s at "
            "most. An evaluation on the lab's scenes has 900 s of its own."
        ),
    ] = 120.0,
    template: TemplateOption = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")
    ] = False,
) -> None:
    """Serve a page that puts the answers of several decoders side by side."""
    with refusing():
        people = [parse_login(text) for text in auth or []]
        arguments = template_arguments(template)
        try:
            from sightline.demo.page import launch
        except ModuleNotFoundError as error:
            if error.name != "gradio":
                raise
            raise ValueError('the page needs gradio: pip install "sightline-vlm[demo]"') from None
        from sightline.demo.host import Host, Limits

        with quiet():
            host = Host(model, device, dtype, Limits(max_tokens, max_seconds), arguments)
            host.warm_up()
            try:
                address = launch(
                    host, port=port, share=share, auth=people, open_browser=browser, block=False
                )
            except OSError as error:
                raise ValueError(f"--port {port or ''} cannot be listened on: {error}") from error
            typer.echo(f"{host.name} answers at {address} (Ctrl+C ends it)")
            wait_for_interrupt()


def parse_login(text: str) -> tuple[str, str]:
    """ "ada:secret" -> ("ada", "secret"), or `ValueError`."""
    name, colon, password = text.partition(":")
    if not (name and colon and password):
        raise ValueError("--auth is written NAME:PASSWORD, and one of the two is missing")
    return name, password


def wait_for_interrupt() -> None:
    try:
        Event().wait()
    except KeyboardInterrupt:
        typer.echo("")


@app.command("export")
def export_decoder(
    decoder: Annotated[
        str, typer.Argument(metavar="NAME", help="As `sightline decoders` lists them.")
    ],
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A new folder, or an empty one.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A decoder's setting; may be repeated."),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Write into a folder that is not empty, over its README.md."),
    ] = False,
) -> None:
    """Write a decoder as a folder that `generate` takes, and that the hub can hold."""
    with refusing():
        from sightline.lab import CHECKPOINT
        from sightline.specs import parse_spec

        spec = parse_spec(decoder, settings or [])
        if spec.is_plain:
            raise ValueError(
                f"{spec.label} is the model's own decoding, which needs no folder: name a decoder"
            )
        if spec.way is not None:
            raise ValueError(
                "a folder holds a decoder, and how tokens are taken is said in each call: leave "
                f"{spec.way} out of {spec.label}, and pass do_sample= or num_beams= to generate"
            )
        with quiet():  # some decoders read their processor when they are made; any will do
            made = spec.build(load_processor(str(CHECKPOINT)))
            written = made.save_pretrained(folder, force=force)
    for path in written:
        typer.echo(path)
    typer.echo(
        f"\nmodel.generate(**inputs, custom_generate={folder!r}, trust_remote_code=True) decodes "
        "with it; README.md says more."
    )


@app.command("decoders")
def list_decoders() -> None:
    """List the decoders with their settings, usual ranges, presets and papers."""
    from sightline.decoders import DECODERS
    from sightline.docstrings import paper, read_arguments
    from sightline.setting_text import presets, settable
    from sightline.spec_text import WAYS

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
        ranges = {key: str(setting.usual or "") for key, setting in known.items()}
        third = max(map(len, ranges.values()), default=0)
        for key, default in defaults.items():
            start = f"    {key:<{column}}  {default:<{second}}  "
            tried = f"{ranges[key]:<{third}}  " if third else ""
            says = meanings.get(key, "") + f" Default: {known[key].default}" * (key in long)
            indent = min(len(start + tried), width // 2)
            typer.echo(fill(tried + says, width, indent, start))
        for preset in presets(kind).values():
            changes = ", ".join(f"{key}={text}" for key, text in preset.changes().items())
            says = ". ".join(filter(None, (changes, preset.meaning)))
            typer.echo(fill(says, width, 4, f"  {name}.{preset.name}  "))
        typer.echo()
    typer.echo(
        fill("After a setting stand its default and the range that is usually tried.", width, 0)
    )
    typer.echo(fill(f"Without a decoder: {', '.join(WAYS)}. With decoders and settings:", width, 0))
    typer.echo("  sightline describe IMAGE --decoder NAME --set SETTING=VALUE")
    typer.echo("  sightline compare IMAGE --decoders greedy,NAME:SETTING=VALUE,SETTING=VALUE")
    typer.echo(
        fill(
            "Several values are joined by +: layers=1+3. NAME.PRESET begins with other settings "
            "than the defaults, and SETTING=VALUE changes them: vcd.pope_paper:alpha=0.5. "
            "NAME+NAME adds decoders and NAME+WAY says how tokens are taken: vdd+vaf, vcd+sample.",
            width,
            0,
        )
    )


def fill(text: str, width: int, indent: int, start: str = "") -> str:
    """The text in lines; the first one begins with `start`, the others with `indent` blanks."""
    return textwrap.fill(text, width, initial_indent=start, subsequent_indent=" " * indent)


# Images and models


@contextmanager
def refusing() -> Iterator[None]:
    """A user's mistake ends the command with one line and exit code 2."""
    try:
        yield
    except ValueError as error:
        typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
        typer.echo(" ".join(str(error).split()), err=True)
        raise typer.Exit(2) from error


def open_checked(image: str, question: str) -> Any:
    """The image, once it and the question are known to be usable."""
    from sightline.chat import check_question
    from sightline.vision.images import open_image

    check_question(question)
    return open_image(image)


def template_arguments(assignments: Sequence[str] | None) -> dict[str, Any]:
    """`--template NAME=VALUE` of a command, or `ValueError`."""
    from sightline.chat import parse_arguments

    return parse_arguments(assignments or ())


def usual_way(sample: bool) -> str:
    """How tokens are taken where a decoder's name does not say it."""
    return "sample" if sample else "greedy"


def keywords(
    specs: "Sequence[Spec]",
    sample: bool,
    temperature: float | None,
    max_new_tokens: int,
    template: Sequence[str] | None,
) -> list[dict[str, Any]]:
    """For each spec, keywords of `reply`; `ValueError` for a temperature that nothing would use."""
    told = template_arguments(template)
    found = [
        {
            "max_new_tokens": max_new_tokens,
            "chat_template_kwargs": told,
            **spec.arguments(usual_way(sample), temperature),
        }
        for spec in specs
    ]
    if temperature is not None:
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature must be a number > 0, got {temperature}")
        if not any(each["do_sample"] for each in found):
            raise ValueError("temperature has no effect where nothing is drawn: add --sample")
    return found


Answering = Callable[..., str]
"""`answer(streamer, longest=None)`: the text, whose words go to the streamer too."""


def prepare(
    checkpoint: str | None,
    device: str,
    dtype: Dtype,
    image: Any,
    question: str,
    specs: "Sequence[Spec]",
    asked: Sequence[Mapping[str, Any]],
    seed: int,
) -> tuple[list[Answering], Any]:
    """What answers for each spec, with its keywords, and the processor.

    What can be refused is refused before the weights are read.
    """
    from sightline.chat import check_arguments, prompt_inputs
    from sightline.lab import CHECKPOINT

    checkpoint = checkpoint or str(CHECKPOINT)
    told = asked[0]["chat_template_kwargs"]
    check_device(device)
    processor = load_processor(checkpoint)
    check_arguments(processor, told)
    decoders = [spec.build(processor) for spec in specs]
    model = load_model(checkpoint, device, dtype)
    inputs = prompt_inputs(model, processor, image, question, chat_template_kwargs=told)
    answers: list[Answering] = [
        partial(respond, model, processor, inputs, image, decoder, seed, arguments)
        for decoder, arguments in zip(decoders, asked, strict=True)
    ]
    return answers, processor


def respond(
    model: Model,
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
    if arguments["num_beams"] > 1:
        streamer = None  # words of beams come when all have been said
    return reply(model, processor, dict(inputs), decoder, image, streamer=streamer, **arguments)


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
    """An answer with its times in seconds.

    Args:
        label: Of the spec.
        text: The answer.
        total: For all of it.
        first: Until the first token; None where tokens are not told one by one, as beams'.
        each: Per token after it; None where only one came.
    """

    label: str
    text: str
    total: float
    first: float | None = None
    each: float | None = None

    @property
    def times(self) -> str:
        if self.first is None:
            return f"{milliseconds(self.total)} in all"
        first = f"first token after {milliseconds(self.first)}"
        return first if self.each is None else f"{milliseconds(self.each)} per token, {first}"


def milliseconds(seconds: float) -> str:
    value = 1000 * seconds
    return f"{value:.1f} ms" if value < 10 else f"{value:.0f} ms"


def timed(label: str, answer: Answering) -> Timed:
    """An answer, and how long it took."""
    watch = Stopwatch()
    start = perf_counter()
    text = answer(watch)
    total = perf_counter() - start
    if not watch.times:
        return Timed(label, text, total)
    _, first, *later = watch.times
    each = (later[-1] - first) / len(later) if later else None
    return Timed(label, text, total, first - start, each)


def show_comparison(answers: Sequence[tuple[str, Answering]], truth: frozenset[str] | None) -> None:
    """Prints each answer, by its label, as soon as it is there."""
    console = new_console()
    signs = console.color_system is None or console.no_color
    if truth is not None:
        console.print(f"In the image: {listed(truth)}\n")
    answers[-1][1](None, longest=2)  # so that start-up is not charged to the first answer
    first: str | None = None
    for label, answering in answers:
        answer = timed(label, answering)
        first = answer.text if first is None else first
        console.print(Text.assemble((answer.label, "bold"), "  ", (answer.times, "dim")))
        remarked = [Text(line, "dim") for line in remarks(answer.text, first, truth)]
        shown = marked(answer.text, first, truth, signs) if answer.text else Text("(empty)", "dim")
        for text in (shown, *remarked):
            for line in text.wrap(console, max(console.width - 2, 1)):
                line.rstrip()
                console.print("  ", line, sep="", end="\n")
        console.print()
    console.print(legend(signs, len(answers) > 1, truth))


def marked(text: str, first: str, truth: frozenset[str] | None, signs: bool) -> Text:
    """The answer with its invented objects, and the words not in the first answer, marked.

    By colour, or by signs where there is none: `[cup]`, `*a clock*`.
    """
    pieces = re.split(r"(\s+)", text)
    words, gaps = pieces[::2], [*pieces[1::2], ""]
    new, (_, invented) = new_words(words, first.split()), named_words(words, truth)
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
        result.append(" not in the image   ")
    if several:
        result.append("*word*" if signs else "word", "" if signs else NEW)
        result.append(" not in the first answer")
    return result


if __name__ == "__main__":
    main()
