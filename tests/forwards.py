"""What each branch of a method must say: one row, one forward, no cache and no padding.

`make_inputs(rows)` makes a model's inputs of rows of tokens; a prompt is a `methods.Prompt`.
"""

from contextlib import contextmanager

import torch
from models import IMAGE
from oracles import Seen, oracle_attention


@torch.no_grad()
def full_branches(model, make_inputs, method, prompts, row, answer=()):
    """Last logits `[V]` of the expert and of what it is compared with: amateurs, each from one
    forward of one row, then early layers of the expert's.

    `prompts`: the expert's and the amateurs'.
    """
    answer = list(answer)
    outputs = [full_forward(model, make_inputs, row, prompt, answer) for prompt in prompts]
    states = [outputs[0].hidden_states[layer][0, -1] for layer in method.layers]
    if method.normed:
        states = [last_norm(model)(state) for state in states]
    early = []
    for state in states:
        with head_reads(model, state):
            early.append(full_forward(model, make_inputs, row, prompts[0], answer).logits[0, -1])
    return [output.logits[0, -1] for output in outputs], early


@torch.no_grad()
def full_forward(model, make_inputs, row, prompt, answer):
    """Outputs for `prompt` and `answer`; the images are those of the caller's `row`."""
    tokens = prompt.tokens + answer
    inputs = make_inputs([tokens])
    if prompt.pixels is None:
        assert IMAGE not in tokens
    else:
        # `make_inputs` draws an image from its row's tokens: the answer must not change it
        own = make_inputs([row])
        for name in inputs:
            if "pixel_values" in name:
                inputs[name] = prompt.pixels(own[name])
    inputs.update(prompt.given)
    if prompt.chosen is not None:
        inputs = shortened(model, inputs, prompt.chosen(model, inputs))
    if prompt.attention is None:
        return model(**inputs, output_hidden_states=True)
    length = make_inputs([prompt.tokens])["input_ids"].shape[1]
    seen = Seen(inputs["input_ids"][0] == IMAGE, length, prompt.attention)
    with oracle_attention(model):
        shorter = range(length, inputs["input_ids"].shape[1]) if seen.needs_shorter else ()
        for end in shorter:
            model(**{**inputs, **cut(inputs, end)}, oracle=seen)
        return model(**inputs, oracle=seen, output_hidden_states=True)


def cut(inputs, end):
    return {k: v[:, :end] for k, v in inputs.items() if v.shape == inputs["input_ids"].shape}


def shortened(model, inputs, chosen):
    """Inputs of one row whose images are their chosen tokens alone, positions counted like text.

    `chosen`: of each image in turn, places within it, in order.
    """
    encoder = {k: v for k, v in inputs.items() if k not in ALONG_THE_PROMPT}
    encoded = model.base_model.get_image_features(**encoder, return_dict=True)
    name, images = held(encoded)

    def picked(images):
        left = [image[places] for image, places in zip(images, chosen, strict=True)]
        return torch.stack(left) if isinstance(images, torch.Tensor) else left

    tokens = inputs["input_ids"][0].tolist()
    start, kept = 0, []
    for image, places in zip(images, chosen, strict=True):
        first = tokens.index(IMAGE, start)
        kept += tokens[start : first + len(places)]
        start = first + len(image)
    ids = torch.tensor([[*kept, *tokens[start:]]])
    fields = {} if name == "deepstack_features" else {name: picked(images)}
    if "deepstack_features" in encoded:  # what layers of the text model add to the tokens
        fields["deepstack_features"] = [
            (entry[0], picked(entry[1])) if isinstance(entry[0], int) else picked(entry)
            for entry in encoded.deepstack_features
        ]
    types = {name: (ids == IMAGE).long() for name in inputs if name.endswith("token_type_ids")}
    return dict(
        **types,
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        position_ids=torch.arange(ids.shape[1])[None],
        mm_encoder_outputs={"image": type(encoded)(**fields)},
    )


def held(encoded):
    """The field of an encoder's output that holds its images, and they."""
    for name in ("pooler_output", "last_hidden_state"):
        if encoded.get(name) is not None:
            return name, encoded[name]
    (_, images), *_ = encoded.deepstack_features
    return "deepstack_features", images


ALONG_THE_PROMPT = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")


def last_norm(model):
    """What stands between the last layer and the head."""
    text = model.get_decoder()
    text = getattr(text, "model", text)
    norms = {n: m for n, m in text.named_children() if "norm" in n}
    return norms["norm"] if "norm" in norms else next(iter(norms.values()))


@contextmanager
def head_reads(model, state):
    """The model's own head, scaling and caps included, reads `[D]` in place of its last state."""
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, args: (state.expand_as(args[0]),))
    try:
        yield
    finally:
        handle.remove()
