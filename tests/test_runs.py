"""Runs that cannot be ruined: kills, two at a time, other models, broken logits, broken files."""

import ast
import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import torch
from coco import lay_out
from test_evaluation_files import PUBLISHED
from test_runner import MEASURED, an_answer, evaluate, needs_weights, timeless
from typer.testing import CliRunner

from sightline import cli
from sightline.evaluation import answers as files
from sightline.evaluation import runner
from sightline.evaluation.asking import ModelRunner, Preparation, Source
from sightline.evaluation.batches import Batch
from sightline.evaluation.benchmark import Item
from sightline.evaluation.failures import explained
from sightline.evaluation.files import check_images, open_inside
from sightline.evaluation.lab import LabBenchmark
from sightline.evaluation.lock import Lock
from sightline.evaluation.pope import Pope
from sightline.evaluation.record import header, versions
from sightline.evaluation.runner import Run
from sightline.evaluation.setups import parse_contenders
from sightline.json_text import finite, json_text
from sightline.lab import CHECKPOINT, IMAGES

HERE = Path(__file__).parent
SOON = 20  # seconds, on a machine with other work


def run_script(text, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", text, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **options,
    )


def gone(numbers):
    """Whether all these processes end soon."""
    until = time.monotonic() + SOON
    while time.monotonic() < until:
        if not any(psutil.pid_exists(number) and not is_zombie(number) for number in numbers):
            return True
        time.sleep(0.05)
    return False


def is_zombie(number):
    try:
        return psutil.Process(number).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# Children end with their parent

PREPARING = """
import multiprocessing, time
import numpy as np
from sightline.evaluation.batches import Ahead

def large(n):
    return np.zeros(10**7, np.uint8)

def slow(n):
    time.sleep(3600 if n else 0)

made = [Ahead(make, range(99)) for make in (large, slow, str)]
for one in made:
    next(one)
time.sleep(1)  # what is made ahead fills the pipes
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
time.sleep(3600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_prepares_images_ends_with_its_parent(number):
    """Whatever it does: wait for work, work for an hour, or wait for its result to be taken."""
    parent = run_script(PREPARING)
    children = [int(word) for word in parent.stdout.readline().split()]
    assert len(children) == 3
    parent.send_signal(number)
    parent.wait(SOON)
    parent.stdout.close()
    assert gone(children)


LAUNCHED = """
import os, socket, subprocess, sys, time
code = '''
import os, sys, time
launcher = os.getppid()
print("started", flush=True)
while sys.argv[1] == "before" and os.getppid() == launcher:
    time.sleep(0.01)
from sightline.evaluation.processes import end_with_launcher
end_with_launcher()
if sys.argv[1] == "after":
    time.sleep(2)
    print("ready", flush=True)
time.sleep(3600)
'''
meeting = socket.create_server(("127.0.0.1", 0))
os.environ.update(
    TORCHELASTIC_USE_AGENT_STORE="True",
    MASTER_ADDR="127.0.0.1",
    MASTER_PORT=str(meeting.getsockname()[1]),
)
command = [sys.executable, "-c", code, sys.argv[1]]
child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
if sys.argv[1] == "after":
    print(child.stdout.readline(), flush=True)
time.sleep(3600)
"""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_launched_process_ends_with_its_launcher(moment):
    """Also where the launcher is killed before the process has seen who its parent is."""
    launcher = run_script(LAUNCHED, moment)
    child = int(launcher.stdout.readline())
    assert moment == "before" or launcher.stdout.readline() == "ready\n"
    assert psutil.pid_exists(child)
    launcher.kill()
    launcher.wait(SOON)
    launcher.stdout.close()
    assert gone([child])


# One run at a time

HOLDING = """
import sys, time
from pathlib import Path
from sightline.evaluation.lock import Lock
lock = Lock(Path(sys.argv[1]))
lock.take()
if sys.argv[2] == "shared":
    lock.take(shared=True)
print("held", flush=True)
time.sleep(3600)
"""


@pytest.mark.parametrize("kind", ["alone", "shared"])
def test_a_folder_is_locked_until_its_holder_ends(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("sightline.evaluation.lock.PATIENCE", 0.2)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(tmp_path), kind], stdout=subprocess.PIPE, text=True
    )
    holder.stdout.readline()
    with closing(Lock(tmp_path)) as other:
        with pytest.raises(ValueError) as refused:
            other.take()
        for part in (f"process {holder.pid} on ", "which began at 20", "--resume", str(tmp_path)):
            assert part in str(refused.value)
        if kind == "shared":
            assert other.take(shared=True) == ""  # another process of that run
    holder.kill()
    holder.wait(SOON)
    holder.stdout.close()
    with closing(Lock(tmp_path)) as other:
        assert other.take() == ""  # whatever the file that is left says
    with closing(Lock(tmp_path)) as again:
        assert again.take() == ""


def test_a_folder_that_cannot_be_locked_is_said(tmp_path, monkeypatch):
    import errno
    import fcntl

    def refuse(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with closing(Lock(tmp_path)) as lock:
        assert "cannot be locked (No locks available)" in lock.take()


def test_an_answer_that_stands_twice_counts_once(tmp_path):
    """Equal but for what a clock and a gauge say; in one file, or in two."""
    path, ids = tmp_path / "answers.jsonl", [str(i) for i in range(4)]
    first = [an_answer(id=i, ms=1.0) for i in ids]
    later = [an_answer(id=i, ms=2.0, first_ms=1.0, peak_mb=3.0) for i in ids]
    files.append(path, [a for pair in zip(first, later, strict=True) for a in pair])
    assert list(files.read(path).values()) == first
    files.append(files.part(tmp_path, 1), later[2:])
    found = files.read_all(tmp_path)
    assert list(found.values()) == first
    merged = files.merge(tmp_path, found, [answer.key for answer in first])
    assert path.read_text() == "".join(answer.line() for answer in merged.values())
    for changes in (dict(answer="No"), dict(tokens=9), dict(seed=8), dict(error="none")):
        files.append(path, [an_answer(id="0", **changes)])
        with pytest.raises(ValueError, match=r"line 5 answers .* a second time, and differently"):
            files.read(path)
        path.write_text("".join(answer.line() for answer in first))


@needs_weights
def test_a_run_that_two_have_written_is_continued(tmp_path):
    out = tmp_path / "run"
    found = evaluate(out, LabBenchmark(2, 0))
    whole = timeless(out / "answers.jsonl")
    lines = (out / "answers.jsonl").read_text().splitlines(keepends=True)
    again = [json.dumps({**json.loads(line), "ms": 7.0}) + "\n" for line in lines]
    (out / "answers.jsonl").write_text("".join(again[:9] + lines + again[5:]))
    assert evaluate(out, LabBenchmark(2, 0), resume=True)["differences"] == found["differences"]
    assert timeless(out / "answers.jsonl") == whole
    with closing(Lock(out)) as lock, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sightline.evaluation.lock.PATIENCE", 0.2)
        patch.setattr(Source, "model", None)  # not even read
        lock.take()
        with pytest.raises(ValueError, match=rf"is being written by process {os.getpid()} on"):
            evaluate(out, LabBenchmark(2, 0), resume=True)


# Who answered


def loaded():
    """The lab's model, read again."""
    source = Source()
    return Source.loaded("lab", source.model, source.processor)


def written(source):
    setups, _ = parse_contenders(["vdd"], source.processor)
    return header(LabBenchmark(2, 0), Run(), source, setups, versions(), "")


def one_weight(source):
    last = list(source.model.parameters())[-1]
    last.data.view(-1)[-1] += 1e-4


def swapped_rows(source):
    weight = source.model.get_output_embeddings().weight.data
    weight[:] = weight.flip(0)


def other_names(source):
    source.model.register_buffer("further", torch.zeros(1))


def a_token(source):
    source.processor.tokenizer.add_tokens(["<further>"])


def a_template(source):
    source.processor.chat_template += " "


CHANGES = {
    "weights": [
        one_weight,
        swapped_rows,
        other_names,
        lambda s: s.model.to(torch.bfloat16),
    ],
    "config.text_config.rms_norm_eps": [
        lambda s: setattr(s.model.config.text_config, "rms_norm_eps", 1e-3)
    ],
    "config.vision_feature_layer": [lambda s: setattr(s.model.config, "vision_feature_layer", -2)],
    "generation_config.repetition_penalty": [
        lambda s: setattr(s.model.generation_config, "repetition_penalty", 1.5)
    ],
    "generation_config.eos_token_id": [
        lambda s: setattr(s.model.generation_config, "eos_token_id", [2, 9])
    ],
    "attention.text_config": [
        lambda s: s.model.set_attn_implementation({"text_config": "eager"}),
    ],
    "processor.image_processor.image_mean": [
        lambda s: setattr(s.processor.image_processor, "image_mean", [0.1, 0.5, 0.5])
    ],
    "tokenizer.rules": [a_token],
    "chat_template": [a_template],
    "dtype": [lambda s: s.model.to(torch.bfloat16)],
}


@needs_weights
@pytest.mark.parametrize("name", CHANGES)
def test_a_run_is_not_continued_by_another_model(tmp_path, name):
    for change in CHANGES[name]:
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        out.mkdir()
        source = loaded()
        files.open_run(out, written(source), resume=False)
        change(source)
        with pytest.raises(ValueError) as refused:
            files.check_run(out, written(source))
        assert f"{name}: " in str(refused.value) and "choose another --out" in str(refused.value)


@needs_weights
def test_other_packages_are_named(tmp_path):
    head = written(loaded())
    assert {"torch", "transformers", "tokenizers", "pillow"} <= set(head["fixed"]["versions"])
    files.open_run(tmp_path, head, resume=False)
    head["fixed"]["versions"]["pillow"] = "1.0"
    with pytest.raises(ValueError, match=r"versions\.pillow: '[\d.]+' then, '1\.0' now"):
        files.check_run(tmp_path, head)


@needs_weights
def test_the_same_model_is_the_same(tmp_path):
    """Read again, used, and moved to another folder."""
    source = loaded()
    before = written(source)["fixed"]
    evaluate(tmp_path / "run", LabBenchmark(1, 0), source=source)
    source.processor.tokenizer(["a", "a b"], padding=True, truncation=True, max_length=2)
    assert written(source)["fixed"] == before
    assert written(loaded())["fixed"] == before
    source.model.save_pretrained(tmp_path / "saved")
    source.processor.save_pretrained(tmp_path / "saved")
    moved = Source(str(tmp_path / "saved"))
    after = written(moved)["fixed"]
    assert after["weights"] == before["weights"]
    assert str(tmp_path) not in json.dumps({**after, "model": ""})


# Numbers


@needs_weights
@pytest.mark.parametrize("decoders", [(), ("vdd",), ("sample", "beam"), ("posthoc",)])
def test_broken_weights_end_a_run_without_an_answer(tmp_path, decoders):
    source = loaded()
    source.model.get_output_embeddings().weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match=r"^greedy, batch 0 of presence: .*not finite"):
        evaluate(tmp_path / "run", LabBenchmark(2, 0), decoders, source=source)
    assert not (tmp_path / "run" / "answers.jsonl").exists()


@needs_weights
@pytest.mark.parametrize("label", ["greedy", "beam", "vdd+sample"])
def test_logits_that_break_later_end_a_run_and_what_was_said_is_kept(tmp_path, label):
    """For each setup: its logits break in the second batch, and no line of it is written."""
    source, answer = loaded(), ModelRunner.answer
    head = source.model.get_output_embeddings()
    kept = head.weight.data.clone()

    class Breaking(ModelRunner):
        def answer(self, setup, prepared, inputs):
            if setup.label == label and prepared.batch.index == 1:
                head.weight.data[5] = math.nan
            return answer(self, setup, prepared, inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "ModelRunner", Breaking)
        names = () if label == "greedy" else (label,)
        with pytest.raises(ValueError) as refused:
            evaluate(tmp_path / "run", LabBenchmark(1, 0), names, source=source)
    assert str(refused.value).startswith(f"{label}, batch 1 of presence: the model's logits")
    lines = [json.loads(line) for line in (tmp_path / "run" / "answers.jsonl").open()]
    assert {line["batch"] for line in lines if line["decoder"] == label} == {0}
    head.weight.data.copy_(kept)
    assert evaluate(tmp_path / "run", LabBenchmark(1, 0), names, source=source, resume=True)


@needs_weights
def test_a_banned_word_is_no_infinite_number_in_a_file():
    source = Source()
    model_runner = ModelRunner(source.model, source.processor, 1.0, {})
    logits = torch.zeros(2, source.model.config.text_config.vocab_size)
    yes, no = model_runner.yes_no
    logits[0, yes], logits[1, no] = 2.0, -math.inf
    assert model_runner.first_logits(logits) == [(2.0, 0.0, 0.0), None]


def test_json_by_hand():
    value = {"a": [math.nan, 1.5, (math.inf,)], 2: -math.inf, "b": {"c": None, "d": "NaN"}}
    assert finite(value) == {"a": [None, 1.5, [None]], 2: None, "b": {"c": None, "d": "NaN"}}
    assert json.loads(json_text(value))["a"] == [None, 1.5, [None]]
    with pytest.raises(ValueError):
        an_answer(logits=(1.0, math.nan, 0.0)).line()


def test_nan_is_no_answer_in_a_file(tmp_path):
    line = an_answer().line()
    for name in ("NaN", "Infinity", "-Infinity"):
        (tmp_path / "answers.jsonl").write_text(line.replace('"ms": 1.5', f'"ms": {name}'))
        with pytest.raises(ValueError, match=f"line 1 is no answer: {name} is no number of JSON"):
            files.read(tmp_path / "answers.jsonl")


def test_all_json_that_is_written_is_json():
    """No call that would write NaN, in the library, the demo and the benchmarks."""
    root = HERE.parent
    lax = []
    for path in (*root.glob("*.py"), *root.glob("*/*.py"), *root.glob("decoders/*/*.py")):
        if path.parent.name in ("tests", "build"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            if not isinstance(called, ast.Attribute) or called.attr not in ("dump", "dumps"):
                continue
            if not isinstance(called.value, ast.Name) or called.value.id != "json":
                continue
            given = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            if given.get("allow_nan") is not False and path.name != "identity.py":
                lax.append(f"{path.relative_to(root)}:{node.lineno}")
    assert lax == []


# Files


def test_no_name_leads_out_of_the_folder(tmp_path):
    folder, outside = tmp_path / "images", tmp_path / "outside"
    (folder / "inner").mkdir(parents=True)
    outside.mkdir()
    image = (IMAGES / "corner.png").read_bytes()
    for path in (folder / "a.png", folder / "inner" / "b.png", outside / "secret.png"):
        path.write_bytes(image)
    (folder / "link.png").symlink_to(outside / "secret.png")
    (folder / "way").symlink_to(outside)
    (folder / "ring.png").symlink_to(folder / "ring.png")
    (folder / "within.png").symlink_to(folder / "inner" / "b.png")
    (tmp_path / "alias").symlink_to(folder)
    for root in (folder, tmp_path / "alias"):
        for name in ("a.png", "inner/b.png", "inner/../a.png", "./a.png", "within.png"):
            check_images(root, [name])
            assert open_inside(root, name).size
        names = ["../outside/secret.png", "inner/../../outside/secret.png", "link.png"]
        names += ["way/secret.png", str(outside / "secret.png"), "/etc/hostname"]
        for name in names:
            with pytest.raises(ValueError, match="outside of"):
                check_images(root, ["a.png", name])
            with pytest.raises(ValueError, match="outside of"):
                open_inside(root, name)
        for name in ("ring.png", "none.png", "a\0.png", "x" * 5000):
            with pytest.raises(ValueError):
                check_images(root, [name])
    asked = tmp_path / "coco_pope_random.json"
    row = {"question_id": 1, "image": "link.png", "text": "Is it?", "label": "yes"}
    asked.write_text(json.dumps([row]))
    with pytest.raises(ValueError, match=r"1 of 1 images are outside of .*: link\.png"):
        Pope(asked, folder)
    row["image"] = str(folder / "a.png")  # an absolute path, but no way out
    asked.write_text(json.dumps([row]))
    assert Pope(asked, folder).items


DEEP = "[" * 100_000


@pytest.mark.parametrize(("reader", "rows"), PUBLISHED.values(), ids=PUBLISHED)
def test_every_reader_refuses_what_no_text_holds(tmp_path, reader, rows):
    path = tmp_path / "rows.json"
    bad = {
        DEEP: "rows.json",
        '{"id": ' + DEEP: "rows.json",
        json.dumps(rows[0]) + ("\n" + '{"id": ' + DEEP) * 2: "rows.json, line 2",
        '[{"id": ' + "9" * 5000 + "}]": "rows.json",
        json.dumps([{**rows[0], "further": "half \ud83d of it"}]): "rows.json.*half a character",
        json.dumps({**rows[0], "further\udc00": 1}): "rows.json.*half a character",
    }
    for text, message in bad.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            reader(path)
    path.write_text(json.dumps([{**row, "further": "\U0001f600"} for row in rows]))
    assert "\\ud83d\\ude00" in path.read_text()  # a whole one, in two halves
    assert len(reader(path)) == 2


@pytest.mark.parametrize("text", ["{}", "[]", "7", '{"fixed": 3}', "", "{", DEEP, '"\xff"'])
def test_another_run_json_is_refused(tmp_path, text):
    (tmp_path / "run.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"run\.json is not what a run has written .*--out"):
        files.open_run(tmp_path, {"fixed": {}}, resume=True)


def test_a_run_json_without_its_machine_is_refused(tmp_path):
    (tmp_path / "run.json").write_text('{"fixed": {"seed": 1}}')
    with pytest.raises(ValueError, match="machine: now, not then"):
        files.open_run(tmp_path, {"fixed": {"seed": 1}, "machine": {}}, resume=True)


def test_a_deep_line_among_the_answers_is_named(tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"task": ' + DEEP + "\n")
    with pytest.raises(ValueError, match="line 1 is no answer"):
        files.read(tmp_path / "answers.jsonl")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("MPS backend out of memory"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_memory_that_is_out_is_a_sentence(error):
    with pytest.raises(OSError, match=r"out of memory with 64 .*--resume.*--batch-size"):  # noqa: SIM117
        with explained(64):
            raise error


def test_other_errors_stay_what_they_are():
    for error in (RuntimeError("shapes differ"), OSError(2, "No such file"), ZeroDivisionError()):
        with pytest.raises(type(error)) as found, explained(1):
            raise error
        assert found.value is error


class Killing(LabBenchmark):
    """A scene whose drawing ends the process that draws, as a system does that is out of memory."""

    def load_image(self, item):
        if item.image == "5":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load_image(item)


@needs_weights
def test_a_lost_process_is_a_sentence(tmp_path):
    run = Run(batch_size=2)
    with pytest.raises(OSError, match=r"prepares images has ended.*--resume"):
        evaluate(tmp_path / "run", Killing(6, 0), (), run)
    assert evaluate(tmp_path / "run", LabBenchmark(6, 0), (), run, resume=True)


# One bad image, one bad line


class Odd(LabBenchmark):
    """A question that the processor does not take, and an image that makes a reader stumble."""

    def __init__(self, *args):
        super().__init__(*args)
        first, *others = self.items
        self.odd = Item("presence", "odd", "Is it odd?", "0", "0", "yes", "present")
        self.stumbles = Item("presence", "stumbles", "Is it?", "none", "0", "yes", "present")
        self.items = [first, self.odd, *others, self.stumbles]

    def load_image(self, item):
        if item.id == "stumbles":
            raise SyntaxError("a chunk\nis broken")
        return super().load_image(item)


def encode(preparation, images, texts, own=Preparation.encode):
    if "Is it odd?" in texts:
        raise TypeError("no such\nwords")
    return own(preparation, images, texts)


@needs_weights
@pytest.mark.parametrize("size", [1, 4])
def test_one_bad_item_is_a_row_and_the_run_goes_on(tmp_path, size):
    out, run = tmp_path / "run", Run(batch_size=size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Preparation, "encode", encode)
        found = evaluate(out, Odd(2, 0), ("vdd",), run)
        answers = files.read(out / "answers.jsonl")
    errors = {key[2]: answer.error for key, answer in answers.items() if answer.error}
    assert errors == {"odd": "no such words", "stumbles": "a chunk is broken"}
    assert len(answers) == 2 * len(Odd(2, 0).items)
    assert found["tasks"]["presence"]["errors"] == 2
    assert found["tasks"]["caption"]["errors"] == 0


@needs_weights
def test_a_fault_of_all_is_none_of_theirs():
    """Where the processor takes no question at all, rows would hide the reason."""
    benchmark = LabBenchmark(2, 0)
    items = tuple(item for item in benchmark.items if item.task == "presence")
    batch = Batch(benchmark.tasks[0], 0, 0, 0, items)
    preparation = Preparation(benchmark, None)
    with pytest.raises(ValueError, match="the processor cannot prepare these questions"):
        preparation(batch)


# The command line


def invoke(*arguments):
    return CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "200"})


@needs_weights
@pytest.mark.parametrize(
    "arguments",
    [
        ("describe", str(IMAGES / "corner.png"), "What is \udcff?"),
        ("compare", str(IMAGES / "corner.png"), "What is \udcff?"),
        ("evaluate", "lab", "--decoder", "vd\udcff"),
        ("evaluate", "lab", "--model", "\udcff"),
        ("evaluate", "lab", "--resume", "--out", "runs/\udcff"),
        ("describe", str(IMAGES / "corner.png"), "--template", "x=" + DEEP),
    ],
)
def test_what_is_no_text_on_the_command_line_is_one_line(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_a_clock_says_is_left_out_alike():
    assert set(MEASURED) == set(files.MEASURED)


# Kills at random moments


@needs_weights
def test_kills_at_random_moments_change_nothing(monkeypatch):
    """The short form; `python benchmarks/attack_runs.py` kills a hundred times."""
    monkeypatch.syspath_prepend(HERE.parent / "benchmarks")
    import attack_runs

    found = attack_runs.attack(short=True)
    assert found["passed"], found
    assert sum(found["kills"].values()) == 3


# Signals

COMMANDS = {
    "evaluate": (
        "sightline.evaluation",
        "lab",
        "--scenes",
        "400",
        "--no-controls",
        "--threads",
        "1",
    ),
    "reproduce": ("sightline.evaluation.reproduce",),
}
"""Runs that take minutes."""


def heed_signals():
    """As in a terminal: what a shell starts in the background ignores Ctrl+C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@needs_weights
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_a_signal_ends_says_how_to_go_on(name, number, tmp_path):
    """SIGTERM as Ctrl+C: one sentence, the shell's exit status, whole lines, no process left."""
    module, *options = COMMANDS[name]
    out = tmp_path / "out"
    if name == "reproduce":
        laid_out = lay_out(tmp_path / "coco", scenes=60)
        options = ["--model", CHECKPOINT, "--coco", laid_out.coco, "--pope", laid_out.pope]
        options += ["--dtype", "float32", "--decoders", "vdd", "--benchmarks", "pope"]
    process = subprocess.Popen(
        [sys.executable, "-m", module, *map(str, options), "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=heed_signals,
    )
    until = time.monotonic() + 10 * SOON
    while not any(path.stat().st_size for path in out.rglob("answers.jsonl")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    children = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    process.send_signal(number)
    said = process.communicate(timeout=2 * SOON)[1]
    assert process.returncode == 128 + number
    assert "stopped; " in said and "continue" in said and "Traceback" not in said
    assert gone(children)
    for path in out.rglob("answers.jsonl"):
        assert all(json.loads(line) for line in path.read_text().splitlines())
