"""Plots: what they show, and that it can be read."""

import builtins
import copy
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sightline.evaluation import plots

YES_NO = [
    {"name": "accuracy", "title": "accuracy", "better": "higher"},
    {"name": "f1", "title": "F1", "better": "higher"},
    {"name": "yes_rate", "title": "yes-rate", "better": None},
]
CAPTION = [
    {"name": "chair_i", "title": "CHAIR_i", "better": "lower"},
    {"name": "recall", "title": "recall", "better": "higher"},
]
NOTHING = {"value": None, "low": None, "high": None}


def between(value, reach=0.01):
    return {"value": value, "low": value - reach, "high": value + reach}


def cost(per_answer, per_token, tokens):
    return {
        "ms_per_answer": per_answer,
        "ms_per_token": per_token,
        "first_token_ms": None,
        "peak_mb": None,
        "tokens": tokens,
    }


def task(title, metrics, rows, costs, yes_no=False, shifts=(), errors=0):
    return {
        "title": title,
        "yes_no": yes_no,
        "questions": 3000,
        "errors": errors,
        "metrics": metrics,
        "rows": rows,
        "invalid": {},
        "shifts": dict.fromkeys(shifts, -0.25),
        "cost": costs,
    }


def summary_of(tasks, controls=("greedy",), benchmark="POPE", model="some/model"):
    fixed = {"benchmark": benchmark, "model": model, "dtype": "float32", "batch_size": 16}
    return {
        "run": {"fixed": fixed, "machine": {"device": "a processor"}},
        "resamples": 2000,
        "units": 500,
        "tasks": tasks,
        "controls": list(controls),
        "differences": [],
    }


def a_summary():
    """Two tasks by hand: vdd's F1 and pai's recall are not defined, pai was not timed."""
    asked = {
        "greedy": {"accuracy": between(0.8), "f1": between(0.81), "yes_rate": between(0.5)},
        "vcd": {"accuracy": between(0.7), "f1": between(0.72), "yes_rate": between(0.4)},
        "vdd": {"accuracy": between(0.6), "f1": NOTHING, "yes_rate": between(0.0)},
        "yes-shift(vcd)": {"accuracy": between(0.7), "f1": between(0.71), "yes_rate": between(0.4)},
    }
    told = {
        "greedy": {"chair_i": between(0.1), "recall": between(0.7)},
        "vcd": {"chair_i": between(0.05), "recall": between(0.75)},
        "pai": {"chair_i": between(0.06), "recall": NOTHING},
    }
    asking = {"greedy": cost(30.0, 9.0, 1.0), "vcd": cost(60.0, 9.0, 1.0), "vdd": cost(45.0, 9, 1)}
    telling = {
        "greedy": cost(2000.0, 20.0, 90.0),
        "vcd": cost(3000.0, 31.0, 80.0),
        "pai": cost(None, None, 85.0),
    }
    return summary_of(
        {
            "random": task(
                "POPE, random", YES_NO, asked, asking, True, shifts=["yes-shift(vcd)"], errors=2
            ),
            "caption": task("Captions", CAPTION, told, telling),
        },
        model="some/model",
    )


def crowd(labels, spread=0.02, seed=0):
    """A yes/no and a caption task with the labels' points near one another."""
    rng = np.random.default_rng(seed)

    def near(middle):
        return between(middle + spread * float(rng.normal()), 0.012)

    asked = {label: {"f1": near(0.86), "yes_rate": near(0.48)} for label in labels}
    told = {label: {"chair_i": near(0.09), "recall": near(0.76)} for label in labels}
    asking = {label: cost(30 + 60 * rng.random(), None, 1.0) for label in labels}
    telling = {label: cost(None, 20 + 40 * rng.random(), 70.0) for label in labels}
    return summary_of(
        {
            "adversarial": task("POPE, adversarial", YES_NO[1:], asked, asking, True),
            "caption": task("Captions of at most 512 tokens", CAPTION, told, telling),
        },
        controls=labels[:3],
    )


SHORT = ["greedy", "sample", "plausibility", "vcd", "vdd", "damro", "sid", "agla", "pai", "vaf"]
SHORT += ["deco", "dola", "icd", "m3id", "vdgd", "mvp", "carve", "vasparse", "posthoc", "beam"]
LONG = [
    f"{name}.paper:requests=What is in the image?+Describe it.,steps=end,alpha={i}.25+sample"
    for i, name in enumerate(SHORT)
]


# What is shown


def test_points_bars_and_titles_by_hand():
    asked, asked_time, told, told_time = plots.plots(a_summary())
    assert asked.title == "POPE, random: F1 against yes-rate"
    assert asked.source == "some/model, 3,000 questions. Bars are 95 % intervals by bootstrap."
    assert (asked.across, asked.upright) == (
        "yes-rate (no side is better)",
        "F1 (higher is better)",
    )
    assert set(asked.points) == {"greedy", "vcd", "yes-shift(vcd)"}
    across, upright = asked.points["vcd"]
    assert (across.value, upright.value) == (0.4, 0.72)
    assert upright.arms == pytest.approx((0.01, 0.01))
    assert told.title == "POPE, Captions: CHAIR_i against recall"
    assert (told.across, told.upright) == (
        "recall (higher is better)",
        "CHAIR_i (lower is better)",
    )
    assert set(told.points) == {"greedy", "vcd"}

    assert asked_time.title == "POPE, random: time per answer"
    assert asked_time.across == "time per answer, relative to greedy (lower is better)"
    assert asked_time.lengths == {"greedy": 1.0, "vcd": 2.0, "vdd": 1.5}
    assert asked_time.texts["vcd"] == "2.00 x  60.0 ms"
    assert asked_time.source == "some/model, 3,000 questions. a processor, float32, batches of 16."
    assert told_time.title == "POPE, Captions: time per token"
    assert told_time.lengths == {"greedy": 1.0, "vcd": 1.55}
    assert told_time.texts["vcd"] == "1.55 x  31.0 ms"


def test_what_is_left_out_is_said():
    asked, _, told, told_time = plots.plots(a_summary())
    assert asked.notes == (
        "Grey: controls.",
        "Not defined, and left out: vdd.",
        "Left out: 2 questions whose image could not be read.",
    )
    assert told.notes == ("Grey: controls.", "Not defined, and left out: pai.")
    assert told_time.notes[-1] == "Not measured, and left out: pai."


def test_accuracy_stands_in_for_f1_and_cover_for_recall():
    rows = {"greedy": {"accuracy": between(0.9), "yes_rate": between(0.4)}}
    asked = task("MME, count", [YES_NO[0], YES_NO[2]], rows, {}, True)
    metrics = [
        {"name": "chair", "title": "CHAIR", "better": "lower"},
        {"name": "cover", "title": "Cover", "better": "higher"},
    ]
    told = task("AMBER", metrics, {"vcd": {"chair": between(0.1), "cover": between(0.5)}}, {})
    found = plots.plots(summary_of({"count": asked, "generative": told}))
    assert [plot.name for plot in found] == ["count-accuracy-yes-rate", "generative-chair-cover"]
    assert found[0].points["greedy"][1].value == 0.9
    assert found[1].points["vcd"][0].value == 0.5


def test_time_without_greedy_is_absolute():
    costs = {"vcd": cost(None, 4.5, 70.0), "vdd": cost(None, 1500.0, 70.0)}
    [shown] = plots.plots(summary_of({"caption": task("Captions", [], {}, costs)}))
    assert shown.across == "time per token, ms (lower is better)"
    assert shown.lengths == {"vcd": 4.5, "vdd": 1500.0}
    assert shown.texts == {"vcd": "4.50 ms", "vdd": "1,500 ms"}
    assert not shown.is_relative


@pytest.mark.parametrize(
    ("tokens", "yes_no", "what"),
    [(1.0, False, "answer"), (90.0, True, "token"), (None, True, "answer"), (None, False, "token")],
)
def test_short_answers_are_timed_whole(tokens, yes_no, what):
    costs = {"greedy": cost(30.0, 20.0, tokens)}
    [shown] = plots.plots(summary_of({"asked": task("asked", [], {}, costs, yes_no)}))
    assert shown.title == f"POPE, asked: time per {what}"


def test_the_other_measure_serves_where_one_is_missing():
    costs = {"greedy": cost(None, 20.0, 1.0), "vcd": cost(None, 30.0, 1.0)}
    [shown] = plots.plots(summary_of({"asked": task("asked", [], {}, costs, True)}))
    assert shown.title.endswith("time per token") and shown.lengths["vcd"] == 1.5


def test_nothing_to_show_is_no_plot(tmp_path):
    rows = {"greedy": {"chair_i": NOTHING, "recall": between(0.7)}}
    costs = {"greedy": cost(None, None, None)}
    nothing = summary_of({"caption": task("Captions", CAPTION, rows, costs)})
    assert plots.plots(nothing) == []
    assert plots.draw(nothing, tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_contender_looks_the_same_in_all_plots():
    summary = a_summary()
    looks = plots.styles(summary)
    assert list(looks) == ["greedy", "vcd", "vdd", "yes-shift(vcd)", "pai"]
    assert [look.number for look in looks.values()] == [1, 2, 3, 4, 5]
    greys = {label for label, look in looks.items() if look.colour in plots.GREYS}
    assert greys == {"greedy", "yes-shift(vcd)"}
    assert looks["greedy"].colour != looks["yes-shift(vcd)"].colour
    many = plots.styles(crowd([*SHORT, *LONG[:19]]))
    seen = {(look.colour, look.marker) for look in many.values()}
    assert len(many) == len(seen) == 39  # 3 controls, and 6 colours by 6 markers


def test_an_interval_may_be_missing_or_not_hold_its_value():
    assert plots.span({"value": 0.5, "low": None, "high": None}).arms == (0.0, 0.0)
    assert plots.span({"value": 0.5, "low": 0.6, "high": 0.7}).arms == pytest.approx((0.0, 0.2))
    assert plots.span(NOTHING) is None and plots.span(None) is None


@pytest.mark.parametrize(
    ("label", "lines"),
    [
        ("greedy", ["greedy"]),
        ("vdd:variant=both,alpha=1.0,beta=0.2", ["vdd:variant=both,", "alpha=1.0,beta=0.2"]),
        ("vdd:alpha=0.25,be=1+sample", ["vdd:alpha=0.25,be=1", "+sample"]),
        ("mvp:requests=What is in it?", ["mvp:requests=What is", "in it?"]),
        ("a" * 30, ["a" * 20, "a" * 10]),
    ],
)
def test_names_break_between_settings(label, lines):
    assert plots.named(label, 20) == lines


# What is drawn


def boxes(texts):
    """Left, bottom, right and top of each text in pixels, `[N, 4]`."""
    found = [text.get_window_extent() for text in texts]
    return np.array([(box.x0, box.y0, box.x1, box.y1) for box in found])


def overlaps(found):
    areas = plots.shared_area(found, found)
    return [(i, j) for i, j in itertools.combinations(range(len(found)), 2) if areas[i, j] > 1e-6]


@pytest.mark.parametrize(
    ("labels", "spread"),
    [(SHORT[:4], 0.03), (SHORT[:12], 0.003), (SHORT, 0.0), (LONG[:4], 0.03), (LONG, 0.01)],
)
def test_everything_can_be_read(labels, spread):
    summary = crowd(labels, spread)
    looks = plots.styles(summary)
    for plot in plots.plots(summary):
        figure = plots.figure_of(plot, looks)
        figure.draw_without_rendering()
        [axes] = figure.axes
        numbers = [text for text in axes.texts if text.get_text()]
        low, high = sorted(axes.get_ylim())
        ticks = [t for t in axes.get_yticklabels() if low <= t.get_position()[1] <= high]
        titles = [axes.xaxis.label, axes.yaxis.label]
        for texts in (figure.texts, numbers, ticks, titles):
            found = boxes(texts)
            inside = (found[:, :2] >= 0) & (found[:, 2:] <= figure.bbox.size)
            assert inside.all(), [t.get_text() for t in texts]
        assert not overlaps(boxes([*figure.texts, *numbers]))
        if isinstance(plot, plots.Scatter):
            assert [text.get_text() for text in numbers] == [str(looks[n].number) for n in labels]
            across = boxes(figure.texts)[:, 0] > axes.get_window_extent().x1
            assert across.sum() >= 2 * len(labels)  # a number and a name at the side


def test_labels_cover_neither_points_nor_labels():
    rng = np.random.default_rng(0)
    sizes = np.full((30, 2), (24.0, 14.0))
    points = rng.uniform(40, 260, size=(30, 2))
    places = plots.spread(points, sizes, (0, 0, 300, 300), 5.0)
    found = np.concatenate([places - sizes / 2, places + sizes / 2], axis=1)
    marks = np.concatenate([points - 5, points + 5], axis=1)
    assert not overlaps(found)
    assert plots.shared_area(found, marks).max() < 1e-6
    assert (found >= 0).all() and (found <= 300).all()
    alone = plots.spread(points[:1], sizes[:1], (0, 0, 300, 300), 5.0)
    assert (alone - points[0]).tolist() == [pytest.approx((17.0, 12.0))]  # 5 + half its size


def test_a_label_at_the_edge_stays_inside():
    corners = np.array([(0.0, 0.0), (300.0, 0.0), (0.0, 300.0), (300.0, 300.0)])
    sizes = np.full((4, 2), (24.0, 14.0))
    places = plots.spread(corners, sizes, (0, 0, 300, 300), 5.0)
    assert (places - sizes / 2 >= 0).all() and (places + sizes / 2 <= 300).all()
    assert (np.abs(places - corners) <= (17.0, 12.0)).any(axis=1).all()  # and by its point


def test_shared_areas_by_hand():
    first = np.array([[0, 0, 2, 2], [5, 5, 6, 6]])
    second = np.array([[1, 1, 4, 3], [2, 0, 3, 2]])
    assert plots.shared_area(first, second).tolist() == [[1, 0], [0, 0]]


def test_files_are_images_and_the_same_every_time(tmp_path):
    summary = a_summary()
    before = copy.deepcopy(summary)
    written = plots.draw(summary, tmp_path)
    assert [path.name for path in written] == [
        "random-f1-yes-rate.png",
        "random-time.png",
        "caption-chair-i-recall.png",
        "caption-time.png",
    ]
    assert summary == before
    first = [path.read_bytes() for path in written]
    for path in written:
        with Image.open(path) as image:
            assert image.format == "PNG" and min(image.size) > 300
    again = plots.draw(summary, tmp_path)
    assert [path.read_bytes() for path in again] == first


def test_colours_are_on_the_image(tmp_path):
    for path in plots.draw(a_summary(), tmp_path):
        with Image.open(path) as image:
            seen = {colour for _, colour in image.convert("RGB").getcolors(2**24)}
        for colour in (plots.COLOURS[0], plots.GREYS[0]):
            assert tuple(bytes.fromhex(colour[1:])) in seen, path.name


def test_signs_in_names_are_no_mathematics(tmp_path):
    odd = "vcd:a=$_^$,b=%s\\frac{"
    summary = crowd(["greedy", odd, "x/y"])
    summary["tasks"]["a/b $c$"] = summary["tasks"].pop("caption")
    names = [path.name for path in plots.draw(summary, tmp_path)]
    assert names[2:] == ["a-b-c-chair-i-recall.png", "a-b-c-time.png"]
    assert len(list(tmp_path.iterdir())) == 4


def test_no_state_of_pyplot_is_touched(tmp_path):
    code = (
        "import sys, json; from pathlib import Path; from sightline.evaluation import plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        "summary = json.loads(Path('summary.json').read_text())\n"
        "assert len(plots.draw(summary, Path())) == 4\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    (tmp_path / "summary.json").write_text(json.dumps(a_summary()))
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *arguments, **keywords):
        if name.split(".")[0] == "matplotlib":
            raise ImportError("No module named 'matplotlib'")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r'pip install "sightline-vlm\[eval\]"'):
        plots.draw(a_summary(), tmp_path)
    assert list(tmp_path.iterdir()) == []
