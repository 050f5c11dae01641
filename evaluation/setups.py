"""Who answers: decoders by name, and the controls without which their figures say little.

Decoders and ways are written as `sightline.specs` says, for example `vdd:variant=unk`,
`vcd+sample` or `vdd+vaf`.

Controls (arXiv:2504.10020): `greedy`; `sample`; `plausibility`, sampling over the plausible
tokens only, which is what is left of a sampled contrast at alpha 0 (under greedy it would be
greedy itself); `beam`; and `yes-shift`, which is made of the others' answers and not of a run.
Of methods that ask or look again: `vdgd-prefix`, the description without its ranking; `agla-full`
and `carve:share=1`, the full image twice; `mvp` with one request and weight, a single view.
`with_controls` adds those that a list of decoders needs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from sightline.decoders.controls import FullTwice, PlausibilityOnly
from sightline.decoders.mvp.mvp import MVP
from sightline.decoders.vdgd import PrefixOnly
from sightline.engine.strategy import Strategy
from sightline.messages import short
from sightline.setting_text import presets, settable, written
from sightline.spec_text import BEAM, GREEDY, SAMPLE
from sightline.specs import Method, Spec, parse_specs

YES_SHIFT = "yes-shift"
CONTROL_OF = {"vdgd-prefix": "vdgd", "agla-full": "agla"}
"""Controls with a name of their own -> the decoder whose control they are."""
WHOLE_VOCABULARY = {"top_k": 0, "top_p": 1.0}


@dataclass(frozen=True)
class Setup:
    """What a spec asks for, made for a model.

    Args:
        spec: Whose label tables show.
        strategy: For `custom_generate`; None is the model as it is.
    """

    spec: Spec
    strategy: Strategy | None

    @property
    def label(self) -> str:
        return self.spec.label

    @property
    def name(self) -> str:
        """The label without preset, settings and way."""
        return self.spec.name

    @property
    def way(self) -> str:
        """How tokens are taken; `plausibility` alone shows under sampling."""
        usual = SAMPLE if isinstance(self.strategy, PlausibilityOnly) else GREEDY
        return self.spec.way or usual

    @property
    def control_of(self) -> str:
        """The name of the decoder that it is the control of; empty where there is none."""
        is_full = self.name == "carve" and getattr(self.strategy, "share", None) == 1
        is_one_view = self.name == "mvp" and len(getattr(self.strategy, "requests", ())) == 1
        return self.name if is_full or is_one_view else CONTROL_OF.get(self.name, "")

    @property
    def is_control(self) -> bool:
        plain = self.strategy is None or isinstance(self.strategy, PlausibilityOnly)
        return plain or bool(self.control_of)

    @property
    def is_closed_set(self) -> bool:
        """Whether it answers with one of given labels and cannot describe."""
        return hasattr(self.strategy, "probabilities")

    @property
    def needs_images(self) -> bool:
        """Whether `generate` must get the images themselves, as `images=`."""
        return self.strategy is not None and self.strategy.needs_images

    def generation(self, temperature: float) -> dict[str, Any]:
        """Keywords for `generate`."""
        drawn = WHOLE_VOCABULARY if self.way == SAMPLE else {}
        custom = {} if self.strategy is None else {"custom_generate": self.strategy}
        return {**self.spec.arguments(self.way, temperature), **drawn, **custom}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What is written down, as a file of JSON gives it back."""
        decoder = {} if self.strategy is None else {"decoder": self.strategy.to_dict()}
        return {"mode": self.way, **decoder}


Wordings = Mapping[str, Mapping[str, Any]]


def parse_setup(text: str, processor: Any, wordings: Wordings | None = None) -> Setup:
    """One setup of a name; raises `ValueError` that lists the names there are.

    Args:
        text: As `sightline.specs` reads it.
        processor: For decoders that take one.
        wordings: By name, the settings that a setup has unless `text` sets them.
    """
    if text.strip().lower().startswith(YES_SHIFT):
        raise ValueError(
            f"{YES_SHIFT} is made of the others' answers, and takes no settings and no way, got "
            f"{short(text)}"
        )
    spec, *more = parse_specs(text)
    if more:
        raise ValueError(
            f"{short(text)} names {1 + len(more)} decoders: separate them by "
            "blanks, or repeat --decoder"
        )
    return Setup(spec, spec.build(processor, wordings))


def parse_contenders(
    texts: Sequence[str], processor: Any, wordings: Wordings | None = None
) -> tuple[list[Setup], bool]:
    """The setups, greedy first, and whether `yes-shift` was asked for.

    Greedy is always there: every difference is taken to it.
    """
    names = [text for text in texts if text.strip().lower() != YES_SHIFT]
    setups = [parse_setup(text, processor, wordings) for text in (GREEDY, *names)]
    if len(setups) > 1 and GREEDY in {c.label for c in setups[1:]}:
        del setups[0]
        setups.sort(key=lambda c: c.label != GREEDY)
    labels = [c.label for c in setups]
    twice = {label for label in labels if labels.count(label) > 1}
    if twice:
        raise ValueError(f"the list names {', '.join(sorted(twice))} more than once")
    return setups, len(names) < len(texts)


# Controls that a list of decoders needs


@dataclass(frozen=True)
class Own:
    """A method's own control, made of the method with its settings.

    Args:
        name: Of the control.
        make: From the method.
        drops: Settings of the method that the control does not take from it.
        adds: What its label says in their place, from the control.
    """

    name: str
    make: Callable[[Any], Any]
    drops: tuple[str, ...] = ()
    adds: Callable[[Any], dict[str, Any]] = lambda control: {}


def prefix_only(method: Any) -> PrefixOnly:
    return PrefixOnly(**{f.name: getattr(method, f.name) for f in fields(method) if f.init})


def full_twice(method: Any) -> FullTwice:
    return FullTwice(method.alpha, method.beta, method.normalize)


def one_view(method: Any) -> MVP:
    """The last view: the plain one, in the published order."""
    return replace(method, requests=tuple(method.requests[-1:]), weights=(1.0,))


OWN = {
    "vdgd": Own("vdgd-prefix", prefix_only),
    "agla": Own("agla-full", full_twice, ("suffix",)),
    "carve": Own(
        "carve", lambda method: replace(method, share=1.0), ("share",), lambda control: {"share": 1}
    ),
    "mvp": Own(
        "mvp",
        one_view,
        ("requests", "weights"),
        lambda control: {"requests": control.requests, "weights": 1},
    ),
}
"""Decoders with a control of their own."""


def own_control(setup: Setup) -> Setup | None:
    """The setup's own control, in its way; None where it has none or is one."""
    if setup.is_control or setup.name not in OWN:
        return None
    own, [method] = OWN[setup.name], setup.spec.methods
    strategy = own.make(setup.strategy)
    kind: type = type(strategy)
    preset, known = method.preset, settable(kind)
    has_preset = preset is None or preset.name in presets(kind)
    texts = {} if has_preset or preset is None else preset.changes()
    texts |= dict(method.texts)
    texts = {key: text for key, text in texts.items() if key in known and key not in own.drops}
    texts |= {key: written(value) for key, value in own.adds(strategy).items()}
    name = own.name + method.name.removeprefix(method.base) if has_preset else own.name
    spec = replace(setup.spec, methods=(Method(name, tuple(texts.items())),))
    return Setup(spec, strategy)


def with_controls(setups: Sequence[Setup]) -> list[Setup]:
    """The setups among the controls without which their figures say little.

    Greedy, sample and plausibility first, beams where a setup uses them, and behind each
    method its own control. What is there already is not added again.
    """
    names = [GREEDY, SAMPLE, "plausibility"]
    if any(c.way == BEAM for c in setups):
        names += [BEAM, "plausibility+beam"]
    found = [parse_setup(name, None) for name in names]
    for setup in setups:
        found.append(setup)
        own = own_control(setup)
        if own is not None and not any(is_same(own, other) for other in setups):
            found.append(own)
    return list({setup.label: setup for setup in found}.values())


def is_same(one: Setup, other: Setup) -> bool:
    return one.way == other.way and one.strategy == other.strategy
