"""The lab's evaluation of the ways of a comparison, on the model that is loaded already."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from PIL import Image

from sightline.chat import written_argument
from sightline.demo.comparison import SamplingSettings
from sightline.evaluation import plots, report, runner
from sightline.evaluation.asking import LAB, Source
from sightline.evaluation.lab import LabBenchmark
from sightline.model_protocol import Model
from sightline.spec_text import SAMPLE
from sightline.specs import Spec

BATCH_SIZE = 16


class Loaded(Protocol):
    """A loaded model, with its processor, chat template arguments and the checkpoint's name."""

    model: Model
    processor: Any

    @property
    def name(self) -> str: ...

    @property
    def template(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, eq=False)
class LabRun:
    """What came of it.

    Args:
        done: Answers that were given.
        total: Answers that there would be without a stop.
        table: In Markdown, for each task its figures and the differences; empty where nothing was
            answered.
        plots: In the order of the tasks.
        note: What is missing, and why; empty where nothing is.
    """

    done: int
    total: int
    table: str
    plots: tuple[Image.Image, ...]
    note: str = ""

    @property
    def is_whole(self) -> bool:
        return self.done == self.total


def run(
    ways: Sequence[Spec],
    scenes: int,
    loaded: Loaded,
    drawing: SamplingSettings | None = None,
    *,
    controls: bool = False,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int, int], None] = lambda done, total: None,
    stopped: Callable[[], bool] = lambda: False,
    turn: Callable[[], AbstractContextManager[Any]] = nullcontext,
    clock: Callable[[], float] | None = None,
) -> LabRun:
    """Asks about drawn scenes in each of the ways, as `sightline evaluate lab` does.

    Greedy is always there, as all differences are taken to it. What is drawn is drawn from the
    whole vocabulary, without a checkpoint's own top-k and top-p. All is written to a folder that is
    gone at the end.

    Args:
        ways: Equal ones are one row.
        scenes: How many, 1 or more; each has up to six questions and a caption.
        loaded: Whose answers they are.
        drawing: Its seed is that of scenes and samples. At a temperature above 0 decoders sample;
            "greedy" never does. The lab's own limits of length hold in place of its.
        controls: Adds those that the decoders' figures need.
        batch_size: Questions that are answered together.
        progress: Gets how many answers there are, and how many there will be.
        stopped: Asked before each batch; where it says so, what is there is all there will be.
        turn: Entered for each way's answers to a batch, so that others can answer in between.
        clock: Seconds that pass in these turns; None: as everywhere.

    Raises:
        ValueError: For a way that cannot be read or run here, named, and for too few scenes.
    """
    drawing = drawing or SamplingSettings()
    names = list(dict.fromkeys(setup(way, drawing) for way in ways))
    settings = runner.Run(drawing.seed, batch_size, drawing.temperature or 1.0, loaded.template)
    counts = (0, 0)

    def told(done: int, total: int) -> None:
        nonlocal counts
        counts = done, total
        progress(done, total)

    with TemporaryDirectory(prefix="sightline-") as folder:
        summary = runner.evaluate(
            LabBenchmark(scenes, drawing.seed),
            names,
            settings,
            Path(folder),
            Source.loaded(loaded.name, loaded.model, loaded.processor),
            controls=controls,
            command=command(names, scenes, loaded.name, settings, controls),
            watch=runner.Watch(told, stopped, turn, clock, forks=False),
        )
        if summary is None:
            return LabRun(*counts, "", ())
        table = report.markdown(summary)
        return LabRun(*counts, table, *drawn_plots(summary, Path(folder)))


def setup(way: Spec, drawing: SamplingSettings) -> str:
    """What an evaluation calls a way: `vdd:alpha=0.5+sample`; `ValueError` where it cannot."""
    return (replace(way, way=SAMPLE) if drawing.draws(way) else way).label


def command(
    names: Sequence[str], scenes: int, model: str, settings: runner.Run, controls: bool
) -> str:
    """What does the same in a terminal."""
    options: dict[str, Any] = {
        "scenes": scenes,
        "scene-seed": settings.seed,
        "seed": settings.seed,
        "batch-size": settings.batch_size,
        "temperature": settings.temperature,
    }
    if model != LAB:
        options["model"] = model
    words = [word for name in names for word in ("--decoder", name)]
    words += [word for key, value in options.items() for word in (f"--{key}", str(value))]
    template = settings.chat_template_kwargs.items()
    words += [word for item in template for word in ("--template", written_argument(*item))]
    return shlex.join(["sightline", "evaluate", "lab", *words, *["--no-controls"] * (not controls)])


def drawn_plots(summary: Mapping[str, Any], folder: Path) -> tuple[tuple[Image.Image, ...], str]:
    """The plots that lie in a run's folder, and why there are none."""
    try:
        plots.check_matplotlib()
    except ImportError as error:
        return (), str(error)
    return tuple(open_plot(folder / f"{plot.name}.png") for plot in plots.plots(summary)), ""


def open_plot(path: Path) -> Image.Image:
    """The image, which does without its file from here on."""
    with Image.open(path, formats=["PNG"]) as plot:
        plot.load()
        return plot
