"""The command line, driven as a user would."""

import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lab_copies import copied, random_checkpoint, with_argument
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlamaConfig,
)
from transformers.utils import logging
from typer.testing import CliRunner

import sightline
from sightline import AGLA, CARVE, ICD, MVP, VAF, VCD, VDD, VDGD, VASparse, answer, cli, lab
from sightline.decoders import DECODERS
from sightline.demo import page
from sightline.docstrings import paper
from sightline.setting_text import presets, settable
from sightline.specs import parse_specs

SCRIPT = Path(sys.executable).with_name("sightline")
TABLE = str(lab.IMAGES / "table.png")
SHORT = ("--max-new-tokens", "8")
COMMANDS = {"describe", "compare", "demo", "evaluate", "export", "decoders"}


def run(*arguments, **environment):
    return CliRunner().invoke(cli.app, list(arguments), env={"COLUMNS": "100", **environment})


def refused(*arguments):
    """The one line that a user's mistake ends with."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A checkpoint of the lab's architecture that says something else of every prompt."""
    return random_checkpoint(tmp_path_factory.mktemp("untrained"))


@pytest.fixture(scope="module")
def answers(untrained):
    """`answers(decoder, **generate_kwargs)`: what the untrained says of the table, by `answer`."""
    model = AutoModelForImageTextToText.from_pretrained(untrained, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(untrained)

    def say(decoder=None, question="Describe the image.", **generate_kwargs):
        generate_kwargs = {"max_new_tokens": 8, **generate_kwargs}
        torch.manual_seed(generate_kwargs.pop("seed", 0))
        return answer(model, processor, TABLE, question, decoder, **generate_kwargs)

    return say


def letters(text):
    """A text without blanks and the signs that mark words."""
    return re.sub(r"[\s*\[\]]", "", text)


# describe


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
@pytest.mark.parametrize(
    ("arguments", "decoder"),
    [
        ((), None),
        (("--decoder", "vdd"), VDD()),
        (("--decoder", "VCD", "--set", "alpha=3", "--set", "noise_step=999"), VCD(3.0, 0.1, 999)),
        (("--decoder", "VASparse.paper", "--set", "alpha=3"), VASparse(3.0, sink=0.1)),
        (("--decoder", "vdd:alpha=2+vaf:enhance=1"), VDD(2.0) + VAF(enhance=1.0)),
    ],
)
def test_describe_prints_the_answer(untrained, answers, arguments, decoder, stream):
    result = run("describe", TABLE, "--model", untrained, *SHORT, stream, *arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == answers(decoder) != ""
    assert result.stderr == ""


def test_describe_asks_the_question_that_was_given(untrained, answers):
    result = run("describe", TABLE, "Is there a fork?", "--model", untrained, *SHORT)
    assert result.stdout.strip() == answers(question="Is there a fork?") != answers()


def test_processors_are_filled_in(untrained, answers):
    processor = AutoProcessor.from_pretrained(untrained)
    options = ("--decoder", "vdd", "--set", "variant=both", "--set", "alpha=2")
    result = run("describe", TABLE, "--model", untrained, *SHORT, *options)
    expected = answers(VDD(alpha=2.0, variant="both", processor=processor))
    assert result.stdout.strip() == expected


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
@pytest.mark.parametrize(
    ("arguments", "make"),
    [
        (("vdgd", "tokens=4", "request=What is it?"), VDGD),
        (("carve", "tokens=2", "suffix="), CARVE),
        (("carve.paper_best", "tokens=2", "layers=1+3"), CARVE.paper_best),
        (("agla", "alpha=3"), AGLA),
        (("mvp", "caption_tokens=2", "requests=What is it?+Where?", "weights=1+0.5"), MVP),
        (("icd", "alpha=3"), ICD),
    ],
)
def test_describe_asks_and_looks_again(untrained, answers, arguments, make, stream):
    name, *settings = arguments
    options = [part for setting in settings for part in ("--set", setting)]
    result = run(
        "describe", TABLE, "--model", untrained, *SHORT, stream, "--decoder", name, *options
    )
    assert result.exit_code == 0, result.output
    values = {
        "alpha": 3.0,
        "caption_tokens": 2,
        "layers": (1, 3),
        "request": "What is it?",
        "requests": ("What is it?", "Where?"),
        "suffix": "",
        "tokens": 4 if name == "vdgd" else 2,
        "weights": (1.0, 0.5),
    }
    chosen = {setting.partition("=")[0] for setting in settings}
    processor = AutoProcessor.from_pretrained(untrained)
    decoder = replace(make(processor=processor), **{key: values[key] for key in chosen})
    assert result.stdout.strip() == answers(decoder) != ""


def test_compare_shows_decoders_that_ask_and_look_again(untrained, answers):
    asking = "vdgd:layout=continue,request=What is it?,tokens=4"
    names = f"greedy,carve.paper_best:tokens=2,layers=1+3,{asking}"
    result = run("compare", TABLE, "--model", untrained, *SHORT, "--decoders", names)
    assert result.exit_code == 0, result.output
    processor = AutoProcessor.from_pretrained(untrained)
    carved = replace(CARVE.paper_best(processor=processor), tokens=2, layers=(1, 3))
    carve, vdgd = re.split(r"\ncarve\.|\nvdgd:", result.stdout)[1:]
    assert letters(answers(carved)) in letters(carve)
    words = dict(layout="continue", request="What is it?", tokens=4)
    assert letters(answers(VDGD(processor=processor, **words))) in letters(vdgd)


def test_sampling_follows_its_seed(untrained, answers):
    def sampled(*arguments):
        result = run("describe", TABLE, "--model", untrained, *SHORT, "--sample", *arguments)
        return result.stdout.strip()

    assert sampled("--seed", "1") == sampled("--seed", "1") == answers(do_sample=True, seed=1)
    assert sampled("--seed", "1") != sampled("--seed", "2")
    hot = answers(do_sample=True, temperature=5.0)
    assert sampled("--temperature", "5") == hot != sampled()


def test_dtype_is_the_weights(untrained):
    loaded = cli.load_model(untrained, "cpu", cli.Dtype.bfloat16)
    assert loaded.dtype == torch.bfloat16 and not loaded.training
    result = run("describe", TABLE, "--model", untrained, *SHORT, "--dtype", "bfloat16")
    assert result.exit_code == 0 and result.stdout.strip()


def test_an_empty_answer_is_said_to_be_empty(untrained, monkeypatch):
    monkeypatch.setattr("sightline.chat.reply", lambda *_, **__: "")
    result = run("describe", TABLE, "--model", untrained, "--no-stream")
    assert result.exit_code == 0 and result.stdout.strip() == ""
    assert "answer is empty" in result.stderr


def test_transformers_speaks_again_afterwards(untrained):
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    run("describe", TABLE, "--model", untrained, *SHORT)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (level, bars)


def test_the_script_answers_with_the_labs_model():
    model = AutoModelForImageTextToText.from_pretrained(lab.CHECKPOINT, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(lab.CHECKPOINT)
    expected = answer(model, processor, TABLE, "Describe the image.", VDD(), max_new_tokens=128)
    done = subprocess.run(
        [SCRIPT, "describe", TABLE, "--decoder", "vdd"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, expected, "")


# compare


def test_compare_shows_each_answer_with_its_times(untrained, answers):
    result = run("compare", TABLE, "--model", untrained, *SHORT, "--decoders", "greedy,vdd:alpha=2")
    assert result.exit_code == 0, result.output
    header, *blocks = result.stdout.strip().split("\n\n")
    assert header == f"In the image: {', '.join(sorted(lab.truth(TABLE)))}"
    labels = [block.split("  ")[0] for block in blocks[:2]]
    assert labels == ["greedy", "vdd:alpha=2"]
    for block, said in zip(blocks, (answers(), answers(VDD(alpha=2.0))), strict=False):
        assert "ms per token, first token after" in block.splitlines()[0]
        assert letters(said) in letters(block)
        missed = sorted(lab.truth(TABLE) - set(lab.mentioned(said)))
        assert f"missed: {', '.join(missed)}" in block
    assert "not in the image" in blocks[2] and "*word* not in the first answer" in blocks[2]


def test_compare_takes_sums_and_beams(untrained, answers):
    result = run("compare", TABLE, "--model", untrained, *SHORT, "--decoders", "vdd+vaf,vdd+beam")
    assert result.exit_code == 0, result.output
    first, beams = result.stdout.split("\nvdd+beam  ")
    assert "\nvdd+vaf  " in first and letters(answers(VDD() + VAF())) in letters(first)
    assert " in all" in beams.splitlines()[0]
    assert letters(answers(VDD(), num_beams=3)) in letters(beams)


def test_compare_by_default_is_greedy_vcd_vdd():
    result = run("compare", TABLE)
    assert result.exit_code == 0, result.output
    for name in ("greedy", "vcd", "vdd"):
        assert f"\n{name}  " in result.stdout
    sampled = run("compare", TABLE, "--sample", *SHORT).stdout
    assert "\nsample  " in sampled and "\ngreedy  " not in sampled


def test_compare_without_truth_marks_no_objects(untrained, tmp_path):
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (64, 48), "green").save(path)
    result = run("compare", str(path), "--model", untrained, *SHORT, "--decoders", "greedy,vdd")
    assert result.exit_code == 0
    assert "In the image" not in result.stdout and "missed" not in result.stdout


def test_questions_about_an_object_are_not_scored(untrained):
    options = ("--model", untrained, *SHORT, "--decoders", "greedy")
    result = run("compare", TABLE, "Is there a fork in the image?", *options)
    assert result.exit_code == 0 and "missed" not in result.stdout


def test_greedy_and_sample_mean_what_they_say(untrained, answers):
    options = ("--model", untrained, *SHORT, "--temperature", "5", "--seed", "3")
    result = run("compare", TABLE, *options, "--decoders", "greedy,sample")
    greedy, sampled = result.stdout.split("\nsample  ")
    assert letters(answers()) in letters(greedy)
    assert letters(answers(do_sample=True, temperature=5.0, seed=3)) in letters(sampled)


FIRST = "The image contains a fork, two traffic lights, a cup and a dog."
SECOND = "The image contains a fork, a clock and a dog."
TRUTH = frozenset({"fork", "dog", "bird"})


def test_marks_by_signs():
    assert str(cli.marked(FIRST, FIRST, TRUTH, signs=True)) == (
        "The image contains a fork, two [traffic lights], a [cup] and a dog."
    )
    assert str(cli.marked(SECOND, FIRST, TRUTH, signs=True)) == (
        "The image contains a fork, a *[clock]* and a dog."
    )
    assert str(cli.marked(SECOND, FIRST, None, signs=True)) == (
        "The image contains a fork, a *clock* and a dog."
    )


def test_marks_by_colour():
    text = cli.marked("A fork, a Clock!", "a fork", TRUTH, signs=False)
    assert str(text) == "A fork, a Clock!"
    styled = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
    assert styled == {"a": "underline", "Clock": "bold red underline"}


def test_marks_keep_lines_and_punctuation():
    text = "(A cup)\n\n- a bird"
    assert str(cli.marked(text, "a cup", TRUTH, signs=True)) == "(A [cup])\n\n*- a bird*"


@pytest.mark.parametrize(
    ("environment", "has_signs"),
    [({"FORCE_COLOR": "1"}, False), ({"NO_COLOR": "1"}, True), ({}, True)],
)
def test_colours_where_there_are_any(monkeypatch, capsys, environment, has_signs):
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"COLUMNS": "50", **environment}.items():
        monkeypatch.setenv(name, value)
    cli.show_comparison([way("greedy", FIRST), way("vcd", SECOND)], TRUTH)
    shown = capsys.readouterr().out
    assert ("[cup]" in shown) == ("*word*" in shown) == has_signs
    assert ("\x1b[1;31mcup\x1b[0m" in shown) != has_signs
    assert has_signs == ("\x1b" not in shown)
    if has_signs:
        assert max(map(len, shown.splitlines())) <= 50


def way(label, text):
    def say(streamer, longest=None):
        for _ in range(4 if streamer else 0):
            streamer.put(torch.tensor([0]))
        return text

    return label, say


def test_times_are_per_token_after_the_first(monkeypatch):
    clock = iter([0.0, 1.0, 1.5, 1.6, 1.7, 1.8])
    monkeypatch.setattr(cli, "perf_counter", lambda: next(clock))
    timed = cli.timed(*way("greedy", "text"))
    assert timed.first == pytest.approx(1.5)
    assert timed.each == pytest.approx(0.1)
    assert timed.times == "100 ms per token, first token after 1500 ms"
    assert cli.milliseconds(0.00123) == "1.2 ms"


# decoders


def test_decoders_are_listed_with_all_they_say_of_themselves():
    result = run("decoders")
    assert result.exit_code == 0
    flat = " ".join(result.stdout.split())
    for name, kind in DECODERS.items():
        assert f"{name} {paper(kind)}" in flat
        assert kind.__doc__.splitlines()[0] in flat
        assert re.fullmatch(r".+ \(arXiv:\d{4}\.\d{5}\)", paper(kind))
        for preset in presets(kind).values():
            assert re.search(rf"{name}\.{preset.name} \w+=.*?\. {re.escape(preset.meaning)}", flat)
    assert "(arXiv:2311.16922)" in flat and "(arXiv:2403.05262)" in flat
    assert "beta 0.1 0 to 1 Plausibility threshold in [0, 1], a share of" in flat
    assert "noise_step 500 0 to 999 Forward diffusion steps, 0 to 999;" in flat
    assert "variant none What stands" in flat and "processor none" not in flat
    assert "k none 1 to 30 Tokens that" in flat and "smoothing 1e-08 1e-08 to 0.001 lambda" in flat
    assert "vcd.pope_paper noise_step=999. The noise that" in flat
    assert "sid.sid_2408 beta=0.4, start=2, count=100. The code of" in flat
    best = "layers=20+26, steps=end, share=0.4, regions=2, answer_suffix=true"
    assert f"carve.paper_best {best}. The paper's best: layers" in flat
    assert "suffix empty End of the user's words" in flat and "matcher" not in settable(AGLA)
    assert "mvp Multi-View" in flat and "weights 0.4+0.4+0.2 Of each view" in flat
    assert "request below What is asked first; may hold {question}. Default: The task is: {" in flat
    assert max(map(len, result.stdout.splitlines())) <= 100
    deco = result.stdout.partition("\ndeco  ")[2].partition("\n\n")[0].splitlines()
    begins = [
        line.find(word) for line in deco for word in (" Strength", " First and", " In (0, 1]")
    ]
    assert len(set(begins) - {-1}) == 1  # in one column, however long the defaults are
    narrow = run("decoders", COLUMNS="44").stdout.split("Without a decoder")[0]
    assert max(map(len, narrow.splitlines())) <= 44


def test_names_are_plain_ways_and_decoders():
    specs = parse_specs("Greedy, VDD:alpha=0.5,variant=both,sample,Vcd.pope_paper:beta=0")
    assert [(spec.label, spec.way) for spec in specs] == [
        ("greedy", "greedy"),
        ("vdd:alpha=0.5,variant=both", None),
        ("sample", "sample"),
        ("vcd.pope_paper:beta=0", None),
    ]
    plain, vdd, _, vcd = (spec.build(Words()) for spec in specs)
    assert plain is None and (vdd.alpha, vdd.variant) == (0.5, "both")
    assert vcd == VCD(beta=0.0, noise_step=999)


class Words:
    unk_token_id = 3


# what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--decoder", "vddd"),
            "no decoder is called 'vddd' (did you mean vdd?): there are greedy,",
        ),
        (
            ("--decoder", "nothing"),
            "no decoder is called 'nothing': there are greedy, sample,",
        ),
        (
            ("--decoder", "vcd.pope"),
            "no preset of vcd is called 'pope': there are pope_paper",
        ),
        (("--decoder", "greedy.paper"), "no decoder is called 'greedy.paper' (did you mean greedy"),
        (("--decoder", "sid", "--set", "count=999"), "count=999 is more than the image tokens"),
        (
            ("--decoder", "pai", "--set", "layers=(1,3)"),
            "layers of pai must be a whole number + a whole number or none, got '(1,3)'",
        ),
        (("--decoder", "pai", "--set", "layers=0+99"), "layers (0, 99) end outside the model"),
        (("--decoder", "carve", "--set", "layers=0+99"), "layers (0, 99) end outside the model"),
        (("--decoder", "carve.paper"), "no preset of carve is called 'paper' (did you mean paper_"),
        (("--decoder", "mvp", "--set", "weights=1"), "got 3 requests and 1 weights"),
        (("--decoder", "agla", "--set", "matcher=blip"), "no setting of agla is called 'matcher'"),
        (("--decoder", "vdd", "--set", "alpha=big"), "alpha of vdd must be a number, got 'big'"),
        (("--decoder", "vdd", "--set", "alpha=1", "--set", "alpha=2"), "alpha of vdd is set twice"),
        (("--set", "alpha=1"), "greedy has no settings, got alpha=1"),
        (
            ("--decoder", "vdd", "--set", "alpha=nan"),
            "vdd:alpha=nan: alpha must be a finite number",
        ),
        (("--decoder", "vdd", "--set", "beta=1.5"), "beta must be in [0, 1], got 1.5"),
        (("--decoder", "vcd", "--set", "noise_step=1000"), "noise_step"),
        (
            ("--decoder", "vdd", "--set", "variant=all"),
            "variant of vdd must be one of none, unk, both, got 'all'",
        ),
        (
            ("--temperature", "0.5"),
            "temperature has no effect where nothing is drawn: add --sample",
        ),
        (("--sample", "--temperature", "0"), "temperature must be a number > 0, got 0"),
        (("--sample", "--temperature", "nan"), "temperature must be a number > 0, got nan"),
        (("--device", "abacus"), "--device abacus cannot be used here"),
        (("--model", "/no/such/folder"), "--model /no/such/folder: no such folder"),
        ((" ",), "a question or instruction in words is needed"),
    ],
)
def test_mistakes_end_in_one_line(arguments, message):
    assert message in refused("describe", TABLE, *arguments)


@pytest.mark.parametrize(
    ("decoders", "message"),
    [
        ("greedy,vcdx", "no decoder is called 'vcdx' (did you mean vcd?)"),
        ("greedy:alpha=1", "greedy has no settings"),
        (
            "greedy,vdd:alpha=-1",
            "vdd:alpha=-1: alpha must be a finite number >= 0, at most 1e+09, got -1",
        ),
    ],
)
def test_mistakes_in_a_list_of_decoders(decoders, message):
    assert message in refused("compare", TABLE, "--decoders", decoders)


def test_images_that_cannot_be_used_are_refused(tmp_path):
    assert "none.png: no such file" in refused("describe", str(tmp_path / "none.png"))
    words = tmp_path / "words.png"
    words.write_text("not an image")
    assert "words.png is not an image" in refused("compare", str(words))


def test_checkpoints_that_cannot_be_used_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    LlamaConfig(num_hidden_layers=1).save_pretrained(tmp_path / "llama")
    mute = copied(tmp_path / "mute", without=["chat_template.jinja"])
    blind = copied(tmp_path / "blind", without=["processor_config.json"])
    hollow = copied(tmp_path / "hollow", without=["model.safetensors"])
    torn = copied(tmp_path / "torn")
    weights = lab.CHECKPOINT / "model.safetensors"
    (tmp_path / "torn" / "model.safetensors").write_bytes(weights.read_bytes()[:1000])
    partial = copied(tmp_path / "partial")
    tensors = load_file(weights)
    lacking = sorted(name for name in tensors if "projector" in name)[0]
    del tensors[lacking]
    save_file(tensors, tmp_path / "partial" / "model.safetensors", metadata={"format": "pt"})

    def message(checkpoint):
        return refused("describe", TABLE, "--model", str(checkpoint))

    assert "empty: no usable checkpoint in this folder" in message(tmp_path / "empty")
    assert "llama is a llama model: a vision-language" in message(tmp_path / "llama")
    assert "has no chat template" in message(mute)
    assert "blind: its processor cannot be loaded: Can't load image processor" in message(blind)
    assert "hollow: its weights cannot be loaded" in message(hollow)
    assert "torn: its weights cannot be loaded" in message(torn)
    assert "partial is incomplete: 1 of the model's weights are not in it" in message(partial)


def test_arguments_of_the_template_are_passed_on(tmp_path):
    """One that turns the image's question round changes the answer; others are refused."""
    told = with_argument(tmp_path / "told")
    asked = run("describe", TABLE, "Is there a cup in the image?").stdout
    given = ("--model", told, "--template", "asks=Is there a cup in the image?")
    for command in ("describe", "compare"):
        said = run(command, TABLE, "Describe the image.", *given)
        assert letters(asked) in letters(said.stdout)
    for options, message in (
        (("--template", "enable_thinking=false"), "takes no argument 'enable_thinking'"),
        (("--template", "enable_thinking"), "is written NAME=VALUE"),
    ):
        assert message in refused("describe", TABLE, *options)
        assert message in refused("evaluate", "lab", "--scenes", "1", *options)


def test_what_is_wrong_is_said_before_the_weights_are_read(monkeypatch):
    def never(*_, **__):
        raise AssertionError("the weights were read")

    monkeypatch.setattr(cli, "load_model", never)
    assert "beta must be" in refused("compare", TABLE, "--decoders", "greedy,vdd:beta=nan")
    assert "no such file" in refused("describe", "none.png")


@pytest.mark.parametrize("option", ["--max-new-tokens=0", "--seed=-1", "--dtype=int8", "--bogus"])
def test_options_out_of_range_are_refused(option):
    result = run("describe", TABLE, option)
    assert result.exit_code == 2 and option.split("=")[0] in result.stderr


# the rest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--auth", "ada"), "--auth is written NAME:PASSWORD"),
        (("--auth", "ada:"), "--auth is written NAME:PASSWORD"),
        (("--max-seconds", "0"), "seconds must be above 0, got 0"),
        (("--model", "./nowhere"), "--model ./nowhere: no such folder"),
        (("--device", "toaster"), "--device toaster cannot be used here"),
    ],
)
def test_a_page_that_cannot_be_served_is_refused(arguments, message):
    assert message in refused("demo", *arguments)


def test_the_page_says_what_its_longest_time_includes():
    said = " ".join(run("demo", "--help").stdout.replace("│", " ").split())
    for part in ("turns of others in between", "not the wait in the queue", "900 s of its own"):
        assert part in said


def test_a_text_model_serves_no_page(tmp_path):
    LlamaConfig().save_pretrained(tmp_path)
    assert "a vision-language (image-text-to-text) model is needed" in refused(
        "demo", "--model", str(tmp_path)
    )


def test_a_port_in_use_is_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"--port {port} cannot be listened on" in refused("demo", "--port", port)


def test_a_page_without_gradio_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "sightline.demo.page")
    monkeypatch.delattr("sightline.demo.page")
    assert 'pip install "sightline-vlm[demo]"' in refused("demo")


def test_the_page_is_served_as_asked(monkeypatch):
    served = {}
    monkeypatch.setattr(page, "launch", lambda host, **how: served.update(how, host=host) or "URL")
    monkeypatch.setattr(cli, "wait_for_interrupt", lambda: None)
    result = run("demo", "--auth", "ada:pass:word", "--port", "7999", "--max-tokens", "32")
    assert result.stdout == "sightline.lab answers at URL (Ctrl+C ends it)\n"
    assert served["auth"] == [("ada", "pass:word")] and served["port"] == 7999
    assert not served["share"] and not served["open_browser"]
    assert served["host"].limits.max_new_tokens == 32


def test_version_and_help():
    assert run("--version").stdout.strip() == f"sightline {sightline.__version__}"
    listed = re.findall(r"^  (\w+)  ", run("--help").stdout, re.M)
    summary = cli.__doc__.partition("`sightline ")[2].partition("`")[0]
    assert set(listed) == set(summary.split(" | ")) == COMMANDS
    assert "--max-new-tokens" in run("describe", "--help").stdout


def test_help_does_not_wait_for_torch():
    code = "import sys, sightline.cli; print({'torch', 'transformers', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
