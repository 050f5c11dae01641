"""Which tokens of one image a tiny vision tower attends to most, written out by hand."""

import torch
from torch import tensor


def most_attended(k):
    """`(model, inputs of one image) -> [places of its k tokens, most attended first]`."""

    def places(model, inputs):
        by_windows = "image_grid_thw" in inputs
        scores = by_pooled_query(model, inputs) if by_windows else by_class_token(model, inputs)
        return [scores.topk(k).indices.tolist()]

    return places


def by_class_token(model, inputs):
    """CLIP: the class token's logits in the last layer, all heads as one; softmax keeps order."""
    tower = model.model.vision_tower
    entering = tower.pre_layrnorm(tower.embeddings(inputs["pixel_values"]))
    *before, last = tower.encoder.layers
    for layer in before:
        entering = layer(entering, attention_mask=None)
    hidden = last.layer_norm1(entering[0])
    return (last.self_attn.k_proj(hidden) @ last.self_attn.q_proj(hidden)[0])[1:]


def by_pooled_query(model, inputs):
    """4 x 6 patches in groups of 2 x 2, groups in windows of 2 x 2: in plain order. `[6]`"""
    attention = model.model.visual.blocks[1].attn
    entered = []
    handle = attention.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    handle.remove()
    # Groups 0 1 2 / 3 4 5 of the image go through the tower as windows 0 1 3 4, 2 5.
    hidden = dict(zip([0, 1, 3, 4, 2, 5], entered[0].view(6, 4, 32), strict=True))
    queries, keys = [], []
    for group in range(6):
        for inner in range(4):
            h, w = 2 * (group // 3) + inner // 2, 2 * (group % 3) + inner % 2
            qkv = attention.qkv(hidden[group][inner]).view(3, 2, 16)
            angles = tensor([p / 10000 ** (i / 4) for p in (h, w) for i in range(4)])
            for turned, vectors in ((queries, qkv[0]), (keys, qkv[1])):
                left, right = vectors[:, :8], vectors[:, 8:]
                cos, sin = angles.cos(), angles.sin()
                turned.append(torch.cat([left * cos - right * sin, right * cos + left * sin], -1))
    q, k = torch.stack(queries, dim=1), torch.stack(keys, dim=1)  # [heads, patches, 16]
    weights = (k @ q.mean(1)[..., None])[..., 0].div(4).softmax(-1).mean(0)
    return weights.view(6, 4).sum(1)
