"""MME: the parsers' verdicts, scores by image, the folder layouts, and the benchmark."""

import json
from dataclasses import replace

import numpy as np
import pytest
from goldens import golden
from PIL import Image

from sightline.evaluation import mme
from sightline.evaluation.benchmark import Item, Prediction
from sightline.evaluation.mme import MME, Result, parse, score

GOLDEN = {"official": "official", "lmms_eval": "lmms-eval"}
EXACT = 1e-9  # golden fractions are rounded to 12 digits, scores are times 100
FIGURES = {
    "TP": "tp",
    "FN": "fn",
    "TN": "tn",
    "FP": "fp",
    "other_num": "other",
    "precision": "precision",
    "recall": "recall",
    "acc": "accuracy",
    "acc_plus": "accuracy_plus",
    "score": "score",
}


def golden_results():
    inputs, expected = golden("mme")
    results = {
        task: [Result(r["image"], r["question"], r["gt"].lower(), r["answer"]) for r in rows]
        for task, rows in inputs["tasks"].items()
    }
    return results, expected


# Golden


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_verdicts(name):
    results, expected = golden_results()
    for task, rows in results.items():
        by_task = expected["official"][task] if name == "official" else expected[name]
        wanted = by_task["predictions"] if name == "official" else by_task["predictions"][task]
        assert [parse(row.answer, GOLDEN[name]) for row in rows] == wanted, task


def test_golden_figures_of_the_official_tool():
    results, expected = golden_results()
    got = score(results)
    for task, figures in expected["official"].items():
        for theirs, ours in FIGURES.items():
            value = getattr(got.tasks[task], ours)
            assert value == pytest.approx(figures[theirs], abs=EXACT), (task, theirs)
    assert got.total == pytest.approx(expected["official_total"], abs=EXACT)
    # The sums that papers print, from the golden scores: 130 + 75 and 62.5 + 75.
    assert got.object_level == pytest.approx(205, abs=EXACT)
    assert got.attribute_level == pytest.approx(137.5, abs=EXACT)


def test_golden_scores_of_lmms_eval():
    results, expected = golden_results()
    got = score(results, parser="lmms-eval")
    scores = {task: figures.score for task, figures in got.tasks.items()}
    assert scores == pytest.approx(expected["lmms_eval"]["scores"], abs=EXACT)
    assert got.total == pytest.approx(expected["lmms_eval"]["total"], abs=EXACT)


def test_pairs_are_found_by_image_whatever_the_order_of_lines():
    results, expected = golden_results()
    rng = np.random.default_rng(0)
    shuffled = {
        task: [rows[i] for i in rng.permutation(len(rows))] for task, rows in results.items()
    }
    assert shuffled != results
    assert score(shuffled) == score(results)
    assert score(shuffled).total == pytest.approx(expected["official_total"], abs=EXACT)


# Parsers: the traps by name


@pytest.mark.parametrize(
    ("answer", "verdicts"),
    [
        # official, lmms-eval, word
        ("Yes", "yes yes yes"),
        (" yes", "yes yes yes"),
        ("   yes", "other yes yes"),
        ("  no", "no no no"),
        ("   no", "other no no"),
        ("Not that I see", "no no other"),
        ("Nothing", "no no other"),
        ("Snow", "no no other"),
        ("know", "no no other"),
        ("**No**", "no no no"),
        ("**Yes**", "other other yes"),
        ("The answer is yes", "other other yes"),
        ("y", "other yes other"),
        ("N.", "other no other"),
        ("k", "other other other"),
        ("...Yes", "other yes yes"),
        ("Yes, no", "yes yes yes"),
        ("", "other other other"),
    ],
)
def test_where_parsers_part(answer, verdicts):
    parsers = ("official", "lmms-eval", "word")
    assert " ".join(parse(answer, parser) for parser in parsers) == verdicts


def test_the_default_parser_is_the_official_one():
    assert parse("Snow") == "no"
    with pytest.raises(ValueError, match="no parser is called 'opera': there are official"):
        parse("yes", "opera")


# Metrics


def pair(image, yes, no):
    return [Result(image, "Is it?", "yes", yes), Result(image, "Is it not?", "no", no)]


def test_figures_by_hand():
    # Images: both right; yes right alone; nothing right. Three of six, one of three.
    rows = [*pair("a", "yes", "no"), *pair("b", "yes", "yes"), *pair("c", "no", "perhaps")]
    got = score({"existence": rows}).tasks["existence"]
    assert (got.tp, got.fn, got.tn, got.fp, got.other) == (2, 1, 1, 1, 1)
    assert got.precision == pytest.approx(2 / 3)
    assert got.recall == pytest.approx(2 / 3)
    assert got.accuracy == pytest.approx(3 / 6)
    assert got.accuracy_plus == pytest.approx(1 / 3)
    assert got.score == pytest.approx(50 + 100 / 3)


def test_sums_need_all_their_tasks():
    right = pair("a", "yes", "no")
    got = score({"existence": right, "count": right, "color": right})
    assert got.total == 600
    assert got.object_level == 400
    assert got.attribute_level is None


def test_zero_stands_where_the_original_divides_by_zero():
    got = score({"count": pair("a", "perhaps", "no")}).tasks["count"]
    assert (got.precision, got.recall) == (0, 0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "count: there are no questions"),
        (pair("a", "yes", "no")[:1], "count: a must have two questions, .* answers are yes"),
        ([*pair("a", "yes", "no"), *pair("a", "yes", "no")], "answers are yes, no, yes, no"),
        ([replace(row, label="no") for row in pair("a", "yes", "no")], "answers are no, no"),
    ],
)
def test_images_without_a_pair_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        score({"count": rows})


def test_nothing_to_score_is_refused():
    with pytest.raises(ValueError, match="at least one task"):
        score({})


# Files

TEXT = "Is there a {} in this image? Please answer yes or no.\t{}\r\n"


def lay_out(folder, task, names, parted=False, suffix=".jpg"):
    """A task in the benchmark's layout; of every second image the question of "no" is first."""
    texts = folder / task / ("questions_answers_YN" if parted else "")
    images = folder / task / ("images" if parted else "")
    for place in (texts, images):
        place.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        lines = [TEXT.format(f"dog {name}", "Yes"), TEXT.format(f"cat {name}", "No")]
        (texts / f"{name}.txt").write_text("".join(lines[:: -1 if number % 2 else 1]), newline="")
        Image.new("RGB", (2 + number, 2)).save(images / f"{name}{suffix}")


@pytest.mark.parametrize("parted", [False, True])
def test_both_layouts_are_read(tmp_path, parted):
    lay_out(tmp_path, "posters", ["0002", "0001"], parted, suffix=".PNG")
    home = "posters/images/" if parted else "posters/"
    read = mme.read_task(tmp_path, "posters")
    assert [(q.image, q.label) for pair in read for q in pair] == [
        (f"{home}0001.PNG", "no"),
        (f"{home}0001.PNG", "yes"),
        (f"{home}0002.PNG", "yes"),
        (f"{home}0002.PNG", "no"),
    ]
    assert read[0][1].text == "Is there a dog 0001 in this image? Please answer yes or no."


@pytest.mark.parametrize("parted", [False, True])
def test_what_systems_and_people_leave_in_a_folder_is_left_out(tmp_path, parted):
    lay_out(tmp_path, "count", ["a", "b"], parted)
    expected = mme.read_task(tmp_path, "count")
    assert list(map(len, expected)) == [2, 2]
    double = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X\xff\xfe"  # how AppleDouble begins
    home = tmp_path / "count"
    for folder in {home, *(path for path in home.iterdir() if path.is_dir())}:
        for name in ("._a.txt", "._a.jpg", "._b.jpg", ".DS_Store", "Thumbs.db"):
            (folder / name).write_bytes(double)
        (folder / "README.txt").write_text("Two questions\tabout each image.\n")
        (folder / "README.md").write_text("# MME\n")
        (folder / "license.txt").write_text("For research only.\n")
    assert mme.read_task(tmp_path, "count") == expected
    (home / "questions_answers_YN" if parted else home).joinpath("c.txt").write_text("Is it?\tYes")
    with pytest.raises(ValueError, match=r"1 of 3 images are not in .*c\.jpg"):
        mme.read_task(tmp_path, "count")


def test_result_folders_may_hold_a_readme_and_hidden_files(tmp_path):
    (tmp_path / "count.txt").write_text("a.jpg\tIs it?\tYes\tYes\na.jpg\tIs it not?\tNo\tNo\n")
    (tmp_path / "._count.txt").write_bytes(b"\x00\x05\x16\x07\xff")
    (tmp_path / "readme.txt").write_text("Put your results here.")
    assert list(mme.read_results(tmp_path)) == ["count"]


def test_result_files_are_read_and_scored(tmp_path):
    lines = ["a.jpg\tIs it?\tYes\tYes, it is.", "a.jpg\tIs it not?\tNo\tyes", ""]
    (tmp_path / "count.txt").write_text("\n".join(lines))
    read = mme.read_results(tmp_path)
    assert read["count"][0] == Result("a.jpg", "Is it?", "yes", "Yes, it is.")
    assert mme.read_results(tmp_path / "count.txt") == read
    assert score(read).total == 50
    (tmp_path / "count.txt").write_text("a.jpg\tIs it?\tYes\tone\ttwo")
    with pytest.raises(ValueError, match=r"count\.txt, line 1: .* is wanted, got 5 columns"):
        mme.read_results(tmp_path)


def write_all(folder, text):
    for path in folder.glob("*.txt"):
        path.write_text(text)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "a.jpg").unlink(), r"1 of 2 images are not in .*: count/a\.jpg"),
        (lambda d: Image.new("RGB", (1, 1)).save(d / "a.png"), r"has a\.jpg and a\.png"),
        (lambda d: write_all(d, "Is it?\tYes"), r"a\.txt: count/a\.jpg must have two questions"),
        (lambda d: write_all(d, "Is it?\tYes\nIs it?\tYes"), "answers are yes, yes"),
        (lambda d: write_all(d, "Is it? Yes"), r"a\.txt, line 1: .* got 1 columns"),
        (lambda d: write_all(d, "\nIs it?\tMaybe"), "line 2: the answer must be Yes or No"),
        (lambda d: write_all(d, ""), r"a\.txt: there are no questions"),
        (lambda d: [f.unlink() for f in d.glob("*.txt")], "holds no questions"),
    ],
)
def test_a_broken_task_is_refused(tmp_path, spoil, message):
    lay_out(tmp_path, "count", ["a", "b"])
    spoil(tmp_path / "count")
    with pytest.raises(ValueError, match=message):
        mme.read_task(tmp_path, "count")


HALVES = {
    "one-line": "Is it?\tYes",
    "three-lines": "Is it?\tYes\nIs it not?\tNo\nIs it?\tYes",
    "one-label": "Is it?\tYes\nIs it?\tYes",
    "no-tab": "Is it?\tYes\nIs it not? No",
    "no-label": "Is it?\tYes\nIs it not?\tMaybe",
    "no-text": "Is it?\tYes\nIs it not?\xff\tNo",
    "empty": "\n",
}
"""Texts of an image that hold no pair."""


@pytest.mark.parametrize("text", HALVES.values(), ids=HALVES)
def test_a_pair_with_a_malformed_line_is_no_pair(tmp_path, text):
    lay_out(tmp_path, "count", ["a", "b", "c"])
    (tmp_path / "count" / "b.txt").write_bytes(text.encode("latin-1"))
    made = MME(tmp_path, tasks=["count"])
    errors = [item for item in made.items if item.error]
    assert [(item.task, item.id) for item in errors] == [
        ("count", "count, b.txt#1"),
        ("count", "count, b.txt#2"),
    ]
    assert all("b.txt" in item.error for item in errors)
    has_bad_line = text in (HALVES["no-tab"], HALVES["no-label"])
    assert errors[0].error.startswith("b.txt, line 2: ") == has_bad_line
    other = tmp_path / "without"
    lay_out(other, "count", ["a", "c"])
    for name in ("a.txt", "c.txt"):
        (other / "count" / name).write_bytes((tmp_path / "count" / name).read_bytes())
    assert [item for item in made.items if not item.error] == MME(other, tasks=["count"]).items
    assert made.fixed()["files"] != MME(other, tasks=["count"]).fixed()["files"]
    assert (made.fixed()["files"][0]["rows"], made.fixed()["images"]) == (6, 2)


def test_a_missing_task_says_where_mme_is_published(tmp_path):
    with pytest.raises(ValueError, match=r"no folder colour.*BradyFU"):
        mme.read_task(tmp_path, "colour")


# The benchmark


@pytest.fixture
def folder(tmp_path):
    for task in mme.TASKS:
        lay_out(tmp_path, task, ["a", "b", "c"])
    return tmp_path


def test_the_benchmark_asks_the_hallucination_subset(folder):
    made = MME(folder)
    assert [task.name for task in made.tasks] == ["existence", "count", "position", "color"]
    assert len(made.items) == 4 * 6
    assert made.items[0] == Item(
        task="existence",
        id="a.jpg#1",
        question="Is there a dog a in this image? Please answer yes or no.",
        image="existence/a.jpg",
        unit="existence/a.jpg",
        label="yes",
    )
    assert len({(item.task, item.id) for item in made.items}) == 24
    assert made.load_image(made.items[2]).size == (3, 2)
    assert made.prediction(made.items[0], "Snow") == "no"
    assert made.prediction(made.items[0], "Two. Yes") is None
    assert MME(folder, parser="word").prediction(made.items[0], "Two. Yes") == "yes"


@pytest.mark.parametrize(
    ("suffix", "asked"),
    [
        ("mme", "Is it?  Please answer yes or no."),
        ("one-word", "Is it?  Please answer yes or no. Please answer this question with one word."),
        ("llava", "Is it?\nAnswer the question using a single word or phrase."),
    ],
)
def test_suffixes_to_the_byte(suffix, asked):
    assert mme.worded("Is it?  Please answer yes or no.", suffix) == asked
    # One blank, as in most questions, and a question without the request.
    assert mme.worded("Is it? Please answer yes or no.", "llava") == asked_by_llava("Is it?")
    assert mme.worded("Is it?", "llava") == asked_by_llava("Is it?")


def asked_by_llava(question):
    return question + "\nAnswer the question using a single word or phrase."


def test_what_fixes_the_figures_is_told_without_a_path(folder):
    fixed = MME(folder, tasks=["count", "color"]).fixed()
    assert [(file["name"], file["rows"]) for file in fixed["files"]] == [("count", 6), ("color", 6)]
    assert fixed["parser"] == "official"
    assert fixed["suffix"] == "mme"
    assert fixed["images"] == 6
    assert str(folder) not in json.dumps(fixed)
    (folder / "count" / "a.txt").write_text("Other?\tYes\nNone?\tNo")
    again = MME(folder, tasks=["count", "color"]).fixed()["files"]
    assert again[0]["sha256"] != fixed["files"][0]["sha256"]
    assert again[1] == fixed["files"][1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parser": "opera"}, "no parser is called 'opera'"),
        ({"suffix": "none"}, "no suffix is called 'none'"),
        ({"tasks": []}, "at least one"),
        ({"tasks": ["count", "count"]}, "different names"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"tasks": ["scene"]}, "no folder scene"),
    ],
)
def test_wrong_settings_are_refused(folder, settings, message):
    with pytest.raises(ValueError, match=message):
        MME(folder, **settings)


@pytest.mark.parametrize("parser", mme.PARSERS)
def test_ratios_are_the_figures_of_the_score(tmp_path, parser):
    lay_out(tmp_path, "count", [f"{n:02}" for n in range(40)])
    made = MME(tmp_path, tasks=["count"], parser=parser)
    answers = ["Yes", "no", "The answer is yes", "Snow", "   no", "y", ""]
    rng = np.random.default_rng(0)
    said = [Prediction(item, answers[rng.integers(len(answers))], 2) for item in made.items]
    results = [Result(s.item.image, s.item.question, s.item.label, s.text) for s in said]
    expected = score({"count": results}, parser).tasks["count"]
    units = {image: n for n, image in enumerate(sorted({s.item.image for s in said}))}
    ratios = made.ratios(made.tasks[0], said, {**units, "color/00.jpg": 40})
    assert {metric.name for metric in made.tasks[0].metrics} == set(ratios)
    assert all(ratio.numerator.shape == (41,) for ratio in ratios.values())
    assert ratios["accuracy"].value == expected.accuracy
    assert ratios["accuracy_plus"].value == expected.accuracy_plus
    assert 0 < expected.accuracy_plus < expected.accuracy
    assert ratios["score"].value == pytest.approx(expected.score, abs=1e-9)  # sums of float64
    assert ratios["yes_rate"].value == (expected.tp + expected.fp) / 80
    unparsed = sum(parse(s.text, "word") == "other" for s in said)
    assert ratios["unparsed"].value == unparsed / 80


def test_ratios_by_hand(folder):
    made = MME(folder, tasks=["count"])
    # a: yes, no asked; b: no, yes; c: yes, no. Right: both, the first, none.
    texts = ["yes", "no", "no", "no", "no", "yes"]
    said = [Prediction(item, text, 1) for item, text in zip(made.items, texts, strict=True)]
    units = {f"count/{name}.jpg": n for n, name in enumerate("abc")}
    ratios = made.ratios(made.tasks[0], said, units)
    assert ratios["accuracy"].numerator.tolist() == [2, 1, 0]
    assert ratios["accuracy_plus"].numerator.tolist() == [1, 0, 0]
    assert ratios["accuracy_plus"].denominator.tolist() == [1, 1, 1]
    assert ratios["score"].numerator.tolist() == [200, 50, 0]
    assert ratios["score"].value == pytest.approx(250 / 3)
    # An image that could not be read is left out of all of them.
    ratios = made.ratios(made.tasks[0], said[2:], units)
    assert ratios["accuracy"].value == 0.25
    assert ratios["accuracy_plus"].value == 0
    assert ratios["score"].value == 25
