"""Readers of published files: what is read alike, and what is refused with its place."""

import gzip
import hashlib
import json
import re

import pytest
from PIL import Image

from sightline.evaluation import amber, chair, files, hallusionbench, pope
from sightline.evaluation.files import Row

TWO = b'{"id": 1, "text": "a"}\n{"id": "two", "text": "b"}\n'
ARRAY = b'[\n {"id": 1, "text": "a"},\n {"id": "two", "text": "b"}\n]'


@pytest.fixture
def written(tmp_path):
    def write(content, name="rows.json"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


# Rows

COCO = "COCO_val2014_000000000042.jpg"
PUBLISHED = {
    "pope": (
        lambda path: pope.read_questions(path, "random"),
        [
            {"question_id": n, "image": COCO, "text": "Is there a dog?", "label": label}
            for n, label in ((1, "yes"), (2, "no"))
        ],
    ),
    "amber-queries": (
        amber.read_queries,
        [{"id": n, "image": f"AMBER_{n}.jpg", "query": "Describe this image."} for n in (1, 2)],
    ),
    "amber-annotations": (
        amber.read_annotations,
        [
            {"id": 1, "type": "generative", "truth": ["sky"], "hallu": []},
            {"id": 2, "type": "relation", "truth": "no"},
        ],
    ),
    "amber-responses": (
        amber.read_responses,
        [{"id": n, "response": "Yes"} for n in (1, 2)],
    ),
    "hallusionbench": (
        hallusionbench.read_questions,
        [
            {
                "category": "VD",
                "subcategory": "chart",
                "visual_input": 1,
                "set_id": 0,
                "figure_id": 1,
                "question_id": n,
                "gt_answer": 1,
                "question": "Is it?",
                "filename": "a.png",
            }
            for n in (1, 2)
        ],
    ),
    "chair-ids": (chair.read_ids, [{"image_id": n} for n in (1, 2)]),
    "chair-captions": (
        chair.read_captions,
        [{"image_id": n, "caption": "a dog"} for n in (1, 2)],
    ),
}
"""Readers of published files, and two rows of each."""


def as_text(row):
    return {k: str(v) if isinstance(v, int) else v for k, v in row.items()}


def keyed(read):
    """What was read, its numbers as text: whether a file has 1 or "1" is nobody's business."""
    rows = read if isinstance(read, list) else list(read.items())
    return [as_text(row) if isinstance(row, dict) else row for row in rows]


FORMS = {
    "lines": lambda rows: "".join(f"{json.dumps(row)}\n" for row in rows),
    "array": json.dumps,
    "indented": lambda rows: json.dumps(rows, indent=4),
}
BYTES = {
    "as-it-is": str.encode,
    "byte-order-mark": lambda text: text.encode("utf-8-sig"),
    "crlf": lambda text: text.replace("\n", "\r\n").encode(),
    "blank-lines": lambda text: f"\n{text}\r\n\n \n".encode(),
    "no-last-end": lambda text: text.rstrip().encode(),
    "gzip": lambda text: gzip.compress(text.encode()),
}


@pytest.mark.parametrize("encode", BYTES.values(), ids=BYTES)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("numbers", [dict, as_text])
@pytest.mark.parametrize(("reader", "rows"), PUBLISHED.values(), ids=PUBLISHED)
def test_every_reader_takes_the_forms_that_are_published(
    written, reader, rows, numbers, form, encode
):
    expected = keyed(reader(written(json.dumps(rows))))
    assert len(expected) == 2
    assert keyed(reader(written(encode(form([numbers(row) for row in rows]))))) == expected


@pytest.mark.parametrize(
    "content",
    [
        TWO,
        TWO.rstrip(),
        TWO.replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + TWO,
        b"\n" + TWO.replace(b"\n", b"\n\n"),
        ARRAY,
        b"\xef\xbb\xbf\r\n" + ARRAY.replace(b"\n", b"\r\n"),
    ],
    ids=["lf", "no-last-end", "crlf", "bom", "blank-lines", "array", "array-crlf-bom"],
)
def test_lines_and_arrays_are_read_alike(written, content):
    rows = files.read_rows(written(content))
    assert rows == [{"id": 1, "text": "a"}, {"id": "two", "text": "b"}]


def test_rows_know_their_place(written):
    lines = files.read_rows(written(b"\n" + TWO, "coco.json"))
    assert [row.place for row in lines] == ["coco.json, line 2", "coco.json, line 3"]
    array = files.read_rows(written(ARRAY, "gqa.json"))
    assert [row.place for row in array] == ["gqa.json, row 1", "gqa.json, row 2"]


def test_a_line_separator_inside_a_text_ends_no_line(written):
    # U+2028 and a lone CR are line ends to str.splitlines, and legal in JSON and in plain text.
    [row] = files.read_rows(written('{"text": "one\u2028line"}\n'))
    assert row["text"] == "one\u2028line"
    assert files.read_lines(written("a\u2028b\x0cc\r\n")) == [
        ("rows.json, line 1", "a\u2028b\x0cc")
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "rows.json is empty"),
        (b" \r\n", "rows.json is empty"),
        (b"[]", "rows.json holds no rows"),
        (TWO[:-4], "rows.json, line 2: not JSON"),
        (ARRAY[:-1], "rows.json, line 4: not JSON"),
        (TWO + b"[1]\n", "rows.json, line 3: a JSON object is wanted, got list"),
        (b'[{"id": 1}, 7]', "rows.json, row 2: a JSON object is wanted, got int"),
        (b'{"id": "\xff"}', "is no UTF-8 text"),
    ],
)
def test_broken_files_are_refused_with_their_place(written, content, message):
    with pytest.raises(ValueError, match=message):
        files.read_rows(written(content))


def test_a_missing_file_says_where_it_is_published(tmp_path):
    with pytest.raises(ValueError, match=r"none\.json: no such file\. Published by A\."):
        files.read_rows(tmp_path / "none.json", "Published by A.")
    with pytest.raises(ValueError, match="cannot be read"):
        files.read_rows(tmp_path)


# Malformed lines

KEYS = {
    "pope": "question_id",
    "amber-queries": "id",
    "hallusionbench": "question_id",
    "chair-ids": "image_id",
}
"""The readers of question files, with the field that names a row."""
SPOILT = {
    "cut-off": ("lines", lambda row, first: json.dumps(row)[:-4]),
    "list": ("lines", lambda row, first: "[1, 2]"),
    "bytes": ("lines", lambda row, first: json.dumps(row)[:-2] + '\udcff"}'),
    "deep": ("lines", lambda row, first: "{" + '"a": {' * 100_000),
    "digits": ("lines", lambda row, first: '{"a": ' + "1" * 10_000 + "}"),
    "no-object": ("both", lambda row, first: 7.5),
    "null": ("both", lambda row, first: None),
    "empty": ("both", lambda row, first: {}),
    "no-key": ("both", lambda row, first: {**row, **dict.fromkeys(KEYS.values())}),
    "key-of-a-kind": ("both", lambda row, first: {**row, **{key: [1] for key in KEYS.values()}}),
    "twice": ("both", lambda row, first: first),
    "half-a-character": ("both", lambda row, first: {**row, "more": "\ud83d"}),
}
"""Ways to spoil a row: in lines alone or in arrays too, by a text or by a value."""


def one_each(form, texts):
    return "\n".join(texts) + "\n" if form == "lines" else f"[{', '.join(texts)}]"


@pytest.mark.parametrize("at", [0, 2, 4])
@pytest.mark.parametrize(
    ("form", "spoil"),
    [
        pytest.param(form, spoil, id=f"{form}-{name}")
        for name, (where, spoil) in SPOILT.items()
        for form in (["lines"] if where == "lines" else ["lines", "array"])
    ],
)
@pytest.mark.parametrize("name", KEYS)
def test_a_malformed_line_costs_no_other(written, name, form, spoil, at):
    reader, (first, _) = PUBLISHED[name]
    rows = [{**first, KEYS[name]: n} for n in range(1, 5)]
    bad = spoil({**first, KEYS[name]: 5}, rows[0])
    texts = list(map(json.dumps, rows))
    expected = reader(written(one_each(form, texts)))
    texts.insert(at, bad if isinstance(bad, str) else json.dumps(bad))
    content = one_each(form, texts).encode(errors="surrogateescape")
    found = reader(written(content))
    wrong = [line for line in found if getattr(line, "error", "")]
    assert [line for line in found if line not in wrong] == expected
    assert len(wrong) == 1
    # Of two equal lines the second is malformed.
    wrong_at = max(at, 1) if bad == rows[0] else at
    assert found[wrong_at] == wrong[0]
    place = f"rows.json, {'line' if form == 'lines' else 'row'} {wrong_at + 1}"
    assert re.match(rf"{place}\b", wrong[0].error)
    # A file of which most lines are like this is refused.
    spoilt = texts[at]
    for many in ([spoilt] * 4, [json.dumps(rows[3]), *[spoilt] * 4]):
        with pytest.raises(ValueError, match=r"rows\.json"):
            reader(written(one_each(form, many).encode(errors="surrogateescape")))


def test_half_of_the_lines_may_be_malformed(written):
    good, bad = b'{"id": 1}\n{"id": 2}\n', b"{\n"
    read = [
        files.read_sifted(written(good + bad * count), lambda row: row.key("id"), "id")
        for count in (1, 2)
    ]
    assert [sum(isinstance(line, files.Malformed) for line in lines) for lines in read] == [1, 2]
    with pytest.raises(ValueError, match=r"rows\.json, line 3: not JSON"):
        files.read_sifted(written(good + bad * 3), lambda row: row.key("id"), "id")


def test_an_array_that_is_cut_off_is_no_file_of_lines(written):
    rows = [json.dumps({"id": n}) for n in range(20)]
    for text in ("[" + ", ".join(rows), "[" + ",\n".join(rows), "[\n" + "\n,\n".join(rows)):
        with pytest.raises(ValueError, match="the file is cut off or of another kind"):
            files.read_sifted(written(text), lambda row: row.key("id"), "id")


# Fields


def test_fields_are_read_by_their_kind():
    row = Row({"id": 7, "name": "x", "label": "Yes"}, "a.json, line 1")
    assert row.key("id") == Row({"id": 7.0}, "").key("id") == "7"
    assert row.key("name") == "x"
    assert row.text("name") == "x"
    assert row.choice("label", ("yes", "no")) == "yes"


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda row: row.text("image"), r"the field image is missing \(there are: id, flag, label"),
        (lambda row: row.text("id"), "id must be text, got 1.5"),
        (lambda row: row.key("id"), "id must be text, got 1.5"),
        (lambda row: row.key("flag"), "flag must be text, got True"),
        (lambda row: row.text("blank"), "blank must be text, got ' '"),
        (lambda row: row.choice("label", ("yes", "no")), "label must be one of yes, no, got 'May"),
    ],
)
def test_wrong_fields_are_refused_with_their_place(read, message):
    row = Row({"id": 1.5, "flag": True, "label": "Maybe", "blank": " "}, "a.json, line 3")
    with pytest.raises(ValueError, match="a.json, line 3: " + message):
        read(row)


def test_a_key_that_comes_twice_is_refused_with_both_places(written):
    rows = files.read_rows(written(b'{"id": 1}\n{"id": 2}\n{"id": "1"}\n'))
    files.check_unique(rows[:2], "id", lambda row: row.key("id"))
    with pytest.raises(ValueError, match=r"line 3: id 1 comes twice, first in rows\.json, line 1"):
        files.check_unique(rows, "id", lambda row: row.key("id"))


# Fingerprints, images, names


def test_a_fingerprint_is_of_the_bytes_and_knows_no_folder(written):
    path = written(b"abc")
    sha256 = hashlib.sha256(b"abc").hexdigest()
    assert sha256.startswith("ba7816bf8f01cfea")  # FIPS 180-2, appendix B.1
    assert files.fingerprint(path, 3) == {
        "name": "rows.json",
        "rows": 3,
        "sha256": "ba7816bf8f01cfea",
    }
    assert files.fingerprint(written(b"abd"), 3)["sha256"] != sha256[:16]


def test_missing_images_are_counted_and_the_first_named(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "there.png")
    files.check_images(tmp_path, ["there.png", "there.png"])
    names = ["there.png", *(f"{n}.png" for n in range(5)), "0.png"]
    with pytest.raises(ValueError, match=r"5 of 6 .* 0\.png, 1\.png, 2\.png, \.\.\.") as raised:
        files.check_images(tmp_path, names)
    assert str(tmp_path) in str(raised.value)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match=r"1 of 1 .*: folder\.png\. Pass"):
        files.check_images(tmp_path, ["folder.png"])
    with pytest.raises(ValueError, match="is no folder"):
        files.check_images(tmp_path / "none", [])


def test_names_that_do_not_exist_are_answered_with_those_that_do():
    assert files.pick("suffix", "none", {"none": "", "llava": "x"}) == ""
    with pytest.raises(ValueError, match=r"no suffix is called 'lava'.*llava.*none, llava"):
        files.pick("suffix", "lava", {"none": "", "llava": "x"})


def test_the_longest_answer_has_a_token():
    files.check_length(1)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        files.check_length(0)
