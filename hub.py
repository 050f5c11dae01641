"""Decoders as folders in the hub's `custom_generate` layout, which `generate` runs by path."""

import inspect
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

from transformers import GenerationConfig, GenerationMixin

import sightline
from sightline.codegen import Code, Group, Piece, call, group, literal, piece
from sightline.docstrings import about, paper, read_arguments
from sightline.messages import LONGEST, clipped
from sightline.serialization import GIVEN, parts_of, settings_of, to_dict
from sightline.settings import Checked, Limits, hints_of

CODE = '''\
"""{papers}

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
    {imports}
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

{papers}

Written by sightline {version}. It decodes with any vision-language model of transformers whose
images stand in the prompt as placeholder tokens.

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
image = Image.open("image.jpg").convert("RGB")
asked = [{{"type": "image", "image": image}}, {{"type": "text", "text": "Describe the image."}}]
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
    "Each call needs `images=`, the image as it was before the processor took it, or a list of "
    "all images of the batch in order. "
)


def export(decoder: Any, folder: str | Path, *, force: bool = False, name: str = "") -> list[Path]:
    """Writes a decoder as a folder that `generate` takes by its path.

    `model.generate(**inputs, custom_generate="folder", trust_remote_code=True)` then gives the
    tokens of `model.generate(**inputs, custom_generate=decoder)`.

    Args:
        decoder: Its processor is not written; each call gives one.
        folder: Is made where it does not exist.
        force: Writes into a folder that is not empty: files of the same names are replaced, and
            all others stay.
        name: What its card calls it; the folder's own name where that is empty.

    Returns:
        The files.

    Raises:
        ValueError: For a decoder that cannot be written as code, and a folder that is not empty,
            holds links where files are written, or cannot be written.
    """
    check_writable(decoder)
    folder = Path(folder)
    arguments = list(exported(decoder))
    shown = clipped(folder, 3 * LONGEST)
    try:
        check_folder(folder, shown, force)
        texts = {
            "README.md": readme(decoder, arguments, name or folder.resolve().name),
            "custom_generate/generate.py": code(decoder, arguments),
            "custom_generate/requirements.txt": REQUIREMENTS.format(**versions()),
        }
        check_links(folder, texts)
        return [write(folder / name, text) for name, text in texts.items()]
    except Refused:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{shown} cannot be written: {clipped(reason)}") from error


def push(decoder: Any, repo: str, **arguments: Any) -> str:
    """Writes a decoder to a repository of the hub, which is made where there is none.

    Args:
        repo: "name" or "organization/name".
        arguments: Of `huggingface_hub`'s `upload_folder` (`commit_message`, `token`, `revision`).

    Returns:
        The address of the commit.
    """
    from huggingface_hub import HfApi

    check_writable(decoder)
    hub = HfApi(token=arguments.pop("token", None))
    name = hub.create_repo(repo, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as folder:
        export(decoder, folder, name=name)
        return str(hub.upload_folder(repo_id=name, folder_path=folder, **arguments))


def check_writable(decoder: Any) -> None:
    """Raises `ValueError` unless code can make the decoder again by public names."""
    to_dict(decoder)  # raises for settings that are no values
    for part in parts_of(decoder):
        name = type(part).__name__
        if getattr(sightline, name, None) is not type(part):
            raise ValueError(
                f"{name} is no public class of sightline, so code cannot import it: write a "
                "decoder of public parts"
            )


class Refused(ValueError):
    """A folder that is left alone."""


def check_folder(folder: Path, shown: str, force: bool) -> None:
    """Raises `Refused` for what may not be written to."""
    if folder.exists() and not folder.is_dir():
        raise Refused(f"{shown} is a file: name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise Refused(
            f"{shown} is not empty: name another folder, or --force (force=True), which replaces "
            "README.md and what lies in custom_generate/ under the same names and leaves all else"
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
    def is_generates(self) -> bool:
        """Whether `generate` has an argument of this name."""
        own = inspect.signature(GenerationMixin.generate).parameters
        return self.name in own or hasattr(GenerationConfig(), self.name)

    @property
    def is_fixed(self) -> bool:
        """Whether calls cannot set the field: parts are made in the function itself."""
        return self.is_generates or len(list(parts_of(self.value))) > 0


def exported(decoder: Any) -> Iterator[Argument]:
    """The decoder's settings, and its processor where it, or a part of it, takes one."""
    kind: Any = type(decoder)
    hints, meanings = hints_of(kind), read_arguments(inspect.getdoc(kind) or "")
    for each in fields(kind):
        if each.init:
            value = None if each.name == GIVEN else getattr(decoder, each.name)
            usual = usual_range(hints.get(each.name))
            yield Argument(each.name, value, usual, meanings.get(each.name, ""))
    if not takes_processor(decoder) and any(map(takes_processor, parts_of(decoder))):
        yield Argument(GIVEN, None, "", "The model's own.")


def takes_processor(part: Any) -> bool:
    return GIVEN in {each.name for each in fields(part)}


def usual_range(hint: Any) -> str:
    """What is noted beside a field's type and is no limit: where it is usually tried."""
    notes = get_args(hint)[1:]
    return ", ".join(str(n) for n in notes if hasattr(n, "low") and not isinstance(n, Limits))


def expression(value: Any, **given: Any) -> Piece:
    """Code that makes a setting's value; of a part, with these in the place of its settings."""
    if isinstance(value, Checked):
        filled = {GIVEN: Code(GIVEN)} if takes_processor(value) else {}
        settings = {e.name: getattr(value, e.name) for e in settings_of(type(value))}
        named = {name: expression(own) for name, own in settings.items()}
        return call(type(value).__name__, **{**filled, **named, **given})
    if isinstance(value, tuple):
        return group("(", [expression(each) for each in value], ")")
    return piece(value)


def code(decoder: Any, arguments: Sequence[Argument]) -> str:
    """The module that transformers loads, as `ruff format` leaves it."""
    free = [each for each in arguments if not each.is_fixed]
    taken: list[tuple[str, Piece]] = [("", Code("model")), ("", Code("*"))]
    taken += [(f"{each.name}=", piece(each.value)) for each in free]
    taken += [("", Code("streamer=None")), ("", Code("**arguments"))]
    own = {each.name for each in fields(decoder)}
    given = {each.name: Code(each.name) for each in free if each.name in own}
    names = sorted({type(part).__name__ for part in parts_of(decoder)}, key=import_order)
    return CODE.format(
        papers="\n".join(papers(decoder)),
        **versions(),
        kind=type(decoder).__name__,
        imports=f"from sightline import {', '.join((*names, '__version__'))}",
        signature="\n".join(Group("generate(", tuple(taken), ")").lines(lead="def ", tail=":")),
        decoder="\n".join(expression(decoder, **given).lines(indent=4, lead="decoder = ")),
    )


def import_order(name: str) -> tuple[bool, str]:
    """As `ruff` sorts names: those in capitals are first."""
    return not name.isupper(), name


def papers(decoder: Any) -> list[str]:
    """Method and paper of each decoder, a sentence each."""
    found = dict.fromkeys(f"{paper(type(part))}." for part in parts_of(decoder))
    return [text for text in found if "arXiv:" in text] or [f"{type(decoder).__name__}, a decoder."]


def versions() -> dict[str, str]:
    """Of sightline: that which writes, the next that may break what it wrote, and both for pip."""
    version, end = sightline.__version__, breaking(sightline.__version__)
    return {"version": version, "end": end, "requirement": f"{DISTRIBUTION}>={version},<{end}"}


def breaking(version: str) -> str:
    """ "0.1.2" -> "0.2", "1.2.3" -> "2"."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return f"{major + 1}" if major else f"0.{minor + 1}"


def readme(decoder: Any, arguments: Sequence[Argument], folder: str) -> str:
    """The folder's card."""
    kind = type(decoder)
    is_needed = any(map(needs_processor, parts_of(decoder)))
    takes = any(each.name == GIVEN for each in arguments)
    needed = {
        "processor=processor": (is_needed or takes, PROCESSOR if is_needed else EXACT),
        "images=image": (getattr(decoder, "needs_images", False), IMAGES),
    }
    passed = {argument: text for argument, (is_needed, text) in needed.items() if is_needed}
    return README.format(
        kind=kind.__name__,
        about=about(kind),
        papers=re.sub(
            r"arXiv:([\d.]+\d)",
            r"[arXiv:\1](https://arxiv.org/abs/\1)",
            "\n".join(papers(decoder)),
        ),
        **versions(),
        snippet=SNIPPET.format(
            folder=literal(folder),
            further="".join(f"\n    {argument}," for argument in passed),
        ),
        passed="".join(passed.values()),
        fixed=fixed(arguments),
        table="\n".join(table(arguments)),
    )


def fixed(arguments: Sequence[Argument]) -> str:
    """Which settings a call cannot give, and why not, for the end of a sentence."""
    own = " and ".join(f"`{each.name}`" for each in arguments if each.is_generates)
    made = " and ".join(f"`{e.name}`" for e in arguments if e.is_fixed and not e.is_generates)
    return (f"; but not {own}, of which `generate` has its own" if own else "") + (
        f"; but not {made}, made of parts" if made else ""
    )


def needs_processor(part: Any) -> bool:
    """Whether it cannot be made without one."""
    if not takes_processor(part):
        return False
    try:
        replace(part, **{GIVEN: None})
    except ValueError:
        return True
    return False


def table(arguments: Sequence[Argument]) -> Iterator[str]:
    """Lines of a Markdown table."""
    yield "| name | here | usual range | what it is |"
    yield "|---|---|---|---|"
    for each in arguments:
        cells = (f"`{each.name}`", quoted(expression(each.value).flat), each.usual, each.meaning)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def quoted(text: str) -> str:
    """Markdown's code, whatever backticks are in it."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence, pad = "`" * (longest + 1), " " * bool(longest)
    return f"{fence}{pad}{text}{pad}{fence}"
