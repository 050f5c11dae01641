"""CARVE: its map, its regions, and answers about what they leave of the image."""

import copy
from dataclasses import replace

import pytest
import torch
from chat_answers import (
    ASKED,
    ATTENTION,
    QUESTIONS,
    TOLERANCE,
    answers,
    eager,
    full,
    generate,
    plain,
    prepared,
    to_pixels,
)
from chat_models import scene, unpadded, within

from sightline import CARVE
from sightline.decoders.carve.carve import GENERAL, SUFFIX, middle
from sightline.decoders.carve.regions import kept_regions, refined
from sightline.engine.chat_prompts import PromptEditor
from sightline.engine.prefill import read_images
from sightline.setting_text import STAND_IN


def attention_by_step(vlm, text, image, layers, tokens, model):
    """Attention to the image at each step: `[steps, layers, N]`, heads averaged."""
    prompt = vlm.chat(text)
    said, _ = plain(vlm, prompt, [image], tokens)
    out = full(vlm, prompt, [image], said[:-1], model=model, **ATTENTION)
    ids = vlm.inputs([prompt], [image])["input_ids"][0]
    columns = (ids == vlm.image).nonzero()[:, 0]
    first = len(ids) - 1
    seen = torch.stack([out.attentions[layer][0].mean(0) for layer in layers])
    return torch.stack([seen[:, first + step, columns] for step in range(len(said))]).double()


def contrast_by_hand(vlm, question, image, layers, steps, tokens, model, smoothing=1e-8):
    asked, told = (
        attention_by_step(vlm, f"{text} {SUFFIX}", image, layers, tokens, model)
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


def contrasts(vlm, decoder, questions=QUESTIONS):
    (part,) = decoder.recipe().preparations
    images = vlm.images[: len(questions)]

    def action(expert, model):
        return part._contrast(PromptEditor(vlm.processor, model), read_images(expert, model))

    return within(vlm, vlm.asked(questions, images), action, images=list(images))


@pytest.mark.parametrize("steps", ["full", "start", "end"])
def test_carves_map_is_the_quotient_of_two_attentions(vlm, steps):
    decoder = CARVE(processor=vlm.processor, steps=steps, tokens=8)
    layers = range(*middle(vlm.model.config.text_config.num_hidden_layers))
    model = eager(vlm)
    lengths = []
    for values, question, image in zip(
        contrasts(vlm, decoder), QUESTIONS, vlm.images, strict=False
    ):
        expected, *own = contrast_by_hand(vlm, question, image, layers, steps, 8, model)
        torch.testing.assert_close(values.double(), expected, atol=1e-3, rtol=1e-3)
        lengths.append(own)
    if vlm.name == "lab":  # a random model does not end its answers
        assert any(asked != told for asked, told in lengths), "no surplus step to be ignored"


@pytest.mark.parametrize("ending", ["", f" {SUFFIX}"], ids=["as asked", "with the suffix"])
@pytest.mark.parametrize("final", ["both", "refined"])
def test_carve_answers_about_the_processors_prompt_of_the_refined_image(vlm, final, ending):
    settings = dict(final=final, tokens=4, share=0.3, regions=1, answer_suffix=bool(ending))
    decoder = CARVE(processor=vlm.processor, **settings)
    cut = [
        refined(image, kept_regions(to_pixels(vlm, values, image), 0.3, 1))
        for values, image in zip(contrasts(vlm, decoder), vlm.images, strict=False)
    ]
    pairs = [
        [image, small] if final == "both" else [small]
        for image, small in zip(vlm.images, cut, strict=False)
    ]
    prompts = [
        vlm.chat([*[None] * len(own), question + ending])
        for own, question in zip(pairs, QUESTIONS, strict=True)
    ]
    expected = vlm.inputs(prompts, [image for own in pairs for image in own])
    branch = prepared(vlm, decoder, QUESTIONS, vlm.images[:2])
    ids = unpadded(expected["input_ids"], expected["attention_mask"])
    assert unpadded(branch.input_ids, branch.attention_mask) == ids
    names = ("pixel_values", "image_grid_thw")
    given = {name: expected[name] for name in names if name in expected}
    own = vlm.model.model.get_image_features(**given, return_dict=True).pooler_output
    for ours, theirs in zip(branch.features["image"].pooler_output, own, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    out, inputs = generate(vlm, decoder, **ASKED)
    for row, answer in enumerate(answers(vlm, out, inputs)):
        logits = full(vlm, prompts[row], pairs[row], answer[:-1]).logits
        for step in range(len(answer)):
            torch.testing.assert_close(out.logits[step][row], logits[step], **TOLERANCE)
    assert not torch.equal(out.sequences, generate(vlm, None)[0])


def test_carves_suffix_is_not_put_twice(lab_vlm):
    """A benchmark may end its questions in it."""
    part = CARVE(processor=lab_vlm.processor).recipe().preparations[0]
    assert part._ended("Is there a cow?") == f"Is there a cow? {SUFFIX}"
    assert part._ended(f"Is there a cow? {SUFFIX}") == f"Is there a cow? {SUFFIX}"
    assert replace(part, suffix="")._ended("Is there a cow?") == "Is there a cow?"


def test_carves_preset_is_the_papers(lab_vlm):
    """Layers 20 to 25 of every model, and the suffix in all three passes."""
    best = CARVE.paper_best(processor=STAND_IN)
    assert (best.layers, best.share, best.regions, best.steps) == ((20, 26), 0.4, 2, "end")
    assert best.answer_suffix and best.suffix == SUFFIX and best.final == "both"
    with pytest.raises(ValueError, match=r"layers \(20, 26\) end outside the model.*layers=None"):
        generate(lab_vlm, CARVE.paper_best(processor=lab_vlm.processor))


@pytest.mark.parametrize("size", [(640, 427), (1024, 683)])
def test_carve_keeps_the_grid_of_3_to_2_images(qwen_vlm, size, monkeypatch):
    """The authors' code rounds twice, finds another grid, and answers about the whole image."""
    vlm = qwen_vlm
    small = replace_size(vlm, 256 * 28 * 28)
    image = scene(30).resize(size)
    inputs = small.asked(QUESTIONS[:1], [image])
    _, gh, gw = inputs["image_grid_thw"][0].tolist()
    count = int((inputs["input_ids"] == vlm.image).sum())
    assert gh // 2 * (gw // 2) == count and abs(gw / gh - 1.5) < 0.1
    # A bright spot in the cell of row 3, column 5: the cut must be around its pixels.
    values = torch.ones(count)
    values[3 * (gw // 2) + 5] = 9.0
    part = "sightline.decoders.carve.carve.RefinedImage._contrast"
    monkeypatch.setattr(part, lambda *args: [values])
    seen = []
    whole = refined

    def spy(image, kept, fill):
        seen.append(kept)
        return whole(image, kept, fill)

    monkeypatch.setattr("sightline.decoders.carve.carve.refined", spy)
    decoder = CARVE(processor=small.processor, share=0.01, regions=1, tokens=2)
    generate(small, decoder, QUESTIONS[:1], [image], steps=1)
    rows, columns = seen[0].nonzero().float().mean(0).tolist()
    assert rows / size[1] * (gh // 2) == pytest.approx(3.5, abs=0.2)
    assert columns / size[0] * (gw // 2) == pytest.approx(5.5, abs=0.2)
    assert 0 < seen[0].float().mean() < 0.02


def replace_size(vlm, longest):
    processor = copy.deepcopy(vlm.processor)
    processor.image_processor.size["longest_edge"] = longest
    return replace(vlm, processor=processor)


def test_carves_regions_are_a_maximum(lab_vlm, monkeypatch):
    """K of the authors' code is the least: with 3 bright spots and K = 2 one must go."""
    values = torch.ones(64)
    values[[9, 30, 54]] = torch.tensor([9.0, 8.0, 7.0])
    monkeypatch.setattr(
        "sightline.decoders.carve.carve.RefinedImage._contrast", lambda *a: [values]
    )
    boxes = []
    monkeypatch.setattr(
        "sightline.decoders.carve.carve.refined",
        lambda image, kept, fill: boxes.append(kept) or refined(image, kept, fill),
    )
    for regions in (1, 2, 3):
        decoder = CARVE(processor=lab_vlm.processor, share=0.02, regions=regions)
        generate(lab_vlm, decoder, QUESTIONS[:1], steps=1)
    spots = [[int(kept[y * 32 + 16, x * 32 + 16]) for y, x in SPOTS] for kept in boxes]
    assert spots == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


SPOTS = [(1, 1), (3, 6), (6, 6)]


def test_a_share_of_1_leaves_the_image_as_it_is(vlm):
    decoder = CARVE(processor=vlm.processor, share=1, final="refined", tokens=3)
    out, _ = generate(vlm, decoder)
    assert torch.equal(out, generate(vlm, None)[0])


@pytest.mark.filterwarnings("ignore:the question draws no more")
def test_flat_maps_keep_all_of_the_image(vlm, monkeypatch):
    monkeypatch.setattr(
        "sightline.decoders.carve.carve.RefinedImage._contrast",
        lambda self, chat, expert: [
            2 + 1e-5 * torch.arange(count) for count in expert.image_mask.sum(1).tolist()
        ],
    )
    decoder = CARVE(processor=vlm.processor, final="refined")
    with pytest.warns(UserWarning, match="all of it is kept"):
        out, _ = generate(vlm, decoder)
    assert torch.equal(out, generate(vlm, None)[0])
