"""What the server keeps for its visitors between their events, within bounds for all together."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

MOST = 64  # visitors whose images and answers are kept
SHARE = 8  # of them that one client has for certain
BYTES = 48_000_000  # of all that is kept
IDLE = 300.0  # seconds without an event after which a visitor gives way to another
FORGET = 3600.0  # seconds after which nothing is kept

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
        is_closed: Whether its page has been closed.
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

    Who comes new where all places are taken gets that of somebody idle: closed pages first, then
    the longest without an event. With nobody idle, the client with most visitors, or bytes where
    these are short, if it has more than its share and than the newcomer's client, loses the one
    that came last. Else the newcomer is told to wait. So a flood takes the places of its own alone.

    Args:
        most: Visitors.
        share: Of one client, that are safe while they are not idle, with as large a part of the
            bytes; its only one is safe in any case.
        bytes: Of all values together.
        clock: Seconds.
    """

    def __init__(
        self,
        most: int = MOST,
        share: int = SHARE,
        bytes: int = BYTES,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.most, self.share, self.bytes = most, share, bytes
        self._clock = clock
        self._sessions: dict[str, Session] = {}
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
                    leaver = self._leaver(others, client, 1, self.share, lambda one: 1)
                elif sum(one.bytes for one in others.values()) + after.bytes > self.bytes:
                    share = self.bytes * self.share // self.most
                    leaver = self._leaver(others, client, after.bytes, share, lambda one: one.bytes)
                else:
                    break
                gone.append(leaver)
                del others[leaver]
            for leaver in gone:
                del self._sessions[leaver]
            self._sessions[name] = after

    def close(self, name: str) -> None:
        """The page was closed, or the connection to it is lost: it goes before others."""
        with self._lock:
            if name in self._sessions:
                self._sessions[name].is_closed = True

    def _leaver(
        self,
        others: Mapping[str, Session],
        client: str,
        wanted: int,
        share: int,
        amount: Callable[[Session], int],
    ) -> str:
        """Who gives way to a client's visitor, or `Full`.

        Args:
            wanted: Places or bytes of the visitor.
            share: Of them, which a client has for certain.
            amount: Places or bytes that a session has.
        """
        for name in sorted(others, key=lambda one: (not others[one].is_closed, others[one].used)):
            if others[name].is_closed or self._clock() - others[name].used > IDLE:
                return name
        amounts: Counter[str] = Counter()
        for session in others.values():
            amounts[session.client] += amount(session)
        several = Counter(session.client for session in others.values())
        crowds = [(name, count) for name, count in amounts.items() if several[name] > 1]
        largest, most = max(crowds, key=lambda crowd: crowd[1], default=("", 0))
        if most <= max(share, amounts[client] + wanted):
            raise Full(FULL)
        own = [name for name in others if others[name].client == largest and amount(others[name])]
        return max(own, key=lambda name: others[name].since)

    def _forget(self) -> None:
        last = self._clock() - FORGET
        for name in [name for name, one in self._sessions.items() if one.used < last]:
            del self._sessions[name]
