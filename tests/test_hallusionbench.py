"""HallusionBench: both published figures, the reader, and the benchmark."""

import json

import numpy as np
import pytest
from goldens import golden
from PIL import Image

from sightline.evaluation import hallusionbench
from sightline.evaluation.benchmark import Item, Prediction
from sightline.evaluation.hallusionbench import HallusionBench, parse, score

ACCURACIES = ("aAcc", "fAcc", "qAcc")
EXACT = 1e-11  # golden fractions are rounded to 12 digits


# Golden


def test_golden_answers_by_rule():
    inputs, expected = golden("hallusionbench")
    ones = {"yes": "1", "no": "0"}
    got = [ones[parse(row["model_prediction"], "lmms-eval")] for row in inputs["rows"]]
    assert got == expected["rule_based"]["parsed"]


def test_golden_figures_by_rule():
    inputs, expected = golden("hallusionbench")
    got = score(inputs["rows"])
    for name in ACCURACIES:
        assert getattr(got, name) == pytest.approx(expected["rule_based"][name], abs=EXACT)
    assert got.error_types is None


def test_golden_figures_of_a_judge():
    inputs, expected = golden("hallusionbench")
    judged = expected["judged"]
    got = score(inputs["rows"], judged=True)
    for name in ACCURACIES:
        assert 100 * getattr(got, name) == pytest.approx(judged[name], abs=100 * EXACT)
    assert got.rows == judged["n_questions"]
    assert got.figures == judged["n_figures"]
    assert got.questions == judged["n_question_pairs"]
    assert got.consistency == judged["consistency"]
    assert got.error_types == judged["error_types"]


def test_golden_figures_do_not_depend_on_the_order_or_on_numbers_for_texts():
    inputs, _ = golden("hallusionbench")
    numbers = {"set_id", "figure_id", "question_id", "visual_input", "gt_answer", "correctness"}
    rows = [
        {name: int(value) if name in numbers else value for name, value in row.items()}
        for row in reversed(inputs["rows"])
    ]
    for judged in (False, True):
        assert score(rows, judged=judged) == score(inputs["rows"], judged=judged)


# Parsers


@pytest.mark.parametrize(
    ("answer", "word", "rule"),
    [
        ("Yes.", "yes", "yes"),
        ("No, it is not.", "no", "no"),
        ("The eyes are the same.", None, "yes"),
        ("No, and yes.", "no", "yes"),
        ("I am not sure.", None, "no"),
        ("", None, "no"),
    ],
)
def test_where_parsers_part(answer, word, rule):
    assert parse(answer) == word
    assert parse(answer, "lmms-eval") == rule
    with pytest.raises(ValueError, match="no parser is called 'vcd': there are word, lmms-eval"):
        parse(answer, "vcd")


# Metrics


def row(category="VD", figure=1, question=0, **fields):
    base = {
        "category": category,
        "subcategory": "chart",
        "set_id": "0",
        "figure_id": str(figure),
        "question_id": str(question),
        "visual_input": "0" if category == "VS" and figure == 0 else "1",
        "gt_answer": "1",
        "model_prediction": "yes",
        "correctness": "1",
    }
    return {**base, **fields}


@pytest.mark.parametrize(
    ("category", "figure", "verdict", "right", "error"),
    [
        ("VD", 0, "1", 1, None),
        ("VD", 0, "0", 0, "VI"),
        ("VD", 0, "2", 0, "VI"),
        ("VD", 1, "0", 0, "Mix"),
        ("VD", 1, "2", 0, "VI"),
        ("VS", 0, "0", 0, "LH"),
        ("VS", 0, "2", 1, None),
        ("VS", 1, "0", 0, "Mix"),
        ("VS", 1, "2", 0, "VI"),
    ],
)
def test_verdicts_of_a_judge_one_by_one(category, figure, verdict, right, error):
    got = score([row(category, figure, correctness=verdict)], judged=True)
    assert got.aAcc == right
    assert got.qAcc == right
    assert got.error_types == {kind: int(kind == error) for kind in ("LH", "VI", "Mix")}
    assert got.figures == (0 if (category, figure) == ("VS", 0) else 1)


def test_a_language_hallucination_is_told_by_the_image_and_not_by_the_figure():
    # The published rule asks for visual_input, though figure 0 of "VS" has no image anyway.
    rows = [
        row("VS", 1, 0, visual_input="0", correctness="0"),
        row("VS", 0, 1, visual_input="1", correctness="0"),
        row("VS", 0, 2, visual_input="1", correctness="2"),
    ]
    assert score(rows, judged=True).error_types == {"LH": 1, "VI": 1, "Mix": 1}


def test_a_question_is_right_on_all_figures_and_a_figure_on_all_questions():
    rows = [
        row("VS", 0, 0),
        row("VS", 1, 0),
        row("VS", 0, 1, model_prediction="no"),
        row("VS", 1, 1),
        row("VS", 1, 2, gt_answer="0", model_prediction="No"),
    ]
    got = score(rows)
    assert got.aAcc == pytest.approx(4 / 5)
    assert got.fAcc == pytest.approx(1 / 2)  # figure 0 counts by rule, and fails on question 1
    assert got.qAcc == pytest.approx(2 / 3)
    assert got.consistency == {"correct": 1, "inconsistent": 1, "wrong": 0}
    other_set = [{**r, "set_id": "1", "model_prediction": "yes"} for r in rows[:4]]
    assert score([*rows, *other_set]).qAcc == pytest.approx(4 / 5)


def test_the_parser_of_answers_can_be_chosen():
    rows = [row(model_prediction="The eyes")]
    assert score(rows).aAcc == 1
    assert score(rows, parser="word").aAcc == 0


@pytest.mark.parametrize(
    ("rows", "judged", "message"),
    [
        ([], False, "nothing to score"),
        ([row(), row()], False, "row 2: the row VD/chart/0/1/0 comes twice, first in row 1"),
        ([row(correctness="3")], True, "row 1: correctness must be one of 0, 1, 2, got '3'"),
        ([row(gt_answer="yes")], False, "row 1: gt_answer must be one of 0, 1, got 'yes'"),
        ([row(category="VQ")], False, "row 1: category must be one of vd, vs, got 'VQ'"),
        ([row(model_prediction=None)], False, "row 1: model_prediction must be text, got None"),
        ([{"category": "VD"}], False, "row 1: the field subcategory is missing"),
    ],
)
def test_scores_refuse(rows, judged, message):
    with pytest.raises(ValueError, match=message):
        score(rows, judged=judged)


def test_an_empty_answer_is_an_answer():
    assert score([row(model_prediction="", gt_answer="0")]).aAcc == 1
    assert score([row(model_prediction="", gt_answer="0")], parser="word").aAcc == 0


# The benchmark


def published(figure, question, label, category="VS", set_id="0"):
    """A made-up row with the fields of the published file."""
    name = f"./hallusion_bench/{category}/chart/{set_id}_{figure}.png"
    absent = category == "VS" and figure == 0
    return {
        "category": category,
        "subcategory": "chart",
        "visual_input": "0" if absent else str(min(figure + 1, 2)),
        "set_id": set_id,
        "figure_id": str(figure),
        "sample_note": "made up",
        "question_id": str(question),
        "question": f"Is line {question} the longer one?",
        "gt_answer_details": "It is.",
        "gt_answer": label,
        "filename": None if absent else name,
    }


ROWS = [
    published(0, 0, "1"),
    published(0, 1, "0"),
    published(1, 0, "1"),
    published(1, 1, "0"),
    published(2, 0, "0"),
    published(2, 1, "1"),
    published(0, 0, "1", category="VD"),
]


@pytest.fixture
def home(tmp_path):
    folder = tmp_path / "hallusion_bench"
    for r in ROWS:
        if r["filename"]:
            path = tmp_path / r["filename"]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (2 + int(r["figure_id"]), 2)).save(path)
    (tmp_path / "HallusionBench.json").write_text(json.dumps(ROWS, indent=1))
    return tmp_path, folder


def test_rows_without_an_image_are_left_out_and_counted(home):
    root, folder = home
    made = HallusionBench(root / "HallusionBench.json", folder, suffix="yes-no")
    assert len(made.items) == 5
    assert made.items[0] == Item(
        task="hallusionbench",
        id="VS/chart/0/1/0",
        question="Is line 0 the longer one? Please just answer yes or no.",
        image="VS/chart/0_1.png",
        unit="VS/chart/0",
        label="yes",
        kind="VS",
    )
    assert [item.label for item in made.items] == ["yes", "no", "no", "yes", "yes"]
    assert made.items[-1].unit == "VD/chart/0"
    assert made.load_image(made.items[2]).size == (4, 2)
    assert made.prediction(made.items[0], "The eyes") is None
    fixed = made.fixed()
    assert fixed["rows without an image left out"] == 2
    assert fixed["images"] == 3
    [file] = fixed["files"]
    assert (file["name"], file["rows"]) == ("HallusionBench.json", 7)
    assert fixed["suffix"] == "yes-no"
    assert fixed["parser"] == "word"
    assert str(root) not in json.dumps(fixed)


def test_the_folder_of_images_or_the_one_around_it_may_be_passed(home):
    root, folder = home
    around = HallusionBench(root / "HallusionBench.json", root)
    assert around.items[0].image == "hallusion_bench/VS/chart/0_1.png"
    assert around.load_image(around.items[0]).size == (3, 2)
    inside = HallusionBench(root / "HallusionBench.json", folder)
    assert inside.load_image(inside.items[0]).size == (3, 2)


def each(rows, **changes):
    for row in rows:
        row.update(changes)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: each(rows, gt_answer="2"), "row 1: gt_answer must be one of 0, 1"),
        (lambda rows: each(rows[2:], filename=None), "row 3: filename must be text"),
        (lambda rows: each(rows, visual_input="3"), "visual_input must be one of 0, 1, 2"),
        (lambda rows: rows.extend([rows[0]] * 8), "row 8: the row VS/chart/0/0/0 comes twice"),
        (lambda rows: rows[3].update(filename="x/y.png"), r"1 of 4 images .*: x/y\.png"),
        (lambda rows: [rows.pop() for _ in range(5)], "no row has an image"),
    ],
)
def test_a_broken_file_is_refused(home, spoil, message):
    root, folder = home
    rows = json.loads(json.dumps(ROWS))
    spoil(rows)
    (root / "HallusionBench.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=message):
        HallusionBench(root / "HallusionBench.json", folder)


def test_figures_and_questions_are_those_of_the_file_without_a_malformed_row(home):
    root, folder = home
    rows = json.loads(json.dumps(ROWS))
    rows[5].pop("question_id")  # VS figure 2, the question that figure 1 was asked too
    (root / "HallusionBench.json").write_text(json.dumps(rows))
    made = HallusionBench(root / "HallusionBench.json", folder)
    [error] = [item for item in made.items if item.error]
    assert error.id == "HallusionBench.json, row 6"
    assert error.error.startswith("HallusionBench.json, row 6: the field question_id is missing")
    asked = [item for item in made.items if not item.error]
    # VS figure 1: yes, no wanted; figure 2: no; VD figure 0: yes.
    texts = ["yes", "yes", "no", "yes"]
    said = [Prediction(item, text, 1) for item, text in zip(asked, texts, strict=True)]
    ratios = made.ratios(made.tasks[0], said, {"VS/chart/0": 0, "VD/chart/0": 1})
    # The one row that is left of figure 2 is right; the second question has one figure left.
    assert ratios["aAcc"].numerator.tolist() == [2, 1]
    assert ratios["fAcc"].numerator.tolist() == [1, 1]
    assert ratios["fAcc"].denominator.tolist() == [2, 1]
    assert ratios["qAcc"].numerator.tolist() == [1, 1]
    assert ratios["qAcc"].denominator.tolist() == [2, 1]
    assert made.fixed()["files"][0]["rows"] == 7


def test_wrong_settings_are_refused(home):
    root, folder = home
    file = root / "HallusionBench.json"
    for settings, message in [
        ({"parser": "official"}, "no parser is called 'official'"),
        ({"suffix": "x"}, "no suffix is called 'x'"),
        ({"max_new_tokens": 0}, "at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            HallusionBench(file, folder, **settings)
    with pytest.raises(ValueError, match="tianyi-lab/HallusionBench"):
        HallusionBench(root / "none.json", folder)


@pytest.mark.parametrize("parser", hallusionbench.PARSERS)
def test_ratios_are_the_figures_of_the_score(home, parser):
    root, folder = home
    rows = [
        published(f, q, str((f + q) % 2), "VD", str(s))
        for s in range(30)
        for f in (0, 1)
        for q in (0, 1)
    ]
    for r in rows:
        r["filename"] = ROWS[-1]["filename"]
    (root / "HallusionBench.json").write_text(json.dumps(rows))
    made = HallusionBench(root / "HallusionBench.json", folder, parser=parser)
    answers = ["Yes.", "No.", "The eyes", "", "no, yes"]
    rng = np.random.default_rng(0)
    said = [Prediction(item, answers[rng.integers(5)], 2) for item in made.items]
    answered = [{**r, "model_prediction": s.text} for r, s in zip(rows, said, strict=True)]
    expected = score(answered, parser=parser)
    units = {item.unit: n for n, item in enumerate(made.items[::-4])}
    ratios = made.ratios(made.tasks[0], said, {**units, "elsewhere": 30})
    assert {metric.name for metric in made.tasks[0].metrics} == set(ratios)
    for name in ACCURACIES:
        assert ratios[name].value == getattr(expected, name)
        assert ratios[name].numerator.shape == (31,)
    assert 0 < expected.qAcc < expected.aAcc
    assert ratios["fAcc"].denominator.tolist() == [2] * 30 + [0]
    assert ratios["qAcc"].denominator.tolist() == [2] * 30 + [0]
    unparsed = sum(parse(s.text) is None for s in said)
    assert ratios["unparsed"].value == unparsed / 120
    yes = sum(parse(s.text, parser) == "yes" for s in said)
    assert ratios["yes_rate"].value == yes / 120


def test_ratios_by_hand(home):
    root, folder = home
    made = HallusionBench(root / "HallusionBench.json", folder)
    # VS figure 1: yes, no wanted; figure 2: no, yes; VD figure 0: yes.
    texts = ["yes", "no", "yes", "yes", "perhaps"]
    said = [Prediction(item, text, 1) for item, text in zip(made.items, texts, strict=True)]
    ratios = made.ratios(made.tasks[0], said, {"VS/chart/0": 0, "VD/chart/0": 1})
    assert ratios["aAcc"].numerator.tolist() == [3, 0]
    assert ratios["fAcc"].numerator.tolist() == [1, 0]
    assert ratios["fAcc"].denominator.tolist() == [2, 1]
    assert ratios["qAcc"].numerator.tolist() == [1, 0]
    assert ratios["qAcc"].denominator.tolist() == [2, 1]
