"""An image's outlier tokens: those that its vision tower attends to beyond their content.

DAMRO, Gong et al., EMNLP 2024 (arXiv:2410.04514), makes its amateur of them. The scores below are
functions of one layer's queries and keys; the rest of the file finds that layer in a tower, reads
what enters it, and keeps the order of the tokens.
"""

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from sightline.compat import get_vision_window_index
from sightline.engine.branch import Branch
from sightline.engine.prompt_edits import with_fewer_image_tokens
from sightline.model_protocol import Model, UnsupportedModelError
from sightline.settings import Checked, Count
from sightline.vision.features import edited, images_of

CLS_SCORES = ("concat", "head_mean")
PATCH_SCORES = ("pooled_query", "received")
Score = Literal["auto", "concat", "head_mean", "pooled_query", "received", "norm"]
TowerLayer = Literal["features", "last"]
EVEN = 0.01  # of a length: half precision rounds features that a norm made equal to so much
SHARE = 10 / 576
"""Outliers per token: the paper's 10 of CLIP ViT-L/14-336's 576, and its 4 of EVA's 256."""


@dataclass(frozen=True)
class OutlierImage(Checked):
    """The same prompt, each image cut down to its outlier tokens (arXiv:2410.04514).

    They are chosen by the vision tower's attention in one layer, image by image, and stand in
    the image's place by falling score, not by where they lie in it. The sequence is shorter and
    its positions are counted anew; under M-RoPE the tokens count like text, one step each.

    Where the language model's tokens are groups of patches (Qwen's 2 x 2 merger) a group's score
    is its patches' sum. Of an image cut into tiles (LLaVA-NeXT) only the crop of the whole is
    kept, with one newline after it. What else resamples patches is refused, and so are videos.

    The scores cost one more pass of the vision tower per call ("norm" costs nothing).

    Args:
        k: Tokens left of each image, 1 or more. None: 10 in 576 of those scored, at least 1.
        score: What makes a token an outlier, higher is more.
            "auto": "concat" where the tower has a class token, else "pooled_query".
            "concat": the class token's attention, all heads as one (the paper's code for LLaVA).
            "head_mean": the class token's attention, mean over heads (its code for InstructBLIP).
            "pooled_query": as "head_mean", the mean of the patches' queries for a class token.
            "received": attention that a patch gets from all patches; quadratic in their number.
            "norm": length of the feature that the language model gets; the tower is not asked, so
            it works for every model, over all tokens of an image, tiles included.
            The last three are substitutes of ours, for towers without a class token.
        layer: "features": the layer whose output the language model gets (`vision_feature_layer`).
            "last": the tower's last. Layers that attend in windows only are passed over.
    """

    k: Count | None = None
    score: Score = "auto"
    layer: TowerLayer = "features"

    @property
    def needs_pixels(self) -> bool:
        """Whether the tower runs again: all scores but the features' own norm ask it."""
        return self.score != "norm"

    def __call__(self, expert: Branch, model: Model) -> Branch:
        features = expert.features or {}
        if set(features) != {"image"}:
            raise ValueError(
                "outlier tokens are chosen in still images, and this prompt holds "
                f"{' and '.join(sorted(features)) or 'none'}: ask about images alone"
            )
        try:
            return self._cut_down(expert, model)
        except Unreadable as error:
            raise UnsupportedModelError(f"{error}: use {self._instead(expert, model)}") from None

    def _cut_down(self, expert: Branch, model: Model) -> Branch:
        encoded = (expert.features or {})["image"]
        scores = self.scores(expert, model)
        if self.score == "norm":
            chosen = [outliers(image, self.k) for image in scores]
            return with_fewer_image_tokens(expert, model, only(encoded, chosen))
        first = class_features(expert, model)
        chosen = [first + outliers(image, self.k) for image in scores]
        return with_fewer_image_tokens(expert, model, only(encoded, chosen, newline(model)))

    def _instead(self, expert: Branch, model: Model) -> str:
        """What does work for this prompt, in words; each is tried."""
        settings: list[dict[str, Any]] = [{"layer": "last"}]
        # Without pixels the tower cannot be asked.
        scores = ("norm", "auto", *PATCH_SCORES) if expert.pixels else ("norm",)
        settings += [{"score": score} for score in scores]
        working = []
        for setting in settings:
            try:
                replace(self, **setting)._cut_down(expert, model)
            except Exception:  # whatever it trips over, it is no way out
                continue
            ((name, value),) = setting.items()
            working.append(f'{name}="{value}"')
        return " or ".join(working) or "another contrast (VDD)"

    def scores(self, expert: Branch, model: Model) -> list[Tensor]:
        """Scores `[N]` of each image's tokens; of an image in tiles, of the whole's tokens."""
        images = images_of((expert.features or {})["image"])
        if self.score == "norm":
            return [told_apart(norm(image)) for image in images]
        tower = vision_tower(model)
        layers = attention_layers(tower)
        if not layers:
            unreadable("its layers hold no q_proj and k_proj, and no qkv")
        attention = layers[self._layer_index(len(layers), tower, expert, model)]
        has_cls = has_class_token(tower)
        score = self.score
        if score == "auto":
            score = "concat" if has_cls else "pooled_query"
        if score in CLS_SCORES and not has_cls:
            raise Unreadable(
                f'score="{score}" is the attention of a class token, and this vision tower has none'
            )
        queries, keys = queries_and_keys(attention, *layer_input(attention, expert, model, tower))
        heads = head_count(attention)
        lengths = [len(image) for image in images]
        merged = getattr(tower, "spatial_merge_size", 1) ** 2
        if queries.ndim == 3 and len(queries) == len(lengths):
            pairs = list(zip(queries, keys, strict=True))
        else:  # images of several sizes, end to end
            tokens = queries.shape[:-1].numel()
            runs = [length * merged for length in lengths]
            if has_cls or tokens != queries.shape[-2] or tokens != sum(runs):
                mismatch(sum(lengths), tokens)
            flat = (x.view(tokens, -1).split(runs) for x in (queries, keys))
            pairs = list(zip(*flat, strict=True))
        patches = [patch_scores(score, q, k, heads, has_cls) for q, k in pairs]
        first, has_tiles = class_features(expert, model), newline(model) is not None
        for length, image in zip(lengths, patches, strict=True):
            whole = first + len(image) / merged
            if length != whole and not (has_tiles and length > whole):
                mismatch(length, len(image))
        groups = [image.view(-1, merged).sum(dim=-1) for image in patches]
        return in_spatial_order(groups, tower, expert)

    def _layer_index(self, count: int, tower: Any, expert: Branch, model: Model) -> int:
        """Of the layer to read, from 0."""
        latest = count - 1
        state = setting("vision_feature_layer", expert, model)
        if self.layer == "features" and state is not None:
            if not isinstance(state, int):
                raise Unreadable(
                    f"features come from several layers of the vision tower, {list(state)}"
                )
            # States of the tower: 0 is what enters its first layer, i what leaves the i-th.
            latest = (state if state >= 0 else count + 1 + state) - 1
        readable = getattr(tower, "fullatt_block_indexes", range(count))
        below = [index for index in readable if index <= latest]
        if not below:
            unreadable(f"no layer of full attention stands before state {state}")
        return max(below)


def concat_attention(queries: Tensor, keys: Tensor) -> Tensor:
    """Attention of the first token, all heads taken for one: `[S, C]` twice -> `[S]`.

    Ranks tokens by the mean over heads of the logits.
    """
    logits = keys @ queries[0]
    return (logits * queries.shape[-1] ** -0.5).softmax(dim=-1)


def head_mean(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """Attention of the first token, mean over heads: `[S, C]` twice -> `[S]`."""
    return attention_of(queries[:1], keys, heads).mean(dim=0)[0]


def pooled_query(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """Attention of the tokens' mean query, mean over heads: `[N, C]` twice -> `[N]`."""
    return attention_of(queries.mean(dim=0, keepdim=True), keys, heads).mean(dim=0)[0]


def received(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """Attention that each token gets, mean over heads and queries: `[N, C]` twice -> `[N]`."""
    return attention_of(queries, keys, heads).mean(dim=(0, 1))


def norm(features: Tensor) -> Tensor:
    """Length of each feature: `[N, D]` -> `[N]`."""
    return features.float().norm(dim=-1)


def told_apart(lengths: Tensor) -> Tensor:
    """The same `[N]`; `ValueError` where features of several tokens are all of one length."""
    if len(lengths) > 1 and lengths.max() - lengths.min() <= EVEN * lengths.max():
        raise Unreadable(
            'score="norm" chooses the longest features, and those of this model are all of one '
            "length (a norm comes last)"
        )
    return lengths


def attention_of(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """`[Q, C]` and `[S, C]` -> softmax over keys `[H, Q, S]`."""
    q, k = (x.unflatten(-1, (heads, -1)).transpose(0, 1) for x in (queries, keys))
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)


def patch_scores(score: str, queries: Tensor, keys: Tensor, heads: int, has_cls: bool) -> Tensor:
    """Scores `[N]` of the patches, from `[S, C]` of a tower's tokens; the class token is first."""
    if score == "concat":
        return concat_attention(queries, keys)[1:]
    if score == "head_mean":
        return head_mean(queries, keys, heads)[1:]
    measure = pooled_query if score == "pooled_query" else received
    first = int(has_cls)
    return measure(queries[first:], keys[first:], heads)


def outliers(scores: Tensor, k: int | None) -> Tensor:
    """Places of the k highest of `[N]` scores, highest first; of equals the first. `[k]`"""
    count = max(1, round(len(scores) * SHARE)) if k is None else k
    if count > len(scores):
        raise ValueError(
            f"k={count} tokens were wanted of an image that has {len(scores)}: lower k, or leave "
            "it to k=None"
        )
    return scores.argsort(descending=True, stable=True)[:count]


def only(encoded: Any, chosen: list[Tensor], closing: Tensor | None = None) -> Any:
    """An encoder's output with the chosen tokens `[k]` of each image, in the order given.

    What a language model gets of a token depends on no other, so to choose after the projector is
    to choose before it. `closing` `[D]` is put after each image.
    """

    def choose(images: Any, *after: Tensor) -> Any:
        pairs = zip(images, chosen, strict=True)
        short = [torch.cat([image[index], *after]) for image, index in pairs]
        return torch.stack(short) if isinstance(images, Tensor) else short

    after = () if closing is None else (closing[None].to(images_of(encoded)[0]),)
    return edited(lambda images: choose(images, *after), encoded)


def vision_tower(model: Model) -> Any:
    """The module that encodes images."""
    tower = model.get_encoder(modality="image")
    if tower is model or tower is model.base_model:
        unreadable("it names no vision tower")
    return tower


def attention_layers(tower: nn.Module) -> list[nn.Module]:
    """The attention of each layer of a tower, first layer first; empty if none can be read."""
    for stack in tower.modules():
        if isinstance(stack, nn.ModuleList) and len(stack):
            found = [child for layer in stack for child in filter(_projects, layer.children())]
            if len(found) == len(stack):
                return found
    return []


def _projects(module: nn.Module) -> bool:
    return hasattr(module, "qkv") or (hasattr(module, "q_proj") and hasattr(module, "k_proj"))


def head_count(attention: Any) -> int:
    """H of an attention module."""
    for name in ("num_heads", "num_attention_heads"):
        for owner in (attention, getattr(attention, "config", None)):
            if isinstance(getattr(owner, name, None), int):
                return getattr(owner, name)
    unreadable("its attention names no number of heads")


def has_class_token(tower: nn.Module) -> bool:
    """Whether a learnt class token stands before the patches."""
    names = (name.rpartition(".")[2] for name, _ in tower.named_parameters())
    return any(name in ("class_embedding", "cls_token") for name in names)


def class_features(expert: Branch, model: Model) -> int:
    """Features that stand before an image's patches: 1 where the class token is kept, else 0."""
    strategy = setting("vision_feature_select_strategy", expert, model)
    return int(strategy == "full" and has_class_token(vision_tower(model)))


def newline(model: Model) -> Tensor | None:
    """What closes an image, `[D]`, in models that put the whole image before its tiles."""
    return getattr(model.base_model, "image_newline", None)


def setting(name: str, expert: Branch, model: Model) -> Any:
    """How features are selected: by the caller, else by the config; None if by neither."""
    given = expert.pixels.get(name)
    return getattr(model.config, name, None) if given is None else given


def layer_input(
    attention: nn.Module, expert: Branch, model: Model, tower: Any
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """What the images are when they enter a layer's attention: `[.., S, C]`, with its rotary.

    The tower runs as it is, and a hook of this call looks on. transformers' own
    `output_hidden_states` would leave hooks behind on towers that have none (5.23).
    """
    pixels = expert.pixels
    with inputs_of(attention) as seen:
        if newline(model) is not None and pixels["pixel_values"].ndim == 5:
            tower(pixels["pixel_values"][:, 0])  # the whole image; [:, 1:] are its tiles
        else:
            encode = model.base_model.get_image_features
            taken = inspect.signature(encode).parameters
            encode(**{name: pixels[name] for name in pixels if name in taken}, return_dict=True)
    if len(seen) != 1:
        unreadable(f"its layer ran {len(seen)} times for one batch of images")
    args, kwargs = seen[0]
    given = dict(kwargs, **dict(zip(("hidden_states", "attention_mask"), args, strict=False)))
    known = ("hidden_states", "attention_mask", "cu_seqlens", "position_embeddings")
    strange = [n for n, v in given.items() if n not in known and isinstance(v, Tensor | tuple)]
    if strange or len(args) > 2:
        unreadable(f"its attention takes {', '.join(strange) or 'more than states and a mask'}")
    return given["hidden_states"], given.get("position_embeddings")


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[tuple[tuple, dict[str, Any]]]]:
    """Collects the arguments that this thread calls a module with."""
    thread = threading.get_ident()
    seen: list[tuple[tuple, dict[str, Any]]] = []

    # Another thread on the same model may call the module meanwhile, and without the keywords if
    # the hook is being put on or off just then: its calls are none of ours.
    def record(module: nn.Module, args: tuple, kwargs: dict[str, Any] | None = None) -> None:
        if threading.get_ident() == thread:
            seen.append((args, kwargs or {}))

    handle = module.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def queries_and_keys(
    attention: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Both `[.., S, C]` in float32, by the layer's own projections, bias and rotary included."""
    for name in ("q_norm", "k_norm"):
        if not isinstance(getattr(attention, name, nn.Identity()), nn.Identity):
            unreadable(f"its attention has a {name}")
    if hasattr(attention, "qkv"):
        queries, keys, _ = attention.qkv(hidden).chunk(3, dim=-1)
    else:
        queries, keys = attention.q_proj(hidden), attention.k_proj(hidden)
    if queries.shape != keys.shape:
        unreadable("its queries and keys differ in number of heads")
    queries, keys = queries.float(), keys.float()
    if rotary is None:
        return queries, keys
    heads = head_count(attention)
    return rotate(queries, heads, *rotary), rotate(keys, heads, *rotary)


def rotate(values: Tensor, heads: int, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on `[.., S, C]`, by the angles' `cos` and `sin`, each `[.., S, D]`."""
    by_head = values.unflatten(-1, (heads, -1))
    if cos.shape[-2:] != (values.shape[-2], by_head.shape[-1]):
        unreadable("its rotary positions do not cover every token and the whole head")
    left, right = by_head.chunk(2, dim=-1)
    turned = torch.cat([-right, left], dim=-1)
    return (by_head * cos[..., None, :].float() + turned * sin[..., None, :].float()).flatten(-2)


def in_spatial_order(scores: list[Tensor], tower: Any, expert: Branch) -> list[Tensor]:
    """Undoes the order by windows that a tower with windowed layers works in."""
    if not hasattr(tower, "fullatt_block_indexes"):
        return scores
    order, _ = get_vision_window_index(
        expert.pixels["image_grid_thw"],
        spatial_merge_size=tower.spatial_merge_size,
        window_size=tower.window_size,
        patch_size=tower.patch_size,
    )
    lengths = [len(image) for image in scores]
    flat = torch.cat(scores)
    return list(flat[order.argsort().to(flat.device)].split(lengths))


class Unreadable(UnsupportedModelError):
    """Outliers cannot be chosen in the way that was asked for."""


def unreadable(reason: str) -> NoReturn:
    """The vision tower is laid out in a way that this file cannot read."""
    raise Unreadable(f"this model exposes no vision-tower attention that can be read ({reason})")


def mismatch(tokens: int, patches: int) -> NoReturn:
    """The language model's tokens are not the tower's patches, nor known groups of them."""
    raise Unreadable(
        f"the images fill {tokens} tokens and the vision tower attends to {patches} patches; "
        "which patches a token stands for is not known here"
    )
