"""PostHocDebias against its formulas on separate full forwards of tiny models."""

import math

import pytest
import torch
from models import IMAGE, PROMPTS, UNK
from test_engine import counted

from sightline import PostHocDebias

FORMS = {30: "Yes", 31: " yes", 40: "no", 50: "in", 51: "side", 52: " In"}


class Words:
    """A tokenizer of 120 words, of which a few matter."""

    unk_token_id = UNK

    def __len__(self):
        return 120

    def batch_decode(self, rows):
        return [FORMS.get(row[0], f"w{row[0]}") for row in rows]

    def __call__(self, text, add_special_tokens):
        pieces = {"inside": [50, 51], " inside": [52, 51], "Inside": [52, 51], " Inside": [52, 51]}
        words = {form: [token] for token, form in FORMS.items()}
        return {"input_ids": (pieces | words).get(text, [40])}


def full(model, make_inputs, tokens, pixels=None):
    inputs = make_inputs([tokens])
    if pixels is not None:
        inputs["pixel_values"] = pixels
    with torch.no_grad():
        return model(**inputs).logits[0, -1].double().softmax(-1)


def masses(probabilities):
    return torch.stack([probabilities[[30, 31]].max(), probabilities[40]])


@pytest.mark.parametrize("reference", ["none", "unk", "none_unk"])
def test_probabilities_equal_the_formula(family, reference):
    _, model, make_inputs = family
    debias = PostHocDebias(processor=Words(), reference=reference)
    result = debias.probabilities(model, **make_inputs(PROMPTS))
    assert result.shape == (2, 2)
    for row, prompt in enumerate(PROMPTS):
        asked = masses(full(model, make_inputs, prompt))
        none = masses(full(model, make_inputs, [t for t in prompt if t != IMAGE]))
        unk = masses(full(model, make_inputs, [UNK if t == IMAGE else t for t in prompt]))
        r = {"none": none, "unk": unk, "none_unk": none + unk}[reference]
        scores = asked / asked.sum() / (r / r.sum() + 1e-4)
        expected = (scores / scores.sum()).float()
        torch.testing.assert_close(result[row], expected, atol=1e-4, rtol=1e-3)  # float32


def test_generate_answers_with_the_calibrated_label(family):
    _, model, make_inputs = family
    inputs = make_inputs(PROMPTS)
    debias = PostHocDebias(processor=Words())
    best = debias.probabilities(model, **inputs).argmax(-1).tolist()
    width = inputs["input_ids"].shape[1]
    out = model.generate(**inputs, max_new_tokens=8, custom_generate=debias)
    assert torch.equal(out[:, :width], inputs["input_ids"])
    eos = model.generation_config.eos_token_id
    for row, label in enumerate(best):
        token, end = out[row, width:].tolist()
        assert FORMS[token].strip().lower() == ("yes", "no")[label]
        assert end == eos
    one = model.generate(
        **inputs, max_new_tokens=1, custom_generate=debias, return_dict_in_generate=True
    )
    assert torch.equal(one.sequences, out[:, : width + 1])


def test_the_reference_is_asked_once_for_each_text(llava):
    """One question put to many images runs the image-free prompt once."""
    model, make_inputs = llava
    debias = PostHocDebias(processor=Words())
    other = make_inputs(PROMPTS)
    other["pixel_values"] = -other["pixel_values"]
    first = debias.probabilities(model, **make_inputs(PROMPTS))
    with counted(model.model.language_model, "inputs_embeds") as calls:
        second = debias.probabilities(model, **other)
    assert [tuple(c.shape[:2]) for c in calls] == [(2, 22)]
    assert not torch.equal(first, second)
    assert torch.equal(second, PostHocDebias(processor=Words()).probabilities(model, **other))


def test_labels_of_several_tokens_use_the_geometric_mean(family):
    """ "inside" is two tokens: its mass is the root of the product, for answer and reference."""
    _, model, make_inputs = family
    debias = PostHocDebias(processor=Words(), labels=("no", "inside"))
    result = debias.probabilities(model, **make_inputs(PROMPTS))
    for row, prompt in enumerate(PROMPTS):
        pixels = make_inputs([prompt])["pixel_values"]
        free = [t for t in prompt if t != IMAGE]
        found = []
        for tokens, image in ((prompt, pixels), (free, None)):
            first = full(model, make_inputs, tokens, image)
            forms = []
            for head in (50, 52):
                second = full(model, make_inputs, [*tokens, head], image)
                forms.append(math.sqrt(first[head] * second[51]))
            found.append(torch.tensor([float(first[40]), max(forms)]))
        asked, none = found
        scores = asked / asked.sum() / (none / none.sum() + 1e-4)
        torch.testing.assert_close(
            result[row], (scores / scores.sum()).float(), atol=1e-4, rtol=1e-3
        )


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (dict(labels=("yes",)), "two or more"),
        (dict(labels=("yes", "Yes ")), "two or more different"),
        (dict(reference="zero"), "one of none, unk, none_unk"),
        (dict(aggregate="mean"), "aggregate"),
        (dict(smoothing=0), "smoothing"),
    ],
)
def test_settings_are_checked(settings, match):
    with pytest.raises(ValueError, match=match):
        PostHocDebias(processor=Words(), **settings)


def test_one_answer_only(llava):
    model, make_inputs = llava
    with pytest.raises(ValueError, match="one answer from a closed set"):
        model.generate(
            **make_inputs(PROMPTS),
            num_beams=2,
            max_new_tokens=2,
            custom_generate=PostHocDebias(processor=Words()),
        )
    with pytest.raises(ValueError, match="output_image_attention has nothing to return"):
        model.generate(
            **make_inputs(PROMPTS),
            max_new_tokens=2,
            return_dict_in_generate=True,
            output_image_attention=True,
            custom_generate=PostHocDebias(processor=Words()),
        )
    inputs = make_inputs([[1, 8, 9]]) | {"pixel_values": make_inputs(PROMPTS)["pixel_values"]}
    with pytest.raises(ValueError, match="no image token"):
        PostHocDebias(processor=Words()).probabilities(model, **inputs)
