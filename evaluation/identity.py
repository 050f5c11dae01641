"""Tells one model from another: all that its answers follow from, as it is in memory.

Files are not read again: a checkpoint of any format, one that was loaded otherwise (adapters,
quantization) and a model that was made in memory are told apart alike. Paths are left out, so that
runs of two machines can be compared.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sightline.compat import attention_name
from sightline.model_protocol import Model

SAMPLES = 64  # numbers of each tensor that are read one by one
CHUNK = 2**24  # numbers that are added up at a time
LEFT_OUT = ("name_or_path", "transformers_version")
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8)


def identity(model: Model, processor: Any) -> dict[str, Any]:
    """Plain values by name; two of them differ where the answers could."""
    tokenizer = processor.tokenizer
    templates = [getattr(part, "chat_template", None) for part in (processor, tokenizer)]
    revision = getattr(model.config, "_commit_hash", None)
    return {
        **({"revision": revision} if revision else {}),
        "weights": weights(model),
        "config": {"class": type(model).__name__, **plain(model.config.to_diff_dict())},
        "generation_config": plain(model.generation_config.to_diff_dict()),
        "attention": attention(model.config),
        "processor": {"class": type(processor).__name__, **plain(processor.to_dict())},
        "tokenizer": tokens(tokenizer),
        "chat_template": digest([json.dumps(templates).encode()]),
    }


def digest(parts: Iterable[bytes]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of all parts."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:16]


def plain(value: Any) -> Any:
    """A config's value as JSON has it, without paths, versions and what is private."""
    if isinstance(value, Mapping):
        kept = {str(k): v for k, v in value.items() if k not in LEFT_OUT}
        return {k: plain(v) for k, v in sorted(kept.items()) if not k.startswith("_")}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value) if isinstance(value, torch.dtype) else type(value).__name__


def attention(config: Any) -> dict[str, Any]:
    """The implementation that each part of a model uses, by the name of its config."""
    found = {"model": attention_name(config)}
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if part is not None:
            found[name] = attention_name(part)
    return found


def tokens(tokenizer: Any) -> dict[str, Any]:
    """What a tokenizer makes of texts; padding and truncation, which calls set, are left out."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules = dict(sorted(tokenizer.get_vocab().items()))
    else:
        rules = json.loads(backend.to_str())
        rules = {
            name: part for name, part in rules.items() if name not in ("padding", "truncation")
        }
    return {
        "class": type(tokenizer).__name__,
        "rules": digest([json.dumps(rules).encode()]),
        "special_tokens": plain(tokenizer.special_tokens_map),
    }


@torch.no_grad()
def weights(model: Model) -> str:
    """A hash of all tensors' names, shapes and dtypes, of a sum of their bits, and of samples.

    The sum reads every number once, at the speed of memory, and no number can change without it.
    Weights that are offloaded are known by their shapes alone.
    """
    return digest(part for name, value in model.state_dict().items() for part in facts(name, value))


def facts(name: str, value: Any) -> Iterable[bytes]:
    """Of one entry of a model's state."""
    if not isinstance(value, Tensor):
        yield f"{name} {type(value).__name__}\n".encode()
        return
    yield f"{name} {list(value.shape)} {value.dtype}\n".encode()
    if hasattr(value, "__tensor_flatten__"):  # quantized: made of other tensors
        for part in value.__tensor_flatten__()[0]:
            yield from facts(part, getattr(value, part))
    elif not value.is_meta and value.numel():
        bits = as_integers(value)
        places = torch.linspace(0, len(bits) - 1, min(SAMPLES, len(bits)), dtype=torch.float64)
        sums = torch.stack([part.sum(dtype=torch.int64) for part in bits.split(CHUNK)])
        yield sums.cpu().numpy().tobytes()
        yield bits[places.long().to(bits.device)].cpu().numpy().tobytes()


def as_integers(value: Tensor) -> Tensor:
    """The same bits as whole numbers `[N]`, as wide as fits."""
    flat = value.detach().as_subclass(Tensor).contiguous().flatten().view(torch.uint8)
    for kind in INTEGERS:
        if all(int(n) % kind.itemsize == 0 for n in (flat.numel(), flat.storage_offset())):
            return flat.view(kind)
    raise AssertionError("every tensor is a whole number of bytes")
