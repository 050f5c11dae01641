"""The prompt of every checkpoint of tests/checkpoints, and of every amateur, for a reader.

    PYTHONPATH=build/vision python -m tests.prompts --write

One line a prompt; decoders that compare with the same one share it, and those that compare with the
expert's own have none.
"""

import argparse
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # as pytest has it

import transformers
from checkpoints.decoders import decoders

from checkpoints import Checkpoint, load, names, random_image
from sightline.decoders import VDD
from sightline.engine.strategy import Decoder

PAGE = Path(__file__).parent / "checkpoints" / "prompts.txt"
QUESTION = "Is there a cup?"
SIZES = {
    "one image, 200 x 120": [(200, 120)],
    "two images, 200 x 120 and 90 x 140": [(200, 120), (90, 140)],
}
INTRODUCTION = f"""\
Prompts of tests/checkpoints, written by `{(__doc__ or "").splitlines()[2].strip()}` and held by
tests/test_checkpoints.py. "<image>*4 " is a special token four times; \\n a newline.
"expert" is the prompt as asked; below it stand those of the branches that decoders compare with.
"""


def amateurs_of(processor: Any) -> dict[str, Any]:
    """Decoders whose amateurs may have another prompt."""
    made = {"vdd bare": VDD(), **decoders(processor)}
    del made["damro"]  # the tower's attention, which it reads, is not in every model
    recipes = {name: d.recipe() for name, d in made.items() if isinstance(d, Decoder)}
    return {
        name: made[name]
        for name, recipe in recipes.items()
        if recipe.contrasts and not recipe.preparations and not recipe.needs_images
    }


def prompts_of(checkpoint: Checkpoint, sizes: Sequence[tuple[int, int]]) -> dict[str, list[str]]:
    """Prompts, and which decoders read them; the expert's first."""
    inputs = checkpoint.chat([random_image(*size) for size in sizes], QUESTION)
    expert = checkpoint.shown(inputs["input_ids"][0])
    found: dict[str, list[str]] = {}
    for name, decoder in amateurs_of(checkpoint.processor).items():
        try:
            branches = checkpoint.amateurs(inputs, decoder)
        except ValueError as refusal:
            found.setdefault(f"refused: {refusal}", []).append(name)
            continue
        for branch in branches:
            kept = branch.attention_mask[0].bool()
            found.setdefault(checkpoint.shown(branch.input_ids[0][kept]), []).append(name)
    return {expert: ["expert"], **{p: names for p, names in found.items() if p != expert}}


def lines_of(name: str) -> Iterator[str]:
    checkpoint = load(name)
    yield f"== {name}: {type(checkpoint.model).__name__}, {type(checkpoint.processor).__name__}"
    for title, sizes in SIZES.items():
        yield f"\n{title}"
        for prompt, readers in prompts_of(checkpoint, sizes).items():
            text = re.sub(r"20\d\d-\d\d-\d\d", "DATE", prompt.replace("\n", "\\n"))
            yield f"  {', '.join(readers)}: {text}".rstrip()


def page_of(name: str) -> str:
    """A checkpoint's part of the page."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return "\n".join(lines_of(name)) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes or prints the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.prompts", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"to {PAGE.name}; else print it")
    parser.add_argument("--only", nargs="*", help="checkpoints, for a look; all without it")
    options = parser.parse_args(arguments)
    transformers.utils.logging.set_verbosity_error()
    parts = [page_of(name) for name in options.only or names()]
    page = "\n\n".join([INTRODUCTION, *parts])
    if options.write:
        PAGE.write_text(page, encoding="utf-8")
    else:
        print(page)


if __name__ == "__main__":
    main()
