"""A prompt without an image beside prompts with one: each is answered as it is alone."""

import pytest
import torch

from sightline import AGLA, CARVE, ICD, MVP, VDD, VDGD, ConfidenceGate, Gated, Plausibility, Recipe
from sightline.decoders.vdgd import PrefixOnly

QUESTIONS = ("Is there a cup in the image?", "What is in front of the table? Say it.")
HELLO = "Hello! Tell me something long about the sea, and about boats on the sea."
IMAGE, TEXT = True, False
ORDERS = ((IMAGE, TEXT, IMAGE), (TEXT, IMAGE, IMAGE), (IMAGE, IMAGE, TEXT), (TEXT, IMAGE, TEXT))
BEAMS = dict(num_beams=2, length_penalty=0.0)
DECODERS = {  # and the cut that is left of each where there is no image
    "icd": (lambda p: ICD(processor=p, alpha=1.5, beta=0.05), 0.05),
    "vdgd": (lambda p: VDGD(processor=p, tokens=4), 0.1),
    "vdgd official": (lambda p: VDGD(processor=p, tokens=4, layout="official"), 0.1),
    "vdgd continue": (lambda p: VDGD(processor=p, tokens=4, layout="continue", mix=0.5), 0.1),
    "prefix only": (lambda p: PrefixOnly(processor=p, tokens=4), 0),
    "carve": (lambda p: CARVE(processor=p, tokens=3), 0),
    "carve refined": (
        lambda p: CARVE(processor=p, tokens=3, final="refined", answer_suffix=True),
        0,
    ),
    "agla": (lambda p: AGLA(processor=p, beta=0.05), 0.05),
    "agla released": (lambda p: AGLA.released(processor=p), 0.5),
    "mvp": (lambda p: MVP(processor=p, caption_tokens=4, tokens=4), 0),
    "icd gated": (
        lambda p: Gated(ICD(processor=p, alpha=1.5, beta=0.05), ConfidenceGate(1.0)),
        0.05,
    ),
    "icd and vdd": (lambda p: ICD(1.5, 0.05, processor=p).recipe() + VDD(1.5, 0.05).recipe(), 0.05),
}


def batch(vlm, order):
    """Inputs of rows with and without an image, and the image of each, or None."""
    images = iter(vlm.images)
    shown = [next(images) if has_image else None for has_image in order]
    questions = iter(QUESTIONS)
    prompts = [vlm.chat(next(questions) if one else [HELLO]) for one in order]
    return vlm.inputs(prompts, [one for one in shown if one]), shown


def rows(vlm, order):
    """Each row of a batch as a batch of its own."""
    _, shown = batch(vlm, order)
    questions = iter(QUESTIONS)
    for one in shown:
        prompt = vlm.chat(next(questions) if one else [HELLO])
        yield vlm.inputs([prompt], [one] if one else []), one


def answers(vlm, inputs, decoder, images=(), **asked):
    """Tokens of each row, without the padding behind them."""
    torch.manual_seed(5)
    given = dict(images=images) if getattr(decoder, "needs_images", False) else {}
    asked = dict(max_new_tokens=6, min_new_tokens=6, do_sample=False) | asked
    said = vlm.model.generate(**inputs, **given, custom_generate=decoder, **asked)
    padding = vlm.model.generation_config.pad_token_id
    rows = said[:, inputs["input_ids"].shape[1] :].tolist()
    return [[token for token in row if token != padding] for row in rows]


@pytest.mark.parametrize(
    ("name", "order", "asked"),
    [
        *((name, order, {}) for name in ("icd", "agla", "mvp") for order in ORDERS),
        *((name, ORDERS[0], {}) for name in DECODERS if name not in ("icd", "agla", "mvp")),
        *((name, ORDERS[0], BEAMS) for name in DECODERS if name != "mvp"),  # of one answer
    ],
)
def test_every_row_is_answered_as_alone(vlm, name, order, asked):
    """With its method if it has an image, else by the model, or the method's cut, alone."""
    build, cut = DECODERS[name]
    decoder, plain = build(vlm.processor), Recipe(rule=Plausibility(cut))
    alone = [
        answers(vlm, one, decoder if image else plain, [image], **asked)[0]
        for one, image in rows(vlm, order)
    ]
    inputs, shown = batch(vlm, order)
    assert answers(vlm, inputs, decoder, shown, **asked) == alone


def test_under_icd_a_row_without_an_image_is_told_nothing_else(vlm):
    """Its second branch has its own prompt, so the same logits, and no other amateur's."""
    inputs, _ = batch(vlm, ORDERS[0])
    told = dict(return_dict_in_generate=True, output_logits=True, max_new_tokens=1)
    (logits,) = vlm.model.generate(
        **inputs, custom_generate=ICD(1.5, 0.05, processor=vlm.processor), **told
    ).branch_logits
    torch.testing.assert_close(logits[0, 1], logits[1, 1], atol=1e-4, rtol=1e-4)  # float32
    for row in (0, 2):
        assert not torch.allclose(logits[0, row], logits[1, row], atol=1e-2)


def test_scores_without_an_image_are_the_models_own(vlm):
    """Where AGLA adds, and VDGD ranks: both leave nothing but the cut, here none."""
    inputs, shown = batch(vlm, ORDERS[0])
    told = dict(return_dict_in_generate=True, output_scores=True, max_new_tokens=1)
    (plain,) = vlm.model.generate(**inputs, **told).scores
    for decoder in (
        AGLA(processor=vlm.processor, beta=0),
        VDGD(processor=vlm.processor, tokens=3, alpha=1e-30),
    ):
        given = dict(images=shown) if decoder.needs_images else {}
        (scores,) = vlm.model.generate(**inputs, **given, custom_generate=decoder, **told).scores
        got, wanted = (values[1].log_softmax(dim=-1) for values in (scores, plain))
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)  # float32
        assert not torch.allclose(scores[0].log_softmax(-1), plain[0].log_softmax(-1), atol=1e-2)


def test_images_are_given_for_all_rows_or_for_those_that_have_one(vlm):
    inputs, (first, _, last) = batch(vlm, ORDERS[0])
    decoder = AGLA(processor=vlm.processor, beta=0.05)
    wanted = answers(vlm, inputs, decoder, [first, last])
    for images in (
        [first, None, last],
        [[first], [], [last]],
        [first, [], last],
        [[first], [last]],
    ):
        assert answers(vlm, inputs, decoder, images) == wanted
    for images in ([None, first, last], [first, last, None], [[first, last], [], []]):
        with pytest.raises(ValueError, match=r"by row and the prompts hold \[1, 0, 1\]"):
            answers(vlm, inputs, decoder, images)
    with pytest.raises(ValueError, match="holds 1 images and the prompt 2"):
        answers(vlm, inputs, decoder, [first, None, []])
    hello = vlm.inputs([vlm.chat([HELLO])] * 2)
    for images in (None, [], [None, None], [[], []]):
        for build in (AGLA, CARVE, MVP):
            got = answers(vlm, hello, build(processor=vlm.processor), images)
            assert got == answers(vlm, hello, Recipe())


def test_probabilities_of_votes_about_no_image_are_refused(vlm):
    inputs, shown = batch(vlm, ORDERS[0])
    decoder = MVP(processor=vlm.processor)
    with pytest.raises(ValueError, match=r"rows \[1\] hold no image"):
        decoder.probabilities(vlm.model, images=shown, **inputs)
