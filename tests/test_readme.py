"""Every Python snippet of the README runs, in order, in one namespace; commands exist."""

import re
from pathlib import Path

import pytest
from transformers import StopStringCriteria
from typer.testing import CliRunner

from sightline import VDD, cli
from sightline.chat import prompt_inputs
from sightline.decoders import DECODERS
from sightline.docstrings import paper
from sightline.lab import CHECKPOINT, IMAGES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def namespace():
    return {"__name__": "readme"}


SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippet(number, namespace, capsys):
    exec(compile(SNIPPETS[number], f"README snippet {number}", "exec"), namespace)
    if "print(" in SNIPPETS[number]:
        assert "image contains" in capsys.readouterr().out


@pytest.mark.parametrize("name", DECODERS)
def test_every_method_has_a_row_with_its_paper(name):
    kind = DECODERS[name]
    [arxiv] = re.findall(r"\(arXiv:([\d.]+)\)", paper(kind))
    row = rf"^\| `{kind.__name__}` \| [^|]+ \| \[{arxiv}\]\(https://arxiv.org/abs/{arxiv}\) \|$"
    assert len(re.findall(row, README, re.M)) == 1


def test_the_readmes_commands_exist():
    commands = set(re.findall(r"^sightline (\w+)", README, re.M))
    assert commands >= {"describe", "compare", "decoders", "demo"}
    for command in commands:
        result = CliRunner().invoke(cli.app, [command, "--help"])
        assert result.exit_code == 0, command
    for module in re.findall(r"python -m (sightline\.[\w.]+)", README):
        assert (ROOT / Path(*module.split(".")[1:])).with_suffix(".py").exists(), module


def test_stop_strings_go_in_stopping_criteria():
    """transformers drops `tokenizer=` in front of a strategy, and so refuses `stop_strings=`."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT)
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    inputs = prompt_inputs(model, processor, IMAGES / "corner.png", "Describe the image.")
    stop = StopStringCriteria(processor.tokenizer, [" contains"])
    out = model.generate(
        **inputs, max_new_tokens=30, custom_generate=VDD(), stopping_criteria=[stop]
    )
    text = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text.endswith(" contains")
    with pytest.raises(ValueError, match="tokenizer"):
        model.generate(
            **inputs, max_new_tokens=30, custom_generate=VDD(), stop_strings=[" contains"]
        )
