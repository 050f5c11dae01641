"""What a page offers to choose and to set: decoders, and a control for each of their settings.

Everything is read off the decoders' classes: fields, types, usual ranges and docstrings.
"""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from sightline.decoders import DECODERS
from sightline.docstrings import read_arguments
from sightline.engine.search_range import SearchRange
from sightline.setting_text import STAND_IN, Preset, Setting, presets, settable, written
from sightline.spec_text import GREEDY, SAMPLE
from sightline.specs import Spec, find, parse_spec

Form = Literal["slider", "checkbox", "choice", "text"]
FORMS: dict[Any, Form] = {bool: "checkbox", int: "slider", float: "slider"}
PLAIN = {
    GREEDY: "The model's own decoding: the likeliest token each time.",
    SAMPLE: "The model's own decoding: each token is drawn.",
}
"""Ways that tell their tokens one by one, as a page shows them, with a line on each."""


@dataclass(frozen=True)
class Control:
    """One setting of a decoder, as a page shows it.

    Args:
        name: Of the setting.
        label: The words of the name.
        form: "slider" for a number with a usual range, "checkbox" for true or false, "choice" for
            one of `choices`, "text" for all else.
        value: The default, of the setting's own type.
        default: The default as one would write it.
        wanted: What can be written, for a text's hint.
        meaning: What the decoder's docstring says of it.
        low: A slider's least value, high its greatest, step what lies between two; None elsewhere.
        choices: All values of a choice; empty elsewhere.
    """

    name: str
    label: str
    form: Form
    value: Any
    default: str
    wanted: str
    meaning: str = ""
    low: float | None = None
    high: float | None = None
    step: float | None = None
    choices: tuple[str, ...] = ()

    def shown(self, value: Any) -> Any:
        """A value of the setting's type as the control shows it: text where it is written."""
        return written(value) if self.form == "text" else value


def choices_of_decoders() -> list[tuple[str, str]]:
    """Names to choose from with a line on each: plain decoding, then decoders with their presets.

    Such as `("greedy", "...")`, `("vcd", "...")`, `("vcd.pope_paper", "...")`.
    """
    found = [*PLAIN.items()]
    for name, kind in DECODERS.items():
        found.append((name, (inspect.getdoc(kind) or "").partition("\n")[0]))
        found += [(f"{name}.{made.name}", made.meaning) for made in presets(kind).values()]
    return found


def controls(kind: type, preset: Preset | None = None) -> list[Control]:
    """A control for each setting of a decoder, in the order of its fields.

    Args:
        kind: The decoder's class. All of its settings have defaults.
        preset: Whose values stand in the defaults' place. None: the class's own.
    """
    begins = None if preset is None else preset.decoder(STAND_IN)
    meanings = read_arguments(inspect.getdoc(kind) or "")
    return [
        control(setting, getattr(begins, name, setting.value), meanings.get(name, ""))
        for name, setting in settable(kind).items()
    ]


def controls_of(name: str) -> list[Control]:
    """The controls of what a name stands for: `vcd`, `vcd.pope_paper`; none for plain decoding.

    Raises `ValueError` for an unknown name.
    """
    return [] if name in PLAIN else controls(*find(name))


def control(setting: Setting, value: Any, meaning: str) -> Control:
    """The control of a setting that begins at a value."""
    usual, whole = setting.usual, setting.kind is int
    form: Form = "choice" if setting.choices else FORMS.get(setting.kind, "text")
    made = Control(
        name=setting.name,
        label=setting.name.replace("_", " ").capitalize(),
        form="text" if form == "slider" and usual is None else form,
        value=value,
        default=written(value),
        wanted=setting.reader.wanted + (f", usually {usual}" if usual else ""),
        meaning=meaning,
        choices=setting.choices,
    )
    if made.form != "slider" or usual is None:
        return made
    return replace(made, low=usual.low, high=usual.high, step=1 if whole else step(usual))


def step(usual: SearchRange) -> float:
    """A hundredth of a range, rounded to a power of ten or to five times one."""
    hundredth = (usual.high - usual.low) / 100
    exponent = math.floor(math.log10(hundredth))
    near = [float(f"{digits}e{exponent}") for digits in (1, 5, 10)]
    return min(near, key=lambda size: abs(math.log(size / hundredth)))


def spec_of_controls(name: str, values: Mapping[str, Any]) -> Spec:
    """What a name and its controls stand for.

    Settings that are where they begin, at the default or the preset's value, are left out.

    Args:
        name: Of what a page offers, or any other spec, which has no controls.
        values: By setting, as its control gives it: a number, a truth value or a text.

    Raises:
        ValueError: For an unknown name or setting, and for what is no value of its type.
    """
    spec = parse_spec(name, [f"{key}={value_written(value)}" for key, value in values.items()])
    if len(spec.methods) != 1:
        return spec
    [method] = spec.methods
    begin = {each.name: each.value for each in controls(method.kind, method.preset)}
    kept = tuple((k, text) for k, text in method.texts if method.settings[k] != begin[k])
    return replace(spec, methods=(replace(method, texts=kept),))


def value_written(value: Any) -> str:
    """What a control gives, as its setting's reader reads it; a page's whole numbers may be 3.0."""
    if isinstance(value, str):
        return value.strip()
    whole = isinstance(value, float) and value.is_integer()
    return written(int(value) if whole else value)
