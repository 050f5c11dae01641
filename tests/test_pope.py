"""POPE: each published parser's verdicts and figures, the readers, and the benchmark."""

import json
import time
from dataclasses import asdict

import numpy as np
import pytest
from goldens import SHARED, golden, needs_published
from PIL import Image

from sightline.evaluation import pope
from sightline.evaluation.benchmark import Item, Prediction
from sightline.evaluation.pope import Pope, parse, score

GOLDEN = {
    "pope_official": "official",
    "opera_recorder": "opera",
    "lmms_eval_normalised": "lmms-eval",
    "vlmevalkit": "vlmevalkit",
}
FIGURES = {
    "pope_official": "official",
    "opera_recorder": "opera",
    "vcd": "vcd",
    "lmms_eval": "lmms-eval",
}
EXACT = 1e-11  # golden fractions are rounded to 12 digits
SPLITS = ("random", "popular", "adversarial")


# Golden


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_verdicts_on_every_crafted_answer(name):
    inputs, expected = golden("pope")
    neither = {"neither": None, "unknown": None}
    wanted = {
        row["case"]: neither.get(row["prediction"][name], row["prediction"][name])
        for row in expected["crafted"]
    }
    got = {row["case"]: parse(row["answer"], GOLDEN[name]) for row in inputs["crafted"]}
    assert len(got) == 25
    assert got == wanted


@pytest.mark.parametrize("label", ["yes", "no"])
def test_golden_implied_predictions(label):
    inputs, expected = golden("pope")
    wanted = [row["vcd_prediction"][label] for row in expected["crafted"]]
    assert [pope.implied_prediction(row["answer"], label) for row in inputs["crafted"]] == wanted
    assert [parse(row["answer"], "vcd", label) for row in inputs["crafted"]] == wanted


@pytest.mark.parametrize("name", FIGURES)
def test_golden_figures_of_the_crafted_answers(name):
    inputs, expected = golden("pope")
    labels = [row["label"] for row in inputs["crafted"]]
    answers = [row["answer"] for row in inputs["crafted"]]
    check_figures(scored(answers, labels, FIGURES[name]), expected["crafted_metrics"][name])


@needs_published
@pytest.mark.parametrize("name", FIGURES)
def test_golden_figures_of_the_slices(name):
    inputs, expected = golden("pope")
    scores = {}
    for split in SPLITS:
        questions = published_questions(split)
        answers = {str(row["question_id"]): row["text"] for row in inputs["slices"][split]}
        scores[split] = scored(
            [answers[item.id] for item in questions],
            [item.label for item in questions],
            FIGURES[name],
        )
        check_figures(scores[split], expected["slices"][split][name])
    for figure, mean in expected["slices_mean"][name].items():
        got = [getattr(scores[split], figure) for split in SPLITS]
        assert np.mean(got) == pytest.approx(mean, abs=EXACT)


def published_questions(split):
    return pope.read_questions(SHARED / "data" / "pope" / f"coco_pope_{split}.first60.json", split)


def scored(answers, labels, parser):
    predictions = [parse(a, parser, label) for a, label in zip(answers, labels, strict=True)]
    return score(predictions, labels)


def check_figures(got, expected):
    """`yes_ratio_as_coded` of lmms-eval is of the labels, and no figure of ours."""
    figures = asdict(got)
    compared = [name for name in expected if name in figures]
    assert {"accuracy", "precision", "recall", "f1"} <= set(compared)
    for name in compared:
        assert figures[name] == pytest.approx(expected[name], abs=EXACT), name


@needs_published
def test_the_published_slices_are_read_with_either_line_end():
    ends = {}
    for split in SPLITS:
        questions = published_questions(split)
        file = SHARED / "data" / "pope" / f"coco_pope_{split}.first60.json"
        ends[split] = b"\r\n" in file.read_bytes()
        assert len(questions) == 60
        assert [item.label for item in questions] == ["yes", "no"] * 30
        assert [item.id for item in questions] == [str(n) for n in range(1, 61)]
        assert len({item.unit for item in questions}) == 10
        assert all(item.question.endswith("in the image?") for item in questions)
    assert ends == {"random": False, "popular": True, "adversarial": True}


# Parsers: the traps by name


@pytest.mark.parametrize(
    ("answer", "verdicts"),
    [
        # word, official, opera, lmms-eval, vlmevalkit
        ("Yes", "yes yes yes yes yes"),
        ("NO", "no yes no no no"),
        ("Not that I see", "None yes yes None None"),
        ("It isn't there", "None yes no None None"),
        ("It isn\u2019t there", "None yes yes None None"),
        ("No, sir", "no no no None no"),
        ("No!", "no yes yes None no"),
        ("No\n", "no yes yes no no"),
        ("**No**", "no yes yes None None"),
        ("", "None yes yes None None"),
        ("Snow, I know", "None yes yes None None"),
        ("Yes. There is no doubt", "yes yes no None None"),
        ("It is not clear. Yes", "yes no no None yes"),
        ("no-one", "no yes yes None no"),
        ("yes,no", "yes yes yes None None"),
        ("1,000 no-s", "no yes yes None None"),
        ("yes.", "yes yes yes None yes"),
        ("\tyes", "yes yes yes yes yes"),
        ("no\tcat", "no yes yes None no"),
    ],
)
def test_where_parsers_part(answer, verdicts):
    parsers = ("word", "official", "opera", "lmms-eval", "vlmevalkit")
    assert " ".join(str(parse(answer, parser)) for parser in parsers) == verdicts


def test_the_default_parser_takes_the_first_whole_word():
    assert parse("There is no dog, yes?") == "no"
    assert parse("The eyes are known") is None


def test_implied_predictions_depend_on_the_label():
    assert parse("It is snowing", "vcd", label="no") == "no"
    assert parse("It is snowing", "vcd", label="yes") == "no"
    assert parse("Yes and no", "vcd", label="no") == "no"
    assert parse("Yes and no", "vcd", label="yes") == "yes"
    assert parse("", "vcd", label="no") == "yes"


def test_parsers_refuse_what_they_cannot_read():
    with pytest.raises(ValueError, match=r"no parser is called 'oprea'.*opera.*word, official"):
        parse("yes", "oprea")
    with pytest.raises(ValueError, match='pass label="yes" or label="no"'):
        parse("yes", "vcd")
    with pytest.raises(ValueError, match="must be yes or no, got 'Yes'"):
        parse("yes", "vcd", label="Yes")
    assert set(pope.PARSERS) == {"word", "official", "opera", "vcd", "lmms-eval", "vlmevalkit"}


# Metrics


def test_figures_by_hand():
    # TP 2, FP 1, TN 1, FN 1; one None under each label.
    predictions = ["yes", "yes", "no", None, "yes", "no", None]
    labels = ["yes", "yes", "yes", "yes", "no", "no", "no"]
    got = score(predictions, labels)
    assert got.accuracy == pytest.approx(3 / 7)
    assert got.precision == pytest.approx(2 / 3)
    assert got.recall == pytest.approx(2 / 3)  # without the None: 2 / (2 + 1), not 2 / 4
    assert got.f1 == pytest.approx(2 / 3)
    assert got.yes_ratio == pytest.approx(3 / 7)
    assert got.invalid == 2


def test_zero_stands_where_the_originals_divide_by_zero():
    all_no = score(["no", "no"], ["yes", "no"])
    assert (all_no.precision, all_no.recall, all_no.f1) == (0, 0, 0)
    nothing = score([None], ["no"])
    assert asdict(nothing) == dict(accuracy=0, precision=0, recall=0, f1=0, yes_ratio=0, invalid=1)


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ([], [], "nothing to score"),
        (["yes"], ["yes", "no"], "1 predictions and 2 labels"),
        (["Yes"], ["yes"], "got the prediction 'Yes'"),
        (["yes"], [None], "for the label None"),
    ],
)
def test_scores_refuse(predictions, labels, message):
    with pytest.raises(ValueError, match=message):
        score(predictions, labels)


# The benchmark

ROWS = [
    {"question_id": 1, "image": "a.png", "text": "Is there a cat in the imange?", "label": "yes"},
    {"question_id": 2, "image": "a.png", "text": "Is there a skis in the image?", "label": "no"},
    {"question_id": 3, "image": "b.png", "text": "Is there a dog in the image?", "label": "yes"},
    {"question_id": 4, "image": "b.png", "text": "Is there a cup in the image?", "label": "no"},
]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, name in enumerate("ab"):
        Image.new("RGB", (3 + number, 2), (9, 9, 9 * number)).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def written(tmp_path):
    def write(rows, name="coco_pope_random.json", array=False):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        lines = "\r\n".join(json.dumps(row) for row in rows)
        path.write_text(json.dumps(rows) if array else lines)
        return path

    return write


def test_the_benchmark_asks_the_file_as_it_stands(written, images):
    files = [written(ROWS), written(ROWS[:2], "coco_pope_adversarial.json", array=True)]
    made = Pope(files, images, suffix="llava", max_new_tokens=8)
    assert [(task.name, task.max_new_tokens, task.yes_no) for task in made.tasks] == [
        ("random", 8, True),
        ("adversarial", 8, True),
    ]
    assert len(made.items) == 6
    assert made.items[0] == Item(
        task="random",
        id="1",
        question="Is there a cat in the imange?"
        "\nAnswer the question using a single word or phrase.",
        image="a.png",
        unit="a.png",
        label="yes",
    )
    assert [item.task for item in made.items] == ["random"] * 4 + ["adversarial"] * 2
    assert made.load_image(made.items[2]).size == (4, 2)
    assert made.prediction(made.items[0], "Yes, no") == "yes"


def test_what_fixes_the_figures_is_told_without_a_path(written, images, tmp_path):
    file = written(ROWS)
    fixed = Pope([file], images, parser="opera", suffix="one-word").fixed()
    [told] = fixed["files"]
    assert (told["task"], told["name"], told["rows"]) == ("random", "coco_pope_random.json", 4)
    assert fixed["parser"] == "opera"
    assert fixed["suffix"] == "one-word"
    assert fixed["images"] == 2
    assert str(tmp_path) not in json.dumps(fixed)
    written(ROWS[:3])
    assert Pope([file], images).fixed()["files"][0]["sha256"] != told["sha256"]


def test_suffixes_to_the_byte():
    assert pope.SUFFIXES == {
        "none": "",
        "one-word": " Please answer this question with one word.",
        "llava": "\nAnswer the question using a single word or phrase.",
        "yes-no": " Please just answer yes or no.",
    }


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["x/coco_pope_random.json", "x/coco_pope_popular.json"], ["random", "popular"]),
        (["x/aokvqa_pope_ADVERSARIAL.json"], ["adversarial"]),
        (["x/my questions.json"], ["my-questions"]),
        (["x/not_random_but_popular.json"], ["not_random_but_popular"]),
        (
            ["x/coco_pope_random.json", "x/gqa_pope_random.json", "x/coco_pope_popular.json"],
            ["coco_random", "gqa_random", "popular"],
        ),
        (["coco/random.json", "gqa/random.json"], ["coco_random", "gqa_random"]),
        (["x/coco_RANDOM.json", "x/gqa_random.json"], ["coco_random", "gqa_random"]),
        (["x/random.json", "x/coco_random.json"], ["random", "coco_random"]),
        (["a/ours.json", "b/ours.json"], ["a_ours", "b_ours"]),
    ],
)
def test_tasks_are_named_by_split_and_by_what_differs(files, names, tmp_path):
    assert pope.task_names([tmp_path / file for file in files]) == names


def test_files_that_cannot_be_told_apart_are_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be told apart"):
        pope.task_names([tmp_path / "random.json", tmp_path / "random.json"])
    with pytest.raises(ValueError, match="cannot be told apart"):
        pope.task_names([tmp_path / "random.json", tmp_path / "random.jsonl"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROWS[0]] * 3, "line 2: question_id 1 comes twice, first in .* line 1"),
        ([{**row, "label": "maybe"} for row in ROWS], "line 1: label must be one of yes, no"),
        ([{**ROWS[0], "image": None}], "line 1: image must be text"),
        ([{"question_id": 1, "text": "?", "label": "no"}], "line 1: the field image is missing"),
        (
            [{"text": ["a", "b"], "label": ["yes", "no"], "chat_id": 0, "image": "a.png"}],
            "PAI's variant of several turns",
        ),
        ([], "coco_pope_random.json is empty"),
    ],
)
def test_wrong_questions_are_refused(written, images, rows, message):
    # The several turns have no question_id, which must not be what is complained of.
    with pytest.raises(ValueError, match=message):
        Pope([written(rows)], images)


def test_wrong_settings_and_missing_images_are_refused(written, images):
    file = written([*ROWS, {**ROWS[0], "question_id": 9, "image": "c.png"}])
    with pytest.raises(ValueError, match=r"1 of 3 images are not in .*images: c\.png"):
        Pope([file], images)
    for settings, message in [
        ({"parser": "x"}, "no parser is called 'x'"),
        ({"suffix": "x"}, "no suffix is called 'x'"),
        ({"max_new_tokens": 0}, "at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            Pope([file], images, **settings)
    with pytest.raises(ValueError, match="AoiDragon/POPE"):
        Pope([file.parent / "none.json"], images)
    with pytest.raises(ValueError, match="at least one file"):
        Pope([], images)


ANSWERS = ("Yes", "No.", "no", "There isn't one", "It is snowing", "", "yes", "Yes. No doubt", "NO")


def answered(items, seed=0):
    rng = np.random.default_rng(seed)
    return [Prediction(item, ANSWERS[rng.integers(len(ANSWERS))], 3) for item in items]


def many(written, images, count):
    rows = [
        {**ROWS[n % 4], "question_id": n, "label": "yes" if n % 3 else "no"} for n in range(count)
    ]
    return Pope([written(rows)], images)


@pytest.mark.parametrize("parser", pope.PARSERS)
def test_ratios_are_the_figures_of_the_score(written, images, parser):
    made = many(written, images, 200)
    made.parser = parser
    said = answered(made.items)
    predictions = [parse(entry.text, parser, entry.item.label) for entry in said]
    expected = score(predictions, [item.label for item in made.items])
    ratios = made.ratios(made.tasks[0], said, {"b.png": 0, "elsewhere": 1, "a.png": 2})
    assert {metric.name for metric in made.tasks[0].metrics} == set(ratios)
    assert all(ratio.numerator.shape == (3,) for ratio in ratios.values())
    assert ratios["accuracy"].denominator.tolist() == [100, 0, 100]
    for ratio, figure in [
        ("accuracy", "accuracy"),
        ("precision", "precision"),
        ("recall", "recall"),
        ("f1", "f1"),
        ("yes_rate", "yes_ratio"),
    ]:
        assert ratios[ratio].value == getattr(expected, figure), ratio


def test_unparsed_answers_have_no_yes_or_no_as_a_word(written, images):
    made = Pope([written(ROWS)], images, parser="official")
    texts = ["Snow", "", "Yes", "There isn't one"]
    said = [Prediction(item, text, 1) for item, text in zip(made.items, texts, strict=True)]
    ratios = made.ratios(made.tasks[0], said, {"a.png": 0, "b.png": 1})
    assert ratios["unparsed"].value == 0.75
    assert ratios["unparsed"].numerator.tolist() == [2, 1]
    assert ratios["yes_rate"].value == 1  # what the official parser makes of them


def test_what_cannot_be_divided_has_no_value(written, images):
    made = Pope([written(ROWS)], images)
    said = [Prediction(item, "No", 1) for item in made.items]
    ratios = made.ratios(made.tasks[0], said, {"a.png": 0, "b.png": 1})
    assert np.isnan(ratios["precision"].value)
    assert ratios["recall"].value == 0
    assert ratios["f1"].value == 0
    # Without answers, as where no image could be read.
    assert np.isnan(made.ratios(made.tasks[0], [], {"a.png": 0})["accuracy"].value)


def test_figures_of_9000_answers_are_quick(written, images):
    made = many(written, images, 9000)
    said = answered(made.items)
    started = time.perf_counter()
    made.ratios(made.tasks[0], said, {"a.png": 0, "b.png": 1})
    score([made.prediction(entry.item, entry.text) for entry in said], ["no"] * 9000)
    assert time.perf_counter() - started < 1  # about 0.1 s on one core
