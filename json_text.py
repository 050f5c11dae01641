"""JSON that every reader takes: RFC 8259 knows neither NaN nor infinities."""

import json
import math
from collections.abc import Mapping
from typing import Any


def json_text(value: Any, **layout: Any) -> str:
    """A value as JSON; numbers that are not finite, which mean "not defined" here, become null.

    Args:
        value: Of plain values, mappings, lists and tuples.
        layout: As `json.dumps` takes it: `indent=2`, `ensure_ascii=False`.
    """
    return json.dumps(finite(value), allow_nan=False, **layout)


def finite(value: Any) -> Any:
    """The same value with None in the place of numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
