"""Prompts without an image: parts about images do nothing, and the rest acts."""

import inspect

import pytest
import torch
from methods import TOKEN_METHODS
from models import BOS, PROMPTS
from tiny_families import Tiny

from sightline import AGLA, MVP, VDD, VDGD, Branch, Plausibility, PostHocDebias, Recipe
from sightline.decoders import DECODERS
from sightline.logits.rules import Contrastive

TEXTS = [[BOS, 8, 9, 20, 21, 22], [BOS, 12, 13]]
EARLY = {name for name, method in TOKEN_METHODS.items() if method.layers}  # act on text as well
BETA = 0.05  # of the strong settings
MODES = {
    "greedy": dict(do_sample=False),
    "sampled": dict(do_sample=True, temperature=1.5),
    "beams": dict(do_sample=False, num_beams=2),
}


def generate(model, inputs, decoder=None, **asked):
    torch.manual_seed(5)
    given = dict(max_new_tokens=8, do_sample=False, custom_generate=decoder)
    return model.generate(**inputs, **{**given, **asked})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", sorted(set(TOKEN_METHODS) - EARLY))
def test_what_is_about_images_leaves_texts_as_they_are(family, method, mode):
    """Token by token the plain model's, or the cutoff's under sampling, bit for bit."""
    _, model, make_inputs = family
    decoder = TOKEN_METHODS[method].strong
    cutoff = Recipe(rule=Plausibility(BETA)) if getattr(decoder, "beta", 0) else None
    inputs = make_inputs(TEXTS)
    told = dict(return_dict_in_generate=True, output_scores=True, **MODES[mode])
    got = generate(model, inputs, decoder, **told)
    wanted = generate(model, inputs, cutoff, **told)
    assert torch.equal(got.sequences, wanted.sequences)
    if mode == "greedy":
        assert torch.equal(got.sequences, generate(model, inputs))


@pytest.mark.parametrize("method", sorted(TOKEN_METHODS))
def test_a_text_is_answered_as_beside_prompts_with_images(family, method):
    _, model, make_inputs = family
    decoder = TOKEN_METHODS[method].strong
    asked = dict(min_new_tokens=8)
    both = generate(model, make_inputs([PROMPTS[0], TEXTS[0]]), decoder, **asked)
    alone = generate(model, make_inputs([TEXTS[0]]), decoder, **asked)
    assert torch.equal(alone[0, -8:], both[1, -8:])


@pytest.mark.parametrize("method", sorted(EARLY))
def test_what_is_not_about_images_acts(llava, method):
    model, make_inputs = llava
    told = dict(return_dict_in_generate=True, output_scores=True, max_new_tokens=1)
    got = generate(model, make_inputs(TEXTS), TOKEN_METHODS[method].strong, **told)
    plain = generate(model, make_inputs(TEXTS), **told)
    kept = torch.isfinite(got.scores[0])
    assert not torch.allclose(got.scores[0][kept], plain.scores[0][kept], atol=0.01)


def every_decoder(vlm):
    for name, kind in DECODERS.items():
        takes = inspect.signature(kind).parameters
        yield name, kind(**({"processor": vlm.processor} if "processor" in takes else {}))


def test_a_chats_first_hello_works_with_every_decoder(vlm):
    inputs = vlm.inputs([vlm.chat(["Hello!"])])
    plain = generate(vlm.model, inputs)
    for name, decoder in every_decoder(vlm):
        got = generate(vlm.model, inputs, decoder)
        assert got.shape[1] > inputs["input_ids"].shape[1], name
        if name not in ("deco", "dola", "vasparse", "posthoc"):
            assert torch.equal(got, plain), name


def test_then_the_same_decoder_answers_about_an_image(vlm):
    """A second turn with an image is not disturbed by the first without one."""
    hello = vlm.inputs([vlm.chat(["Hello!"])])
    asked = vlm.asked(["Is there a cup in the image?"])
    for name, decoder in every_decoder(vlm):
        needs = getattr(decoder, "needs_images", False)
        given = dict(images=[vlm.images[0]]) if needs else {}
        first = generate(vlm.model, asked, decoder, **given)
        generate(vlm.model, hello, decoder)
        assert torch.equal(generate(vlm.model, asked, decoder, **given), first), name


def test_a_masked_image_that_is_not_there_sharpens_nothing(vlm):
    """AGLA adds 2 x the logits of its second image; without one nothing is added."""
    inputs = vlm.inputs([vlm.chat(["Hello!"])])
    told = dict(return_dict_in_generate=True, output_scores=True, max_new_tokens=1)
    scores = generate(vlm.model, inputs, AGLA(processor=vlm.processor, beta=0), **told).scores[0]
    torch.testing.assert_close(scores, generate(vlm.model, inputs, **told).scores[0])


def test_without_a_description_nothing_is_ranked_by_it(vlm):
    inputs = vlm.inputs([vlm.chat(["Hello!"])])
    sampled = dict(do_sample=True, temperature=1.5)
    got = generate(vlm.model, inputs, VDGD(processor=vlm.processor, alpha=0.2), **sampled)
    cutoff = Recipe(rule=Plausibility(0.2))
    assert torch.equal(got, generate(vlm.model, inputs, cutoff, **sampled))


def test_post_hoc_divides_rows_without_an_image_by_nothing(llava):
    """Their labels' own shares, computed by hand, alone and beside a prompt with an image."""
    model, make_inputs = llava

    class Words:
        unk_token_id = 3

        def __len__(self):
            return 40

        def batch_decode(self, ids):
            return ["yes" if i == [8] else "no" if i == [9] else "." for i in ids]

    decoder = PostHocDebias(processor=Words())
    alone = decoder.probabilities(model, **make_inputs([TEXTS[0]]))[0]
    beside = decoder.probabilities(model, **make_inputs([PROMPTS[0], TEXTS[0]]))[1]
    with torch.no_grad():
        shares = model(**make_inputs([TEXTS[0]])).logits[0, -1].softmax(-1)[[8, 9]]
    for got in (alone, beside):
        torch.testing.assert_close(got, shares / shares.sum(), atol=1e-5, rtol=1e-4)  # float32


def test_parts_of_ones_own_are_asked(llava):
    """They may be about something else: with a text they are called as ever."""
    model, make_inputs = llava
    seen = []

    def shorter(expert: Branch, model) -> Branch:
        seen.append(expert.image_mask.any().item())
        return expert.rows(torch.arange(len(expert.input_ids)), model.config)

    recipe = Recipe(contrasts=(shorter,), rule=Contrastive(1.0, 0.0))
    both = recipe + VDD(alpha=1.0, beta=0.0).recipe()
    for decoder in (recipe, both):
        got = generate(model, make_inputs(TEXTS), decoder)
        assert torch.equal(got, generate(model, make_inputs(TEXTS)))
    assert seen == [False, False]


def test_an_image_without_a_place_in_the_prompt_is_refused(llava):
    model, make_inputs = llava
    inputs = make_inputs(TEXTS) | {"pixel_values": make_inputs(PROMPTS)["pixel_values"]}
    with pytest.raises(ValueError, match="no image token"):
        generate(model, inputs, VDD())


def test_votes_about_no_image_are_refused(vlm):
    inputs = vlm.inputs([vlm.chat(["Hello!"])])
    with pytest.raises(ValueError, match="no image token"):
        MVP(processor=vlm.processor).probabilities(vlm.model, **inputs)


# Padding on the right


def padded_right(inputs):
    """The second row's padding moved behind its tokens."""
    moved = {k: v.clone() for k, v in inputs.items()}
    for name in ("input_ids", "attention_mask"):
        count = int((inputs["attention_mask"][1] == 0).sum())
        moved[name][1] = inputs[name][1].roll(-count)
    return moved


@pytest.mark.parametrize("method", sorted(TOKEN_METHODS))
def test_padding_on_the_right_is_refused(llava, method):
    model, make_inputs = llava
    with pytest.raises(ValueError, match=r"ends in 0 in rows \[1\]"):
        generate(model, padded_right(make_inputs(PROMPTS)), TOKEN_METHODS[method].strong)


@pytest.mark.parametrize("build", [MVP, PostHocDebias], ids=["mvp", "posthoc"])
def test_padding_on_the_right_is_refused_by_closed_sets(vlm, build):
    inputs = padded_right(vlm.asked(["Is there a cup or a vase in the image?", "Is it?"]))
    given = dict(images=list(vlm.images[:2])) if build is MVP else {}
    with pytest.raises(ValueError, match=r"ends in 0 in rows \[1\]"):
        generate(vlm.model, inputs, build(processor=vlm.processor), **given)


# Audio beside images


@pytest.mark.parametrize("method", sorted(set(TOKEN_METHODS) - EARLY - {"vaf", "pai-attention"}))
def test_audio_beside_images_is_refused_where_prompts_are_compared(method):
    made = Tiny.of("gemma4")
    audio = dict(input_features=torch.zeros(1, 8, 128), input_features_mask=torch.ones(1, 8))
    ran = []
    made.model.lm_head.register_forward_pre_hook(lambda *_: ran.append(1))
    with pytest.raises(ValueError, match=r"has audio \(input_features, input_features_mask\)"):
        generate(made.model, made.inputs(PROMPTS[:1]) | audio, TOKEN_METHODS[method].strong)
    assert not ran
