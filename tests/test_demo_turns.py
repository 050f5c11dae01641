"""Turns that clients share."""

import asyncio
import random
import threading
from collections import Counter
from types import SimpleNamespace

import pytest

from sightline.demo.turns import Busy, Turns, client_of


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def order(turns, clock, asked, seconds=lambda name: 1.0):
    """In which order those who ask at once, "a0" of client "a", have turns of so many seconds."""
    first = turns.ask("nobody")
    waiting = {name: turns.ask(name[0]) for name in asked}
    turns.end(first)
    had = []
    while waiting:
        name = next(name for name, turn in waiting.items() if turn.given.done())
        clock.now += seconds(name)
        turns.end(waiting.pop(name))
        had.append(name)
    return had


def test_clients_take_turns_and_each_in_the_order_in_which_it_asked():
    clock = Clock()
    had = order(Turns(clock=clock), clock, ["a0", "a1", "a2", "a3", "b0", "b1", "c0"])
    assert had == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]


def test_what_counts_is_the_time_of_turns():
    clock = Clock()
    had = order(
        Turns(clock=clock), clock, ["a0", "a1", *(f"b{i}" for i in range(6))],
        seconds=lambda name: 3.0 if name[0] == "a" else 1.0,
    )  # fmt: skip
    assert had == ["a0", "b0", "b1", "b2", "a1", "b3", "b4", "b5"]


def test_whoever_was_away_has_saved_nothing():
    clock = Clock()
    turns = Turns(clock=clock)
    stayed = [turns.ask("a") for _ in range(20)]
    for turn in stayed[:10]:
        clock.now += 1.0
        turns.end(turn)
    came = [turns.ask("b") for _ in range(10)]
    had = []
    for _ in range(8):
        name, turn = next(
            (name, turn)
            for name, line in (("a", stayed), ("b", came))
            for turn in line
            if turn.given.done() and turn.since is not None
        )
        clock.now += 1.0
        turns.end(turn)
        had.append(name)
    assert had.count("b") <= 5  # ten at once, had it a claim from before


def test_fewest_turns_at_the_moment_go_first_and_a_client_has_only_so_many():
    turns = Turns(most=4, each=2)
    crowd = [turns.ask("a") for _ in range(9)]
    assert [turn.given.done() for turn in crowd] == [True] * 2 + [False] * 7
    others = [turns.ask(name) for name in "bcd"]
    assert [turn.given.done() for turn in others] == [True, True, False]
    turns.end(crowd[0])
    assert others[2].given.done() and not crowd[2].given.done()


def test_where_too_many_wait_the_client_with_most_loses_its_last():
    turns = Turns(waiting=3)
    running, *waiting = [turns.ask("a") for _ in range(4)]
    late = turns.ask("a")
    with pytest.raises(Busy, match="try again in a minute"):
        late.wait()
    other = turns.ask("b")
    with pytest.raises(Busy):
        waiting[2].wait()
    for turn in (running, waiting[0]):
        turns.end(turn)
    assert other.wait(0) or waiting[1].wait(0)
    turns = Turns(waiting=2)
    first, *alike = [turns.ask(name) for name in "abcd"]
    assert first.wait(0) and isinstance(alike[2].given.exception(0), Busy)


def test_whoever_does_not_wait_any_more_holds_nobody_up():
    turns = Turns()
    first, gone, next_ = turns.ask("a"), turns.ask("b"), turns.ask("c")
    assert not gone.wait(0.001)
    turns.end(gone)
    turns.end(gone)
    turns.end(first)
    assert next_.wait(0) and not gone.given.done()
    with pytest.raises(Busy), turns.taken("d", seconds=0.001):
        pass
    turns.end(next_)
    with turns.taken("e"):
        assert turns._taken == {"e": 1}
    assert not (turns._line or turns._taken or turns._had)


def test_a_request_that_is_cut_off_while_it_waits_gets_no_turn():
    async def go():
        turns = Turns()
        first, gone, next_ = (turns.ask(name) for name in "abc")

        async def wait():
            try:
                await asyncio.wrap_future(gone.given)
            finally:
                turns.end(gone)

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        turns.end(first)  # before the cancelled one has noticed
        await asyncio.gather(task, return_exceptions=True)
        assert next_.given.done()

    asyncio.run(go())


def test_threads_share_what_there_is_and_leave_nothing_behind():
    turns, draw = Turns(most=3, each=2), random.Random(0)
    at_once, most, lock = Counter(), Counter(), threading.Lock()

    def work(client):
        for _ in range(100):
            with turns.taken(client):
                with lock:
                    at_once[client] += 1
                    most[client] = max(most[client], at_once[client])
                    most["all"] = max(most["all"], at_once.total())
                if draw.random() < 0.1:
                    threading.Event().wait(0.0001)
                with lock:
                    at_once[client] -= 1

    threads = [threading.Thread(target=work, args=("abcd"[i % 4],)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most["all"] == 3 and max(most[name] for name in "abcd") == 2
    assert not (turns._line or turns._taken or turns._had)


@pytest.mark.parametrize(
    ("host", "client"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
    ],
)
def test_a_client_is_an_address_or_a_network_that_one_site_has(host, client):
    assert client_of(SimpleNamespace(client=SimpleNamespace(host=host))) == client
    assert client_of(SimpleNamespace(client=None)) == ""
