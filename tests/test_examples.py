"""Every example runs as it stands, in a process of its own, and says something."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sightline.decoders import DECODERS

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path, tmp_path):
    assert len(path.read_text().splitlines()) <= 45
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
