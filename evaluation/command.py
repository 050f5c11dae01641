"""`sightline evaluate lab | pope | chair | amber | mme | hallusionbench`.

Each benchmark is a command with the options of its files; the options of model, decoders and run
are those of `Common`, for all of them. Split over processes, for example, on a machine with or
without GPUs:

    accelerate launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no \\
        --dynamo_backend no -m sightline.evaluation lab --decoder vdd --out runs/x
"""

import inspect
import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from sightline.messages import check_characters

if TYPE_CHECKING:
    from sightline.evaluation.benchmark import Benchmark

WIDTH = 160  # of tables that go to a file
LAB_WITH = "Default: the small model that comes with sightline."

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Score decoders on a benchmark, beside the controls that their figures need.",
)

TemplateOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="An argument of the model's chat template, such as enable_thinking=false; may be "
        "repeated.",
    ),
]


@dataclass(frozen=True)
class Common:
    """Options of every benchmark."""

    decoder: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:SETTING=VALUE,...][+MODE]",
            help="As `sightline decoders` lists them, with settings where wanted; the mode is "
            "greedy (usual), sample or beam. May be repeated.",
        ),
    ] = None
    controls: Annotated[
        bool,
        typer.Option(
            help="Add sampling, plausibility only, the constant on yes that matches each decoder's "
            "yes-rate, beams where a decoder uses them, and methods' own controls."
        ),
    ] = True
    model: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="A folder, or the Hugging Face hub id, of an image-text-to-text model. "
            + LAB_WITH,
        ),
    ] = None
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:1, mps, ...; cuda: one for each process.")
    ] = "cpu"
    device_map: Annotated[
        str | None,
        typer.Option(
            help="auto: spread a model that is too large for one GPU over all of them; needs "
            "accelerate, and one process."
        ),
    ] = None
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "auto"],
        typer.Option(help="Of the weights; auto: as stored."),
    ] = "float32"
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of torch on a CPU. Default: one per core. Use 1 where other work runs: threads "
            "that wait for one another cost many times what they save.",
        ),
    ] = None
    batch_size: Annotated[
        int, typer.Option(min=1, help="Questions that are answered together.")
    ] = 16
    seed: Annotated[int, typer.Option(min=0, help="Of samples and bootstrap.")] = 0
    temperature: Annotated[float, typer.Option(help="Of everything that is sampled.")] = 1.0
    template: TemplateOption = None
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Of the run. Default: runs/<benchmark>-<n>."),
    ] = None
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the run in --out where it was stopped or killed."),
    ] = False


ImagesOption = Annotated[Path, typer.Option(metavar="FOLDER", help="Of the images.")]
LengthOption = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
SuffixOption = Annotated[
    str,
    typer.Option(help="What follows the question: none, one-word, llava or yes-no."),
]


def benchmark_command(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a command whose options are those of a function and of `Common`.

    The function returns what makes the benchmark, and wordings of decoders or None.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        own = list(inspect.signature(function).parameters.values())
        hints = get_type_hints(Common, include_extras=True)
        common = [
            inspect.Parameter(f.name, own[0].kind, default=f.default, annotation=hints[f.name])
            for f in fields(Common)
        ]

        def run(**given: Any) -> None:
            shared = Common(**{f.name: given.pop(f.name) for f in fields(Common)})
            typed = sys.argv[sys.argv.index(name) :] if name in sys.argv else [name]
            command = shlex.join(["sightline", "evaluate", *typed])
            command = command.encode(errors="backslashreplace").decode()  # it is written down
            make, wordings = function(**given)
            raise typer.Exit(perform(make, shared, command, wordings))

        parameters = [*own, *common]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__doc__ = function.__doc__
        app.command(name)(run)
        return function

    return register


Made = tuple[Callable[[], "Benchmark"], Mapping[str, Mapping[str, Any]] | None]


@benchmark_command("lab")
def lab(
    *,
    scenes: Annotated[int, typer.Option(min=1, help="How many images are drawn.")] = 500,
    scene_seed: Annotated[int, typer.Option(min=0, help="Of the scenes.")] = 0,
) -> Made:
    """Presence questions and captions over drawn scenes whose truth is known. Needs no file."""
    from sightline.evaluation.lab import WORDINGS, LabBenchmark

    return lambda: LabBenchmark(scenes, scene_seed), WORDINGS


@benchmark_command("pope")
def pope(
    *,
    images: ImagesOption,
    questions: Annotated[
        list[Path],
        typer.Option(
            metavar="FILE",
            help="coco_pope_random.json, for example; may be repeated. Published at "
            "github.com/AoiDragon/POPE, below output/; those of A-OKVQA and GQA also at "
            "github.com/DAMO-NLP-SG/VCD, below experiments/data/POPE/.",
        ),
    ],
    parser: Annotated[
        str,
        typer.Option(
            help="How yes and no are read: word, official, opera, lmms-eval, vlmevalkit or vcd."
        ),
    ] = "word",
    suffix: SuffixOption = "none",
    max_new_tokens: LengthOption = 16,
) -> Made:
    """POPE (arXiv:2305.10355): is an object in the image, of COCO, A-OKVQA or GQA."""
    from sightline.evaluation.pope import Pope

    return lambda: Pope(questions, images, parser, suffix, max_new_tokens), None


@benchmark_command("chair")
def chair(
    *,
    images: ImagesOption,
    instances: Annotated[
        list[Path],
        typer.Option(
            metavar="FILE",
            help="instances_val2014.json, and instances_train2014.json as papers do; may be "
            "repeated. COCO publishes it on cocodataset.org, in annotations_trainval2014.zip.",
        ),
    ],
    ids: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Of the image ids or COCO's file names: one in each line, a JSON array, or JSON "
            "lines. Lists that papers used are in their repositories. Default: --count images "
            "drawn from the first instances file.",
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many are drawn without --ids.")] = 500,
    captions: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="captions_val2014.json, published beside the instances: objects that people name "
            "count as there, as in papers. May be repeated. Default: what is annotated alone.",
        ),
    ] = None,
    prompt: Annotated[
        str, typer.Option(help="What is asked.")
    ] = "Please describe this image in detail.",
    max_new_tokens: LengthOption = 512,
    cut: Annotated[
        bool,
        typer.Option("--cut", help="Drop an unfinished last sentence, as OPERA does at 64 tokens."),
    ] = False,
    variant: Annotated[
        str,
        typer.Option(
            help="How words find their base form: noun_only, original_pattern or opera_nltk."
        ),
    ] = "noun_only",
    synonyms: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The synonym table, published as data/synonyms.txt in "
            "github.com/LisaAnne/Hallucination. Default: the package's own vocabulary.",
        ),
    ] = None,
    double_words: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSON of the double words, published as lists in utils/chair.py of "
            "github.com/LisaAnne/Hallucination.",
        ),
    ] = None,
    word_forms: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON of base forms, made with NLTK and pattern."),
    ] = None,
) -> Made:
    """CHAIR (arXiv:1809.02156): which objects captions of COCO's images invent."""
    from sightline.evaluation.chair import Chair, ChairBenchmark, draw_ids

    def make() -> "Benchmark":
        return ChairBenchmark(
            images,
            ids or draw_ids(instances[0], count),
            instances,
            captions or (),
            prompt,
            max_new_tokens,
            cut,
            Chair(synonyms, double_words, word_forms, variant),
        )

    return make, None


@benchmark_command("amber")
def amber(
    *,
    images: ImagesOption,
    queries: Annotated[
        list[Path],
        typer.Option(
            metavar="FILE",
            help="query_all.json, or others of query_*.json; may be repeated. Published in "
            "github.com/junyangwang0410/AMBER, below data/query/.",
        ),
    ],
    annotations: Annotated[
        Path,
        typer.Option(metavar="FILE", help="annotations.json, published there below data/."),
    ],
    relation: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="relation.json, published there below data/; needed for descriptions.",
        ),
    ] = None,
    safe_words: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="safe_words.txt, published there below data/; needed for descriptions.",
        ),
    ] = None,
    noun_forms: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON of the vocabulary's base forms, made with NLTK."),
    ] = None,
    parser: Annotated[
        str,
        typer.Option(help="How yes and no are read: word, official, opera or lmms-eval."),
    ] = "word",
    suffix: SuffixOption = "none",
    max_new_tokens: LengthOption = 512,
    answer_tokens: Annotated[
        int, typer.Option(min=1, help="Longest answer to a yes/no question, in tokens.")
    ] = 16,
) -> Made:
    """AMBER (arXiv:2311.07397): descriptions, and questions about objects and their attributes."""
    from sightline.evaluation.amber import Amber

    def make() -> "Benchmark":
        return Amber(
            images,
            queries,
            annotations,
            relation,
            safe_words,
            noun_forms,
            parser=parser,
            suffix=suffix,
            max_new_tokens=max_new_tokens,
            answer_tokens=answer_tokens,
        )

    return make, None


@benchmark_command("mme")
def mme(
    *,
    folder: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            help="Holds a folder for each task. Given out by the authors, see "
            "github.com/BradyFU/Awesome-Multimodal-Large-Language-Models, branch Evaluation.",
        ),
    ],
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="A task's folder; may be repeated. Default: the hallucination subset, which is "
            "existence, count, position and color."
        ),
    ] = None,
    parser: Annotated[
        str, typer.Option(help="How yes and no are read: official, lmms-eval or word.")
    ] = "official",
    suffix: Annotated[
        str, typer.Option(help="What follows the question: mme (as it stands), one-word or llava.")
    ] = "mme",
    max_new_tokens: LengthOption = 16,
) -> Made:
    """MME (arXiv:2306.13394): yes/no questions in pairs, accuracy and accuracy+."""
    from sightline.evaluation.mme import MME, TASKS

    return lambda: MME(folder, task or TASKS, parser, suffix, max_new_tokens), None


@benchmark_command("hallusionbench")
def hallusionbench(
    *,
    questions: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="HallusionBench.json, published in github.com/tianyi-lab/HallusionBench.",
        ),
    ],
    images: ImagesOption,
    parser: Annotated[
        str, typer.Option(help="How yes and no are read; a wrong name lists those there are.")
    ] = "word",
    suffix: SuffixOption = "none",
    max_new_tokens: LengthOption = 64,
) -> Made:
    """HallusionBench (arXiv:2310.14566): accuracy by question, by figure and by set."""
    from sightline.evaluation.hallusionbench import HallusionBench

    return lambda: HallusionBench(questions, images, parser, suffix, max_new_tokens), None


# What all of them do


def perform(
    make: Callable[[], "Benchmark"],
    options: Common,
    command: str,
    wordings: Mapping[str, Mapping[str, Any]] | None = None,
) -> int:
    """Runs or continues an evaluation and prints its tables; returns the exit code.

    Args:
        make: Makes the benchmark; raises `ValueError` for files that are not as they should be.
        options: Of model, decoders and run.
        command: What a user typed.
        wordings: By name, settings that decoders have unless they are set.
    """
    from rich.console import Console

    from sightline.checkpoints import quiet
    from sightline.evaluation.processes import (
        end_with_launcher,
        exit_status,
        handled,
        terminate,
    )

    rank, several = os.environ.get("RANK", "0"), int(os.environ.get("WORLD_SIZE", "1")) > 1
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    out = options.out
    if several:
        end_with_launcher()
    try:
        with handled(terminate, signal.SIGTERM), quiet():
            import torch

            from sightline.chat import parse_arguments
            from sightline.evaluation import record, report, runner
            from sightline.evaluation.asking import Source

            if options.threads:
                torch.set_num_threads(options.threads)
            check(options, several)
            arguments = parse_arguments(options.template or ())
            run = runner.Run(options.seed, options.batch_size, options.temperature, arguments)
            benchmark = make()
            out = out or record.next_folder(benchmark.name)
            summary = runner.evaluate(
                benchmark,
                options.decoder or (),
                run,
                out,
                Source(options.model, options.device, options.dtype, options.device_map),
                controls=options.controls,
                wordings=wordings,
                resume=options.resume,
                console=console,
                command=command,
            )
    except (ValueError, OSError) as error:
        who = f"process {rank}: " if rank != "0" else ""
        message = " ".join(str(error).split())
        Console(stderr=True, soft_wrap=True).print(
            f"error: {who}{message}", style="red", markup=False, highlight=False
        )
        return 2
    except KeyboardInterrupt as error:
        Console(stderr=True, soft_wrap=True).print(
            f"stopped; continue with --out {out} --resume", markup=False
        )
        return exit_status(error)
    if summary is not None:
        report.show(summary, console)
        names = ", ".join(sorted(path.name for path in out.iterdir()))
        console.print(f"{out}: {names}", markup=False)
    return 0


def check(options: Common, several: bool) -> None:
    """Raises `ValueError` for options that do not go together, and for those that are no text."""
    for field in fields(options):
        value = getattr(options, field.name)
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str | Path):
                check_characters(str(text), f"--{field.name.replace('_', '-')}")
    if options.resume and options.out is None:
        raise ValueError("--resume needs the --out of the run to continue")
    if several and options.out is None:
        raise ValueError("several processes need --out, the folder that they share")
    if several and options.device_map is not None:
        raise ValueError("--device-map spreads one model over all GPUs: use one process")


if __name__ == "__main__":
    app()
