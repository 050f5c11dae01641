"""Edited attention written out over whole matrices, in float64 and without a cache.

An oracle gets a layer's scores `[H, Q, K]` of one row's prompt and answer, and returns the
probabilities. Queries from the prompt's last one on are those that decode a token.
"""

import math
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

NAME = "test_oracle"


@dataclass
class Seen:
    """One row: which keys are the image's, the prompt's length, the oracle, and what earlier
    layers of this forward, or shorter forwards, showed, for oracles that ask."""

    image: torch.Tensor
    prompt: int
    oracle: object
    attended: torch.Tensor | None = None
    looks: dict = field(default_factory=dict)

    @property
    def needs_shorter(self):
        return hasattr(self.oracle, "attend")


def attention(module, query, key, value, attention_mask, scaling=None, oracle=None, **kwargs):
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1)[0].double() for x in (key, value))
    scores = query[0].double() @ key.transpose(-1, -2) * (scaling or query.shape[-1] ** -0.5)
    hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
    if attention_mask is not None:  # windows, and text that sees what follows it
        hidden = attention_mask[0, 0, :, : scores.shape[2]] < 0
    if oracle.needs_shorter:
        heads = getattr(module.config, "num_key_value_heads", None) or len(key)
        short, few = key[:: len(key) // heads], value[:: len(value) // heads]
        place = (module.layer_idx, module.config.num_hidden_layers - 1)
        output = oracle.oracle.attend(
            query[0].double(), short, few, hidden, scaling, *place, oracle
        )
    else:
        output = oracle.oracle(scores, hidden, module.layer_idx, oracle) @ value
    return output.to(query.dtype).transpose(0, 1)[None], None


@contextmanager
def oracle_attention(model):
    """The text model's attention is the oracle's, inside."""
    AttentionMaskInterface.register(NAME, eager_mask)
    AttentionInterface.register(NAME, attention)
    config = model.config.get_text_config(decoder=True)
    names = [key for key in model.config.sub_configs if getattr(model.config, key) is config]
    key = names[0] if names else ""  # the whole config is the text model's
    before = config._attn_implementation
    model.set_attn_implementation({key: NAME})
    try:
        yield
    finally:
        model.set_attn_implementation({key: before})


def softmax(scores, hidden):
    return scores.masked_fill(hidden, -math.inf).softmax(dim=-1)


def image_gain(alpha, first):
    def oracle(scores, hidden, layer, seen):
        if layer >= first:
            deciding = scores[:, seen.prompt - 1 :, seen.image]
            scores[:, seen.prompt - 1 :, seen.image] = deciding + alpha * deciding.abs()
        return softmax(scores, hidden)

    return oracle


def image_scale(image, system, layers):
    def oracle(scores, hidden, layer, seen):
        if layer in layers:
            places = seen.image.nonzero().flatten().tolist()
            after = places[-1] + 1
            scores[:, after:, seen.image] *= image
            scores[:, after:, : places[0]] *= system
        return softmax(scores, hidden)

    return oracle


def least_attended(start, ratio):
    def oracle(scores, hidden, layer, seen):
        if layer < start:
            seen.attended = softmax(scores, hidden).mean(dim=0)
            return softmax(scores, hidden)
        places = seen.image.nonzero().flatten().tolist()
        count = max(1, int(ratio * len(places) + 0.5))
        hidden = hidden[None].clone()
        for query in range(scores.shape[1]):
            chooser = max(query, seen.prompt - 1)
            by_attention = sorted(places, key=lambda place: float(seen.attended[chooser, place]))
            hidden[:, query, by_attention[count:]] = True
        return softmax(scores, hidden)

    return oracle


@dataclass(frozen=True)
class sparse:  # called like the other oracles
    """VASparse: every decoded query sees a list of (key, value) per KV head, taken in turn.

    What a token looked at is known when the last layer has run, so a forward needs the looks of
    shorter ones: run one for each length.
    """

    keep: float
    every: int
    weight: float
    sink: float

    def attend(self, query, key, value, hidden, scaling, layer, last, seen):
        """`[H, Q, D]`, `[Hkv, Q, D]` float64 -> `[H, Q, D]`."""
        heads, queries, _ = query.shape
        groups, prompt = len(key), seen.prompt
        share = heads // groups
        places = seen.image.nonzero().flatten().tolist()
        output = query.new_zeros(heads, queries, value.shape[-1])
        drawn = []
        for h in range(heads):
            scores = query[h, :prompt] @ key[h // share, :prompt].T * scaling
            p = softmax(scores, hidden[:prompt, :prompt])
            output[h, :prompt] = p @ value[h // share, :prompt]
            drawn.append(p.sum(dim=0).tolist())
        kept = [[(key[g, k], value[g, k]) for k in range(prompt)] for g in range(groups)]
        looks = [[] for _ in range(groups)]  # of the answer's entries
        for q in range(prompt, queries):
            for g in range(groups):
                kept[g].append((key[g, q], value[g, q]))
            p_of = []
            for h in range(heads):
                keys, values = (torch.stack(x) for x in zip(*kept[h // share], strict=True))
                w = torch.tensor(drawn[h], dtype=torch.float64).softmax(dim=-1)
                factor = 1 + self.sink - self.sink * torch.cat([w, torch.zeros(1)])
                p = (keys @ query[h, q] * scaling * factor).softmax(dim=-1)
                output[h, q] = p @ values
                drawn[h] = [d + float(x) for d, x in zip([*drawn[h], 0.0], p, strict=True)]
                p_of.append(p)
            if layer == last:
                seen.looks[q] = sum(float(p[places].sum()) for p in p_of) / heads
            if q not in seen.looks:
                return output  # the latest query: what leaves after it changes nothing here
            for g in range(groups):
                looks[g].append(seen.looks[q])
            count = len(looks[0])
            stay = int(self.keep * count)
            if (q - prompt + 1) % self.every or count - stay < 2:
                continue
            for g in range(groups):
                mine = range(g * share, (g + 1) * share)
                s = sum(p_of[h][prompt:] for h in mine) / share
                p = torch.tensor(looks[g], dtype=torch.float64).softmax(dim=-1)
                delta = (s**2 + self.weight * p).tolist()
                gone = sorted(sorted(range(count), key=lambda i: -delta[i])[stay:])
                kept[g][prompt:] = merged_pairs(kept[g][prompt:], gone)
                looks[g] = merged(looks[g], gone)
                for h in mine:
                    drawn[h][prompt:] = merged(drawn[h][prompt:], gone)
        return output


def merged(entries, gone):
    """Without those in `gone`, their mean in the place of the first of them."""
    mean = sum(entries[i] for i in gone) / len(gone)
    kept = [(i, mean if i == gone[0] else entry) for i, entry in enumerate(entries)]
    return [entry for i, entry in kept if i == gone[0] or i not in gone]


def merged_pairs(pairs, gone):
    return list(zip(*(merged(list(part), gone) for part in zip(*pairs, strict=True)), strict=True))
