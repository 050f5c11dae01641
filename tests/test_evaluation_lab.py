"""The lab as a benchmark: statistics, questions, metrics, decoders by name, and its runs."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from sightline import AGLA, CARVE, VDD, VDGD, PrefixOnly
from sightline.decoders import NAMED
from sightline.evaluation import answers as files
from sightline.evaluation import asking, lab, metrics, record, report, runner, statistics, summary
from sightline.evaluation.asking import ModelRunner, Preparation, Source
from sightline.evaluation.batches import cut
from sightline.evaluation.benchmark import Item, Prediction
from sightline.evaluation.command import app as evaluation
from sightline.evaluation.lab import LabBenchmark
from sightline.evaluation.metrics import Logits
from sightline.evaluation.runner import Run
from sightline.evaluation.setups import (
    FullTwice,
    own_control,
    parse_contenders,
    parse_setup,
    with_controls,
)
from sightline.evaluation.statistics import Estimate, Ratio
from sightline.lab import CHECKPOINT, CONTEXTS, OBJECTS, Placed, Scene, biased, context_of, draw
from sightline.lab.measure import chat
from sightline.setting_text import STAND_IN
from sightline.spec_text import WAYS

ONE_VIEW = "mvp:requests=What is in the image?,weights=1"
LISTED = (
    "greedy",
    "sample",
    "plausibility",
    "yes-shift",
    "vdd",
    "vdd+sample",
    "posthoc",
    "vdgd",
    "vdgd-prefix",
    "carve",
    "carve:share=1",
    "mvp",
    ONE_VIEW,
)
CLOSED = {"posthoc", "mvp", ONE_VIEW}
# A caption's request is CARVE's plain description here, so that nothing stands out.
pytestmark = pytest.mark.filterwarnings("ignore:the question draws no more attention")
SCENES, SMALL = 6, Run(seed=3, batch_size=4, temperature=1.0)
WEIGHTS = CHECKPOINT / "model.safetensors"
needs_weights = pytest.mark.skipif(not WEIGHTS.exists(), reason="the lab's weights are not there")


def ratio(numerator, denominator) -> Ratio:
    return Ratio(np.array(numerator, dtype=float), np.array(denominator, dtype=float))


# Statistics


def test_a_ratio_is_one_of_sums():
    assert ratio([1, 3], [2, 4]).value == pytest.approx(4 / 6)
    assert np.isnan(ratio([0, 0], [0, 0]).value)
    under = ratio([1, 3], [2, 4]).under(np.array([[2.0, 0.0], [0.0, 2.0]]))
    assert under.tolist() == [0.5, 0.75]
    with pytest.raises(ValueError, match=r"both be \[N\]"):
        ratio([1, 2], [1])


def test_resamples_draw_as_many_units_as_there_are():
    weights = statistics.resample(7, count=50, seed=1)
    assert weights.shape == (50, 7)
    assert (weights.sum(axis=1) == 7).all()
    assert (weights == statistics.resample(7, count=50, seed=1)).all()
    assert (weights != statistics.resample(7, count=50, seed=2)).any()
    with pytest.raises(ValueError, match="at least one unit"):
        statistics.resample(0)


def test_the_interval_of_two_units_by_hand():
    # Two units of 0 and 1: a resample's mean is 0, 1/2 or 1 with chance 1/4, 1/2, 1/4.
    weights = statistics.resample(2, count=4000)
    assert statistics.bootstrap(ratio([0, 1], [1, 1]), weights) == Estimate(0.5, 0.0, 1.0)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    weights = statistics.resample(150, count=600)
    covered = 0
    for _ in range(400):
        asked = rng.integers(1, 5, size=150)
        estimate = statistics.bootstrap(Ratio(rng.binomial(asked, 0.7) * 1.0, asked * 1.0), weights)
        covered += estimate.low <= 0.7 <= estimate.high
    assert 0.91 <= covered / 400 <= 0.98


def test_scenes_are_drawn_whole():
    # Four equal answers a scene say no more than one: the interval must not shrink.
    values = np.random.default_rng(0).integers(0, 2, size=200) * 1.0
    weights = statistics.resample(200)
    once = statistics.bootstrap(Ratio(values, np.ones(200)), weights)
    four = statistics.bootstrap(Ratio(4 * values, 4 * np.ones(200)), weights)
    assert (once.low, once.high) == pytest.approx((four.low, four.high))


def test_a_difference_is_paired():
    rng = np.random.default_rng(1)
    weights = statistics.resample(300)
    base = Ratio(rng.integers(0, 2, size=300) * 1.0, np.ones(300))
    itself = statistics.paired_difference(base, base, weights)
    assert itself == Estimate(0.0, 0.0, 0.0)
    shifted = Ratio(base.numerator + 0.25, base.denominator)
    gap = statistics.paired_difference(shifted, base, weights)
    assert (gap.value, gap.low, gap.high) == pytest.approx((0.25, 0.25, 0.25))


def test_resamples_without_a_value_are_left_out():
    weights = statistics.resample(2, count=400)
    assert statistics.bootstrap(ratio([1, 0], [2, 0]), weights) == Estimate(0.5, 0.5, 0.5)
    assert np.isnan(statistics.bootstrap(ratio([0, 0], [0, 0]), weights).low)


@pytest.mark.parametrize(
    ("low", "high", "better", "word"),
    [
        (0.1, 0.2, "higher", "better"),
        (0.1, 0.2, "lower", "worse"),
        (-0.2, -0.1, "higher", "worse"),
        (-0.2, -0.1, "lower", "better"),
        (0.1, 0.2, None, "higher"),
        (-0.2, -0.1, None, "lower"),
        (-0.1, 0.2, "higher", "no difference shown"),
        (0.0, 0.2, "higher", "no difference shown"),
        (0.0, 0.0, "lower", "no difference shown"),
        (np.nan, np.nan, "lower", "no difference shown"),
    ],
)
def test_verdict(low, high, better, word):
    assert statistics.verdict(Estimate((low + high) / 2, low, high), better) == word


# Metrics


@pytest.mark.parametrize(
    ("text", "answer"),
    [("Yes", "yes"), ("no.", "no"), (" NO, yes", "no"), ("none", None), ("eyes", None), ("", None)],
)
def test_parse(text, answer):
    assert metrics.parse(text) == answer


def asked_about(scene: int, kind: str, text: str) -> Prediction:
    label = "yes" if kind == "present" else "no"
    item = Item("presence", f"{scene}-{kind}-{text}", "?", str(scene), str(scene), label, kind)
    return Prediction(item, text, 1)


def test_presence_by_hand():
    said = [
        asked_about(0, "present", "Yes"),
        asked_about(0, "present", "No"),
        asked_about(0, "adversarial", "yes"),
        asked_about(1, "present", "yes."),
        asked_about(1, "adversarial", "maybe"),
        asked_about(1, "random", "no"),
        asked_about(1, "popular", "Yes"),
    ]
    ratios = lab.presence_ratios(said, {"0": 0, "1": 1})
    assert {name: r.value for name, r in ratios.items()} == pytest.approx(
        {
            "present": 2 / 3,
            "adversarial": 0.0,
            "random": 1.0,
            "popular": 0.0,
            "accuracy": 3 / 7,
            "yes_rate": 4 / 7,
            "f1": 2 * 2 / (4 + 3),  # precision 2/4, recall 2/3
        }
    )
    assert set(ratios) == {m.name for m in lab.PRESENCE}
    assert ratios["accuracy"].numerator.tolist() == [1, 2]
    assert ratios["accuracy"].denominator.tolist() == [3, 4]


def described(scene: int, text: str, tokens: int) -> Prediction:
    return Prediction(Item("caption", str(scene), "?", str(scene), str(scene)), text, tokens)


def test_captions_by_hand():
    said = [
        described(0, "The image contains a dog and a cup.", 7),
        described(1, "Two cars.", 5),
        described(2, "", 0),
    ]
    truth = [frozenset({"dog"}), frozenset({"car", "bus"}), frozenset({"cow"})]
    found = lab.caption_ratios(said, truth, {"0": 0, "1": 1, "2": 2})
    assert {name: r.value for name, r in found.items()} == pytest.approx(
        {"chair_i": 1 / 3, "chair_s": 1 / 3, "recall": 2 / 4, "tokens": 4.0, "named": 1.0}
    )
    assert set(found) == {m.name for m in lab.CAPTIONS}


def test_nothing_named_is_no_chair():
    found = lab.caption_ratios([described(0, "", 0)], [frozenset({"dog"})], {"0": 0})
    assert np.isnan(found["chair_i"].value)


def test_logits_answer_as_greedy_does():
    assert Logits(2.0, 1.0, 0.0).answer() == "yes"
    assert Logits(1.0, 2.0, 0.0).answer() == "no"
    assert Logits(1.0, 2.0, 3.0).answer() is None
    assert Logits(1.0, 2.0, 3.0).answer(2.5) == "yes"


def test_a_shift_turns_as_many_answers_as_it_should():
    rng = np.random.default_rng(0)
    logits = [Logits(*row) for row in rng.normal(size=(50, 3))]
    for yes in range(51):
        shift = metrics.fit_shift(logits, yes)
        assert sum(entry.answer(shift) == "yes" for entry in logits) == yes
    with pytest.raises(ValueError, match="51 of 50"):
        metrics.fit_shift(logits, 51)


# Questions


def scene_of(names: str, background: str) -> Scene:
    placed = [Placed(n.strip(), 0, 0, 0.2, (0, 0, 0), False, 0) for n in names.split(",")]
    return Scene(tuple(placed), background)


def test_absent_objects_of_each_kind():
    pools = lab.absent_pools(scene_of("fork, spoon, cup, bowl, car", "farm"))
    assert pools["adversarial"] == [
        *("bottle", "orange"),
        *("bus", "truck", "bicycle", "traffic light", "stop sign"),
    ]
    assert pools["random"] == [*CONTEXTS["farm"], *CONTEXTS["living room"]]
    assert pools["popular"] == list(CONTEXTS["farm"])


def test_questions_of_a_scene_are_about_different_objects():
    benchmark = LabBenchmark(300, seed=5)
    kinds: dict[str, int] = dict.fromkeys(lab.KINDS, 0)
    for index, scene in enumerate(benchmark.scenes):
        mine = [i for i in benchmark.items if (i.task, i.image) == ("presence", str(index))]
        objects = {kind: [i.id.split("-", 1)[1] for i in mine if i.kind == kind] for kind in kinds}
        assert len(objects["present"]) == min(3, len(scene.present))
        assert set(objects["present"]) <= set(scene.present)
        assert all(len(objects[kind]) <= 1 for kind in lab.ABSENT)
        contexts = {context_of(name) for name in scene.present}
        assert {context_of(name) in contexts for name in objects["adversarial"]} <= {True}
        assert {context_of(name) in contexts for name in objects["random"]} <= {False}
        assert {context_of(name) for name in objects["popular"]} <= {scene.background}
        assert len({i.id for i in mine}) == len(mine)
        assert {i.label for i in mine if i.kind == "present"} == {"yes"}
        for kind in lab.ABSENT:
            assert not set(objects[kind]) & set(scene.present)
            kinds[kind] += len(objects[kind])
    # A context has six members and a scene at most five objects, so some member is absent; no
    # object is random where all contexts are there: 6^4 / C(24, 4) of scenes of four objects and
    # 4 C(6, 2) 6^3 / C(24, 5) of five, which are a fifth of all each: 274 are left (deviation 5).
    assert kinds["adversarial"] == 300
    assert kinds["popular"] >= 298
    assert abs(kinds["random"] - 274) < 16


def test_a_popular_object_is_not_the_adversarial_one():
    # A kitchen scene before a kitchen: both kinds are drawn from its one absent member.
    scene = scene_of("fork, spoon, cup, bowl, bottle", "kitchen")
    asked = lab.questions([scene], np.random.default_rng(0))
    assert [(q.kind, q.object) for q in asked if q.kind != "present"] == [
        ("random", next(q.object for q in asked if q.kind == "random")),
        ("adversarial", "orange"),
    ]


def test_popular_objects_are_the_most_frequent_before_their_background():
    rng = np.random.default_rng(0)
    seen = {background: dict.fromkeys(OBJECTS, 0) for background in CONTEXTS}
    for scene in (biased(rng) for _ in range(1500)):
        for name in scene.present:
            seen[scene.background][name] += 1
    for background, counts in seen.items():
        most = sorted(counts, key=lambda name: -counts[name])[: len(CONTEXTS[background])]
        assert set(most) == set(CONTEXTS[background])


def test_the_lab_is_the_same_for_a_seed():
    assert LabBenchmark(4, 1).items == LabBenchmark(4, 1).items != LabBenchmark(4, 2).items
    assert LabBenchmark(4, 1).fixed() == {"scenes": 4, "scene_seed": 1}
    for wrong in ({"scenes": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LabBenchmark(**wrong)


# Decoders by name


def test_contenders_have_their_modes():
    found, yes_shift = parse_contenders(["vdd+sample", "plausibility", "beam", "yes-shift"], None)
    assert [(c.label, c.way) for c in found] == [
        ("greedy", "greedy"),
        ("vdd+sample", "sample"),
        ("plausibility", "sample"),
        ("beam", "beam"),
    ]
    assert yes_shift
    assert [c.is_control for c in found] == [True, False, True, True]
    sampled = found[1].generation(0.7)
    assert sampled["temperature"] == 0.7
    assert (sampled["top_k"], sampled["top_p"]) == (0, 1.0)  # the whole distribution
    assert found[1].settings["decoder"]["class"] == "VDD"
    assert parse_contenders(["vdd", "greedy"], None)[0][0].label == "greedy"


@pytest.mark.parametrize(
    ("text", "label", "mode", "made"),
    [
        ("VDD: markers = 3+4", "vdd:markers=3+4", "greedy", VDD(markers=(3, 4))),
        ("vdd:markers=3+4+Beam", "vdd:markers=3+4+beam", "beam", VDD(markers=(3, 4))),
        ("vdd:alpha=1e+0,beta=0+sample", "vdd:alpha=1e+0,beta=0+sample", "sample", VDD(1.0, 0.0)),
    ],
)
def test_a_mode_stands_behind_the_settings(text, label, mode, made):
    setup = parse_setup(text, None)
    assert (setup.label, setup.way, setup.strategy) == (label, mode, made)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["vdx"], "did you mean v[cd]d"),
        (["vdd+samples"], r"no decoder or way is called 'samples' \(did you mean sample\?\)"),
        (["vdd:alpha=1+samples"], r"alpha of vdd must be a number, got '1\+samples'"),
        (["vdd,vcd"], "names 2 decoders: separate them by blanks"),
        (["greedy+sample"], "tokens are taken in one way, got greedy and sample"),
        (["sample:temperature=1"], "sample has no settings, got temperature=1"),
        (["yes-shift:x=1"], "takes no settings and no way"),
        (["vdd", "VDD"], "names vdd more than once"),
        (["posthoc+sample"], "takes no way to decode"),
        (["mvp+sample"], "mvp answers with its best label and takes no way"),
        (["mvp:requests=What?"], "got 1 requests and 3 weights"),
        (["agla-fool"], r"did you mean agla-full\?"),
    ],
)
def test_contenders_that_do_not_exist(texts, message):
    with pytest.raises(ValueError, match=message):
        parse_contenders(texts, processor=FakeProcessor())


class FakeProcessor:
    unk_token_id = 3


def test_controls_of_methods_that_ask_or_look_again():
    texts = ["vdgd", "vdgd-prefix+sample", "agla", "agla-full", "carve", "carve:share=1", "mvp"]
    found, _ = parse_contenders([*texts, ONE_VIEW, "carve.paper_best:share=1"], STAND_IN)
    assert [(c.label, c.control_of) for c in found if c.is_control] == [
        ("greedy", ""),
        ("vdgd-prefix+sample", "vdgd"),
        ("agla-full", "agla"),
        ("carve:share=1", "carve"),
        (ONE_VIEW, "mvp"),
        ("carve.paper_best:share=1", "carve"),
    ]
    strategies = {c.label: c.strategy for c in found}
    assert strategies["vdgd-prefix+sample"] == PrefixOnly(processor=STAND_IN)
    assert strategies["agla-full"] == FullTwice(alpha=2.0, beta=0.5)
    assert strategies["carve:share=1"] == CARVE(processor=STAND_IN, share=1.0)
    assert strategies[ONE_VIEW].requests == ("What is in the image?",)
    assert [c.name for c in found if c.is_closed_set] == ["mvp", "mvp"]
    looking = {c.name for c in found if c.needs_images}
    assert looking == {"agla", "carve", "mvp"}
    pairs = summary.comparisons(found, [])
    assert pairs[len(found) - 1 :] == [
        ("agla", "agla-full"),
        ("carve", "carve:share=1"),
        ("carve", "carve.paper_best:share=1"),
        ("mvp", ONE_VIEW),
    ]


def test_controls_that_decoders_need():
    texts = ["vdd", "carve:tokens=4", "vdgd+sample", "agla:alpha=1,suffix=x", "mvp", "vdd+beam"]
    setups, _ = parse_contenders(texts, STAND_IN, lab.WORDINGS)
    labels = [c.label for c in with_controls(setups)]
    assert labels == [
        *("greedy", "sample", "plausibility", "beam", "plausibility+beam", "vdd"),
        *("carve:tokens=4", "carve:tokens=4,share=1", "vdgd+sample", "vdgd-prefix+sample"),
        *("agla:alpha=1,suffix=x", "agla-full:alpha=1"),
        *("mvp", "mvp:requests=What is in the image?,weights=1", "vdd+beam"),
    ]
    # Each of them is what its label makes.
    for setup in with_controls(setups):
        again = parse_setup(setup.label, STAND_IN, lab.WORDINGS)
        assert (again.strategy, again.way) == (setup.strategy, setup.way)
    plain, _ = parse_contenders(["vdd"], STAND_IN)
    assert [c.label for c in with_controls(plain)] == ["greedy", "sample", "plausibility", "vdd"]


def test_controls_that_are_there_are_not_added_again():
    texts = ["plausibility", "carve", "carve:share=1", "vdgd-prefix", "vdgd", "greedy"]
    setups, _ = parse_contenders(texts, STAND_IN)
    labels = [c.label for c in with_controls(setups)]
    assert sorted(labels) == sorted([*texts, "sample"])
    same, _ = parse_contenders(["carve", "carve:share=1.0"], STAND_IN)
    assert [c.label for c in with_controls(same)][3:] == ["carve", "carve:share=1.0"]
    assert own_control(parse_setup("carve:share=1", STAND_IN)) is None
    assert own_control(parse_setup("vdd", STAND_IN)) is None
    preset = own_control(parse_setup("carve.paper_best+beam", STAND_IN))
    assert preset.label == "carve.paper_best:share=1+beam"
    assert preset.strategy == replace(CARVE.paper_best(processor=STAND_IN), share=1.0)


def test_wordings_are_settings_unless_a_user_sets_them():
    wordings = {"vdgd": dict(tokens=5, request="Say."), "carve": dict(general="Say.")}

    def made(text):
        return parse_setup(text, STAND_IN, wordings)

    assert made("vdgd").strategy == VDGD(processor=STAND_IN, tokens=5, request="Say.")
    assert made("vdgd:request=Look.").strategy == VDGD(
        processor=STAND_IN, tokens=5, request="Look."
    )
    assert made("vdgd:request=Look.").label == "vdgd:request=Look."
    best = replace(CARVE.paper_best(processor=STAND_IN), general="Say.")
    assert made("carve.paper_best").strategy == best
    assert made("agla").strategy == AGLA(processor=STAND_IN)
    assert made("vdgd").settings["decoder"]["request"] == "Say." != VDGD(processor=STAND_IN).request


def test_every_name_is_listed_where_one_is_wrong():
    with pytest.raises(ValueError) as caught:
        parse_setup("nothing-like-it", None)
    assert all(name in str(caught.value) for name in (*NAMED, *WAYS))


# Costs


def an_answer(**changes) -> files.Answer:
    answer = files.Answer(
        task="presence",
        id="0-dog",
        decoder="greedy",
        question="Is there a dog in the image?",
        answer="Yes",
        tokens=1,
        batch=0,
        settings={"mode": "greedy"},
        seed=7,
        versions={},
        ms=1.5,
        first_ms=None,
        steps=1,
        peak_mb=None,
    )
    return replace(answer, **changes)


def test_costs_are_of_batches():
    batches = [
        an_answer(batch=0, ms=110.0, first_ms=10.0, steps=11, tokens=10),
        an_answer(id="1", batch=0, ms=110.0, first_ms=10.0, steps=11, tokens=8),
        an_answer(id="2", batch=1, ms=60.0, first_ms=30.0, steps=2, tokens=3),
    ]
    assert summary.costs(batches) == {
        "ms_per_answer": (55.0 + 60.0) / 2,
        "ms_per_token": (10.0 + 30.0) / 2,
        "first_token_ms": 20.0,
        "peak_mb": None,
        "tokens": 7.0,
    }
    assert summary.costs([an_answer(peak_mb=3.0), an_answer(batch=1, peak_mb=5.0)]) == {
        "ms_per_answer": 1.5,
        "ms_per_token": None,
        "first_token_ms": None,
        "peak_mb": 5.0,
        "tokens": 1.0,
    }


def test_answer_lengths_stop_at_the_end():
    said = torch.tensor([[5, 6, 2, 0], [2, 0, 0, 0], [5, 6, 7, 8]])
    assert asking.answer_lengths(said, 2) == [2, 0, 4]
    assert asking.answer_lengths(said, [2, 7]) == [2, 0, 2]
    assert asking.answer_lengths(said, None) == [4, 4, 4]


@pytest.mark.parametrize("changes", [{"batch_size": 0}, {"seed": -1}, {"temperature": 0.0}])
def test_a_run_checks_its_settings(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        replace(SMALL, **changes)


def test_folders_are_numbered(tmp_path):
    assert record.next_folder("lab", tmp_path).name == "lab-1"
    for name in ("lab-1", "lab-3"):
        (tmp_path / name).mkdir()
    assert record.next_folder("lab", tmp_path).name == "lab-2"


# On the lab's model


class Small:
    """The lab of the run, with its model and the batches."""

    def __init__(self):
        self.source = Source()
        self.processor, self.model = self.source.processor, self.source.model
        self.benchmark = LabBenchmark(SCENES, seed=3)
        self.model_runner = ModelRunner(self.model, self.processor, SMALL.temperature, versions={})
        tokenizer = self.processor.tokenizer
        self.batches = cut(self.benchmark, tokenizer, SMALL.batch_size, SMALL.seed)

    def prepared(self, task: str):
        """The first batch of a task that asks about several scenes."""
        batch = next(
            b
            for b in self.batches
            if b.task.name == task and len({item.image for item in b.items}) > 1
        )
        return Preparation(self.benchmark, self.processor)(batch)


@pytest.fixture(scope="module")
def small():
    return Small()


def evaluate(out, decoders=LISTED, run=SMALL, scenes=SCENES, **changes):
    benchmark = LabBenchmark(scenes, seed=3)
    return runner.evaluate(benchmark, decoders, run, out, wordings=lab.WORDINGS, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One uninterrupted run, its folder and its summary."""
    out = tmp_path_factory.mktemp("lab") / "run"
    return out, evaluate(out)


def whole_lines(content: bytes) -> set[bytes]:
    return set(content.splitlines(keepends=True)[: content.count(b"\n")])


def timeless(path) -> list[dict]:
    """The lines of an answers file without what a clock says."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("ms", "first_ms")} for line in lines]


@needs_weights
def test_every_question_is_answered_once(whole, small):
    answers = files.read(whole[0] / "answers.jsonl").values()
    asked = {(i.task, i.id): i.question for i in small.benchmark.items}
    closed = {label for label in LISTED if label in CLOSED}
    others = set(LISTED) - {"yes-shift"} - closed
    for label in (*others, *closed):
        mine = {(a.task, a.id): a.question for a in answers if a.decoder == label}
        tasks = {"presence"} if label in closed else {"presence", "caption"}
        assert mine == {key: text for key, text in asked.items() if key[0] in tasks}
    assert len(answers) == len(asked) * len(others) + len(closed) * sum(
        task == "presence" for task, _ in asked
    )


@needs_weights
def test_a_cut_off_run_resumes_to_the_same_answers(whole, tmp_path):
    answers, run = (whole[0] / name for name in ("answers.jsonl", "run.json"))
    content = answers.read_bytes()
    # In the middle of a line, of a batch, and of the captions.
    for share in (0.41, 0.93):
        out = tmp_path / str(share)
        out.mkdir()
        (out / "run.json").write_bytes(run.read_bytes())
        kept = content[: int(len(content) * share)]
        kept = kept[:-5] if kept.endswith(b"\n") else kept
        (out / "answers.jsonl").write_bytes(kept)
        again = evaluate(out, resume=True)
        assert timeless(out / "answers.jsonl") == timeless(answers)
        assert whole_lines(kept) <= whole_lines((out / "answers.jsonl").read_bytes())
        assert again["differences"] == whole[1]["differences"]
        for name, task in whole[1]["tasks"].items():
            for part in ("rows", "invalid", "shifts", "questions", "errors"):
                assert again["tasks"][name][part] == task[part]


@needs_weights
def test_a_finished_run_is_not_asked_again(whole, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("asked again")

    monkeypatch.setattr(ModelRunner, "generate", refuse)
    again = evaluate(whole[0], resume=True)
    assert again["tasks"] == whole[1]["tasks"]


@needs_weights
def test_other_settings_do_not_join_a_run(whole):
    with pytest.raises(ValueError, match="seed: 3 then, 4 now"):
        evaluate(whole[0], run=replace(SMALL, seed=4), resume=True)
    with pytest.raises(
        ValueError, match=r"decoders\.vdd: then, not now;.* decoders\.vcd: now, not"
    ):
        evaluate(whole[0], ["vcd"], resume=True)
    with pytest.raises(ValueError, match=r"benchmark_settings\.scenes: 6 then, 7 now$"):
        evaluate(whole[0], scenes=7, resume=True)


@needs_weights
def test_greedy_is_what_generate_says(whole, small):
    answers = files.read(whole[0] / "answers.jsonl").values()
    captions = {a.id: a for a in answers if (a.task, a.decoder) == ("caption", "greedy")}
    scenes = small.benchmark.scenes[:4]
    chats = [chat(draw(scene), "Describe the image.") for scene in scenes]
    inputs = small.processor.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    said = small.model.generate(**inputs, max_new_tokens=96)[:, inputs.input_ids.shape[1] :]
    texts = small.processor.batch_decode(said, skip_special_tokens=True)
    for scene, (text, tokens) in enumerate(zip(texts, said, strict=True)):
        assert captions[str(scene)].answer == text
        assert captions[str(scene)].tokens == (tokens > 2).sum()


def speaker(small, task):
    """`says(name)`: what a setup answers to the first batch of a task."""
    prepared = small.prepared(task)
    inputs = small.model_runner.tensors(prepared.inputs)

    def says(text: str) -> list[str]:
        setup = parse_setup(text, small.processor, lab.WORDINGS)
        return [a.answer for a in small.model_runner.answer(setup, prepared, inputs)]

    return says


@needs_weights
def test_the_labs_model_knows_the_words_it_is_asked_in(small):
    tokenizer = small.processor.tokenizer

    def pieces(text):
        return tokenizer.tokenize(text)

    asked = [
        text
        for words in lab.WORDINGS.values()
        for name in ("request", "requests", "general")
        if name in words
        for text in ([words[name]] if isinstance(words[name], str) else words[name])
    ]
    assert len(asked) == 6
    assert all(len(pieces(text)) <= len(text.split()) + 1 for text in asked)
    assert len(pieces(VDGD(processor=STAND_IN).request)) > 2 * len(
        VDGD(processor=STAND_IN).request.split()
    )


@needs_weights
def test_settings_show_the_wordings_that_were_used(whole):
    fixed = json.loads((whole[0] / "run.json").read_text())["fixed"]
    written = {label: setup.get("decoder") for label, setup in fixed["decoders"].items()}
    for name in ("vdgd", "vdgd-prefix"):
        assert written[name].items() >= lab.WORDINGS[name].items()
    assert written["mvp"]["requests"] == list(lab.DESCRIBE)
    assert written[ONE_VIEW]["requests"] == ["What is in the image?"]
    assert written[ONE_VIEW]["template"] == "{caption} {question}"
    assert (written["carve:share=1"]["general"], written["carve"]["suffix"]) == (
        "Describe this picture.",
        "",
    )


@needs_weights
@pytest.mark.parametrize("name", ["carve", "agla", "mvp"])
def test_images_are_those_of_the_prompts(small, name):
    prepared = small.prepared("presence")
    seen = []

    def generate(**kwargs):
        seen.append(kwargs.get("images"))
        raise StopIteration

    model_runner = ModelRunner(FakeModel(generate), small.processor, 1.0, {})
    for label in (name, "greedy"):
        setup = parse_setup(label, small.processor, lab.WORDINGS)
        with pytest.raises(StopIteration):
            model_runner.say(setup, prepared, small.model_runner.tensors(prepared.inputs))
    assert [p.tobytes() for p in seen[0]] == [
        small.benchmark.load_image(item).tobytes() for item in prepared.items
    ]
    assert seen[1] is None


class FakeModel:
    device = torch.device("cpu")

    def __init__(self, generate):
        self.generate = generate


@needs_weights
def test_the_full_image_twice_is_the_models_own_plausible_answer(small):
    says = speaker(small, "caption")
    assert says("agla-full") == says("greedy")
    assert says("agla-full:normalize=true+sample") == says("plausibility:beta=0.5")


@needs_weights
def test_plausibility_is_greedy_under_greedy_and_a_contrast_of_no_strength(small):
    says = speaker(small, "caption")
    assert says("plausibility+greedy") == says("greedy")
    assert says("plausibility") == says("vdd:alpha=0+sample")
    assert says("sample") == says("plausibility:beta=0")


@needs_weights
def test_logits_of_greedy_give_greedys_answers(whole):
    answers = files.read(whole[0] / "answers.jsonl").values()
    greedy = [a for a in answers if (a.task, a.decoder) == ("presence", "greedy")]
    assert [Logits(*a.logits).answer() for a in greedy] == [metrics.parse(a.answer) for a in greedy]


@needs_weights
def test_the_yes_shift_says_yes_as_often(whole):
    found = whole[1]["tasks"]["presence"]
    for label in ("vdd", "vdd+sample", "posthoc"):
        wanted = found["rows"][label]["yes_rate"]["value"]
        shift = found["rows"].get(f"yes-shift({label})", found["rows"]["greedy"])
        assert abs(shift["yes_rate"]["value"] - wanted) * found["questions"] < 1.5


@needs_weights
def test_nothing_is_said_without_an_interval(whole):
    found = whole[1]
    pairs = {(d["decoder"], d["against"]) for d in found["differences"]}
    assert {("vdd", "greedy"), ("vdd+sample", "plausibility")} <= pairs
    assert {("vdgd", "vdgd-prefix"), ("carve", "carve:share=1"), ("mvp", ONE_VIEW)} <= pairs
    assert not {f"yes-shift({c})" for c in ("vdgd-prefix", "carve:share=1", ONE_VIEW)} & {
        against for _, against in pairs
    }
    for entry in found["differences"]:
        if entry["verdict"] != "no difference shown":
            assert entry["low"] > 0 or entry["high"] < 0
    assert found["run"]["fixed"]["versions"]["torch"] == torch.__version__
    assert {"device", "cores", "threads"} <= set(found["run"]["machine"])
    costs = {name: task["cost"] for name, task in found["tasks"].items()}
    assert "posthoc" not in costs["caption"]
    assert costs["presence"]["posthoc"]["ms_per_token"] is None
    assert costs["caption"]["vdd"]["first_token_ms"] > 0
    assert costs["caption"]["vdd"]["peak_mb"] is None


@needs_weights
def test_the_summary_is_as_it_is_promised(whole):
    found = whole[1]
    assert set(found) == {"run", "resamples", "units", "tasks", "controls", "differences"}
    assert (found["resamples"], found["units"]) == (2000, SCENES)
    assert set(found["run"]["fixed"]) == {
        *("benchmark", "model", "weights", "device", "dtype", "batch_size", "seed"),
        *("temperature", "decoders", "versions", "benchmark_settings"),
        *("config", "generation_config", "attention", "processor", "tokenizer", "chat_template"),
    }
    for name, task in found["tasks"].items():
        assert set(task) == {
            *(
                "title",
                "yes_no",
                "questions",
                "errors",
                "malformed",
                "metrics",
                "rows",
                "invalid",
                "shifts",
            ),
            "cost",
        }
        assert task["yes_no"] == (name == "presence")
        names = {metric["name"] for metric in task["metrics"]}
        assert all(set(row) == names for row in task["rows"].values())
        assert set(task["rows"]) == set(task["cost"]) | set(task["shifts"])
        for cost in task["cost"].values():
            assert set(cost) == {
                *("ms_per_answer", "ms_per_token", "first_token_ms", "peak_mb", "tokens"),
            }
    assert found["controls"] == [
        *("greedy", "sample", "plausibility", "vdgd-prefix", "carve:share=1", ONE_VIEW),
    ]


@needs_weights
def test_tables_show_every_contender(whole, capsys):
    out, found = whole
    text = (out / "table.md").read_text()
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(found))
    sections = text.split("### ")[1:]
    assert [s.splitlines()[0] for s in sections] == [
        "Presence",
        "Captions",
        "Paired differences: Presence",
        "Paired differences: Captions",
    ]
    for label in set(LISTED) - {"yes-shift"}:
        assert f"| {label} |" in sections[0] and f"| {label} |" in sections[1]
    posthoc = next(line for line in sections[1].splitlines() if line.startswith("| posthoc"))
    assert set(posthoc.removesuffix(" |").split(" | ")[1:]) == {"-"}
    assert str(CHECKPOINT) not in text
    report.show(found, Console(width=160))
    shown = capsys.readouterr().out
    assert "Paired differences: Captions" in shown and "vdd+sample" in shown


@needs_weights
def command(*options):
    return CliRunner().invoke(evaluation, ["lab", *options])


def test_the_command_refuses_what_it_does_not_know(tmp_path):
    out = ["--out", str(tmp_path / "run")]
    found = command("--decoder", "vdx", *out)
    assert found.exit_code == 2 and "did you mean" in found.stderr
    assert command("--decoder", "vdd", "--scenes", "0", *out).exit_code == 2
    assert command("--decoder", "vdd", "--model", str(tmp_path / "none"), *out).exit_code == 2
    assert command("--decoder", "vdd", "--resume").exit_code == 2
    assert not (tmp_path / "run").exists()


@needs_weights
def test_a_yes_shift_needs_one_token_to_shift(tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "answer_tokens", lambda tokenizer, word: [])
    with pytest.raises(ValueError, match="no single token for yes"):
        evaluate(tmp_path, ["yes-shift"])
    assert not (tmp_path / "run.json").exists()
    found = evaluate(tmp_path, ["vdd"], scenes=1, controls=True)
    assert found["tasks"]["presence"]["shifts"] == {}


@needs_weights
def test_the_command_prints_its_tables_and_adds_no_controls(tmp_path):
    out = tmp_path / "run"
    options = ("--decoder", "vdd+vaf", "--no-controls", "--scenes", "2", "--out", str(out))
    done = command(*options)
    assert done.exit_code == 0, done.output
    assert "Presence" in done.stdout and "answers.jsonl" in done.stdout
    written = json.loads((out / "run.json").read_text())
    decoders = written["fixed"]["decoders"]
    assert list(decoders) == ["greedy", "vdd+vaf"]
    added = decoders["vdd+vaf"]["decoder"]["decoders"]
    assert [each["class"] for each in added] == ["VDD", "VAF"]
    again = command(*options)
    assert again.exit_code == 2 and "pass --resume" in again.stderr
    assert command(*options, "--resume").exit_code == 0


def test_a_batch_draws_each_scene_once():
    drawn = []

    class Counting(LabBenchmark):
        def load_image(self, item):
            drawn.append(item.image)
            return super().load_image(item)

    benchmark = Counting(2, seed=3)
    task = benchmark.tasks[0]
    items = tuple(item for item in benchmark.items if item.task == task.name)
    batch = runner.Batch(task, 0, 0, 0, items)
    prepared = Preparation(benchmark, FakeTemplate(len(items)))(batch)
    assert sorted(drawn) == ["0", "1"]
    by_scene = {item.image: p for item, p in zip(prepared.items, prepared.images, strict=True)}
    assert all(
        image is by_scene[item.image]
        for item, image in zip(prepared.items, prepared.images, strict=True)
    )


class FakeTemplate:
    chat_template = "a template"

    def __init__(self, count):
        self.count = count

    def tokenizer(self, text, **settings):
        return {"input_ids": []}

    def apply_chat_template(self, chats, tokenize, **settings):
        assert len(chats) == self.count
        if not tokenize:
            return [""] * self.count
        return {"input_ids": torch.zeros(self.count, 1)}
