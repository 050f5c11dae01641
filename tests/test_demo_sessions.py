"""What is kept for visitors: who gives way to whom, and how much there is of it."""

from types import SimpleNamespace

import pytest

from sightline.demo.comparison import Comparison, Explained, Picture, Row
from sightline.demo.comparison_run import ComparisonRun
from sightline.demo.events import Opened
from sightline.demo.explanation import Looks
from sightline.demo.sessions import FORGET, IDLE, Full, Sessions


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


def test_whoever_is_idle_goes_first_and_of_these_the_longest(clock):
    sessions = Sessions(most=3, clock=clock)
    for name in "abc":
        sessions.keep(name, "x", {"round": name})
        clock.now += 1
    with pytest.raises(Full):
        sessions.keep("d", "y", {"round": "d"})
    clock.now += IDLE
    sessions.values("a")  # an event
    sessions.keep("d", "y", {"round": "d"})
    assert here(sessions, "a", "c", "d") == ["a", "c", "d"] and len(sessions) == 3


def test_closed_pages_go_before_others_and_come_back_to_what_is_left(clock):
    sessions = Sessions(most=2, clock=clock)
    for name in "ab":
        sessions.keep(name, "x", {"round": name})
    sessions.close("b")
    sessions.close("nobody")
    sessions.keep("c", "x", {"round": "c"})
    assert here(sessions, "a", "b", "c") == ["a", "c"]
    sessions.close("a")
    assert sessions.values("a") == {"round": "a"}  # the connection came back
    with pytest.raises(Full):
        sessions.keep("d", "x", {"round": "d"})


def test_a_client_beyond_its_share_gives_way_to_another(clock):
    sessions = Sessions(most=10, share=2, clock=clock)
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


def test_a_share_is_safe_however_many_clients_come(clock):
    sessions = Sessions(most=4, share=2, clock=clock)
    for number in range(4):
        sessions.keep(f"{number}", "xy"[number % 2], {"round": number})
    for number in range(20):
        with pytest.raises(Full):
            sessions.keep(f"new-{number}", f"client-{number}", {"round": 0})


def test_bytes_of_all_are_bounded_and_shared_ones_count_once(clock):
    def image(width):
        return Picture(SimpleNamespace(width=width, height=1), "file:a.png")

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
    """One client with large images leaves room for those of others."""

    def image(width):
        return {"chosen": Picture(SimpleNamespace(width=width, height=1), "file:a.png")}

    sessions = Sessions(most=8, share=1, bytes=8000, clock=clock)  # a share is 1000 bytes
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
    explained = Explained((), rows, (), Looks(torch.zeros(2, 4), layout))
    picture = Picture(SimpleNamespace(width=10, height=1), "file:a.png")
    opened = Opened(ComparisonRun(Comparison(picture, "why", ()), ()), 0, 2, explained)
    assert sorted(opened.weights.values()) == [40, 6 * 1000 + 2 * 4 * 4]


def test_nothing_is_kept_longer_than_an_hour(clock):
    sessions = Sessions(clock=clock)
    sessions.keep("a", "x", {"round": 1})
    clock.now += FORGET + 1
    assert sessions.values("a") == {} and len(sessions) == 0


def test_a_visitor_of_whom_nothing_is_kept_takes_no_place(clock):
    sessions = Sessions(clock=clock)
    sessions.keep("a", "x", {"job": None})
    sessions.keep("b", "x", {})
    assert sessions.values("c") == {} and len(sessions) == 0
