"""What decoders do to the lab's model, on scenes whose truth is known.

python -m sightline.evaluation.lab --decoders greedy sampling plausibility yes-shift vcd vdd

Presence questions and captions over decorrelated scenes. All contenders answer a batch before the
next one begins, so they meet the same load of the machine, and a batch's samples are seeded by
its place in the run: a run that was killed and resumed gives the same answers.
"""

import argparse
import datetime
import hashlib
import importlib.metadata
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)

from sightline.evaluation import report
from sightline.evaluation.answers import Answer, Key, append, open_run, read_json, write_json
from sightline.evaluation.contenders import YES_SHIFT, Contender, parse_contenders
from sightline.evaluation.metrics import NO, YES
from sightline.evaluation.statistics import RESAMPLES
from sightline.evaluation.summary import summarise
from sightline.lab import CHECKPOINT, Scene, decorrelated, draw, mentioned
from sightline.lab.dialogue import DESCRIBE
from sightline.lab.measure import chat, questions

STREAM = 20261122  # keeps these scenes apart from those of training and of choosing the model
MAX_NEW_TOKENS = {"presence": 8, "caption": 96}
WORDINGS: dict[str, dict[str, Any]] = {
    "vdgd": dict(layout="continue", request=DESCRIBE[0], tokens=96),
    "vdgd-prefix": dict(layout="continue", request=DESCRIBE[0], tokens=96),
    "mvp": dict(requests=DESCRIBE, template="{caption} {question}", caption_tokens=96, tokens=8),
    "carve": dict(general=DESCRIBE[1], suffix=""),
}
"""What decoders that ask something themselves ask here, unless a user sets it.

The lab's model knows the words of `lab/dialogue.py` and no others, so it is asked in these and has
room for its longest caption. They were chosen for that and not by results. CARVE describes in
other words than those that ask for a caption, as the contrast of a prompt with itself is flat.
"""
LAB = "sightline.lab"
WIDTH = 124  # of tables that go to a file
PACKAGES = ("sightline", "torch", "transformers", "numpy")


@dataclass(frozen=True)
class Prompt:
    """What one answer is asked for; `object` and `kind` are empty for a caption."""

    task: str
    scene: int
    text: str
    object: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Batch:
    """Prompts of one task that are answered together, at a fixed place in the run."""

    task: str
    index: int
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True)
class Run:
    """What decides the answers, besides model and contenders."""

    scenes: int
    seed: int
    batch_size: int
    temperature: float

    def __post_init__(self):
        for name in ("scenes", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")


class Clock(StoppingCriteria):
    """Stops nothing; notes when the first tokens were there and how many steps were made."""

    def __init__(self):
        self.first: float | None = None
        self.steps = 0

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if self.first is None:
            synchronize(input_ids.device)
            self.first = time.perf_counter()
        self.steps += 1
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class Lab:
    """The model, its processor, and the scenes of a run."""

    def __init__(self, model: Any, processor: Any, run: Run):
        self.model = model
        self.processor = processor
        self.run = run
        rng = np.random.default_rng([STREAM, 0, run.seed])
        self.scenes: list[Scene] = [decorrelated(rng) for _ in range(run.scenes)]
        self.yes_no = [answer_tokens(processor.tokenizer, word) for word in (YES, NO)]

    def prompts(self) -> list[Prompt]:
        """Presence questions, then captions."""
        rng = np.random.default_rng([STREAM, 1, self.run.seed])
        asked = [
            Prompt("presence", q.scene, q.text, q.object, q.kind)
            for q in questions(self.scenes, rng)
        ]
        return asked + [Prompt("caption", i, DESCRIBE[0]) for i in range(len(self.scenes))]

    def batches(self) -> Iterator[Batch]:
        prompts = self.prompts()
        for task in MAX_NEW_TOKENS:
            some = [prompt for prompt in prompts if prompt.task == task]
            for index, start in enumerate(range(0, len(some), self.run.batch_size)):
                yield Batch(task, index, tuple(some[start : start + self.run.batch_size]))

    def pictures(self, batch: Batch) -> list[Image.Image]:
        """Those of a batch, in the order of its prompts; each scene is drawn once."""
        drawn = {i: draw(self.scenes[i]) for i in {p.scene for p in batch.prompts}}
        return [drawn[p.scene] for p in batch.prompts]

    def encode(self, batch: Batch, pictures: Sequence[Image.Image]) -> Any:
        """The processor's output for a batch, through the chat template."""
        return self.processor.apply_chat_template(
            [chat(picture, p.text) for picture, p in zip(pictures, batch.prompts, strict=True)],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self.model.device, self.model.dtype)

    def answer(
        self, contender: Contender, batch: Batch, inputs: Any, pictures: Sequence[Image.Image]
    ) -> list[Answer]:
        """What a contender says to each prompt of a batch, encoded to `inputs`."""
        looked_at = {"images": list(pictures)} if contender.needs_images else {}
        watched = contender.label == "greedy" and batch.task == "presence"
        clock, device = Clock(), self.model.device
        reset_peak(device)
        with torch.random.fork_rng():
            torch.manual_seed(self.sample_seed(batch))
            synchronize(device)
            started = time.perf_counter()
            outputs = self.model.generate(
                **inputs,
                **contender.generation(self.run.temperature),
                **looked_at,
                max_new_tokens=MAX_NEW_TOKENS[batch.task],
                stopping_criteria=StoppingCriteriaList([clock]),
                return_dict_in_generate=True,
                output_logits=watched,
            )
            synchronize(device)
        ms = (time.perf_counter() - started) * 1000
        first_ms = None if clock.first is None else (clock.first - started) * 1000
        said = outputs.sequences[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(said, skip_special_tokens=True)
        lengths = answer_lengths(said, self.model.generation_config.eos_token_id)
        logits = self.first_logits(outputs.logits[0]) if watched else [None] * len(texts)
        peak = peak_mb(device)
        return [
            Answer(
                task=batch.task,
                decoder=contender.label,
                scene=prompt.scene,
                object=prompt.object,
                kind=prompt.kind,
                question=prompt.text,
                answer=text,
                tokens=length,
                batch=batch.index,
                ms=round(ms, 3),
                first_ms=None if first_ms is None else round(first_ms, 3),
                steps=clock.steps,
                peak_mb=peak,
                logits=three,
            )
            for prompt, text, length, three in zip(
                batch.prompts, texts, lengths, logits, strict=True
            )
        ]

    def sample_seed(self, batch: Batch) -> int:
        """One for each batch, the same for all contenders."""
        place = [STREAM, 2, self.run.seed, list(MAX_NEW_TOKENS).index(batch.task), batch.index]
        return int(np.random.SeedSequence(place).generate_state(1)[0])

    def first_logits(self, logits: Tensor) -> list[tuple[float, float, float] | None]:
        """The best "yes", the best "no" and the best of the rest: `[B, V]` -> B triples."""
        yes, no = self.yes_no
        if not yes or not no:
            return [None] * len(logits)
        rest = logits.float().clone()
        rest[:, yes + no] = -torch.inf
        best = [logits[:, yes].amax(-1), logits[:, no].amax(-1), rest.amax(-1)]
        return [tuple(row) for row in torch.stack([b.float() for b in best], dim=-1).tolist()]


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


def collect(
    lab: Lab,
    contenders: Sequence[Contender],
    path: Path,
    known: dict[Key, Answer],
    advance: Callable[[int], None] = lambda count: None,
) -> dict[Key, Answer]:
    """Asks what is not known yet and writes it to `path` as it comes; returns all answers.

    A batch is repeated whole if any of its answers is missing, because its neighbours decide how
    a row is rounded and sampled; only the missing ones are written.
    """
    answers = dict(known)
    warm = False
    for batch in lab.batches():
        inputs: Any = None
        pictures: list[Image.Image] = []
        for contender in contenders:
            if batch.task == "caption" and contender.is_closed_set:
                continue
            keys = {(batch.task, contender.label, p.scene, p.object) for p in batch.prompts}
            if not keys <= answers.keys():
                if inputs is None:
                    pictures = lab.pictures(batch)
                    inputs = lab.encode(batch, pictures)
                if not warm:
                    lab.answer(contender, batch, inputs, pictures)
                    warm = True
                said = lab.answer(contender, batch, inputs, pictures)
                new = [answer for answer in said if answer.key not in answers]
                append(path, new)
                answers |= {answer.key: answer for answer in new}
            advance(len(batch.prompts))
    return answers


def work(lab: Lab, contenders: Sequence[Contender]) -> int:
    """Number of answers of a whole run."""
    counts = [sum(p.task == task for p in lab.prompts()) for task in MAX_NEW_TOKENS]
    return sum(counts[0] + (0 if c.is_closed_set else counts[1]) for c in contenders)


def fingerprint(checkpoint: str, model: Any) -> str:
    """Tells two sets of weights apart that bear one name."""
    folder = Path(checkpoint)
    if not folder.is_dir():
        return str(getattr(model.config, "_commit_hash", None))
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as weights:
            while part := weights.read(2**24):
                digest.update(part)
    return digest.hexdigest()[:16]


def machine(device: torch.device) -> dict[str, Any]:
    """Where the run began."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {
        "device": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def processor_name() -> str:
    """The processor's model, where the system tells it, else its kind."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def header(
    run: Run, lab: Lab, checkpoint: str, contenders: Sequence[Contender], command: str
) -> dict[str, Any]:
    """What is written to `run.json`; answers of one file agree in all that is "fixed"."""
    return {
        "command": command,
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(lab.model.device),
        "fixed": {
            "model": LAB if checkpoint == str(CHECKPOINT) else checkpoint,
            "weights": fingerprint(checkpoint, lab.model),
            "device": lab.model.device.type,
            "dtype": str(lab.model.dtype).removeprefix("torch."),
            "scenes": run.scenes,
            "seed": run.seed,
            "batch_size": run.batch_size,
            "temperature": run.temperature,
            "decoders": {c.label: c.settings() for c in contenders},
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }


def next_folder(parent: Path = Path("runs")) -> Path:
    """`runs/lab-<n>` with the first n that is free."""
    taken = {path.name for path in parent.glob("lab-*")}
    return next(parent / f"lab-{n}" for n in range(1, len(taken) + 2) if f"lab-{n}" not in taken)


def evaluate(
    decoders: Sequence[str],
    run: Run,
    out: Path,
    checkpoint: str = str(CHECKPOINT),
    device: str = "cpu",
    dtype: str = "float32",
    resume: bool = False,
    console: Console | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Runs or continues an evaluation; writes `summary.json` and `table.md`, returns the summary.

    Raises:
        ValueError: For unknown decoders or settings, and for a folder whose run was another one.
    """
    processor = AutoProcessor.from_pretrained(checkpoint)
    contenders, yes_shift = parse_contenders(decoders, processor, WORDINGS)
    model: Any = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=dtype)
    model = model.to(device).eval()
    lab = Lab(model, processor, run)
    if yes_shift and not all(lab.yes_no):
        raise ValueError(
            f"{YES_SHIFT} adds to the logit of one token, and this tokenizer has no single token "
            f"for yes and for no: leave {YES_SHIFT} out"
        )
    known = open_run(out, header(run, lab, checkpoint, contenders, command), resume)
    columns = (TextColumn("answers"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=console is None) as progress:
        bar = progress.add_task("answers", total=work(lab, contenders))
        answers = collect(
            lab,
            contenders,
            out / "answers.jsonl",
            known,
            lambda count: progress.advance(bar, count),
        )
    return write_summary(lab, contenders, answers, out, yes_shift)


def write_summary(
    lab: Lab,
    contenders: Sequence[Contender],
    answers: dict[Key, Answer],
    out: Path,
    yes_shift: bool,
) -> dict[str, Any]:
    truth = [frozenset(scene.present) for scene in lab.scenes]
    figures = summarise(answers.values(), contenders, truth, mentioned, yes_shift, lab.run.seed)
    summary = {"run": read_json(out / "run.json"), "resamples": RESAMPLES, **figures}
    write_json(out / "summary.json", summary)
    (out / "table.md").write_text(report.markdown(summary), encoding="utf-8")
    return summary


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m sightline.evaluation.lab", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--decoders",
        nargs="+",
        required=True,
        metavar="NAME",
        help="name[:key=value,...][+sample|+beam], or a control: greedy (always there), sampling, "
        "plausibility, yes-shift, beam, vdgd-prefix, agla-full",
    )
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--model", default=str(CHECKPOINT), help="default: the lab's own")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0, help="of scenes, samples and bootstrap")
    parser.add_argument("--temperature", type=float, default=1.0, help="of all sampled rows")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--threads",
        type=int,
        help="of torch on a CPU; default: one per core. Use 1 where other work runs: threads that "
        "wait for one another then cost many times what they save",
    )
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--out", type=Path, help="folder; default: runs/lab-<n>")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    options = parser.parse_args(argv)
    if options.resume and options.out is None:
        parser.error("--resume needs the --out of the run to continue")
    if options.threads is not None and options.threads < 1:
        parser.error(f"--threads must be at least 1, got {options.threads}")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else list(argv)
    options = arguments(given)
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    out = options.out or next_folder()
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        run = Run(options.scenes, options.seed, options.batch_size, options.temperature)
        summary = evaluate(
            options.decoders,
            run,
            out,
            options.model,
            options.device,
            options.dtype,
            options.resume,
            console,
            shlex.join(["python", "-m", "sightline.evaluation.lab", *given]),
        )
    except (ValueError, OSError) as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False)
        return 2
    except KeyboardInterrupt:
        Console(stderr=True).print(f"stopped; continue with --out {out} --resume", markup=False)
        return 130
    report.show(summary, console)
    console.print(f"{out}: answers.jsonl, run.json, summary.json, table.md", markup=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
