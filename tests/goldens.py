"""Inputs with known results, which lie beside the repository."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

BESIDE = Path(__file__).parents[2] / "shared" / "evaluation"
SHARED = Path(os.environ.get("SIGHTLINE_SHARED", BESIDE))
needs_shared = pytest.mark.skipif(
    not (SHARED / "golden").is_dir(), reason="shared/evaluation is not beside the repository"
)
CHECKPOINTS = SHARED.parent / "checkpoints"
needs_facts = pytest.mark.skipif(
    not CHECKPOINTS.is_dir(), reason="shared/checkpoints is not beside the repository"
)


def facts(name: str) -> dict[str, Any]:
    """What is known of a real checkpoint: its tokens, template and processor."""
    return json.loads((CHECKPOINTS / f"{name}.json").read_text(encoding="utf-8"))


def golden(name: str, part: str = "") -> tuple[Any, Any]:
    """Inputs and what the original script makes of them; `part` is a prefix such as "real_"."""
    folder = SHARED / "golden" / name
    inputs, expected = (
        json.loads((folder / f"{part}{kind}.json").read_text(encoding="utf-8"))
        for kind in ("inputs", "expected")
    )
    return inputs, expected
