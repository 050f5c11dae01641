"""Benchmarks of speed: what is timed, how rows are compared, and which targets a run decides."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from PIL import Image

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import decoding
import report
import rows
import rules
import scale
import steps
import subjects
import targets
import timing

KNOWN = {*rows.ENTRIES, "vdd-in-turn", "vcd-in-turn", "mitigv"}
LLAVA_PROMPT = 1 + 35 + 576 + 23 + 2  # start, words before, image, question, words after
QWEN_PROMPT = 1 + 35 + 1 + 391 + 1 + 23 + 2  # and a mark on both sides of the image
MACHINE = {"device": "a processor", "copy_gb_per_s": 1000.0}


@pytest.fixture(autouse=True)
def known_bandwidth(monkeypatch):
    """1 GB/s, and no large copies."""
    for module in (decoding, scale, rules):
        monkeypatch.setattr(module, "copy_bandwidth", lambda device: 1e9)


@pytest.fixture(scope="module", params=["0.25b", "qwen2.5-vl-7b"])
def tiny(request):
    """A tiny model that says different things of different prompts, and two prompts."""
    model, processor = subjects.load(request.param, "fp32", "cpu", tiny=True)
    for weights in model.parameters():
        weights.data *= 3
    return subjects.ask(request.param, model, processor, batch=2)


# What is measured


@pytest.mark.parametrize(
    ("name", "prompt", "image"),
    [("0.25b", LLAVA_PROMPT, 576), ("qwen2.5-vl-7b", QWEN_PROMPT, 391), ("lab", 71, 64)],
)
def test_prompts(name, prompt, image):
    model, processor = subjects.load(name, "fp32", "cpu", tiny=True)
    subject = subjects.ask(name, model, processor, batch=2)
    assert (subject.batch, subject.prompt, subject.image_tokens) == (2, prompt, image)
    first, second = subject.inputs["input_ids"]
    assert torch.equal(first, second)
    one, other = subject.inputs["pixel_values"].chunk(2)
    assert not torch.equal(one, other)
    more = subjects.ask(name, model, processor, images=3)
    assert more.image_tokens == 3 * image


def llama_parameters(text):
    attention = 2 * text.hidden**2 * (1 + text.kv_heads / text.heads)
    layer = attention + 3 * text.hidden * text.intermediate + 2 * text.hidden
    return 2 * text.vocabulary * text.hidden + text.layers * layer + text.hidden


@pytest.mark.parametrize("name", subjects.SHAPES)
def test_shapes(name):
    shape = subjects.SHAPES[name]
    model = shape.model(torch.bfloat16, "meta")
    subject = subjects.Subject(model, None, "", (), {})
    text, size = shape.text, shape.text.hidden // shape.text.heads
    parameters = llama_parameters(text)
    if name.startswith("qwen"):  # queries, keys and values have a bias
        parameters += text.layers * (text.hidden + 2 * text.kv_heads * size)
    embeddings = text.vocabulary * text.hidden
    assert subject.weight_bytes == 2 * (parameters - embeddings)
    assert subject.head_bytes == 2 * embeddings
    assert subject.key_bytes == 2 * 2 * text.layers * text.kv_heads * size


def test_published_sizes():
    """The number of parameters that Qwen2.5-VL-7B-Instruct is published with."""
    model = subjects.SHAPES["qwen2.5-vl-7b"].model(torch.bfloat16, "meta")
    assert subjects.Subject(model, None, "", (), {}).parameters == 8_292_166_656


def test_tiny_shapes_keep_what_matters():
    """Grouped heads stay grouped, and images and vocabulary stay as they are."""
    qwen, tiny = subjects.SHAPES["qwen2.5-vl-7b"], subjects.SHAPES["qwen2.5-vl-7b"].tiny()
    assert tiny.text.heads // tiny.text.kv_heads == qwen.text.heads // qwen.text.kv_heads == 7
    assert replace(tiny.text, vocabulary=0) != replace(qwen.text, vocabulary=0)
    assert tiny.text.vocabulary == qwen.text.vocabulary == 152064


def test_tied_embeddings_are_read():
    """A head that is the embedding matrix is read whole at every token."""
    model, _ = subjects.load("0.25b", "fp32", "cpu", tiny=True)
    subject = subjects.Subject(model, None, "", (), {})
    untied = subject.weight_bytes
    model.lm_head.weight = model.get_input_embeddings().weight
    assert subject.weight_bytes == untied


def test_in_turn_answers_as_vdd_does(tiny):
    """Two forwards in turn do the same work: the answer is the same, token for token."""
    found, _ = rows.setups(tiny, ["greedy", "vdd"], ["dynamic"], "cpu")
    with torch.no_grad():
        said = {row.key: row.run(8)[:, -8:].tolist() for row in found}
    assert said["vdd-in-turn"] == said["vdd"] != said["greedy"]
    assert said["vdd"][0] != said["vdd"][1]


def test_every_row_runs_to_its_length(tiny):
    found, notes = rows.setups(tiny, list(rows.ENTRIES), ["dynamic", "static"], "cpu")
    assert notes == [
        "mitigv's VCD is left out: ValueError: it answers one prompt at a time, and a batch has 2"
    ]
    assert {row.key for row in found} == KNOWN - {"mitigv"}
    assert [row.key for row in found if row.cache == "static"] == ["greedy", "vdd", "vcd"]
    for row in found:
        with torch.no_grad():
            said = row.run(3)
        assert said.shape[0] == 2 and said.shape[1] in (3, tiny.prompt + 3), row.key
    amateurs = {row.key: row.amateurs for row in found}
    assert (amateurs["greedy"], amateurs["vdd"], amateurs["vdd-both"]) == (0, 1, 2)
    assert (amateurs["pai-alone"], amateurs["pai"], amateurs["vdd-in-turn"]) == (0, 1, 1)
    assert amateurs["beam"] is None and amateurs["vdd-gated"] is None


@pytest.mark.parametrize(
    ("cache", "implementation", "compiles"),
    [("dynamic", None, False), ("static", "static", False), ("compiled", "static", True)],
)
def test_caches(cache, implementation, compiles):
    asked = []
    model = SimpleNamespace(
        generate=lambda **keywords: asked.append(keywords), device=torch.device("cuda")
    )
    subject = subjects.Subject(model, None, "", (("an image",), ("another",)), {"input_ids": 1})
    looking = SimpleNamespace(needs_images=True)
    rows.answering(subject, looking, cache, num_beams=3)(5)
    (keywords,) = asked
    assert keywords.get("cache_implementation") == implementation
    assert keywords["disable_compile"] is not compiles
    assert (keywords["input_ids"], keywords["max_new_tokens"], keywords["num_beams"]) == (1, 5, 3)
    assert keywords["images"] == ["an image", "another"]
    assert keywords["custom_generate"] is looking


def test_gate_opens_at_every_nth_token():
    gate = rows.EveryNth(3)
    logits = torch.zeros(2, 5)
    opened = [gate.opens(logits, None).tolist() for _ in range(6)]
    assert opened == [[n % 3 == 0] * 2 for n in range(1, 7)]


def test_mitigv_is_left_out_where_missing(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "mitigv", None)
    alone = subjects.ask("0.25b", tiny.model, tiny.processor)
    found, (note,) = rows.setups(alone, ["greedy", "vcd"], ["dynamic"], "cpu")
    assert "mitigv" not in {row.key for row in found}
    assert note.startswith("mitigv's VCD is left out") and "pip install mitigv" in note


def test_mitigv_where_installed(monkeypatch):
    asked = []

    def load_mitigator(name, model, processor):
        def generate(image, question, max_new_tokens):
            asked.append((image.size, question, max_new_tokens))

        asked.append((name, processor.tokenizer.eos_token))
        return SimpleNamespace(generate=generate)

    package = ModuleType("mitigv")
    package.load_mitigator = load_mitigator
    monkeypatch.setitem(sys.modules, "mitigv", package)
    model, processor = subjects.load("lab", "fp32", "cpu")
    assert processor.tokenizer.eos_token is not None  # ours runs on past it, so theirs may not end
    subject = subjects.ask("lab", model, processor)
    found, notes = rows.setups(subject, ["greedy", "vcd"], ["dynamic"], "cpu")
    assert (found[-1].key, notes) == ("mitigv", [])
    found[-1].run(7)
    ((image,),) = subject.images
    assert asked == [
        ("vcd", None),
        (image.size, subject.question, 1),
        (image.size, subject.question, 7),
    ]


# How it is timed


def test_spread_and_ratios():
    assert timing.spread([3.0, 1.0, 8.0]) == timing.Spread(median=3.0, low=1.0, high=8.0)
    assert timing.spread([1.0, 2.0]).median == 1.5
    assert timing.ratios([3.0, 8.0], [2.0, 4.0]) == [1.5, 2.0]
    assert timing.ratios([3.0], [2.0, 4.0]) == [1.5]  # a run whose time was over has fewer rounds


def test_rounds_run_all_rows_in_turn(monkeypatch):
    """Whole answers of 5 tokens less their first, over the 4 that are left."""
    called = []

    def row(key):
        return timing.Row(key, key, "dynamic", lambda n: called.append((key, n)))

    spent = {("a", 1): 10.0, ("a", 5): 30.0, ("b", 1): 20.0, ("b", 5): 80.0}

    def timed(run, tokens, device):
        run(tokens)
        return spent[called[-1]]

    monkeypatch.setattr(timing, "timed", timed)
    monkeypatch.setattr(timing, "allocated_peak", lambda run, tokens, device: 7.0 * tokens)
    found = [row("a"), row("b")]
    timing.measure(found, tokens=5, rounds=2, device="cpu")
    assert [(r.first, r.per_token, r.peak) for r in found] == [
        ([10.0, 10.0], [5.0, 5.0], 35.0),
        ([20.0, 20.0], [15.0, 15.0], 35.0),
    ]
    one_round = [("a", 1), ("a", 5), ("b", 1), ("b", 5)]
    assert called == [("a", 2), ("b", 2), *one_round, *one_round]


def test_compiled_rows_are_warmed_up_at_full_length():
    called = []

    def row(key, cache):
        return timing.Row(key, key, cache, lambda n: called.append((key, n)))

    timing.warm_up([row("a", "dynamic"), row("b", "compiled"), row("c", "static")], 9, "cpu")
    twice = [("b", 9), ("b", 9)]
    assert called == [("a", 2), *twice, ("c", 2), *twice]


def test_peak_counts_tensors():
    """1 MB, then 2 more; the first goes before half a MB comes: 3 MB at the peak."""

    def run(tokens):
        first = torch.empty(1_000_000, dtype=torch.uint8)
        second = torch.empty(2_000_000, dtype=torch.uint8)
        del first
        return second, torch.empty(500_000, dtype=torch.uint8)

    assert timing.allocated_peak(run, 1, "cpu") == 3_000_000
    assert timing.peak_of([4, 8, -4, 2]) == 12
    assert timing.peak_of([-4, 2]) == 0


# How it is reported


def made_row(key, first, per_token, peak=0.0, amateurs=0, cache="dynamic"):
    name = rows.ENTRIES[key].name if key in rows.ENTRIES else key
    return timing.Row(key, name, cache, None, amateurs, first, per_token, 0.0, peak)


def made_run(found, **changes):
    """A run of a model of 1,000 bytes; a branch's cache of 8 + 2 tokens has 100."""
    run = {
        "model": "7b",
        "dtype": "bf16",
        "batch": 1,
        "tokens": 2,
        "prompt": 8,
        "model_bytes": 1000,
        "head_bytes": 2e9,
        "key_bytes": 10,
        "notes": [],
        **changes,
    }
    greedy = {row.cache: row for row in found if row.key == "greedy"}
    run["rows"] = [report.describe(row, greedy[row.cache], run) for row in found]
    return run


def result_of(*runs, **machine):
    return {"machine": {**MACHINE, **machine}, "command": "python x", "runs": list(runs)}


GREEDY = ([10.0, 20.0, 30.0], [10.0, 20.0, 40.0])


def test_described_row():
    greedy = made_row("greedy", *GREEDY, peak=100.0)
    both = made_row("vdd-both", [11.0, 24.0, 30.0], [15.0, 20.0, 44.0], peak=500.0, amateurs=2)
    _, row = made_run([greedy, both])["rows"]
    assert row["first_ms"] == {"median": 24.0, "low": 11.0, "high": 30.0}
    assert row["token_ms"] == {"median": 20.0, "low": 15.0, "high": 44.0}
    assert row["first_ratio"] == pytest.approx({"median": 1.1, "low": 1.0, "high": 1.2})
    assert row["token_ratio"] == pytest.approx({"median": 1.1, "low": 1.0, "high": 1.5})
    assert row["peak_ratio"] == pytest.approx(1500 / 1100)
    assert row["beyond"] == 2.0  # 400 bytes above greedy's, of two caches of 100
    twice = made_run([greedy, both], batch=2)["rows"][1]
    assert twice["beyond"] == 1.0
    assert made_run([greedy])["rows"][0]["beyond"] is None


def test_ratios_are_to_the_same_cache():
    found = [
        made_row("greedy", [10.0], [10.0]),
        made_row("greedy", [20.0], [40.0], cache="static"),
        made_row("vdd", [30.0], [60.0], amateurs=1, cache="static"),
    ]
    row = made_run(found)["rows"][2]
    assert (row["first_ratio"]["median"], row["token_ratio"]["median"]) == (1.5, 1.5)


def test_markdown():
    greedy = made_row("greedy", *GREEDY, peak=100.0)
    vdd = made_row("vdd", [11.0, 24.0, 30.0], [15.0, 20.0, 44.0], peak=150.0, amateurs=1)
    text = report.markdown(result_of({**made_run([greedy, vdd]), "notes": ["Said before."]}))
    assert text.startswith("`python x`; device a processor, copy_gb_per_s 1000.0\n")
    assert "### 7b, bf16, batch 1, 2 tokens\n\nSaid before.\n" in text
    assert (
        "| VDD none | dynamic | 24 (11 to 30) | 20.00 (15.00 to 44.00) "
        "| 1.10x (1.00 to 1.20) | 1.10x (1.00 to 1.50) | 0 | 1.05x | 0.50 |" in text
    )
    assert "None is set for these runs." in text  # of a GPU's model, measured on a processor


def test_report_of_several_files(tmp_path, monkeypatch, capsys):
    files = []
    for number, tokens in enumerate((64, 512)):
        run = made_run([made_row("greedy", *GREEDY)], tokens=tokens)
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(json.dumps(result_of(run)))
    out, plot = tmp_path / "both.md", tmp_path / "both.png"
    arguments = [*files, "--markdown", out, "--plot", plot]
    monkeypatch.setattr(sys, "argv", ["report.py", *map(str, arguments)])
    report.main()
    assert "batch 1, 64 tokens" in out.read_text() and "batch 1, 512 tokens" in out.read_text()
    assert out.read_text() in capsys.readouterr().out
    assert Image.open(plot).width == 2 * 5 * 110


def test_plot_draws_medians_and_targets():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    greedy = made_row("greedy", *GREEDY)
    vdd = made_row("vdd", GREEDY[0], [11.0, 24.0, 40.0], amateurs=1)
    run = made_run([greedy, vdd])
    limits = report.limits(result_of(run, cuda="13.0"), run)
    assert limits == {**limits, ("vdd", "dynamic"): 1.08, ("vcd", "compiled"): 1.10}
    figure, panel = pyplot.subplots()
    report.draw(panel, run, limits)
    assert [bar.get_width() for bar in panel.patches][:2] == [1.0, pytest.approx(1.1)]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["greedy", "VDD none"]
    (reach, marked) = panel.collections[-2:]
    assert reach.get_segments()[0][:, 0].tolist() == pytest.approx([1.0, 1.2])
    assert marked.get_segments()[0][:, 0].tolist() == [1.08, 1.08]
    pyplot.close(figure)


# Which targets are reached

PER_TOKEN = {
    **dict.fromkeys(("vdd", "damro", "icd", "m3id"), 1.08),
    **dict.fromkeys(("vcd", "agla", "sid", "pai"), 1.10),
    **dict.fromkeys(("pai-alone", "vaf"), 1.05),
    # 2 GB of head at 1,000 GB/s are 2 ms, a tenth of greedy's 20 ms.
    **dict.fromkeys(("deco", "dola", "vasparse", "vasparse-sink"), 1.15),
}


def line_of(result, row, against="greedy", cache="dynamic", measure="per_token"):
    (line,) = [
        line
        for line in targets.verdicts(result)
        if (line["row"], line["against"], line["cache"], line["measure"])
        == (row, against, cache, measure)
    ]
    return line


@pytest.mark.parametrize(("key", "limit"), PER_TOKEN.items())
def test_gpu_targets_per_token(key, limit):
    def verdict(ratio):
        times = [20.0 * ratio, 20.0 * ratio, 99.0]
        found = [made_row("greedy", [1.0] * 3, [20.0] * 3), made_row(key, [1.0] * 3, times)]
        return line_of(result_of(made_run(found), cuda="13.0"), key)

    line = verdict(limit - 1e-6)
    assert line["limit"] == pytest.approx(limit) and line["verdict"] == "reached"
    assert (line["low"], line["high"]) == (pytest.approx(limit, abs=1e-5), 99 / 20)
    assert verdict(limit + 0.25)["verdict"] == "missed by 0.25"


def test_compiled_targets():
    """Compiled VDD against eager greedy (2x) and against two eager forwards in turn (4x)."""
    found = [
        made_row("greedy", [1.0], [30.0]),
        made_row("greedy", [1.0], [9.0], cache="compiled"),
        made_row("vdd", [1.0], [10.0], amateurs=1, cache="compiled"),
        made_row("vdd-in-turn", [1.0], [39.0], amateurs=1),
    ]
    result = result_of(made_run(found), cuda="13.0")
    eager = line_of(result, "vdd", cache="compiled", measure="speedup")
    turns = line_of(result, "vdd", "vdd-in-turn", "compiled", "speedup")
    assert (eager["measured"], eager["verdict"]) == (3.0, "reached")
    assert (turns["measured"], turns["verdict"]) == (3.9, "missed by 0.10")
    assert line_of(result, "vdd", cache="compiled")["measured"] == pytest.approx(10 / 9)
    assert line_of(result, "vdd")["verdict"] == "not measured"


def test_memory_and_batch_targets():
    found = [
        made_row("greedy", [1.0], [10.0], peak=100.0),
        made_row("vdd", [1.0], [15.0], peak=2000.0, amateurs=1),
    ]
    result = result_of(made_run(found, batch=16), cuda="13.0")
    # 1,900 bytes of 16 caches of 100 each.
    memory = line_of(result, "vdd", "amateurs", measure="memory")
    assert memory["measured"] == 1900 / 1600 and memory["verdict"] == "missed by 0.09"
    per_token = line_of(result, "vdd")
    assert (per_token["limit"], per_token["verdict"]) == (1.6, "reached")


def cpu_run(dtype, **per_token):
    base = made_row("greedy", [10.0], [10.0])
    others = [
        made_row(key.replace("_", "-"), [11.9], [ms], amateurs=1) for key, ms in per_token.items()
    ]
    return made_run([base, *others], model="0.25b", dtype=dtype)


def test_cpu_targets():
    times = {"vdd": 13.4, "vcd": 13.6, "vdd_in_turn": 19.0, "vcd_in_turn": 21.0, "mitigv": 13.5}
    result = result_of(cpu_run("bf16", **times))
    assert line_of(result, "vdd")["verdict"] == "reached"  # 1.34 of 1.35
    assert line_of(result, "vcd")["verdict"] == "missed by 0.01"
    assert line_of(result, "vdd", measure="first")["verdict"] == "reached"  # 1.19 of 1.2
    found = {
        (line["row"], line["against"], line["limit"]): line["verdict"]
        for line in targets.verdicts(result)
        if line["measure"] == "speedup"
    }
    assert found == {
        ("vdd", "vdd-in-turn", 1.0): "reached",
        ("vcd", "vcd-in-turn", 1.0): "reached",
        ("vcd", "mitigv", 1.0): "missed by 0.01",  # 13.5 / 13.6
        ("vdd", "vdd-in-turn", 1.5): "missed by 0.08",  # 19 / 13.4 = 1.418
        ("vcd", "vcd-in-turn", 1.5): "reached",
        ("vcd", "mitigv", 1.5): "missed by 0.51",
        ("vdd-sixth", "vdd", 1.15): "not measured",
    }


def test_cpu_targets_in_fp32():
    """No limit per token, and as fast as the others instead of faster."""
    result = result_of(cpu_run("fp32", vdd=20.0, vdd_in_turn=19.0))
    lines = targets.verdicts(result)
    assert not [line for line in lines if line["measure"] == "per_token"]
    assert {line["limit"] for line in lines if line["measure"] == "speedup"} == {1.0, 1.15}
    assert line_of(result, "vdd", "vdd-in-turn", measure="speedup")["verdict"] == "missed by 0.05"


def test_targets_are_of_rows_that_exist():
    for target in targets.TARGETS:
        assert {*target.rows, target.against} <= KNOWN
        assert target.model in subjects.NAMES
    assert not targets.verdicts(result_of(made_run([made_row("greedy", *GREEDY)], model="lab")))


# Runs from end to end


def test_decoding(tmp_path, capsys):
    out, table, plot = (tmp_path / "new" / name for name in ("x.json", "x.md", "x.png"))
    arguments = "--device cpu --models 0.25b --tiny --dtypes fp32 --decoders vdd --rounds 2"
    arguments += f" --batch 1 2 --tokens 2 4 --views none --out {out}"
    decoding.main([*arguments.split(), "--markdown", str(table), "--plot", str(plot)])
    result = json.loads(out.read_text())
    assert [(run["batch"], run["tokens"]) for run in result["runs"]] == [
        (1, 2),
        (1, 4),
        (2, 2),
        (2, 4),
    ]
    for run in result["runs"]:
        assert (run["prompt"], run["image_tokens"]) == (LLAVA_PROMPT, 576)
        assert [(row["key"], row["cache"]) for row in run["rows"]] == [
            ("greedy", "dynamic"),
            ("vdd", "dynamic"),
            ("greedy", "static"),
            ("vdd", "static"),
            ("vdd-in-turn", "dynamic"),
        ]
        assert all(len(row["rounds"]["first"]) == 2 for row in run["rows"])
        assert all(row["peak_mb"] * 1e6 > run["model_bytes"] for row in run["rows"])
    assert result["targets"] == targets.verdicts(result)
    assert result["command"].startswith("python benchmarks/decoding.py --device cpu --models 0.25b")
    assert table.read_text() == report.markdown(result)
    assert table.read_text().count("\n### 0.25b, fp32, batch") == 4
    assert Image.open(plot).size[0] == 2 * 5 * 110
    assert "### Targets" in capsys.readouterr().out


def test_whole_answers(tmp_path):
    """The lab's own rows, and how often a gate could stay closed."""
    out = tmp_path / "x.json"
    arguments = "--device cpu --models lab --dtypes fp32 --rounds 1 --views only --answer 4"
    decoding.main([*arguments.split(), "--out", str(out)])
    (run,) = json.loads(out.read_text())["runs"]
    assert run["notes"][0].startswith("One token alone is plausible at ")
    assert {"VDGD", "CARVE", "MVP", "AGLA"} <= {row["decoder"] for row in run["views"]}
    assert "rows" not in run and "whole answers" in report.title(run)


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        (decoding, "--tokens 1", "--tokens must be 2 or more"),
        (decoding, "--rounds 0", "--rounds and --batch 1 or more"),
        (decoding, "--batch 4 0", "--rounds and --batch 1 or more"),
        (decoding, "--models 8b", "invalid choice: '8b'"),
        (decoding, "--decoders vcd nothing", "invalid choice: 'nothing'"),
        (decoding, "--device cpu --caches compiled", "generate compiles on CUDA alone"),
        (scale, "--answer 3", "--answer and --tokens must be 4 or more"),
        (scale, "--tokens 64 2", "--answer and --tokens must be 4 or more"),
        (scale, "--batch 0", "must be 1 or more"),
        (scale, "--branches 0", "must be 1 or more"),
        (scale, "--panels weights", "invalid choice: 'weights'"),
        (scale, "--device cpu --cache compiled", "generate compiles on CUDA alone"),
        (steps, "--steps 0", "--steps, --top and --batch must be 1 or more"),
        (steps, "--device cpu --cache compiled", "generate compiles on CUDA alone"),
        (steps, "--cache static --decoders vasparse", "take --cache dynamic"),
        (rules, "--rows 0", "--vocabulary, --rows and --rounds must be 1 or more"),
    ],
)
def test_arguments(module, arguments, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        module.parsed(arguments.split())
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_defaults_of_the_documented_commands():
    options = decoding.parsed(["--device", "cpu", "--models", "0.25b", "--rounds", "3"])
    assert (options.batch, options.tokens, options.dtypes) == ([1], [17], ["bf16", "fp32"])
    assert options.caches == ("dynamic", "static") and options.views == "too"
    chosen = decoding.parsed(["--device", "cpu", "--decoders", "vcd", "beam"])
    assert chosen.decoders == ["greedy", "beam", "vcd"]
    assert decoding.parsed(["--device", "cuda"]).caches == ("dynamic", "static", "compiled")


# Scale


def test_bound():
    """100 bytes of weights and 10 per token, at 1,000 bytes a second."""
    subject = SimpleNamespace(prompt=20, image_tokens=15, batch=2, weight_bytes=100, key_bytes=10)
    # 24 tokens in 2 rows; with an image-free branch 9 more.
    assert scale.GREEDY.bound(subject, 4, 1000.0) == 1000 * (100 + 2 * 24 * 10) / 1000
    assert scale.BLIND.bound(subject, 4, 1000.0) == 1000 * (100 + 2 * 33 * 10) / 1000


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_branches(count):
    found = scale.branching(count)
    others = [] if found.decoder is None else found.decoder.recipe().contrasts
    assert len(others) == len(set(others)) == found.blind == count - 1


def test_steps_of_an_answer():
    clock = scale.Clock()
    clock.times = [1.0, 1.5, 1.75, 2.75]
    assert clock.steps == [500.0, 250.0, 1000.0]
    found = [float(n) for n in range(2, 41)]  # the n-th token took n
    assert scale.at(found, 40, windowed=False) == 22.0  # the 4th to the 40th
    assert scale.at(found, 40, windowed=True) == 32.5  # the 25th to the 40th
    assert scale.at(found, 6, windowed=True) == 5.0  # the 4th to the 6th


def test_scale(tmp_path):
    out, plot = tmp_path / "new" / "s.json", tmp_path / "new" / "s.png"
    arguments = "--device cpu --tiny --dtype fp32 --tokens 4 6 --images 1 2 --batch 2"
    arguments += f" --branches 1 3 --answer 4 --rounds 2 --out {out} --plot {plot}"
    scale.main(arguments.split())
    points = json.loads(out.read_text())["points"]
    places = [(p["panel"], p["decoder"], p["x"]) for p in points]
    assert sorted(places) == sorted(
        [
            *[("tokens", name, x) for name in ("greedy", "VDD") for x in (4, 6)],
            *[("context", name, x) for name in ("greedy", "VDD", "PAI") for x in (576, 1152)],
            *[("batch", name, 2) for name in ("greedy", "VDD")],
            *[("branches", "VDD", x) for x in (1, 3)],
        ]
    )
    assert all(len(p["rounds"]) == 2 and p["ms"]["median"] > 0 for p in points)
    bounds = {place: p["bound_ms"] for place, p in zip(places, points, strict=True)}
    # At 1 GB/s: the second image's keys and values, 576 tokens of 4 layers of 16 in fp32.
    more = bounds["context", "greedy", 1152] - bounds["context", "greedy", 576]
    assert more == pytest.approx(576 * 2 * 4 * 16 * 4 / 1e6)
    assert Image.open(plot).size == (1100, 770)


def test_panels_are_chosen(tmp_path):
    out = tmp_path / "s.json"
    arguments = f"--device cpu --tiny --panels branches --branches 2 --rounds 1 --out {out}"
    scale.main([*arguments.split(), "--answer", "4"])
    assert {p["panel"] for p in json.loads(out.read_text())["points"]} == {"branches"}


# Steps


def test_operators():
    def event(name, place, host, device, count):
        return SimpleNamespace(
            key=name,
            device_type=place,
            self_cpu_time_total=host,
            self_device_time_total=device,
            count=count,
        )

    cpu, cuda = torch.autograd.DeviceType.CPU, torch.autograd.DeviceType.CUDA
    events = [
        event("aten::mm", cpu, 4000.0, 9000.0, 8),
        event("kernel", cuda, 0.0, 9000.0, 4),
    ]
    found = steps.operators(SimpleNamespace(key_averages=lambda: events), 4)
    assert found == [
        steps.Operator("kernel", "device", 2.25, 1.0),
        steps.Operator("aten::mm", "host", 1.0, 2.0),
    ]


def test_steps(tmp_path, capsys):
    out, table = tmp_path / "new" / "s.json", tmp_path / "new" / "s.md"
    arguments = "--device cpu --tiny --dtype fp32 --steps 3 --top 1000 --decoders vdd"
    steps.main([*arguments.split(), "--out", str(out), "--markdown", str(table)])
    result = json.loads(out.read_text())
    assert [row["key"] for row in result["rows"]] == ["greedy", "vdd"]
    for row in result["rows"]:
        calls = {operator["name"]: operator["calls"] for operator in row["operators"]}
        assert calls["aten::argmax"] == 1.0  # one token is chosen in each step
        assert calls["aten::_scaled_dot_product_flash_attention_for_cpu"] == 4.0  # layers
        assert row["waits"]["aten::_local_scalar_dense"] >= 1
        assert row["ms_per_token"] > 0 and row["device_ms"] == 0
        assert row["host_ms"] == pytest.approx(sum(o["ms"] for o in row["operators"]))
    assert table.read_text() in capsys.readouterr().out
    assert "| aten::argmax | host |" in table.read_text()


# Rules


def test_tokens_of_a_rule():
    """2 * expert - amateur over tokens within a tenth of the best: the third, not the fourth."""
    expert = torch.tensor([[0.0, 5.0, 4.0, 1.0]])
    amateur = torch.tensor([[0.0, 5.0, 0.0, -9.0]])
    chosen = rules.tokens(rules.RULES["Contrastive"], 2)
    assert chosen(torch.cat([expert, amateur])).tolist() == [2]
    assert rules.tokens(rules.RULES["greedy"], 1)(expert).tolist() == [1]


def test_rules(tmp_path, monkeypatch, capsys):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda f, **kwargs: compiled.append(f) or f)
    out = tmp_path / "new" / "r.json"
    arguments = f"--device cpu --vocabulary 50 --rows 2 --rounds 2 --out {out}"
    rules.main(arguments.split())
    found = json.loads(out.read_text())["rows"]
    assert len(compiled) == len(rules.RULES)
    assert [(row["rule"], row["how"]) for row in found] == [
        (name, how) for name in rules.RULES for how in ("eager", "compiled")
    ]
    floors = {row["rule"]: row["floor_us"] for row in found}
    # bf16 logits at 1 GB/s: 2 rows of 50, of two branches twice as many.
    assert floors["greedy"] == pytest.approx(0.2) and floors["Contrastive"] == pytest.approx(0.4)
    assert all(len(row["rounds"]) == 2 for row in found)
    assert "| Contrastive | 50 | 2 | eager |" in capsys.readouterr().out
