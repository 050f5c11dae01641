"""Files of visitors: decoded in a process of their own, one after the other, within bounds."""

import asyncio
import base64
import json
import struct
import sys
import time
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sightline.demo import decoding, uploads
from sightline.demo.comparison import Answer, Comparison, SourceImage
from sightline.demo.decoding import Bounds, Decoded, decode, kept_size, open_scaled
from sightline.demo.saved import from_decoded, to_json
from sightline.demo.script import to_python
from sightline.demo.uploads import Uploads
from sightline.lab import IMAGES, truth
from sightline.specs import parse_spec
from sightline.vision.images import open_image

BOUNDS = Bounds(50_000_000, 128)


def encoded(image, format="PNG", **options):
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def tiff(pages=1, width=1, height=1, strips=1):
    """A TIFF written by hand: little-endian, grey, uncompressed, every strip of one byte."""
    out = bytearray(b"II*\0" + struct.pack("<I", 8 + 8 * strips))
    offsets = struct.pack("<I", 8) * strips
    counts = struct.pack("<I", 1) * strips
    out += offsets + counts
    where = (8, 8 + 4 * strips) if strips > 1 else (8, 1)
    entries = (
        (256, 1, width), (257, 1, height), (258, 1, 8), (259, 1, 1), (262, 1, 1),
        (273, strips, where[0]), (277, 1, 1), (278, 1, 1), (279, strips, where[1]),
    )  # fmt: skip
    for page in range(pages):
        after = len(out) + 2 + 12 * len(entries) + 4
        out += struct.pack("<H", len(entries))
        for tag, count, value in entries:
            out += struct.pack("<HHII", tag, 4, count, value)
        out += struct.pack("<I", after if page < pages - 1 else 0)
    return bytes(out)


# Decoding


def test_an_image_comes_back_as_it_is_or_smaller():
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    small = decode(encoded(Image.fromarray(noise)), "image", BOUNDS)
    assert small.original is None and np.array_equal(np.asarray(small.image), noise)
    large = Image.fromarray(noise).resize((1800, 1600))
    found = decode(encoded(large), "image", BOUNDS)
    assert found.original == (1800, 1600) and found.image.size == (640, 569)
    assert found.image.tobytes() == large.resize((640, 569)).tobytes()
    shipped = decode((IMAGES / "yard.png").read_bytes(), "image", BOUNDS)
    assert truth(shipped.image) == truth(IMAGES / "yard.png") is not None


@pytest.mark.parametrize(
    ("size", "side", "kept"),
    [
        ((600, 500), 128, (600, 500)),
        ((7000, 7000), 128, (640, 640)),
        ((4000, 3000), 128, (640, 480)),
        ((7000, 7000), 1000, (1000, 1000)),
        ((6000, 3000), 1000, (2000, 1000)),
        ((50_000, 1000), 128, (4525, 91)),  # sqrt(50 * 640^2) = 4525.5
        ((50_000, 1000), 1000, (14_142, 283)),  # sqrt(50 * 4 * 1000^2) = 14142.1
        ((1, 50_000_000), 128, (1, 640**2)),
    ],
)
def test_images_are_kept_as_large_as_the_model_or_the_page_needs(size, side, kept):
    bounds = Bounds(50_000_000, side)
    assert kept_size(size, bounds) == kept
    assert kept[0] * kept[1] <= bounds.kept_pixels * 1.01


def test_whether_there_is_a_second_page_is_all_that_is_asked():
    few, many = tiff(pages=2), tiff(pages=50_000)
    assert len(many) > 5_000_000
    start = time.process_time()
    for data in (few, many):
        with pytest.raises(ValueError, match="holds several frames or pages"):
            open_image(data)
    assert time.process_time() - start < 1.0  # counting them takes tens of seconds
    assert open_image(tiff()).size == (1, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not bound a process so")
def test_a_file_that_needs_too_much_memory_is_refused():
    data = encoded(Image.new("RGB", (7000, 7000)))
    with pytest.raises(ValueError, match="the image needs too much memory"):
        decode(data, "image", Bounds(50_000_000, 128, bytes=250_000_000))


def test_a_file_that_takes_too_long_is_refused():
    data = tiff(height=500_000, strips=500_000)  # each of which Pillow reads by itself
    start = time.monotonic()
    with pytest.raises(ValueError, match="the image takes too long to open"):
        decode(data, "image", Bounds(50_000_000, 128, 1.0))
    assert time.monotonic() - start < 5.0


WRONG = {
    "nothing": (b"", "not an image"),
    "text": (b"this is no image", "not an image"),
    "EPS": (encoded(Image.new("RGB", (8, 8)), "EPS"), "not an image"),
    "PDF": (encoded(Image.new("RGB", (8, 8)), "PDF"), "not an image"),
    "ICO": (encoded(Image.new("RGB", (16, 16)), "ICO"), "not an image"),
    "cut": (encoded(Image.effect_noise((64, 64), 90), "PNG")[:900], "damaged"),
    "large": (encoded(Image.new("1", (10_000, 10_000))), "100 megapixels, and at most 50"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_image_is_refused_in_words(name):
    data, message = WRONG[name]
    with pytest.raises(ValueError, match=message) as refused:
        decode(data, "image", BOUNDS)
    assert str(refused.value).startswith("the image")


def test_a_process_that_dies_is_a_sentence(monkeypatch, caplog):
    monkeypatch.setattr(decoding.sys, "executable", "/bin/false")
    with pytest.raises(ValueError, match="the image cannot be read"):
        decode(b"", "image", BOUNDS)
    assert "could not be decoded" in caplog.text


def a_comparison(image):
    return Comparison(SourceImage(image, "file:a.png"), "why", (parse_spec("greedy"),))


def test_a_comparison_comes_back_without_its_image_in_the_text():
    text = to_json(a_comparison(Image.new("RGB", (1600, 1600), "red")), (Answer(),), "m").encode()
    found = decode(text, "comparison", BOUNDS)
    assert found.image.size == (640, 640) and len(found.document) < 1000
    image = from_decoded(found).comparison.image
    assert image.image.getpixel((9, 9)) == (255, 0, 0) and image.original == (1600, 1600)
    again = from_decoded(decode(to_json(a_comparison(image.image), (Answer(),), "m").encode(),
                                "comparison", BOUNDS))  # fmt: skip
    assert again.comparison.image.original is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" * 50 + "]" * 50, "nested 12 deep"),
        ("[" + "[]," * 300_000 + "[]]", "at most 250,000 entries"),
        (json.dumps({"image": {"png": base64.b64encode(b"x").decode()}}), "no PNG image"),
        ("{", "cannot be read as such"),
        ("\udcff", "cannot be read as such"),
    ],
)
def test_comparisons_that_would_hold_the_server_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        decode(text.encode(errors="surrogateescape"), "comparison", BOUNDS)


def test_a_script_scales_its_image_as_the_page_did():
    noise = np.random.default_rng(0).integers(0, 256, (1600, 1600, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise))
    found = open_scaled(data, BOUNDS)
    image = SourceImage(found.image, "file:a.png", None, found.original)
    script = to_python(Comparison(image, "why", (parse_spec("greedy"),)), "m")
    assert "open_image(IMAGE).resize((640, 640))" in script
    assert open_image(data).resize((640, 640)).tobytes() == image.image.tobytes()


# Arrival


def post(taken, kind="image", client="192.0.2.1", data=b"x", content=uploads.BINARY):
    async def body():
        return data

    request = SimpleNamespace(
        query_params={"kind": kind},
        headers={"content-type": content},
        client=SimpleNamespace(host=client),
        body=body,
    )
    return taken.receive(request)


def token_of(reply):
    return json.loads(reply.body)["token"]


def test_a_file_waits_for_its_event_and_is_given_once():
    found = Decoded(Image.new("RGB", (8, 8)))
    taken = Uploads(BOUNDS, lambda data, kind, bounds: found)
    token = token_of(asyncio.run(post(taken)))
    sent = {"name": "C:\\photos\\a/b.png", "size": 3, "token": token}
    with pytest.raises(ValueError, match=r"b\.png did not arrive"):
        taken.read_comparison({**sent, "token": "other"})
    upload = taken.read_image(sent)
    assert (upload.name, upload.found) == ("b.png", found)
    with pytest.raises(ValueError, match=r"b\.png did not arrive"):
        taken.read_image(sent)


def test_a_refused_file_is_called_by_its_name():
    def refuse(*_):
        raise ValueError("the image is not an image")

    taken = Uploads(BOUNDS, refuse)
    token = token_of(asyncio.run(post(taken)))
    with pytest.raises(ValueError, match=r"^a\.png is not an image"):
        taken.read_image({"name": "a.png", "token": token})


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (None, "no file arrived"),
        ({}, "no file arrived"),
        ({"name": 3}, "no file arrived"),
        ({"name": "a.png"}, "a.png did not arrive"),
        ({"name": "a.png", "token": ["x"]}, "a.png did not arrive"),
        ({"name": "a.png", "size": 0}, "a.png is empty"),
        ({"name": "a.png", "size": 31_000_000}, "a.png has more than 30 MB"),
        ({"name": "a.png", "size": 9, "status": 503}, "try again in a minute"),
    ],
)
def test_files_that_did_not_arrive_are_refused(sent, message):
    with pytest.raises(ValueError, match=message):
        Uploads(BOUNDS).read_image(sent)
    large = {"name": "a.json", "size": 61_000_000}
    with pytest.raises(ValueError, match=r"a\.json has more than 60 MB"):
        Uploads(BOUNDS).read_comparison(large)


def test_one_file_is_decoded_at_a_time_and_clients_take_turns():
    running, order = [], []

    def decoder(data, kind, bounds):
        assert not running
        running.append(data)
        time.sleep(0.02)
        order.append(running.pop().decode())
        return Decoded(None)

    async def go():
        taken = Uploads(BOUNDS, decoder)
        many = [post(taken, client="x", data=f"x{i}".encode()) for i in range(6)]
        await asyncio.gather(*many, post(taken, client="y", data=b"y0"))
        assert not taken._turns._line and not taken._turns._taken

    asyncio.run(go())
    assert sorted(order) == ["x0", "x1", "x2", "x3", "x4", "x5", "y0"]
    assert order.index("y0") <= 1


def test_too_many_files_at_once_are_told_to_wait(monkeypatch):
    """The client with most of them loses those that came last."""
    monkeypatch.setattr(uploads, "MOST_WAITING", 2)

    async def go():
        taken = Uploads(BOUNDS, lambda *_: time.sleep(0.05) or Decoded(None))
        replies = await asyncio.gather(*[post(taken) for _ in range(5)], post(taken, client="y"))
        return [reply.status_code for reply in replies]

    assert asyncio.run(go()) == [200, 200, 503, 503, 503, 200]  # one is opened, two wait


def test_files_whose_events_never_come_are_bounded(monkeypatch):
    image = Image.new("RGB", (100, 100))
    monkeypatch.setattr(uploads, "BYTES", 5 * 40_000)
    bounds = SimpleNamespace(kept_bytes=0)
    taken = Uploads(bounds, lambda *_: Decoded(image))
    for client in range(9):
        last = token_of(asyncio.run(post(taken, client=str(client))))
    assert len(taken._arrived) == 5
    monkeypatch.setattr(uploads, "SECONDS", -1.0)
    taken.forget()
    assert len(taken._arrived) == 0 and last


def test_other_kinds_and_what_a_foreign_page_can_send_are_not_taken():
    assert asyncio.run(post(Uploads(BOUNDS), kind="program")).status_code == 400
    for content in (None, "text/plain", "multipart/form-data", "application/x-www-form-urlencoded"):
        assert asyncio.run(post(Uploads(BOUNDS), content=content)).status_code == 415
