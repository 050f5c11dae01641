"""The tables that papers print, for people who have a checkpoint and COCO's images.

    python -m sightline.evaluation.reproduce --model llava-hf/llava-1.5-7b-hf \\
        --coco DIR --pope DIR --ids FILE --device cuda --out runs/reproduce

POPE's three splits, and CHAIR on given images at 64 tokens (an unfinished last sentence is cut, as
OPERA does it) and at 512, for every decoder with our defaults next to its paper's settings. It is a
plan of runs over the shared runner: one for each benchmark and decoder, in a folder of its own
(`pope/vcd`, `chair-64/pai`), together with greedy and the decoder's own controls, so that every
difference is paired and every ratio of times is of one machine.

The same command continues what was stopped, on this machine or another that sees the folder, and
skips what is finished. `--part 1/2 --device cuda:0` and `--part 2/2 --device cuda:1` share the
runs. A row that cannot run on the model is written down with its reason, and the rest goes on.
After each run `reproduce.md` has all that is finished.
"""

import argparse
import os
import re
import shlex
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from sightline.chat import check_arguments, parse_arguments
from sightline.evaluation import plots, report
from sightline.evaluation.answers import write_json
from sightline.evaluation.asking import ModelRunner, Preparation, Source
from sightline.evaluation.batches import cut
from sightline.evaluation.benchmark import Benchmark
from sightline.evaluation.chair import DESCRIBE, IDS_WANTED, Chair, ChairBenchmark, draw_ids
from sightline.evaluation.files import read_json
from sightline.evaluation.pope import PARSERS, SPLITS, SUFFIXES, Pope
from sightline.evaluation.processes import exit_status, find_processes, handled, terminate
from sightline.evaluation.report import Table
from sightline.evaluation.runner import Run, evaluate
from sightline.evaluation.setups import (
    OWN,
    YES_SHIFT,
    Setup,
    own_control,
    parse_setup,
)
from sightline.messages import short, unknown
from sightline.spec_text import BEAM, GREEDY, SAMPLE
from sightline.specs import parse_specs

OURS, BOTH = "ours", "ours, as published"
POPE, CHAIR_64, CHAIR_512 = "pope", "chair-64", "chair-512"
BENCHMARKS = (POPE, CHAIR_64, CHAIR_512)
BASELINES = "baselines"
LENGTHS = {CHAIR_64: 64, CHAIR_512: 512}
IDS = 500
HEADLINES = ("f1", "chair_i")  # metrics whose difference to greedy stands in the tables
NOTED = "state.json"  # in the folder of a run
CONTROL = "control"


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Args:
        text: The setup, as `setups.parse_setup` reads it.
        settings: Whose settings these are.
    """

    text: str
    settings: str


def ours(name: str, *papers: tuple[str, str]) -> tuple[Row, ...]:
    """A decoder's defaults, then what papers and their code set."""
    return Row(name, OURS), *(Row(text, settings) for text, settings in papers)


def same(name: str) -> tuple[Row, ...]:
    """A decoder whose defaults are the published ones."""
    return (Row(name, BOTH),)


PLAIN = tuple(Row(name, CONTROL) for name in (GREEDY, SAMPLE, "plausibility", BEAM))
DREW = "paper: drawn at temperature 1"
SCRIPTS = "authors' scripts: drawn"
UNCHANGED = {name: same(name) for name in ("pai", "vaf", "deco", "dola")}
Rows = dict[str, tuple[Row, ...]]
ROWS: dict[str, Rows] = {
    POPE: {
        BASELINES: PLAIN,
        "vcd": ours("vcd", ("vcd.pope_paper+sample", f"{DREW}, noise 999")),
        "vdd": ours("vdd", ("vdd:variant=both,beta=0.2+sample", f"{SCRIPTS}, both amateurs")),
        "posthoc": ours("posthoc", ("posthoc:reference=none_unk", "both references")),
        "damro": ours("damro", ("damro+sample", SCRIPTS)),
        "sid": ours(
            "sid",
            ("sid+sample", "paper: drawn"),
            ("sid.sid_2408+sample", "code of August 2024: drawn"),
        ),
        "agla": ours("agla", ("agla+sample", f"{DREW}; own attention in BLIP's place")),
        "vasparse": ours("vasparse"),
        **UNCHANGED,
        "icd": ours("icd"),
        "m3id": ours("m3id"),
        "vdgd": ours("vdgd", ("vdgd:layout=official,tokens=1024", "paper's order and length")),
        "mvp": ours(
            "mvp", ("mvp:dedup=false,unresolved=affirmative", "as the authors' code means")
        ),
        "carve": ours("carve", ("carve.paper_best", "paper's best")),
    },
    CHAIR_512: {
        BASELINES: PLAIN,
        "vcd": ours("vcd", ("vcd+sample", "paper's for MME: drawn, noise 500")),
        "vdd": ours("vdd", ("vdd:variant=both+sample", f"{SCRIPTS}, both amateurs")),
        "damro": ours("damro", ("damro+sample", SCRIPTS)),
        "sid": ours(
            "sid",
            ("sid+sample", "paper: drawn"),
            ("sid:start=2,count=50,alpha=0.5+sample", f"{SCRIPTS}, as they run"),
        ),
        "agla": ours("agla", ("agla+sample", f"{DREW}; own attention in BLIP's place")),
        "vasparse": ours("vasparse", ("vasparse.paper+beam", "paper: all parts, beams")),
        **UNCHANGED,
        "icd": ours("icd"),
        "m3id": ours("m3id"),
        "vdgd": ours("vdgd", ("vdgd:layout=official,tokens=1024", "paper's order and length")),
        "carve": ours(
            "carve", ("carve.paper_best:answer_suffix=false", "paper's best, asked to describe")
        ),
    },
}
ROWS[CHAIR_64] = ROWS[CHAIR_512]
"""By benchmark, the runs and their rows. Decoders of closed questions do not describe."""

NEEDED = {SAMPLE: (SAMPLE, "plausibility"), BEAM: (BEAM, "plausibility+beam")}
"""Controls of rows in a way, which a run of them has too."""
NOTES = (
    "Rows that end in `+sample` draw tokens, as the papers of contrasts do; what these call "
    "regular decoding is `sample` here. Read such a row beside `sample` and `plausibility`, "
    "and a row of yes/no questions beside its `yes-shift`, greedy made to say yes as often.",
    "VASparse's paper takes 3 beams at 64 tokens and 2 at 512; here it is 3 in both. DAMRO's "
    "paper publishes no settings for LLaVA on these benchmarks; those of its scripts are used. "
    "AGLA's paper matches with BLIP, which cannot be chosen by name; its rows use the model's own "
    "attention.",
    "Differences are paired, and `time / greedy` is taken within a run. Other differences, also "
    "those to `plausibility` and `yes-shift`, stand in each run's own `table.md`.",
)


# The plan


@dataclass(frozen=True)
class Job:
    """A run of the plan.

    Args:
        benchmark: One of `BENCHMARKS`.
        name: Of its folder, below that of the benchmark.
        rows: What is answered, besides greedy and controls.
    """

    benchmark: str
    name: str
    rows: tuple[Row, ...]

    def folder(self, out: Path) -> Path:
        return out / self.benchmark / self.name


def planned(benchmarks: Sequence[str] = BENCHMARKS, decoders: Sequence[str] = ()) -> list[Job]:
    """The runs, in the order of the tables.

    Args:
        benchmarks: Names of `BENCHMARKS`.
        decoders: Names; empty: all. The baselines are always there.

    Raises:
        ValueError: For a name that there is not, listing those there are.
    """
    for name in benchmarks:
        if name not in BENCHMARKS:
            raise unknown("benchmark", name, BENCHMARKS)
    for name in decoders:
        if name not in ROWS[POPE]:
            raise unknown("decoder", name, ROWS[POPE])
    chosen = {BASELINES, *decoders} if decoders else {*ROWS[POPE]}
    return [
        Job(benchmark, name, rows)
        for benchmark in BENCHMARKS
        if benchmark in benchmarks
        for name, rows in ROWS[benchmark].items()
        if name in chosen
    ]


def share(jobs: Sequence[Job], part: str) -> Sequence[Job]:
    """A share of the runs, dealt like cards: "2/3" is the second of three."""
    found = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", part)
    if found is None or int(found[1]) > int(found[2]):
        raise ValueError(f"a part is written 1/2 or 2/2, got {short(part)}")
    return jobs[int(found[1]) - 1 :: int(found[2])]


# What is finished


@dataclass(frozen=True)
class State:
    """What became of a run.

    Args:
        job: The run.
        summary: Of a finished run; None of another.
        refused: Why rows cannot run on this model, by their text.
        stopped: Why the run broke off; empty where it did not.
    """

    job: Job
    summary: Mapping[str, Any] | None
    refused: Mapping[str, str]
    stopped: str

    @property
    def open_rows(self) -> tuple[Row, ...]:
        """Rows that are still to be answered."""
        if self.summary is not None:
            return ()
        return tuple(row for row in self.job.rows if row.text not in self.refused)


def state(job: Job, out: Path) -> State:
    folder = job.folder(out)
    noted = read_json(folder / NOTED) if (folder / NOTED).exists() else {}
    summary = folder / "summary.json"
    return State(
        job,
        read_json(summary) if summary.exists() else None,
        noted.get("refused", {}),
        noted.get("stopped", ""),
    )


def note(job: Job, out: Path, **changes: Any) -> None:
    """Writes down what became of a run, beside what is written there."""
    folder = job.folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    noted = read_json(folder / NOTED) if (folder / NOTED).exists() else {}
    write_json(folder / NOTED, {**noted, **changes})


# Running


@dataclass(eq=False)
class Plan:
    """The runs, and what they are run on.

    Args:
        jobs: In the order of the tables.
        mine: Those of them that this process runs.
        benchmarks: By name.
        source: The model.
        run: Seed, batches, temperature.
        out: Folder of everything.
        wordings: By decoder, settings that its rows have unless they set them.
        console: For progress.
        command: Written down.
    """

    jobs: Sequence[Job]
    mine: Sequence[Job]
    benchmarks: Mapping[str, Benchmark]
    source: Source
    run: Run
    out: Path
    wordings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    console: Console | None = None
    command: str = ""

    def check(self) -> None:
        """Raises `ValueError` where a row cannot be made, or `out` holds another plan."""
        check_arguments(self.source.processor, self.run.chat_template_kwargs)
        for job in self.jobs:
            for row in job.rows:
                self.setup(job, row)
        path = self.out / "plan.json"
        saved = read_json(path) if path.exists() else {}
        wanted = self.fixed()
        changed = [name for name in saved.keys() & wanted.keys() if saved[name] != wanted[name]]
        if changed:
            said = "; ".join(f"{n}: {saved[n]} then, {wanted[n]} now" for n in sorted(changed))
            raise ValueError(f"{self.out} holds other runs, choose another --out. {said}")
        if saved.keys() < {*saved, *wanted}:
            self.out.mkdir(parents=True, exist_ok=True)
            write_json(path, {**saved, **wanted})

    def fixed(self) -> dict[str, Any]:
        """What runs of one folder agree in; a plan of other benchmarks may come to it later."""
        settings = {
            "model": self.source.name,
            "dtype": self.source.dtype,
            **vars(self.run),
            "set": {name: {k: str(v) for k, v in s.items()} for name, s in self.wordings.items()},
        }
        return settings | {name: b.fixed() for name, b in self.benchmarks.items()}

    def words(self, job: Job) -> dict[str, Mapping[str, Any]]:
        """What is set for a decoder is set for its own control; AGLA knows the question's end."""
        words = {**self.wordings}
        for name, own in OWN.items():
            if name in words and own.name != name and not own.drops:
                words.setdefault(own.name, words[name])
        ending = SUFFIXES[getattr(self.benchmarks[job.benchmark], "suffix", "none")].strip()
        return {**words, "agla": {"suffix": ending, **words.get("agla", {})}}

    def setup(self, job: Job, row: Row) -> Setup:
        return parse_setup(row.text, self.source.processor, self.words(job))

    def go(self) -> bool:
        """Runs what is not finished; whether nothing is left to do."""
        for job in self.mine:
            if state(job, self.out).open_rows:
                self.say(f"{job.benchmark}/{job.name}")
                self.settle(job)
                self.collect()
        self.collect()
        try:
            self.draw()
        except ImportError as error:
            self.say(f"no plots: {error}")
        return not any(state(job, self.out).open_rows for job in self.mine)

    def say(self, text: str) -> None:
        if self.console is not None:
            self.console.print(text, markup=False)

    def settle(self, job: Job) -> None:
        """One run, to its end or to a reason; only a disk that cannot be written ends the plan."""
        setups, has_shift = self.tried(job)
        if not setups:
            return
        try:
            evaluate(
                self.benchmarks[job.benchmark],
                texts(setups, has_shift),
                self.run,
                job.folder(self.out),
                self.source,
                wordings=self.words(job),
                resume=True,
                console=self.console,
                command=self.command,
            )
        except OSError:
            raise
        except Exception as error:  # whatever it is, other runs need not wait for it
            note(job, self.out, stopped=sentence(error))
            self.say(f"stopped: {sentence(error)}")

    def tried(self, job: Job) -> tuple[list[Setup], bool]:
        """The rows that can answer the first batch, and whether a constant on "yes" can be made.

        What cannot is written down with its reason. A run that has begun is not tried again.
        """
        benchmark, processor = self.benchmarks[job.benchmark], self.source.processor
        arguments = check_arguments(processor, self.run.chat_template_kwargs)
        model_runner = ModelRunner(
            self.source.model, processor, self.run.temperature, {}, chat_template_kwargs=arguments
        )
        has_shift = all(model_runner.yes_no) and all(task.yes_no for task in benchmark.tasks)
        refused = dict(state(job, self.out).refused)
        if not (job.folder(self.out) / "run.json").exists():
            refused = self.refusals(job, model_runner)
        note(job, self.out, refused=refused, stopped="")
        kept = [self.setup(job, row) for row in job.rows if row.text not in refused]
        return kept, has_shift

    def refusals(self, job: Job, model_runner: ModelRunner) -> dict[str, str]:
        """Why rows cannot answer the first batch with a readable image, by their text.

        What greedy decoding itself raises is no row's fault and ends the plan.
        """
        benchmark = self.benchmarks[job.benchmark]
        batches = cut(
            benchmark, model_runner.processor.tokenizer, self.run.batch_size, self.run.seed
        )
        template = model_runner.chat_template_kwargs
        preparation = Preparation(benchmark, model_runner.processor, chat_template_kwargs=template)
        prepared = map(preparation, batches)
        first = next((batch for batch in prepared if batch.items), None)
        if first is None:
            raise ValueError(f"no image of {job.benchmark} can be read: see that --coco is whole")
        inputs = model_runner.tensors(first.inputs)
        model_runner.generate(parse_setup(GREEDY, None), first, inputs, max_new_tokens=1)
        refused = {}
        for row in job.rows:
            try:
                model_runner.generate(self.setup(job, row), first, inputs, max_new_tokens=1)
            except Exception as error:  # of any kind: decoders and models are many
                refused[row.text] = sentence(error)
                self.say(f"cannot run here: {row.text}: {refused[row.text]}")
        return refused

    def shown(self) -> list[Job]:
        """The runs of the tables: those of this plan, and what earlier commands have run."""
        earlier = [job for job in planned() if job.folder(self.out).exists()]
        return list(dict.fromkeys([*self.jobs, *earlier]))

    def collect(self) -> None:
        """Writes `reproduce.md` with all that is finished."""
        path = self.out / "reproduce.md"
        draft = path.with_suffix(f".{os.getpid()}")  # several processes may write it at a time
        draft.write_text(markdown(self.shown(), self.out), encoding="utf-8")
        draft.replace(path)

    def draw(self) -> None:
        """Writes plots of all that is finished, for each benchmark."""
        jobs = self.shown()
        for name in dict.fromkeys(job.benchmark for job in jobs):
            done = finished(jobs, self.out, name)
            if done:
                plots.draw(untimed(merged(done)), self.out / name)


def texts(setups: Sequence[Setup], has_shift: bool) -> list[str]:
    """What the runner is asked for: the rows, and the controls that belong to them."""
    labels = [setup.label for setup in setups]
    for way, controls in NEEDED.items():
        if any(setup.way == way for setup in setups):
            labels += controls
    labels += [own.label for own in map(own_control, setups) if own is not None]
    return [*dict.fromkeys(labels), *[YES_SHIFT] * has_shift]


def sentence(error: Exception) -> str:
    """The first line of what went wrong."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


# Tables


def merged(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One summary of several runs of a benchmark; what more than one has is the first one's."""
    first = summaries[0]
    tasks = {
        name: {
            **task,
            **{
                key: joined(summary["tasks"][name][key] for summary in summaries)
                for key in ("rows", "invalid", "shifts", "cost")
            },
        }
        for name, task in first["tasks"].items()
    }
    differences = joined(
        {(d["decoder"], d["against"], d["task"], d["metric"]): d for d in summary["differences"]}
        for summary in summaries
    )
    controls = joined(dict.fromkeys(summary["controls"]) for summary in summaries)
    return {
        **first,
        "tasks": tasks,
        "controls": list(controls),
        "differences": list(differences.values()),
    }


def untimed(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A summary without times, which are compared within a run alone."""
    tasks = {name: {**task, "cost": {}} for name, task in summary["tasks"].items()}
    return {**summary, "tasks": tasks}


def joined(parts: Iterable[Mapping[Any, Any]]) -> dict[Any, Any]:
    """All entries in order, the first of each key."""
    found: dict[Any, Any] = {}
    for part in parts:
        for key, value in part.items():
            found.setdefault(key, value)
    return found


def ratios(summary: Mapping[str, Any], task: str) -> dict[str, float]:
    """The time of each setup over greedy's in the same run, by token or by short answer."""
    part = summary["tasks"][task]
    measure = "ms_per_answer" if part["yes_no"] else "ms_per_token"
    times = {label: cost[measure] for label, cost in part["cost"].items() if cost[measure]}
    base = times.get(GREEDY)
    return {label: ms / base for label, ms in times.items()} if base else {}


def tables(done: Sequence[Mapping[str, Any]], settings: Mapping[str, str]) -> list[Table]:
    """The tables of one benchmark: whose settings a row has, its figures, and it against greedy.

    Args:
        done: Summaries of its finished runs.
        settings: Whose settings a row has, by its text.
    """
    whole = merged(done)
    made = []
    for name, task in whole["tasks"].items():
        times = joined(ratios(summary, name) for summary in done)
        headline = next(m for m in task["metrics"] if m["name"] in HEADLINES)
        gaps = to_greedy(report.differences_table(whole, name), headline["title"])
        table = report.task_table(whole, name)
        rows = tuple(
            (
                label,
                (settings.get(label[0], CONTROL),),
                *cells,
                (f"{times[label[0]]:.2f}" if label[0] in times else report.NONE,),
                gaps.get(label[0], (report.NONE,)),
            )
            for label, *cells in table.rows
        )
        first, *others = table.columns
        columns = (first, "settings", *others, "time / greedy", f"{headline['title']} - greedy")
        made.append(replace(table, columns=columns, rows=rows))
    return made


def to_greedy(table: Table, column: str) -> dict[str, tuple[str, ...]]:
    """A column's cells in the rows of a table of differences that are taken to greedy."""
    place = table.columns.index(column)
    return {row[0][0]: row[place] for row in table.rows if row[0][1] == f"- {GREEDY}"}


def left(jobs: Sequence[Job], out: Path) -> Table:
    """What is in no table, and why."""
    rows = []
    for job in jobs:
        found = state(job, out)
        place = (f"{job.benchmark}/{job.name}",)
        rows += [(place, (text,), (why,)) for text, why in found.refused.items()]
        why = f"stopped: {found.stopped}" if found.stopped else "not run yet"
        rows += [(place, (row.text,), (why,)) for row in found.open_rows]
    return Table("Not in these tables", ("run", "row", "why"), tuple(rows))


def finished(jobs: Sequence[Job], out: Path, benchmark: str) -> list[Mapping[str, Any]]:
    """Summaries of a benchmark's finished runs."""
    found = [state(job, out).summary for job in jobs if job.benchmark == benchmark]
    return [summary for summary in found if summary is not None]


def markdown(jobs: Sequence[Job], out: Path) -> str:
    """All that is finished, and what is not."""
    parts = ["# Tables that papers print", *NOTES]
    for benchmark in dict.fromkeys(job.benchmark for job in jobs):
        done = finished(jobs, out, benchmark)
        if done:
            of_it = [job for job in jobs if job.benchmark == benchmark]
            settings = {row.text: row.settings for job in of_it for row in job.rows}
            parts += [f"## {benchmark}", *report.heading(done[0])]
            parts += [table.markdown().strip() for table in tables(done, settings)]
    rest = left(jobs, out)
    if rest.rows:
        parts.append(rest.markdown().strip())
    return "\n\n".join(parts) + "\n"


# The command


def benchmarks(options: argparse.Namespace) -> dict[str, Benchmark]:
    """Those of the plan, read and checked. `COCO` holds `val2014/` and `annotations/`."""
    images, annotations = options.coco / "val2014", options.coco / "annotations"
    found: dict[str, Benchmark] = {}
    if POPE in options.benchmarks:
        files = [options.pope / f"coco_pope_{split}.json" for split in SPLITS]
        found[POPE] = Pope(files, images, options.parser, options.suffix)
    described = [name for name in LENGTHS if name in options.benchmarks]
    if described:
        instances = annotations / "instances_val2014.json"
        captions = annotations / "captions_val2014.json"
        tables = (options.synonyms, options.double_words, options.word_forms)
        metric = Chair(*tables, variant=options.variant)
        ids = options.ids or draw_ids(instances, options.count, options.draw_seed)
        for name in described:
            found[name] = ChairBenchmark(
                images,
                ids,
                [instances],
                [captions],
                options.prompt,
                LENGTHS[name],
                cut=name == CHAIR_64,
                metric=metric,
            )
    return found


def read_settings(assignments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`["vdgd:tokens=96,layout=continue"]` -> settings by decoder."""
    found: dict[str, dict[str, Any]] = {}
    for text in assignments:
        for spec in parse_specs(text):
            for method in spec.methods:
                found.setdefault(method.base, {}).update(method.settings)
    return found


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m sightline.evaluation.reproduce",
        description=(__doc__ or "").partition("\n")[0],
    )
    add = parser.add_argument
    add(
        "--model",
        type=os.path.expanduser,
        required=True,
        help="folder or hub id of an image-text-to-text model",
    )
    add("--coco", type=folder, required=True, help="holds val2014/ and annotations/")
    add("--pope", type=folder, required=True, help="holds coco_pope_{random,...}.json")
    add("--out", type=folder, default=Path("runs/reproduce"))
    add("--ids", type=folder, help=f"the images to describe. {IDS_WANTED}")
    add("--count", type=int, default=IDS, help="without --ids: how many images are drawn")
    add("--draw-seed", type=int, default=0, help="without --ids: of that draw")
    add("--decoders", nargs="+", default=[], metavar="NAME", help="default: all")
    add("--benchmarks", nargs="+", default=list(BENCHMARKS), metavar="NAME")
    add("--part", default="1/1", help="1/2 and 2/2 share the runs between two processes")
    add(
        "--set",
        action="append",
        default=[],
        metavar="NAME:SETTING=VALUE,...",
        help="of all rows of a decoder that do not set it themselves; may be repeated",
    )
    add(
        "--template",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of the model's chat template; may be repeated",
    )
    add("--suffix", default="one-word", choices=SUFFIXES, help="after POPE's questions")
    add("--parser", default="word", choices=PARSERS, help="of POPE's answers")
    add("--prompt", default=DESCRIBE, help="of captions")
    add("--synonyms", type=folder, help="CHAIR's published table; default: the package's own")
    add("--double-words", type=folder, help="CHAIR's published table")
    add("--word-forms", type=folder, help="base forms of CHAIR's words")
    add("--variant", default="noun_only", help="of CHAIR's object extraction")
    add("--batch-size", type=int, default=16)
    add("--seed", type=int, default=0, help="of samples and of the bootstrap")
    add("--temperature", type=float, default=1.0, help="of all that is sampled")
    add("--device", default="cpu", help="cuda, cuda:1, mps, ...")
    add("--dtype", default="auto", help="of the weights; auto: as stored")
    add("--device-map", help='"auto" spreads a large model over devices')
    return parser.parse_args(arguments)


def folder(text: str) -> Path:
    """A path, in which `~` is the user's home."""
    return Path(text).expanduser()


def make_plan(options: argparse.Namespace, console: Console | None, command: str) -> Plan:
    """Checked: `ValueError` for anything that cannot be run as it was asked for."""
    if find_processes().count > 1:
        raise ValueError(
            "runs are shared by --part 1/2 --device cuda:0 and --part 2/2 --device cuda:1, "
            "started by themselves and not by a launcher"
        )
    jobs = planned(options.benchmarks, options.decoders)
    mine = share(jobs, options.part)
    wordings = read_settings(options.set)
    plan = Plan(
        jobs,
        mine,
        benchmarks(options),
        Source(options.model, options.device, options.dtype, options.device_map),
        Run(
            options.seed, options.batch_size, options.temperature, parse_arguments(options.template)
        ),
        options.out,
        wordings,
        console,
        command,
    )
    plan.check()
    return plan


def main() -> None:
    options = parse_options()
    command = shlex.join(["python", "-m", "sightline.evaluation.reproduce", *sys.argv[1:]])
    try:
        with handled(terminate, signal.SIGTERM):
            plan = make_plan(options, Console(), command)
            is_done = plan.go()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as error:
        print("stopped; the same command continues", file=sys.stderr)
        sys.exit(exit_status(error))
    if not is_done:
        sys.exit(f"some runs have stopped: see {plan.out / 'reproduce.md'}, and run this again")


if __name__ == "__main__":
    main()
