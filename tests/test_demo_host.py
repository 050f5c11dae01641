"""What answers behind the page: turns, limits, stops, and why each token came."""

import logging
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from lab_copies import with_argument
from PIL import Image, ImageOps
from transformers import AutoProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from sightline import VCD, VDD, Contrastive, answer
from sightline.chat import prompt_inputs
from sightline.demo import host as hosts
from sightline.demo.comparison import Answer, Comparison, SamplingSettings, slow_down
from sightline.demo.decoding import Bounds, Decoded
from sightline.demo.events import Events
from sightline.demo.host import Host, Limits, pixels_seen
from sightline.demo.lab_job import LabJob
from sightline.demo.running import Listener
from sightline.demo.scheduler import ForwardScheduler, Stopped, Work
from sightline.demo.turns import Turns
from sightline.lab import CHECKPOINT, IMAGES
from sightline.specs import Spec, parse_spec

DESCRIBE = "Describe the image."


@pytest.fixture(scope="module")
def host():
    return Host()


def compared(host, *names, image="corner.png", question=DESCRIBE, **drawing):
    ways = tuple(name if isinstance(name, Spec) else host.way(name) for name in names)
    drawn = SamplingSettings(**{"max_new_tokens": 48, **drawing})
    return Comparison(host.open_shipped(image), question, ways, drawn)


def finished(running, seconds=60.0):
    end = time.monotonic() + seconds
    while not running.is_over:
        running.wait(0.2)
        assert time.monotonic() < end, "the answers did not end"
    return running.answers


# Turns


class Machine(torch.nn.Module):
    """A model whose forward is told of, and takes a while."""

    def __init__(self, seconds=0.0):
        super().__init__()
        self.device = torch.device("cpu")
        self.seconds = seconds
        self.calls = []

    def forward(self, name):
        time.sleep(self.seconds)
        self.calls.append(name)


def side_by_side(scheduler, tasks):
    """Runs the tasks in threads that begin in order, none before all wait; returns their works."""
    works = {name: scheduler.work(60.0, seed, name[0]) for name, (seed, _) in tasks.items()}
    turn = scheduler.turns.ask()  # nobody begins before all are here

    def run(name, task):
        with scheduler.working(works[name]):
            task(name)

    threads = []
    for name, (_, task) in tasks.items():
        threads.append(threading.Thread(target=run, args=(name, task)))
        threads[-1].start()
        while len(scheduler.turns._line) < len(threads):
            time.sleep(0.001)
    scheduler.turns.end(turn)
    for thread in threads:
        thread.join(20)
    return works


def test_forwards_of_a_clients_answers_take_turns():
    machine = Machine()
    scheduler = ForwardScheduler(machine)
    calls = (None, lambda name: [machine(name) for _ in range(3)])
    side_by_side(scheduler, dict.fromkeys(("a0", "a1", "a2"), calls))
    assert machine.calls == ["a0", "a1", "a2"] * 3


def test_clients_have_as_much_of_the_model_however_many_answers_they_ask_for():
    machine = Machine(seconds=0.01)
    calls = (None, lambda name: [machine(name) for _ in range(12)])
    side_by_side(ForwardScheduler(machine), dict.fromkeys(("a0", "a1", "a2", "a3", "b0"), calls))
    last_of_b = max(i for i, name in enumerate(machine.calls) if name == "b0")
    assert 18 <= last_of_b <= 30  # after 12 of the other's 48; by answers it would be the 60th


def test_only_work_in_its_own_turn_is_counted():
    machine = Machine(seconds=0.06)
    works = side_by_side(
        ForwardScheduler(machine),
        dict.fromkeys("ab", (None, lambda name: [machine(name) for _ in range(5)])),
    )
    for work in works.values():
        assert 0.30 <= work.worked < 0.55  # 0.60 with the other's


def test_draws_are_those_of_each_thread_alone():
    machine = Machine()
    drawn = {"a": [], "b": []}

    def draw(name):
        for _ in range(4):
            machine(name)
            drawn[name].append(float(torch.rand(1)))

    side_by_side(ForwardScheduler(machine), {"a": (1, draw), "b": (2, draw)})
    for name, seed in (("a", 1), ("b", 2)):
        torch.manual_seed(seed)
        assert drawn[name] == [float(torch.rand(1)) for _ in range(4)]


def test_a_stopped_work_ends_before_its_next_forward():
    machine = Machine()
    scheduler = ForwardScheduler(machine)
    work = scheduler.work(60.0)
    with pytest.raises(Stopped), scheduler.working(work):
        machine("first")
        work.stop()
        machine("second")
    assert machine.calls == ["first"]
    with scheduler.working(scheduler.work(60.0)):  # the turn was given back
        machine("next")


def test_a_work_ends_at_its_time():
    work = Work(Turns(), seconds=0.01)
    work.begin()
    time.sleep(0.02)
    with pytest.raises(Stopped, match=r"after 0\.01 s"):
        work.step_back()


def test_a_turn_is_given_back_whatever_goes_wrong(monkeypatch):
    scheduler = ForwardScheduler(Machine())
    for name in ("check", "_end"):
        with monkeypatch.context() as broken:
            broken.setattr(Work, name, lambda work: 1 / 0)
            with pytest.raises(ZeroDivisionError), scheduler.working(scheduler.work(60.0)):
                pass
        assert not scheduler.turns._taken and not scheduler.turns._line


def test_threads_without_work_are_left_alone():
    machine = Machine()
    scheduler = ForwardScheduler(machine)
    scheduler.turns.ask()  # somebody has the turn
    machine("other")
    assert machine.calls == ["other"]
    scheduler.leave()
    assert not machine._forward_pre_hooks


# Answers


def test_answers_side_by_side_are_those_of_generate(host):
    comparison = compared(host, "greedy", "vcd", parse_spec("vdd:alpha=0.5"))
    answers = finished(host.start(comparison))
    expected = [
        answer(host.model, host.processor, IMAGES / "corner.png", DESCRIBE, decoder, **length)
        for decoder in (None, VCD(), VDD(alpha=0.5))
        for length in [dict(max_new_tokens=48)]
    ]
    assert [said.text for said in answers] == expected
    assert len(set(expected)) == 3
    for said in answers:
        assert said.state == "done" and said.first > 0 and said.each > 0
        assert (
            len(said.ids) == len(said.pieces)
            and said.ids[-1] == host.processor.tokenizer.eos_token_id
        )
        assert said.pieces[-1] == "" and said.peak is None


def test_two_at_once_get_what_each_gets_alone(host):
    one = compared(host, "sample", "vcd", temperature=1.3, seed=5)
    two = compared(host, "sample", "vcd", temperature=1.3, seed=6, image="yard.png")
    alone = [[said.text for said in finished(host.start(asked))] for asked in (one, two)]
    both = [host.start(asked) for asked in (one, two)]
    assert [[said.text for said in finished(running)] for running in both] == alone
    torch.manual_seed(5)
    image = IMAGES / "corner.png"
    drawn = dict(max_new_tokens=48, do_sample=True, temperature=1.3, num_beams=1)
    assert alone[0][0] == answer(host.model, host.processor, image, DESCRIBE, **drawn)


def test_arguments_of_the_template_are_in_answers_explanations_and_scripts(host, tmp_path):
    """The template writes another question, so all of them are answers to that one."""
    question = "Is there a cup in the image?"
    other = Host(with_argument(tmp_path / "told"), chat_template_kwargs={"asks": question})
    ways = ("greedy", parse_spec("vdd"))
    expected = [
        said.text for said in finished(host.start(compared(host, *ways, question=question)))
    ]
    comparison = compared(other, *ways)
    answers = finished(other.start(comparison))
    assert [said.text for said in answers] == expected
    assert expected != [said.text for said in finished(host.start(compared(host, *ways)))]
    [(row, *_), *_] = other.explain(comparison, 1, answers[1]).tables
    assert row.is_chosen and row.token.strip() == expected[1]
    script = tmp_path / "script.py"
    script.write_text(Events(other).script(comparison))
    script.write_text(script.read_text().replace('"told"', repr(other.checkpoint)))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"greedy: {expected[0]}", f"vdd: {expected[1]}"]
    job = LabJob(other, (parse_spec("greedy"),), 1, SamplingSettings())
    job.start()
    job.wait(60)
    assert f"--template 'asks={question}'" in job.result.table


def test_arguments_that_the_template_does_not_take_are_refused():
    with pytest.raises(ValueError, match="takes no argument 'enable_thinking'"):
        Host(chat_template_kwargs={"enable_thinking": False})


def test_one_answer_is_stopped_and_the_others_go_on(host):
    comparison = compared(host, "greedy", "vdd")
    whole = [said.text for said in finished(host.start(comparison))]
    running = host.start(comparison)
    while len(running.answers[0].ids) < 3:
        running.wait(5.0)
    running.stop(0)
    at_once = running.answers[0]
    assert at_once.state == "stopped"
    assert whole[0].startswith(at_once.text) and len(at_once.text) < len(whole[0])
    answers = finished(running)
    assert answers[0] == at_once and answers[1].text == whole[1]


def test_all_are_stopped(host):
    running = host.start(compared(host, "greedy", "vdd", "vcd"))
    running.stop()
    assert running.is_over
    assert [said.state for said in running.answers] == ["stopped"] * 3
    assert finished(host.start(compared(host, "greedy")))[0].state == "done"


def test_an_answer_ends_at_the_time_that_is_allowed():
    host = Host(limits=Limits(seconds=0.02))
    said = finished(host.start(compared(host, "greedy", "vcd", "mvp")))
    assert [each.state for each in said] == ["stopped"] * 3
    assert all("0.02 s" in each.note for each in said)


def test_the_lab_is_asked_in_its_own_words(host):
    way = host.way("carve")
    assert way == parse_spec("carve:general=Describe this picture.,suffix=")
    assert host.way("vdd") == parse_spec("vdd")
    assert host.check(compared(host, "mvp", "vdgd", "carve")) == []


def test_slow_down_is_taken_to_the_first_plain_answer():
    ways = (parse_spec("vdd"), parse_spec("greedy"), parse_spec("vcd"))
    said = [Answer(ids=(1, 2, 3), later=later) for later in (3.0, 2.0, 5.0)]
    assert [slow_down(ways, said, i) for i in range(3)] == [1.5, None, 2.5]
    assert slow_down(ways[:1], said[:1], 0) is None
    assert slow_down(ways, [Answer(ids=(1,)), *said[1:]], 0) is None


# Refusals

WRONG = {
    "empty question": (dict(question=" "), "question", "there is no question"),
    "long question": (
        dict(question="x" * 20_000),
        "question",
        "20000 characters, and at most 2000",
    ),
    "no tokens": (dict(max_new_tokens=0), "drawing", "1 to 256 tokens, got 0"),
    "many tokens": (dict(max_new_tokens=257), "drawing", "1 to 256 tokens, got 257"),
    "half a token": (dict(max_new_tokens=1.5), "drawing", "1 to 256 tokens, got 1.5"),
    "cold": (dict(temperature=-1.0), "drawing", "temperature is 0 to 5, got -1"),
    "not a number": (dict(temperature=float("nan")), "drawing", "temperature is 0 to 5, got nan"),
    "seed": (dict(seed=-1), "drawing", "seed is a whole number"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_asked_is_said_beside_its_control(host, name):
    wrong, where, text = WRONG[name]
    comparison = compared(host, "greedy", **wrong)
    [complaint] = host.check(comparison)
    assert complaint.where == where and text in complaint.text
    with pytest.raises(ValueError, match=r"\w"):
        host.start(comparison)


def test_wrong_settings_are_said_beside_their_decoder(host):
    ways = (
        parse_spec("greedy"),
        parse_spec("vdd:beta=7"),
        parse_spec("vcd:noise_step=1000"),
        parse_spec("vdd+beam"),
    )
    found = host.check(compared(host, *ways))
    assert [(complaint.where, complaint.way) for complaint in found] == [
        ("way", i) for i in (1, 2, 3)
    ]
    assert "beta must be in [0, 1], got 7" in found[0].text
    assert "noise_step" in found[1].text and "leave beam out" in found[2].text


def test_too_many_answers_are_refused(host):
    [complaint] = host.check(compared(host, *["greedy"] * 5))
    assert complaint.where == "page" and "1 to 4 answers, got 5" in complaint.text


def test_images_of_visitors_carry_what_is_known_of_them(host):
    with Image.open(IMAGES / "yard.png") as opened:
        opened.load()
    own = host.own(Decoded(opened, (600, 400)), "yard.png")
    assert (own.source, own.original) == ("file:yard.png", (600, 400))
    assert own.truth == host.open_shipped("yard.png").truth
    with pytest.raises(ValueError, match=r"corner\.png"):
        host.open_shipped("../model.png")


def test_images_are_kept_as_large_as_model_and_page_need(host):
    """The lab's model sees a square of 64 pixels a side; the page shows 768 in a row."""
    assert host.model.config.vision_config.image_size == 64
    assert pixels_seen(host.model, host.processor) == 64 * 64
    assert host.bounds == Bounds(50_000_000, 128, 20.0)
    assert Host(limits=Limits(seconds=3)).bounds.seconds == 3


def test_scenes_come_from_their_seeds(host):
    assert host.scene(3).image.tobytes() == host.scene(3).image.tobytes()
    assert host.scene(3).image.tobytes() != host.scene(4).image.tobytes()
    assert host.scene(3).truth and host.scene(3).source == "scene:3"


@pytest.mark.parametrize("limits", [dict(max_new_tokens=0), dict(seconds=-1), dict(waiting=0)])
def test_limits_that_allow_nothing_are_refused(limits):
    with pytest.raises(ValueError, match="must be above 0"):
        Limits(**limits)


def test_a_decoder_that_the_model_cannot_serve_says_so_and_the_others_answer(tmp_path):
    """The attention of a class token needs one, and SigLIP has none."""
    lab = LlavaConfig.from_pretrained(CHECKPOINT)
    vision = lab.vision_config
    shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    config = LlavaConfig(
        vision_config=dict(
            model_type="siglip_vision_model",
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            **shape,
        ),
        text_config=lab.text_config,
        image_token_index=lab.image_token_id,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    parts = AutoProcessor.from_pretrained(CHECKPOINT)
    LlavaProcessor(
        parts.image_processor,
        parts.tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy="full",
        chat_template=parts.chat_template,
        num_additional_image_tokens=0,
    ).save_pretrained(tmp_path)
    host = Host(str(tmp_path))
    asks_for_class = parse_spec("damro:score=concat")
    assert host.name == tmp_path.name and not host.is_lab
    damro, vdd = finished(host.start(compared(host, asks_for_class, "vdd", max_new_tokens=4)))
    assert damro.state == "failed" and "this vision tower has none: use score" in damro.note
    assert vdd.state == "done"


def test_other_errors_tell_clients_nothing(host, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise RuntimeError("in /secret/folder")

    monkeypatch.setattr(hosts, "reply", fail)
    with caplog.at_level(logging.ERROR):
        [said] = finished(host.start(compared(host, "greedy")))
    assert said.state == "failed" and "secret" not in said.note and "log" in said.note
    assert "in /secret/folder" in caplog.text


def test_a_value_error_of_others_tells_clients_nothing(host, monkeypatch):
    def fail(*args, **kwargs):
        int("/secret/folder")

    monkeypatch.setattr(hosts, "prompt_inputs", fail)
    monkeypatch.setattr(hosts.lab, "__file__", "/somewhere/else/lab/__init__.py")
    [said] = finished(host.start(compared(host, "greedy")))
    assert said.state == "failed" and "secret" not in said.note


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids, skip_special_tokens):
        return bytes(ids).decode(errors="replace")


def test_half_a_character_waits_for_its_other_half():
    class Processor:
        tokenizer = Bytes()

    news = []
    heard = Listener(Processor(), Work(Turns(), 1.0), lambda **new: news.append(new))
    heard.put(torch.tensor([[1, 2, 3]]))  # the prompt
    for token in " né!".encode():
        heard.put(torch.tensor([token]))
    assert news[-1]["pieces"] == ("", "n", "", "é", "!")


# Why


def test_tables_are_of_the_answers_own_steps(host):
    comparison = compared(host, parse_spec("vdd:alpha=1.5,beta=0.2"))
    [said] = finished(host.start(comparison))
    why = host.explain(comparison, 0, said)
    assert why.names == ("as asked", "no image")
    assert len(why.tables) == len(why.attention) == len(why.shares) == len(said.ids)
    inputs = prompt_inputs(host.model, host.processor, comparison.image.image, DESCRIBE)
    out = host.model.generate(
        **inputs,
        max_new_tokens=len(said.ids),
        custom_generate=VDD(alpha=1.5, beta=0.2),
        output_logits=True,
        return_dict_in_generate=True,
    )
    for step, token in enumerate(said.ids):
        expert, amateur = out.branch_logits[step][:, 0]
        row = next(row for row in why.tables[step] if row.is_chosen)
        shown = torch.tensor([*row.branches, row.score])
        after = Contrastive(1.5, 0.2)([expert[None], amateur[None]])[0].softmax(-1)
        both = [branch.softmax(-1)[token] for branch in (expert, amateur)]
        # float32; shown with attention recorded, expected without
        torch.testing.assert_close(shown, torch.stack([*both, after[token]]), atol=1e-4, rtol=1e-3)
        shares = expert.softmax(-1)
        least = float(shares[shares >= 0.2 * shares.max()].min())
        assert why.cuts[step] == pytest.approx(least, rel=1e-3)
        for row in why.tables[step]:
            near = abs(row.branches[0] - why.cuts[step]) < 1e-4
            assert near or (row.score is None) == (row.branches[0] < why.cuts[step])


OWN_CUTS = [
    parse_spec("deco"),
    parse_spec("vdgd:tokens=4"),
    parse_spec("vdgd:truncation=knee,tokens=4"),
]


@pytest.mark.parametrize("way", OWN_CUTS, ids=lambda way: way.label)
def test_what_rules_of_other_cuts_leave_out_is_shown(host, way):
    comparison = compared(host, way)
    [said] = finished(host.start(comparison))
    why = host.explain(comparison, 0, said)
    for cut, rows in zip(why.cuts, why.tables, strict=True):
        assert 0 < cut <= max(row.branches[0] for row in rows)
        assert any(row.score is None for row in rows)
        for row in rows:
            near = abs(row.branches[0] - cut) < 1e-6  # float32
            assert near or (row.score is None) == (row.branches[0] < cut)


def test_tables_hold_the_ten_best_and_what_came(host):
    comparison = compared(host, "greedy")
    [said] = finished(host.start(comparison))
    never = replace(said, ids=(*said.ids[:2], host.processor.tokenizer.pad_token_id))
    why = host.explain(comparison, 0, never)
    assert [len(rows) for rows in why.tables] == [10, 10, 11]
    for rows in why.tables:
        assert sum(row.is_chosen for row in rows) == 1
        order = [row.branches[0] for row in rows[:10]]
        assert order == sorted(order, reverse=True)
    assert why.cuts == (None,) * 3


def test_looks_are_images_of_the_images_shape(host):
    wide = host.open_shipped("yard.png").image.resize((900, 300))
    comparison = replace(compared(host, "vcd"), image=host.own(Decoded(wide), "wide.png"))
    [said] = finished(host.start(comparison))
    why = host.explain(comparison, 0, said)
    assert all(look.size == (448, 149) and look.mode == "L" for look in why.attention)
    assert all(look.getextrema()[1] == 255 for look in why.attention)
    assert all(0 < share < 1 for share in why.shares)


def test_looks_follow_the_image_when_it_is_mirrored(host):
    """What the model says first of a scene with one object lies where the object is."""
    scene = next(s for s in map(host.scene, range(100)) if len(s.truth) == 1)
    strongest = []
    for image in (scene.image, ImageOps.mirror(scene.image)):
        comparison = replace(compared(host, "greedy"), image=replace(scene, image=image))
        [said] = finished(host.start(comparison))
        look = np.asarray(host.explain(comparison, 0, said).attention[4])
        strongest.append(np.unravel_index(look.argmax(), look.shape)[1] / look.shape[1])
    assert abs(strongest[0] - 0.5) > 0.1
    assert strongest[0] == pytest.approx(1 - strongest[1], abs=0.13)  # two of 16 columns of tokens


def test_votes_have_no_tables(host):
    comparison = compared(host, "mvp", question="Is there a bus in the image?")
    [said] = finished(host.start(comparison))
    with pytest.raises(ValueError, match="MVP lets whole answers vote"):
        host.explain(comparison, 0, said)
    with pytest.raises(ValueError, match="no token yet"):
        host.explain(comparison, 0, Answer())


def test_what_a_page_does_not_offer_is_refused(host):
    ways = (
        parse_spec("mvp:k=1000"),
        parse_spec("vcd:alpha=1e9"),
        parse_spec(f"mvp:requests={'+'.join(['Describe.'] * 9)},weights={'+'.join('1' * 9)}"),
        parse_spec(f"icd:instruction={'x' * 5000}"),
    )
    found = host.check(compared(host, *ways))
    assert [complaint.way for complaint in found] == [0, 1, 2, 3]
    assert "k of MVP is 1 to 10 on this page, got 1000" in found[0].text
    assert "alpha of VCD is 0 to 3 on this page" in found[1].text
    assert all("at most 8 parts of 2000 characters" in one.text for one in found[2:])


def test_tokens_of_another_model_are_not_explained(host):
    for ids in ((10**6,), tuple([5] * 300)):
        with pytest.raises(ValueError, match="are not this model's"):
            host.explain(compared(host, "greedy"), 0, Answer(ids=ids))


def test_a_token_that_does_not_exist_stands_for_no_image(host):
    unknown = parse_spec("vdd:variant=unk,unk_token_id=1000000000")
    [said] = finished(host.start(compared(host, unknown)))
    assert said.state == "failed" and "tokens must be below 426" in said.note


def test_votes_come_at_once_and_have_no_time_per_token(host):
    comparison = compared(host, "greedy", "mvp", question="Is there a bus in the image?")
    answers = finished(host.start(comparison))
    assert answers[1].first > 0 and answers[1].each is None
    assert slow_down(comparison.ways, answers, 1) is None


def test_an_answer_that_was_stopped_in_the_queue_makes_no_forward(host):
    with host.scheduler.turns.taken():
        running = host.start(compared(host, "greedy"))
        running.stop()
    while host.scheduler.turns._line or host.scheduler.turns._taken:
        time.sleep(0.01)
    assert running._works[0].forwards == 0


def test_a_panic_ends_an_answer(host, monkeypatch):
    def panic(*args, **kwargs):
        raise BaseException("in a tokenizer")

    monkeypatch.setattr(hosts, "reply", panic)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    [said] = finished(host.start(compared(host, "greedy")))
    assert said.state == "failed"


def test_a_page_on_which_nothing_can_answer_does_not_start(monkeypatch):
    host = Host(limits=Limits(max_new_tokens=1))
    host.warm_up()

    def fail(*args, **kwargs):
        raise RuntimeError

    monkeypatch.setattr(hosts, "reply", fail)
    with pytest.raises(ValueError, match=r"sightline\.lab cannot answer"):
        host.warm_up()


def test_every_column_has_answered_before_the_first_visitor(host, monkeypatch):
    """Or the first answer would pay for what is loaded late, and its times be no others'."""
    asked, start = [], host.start
    monkeypatch.setattr(host, "start", lambda one: asked.append(one) or start(one))
    host.warm_up()
    [comparison] = asked
    assert [way.name for way in comparison.ways] == ["greedy", "vcd", "vdd", "pai"]
    assert len(comparison.ways) == host.limits.ways


def test_samples_of_an_evaluation_are_its_own(host):
    def table():
        job = LabJob(host, [parse_spec("sample")], 12, SamplingSettings(seed=3))
        job.start()
        return job

    def figures(job):
        job.wait(60)
        assert job.is_over and job.result is not None, job.refused
        rows = [line.split(" | ") for line in job.result.table.splitlines()]
        return [row[:6] for row in rows if row[0] == "| sample"]

    alone = figures(table())
    job = table()
    for seed in range(3):
        finished(host.start(compared(host, "sample", "sample", temperature=1.5, seed=seed)))
    assert figures(job) == alone and len(alone) == 2
