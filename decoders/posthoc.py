"""Post-Hoc Debias, Zhang et al. (arXiv:2403.05262)."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from sightline.chat import has_template
from sightline.decoders.closed_set import ClosedSet, as_generated
from sightline.decoders.contrasts import NoImage, UnknownImage
from sightline.decoders.vdd import Variant, image_free
from sightline.engine.branch import Branch
from sightline.engine.chat_prompts import check_answers_next
from sightline.engine.chat_template import tokenizer_of
from sightline.engine.decode import GenerateCall
from sightline.engine.inputs import complete, position_offset_kept
from sightline.engine.prefill import forward_prompt, last_logits, prepare_inputs
from sightline.engine.search_range import SearchRange
from sightline.logits.calibration import Aggregate, calibrate, label_masses, reference
from sightline.logits.finite import check_finite
from sightline.model_protocol import Model
from sightline.settings import Markers, Positive, Processor, TokenId, Words, wrong
from sightline.weak_lru import Memory

Reference = Literal["none", "unk", "none_unk"]
VARIANTS: dict[Reference, Variant] = {"none": "none", "unk": "unk", "none_unk": "both"}
REMEMBERED = 4096  # image-free prompts whose label masses are kept, for each model


@dataclass(frozen=True)
class PostHocDebias(ClosedSet):
    """Answer yes/no or A/B/C/D as if the model did not lean to one of them without an image.

    The probability of each label is divided by what the same model gives it when the image is
    taken away, so that an image-free prompt would score every label equally. A different thing
    from sampling under a contrast: only the labels are weighed, from unconstrained logits over
    the whole vocabulary, and the answer is their argmax. Compare it with greedy, not with sampling.

    Args:
        processor: The model's processor, which also says what belongs to an image, or its
            tokenizer.
        labels: Two or more answers, compared without case or white space.
        reference: What stands in the image's place: "none" nothing, "unk" one unknown token,
            "none_unk" both, their masses added before normalising.
        aggregate: A label's mass is its most probable surface form ("max", as published) or the
            "sum" of its forms ("Yes", "yes", " yes").
        smoothing: Added to each label's reference probability.
        unk_token_id: The unknown token's id, in place of the tokenizer's own.
        markers: Ids of tokens around an image that the model's config does not name.

    What an image-free prompt gives is kept and not asked again, as long as weights and adapters
    stay what they are; `clear()` is for changes that `Memory` does not see.

    A label that is no single token is scored by the geometric mean of its tokens' probabilities,
    in the answer and in the reference alike (ours; the paper's options are single tokens).

    Differs from the authors' code: masses come from the full vocabulary, not the ten best tokens,
    and from logits without a plausibility cut, so a label outside the ten best is not multiplied
    by 10,000 and one masked away is not lost.
    """

    processor: Processor = field(repr=False, kw_only=True)
    labels: Sequence[Words] = ("yes", "no")
    reference: Reference = "none"
    aggregate: Aggregate = "max"
    smoothing: Annotated[Positive, SearchRange(1e-5, 1e-3)] = 1e-4
    unk_token_id: TokenId | None = None
    markers: Markers = ()

    _known: Memory[tuple, Tensor] = field(
        init=False, repr=False, compare=False, default_factory=lambda: Memory(REMEMBERED)
    )

    def __post_init__(self):
        super().__post_init__()
        labels = [label.strip().lower() for label in self.labels]
        if len(labels) < 2 or len(set(labels)) < len(labels):
            raise wrong("labels", "two or more different answers", self.labels)
        _ = self.contrasts  # checks what stands in the image's place

    def clear(self) -> None:
        """Forgets what image-free prompts gave."""
        self._known.clear()

    @property
    def contrasts(self) -> tuple[NoImage | UnknownImage, ...]:
        """What the reference is asked of."""
        variant = VARIANTS[self.reference]
        return image_free(variant, self.processor, self.unk_token_id, self.markers)

    def label_probabilities(self, model: Model, call: GenerateCall) -> Tensor:
        return self._calibrated(model, call)[0]

    def run(self, model: Model, call: GenerateCall) -> Any:
        """The prompt followed by the best label and the end of sequence."""
        calibrated, logits = self._calibrated(model, call)
        answers = [
            self._answer(label, row)
            for label, row in zip(calibrated.argmax(dim=-1).tolist(), logits, strict=True)
        ]
        return as_generated(call, *_closed(answers, call.generation_config))

    def _calibrated(self, model: Model, call: GenerateCall) -> tuple[Tensor, Tensor]:
        """Calibrated probabilities `[B, C]`, and the first answer token's logits `[B, V]`."""
        expert = self.expert(model, call)
        if has_template(self.processor):
            check_answers_next(self.processor, expert)
        shared = last_logits(model)
        amateurs = []
        with position_offset_kept(model):
            for contrast in self.contrasts if expert.image_mask.any() else ():
                amateurs.append(complete(contrast(expert, model), model, call.generation_config))
        priors = [self._remembered(model, branch, shared) for branch in amateurs]
        masses, logits = self._masses(model, expert, shared)
        even = torch.full_like(masses, 1 / len(self.labels))
        has_image = expert.image_mask.any(dim=1, keepdim=True)
        prior = torch.where(has_image, reference(*priors), even) if priors else even
        return calibrate(masses, prior, self.smoothing), logits

    def _remembered(self, model: Model, branch: Branch, shared: dict[str, Any]) -> Tensor:
        """Masses `[B, C]` of an image-free branch, which depend on the text alone.

        Each text is asked once and kept: a benchmark puts one question to many images.
        """
        texts = [
            tuple(ids[mask.bool()].tolist())
            for ids, mask in zip(branch.input_ids, branch.attention_mask, strict=True)
        ]
        row_of = {text: row for row, text in enumerate(texts)}

        def found(missing: list[tuple]) -> Tensor:
            rows = [row_of[text] for text in missing]
            asked = torch.tensor(rows, device=branch.input_ids.device)
            return self._masses(model, branch.rows(asked, model.config), shared)[0]

        return torch.stack(self._known.recall(model, texts, found))

    def _masses(
        self, model: Model, branch: Branch, shared: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Unnormalised label masses `[B, C]` and logits `[B, V]` at the first answer position."""
        cache = branch.cache(model)
        logits = forward_prompt(model, branch, cache, shared).logits[:, -1].float()
        check_finite(logits)
        if all(len(forms) for forms in self._single):
            return label_masses(logits.softmax(dim=-1), self._single, self.aggregate), logits
        first = logits.log_softmax(dim=-1)
        columns = []
        for sequences in self._sequences:
            scores = [
                sequence_score(model, branch, cache, first, tokens, shared) for tokens in sequences
            ]
            forms = torch.stack(scores, dim=-1).exp()
            columns.append(forms.amax(-1) if self.aggregate == "max" else forms.sum(-1))
        return torch.stack(columns, dim=-1), logits

    @property
    def _tokenizer(self) -> Any:
        return tokenizer_of(self.processor)

    @cached_property
    def _single(self) -> list[Tensor]:
        """For each label, the ids of the single tokens that read as it."""
        tokenizer = self._tokenizer
        texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
        forms: dict[str, list[int]] = {label.strip().lower(): [] for label in self.labels}
        for token, text in enumerate(texts):
            if text.strip().lower() in forms:
                forms[text.strip().lower()].append(token)
        return [torch.tensor(ids, dtype=torch.long, device="cpu") for ids in forms.values()]

    @cached_property
    def _sequences(self) -> list[list[tuple[int, ...]]]:
        """For each label, the token sequences of its surface forms."""
        return [
            list(dict.fromkeys(self._encode(form) for form in _surface_forms(label)))
            for label in self.labels
        ]

    def _answer(self, label: int, logits: Tensor) -> tuple[int, ...]:
        """The tokens that give a label, in the form likeliest by the row's logits `[V]`."""
        forms = self._single[label].to(logits.device)
        if len(forms):
            return (int(forms[logits[forms].argmax()]),)
        return max(self._sequences[label], key=lambda tokens: float(logits[tokens[0]]))

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def sequence_score(
    model: Model,
    branch: Branch,
    cache: Any,
    first: Tensor,
    tokens: tuple[int, ...],
    shared: dict[str, Any],
) -> Tensor:
    """Mean log-probability `[B]` of `tokens` after a branch whose prompt is in `cache`.

    `first` `[B, V]` are the log-probabilities of the first answer token. The cache is left alone.
    """
    score = first[:, tokens[0]]
    if len(tokens) == 1:
        return score
    rows, follow = len(first), len(tokens) - 1
    answer = torch.tensor(tokens, device=first.device)
    prompt = branch.position_ids
    assert prompt is not None, "a completed branch has positions"
    positions = prompt[..., -1:] + torch.arange(1, follow + 1, device=first.device)
    mask = torch.cat([branch.attention_mask, branch.attention_mask.new_ones(rows, follow)], dim=1)
    given = {
        **{name: follow if name == "logits_to_keep" else value for name, value in shared.items()},
        "next_sequence_length": follow,
        "past_key_values": copy.deepcopy(cache),
        "attention_mask": mask,
        "position_ids": torch.cat([prompt, positions], dim=-1),
    }
    ids = torch.cat([branch.input_ids, answer[:-1].expand(rows, -1)], dim=1)
    logits = model(**prepare_inputs(model, ids, given), return_dict=True).logits[:, -follow:]
    check_finite(logits.flatten(0, 1))
    later = logits.float().log_softmax(dim=-1)
    steps = later.gather(2, answer[1:].expand(rows, -1)[..., None]).squeeze(-1)
    return (score + steps.sum(dim=1)) / len(tokens)


def _surface_forms(label: str) -> list[str]:
    label = label.strip()
    return [
        space + form for form in (label, label.lower(), label.capitalize()) for space in (" ", "")
    ]


def _closed(
    answers: list[tuple[int, ...]], generation_config: Any
) -> tuple[list[tuple[int, ...]], int]:
    """Answers, each closed by the end of sequence, and what stands behind shorter ones."""
    end = generation_config.eos_token_id
    end = end[0] if isinstance(end, list) else end
    closing = () if end is None else (end,)
    fill = generation_config.pad_token_id
    fill = (end or 0) if fill is None else fill
    return [answer + closing for answer in answers], fill
