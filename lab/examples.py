"""The images that ship with the package: decorrelated scenes, chosen by number alone.

python -m sightline.lab.examples --out DIR
"""

import argparse
from pathlib import Path

import numpy as np

from sightline.lab.scenes import decorrelated, save

EXAMPLES: dict[str, int] = {"table": 1, "corner": 2, "yard": 3, "shelf": 4, "crossing": 5}


def write(folder: Path) -> None:
    """Draws each example into the folder, its truth with it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, number in EXAMPLES.items():
        save(decorrelated(np.random.default_rng(number)), folder / f"{name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
