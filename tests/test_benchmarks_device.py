"""The command for a GPU: its steps, their limits, what it checks and what it prints."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

# First: the package's folder "attention" may be on the path too.
sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import correctness
import decoding
import device
import rows
import subjects
import timing
from targets import TARGETS

import attention

BENCHMARKS = Path(device.__file__).parent
KERNELS = ["columns", "decode", "prefill", "reduce", "tiles_seen"]


def test_budgets():
    """The default steps take eight minutes, in order of value."""
    default = [step for step in device.STEPS if step.is_default]
    assert [step.name for step in default] == ["kernel", "attention", "tokens", "batch"]
    assert [step.seconds for step in default] == [60, 120, 240, 60]


@pytest.mark.parametrize("step", device.STEPS, ids=lambda step: step.name)
def test_arguments_are_those_of_the_benchmark(step):
    arguments = ["--device", "cuda", *step.arguments, "--minutes", "4"]
    if step.script == "attention":
        options, shapes = attention.parsed(arguments)
        assert options.setups == ["SDPA", "ours", "recording", "flex", "eager"]
        assert len(shapes) == len(device.SHAPES)  # each pattern names one
        keys = {model: {s.keys for s in shapes if s.model == model} for model in attention.FAMILIES}
        assert keys == {name: {*family.keys} for name, family in attention.FAMILIES.items()}
        assert {(s.mode, s.batch) for s in shapes} == {("decode", 1), ("decode", 8), ("prefill", 1)}
    elif step.script == "decoding":
        options = decoding.parsed([*arguments, "--dtypes", "bf16"])
        assert options.until - device.time.monotonic() > 200
    else:
        assert step.arguments == ()


def test_steps_measure_every_target():
    """Each row of each GPU target is in some step, with its cache and batch."""
    measured = set()
    for step in device.STEPS:
        if step.script != "decoding":
            continue
        options = decoding.parsed(["--device", "cuda", *step.arguments])
        names = {*options.decoders, "vdd-in-turn"}
        for cache in options.caches:
            chosen = {*(options.compiled or names)} if cache == "compiled" else names
            measured |= {
                (n, m, b, cache) for n in chosen for m in options.models for b in options.batch
            }
    for target in TARGETS:
        if target.device != "cuda":
            continue
        wanted = {
            (row, target.model, batch, cache)
            for row in target.rows
            for batch in target.batches[:1] or (1,)
            for cache in target.caches[:1]
        }
        assert wanted <= measured, target.text


def fake(step, script):
    return device.Step(step, 1, "", script)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("raise SystemExit(0)", "done"),
        ("raise SystemExit(3)", "exit code 3"),
        ("import time; time.sleep(60)", "its time was over"),
    ],
)
def test_a_step_ends(program, said, monkeypatch, capsys):
    """By itself, with an error, or by its limit with whatever it started."""
    monkeypatch.setattr(device, "GRACE", 1)
    monkeypatch.setattr(device, "command", lambda options: [sys.executable, "-c", program])
    options = SimpleNamespace(dry_run=False)
    assert device.finished([fake("kernel", "kernel")], options) is (said == "done")
    assert said in capsys.readouterr().out


def test_later_steps_run_after_a_failure(tmp_path, monkeypatch, capsys):
    ran = []

    def finished(steps, options):
        ran.extend(step.name for step in steps)
        return [step.name for step in steps] != ["attention"]

    monkeypatch.setattr(device, "finished", finished)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.main(["--out", str(tmp_path / "new")]) == 1
    assert ran == ["kernel", "attention", "tokens", "batch"]
    assert "FAILED: attention" in capsys.readouterr().out
    ran.clear()
    assert device.main(["--out", str(tmp_path), "--only", "long", "qwen"]) == 0
    assert ran == ["qwen", "long"]


def test_without_a_device(capsys, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a device")
    with pytest.raises(SystemExit):
        device.main(["--out", str(tmp_path)])
    assert "no CUDA device: --dry-run" in capsys.readouterr().err


def test_versions_that_differ_are_said(monkeypatch, capsys):
    installed = {"torch": "2.11.0+cu130", "transformers": "5.23.0", "triton": "3.9.0"}
    installed["numpy"] = "2.3.5"
    monkeypatch.setattr(device, "version", installed.get)
    device.print_versions()
    assert capsys.readouterr().out.splitlines() == [
        "numpy 2.3.5 (tested: 2.4.6; range: any; a dry run with Triton 3.6 needs one below 2.4)",
        "torch 2.11.0+cu130 (tested: 2.13.0; range: 2.9 to 2.13)",
        "transformers 5.23.0",
        "triton 3.9.0",
    ]


def written(out, step, key, cache, per_token, base):
    """A step's file: greedy and one more row, two rounds."""
    found = [
        {"key": name, "cache": cache, "token_ms": {"median": ms}, "beyond": 0.5}
        | {"rounds": {"first": [1.0, 1.0], "per_token": [ms, ms]}}
        for name, ms in (("greedy", base), (key, per_token))
    ]
    run = {"model": "7b", "dtype": "bf16", "batch": 1, "tokens": 64, "head_bytes": 0, "rows": found}
    machine = {"device": "a GPU", "cuda": "13.0", "copy_gb_per_s": 4000.0}
    (out / f"{step}.json").write_text(json.dumps({"machine": machine, "runs": [run]}))


def test_targets_of_several_steps(tmp_path):
    """VDD's token is 1.05 of greedy's 20 ms, compiled it takes 8: 2.5 times as fast as greedy."""
    written(tmp_path, "tokens", "vdd", "dynamic", 21.0, 20.0)
    written(tmp_path, "rows", "pai", "dynamic", 30.0, 20.0)
    written(tmp_path, "compiled", "vdd", "compiled", 8.0, 6.0)
    text = device.summary(tmp_path, is_dry=False)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    found = {(line[0], line[1], line[2]): line[-1] for line in lines if len(line) == 7}
    assert found["a shorter or cut amateur: 1.08x a token", "vdd", "dynamic"] == "reached"
    assert (
        found["a whole amateur or edited keys: 1.10x a token", "pai", "dynamic"] == "missed by 0.40"
    )
    assert found["compiled, faster than plain eager greedy", "vdd", "compiled"] == "reached"
    assert "not measured: batch 16: 1.6x a token (vdd)" in text
    assert "not measured: all targets of the kernel" in text


@pytest.fixture(scope="module")
def tiny():
    model, processor = subjects.load("7b", "fp32", "cpu", tiny=True)
    for name, weights in model.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            weights.data *= 10  # scores are of the order of 1, as in a large model: edits count
    return subjects.ask("7b", model, processor)


@pytest.mark.parametrize("key", ["greedy", "vdd", "pai", "sid"])
@pytest.mark.parametrize("broken", [None, "prompt", "nan"])
def test_wrong_logits_are_not_timed(key, broken, tiny, monkeypatch):
    """Another prompt's logits, or NaN, on the device that is checked."""
    row = rows.stock(tiny, key, rows.ENTRIES[key], "dynamic")
    given = correctness.branch_logits

    def logits(run, tokens):
        steps, answer = given(run, tokens)
        if broken == "nan":
            steps[1][0, 0, 5] = float("nan")
        elif broken == "prompt":
            steps[0] = steps[0].flip(-1)
        return steps, answer

    monkeypatch.setattr(correctness, "branch_logits", logits)
    timing.measure([row], 2, 1, "cpu")
    # An expert whose attention is edited is compared with the reference, where that does not run.
    seen = broken and key != "pai"
    assert bool(row.wrong) == bool(seen)
    assert bool(row.first) != bool(seen)


def test_edited_attention_is_checked_with_its_reference(tiny, monkeypatch):
    """A kernel that forgets the edit is off the reference by more than rounding."""
    from sightline.attention import hook, reference

    def forgetful(*args, weights=None, **kwargs):
        return reference.attend(*args, **kwargs)

    monkeypatch.setattr(hook, "attend_for", lambda device: forgetful)
    row = rows.stock(tiny, "pai", rows.ENTRIES["pai"], "dynamic")
    assert "off the reference of edited attention" in row.check(2)


def test_time_that_is_over(tiny):
    row = rows.stock(tiny, "greedy", rows.ENTRIES["greedy"], "dynamic")
    (note, rounds) = timing.measure([row], 2, 1, "cpu", until=0.0)
    assert note == "Not measured, time was over: greedy (dynamic)."
    assert not row.first and rounds.startswith("Time was over after 0 of 1 rounds")


def run(*arguments, **environment):
    """A benchmark as a user starts it, without what the tests have set."""
    given = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**given, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )


def test_dry_run(tmp_path):
    """Every step with tiny shapes on a CPU, the kernel interpreted."""
    pytest.importorskip("triton", reason="the kernel is interpreted by Triton")
    done = run(BENCHMARKS / "device.py", "--dry-run", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    names = [step.name for step in device.STEPS]
    ended = re.findall(r"^== (.+): done", done.stdout, re.MULTILINE)
    assert ended == ["kernel", "attention", ", ".join(names[2:])]
    assert re.findall(r"^-- (\w+): ", done.stderr, re.MULTILINE) == ["kernel", *names]  # a worker
    results = {
        step.name: json.loads((tmp_path / "dry-run" / f"{step.name}.json").read_text())
        for step in device.STEPS
    }
    kernel = results.pop("kernel")
    assert kernel["compared"] == kernel["cases"] == 4 and not kernel["wrong"]
    kernels = results.pop("attention")
    assert {row["setup"] for row in kernels["rows"]} == {
        "SDPA",
        "ours",
        "recording",
        "flex",
        "eager",
    }
    assert kernels["failures"] == kernels["notes"] == []
    for name, result in results.items():
        (found,) = result["runs"]
        assert found["failures"] == [] and len(found["rows"]) >= 3, name
    assert "This was a dry run" in done.stdout
    assert "| a shorter or cut amateur" in done.stdout and "| decode: ours / SDPA" in done.stdout


def test_kernels_compile_for_a_gpu_that_is_not_here(tmp_path):
    """Each of the five, once at least, for compute capability 9.0."""
    pytest.importorskip("triton", reason="Triton compiles the kernels")
    cases = ["64-256-(2,2)-bfloat16-padding-all-5-none"]
    cases += ["llava-1.5-7b-decode-b1-k640 rec", "qwen2.5-vl-7b-decode-b1-k8192 rec"]
    done = run(BENCHMARKS / "compile_kernels.py", "--only", *cases, TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n3 cases compiled" in done.stdout
    assert re.findall(r"^(\w+)_kernel: [1-9]\d* spec", done.stdout, re.M) == KERNELS
