"""Multi-View Multi-Path Reasoning, Qu et al., COLING 2025 (arXiv:2408.17150)."""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria, TopPLogitsWarper

from sightline.compat import pad_token
from sightline.decoders.closed_set import ClosedSet, as_generated, check_one_answer
from sightline.decoders.mvp.votes import (
    FirstToken,
    Path,
    SaidLabel,
    affirmative,
    certainty,
    check_surfaces,
    decide,
    find_answer,
    first_tokens,
    gaps,
    spokesman,
    tally,
)
from sightline.engine.branch import Branch
from sightline.engine.chat_prompts import PromptEditor
from sightline.engine.decode import GenerateCall
from sightline.engine.inputs import position_offset_kept
from sightline.engine.mixed_batch import concerned, rows_by_image
from sightline.engine.prefill import read_images
from sightline.engine.search_range import SearchRange
from sightline.engine.strategy import Recipe
from sightline.engine.subgeneration import eos_token_ids, generate_text
from sightline.engine.validation import is_text_only
from sightline.model_protocol import Model
from sightline.settings import (
    Count,
    Processor,
    Seed,
    Share,
    Strength,
    UnitInterval,
    Wanted,
    Words,
    holding,
)
from sightline.vision.features import image_rows, images_of
from sightline.vision.noise import generator
from sightline.weak_lru import Memory

BOTTOM_UP = (
    "Inspect the image part by part. Look at shapes, colours and textures, detect each object, and "
    "describe everything in detail."
)
TOP_DOWN = (
    "Consider the scene as a whole, including its setting, surroundings and visual cues, and "
    "describe it in detail."
)
REGULAR = "Describe the image in detail."
TEMPLATE = "Caption of the image:\n{caption}\nQuestion: {question}"
Unresolved = Literal["skip", "affirmative"]
Template = Annotated[str, holding("{caption}", "{question}")]
Weights = Annotated[Sequence[Strength], Wanted("numbers >= 0, and one above", any)]
REMEMBERED = 4096  # captions that are kept, for each model


@dataclass(frozen=True)
class MVP(ClosedSet):
    """Answer a closed question by the votes of several captions and several beginnings.

    The model captions the image from several points of view. Each caption joins the question,
    each of the K likeliest first tokens begins a path, and a path votes for the label it reaches,
    with the probability of its first token times how sure the model was of the label. All paths of
    all views are rows of one batch. Captions do not depend on the question: they are kept, so that
    several questions about one image pay for them once, as long as weights and adapters stay what
    they are; `clear()` is for changes that `Memory` does not see. A row without an image is
    answered by `generate` itself.

    Args:
        processor: The model's own.
        k: Paths for each view, 1 or more.
        labels: Two or more answers. A free description has none: use another decoder.
        requests: What asks for each view's caption.
        weights: Of each view, 0 or more.
        template: Holds {caption} and {question}.
        unresolved: Paths that reach no label: "skip" them, or "affirmative": the second label if
            they hold a negation, else the first, as the authors meant to (two labels only).
        threshold: First tokens less probable than this begin no path, unless they are a label.
        dedup: One path for "Yes", "yes" and " yes", of the likeliest; the authors give each one.
        tokens: Longest continuation of a path.
        caption_tokens: Longest caption.
        temperature: Of captions; 0 is greedy.
        top_p: Of captions.
        seed: Of captions. Each is drawn from the seed, its view and the image's own pixels, so that
            views of one request differ, and whatever else is in the batch.

    Differs from the authors' code, whose released form cannot run to its end: paths are greedy,
    labels are found as whole words, the gap is taken at temperature 1, a path begins with the token
    that was scored, and captions are made once for each image.
    """

    processor: Processor = field(repr=False, kw_only=True)
    k: Annotated[Count, SearchRange(1, 10)] = 3
    labels: Sequence[Words] = ("Yes", "No")
    requests: Sequence[Words] = (BOTTOM_UP, TOP_DOWN, REGULAR)
    weights: Weights = (0.4, 0.4, 0.2)
    template: Template = TEMPLATE
    unresolved: Unresolved = "skip"
    threshold: Annotated[UnitInterval, SearchRange(0, 0.01)] = 0.001
    dedup: bool = True
    tokens: Annotated[Count, SearchRange(1, 100)] = 50
    caption_tokens: Annotated[Count, SearchRange(1, 1024)] = 512
    temperature: Annotated[Strength, SearchRange(0, 1.5)] = 0.7
    top_p: Annotated[Share, SearchRange(0.01, 1)] = 0.95
    seed: Annotated[Seed, SearchRange(0, 99)] = 0

    needs_images = True

    _known: Memory[tuple, str] = field(
        init=False, repr=False, compare=False, default_factory=lambda: Memory(REMEMBERED)
    )

    def __post_init__(self):
        super().__post_init__()
        try:
            check_surfaces(self.surfaces)
        except ValueError as error:
            raise ValueError(f"labels cannot be told apart: {error}") from error
        if len(self.requests) != len(self.weights):
            raise ValueError(
                f"each view has a request and a weight, got {len(self.requests)} requests and "
                f"{len(self.weights)} weights"
            )
        if self.unresolved == "affirmative" and len(self.labels) != 2:
            raise ValueError("affirmative decides between two labels: set unresolved='skip'")

    def clear(self) -> None:
        """Forgets the captions."""
        self._known.clear()

    @property
    def surfaces(self) -> dict[str, tuple[str, ...]]:
        """The ways to say each label."""
        return {label: (label,) for label in self.labels}

    def label_probabilities(self, model: Model, call: GenerateCall) -> Tensor:
        """The share of each label in the votes.

        A row in which no path reached a label has zeros. One without an image is refused.
        """
        with position_offset_kept(model):
            expert = self.expert(model, call)
            unseen = rows_by_image(expert)[1].tolist()
            if unseen:
                raise ValueError(
                    f"votes are about an image, and rows {unseen} hold no image token: ask for "
                    "the probabilities of the other rows alone"
                )
            votes = self._votes(model, expert)
        totals = torch.tensor([list(vote.totals.values()) for vote in votes], device="cpu")
        return totals / totals.sum(dim=1, keepdim=True).clamp_min(1e-30)

    def run(self, model: Model, call: GenerateCall) -> Any:
        """The prompt and the path that adds most to the winning label."""
        check_one_answer(self, call)
        input_ids = call.input_ids
        if is_text_only(model, input_ids, call.images, {}, call.model_kwargs):
            return Recipe().run(model, call)
        with position_offset_kept(model):
            expert = self.expert(model, call)
            seen, unseen = (rows.tolist() for rows in rows_by_image(expert))
            votes = self._votes(model, concerned(self, expert, model.config))
            answers = dict(zip(seen, (vote.tokens for vote in votes), strict=True))
            if unseen:  # the whole batch goes on: processors may be made for as many rows
                said = Recipe().run(model, replace(call, token_streamer=None))
                plain = said if isinstance(said, Tensor) else said.sequences
                answers |= {row: plain[row, input_ids.shape[1] :].tolist() for row in unseen}
        fill = pad_token(call.generation_config)
        ordered = [answers[row] for row in range(len(input_ids))]
        return as_generated(call, ordered, 0 if fill is None else int(fill))

    def _votes(self, model: Model, expert: Branch) -> list["Votes"]:
        """Of each row; every one has an image."""
        editor = PromptEditor(self.processor, model, expert.call.chat_template_kwargs)
        asked = editor.asked(expert)
        editor.check_answered_next(asked)
        questions = [row.question for row in asked]
        expert = read_images(expert, model)
        captions = self._captions(editor, expert)
        return self._compare(editor, expert, questions, captions)

    def _captions(self, editor: PromptEditor, expert: Branch) -> list[list[str]]:
        """By row, the caption of each view."""
        keys = [
            [
                (
                    *self._image_key(expert, row, editor.model.config),
                    asked.lead,
                    asked.closing,
                    *view,
                )
                for view in enumerate(self.requests)
            ]
            for row, asked in enumerate(editor.asked(expert))
        ]
        row_of = {key: row for row, own in enumerate(keys) for key in own}

        def found(missing: list[tuple]) -> list[str]:
            rows = [row_of[key] for key in missing]
            views = [key[-2] for key in missing]
            asking = editor.ask(expert, rows, [self.requests[view] for view in views])
            draws = [
                generator(self.seed, view, b"".join(map(digest, expert.call.images[row])))
                for row, view in zip(rows, views, strict=True)
            ]
            drawn = Drawn(self.temperature, self.top_p, draws)
            return editor.replies(
                generate_text(editor.model, asking, self.caption_tokens, processors=[drawn])
            )

        flat = self._known.recall(editor.model, [key for own in keys for key in own], found)
        count = len(self.requests)
        return [flat[place : place + count] for place in range(0, len(flat), count)]

    def _image_key(self, expert: Branch, row: int, config: Any) -> tuple:
        """What a row's captions depend on: what stands before its text, its images' bytes,
        and its videos as they were encoded.

        Earlier turns, the request and its view come on top.
        """
        last = int(torch.nonzero(expert.image_mask[row])[-1])
        mask = expert.attention_mask[row, : last + 1].bool()
        before = tuple(expert.input_ids[row, : last + 1][mask].tolist())
        images = tuple((image.size, digest(image)) for image in expert.call.images[row])
        videos = tuple(digest(encoded) for encoded in videos_of(expert, row, config))
        settings = (self.caption_tokens, self.temperature, self.top_p, self.seed)
        return before, images, videos, *settings, *eos_token_ids(expert.call.generation_config)

    def _compare(
        self, editor: PromptEditor, expert: Branch, questions: list[str], captions: list[list[str]]
    ) -> list["Votes"]:
        views = len(self.requests)
        rows = [row for row in range(len(questions)) for _ in range(views)]
        texts = [
            self.template.replace("{question}", question.lower()).replace("{caption}", caption)
            for question, own in zip(questions, captions, strict=True)
            for caption in own
        ]
        paths = Paths(self, self.processor.tokenizer, eos_token_ids(expert.call.generation_config))
        said = generate_text(
            editor.model,
            editor.ask(expert, rows, texts),
            1 + self.tokens,
            copies=self.k,
            processors=[paths],
            criteria=[Reached(paths)],
        )
        found = paths.finish(said)
        return [
            self._decide(found[row * views : (row + 1) * views]) for row in range(len(questions))
        ]

    def _decide(self, views: list[list[tuple[Path, list[int]]]]) -> "Votes":
        tokens = {id(path): ids for own in views for path, ids in own}
        paths = [path for own in views for path, _ in own]
        weights: dict[Hashable, float] = dict(enumerate(self.weights))
        totals = tally(paths, weights, self.labels)
        label = decide(totals, tie=self.labels[-1] if len(self.labels) == 2 else None)
        speaker = None if label is None else spokesman(paths, weights, label)
        # Without a vote, what the last view says greedily.
        chosen = views[-1][0][0] if speaker is None else speaker
        return Votes(totals, label, tokens[id(chosen)], tuple(paths))


@dataclass(frozen=True)
class Votes:
    """What a row's paths decided.

    Args:
        totals: Of each label, weighted over views.
        label: The winner; None where no path voted.
        tokens: Ids of the path that speaks for it.
        paths: All of them.
    """

    totals: dict[str, float]
    label: str | None
    tokens: list[int]
    paths: tuple[Path, ...]


def digest(values: Any) -> bytes:
    """The hash of an image's pixels, or of an array's values."""
    return blake2b(values.tobytes()).digest()


def videos_of(expert: Branch, row: int, config: Any) -> Iterator[np.ndarray]:
    """The encoded videos of a row, as bytes."""
    features = expert.features or {}
    for modality, rows in image_rows(expert.input_ids, features, config).items():
        for number in rows[row] if modality != "image" else ():
            encoded = images_of(features[modality])[number]
            yield encoded.contiguous().view(torch.uint8).cpu().numpy()


class Drawn(LogitsProcessor):
    """Makes greedy decoding a draw: Gumbel noise over each row's nucleus.

    The best of log-probabilities plus Gumbel noise is a sample of them. Each row has noise of its
    own, whatever its neighbours, and the global random state is neither read nor advanced.

    Args:
        temperature: 0 draws nothing.
        top_p: In (0, 1].
        draws: On the CPU, one for each row.
    """

    def __init__(self, temperature: float, top_p: float, draws: Sequence[torch.Generator]):
        self.temperature = temperature
        self.nucleus = TopPLogitsWarper(top_p) if top_p < 1 else None
        self.draws = draws

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.temperature == 0:
            return scores
        scores = scores / self.temperature
        if self.nucleus is not None:
            scores = self.nucleus(input_ids, cast(torch.FloatTensor, scores))
        size = scores.shape[-1]
        noise = torch.stack([torch.rand(size, generator=own, device="cpu") for own in self.draws])
        return scores - (-noise.clamp_min(1e-20).log()).log().to(scores)


class Paths(LogitsProcessor):
    """Begins K paths in each view, and follows each to where its label is said.

    The K copies of a view's row are its paths; a copy with nothing to begin stands idle.

    Args:
        settings: The decoder's.
        tokenizer: Turns tokens into the text that labels are looked for in.
        eos: Token ids that end a path.
    """

    def __init__(self, settings: MVP, tokenizer: Any, eos: Sequence[int]):
        self.settings = settings
        self.tokenizer = tokenizer
        self.eos = set(eos)
        self.prompt = -1  # columns before the first token
        self.first: list[FirstToken | None] = []  # of each row
        self.gaps: list[list[float]] = []  # of each row, for each of its tokens
        self.lengths: list[int | None] = []  # of each row that has ended

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`input_ids` `[R, T + t]`, logits `[R, V]` -> the same, but for the first token."""
        if self.prompt >= 0:
            for own, gap in zip(self.gaps, gaps(scores).tolist(), strict=True):
                own.append(gap)
            return scores
        self.prompt, k = input_ids.shape[1], self.settings.k
        settings, views = self.settings, scores[::k]
        found = first_tokens(
            views, k, self._token, settings.surfaces, settings.threshold, settings.dedup
        )
        # The best token begins a path however improbable: a view without one could say nothing.
        best = first_tokens(views, 1, self._token, settings.surfaces, 0.0)
        slots = [own or one for own, one in zip(found, best, strict=True)]
        self.first = [slot for own in slots for slot in (*own, *[None] * (k - len(own)))]
        self.gaps = [[math.nan] for _ in self.first]
        self.lengths = [1 if slot is None or slot.label else None for slot in self.first]
        chosen = scores.argmax(dim=-1)
        for row, slot in enumerate(self.first):
            if slot is not None:
                chosen[row] = slot.token
        return torch.full_like(scores, -math.inf).scatter(1, chosen[:, None], 0.0)

    def has_ended(self, input_ids: Tensor) -> list[bool]:
        """Which rows have said a label, or the end of sequence."""
        answers = input_ids[:, self.prompt :].tolist()
        for row, tokens in enumerate(answers):
            if self.lengths[row] is None and (
                tokens[-1] in self.eos
                or find_answer(self._text(tokens), self.settings.surfaces, ended=False)
            ):
                self.lengths[row] = len(tokens)
        return [length is not None for length in self.lengths]

    def finish(self, said: Tensor) -> list[list[tuple[Path, list[int]]]]:
        """What was said, `[R, L]` -> for each view its paths and their tokens."""
        k = self.settings.k
        found: list[list[tuple[Path, list[int]]]] = [[] for _ in range(len(said) // k)]
        for row, (slot, tokens) in enumerate(zip(self.first, said.tolist(), strict=True)):
            if slot is None:
                continue
            view = row // k
            tokens = tokens[: self.lengths[row]]
            path = self._path(view % len(self.settings.requests), slot, tokens, self.gaps[row])
            found[view].append((path, tokens))
        return found

    def _path(self, view: int, slot: FirstToken, tokens: list[int], gaps: list[float]) -> Path:
        text = self._text(tokens)
        if slot.label is not None:
            return Path(view, slot.probability, slot.label, None, text)
        answer: SaidLabel | None = find_answer(text, self.settings.surfaces)
        if answer is None and self.settings.unresolved == "affirmative":
            yes, no = self.settings.labels
            answer = affirmative(text, yes, no)
        if answer is None:
            return Path(view, slot.probability, None, None, text)
        prefixes = [self._text(tokens[: i + 1]) for i in range(len(tokens))]
        gap = certainty(answer, prefixes, gaps)
        return Path(view, slot.probability, answer.label, gap, text)

    def _token(self, token: int) -> str:
        return self.tokenizer.decode([token])

    def _text(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)


class Reached(StoppingCriteria):
    """Ends a path where it has said its label."""

    def __init__(self, paths: Paths):
        self.paths = paths

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.tensor(self.paths.has_ended(input_ids), device=input_ids.device)
