"""Inputs with known results: ours in golden/, what others wrote beside the repository."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).parent / "golden"
BESIDE = Path(__file__).parents[2] / "shared" / "evaluation"
SHARED = Path(os.environ.get("SIGHTLINE_SHARED", BESIDE))
needs_published = pytest.mark.skipif(
    not SHARED.is_dir(),
    reason="rows and captions that others wrote are not in the repository, nor beside it",
)
CHECKPOINTS = SHARED.parent / "checkpoints"
needs_facts = pytest.mark.skipif(
    not CHECKPOINTS.is_dir(), reason="shared/checkpoints is not beside the repository"
)


def facts(name: str) -> dict[str, Any]:
    """What is known of a real checkpoint: its tokens, template and processor."""
    return _read(CHECKPOINTS / f"{name}.json")


def golden(name: str) -> tuple[Any, Any]:
    """Hand-made inputs and what the original script makes of them."""
    return _read(GOLDEN / name / "inputs.json"), _read(GOLDEN / name / "expected.json")


def published(path: str) -> Any:
    """A JSON file that others wrote, by its path in the folder beside the repository."""
    return _read(SHARED / path)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
