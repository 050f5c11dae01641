"""Every example runs as it stands and says something."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from sightline.decoders import DECODERS

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


by_path = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)


@by_path
def test_example(path, tmp_path, monkeypatch, capsys):
    assert len(path.read_text().splitlines()) <= 45
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
    assert "image contains" in capsys.readouterr().out


@pytest.mark.slow
@by_path
def test_example_in_a_process_of_its_own(path, tmp_path):
    run = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert "image contains" in run.stdout, run.stdout


def test_examples_are_all_there():
    assert {path.stem for path in EXAMPLES} >= {
        "quickstart",
        "batch",
        "streaming",
        "compose",
        "own_decoder",
        "vdgd",
        "carve",
        "agla",
        "mvp",
        "icd",
        "m3id",
    }


@pytest.mark.parametrize("kind", DECODERS.values())
def test_every_method_has_an_example(kind):
    uses = re.compile(rf"\b{kind.__name__}[(.]")
    assert any(uses.search(path.read_text()) for path in EXAMPLES)
