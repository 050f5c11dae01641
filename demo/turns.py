"""Takes turns: what a few may have at the same time, shared among clients."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

BUSY = "too many requests are waiting: try again in a minute"


def client_of(request: Any) -> str:
    """Where a request comes from: an address, of IPv6 the network of 64 bits that a site has."""
    host = request.client.host if request.client else ""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if address.version == 4:
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ip_network((int(address) >> 64 << 64, 64)))


class Busy(Exception):
    """Too many wait already."""


@dataclass(eq=False)
class Turn:
    """What one request has or waits for.

    Args:
        client: Whose request it is.
        given: Done when the turn has come; holds `Busy` where too many wait.
        since: When it came, in seconds; None before.
    """

    client: str
    given: Future[None] = field(default_factory=Future)
    since: float | None = None

    def wait(self, seconds: float | None = None) -> bool:
        """Whether the turn comes in this time, None: in any; raises `Busy`."""
        try:
            self.given.result(seconds)
        except TimeoutError:
            return False
        return True


class Turns:
    """Gives something to at most a few at the same time, and to all clients alike.

    It goes to the client that has fewest turns at the moment; of these to the one that has had it
    for the shortest time (whoever comes back after a while has as much as those who stayed); and
    within a client to whoever has waited longest. Where too many wait, the client with most of them
    loses the one that came last.

    Args:
        most: Turns at the same time.
        each: Of them for one client, at most.
        waiting: How many may wait.
        clock: Seconds.
    """

    def __init__(
        self,
        most: int = 1,
        each: int | None = None,
        waiting: float = float("inf"),
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.most, self.each, self.waiting = most, each or most, waiting
        self._clock = clock
        self._lock = threading.Lock()
        self._line: list[Turn] = []
        self._taken: Counter[str] = Counter()  # turns at the moment, by client
        self._had: dict[str, float] = {}  # seconds, by client
        self._level = 0.0  # seconds that the client had which got the last turn, at most

    @property
    def count(self) -> int:
        """How many have a turn at the moment."""
        return self._taken.total()

    def ask(self, client: str = "") -> Turn:
        """A turn to wait for. Whoever asks calls `end`, whatever comes of it."""
        turn = Turn(client)
        with self._lock:
            self._had[client] = max(self._had.get(client, 0.0), self._level)
            self._line.append(turn)
            self._give()
            if len(self._line) > self.waiting:
                self._refuse()
        return turn

    def end(self, turn: Turn) -> None:
        """The turn is over, or not waited for any more."""
        with self._lock:
            if turn in self._line:
                self._line.remove(turn)
            if turn.since is not None:
                self._taken[turn.client] -= 1
                self._had[turn.client] += self._clock() - turn.since
                turn.since = None
            self._give()
            self._forget()

    @contextmanager
    def taken(self, client: str = "", seconds: float | None = None) -> Iterator[None]:
        """Waits for a turn, which lasts as long as the block; `Busy` where it does not come."""
        turn = self.ask(client)
        try:
            if not turn.wait(seconds):
                raise Busy(BUSY)
            yield
        finally:
            self.end(turn)

    def _give(self) -> None:
        while self._taken.total() < self.most:
            able = [turn for turn in self._line if self._taken[turn.client] < self.each]
            if not able:
                return
            turn = min(able, key=lambda one: (self._taken[one.client], self._had[one.client]))
            self._line.remove(turn)
            if turn.given.set_running_or_notify_cancel():  # whoever asked may have gone
                self._taken[turn.client] += 1
                self._level = max(self._level, self._had[turn.client])
                turn.since = self._clock()
                turn.given.set_result(None)

    def _refuse(self) -> None:
        counts = Counter(turn.client for turn in self._line)
        last = max(reversed(self._line), key=lambda turn: counts[turn.client])
        self._line.remove(last)
        if last.given.set_running_or_notify_cancel():
            last.given.set_exception(Busy(BUSY))

    def _forget(self) -> None:
        """Of clients that are not here, those who would come back to the same."""
        here = {turn.client for turn in self._line} | set(+self._taken)
        for client, had in list(self._had.items()):
            if client not in here and (not here or had <= self._level):
                del self._had[client]
        self._taken = +self._taken
