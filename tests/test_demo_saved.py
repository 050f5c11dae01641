"""Comparisons as JSON: what is saved comes back, and nothing else gets in."""

import base64
import importlib.metadata
import json
import struct
import subprocess
import sys
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sightline.demo.comparison import Answer, Comparison, SamplingSettings, SourceImage
from sightline.demo.saved import from_json, to_json
from sightline.specs import parse_spec

PIXELS = np.random.default_rng(5).integers(0, 256, size=(7, 5, 3), dtype=np.uint8)
ANSWERS = (
    Answer("done", (5, 900, 2), ("A", " dög", ""), 0.25, 0.5, 2**31, ""),
    Answer("stopped", (5,), ("A",), 0.125, 0.0, None, 'stopped by "you"\n'),
    Answer("waiting"),
    Answer("done", (5, 2), ("A", ""), 0.5),
)


def a_comparison(**changes) -> Comparison:
    fields = dict(
        image=SourceImage(
            Image.fromarray(PIXELS), "file:мой снимок.png", frozenset({"dog", "cat"})
        ),
        question='Was ist "das"?\n\\ 图片',
        ways=(
            parse_spec("greedy"),
            parse_spec("vcd.pope_paper:beta=0.2,alpha=0.5"),
            parse_spec("vdgd", ["request=a, b = c"]),
            parse_spec("vdd:alpha=0.5+vaf+sample"),
        ),
        drawing=SamplingSettings(64, 0.7, 2**32 - 1),
    )
    return Comparison(**{**fields, **changes})


def saved_text() -> str:
    return to_json(a_comparison(), ANSWERS, "org/model")


def changed(path: str, value) -> str:
    """The document with another value at a place like "ways.0.name"; `...` takes it out."""
    document = json.loads(saved_text())
    *parents, last = path.split(".")
    place = document
    for name in parents:
        place = place[int(name)] if isinstance(place, list) else place[name]
    if value is ...:
        del place[last]
    else:
        place[int(last) if isinstance(place, list) else last] = value
    return json.dumps(document)


def png_of(size: tuple[int, int]) -> str:
    """A PNG file of a few bytes whose header tells another size."""
    file = BytesIO()
    Image.new("RGB", (1, 1)).save(file, format="PNG")
    content = bytearray(file.getvalue())
    content[16:24] = struct.pack(">II", *size)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return base64.b64encode(content).decode()


def test_a_comparison_comes_back_whole():
    comparison = a_comparison()
    saved = from_json(saved_text())
    assert saved.comparison.image.image.mode == "RGB"
    assert saved.comparison.image.image.tobytes() == PIXELS.tobytes()
    assert saved.comparison.image.image.size == (5, 7)
    assert saved.comparison.image.source == comparison.image.source
    assert saved.comparison.image.truth == {"dog", "cat"}
    assert saved.comparison.question == comparison.question
    assert saved.comparison.ways == comparison.ways
    assert saved.comparison.drawing == comparison.drawing
    assert saved.answers == ANSWERS
    assert saved.model == "org/model"
    assert saved.versions == {
        name: importlib.metadata.version(distribution)
        for name, distribution in (
            ("sightline", "sightline-vlm"),
            ("torch", "torch"),
            ("transformers", "transformers"),
        )
    }
    assert from_json(saved_text().encode()).answers == ANSWERS


def test_a_second_saving_writes_the_same():
    saved = from_json(saved_text())
    assert to_json(saved.comparison, saved.answers, saved.model) == saved_text()


def test_no_truth_is_not_an_empty_one():
    for truth in (None, frozenset()):
        image = SourceImage(Image.fromarray(PIXELS), "scene:17", truth)
        text = to_json(a_comparison(image=image), ANSWERS, "m")
        assert from_json(text).comparison.image.truth == truth


def test_what_an_image_file_carries_besides_pixels_is_not_saved():
    notes = PngInfo()
    notes.add_text("where", "at home in Kiel")
    file = BytesIO()
    Image.fromarray(PIXELS).save(file, format="PNG", pnginfo=notes)
    image = SourceImage(Image.open(file), "file:a.png")
    content = json.loads(to_json(a_comparison(image=image), ANSWERS, "m"))["image"]["png"]
    assert b"Kiel" in file.getvalue()
    assert b"Kiel" not in base64.b64decode(content)
    # Nor is it read, of an image that somebody put into the file.
    text = changed("image.png", base64.b64encode(file.getvalue()).decode())
    assert from_json(text).comparison.image.image.info == {}


def test_a_colour_that_was_transparent_keeps_its_pixels():
    image = Image.fromarray(PIXELS)
    image.info["transparency"] = tuple(int(value) for value in PIXELS[0, 0])
    text = to_json(a_comparison(image=SourceImage(image, "file:a.png")), ANSWERS, "m")
    assert from_json(text).comparison.image.image.tobytes() == PIXELS.tobytes()
    assert "transparency" in image.info


def test_what_was_still_coming_is_stopped():
    going = Answer("answering", (5,), ("A",), 0.1)
    saved = from_json(to_json(a_comparison(), (going, *ANSWERS[1:]), "m"))
    assert saved.answers[0].state == "stopped"
    assert saved.answers[0].text == "A"
    assert "still being answered" in saved.answers[0].note


def test_fields_of_others_are_ignored():
    assert from_json(changed("comment", {"from": [1, None]})).answers == ANSWERS
    assert from_json(changed("answers.0.colour", "red")).answers == ANSWERS


WRONG = {
    "another format": ("format", "other", 'no "sightline comparison"'),
    "no format": ("format", ..., 'no "sightline comparison"'),
    "newer": ("version", 2, "version 2.*up to version 1: install a newer"),
    "version 0": ("version", 0, "version must be a whole number from 1"),
    "version true": ("version", True, "version must be a whole number"),
    "no model": ("model", ..., "the file has no model"),
    "no seed": ("drawing.seed", ..., "drawing has no seed"),
    "seed text": ("drawing.seed", "1", r"drawing\.seed must be a whole number.*got '1'"),
    "seed too large": ("drawing.seed", 2**32, r"drawing\.seed must be.*4294967295"),
    "seed float": ("drawing.seed", 1.0, r"drawing\.seed must be a whole number"),
    "cold": ("drawing.temperature", -0.1, r"drawing\.temperature must be a number from 0"),
    "not a number": ("drawing.temperature", float("nan"), r"temperature must be a number"),
    "infinite": ("drawing.temperature", float("inf"), r"temperature must be a number"),
    "no tokens": ("drawing.max_new_tokens", 0, r"max_new_tokens must be a whole number from 1"),
    "no ways": ("ways", [], "ways must be a list of 1 to 4 entries, got 0 entries"),
    "five ways": ("ways", [{"name": "vdd", "settings": {}}] * 5, "ways must be.*got 5"),
    "a way fewer": ("ways", [{"name": "vdd", "settings": {}}], "answers must be as many as ways"),
    "way a text": ("ways.1", "vdd", r"ways\[1\] must be an object, got 'vdd'"),
    "setting a number": (
        "ways.1.settings.alpha",
        0.5,
        r"ways\[1\]\.settings\.alpha must be a text",
    ),
    "settings a list": ("ways.1.settings", [], r"ways\[1\]\.settings must be an object"),
    "long setting": ("ways.1.settings.alpha", "1" * 20_001, "at most 20,000 characters"),
    "long question": ("question", "?" * 20_001, "question must be a text of at most 20,000"),
    "half a character": ("question", "\ud83d", "question must be a text"),
    "half a name": ("ways.1.settings", {"\ud83d": "1"}, "must be a text"),
    "state": (
        "answers.0.state",
        "paused",
        r"answers\[0\]\.state must be one of waiting, answering",
    ),
    "state a list": ("answers.0.state", [], r"answers\[0\]\.state must be one of"),
    "ids": ("answers.0.ids", [5, -1, 2], r"answers\[0\]\.ids\[1\] must be a whole number"),
    "pieces": ("answers.0.pieces", ["A"], "pieces must be as many as ids, which are 3"),
    "many tokens": ("answers.0.ids", [1] * 100_001, r"answers\[0\]\.ids must be a list"),
    "first": ("answers.0.first", -1, r"answers\[0\]\.first must be a number from 0"),
    "later null": ("answers.0.later", None, r"answers\[0\]\.later must be a number"),
    "peak": ("answers.0.peak", 0.5, r"answers\[0\]\.peak must be a whole number"),
    "huge number": ("answers.0.later", 10**400, r"answers\[0\]\.later must be a number"),
    "truth": ("image.truth", "dog", r"image\.truth must be a list"),
    "source": ("image.source", "http://x/y.png", "source is shipped:NAME"),
    "other folder": ("image.source", "shipped:../checkpoint/config.json", "source is shipped"),
    "seed of scene": ("image.source", "scene:" + "9" * 200, "source is shipped:NAME"),
    "base64": ("image.png", "no base64!", r"image\.png must be an image in base64"),
    "not ASCII": ("image.png", "ä", r"image\.png must be an image in base64"),
    "png a number": ("image.png", 7, r"image\.png must be an image in base64"),
    "no image": ("image.png", base64.b64encode(b"hello").decode(), "no PNG image"),
    "empty": ("image.png", "", "no PNG image"),
    "no data": ("image.png", png_of((9, 9)), "damaged"),
    "too large": ("image.png", png_of((9000, 9000)), "81 megapixels.*at most"),
    "bomb": ("image.png", png_of((60_000, 60_000)), "no PNG image"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused_in_a_sentence(case):
    path, value, message = WRONG[case]
    with pytest.raises(ValueError, match=message) as refusal:
        from_json(changed(path, value), max_pixels=10**6)
    assert len(str(refusal.value)) < 300


def test_a_jpeg_is_no_png():
    file = BytesIO()
    Image.fromarray(PIXELS).save(file, format="JPEG")
    with pytest.raises(ValueError, match="no PNG image"):
        from_json(changed("image.png", base64.b64encode(file.getvalue()).decode()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as such"),
        ("not json", "cannot be read as such"),
        (b"\xff\xfe{}", "cannot be read as such"),
        (b"\x89PNG\r\n", "cannot be read as such"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' * 200_000, "nested too deeply"),
        ('{"format": ' + "9" * 5000 + "}", "cannot be read as such"),
        ("[1]", 'no "sightline comparison"'),
        ("null", 'no "sightline comparison"'),
        ('"sightline comparison"', 'no "sightline comparison"'),
    ],
)
def test_what_is_no_document_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        from_json(text)


def test_a_document_is_refused_by_its_length_before_it_is_read():
    longest = 2**24 + 500  # five characters for each of 100 pixels, and the rest
    with pytest.raises(ValueError, match=f"at most {longest:,} characters here, got"):
        from_json("[" + " " * longest, max_pixels=100)
    with pytest.raises(ValueError, match="cannot be read as such"):
        from_json("[" + " " * (longest - 1), max_pixels=100)


def test_the_largest_noise_that_is_allowed_can_be_loaded():
    noise = np.random.default_rng(0).integers(0, 256, size=(2200, 2000, 3), dtype=np.uint8)
    image = SourceImage(Image.fromarray(noise), "file:noise.png")
    text = to_json(a_comparison(image=image), ANSWERS, "m")
    assert len(text) > 4 * 2200 * 2000
    loaded = from_json(text, max_pixels=2200 * 2000)
    assert loaded.comparison.image.image.tobytes() == noise.tobytes()
    with pytest.raises(ValueError, match="megapixels"):
        from_json(text, max_pixels=2200 * 2000 - 1)


def places(value, path=()):
    """Every place in a document."""
    yield path
    inner = value.items() if isinstance(value, dict) else ()
    inner = enumerate(value) if isinstance(value, list) else inner
    for name, one in inner:
        yield from places(one, (*path, str(name)))


@pytest.mark.parametrize("value", [None, True, -1, 1.5, "", "x", [], {}, [[]], {"a": 1}, ...])
def test_no_change_of_a_field_raises_anything_but_a_sentence(value):
    for path in places(json.loads(saved_text())):
        if not path or (value is ... and path[-1].isdecimal()):
            continue
        try:
            from_json(changed(".".join(path), value))
        except ValueError as refusal:
            assert str(refusal)


def test_no_cut_or_flipped_file_raises_anything_but_a_sentence():
    whole = saved_text().encode()
    rng = np.random.default_rng(1)
    for end in range(0, len(whole) - 1, 7):
        with pytest.raises(ValueError, match="JSON"):
            from_json(whole[:end])
    for _ in range(400):
        broken = bytearray(whole)
        broken[rng.integers(len(whole))] = rng.integers(256)
        try:
            from_json(bytes(broken))
        except ValueError as refusal:
            assert str(refusal)


def test_no_cut_image_raises_anything_but_a_sentence():
    content = base64.b64decode(json.loads(saved_text())["image"]["png"])
    for end in range(len(content)):
        text = changed("image.png", base64.b64encode(content[:end]).decode())
        try:
            image = from_json(text).comparison.image
        except ValueError as refusal:
            assert "image" in str(refusal)
        else:  # only two checksums and the end mark, of 4, 4 and 12 bytes, can be done without
            assert end >= len(content) - 20
            assert image.image.tobytes() == PIXELS.tobytes()


def test_the_module_does_without_the_page():
    program = "import sys, sightline.demo.saved; print('gradio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
