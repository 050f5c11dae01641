"""Who answers: decoders by name, and the controls without which their figures say little.

`name[:key=value,...][+mode]`, for example `vdd:variant=unk` or `vcd+sample`. Modes are `greedy`,
`sample` and `beam`. Other `+` join the parts of one value: `vdd:markers=3+4+sample`.

Controls (arXiv:2504.10020): `greedy`; `sampling`; `plausibility`, sampling over the plausible
tokens only, which is what is left of a sampled contrast at alpha 0 (under greedy it would be
greedy itself); `beam`; and `yes-shift`, which is made of the others' answers and not of a run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from sightline.decoders import DECODERS
from sightline.decoders.decoder import Decoder, Recipe
from sightline.decoders.parse import choose, split_decoders, unknown
from sightline.decoders.posthoc import PostHocDebias
from sightline.logits.rules import Plausibility

YES_SHIFT = "yes-shift"
PLAIN = {"greedy": "greedy", "sampling": "sample", "beam": "beam"}
BEAMS = 3


@dataclass
class PlausibilityOnly(Decoder):
    """The model's own answer, over the tokens it finds plausible.

    Args:
        beta: Threshold in [0, 1], a share of the best token's probability.
    """

    beta: float = 0.1

    def recipe(self) -> Recipe:
        return Recipe(rule=Plausibility(self.beta))


NAMED = {**DECODERS, "posthoc": PostHocDebias, "plausibility": PlausibilityOnly}


@dataclass(frozen=True)
class Contender:
    """A strategy, or none, in a mode of generation.

    Args:
        label: What tables call it.
        strategy: For `custom_generate`; None is the model as it is.
        mode: "greedy", "sample" or "beam".
    """

    label: str
    strategy: Decoder | PostHocDebias | None
    mode: str

    @property
    def is_control(self) -> bool:
        return self.strategy is None or isinstance(self.strategy, PlausibilityOnly)

    @property
    def is_closed_set(self) -> bool:
        """Whether it answers with one of given labels and cannot describe."""
        return hasattr(self.strategy, "probabilities")

    def generation(self, temperature: float) -> dict[str, Any]:
        """Keywords for `generate`."""
        modes: dict[str, dict[str, Any]] = {
            "greedy": {"do_sample": False, "num_beams": 1},
            "sample": {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0},
            "beam": {"do_sample": False, "num_beams": BEAMS},
        }
        custom = {} if self.strategy is None else {"custom_generate": self.strategy}
        return {**modes[self.mode], **custom}

    def settings(self) -> dict[str, Any]:
        """What is written down: all settings that are values."""
        if self.strategy is None:
            return {"mode": self.mode}
        named = {f.name: getattr(self.strategy, f.name) for f in fields(self.strategy) if f.repr}
        return {"decoder": type(self.strategy).__name__, "mode": self.mode, **named}


MODES = ("greedy", "sample", "beam")


def parse_contender(text: str, processor: Any) -> Contender:
    """One contender of a name; raises `ValueError` that lists the names there are."""
    spec, mode = split_mode(text)
    (name, assignments), *more = split_decoders(spec)
    if more:
        raise ValueError(f"{text!r} names {1 + len(more)} decoders: separate them by blanks")
    if name in (*PLAIN, YES_SHIFT) and (mode or assignments):
        raise ValueError(f"{name} takes no settings and no mode, got {text!r}")
    if name in PLAIN:
        return Contender(name, None, PLAIN[name])
    request = choose(name, assignments, NAMED, others=(*PLAIN, YES_SHIFT))
    usual = "sample" if name == "plausibility" else "greedy"
    label = f"{request.label}+{mode}" if mode else request.label
    contender = Contender(label, request.build(processor), mode or usual)
    if contender.is_closed_set and contender.mode != "greedy":
        raise ValueError(f"{name} answers with its best label and takes no mode, got {text!r}")
    return contender


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


def parse_contenders(texts: Sequence[str], processor: Any) -> tuple[list[Contender], bool]:
    """The contenders, greedy first, and whether `yes-shift` was asked for.

    Greedy is always there: every difference is taken to it.
    """
    names = [text for text in texts if text.strip().lower() != YES_SHIFT]
    contenders = [parse_contender(text, processor) for text in ("greedy", *names)]
    if len(contenders) > 1 and "greedy" in {c.label for c in contenders[1:]}:
        del contenders[0]
        contenders.sort(key=lambda c: c.label != "greedy")
    labels = [c.label for c in contenders]
    twice = {label for label in labels if labels.count(label) > 1}
    if twice:
        raise ValueError(f"--decoders names {', '.join(sorted(twice))} more than once")
    return contenders, len(names) < len(texts)
