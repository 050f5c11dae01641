"""Comparisons as scripts: they run, say what was said, and stand as ruff writes."""
# ruff: noqa: RUF001

import ast
import os
import subprocess
import sys
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from sightline import CARVE, MVP, VCD, VDD, answer
from sightline.decoders import DECODERS
from sightline.demo.comparison import Comparison, SamplingSettings, SourceImage
from sightline.demo.script import to_python
from sightline.lab import CHECKPOINT, IMAGES, decorrelated, draw
from sightline.setting_text import presets
from sightline.spec_text import escaped
from sightline.specs import parse_spec
from sightline.vision.images import open_image

ROOT = Path(__file__).parents[1]
LAB = "sightline.lab"
needs_weights = pytest.mark.skipif(
    not (CHECKPOINT / "model.safetensors").exists(), reason="the lab's weights are not there"
)
needs_ruff = pytest.mark.skipif(find_spec("ruff") is None, reason="ruff is not installed")

SQUARE = SourceImage(Image.new("RGB", (4, 4), "red"), "file:red.png")
GREEDY = {"do_sample": False, "num_beams": 1}


def shipped(name: str) -> SourceImage:
    return SourceImage(open_image(IMAGES / name), f"shipped:{name}")


def scripted(*ways, image=SQUARE, question="Describe the image.", drawing=None, **further):
    comparison = Comparison(image, question, ways, drawing or SamplingSettings())
    return to_python(comparison, further.pop("model", LAB), **further)


def run(script: str, folder: Path) -> subprocess.CompletedProcess:
    path = folder / "script.py"
    path.write_text(script, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(path)],
        capture_output=True,
        encoding="utf-8",
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def lab():
    model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT, dtype="float32")
    return model, AutoProcessor.from_pretrained(CHECKPOINT)


def line(script: str, start: str) -> str:
    [found] = [line for line in script.splitlines() if line.strip().startswith(start)]
    return found.strip()


# What scripts say when they run


@needs_weights
def test_decoders_on_a_shipped_image_answer_as_called_directly(lab, tmp_path):
    ways = (parse_spec("greedy"), parse_spec("vcd"), parse_spec("vdd:alpha=0.5"))
    script = scripted(*ways, image=shipped("corner.png"), drawing=SamplingSettings(64))
    done = run(script, tmp_path)
    ask = (*lab, IMAGES / "corner.png", "Describe the image.")
    expected = {
        "greedy": answer(*ask, max_new_tokens=64, **GREEDY),
        "vcd": answer(*ask, VCD(), max_new_tokens=64, **GREEDY),
        "vdd:alpha=0.5": answer(*ask, VDD(alpha=0.5), max_new_tokens=64, **GREEDY),
    }
    assert done.stdout == "".join(f"{label}: {text}\n" for label, text in expected.items())
    assert len(set(expected.values())) > 1
    assert "warning" not in done.stderr


@needs_weights
def test_samples_of_a_scene_are_drawn_from_the_seed_each_time(lab, tmp_path):
    seed, scene = 11, draw(decorrelated(np.random.default_rng(17)))
    ways = (parse_spec("sample"), parse_spec("greedy"), parse_spec("vdd"), parse_spec("sample"))
    image = SourceImage(scene, "scene:17")
    done = run(scripted(*ways, image=image, drawing=SamplingSettings(32, 1.3, seed)), tmp_path)

    def said(decoder, **how):
        torch.manual_seed(seed)
        return answer(*lab, scene, "Describe the image.", decoder, max_new_tokens=32, **how)

    heat = {"do_sample": True, "temperature": 1.3, "num_beams": 1}
    sample = said(None, **heat)
    assert done.stdout.splitlines() == [
        f"sample: {sample}",
        f"greedy: {said(None, **GREEDY)}",
        f"vdd: {said(VDD(), **heat)}",
        f"sample: {sample}",
    ]
    assert "warning" not in done.stderr


@needs_weights
def test_a_preset_and_decoders_that_look_again(lab, tmp_path):
    question = "Is there a bus in the image?"
    ways = (
        parse_spec("vcd.pope_paper"),
        parse_spec("carve:general=Describe this picture.,suffix="),
        parse_spec(
            "mvp:requests=Describe the image.+What is in the image?,weights=0.5+0.5,"
            "template={caption} {question},caption_tokens=16,tokens=8"
        ),
    )
    script = scripted(
        *ways, image=shipped("table.png"), question=question, drawing=SamplingSettings(8, 0.0, 3)
    )
    done = run(script, tmp_path)
    model, processor = lab
    decoders = [
        VCD(alpha=1.0, beta=0.1, noise_step=999, seed=0),
        CARVE(processor=processor, general="Describe this picture.", suffix=""),
        MVP(
            processor=processor,
            requests=("Describe the image.", "What is in the image?"),
            weights=(0.5, 0.5),
            template="{caption} {question}",
            caption_tokens=16,
            tokens=8,
        ),
    ]
    ask = (model, processor, IMAGES / "table.png", question)
    expected = [answer(*ask, decoder, max_new_tokens=8, **GREEDY) for decoder in decoders]
    assert done.stdout.splitlines() == [
        f"{way.label}: {text}" for way, text in zip(ways, expected, strict=True)
    ]


@needs_weights
def test_a_file_of_ones_own_is_read_from_its_path_and_checked(lab, tmp_path):
    name = 'it\'s "mine" \\ ünï 图.png'
    pixels = np.asarray(open_image(IMAGES / "yard.png"))
    Image.fromarray(pixels).save(tmp_path / name)
    question = 'Say "what\'s" in\nthe image: \\n {label} – ok?'
    image = SourceImage(Image.fromarray(pixels), f"file:{name}")
    script = scripted(
        parse_spec("greedy"), image=image, question=question, drawing=SamplingSettings(12)
    )
    done = run(script, tmp_path)
    said = answer(*lab, tmp_path / name, question, max_new_tokens=12, **GREEDY)
    assert done.stdout == f"greedy: {said}\n"
    assert "warning" not in done.stderr
    other = pixels.copy()
    other[0, 0, 0] ^= 1
    Image.fromarray(other).save(tmp_path / name)
    assert "warning: this is not the image that was compared" in run(script, tmp_path).stderr


# What stands in them


@pytest.mark.parametrize(
    ("way", "written"),
    [
        (parse_spec("vdd"), "VDD(processor=processor)"),
        (parse_spec("vcd"), "VCD()"),
        (parse_spec("vcd:alpha=1,beta=0.10"), "VCD()"),
        (parse_spec("vcd:alpha=0.5"), "VCD(alpha=0.5)"),
        (parse_spec("vcd.pope_paper"), "VCD.pope_paper()"),
        (parse_spec("vcd.pope_paper:noise_step=999"), "VCD.pope_paper()"),
        (
            parse_spec("vcd.pope_paper:noise_step=500"),
            "replace(VCD.pope_paper(), noise_step=500)",
        ),
        (parse_spec("vdd:alpha=0.5+vaf"), "VDD(processor=processor, alpha=0.5) + VAF()"),
        (parse_spec("vdd:markers=7"), "VDD(processor=processor, markers=(7,))"),
        (parse_spec("vdd:variant=unk"), 'VDD(processor=processor, variant="unk")'),
        (parse_spec("vdd:alpha=inf"), 'VDD(processor=processor, alpha=float("inf"))'),
    ],
)
def test_only_settings_that_differ_are_written(way, written):
    script = scripted(way)
    assert f", {written}, " in script or f" {written},\n" in script
    assert ("from dataclasses import replace" in script) == written.startswith("replace(")


def test_how_tokens_are_drawn():
    ways = (parse_spec("greedy"), parse_spec("sample"), parse_spec("vcd"))
    cold = scripted(*ways, drawing=SamplingSettings(5, 0.0, 6))
    assert '("greedy", None, {"do_sample": False})' in cold
    assert '("sample", None, {"do_sample": True, "temperature": 1.0})' in cold
    assert '("vcd", VCD(), {"do_sample": False})' in cold
    warm = scripted(*ways, drawing=SamplingSettings(5, 0.25, 6))
    assert '("greedy", None, {"do_sample": False})' in warm
    assert '("sample", None, {"do_sample": True, "temperature": 0.25})' in warm
    assert '("vcd", VCD(), {"do_sample": True, "temperature": 0.25})' in warm
    assert line(warm, "max_new_tokens") == "max_new_tokens=5,"
    assert line(warm, "torch.manual_seed") == "torch.manual_seed(6)"


def test_the_image_is_found_by_its_source():
    red = sha256(bytes([255, 0, 0] * 16)).hexdigest()
    own = scripted(parse_spec("greedy"))
    assert line(own, "IMAGE =") == 'IMAGE = "red.png"'
    assert line(own, "image =") == "image = open_image(IMAGE)"
    assert line(own, "SHA256") == f'SHA256 = "{red}"'
    lab = scripted(parse_spec("greedy"), image=shipped("yard.png"))
    assert line(lab, "image =") == 'image = open_image(IMAGES / "yard.png")'
    assert "numpy" not in lab
    scene = scripted(parse_spec("greedy"), image=SourceImage(SQUARE.image, "scene:0042"))
    assert line(scene, "image =") == "image = draw(decorrelated(np.random.default_rng(42)))"


@pytest.mark.parametrize(
    "source",
    ["", "file:", "corner.png", "shipped:", "shipped:../images/corner.png", "scene:-1", "scene:",
     "scene:1.5", "scene:٣", "scene:" + "9" * 21, "web:x", "scene:1)); import os; ((1"],
)  # fmt: skip
def test_other_sources_are_refused(source):
    with pytest.raises(ValueError, match="source is shipped:NAME"):
        scripted(parse_spec("greedy"), image=SourceImage(SQUARE.image, source))


def test_model_device_and_dtype():
    lab = scripted(parse_spec("greedy"), image=shipped("yard.png"))
    assert "from sightline.lab import CHECKPOINT, IMAGES" in lab
    assert line(lab, "model =").endswith('(CHECKPOINT, dtype="float32")')
    assert "model.to" not in lab
    assert scripted(parse_spec("greedy"), image=shipped("yard.png"), model=str(CHECKPOINT)) == lab
    hub = scripted(parse_spec("greedy"), model="org/it's", device="cuda:1", dtype="bfloat16")
    assert line(hub, "CHECKPOINT") == 'CHECKPOINT = "org/it\'s"'
    assert "sightline.lab" not in hub
    assert line(hub, "model =").endswith('(CHECKPOINT, dtype="bfloat16")')
    assert line(hub, "model.to") == 'model.to("cuda:1")'


# How they are written

ODD = (
    "",
    "it's",
    'say "it"',
    'it\'s "it"',
    '"""',
    "'''",
    "\\",
    "a\\'b\\n",
    "{curly} {{}} %s $x",
    "\n\r\t\0\x1b\x85\u2028",
    "Что на картине? а",
    "图片里有什么？" * 20,
    "图片里有什么？" * 9,
    "à – ’ “quoted” ﬁ ＡＢ",
    "👩‍👩‍👧 family 🎉" * 9,
    "\u202egnirts\u2066",
    "\udc80 not a character",
    "word " * 60,
    "nobreak" * 60,
    '"q" ' * 60,
    "'q' \"r\" \\" * 30,
    "\n" * 120,
    " " * 200 + "x",
    "#" * 98,
    *("x" * length for length in range(76, 92)),
)


def check_with_ruff(scripts: dict[str, str], folder: Path) -> None:
    for name, script in scripts.items():
        (folder / f"{name}.py").write_text(script, encoding="utf-8")
    for command in (["check", "--no-cache"], ["format", "--check", "--diff", "--no-cache"]):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "ruff",
                *command,
                "--config",
                str(ROOT / "pyproject.toml"),
                str(folder),
            ],
            capture_output=True,
            encoding="utf-8",
        )
        assert done.returncode == 0, done.stdout + done.stderr


@needs_ruff
def test_every_decoder_and_preset_is_written_as_ruff_does(tmp_path):
    names = [*DECODERS, *(f"{d}.{p}" for d, kind in DECODERS.items() for p in presets(kind))]
    scripts = {name: scripted(*map(parse_spec, ("greedy", name, "sample"))) for name in names}
    scripts["scene"] = scripted(
        parse_spec("vdd"), image=SourceImage(SQUARE.image, "scene:1"), device="cuda"
    )
    scripts["shipped"] = scripted(
        *map(parse_spec, ("vcd", "deco", "dola", "m3id")), image=shipped("yard.png")
    )
    long = "markers=3+4+5+6+7+8+9+10+11+12+vaf:enhance=0.4,suppress=0.3,mode=abs,layers=3+4"
    for name, text in {"sum": "vdd+vaf+sample", "sums": f"vdd:alpha=0.5,{long}"}.items():
        scripts[name] = scripted(parse_spec(text), parse_spec("vcd.pope_paper:alpha=0.5+vaf"))
    scripts["changed"] = scripted(parse_spec("vcd.pope_paper:alpha=0.5"), model="org/name")
    check_with_ruff(scripts, tmp_path)


@needs_ruff
def test_any_text_is_written_as_ruff_does_and_read_back(tmp_path):
    scripts = {}
    for i, text in enumerate(ODD):
        way = parse_spec("mvp", [f"requests={escaped(text) or 'x'}", "weights=1"])
        image = SourceImage(SQUARE.image, f"file:{text or 'x'}")
        scripts[f"text_{i}"] = script = scripted(way, image=image, question=text, model=text or "x")
        names: dict[str, str] = {}
        exec("\n".join(top_assignments(script)), names)
        assert names["QUESTION"] == text
        assert names["IMAGE"] == (text or "x")
        assert names["CHECKPOINT"] == (text or "x")
    check_with_ruff(scripts, tmp_path)


def top_assignments(script: str) -> list[str]:
    """The source of the script's constants."""
    tree = ast.parse(script)
    found = [node for node in tree.body if isinstance(node, ast.Assign)]
    return [ast.unparse(node) for node in found if node.targets[0].id.isupper()]


def test_a_setting_is_read_back():
    text = 'it\'s "very" long, \\ and ünusual ' * 8
    script = scripted(parse_spec("vdgd", [f"request={text}"]))
    calls = [node for node in ast.walk(ast.parse(script)) if isinstance(node, ast.keyword)]
    [request] = [node.value for node in calls if node.arg == "request"]
    assert ast.literal_eval(request) == text.strip()


def test_text_cannot_leave_its_quotes():
    text = '"""); import os; (\'\'\' + "\\" + """'
    script = scripted(
        parse_spec("vdgd", [f"request={text}"]),
        image=SourceImage(SQUARE.image, f"file:{text}"),
        question=text,
        model=text,
    )
    plain = scripted(parse_spec("vdgd:request=r"), question="q", model="m")
    kinds = [[type(node) for node in ast.parse(s).body] for s in (script, plain)]
    assert kinds[0] == kinds[1]


def test_plain_scripts_carry_no_note_for_ruff():
    assert scripted(parse_spec("greedy")).startswith('"""One question')
    assert scripted(parse_spec("greedy"), question="é?").startswith(
        "# ruff: noqa: RUF001, RUF100\n"
    )
