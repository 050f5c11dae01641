"""Asks a model all questions of a benchmark, through every setup, and loses no answer.

Batches follow from the questions alone, and a batch's samples are seeded by its place: a run that
was killed and continued, or split over processes (`evaluation/processes.py`), gives the answers of
one that was not. All setups answer a batch before the next one begins, so they meet the same
load of the machine.
"""

import copy
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from sightline.chat import check_arguments
from sightline.evaluation import answers as files
from sightline.evaluation import report
from sightline.evaluation.answers import Answer, Key
from sightline.evaluation.asking import ModelRunner, Preparation, Prepared, Source
from sightline.evaluation.batches import Ahead, Batch, cut
from sightline.evaluation.benchmark import Benchmark
from sightline.evaluation.failures import explained, named
from sightline.evaluation.lock import Lock
from sightline.evaluation.processes import STARTED_ONE, Processes, find_processes, started_one
from sightline.evaluation.record import header, versions
from sightline.evaluation.setups import (
    YES_SHIFT,
    Setup,
    Wordings,
    parse_contenders,
    with_controls,
)
from sightline.evaluation.summary import summarise

RATE_OVER = 300.0  # seconds that the progress bar's rate is taken over


@dataclass(frozen=True)
class Run:
    """What decides the answers, besides benchmark, model and setups.

    Args:
        seed: Of samples and of the bootstrap.
        batch_size: Questions that are answered together.
        temperature: Of everything that is sampled.
        chat_template_kwargs: Arguments of the model's chat template besides the messages.
    """

    seed: int = 0
    batch_size: int = 16
    temperature: float = 1.0
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(
                f"temperature must be above 0, and a finite number, got {self.temperature}"
            )


@dataclass(frozen=True)
class Watch:
    """A program that a run is part of: it follows the run, and can end it.

    Args:
        told: Gets how many answers there are, and how many there will be.
        stopped: Asked before each batch and at the end; where it says so, the run ends with what is
            there.
        turn: Entered for each setup's answers to a batch, and for nothing else: where others
            use the model, this is where the run waits for them.
        clock: Seconds that the model has worked in a turn, where others use it too; None: the
            machine's clock. With one, memory is not told, as it is everybody's.
        forks: Whether a process of its own prepares batches; no program that has threads may be
            forked.
    """

    told: Callable[[int, int], None] = lambda done, total: None
    stopped: Callable[[], bool] = lambda: False
    turn: Callable[[], AbstractContextManager[Any]] = nullcontext
    clock: Callable[[], float] | None = None
    forks: bool = True


ALONE = Watch()


@dataclass(frozen=True)
class Turn:
    """A batch and who answers it."""

    batch: Batch
    setups: tuple[Setup, ...]

    @property
    def rotated(self) -> tuple[Setup, ...]:
        """Who answers first changes with the batch: the next one is prepared meanwhile, and the
        time that this takes from whoever answers must not always be the same one's."""
        first = self.batch.place % max(len(self.setups), 1)
        return self.setups[first:] + self.setups[:first]

    def keys(self, setup: Setup) -> list[Key]:
        return [(item.task, setup.label, item.id) for item in self.batch.items]

    def is_done(self, setup: Setup, answers: Collection[Key]) -> bool:
        return all(key in answers for key in self.keys(setup))


def turns(batches: Sequence[Batch], setups: Sequence[Setup]) -> list[Turn]:
    """Setups of a closed set answer yes/no tasks alone."""
    return [
        Turn(b, tuple(c for c in setups if b.task.yes_no or not c.is_closed_set)) for b in batches
    ]


def order(plan: Sequence[Turn]) -> list[Key]:
    """All answers in the order of the finished file: by task, batch, setup and item."""
    return [key for turn in plan for c in turn.setups for key in turn.keys(c)]


def share(plan: Sequence[Turn], processes: Processes) -> list[Turn]:
    """The turns of one process: whole batches, dealt like cards."""
    return [turn for turn in plan if turn.batch.place % processes.count == processes.rank]


def collect(
    model_runner: ModelRunner,
    preparation: Preparation,
    plan: Sequence[Turn],
    path: Path,
    known: Mapping[Key, Answer],
    advance: Callable[[int], None] = lambda count: None,
    watch: Watch = ALONE,
) -> dict[Key, Answer]:
    """Asks what is not known yet and writes it to `path` as it comes; returns all answers.

    A batch is repeated whole if any of its answers is missing, because its neighbours decide how
    a row is rounded and sampled; only the missing ones are written. A batch is answered by all or
    by none of the setups, also where `watch` stops.
    """
    answers = dict(known)
    open_turns = [turn for turn in plan if not all(turn.is_done(c, answers) for c in turn.setups)]
    batches = [turn.batch for turn in open_turns]
    make = Ahead(preparation, batches) if watch.forks else (preparation(b) for b in batches)
    with closing(make) as prepared:
        for turn in open_turns[:1]:
            with watch.turn(), named(turn.setups[0], turn.batch):
                warm_up(model_runner, preparation, turn)
        for turn in open_turns:
            if watch.stopped():
                break
            batch: Prepared = next(prepared)
            inputs = model_runner.tensors(batch.inputs)
            for setup in turn.rotated:
                if turn.is_done(setup, answers):
                    continue
                with watch.turn(), named(setup, turn.batch):
                    said = model_runner.answer(setup, batch, inputs)
                new = [answer for answer in said if answer.key not in answers]
                files.append(path, new)
                answers.update((answer.key, answer) for answer in new)
                advance(len(new))
    return answers


def warm_up(model_runner: ModelRunner, preparation: Preparation, turn: Turn) -> None:
    """One token of one answer, so that start-up is not charged to the first batch.

    It is asked while the first batch is being prepared.
    """
    one = preparation(replace(turn.batch, items=turn.batch.items[:1]))
    if one.items:
        model_runner.generate(
            turn.setups[0], one, model_runner.tensors(one.inputs), max_new_tokens=1
        )


# A run


def evaluate(
    benchmark: Benchmark,
    decoders: str | Sequence[str],
    run: Run,
    out: Path,
    source: Source | None = None,
    *,
    controls: bool = False,
    wordings: Wordings | None = None,
    resume: bool = False,
    console: Console | None = None,
    command: str = "",
    watch: Watch = ALONE,
) -> dict[str, Any] | None:
    """Runs or continues an evaluation; writes its folder and returns the summary.

    Into `out` go `run.json`, `answers.jsonl`, `summary.json`, `table.md` and plots.

    Args:
        benchmark: Whose questions are asked.
        decoders: Names with settings and modes, see `setups`. Greedy is always there.
        run: Seed, batches, temperature.
        out: The run's folder.
        source: The model; None: the lab's.
        controls: Adds those that the decoders need, see `with_controls`.
        wordings: By name, settings that decoders have unless they are set.
        resume: Continues the run in `out`.
        console: For progress and notes; None: nothing is shown.
        command: Written down.
        watch: Of a program that the run is part of.

    Returns:
        The summary, of the batches that were answered; None where `watch` stopped before the
        first, and in all processes but the first.

    Raises:
        ValueError: For unknown decoders or settings, decoders that cannot answer these questions,
            and a folder whose run or answers are others.
        OSError: The disk is full; what was answered is kept.
    """
    source = source or Source()
    processes = find_processes()
    notes = console if processes.is_first else None
    say = notes.print if notes else lambda *args, **kwargs: None
    if started_one():
        say(STARTED_ONE, style="yellow")
    decoders = [decoders] if isinstance(decoders, str) else decoders
    setups, yes_shift = choose(benchmark, decoders, source.processor, wordings, controls)
    tell_malformed(benchmark, say)
    with closing(Lock(out)) as lock:
        if processes.is_first:
            files.check_folder(out, resume)
            if out.is_dir():
                lock.take()  # before weights are loaded in vain
        batches = cut(benchmark, source.processor.tokenizer, run.batch_size, run.seed)
        plan = turns(batches, setups)
        packages = versions()
        arguments = check_arguments(source.processor, run.chat_template_kwargs)
        model_runner = ModelRunner(
            source.model, source.processor, run.temperature, packages, watch.clock, arguments
        )
        yes_shift = yes_shift and can_shift(model_runner, controls, say)
        head = header(benchmark, run, source, setups, packages, command)
        known = open_answers(out, head, resume, benchmark, setups, processes, lock, say)
        broken = {(a.task, a.id): a.error for a in known.values() if a.error is not None}
        looks = any(c.needs_images for c in setups)
        preparation = Preparation(benchmark, source.processor, broken, looks, arguments)
        mine = share(plan, processes)
        with explained(run.batch_size), progress(notes, mine, known, watch.told) as advance:
            path = files.part(out, processes.rank)
            answers = collect(model_runner, preparation, mine, path, known, advance, watch)
        processes.wait()
        if not processes.is_first:
            return None
        if processes.count > 1:
            answers = read_answers(out, benchmark, setups)
        asked, whole = finished(out, benchmark, plan, answers, watch)
        if plan and not asked.items:
            return None
        return write_summary(asked, setups, whole, out, yes_shift, run.seed, say)


def tell_malformed(benchmark: Benchmark, say: Callable[..., None]) -> None:
    """Says how many questions are left out because their lines are malformed, if any are."""
    errors = [item.error for item in benchmark.items if item.error]
    if errors:
        say(
            f"malformed lines: {len(errors):,} of {len(benchmark.items):,} questions become error "
            f"rows and are left out of all figures. The first: {errors[0]}",
            style="yellow",
            markup=False,
        )


def can_shift(model_runner: ModelRunner, controls: bool, say: Callable[..., None]) -> bool:
    """Whether the tokenizer has tokens for the constant on "yes".

    Raises:
        ValueError: It has none, and the user asked for the constant by its name.
    """
    if all(model_runner.yes_no):
        return True
    reason = "this tokenizer has no single token for yes and for no"
    if not controls:
        raise ValueError(
            f"{YES_SHIFT} adds to the logit of one token, and {reason}: leave {YES_SHIFT} out"
        )
    say(f"{YES_SHIFT} is left out: {reason}")
    return False


def finished(
    out: Path,
    benchmark: Benchmark,
    plan: Sequence[Turn],
    answers: Mapping[Key, Answer],
    watch: Watch,
) -> tuple[Benchmark, Mapping[Key, Answer]]:
    """Merges the answers into one file, in order; returns the part that all have answered.

    Raises:
        ValueError: Answers are missing, and nobody has stopped the run.
    """
    keys = order(plan)
    there = [key for key in keys if key in answers]
    if len(there) < len(keys) and not watch.stopped():
        raise ValueError(
            f"{len(keys) - len(there)} answers of other processes are missing: continue the run "
            "with --resume"
        )
    return answered_part(benchmark, plan, files.merge(out, answers, there))


def choose(
    benchmark: Benchmark,
    decoders: Sequence[str],
    processor: Any,
    wordings: Wordings | None,
    controls: bool,
) -> tuple[list[Setup], bool]:
    """Who answers, and whether the constant on "yes" is made of it.

    Raises:
        ValueError: A name or setting does not exist, or a decoder can answer none of the tasks.
    """
    setups, yes_shift = parse_contenders(decoders, processor, wordings)
    if controls:
        setups, yes_shift = with_controls(setups), True
    yes_no = any(task.yes_no for task in benchmark.tasks)
    closed = [c.label for c in setups if c.is_closed_set]
    if closed and not yes_no:
        raise ValueError(
            f"{', '.join(closed)} answers with one of given labels, and {benchmark.name} asks for "
            "descriptions here: leave it out"
        )
    return setups, yes_shift and yes_no


def open_answers(
    out: Path,
    head: Mapping[str, Any],
    resume: bool,
    benchmark: Benchmark,
    setups: Sequence[Setup],
    processes: Processes,
    lock: Lock,
    say: Callable[..., None],
) -> dict[Key, Answer]:
    """Opens the run's folder and reads what all processes have answered before.

    The first process locks the folder and repairs the files before any is read, and none writes
    before all have read.
    """
    if processes.is_first:
        out.mkdir(parents=True, exist_ok=True)
        if unlocked := lock.take():
            say(unlocked, style="yellow", markup=False)
        files.open_run(out, head, resume)
    if processes.count > 1:
        processes.wait()
        lock.take(shared=True)
    files.check_run(out, head)
    known = read_answers(out, benchmark, setups)
    processes.wait()
    return known


def read_answers(out: Path, benchmark: Benchmark, setups: Sequence[Setup]) -> dict[Key, Answer]:
    asked = {(item.task, item.id): item.question for item in benchmark.items}
    return files.read_all(out, asked, [c.label for c in setups])


def answered_part(
    benchmark: Benchmark, plan: Sequence[Turn], answers: Mapping[Key, Answer]
) -> tuple[Benchmark, Mapping[Key, Answer]]:
    """Both without the batches that not all setups have answered, and without empty tasks."""
    open_turns = [t for t in plan if not all(t.is_done(c, answers) for c in t.setups)]
    if not open_turns:
        return benchmark, answers
    left = {(item.task, item.id) for turn in open_turns for item in turn.batch.items}
    part: Any = copy.copy(benchmark)
    part.items = [item for item in benchmark.items if (item.task, item.id) not in left]
    part.tasks = tuple(t for t in benchmark.tasks if any(i.task == t.name for i in part.items))
    return part, {key: a for key, a in answers.items() if (a.task, a.id) not in left}


def write_summary(
    benchmark: Benchmark,
    setups: Sequence[Setup],
    answers: Mapping[Key, Answer],
    out: Path,
    yes_shift: bool,
    seed: int,
    say: Callable[..., None],
) -> dict[str, Any]:
    figures = summarise(benchmark, answers.values(), setups, yes_shift, seed)
    summary = {"run": files.read_run(out), **figures}
    files.write_json(out / "summary.json", summary)
    files.write_whole(out / "table.md", report.markdown(summary))
    try:
        from sightline.evaluation import plots

        plots.draw(summary, out)
    except ImportError as error:
        say(f"no plots: {error}", style="yellow", markup=False)
    return summary


# Progress


class RateColumn(ProgressColumn):
    """Answers in a second."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f}/s")


@contextmanager
def progress(
    console: Console | None,
    plan: Sequence[Turn],
    known: Collection[Key],
    told: Callable[[int, int], None] = ALONE.told,
) -> Iterator[Callable[[int], None]]:
    """A bar over the answers of a plan, which begins at those that are known; yields its push."""
    keys = order(plan)
    columns = (
        TextColumn("answers"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, disable=console is None, speed_estimate_period=RATE_OVER
    ) as bar:
        done = sum(key in known for key in keys)
        task = bar.add_task("answers", total=len(keys), completed=done)

        def advance(count: int) -> None:
            nonlocal done
            done += count
            bar.advance(task, count)
            told(done, len(keys))

        told(done, len(keys))
        yield advance
