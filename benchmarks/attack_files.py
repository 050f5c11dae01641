"""Image files of all kinds, sound and hostile, made here: what visitors may send."""

import random
import struct
import zlib
from collections.abc import Iterator
from functools import cache
from io import BytesIO

from PIL import Image

KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
OTHERS = ("EPS", "PDF", "ICO", "PCX", "TGA", "SGI", "DDS", "IM", "MSP", "ICNS")
"""Kinds that Pillow can write and a page does not open."""


@cache
def noise(width: int = 96, height: int = 64) -> Image.Image:
    return Image.merge("RGB", [Image.effect_noise((width, height), 80 + i) for i in range(3)])


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = BytesIO()
    image.convert("1" if kind == "MSP" else image.mode).save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + check


def png(width: int, height: int, *chunks: bytes, rows: bytes = b"") -> bytes:
    """A PNG by hand: 8-bit grey of any size that it says, with any chunks."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + body + chunk(b"IEND", b"")


def tiff(pages: int = 1, height: int = 1, strips: int = 1, loops: bool = False) -> bytes:
    """A TIFF by hand: grey, one pixel wide, with any number of pages and strips."""
    out = bytearray(b"II*\0" + struct.pack("<I", 8 + 8 * strips))
    out += struct.pack("<I", 8) * strips + struct.pack("<I", 1) * strips
    where = (8, 8 + 4 * strips) if strips > 1 else (8, 1)
    entries = (
        (256, 1, 1),
        (257, 1, height),
        (258, 1, 8),
        (259, 1, 1),
        (262, 1, 1),
        (273, strips, where[0]),
        (277, 1, 1),
        (278, 1, 1),
        (279, strips, where[1]),
    )
    first = len(out)
    for page in range(pages):
        after = len(out) + 2 + 12 * len(entries) + 4
        out += struct.pack("<H", len(entries))
        for tag, count, value in entries:
            out += struct.pack("<HHII", tag, 4, count, value)
        out += struct.pack("<I", after if page < pages - 1 else first if loops else 0)
    return bytes(out)


def frames(kind: str, count: int) -> bytes:
    images = [Image.new("P" if kind == "GIF" else "RGB", (16, 16), i) for i in range(count)]
    return encoded(images[0], kind, save_all=True, append_images=images[1:])


def flat(mode: str, side: int, kind: str = "PNG", **options: object) -> bytes:
    """A large image of one colour: small as a file, large in memory."""
    return encoded(Image.new(mode, (side, side)), kind, **options)


def sound() -> Iterator[tuple[str, bytes]]:
    """Files that are images."""
    for kind in KINDS:
        yield f"{kind} of noise", encoded(noise(), kind)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"):
        yield f"PNG in {mode}", encoded(Image.new(mode, (40, 30)), "PNG")
    for mode in ("L", "RGB", "CMYK"):
        yield f"JPEG in {mode}", encoded(Image.new(mode, (40, 30)), "JPEG")
    for mode in ("1", "L", "LAB", "F", "CMYK", "RGBA"):
        yield f"TIFF in {mode}", encoded(Image.new(mode, (40, 30)), "TIFF")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[274] = orientation
        yield f"JPEG turned as {orientation}", encoded(noise(), "JPEG", exif=exif)
    for size in ((1, 1), (1, 3000), (3000, 1), (2500, 1800)):
        yield f"PNG of {size}", encoded(Image.new("RGB", size), "PNG")
    for compression in ("tiff_lzw", "packbits", "tiff_deflate", "jpeg"):
        yield f"TIFF by {compression}", encoded(noise(), "TIFF", compression=compression)


def hostile(short: bool) -> Iterator[tuple[str, bytes]]:
    """Files that are none, or that cost more than they should."""
    yield "nothing", b""
    yield "text", b"this is no image"
    yield "zeros", b"\0" * 100_000
    yield "HTML", b"<html><script>alert(1)</script></html>"
    yield "SVG", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://x/y"/></svg>'
    yield "PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n"
    for kind in OTHERS:
        image = noise(64, 64).convert("L") if kind == "SGI" else noise(64, 64)
        yield f"{kind} named .png", encoded(image, kind)
    for kind in KINDS:
        whole = encoded(noise(), kind)
        for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
            yield f"{kind} cut at {share}", whole[: int(share * len(whole))]
        for seed in range(2 if short else 10):
            yield f"{kind} with bytes changed ({seed})", changed(whole, seed)
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        yield f"{kind} of 2 frames", frames(kind, 2)
    yield "GIF of 300 frames", frames("GIF", 300)
    yield "TIFF of 50,000 pages", tiff(50_000)
    yield "TIFF whose pages go round", tiff(3, loops=True)
    yield "TIFF of many strips", tiff(height=500_000, strips=500_000)
    yield "PNG that says 60,000 x 60,000", png(60_000, 60_000)
    yield "PNG that says 2^31 - 1 wide", png(2**31 - 1, 1)
    yield "PNG that says 0 x 0", png(0, 0)
    yield "PNG with too few rows", png(6000, 6000, rows=b"\0" * 5)
    bomb = b"a\0\0" + zlib.compress(b" " * 200_000_000)
    yield "PNG with a text of 200 MB", png(9, 9, chunk(b"zTXt", bomb), rows=b"\0" * 90)
    yield "PNG with a profile of 200 MB", png(9, 9, chunk(b"iCCP", bomb), rows=b"\0" * 90)
    many = chunk(b"tEXt", b"a\0b") * 50_000
    yield "PNG with 50,000 texts", png(9, 9, many, rows=b"\0" * 90)
    nested = b"sightline\0" + b"[" * 100_000
    yield "PNG with nested objects", png(9, 9, chunk(b"tEXt", nested), rows=b"\0" * 90)
    yield "PNG of 100 megapixels", flat("1", 10_000)
    if not short:
        yield "PNG of 49 megapixels", flat("RGB", 7000)
        yield "PNG of 49 megapixels with alpha", flat("RGBA", 7000)
        yield "PNG of 49 megapixels in 16 bits", flat("I;16", 7000)
        yield "TIFF of 49 megapixels in F", flat("F", 7000, "TIFF", compression="tiff_deflate")
        yield "WebP of 49 megapixels", flat("RGBA", 7000, "WEBP")
        yield "GIF of 49 megapixels", flat("P", 7000, "GIF")
        yield "JPEG of 49 megapixels", flat("CMYK", 7000, "JPEG")
        yield "TIFF of millions of strips", tiff(height=3_700_000, strips=3_700_000)


def changed(whole: bytes, seed: int) -> bytes:
    """A file with a hundredth of its bytes changed."""
    chance = random.Random(seed)
    broken = bytearray(whole)
    for _ in range(max(1, len(whole) // 100)):
        broken[chance.randrange(len(broken))] = chance.randrange(256)
    return bytes(broken)
