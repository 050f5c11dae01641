"""Exported folders: transformers loads them, and they decode as the decoder they were made of."""

import importlib.metadata
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import huggingface_hub
import pytest
import torch
from chat_models import scene
from models import EOS, PROMPTS
from transformers import AutoModelForImageTextToText, dynamic_module_utils
from transformers.generation.streamers import BaseStreamer
from typer.testing import CliRunner

import sightline
from sightline import (
    AGLA,
    CARVE,
    DAMRO,
    ICD,
    MVP,
    PAI,
    SID,
    VAF,
    VCD,
    VDD,
    VDGD,
    Contrastive,
    DeCo,
    Gated,
    NoImage,
    Recipe,
    VASparse,
    answer,
    cli,
    lab,
)
from sightline.checkpoints import load_processor
from sightline.decoders import DECODERS
from sightline.hub import quoted
from sightline.setting_text import presets
from sightline.specs import parse_spec

ROOT = Path(__file__).parents[1]
NAMES = [*DECODERS, *(f"{d}.{p}" for d, kind in DECODERS.items() for p in presets(kind))]
WAYS = {
    "greedy": dict(do_sample=False),
    "sampled": dict(do_sample=True, top_p=0.9),
    "beams": dict(do_sample=False, num_beams=3),
}
STRONG = {
    "vdd": (["alpha=2"], VDD(alpha=2.0)),
    "vcd": (["alpha=1.5", "noise_step=700", "seed=3"], VCD(1.5, 0.1, 700, 3)),
    "pai": (["alpha=1.5", "gamma=2", "layers=1+3"], PAI(1.5, 2.0, layers=(1, 3))),
    "damro": (["alpha=1.5", "k=3"], DAMRO(alpha=1.5, k=3)),
    "sid": (["alpha=1.5", "start=1"], SID(alpha=1.5, start=1)),
    "vaf": (["enhance=1.5", "layers=0+2"], VAF(enhance=1.5, layers=(0, 2))),
    "vasparse.paper": (["alpha=0.8"], replace(VASparse.paper(), alpha=0.8)),
    "deco": (["alpha=2", "layers=1+2", "top_k=6"], DeCo(2.0, (1, 2), 6)),
}
PROCESSOR = load_processor(str(lab.CHECKPOINT))
BOTH_FAMILIES = ("vdd", "vcd", "pai")


@pytest.fixture(autouse=True)
def modules(tmp_path_factory, monkeypatch):
    """Where transformers copies what it runs: not to the user's own cache."""
    cache = tmp_path_factory.mktemp("modules")
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(cache))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return cache


@pytest.fixture
def exported(tmp_path):
    """`exported(name, *settings) -> str`: the path of a new folder."""

    def write(name, *settings):
        folder = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        parse_spec(name, list(settings)).build(PROCESSOR).save_pretrained(folder)
        return str(folder)

    return write


def generated(model, inputs, decoder, seed=0, **arguments):
    torch.manual_seed(seed)
    if isinstance(decoder, str):
        arguments["trust_remote_code"] = True
    arguments = {"max_new_tokens": 12, "do_sample": False, **arguments}
    return model.generate(**inputs, custom_generate=decoder, **arguments)


def same(tokens, others):
    return tokens.shape == others.shape and bool((tokens == others).all())


def run(*arguments):
    return CliRunner().invoke(cli.app, list(arguments), env={"COLUMNS": "100"})


def refused(*arguments):
    """The one line that a user's mistake ends with."""
    result = run("export", *arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    return result.stderr


# What the folder decodes


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", STRONG)
def test_tokens_are_the_decoders(llava, exported, name, way):
    model, make_inputs = llava
    settings, decoder = STRONG[name]
    inputs = make_inputs(PROMPTS)
    expected = generated(model, inputs, decoder, **WAYS[way])
    assert same(generated(model, inputs, exported(name, *settings), **WAYS[way]), expected)
    if way == "greedy":
        assert not same(expected, generated(model, inputs, None))


@pytest.mark.parametrize("name", BOTH_FAMILIES)
def test_tokens_are_the_decoders_where_images_are_patches(qwen, exported, name):
    model, make_inputs = qwen
    settings, decoder = STRONG[name]
    inputs = make_inputs(PROMPTS)
    expected = generated(model, inputs, decoder)
    assert same(generated(model, inputs, exported(name, *settings)), expected)
    assert not same(expected, generated(model, inputs, None))


def test_samples_follow_the_seed(llava, exported):
    model, make_inputs = llava
    inputs, folder = make_inputs(PROMPTS), exported("vdd", "alpha=2")
    first, second = (
        generated(model, inputs, folder, seed, do_sample=True, temperature=3.0) for seed in (1, 2)
    )
    assert not same(first, second)
    assert same(first, generated(model, inputs, VDD(2.0), 1, do_sample=True, temperature=3.0))


def test_settings_hold_for_the_call_that_gives_them(llava, exported):
    model, make_inputs = llava
    inputs, folder = make_inputs(PROMPTS), exported("vdd", "alpha=2")
    off = generated(model, inputs, folder, alpha=0.0, beta=0.0)
    assert same(off, generated(model, inputs, None))
    assert same(generated(model, inputs, folder), generated(model, inputs, VDD(alpha=2.0)))
    with pytest.raises(ValueError, match="beta must be in"):
        generated(model, inputs, folder, beta=2.0)
    with pytest.raises(ValueError, match="'alhpa'"):
        generated(model, inputs, folder, alhpa=0.0)


def test_names_that_generate_has_itself_are_left_to_it(llava, exported):
    model, make_inputs = llava
    inputs, folder = make_inputs(PROMPTS), exported("deco", "layers=1+2", "top_k=6")
    drawn = dict(do_sample=True, temperature=2.0, top_k=2)
    expected = generated(model, inputs, DeCo(layers=(1, 2), top_k=6), **drawn)
    assert same(generated(model, inputs, folder, **drawn), expected)
    assert not same(expected, generated(model, inputs, DeCo(layers=(1, 2), top_k=2), **drawn))


def test_the_output_is_the_decoders(llava, exported):
    model, make_inputs = llava
    asked = dict(return_dict_in_generate=True, output_logits=True, output_image_attention=True)
    inputs = make_inputs(PROMPTS)
    output = generated(model, inputs, exported("vdd"), **asked)
    expected = generated(model, inputs, VDD(), **asked)
    assert set(output) == set(expected)
    assert torch.equal(output.branch_logits[-1][1], expected.branch_logits[-1][1])
    assert torch.equal(output.image_attention[0], expected.image_attention[0])


class Heard(BaseStreamer):
    def __init__(self):
        self.tokens, self.has_ended = [], False

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.has_ended = True


@pytest.mark.parametrize("argument", ["streamer", "token_streamer"])
def test_tokens_are_streamed_under_transformers_own_name_too(llava, exported, argument):
    model, make_inputs = llava
    heard, inputs = Heard(), make_inputs(PROMPTS[:1])
    tokens = generated(model, inputs, exported("vdd"), **{argument: heard})
    assert heard.tokens == tokens[0].tolist()
    assert heard.has_ended
    with pytest.raises(ValueError, match="beam search"):
        generated(model, inputs, exported("vdd"), num_beams=2, **{argument: Heard()})


def test_an_assistant_model_is_refused(llava, exported):
    model, make_inputs = llava
    with pytest.raises(ValueError, match="VDD decodes without another model"):
        generated(model, make_inputs(PROMPTS), exported("vdd"), assistant_model=model)


def test_stopping_is_generates_own(llava, exported):
    model, make_inputs = llava
    inputs = make_inputs(PROMPTS[:1])
    long = generated(model, inputs, exported("vdd"))
    stop = int(long[0, inputs["input_ids"].shape[1] + 2])
    short = generated(model, inputs, exported("vdd"), eos_token_id=[EOS, stop])
    assert same(short, generated(model, inputs, VDD(), eos_token_id=[EOS, stop]))
    assert short.shape[1] < long.shape[1]


def test_a_checkpoint_in_the_folder_decodes_so_by_itself(llava, exported):
    model, make_inputs = llava
    folder = exported("vdd", "alpha=2")
    model.save_pretrained(folder)
    loaded = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
    inputs = make_inputs(PROMPTS)
    expected = generated(model, inputs, VDD(alpha=2.0))
    assert same(loaded.generate(**inputs, max_new_tokens=12, do_sample=False), expected)


# Decoders that ask and look again

LOOKING = {
    "vdd": (VDD, dict(variant="unk")),
    "vdgd": (VDGD, dict(tokens=4)),
    "icd": (ICD, dict(alpha=3.0)),
    "agla": (AGLA, dict(alpha=3.0)),
    "mvp": (MVP, dict(caption_tokens=2, requests=("What is it?", "Where?"), weights=(1.0, 0.5))),
    "carve.paper_best": (CARVE.paper_best, dict(tokens=2, suffix="", layers=(2, 4))),
}


@pytest.mark.parametrize("name", LOOKING)
def test_processor_and_images_are_given_in_the_call(lab_vlm, exported, name):
    vlm, (make, settings) = lab_vlm, LOOKING[name]
    texts = {
        key: "+".join(map(str, value)) if isinstance(value, tuple) else value
        for key, value in settings.items()
    }
    folder = exported(name, *(f"{key}={text}" for key, text in texts.items()))
    inputs = vlm.asked(["Is there a cup in the image?", "Is there a car in the image?"])
    looked = {"images": list(vlm.images[:2])} if name[:4] in ("agla", "mvp", "carv") else {}
    decoder = replace(make(processor=vlm.processor), **settings)
    expected = generated(vlm.model, inputs, decoder, **looked)
    given = dict(looked, processor=vlm.processor)
    assert same(generated(vlm.model, inputs, folder, **given), expected)
    with pytest.raises(ValueError, match="processor="):
        generated(vlm.model, inputs, folder, **looked)
    if looked:
        with pytest.raises(ValueError, match="images=image"):
            generated(vlm.model, inputs, folder, processor=vlm.processor)


@pytest.mark.parametrize(
    "decoder",
    [Gated(VDD(2.0) + VAF(1.5, layers=(0, 2))), Recipe((), (NoImage(),), Contrastive(3.0, 0.1))],
    ids=["gated sum", "recipe"],
)
def test_parts_of_parts_are_made_again(llava, tmp_path, decoder):
    model, make_inputs = llava
    decoder.save_pretrained(tmp_path / "made")
    inputs = make_inputs(PROMPTS)
    expected = generated(model, inputs, decoder)
    assert same(generated(model, inputs, str(tmp_path / "made")), expected)
    assert not same(expected, generated(model, inputs, None))
    card = (tmp_path / "made" / "README.md").read_text(encoding="utf-8")
    assert "made of parts" in card and "| `processor` | `None` |" in card


def test_what_no_code_can_make_is_refused(tmp_path):
    class Mine(VDD):
        """A decoder of the user's own."""

    folder = tmp_path / "new"
    with pytest.raises(ValueError, match="Mine is no public class of sightline"):
        Mine().save_pretrained(folder)
    with pytest.raises(ValueError, match=r"Recipe\.contrasts\[0\] is <function"):
        Recipe((), (lambda expert, model: expert,), Contrastive()).save_pretrained(folder)
    assert not folder.exists()


def test_the_folder_is_pushed_to_the_hub(monkeypatch):
    came = {}

    class Hub:
        def __init__(self, token=None):
            came["token"] = token

        def create_repo(self, repo, exist_ok):
            return type("Url", (), {"repo_id": f"me/{repo}"})

        def upload_folder(self, repo_id, folder_path, **arguments):
            folder_path = Path(folder_path)
            names = {str(path.relative_to(folder_path)) for path in folder_path.rglob("*.*")}
            came.update(arguments, repo=repo_id, names=names)
            came["card"] = (folder_path / "README.md").read_text(encoding="utf-8")
            return "the commit"

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert VDD().push_to_hub("my-vdd", token="secret", commit_message="One") == "the commit"
    assert 'custom_generate="me/my-vdd"' in came.pop("card")
    assert came == dict(
        token="secret", commit_message="One", repo="me/my-vdd", names=set(NAMES_WRITTEN)
    )


# What the folder holds


class Taker:
    """A model that hands back what its `generate` is given."""

    def generate(self, **arguments):
        return arguments


def namespace(folder):
    made = {}
    exec((Path(folder) / "custom_generate" / "generate.py").read_text(encoding="utf-8"), made)
    return made


@pytest.mark.parametrize("name", NAMES)
def test_every_decoder_and_preset_is_the_one_that_was_asked_for(lab_vlm, exported, name):
    generate = namespace(exported(name))["generate"]
    passed = generate(Taker(), processor=lab_vlm.processor, max_new_tokens=3)
    made = passed["custom_generate"]
    expected = parse_spec(name, []).build(lab_vlm.processor)
    assert type(made) is type(expected)
    assert passed["max_new_tokens"] == 3
    assert made == expected
    # What it does not take goes on, and is refused by `generate`.
    assert ("processor" in passed) != hasattr(expected, "processor")


ODD = 'a "b" \'c\' \\ `d` | e\té """ {f}'


def test_any_text_is_read_back(lab_vlm, exported):
    folder = exported("vdgd", f"request={ODD}")
    passed = namespace(folder)["generate"](Taker(), processor=lab_vlm.processor)
    assert passed["custom_generate"].request == ODD


def test_the_table_lists_the_settings(exported):
    card = Path(exported("vdd", "alpha=0.5"), "README.md").read_text(encoding="utf-8")
    assert "| `alpha` | `0.5` | 0 to 3 | Contrast strength, 0 or more; 0 leaves the logits" in card
    assert '| `variant` | `"none"` |  | What stands in the image\'s place' in card
    assert "| `processor` | `None` |  | The model's processor or tokenizer" in card
    assert "[arXiv:2403.05262](https://arxiv.org/abs/2403.05262)" in card
    assert "Take off what the model would say without the image." in card
    assert "Differs from the authors' code" in card and "Args:" not in card
    assert "of which `generate` has its own" not in card
    fixed = Path(exported("deco"), "README.md").read_text(encoding="utf-8")
    assert "; but not `top_k` and `top_p`, of which `generate` has its own.\n" in fixed


def test_a_card_can_be_found_on_the_hub(exported):
    card = Path(exported("vdd"), "README.md").read_text(encoding="utf-8")
    _, matter, _ = card.split("---\n", 2)
    assert matter.splitlines() == [
        "library_name: transformers",
        "pipeline_tag: image-text-to-text",
        "tags:",
        "- custom_generate",
    ]


def test_cells_of_the_table_stay_cells(exported):
    card = Path(exported("vdgd", f"request={ODD}"), "README.md").read_text(encoding="utf-8")
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}
    assert quoted("a") == "`a`"
    assert quoted("a `b` ``c``") == "``` a `b` ``c`` ```"


# What it needs

NEEDED = (
    "VDD needs sightline-vlm, 0.1.0 or newer and below 0.2: "
    'pip install "sightline-vlm>=0.1.0,<0.2". '
)


def test_nobody_is_told_to_install_what_is_called_sightline_on_pypi(exported):
    """By transformers, which reads both files, or by pip."""
    folder = Path(exported("vdd"), "custom_generate")
    required = (folder / "requirements.txt").read_text().splitlines()
    assert [line for line in required if not line.startswith("#")] == ["sightline-vlm>=0.1.0,<0.2"]
    assert dynamic_module_utils.get_imports(folder / "generate.py") == ["packaging"]
    for text in (folder / "generate.py", folder.parent / "README.md"):
        assert 'pip install "sightline-vlm>=0.1.0,<0.2"' in text.read_text()


@pytest.mark.parametrize("version", [None, "0.0.9"])
def test_transformers_names_the_distribution_that_is_missing(llava, exported, monkeypatch, version):
    model, make_inputs = llava
    folder, known = exported("vdd", "alpha=1.125"), importlib.metadata.version

    def installed(name):
        if name != "sightline-vlm":
            return known(name)
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", installed)
    missing = rf"sightline-vlm>=0\.1\.0,<0\.2 \(installed: {version}\)"
    with pytest.raises(ImportError, match=missing):
        generated(model, make_inputs(PROMPTS), folder)


@pytest.mark.parametrize(
    ("installed", "said"),
    [
        (None, r"\. Here: .*sightline"),
        (ModuleType("sightline"), r"\. Here: cannot import name 'VDD' from 'sightline'"),
    ],
    ids=["nothing", "the other project"],
)
def test_without_sightline_it_says_where_to_get_it(llava, exported, monkeypatch, installed, said):
    model, make_inputs = llava
    folder = exported("vdd", "alpha=1.25")  # so that no other test has had it loaded
    monkeypatch.setitem(sys.modules, "sightline", installed)
    with pytest.raises(ImportError, match=f"{re.escape(NEEDED)}.*another project{said}"):
        generated(model, make_inputs(PROMPTS), folder)


@pytest.mark.parametrize(
    ("written", "works", "refused"),
    [
        ("0.1.3", ["0.1.3", "0.1.10"], ["0.1.2", "0.2", "0.2.1", "1.0"]),
        ("0.12.3", ["0.12.3", "0.12.20"], ["0.12.0", "0.2.9", "0.13.0"]),
        ("2.4.1", ["2.4.1", "2.10.0"], ["2.4.0", "3.0.0", "0.9.0"]),
    ],
)
def test_versions_that_may_break_it_are_shut_out(exported, monkeypatch, written, works, refused):
    monkeypatch.setattr(sightline, "__version__", written)
    folder = exported("vdd")
    for version in works:
        monkeypatch.setattr(sightline, "__version__", version)
        assert namespace(folder)["generate"](Taker())["custom_generate"] == VDD()
    for version in refused:
        monkeypatch.setattr(sightline, "__version__", version)
        with pytest.raises(ImportError, match=rf"-vlm, {written} or .*\. Here: {version}$"):
            namespace(folder)


# What it shows


@pytest.mark.parametrize("name", ["vdd", "agla"])
def test_the_card_shows_code_that_runs(lab_vlm, exported, name, tmp_path, capsys):
    folder = exported(name, "alpha=2")
    card = Path(folder, "README.md").read_text(encoding="utf-8")
    [snippet] = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    image = tmp_path / "scene.png"
    scene(11).save(image)
    own = {
        '"llava-hf/llava-1.5-7b-hf"': repr(str(lab.CHECKPOINT)),
        '"image.jpg"': repr(str(image)),
        f'"{Path(folder).name}"': repr(folder),
    }
    for shown, real in own.items():
        assert shown in snippet
        snippet = snippet.replace(shown, real)
    exec(snippet, {})
    processor = lab_vlm.processor
    decoder = {"vdd": VDD(alpha=2.0), "agla": AGLA(processor=processor, alpha=2.0)}[name]
    model = AutoModelForImageTextToText.from_pretrained(lab.CHECKPOINT)
    said = answer(model, processor, image, "Describe the image.", decoder, max_new_tokens=128)
    assert capsys.readouterr().out.strip() == said.strip() != ""


@pytest.mark.skipif(find_spec("ruff") is None, reason="ruff is not installed")
def test_code_stands_as_ruff_writes_it(tmp_path):
    for name in NAMES:
        parse_spec(name, []).build(PROCESSOR).save_pretrained(tmp_path / name)
    VDGD(processor=PROCESSOR, request=ODD.replace("é", "e") * 9).save_pretrained(tmp_path / "odd")
    for command in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "ruff", *command),
                *("--config", str(ROOT / "pyproject.toml"), str(tmp_path)),
            ],
            capture_output=True,
            encoding="utf-8",
        )
        assert done.returncode == 0, done.stdout + done.stderr


# The command


def test_the_command_writes_the_folder(llava, tmp_path):
    model, make_inputs = llava
    folder = tmp_path / "a" / "my-vdd 0.5"
    result = run("export", "VDD", str(folder), "--set", "alpha=2", "--set", "beta=0.05")
    assert result.exit_code == 0, result.output
    names = ["README.md", "custom_generate/generate.py", "custom_generate/requirements.txt"]
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == set(names)
    assert result.stdout.splitlines()[:3] == [str(folder / name) for name in names]
    assert f"custom_generate={str(folder)!r}, trust_remote_code=True" in result.stdout
    inputs = make_inputs(PROMPTS)
    expected = generated(model, inputs, VDD(alpha=2.0, beta=0.05))
    assert same(generated(model, inputs, str(folder)), expected)


def test_what_cannot_be_exported_is_refused(tmp_path):
    folder = str(tmp_path / "new")
    assert "greedy is the model's own decoding" in refused("greedy", folder)
    assert "sample is the model's own decoding" in refused("sample", folder)
    assert "no decoder is called 'vdx' (did you mean vdd?)" in refused("vdx", folder)
    assert "no setting of vdd is called 'alfa'" in refused("vdd", folder, "--set", "alfa=1")
    assert "alpha of vdd must be a number, got 'x'" in refused("vdd", folder, "--set", "alpha=x")
    assert "beta must be in [0, 1], got 2.0" in refused("vdd", folder, "--set", "beta=2")
    assert "no preset of vcd is called 'paper'" in refused("vcd.paper", folder)
    assert not os.path.exists(folder)


def test_folders_with_something_in_them_are_left_alone(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "weights").write_text("mine")
    assert "is not empty: name another folder, or --force" in refused("vdd", str(tmp_path))
    assert "weights is a file: name a folder" in refused("vdd", str(tmp_path / "weights"))
    assert "cannot be written" in refused("vdd", str(tmp_path / "weights" / "vdd"))
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "weights"}
    assert (tmp_path / "README.md").read_text() == "mine"


NAMES_WRITTEN = ["README.md", "custom_generate/generate.py", "custom_generate/requirements.txt"]


@pytest.mark.parametrize("linked", ["custom_generate", *NAMES_WRITTEN])
@pytest.mark.parametrize("target", ["outside", "inside", "nowhere"])
def test_force_writes_through_no_link(tmp_path, linked, target):
    """Wherever it leads: what lies there stays, and no other file is written."""
    folder, outside = tmp_path / "exported", tmp_path / "outside"
    for place in (folder, outside):
        place.mkdir()
    mine = {"outside": outside, "inside": folder}.get(target, tmp_path / "nowhere") / "mine"
    if target != "nowhere":
        mine.mkdir() if linked == "custom_generate" else mine.write_text("mine")
    link = folder / linked
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(mine)
    before = sorted(tmp_path.rglob("*"))
    said = refused("vdd", str(folder), "--force").replace(chr(92), "/")
    assert f"{linked} is a link, through which nothing is written: remove it" in said
    assert sorted(tmp_path.rglob("*")) == before and link.is_symlink()
    assert target == "nowhere" or mine.is_dir() or mine.read_text() == "mine"


def test_force_leaves_the_other_names_of_a_file_alone(tmp_path):
    folder, mine = tmp_path / "exported", tmp_path / "mine"
    folder.mkdir()
    mine.write_text("mine")
    os.link(mine, folder / "README.md")
    os.mkfifo(folder / "pipe")
    (folder / "custom_generate").mkdir()
    os.mkfifo(folder / "custom_generate" / "generate.py")  # to open it would be to wait
    assert run("export", "vdd", str(folder), "--force").exit_code == 0
    assert mine.read_text() == "mine"
    assert (folder / "README.md").read_text().startswith("---")
    assert (folder / "custom_generate" / "generate.py").is_file()
    assert sorted(path.name for path in (folder / "custom_generate").iterdir()) == [
        "generate.py", "requirements.txt",
    ]  # fmt: skip


def test_a_folder_may_be_reached_by_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert run("export", "vdd", str(tmp_path / "link")).exit_code == 0
    assert (tmp_path / "real" / "README.md").is_file()


@pytest.mark.parametrize("name", ["x" * 300, "a/" * 3000, "a" * 5000, "a\0b", "\ud800", "loop/a"])
def test_names_that_no_folder_can_have_are_refused_in_a_sentence(tmp_path, name):
    (tmp_path / "loop").symlink_to("loop")
    for force in (False, True):
        with pytest.raises(ValueError, match="cannot be written: ") as caught:
            VDD().save_pretrained(tmp_path / name, force=force)
        assert len(str(caught.value)) < 500 and str(caught.value).count("\n") == 0


def test_force_replaces_its_own_files_and_no_others(llava, tmp_path):
    model, make_inputs = llava
    (tmp_path / "weights").write_text("mine")
    inputs = make_inputs(PROMPTS)
    for alpha in (2.0, 0.0):  # transformers does not run the first one again
        result = run("export", "vdd", str(tmp_path), "--force", "--set", f"alpha={alpha}")
        assert result.exit_code == 0, result.output
        expected = generated(model, inputs, VDD(alpha=alpha))
        assert same(generated(model, inputs, str(tmp_path)), expected)
    assert (tmp_path / "weights").read_text() == "mine"


def test_the_version_is_the_one_that_wrote_it(exported):
    folder = Path(exported("vdd"))
    for name in ("README.md", "custom_generate/generate.py"):
        assert f"Written by sightline {sightline.__version__}" in (folder / name).read_text("utf-8")
