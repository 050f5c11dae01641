"""Decoders as folders in the hub's `custom_generate` layout, which `generate` runs by path."""

import inspect
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, GenerationMixin

import sightline
from sightline.checkpoints import load_processor
from sightline.choices import Choice
from sightline.codegen import Code, Group, call, literal, piece
from sightline.lab import CHECKPOINT
from sightline.messages import LONGEST, clipped
from sightline.specs import FILLED, Request, paper, read_arguments, settable

CODE = '''\
"""{paper}.

Written by sightline {version}; transformers calls it, as README.md shows.
"""

from packaging.version import Version

NEEDED = (
    "{kind} needs sightline-vlm, {version} or newer and below {end}: "
    'pip install "{requirement}". '
    "The package of PyPI that is called sightline is another project"
)

# Under `try`, where transformers does not look: it would ask for a package called sightline.
try:
    from sightline import {kind}, __version__
except ImportError as error:
    raise ImportError(f"{{NEEDED}}. Here: {{error}}") from error
if not Version("{version}") <= Version(__version__) < Version("{end}"):
    raise ImportError(f"{{NEEDED}}. Here: {{__version__}}")


{signature}
    """The model's own `generate` with {kind}, whose settings hold for this call."""
    if arguments.get("assistant_model") is not None:
        raise ValueError("{kind} decodes without another model: leave assistant_model out")
{decoder}
    arguments.setdefault("token_streamer", streamer)
    # Of the class: a model that was loaded from this folder has this function in its place.
    return type(model).generate(model, custom_generate=decoder, **arguments)
'''
REQUIREMENTS = """\
# Imported as sightline. The package of PyPI that is called so is another project.
{requirement}
"""
README = """\
---
library_name: transformers
pipeline_tag: image-text-to-text
tags:
- custom_generate
---

# {kind} for `generate`

{about}

{paper}.

Written by sightline {version}. It decodes with any vision-language model of transformers whose
pictures stand in the prompt as placeholder tokens.

## Use

It needs sightline, {version} or newer and below {end}: `pip install "{requirement}"`. The package
of PyPI that is called sightline is another project.

```python
{snippet}
```

{passed}Everything else is passed as to `generate` without this folder, and the output is the same.
With `return_dict_in_generate=True` and `output_logits=True` it also carries `branch_logits`.
Beside a checkpoint's own files, `from_pretrained(..., trust_remote_code=True)` makes this the
`generate` of the model that it loads.

## Settings

Each can be given in a call, by its name, and holds for that call{fixed}.

{table}

## Limits

- `custom_generate` must be a string: transformers ignores a `pathlib.Path` and decodes as always.
- Tokens are streamed with `streamer=`, except in beam search.
- Stop strings are passed as `StopStringCriteria` in `stopping_criteria`.
- An `assistant_model` is refused.
- Each call makes the decoder anew: nothing is kept from one call to the next.
"""
SNIPPET = """\
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("llava-hf/llava-1.5-7b-hf")
processor = AutoProcessor.from_pretrained("llava-hf/llava-1.5-7b-hf")
picture = Image.open("picture.jpg").convert("RGB")
asked = [{{"type": "image", "image": picture}}, {{"type": "text", "text": "Describe the image."}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": asked}}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
).to(model.device, model.dtype)
output = model.generate(
    **inputs,
    max_new_tokens=128,
    custom_generate={folder},  # the path of this folder, or its name on the hub
    trust_remote_code=True,{further}
)
answer = output[0, inputs["input_ids"].shape[1] :]
print(processor.decode(answer, skip_special_tokens=True))\
"""
DISTRIBUTION = "sightline-vlm"
PROCESSOR = "Each call needs `processor=`, the model's own. "
EXACT = (
    "With `processor=`, the model's own, prompts without the image are exact, whatever it writes "
    "around an image. "
)
IMAGES = (
    "Each call needs `images=`, the picture as it was before the processor took it, or a list of "
    "all pictures of the batch in order. "
)


def export(choice: Choice, folder: str | Path, *, force: bool = False) -> list[Path]:
    """Writes a decoder as a folder that `generate` takes by its path.

    `model.generate(**inputs, custom_generate="folder", trust_remote_code=True)` then gives the
    tokens of `model.generate(**inputs, custom_generate=decoder)`.

    Args:
        choice: A decoder with its settings.
        folder: Is made where it does not exist.
        force: Writes into a folder that is not empty: files of the same names are replaced, and
            all others stay.

    Returns:
        The files.

    Raises:
        ValueError: For the model's own decoding, settings that the decoder refuses, and a folder
            that is not empty, holds links where files are written, or cannot be written.
    """
    request, folder = choice.request, Path(folder)
    if request is None:
        raise ValueError(
            f"{choice.label} is the model's own decoding, which needs no folder: name a decoder"
        )
    # Some decoders read their processor when they are made; any will do.
    decoder = request.build(load_processor(str(CHECKPOINT)))
    arguments = list(exported(decoder))
    shown = clipped(folder, 3 * LONGEST)
    try:
        check_folder(folder, shown, force)
        texts = {
            "README.md": readme(request, decoder, arguments, folder.resolve().name),
            "custom_generate/generate.py": code(type(decoder), arguments),
            "custom_generate/requirements.txt": REQUIREMENTS.format(**versions()),
        }
        check_links(folder, texts)
        return [write(folder / name, text) for name, text in texts.items()]
    except Refused:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{shown} cannot be written: {clipped(reason)}") from error


class Refused(ValueError):
    """A folder that is left alone."""


def check_folder(folder: Path, shown: str, force: bool) -> None:
    """Raises `Refused` for what may not be written to."""
    if folder.exists() and not folder.is_dir():
        raise Refused(f"{shown} is a file: name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise Refused(
            f"{shown} is not empty: name another folder, or --force, which replaces README.md and "
            "what lies in custom_generate/ under the same names and leaves all else"
        )


def check_links(folder: Path, names: Iterable[str]) -> None:
    """Raises `Refused` where a file, or a folder between, is a link, which may lead outside."""
    written = [folder / name for name in names]
    for path in sorted({*written, *(path.parent for path in written)} - {folder}):
        if path.is_symlink():
            raise Refused(
                f"{clipped(path, 3 * LONGEST)} is a link, through which nothing is written: remove "
                "it, or name another folder"
            )


def write(path: Path, text: str) -> Path:
    """A new file in the place of an old one, whose other names (hard links) keep the old text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder, path.name)
        made.write_text(text, encoding="utf-8")
        made.replace(path)
    return path


@dataclass(frozen=True)
class Argument:
    """A field of a decoder, as an argument of the exported function.

    Args:
        name: Of the field.
        value: As exported.
        usual: The range in which it is usually tried; empty where none was noted.
        meaning: From the decoder's docstring.
    """

    name: str
    value: Any
    usual: str
    meaning: str

    @property
    def is_fixed(self) -> bool:
        """Whether the name is one of `generate`'s own, so that calls cannot set the field."""
        own = inspect.signature(GenerationMixin.generate).parameters
        return self.name in own or hasattr(GenerationConfig(), self.name)


def exported(decoder: Any) -> Iterator[Argument]:
    """The decoder's settings, and what it takes besides that can be left out: a processor, ..."""
    known, meanings = settable(type(decoder)), read_arguments(inspect.getdoc(decoder) or "")
    for field in fields(decoder):
        if field.name in known:
            value, usual = getattr(decoder, field.name), str(known[field.name].usual or "")
        elif field.init and field.default is None:
            value, usual = None, ""
        else:
            continue
        yield Argument(field.name, value, usual, meanings.get(field.name, ""))


def code(kind: type, arguments: Sequence[Argument]) -> str:
    """The module that transformers loads, as `ruff format` leaves it."""
    free = [(f"{each.name}=", piece(each.value)) for each in arguments if not each.is_fixed]
    taken = [("", Code("model")), ("", Code("*")), *free]
    taken += [("", Code("streamer=None")), ("", Code("**arguments"))]
    given = {each.name: each.value if each.is_fixed else Code(each.name) for each in arguments}
    return CODE.format(
        paper=paper(kind),
        **versions(),
        kind=kind.__name__,
        signature="\n".join(Group("generate(", tuple(taken), ")").lines(lead="def ", tail=":")),
        decoder="\n".join(call(kind.__name__, **given).lines(indent=4, lead="decoder = ")),
    )


def versions() -> dict[str, str]:
    """Of sightline: that which writes, the next that may break what it wrote, and both for pip."""
    version, end = sightline.__version__, breaking(sightline.__version__)
    return {"version": version, "end": end, "requirement": f"{DISTRIBUTION}>={version},<{end}"}


def breaking(version: str) -> str:
    """ "0.1.2" -> "0.2", "1.2.3" -> "2"."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return f"{major + 1}" if major else f"0.{minor + 1}"


def readme(request: Request, decoder: Any, arguments: Sequence[Argument], folder: str) -> str:
    """The folder's card."""
    kind = type(decoder)
    is_needed = needs_processor(request)
    takes = any(each.name == FILLED for each in arguments)
    needed = {
        "processor=processor": (is_needed or takes, PROCESSOR if is_needed else EXACT),
        "images=picture": (getattr(decoder, "needs_images", False), IMAGES),
    }
    passed = {argument: text for argument, (is_needed, text) in needed.items() if is_needed}
    fixed = " and ".join(f"`{each.name}`" for each in arguments if each.is_fixed)
    return README.format(
        kind=kind.__name__,
        about=about(kind),
        paper=re.sub(r"arXiv:([\d.]+\d)", r"[arXiv:\1](https://arxiv.org/abs/\1)", paper(kind)),
        **versions(),
        snippet=SNIPPET.format(
            folder=literal(folder),
            further="".join(f"\n    {argument}," for argument in passed),
        ),
        passed="".join(passed.values()),
        fixed=f"; but not {fixed}, of which `generate` has its own" if fixed else "",
        table="\n".join(table(arguments)),
    )


def needs_processor(request: Request) -> bool:
    """Whether the decoder cannot be made without one."""
    try:
        request.build(None)
    except ValueError:
        return True
    return False


def about(kind: type) -> str:
    """What a decoder's docstring says of it, but for the arguments."""
    paragraphs = (inspect.getdoc(kind) or "").split("\n\n")
    return "\n\n".join(text for text in paragraphs if not text.startswith("Args:"))


def table(arguments: Sequence[Argument]) -> Iterator[str]:
    """Lines of a Markdown table."""
    yield "| name | here | usual range | what it is |"
    yield "|---|---|---|---|"
    for each in arguments:
        cells = (f"`{each.name}`", quoted(piece(each.value).flat), each.usual, each.meaning)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def quoted(text: str) -> str:
    """Markdown's code, whatever backticks are in it."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence, pad = "`" * (longest + 1), " " * bool(longest)
    return f"{fence}{pad}{text}{pad}{fence}"
