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

`sightline.setting_text` reads the values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from functools import cache, cached_property
from typing import Any

from sightline.decoders import NAMED
from sightline.engine.strategy import Combined, RecipeStrategy
from sightline.messages import clipped, short, unknown
from sightline.setting_text import FILLED, Preset, Reader, Setting, presets, settable
from sightline.spec_text import GREEDY, SAMPLE, WAYS, is_term, protected, split


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


def term(text: str) -> Term:
    name, colon, first = text.partition(":")
    return Term(name.strip().lower(), [first] if colon else [])


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
    if not values:
        return ""
    try:
        reader.read("+".join(values))
    except ValueError:
        return ""
    near = get_close_matches(last.strip().lower(), (*WAYS, *NAMED), n=1)
    guess = f" (did you mean {near[0]}?)" if near else ""
    return f", and no decoder or way is called {short(last.strip())}{guess}"
