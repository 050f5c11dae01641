"""The page without a browser: what its forms hold, what it shows, and what its events do."""

import base64
import json
import re
from dataclasses import replace
from html import unescape
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from torch import OutOfMemoryError

from sightline.demo import layout, wiring
from sightline.demo import page as demo_page
from sightline.demo.comparison import (
    Answer,
    Comparison,
    Explained,
    FieldError,
    Row,
    SamplingSettings,
    SourceImage,
)
from sightline.demo.comparison_run import ComparisonRun
from sightline.demo.decoding import Bounds, Decoded, open_comparison
from sightline.demo.events import Events, frame
from sightline.demo.forms import (
    form_of_drawing,
    form_of_way,
    is_shown,
    offer,
    read_drawing,
    read_scenes,
    read_way,
)
from sightline.demo.host import Host
from sightline.demo.lab_events import LabEvents
from sightline.demo.lab_job import LabJob
from sightline.demo.lab_run import LabRun
from sightline.demo.rendering import (
    attention_panel,
    card,
    duration,
    heated,
    legend,
    memory,
    panel,
    percent,
    shown_image,
    smaller,
    table,
)
from sightline.demo.scheduler import ForwardScheduler
from sightline.demo.sessions import Sessions
from sightline.demo.uploads import Upload, bare
from sightline.specs import parse_spec

STYLE = layout.STYLE.read_text(encoding="utf-8")
TRUTH = frozenset({"cup", "chair"})


def image(size=(8, 6), source="shipped:corner.png", truth=TRUTH):
    return SourceImage(Image.new("RGB", size, "white"), source, truth)


def asked(*ways, question="Describe the image.", **given):
    return Comparison(image(**given), question, ways or (parse_spec("greedy"), parse_spec("vdd")))


def said(*pieces, state="done", **given):
    return Answer(state, tuple(range(len(pieces))), pieces, **given)


def text_of(html):
    return unescape(re.sub(r"<[^>]*>", "", html))


def tokens_of(html):
    """(index, tabindex, name, text) of each token of a card."""
    found = re.findall(
        r'<span class="token" role="button" data-index="(\d+)" tabindex="(-?\d)"'
        r'(?: aria-label="([^"]*)")?[^>]*>(.*?)</span>',
        html,
    )
    return [
        (int(index), int(tab), unescape(name) or text_of(text), text_of(text))
        for index, tab, name, text in found
    ]


# Forms


def test_a_way_is_read_from_its_form_without_what_is_unchanged():
    form = {"name": "vcd", "settings": {"alpha": "0.5", "beta": "0.10"}, "is_shown": True}
    assert read_way(form) == parse_spec("vcd:alpha=0.5")
    assert read_way({"name": "greedy", "settings": {}}) == parse_spec("greedy")
    preset = {"name": "vcd.pope_paper", "settings": {"noise_step": "999", "beta": "0.3"}}
    assert read_way(preset) == parse_spec("vcd.pope_paper:beta=0.3")


def test_a_way_comes_back_from_the_form_that_it_fills():
    way = parse_spec("vdgd:layout=continue,tokens=96")
    assert read_way(form_of_way(way)) == way
    assert is_shown(form_of_way(way)) and not is_shown(form_of_way(way, False))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (None, "a decoder's name is needed"),
        ({"name": 3}, "a decoder's name is needed"),
        ({"name": "vcd"}, "settings by name are needed"),
        ({"name": "vcd", "settings": {"alpha": 1}}, "a setting's text is needed"),
        ({"name": "vcd", "settings": {"alpha": "much"}}, "must be a number, got 'much'"),
        ({"name": "vcd", "settings": {"gamma": "1"}}, "no setting of vcd is called 'gamma'"),
        ({"name": "holiday", "settings": {}}, "no decoder is called 'holiday'"),
        ({"name": "icd", "settings": {"instruction": "a" * 10_001}}, "has 10001 characters"),
        ({"name": "vcd", "settings": dict.fromkeys(map(str, range(101)), "")}, "load the page"),
    ],
)
def test_a_form_that_cannot_be_read_says_what_is_wanted(form, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_way(form)


def test_a_sum_comes_back_from_its_form():
    way = parse_spec("vdd:alpha=0.5+vaf:enhance=0.2+sample")
    form = form_of_way(way)
    assert form["settings"] == {} and read_way(form) == way
    heading = re.search("<h3>(.*?)</h3>", card(asked(way), (Answer(),), 0, 0))[1]
    assert heading == "vdd <span>alpha=0.5</span>+vaf <span>enhance=0.2</span>+sample"
    with pytest.raises(ValueError, match="several decoders, whose settings"):
        read_way({**form, "settings": {"alpha": "1"}})


def test_every_decoder_is_offered_with_its_paper_and_controls():
    offered = offer(lambda name: parse_spec(name, ["beta=0.5"] if name == "vcd" else []))
    assert list(offered)[:4] == ["greedy", "sample", "vcd", "vcd.pope_paper"]
    vcd, preset = offered["vcd"], offered["vcd.pope_paper"]
    assert vcd["url"] == "https://arxiv.org/abs/2311.16922"
    assert vcd["begins"] == {"beta": "0.5"}
    assert [control["name"] for control in vcd["controls"]][:2] == ["alpha", "beta"]
    noise = {entry["name"]: entry["default"] for entry in preset["controls"]}["noise_step"]
    assert noise == "999"
    assert preset["meaning"].startswith(vcd["meaning"]) and len(preset["meaning"]) > len(
        vcd["meaning"]
    )
    assert offered["greedy"]["controls"] == [] and offered["greedy"]["url"] == ""


def test_the_drawing_is_read_from_its_form():
    drawing = SamplingSettings(64, 0.7, 3)
    assert read_drawing(form_of_drawing(drawing)) == drawing
    assert read_drawing({}) == SamplingSettings()
    assert read_drawing({"max_new_tokens": "32.0"}) == SamplingSettings(max_new_tokens=32)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"seed": "1.5"}, "the seed must be a whole number, got '1.5'"),
        ({"temperature": "warm"}, "the temperature must be a number, got 'warm'"),
        ({"temperature": "nan"}, "the temperature must be a number, got 'nan'"),
        ({"max_new_tokens": "1e999"}, "the max new tokens must be a whole number"),
        ([], "settings by name are needed"),
    ],
)
def test_a_drawing_that_cannot_be_read_says_what_is_wanted(form, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_drawing(form)


def test_the_number_of_scenes_has_a_range():
    assert read_scenes({"scenes": "4"}) == 4
    for text in ("3", "501", "many"):
        with pytest.raises(ValueError, match="number of scenes"):
            read_scenes({"scenes": text})


# Files


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("../../etc/passwd", "passwd"),
        ("..\\secret.png", "secret.png"),
        ("a\nb\x00.png", "ab.png"),
        ("", "image"),
        ("x" * 300 + ".png", "x" * 96 + ".png"),
    ],
)
def test_names_are_made_harmless(name, expected):
    assert bare(name) == expected


# Answers


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.00841, "8.4 ms"), (0.2304, "230 ms"), (1.24, "1.2 s"), (0.9996, "1.0 s")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (1.0, "100.0 %"),
        (0.9307, "93.1 %"),
        (0.0025, "0.25 %"),
        (0.00004, "< 0.01 %"),
        (0.0, "0.00 %"),
    ],
)
def test_shares(share, text):
    assert percent(share) == text


def test_memory():
    assert memory(310_400_000) == "310 MB" and memory(14_240_000_000) == "14.2 GB"


def test_tokens_are_buttons_of_which_tab_reaches_one():
    answers = (said("A", " cup", "."), said("A", " cup", "."))
    found = tokens_of(card(asked(), answers, 0, place=2))
    assert [(index, tab, text) for index, tab, _, text in found] == [
        (0, 0, "A"),
        (1, -1, "cup"),
        (2, -1, "."),
    ]


def test_the_text_of_a_card_is_the_answer_with_its_blanks():
    answers = (said("Two", "  cups", "\n", "and <b>", " &", ""),) * 2
    html = card(asked(), answers, 0, place=0)
    body = re.search(r'<div class="tokens"[^>]*>(.*?)</div>', html, re.DOTALL)[1]
    assert text_of(body) == "Two  cups\nand <b> &"


def test_marks_tell_what_is_new_found_and_invented():
    first, second = said("A", " cup", "."), said("A", " bus", " and", " cup", ".")
    comparison = asked()
    names = {text: name for _, _, name, text in tokens_of(card(comparison, (first, second), 1, 1))}
    assert names["bus"] == "bus, not in the first answer, not in the image"
    assert names["and"] == "and, not in the first answer"
    assert names["cup"] == "cup, in the image"
    assert names["A"] == "A"
    html = card(comparison, (first, second), 1, 1)
    assert '<mark class="invented new first last">bus</mark>' in html
    assert '<mark class="found first last">cup</mark>' in html
    assert "not in the first answer" not in card(comparison, (first, second), 0, 0)


def test_a_mark_over_several_tokens_begins_and_ends_once():
    truth = frozenset({"stop sign"})
    answers = (said("A", " st", "op", " sign", "."),) * 2
    html = card(asked(truth=truth), answers, 0, 0)
    assert re.findall(r'<mark class="([^"]*)">([^<]*)</mark>', html) == [
        ("found first", "st"),
        ("found", "op"),
        ("found last", "sign"),
    ]


def test_nothing_is_new_before_the_first_answer_is_over():
    first = said("A", state="answering")
    growing = said("A", " bus", state="answering")
    assert "mark" in card(asked(), (replace(first, state="done"), growing), 1, 1)
    html = card(asked(truth=None), (first, growing), 1, 1)
    assert "<mark" not in html


def test_what_an_answer_misses_is_said_once_it_is_done():
    answers = (said("A", " cup", "."),) * 2
    assert "missed: chair" in card(asked(), answers, 0, 0)
    stopped = (replace(answers[0], state="stopped", note="stopped"),) * 2
    assert "missed" not in card(asked(), stopped, 0, 0)
    about_one = asked(question="Is there a bus in the image?")
    assert "missed" not in card(about_one, answers, 0, 0)


def test_a_card_tells_its_state_and_why_it_ended():
    answers = (said("A", state="stopped", note="stopped after 5 s"), Answer())
    html = card(asked(), answers, 0, place=3)
    assert '<article id="answer-3" class="answer" data-state="stopped"' in html
    assert "stopped after 5 s" in html
    assert re.search(r"data-halt hidden", html)
    waiting = card(asked(), answers, 1, place=1)
    assert 'data-state="waiting"' in waiting and "data-halt hidden" not in waiting
    assert "the answer is empty" in card(asked(), (said(""),) * 2, 0, 0)


def test_long_settings_are_cut_in_a_heading():
    way = parse_spec(f"icd:instruction={'a' * 40},alpha=0.5")
    html = card(asked(way), (Answer(),), 0, 0)
    heading = re.search("<h3>(.*?)</h3>", html)[1]
    assert text_of(heading) == f"icd instruction={'a' * 15}\N{HORIZONTAL ELLIPSIS} alpha=0.5"


def test_figures_are_those_that_are_known():
    fast = said("a", "b", "c", first=0.05, later=0.02, peak=2_000_000_000)
    slow = said("a", "b", "c", first=0.1, later=0.05)
    comparison = asked()
    assert re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", card(comparison, (fast, slow), 1, 1)) == [
        ("first token", "100 ms"),
        ("per token", "25 ms"),
        ("slow-down", "2.5\N{MULTIPLICATION SIGN} greedy"),
    ]
    own = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", card(comparison, (fast, slow), 0, 0))
    assert ("peak memory", "2.0 GB") in own and "slow-down" not in dict(own)
    assert "<dt>" not in card(comparison, (Answer(), Answer()), 1, 1)


def test_whatever_comes_from_outside_is_escaped():
    evil = '<img src=x onerror="alert(1)">'
    comparison = asked(parse_spec("icd", [f"instruction={evil}"]), source=f"file:{evil}")
    answers = (said(evil, state="stopped", note=evil),)
    explained = Explained((evil,), ((Row(evil, (1.0,), 1.0, True),),), (None,), note=evil)
    for html in (
        card(comparison, answers, 0, 0),
        panel(comparison, 0, 0, answers[0], explained, 0),
        shown_image(comparison.image),
        legend(comparison),
    ):
        assert "<img src=x" not in html and 'onerror="alert' not in html


def test_tokens_without_letters_have_a_name():
    found = tokens_of(card(asked(), (said("A", " ", "", ""),) * 2, 0, 0))
    assert [name for _, _, name, _ in found] == ["A", "blank", "no text of its own", "end"]


def test_signs_around_a_mark_are_escaped():
    html = card(asked(), (said("<cup>"),) * 2, 0, 0)
    assert '>&lt;<mark class="found first last">cup</mark>&gt;</span>' in html


def test_the_legend_explains_the_marks_that_can_occur():
    assert text_of(legend(asked())).count("word") == 3
    assert "chair, cup" in legend(asked())
    one = legend(asked(parse_spec("greedy"), truth=None))
    assert "<mark" not in one and "In the image" not in one


# Why a token came


def explained(**given):
    rows = (
        Row("\N{OPEN BOX}bus", (0.5, 0.25), 0.75, True),
        Row("\N{OPEN BOX}cup", (0.04, 0.5), None),
    )
    attention = (Image.new("L", (4, 3), 255),) * 2
    return Explained(
        **{
            "names": ("as asked", "no image"),
            "tables": (rows, rows),
            "cuts": (0.05, None),
            "attention": attention,
            "shares": (0.125, 0.5),
            **given,
        }
    )


def test_the_table_has_a_column_for_each_branch_and_marks_what_was_left_out():
    html = table(explained(), 0)
    assert re.findall(r'<th scope="col">(.*?)</th>', html) == [
        "token",
        "as asked",
        "no image",
        "after the rule",
    ]
    came, cut = re.findall(r'<tr class="(.*?)">(.*?)</tr>', html)
    assert came[0] == "chosen" and cut[0] == "cut"
    assert text_of(came[1]) == "\N{OPEN BOX}bus came50.0 %25.0 %75.0 %"
    assert text_of(cut[1]) == "\N{OPEN BOX}cup4.0 %50.0 %left out"
    assert "less than 5.0 % in the first column" in html
    assert "leaves no token out" in table(explained(), 1)


def test_the_panel_leads_to_the_tokens_beside():
    html = panel(asked(), 1, 3, said("a", " bus"), explained(), 1)
    assert 'data-place="3" data-index="1"' in html
    assert re.search(r'id="previous-token" data-go="0"[^>]*aria-label="Previous token">', html)
    assert re.search(r'id="next-token" data-go="2"[^>]* disabled>', html)
    assert "\N{LEFT DOUBLE QUOTATION MARK}bus" in html and "Token 2 of 2 of vdd" in html


def test_the_overlay_says_how_much_fell_on_the_image():
    html = attention_panel(image(), explained(), 0)
    assert "12.5 % of the attention fell on the image" in html and "data:image/webp" in html
    without = attention_panel(image(), explained(attention=None, note="no places"), 0)
    assert "<img" not in without and "fell on the image. no places" in text_of(without)


def test_places_that_were_looked_at_are_coloured():
    looks = np.zeros((6, 8), np.uint8)
    looks[:, :4] = 255
    heat = np.asarray(heated(image().image, Image.fromarray(looks)), int)
    assert heat.shape == (6, 8, 3)
    left, right = heat[3, 0], heat[3, 7]
    assert left[0] - left[2] > 50, "the strongest place is yellow"
    assert right[2] >= right[0], "the weakest is not"


def test_large_images_are_shown_smaller():
    assert smaller(Image.new("RGB", (2000, 1000))).size == (640, 320)
    assert smaller(Image.new("RGB", (3000, 1))).size == (640, 1)
    small = Image.new("RGB", (20, 10))
    assert smaller(small) is small


def test_the_shown_image_is_inside_the_page():
    html = shown_image(image(source="scene:17"))
    data = re.search(r'src="data:image/webp;base64,([^"]*)"', html)[1]
    assert Image.open(BytesIO(base64.b64decode(data))).size == (8, 6)
    assert "scene 17 of the lab, 8 \N{MULTIPLICATION SIGN} 6" in html


# Rounds and events


class FakeRunning:
    """Answers that change when the test says so."""

    def __init__(self, count):
        self.answers = (Answer("answering"),) * count
        self.stopped = []

    @property
    def is_over(self):
        return all(answer.is_over for answer in self.answers)

    def wait(self, seconds):
        return True

    def stop(self, number=None):
        self.stopped.append(number)
        self.answers = tuple(
            replace(answer, state="stopped") if number in (None, i) else answer
            for i, answer in enumerate(self.answers)
        )


class FakeHost:
    """A host that notes what it is asked."""

    name, device = "sightline.lab", "cpu"
    dtype = SimpleNamespace(value="float32")
    limits = SimpleNamespace(ways=4, pixels=1000, max_new_tokens=256, waiting=64, seconds=9)
    bounds = Bounds(1000, 128)
    scheduler = ForwardScheduler(
        SimpleNamespace(device=None, register_forward_pre_hook=lambda hook: None)
    )

    def __init__(self):
        self.template = {}
        self.complaints = []
        self.started = []
        self.explained = []

    def own(self, found, name):
        return SourceImage(found.image, f"file:{name}", None, found.original)

    def shipped(self):
        return ["corner.png"]

    def open_shipped(self, name):
        return image(source=f"shipped:{name}")

    def scene(self, seed):
        return image(source=f"scene:{seed}")

    def check(self, comparison):
        return self.complaints

    def start(self, comparison, client):
        self.started.append(FakeRunning(len(comparison.ways)))
        return self.started[-1]

    def explain(self, comparison, number, answer, client):
        self.explained.append(number)
        return explained()


@pytest.fixture
def host():
    return FakeHost()


@pytest.fixture
def events(host):
    return Events(host)


@pytest.fixture
def lab(host):
    return LabEvents(host)


def begin(events, *forms, question="Describe the image.", chosen=None, round=None, drawing=None):
    shown = chosen or image()
    return events.begin({}, shown, shown.source, round, question, drawing or {}, *forms)


GREEDY, VDD, GONE = (
    form_of_way(parse_spec("greedy")),
    form_of_way(parse_spec("vdd")),
    form_of_way(parse_spec("vcd"), False),
)


class Sent:
    """Uploads of which one has arrived."""

    def __init__(self, found):
        self.found = found

    def read_image(self, sent):
        return Upload(sent["name"], self.found)

    def read_comparison(self, sent):
        return self.found


def loaded(events, text, round=None):
    """What a page shows that is given a file with this text."""
    try:
        events.uploads = Sent(open_comparison(text, events.host.bounds))
    except ValueError as refused:  # as the upload says it
        return events.complain("load", str(refused))
    return events.load({"name": "a.json"}, round)


def test_a_file_that_has_arrived_is_shown_with_its_name(host):
    found = Decoded(Image.new("RGB", (8, 6)), original=(800, 600))
    changed = Events(host, Sent(found)).choose_file({"name": "a.png"})
    assert changed["source"] == "file:a.png" and changed["chosen"].image is found.image
    said = text_of(changed["image"])
    assert (
        said == "a.png, 800 \N{MULTIPLICATION SIGN} 600, made smaller: 8 \N{MULTIPLICATION SIGN} 6"
    )


def test_a_file_that_did_not_arrive_is_refused(events):
    changed = events.choose_file({"name": "a.png", "size": 3})
    assert list(changed) == ["error-image"]
    assert "a.png did not arrive" in changed["error-image"]


def test_columns_that_are_hidden_are_not_asked(events):
    round = begin(events, GREEDY, GONE, VDD)["round"]
    assert [way.name for way in round.comparison.ways] == ["greedy", "vdd"]
    assert round.places == (0, 2)


def test_complaints_stand_by_their_columns(events, host):
    host.complaints = [FieldError("way", "vdd cannot", 1), FieldError("question", "no words")]
    changed = begin(events, GREEDY, GONE, VDD)
    assert "round" not in changed
    assert "vdd cannot" in changed["error-way-2"] and "no words" in changed["error-question"]
    assert text_of(changed["error-way-0"]) == text_of(changed["error-image"]) == ""


def test_settings_that_cannot_be_read_are_complained_of_beside_the_others(events, host):
    host.complaints = [FieldError("way", "vdd cannot", 0)]
    bad = {"name": "vcd", "settings": {"alpha": "much"}, "is_shown": True}
    changed = begin(events, bad, VDD, drawing={"seed": "x"})
    assert "must be a number" in changed["error-way-0"] and "vdd cannot" in changed["error-way-1"]
    assert "the seed must be" in changed["error-drawing"]
    host.complaints = [FieldError("page", "1 to 4 answers, got 0")]
    assert "got 0" not in begin(events, bad)["error-page"]
    assert "got 0" in begin(events)["error-page"]


def begin_anew(events, source):
    return events.begin({}, None, source, None, "Describe the image.", {}, GREEDY, VDD)


def test_what_a_new_page_shows_is_asked_about(events):
    for source in ("shipped:corner.png", "scene:17"):
        assert begin_anew(events, source)["round"].comparison.image.source == source


@pytest.mark.parametrize(
    "source", ["file:corner.png", "shipped:../corner.png", "scene:-1", "scene:x", ""]
)
def test_files_that_are_no_longer_kept_must_be_chosen_again(events, source):
    changed = begin_anew(events, source)
    assert "there is no image" in changed["error-image"] and "round" not in changed


def test_a_second_press_does_not_begin_again(events):
    round = begin(events, GREEDY, VDD)["round"]
    assert begin(events, GREEDY, VDD, round=round) == {}


def test_answers_are_followed_to_their_end(events, host):
    round = begin(events, GREEDY, VDD)["round"]
    shown = events.follow({}, round)
    first = next(shown)
    assert {name for name in first if "answering" in first[name]} == {"answer-0", "answer-1"}
    assert events.rest({}, round) == {}
    running = host.started[0]
    running.answers = (said("A", " cup", "."), Answer("answering"))
    second = next(shown)
    assert second.keys() == first.keys() and 'data-state="done"' in second["answer-0"]
    running.answers = (running.answers[0], said("A"))
    [last] = shown
    assert 'data-state="done"' in last["answer-1"]
    assert events.rest({}, round) == events.rest({}, None) == {"compare": True, "stop": False}


def test_long_answers_are_shown_less_often():
    short, long = (
        ComparisonRun(asked(), (0, 1), (said(*["a"] * count),) * 2) for count in (10, 450)
    )
    assert frame(short) == 0.08 and frame(long) == pytest.approx(3 * 0.08)


def test_answers_end_when_nobody_looks_any_more(events, host):
    round = begin(events, GREEDY, VDD)["round"]
    shown = events.follow({}, round)
    next(shown)
    shown.close()
    assert host.started[0].stopped == [None] and round.is_over


def test_one_answer_is_halted_by_its_column(events, host):
    round = begin(events, GREEDY, GONE, VDD)["round"]
    next(events.follow({}, round))
    host.started[0].stopped.clear()
    changed = events.halt(2, round)
    assert host.started[0].stopped == [1]
    assert 'data-state="stopped"' in changed["answer-2"]
    assert events.halt(1, round) == {}


def test_a_round_that_is_stopped_in_the_queue_never_begins(events, host):
    round = begin(events, GREEDY, VDD)["round"]
    changed = events.stop({}, round)
    assert changed["compare"] is True and 'data-state="stopped"' in changed["answer-0"]
    [shown] = events.follow({}, round)
    assert 'data-state="stopped"' in shown["answer-1"] and host.started == []


def test_comparisons_of_a_client_wait_while_others_answer(events, host, monkeypatch):
    monkeypatch.setattr("sightline.demo.events.PATIENCE", 0.01)
    rounds = [begin(events, GREEDY, VDD)["round"] for _ in range(4)]
    shown = [events.follow({}, round, client) for round, client in zip(rounds, "aaab", strict=True)]
    for one in shown:
        next(one)
    assert [round.has_begun for round in rounds] == [True, True, False, True]
    assert 'data-state="waiting"' in next(shown[2])["answer-0"]
    shown[0].close()
    assert "answering" in next(shown[2])["answer-0"] and rounds[2].has_begun
    for one in shown:
        one.close()
    assert events.comparisons.count == 0


def test_two_events_of_one_round_have_one_turn(events, host):
    round = begin(events, GREEDY, VDD)["round"]
    first, second = events.follow({}, round), events.follow({}, round)
    next(first)
    assert len(list(second)) == 1 and events.comparisons.count == 1 and not round.is_over
    first.close()


def test_a_round_that_finds_too_many_waiting_is_stopped_and_told(events, host, monkeypatch):
    monkeypatch.setattr("sightline.demo.events.PATIENCE", 0.01)
    events.comparisons.waiting = 1
    shown = []
    for _ in range(4):
        round = begin(events, GREEDY)["round"]
        shown.append(events.follow({}, round, "a"))
        last = next(shown[-1])
    assert "try again in a minute" in last["error-page"] and round.is_over
    assert 'data-state="stopped"' in last["answer-0"] and list(shown[-1]) == []
    for one in shown:
        one.close()
    assert events.comparisons.count == 0 and not events.comparisons._line


def test_explanations_and_evaluations_wait_for_their_turn(events, lab, host, jobs, monkeypatch):
    monkeypatch.setattr("sightline.demo.lab_events.PATIENCE", 0.01)
    host.limits = SimpleNamespace(**{**vars(FakeHost.limits), "seconds": 0.01})
    round = ComparisonRun(asked(), (0, 1), (said("A"), said("A")))
    with events.explanations.taken("b"):
        changed = events.open_token({"place": 0, "index": 0}, round, None, "a")
    assert "try again in a minute" in changed["panel"] and host.explained == []
    with lab.turns.taken("a"):
        shown = lab.run({}, "a", {}, {}, GREEDY)
        first, waits = next(shown), next(shown)
        assert first["lab-run"] is False and waits == {} and jobs[0].done is None
    assert next(shown)["lab-progress"]
    shown.close()
    lab.turns.waiting = 0
    with lab.turns.taken("a"):
        told = list(lab.run({}, "a", {}, {}, GREEDY))[-1]
    assert "try again in a minute" in told["error-lab"] and told["lab-run"] is True


def test_an_answer_that_is_halted_in_the_queue_stays_halted(host):
    round = ComparisonRun(asked(), (0, 1))
    round.stop(1)
    round.begin(host, "ada")
    assert host.started[0].stopped == [1]


def test_rounds_that_were_left_are_not_shown_any_more(events, host):
    round = begin(events, GREEDY, VDD)["round"]
    shown = events.follow({}, round)
    next(shown)
    round.leave()
    assert list(shown) == []  # the buttons are another round's by now


def test_a_full_queue_is_told(events):
    round = begin(events, GREEDY, VDD)["round"]
    changed = events.give_up({}, round)
    assert "try again in a minute" in changed["error-page"] and round.is_over


def test_tokens_of_one_answer_are_explained_once(events, host):
    round = ComparisonRun(asked(), (0, 2), (said("A", " bus"), said("A", " bus")))
    first = events.open_token({"place": 2, "index": 0}, round, None)
    assert 'data-index="0"' in first["panel"] and host.explained == [1]
    second = events.open_token({"place": 2, "index": 1}, round, first["opened"])
    assert 'data-index="1"' in second["panel"] and host.explained == [1]
    events.open_token({"place": 0, "index": 1}, round, first["opened"])
    assert host.explained == [1, 0]
    assert events.open_token({"place": 2, "index": 2}, round, first["opened"]) == {}
    assert events.open_token({"place": 1, "index": 0}, round, None) == {}
    assert events.open_token({"place": 2, "index": "0"}, round, None) == {}


def test_what_cannot_be_explained_says_why(events, host):
    def refuse(*_):
        raise ValueError("whole answers vote")

    host.explain = refuse
    round = ComparisonRun(asked(), (0, 1), (said("A"), said("A")))
    changed = events.open_token({"place": 0, "index": 0}, round, None)
    assert "whole answers vote" in changed["panel"] and "alert" in changed["panel"]
    assert "press Compare again" in events.open_token({"place": 0}, None, None)["panel"]


def test_a_comparison_is_saved_and_comes_back(events):
    round = ComparisonRun(asked(), (0, 2), (said("A", " bus"), said("A", " cup", ".")))
    file = events.save({}, round)["files"]
    old = ComparisonRun(asked(), (0, 1))
    changed = loaded(events, file["text"], old)
    assert old.is_left and old.is_over
    assert changed["round"].answers == round.answers
    assert changed["question"] == "Describe the image."
    assert changed["compare"] is True and changed["stop"] is False
    assert [is_shown(changed[f"way-{place}"]) for place in range(4)] == [True, True, False, False]
    assert changed["chosen"].image.tobytes() == round.comparison.image.image.tobytes()


def test_answers_that_were_saved_half_way_are_over_when_they_come_back(events):
    round = ComparisonRun(asked(), (0, 1), (said("A", state="answering"), Answer()))
    file = events.save({}, round)["files"]
    back = loaded(events, file["text"])["round"]
    assert back.is_over and back.answers[0].pieces == ("A",)


def test_answers_that_this_page_could_not_have_given_are_refused(events, host):
    file = events.save({}, ComparisonRun(asked(), (0, 1), (said("A", " b"), said("A"))))["files"]
    for name, value, message in (
        ("limits", SimpleNamespace(ways=4, pixels=1000, max_new_tokens=1), "has 2 tokens, and at"),
        ("name", "other/model", "those of sightline.lab, and other/model answers here"),
    ):
        setattr(host, name, value)
        changed = loaded(events, file["text"])
        assert list(changed) == ["error-load"] and message in text_of(changed["error-load"])


def test_files_that_are_no_comparison_change_nothing(events):
    changed = loaded(events, "{")
    assert list(changed) == ["error-load"] and text_of(changed["error-load"])
    assert list(events.save({}, None)) == ["error-load"]


# The lab's evaluation


class FakeJob:
    """An evaluation that counts up, and then has this result."""

    def __init__(self, *given, result=None, refused=""):
        self.given, self.result, self.refused = given, result, refused
        self.done, self.total, self.stops = None, 2, 0

    @property
    def is_stopped(self):
        return self.stops > 0

    @property
    def is_over(self):
        return self.done == self.total

    def start(self):
        self.done = 0

    def wait(self, seconds):
        self.done += 1

    def stop(self):
        self.stops += 1


@pytest.fixture
def jobs(monkeypatch):
    made = []

    def make(*given):
        plot = Image.new("RGBA", (4, 4))
        made.append(FakeJob(*given, result=LabRun(2, 2, "| table |", (plot,), "a note")))
        return made[-1]

    monkeypatch.setattr("sightline.demo.lab_events.LabJob", make)
    return made


def test_an_evaluation_asks_the_shown_columns_and_is_watched(lab, host, jobs):
    shown = list(lab.run({}, "ada", {"scenes": "5"}, {"seed": "3"}, GREEDY, GONE, VDD))
    assert jobs[0].given == (
        host,
        [parse_spec("greedy"), parse_spec("vdd")],
        5,
        SamplingSettings(seed=3),
        "ada",
    )
    assert shown[0]["lab-run"] is False and shown[0]["lab-stop"] is True
    assert ["0 of 2" in shown[1]["lab-progress"], "1 of 2" in shown[2]["lab-progress"]] == [
        True
    ] * 2
    assert shown[-1]["lab-table"] == "| table |" and "<img" in shown[-1]["lab-plots"]
    assert "a note" in shown[-1]["error-lab"] and shown[-1]["lab-run"] is True


def test_an_evaluation_ends_when_nobody_looks_any_more(lab, jobs):
    shown = lab.run({}, "ada", {}, {}, GREEDY)
    job = next(shown)["job"]
    next(shown)
    shown.close()
    assert job.stops == 1 and job.done == 0
    lab.stop({}, job)
    assert job.stops == 2


def test_an_evaluation_that_cannot_be_asked_says_why(lab, jobs):
    [told] = lab.run({}, "ada", {"scenes": "1"}, {}, GREEDY)
    assert "number of scenes" in told["error-lab"] and jobs == []


def test_a_job_runs_in_the_background_and_tells_what_came(host, monkeypatch):
    def run(ways, scenes, loaded, drawing, *, progress, stopped, turn, clock):
        progress(3, 4)
        with turn():
            assert 0 <= clock() < 1
        assert (ways, scenes, loaded) == ((parse_spec("vdd"),), 4, host)
        while not stopped():
            pass
        return LabRun(3, 4, "table", ())

    monkeypatch.setattr("sightline.demo.lab_job.run", run)
    job = LabJob(host, [parse_spec("vdd")], 4, SamplingSettings())
    job.start()
    job.wait(0.1)
    assert not job.is_over
    job.stop()
    job.wait(10)
    assert job.is_over and (job.done, job.total) == (3, 4) and job.result.table == "table"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("/secret"), "finds the reason in its log"),
        (OutOfMemoryError("/secret"), "not enough memory"),
    ],
)
def test_a_job_that_fails_says_what_a_client_may_know(host, monkeypatch, error, message):
    def run(*_, **__):
        raise error

    monkeypatch.setattr("sightline.demo.lab_job.run", run)
    job = LabJob(host, [], 4, SamplingSettings())
    job.start()
    job.wait(10)
    assert job.is_over and job.result is None
    assert message in job.refused and "secret" not in job.refused
    assert message in LabEvents(host).show(job)["error-lab"]


def test_a_job_that_cannot_be_done_says_why(host):
    host.model, host.processor = (
        SimpleNamespace(device="cpu"),
        SimpleNamespace(tokenizer=SimpleNamespace(pad_token="<pad>")),
    )
    job = LabJob(host, [parse_spec("vdd:beta=7")], 4, SamplingSettings())
    job.start()
    job.wait(10)
    assert "beta must be in [0, 1], got 7" in job.refused


# The page


@pytest.fixture
def built(host):
    host.is_lab = True
    host.way = parse_spec
    host.limits = FakeHost.limits
    return demo_page.build(Events(host), Sessions())


def test_nothing_can_be_called_by_name(built):
    assert {event.api_visibility for event in built.fns.values()} == {"private"}


def test_every_error_has_its_place_and_no_two_parts_one_name(built):
    config = str(built.get_config_file())
    for place in ("image", "question", "drawing", "page", "load", "lab", "way-0", "way-3"):
        assert config.count(f'id="error-{place}"') == 1
    names = [block.elem_id for block in built.blocks.values() if block.elem_id]
    assert len(names) == len(set(names))


def test_mistakes_are_logged_and_not_shown(caplog):
    def fail(*_):
        raise RuntimeError("secret /path")

    def fail_late(*_):
        yield {"legend": "fine"}
        raise RuntimeError("secret /path")

    names = ["legend", "compare", "error-page"]
    once = wiring.guarded(fail, [], names, Sessions())(None, None)
    first, last = wiring.guarded(fail_late, [], names, Sessions())(None, None)
    assert first[0] == "fine"
    for told in (once, last):
        assert "something went wrong" in told[2] and "secret" not in str(told)
        assert told[1]["interactive"] is True
    assert caplog.text.count("RuntimeError: secret /path") == 2


def visitor(name, host="192.0.2.1"):
    return SimpleNamespace(session_hash=name, client=SimpleNamespace(host=host))


def test_what_is_kept_goes_to_its_own_visitor_alone():
    sessions = Sessions()
    choose = wiring.guarded(
        lambda sent, text: {"chosen": f"of {text}", "legend": "seen"}, ["question"], ["legend"],
        sessions,
    )  # fmt: skip
    ask = wiring.guarded(
        lambda sent, chosen, text: {"legend": f"{text} {chosen}"}, ["chosen", "question"],
        ["legend"], sessions,
    )  # fmt: skip
    assert choose(None, visitor("a"), "ada") == ["seen"]
    assert ask(None, visitor("a"), "image") == ["image of ada"]
    assert ask(None, visitor("b"), "image") == ["image None"]


def test_a_visitor_without_a_place_is_told_to_wait(caplog):
    sessions = Sessions(most=1)
    keep = wiring.guarded(
        lambda sent: {"round": 1, "compare": False}, [], ["compare", "error-page"], sessions
    )
    assert keep(None, visitor("a"))[0]["interactive"] is False
    button, told = keep(None, visitor("b"))
    assert "too many visitors are here at once: try again" in told
    assert button["interactive"] is True and caplog.text == ""
    assert sessions.values("a") == {"round": 1} and sessions.values("b") == {}


JUNK = [
    None, True, -1, 10**400, float("nan"), "", "scene:" + "9" * 5000, "scene:\u0663", "shipped:",
    "half \ud800", "<script>" * 9, "\x00", "9" * 5000, [], {}, [[[[]]]], {"settings": {"a": []}},
    {"name": "vcd", "settings": {"\ud800": "\udfff"}, "is_shown": True},
    {"name": "icd", "settings": {"instruction": "half \ud800"}, "is_shown": True},
    {"name": "\ud800", "settings": {}, "is_shown": True}, {"place": [], "index": {}},
    {"token": 3, "name": "\ud800", "size": "9"}, {"seed": "9" * 5000}, {"scenes": "1e400"},
]  # fmt: skip
"""What no page sends."""


@pytest.mark.parametrize("place", range(6))
def test_whatever_a_browser_sends_is_answered_in_words(place, caplog):
    """Each of what an event gets from the browser, replaced by what no page sends."""
    real = Host()
    events, lab = Events(real), LabEvents(real)
    for junk in JUNK:
        sound = [{}, "shipped:corner.png", "Describe the image.", {}, GREEDY, VDD]
        sound[place] = junk
        sent, source, question, drawing, *forms = sound
        sent = sent if isinstance(sent, dict) else {}  # as the page reads it
        question = str(question)  # as Gradio's text box gives it
        shown = [events.begin(sent, None, source, None, question, drawing, *forms)]
        shown += [one(sent) for one in (events.choose_file, events.choose_shipped)]
        shown.append(events.load(sent, None))
        round = ComparisonRun(asked(), (0, 1), (said("A"), said("A")))
        shown.append(events.open_token(sent, round, None))
        if place in (3, 4):
            shown.append(next(iter(lab.run(sent, "ada", junk, {"seed": "x"}, *forms))))
        for changed in shown:
            for name, value in changed.items():
                if name not in ("round", "chosen", "opened", "job"):
                    json.dumps(value, ensure_ascii=False).encode()
    assert caplog.text == ""


def test_parts_that_stay_as_they_are_are_skipped():
    changed = wiring.updates({"b": "new", "c": False}, ["a", "b", "c"])
    assert changed[0] == wiring.gr.skip() and changed[1] == "new"
    assert changed[2] == wiring.gr.update(interactive=False)


def luminance(colour):
    """Relative luminance of "#rrggbb", WCAG 2.2."""
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("mode", [":root", ".dark"])
def test_colours_can_be_told_apart(mode):
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    block = re.search(re.escape(mode) + r" \{(.*?)\}", STYLE, re.DOTALL)[1]
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", block))
    texts = {
        "ink": ("ground", "sheet", "wash", "bar"),
        "quiet": ("ground", "sheet", "bar"),
        "accent": ("ground", "sheet", "wash"),
        "on-accent": ("accent", "accent-strong"),
        "right": ("right-wash",),
        "wrong": ("wrong-wash",),
    }
    for text, grounds in texts.items():
        for ground in grounds:
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for line, ground in (("edge", "sheet"), ("edge", "ground"), ("fresh", "sheet")):
        assert contrast(colours[line], colours[ground]) >= 3, (line, ground)
