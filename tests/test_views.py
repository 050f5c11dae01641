"""Decoders that ask again or look again, against full forwards of prompts the processor builds."""

import copy
import math
from dataclasses import dataclass, replace

import pytest
import torch
from chat_models import TALKERS, Fixed, blacked_out, scene, unpadded, within
from test_invariants import snapshot
from torch.nn.functional import interpolate
from transformers.generation import BaseStreamer

from sightline import AGLA, CARVE, ICD, M3ID, MVP, VDGD, PrefixOnly
from sightline.decoders.agla.agla import SelfMatcher
from sightline.decoders.agla.matching import Matcher
from sightline.decoders.carve.carve import GENERAL, SUFFIX, middle
from sightline.decoders.carve.regions import kept_regions, refined
from sightline.decoders.closed_set import LabelProbabilities
from sightline.decoders.icd import INSTRUCTIONS
from sightline.decoders.mvp.mvp import Drawn
from sightline.decoders.vdgd import REQUEST, STATEMENT
from sightline.engine.chat_prompts import PromptEditor
from sightline.engine.prefill import read_pictures
from sightline.specs import STAND_IN
from sightline.vision.noise import generator

QUESTIONS = ["Describe the image.", "Is there an orange or a vase?"]
ASKED = dict(output_scores=True, output_logits=True, return_dict_in_generate=True)
TOLERANCE = dict(atol=5e-4, rtol=2e-4)  # float32, batches against one row, no cache


@pytest.fixture(scope="module", params=sorted(TALKERS))
def talker(request):
    return TALKERS[request.param]()


@pytest.fixture(scope="module")
def lab_talker():
    return TALKERS["lab"]()


@pytest.fixture(scope="module")
def qwen_talker():
    return TALKERS["qwen"]()


def generate(talker, decoder, questions=QUESTIONS, pictures=None, steps=6, **kwargs):
    """(output, the caller's inputs)."""
    pictures = list(talker.pictures[: len(questions)] if pictures is None else pictures)
    inputs = talker.asked(questions, pictures)
    if getattr(decoder, "needs_images", False):
        kwargs["images"] = pictures
    torch.manual_seed(1)
    out = talker.model.generate(
        **inputs, custom_generate=decoder, **{"max_new_tokens": steps, **kwargs}
    )
    return out, inputs


def answers(talker, out, inputs):
    """By row, ids up to and with the end of sequence."""
    sequences = getattr(out, "sequences", out)
    return [ended(talker, row) for row in sequences[:, inputs["input_ids"].shape[1] :].tolist()]


def ended(talker, tokens):
    for place, token in enumerate(tokens):
        if token in talker.eos:
            return tokens[: place + 1]
    return tokens


def plain(talker, prompt, pictures, steps=6, **kwargs):
    """What `generate` says after one prompt from scratch, and the logits of each step."""
    inputs = talker.inputs([prompt], pictures)
    out = talker.model.generate(**inputs, max_new_tokens=steps, do_sample=False, **ASKED, **kwargs)
    tokens = ended(talker, out.sequences[0, inputs["input_ids"].shape[1] :].tolist())
    return tokens, torch.stack(out.logits)[: len(tokens), 0]


@torch.no_grad()
def full(talker, prompt, pictures=(), answer=(), model=None, **kwargs):
    """One forward of one row without a cache; `logits` [1 + len(answer), V] that follow it."""
    inputs = talker.inputs([prompt], pictures)
    answer = torch.tensor([list(answer)], dtype=torch.long)
    length = inputs["input_ids"].shape[1]
    for name, new in (("input_ids", answer), ("attention_mask", answer * 0 + 1)):
        inputs[name] = torch.cat([inputs[name], new], dim=1)
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], answer * 0], dim=1)
    model = model or talker.model
    kept, base = getattr(model.model, "rope_deltas", None), model.model
    out = model(**inputs, **kwargs)
    if hasattr(base, "rope_deltas"):
        base.rope_deltas = kept
    out.logits = out.logits[0, length - 1 :]
    return out


def contrastive(alpha, beta):
    def formula(expert, amateur, step):
        scores = (1 + alpha) * expert - alpha * amateur
        return torch.where(expert.exp() >= beta * expert.exp().max(), scores, -math.inf)

    return formula


def growing(rate, beta):
    def formula(expert, amateur, step):
        seen, blind = expert.softmax(-1).log(), amateur.softmax(-1).log()
        scores = seen + (math.exp(rate * step) - 1) * (seen - blind)
        return torch.where(seen.exp() >= beta * seen.exp().max(), scores, -math.inf)

    return formula


def additive(alpha, beta):
    def formula(expert, local, step):
        return torch.where(
            expert.exp() >= beta * expert.exp().max(), expert + alpha * local, -math.inf
        )

    return formula


def check_scores(talker, decoder, prompts, formula, steps=6, **kwargs):
    """Every step of every row against `formula(*logits, step)` in float64.

    `prompts(row, question, picture)`: (prompt, pictures) of each branch.
    """
    out, inputs = generate(talker, decoder, steps=steps, **ASKED, **kwargs)
    for row, answer in enumerate(answers(talker, out, inputs)):
        built = prompts(row, QUESTIONS[row], talker.pictures[row])
        branches = [full(talker, *given, answer=answer[:-1]).logits for given in built]
        for step in range(len(answer)):
            logits = [branch[step] for branch in branches]
            if "branch_logits" in out:
                for ours, theirs in zip(out.branch_logits[step][:, row], logits, strict=True):
                    torch.testing.assert_close(ours, theirs, **TOLERANCE)
            expected = formula(*(x.double() for x in logits), step)
            check_row(out.scores[step][row], expected)
            assert answer[step] == int(out.scores[step][row].argmax())
    return out


def check_row(scores, expected):
    kept = expected.isfinite()
    assert torch.equal(scores.isfinite(), kept)
    torch.testing.assert_close(scores[kept].double(), expected[kept], atol=3e-3, rtol=1e-3)


# VDGD


def described(talker, question, picture, layout, tokens):
    """The description by plain `generate`, g by teacher forcing, and the prompt it joins."""
    request = REQUEST.replace("{question}", question)
    said, _ = plain(talker, talker.chat(request), [picture], tokens)
    words = [token for token in said if token not in talker.eos]
    logits = full(talker, talker.chat(request), [picture], words).logits[: len(words)]
    support = logits.double().log_softmax(-1).amax(0)
    text = talker.processor.decode(words, skip_special_tokens=True).strip()
    statement = STATEMENT.replace("{description}", text)
    prompt = {
        "image_first": talker.chat(f"{statement} {question}"),
        "official": talker.chat([f"{statement}\n", None, question]),
        "continue": talker.chat(request, text, question),
    }[layout]
    return support, prompt


@pytest.mark.parametrize("layout", ["image_first", "official", "continue"])
def test_vdgd_ranks_plausible_tokens_by_the_description(talker, layout):
    decoder = VDGD(talker.processor, layout=layout, tokens=20)
    found = [
        described(talker, question, picture, layout, 20)
        for question, picture in zip(QUESTIONS, talker.pictures, strict=False)
    ]
    differs = []
    out, inputs = generate(talker, decoder, **ASKED)
    for row, answer in enumerate(answers(talker, out, inputs)):
        support, prompt = found[row]
        logits = full(talker, prompt, [talker.pictures[row]], answer[:-1]).logits
        for step, token in enumerate(answer):
            z = logits[step].double()
            torch.testing.assert_close(out.logits[step][row], logits[step], **TOLERANCE)
            plausible = z.exp() >= 0.1 * z.exp().max()
            check_row(out.scores[step][row], torch.where(plausible, support, -math.inf))
            assert token == int(out.scores[step][row].argmax())
            differs.append(token != int(z.argmax()))
    assert any(differs) or talker.name == "lab"


def test_beams_are_scored_by_their_own_rows_description(talker):
    decoder = VDGD(talker.processor, tokens=8)
    mode = dict(num_beams=2, num_return_sequences=2, length_penalty=0.0)
    out, inputs = generate(talker, decoder, **mode, **ASKED)
    for place, answer in enumerate(answers(talker, out, inputs)):
        row = place // 2
        picture = talker.pictures[row]
        support, prompt = described(talker, QUESTIONS[row], picture, "image_first", 8)
        logits = full(talker, prompt, [picture], answer[:-1]).logits.double()
        plausible = logits.exp() >= 0.1 * logits.exp().amax(-1, keepdim=True)
        scores = torch.where(plausible, support, -math.inf).log_softmax(-1)
        total = float(scores[range(len(answer)), answer].sum())
        assert float(out.sequences_scores[place]) == pytest.approx(total, abs=5e-3)  # float32


def test_vdgd_counts_no_distribution_that_ended_the_description(lab_talker):
    """Its g would be near 0 for the end of sequence: the best there is."""
    talker = lab_talker
    decoder = VDGD(talker.processor, tokens=40)
    question, picture = QUESTIONS[1], talker.pictures[0]
    said, logits = plain(
        talker, talker.chat(REQUEST.replace("{question}", question)), [picture], 40
    )
    assert said[-1] in talker.eos
    branch = prepared(talker, decoder, [question], [picture])
    support = branch.notes["support"][0]
    expected = logits[:-1].double().log_softmax(-1).amax(0)
    torch.testing.assert_close(support.double(), expected, atol=1e-4, rtol=1e-4)
    assert float(support[said[-1]]) < float(logits[-1].log_softmax(-1)[said[-1]]) - 0.1


def prepared(talker, decoder, questions, pictures):
    """The expert after the decoder's preparations."""
    (part,) = decoder.recipe().preparations

    inputs = talker.asked(questions, pictures)
    return within(talker, inputs, part, images=list(pictures))


@pytest.mark.parametrize("layout", ["image_first", "official", "continue"])
def test_vdgd_alpha_1_and_prefix_only_are_greedy_on_the_longer_prompt(talker, layout):
    settings = dict(processor=talker.processor, layout=layout, tokens=8)
    greedy, inputs = generate(talker, VDGD(alpha=1, **settings))
    only, _ = generate(talker, PrefixOnly(**settings))
    assert torch.equal(greedy, only)
    for row, answer in enumerate(answers(talker, only, inputs)):
        _, prompt = described(talker, QUESTIONS[row], talker.pictures[row], layout, 8)
        assert answer == plain(talker, prompt, [talker.pictures[row]])[0]


def test_prefix_only_samples_as_generate_does_on_the_longer_prompt(talker):
    decoder = PrefixOnly(processor=talker.processor, tokens=8)
    sampling = dict(do_sample=True, top_p=0.9, temperature=0.8)
    questions, picture = QUESTIONS[:1], talker.pictures[0]
    out, inputs = generate(talker, decoder, questions, steps=8, **sampling)
    _, prompt = described(talker, questions[0], picture, "image_first", 8)
    longer = talker.inputs([prompt], [picture])
    torch.manual_seed(1)
    own = talker.model.generate(**longer, max_new_tokens=8, **sampling)
    (answer,) = answers(talker, out, inputs)
    assert answer == ended(talker, own[0, longer["input_ids"].shape[1] :].tolist())


# ICD and M3ID


@pytest.mark.parametrize("instruction", [None, "confused", "Lie about it."])
def test_icd_takes_off_what_is_said_after_an_instruction_that_disturbs(talker, instruction):
    words = INSTRUCTIONS.get(instruction or "careless", instruction)

    def prompts(row, question, picture):
        return [
            (talker.chat(question), [picture]),
            (talker.chat(f"{words} {question}"), [picture]),
        ]

    given = {} if instruction is None else dict(instruction=instruction)
    decoder = ICD(talker.processor, alpha=1.5, beta=0.05, **given)
    check_scores(talker, decoder, prompts, contrastive(1.5, 0.05))


def test_icd_offers_what_the_authors_try():
    assert len(INSTRUCTIONS) == 6 and len(set(INSTRUCTIONS.values())) == 6
    for name in INSTRUCTIONS:
        ICD(STAND_IN, instruction=name)
    assert (ICD(STAND_IN).alpha, ICD(STAND_IN).beta) == (1.0, 0.1)
    for wrong in (" ", "confussed", "detecter"):
        with pytest.raises(ValueError, match="words that disturb, or one of careless, detector"):
            ICD(STAND_IN, instruction=wrong)


def test_m3id_adds_what_the_picture_adds_the_more_the_later(talker):
    def prompts(row, question, picture):
        return [(talker.chat(question), [picture]), (talker.chat([question]), [])]

    decoder = M3ID(rate=0.4, beta=0.05)
    check_scores(talker, decoder, prompts, growing(0.4, 0.05), steps=9)


# AGLA


def test_agla_adds_the_answer_about_the_masked_picture_at_every_step(talker):
    """The authors' code does at the first alone: from then on both views share a cache."""
    fixed = Fixed()

    def prompts(row, question, picture):
        local = blacked_out(picture, fixed.values(picture), fixed.masked(question))
        return [(talker.chat(question), [seen]) for seen in (picture, local)]

    decoder = AGLA(talker.processor, fixed, alpha=1.5, beta=0.2)
    out = check_scores(talker, decoder, prompts, additive(1.5, 0.2))
    for step in range(1, 4):
        whole, local = out.branch_logits[step][:, 0]
        assert (whole - local).abs().max() > 0.05


def test_agla_asks_the_matcher_without_the_suffix(talker):
    seen = []

    @dataclass(frozen=True)
    class StepCallback(Matcher):
        def __call__(self, pictures, questions, looks=()):
            seen.append((pictures, questions, looks))
            return Fixed()(pictures, questions)

    suffix = "Please answer this question with one word."
    decoder = AGLA(talker.processor, StepCallback(), suffix=suffix)
    generate(talker, decoder, [f"{question} {suffix}" for question in QUESTIONS], steps=1)
    ((pictures, questions, looks),) = seen
    assert list(questions) == QUESTIONS and list(looks) == []
    assert [p.size for p in pictures] == [p.size for p in talker.pictures[:2]]


def test_agla_can_ask_the_models_own_attention(talker):
    """Mean over heads, middle layers and the question's tokens; the highest are cut off."""
    depth = talker.model.config.text_config.num_hidden_layers

    def prompts(row, question, picture):
        out = full(talker, talker.chat(question), [picture], model=eager(talker), **ATTENTION)
        ids = talker.inputs([talker.chat(question)], [picture])["input_ids"][0]
        places = question_places(talker, ids, question)
        image = ids == talker.image
        layers = out.attentions[int(0.4 * depth) : int(0.75 * depth)]
        look = torch.stack([layer[0][:, places][:, :, image] for layer in layers]).mean((0, 1, 2))
        look = look.clamp(max=look.quantile(0.98))
        values = to_pixels(talker, look, picture)
        values = (values - values.min()) / (values.max() - values.min())
        local = blacked_out(picture, values, 0.15)
        return [(talker.chat(question), [seen]) for seen in (picture, local)]

    decoder = AGLA(talker.processor, SelfMatcher(), alpha=1.5, beta=0.2)
    check_scores(talker, decoder, prompts, additive(1.5, 0.2), steps=3)


ATTENTION = dict(output_attentions=True)


def eager(talker):
    model = copy.deepcopy(talker.model)
    model.set_attn_implementation("eager")
    return model


def question_places(talker, ids, question):
    """Columns whose text, put together, is the question: the last such run."""
    for first in reversed(range(len(ids))):
        for after in range(first + 1, len(ids) + 1):
            if talker.processor.decode(ids[first:after]).strip() == question:
                return range(first, after)
    raise AssertionError(question)


def grid_of(talker, picture):
    """Rows and columns of a picture's tokens."""
    made = talker.processor.image_processor(images=[picture], return_tensors="pt")
    if "image_grid_thw" in made:
        return (made["image_grid_thw"][0, 1:] // 2).tolist()
    return [8, 8]


def to_pixels(talker, values, picture):
    grid = values.float().view(1, 1, *grid_of(talker, picture))
    size = (picture.height, picture.width)
    return interpolate(grid, size=size, mode="bilinear", align_corners=False)[0, 0]


# CARVE


def looks(talker, text, picture, layers, tokens, model):
    """Attention to the picture at each step: `[steps, layers, N]`, heads averaged."""
    prompt = talker.chat(text)
    said, _ = plain(talker, prompt, [picture], tokens)
    out = full(talker, prompt, [picture], said[:-1], model=model, **ATTENTION)
    ids = talker.inputs([prompt], [picture])["input_ids"][0]
    image = (ids == talker.image).nonzero()[:, 0]
    first = len(ids) - 1
    seen = torch.stack([out.attentions[layer][0].mean(0) for layer in layers])
    return torch.stack([seen[:, first + step, image] for step in range(len(said))]).double()


def contrast_by_hand(talker, question, picture, layers, steps, tokens, model, smoothing=1e-8):
    asked, told = (
        looks(talker, f"{text} {SUFFIX}", picture, layers, tokens, model)
        for text in (question, GENERAL)
    )
    together = min(len(asked), len(told))
    ratio = (asked[:together] / (told[:together] + smoothing)).sum(1)
    weights = {
        "full": torch.arange(1, together + 1.0),
        "start": torch.eye(together)[0],
        "end": torch.eye(together)[-1],
    }[steps]
    return (weights.double()[:, None] * ratio).sum(0), len(asked), len(told)


def contrasts(talker, decoder, questions=QUESTIONS):
    (part,) = decoder.recipe().preparations
    pictures = talker.pictures[: len(questions)]

    def action(expert, model):
        return part._contrast(PromptEditor(talker.processor, model), read_pictures(expert, model))

    return within(talker, talker.asked(questions, pictures), action, images=list(pictures))


@pytest.mark.parametrize("steps", ["full", "start", "end"])
def test_carves_map_is_the_quotient_of_two_attentions(talker, steps):
    decoder = CARVE(talker.processor, steps=steps, tokens=8)
    layers = range(*middle(talker.model.config.text_config.num_hidden_layers))
    model = eager(talker)
    lengths = []
    for values, question, picture in zip(
        contrasts(talker, decoder), QUESTIONS, talker.pictures, strict=False
    ):
        expected, *own = contrast_by_hand(talker, question, picture, layers, steps, 8, model)
        torch.testing.assert_close(values.double(), expected, atol=1e-3, rtol=1e-3)
        lengths.append(own)
    if talker.name == "lab":  # a random model does not end its answers
        assert any(asked != told for asked, told in lengths), "no surplus step to be ignored"


@pytest.mark.parametrize("ending", ["", f" {SUFFIX}"], ids=["as asked", "with the suffix"])
@pytest.mark.parametrize("final", ["both", "refined"])
def test_carve_answers_about_the_processors_prompt_of_the_refined_picture(talker, final, ending):
    settings = dict(final=final, tokens=4, share=0.3, regions=1, answer_suffix=bool(ending))
    decoder = CARVE(talker.processor, **settings)
    cut = [
        refined(picture, kept_regions(to_pixels(talker, values, picture), 0.3, 1))
        for values, picture in zip(contrasts(talker, decoder), talker.pictures, strict=False)
    ]
    pairs = [
        [picture, small] if final == "both" else [small]
        for picture, small in zip(talker.pictures, cut, strict=False)
    ]
    prompts = [
        talker.chat([*[None] * len(own), question + ending])
        for own, question in zip(pairs, QUESTIONS, strict=True)
    ]
    expected = talker.inputs(prompts, [picture for own in pairs for picture in own])
    branch = prepared(talker, decoder, QUESTIONS, talker.pictures[:2])
    ids = unpadded(expected["input_ids"], expected["attention_mask"])
    assert unpadded(branch.input_ids, branch.attention_mask) == ids
    names = ("pixel_values", "image_grid_thw")
    given = {name: expected[name] for name in names if name in expected}
    own = talker.model.model.get_image_features(**given, return_dict=True).pooler_output
    for ours, theirs in zip(branch.features["image"].pooler_output, own, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    out, inputs = generate(talker, decoder, **ASKED)
    for row, answer in enumerate(answers(talker, out, inputs)):
        logits = full(talker, prompts[row], pairs[row], answer[:-1]).logits
        for step in range(len(answer)):
            torch.testing.assert_close(out.logits[step][row], logits[step], **TOLERANCE)
    assert not torch.equal(out.sequences, generate(talker, None)[0])


def test_carves_suffix_is_not_put_twice(lab_talker):
    """A benchmark may end its questions in it."""
    part = CARVE(lab_talker.processor).recipe().preparations[0]
    assert part._ended("Is there a cow?") == f"Is there a cow? {SUFFIX}"
    assert part._ended(f"Is there a cow? {SUFFIX}") == f"Is there a cow? {SUFFIX}"
    assert replace(part, suffix="")._ended("Is there a cow?") == "Is there a cow?"


def test_carves_preset_is_the_papers(lab_talker):
    """Layers 20 to 25 of every model, and the suffix in all three passes."""
    best = CARVE.paper_best(STAND_IN)
    assert (best.layers, best.share, best.regions, best.steps) == ((20, 26), 0.4, 2, "end")
    assert best.answer_suffix and best.suffix == SUFFIX and best.final == "both"
    with pytest.raises(ValueError, match=r"layers \(20, 26\) end outside the model.*layers=None"):
        generate(lab_talker, CARVE.paper_best(lab_talker.processor))


@pytest.mark.parametrize("size", [(640, 427), (1024, 683)])
def test_carve_keeps_the_grid_of_3_to_2_pictures(qwen_talker, size, monkeypatch):
    """The authors' code rounds twice, finds another grid, and answers about the whole picture."""
    talker = qwen_talker
    small = replace_size(talker, 256 * 28 * 28)
    picture = scene(30).resize(size)
    inputs = small.asked(QUESTIONS[:1], [picture])
    _, gh, gw = inputs["image_grid_thw"][0].tolist()
    count = int((inputs["input_ids"] == talker.image).sum())
    assert gh // 2 * (gw // 2) == count and abs(gw / gh - 1.5) < 0.1
    # A bright spot in the cell of row 3, column 5: the cut must be around its pixels.
    values = torch.ones(count)
    values[3 * (gw // 2) + 5] = 9.0
    part = "sightline.decoders.carve.carve.RefinedPicture._contrast"
    monkeypatch.setattr(part, lambda *args: [values])
    seen = []
    whole = refined

    def spy(picture, kept, fill):
        seen.append(kept)
        return whole(picture, kept, fill)

    monkeypatch.setattr("sightline.decoders.carve.carve.refined", spy)
    decoder = CARVE(small.processor, share=0.01, regions=1, tokens=2)
    generate(small, decoder, QUESTIONS[:1], [picture], steps=1)
    rows, columns = seen[0].nonzero().float().mean(0).tolist()
    assert rows / size[1] * (gh // 2) == pytest.approx(3.5, abs=0.2)
    assert columns / size[0] * (gw // 2) == pytest.approx(5.5, abs=0.2)
    assert 0 < seen[0].float().mean() < 0.02


def replace_size(talker, longest):
    processor = copy.deepcopy(talker.processor)
    processor.image_processor.size["longest_edge"] = longest
    return replace(talker, processor=processor)


def test_carves_regions_are_a_maximum(lab_talker, monkeypatch):
    """K of the authors' code is the least: with 3 bright spots and K = 2 one must go."""
    values = torch.ones(64)
    values[[9, 30, 54]] = torch.tensor([9.0, 8.0, 7.0])
    monkeypatch.setattr(
        "sightline.decoders.carve.carve.RefinedPicture._contrast", lambda *a: [values]
    )
    boxes = []
    monkeypatch.setattr(
        "sightline.decoders.carve.carve.refined",
        lambda picture, kept, fill: boxes.append(kept) or refined(picture, kept, fill),
    )
    for regions in (1, 2, 3):
        decoder = CARVE(lab_talker.processor, share=0.02, regions=regions)
        generate(lab_talker, decoder, QUESTIONS[:1], steps=1)
    spots = [[int(kept[y * 32 + 16, x * 32 + 16]) for y, x in SPOTS] for kept in boxes]
    assert spots == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


SPOTS = [(1, 1), (3, 6), (6, 6)]


def test_a_share_of_1_leaves_the_picture_as_it_is(talker):
    decoder = CARVE(talker.processor, share=1, final="refined", tokens=3)
    out, _ = generate(talker, decoder)
    assert torch.equal(out, generate(talker, None)[0])


@pytest.mark.filterwarnings("ignore:the question draws no more")
def test_flat_maps_keep_all_of_the_picture(talker, monkeypatch):
    monkeypatch.setattr(
        "sightline.decoders.carve.carve.RefinedPicture._contrast",
        lambda self, chat, expert: [
            2 + 1e-5 * torch.arange(count) for count in expert.image_mask.sum(1).tolist()
        ],
    )
    decoder = CARVE(talker.processor, final="refined")
    with pytest.warns(UserWarning, match="all of it is kept"):
        out, _ = generate(talker, decoder)
    assert torch.equal(out, generate(talker, None)[0])
    decoder = AGLA(talker.processor, Fixed(flat=0.0))
    out, _ = generate(talker, decoder, **ASKED)
    for step in out.branch_logits:
        torch.testing.assert_close(step[0], step[1], **TOLERANCE)


# MVP


LABELS = ("orange", "vase")


def mvp(talker, **settings):
    given = dict(k=3, labels=LABELS, tokens=20, caption_tokens=12, temperature=0, dedup=False)
    return MVP(talker.processor, **{**given, **settings})


class Counted(LabelProbabilities):
    """Makes `generate` return the votes of MVP."""

    def run(self, model, call):
        return self.decoder._votes(model, self.decoder.expert(model, call))


def votes_of(talker, decoder, questions=QUESTIONS, pictures=None):
    given = list(pictures or shown(talker))
    return generate(talker, Counted(decoder), questions, given, images=given)[0]


def shown(talker):
    return talker.pictures[: len(QUESTIONS)]


def paths_by_hand(talker, decoder, question, picture):
    """By view, (probability of the first token, all tokens, logits of each), path by path."""
    found = []
    for request in decoder.requests:
        said, _ = plain(talker, talker.chat(request), [picture], decoder.caption_tokens)
        caption = talker.processor.decode(said, skip_special_tokens=True).strip()
        text = decoder.template.format(caption=caption, question=question.lower())
        prompt = talker.chat(text)
        first = full(talker, prompt, [picture]).logits[-1]
        best = first.softmax(-1).topk(decoder.k)
        found.append([])
        for p, token in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            inputs = talker.inputs([prompt], [picture])
            for name, new in (
                ("input_ids", token),
                ("attention_mask", 1),
                ("mm_token_type_ids", 0),
            ):
                if name in inputs:
                    inputs[name] = torch.cat([inputs[name], torch.tensor([[new]])], dim=1)
            tokens, logits = [token], [first]
            if token not in talker.eos:
                out = talker.model.generate(
                    **inputs, max_new_tokens=decoder.tokens, do_sample=False, **ASKED
                )
                rest = ended(talker, out.sequences[0, inputs["input_ids"].shape[1] :].tolist())
                tokens, logits = tokens + rest, [first, *(step[0] for step in out.logits)]
            found[-1].append((p, tokens, logits))
    return found


def vote_by_hand(talker, labels, p, tokens, logits):
    """(label, vote), labels being words of one token that begin with a space or the answer."""
    for place, token in enumerate(tokens):
        word = talker.processor.decode([token]).strip().lower()
        if word in labels:
            if place == 0:
                return word, p
            best, second = logits[place].double().softmax(-1).topk(2).values.tolist()
            return word, p * (best - second)
    return None, 0.0


@pytest.mark.parametrize("k", [1, 3])
def test_mvp_counts_the_votes_of_paths_run_one_by_one(lab_talker, k):
    talker = lab_talker
    decoder = mvp(talker, k=k)
    votes = votes_of(talker, decoder)
    pictures = list(shown(talker))
    inputs = talker.asked(QUESTIONS, pictures)
    shares = decoder.probabilities(talker.model, images=pictures, **inputs)
    out, _ = generate(talker, decoder, steps=21)
    for row, question in enumerate(QUESTIONS):
        totals = dict.fromkeys(LABELS, 0.0)
        spoken = []
        for weight, paths in zip(
            decoder.weights,
            paths_by_hand(talker, decoder, question, pictures[row]),
            strict=True,
        ):
            for p, tokens, logits in paths:
                label, vote = vote_by_hand(talker, LABELS, p, tokens, logits)
                if label and p >= 0.001:
                    totals[label] += weight * vote
                    spoken.append((weight * vote, label, tokens))
        assert votes[row].totals == pytest.approx(totals, abs=2e-4)
        assert any(totals.values())
        share = [total / sum(totals.values()) for total in totals.values()]
        assert shares[row].tolist() == pytest.approx(share, abs=1e-3)
        winner = max(totals, key=totals.get)
        assert votes[row].label == winner
        _, _, tokens = max((v for v in spoken if v[1] == winner), key=lambda v: v[0])
        answer = votes[row].tokens
        assert answer == tokens[: len(answer)] and winner in talker.processor.decode(answer)
        assert out[row, inputs["input_ids"].shape[1] :][: len(answer)].tolist() == answer


def test_mvps_paths_are_what_generate_says_after_the_scored_token(talker):
    """The authors tokenise path and prompt anew: another token than the one that was scored."""
    decoder = mvp(talker, labels=("zebra", "yak"), threshold=0, tokens=6)
    for row, votes in enumerate(votes_of(talker, decoder)):
        expected = [
            (view, p, talker.processor.decode(tokens[:7], skip_special_tokens=True))
            for view, paths in enumerate(
                paths_by_hand(talker, decoder, QUESTIONS[row], talker.pictures[row])
            )
            for p, tokens, _ in paths
        ]
        found = [(path.view, path.first_probability, path.text) for path in votes.paths]
        for (view, p, text), (own, q, words) in zip(found, expected, strict=True):
            assert (view, text) == (own, words)
            assert p == pytest.approx(q, abs=1e-4)
        assert votes.label is None and not any(votes.totals.values())
        _, tokens, _ = paths_by_hand(talker, decoder, QUESTIONS[row], talker.pictures[row])[-1][0]
        assert votes.tokens == tokens[:7]  # what the last view says greedily


def test_unresolved_paths_may_count_as_affirmative(qwen_talker):
    """The first label, with the whole probability of the first token, unless they deny."""
    talker = qwen_talker
    skip, affirmative = (
        votes_of(talker, mvp(talker, labels=("zebra", "yak"), tokens=4, unresolved=policy))
        for policy in ("skip", "affirmative")
    )
    for unheard, heard in zip(skip, affirmative, strict=True):
        assert not any(unheard.totals.values()) and unheard.label is None
        total = sum((0.4, 0.4, 0.2)[path.view] * path.first_probability for path in heard.paths)
        assert heard.totals == pytest.approx({"zebra": total, "yak": 0.0})
        assert heard.label == "zebra"


def test_captions_are_asked_once_for_each_picture(talker, monkeypatch):
    from sightline.decoders.mvp import mvp as module

    calls = []
    own = module.generate_text

    def spy(model, branch, tokens, **kwargs):
        calls.append((len(branch.input_ids), tokens))
        return own(model, branch, tokens, **kwargs)

    monkeypatch.setattr(module, "generate_text", spy)
    decoder = mvp(talker, tokens=4, caption_tokens=5)
    picture, other = talker.pictures[:2]
    generate(talker, decoder, QUESTIONS, [picture, picture])
    generate(talker, decoder, ["Is there a cup in the image?"], [picture.copy()])
    generate(talker, decoder, QUESTIONS, [other, picture])
    assert calls == [(3, 5), (6, 5), (3, 5), (3, 5), (6, 5)]


def beside_a_video(talker, video, picture, question):
    """A prompt in which one picture is a video of a single frame."""
    inputs = talker.inputs([talker.chat([None, None, question])], [video, picture])
    ids, grid = inputs["input_ids"], inputs["image_grid_thw"]
    frame, is_image = int(grid[0].prod()), ids == talker.image
    is_video = is_image & (is_image.cumsum(1) <= frame // 4)  # 2 x 2 patches a token
    pixels = inputs["pixel_values"]
    return inputs | {
        "input_ids": ids.masked_fill(is_video, talker.model.config.video_token_id),
        "mm_token_type_ids": is_image.long() + is_video.long(),
        "pixel_values": pixels[frame:],
        "pixel_values_videos": pixels[:frame],
        "image_grid_thw": grid[1:],
        "video_grid_thw": grid[:1],
    }


def test_a_caption_beside_another_video_is_asked_anew(qwen_talker):
    talker, decoder = qwen_talker, mvp(qwen_talker, tokens=4, caption_tokens=5)
    first, other = talker.pictures[0], talker.pictures[0].rotate(180)
    known = []
    for video in (first, first, other):
        inputs = beside_a_video(talker, video, talker.pictures[1], QUESTIONS[0])
        asked = dict(images=[talker.pictures[1]], max_new_tokens=4)
        talker.model.generate(**inputs, custom_generate=decoder, **asked)
        known.append(len(captions_of(talker, decoder)))
    assert known == [3, 3, 6]


def captions_of(talker, decoder):
    (known,) = decoder._known.by_owner.values()
    return {key: caption for (_, key), caption in known.items()}


def test_captions_at_temperature_0_are_greedy(talker):
    decoder = mvp(talker)
    generate(talker, decoder)
    expected = [
        talker.processor.decode(
            plain(talker, talker.chat(request), [picture], 12)[0], skip_special_tokens=True
        ).strip()
        for picture in shown(talker)
        for request in decoder.requests
    ]
    assert list(captions_of(talker, decoder).values()) == expected


def test_a_drawn_caption_does_not_depend_on_the_batch(talker):
    def drawn(questions, pictures, seed=0):
        decoder = mvp(talker, temperature=1.5, top_p=0.95, seed=seed, tokens=2)
        before = torch.get_rng_state()
        inputs = talker.asked(questions, pictures)
        talker.model.generate(
            **inputs, images=list(pictures), custom_generate=decoder, max_new_tokens=2
        )
        assert torch.equal(torch.get_rng_state(), before)
        return captions_of(talker, decoder)

    together = drawn(QUESTIONS, shown(talker))
    alone = drawn(QUESTIONS[1:], shown(talker)[1:])
    assert len(together) == 6 and len(alone) == 3
    assert all(together[key] == caption for key, caption in alone.items())
    others = drawn(QUESTIONS, shown(talker), seed=1)
    assert list(others.values()) != list(together.values())
    greedy = mvp(talker)
    generate(talker, greedy)
    assert list(captions_of(talker, greedy).values()) != list(together.values())


def test_views_of_one_request_are_drawn_one_by_one(talker):
    """Three drawn captions of one picture are three, at 0 they are one; each again when asked."""

    def captions(temperature):
        same = ("Describe the image.",) * 3
        decoder = mvp(talker, temperature=temperature, top_p=1.0, requests=same)
        generate(talker, decoder)
        said = list(captions_of(talker, decoder).values())
        return [said[:3], said[3:]]

    for drawn, greedy in zip(captions(5.0), captions(0), strict=True):
        assert len(set(drawn)) == 3 and len(set(greedy)) == 1
    assert captions(5.0) == captions(5.0)


def test_drawn_rows_have_the_frequencies_of_the_distribution():
    """Of 4,000 rows with noise of their own: p at temperature 2, over the nucleus of 0.9."""
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    draws = [generator(0, view, b"picture") for view in range(4000)]
    drawn = Drawn(2.0, 0.9, draws)(None, p.log().expand(4000, 4)).argmax(dim=-1)
    # Roots of p: .7071 .5477 .3873 .2236; shares .3790 .2936 .2076 .1198. All are needed for 0.9.
    shares = torch.bincount(drawn, minlength=4) / 4000
    wanted = torch.tensor([0.3790, 0.2936, 0.2076, 0.1198])
    torch.testing.assert_close(shares, wanted, atol=0.025, rtol=0)  # three standard deviations
    narrow = Drawn(1.0, 0.6, draws)(None, p.log().expand(4000, 4)).argmax(dim=-1)
    shares = torch.bincount(narrow, minlength=4) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.625, 0.375, 0, 0]), atol=0.025, rtol=0)


def test_a_caption_after_earlier_turns_is_not_that_of_the_first(talker):
    """What was said before stands before the request, so it is another caption."""
    prompts = [
        talker.chat("Is there a cow?"),
        talker.chat("Is there a cow?", "No", "Is there a dog?"),
        talker.chat("Is there a cow?", "Yes", "Is there a dog?"),
    ]
    picture = talker.pictures[0]
    decoder = mvp(talker, tokens=2, caption_tokens=5)
    for prompt in prompts:
        inputs = talker.inputs([prompt], [picture])
        talker.model.generate(**inputs, images=picture, custom_generate=decoder, max_new_tokens=2)
    turns = [(), ("Is there a cow?", "No"), ("Is there a cow?", "Yes")]
    expected = [
        talker.processor.decode(
            plain(talker, talker.chat(*before, request), [picture], 5)[0],
            skip_special_tokens=True,
        ).strip()
        for before in turns
        for request in decoder.requests
    ]
    assert list(captions_of(talker, decoder).values()) == expected


def test_views_without_a_likely_beginning_answer_greedily(qwen_talker):
    talker = qwen_talker
    decoder = mvp(talker, labels=("zebra", "yak"), threshold=1.0, tokens=3)
    first = mvp(talker, labels=("zebra", "yak"), threshold=0, tokens=3)
    out, own = (votes_of(talker, one) for one in (decoder, first))
    for votes, greedy in zip(out, own, strict=True):
        assert votes.label is None and votes.tokens == greedy.tokens


def test_mvp_streams_the_path_that_speaks(lab_talker):
    class Heard(BaseStreamer):
        def __init__(self):
            self.tokens, self.ended = [], False

        def put(self, value):
            self.tokens.append(value.tolist())

        def end(self):
            self.ended = True

    heard = Heard()
    decoder = mvp(lab_talker)
    out, inputs = generate(lab_talker, decoder, QUESTIONS[:1], steps=21, token_streamer=heard)
    prompt, *tokens = heard.tokens
    assert prompt == inputs["input_ids"].tolist() and heard.ended
    assert [*prompt[0], *(t for token in tokens for t in token)] == out[0].tolist()


# All of them


VIEWS = {
    "vdgd": lambda p: VDGD(p, tokens=8),
    "vdgd official": lambda p: VDGD(p, tokens=8, layout="official"),
    "vdgd continue": lambda p: VDGD(p, tokens=8, layout="continue", truncation="nucleus"),
    "icd": lambda p: ICD(p),
    "m3id": lambda p: M3ID(rate=0.4),
    "agla": lambda p: AGLA(p, Fixed()),
    "agla own": lambda p: AGLA(p),
    "carve": lambda p: CARVE(p, tokens=4),
    "carve refined": lambda p: CARVE(p, tokens=4, final="refined"),
    "mvp": lambda p: MVP(p, k=2, tokens=6, caption_tokens=6),
}
NEUTRAL = {
    "icd": lambda p: ICD(p, alpha=0, beta=0),
    "m3id": lambda p: M3ID(rate=0, beta=0),
    "agla": lambda p: AGLA(p, Fixed(), alpha=0, beta=0),
    "carve": lambda p: CARVE(p, tokens=3, share=1, final="refined"),
}
MODES = {
    "greedy": {},
    "sampling": dict(do_sample=True, top_p=0.9),
    "3 beams": dict(num_beams=3),
    "2 beams, 2 returned": dict(num_beams=2, num_return_sequences=2),
    "static cache": dict(cache_implementation="static"),
}
SEVERAL = {name: build for name, build in VIEWS.items() if name != "mvp"}
view = pytest.mark.parametrize("build", VIEWS.values(), ids=VIEWS)
mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


@mode
@pytest.mark.parametrize("build", NEUTRAL.values(), ids=NEUTRAL)
def test_neutral_settings_equal_generate(talker, build, mode):
    out, _ = generate(talker, build(talker.processor), **mode)
    assert torch.equal(out, generate(talker, None, **mode)[0])


@mode
def test_prefix_only_equals_generate_on_the_longer_prompts(talker, mode):
    out, inputs = generate(talker, PrefixOnly(talker.processor, tokens=8), **mode)
    pictures = shown(talker)
    prompts = [
        described(talker, question, picture, "image_first", 8)[1]
        for question, picture in zip(QUESTIONS, pictures, strict=True)
    ]
    longer = talker.inputs(prompts, pictures)
    torch.manual_seed(1)
    own = talker.model.generate(**longer, max_new_tokens=6, **mode)
    length = longer["input_ids"].shape[1]
    assert torch.equal(out[:, inputs["input_ids"].shape[1] :], own[:, length:])


@view
def test_a_row_does_not_depend_on_its_neighbours(talker, build):
    decoder = build(talker.processor)
    together = answers(talker, *generate(talker, decoder))
    for row, question in enumerate(QUESTIONS):
        alone, inputs = generate(talker, decoder, [question], talker.pictures[row : row + 1])
        (answer,) = answers(talker, alone, inputs)
        assert answer[: len(together[row])] == together[row][: len(answer)]


@pytest.mark.parametrize("mode", [dict(num_beams=2), dict(do_sample=True, num_return_sequences=2)])
def test_mvp_gives_one_answer(lab_talker, mode):
    with pytest.raises(ValueError, match="MVP gives one answer"):
        generate(lab_talker, VIEWS["mvp"](lab_talker.processor), **mode)


@pytest.mark.parametrize("build", SEVERAL.values(), ids=SEVERAL)
@mode
def test_every_mode_answers_behind_the_callers_prompt(talker, build, mode):
    decoder = build(talker.processor)
    copies = mode.get("num_return_sequences", 1)
    out, inputs = generate(talker, decoder, **mode)
    prompts = inputs["input_ids"].repeat_interleave(copies, dim=0)
    assert torch.equal(out[:, : prompts.shape[1]], prompts)
    assert out.shape[1] > prompts.shape[1]
    if "cache_implementation" in mode:
        assert torch.equal(out, generate(talker, decoder)[0])


@pytest.mark.parametrize("name", [n for n in SEVERAL if "carve" not in n])
def test_rows_with_several_pictures(talker, name):
    """A row's own pictures, in its order, whatever the rows beside it hold."""
    decoder = VIEWS[name](talker.processor)
    one, two, three = talker.pictures
    rows = [
        (talker.chat([None, "And", None, QUESTIONS[0]]), [one, two]),
        (talker.chat(QUESTIONS[1]), [three]),
    ]

    def run(rows):
        pictures = [picture for _, own in rows for picture in own]
        inputs = talker.inputs([prompt for prompt, _ in rows], pictures)
        given = {"images": pictures} if getattr(decoder, "needs_images", False) else {}
        out = talker.model.generate(
            **inputs, **given, custom_generate=decoder, max_new_tokens=5, **ASKED
        )
        return out, answers(talker, out, inputs)

    together, said = run(rows)
    for row in range(2):
        alone, (answer,) = run(rows[row : row + 1])
        assert said[row][: len(answer)] == answer
        for ours, theirs in zip(together.logits, alone.logits[: len(answer)], strict=False):
            torch.testing.assert_close(ours[row], theirs[0], **TOLERANCE)
    if name == "agla":
        fixed = Fixed()
        prompt, pictures = rows[0]
        local = [blacked_out(p, fixed.values(p), fixed.masked(QUESTIONS[0])) for p in pictures]
        expected = full(talker, prompt, local).logits[0]
        torch.testing.assert_close(together.branch_logits[0][1, 0], expected, **TOLERANCE)


@view
def test_nothing_remains(talker, build):
    pictures = [picture.copy() for picture in shown(talker)]
    decoder = build(talker.processor)
    _, given = generate(talker, None)
    before, settings = snapshot(talker.model), repr(decoder)
    first, inputs = generate(talker, decoder, pictures=pictures)
    assert snapshot(talker.model) == before and repr(decoder) == settings
    assert all(torch.equal(inputs[name], given[name]) for name in given)
    assert pictures == list(shown(talker))
    assert torch.equal(generate(talker, decoder)[0], first)


@view
@pytest.mark.filterwarnings("ignore:the question draws no more")
def test_pictures_of_odd_shapes(talker, build):
    pictures = [scene(50).resize(size) for size in ((1, 1), (300, 10), (10, 300), (3, 2))]
    questions = [*QUESTIONS, *QUESTIONS]
    out, inputs = generate(talker, build(talker.processor), questions, pictures, steps=3)
    assert torch.equal(out[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    for row, question in enumerate(questions):
        alone, own = generate(
            talker, build(talker.processor), [question], pictures[row : row + 1], steps=3
        )
        answer = answers(talker, alone, own)[0]
        assert answers(talker, out, inputs)[row][: len(answer)] == answer
