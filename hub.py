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
from sightline.codegen import Code, Group, call, literal, piece
from sightline.lab import CHECKPOINT
from sightline.messages import LONGEST, clipped, short
from sightline.specs import FILLED, Spec, paper, read_arguments, settable

CODE = '''\
"""{papers}.

Written by sightline {version}; transformers calls it, as README.md shows.
"""

from packaging.version import Version

NEEDED = (
    "{name} needs sightline-vlm, {version} or newer and below {end}: "
    'pip install "{requirement}". '
    "The package of PyPI that is called sightline is another project"
)

# Under `try`, where transformers does not look: it would ask for a package called sightline.
try:
    from sightline import {kinds}, __version__
except ImportError as error:
    raise ImportError(f"{{NEEDED}}. Here: {{error}}") from error
if not Version("{version}") <= Version(__version__) < Version("{end}"):
    raise ImportError(f"{{NEEDED}}. Here: {{__version__}}")


{signature}
    """The model's own `generate` with {name}, whose settings hold for this call."""
    if arguments.get("assistant_model") is not None:
        raise ValueError("{name} decodes without another model: leave assistant_model out")
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

# {name} for `generate`

{about}

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


def export(spec: Spec, folder: str | Path, *, force: bool = False) -> list[Path]:
    """Writes a decoder as a folder that `generate` takes by its path.

    `model.generate(**inputs, custom_generate="folder", trust_remote_code=True)` then gives the
    tokens of `model.generate(**inputs, custom_generate=decoder)`.

    Args:
        spec: Decoders with their settings; how tokens are taken is said in a call.
        folder: Is made where it does not exist.
        force: Writes into a folder that is not empty: files of the same names are replaced, and
            all others stay.

    Returns:
        The files.

    Raises:
        ValueError: For the model's own decoding, settings that the decoder refuses, and a folder
            that is not empty, holds links where files are written, or cannot be written.
    """
    folder = Path(folder)
    if spec.is_plain:
        raise ValueError(
            f"{spec.label} is the model's own decoding, which needs no folder: name a decoder"
        )
    if spec.way is not None:
        raise ValueError(
            f"a folder holds a decoder, and how tokens are taken is said in each call: leave "
            f"{spec.way} out of {short(spec.label)}, and pass do_sample= or num_beams= to generate"
        )
    # Some decoders read their processor when they are made; any will do.
    exported = Exported.of(spec, load_processor(str(CHECKPOINT)))
    shown = clipped(folder, 3 * LONGEST)
    try:
        check_folder(folder, shown, force)
        texts = {
            "README.md": readme(exported, folder.resolve().name),
            "custom_generate/generate.py": code(exported),
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
        name: Of the field, and before it the decoder's where several are added.
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

    @property
    def given(self) -> Any:
        """What the decoder is made with."""
        return self.value if self.is_fixed else Code(self.name)


@dataclass(frozen=True)
class Exported:
    """What is written down.

    Args:
        spec: As it was asked for.
        decoder: Made of it.
        kinds: Classes of the decoders that are added.
        arguments: Of each decoder by field, in their order.
    """

    spec: Spec
    decoder: Any
    kinds: tuple[type, ...]
    arguments: tuple[dict[str, Argument], ...]

    @classmethod
    def of(cls, spec: Spec, processor: Any) -> "Exported":
        """Raises `ValueError` for settings that a decoder refuses."""
        decoders = [method.build(processor) for method in spec.methods]
        prefixes = [""] if len(decoders) == 1 else prefixes_of(spec)
        arguments = tuple(map(arguments_of, decoders, prefixes))
        return cls(spec, spec.build(processor), tuple(map(type, decoders)), arguments)

    @property
    def name(self) -> str:
        """Of its classes."""
        return " + ".join(kind.__name__ for kind in self.kinds)

    @property
    def all_arguments(self) -> list[Argument]:
        """Each once: the processor is the same for all."""
        return list({each.name: each for own in self.arguments for each in own.values()}.values())

    def construction(self) -> Iterator[str]:
        """Lines that make `decoder` of the arguments."""
        several = len(self.kinds) > 1
        names = [name.rstrip("_") for name in prefixes_of(self.spec)] if several else ["decoder"]
        for name, kind, own in zip(names, self.kinds, self.arguments, strict=True):
            made = call(kind.__name__, **{field: each.given for field, each in own.items()})
            yield from made.lines(indent=4, lead=f"{name} = ")
        if several:
            yield f"    decoder = {' + '.join(names)}"


def prefixes_of(spec: Spec) -> list[str]:
    """What tells settings of decoders that are added apart; numbered where one is there twice."""
    names = [method.base.replace("-", "_") for method in spec.methods]
    return [
        f"{name}{names[: i + 1].count(name)}_" if names.count(name) > 1 else f"{name}_"
        for i, name in enumerate(names)
    ]


def arguments_of(decoder: Any, prefix: str) -> dict[str, Argument]:
    """The decoder's settings, and what it takes besides that can be left out: a processor, ..."""
    known, meanings = settable(type(decoder)), read_arguments(inspect.getdoc(decoder) or "")
    found = {}
    for field in fields(decoder):
        name, usual, value = f"{prefix}{field.name}", "", None
        if field.name in known:
            value, usual = getattr(decoder, field.name), str(known[field.name].usual or "")
        elif field.name == FILLED:
            name = FILLED
        elif not field.init or field.default is not None:
            continue
        found[field.name] = Argument(name, value, usual, meanings.get(field.name, ""))
    return found


def code(exported: Exported) -> str:
    """The module that transformers loads, as `ruff format` leaves it."""
    free = [(f"{e.name}=", piece(e.value)) for e in exported.all_arguments if not e.is_fixed]
    taken = [("", Code("model")), ("", Code("*")), *free]
    taken += [("", Code("streamer=None")), ("", Code("**arguments"))]
    kinds = sorted({kind.__name__ for kind in exported.kinds})
    return CODE.format(
        papers=".\n".join(dict.fromkeys(map(paper, exported.kinds))),
        **versions(),
        name=exported.name,
        kinds=", ".join(kinds),
        signature="\n".join(Group("generate(", tuple(taken), ")").lines(lead="def ", tail=":")),
        decoder="\n".join(exported.construction()),
    )


def versions() -> dict[str, str]:
    """Of sightline: that which writes, the next that may break what it wrote, and both for pip."""
    version, end = sightline.__version__, breaking(sightline.__version__)
    return {"version": version, "end": end, "requirement": f"{DISTRIBUTION}>={version},<{end}"}


def breaking(version: str) -> str:
    """ "0.1.2" -> "0.2", "1.2.3" -> "2"."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return f"{major + 1}" if major else f"0.{minor + 1}"


def readme(exported: Exported, folder: str) -> str:
    """The folder's card."""
    arguments, is_needed = exported.all_arguments, needs_processor(exported.spec)
    takes = any(each.name == FILLED for each in arguments)
    needed = {
        "processor=processor": (is_needed or takes, PROCESSOR if is_needed else EXACT),
        "images=picture": (exported.decoder.needs_images, IMAGES),
    }
    passed = {argument: text for argument, (is_needed, text) in needed.items() if is_needed}
    fixed = " and ".join(f"`{each.name}`" for each in arguments if each.is_fixed)
    return README.format(
        name=exported.name,
        about="\n\n".join(map(about, dict.fromkeys(exported.kinds))),
        **versions(),
        snippet=SNIPPET.format(
            folder=literal(folder),
            further="".join(f"\n    {argument}," for argument in passed),
        ),
        passed="".join(passed.values()),
        fixed=f"; but not {fixed}, of which `generate` has its own" if fixed else "",
        table="\n".join(table(arguments)),
    )


def needs_processor(spec: Spec) -> bool:
    """Whether the decoder cannot be made without one."""
    try:
        spec.build(None)
    except ValueError:
        return True
    return False


def about(kind: type) -> str:
    """What a decoder's docstring says of it, but for the arguments, and its paper."""
    paragraphs = (inspect.getdoc(kind) or "").split("\n\n")
    says = [text for text in paragraphs if not text.startswith("Args:")]
    linked = re.sub(r"arXiv:([\d.]+\d)", r"[arXiv:\1](https://arxiv.org/abs/\1)", paper(kind))
    return "\n\n".join([*says, f"{linked}."])


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
