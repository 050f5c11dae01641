"""What is kept for visitors: who gives way to whom, and how much there is of it."""

import threading
from contextlib import ExitStack, suppress
from types import SimpleNamespace

import pytest

from sightline.demo.comparison import Comparison, Explained, Row, SourceImage
from sightline.demo.comparison_run import ComparisonRun
from sightline.demo.events import Opened
from sightline.demo.explanation import AttentionImages
from sightline.demo.sessions import AWAY, FORGET, IDLE, Full, Sessions
from sightline.demo.tidying import tidy


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def here(sessions, *names):
    return [name for name in names if sessions.values(name)]


@pytest.fixture
def open_page():
    """Opens a page of a visitor, which stays open."""
    with ExitStack() as pages:
        yield lambda sessions, name: pages.enter_context(sessions.connected(name))


def test_a_flood_of_new_visitors_discards_nobodys_answers(clock):
    sessions = Sessions(clock=clock)
    sessions.keep("ada", "192.0.2.1", {"round": 1})
    refused = 0
    for number in range(70):  # of the same client, and of another
        clock.now += 0.03
        try:
            sessions.keep(f"new-{number}", f"192.0.2.{1 + number % 2}", {"round": 2})
        except Full as told:
            assert "try again in a few minutes" in str(told)
            refused += 1
    assert sessions.values("ada") == {"round": 1}
    assert refused == 6 and len(sessions) == 64  # 71 came; one took the place of another new one


def test_whoever_is_idle_goes_first_and_of_these_the_longest(clock, open_page):
    sessions = Sessions(most=3, clock=clock)
    for name in "abc":
        open_page(sessions, name)
        sessions.keep(name, "x", {"round": name})
        clock.now += 1
    with pytest.raises(Full):
        sessions.keep("d", "x", {"round": "d"})
    clock.now += IDLE
    sessions.values("a")  # an event
    sessions.keep("d", "x", {"round": "d"})
    assert here(sessions, "a", "c", "d") == ["a", "c", "d"] and len(sessions) == 3


def test_closed_pages_go_before_others_and_come_back_to_what_is_left(clock, open_page):
    sessions = Sessions(most=2, clock=clock)
    open_page(sessions, "a")
    with sessions.connected("b"), sessions.connected("nobody"):
        for name in "ab":
            sessions.keep(name, "x", {"round": name})
    sessions.keep("c", "x", {"round": "c"})
    assert here(sessions, "a", "b", "c") == ["a", "c"]
    with sessions.connected("c"), sessions.connected("c"):
        pass
    assert sessions.values("c") == {"round": "c"}  # an event: it is back
    with pytest.raises(Full):
        sessions.keep("d", "x", {"round": "d"})


def test_a_page_of_which_one_connection_is_left_is_open(clock):
    sessions = Sessions(most=1, clock=clock)
    with sessions.connected("a"):
        with sessions.connected("a"):
            sessions.keep("a", "x", {"round": 1})
        clock.now += AWAY + 1
        with pytest.raises(Full):
            sessions.keep("b", "y", {"round": 2})


def test_pages_that_are_not_connected_go_before_those_that_are_idle(clock, open_page):
    sessions = Sessions(most=3, clock=clock)
    open_page(sessions, "idle")
    for name in ("idle", "away", "busy"):
        sessions.keep(name, "x", {"round": name})
    clock.now += IDLE + 1
    sessions.values("busy")
    sessions.keep("new", "y", {"round": 1})
    assert here(sessions, "idle", "away", "busy", "new") == ["idle", "busy", "new"]
    clock.now += AWAY + 1
    sessions.values("idle")
    sessions.keep("newer", "y", {"round": 1})
    assert len(sessions) == 3 and sessions.values("idle") and sessions.values("newer")


def test_a_client_with_more_gives_way_to_another_until_both_have_as_many(clock):
    sessions = Sessions(most=10, clock=clock)
    for number in range(10):
        clock.now += 1
        sessions.keep(f"crowd-{number}", "x", {"round": number})
    with pytest.raises(Full):
        sessions.keep("crowd-10", "x", {"round": 10})
    sessions.keep("ada", "y", {"round": 1})  # in the place of the one that came last
    assert here(sessions, "crowd-0", "crowd-8", "crowd-9", "ada") == ["crowd-0", "crowd-8", "ada"]
    for number in range(4):
        sessions.keep(f"y-{number}", "y", {"round": number})
    with pytest.raises(Full):  # both have five
        sessions.keep("y-4", "y", {"round": 4})


def test_of_a_crowd_those_go_first_whose_page_is_not_connected(clock, open_page):
    sessions = Sessions(most=4, clock=clock)
    for name in ("a", "b", "c", "d"):
        clock.now += 1
        sessions.keep(name, "x", {"round": name})
    open_page(sessions, "c")
    open_page(sessions, "d")
    sessions.keep("ada", "y", {"round": 1})
    assert here(sessions, "a", "b", "c", "d", "ada") == ["a", "c", "d", "ada"]


def test_the_only_visitor_of_a_client_keeps_its_place_however_many_come(clock):
    sessions = Sessions(most=4, clock=clock)
    for number in range(4):
        sessions.keep(f"{number}", f"client-{number}", {"round": number})
    for number in range(20):
        with pytest.raises(Full):
            sessions.keep(f"new-{number}", f"other-{number}", {"round": 0})


@pytest.mark.parametrize("is_connected", [False, True])
def test_nobody_is_told_to_wait_for_a_flood_from_a_few_addresses(clock, open_page, is_connected):
    """Thirty visitors who come a second time, and five clients with new ones all the time."""
    sessions = Sessions(clock=clock)
    for number in range(30):
        with sessions.connected(f"first-{number}"):
            sessions.keep(f"first-{number}", f"honest-{number}", {"round": number})
    for number in range(300):
        clock.now += 0.02
        with suppress(Full):
            if is_connected:
                open_page(sessions, f"hostile-{number}")
            sessions.keep(f"hostile-{number}", f"hostile-{number % 5}", {"round": number})
        if number % 10 == 0:
            who = number // 10
            sessions.keep(f"second-{who}", f"honest-{who}", {"round": who})
    assert all(sessions.values(f"second-{number}") for number in range(30))


def test_bytes_of_all_are_bounded_and_shared_ones_count_once(clock):
    def image(width):
        return SourceImage(SimpleNamespace(width=width, height=1), "file:a.png")

    sessions = Sessions(bytes=4000, clock=clock)
    one = image(600)
    round = ComparisonRun(Comparison(one, "why", ()), ())
    sessions.keep("a", "x", {"chosen": one, "round": round})  # 2400 bytes
    with pytest.raises(Full):
        sessions.keep("b", "y", {"chosen": image(500)})
    assert sessions.values("b") == {}
    with pytest.raises(Full):
        sessions.keep("a", "x", {"chosen": image(500)})  # its round holds the first one
    assert sessions.values("a")["chosen"] is one
    sessions.keep("b", "y", {"chosen": image(400)})
    sessions.keep("b", "y", {"chosen": image(300)})
    clock.now += IDLE + 1
    sessions.values("b")
    sessions.keep("b", "y", {"chosen": image(900)})  # the idle one goes
    assert len(sessions) == 1
    with pytest.raises(Full):
        sessions.keep("c", "z", {"chosen": image(1001)})


def test_bytes_are_shared_as_places_are(clock):
    """A client with large images leaves room for those of others."""

    def image(width):
        return {"chosen": SourceImage(SimpleNamespace(width=width, height=1), "file:a.png")}

    sessions = Sessions(most=8, bytes=8000, clock=clock)
    for number in range(4):
        clock.now += 1
        sessions.keep(f"large-{number}", "x", image(500))
    for number in range(3):
        sessions.keep(f"small-{number}", "y", image(10))  # the last large one has gone
    assert len(sessions) == 6 and sessions.values("large-3") == {}
    with pytest.raises(Full):
        sessions.keep("large-4", "x", image(500))
    sessions.keep("ada", "z", image(450))
    assert sessions.values("large-0") and sessions.values("small-0") and sessions.values("ada")


def test_explanations_have_a_weight():
    import torch

    layout = SimpleNamespace(count=4, within=lambda side: None)
    rows = ((Row("a", (1.0,), 1.0),) * 3,) * 2
    explained = Explained((), rows, (), AttentionImages(torch.zeros(2, 4), layout))
    image = SourceImage(SimpleNamespace(width=10, height=1), "file:a.png")
    opened = Opened(ComparisonRun(Comparison(image, "why", ()), ()), 0, 2, explained)
    assert sorted(opened.weights.values()) == [40, 6 * 1000 + 2 * 4 * 4]


def test_nothing_is_kept_longer_than_an_hour(clock):
    sessions = Sessions(clock=clock)
    sessions.keep("a", "x", {"round": 1})
    clock.now += FORGET + 1
    sessions.forget()
    assert len(sessions) == 0 and sessions.values("a") == {}


def test_of_a_page_that_was_closed_nothing_is_kept_longer_than_five_minutes(clock):
    sessions = Sessions(clock=clock)
    for name in "ab":
        with sessions.connected(name):
            sessions.keep(name, "x", {"round": name})
    clock.now += IDLE
    assert here(sessions, "a") == ["a"]  # it came back
    clock.now += 1
    sessions.forget()
    assert len(sessions) == 1 and here(sessions, "a") == ["a"]


def test_what_is_kept_is_looked_through_also_where_nobody_comes():
    done = []
    over = threading.Event()

    def task():
        done.append(threading.current_thread().name)
        if len(done) == 3:
            over.set()

    tidy([task], every=0.001)
    assert over.wait(20) and set(done) == {"tidying"}
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "tidying")


def test_a_visitor_of_whom_nothing_is_kept_takes_no_place(clock):
    sessions = Sessions(clock=clock)
    sessions.keep("a", "x", {"job": None})
    sessions.keep("b", "x", {})
    assert sessions.values("c") == {} and len(sessions) == 0
