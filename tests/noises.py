"""The draw of noise for an image, written out from its definition."""

import struct
from hashlib import blake2b

import torch


def own_noise(shape, seed, pixels, equal=0):
    """Standard normal `shape`, seeded by the hash of seed, count of equals and bfloat16 pixels.

    A bfloat16 number is the upper half of the float32 that it equals.
    """
    rounded = pixels.bfloat16().float().flatten().tolist()
    halves = b"".join(struct.pack("<f", value)[2:] for value in rounded)
    digest = blake2b(f"{seed} {equal} ".encode() + halves, digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
    return torch.randn(shape, generator=generator)
