"""What a user sees of the package before any model is loaded."""

import subprocess
import sys

import pytest

import sightline


def seconds(code, rounds=3):
    """The least of a few runs of `code`, which prints a time, each in a new process."""
    times = []
    for _ in range(rounds):
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        times.append(float(run.stdout))
    return min(times)


def test_import_costs_under_0_3_s_beyond_transformers():
    code = """
import time, transformers
start = time.perf_counter()
import sightline
print(time.perf_counter() - start)
"""
    assert seconds(code) < 0.3


def test_import_alone_loads_no_torch():
    code = "import sightline, sys; print(float('torch' in sys.modules))"
    assert seconds(code, rounds=1) == 0.0


@pytest.mark.parametrize("name", sightline.__all__)
def test_public_names_exist_and_are_documented(name):
    value = getattr(sightline, name)
    assert name.startswith("__") or value.__doc__


def test_unknown_names_raise():
    with pytest.raises(AttributeError, match="has no attribute 'VDDD'"):
        sightline.VDDD  # noqa: B018
