"""What tests of decoders that ask again share: answers, full forwards, scores by hand."""

import copy
import math

import torch
from chat_models import within
from torch.nn.functional import interpolate

from sightline.decoders.vdgd import REQUEST, STATEMENT

QUESTIONS = ["Describe the image.", "Is there an orange or a vase?"]
ASKED = dict(output_scores=True, output_logits=True, return_dict_in_generate=True)
TOLERANCE = dict(atol=5e-4, rtol=2e-4)  # float32, batches against one row, no cache
ATTENTION = dict(output_attentions=True)


def generate(vlm, decoder, questions=QUESTIONS, images=None, steps=6, **kwargs):
    """(output, the caller's inputs)."""
    images = list(vlm.images[: len(questions)] if images is None else images)
    inputs = vlm.asked(questions, images)
    if getattr(decoder, "needs_images", False):
        kwargs["images"] = images
    torch.manual_seed(1)
    out = vlm.model.generate(
        **inputs, custom_generate=decoder, **{"max_new_tokens": steps, **kwargs}
    )
    return out, inputs


def answers(vlm, out, inputs):
    """By row, ids up to and with the end of sequence."""
    sequences = getattr(out, "sequences", out)
    return [ended(vlm, row) for row in sequences[:, inputs["input_ids"].shape[1] :].tolist()]


def ended(vlm, tokens):
    for place, token in enumerate(tokens):
        if token in vlm.eos:
            return tokens[: place + 1]
    return tokens


def plain(vlm, prompt, images, steps=6, **kwargs):
    """What `generate` says after one prompt from scratch, and the logits of each step."""
    inputs = vlm.inputs([prompt], images)
    out = vlm.model.generate(**inputs, max_new_tokens=steps, do_sample=False, **ASKED, **kwargs)
    tokens = ended(vlm, out.sequences[0, inputs["input_ids"].shape[1] :].tolist())
    return tokens, torch.stack(out.logits)[: len(tokens), 0]


@torch.no_grad()
def full(vlm, prompt, images=(), answer=(), model=None, **kwargs):
    """One forward of one row without a cache; `logits` [1 + len(answer), V] that follow it."""
    inputs = vlm.inputs([prompt], images)
    answer = torch.tensor([list(answer)], dtype=torch.long)
    length = inputs["input_ids"].shape[1]
    for name, new in (("input_ids", answer), ("attention_mask", answer * 0 + 1)):
        inputs[name] = torch.cat([inputs[name], new], dim=1)
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], answer * 0], dim=1)
    model = model or vlm.model
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


def check_scores(vlm, decoder, prompts, formula, steps=6, **kwargs):
    """Every step of every row against `formula(*logits, step)` in float64.

    `prompts(row, question, image)`: (prompt, images) of each branch.
    """
    out, inputs = generate(vlm, decoder, steps=steps, **ASKED, **kwargs)
    for row, answer in enumerate(answers(vlm, out, inputs)):
        built = prompts(row, QUESTIONS[row], vlm.images[row])
        branches = [full(vlm, *given, answer=answer[:-1]).logits for given in built]
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


def prepared(vlm, decoder, questions, images):
    """The expert after the decoder's preparations."""
    (part,) = decoder.recipe().preparations

    inputs = vlm.asked(questions, images)
    return within(vlm, inputs, part, images=list(images))


def shown(vlm):
    return vlm.images[: len(QUESTIONS)]


def described(vlm, question, image, layout, tokens):
    """The description by plain `generate`, g by teacher forcing, and the prompt it joins."""
    request = REQUEST.replace("{question}", question)
    said, _ = plain(vlm, vlm.chat(request), [image], tokens)
    words = [token for token in said if token not in vlm.eos]
    logits = full(vlm, vlm.chat(request), [image], words).logits[: len(words)]
    support = logits.double().log_softmax(-1).amax(0)
    text = vlm.processor.decode(words, skip_special_tokens=True).strip()
    statement = STATEMENT.replace("{description}", text)
    prompt = {
        "image_first": vlm.chat(f"{statement} {question}"),
        "official": vlm.chat([f"{statement}\n", None, question]),
        "continue": vlm.chat(request, text, question),
    }[layout]
    return support, prompt


def eager(vlm):
    model = copy.deepcopy(vlm.model)
    model.set_attn_implementation("eager")
    return model


def question_places(vlm, ids, question):
    """Columns whose text, put together, is the question: the last such run."""
    for first in reversed(range(len(ids))):
        for after in range(first + 1, len(ids) + 1):
            if vlm.processor.decode(ids[first:after]).strip() == question:
                return range(first, after)
    raise AssertionError(question)


def grid_of(vlm, image):
    """Rows and columns of an image's tokens."""
    made = vlm.processor.image_processor(images=[image], return_tensors="pt")
    if "image_grid_thw" in made:
        return (made["image_grid_thw"][0, 1:] // 2).tolist()
    return [8, 8]


def to_pixels(vlm, values, image):
    grid = values.float().view(1, 1, *grid_of(vlm, image))
    size = (image.height, image.width)
    return interpolate(grid, size=size, mode="bilinear", align_corners=False)[0, 0]
