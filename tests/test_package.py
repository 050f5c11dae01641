"""What a user sees of the package before any model is loaded, and the set of packages it needs."""

import re
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from stub import STUB, stub

import sightline

ROOT = Path(__file__).parents[1]
PINS = ("constraints.txt", "requirements.lock")
PIN = re.compile(r"([A-Za-z0-9._-]+)==([^\s;\\]+)")
TEXTS = ("*.py", "*.md", "*.toml", "*.txt", "*.lock", "Makefile")


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


def test_type_checkers_read_the_table():
    assert STUB.read_text() == stub(), "write it again: python -m tests.stub"
    assert len(set(sightline.__all__)) == len(sightline.__all__)


# Packages


def needed(name, extras=(), found=None):
    """Names of all distributions that one needs here, with what it needs for some extras."""
    found = {} if found is None else found
    for line in requires(name) or ():
        requirement = Requirement(line)
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key not in found:
            found[key] = requirement
            needed(requirement.name, requirement.extras, found)
    return {name for name, _ in found}


def pins(file):
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    return dict(match.groups() for line in lines if (match := PIN.match(line)))


def test_the_distribution_has_a_name_of_its_own():
    assert version("sightline-vlm") == sightline.__version__


@pytest.mark.parametrize("file", PINS)
def test_every_package_of_the_tested_set_is_pinned(file):
    """By its public version: a build of torch's own is another's on another machine."""
    pinned = pins(file)
    wanted = needed("sightline-vlm", ["dev"]) - {"sightline-vlm"}
    assert {"torch", "transformers", "markupsafe", "pytest", "triton"} <= wanted
    assert wanted - pinned.keys() == set()
    assert [name for name in pinned if name != canonicalize_name(name)] == []
    assert [pin for pin in pinned.values() if "+" in pin or "*" in pin] == []


def test_both_files_pin_the_same_and_the_lock_has_hashes():
    constraints, lock = map(pins, PINS)
    assert lock.items() <= constraints.items()
    entries = (ROOT / "requirements.lock").read_text(encoding="utf-8").split("\n")
    text = "\n".join(line for line in entries if not line.startswith("#")).replace("\\\n", " ")
    for entry in text.split("\n"):
        assert not entry or re.fullmatch(r"\S+==\S+( +--hash=sha256:[0-9a-f]{64})+", entry), entry


@pytest.mark.parametrize("file", PINS)
def test_no_file_of_versions_names_an_index_or_a_place(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    place = r"\w+://|\bfile:|@ |^-|--(?:index|extra-index|find|trusted)|(?<!\w)/\w"
    assert re.findall(place, text, re.MULTILINE) == []


def test_every_hint_names_the_distribution():
    """Whoever follows one must not install the other project that PyPI calls sightline."""
    files = {
        path for pattern in TEXTS for path in ROOT.rglob(pattern)
        if not {".venv", ".venv-oldest", "build", "runs", "sightline.egg-info"}
        & set(path.relative_to(ROOT).parts)
    }  # fmt: skip
    asking = re.compile(
        r"""(?:pip3? install|requirement)[^\n]*["' ]sightline(?![\w/-])|sightline\["""
    )
    found = {
        f"{path.name}: {match[0]}"
        for path in files - {Path(__file__)}
        for match in asking.finditer(path.read_text(encoding="utf-8"))
    }
    assert found == set()


def test_unknown_names_raise():
    with pytest.raises(AttributeError, match="has no attribute 'VDDD'"):
        sightline.VDDD  # noqa: B018
