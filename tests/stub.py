"""What type checkers read of the package, __init__.pyi, written of the table in __init__.py.

python -m tests.stub
"""

from pathlib import Path

import sightline

STUB = Path(sightline.__file__).with_suffix(".pyi")


def stub() -> str:
    lines = ["# Written by `python -m tests.stub` of the table in __init__.py."]
    lines += [
        f"from sightline.{module} import {name} as {name}"
        for module, names in sightline._NAMES.items()
        for name in names
    ]
    return "\n".join([*lines, "", "__version__: str", "__all__: list[str]", ""])


if __name__ == "__main__":
    STUB.write_text(stub())
