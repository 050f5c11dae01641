r"""Decoders from text, wherever they are named: `vdd`, `vcd.paper:alpha=0.5+sample`, `vdd+vaf`.

    list    = spec { "," spec }                    greedy,vdd:alpha=0.5,beta=0.2,vcd+beam
    spec    = term { [","] "+" term }              vdd:alpha=0.5+vaf:enhance=0.2+sample
    term    = way | name ["." preset] [":" setting { "," setting }]
    setting = key "=" value { "+" value }          pai:layers=1+3
    way     = "greedy" | "sample" | "beam"

Terms that are decoders are added (`VDD() + VAF()`); a way, of which there is one at most, is how
tokens are taken, and alone it is the model's own decoding. A `+` before the name of a decoder or a
way joins terms, any other joins values of one setting. Where the setting before it takes words,
such a name could be either, which is refused: `,+vaf` is the decoder, and `+\vaf` the word. A
comma, a plus and a backslash of a text are written `\,`, `\+` and `\\`.

Which settings and presets there are, and how a value is read, comes from the decoder's class: its
fields, and its class methods that make one. So does what it says of itself: docstrings, and the
range in which a setting is usually tried.
"""

import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, replace
from difflib import get_close_matches
from functools import cache, cached_property, partial
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from sightline.decoders import NAMED
from sightline.engine.search_range import SearchRange
from sightline.engine.strategy import Combined, RecipeStrategy
from sightline.messages import clipped, short, unknown

FILLED = "processor"
"""The field that is filled in and not set by users."""
STAND_IN = types.SimpleNamespace(unk_token_id=0)
"""In the processor's place where a decoder is made to be looked at, and never run."""
GREEDY, SAMPLE, BEAM = "greedy", "sample", "beam"
WAYS: dict[str, dict[str, Any]] = {
    GREEDY: {"do_sample": False, "num_beams": 1},
    SAMPLE: {"do_sample": True, "num_beams": 1},
    BEAM: {"do_sample": False, "num_beams": 3},
}
"""How tokens are taken, as `generate` is told."""


@dataclass(frozen=True)
class Method:
    """One decoder with what is set of it.

    Args:
        name: In lower case, with a preset where one is meant: `vcd` or `vcd.pope_script`.
        texts: Settings by name, as `Reader` reads them; the others keep their defaults.

    Raises:
        ValueError: For an unknown name, preset or setting, listing those that exist, and for a
            value of another type.
    """

    name: str
    texts: tuple[tuple[str, str], ...] = ()

    def __post_init__(self):
        twice = {key for key, _ in self.texts if [k for k, _ in self.texts].count(key) > 1}
        for key in twice:
            raise ValueError(f"{key} of {self.name} is set twice")
        _ = self.settings

    @property
    def base(self) -> str:
        """The name without a preset."""
        return self.name.partition(".")[0]

    @cached_property
    def kind(self) -> type:
        return find(self.name)[0]

    @cached_property
    def preset(self) -> "Preset | None":
        return find(self.name)[1]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The values that are set, by name; the decoder has not checked them yet."""
        known = settable(self.kind)
        return {key: read_setting(self.name, known, key, text) for key, text in self.texts}

    @property
    def label(self) -> str:
        """The text that `parse_spec` reads."""
        written = ",".join(f"{key}={protected(text)}" for key, text in self.texts)
        return f"{self.name}:{written}" if written else self.name

    @property
    def takes_a_processor(self) -> bool:
        return FILLED in {setting.name for setting in fields(self.kind)}

    def build(self, processor: Any, wordings: Mapping[str, Any] | None = None) -> Any:
        """The decoder, with the processor where it takes one; `ValueError` for bad settings.

        Args:
            wordings: Settings that it has unless they are set.
        """
        settings = {**(wordings or {}), **self.settings}
        if self.takes_a_processor:
            settings[FILLED] = processor
        try:
            if self.preset is None:
                return self.kind(**settings)
            return replace(self.preset.decoder(processor), **settings)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{clipped(self.label)}: {error}") from error


@dataclass(frozen=True)
class Spec:
    """What a text asks for: decoders that are added, and how tokens are taken.

    Args:
        methods: None of them is the model's own decoding.
        way: One of `WAYS`. None: not said, so as the whole command or page says.

    Raises:
        ValueError: For what cannot be added, and for a way of a decoder that answers as a whole.
    """

    methods: tuple[Method, ...] = ()
    way: str | None = None

    def __post_init__(self):
        whole = [m for m in self.methods if not issubclass(m.kind, RecipeStrategy)]
        if whole and len(self.methods) > 1:
            raise ValueError(
                f"{whole[0].name} chooses a whole answer and cannot be added to another decoder: "
                f"name it alone, got {short(self.label)}"
            )
        if whole and self.way not in (None, GREEDY):
            raise ValueError(
                f"{whole[0].name} answers with its best label and takes no way to decode, got "
                f"{short(self.label)}"
            )

    @property
    def is_plain(self) -> bool:
        """Whether it is the model's own decoding."""
        return not self.methods

    @property
    def name(self) -> str:
        """Names of the decoders, or of the way of plain decoding, without presets and settings."""
        return "+".join(method.base for method in self.methods) or self.way or GREEDY

    @property
    def named_settings(self) -> tuple[str, dict[str, str]]:
        """A name with texts by setting, as forms have it, and `parse_spec` reads.

        What is more than one decoder with its settings is all in the name.
        """
        if len(self.methods) == 1 and self.way is None:
            return self.methods[0].name, dict(self.methods[0].texts)
        return self.label, {}

    @cached_property
    def label(self) -> str:
        """The text that `parse_spec` reads as an equal one."""
        terms = [(method.label, method.base) for method in self.methods]
        terms += [(self.way, self.way)] if self.way else []
        text, *others = terms
        joints = [joint(m, name) for m, (_, name) in zip(self.methods, others, strict=False)]
        further = (sign + label for sign, (label, _) in zip(joints, others, strict=True))
        return text[0] + "".join(further)

    def build(self, processor: Any, wordings: Mapping[str, Mapping[str, Any]] | None = None) -> Any:
        """The decoder; None for the model's own decoding.

        Args:
            wordings: By name of a decoder, settings that it has unless they are set.

        Raises:
            ValueError: For settings that a decoder refuses, and decoders that cannot be added.
        """
        words = wordings or {}
        made = [method.build(processor, words.get(method.base)) for method in self.methods]
        if len(made) < 2:
            return made[0] if made else None
        try:
            return Combined(tuple(made))
        except ValueError as error:
            raise ValueError(f"{clipped(self.label)}: {error}") from error

    def arguments(self, usual: str, temperature: float | None = None) -> dict[str, Any]:
        """How tokens are taken, for `generate`.

        Args:
            usual: The way, unless this says another.
            temperature: Of what is drawn. None: the checkpoint's.
        """
        way = self.way or usual
        heat = {"temperature": temperature} if way == SAMPLE and temperature else {}
        return {**WAYS[way], **heat}


def parse_spec(text: str, assignments: Sequence[str] = ()) -> Spec:
    """One spec, or `ValueError`.

    Args:
        assignments: Further settings of its only decoder, each a text `name=value` in which a
            comma is a comma.
    """
    found = parse_specs(text)
    if len(found) > 1:
        raise ValueError(
            f"{short(text)} names {len(found)} decoders, and one is wanted here: vdd+vaf adds two"
        )
    [spec] = found
    given = tuple(split_assignment(spec.label, each) for each in assignments)
    if not given:
        return spec
    if not spec.methods:
        raise ValueError(f"{spec.label} has no settings, got {clipped(', '.join(assignments))}")
    if len(spec.methods) > 1:
        raise ValueError(
            f"{spec.label} is several decoders, whose settings are written behind their names: "
            f"{spec.methods[0].name}:{clipped(assignments[0])}+{spec.methods[1].name}"
        )
    [method] = spec.methods
    return replace(spec, methods=(replace(method, texts=(*method.texts, *given)),))


@dataclass
class Term:
    """A decoder or a way as it is written."""

    name: str
    assignments: list[str]

    def could_go_on(self, text: str) -> bool:
        """Whether what follows a `+` could be a word of the last setting."""
        if not self.assignments or self.name in WAYS:
            return False
        key, text = split_assignment(self.name, f"{self.assignments[-1]}+{text}")
        return takes(find(self.name)[0], key, text)


def parse_specs(text: str) -> list[Spec]:
    """`greedy,vdd:alpha=0.5,beta=0.2+vaf` -> specs, or `ValueError`."""
    found: list[list[Term]] = []
    for part in split(text, ","):
        first, *others = split(part, "+")
        if not first.strip() and others and found:  # the comma ends a text, and + joins
            found[-1].append(term(others.pop(0)))
        elif "=" not in first.partition(":")[0]:
            found.append([term(first)])
        elif found:
            found[-1][-1].assignments.append(first)
        else:
            raise ValueError(f"the setting {short(part)} stands before any decoder: name one first")
        for piece in others:
            follow(found[-1], piece)
    return [spec_of(terms) for terms in found]


def follow(terms: list[Term], piece: str) -> None:
    """Takes what stands behind a `+`: a term, or one more value of the last setting."""
    last = terms[-1]
    if is_term(piece):
        if last.could_go_on(piece):
            key, name = last.assignments[-1].partition("=")[0].strip(), piece.strip()
            raise ValueError(
                f"{short(name)} behind {key} of {last.name} could be a word of {key}: write "
                f",+{clipped(name)} for the decoder or way, +\\{clipped(name)} for the word"
            )
        terms.append(term(piece))
    elif last.assignments:
        last.assignments[-1] += f"+{piece}"
    else:
        raise unknown("decoder or way", term(piece).name, (*WAYS, *NAMED))


def term(text: str) -> Term:
    name, colon, first = text.partition(":")
    return Term(name.strip().lower(), [first] if colon else [])


def is_term(text: str) -> bool:
    """Whether a text begins with the name of a decoder or a way."""
    name = term(text).name
    is_name = re.fullmatch(r"[\w-]+(\.\w*)?", name) is not None
    return name in WAYS or (is_name and name.partition(".")[0] in NAMED)


def spec_of(terms: Sequence[Term]) -> Spec:
    ways = [each for each in terms if each.name in WAYS]
    for way in ways:
        if way.assignments:
            raise ValueError(
                f"{way.name} has no settings, got {clipped(','.join(way.assignments))}"
            )
    if len(ways) > 1:
        names = " and ".join(way.name for way in ways)
        raise ValueError(f"tokens are taken in one way, got {names}: leave out all but one")
    methods = tuple(
        Method(each.name, tuple(split_assignment(each.name, text) for text in each.assignments))
        for each in terms
        if each not in ways
    )
    return Spec(methods, ways[0].name if ways else None)


def joint(method: Method, name: str) -> str:
    """What joins a decoder and a name behind it."""
    could_go_on = method.texts and takes(method.kind, method.texts[-1][0], f"x+{name}")
    return ",+" if could_go_on else "+"


def takes(kind: type, key: str, text: str) -> bool:
    """Whether a text is a value of a setting."""
    known = settable(kind)
    try:
        return key in known and known[key].reader.read(text) is not None
    except ValueError:
        return False


def split(text: str, sign: str) -> list[str]:
    """The text in pieces, at each sign without a backslash before it."""
    if "\\" not in text:
        return text.split(sign)
    pieces = [""]
    for found in re.findall(r"\\.|.", text, re.DOTALL):
        if found == sign:
            pieces.append("")
        else:
            pieces[-1] += found
    return pieces


def unescaped(text: str) -> str:
    """Without the backslashes that take a sign or a name behind them as it is."""
    words = [word.replace("\\", "", 1) if is_masked(word) else word for word in split(text, "+")]
    return re.sub(r"\\([\\,+])", r"\1", "+".join(words))


def is_masked(word: str) -> bool:
    """Whether a backslash keeps a word from being the name of a decoder or a way."""
    return word.lstrip().startswith("\\") and is_term(word.lstrip()[1:])


def escaped(text: str) -> str:
    """The text that `unescaped` reads, with no `+` that separates."""
    return re.sub(r"([\\+])", r"\\\1", text)


def protected(text: str) -> str:
    """A setting's text as a spec holds it: no comma ends it, and no word of it is a term."""
    if (len(text) - len(text.rstrip("\\"))) % 2:
        text += "\\"
    first, *others = split("\\,".join(split(text, ",")), "+")
    words = [re.sub(r"(\S)", r"\\\1", each, count=1) if is_term(each) else each for each in others]
    return "+".join([first, *words])


def split_assignment(name: str, assignment: str) -> tuple[str, str]:
    """`alpha=0.5` -> the setting's name and text."""
    key, equals, text = (part.strip() for part in assignment.partition("="))
    if not equals or not key:
        raise ValueError(f"a setting of {name} is written NAME=VALUE, got {short(assignment)}")
    return key, text


@cache
def find(name: str) -> "tuple[type, Preset | None]":
    """The class and the preset of a name; `ValueError` lists those that exist."""
    base, point, chosen = name.partition(".")
    if base not in NAMED:
        raise unknown("decoder", name, (*WAYS, *NAMED))
    kind = NAMED[base]
    made = presets(kind)
    if point and chosen not in made:
        raise unknown(f"preset of {base}", chosen, made)
    return kind, made.get(chosen)


def read_setting(name: str, known: "Mapping[str, Setting]", key: str, text: str) -> Any:
    """The value of a decoder's setting from its text."""
    if key not in known:
        raise unknown(f"setting of {name}", key, known)
    reader = known[key].reader
    try:
        return reader.read(text)
    except ValueError:
        wanted = f"{key} of {name} must be {reader.wanted}, got {short(text)}"
        raise ValueError(wanted + stray(reader, text)) from None


def stray(reader: "Reader", text: str) -> str:
    """What to say of a text that is a value up to its last `+`: a decoder may be misspelt."""
    *values, last = split(text, "+")
    try:
        reader.read("+".join(values))
    except ValueError:
        return ""
    near = get_close_matches(last.strip().lower(), (*WAYS, *NAMED), n=1)
    guess = f" (did you mean {near[0]}?)" if near else ""
    return f", and no decoder or way is called {short(last.strip())}{guess}"


@dataclass(frozen=True)
class Reader:
    """Turns a setting's text into a value; raises `ValueError` for what is not `wanted`."""

    wanted: str
    read: Callable[[str], Any]


@dataclass(frozen=True)
class Setting:
    """A decoder's setting that can be written as text.

    Args:
        name: Of the field.
        kind: Its type, as annotated.
        value: Its default; `MISSING` where there is none.
        reader: Of its text.
        usual: The range in which it is usually tried. None: none was noted.
    """

    name: str
    kind: Any
    value: Any
    reader: Reader
    usual: SearchRange | None = None

    @property
    def default(self) -> str:
        """The default as one would write it; "required" where there is none."""
        return "required" if self.value is MISSING else value_text(self.value)

    @property
    def choices(self) -> tuple[str, ...]:
        """All values that it may have; empty where they are not listed."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()


@dataclass(frozen=True)
class Preset:
    """Settings under a name.

    Args:
        name: Of the class method.
        make: Makes the decoder.
        meaning: The first line of the method's docstring.
    """

    name: str
    make: Callable[[], Any]
    meaning: str

    def decoder(self, processor: Any) -> Any:
        """The decoder, made with the processor where the method takes one."""
        takes = {FILLED} & inspect.signature(self.make).parameters.keys()
        return self.make(**dict.fromkeys(takes, processor))

    def changes(self) -> dict[str, str]:
        """The settings that it does not leave at their default, as one would write them."""
        decoder = self.decoder(STAND_IN)
        kind: type = type(decoder)
        known = settable(kind)
        texts = {name: value_text(getattr(decoder, name)) for name in known}
        return {name: text for name, text in texts.items() if text != known[name].default}


@cache
def presets(kind: type) -> dict[str, Preset]:
    """The presets of a decoder by name: class methods that return one and need no arguments."""
    found = {}
    for member in inspect.classify_class_attrs(kind):
        if member.kind == "class method" and not member.name.startswith("_"):
            make = getattr(kind, member.name)
            made = get_type_hints(make).get("return")
            if isinstance(made, type) and issubclass(kind, made) and needs_nothing(make):
                meaning = (inspect.getdoc(make) or "").partition("\n")[0]
                found[member.name] = Preset(member.name, make, meaning)
    return found


def needs_nothing(make: Callable[..., Any]) -> bool:
    """Whether it can be called without arguments, or with a processor alone."""
    try:
        signature = inspect.signature(make)
        signature.bind(**dict.fromkeys({FILLED} & signature.parameters.keys()))
    except TypeError:
        return False
    return True


@cache
def settable(kind: type) -> dict[str, Setting]:
    """The settings of a decoder that can be written as text, by name."""
    kinds, noted = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    own = [each for each in fields(kind) if each.init and each.name != FILLED]
    found = (setting(each, kinds[each.name], noted[each.name]) for each in own)
    return {each.name: each for each in found if each}


def setting(field: Field, kind: Any, noted: Any) -> Setting | None:
    """A field as a setting, by its type without and with notes.

    None for types that cannot be written as text.
    """
    notes = get_args(noted)[1:] if get_origin(noted) is Annotated else ()
    usual = next((note for note in notes if isinstance(note, SearchRange)), None)
    value = field.default if field.default_factory is MISSING else field.default_factory()
    known = reader(kind)
    return None if known is None else Setting(field.name, kind, value, known, usual)


def value_text(value: Any) -> str:
    """A value as one would write it; "empty" where nothing is written."""
    return written(value) or "empty"


def written(value: Any) -> str:
    """A value as its reader reads it."""
    if isinstance(value, tuple):
        return "+".join(map(written, value))
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return escaped(value) if isinstance(value, str) else str(value)


def reader(hint: Any) -> Reader | None:
    """How a value of a type is read; None for types that cannot be written as text."""
    if hint in READERS:
        return READERS[hint]
    parts = get_args(hint)
    if get_origin(hint) is Literal:
        return Reader(f"one of {', '.join(parts)}", partial(read_choice, parts))
    if get_origin(hint) in (Union, types.UnionType):
        return read_as_one_of(parts)
    if get_origin(hint) not in (tuple, Sequence) or not parts:
        return None
    if get_origin(hint) is Sequence or parts[1:] == (...,):
        inner = reader(parts[0])
        return inner and Reader(
            f"{inner.wanted}, or several joined by +", partial(read_several, inner.read)
        )
    inners = [reader(part) for part in parts]
    known = [inner for inner in inners if inner]
    if len(known) < len(parts):
        return None
    wanted = " + ".join(inner.wanted for inner in known)
    return Reader(wanted, partial(read_each, [inner.read for inner in known]))


def read_as_one_of(hints: Sequence[Any]) -> Reader | None:
    """A union's reader: of the types that a text fits, the narrowest."""
    kinds = [hint for hint in hints if hint is not types.NoneType]
    readers = {hint: inner for hint in kinds if (inner := reader(hint))}
    if len(readers) < len(kinds):
        return None
    reads = [readers[hint].read for hint in sorted(kinds, key=width)]
    optional = len(kinds) < len(hints)
    wanted = " or ".join([*(readers[hint].wanted for hint in kinds), *["none"] * optional])
    return Reader(wanted, partial(read_first, reads, optional))


def width(hint: Any) -> int:
    """The place of a type's scalars in `READERS`, where each fits more texts than those before.

    The words of a closed set come before them all.
    """
    if get_origin(hint) is Literal:
        return -1
    if hint in READERS:
        return list(READERS).index(hint)
    return max(width(part) for part in get_args(hint) if part not in (..., types.NoneType))


def read_truth(text: str) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True}
    words |= {"false": False, "no": False, "off": False, "0": False}
    if text.lower() not in words:
        raise ValueError(text)
    return words[text.lower()]


def read_choice(choices: Sequence[str], text: str) -> str:
    if text not in choices:
        raise ValueError(text)
    return text


def read_first(reads: Sequence[Callable[[str], Any]], optional: bool, text: str) -> Any:
    if optional and text.lower() == "none":
        return None
    for read in reads:
        try:
            return read(text)
        except ValueError:
            continue
    raise ValueError(text)


def read_several(read: Callable[[str], Any], text: str) -> tuple[Any, ...]:
    return tuple(read(part.strip()) for part in split(text, "+")) if text else ()


def read_each(reads: Sequence[Callable[[str], Any]], text: str) -> tuple[Any, ...]:
    parts = split(text, "+")
    return tuple(read(part.strip()) for read, part in zip(reads, parts, strict=True))


READERS = {
    int: Reader("a whole number", int),
    float: Reader("a number", float),
    bool: Reader("true or false", read_truth),
    str: Reader("text", unescaped),
}
