"""The plan of what papers print, run on the lab's model with scenes laid out as COCO."""

import json
import shutil
import subprocess
import sys

import pytest
from coco import lay_out

from sightline.decoders import DECODERS, NAMED
from sightline.evaluation import reproduce
from sightline.evaluation.reproduce import BENCHMARKS, ROWS, Job, Row
from sightline.evaluation.setups import parse_setup
from sightline.lab import CHECKPOINT
from sightline.lab.dialogue import DESCRIBE

needs_weights = pytest.mark.skipif(
    not (CHECKPOINT / "model.safetensors").exists(), reason="the lab's weights are not there"
)
# A caption's request is CARVE's plain description here, so that nothing stands out.
pytestmark = pytest.mark.filterwarnings("ignore:the question draws no more attention")
WORDED = (
    f"vdgd:request={DESCRIBE[0]},layout=continue,tokens=48",
    f"mvp:requests={'+'.join(DESCRIBE)},template={{caption}} {{question}},caption_tokens=48",
    f"carve:general={DESCRIBE[1]},suffix=",
    f"icd:instruction={DESCRIBE[2]}",
)
"""The lab's model knows few words; decoders that word prompts are given these."""


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory):
    return lay_out(tmp_path_factory.mktemp("laid-out"), scenes=3)


@pytest.fixture(scope="module")
def ids(tmp_path_factory, laid_out):
    path = tmp_path_factory.mktemp("ids") / "ids.json"
    path.write_text(json.dumps(list(laid_out.scenes)[:2]))
    return path


def options(laid_out, ids, out, *more):
    worded = [part for text in WORDED for part in ("--set", text)]
    paths = ["--coco", laid_out.coco, "--pope", laid_out.pope, "--ids", ids, "--out", out]
    return [
        *map(str, ["--model", CHECKPOINT, *paths, "--dtype", "float32"]),
        *["--suffix", "none", "--prompt", DESCRIBE[0], "--batch-size", "4"],
        *worded,
        *more,
    ]


def plan(*arguments):
    return reproduce.make_plan(reproduce.parse_options(options(*arguments)), None, "a command")


# The plan


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_every_decoder_is_in_the_plan(benchmark):
    wanted = {*DECODERS} - ({"mvp", "posthoc"} if benchmark != "pope" else set())
    assert {*ROWS[benchmark]} == {*wanted, "baselines"}
    for name, rows in ROWS[benchmark].items():
        if name != "baselines":
            assert rows[0].text == name  # our defaults, then published ones
            assert {NAMED[name]} == {NAMED[parsed(row).name] for row in rows}


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_rows_are_labelled_as_they_are_written(benchmark):
    for rows in ROWS[benchmark].values():
        for row in rows:
            assert parsed(row).label == row.text and row.settings


class FakeProcessor:
    unk_token_id = 3


def parsed(row):
    return parse_setup(row.text, FakeProcessor())


def test_settings_of_papers():
    made = {row.text: parsed(row) for rows in ROWS["pope"].values() for row in rows}
    vcd = made["vcd.pope_paper+sample"]
    assert (vcd.strategy.noise_step, vcd.strategy.alpha, vcd.way) == (999, 1.0, "sample")
    assert made["vdd:variant=both,beta=0.2+sample"].strategy.variant == "both"
    assert made["sid.sid_2408+sample"].strategy.beta == 0.4
    told = {row.text: parsed(row) for rows in ROWS["chair-64"].values() for row in rows}
    assert told["vasparse.paper+beam"].generation(1.0)["num_beams"] == 3
    assert told["vasparse.paper+beam"].strategy.sink == 0.1


def test_a_part_of_the_plan():
    whole = reproduce.planned()
    assert len(whole) == len(ROWS["pope"]) + 2 * len(ROWS["chair-64"])
    parts = [reproduce.share(whole, f"{i}/3") for i in (1, 2, 3)]
    assert sorted(str(job) for part in parts for job in part) == sorted(map(str, whole))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    some = reproduce.planned(["chair-64"], ["vcd", "mvp"])
    assert [(job.benchmark, job.name) for job in some] == [
        ("chair-64", "baselines"),
        ("chair-64", "vcd"),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(benchmarks=["popes"]), r"did you mean pope\?"),
        (dict(decoders=["vdx"]), "did you mean v[cd]d"),
    ],
)
def test_a_plan_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        reproduce.planned(**arguments)


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b"])
def test_a_part_that_cannot_be(part):
    with pytest.raises(ValueError, match=f"a part is written 1/2 or 2/2, got '{part}'"):
        reproduce.share(reproduce.planned(), part)


def test_controls_come_with_their_rows():
    def texts(*rows, has_shift=False):
        return reproduce.texts([parsed(Row(row, "")) for row in rows], has_shift)

    assert texts("pai") == ["pai"]
    assert texts("vcd", "vcd+sample", has_shift=True) == [
        *("vcd", "vcd+sample", "sample", "plausibility", "yes-shift"),
    ]
    assert texts("vasparse+beam") == ["vasparse+beam", "beam", "plausibility+beam"]
    assert texts("vdgd", "carve") == ["vdgd", "carve", "vdgd-prefix", "carve:share=1"]
    assert texts("greedy", "sample") == ["greedy", "sample", "plausibility"]


def test_settings_for_a_small_vocabulary():
    found = reproduce.read_settings(WORDED)
    assert found["vdgd"] == {"request": DESCRIBE[0], "layout": "continue", "tokens": 48}
    assert found["mvp"]["requests"] == DESCRIBE
    assert found["carve"]["suffix"] == ""
    with pytest.raises(ValueError, match=r"did you mean layout\?"):
        reproduce.read_settings(["vdgd:layuot=continue"])


# Tables


def a_summary(rows, controls, ms):
    """Of one task `random`, with one metric and one difference for each row."""
    values = {"value": 0.5, "low": 0.25, "high": 0.75}
    gap = {"task": "random", "metric": "f1", "verdict": "no difference shown", **values}
    return {
        "run": {},
        "units": 3,
        "tasks": {
            "random": {
                "title": "POPE, random",
                "yes_no": True,
                "metrics": [{"name": "f1", "title": "F1", "better": "higher"}],
                "rows": {label: {"f1": values} for label in rows},
                "invalid": dict.fromkeys(rows, 0),
                "shifts": {},
                "cost": {
                    label: {"ms_per_answer": t, "ms_per_token": None}
                    for label, t in zip(rows, ms, strict=True)
                },
            }
        },
        "controls": controls,
        "differences": [{"decoder": row, "against": "greedy", **gap} for row in rows[1:]],
    }


def test_runs_of_a_benchmark_become_one_summary():
    first = a_summary(["greedy", "sample"], ["greedy", "sample"], [2.0, 3.0])
    second = a_summary(["greedy", "vcd", "sample"], ["greedy", "sample"], [4.0, 10.0, 4.0])
    whole = reproduce.merged([first, second])
    task = whole["tasks"]["random"]
    assert list(task["rows"]) == ["greedy", "sample", "vcd"]
    assert [cost["ms_per_answer"] for cost in task["cost"].values()] == [2.0, 3.0, 10.0]
    assert whole["controls"] == ["greedy", "sample"]
    assert [d["decoder"] for d in whole["differences"]] == ["sample", "vcd"]
    assert list(first["tasks"]["random"]["rows"]) == ["greedy", "sample"]  # left alone


def test_times_are_compared_within_a_run():
    summary = a_summary(["greedy", "vcd"], ["greedy"], [4.0, 10.0])
    assert reproduce.ratios(summary, "random") == {"greedy": 1.0, "vcd": 2.5}
    del summary["tasks"]["random"]["cost"]["greedy"]
    assert reproduce.ratios(summary, "random") == {}


def test_times_of_several_runs_are_not_plotted_together():
    whole = reproduce.merged([a_summary(["greedy", "vcd"], ["greedy"], [4.0, 8.0])])
    task = reproduce.untimed(whole)["tasks"]["random"]
    assert task["cost"] == {} and list(task["rows"]) == ["greedy", "vcd"]
    assert len(whole["tasks"]["random"]["cost"]) == 2  # left alone


# Bad input


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--decoders", "vdx"], "did you mean v[cd]d"),
        (["--set", "vdgd:layout=sideways"], "layout of vdgd must be one of"),
        (["--set", "vdx:alpha=1"], "no decoder is called 'vdx'"),
        (["--model", "no/such/folder"], "no such folder"),
        (["--batch-size", "0"], "batch_size must be at least 1"),
        (["--temperature", "0"], "temperature must be above 0"),
        (["--template", "enable_thinking=false"], "takes no argument 'enable_thinking'"),
        (["--template", "enable_thinking"], "is written NAME=VALUE"),
    ],
)
def test_refused_before_anything_is_computed(laid_out, ids, tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        plan(laid_out, ids, tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()


def test_a_missing_image_or_file_is_named(laid_out, ids, tmp_path):
    other = lay_out(tmp_path, scenes=3)
    (other.images / "COCO_val2014_000000000107.jpg").unlink()
    with pytest.raises(ValueError, match=r"images are not in .*COCO_val2014_000000000107\.jpg"):
        plan(other, ids, tmp_path / "out")
    other.questions[1].unlink()
    with pytest.raises(ValueError, match=r"coco_pope_popular\.json: no such file"):
        plan(other, ids, tmp_path / "out")


def test_a_folder_of_another_plan(laid_out, ids, tmp_path):
    out = tmp_path / "out"
    plan(laid_out, ids, out, "--benchmarks", "pope")
    plan(laid_out, ids, out)  # other benchmarks may come to it
    with pytest.raises(ValueError, match="seed: 0 then, 1 now"):
        plan(laid_out, ids, out, "--seed", "1")
    with pytest.raises(ValueError, match=r"holds other runs.*chair-64"):
        plan(laid_out, ids, out, "--count", "2", "--prompt", "What is in the image?")


def test_a_launcher_is_not_needed(laid_out, ids, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "find_processes", lambda: reproduce_processes(rank=0, count=2))
    with pytest.raises(ValueError, match="--part 1/2"):
        plan(laid_out, ids, tmp_path / "out")


def reproduce_processes(**values):
    from sightline.evaluation.processes import Processes

    return Processes(**values)


# Runs


def contents(out):
    """What was answered, by file, apart from times."""
    times = ("ms", "first_ms", "peak_mb")
    found = {}
    for path in sorted(out.glob("*/*/answers.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found[str(path.relative_to(out))] = [
            {key: value for key, value in row.items() if key not in times} for row in rows
        ]
    return found


@pytest.fixture(scope="module")
def finished(laid_out, ids, tmp_path_factory):
    """A folder in which two of the benchmarks are finished for SID."""
    out = tmp_path_factory.mktemp("finished") / "out"
    made = plan(laid_out, ids, out, "--decoders", "sid", "--benchmarks", "pope", "chair-64")
    assert made.go()
    return out


def again(laid_out, ids, out):
    return plan(laid_out, ids, out, "--decoders", "sid", "--benchmarks", "pope", "chair-64")


@needs_weights
def test_a_row_that_cannot_run_is_told_and_costs_no_other(finished):
    answers = contents(finished)
    assert set(answers) == {
        f"{benchmark}/{name}/answers.jsonl"
        for benchmark in ("pope", "chair-64")
        for name in ("baselines", "sid")
    }
    asked = {row["decoder"] for row in answers["pope/sid/answers.jsonl"]}
    assert asked == {"greedy", "sid", "sid+sample", "sample", "plausibility"}
    told = (finished / "reproduce.md").read_text()
    reason = "count=100 is more than the image tokens of a row (64): give fewer, or a ratio"
    assert f"| pope/sid | sid.sid_2408+sample | {reason} |" in told
    assert "not run yet" not in told
    task = read_task(finished / "pope" / "sid", "random")
    assert task["questions"] == 6 and "sid+sample" in task["rows"]


def read_task(folder, name):
    return json.loads((folder / "summary.json").read_text())["tasks"][name]


@needs_weights
def test_the_tables_have_the_figures_of_the_runs(finished):
    told = (finished / "reproduce.md").read_text()
    sections = {part.split("\n")[0]: part for part in told.split("\n## ")[1:]}
    assert set(sections) == {"pope", "chair-64"}
    value = read_task(finished / "chair-64" / "sid", "caption")["rows"]["sid"]["chair_i"]
    [line] = [x for x in sections["chair-64"].splitlines() if x.startswith("| sid |")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:2] == ["sid", "ours"]
    assert cells[2] == "{value:.3f} [{low:.3f}, {high:.3f}]".format(**value)
    heads = [x for x in sections["chair-64"].splitlines() if x.startswith("| decoder |")]
    assert heads[0].endswith("| time / greedy | CHAIR_i - greedy |")
    assert "unfinished_sentence 'cut'" in sections["chair-64"]
    for row in ("greedy", "sample", "plausibility", "beam", "sid+sample"):
        assert f"\n| {row} |" in sections["pope"], row
    names = {path.name for path in (finished / "pope").glob("*.png")}
    splits = ("random", "popular", "adversarial")
    assert names == {f"{split}-f1-yes-rate.png" for split in splits}
    assert (finished / "pope" / "sid" / "adversarial-time.png").exists()


@needs_weights
def test_what_is_finished_is_not_run_again(finished, laid_out, ids, monkeypatch):
    monkeypatch.setattr(reproduce, "evaluate", never)
    monkeypatch.setattr(reproduce.Plan, "tried", never)
    before = contents(finished)
    assert again(laid_out, ids, finished).go()
    assert contents(finished) == before


def never(*arguments, **keywords):
    raise AssertionError("nothing was left to do")


@needs_weights
def test_a_run_that_was_killed_goes_on(finished, laid_out, ids, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    (out / "pope" / "sid" / "summary.json").unlink()
    path = out / "pope" / "sid" / "answers.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert again(laid_out, ids, out).go()
    assert contents(out) == contents(finished)
    assert "sid.sid_2408+sample" in (out / "reproduce.md").read_text()


@needs_weights
def test_a_run_that_breaks_off_holds_up_no_other(laid_out, ids, tmp_path, monkeypatch):
    broken = ["baselines"]
    real = reproduce.evaluate

    def evaluate(benchmark, texts, run, out, *arguments, **keywords):
        if out.name in broken:
            raise RuntimeError("out of memory\nand a long story")
        return real(benchmark, texts, run, out, *arguments, **keywords)

    monkeypatch.setattr(reproduce, "evaluate", evaluate)
    made = plan(laid_out, ids, tmp_path, "--decoders", "pai", "--benchmarks", "chair-64")
    assert not made.go()
    told = (tmp_path / "reproduce.md").read_text()
    assert "| chair-64/baselines | beam | stopped: out of memory |" in told
    assert "\n| pai | ours, as published |" in told
    broken.clear()
    assert made.go()
    assert "stopped" not in (tmp_path / "reproduce.md").read_text()
    assert reproduce.state(made.mine[0], tmp_path).stopped == ""


@needs_weights
def test_a_run_without_a_row_that_can_is_done_with(laid_out, ids, tmp_path, monkeypatch):
    made = plan(laid_out, ids, tmp_path, "--benchmarks", "pope")
    made.jobs = made.mine = [Job("pope", "sid", (Row("sid.sid_2408+sample", "code"),))]
    monkeypatch.setattr(reproduce, "planned", lambda: made.jobs)
    assert made.go()
    told = (tmp_path / "reproduce.md").read_text()
    assert told.count("sid.sid_2408+sample") == 1 and "not run yet" not in told
    monkeypatch.setattr(reproduce.Plan, "tried", never)
    assert made.go()


@needs_weights
def test_what_greedy_cannot_do_is_no_rows_fault(laid_out, ids, tmp_path, monkeypatch):
    def generate(*arguments, **keywords):
        raise RuntimeError("no kernel for this device")

    monkeypatch.setattr(reproduce.ModelRunner, "generate", generate)
    made = plan(laid_out, ids, tmp_path, "--benchmarks", "pope")
    with pytest.raises(RuntimeError, match="no kernel"):
        made.go()
    assert not list(tmp_path.glob("*/*/state.json"))


@needs_weights
def test_no_image_can_be_read(laid_out, ids, tmp_path):
    other = lay_out(tmp_path, scenes=3)
    for path in other.images.iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match="no image of pope can be read"):
        plan(other, ids, tmp_path / "out").go()


@needs_weights
def test_a_full_disk_ends_the_plan(laid_out, ids, tmp_path, monkeypatch):
    def evaluate(*arguments, **keywords):
        raise OSError("no space left")

    monkeypatch.setattr(reproduce, "evaluate", evaluate)
    made = plan(laid_out, ids, tmp_path, "--decoders", "pai", "--benchmarks", "chair-64")
    with pytest.raises(OSError, match="no space left"):
        made.go()


@needs_weights
def test_every_row_runs_on_the_lab_or_says_why(laid_out, ids, tmp_path):
    made = plan(laid_out, ids, tmp_path, "--benchmarks", "pope", "chair-512")
    refused = {}
    for job in made.jobs:
        made.tried(job)
        refused |= reproduce.state(job, tmp_path).refused
    # More image tokens, and more layers, than the lab's model has.
    deep = {"carve.paper_best", "carve.paper_best:answer_suffix=false"}
    assert set(refused) == {"sid.sid_2408+sample", *deep}


@needs_weights
def test_the_command(laid_out, ids, tmp_path):
    command = [sys.executable, "-m", "sightline.evaluation.reproduce"]
    arguments = options(laid_out, ids, tmp_path / "out", "--benchmarks", "chair-64")
    arguments += ["--decoders", "pai", "--part", "2/2"]
    run = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    told = (tmp_path / "out" / "reproduce.md").read_text()
    assert "\n| pai | ours, as published |" in told and "--part 2/2" in told
    assert "| chair-64/baselines | beam | not run yet |" in told
    shown = plan(laid_out, ids, tmp_path / "out", "--decoders", "vcd").shown()
    assert ("chair-64", "pai") in {(job.benchmark, job.name) for job in shown}


def test_a_mistake_ends_the_command_with_one_line(laid_out, ids, tmp_path, monkeypatch):
    arguments = options(laid_out, ids, tmp_path / "out", "--decoders", "vdx")
    monkeypatch.setattr(sys, "argv", ["reproduce", *arguments])
    with pytest.raises(SystemExit, match=r"error: no decoder is called 'vdx'"):
        reproduce.main()
