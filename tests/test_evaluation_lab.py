"""The lab's evaluation: statistics, metrics, decoders by name, and runs that lose nothing."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from sightline import AGLA, CARVE, VDD, VDGD, PrefixOnly
from sightline.evaluation import answers as files
from sightline.evaluation import lab, metrics, report, statistics, summary
from sightline.evaluation.contenders import (
    NAMED,
    PLAIN,
    YES_SHIFT,
    FullTwice,
    parse_contender,
    parse_contenders,
)
from sightline.evaluation.metrics import Asked, Described, Logits
from sightline.evaluation.statistics import Estimate, Ratio
from sightline.lab import CHECKPOINT, draw

ONE_VIEW = "mvp:requests=What is in the image?,weights=1"
LISTED = (
    "greedy",
    "sampling",
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
SMALL = lab.Run(scenes=6, seed=3, batch_size=4, temperature=1.0)
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


def test_presence_by_hand():
    asked = [
        Asked(0, "present", "yes"),
        Asked(0, "present", "no"),
        Asked(0, "usual", "yes"),
        Asked(1, "present", "yes"),
        Asked(1, "usual", None),
        Asked(1, "other", "no"),
    ]
    found = {name: r.value for name, r in metrics.presence(asked, 2).items()}
    assert found == pytest.approx(
        {
            "present": 2 / 3,
            "usual": 0.0,
            "other": 1.0,
            "accuracy": 3 / 6,
            "yes_rate": 3 / 6,
            "f1": 2 * 2 / (3 + 3),  # precision 2/3, recall 2/3
        }
    )
    assert set(found) == {m.name for m in metrics.PRESENCE}


def test_captions_by_hand():
    described = [
        Described(0, frozenset({"dog", "cup"}), frozenset({"dog"}), 7),
        Described(1, frozenset({"car"}), frozenset({"car", "bus"}), 5),
        Described(2, frozenset(), frozenset({"cow"}), 0),
    ]
    found = {name: r.value for name, r in metrics.captions(described, 3).items()}
    assert found == pytest.approx(
        {"chair_i": 1 / 3, "chair_s": 1 / 3, "recall": 2 / 4, "tokens": 4.0, "named": 1.0}
    )
    assert set(found) == {m.name for m in metrics.CAPTIONS}


def test_nothing_named_is_no_chair():
    described = [Described(0, frozenset(), frozenset({"dog"}), 0)]
    assert np.isnan(metrics.captions(described, 1)["chair_i"].value)


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


# Decoders by name


def test_contenders_have_their_modes():
    found, yes_shift = parse_contenders(["vdd+sample", "plausibility", "beam", "yes-shift"], None)
    assert [(c.label, c.mode) for c in found] == [
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
    assert found[1].settings()["decoder"] == "VDD"
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
    contender = parse_contender(text, None)
    assert (contender.label, contender.mode, contender.strategy) == (label, mode, made)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["vdx"], "did you mean v[cd]d"),
        (["vdd+samples"], r"no mode is called 'samples' \(did you mean sample\?\)"),
        (["vdd:alpha=1+samples"], r"alpha of vdd must be a number, got '1\+samples'"),
        (["vdd,vcd"], "names 2 decoders: separate them by blanks"),
        (["greedy+sample"], "takes no settings and no mode"),
        (["sampling:temperature=1"], "takes no settings and no mode"),
        (["yes-shift:x=1"], "yes-shift takes no settings and no mode"),
        (["vdd", "VDD"], "names vdd more than once"),
        (["posthoc+sample"], "takes no mode"),
        (["mvp+sample"], "mvp answers with its best label and takes no mode"),
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
    found, _ = parse_contenders([*texts, ONE_VIEW, "carve.paper_best:share=1"], "words")
    assert [(c.label, c.control_of) for c in found if c.is_control] == [
        ("greedy", ""),
        ("vdgd-prefix+sample", "vdgd"),
        ("agla-full", "agla"),
        ("carve:share=1", "carve"),
        (ONE_VIEW, "mvp"),
        ("carve.paper_best:share=1", "carve"),
    ]
    strategies = {c.label: c.strategy for c in found}
    assert strategies["vdgd-prefix+sample"] == PrefixOnly("words")
    assert strategies["agla-full"] == FullTwice(alpha=2.0, beta=0.5)
    assert strategies["carve:share=1"] == CARVE("words", share=1.0)
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


def test_wordings_are_settings_unless_a_user_sets_them():
    wordings = {"vdgd": dict(tokens=5, request="Say."), "carve": dict(general="Say.")}

    def made(text):
        return parse_contender(text, "words", wordings)

    assert made("vdgd").strategy == VDGD("words", tokens=5, request="Say.")
    assert made("vdgd:request=Look.").strategy == VDGD("words", tokens=5, request="Look.")
    assert made("vdgd:request=Look.").label == "vdgd:request=Look."
    best = replace(CARVE.paper_best("words"), general="Say.")
    assert made("carve.paper_best").strategy == best
    assert made("agla").strategy == AGLA("words")
    assert made("vdgd").settings()["request"] == "Say." != VDGD("words").request


def test_every_name_is_listed_where_one_is_wrong():
    with pytest.raises(ValueError) as caught:
        parse_contender("nothing-like-it", None)
    assert all(name in str(caught.value) for name in (*NAMED, *PLAIN, YES_SHIFT))


# Answers on disk


def an_answer(**changes) -> files.Answer:
    answer = files.Answer(
        task="presence",
        decoder="greedy",
        scene=0,
        object="dog",
        kind="present",
        question="Is there a dog in the image?",
        answer='Yes, "naïve"\n',
        tokens=1,
        batch=0,
        ms=1.5,
        first_ms=None,
        steps=1,
        peak_mb=None,
        logits=(1.0, 0.1, -3.25),
    )
    return replace(answer, **changes)


def test_an_answer_survives_the_file(tmp_path):
    path = tmp_path / "answers.jsonl"
    written = [an_answer(), an_answer(scene=1, logits=None)]
    for answer in written:
        files.append(path, [answer])
    assert list(files.read(path).values()) == written
    assert files.read(tmp_path / "none.jsonl") == {}


def test_a_half_written_line_is_cut_off(tmp_path):
    path = tmp_path / "answers.jsonl"
    files.append(path, [an_answer(scene=i) for i in range(3)])
    whole = path.read_bytes()
    for missing in (1, 40, len(whole) // 3 - 1):
        path.write_bytes(whole[:-missing])
        files.repair(path)
        assert [key[2] for key in files.read(path)] == [0, 1]
    path.write_bytes(whole)
    files.repair(path)
    assert path.read_bytes() == whole
    files.repair(tmp_path / "none.jsonl")


def test_a_bad_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "answers.jsonl"
    files.append(path, [an_answer()])
    with path.open("a") as file:
        file.write('{"task": "presence"}\n')
    with pytest.raises(ValueError, match="line 2 is no answer"):
        files.read(path)
    path.unlink()
    files.append(path, [an_answer(), an_answer()])
    with pytest.raises(ValueError, match="a second time"):
        files.read(path)


def test_a_run_is_continued_only_as_it_was(tmp_path):
    header = {"fixed": {"scenes": 3, "decoders": {"vdd": {"markers": (5,)}}}, "started": "then"}
    assert files.open_run(tmp_path, header, resume=False) == {}
    with pytest.raises(ValueError, match="pass --resume"):
        files.open_run(tmp_path, header, resume=False)
    assert files.open_run(tmp_path, {**header, "started": "now"}, resume=True) == {}
    assert json.loads((tmp_path / "run.json").read_text())["started"] == "then"
    with pytest.raises(ValueError, match="scenes: 3 then, 4 now"):
        files.open_run(tmp_path, {"fixed": {**header["fixed"], "scenes": 4}}, resume=True)


def test_answers_without_their_run_are_left_alone(tmp_path):
    files.append(tmp_path / "answers.jsonl", [an_answer()])
    with pytest.raises(ValueError, match=r"has no run\.json"):
        files.open_run(tmp_path, {"fixed": {}}, resume=True)


def test_costs_are_of_batches():
    batches = [
        an_answer(task="caption", object="", batch=0, ms=110.0, first_ms=10.0, steps=11),
        an_answer(task="caption", object="", scene=1, batch=0, ms=110.0, first_ms=10.0, steps=11),
        an_answer(task="caption", object="", scene=2, batch=1, ms=60.0, first_ms=30.0, steps=2),
        an_answer(batch=0, ms=12.0),
        an_answer(scene=1, batch=0, ms=12.0),
    ]
    assert summary.costs(batches) == {
        "ms_per_question": 6.0,
        "ms_per_token": 20.0,
        "first_token_ms": 20.0,
        "peak_mb": None,
    }


def test_answer_lengths_stop_at_the_end():
    said = torch.tensor([[5, 6, 2, 0], [2, 0, 0, 0], [5, 6, 7, 8]])
    assert lab.answer_lengths(said, 2) == [2, 0, 4]
    assert lab.answer_lengths(said, [2, 7]) == [2, 0, 2]
    assert lab.answer_lengths(said, None) == [4, 4, 4]


@pytest.mark.parametrize(
    "changes", [{"scenes": 0}, {"batch_size": 0}, {"seed": -1}, {"temperature": 0.0}]
)
def test_a_run_checks_its_settings(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        replace(SMALL, **changes)


def test_folders_are_numbered(tmp_path):
    assert lab.next_folder(tmp_path).name == "lab-1"
    for name in ("lab-1", "lab-3"):
        (tmp_path / name).mkdir()
    assert lab.next_folder(tmp_path).name == "lab-2"


# On the lab's model


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One uninterrupted run, its folder and its summary."""
    out = tmp_path_factory.mktemp("lab") / "run"
    return out, lab.evaluate(LISTED, SMALL, out)


@pytest.fixture(scope="module")
def small():
    """The lab of the run, with its model."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT, dtype="float32").eval()
    return lab.Lab(model, AutoProcessor.from_pretrained(CHECKPOINT), SMALL)


def timeless(path) -> list[dict]:
    """The lines of an answers file without what a clock says."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("ms", "first_ms")} for line in lines]


@needs_weights
def test_every_question_is_answered_once(whole, small):
    answers = files.read(whole[0] / "answers.jsonl")
    contenders, _ = parse_contenders(LISTED, small.processor)
    assert len(answers) == lab.work(small, contenders)
    asked = [p for p in small.prompts() if p.task == "presence"]
    for label in ("greedy", "vdd", *CLOSED):
        mine = [a for a in answers.values() if a.decoder == label and a.task == "presence"]
        assert [(a.scene, a.object) for a in mine] == [(p.scene, p.object) for p in asked]
    captions = {a.decoder for a in answers.values() if a.task == "caption"}
    assert captions == set(LISTED) - {"yes-shift"} - CLOSED


@needs_weights
def test_a_killed_run_resumes_to_the_same_answers(whole, tmp_path):
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
        again = lab.evaluate(LISTED, SMALL, out, resume=True)
        assert timeless(out / "answers.jsonl") == timeless(answers)
        assert (out / "answers.jsonl").read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
        for part in ("presence", "caption", "invalid", "shifts", "differences"):
            assert again[part] == whole[1][part]


@needs_weights
def test_a_finished_run_is_not_asked_again(whole, monkeypatch):
    def refuse(*args):
        raise AssertionError("asked again")

    monkeypatch.setattr(lab.Lab, "answer", refuse)
    assert lab.evaluate(LISTED, SMALL, whole[0], resume=True)["presence"] == whole[1]["presence"]


@needs_weights
def test_other_settings_do_not_join_a_run(whole):
    with pytest.raises(ValueError, match="seed: 3 then, 4 now"):
        lab.evaluate(LISTED, replace(SMALL, seed=4), whole[0], resume=True)
    with pytest.raises(ValueError, match="decoders: "):
        lab.evaluate(["vcd"], SMALL, whole[0], resume=True)


@needs_weights
def test_greedy_is_what_generate_says(whole, small):
    answers = files.read(whole[0] / "answers.jsonl").values()
    captions = {a.scene: a for a in answers if (a.task, a.decoder) == ("caption", "greedy")}
    chats = [lab.chat(draw(scene), "Describe the image.") for scene in small.scenes[:4]]
    inputs = small.processor.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    said = small.model.generate(**inputs, max_new_tokens=96)[:, inputs.input_ids.shape[1] :]
    texts = small.processor.batch_decode(said, skip_special_tokens=True)
    for scene, (text, tokens) in enumerate(zip(texts, said, strict=True)):
        assert captions[scene].answer == text
        assert captions[scene].tokens == (tokens > 2).sum()


def speaker(small, batch):
    """`says(name)`: what a contender answers to the batch."""
    pictures = small.pictures(batch)
    inputs = small.encode(batch, pictures)

    def says(text: str) -> list[str]:
        contender = parse_contender(text, small.processor, lab.WORDINGS)
        return [a.answer for a in small.answer(contender, batch, inputs, pictures)]

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
    assert len(pieces(VDGD("words").request)) > 2 * len(VDGD("words").request.split())


@needs_weights
def test_settings_show_the_wordings_that_were_used(whole):
    written = json.loads((whole[0] / "run.json").read_text())["fixed"]["decoders"]
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
def test_pictures_are_those_of_the_prompts(small, name):
    batch = next(b for b in small.batches() if len({p.scene for p in b.prompts}) == 2)
    seen = []

    def generate(**kwargs):
        seen.append(kwargs.get("images"))
        raise StopIteration

    fake = lab.Lab.__new__(lab.Lab)
    fake.__dict__ = {**small.__dict__, "model": FakeModel(generate)}
    pictures = small.pictures(batch)
    for label in (name, "greedy"):
        contender = parse_contender(label, small.processor, lab.WORDINGS)
        with pytest.raises(StopIteration):
            fake.answer(contender, batch, small.encode(batch, pictures), pictures)
    assert [p.tobytes() for p in seen[0]] == [
        draw(small.scenes[p.scene]).tobytes() for p in batch.prompts
    ]
    assert seen[1] is None


class FakeModel:
    device = torch.device("cpu")

    def __init__(self, generate):
        self.generate = generate


@needs_weights
def test_the_full_picture_twice_is_the_models_own_plausible_answer(small):
    batch = next(b for b in small.batches() if b.task == "caption")
    says = speaker(small, batch)
    assert says("agla-full") == says("greedy")
    assert says("agla-full:normalize=true+sample") == says("plausibility:beta=0.5")


@needs_weights
def test_plausibility_is_greedy_under_greedy_and_a_contrast_of_no_strength(small):
    batch = next(b for b in small.batches() if b.task == "caption")
    says = speaker(small, batch)
    assert says("plausibility+greedy") == says("greedy")
    assert says("plausibility") == says("vdd:alpha=0+sample")
    assert says("sampling") == says("plausibility:beta=0")


@needs_weights
def test_logits_of_greedy_give_greedys_answers(whole):
    answers = files.read(whole[0] / "answers.jsonl").values()
    greedy = [a for a in answers if (a.task, a.decoder) == ("presence", "greedy")]
    assert [Logits(*a.logits).answer() for a in greedy] == [metrics.parse(a.answer) for a in greedy]


@needs_weights
def test_the_yes_shift_says_yes_as_often(whole):
    found = whole[1]
    for label in ("vdd", "vdd+sample", "posthoc"):
        wanted = found["presence"][label]["yes_rate"]["value"]
        shift = found["presence"].get(f"yes-shift({label})", found["presence"]["greedy"])
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
    assert found["cost"]["posthoc"]["ms_per_token"] is None
    assert found["cost"]["vdd"]["first_token_ms"] > 0
    assert found["cost"]["vdd"]["peak_mb"] is None


@needs_weights
def test_tables_show_every_contender(whole, capsys):
    out, found = whole
    text = (out / "table.md").read_text()
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(found))
    sections = text.split("### ")[1:]
    assert [s.splitlines()[0] for s in sections] == [
        "Presence",
        "Captions",
        "Paired differences: presence",
        "Paired differences: captions",
    ]
    for label in set(LISTED) - {"yes-shift"}:
        assert f"| {label} |" in sections[0] and f"| {label} |" in sections[1]
    posthoc = next(line for line in sections[1].splitlines() if line.startswith("| posthoc"))
    assert set(posthoc.split(" | ")[1:-1]) == {"-"}
    assert str(CHECKPOINT) not in text
    report.show(found, Console(width=160))
    shown = capsys.readouterr().out
    assert "Paired differences: captions" in shown and "vdd+sample" in shown


@needs_weights
def test_the_command_refuses_what_it_does_not_know(tmp_path, capsys):
    out = ["--out", str(tmp_path / "run")]
    assert lab.main(["--decoders", "vdx", *out]) == 2
    assert "did you mean" in capsys.readouterr().err
    assert lab.main(["--decoders", "vdd", "--scenes", "0", *out]) == 2
    assert lab.main(["--decoders", "vdd", "--model", str(tmp_path / "none"), *out]) == 2
    with pytest.raises(SystemExit):
        lab.main(["--decoders", "vdd", "--resume"])
    assert not (tmp_path / "run").exists()


@needs_weights
def test_a_yes_shift_needs_one_token_to_shift(tmp_path, monkeypatch):
    monkeypatch.setattr(lab, "answer_tokens", lambda tokenizer, word: [])
    with pytest.raises(ValueError, match="no single token for yes"):
        lab.evaluate(["yes-shift"], SMALL, tmp_path)
    assert lab.evaluate(["greedy"], replace(SMALL, scenes=1), tmp_path)["shifts"] == {}


@needs_weights
def test_the_command_prints_its_tables(tmp_path, capsys):
    out = tmp_path / "run"
    assert lab.main(["--decoders", "vdd", "--scenes", "2", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "Presence" in shown and "answers.jsonl" in shown
    assert lab.main(["--decoders", "vdd", "--scenes", "2", "--out", str(out)]) == 2
    assert "pass --resume" in capsys.readouterr().err


def test_a_batch_draws_each_scene_once(monkeypatch):
    drawn = []
    monkeypatch.setattr(lab, "draw", lambda scene: drawn.append(scene) or Image.new("RGB", (8, 8)))
    prompts = tuple(lab.Prompt("presence", scene, "?", name) for scene in (0, 1) for name in "abc")
    fake = lab.Lab.__new__(lab.Lab)
    fake.scenes = ["first", "second"]
    fake.model = torch.nn.Linear(1, 1)
    fake.model.device, fake.model.dtype = torch.device("cpu"), torch.float32
    fake.processor = FakeTemplate()
    batch = lab.Batch("presence", 0, prompts)
    pictures = fake.pictures(batch)
    fake.encode(batch, pictures)
    assert sorted(drawn) == ["first", "second"]
    assert [id(picture) for picture in pictures] == [id(pictures[0])] * 3 + [id(pictures[3])] * 3


class FakeTemplate:
    def apply_chat_template(self, chats, **settings):
        assert len(chats) == 6
        return torch.zeros(1)
