"""Every kind of image file becomes 8-bit RGB, upright, or a clear error."""

import ast
import base64
import contextlib
import os
import socket
import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from sightline import lab, open_image
from sightline.vision import images
from sightline.vision.images import FORMATS, to_bytes

PACKAGES = ("attention", "decoders", "demo", "engine", "evaluation", "lab", "logits", "vision")
RED, BLUE = (255, 0, 0), (0, 0, 255)


def noise(width=48, height=32):
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def encoded(image, format="PNG", **options):
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png_header(width, height):
    """A PNG file of that size with nothing in it."""

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_every_source_gives_the_same_new_image(tmp_path):
    image = noise()
    path = tmp_path / "noise.png"
    path.write_bytes(encoded(image))
    for source in (image, path, str(path), path.read_bytes(), bytearray(path.read_bytes())):
        opened = open_image(source)
        assert opened.mode == "RGB" and opened is not source
        assert opened.tobytes() == image.tobytes()
    with path.open("rb") as file:
        assert open_image(file).tobytes() == image.tobytes()
        assert not file.closed


def test_base64_and_data_urls_are_read():
    image = noise()
    text = base64.b64encode(encoded(image)).decode()
    lines = "\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    urlsafe = base64.urlsafe_b64encode(encoded(image)).decode()
    bare = text.rstrip("=")
    assert {"+", "/"} & set(text) and {"-", "_"} & set(urlsafe)
    for source in (text, lines + "\n", urlsafe, bare):
        assert open_image(source).tobytes() == image.tobytes()
    for head in ("data:image/png;base64,", "data:;base64,", "DATA:image/png;charset=x;base64,"):
        for body in (text, bare, quote(text)):
            assert open_image(head + body).tobytes() == image.tobytes()
    one = base64.b64encode(encoded(Image.new("L", (1, 1)))).decode()
    assert open_image(one).size == (1, 1)  # the smallest image there is


def test_a_file_is_preferred_to_base64(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "A" * 80
    (tmp_path / name).write_bytes(encoded(noise()))
    assert open_image(name).size == (48, 32)


LONG = base64.b64encode(b"no image" * 5000).decode()  # 67 kB


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("https://example.org/a.png", "is a URL, and nothing is fetched: download the image"),
        ("http://" + LONG, "is a URL, and nothing is fetched"),
        ("S3://bucket/a.png", "is a URL"),
        ("file:///a.png", "is a URL"),
        ("data:image/png," + LONG, "is a data URL without base64"),
        ("data:image/png;base64," + LONG, "the data URL is not an image that can be read"),
        ("data:image/png;base64,", "the data URL is not an image that can be read"),
        ("data:image/png;base64,????", "the data URL is not an image that can be read"),
        (LONG, "the text in base64 is not an image that can be read"),
        ("x." + LONG, "cannot be read"),
        ("a/" * 40000 + "b.png", "cannot be read"),
        ("a" * 40 + ".png", "a.png: no such file"),
    ],
)
def test_texts_that_are_no_image_are_refused_in_a_sentence(source, message, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("nothing is fetched"))
    with pytest.raises(ValueError, match=message) as caught:
        open_image(source)
    assert len(str(caught.value)) < 400


def test_a_pil_image_is_left_as_it_is():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.info["note"] = "mine"
    opened = open_image(image)
    opened.putpixel((0, 0), BLUE)
    assert image.mode == "RGBA" and image.getpixel((0, 0)) == (255, 0, 0, 0)
    assert image.info == opened.info == {"note": "mine"}


def test_truth_of_a_lab_image_stays_with_it():
    path = sorted(lab.IMAGES.glob("*.png"))[0]
    assert lab.truth(open_image(path)) == lab.truth(path) is not None


@pytest.mark.parametrize("big_endian", [False, True])
def test_sixteen_bits_are_scaled(big_endian):
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    image = Image.fromarray(values)
    if big_endian:
        image = Image.frombytes("I;16B", (4, 1), values.astype(">u2").tobytes())
    source = image if big_endian else encoded(image)
    opened = open_image(source)
    assert [opened.getpixel((x, 0)) for x in range(4)] == [(v,) * 3 for v in (0, 1, 128, 255)]


def test_sixteen_bits_with_a_transparent_grey():
    image = Image.fromarray(np.array([[0, 1000, 65535]], dtype=np.uint16))
    opened = open_image(encoded(image, transparency=1000))
    assert [opened.getpixel((x, 0))[0] for x in range(3)] == [0, 255, 255]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_deep_modes_of_a_file_are_scaled(mode):
    top = {"I": 65535, "F": 1.0}[mode]
    kind = {"I": np.int32, "F": np.float32}[mode]
    image = Image.fromarray(np.array([[0, top / 5, top]]).astype(kind))
    assert image.mode == mode
    opened = open_image(encoded(image, "TIFF"))
    assert [opened.getpixel((x, 0))[1] for x in range(3)] == [0, 51, 255]


@pytest.mark.parametrize(
    ("values", "levels"),
    [
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
        (np.array([[0.0, 100.4, 255.0]], np.float32), [0, 100, 255]),
        (np.array([[0, 10]], np.uint16), [0, 0]),
        (np.array([[-100, 0, 100]], np.int32), [0, 128, 255]),
        (np.array([[0, 2**30, 2**31 - 1]], np.int32), [0, 128, 255]),
        (np.array([[-3.0, -3.0]], np.float32), [0, 0]),
    ],
)
def test_the_range_that_values_are_scaled_from(values, levels):
    assert to_bytes(values).tolist() == [levels]


def test_values_that_are_no_numbers_are_refused():
    image = Image.fromarray(np.array([[0.0, np.nan]], np.float32))
    with pytest.raises(ValueError, match="not finite numbers"):
        open_image(image)


def test_cmyk_is_converted():
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    red, green, blue = open_image(encoded(cyan, "JPEG")).getpixel((8, 8))
    assert red < 60 and green > 120 and blue > 180


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGBA", (2, 2), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (2, 2), (255, 0, 0, 255)), RED),
        (Image.new("RGBA", (2, 2), (0, 0, 0, 51)), (204, 204, 204)),
        (Image.new("LA", (2, 2), (0, 0)), (255, 255, 255)),
        (Image.new("1", (2, 2), 1), (255, 255, 255)),
        (Image.new("L", (2, 2), 7), (7, 7, 7)),
    ],
)
def test_transparency_is_laid_on_white(image, expected):
    assert open_image(encoded(image)).getpixel((0, 0)) == expected


def test_palettes_with_and_without_a_transparent_colour():
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    assert open_image(encoded(image)).getpixel((1, 0)) == BLUE
    see_through = open_image(encoded(image, transparency=1))
    assert [see_through.getpixel((x, 0)) for x in range(2)] == [RED, (255, 255, 255)]


def test_a_transparent_colour_of_an_rgb_file():
    opened = open_image(encoded(Image.new("RGB", (2, 2), RED), transparency=RED))
    assert opened.getpixel((0, 0)) == (255, 255, 255)


def orientations():
    """Ways for a file to say "turn me clockwise": format, and the options that save it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    note = '<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", note)
    yield "JPEG", {"exif": exif, "quality": 95}
    yield "JPEG", {"xmp": note.encode(), "quality": 95}
    yield "PNG", {"exif": exif}
    yield "PNG", {"pnginfo": text}


@pytest.mark.parametrize(("format", "options"), list(orientations()))
def test_a_rotated_photograph_is_turned_once(format, options):
    image = Image.new("RGB", (64, 32), BLUE)
    image.paste(RED, (0, 0, 16, 16))
    opened = open_image(encoded(image, format, **options))
    assert opened.size == (32, 64)
    red, _, blue = opened.getpixel((27, 4))  # the top left corner, turned clockwise
    assert red > 200 and blue < 60
    assert opened.getpixel((4, 4))[2] > 200
    assert open_image(opened).tobytes() == opened.tobytes()


def test_of_a_cameras_several_images_the_photograph_counts():
    photograph, preview = Image.new("RGB", (48, 32), BLUE), Image.new("RGB", (48, 32), RED)
    data = encoded(photograph, "MPO", save_all=True, append_images=[preview])
    assert Image.open(BytesIO(data)).n_frames == 2
    red, _, blue = open_image(data).getpixel((24, 16))
    assert red < 10 and blue > 245


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_frames_are_refused(format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=r"holds several frames or pages.*pass one of them"):
        open_image(data)
    one = Image.open(BytesIO(data))
    one.seek(1)
    assert open_image(one.copy()).getpixel((0, 0))[2] > 200


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "TIFF", "BMP"])
def test_truncated_files_are_refused(format, tmp_path):
    path = tmp_path / "half"
    data = encoded(noise(), format)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"half (is damaged|is not an image)"):
        open_image(path)


@pytest.mark.parametrize("data", [b"", b"just words", encoded(noise())[:10]])
def test_what_is_no_image_is_refused(data, tmp_path):
    path = tmp_path / "notes.png"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"notes\.png is not an image.*pass a PNG, JPEG"):
        open_image(path)


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"none\.png: no such file"):
        open_image(tmp_path / "none.png")
    with pytest.raises(ValueError, match="is a folder: pass one image in it"):
        open_image(tmp_path)


# A pipe or device would be waited for: these run in a process of their own, with a limit


def special_files(folder):
    """Things with a path that are no regular file, each with what it is called."""
    os.mkfifo(folder / "pipe.png")
    yield folder / "pipe.png", "is a pipe"
    (folder / "link.png").symlink_to("pipe.png")
    yield folder / "link.png", "is a pipe"
    with socket.socket(socket.AF_UNIX) as server:
        with contextlib.chdir(folder):  # the path of a socket is short
            server.bind("socket.png")
        yield folder / "socket.png", "is a socket"
    (folder / "folder.png").mkdir()
    yield folder / "folder.png", "is a folder"
    for device in ("/dev/zero", "/dev/null", "/dev/tty"):
        yield Path(device), "is a device"


OPEN = """
import sys
from pathlib import Path
from sightline import lab, open_image

for path in map(Path, sys.argv[1:]):
    for read in (open_image, lambda path: open_image(str(path)), lab.truth):
        try:
            read(path)
        except ValueError as error:
            print(error)
"""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with a name")
def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    for path, said in special_files(tmp_path):
        found = subprocess.run(
            [sys.executable, "-c", OPEN, str(path)], capture_output=True, text=True, timeout=60
        )
        assert found.stdout.splitlines() == [found.stdout.splitlines()[0]] * 3, found.stderr
        assert found.stdout.startswith(f"{path} {said}: pass ")


@pytest.mark.parametrize("path", ["a\0b.png", "\ud800.png", "x" * 300 + ".png"])
def test_paths_that_no_file_can_have_are_refused(path):
    with pytest.raises(ValueError, match=r"cannot be read|no such file"):
        open_image(path)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n%%EOF\n"


def test_only_listed_formats_are_opened(tmp_path, monkeypatch):
    """By path, bytes or file; postscript would be run by another program."""
    Image.init()
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program is run"))
    others = {"EPS": EPS}
    for format in {*Image.SAVE} - {*FORMATS, "MPO", "PDF", "EPS"}:
        with contextlib.suppress(Exception):  # of formats that cannot hold this image
            others[format] = encoded(noise(32, 32), format)
    assert len(others) > 5 and {"ICO", "TGA"} <= {*others}
    for format, data in others.items():
        path = tmp_path / f"{format}.png"
        path.write_bytes(data)
        with path.open("rb") as file:
            for source in (path, data, file):
                with pytest.raises(ValueError, match="is not an image that can be read"):
                    open_image(source)
        with contextlib.suppress(UnidentifiedImageError), Image.open(path) as opened:
            if opened.format not in FORMATS:
                with pytest.raises(ValueError, match=f"of the format {opened.format}, which is"):
                    open_image(opened)
    assert Image.open(BytesIO(EPS)).format == "EPS"
    for format in FORMATS:
        assert open_image(encoded(noise(), format)).size == (48, 32)


def test_images_are_opened_by_one_list_of_formats():
    """Where the package opens a file itself, it says which formats may be in it."""
    root = Path(images.__file__).parents[1]
    files = [*root.glob("*.py"), *(f for p in PACKAGES for f in (root / p).glob("**/*.py"))]
    calls = [
        (file.name, {keyword.arg for keyword in node.keywords})
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Image.open"
    ]
    assert {name for name, _ in calls} >= {"images.py", "decoding.py"}
    assert [name for name, given in calls if "formats" not in given] == []


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(*parts, cut=0):
    """A PNG file with a chunk after its header; `cut` bytes are missing from the chunk."""
    data = encoded(noise())
    made = chunk(*parts)
    return data[:33] + made[: len(made) - cut] + data[33:]


BOMB = zlib.compress(bytes(70 * 2**20))
BROKEN = {
    "text bomb": with_chunk(b"zTXt", b"note\0\0" + BOMB),
    "international text bomb": with_chunk(b"iTXt", b"note\0\1\0\0\0" + BOMB),
    "profile bomb": with_chunk(b"iCCP", b"name\0\0" + BOMB),
    "many texts": with_chunk(b"tEXt", b"a\0" + b"b" * (65 * 2**20)),
    "cut chunk": with_chunk(b"tEXt", b"note\0words", cut=6),
    "short header": encoded(noise())[:8] + chunk(b"IHDR", b"123") + encoded(noise())[33:],
    "short palette": with_chunk(b"PLTE", b"1") + b"x",
    "short size": with_chunk(b"pHYs", b"1"),
    "short colours": with_chunk(b"cHRM", b"123"),
    "short exif": with_chunk(b"eXIf", b"MM"),
    "animation": with_chunk(b"acTL", b"1"),
    "wrong checksum": encoded(noise())[:29] + b"abcd" + encoded(noise())[33:],
    "broken pixels": png_header(48, 32),
    "jpeg": encoded(noise(), "JPEG")[:20] + b"\xff\xc4\x00\x03" + encoded(noise(), "JPEG")[20:],
    "tiff": encoded(noise(), "TIFF")[:4] + b"\xff\xff\xff\x7f",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_broken_and_swollen_chunks_are_refused_with_the_files_name(data, tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(data)
    with contextlib.suppress(ValueError):
        assert open_image(path).size == (48, 32)  # of chunks that Pillow can do without
        return
    with pytest.raises(
        ValueError, match=r"broken\.png (cannot be read|is damaged|is not an image)"
    ):
        open_image(path)


def test_bombs_are_refused_with_the_files_name(tmp_path):
    for name in ("text bomb", "international text bomb", "profile bomb", "many texts"):
        path = tmp_path / "bomb.png"
        path.write_bytes(BROKEN[name])
        with pytest.raises(ValueError, match=r"bomb\.png (cannot be read|is damaged).*"):
            open_image(path)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_bytes_open_or_are_refused(seed, tmp_path):
    random, path = np.random.default_rng(seed), tmp_path / "damaged"
    for format in FORMATS:
        whole = np.frombuffer(encoded(noise(), format), np.uint8)
        for _ in range(25):
            data = whole.copy()
            data[random.integers(0, min(200, len(data)), 3)] = random.integers(0, 256, 3)
            path.write_bytes(data.tobytes())
            try:
                open_image(path)
            except ValueError as error:
                assert "damaged" in str(error)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(10_001, 10_000), (20_000, 20_000), (60_000, 60_000)])
def test_images_over_a_hundred_megapixels_are_refused_by_their_header(size):
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ValueError, match=r"100 megapixels|has 100 megapixels, and at most 100"):
        open_image(png_header(*size))
    assert before == Image.MAX_IMAGE_PIXELS


def test_the_limit_itself_is_allowed():
    assert open_image(Image.new("RGB", (10, 10)), max_pixels=100).size == (10, 10)
    with pytest.raises(ValueError, match="megapixels"):
        open_image(Image.new("RGB", (10, 11)), max_pixels=100)


def test_images_without_pixels_are_refused():
    with pytest.raises(ValueError, match="is empty: 0 x 5 pixels"):
        open_image(Image.new("RGB", (0, 5)))


def test_modes_without_a_way_to_rgb_are_refused():
    with pytest.raises(ValueError, match=r"conversion from La to L.*save it again"):
        open_image(Image.new("La", (4, 4)))


@pytest.mark.parametrize("source", [None, 3, np.zeros((4, 4, 3), np.uint8)])
def test_other_things_are_refused(source):
    with pytest.raises(TypeError, match="an image is a path, bytes, a file"):
        open_image(source)


def test_a_file_in_text_mode_is_refused(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(noise()))
    with path.open(encoding="latin-1") as file, pytest.raises(TypeError, match="in binary mode"):
        open_image(file)
