"""What the server keeps for its visitors between their events, within bounds for all together."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

MOST = 64  # visitors whose images and answers are kept
BYTES = 48_000_000  # of all that is kept
IDLE = 300.0  # seconds without an event after which a visitor gives way to another
AWAY = 30.0  # such seconds of one whose page is not connected
FORGET = 3600.0  # seconds after which nothing is kept; `IDLE` where the page has been closed

FULL = "too many visitors are here at once: try again in a few minutes"


class Full(Exception):
    """There is no place for another visitor, or for what this one wants kept."""


@runtime_checkable
class Heavy(Protocol):
    """What holds images, tensors or the like."""

    @property
    def weights(self) -> Mapping[int, int]:
        """Bytes of each, by its identity, so that what two share counts once."""
        ...


@dataclass(eq=False)
class Session:
    """One visitor's.

    Args:
        client: Where the visitor comes from, which several may share.
        since: When it came.
        used: When its last event was.
        values: What is kept, by name.
        is_closed: Whether its page has been closed since.
    """

    client: str
    since: float
    used: float
    values: dict[str, Any] = field(default_factory=dict)
    is_closed: bool = False

    @property
    def bytes(self) -> int:
        found: dict[int, int] = {}
        for value in self.values.values():
            if isinstance(value, Heavy):
                found |= value.weights
        return sum(found.values())


class Sessions:
    """Keeps values of visitors, by the name that their page gave itself.

    Who comes new where all places are taken gets that of somebody who is not there any more: closed
    pages first, then pages that are not connected, then the longest without an event. Where there
    is none, the client with most visitors, or bytes where these are short, loses one, if it then
    still has as much as the newcomer's client: one whose page is not connected, or the one that
    came last. Else the newcomer is told to wait. So clients share alike, a client's only visitor
    keeps its place, and a flood takes the places of its own alone.

    Args:
        most: Visitors.
        bytes: Of all values together.
        clock: Seconds.
    """

    def __init__(
        self,
        most: int = MOST,
        bytes: int = BYTES,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.most, self.bytes = most, bytes
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        self._connected: Counter[str] = Counter()  # pages, by the session's name
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    def values(self, name: str) -> dict[str, Any]:
        """What is kept for a visitor, whose event this is; empty for a new one."""
        with self._lock:
            self._forget()
            session = self._sessions.get(name)
            if session is None:
                return {}
            session.used, session.is_closed = self._clock(), False
            return dict(session.values)

    def keep(self, name: str, client: str, values: Mapping[str, Any]) -> None:
        """Keeps values beside those that are there, or raises `Full` and keeps what was."""
        with self._lock:
            self._forget()
            session = self._sessions.get(name)
            if session is None and all(value is None for value in values.values()):
                return
            now = self._clock()
            since, kept = (session.since, session.values) if session else (now, {})
            after = Session(client, since, now, {**kept, **values})
            others = {key: one for key, one in self._sessions.items() if key != name}
            gone = []
            while True:
                if len(others) >= self.most:
                    leaver = self._leaver(others, client, 1, lambda one: 1)
                elif sum(one.bytes for one in others.values()) + after.bytes > self.bytes:
                    leaver = self._leaver(others, client, after.bytes, lambda one: one.bytes)
                else:
                    break
                gone.append(leaver)
                del others[leaver]
            for leaver in gone:
                del self._sessions[leaver]
            self._sessions[name] = after

    @contextmanager
    def connected(self, name: str) -> Iterator[None]:
        """A visitor's page holds a connection; after it the visitor goes before others."""
        with self._lock:
            self._connected[name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._connected[name] -= 1
                self._connected = +self._connected
                if name in self._sessions and name not in self._connected:
                    self._sessions[name].is_closed = True

    def _leaver(
        self,
        others: Mapping[str, Session],
        client: str,
        wanted: int,
        amount: Callable[[Session], int],
    ) -> str:
        """Who gives way to a client's visitor, or `Full`.

        Args:
            wanted: Places or bytes of the visitor.
            amount: Places or bytes that a session has.
        """
        absences = {name: self._absence(name, session) for name, session in others.items()}
        if absent := [name for name, absence in absences.items() if absence]:
            return min(absent, key=lambda one: (absences[one], others[one].used))
        amounts: Counter[str] = Counter()
        for session in others.values():
            amounts[session.client] += amount(session)
        several = Counter(session.client for session in others.values())
        crowds = [(name, count) for name, count in amounts.items() if several[name] > 1]
        largest, most = max(crowds, key=lambda crowd: crowd[1], default=("", 0))
        own = [name for name in others if others[name].client == largest and amount(others[name])]
        last = max(own, key=lambda one: (one not in self._connected, others[one].since), default="")
        if not last or most - amount(others[last]) < amounts[client] + wanted:
            raise Full(FULL)
        return last

    def _absence(self, name: str, session: Session) -> int:
        """0: a visitor is there; else the lower, the surer it is that nobody is."""
        quiet = self._clock() - session.used
        if session.is_closed:
            return 1
        if name not in self._connected:
            return 2 if quiet > AWAY else 0
        return 3 if quiet > IDLE else 0

    def forget(self) -> None:
        """Keeps nothing of visitors who have been away for long."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        now = self._clock()
        for name, session in list(self._sessions.items()):
            if now - session.used > (IDLE if session.is_closed else FORGET):
                del self._sessions[name]
