"""The runner of all benchmarks: answers on disk, batches, errors, kills, and several processes."""

import json
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from coco import lay_out
from rich.console import Console
from typer.testing import CliRunner

from sightline import cli
from sightline.evaluation import answers as files
from sightline.evaluation import command, report, runner, summary
from sightline.evaluation.answers import Answer
from sightline.evaluation.asking import Preparation, Source
from sightline.evaluation.batches import Ahead, cut, sample_seed, text_lengths
from sightline.evaluation.benchmark import Item, Prediction, Task, by_unit
from sightline.evaluation.lab import WORDINGS, LabBenchmark
from sightline.evaluation.metrics import Metric, parse
from sightline.evaluation.processes import Processes, find_processes, started_one
from sightline.evaluation.runner import Run
from sightline.evaluation.setups import parse_contenders
from sightline.evaluation.statistics import HIGHER, Ratio
from sightline.lab import CHECKPOINT

WEIGHTS = CHECKPOINT / "model.safetensors"
needs_weights = pytest.mark.skipif(not WEIGHTS.exists(), reason="the lab's weights are not there")

DECODERS = ("vdd", "vdd+sample")  # a contrast and a sampled one, beside greedy
SCENES, RUN = 8, Run(seed=1, batch_size=4)
MEASURED = ("ms", "first_ms", "peak_mb")


def whole_lines(content: bytes) -> set[bytes]:
    return set(content.splitlines(keepends=True)[: content.count(b"\n")])


def timeless(path: Path) -> bytes:
    """An answers file without what a clock and a memory gauge say."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if k not in MEASURED} for line in lines]
    return "\n".join(json.dumps(line) for line in kept).encode()


# Answers on disk


def an_answer(**changes) -> Answer:
    answer = Answer(
        task="presence",
        id="0-dog",
        decoder="greedy",
        question="Is there a dog in the image?",
        answer='Yes, "naïve"\n',
        tokens=1,
        batch=0,
        settings={"mode": "greedy", "markers": [3, 4]},
        seed=7,
        versions={"torch": "2"},
        ms=1.5,
        first_ms=None,
        steps=1,
        peak_mb=None,
        logits=(1.0, 0.1, -3.25),
    )
    return replace(answer, **changes)


def test_an_answer_survives_the_file(tmp_path):
    path = tmp_path / "answers.jsonl"
    written = [an_answer(), an_answer(id="1", logits=None), an_answer(id="2", error="no file")]
    for answer in written:
        files.append(path, [answer])
    assert list(files.read(path).values()) == written
    assert [a.key for a in written[:1]] == [("presence", "greedy", "0-dog")]
    assert files.read(tmp_path / "none.jsonl") == {}


def test_a_half_written_line_is_cut_off(tmp_path):
    path = tmp_path / "answers.jsonl"
    files.append(path, [an_answer(id=str(i)) for i in range(3)])
    whole = path.read_bytes()
    for missing in (1, 40, len(whole) // 3 - 1):
        path.write_bytes(whole[:-missing])
        files.repair(path)
        assert [key[2] for key in files.read(path)] == ["0", "1"]
    path.write_bytes(whole)
    files.repair(path)
    assert path.read_bytes() == whole
    files.repair(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    "bad",
    [b'{"task": "presence"}\n', b"{\n", b"7\n", b'"text"\n', b"\xff\n", b'{"logits": null}\n'],
)
def test_a_bad_line_in_the_middle_is_named(tmp_path, bad):
    path = tmp_path / "answers.jsonl"
    files.append(path, [an_answer()])
    with path.open("ab") as file:
        file.write(bad)
    files.append(path, [an_answer(id="1")])
    with pytest.raises(ValueError, match=r"answers\.jsonl, line 2 is no answer"):
        files.read(path)


def test_a_second_answer_for_one_question_is_named(tmp_path):
    path = tmp_path / "answers.jsonl"
    files.append(path, [an_answer(), an_answer(decoder="vdd"), an_answer(answer="No")])
    with pytest.raises(ValueError, match=r"line 3 answers .*0-dog.* a second time, and diff"):
        files.read(path)


def test_answers_to_other_questions_are_refused(tmp_path):
    path = tmp_path / "answers.jsonl"
    asked = {("presence", "0-dog"): "Is there a dog in the image?"}
    files.append(path, [an_answer()])
    assert len(files.read(path, asked, ["greedy"])) == 1
    with pytest.raises(ValueError, match="no decoder of this run: there are vdd"):
        files.read(path, asked, ["vdd"])
    files.append(path, [an_answer(id="1")])
    with pytest.raises(ValueError, match=r"line 2 .* answers file from another question file"):
        files.read(path, asked)
    # The same ids in another file: those of POPE run from 1 in every split.
    path.unlink()
    files.append(path, [an_answer(question="Is there a cat in the image?")])
    with pytest.raises(ValueError, match=r"line 1 .*a cat.* from another question file"):
        files.read(path, asked)


def test_a_run_is_continued_only_as_it_was(tmp_path):
    header = {"fixed": {"scenes": 3, "decoders": {"vdd": {"markers": (5,)}}}, "started": "then"}
    files.open_run(tmp_path, header, resume=False)
    with pytest.raises(ValueError, match="pass --resume"):
        files.open_run(tmp_path, header, resume=False)
    files.open_run(tmp_path, {**header, "started": "now"}, resume=True)
    assert json.loads((tmp_path / "run.json").read_text())["started"] == "then"
    with pytest.raises(ValueError, match="scenes: 3 then, 4 now"):
        files.open_run(tmp_path, {"fixed": {**header["fixed"], "scenes": 4}}, resume=True)


def test_answers_without_their_run_are_left_alone(tmp_path):
    files.append(files.part(tmp_path, 1), [an_answer()])
    with pytest.raises(ValueError, match=r"answers\.1\.jsonl has no run\.json"):
        files.open_run(tmp_path, {"fixed": {}}, resume=True)


def test_parts_are_merged_in_order(tmp_path):
    answers = [an_answer(id=str(i)) for i in range(12)]
    for i, answer in enumerate(answers):
        files.append(files.part(tmp_path, (i % 3) * 5), [answer])
    (tmp_path / "answers.old.jsonl").write_text("not ours")
    assert [path.name for path in files.parts(tmp_path)] == [
        *("answers.jsonl", "answers.5.jsonl", "answers.10.jsonl"),
    ]
    found = files.read_all(tmp_path)
    merged = files.merge(tmp_path, found, [answer.key for answer in answers])
    assert list(merged.values()) == list(files.read(files.part(tmp_path, 0)).values()) == answers
    assert [path.name for path in files.parts(tmp_path)] == ["answers.jsonl"]


def test_a_kill_while_parts_are_merged_loses_nothing(tmp_path):
    answers = [an_answer(id=str(i)) for i in range(4)]
    files.append(files.part(tmp_path, 0), answers)  # merged, and the part not yet removed
    files.append(files.part(tmp_path, 1), answers[1::2])
    assert list(files.read_all(tmp_path).values()) == answers
    files.append(files.part(tmp_path, 2), [replace(answers[0], answer="No")])
    with pytest.raises(ValueError, match=r"answers\.2\.jsonl answers .* does so differently"):
        files.read_all(tmp_path)


def test_a_full_disk_is_said_in_a_sentence(tmp_path):
    full = tmp_path / "answers.jsonl"
    full.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device.*continue with --resume"):
        files.append(full, [an_answer()])
    draft = tmp_path / "summary.draft"
    draft.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        files.write_json(tmp_path / "summary.json", {"a": 1})
    assert not (tmp_path / "summary.json").exists()


# Batches


class Words:
    """A tokenizer of words."""

    def __call__(self, texts, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [text.split() for text in texts]}


class Asked:
    """Questions of so many words, in two tasks."""

    def __init__(self, lengths, sizes=None):
        self.tasks = tuple(Task(name, name, 4, True, ()) for name in ("a", "b"))
        self.items = [
            Item(task.name, str(i), " ".join("w" * n), f"{i}.png", str(i))
            for i, n in enumerate(lengths)
            for task in self.tasks
        ]
        if sizes:
            self.size = lambda item: sizes[int(item.id)]


def ids(batches):
    return [(b.task.name, b.index, [item.id for item in b.items]) for b in batches]


def test_batches_are_sorted_by_length_and_stable():
    batches = cut(Asked([3, 1, 2, 1, 3]), Words(), size=2, seed=0)
    places = [["1", "3"], ["2", "0"], ["4"]]
    assert ids(batches) == [(t, i, some) for t in "ab" for i, some in enumerate(places)]
    assert [b.place for b in batches] == list(range(6))
    assert text_lengths(Words(), ["w w", "w", "w w"]) == [2, 1, 2]


def test_images_of_a_size_are_together():
    sizes = [(9, 1), (2, 5), (9, 1), (2, 4)]
    batches = cut(Asked([1, 1, 1, 1], sizes), Words(), size=2, seed=0)
    assert ids(batches)[:2] == [("a", 0, ["3", "1"]), ("a", 1, ["0", "2"])]


def test_seeds_follow_from_run_task_and_place():
    seeds = [b.seed for b in cut(Asked([1] * 6), Words(), size=2, seed=5)]
    assert len(set(seeds)) == 6
    assert seeds == [sample_seed(5, task, index) for task in "ab" for index in range(3)]
    assert sample_seed(5, "a", 0) != sample_seed(6, "a", 0)


def test_a_turn_leaves_closed_sets_out_of_descriptions():
    setups, _ = parse_contenders(["posthoc", "vdd"], Source().processor)
    asked = Asked([1])
    asked.tasks = (asked.tasks[0], replace(asked.tasks[1], yes_no=False))
    plan = runner.turns(cut(asked, Words(), 1, 0), setups)
    assert [[c.label for c in turn.setups] for turn in plan] == [
        ["greedy", "posthoc", "vdd"],
        ["greedy", "vdd"],
    ]
    assert runner.order(plan) == [
        *(("a", label, "0") for label in ("greedy", "posthoc", "vdd")),
        *(("b", label, "0") for label in ("greedy", "vdd")),
    ]


def test_who_answers_first_changes_with_the_batch():
    setups, _ = parse_contenders(["vdd", "sample"], None)
    plan = runner.turns(cut(Asked([1] * 2), Words(), 1, 0), setups)
    assert [[c.label for c in turn.rotated] for turn in plan] == [
        ["greedy", "vdd", "sample"],
        ["vdd", "sample", "greedy"],
        ["sample", "greedy", "vdd"],
        ["greedy", "vdd", "sample"],
    ]


def test_processes_share_whole_batches():
    plan = runner.turns(cut(Asked([1] * 5), Words(), 2, 0), [])
    shares = [runner.share(plan, Processes(rank, 2)) for rank in range(2)]
    assert [[turn.batch.place for turn in some] for some in shares] == [[0, 2, 4], [1, 3, 5]]


# What is prepared ahead


def children() -> list:
    return multiprocessing.active_children()


def test_things_come_in_order_from_another_process():
    made = list(Ahead(lambda n: (n, os.getpid()), range(7)))
    assert [n for n, _ in made] == list(range(7))
    assert {pid for _, pid in made}.isdisjoint({os.getpid()})
    assert list(Ahead(str, [])) == []
    assert children() == []


def test_errors_reach_the_caller_and_end_the_process():
    def make(n):
        if n == 2:
            raise OSError("the third is broken")
        return n

    made = Ahead(make, range(9))
    assert [next(made), next(made)] == [0, 1]
    with pytest.raises(OSError, match=r"^the third is broken$"):
        next(made)
    assert children() == []


def test_the_process_ends_where_the_run_fails():
    made = Ahead(lambda n: n, range(99))
    assert next(made) == 0 and len(children()) == 1
    made.close()
    assert children() == []


def test_it_stays_a_little_ahead_only(tmp_path):
    made = Ahead(lambda n: (tmp_path / str(n)).touch(), range(99))  # which gives None
    next(made)
    time.sleep(0.5)
    assert 2 <= len(list(tmp_path.iterdir())) <= 4
    made.close()


def test_preparing_leaves_the_random_state_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert list(Ahead(lambda n: n, range(3))) == [0, 1, 2]
    assert torch.equal(torch.get_rng_state(), state)


# Runs on the lab's model


def evaluate(out, benchmark=None, decoders=DECODERS, run=RUN, **changes):
    benchmark = benchmark or LabBenchmark(SCENES, seed=2)
    return runner.evaluate(benchmark, decoders, run, out, wordings=WORDINGS, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of one process: its folder and its summary."""
    out = tmp_path_factory.mktemp("runner") / "whole"
    return out, evaluate(out)


@needs_weights
def test_the_file_is_in_canonical_order(whole):
    benchmark = LabBenchmark(SCENES, seed=2)
    source = Source()
    setups, _ = parse_contenders(DECODERS, source.processor)
    batches = cut(benchmark, source.processor.tokenizer, RUN.batch_size, RUN.seed)
    answers = files.read(whole[0] / "answers.jsonl")
    assert list(answers) == runner.order(runner.turns(batches, setups))
    seeds = {(b.task.name, b.index): b.seed for b in batches}
    for answer in answers.values():
        assert answer.seed == seeds[answer.task, answer.batch]
        assert answer.versions["numpy"] == np.__version__
        assert (answer.logits is not None) == (
            (answer.decoder, answer.task) == ("greedy", "presence")
        )
    vdd = next(a for a in answers.values() if a.decoder == "vdd+sample")
    assert vdd.settings["mode"] == "sample" and vdd.settings["decoder"]["class"] == "VDD"


@needs_weights
def test_a_run_twice_is_the_same_run(whole, tmp_path):
    torch.manual_seed(99)  # samples are drawn from the batches' seeds alone
    evaluate(tmp_path / "again")
    again, first = tmp_path / "again" / "answers.jsonl", whole[0] / "answers.jsonl"
    assert timeless(again) == timeless(first)


class Unreadable(LabBenchmark):
    """Some scenes cannot be opened."""

    broken = ("1", "5")

    def load_image(self, item):
        if item.image in self.broken:
            raise OSError(f"{item.image}.png is\ncut off")
        return super().load_image(item)


@needs_weights
def test_an_unreadable_image_is_an_error_row(whole, tmp_path):
    out = tmp_path / "run"
    found = evaluate(out, Unreadable(SCENES, seed=2))
    answers = files.read(out / "answers.jsonl")
    assert list(answers) == list(files.read(whole[0] / "answers.jsonl"))
    broken = {key for key in answers if key[2].split("-")[0] in Unreadable.broken}
    for key, answer in answers.items():
        assert (answer.error is not None) == (key in broken)
    row = answers[min(broken)]
    assert (row.answer, row.tokens, row.ms, row.steps, row.logits) == ("", 0, 0.0, 0, None)
    assert row.error.endswith(".png is cut off")
    for name, task in found["tasks"].items():
        ids = {key[2] for key in broken if key[0] == name}
        assert task["errors"] == len(ids) > 0
        asked = {i.id: i for i in LabBenchmark(SCENES, seed=2).items if i.task == name}
        assert task["questions"] == len(asked)
    # Accuracy over what could be read, by hand.
    greedy = [a for k, a in answers.items() if k[:2] == ("presence", "greedy") and k not in broken]
    asked = {i.id: i for i in LabBenchmark(SCENES, seed=2).items if i.task == "presence"}
    right = [parse(a.answer) == asked[a.id].label for a in greedy]
    accuracy = found["tasks"]["presence"]["rows"]["greedy"]["accuracy"]["value"]
    assert accuracy == pytest.approx(sum(right) / len(right))
    table = (out / "table.md").read_text()
    assert f"those of {found['tasks']['presence']['errors']} questions" in table


@needs_weights
def test_an_image_that_comes_back_does_not_change_a_started_batch(tmp_path):
    out, again = tmp_path / "run", tmp_path / "again"
    evaluate(out, Unreadable(SCENES, seed=2))
    lines = (out / "answers.jsonl").read_bytes().splitlines(keepends=True)
    again.mkdir()
    (again / "run.json").write_bytes((out / "run.json").read_bytes())
    at = next(i for i, line in enumerate(lines) if b'"error": "' in line)
    (again / "answers.jsonl").write_bytes(b"".join(lines[: at + 1]))
    item = json.loads(lines[at])["id"]
    evaluate(again, resume=True)
    answers = files.read(again / "answers.jsonl").values()
    assert all(a.error is not None for a in answers if a.id == item)


@needs_weights
def test_a_run_of_which_nothing_can_be_read_ends(tmp_path):
    benchmark = Unreadable(2, seed=2)
    benchmark.broken = ("0", "1")
    found = evaluate(tmp_path / "run", benchmark)
    assert found["tasks"]["caption"]["errors"] == 2
    assert found["tasks"]["caption"]["rows"] == {}
    report.show(found, Console(quiet=True))


@needs_weights
def test_a_full_disk_stops_the_run_and_loses_nothing(whole, tmp_path):
    out = tmp_path / "run"
    room = (whole[0] / "answers.jsonl").stat().st_size * 2 // 3
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(OSError, match=r"cannot be written.*continue with --resume"):
            evaluate(out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert children() == []
    kept = (out / "answers.jsonl").read_bytes()
    assert len(kept) == room and not kept.endswith(b"\n")
    evaluate(out, resume=True)
    assert whole_lines(kept) <= whole_lines((out / "answers.jsonl").read_bytes())
    assert timeless(out / "answers.jsonl") == timeless(whole[0] / "answers.jsonl")


@needs_weights
def test_answers_of_another_question_file_are_refused(whole, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    for name in ("run.json", "answers.jsonl"):
        (out / name).write_bytes((whole[0] / name).read_bytes())
    text = (out / "answers.jsonl").read_text()
    (out / "answers.jsonl").write_text(text.replace("in the image?", "in this image?", 1))
    with pytest.raises(ValueError, match=r"line 1 .* from another question file"):
        evaluate(out, resume=True)


@needs_weights
def test_a_finished_run_needs_no_images(whole, monkeypatch):
    def refuse(*args):
        raise AssertionError("opened again")

    monkeypatch.setattr(Preparation, "__call__", refuse)
    again = evaluate(whole[0], resume=True)
    assert again["tasks"] == whole[1]["tasks"]


class Captions(LabBenchmark):
    tasks = LabBenchmark.tasks[1:]

    def __init__(self, *args):
        super().__init__(*args)
        self.items = [item for item in self.items if item.task == "caption"]


@needs_weights
def test_a_closed_set_is_refused_where_nothing_is_closed(tmp_path):
    with pytest.raises(ValueError, match=r"posthoc answers with one of given labels.*leave it out"):
        evaluate(tmp_path / "run", Captions(2, 0), ["posthoc"])
    assert not (tmp_path / "run").exists()
    found = evaluate(tmp_path / "run", Captions(2, 0), ["yes-shift"])
    assert found["tasks"]["caption"]["shifts"] == {}


@needs_weights
def test_controls_are_added_on_request(tmp_path):
    found = evaluate(tmp_path / "run", LabBenchmark(2, 0), ["vdd+beam"], controls=True)
    assert list(found["run"]["fixed"]["decoders"]) == [
        *("greedy", "sample", "plausibility", "beam", "plausibility+beam", "vdd+beam"),
    ]
    pairs = {(d["decoder"], d["against"]) for d in found["differences"]}
    assert ("vdd+beam", "plausibility+beam") in pairs


@needs_weights
def test_no_plots_is_said(tmp_path, monkeypatch, capsys):
    def refuse(*args):
        raise ImportError("matplotlib is not there: pip install it")

    monkeypatch.setattr("sightline.evaluation.plots.draw", refuse)
    evaluate(tmp_path / "run", LabBenchmark(1, 0), [], console=Console(width=200))
    assert "no plots: matplotlib is not there: pip install it" in capsys.readouterr().out
    assert (tmp_path / "run" / "table.md").exists()


# Kills


def line_count(out: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in files.parts(out))


def kill_tree(process: subprocess.Popen) -> None:
    """SIGKILL for a process and all below it; torch's launcher gives workers their own group."""
    tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in tree:
        try:
            os.kill(one.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    psutil.wait_procs(tree, timeout=20)
    process.wait()
    process.stdout.close()


def command_line(out: Path, *more: str) -> list[str]:
    options = {"--scenes": SCENES, "--scene-seed": 2, "--seed": 1, "--batch-size": 4}
    pairs = [str(part) for pair in options.items() for part in pair]
    decoders = [part for name in DECODERS for part in ("--decoder", name)]
    own = ["--no-controls", "--threads", "1", "--out", str(out), *more]
    return ["-m", "sightline.evaluation", "lab", *pairs, *decoders, *own]


def start(arguments: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        arguments,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )


def start_one(out: Path, *more: str) -> subprocess.Popen:
    return start([sys.executable, *command_line(out, *more)])


def start_two(out: Path, *more: str) -> subprocess.Popen:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    launch += ["--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    return start([*launch, *command_line(out, *more)])


def finish(process: subprocess.Popen) -> str:
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def kill_in_the_middle(
    begin: Callable[[Path], subprocess.Popen], out: Path, total: int, parts: int
) -> None:
    process = begin(out)
    waited = time.monotonic() + 240
    while line_count(out) < total // 4 or len(files.parts(out)) < parts:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < waited
        time.sleep(0.01)
    kill_tree(process)
    assert line_count(out) < total, "the run was over before the kill"
    assert len(files.parts(out)) == parts


@needs_weights
def test_a_killed_process_resumes_to_the_same_bytes(whole, tmp_path):
    out, total = tmp_path / "run", line_count(whole[0])
    kill_in_the_middle(start_one, out, total, parts=1)
    kept = (out / "answers.jsonl").read_bytes()
    found = evaluate(out, resume=True)
    assert whole_lines(kept) <= whole_lines((out / "answers.jsonl").read_bytes())
    assert timeless(out / "answers.jsonl") == timeless(whole[0] / "answers.jsonl")
    assert found["differences"] == whole[1]["differences"]


@needs_weights
def test_two_processes_give_the_answers_of_one(whole, tmp_path):
    out = tmp_path / "run"
    said = finish(start_two(out))
    assert timeless(out / "answers.jsonl") == timeless(whole[0] / "answers.jsonl")
    assert [path.name for path in files.parts(out)] == ["answers.jsonl"]
    assert said.count("Paired differences: Captions") == 1  # one of them prints
    two = json.loads((out / "summary.json").read_text())
    assert two["differences"] == json.loads(json.dumps(whole[1]["differences"]))


@needs_weights
def test_two_killed_processes_resume_to_the_same_bytes(whole, tmp_path):
    out, total = tmp_path / "run", line_count(whole[0])
    kill_in_the_middle(start_two, out, total, parts=2)
    alone = tmp_path / "alone"
    alone.mkdir()
    for path in (*files.parts(out), out / "run.json"):
        (alone / path.name).write_bytes(path.read_bytes())
    finish(start_two(out, "--resume"))
    evaluate(alone, resume=True)  # as well by another number of processes
    for folder in (out, alone):
        assert timeless(folder / "answers.jsonl") == timeless(whole[0] / "answers.jsonl")
        assert [path.name for path in files.parts(folder)] == ["answers.jsonl"]


def test_one_process_needs_no_accelerate(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert find_processes() == Processes()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"pip install \"sightline-vlm\[eval\]\""):
        find_processes()


def test_each_process_has_its_own_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [Processes(r, 4, r).device("cuda") for r in range(4)] == [
        *("cuda:0", "cuda:1", "cuda:0", "cuda:1"),
    ]
    assert Processes().device("cuda") == "cuda"
    assert Processes(1, 2, 1).device("cpu") == "cpu"
    assert Processes(1, 2, 1).device("cuda:0") == "cuda:0"


def test_a_launcher_that_starts_one_process_is_noticed(monkeypatch):
    for name in ("WORLD_SIZE", "ACCELERATE_MIXED_PRECISION", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert not started_one()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert not started_one()  # one was asked for
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert started_one()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not started_one()


# Figures


FLAGS = (Metric("accuracy", "accuracy", HIGHER), Metric("yes_rate", "yes-rate", None))


class Flags:
    """Yes/no questions, several of one image."""

    name = "flags"
    tasks = (Task("flags", "Flags", 4, True, FLAGS),)

    def __init__(self, count, of_an_image=6):
        self.items = [
            Item(
                "flags",
                str(i),
                "Is it?",
                f"{i // of_an_image}.png",
                str(i // of_an_image),
                "yes" if i % 2 else "no",
            )
            for i in range(count)
        ]

    def prediction(self, item, text):
        return parse(text)

    def ratios(self, task, said, units):
        answers = [self.prediction(entry.item, entry.text) for entry in said]
        ones = by_unit(said, [1] * len(said), units)
        right = [a == s.item.label for a, s in zip(answers, said, strict=True)]
        return {
            "accuracy": Ratio(by_unit(said, right, units), ones),
            "yes_rate": Ratio(by_unit(said, [a == "yes" for a in answers], units), ones),
        }


def flag(item: Item, decoder: str, text: str, logits=None) -> Answer:
    return an_answer(task="flags", id=item.id, decoder=decoder, answer=text, logits=logits)


def test_a_shift_turns_bare_answers_and_leaves_the_rest():
    item = Flags(1).items[0]

    def entry(text, yes, no, rest):
        logits = summary.Logits(yes, no, rest)
        return summary.Shiftable(Prediction(item, text, 9), parse(text), logits)

    plain = [
        entry("No", 0.0, 1.0, 0.0),  # turns to yes at 1
        entry("No, none", 0.0, 3.0, 0.0),  # at 3
        entry("Yes!", 2.0, 0.0, 0.0),
        entry("The answer is yes", 0.0, 0.0, 5.0),  # not said by its first token
        summary.Shiftable(Prediction(item, "No", 9), "no", None),
    ]
    assert summary.shifts(plain, {"same": 2}) == []
    [more] = summary.shifts(plain, {"more": 3})
    assert more.constant == pytest.approx(2.0)  # between 1 and 3
    assert [s.text for s in more.said] == ["Yes", "No, none", "Yes!", *("The answer is yes", "No")]
    assert [s.tokens for s in more.said] == [1, 9, 9, 9, 9]
    [fewer] = summary.shifts(plain, {"fewer": 1})
    assert fewer.label == "yes-shift(fewer)" and fewer.constant < -2
    assert [s.text for s in fewer.said][2:4] == ["No", "The answer is yes"]
    assert summary.shifts(plain, {"none": 0, "all": 5}) == []  # cannot be reached


def test_figures_of_flags_by_hand():
    benchmark = Flags(4, of_an_image=2)
    setups, _ = parse_contenders(["vdd"], None)
    texts = {"greedy": ["No", "No", "Yes", "what"], "vdd": ["No", "Yes", "No", "Yes"]}
    answers = [
        flag(item, label, text, (0.0, 1.0, 0.0) if label == "greedy" else None)
        for label, some in texts.items()
        for item, text in zip(benchmark.items, some, strict=True)
    ]
    found = summary.summarise(benchmark, answers, setups, yes_shift=False)
    task = found["tasks"]["flags"]
    assert found["units"] == 2
    assert task["rows"]["greedy"]["accuracy"]["value"] == 1 / 4
    assert task["rows"]["vdd"]["accuracy"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert task["invalid"] == {"greedy": 1, "vdd": 0}
    # Greedy is right in one of two and in none of two: resamples are 0, 1/4 and 1/2.
    assert task["rows"]["greedy"]["accuracy"] == {"value": 0.25, "low": 0.0, "high": 0.5}
    gap = next(d for d in found["differences"] if d["metric"] == "accuracy")
    assert gap == {
        **{"decoder": "vdd", "against": "greedy", "task": "flags", "metric": "accuracy"},
        **{"value": 0.75, "low": 0.5, "high": 1.0, "verdict": "better"},
    }


def test_nine_thousand_answers_are_scored_in_five_seconds():
    benchmark = Flags(3000)
    setups, _ = parse_contenders(["vdd", "vcd"], None)
    rng = np.random.default_rng(0)
    answers = [
        flag(item, c.label, ("No", "Yes")[rng.integers(2)], tuple(rng.normal(size=3)))
        for c in setups
        for item in benchmark.items
    ]
    started = time.process_time()
    found = summary.summarise(benchmark, answers, setups)
    assert time.process_time() - started < 5
    assert len(answers) == 9000 and found["units"] == 500


def test_decimals_follow_from_what_is_counted():
    def rows(*values):
        return [{"m": {"value": value}} for value in values]

    assert report._digits(rows(0.5, -1.0, None), "m") == 3
    assert report._digits(rows(12.3), "m") == 2
    assert report._digits(rows(163.3), "m") == 1
    assert report._digits(rows(None), "m") == 3


@needs_weights
def test_a_narrow_terminal_gets_two_tables(whole, capsys):
    for width, parts in ((400, 1), (100, 2)):
        report.show(whole[1], Console(width=width))
        shown = capsys.readouterr().out
        assert shown.count("Presence: cost") == parts - 1
        assert shown.count("ms/answer: a batch's time") == 1


# The command


def invoke(*arguments: str):
    return CliRunner().invoke(cli.app, ["evaluate", *arguments], env={"COLUMNS": "200"})


def test_every_benchmark_is_a_command_with_the_common_options():
    listed = invoke("--help").stdout
    names = ("lab", "pope", "chair", "amber", "mme", "hallusionbench")
    for name in names:
        assert name in listed
        shown = invoke(name, "--help").stdout
        for option in ("--decoder", "--controls / --no-controls", "--resume", "--device-map"):
            assert option in shown
    assert "github.com/AoiDragon/POPE" in invoke("pope", "--help").stdout.replace("\n", " ")


def test_help_names_the_parsers_and_suffixes_that_there_are():
    from sightline.evaluation import amber, mme, pope

    for name, parsers, suffixes in (
        ("pope", pope.PARSERS, pope.SUFFIXES),
        ("mme", mme.PARSERS, mme.SUFFIXES),
        ("amber", amber.PARSERS, pope.SUFFIXES),
    ):
        shown = invoke(name, "--help").stdout
        assert all(parser in shown for parser in (*parsers, *suffixes))


def test_help_does_not_wait_for_torch():
    script = "import sys, sightline.cli; print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert said.stdout.strip() == "False", said.stderr


@needs_weights
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--decoder", "vdx"), r"no decoder is called 'vdx' .*there are greedy, .*vcd"),
        (("--decoder", "vcd:beta=2"), r"beta must be in \[0, 1\]"),
        (("--decoder", "vcd:gamma=2"), "no setting of vcd is called 'gamma'.*alpha, beta"),
        (("--decoder", "vdd", "--decoder", "vdd"), "names vdd more than once"),
        (("--temperature", "0"), "temperature must be above 0"),
        (("--resume",), "--resume needs the --out"),
        (("--device", "cuda:77"), "--device cuda:77 cannot be used here"),
        (("--model", "/no/such/folder"), "no such folder"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke("lab", "--scenes", "2", *arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert re.search(message, result.stderr)
    assert list(tmp_path.iterdir()) == []


def test_several_processes_need_a_folder(monkeypatch):
    with pytest.raises(ValueError, match="several processes need --out"):
        command.check(command.Common(), several=True)
    with pytest.raises(ValueError, match="use one process"):
        command.check(command.Common(out=Path("x"), device_map="auto"), several=True)
    command.check(command.Common(device_map="auto"), several=False)


@needs_weights
def test_the_command_saves_and_prints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke("lab", "--scenes", "2", "--decoder", "vdd:alpha=2", "--batch-size", "8")
    assert result.exit_code == 0, result.output
    out = tmp_path / "runs" / "lab-1"
    written = json.loads((out / "summary.json").read_text())
    assert list(written["run"]["fixed"]["decoders"]) == [
        *("greedy", "sample", "plausibility", "vdd:alpha=2"),
    ]
    assert "Paired differences: Presence" in result.stdout
    assert "runs/lab-1: answers.jsonl" in result.stdout
    assert {"run.json", "answers.jsonl", "table.md"} <= {path.name for path in out.iterdir()}
    again = invoke("lab", "--scenes", "2", "--out", str(out))
    assert again.exit_code == 2 and "pass --resume" in again.stderr


@needs_weights
def test_weights_can_be_spread_over_devices():
    spread = Source(device_map="auto").model
    plain = Source().model
    assert all((a == b).all() for a, b in zip(spread.parameters(), plain.parameters(), strict=True))


@needs_weights
@pytest.mark.parametrize("name", ["pope", "chair"])
def test_published_files_are_asked_through_the_command(name, tmp_path):
    laid_out = lay_out(tmp_path / "data", scenes=3)
    files_of = {
        "pope": [part for file in laid_out.questions for part in ("--questions", str(file))],
        "chair": ["--instances", str(laid_out.instances), "--count", "2", "--prompt", "Describe."],
    }
    out = tmp_path / "run"
    images = ["--images", str(laid_out.images), "--max-new-tokens", "6", "--no-controls"]
    result = invoke(name, *files_of[name], *images, "--decoder", "vdd", "--out", str(out))
    assert result.exit_code == 0, result.output
    found = json.loads((out / "summary.json").read_text())
    tasks = {"pope": ["random", "popular", "adversarial"], "chair": ["caption"]}[name]
    assert list(found["tasks"]) == tasks
    assert found["run"]["fixed"]["benchmark"] == name
    for task in found["tasks"].values():
        assert set(task["rows"]) >= {"greedy", "vdd"} and task["errors"] == 0
    # No path of this machine: runs of two machines can be put side by side.
    assert str(tmp_path) not in json.dumps(found["run"]["fixed"])
    missing = invoke(name, *files_of[name], "--images", str(tmp_path), "--out", str(out / "x"))
    assert missing.exit_code == 2 and "images" in missing.stderr
