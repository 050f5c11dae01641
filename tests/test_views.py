"""Decoders that ask again or look again, on models with processors of their own.

What holds for every method is in test_invariants.py.
"""

import pytest
import torch
from chat_answers import ASKED, QUESTIONS, TOLERANCE, answers, described, full, generate, shown
from chat_models import Fixed, blacked_out, scene
from test_invariants import snapshot

from sightline import AGLA, CARVE, ICD, M3ID, MVP, VDGD, PrefixOnly

VIEWS = {
    "vdgd": lambda p: VDGD(processor=p, tokens=8),
    "vdgd official": lambda p: VDGD(processor=p, tokens=8, layout="official"),
    "vdgd continue": lambda p: VDGD(processor=p, tokens=8, layout="continue", truncation="nucleus"),
    "icd": lambda p: ICD(processor=p),
    "m3id": lambda p: M3ID(rate=0.4),
    "agla": lambda p: AGLA(Fixed(), processor=p),
    "agla own": lambda p: AGLA(processor=p),
    "carve": lambda p: CARVE(processor=p, tokens=4),
    "carve refined": lambda p: CARVE(processor=p, tokens=4, final="refined"),
    "mvp": lambda p: MVP(processor=p, k=2, tokens=6, caption_tokens=6),
}
MODES = {
    "greedy": {},
    "sampling": dict(do_sample=True, top_p=0.9),
    "3 beams": dict(num_beams=3),
    "2 beams, 2 returned": dict(num_beams=2, num_return_sequences=2),
    "static cache": dict(cache_implementation="static"),
}
VARIANTS = [name for name in VIEWS if " " in name]
view = pytest.mark.parametrize("build", VIEWS.values(), ids=VIEWS)
mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


@mode
def test_prefix_only_equals_generate_on_the_longer_prompts(vlm, mode):
    out, inputs = generate(vlm, PrefixOnly(processor=vlm.processor, tokens=8), **mode)
    images = shown(vlm)
    prompts = [
        described(vlm, question, image, "image_first", 8)[1]
        for question, image in zip(QUESTIONS, images, strict=True)
    ]
    longer = vlm.inputs(prompts, images)
    torch.manual_seed(1)
    own = vlm.model.generate(**longer, max_new_tokens=6, **mode)
    length = longer["input_ids"].shape[1]
    assert torch.equal(out[:, inputs["input_ids"].shape[1] :], own[:, length:])


@pytest.mark.parametrize("name", VARIANTS)
@mode
def test_every_mode_answers_behind_the_callers_prompt(vlm, name, mode):
    decoder = VIEWS[name](vlm.processor)
    copies = mode.get("num_return_sequences", 1)
    out, inputs = generate(vlm, decoder, **mode)
    prompts = inputs["input_ids"].repeat_interleave(copies, dim=0)
    assert torch.equal(out[:, : prompts.shape[1]], prompts)
    assert out.shape[1] > prompts.shape[1]
    if "cache_implementation" in mode:
        assert torch.equal(out, generate(vlm, decoder)[0])


@pytest.mark.parametrize("name", [n for n in VIEWS if not n.startswith(("carve", "mvp"))])
def test_rows_with_several_images(vlm, name):
    """A row's own images, in its order, whatever the rows beside it hold."""
    decoder = VIEWS[name](vlm.processor)
    one, two, three = vlm.images
    rows = [
        (vlm.chat([None, "And", None, QUESTIONS[0]]), [one, two]),
        (vlm.chat(QUESTIONS[1]), [three]),
    ]

    def run(rows):
        images = [image for _, own in rows for image in own]
        inputs = vlm.inputs([prompt for prompt, _ in rows], images)
        given = {"images": images} if getattr(decoder, "needs_images", False) else {}
        out = vlm.model.generate(
            **inputs, **given, custom_generate=decoder, max_new_tokens=5, **ASKED
        )
        return out, answers(vlm, out, inputs)

    together, said = run(rows)
    for row in range(2):
        alone, (answer,) = run(rows[row : row + 1])
        assert said[row][: len(answer)] == answer
        for ours, theirs in zip(together.logits, alone.logits[: len(answer)], strict=False):
            torch.testing.assert_close(ours[row], theirs[0], **TOLERANCE)
    if name == "agla":
        fixed = Fixed()
        prompt, images = rows[0]
        local = [blacked_out(p, fixed.values(p), fixed.masked(QUESTIONS[0])) for p in images]
        expected = full(vlm, prompt, local).logits[0]
        torch.testing.assert_close(together.branch_logits[0][1, 0], expected, **TOLERANCE)


@pytest.mark.parametrize("name", VARIANTS)
def test_nothing_remains(vlm, name):
    """Neither on the model nor on the decoder, the inputs or the images."""
    images = [image.copy() for image in shown(vlm)]
    decoder = VIEWS[name](vlm.processor)
    _, given = generate(vlm, None)
    before, settings = snapshot(vlm.model), repr(decoder)
    first, inputs = generate(vlm, decoder, images=images)
    assert snapshot(vlm.model) == before and repr(decoder) == settings
    assert all(torch.equal(inputs[name], given[name]) for name in given)
    assert images == list(shown(vlm))
    assert torch.equal(generate(vlm, decoder)[0], first)


@view
@pytest.mark.filterwarnings("ignore:the question draws no more")
def test_images_of_odd_shapes(vlm, build):
    images = [scene(50).resize(size) for size in ((1, 1), (300, 10), (10, 300), (3, 2))]
    questions = [*QUESTIONS, *QUESTIONS]
    out, inputs = generate(vlm, build(vlm.processor), questions, images, steps=3)
    assert torch.equal(out[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    for row, question in enumerate(questions):
        alone, own = generate(vlm, build(vlm.processor), [question], images[row : row + 1], steps=3)
        answer = answers(vlm, alone, own)[0]
        assert answers(vlm, out, inputs)[row][: len(answer)] == answer
