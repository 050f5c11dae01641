"""The short forms of `benchmarks/attack.py`: what must hold when somebody tries to break it."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import attack
import attack_files


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(
            "visitors",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="memory is read in /proc"),
        ),
        "images",
    ],
)
def test_a_short_attack_is_withstood(part):
    # In a process of its own: memory of children is compared with that of what started them.
    script = Path(attack.__file__)
    done = subprocess.run([sys.executable, script, part, "--short"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_file_has_a_name_of_its_own():
    names = [name for name, _ in [*attack_files.sound(), *attack_files.hostile(short=True)]]
    assert len(names) == len(set(names))
    assert len(names) > 100


def test_a_part_that_breaks_has_not_passed(monkeypatch):
    monkeypatch.setattr(attack.importlib, "import_module", lambda name: 1 / 0)
    found = attack.run("visitors", short=True)
    assert found["passed"] is False and found["error"].startswith("ZeroDivisionError")
