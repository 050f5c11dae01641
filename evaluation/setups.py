"""Who answers: decoders by name, and the controls without which their figures say little.

`name[:key=value,...][+mode]`, for example `vdd:variant=unk` or `vcd+sample`. Modes are `greedy`,
`sample` and `beam`. Other `+` join the parts of one value: `vdd:markers=3+4+sample`.

Controls (arXiv:2504.10020): `greedy`; `sampling`; `plausibility`, sampling over the plausible
tokens only, which is what is left of a sampled contrast at alpha 0 (under greedy it would be
greedy itself); `beam`; and `yes-shift`, which is made of the others' answers and not of a run.
Of methods that ask or look again: `vdgd-prefix`, the description without its ranking; `agla-full`
and `carve:share=1`, the full picture twice; `mvp` with one request and weight, a single view.
`with_controls` adds those that a list of decoders needs.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from sightline.decoders import DECODERS
from sightline.decoders.carve.carve import CARVE
from sightline.decoders.mvp.mvp import MVP
from sightline.decoders.posthoc import PostHocDebias
from sightline.decoders.vdgd import PrefixOnly
from sightline.engine.branch import Branch
from sightline.engine.strategy import Decoder, Recipe
from sightline.logits.rules import Additive, Plausibility
from sightline.messages import short, unknown
from sightline.model_protocol import Model
from sightline.specs import choose, split_decoders

GREEDY = "greedy"
YES_SHIFT = "yes-shift"
PLAIN = {"greedy": "greedy", "sampling": "sample", "beam": "beam"}
BEAMS = 3


@dataclass(frozen=True)
class PlausibilityOnly(Decoder):
    """The model's own answer, over the tokens it finds plausible.

    Args:
        beta: Threshold in [0, 1], a share of the best token's probability.
    """

    beta: float = 0.1

    def recipe(self) -> Recipe:
        return Recipe(rule=Plausibility(self.beta))


@dataclass(frozen=True)
class SameImage:
    """The prompt as it is, a second time."""

    def __call__(self, expert: Branch, model: Model) -> Branch:
        return expert


@dataclass(frozen=True)
class FullTwice(Decoder):
    """AGLA's control: the full picture in the place of the masked one.

    Both branches agree, so greedy decoding is the model's own; under sampling it shows what the
    plausibility cut and the sharper sum do without any mask.

    Args:
        alpha: Weight of the second branch, 0 or more.
        beta: Plausibility threshold in [0, 1].
        normalize: Divides the sum by 1 + alpha.
    """

    alpha: float = 2.0
    beta: float = 0.5
    normalize: bool = False

    def recipe(self) -> Recipe:
        rule = Additive(self.alpha, self.beta, self.normalize)
        return Recipe(contrasts=(SameImage(),), rule=rule)


NAMED = {
    **DECODERS,
    "posthoc": PostHocDebias,
    "plausibility": PlausibilityOnly,
    "vdgd-prefix": PrefixOnly,
    "agla-full": FullTwice,
}
CONTROLS = {"vdgd-prefix": "vdgd", "agla-full": "agla"}
"""Controls with a name of their own -> the decoder whose control they are."""


@dataclass(frozen=True)
class Setup:
    """A strategy, or none, in a mode of generation.

    Args:
        label: What tables call it.
        strategy: For `custom_generate`; None is the model as it is.
        mode: "greedy", "sample" or "beam".
    """

    label: str
    strategy: Decoder | PostHocDebias | MVP | None
    mode: str

    @property
    def name(self) -> str:
        """The label without preset, settings and mode."""
        return re.split(r"[.:+]", self.label)[0]

    @property
    def control_of(self) -> str:
        """The name of the decoder that it is the control of; empty where there is none."""
        is_full = isinstance(self.strategy, CARVE) and self.strategy.share == 1
        is_one_view = isinstance(self.strategy, MVP) and len(self.strategy.requests) == 1
        return self.name if is_full or is_one_view else CONTROLS.get(self.name, "")

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
        """Whether `generate` must get the pictures themselves, as `images=`."""
        return getattr(self.strategy, "needs_images", False)

    def generation(self, temperature: float) -> dict[str, Any]:
        """Keywords for `generate`."""
        modes: dict[str, dict[str, Any]] = {
            "greedy": {"do_sample": False, "num_beams": 1},
            "sample": {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0},
            "beam": {"do_sample": False, "num_beams": BEAMS},
        }
        custom = {} if self.strategy is None else {"custom_generate": self.strategy}
        return {**modes[self.mode], **custom}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What is written down, as a file of JSON gives it back."""
        decoder = {} if self.strategy is None else {"decoder": self.strategy.to_dict()}
        return {"mode": self.mode, **decoder}


MODES = ("greedy", "sample", "beam")


Wordings = Mapping[str, Mapping[str, Any]]


def parse_setup(text: str, processor: Any, wordings: Wordings | None = None) -> Setup:
    """One setup of a name; raises `ValueError` that lists the names there are.

    Args:
        text: A name, with settings and mode.
        processor: For decoders that take one.
        wordings: By name, the settings that a setup has unless `text` sets them.
    """
    spec, mode = split_mode(text)
    (name, assignments), *more = split_decoders(spec)
    if more:
        raise ValueError(
            f"{short(text)} names {1 + len(more)} decoders: separate them by "
            "blanks, or repeat --decoder"
        )
    if name in (*PLAIN, YES_SHIFT) and (mode or assignments):
        raise ValueError(f"{name} takes no settings and no mode, got {short(text)}")
    if name in PLAIN:
        return Setup(name, None, PLAIN[name])
    request = choose(name, assignments, NAMED, others=(*PLAIN, YES_SHIFT))
    words = (wordings or {}).get(name.partition(".")[0], {})
    request = replace(request, settings={**words, **request.settings})
    usual = "sample" if name == "plausibility" else "greedy"
    label = f"{request.label}+{mode}" if mode else request.label
    setup = Setup(label, request.build(processor), mode or usual)
    if setup.is_closed_set and setup.mode != "greedy":
        raise ValueError(f"{name} answers with its best label and takes no mode, got {short(text)}")
    return setup


def split_mode(text: str) -> tuple[str, str]:
    """`vdd:alpha=0+sample` -> `vdd:alpha=0` and the mode, which is "" where there is none.

    After settings, what is no mode is part of the last value; after a name, it is a mistake.
    """
    spec, plus, last = text.rpartition("+")
    mode = last.strip().lower()
    if not plus or (":" in spec and mode not in MODES):
        return text, ""
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    return spec, mode


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
    adds: Callable[[Any], str] = lambda control: ""


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
        "carve", lambda method: replace(method, share=1.0), ("share",), lambda control: "share=1"
    ),
    "mvp": Own(
        "mvp",
        one_view,
        ("requests", "weights"),
        lambda control: f"requests={control.requests[0]},weights=1",
    ),
}
"""Decoders with a control of their own."""


def own_control(setup: Setup) -> Setup | None:
    """The setup's own control, in its mode; None where it has none or is one."""
    if setup.is_control or setup.name not in OWN:
        return None
    own = OWN[setup.name]
    strategy = own.make(setup.strategy)
    spec, mode = split_mode(setup.label)
    name, _, written = spec.partition(":")
    kept = [part for part in written.split(",") if part.split("=")[0].strip() not in own.drops]
    settings = ",".join(filter(None, [*kept, own.adds(strategy)]))
    label = own.name + name.removeprefix(setup.name)
    label += (f":{settings}" if settings else "") + (f"+{mode}" if mode else "")
    return Setup(label, strategy, setup.mode)


def with_controls(setups: Sequence[Setup]) -> list[Setup]:
    """The setups among the controls without which their figures say little.

    Greedy, sampling and plausibility first, beams where a setup uses them, and behind each
    method its own control. What is there already is not added again.
    """
    names = ["greedy", "sampling", "plausibility"]
    if any(c.mode == "beam" for c in setups):
        names += ["beam", "plausibility+beam"]
    found = [parse_setup(name, None) for name in names]
    for setup in setups:
        found.append(setup)
        own = own_control(setup)
        if own is not None and not any(is_same(own, other) for other in setups):
            found.append(own)
    return list({setup.label: setup for setup in found}.values())


def is_same(one: Setup, other: Setup) -> bool:
    return one.mode == other.mode and one.strategy == other.strategy
