"""Small tokenizers of the kinds that real checkpoints have, with their special tokens by name."""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from sightline.lab.dialogue import world_text

WORDS = 400  # tokens learned, besides bytes
# Text after which newlines are one token with what stands before them, as in large vocabularies.
CORPUS = [
    *world_text(),
    *["\n", "\n\n", "a\n\n\nb", "it.\n", "it?\n", "it.\n\n", ":\n", ">\n", "1 20 300"] * 20,
    *["user", "assistant", "system", "model", "User: ", "Assistant: ", "USER: ", "ASSISTANT: "] * 5,
    "You are a helpful assistant. Today is 26 Jul 2024.",
]
# Newlines go with spaces or signs before them, and one space with a word after it.
SPLIT = Regex(r"\s*\n+| ?\p{L}+| ?[^\s\p{L}\p{N}]+\n*|\p{N}|\s")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


def byte_level(
    first: Sequence[str] = (),
    last: Sequence[str] = (),
    bos: str | None = None,
    eos: str | None = None,
    pad: str | None = None,
    unk: str | None = None,
    adds_bos: bool = False,
    **settings: Any,
) -> PreTrainedTokenizerFast:
    """Of bytes, as Qwen's, Llama 3's and Mistral's from Nemo on.

    Args:
        first, last: Special tokens by id, before and after all others.
        bos, eos, pad, unk: Which of them are what.
        adds_bos: Whether a text begins with `bos` unless told otherwise.
        settings: Of the tokenizer's class.
    """
    vocabulary, merges = _learned("bytes")
    numbers = {token: number for number, token in enumerate([*first, *vocabulary, *last])}
    tokenizer = Tokenizer(models.BPE(numbers, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _bytes_of_words()
    tokenizer.decoder = decoders.ByteLevel()
    special = [*first, *last]
    return _wrapped(tokenizer, special, bos, eos, pad, unk, adds_bos, settings)


def pieces(
    first: Sequence[str] = (),
    last: Sequence[str] = (),
    bos: str | None = None,
    eos: str | None = None,
    pad: str | None = None,
    unk: str | None = None,
    adds_bos: bool = True,
    newlines: bool = True,
    leading_space: bool = False,
    **settings: Any,
) -> PreTrainedTokenizerFast:
    """Of SentencePiece's kind, "▁" for a space and bytes for what is unknown; as `byte_level`.

    Args:
        newlines: Whether runs of them are tokens, as in Gemma's; else bytes, as in Llama's.
        leading_space: Whether a text begins with a space of its own, as in Llama's.
    """
    vocabulary, merges = _learned("newlines" if newlines else "pieces")
    numbers = [*first, *BYTES, *vocabulary, *last]
    tokenizer = Tokenizer(
        models.BPE(
            {token: number for number, token in enumerate(numbers)},
            merges,
            unk_token=unk,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    shown = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if leading_space:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        shown.append(decoders.Strip(" ", left=1))
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(shown)
    special = [*first, *last]
    return _wrapped(tokenizer, special, bos, eos, pad, unk, adds_bos, settings)


def _wrapped(tokenizer, special, bos, eos, pad, unk, adds_bos, settings):
    if adds_bos:
        single = f"{bos} $A"
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=f"{single} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    tokenizer.add_special_tokens(special)
    named = {"bos_token": bos, "eos_token": eos, "pad_token": pad, "unk_token": unk}
    settings.setdefault("extra_special_tokens", [t for t in special if t not in named.values()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
        **{name: token for name, token in named.items() if token is not None},
        **settings,
    )


def _bytes_of_words() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(SPLIT, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


@cache
def _learned(kind: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens by id, and what they are merged of."""
    tokenizer = Tokenizer(models.BPE())
    alphabet: list[str] = []
    if kind == "bytes":
        tokenizer.pre_tokenizer = _bytes_of_words()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    else:
        newline = r"\n+|" if kind == "newlines" else ""
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        words = Regex(newline + r"▁?[^▁\n]+|▁+")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(words, "removed", invert=True)
        alphabet = ["▁", *(chr(code) for code in range(33, 127))]
    trainer = BpeTrainer(
        vocab_size=WORDS + len(alphabet), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [tuple(m) for m in model["merges"]]
