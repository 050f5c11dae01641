"""The lab's evaluation inside the demo: as the command does it, watched, stopped, in turns."""

import json
import multiprocessing
import re
import shlex
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import unescape
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from markdown_it import MarkdownIt
from transformers import AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

from sightline import MVP
from sightline.cli import app
from sightline.demo import lab_run
from sightline.demo.comparison import SamplingSettings
from sightline.demo.lab_run import run
from sightline.evaluation import answers, asking, plots, runner
from sightline.evaluation.asking import Source
from sightline.evaluation.lab import LabBenchmark
from sightline.evaluation.runner import Run, Watch
from sightline.lab import CHECKPOINT
from sightline.specs import parse_spec

pytestmark = pytest.mark.skipif(
    not (CHECKPOINT / "model.safetensors").exists(), reason="the lab's weights are not there"
)
SCENES, BATCH = 4, 8
WAYS = (parse_spec("greedy"), parse_spec("vdd:alpha=0.5"))


@dataclass
class Host:
    name: str
    model: Any
    processor: Any
    template: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(scope="module")
def host():
    model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT, dtype="float32")
    return Host("sightline.lab", model, AutoProcessor.from_pretrained(CHECKPOINT))


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """The run's folder, which stays."""

    @contextmanager
    def folder(prefix):
        (tmp_path / "kept").mkdir()
        yield str(tmp_path / "kept")

    monkeypatch.setattr(lab_run, "TemporaryDirectory", folder)
    return tmp_path / "kept"


@pytest.fixture
def temporary(monkeypatch, tmp_path):
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def said(folder: Path) -> dict:
    return {key: answer.answer for key, answer in answers.read(folder / "answers.jsonl").items()}


def table_rows(table: str, title: str) -> dict[str, list[str]]:
    """The cells of a Markdown table, by their first one."""
    _, _, rest = table.partition(f"### {title}\n\n")
    lines = rest.partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: others for first, *others in cells}


def test_a_run_has_tables_and_plots_and_leaves_nothing(host, temporary):
    seen = []
    found = run(WAYS, SCENES, host, batch_size=BATCH, progress=lambda *counts: seen.append(counts))
    # Each scene has a caption, and up to six questions; two ways answer all of them.
    [total] = {total for _, total in seen}
    assert 2 * 2 * SCENES <= total <= 2 * 7 * SCENES
    counts = [done for done, _ in seen]
    assert counts[0] == 0 and counts[-1] == total and counts == sorted(counts)
    assert max(later - earlier for earlier, later in pairwise(counts)) <= BATCH
    assert (found.done, found.total, found.is_whole, found.note) == (total, total, True, "")
    for title in ("Presence", "Captions"):
        assert list(table_rows(found.table, title)) == ["greedy", "vdd:alpha=0.5"]
    assert list(table_rows(found.table, "Paired differences: Captions")) == [
        "vdd:alpha=0.5 - greedy"
    ]
    assert [plot.format for plot in found.plots] == ["PNG"] * 4
    assert all(min(plot.size) > 200 and plot.getcolors(2) is None for plot in found.plots)
    assert list(temporary.iterdir()) == []


HOSTILE = "a|b <img src=x onerror=y> ![c](http://x/y) `d` *e* _f_ $g$ &lt; [h](i)"


def test_settings_in_tables_are_shown_and_never_rendered(host):
    way = parse_spec("icd", [f"instruction={HOSTILE}"])
    found = run((parse_spec("greedy"), way), 1, host, batch_size=BATCH)
    html = MarkdownIt("commonmark").enable("table").render(found.table)
    assert not re.search("<(img|a|em|strong)\\b", html)
    label = f"icd:instruction={HOSTILE}"
    cells = [unescape(cell) for cell in re.findall("<td>(.*?)</td>", html)]
    assert label in cells and f"{label} - greedy" in cells
    for table in html.split("<table>")[1:]:
        head, *rows = table.split("</tr>")[:-1]
        assert {row.count("<td>") for row in rows} == {head.count("<th>")}
    [command] = re.findall("<code>(sightline evaluate lab .*?)</code>", html, re.DOTALL)
    assert label in shlex.split(unescape(command))


def test_answers_are_those_of_the_command(host, kept, tmp_path):
    run(WAYS, SCENES, host, SamplingSettings(seed=5), batch_size=BATCH)
    given = ["evaluate", "lab", "--decoder", "greedy", "--decoder", "vdd:alpha=0.5", "--seed", "5"]
    given += ["--scene-seed", "5", "--scenes", str(SCENES), "--batch-size", str(BATCH)]
    given += ["--no-controls"]
    done = CliRunner().invoke(app, [*given, "--threads", "1", "--out", str(tmp_path / "command")])
    assert done.exit_code == 0, done.output
    assert said(kept) == said(tmp_path / "command")
    assert len(said(kept)) > 2 * 2 * SCENES
    heads = [json.loads((f / "run.json").read_text()) for f in (kept, tmp_path / "command")]
    mine, theirs = ({k: v for k, v in h["fixed"].items() if k != "weights"} for h in heads)
    assert mine == theirs


def test_decoders_are_sampled_where_there_is_a_temperature(host, kept):
    ways = (parse_spec("sample"), parse_spec("vdd"), parse_spec("greedy"))
    found = run(ways, 2, host, SamplingSettings(temperature=0.7), batch_size=BATCH)
    head = json.loads((kept / "run.json").read_text())["fixed"]
    assert {name: row["mode"] for name, row in head["decoders"].items()} == {
        "greedy": "greedy",
        "sample": "sample",
        "vdd+sample": "sample",
    }
    assert head["temperature"] == 0.7
    assert "--decoder vdd+sample" in found.table and "--temperature 0.7" in found.table


def test_without_a_temperature_only_sampling_samples(host, kept):
    run((parse_spec("sample"), parse_spec("vdd"), parse_spec("vdd")), 1, host)
    head = json.loads((kept / "run.json").read_text())["fixed"]
    assert {name: row["mode"] for name, row in head["decoders"].items()} == {
        "greedy": "greedy",
        "sample": "sample",
        "vdd": "greedy",
    }
    assert head["temperature"] == 1.0


def test_decoders_ask_in_the_words_of_their_ways(host, kept):
    three = "Describe the image.+Describe this picture.+What is in the image?"
    mvp = parse_spec(f"mvp:requests={three},caption_tokens=8,tokens=2")
    asks = parse_spec("carve:general=Describe this picture.,suffix=")
    run((asks, mvp), 1, host)
    decoders = json.loads((kept / "run.json").read_text())["fixed"]["decoders"]
    carve, mvp_settings = (decoders[spec.label]["decoder"] for spec in (asks, mvp))
    assert (carve["general"], carve["suffix"]) == ("Describe this picture.", "")
    assert mvp_settings["requests"] == three.split("+")
    assert mvp_settings["template"] == MVP.template  # not set


def test_controls_are_added_where_they_are_wanted(host):
    found = run((parse_spec("vdd"),), 1, host, controls=True)
    assert {"greedy", "sample", "plausibility", "vdd"} <= table_rows(found.table, "Presence").keys()


def test_a_stop_leaves_the_batches_that_are_there(host, temporary):
    counts = (0, 0)

    def progress(*now):
        nonlocal counts
        counts = now

    found = run(WAYS, SCENES, host, batch_size=4, progress=progress, stopped=lambda: counts[0] > 0)
    # Both ways have answered the first batch, and no more; it has no captions.
    assert (found.done, found.is_whole) == (8, False)
    assert found.total > 8
    assert list(table_rows(found.table, "Presence")) == ["greedy", "vdd:alpha=0.5"]
    assert "\n4 questions." in found.table
    assert "Captions" not in found.table
    assert len(found.plots) == 2
    assert list(temporary.iterdir()) == []


def test_a_stop_before_the_first_batch_leaves_nothing(host, temporary):
    found = run(WAYS, SCENES, host, stopped=lambda: True)
    assert (found.done, found.table, found.plots, found.is_whole) == (0, "", (), False)
    assert found.total > 0
    assert list(temporary.iterdir()) == []


def test_the_model_answers_in_turns_alone(host):
    open_turns, turns, forwards = [], [], []

    @contextmanager
    def turn():
        turns.append(0)
        open_turns.append(threading.current_thread())
        yield
        open_turns.pop()

    def watch(*args):
        forwards.append([*open_turns])
        turns[-1] += 1

    hook = host.model.register_forward_pre_hook(watch)
    try:
        found = run(
            (parse_spec("greedy"), parse_spec("sample")), 2, host, batch_size=100, turn=turn
        )
    finally:
        hook.remove()
    assert found.is_whole
    assert all(now == [threading.current_thread()] for now in forwards)
    # One to warm up, of one token; then each way answers one batch of questions, one of captions.
    assert len(turns) == 1 + 2 * 2
    assert turns[0] == 1 and min(turns) > 0


def test_a_run_starts_no_process_and_changes_nothing_of_the_host(host, monkeypatch):
    def refuse(*args):
        raise AssertionError("a process was started")

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refuse)
    monkeypatch.setattr(asking, "load_model", refuse)
    before = torch.get_rng_state()
    tokenizer = host.processor.tokenizer
    pads, tokenizer.pad_token = tokenizer.pad_token, None
    try:
        assert run((parse_spec("sample"),), 1, host).is_whole
        assert tokenizer.pad_token is None
    finally:
        tokenizer.pad_token = pads
    assert torch.equal(torch.get_rng_state(), before)


def test_another_model_is_named(host, kept):
    other = Host("org/model", host.model, host.processor)
    found = run(WAYS, 1, other)
    assert json.loads((kept / "run.json").read_text())["fixed"]["model"] == "org/model"
    assert "--model org/model" in found.table


def test_tables_come_without_plots_where_matplotlib_is_missing(host, monkeypatch):
    def refuse():
        raise ImportError("plots need matplotlib")

    monkeypatch.setattr(plots, "check_matplotlib", refuse)
    found = run(WAYS, 1, host)
    assert found.plots == () and found.note == "plots need matplotlib"
    assert "### Presence" in found.table


@pytest.mark.parametrize(
    ("way", "message"),
    [
        (parse_spec("vcd:beta=2"), "vcd:beta=2: beta must be in"),
        (parse_spec("vdd+vasparse"), "two rules cannot both score"),
    ],
)
def test_ways_that_cannot_be_run_are_named(host, temporary, way, message):
    with pytest.raises(ValueError, match=message):
        run((parse_spec("greedy"), way), 1, host)
    assert list(temporary.iterdir()) == []


def test_too_few_scenes_are_refused(host, temporary):
    with pytest.raises(ValueError, match="scenes must be at least 1, got 0"):
        run(WAYS, 0, host)
    assert list(temporary.iterdir()) == []


def test_a_run_that_was_stopped_can_be_continued(host, tmp_path):
    settings = Run(seed=1, batch_size=BATCH)
    source = Source.loaded(host.name, host.model, host.processor)
    asks = iter([False])  # then it is stopped

    def evaluate(folder, **further):
        given = (LabBenchmark(SCENES), ["vdd"], settings, tmp_path / folder, source)
        return runner.evaluate(*given, **further)

    first = evaluate("a", watch=Watch(stopped=lambda: next(asks, True)))
    assert [task["questions"] for task in first["tasks"].values()] == [BATCH]
    # A kill takes the last answer; a stop before the batch is answered again keeps the others.
    path = tmp_path / "a" / "answers.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert evaluate("a", resume=True, watch=Watch(stopped=lambda: next(asks, True))) is None
    assert len(said(tmp_path / "a")) == 2 * BATCH - 1
    evaluate("a", resume=True)
    evaluate("b")
    texts = [said(tmp_path / folder) for folder in "ab"]
    assert list(texts[0].items()) == list(texts[1].items())
