"""One tiny model against every decoder, in every way to generate: what works, and why not.

A cell is tested twice: with all of a method's branches running and none counting, the answer is
`generate`'s own, token for token; and with strong settings, the branches' logits of the first two
tokens are those of full forwards of one row, and the scores are the method's formula of them.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from chat_models import ChatModel, Fixed, blacked_out, scene
from forwards import ALONG_THE_PROMPT, full_branches, held
from methods import METHODS, TOKEN_METHODS, Method, Prompt, banned, plausible
from models import BOS, EOS, IMAGE, PAD, PROMPTS, VIDEO, VISION_END, VISION_START
from neutral_parts import ExpertOnly, with_all_branches
from oracles import least_attended
from tiny_families import OTHER as OTHER_SPECIAL
from tiny_families import Tiny

import sightline
from sightline import AGLA, DAMRO, SID, NoisyImage, Recipe
from sightline.decoders.icd import INSTRUCTIONS

STEPS = 4
TWO_IMAGES = [BOS, IMAGE, 12, 9, IMAGE, 13]
# Of such an answer a full forward would end early, hide a token, or ask for an image.
UNSAID = [PAD, BOS, EOS, VISION_START, VISION_END, IMAGE, VIDEO, OTHER_SPECIAL]
UNFORCED = dict(suppress_tokens=UNSAID, forced_eos_token_id=None)
TOLERANCE = dict(atol=3e-3, rtol=1e-3)  # float32, N x B rows and a cache against one row without


@dataclass(frozen=True)
class Mode:
    """A way to generate: prompts and what `generate` is asked for.

    Args:
        rows: Prompts, as `Tiny.inputs` takes them.
        asked: Keywords of `generate`.
        copies: Rows of scores for each prompt.
    """

    rows: Sequence[list[int]] = (PROMPTS[0],)
    asked: Mapping = field(default_factory=dict)
    copies: int = 1


MODES = {
    "greedy": Mode(),
    "sampling": Mode(asked=dict(do_sample=True, top_k=0, temperature=1.0)),
    "3 beams": Mode(asked=dict(num_beams=3), copies=3),
    "padded batch": Mode(rows=PROMPTS),
    "two images": Mode(rows=[TWO_IMAGES]),
    "static cache": Mode(asked=dict(cache_implementation="static")),
}


def generate(tiny, rows, steps, **kwargs):
    torch.manual_seed(1)
    asked = {"max_new_tokens": steps, "do_sample": False, **UNFORCED, **kwargs}
    return tiny.model.generate(**tiny.inputs(rows), **asked)


def longest_features(model, inputs):
    """Of each image the places of the 3 tokens whose features are longest, by falling length."""
    given = {k: v for k, v in inputs.items() if k not in ALONG_THE_PROMPT}
    encoded = model.base_model.get_image_features(**given, return_dict=True)
    lengths = [image.norm(dim=-1) for image in held(encoded)[1]]
    return [length.topk(min(3, len(length))).indices.tolist() for length in lengths]


def by_norm(family, row):
    return [Prompt(row, lambda pixels: pixels, chosen=longest_features)]


def unattended(family, row):
    """Chosen in the second layer: where windows and whole prompts alternate, the first has one."""
    return [Prompt(row, lambda pixels: pixels, least_attended(start=2, ratio=0.3))]


@dataclass
class Kept:
    """A contrast, and the pixels of the latest amateur that it made."""

    contrast: NoisyImage
    pixels: Mapping = field(default_factory=dict)

    needs_pixels = True

    def __call__(self, expert, model):
        amateur = self.contrast(expert, model)
        self.pixels = amateur.pixels
        return amateur


def noised(tiny, row):
    """The row's own images under noise, as they are where it is asked alone."""
    strong = METHODS["vcd"].strong
    kept = Kept(NoisyImage(strong.noise_step, strong.seed))
    generate(tiny, [row], 1, custom_generate=Recipe(contrasts=(kept,), rule=ExpertOnly()))
    return [Prompt(row, lambda pixels: pixels, given=dict(kept.pixels))]


BY_FAMILY = {  # where an entry of methods.py is made for its own two families
    "vcd": replace(METHODS["vcd"], amateurs=noised),
    "damro": replace(METHODS["damro"], amateurs=lambda family, row: []),
    "damro, norm": replace(
        METHODS["damro"], strong=DAMRO(alpha=1.5, beta=0.05, k=3, score="norm"), amateurs=by_norm
    ),
    "sid": replace(
        METHODS["sid"],
        strong=SID(alpha=1.5, beta=0.05, start=2, ratio=0.3),
        neutral=SID(alpha=0, beta=0, start=2),
        amateurs=unattended,
    ),
}
VARIANTS = ("vdd-unk", "vdd-both")
METHODS_SHOWN = {name: m for name, m in (TOKEN_METHODS | BY_FAMILY).items() if name not in VARIANTS}
GREEDY = Method(Recipe(), None)
EVERYTHING = dict(output_scores=True, output_logits=True, return_dict_in_generate=True)
CHOOSES_BY_TOWER = "damro"  # its amateur is compared with the rule's formula alone


@dataclass
class Conformance:
    """One family against every method.

    Args:
        tiny: Its model.
    """

    tiny: Tiny
    plain: dict = field(default_factory=dict)
    full: dict = field(default_factory=dict)
    prompts: dict = field(default_factory=dict)
    steps: dict = field(default_factory=dict)

    def outcome(self, name, mode):
        """ "" where the cell holds; why it does not apply, is refused, or fails."""
        plain, fault = self.generated(mode)
        if plain is None:
            return f"generate itself does not: {fault}"
        try:
            self.check_neutral(name, mode, plain)
            self.check_steps(name, mode)
        except Exception as error:
            if is_refusal(error, mode):
                return f"refused: {clause(error)}"
            if fault:
                return f"generate itself does not: {fault}"
            return f"FAILS: {type(error).__name__}: {clause(error)}"
        return ""

    def generated(self, mode):
        """`generate`'s own answer, None if there is none, and what is wrong with it."""
        if mode not in self.plain:
            plain, fault = None, ""
            try:
                plain = self.ask(mode)
                self.check_itself(mode)
            except Exception as error:
                fault = clause(error)
            self.plain[mode] = plain, fault
        return self.plain[mode]

    def check_itself(self, mode):
        """What a decoder is compared with: `generate`'s own logits are those of one row."""
        out = self.ask(mode, 2, **EVERYTHING)
        answers = out.sequences[:, -len(out.logits) :].tolist()
        copies = MODES[mode].copies
        self.steps[mode] = 1
        for number, row in enumerate(MODES[mode].rows):
            place = number * copies
            (whole,), _ = self.branches("greedy", row)
            got = out.logits[0][place]
            assert_close(got, whole, "its logits are not those of one row in a full forward")
            (second,), _ = self.branches("greedy", row, answers[place][:1])
            if copies > 1 or not torch.allclose(out.logits[1][place], second, **TOLERANCE):
                return  # some models read a prompt otherwise than its continuation
        self.steps[mode] = 2

    def ask(self, mode, steps=STEPS, **kwargs):
        asked = MODES[mode]
        return generate(self.tiny, asked.rows, steps, **asked.asked, **kwargs)

    def check_neutral(self, name, mode, plain):
        """Every branch runs, none counts: `generate`'s own tokens."""
        method = self.method(name)
        idle = self.ask(mode, custom_generate=with_all_branches(method))
        assert torch.equal(idle, plain), "other tokens than generate, with nothing changed"
        if mode == "greedy" and method.neutral is not None:
            neutral = self.ask(mode, custom_generate=method.neutral)
            assert torch.equal(neutral, plain), "other tokens than generate, at neutral settings"

    def check_steps(self, name, mode):
        """The branches' logits against full forwards, and the scores against the formula.

        At the first token, and at the second where a row of scores is one of one answer.
        """
        method, asked = self.method(name), MODES[mode]
        out = self.ask(mode, steps=2, custom_generate=method.strong, **EVERYTHING)
        answers = out.sequences[:, -len(out.scores) :].tolist()
        for number, row in enumerate(asked.rows):
            place = number * asked.copies
            for step in range(self.steps[mode]):
                answer = answers[place][:step]
                branches = out.branch_logits[step][:, place]
                whole, early = self.branches(name, row, answer)
                for got, logits in zip(branches, whole, strict=name != CHOOSES_BY_TOWER):
                    assert_close(got, logits, "the logits are not those of a full forward")
                others = [*(whole[1:] or branches[1:]), *early]
                formula = method.scores if asked.copies == 1 else method.log_scores
                expected = formula(whole[0], others, step, UNSAID)
                near = near_the_cut(whole[0], getattr(method.strong, "beta", 0))
                check_scores(out.scores[step][place], expected, near)

    def method(self, name):
        """With the markers of images that the model's config does not name."""
        method = METHODS_SHOWN.get(name, GREEDY)
        if not self.tiny.is_marked or not hasattr(method.strong, "markers"):
            return method
        return replace(method, strong=replace(method.strong, markers=(VISION_START, VISION_END)))

    def branches(self, name, row, answer=()):
        """(logits of whole branches, logits of early layers), each `[V]`."""
        key = name, *row, -1, *answer
        if key not in self.full:
            method, tiny = self.method(name), self.tiny
            prompts = [method.expert(self.tiny, row), *self.amateurs(name, row)]
            self.full[key] = full_branches(tiny.model, tiny.inputs, method, prompts, row, answer)
        return self.full[key]

    def amateurs(self, name, row):
        key = name, *row
        if key not in self.prompts:
            self.prompts[key] = self.method(name).amateurs(self.tiny, row)
        return self.prompts[key]


def near_the_cut(expert, beta):
    """`[V]` bool: tokens that rounding puts on either side of the plausibility cut."""
    if not beta:
        return torch.zeros_like(expert, dtype=torch.bool)
    best = banned(expert, UNSAID).max()
    return (expert - best - math.log(beta)).abs() < 2 * TOLERANCE["atol"]


def check_scores(scores, expected, near):
    """`[V]` all; `expected` float64. A beam's scores are log-probabilities."""
    kept = expected.isfinite()
    assert torch.equal(scores.isfinite() | near, kept | near), "other tokens are plausible"
    both = kept & scores.isfinite()
    assert_close(scores[both], expected[both].float(), "the scores are not the formula's")


def assert_close(got, expected, message):
    apart = float((got - expected).abs().max())
    assert torch.allclose(got, expected, **TOLERANCE), f"{message}: {apart:.2g} apart"


def is_refusal(error, mode):
    """Whether the library says that the model cannot do it, or this way to generate."""
    if isinstance(error, sightline.UnsupportedModelError):
        return True
    is_way = mode in CHANGING and any(text in str(error) for text in OF_THE_WAY)
    return type(error) is ValueError and (is_way or any(t in str(error) for t in OF_SETTINGS))


CHANGING = ("3 beams", "two images", "static cache")
OF_THE_WAY = (
    "gives one answer from a closed set",
    "one image is refined at a time",
    "keys can only leave a DynamicCache",
)
# Settings and images of these tests that some models' images are too small for.
OF_SETTINGS = ("tokens were wanted of an image that has", "images holds")


def clause(error):
    """The first clause of a message, its numbers left out."""
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return re.sub(r"\b\d+\b", "N", first.split(": ")[0].split("; ")[0])


# Decoders that ask in words, and so need a processor.

QUESTION, OTHER = "Is it red?", "What is it, and where?"
TALKS = {  # the user's turn of each row: None stands for an image
    "padded batch": [[None, QUESTION], [None, OTHER]],
    "two images": [[None, None, QUESTION]],
}


@dataclass(frozen=True)
class TextMethod:
    """A decoder that asks in words.

    Args:
        strong: `processor -> strategy`.
        neutral: As `strong`; None where a method has no neutral settings.
        prompts: `(vlm, turn, images) -> (prompt, images)` of each branch; None where the
            arithmetic is tested elsewhere, and a row must only be what it is alone.
        formula: Of the branches' logits `[V]` in float64.
    """

    strong: Callable
    neutral: Callable | None = None
    prompts: Callable | None = None
    formula: Callable | None = None


def told_to_be_careless(vlm, turn, images):
    *seen, words = turn
    return [
        (vlm.chat(turn), images),
        (vlm.chat([*seen, f"{INSTRUCTIONS['careless']} {words}"]), images),
    ]


def masked(vlm, turn, images):
    fixed = Fixed()
    local = [blacked_out(p, fixed.values(p), fixed.masked(turn[-1])) for p in images]
    return [(vlm.chat(turn), images), (vlm.chat(turn), local)]


def contrasted(alpha, beta):
    def formula(expert, amateur):
        scores = (1 + alpha) * expert - alpha * amateur
        return torch.where(plausible(banned(expert, UNSAID), beta), scores, -math.inf)

    return formula


def added(alpha, beta):
    def formula(expert, local):
        kept = plausible(banned(expert, UNSAID), beta)
        return torch.where(kept, expert + alpha * local, -math.inf)

    return formula


def text_method(name, prompts=None, formula=None):
    """With the settings of methods.py."""
    method = METHODS[name]
    neutral = method.neutral and (lambda processor: method.of(processor).neutral)
    return TextMethod(lambda processor: method.of(processor).strong, neutral, prompts, formula)


TEXT_METHODS = {
    "icd": text_method("icd", told_to_be_careless, contrasted(alpha=1.5, beta=0.05)),
    "agla": text_method("agla", masked, added(alpha=3.0, beta=0.05)),
    "agla, own": TextMethod(lambda processor: AGLA(processor=processor)),
    "vdgd": text_method("vdgd"),
    "mvp": text_method("mvp"),
    "carve": text_method("carve"),
}


class TextConformance(Conformance):
    """One family against the decoders that ask in words."""

    @cached_property
    def vlm(self):
        images = tuple(scene(20 + n, 64) for n in range(2))
        return ChatModel(self.tiny.name, self.tiny.model, self.tiny.processor, images)

    @staticmethod
    def turns(mode):
        return TALKS.get(mode, [[None, QUESTION]])

    def images(self, turns):
        """Of each row, as many as its turn shows."""
        return [list(self.vlm.images[: turn.count(None)]) for turn in turns]

    def ask(self, mode, steps=STEPS, turns=None, custom_generate=None, **kwargs):
        turns = turns or self.turns(mode)
        shown = [image for row in self.images(turns) for image in row]
        given = {"images": shown} if getattr(custom_generate, "needs_images", False) else {}
        asked = {"max_new_tokens": steps, "do_sample": False, **UNFORCED, **MODES[mode].asked}
        torch.manual_seed(1)
        return self.vlm.model.generate(
            **self.vlm.inputs([self.vlm.chat(turn) for turn in turns], shown),
            **{**asked, **given, **kwargs},
            custom_generate=custom_generate,
        )

    def check_itself(self, mode):
        out = self.ask(mode, 1, **EVERYTHING)
        turns = self.turns(mode)
        for row, turn in enumerate(turns):
            whole = self.whole(self.vlm.chat(turn), self.images(turns)[row])
            got = out.logits[0][row * MODES[mode].copies]
            assert_close(got, whole, "its logits are not those of one row in a full forward")

    def check_neutral(self, name, mode, plain):
        neutral = TEXT_METHODS[name].neutral
        if neutral is not None:
            tokens = self.ask(mode, custom_generate=neutral(self.vlm.processor))
            assert torch.equal(tokens, plain), "other tokens than generate, at neutral settings"
        if TEXT_METHODS[name].prompts is not None:
            idle = with_all_branches(Method(TEXT_METHODS[name].strong(self.vlm.processor), None))
            tokens = self.ask(mode, custom_generate=idle)
            assert torch.equal(tokens, plain), "other tokens than generate, with nothing changed"

    def check_steps(self, name, mode):
        method, turns = TEXT_METHODS[name], self.turns(mode)
        decoder = method.strong(self.vlm.processor)
        if method.prompts is None:
            self.check_rows(decoder, mode)
            return
        copies = MODES[mode].copies
        out = self.ask(mode, 1, custom_generate=decoder, **EVERYTHING)
        for row, turn in enumerate(turns):
            prompts = method.prompts(self.vlm, turn, self.images(turns)[row])
            logits = [self.whole(*prompt) for prompt in prompts]
            for got, whole in zip(out.branch_logits[0][:, row * copies], logits, strict=True):
                assert_close(got, whole, "the first logits are not those of a full forward")
            expected = method.formula(*(whole.double() for whole in logits))
            expected = expected.log_softmax(dim=-1) if copies > 1 else expected
            near = near_the_cut(logits[0], decoder.beta)
            check_scores(out.scores[0][row * copies], expected, near)

    def check_rows(self, decoder, mode):
        """It runs, and a row is what it is alone."""
        turns = self.turns(mode)
        together = self.ask(mode, custom_generate=decoder)
        assert together.shape[1] > 0
        if len(turns) == 1:
            return
        for row, turn in enumerate(turns):
            alone = self.ask(mode, turns=[turn], custom_generate=decoder)[0]
            said = alone[-STEPS:].tolist()
            assert together[row, -STEPS:].tolist() == said, "a row depends on its neighbours"

    @torch.no_grad()
    def whole(self, prompt, images):
        """`[V]`: the last logits of one prompt, without a cache."""
        return self.vlm.model(**self.vlm.inputs([prompt], images)).logits[0, -1]
