"""Each method with strong settings, neutral ones, and its branches built by hand.

`amateurs(family, row)` gives, for one row of tokens, the prompts that the method compares with;
`family` is a name of `models.py`, or for a method that needs a processor one of the models of
`letter_models.py`.
Nothing here calls the library's own editing of prompts, images or attention: attention is
written out in `oracles.py`, over whole matrices and without a cache.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from chat_models import Fixed, blacked_out
from forwards import full_forward
from letter_models import images_of
from models import EOS, IMAGE, UNK
from noises import own_noise
from oracles import image_gain, image_scale, least_attended, sparse
from tiny_families import letters
from vision_oracles import most_attended

from sightline import (
    AGLA,
    CARVE,
    DAMRO,
    ICD,
    M3ID,
    MVP,
    PAI,
    SID,
    VAF,
    VCD,
    VDD,
    VDGD,
    DeCo,
    DoLa,
    PostHocDebias,
    VASparse,
)
from sightline.decoders.icd import INSTRUCTIONS
from sightline.engine.strategy import Strategy


@dataclass(frozen=True)
class Prompt:
    """What a branch is conditioned on: tokens, an edit of the images (None: there are none),
    an oracle of the text model's attention (None: the model's own), one of the tokens that are
    left of each image, `(model, inputs) -> [places in it, in order]` (None: all of them), and
    inputs that stand in for the row's own."""

    tokens: list[int]
    pixels: Callable | None = None
    attention: Callable | None = None
    chosen: Callable | None = None
    given: Mapping = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    strong: Strategy
    neutral: Strategy | None  # None: the method has no neutral setting
    amateurs: Callable[[str, list[int]], list[Prompt]] = lambda family, row: []
    alpha: float = 0.0
    beta: float = 0.0
    attention: Callable | None = None
    formula: Callable | None = None
    is_whole: bool = False  # the formula leaves no token out
    growing: Callable | None = None  # as `formula`, with the step
    layers: tuple[int, ...] = ()  # of the expert, as further branches for the formula
    normed: bool = False
    cuts_cache: bool = False
    is_gentle: bool = False  # no settings that surely change a random model's best token
    prepared: Callable | None = None  # (family, row) -> the expert's prompt, where it is another
    notes: Callable = lambda family, row: []  # what preparations leave for the formula
    elsewhere: str = ""  # the file of tests that compares its scores with full forwards
    is_closed: bool = False  # one answer out of a few, chosen by votes

    def expert(self, family, row):
        if self.prepared is not None:
            return self.prepared(family, row)
        return Prompt(row, whole, self.attention)

    @property
    def needs_processor(self):
        return hasattr(self.strong, "processor") and self.strong.processor is not None

    @property
    def rewrites(self):
        """Whether the prompt itself is another one."""
        return self.prepared is not None or bool(self.elsewhere)

    def of(self, processor):
        """With a model's own processor."""
        neutral = self.neutral and replace(self.neutral, processor=processor)
        return replace(self, strong=replace(self.strong, processor=processor), neutral=neutral)

    @property
    def cuts(self):
        """Whether implausible tokens are left out."""
        return bool(self.beta or (self.formula and not self.is_whole) or self.growing)

    def scores(self, expert, amateurs, step, unsaid=()):
        """The formula of the notes, in float64: expert and amateurs `[V]` -> scores `[V]`.

        `step` counts the tokens answered before. Tokens `unsaid` are banned: the cut is relative
        to the expert's best of the rest.
        """
        expert, amateurs = expert.double(), [a.double() for a in amateurs]
        left = banned(expert, unsaid)
        if self.growing is not None:
            scores = self.growing(expert, amateurs[0], step, left)
        elif self.formula is not None:
            scores = self.formula(expert, amateurs, left)
        elif amateurs:
            scores = expert + self.alpha * (expert - sum(amateurs) / len(amateurs))
            scores = torch.where(plausible(left, self.beta), scores, -math.inf)
        else:
            scores = expert
        return banned(scores, unsaid)

    def log_scores(self, expert, amateurs, step, unsaid=()):
        """As a beam has them: log-probabilities of what is left, where anything is cut."""
        if self.cuts:
            return self.scores(expert, amateurs, step, unsaid).log_softmax(dim=-1)
        return banned(self.scores(expert, amateurs, step).log_softmax(dim=-1), unsaid)


def whole(pixels):
    return pixels


def banned(logits, tokens):
    logits = logits.clone()
    logits[list(tokens)] = -math.inf
    return logits


def plausible(left, beta):
    return left.exp() >= beta * left.exp().max()


def guidance(gamma, beta):
    def formula(expert, amateurs, left):
        seen, blind = expert.softmax(dim=-1), amateurs[0].softmax(dim=-1)
        scores = gamma * seen.log() - (gamma - 1) * blind.log()
        return torch.where(plausible(left, beta), scores, -math.inf)

    return formula


def growing(rate, beta):
    def formula(expert, amateur, step, left):
        seen, blind = expert.softmax(dim=-1), amateur.softmax(dim=-1)
        kept = math.exp(-rate * step)  # what is left of the image
        scores = seen.log() + (1 - kept) / kept * (seen.log() - blind.log())
        return torch.where(plausible(left, beta), scores, -math.inf)

    return formula


def additive(alpha, beta):
    def formula(expert, amateurs, left):
        return torch.where(plausible(left, beta), expert + alpha * amateurs[0], -math.inf)

    return formula


def supported(alpha):
    def formula(expert, notes, left):
        return torch.where(plausible(left, alpha), notes[0], -math.inf)

    return formula


def last_embedding(alpha, beta):
    def formula(expert, layers, left):
        scores = expert + alpha * (expert - layers[0])
        return torch.where(plausible(left, beta), scores, -math.inf)

    return formula


def corrected(alpha, top_k, top_p):
    def nucleus(logits):
        order = sorted(range(len(logits)), key=lambda v: -float(logits[v]))
        p, candidates, total = logits.softmax(dim=-1), [], 0.0
        for v in order[:top_k]:
            candidates.append(v)
            total += float(p[v])
            if total >= top_p:
                break
        return candidates

    def formula(expert, layers, left):
        candidates = nucleus(expert)
        surest = max(layers, key=lambda layer: float(layer.softmax(dim=-1)[candidates].max()))
        confidence = surest.softmax(dim=-1)[candidates].max()
        scores = torch.full_like(expert, -math.inf)
        kept = nucleus(left)
        scores[kept] = (expert + alpha * confidence * surest)[kept]
        return scores

    return formula


def late(beta):
    def divergence(p, q):
        m = (p + q) / 2
        return float((p * (p / m).log() + q * (q / m).log()).nan_to_num(0).sum() / 2)

    def formula(expert, layers, left):
        p = expert.softmax(dim=-1)
        chosen = max(layers, key=lambda layer: divergence(p, layer.softmax(dim=-1)))
        scores = p.log() - chosen.log_softmax(dim=-1)
        return torch.where(plausible(left, beta), scores, -math.inf)

    return formula


def without_images(family, row):
    return [Prompt([t for t in row if t != IMAGE])]


def with_unknown(family, row):
    return [Prompt([UNK if t == IMAGE else t for t in row])]


def unattended(family, row):
    return [Prompt(row, whole, least_attended(start=1, ratio=0.3))]


def outliers_alone(family, row):
    return [Prompt(row, whole, chosen=most_attended(k=3))]


def both(family, row):
    return without_images(family, row) + with_unknown(family, row)


def noised(family, row):
    """Step 700 of the schedule, its constants from the table of the method's note."""

    def edit(pixels):
        if family == "llava":
            noise = torch.stack([own_noise(image.shape, 5, image) for image in pixels])
        else:  # one frame's noise, in both temporal copies of each channel
            frame = own_noise((len(pixels), 3, 1, 14 * 14), 5, pixels)
            noise = torch.cat([frame, frame], dim=2).reshape(len(pixels), -1)
        return (0.592677 * pixels.float() + 0.805440 * noise).to(pixels.dtype)

    return [Prompt(row, edit)]


def told_to_be_careless(tiny, row):
    question = tiny.question(row)
    return [Prompt(tiny.row(f"{INSTRUCTIONS['careless']} {question}"), whole)]


def masked(tiny, row):
    fixed, question = Fixed(), tiny.question(row)
    local = [blacked_out(p, fixed.values(p), fixed.masked(question)) for p in images_of(row)]
    return [Prompt(row, whole, given=tiny.shown(local))]


DESCRIBE = "Describe. "
SUMMARY = "Seen: {description}"


@cache
def described(tiny, row, tokens=6):
    """(prompt with the description, the best log-probability of each token over it)."""
    question = tiny.question(row)
    request = Prompt(tiny.row(f"{DESCRIBE}{question}"), whole)
    words = []
    while len(words) < tokens:
        logits = full_forward(tiny.model, tiny.inputs, row, request, words).logits[0, -1]
        if int(logits.argmax()) == EOS:
            break
        words.append(int(logits.argmax()))
    logits = full_forward(tiny.model, tiny.inputs, row, request, words).logits[0]
    ran = logits[-len(words) - 1 : -1].double().log_softmax(dim=-1)
    text = tiny.processor.decode(words, skip_special_tokens=True).strip()
    statement = SUMMARY.replace("{description}", text)
    return Prompt(tiny.row(f"{statement} {question}"), whole), ran.amax(dim=0)


STAND_IN = letters()
"""A processor to make decoders with, before there is a model."""

METHODS = {
    "vcd": Method(
        VCD(alpha=1.5, beta=0.05, noise_step=700, seed=5),
        VCD(alpha=0, beta=0),
        noised,
        alpha=1.5,
        beta=0.05,
    ),
    "vdd": Method(
        VDD(alpha=1.5, beta=0.05), VDD(alpha=0, beta=0), without_images, alpha=1.5, beta=0.05
    ),
    "vdd-unk": Method(
        VDD(alpha=1.5, beta=0.05, variant="unk", unk_token_id=UNK),
        VDD(alpha=0, beta=0, variant="unk", unk_token_id=UNK),
        with_unknown,
        alpha=1.5,
        beta=0.05,
    ),
    "vdd-both": Method(
        VDD(alpha=1.5, beta=0.05, variant="both", unk_token_id=UNK),
        VDD(alpha=0, beta=0, variant="both", unk_token_id=UNK),
        both,
        alpha=1.5,
        beta=0.05,
    ),
    "damro": Method(
        DAMRO(alpha=1.5, beta=0.05, k=3),
        DAMRO(alpha=0, beta=0),
        outliers_alone,
        alpha=1.5,
        beta=0.05,
    ),
    "m3id": Method(
        M3ID(rate=0.5, beta=0.05),
        M3ID(rate=0, beta=0),
        without_images,
        growing=growing(rate=0.5, beta=0.05),
    ),
    "pai": Method(
        PAI(alpha=1.5, gamma=2.0, beta=0.05, layers=(1, 3)),
        PAI(alpha=0, gamma=1),
        without_images,
        attention=image_gain(alpha=1.5, first=1),
        formula=guidance(2.0, 0.05),
    ),
    "pai-attention": Method(
        PAI.without_guidance(alpha=3.0),
        PAI.without_guidance(alpha=0),
        attention=image_gain(alpha=3.0, first=2),
        formula=lambda expert, amateurs, left: expert.log_softmax(dim=-1),
        is_whole=True,
    ),
    "vaf": Method(
        VAF(enhance=1.5, suppress=0.6, layers=(0, 2)),
        VAF(enhance=0, suppress=0),
        attention=image_scale(image=2.5, system=0.4, layers=(0, 1)),
    ),
    "sid": Method(
        SID(alpha=1.5, beta=0.05, start=1, ratio=0.3),
        SID(alpha=0, beta=0, start=1),
        unattended,
        alpha=1.5,
        beta=0.05,
    ),
    "vasparse": Method(
        VASparse(alpha=0.8, beta=0.05, keep=0.6, every=5, weight=0.2, sink=0.7),
        VASparse(alpha=0, beta=0, keep=1),
        attention=sparse(keep=0.6, every=5, weight=0.2, sink=0.7),
        cuts_cache=True,
        layers=(0,),
        formula=last_embedding(alpha=0.8, beta=0.05),
    ),
    "deco": Method(
        DeCo(alpha=2.0, layers=(1, 2), top_k=6, top_p=0.8),
        DeCo(alpha=0, top_k=0, top_p=1.0),
        layers=(1, 2),
        normed=True,
        formula=corrected(alpha=2.0, top_k=6, top_p=0.8),
    ),
    "dola": Method(
        DoLa(layers=(0, 1), beta=0.01),
        None,
        is_gentle=True,
        layers=(0, 1),
        formula=late(beta=0.01),
    ),
    "icd": Method(
        ICD(processor=STAND_IN, alpha=1.5, beta=0.05),
        ICD(processor=STAND_IN, alpha=0, beta=0),
        told_to_be_careless,
        alpha=1.5,
        beta=0.05,
    ),
    "agla": Method(
        AGLA(processor=STAND_IN, matcher=Fixed(), alpha=3.0, beta=0.05),
        AGLA(processor=STAND_IN, matcher=Fixed(), alpha=0, beta=0),
        masked,
        formula=additive(alpha=3.0, beta=0.05),
    ),
    "vdgd": Method(
        VDGD(processor=STAND_IN, tokens=6, request=DESCRIBE + "{question}", statement=SUMMARY),
        None,
        prepared=lambda tiny, row: described(tiny, tuple(row))[0],
        notes=lambda tiny, row: [described(tiny, tuple(row))[1]],
        formula=supported(alpha=0.1),
    ),
    "carve": Method(
        CARVE(processor=STAND_IN, tokens=3),
        CARVE(processor=STAND_IN, tokens=3, share=1, final="refined"),
        elsewhere="test_carve.py",
    ),
    "mvp": Method(
        MVP(processor=STAND_IN, k=2, tokens=4, caption_tokens=4),
        None,
        elsewhere="test_mvp.py",
        is_closed=True,
    ),
    "posthoc": Method(
        PostHocDebias(processor=STAND_IN, labels=("a", "b")),
        None,
        elsewhere="test_posthoc.py",
        is_closed=True,
    ),
}
TOKEN_METHODS = {name: method for name, method in METHODS.items() if not method.needs_processor}
"""Those that are asked by tokens alone."""
