"""What stands before every route: host, login, size, speed and shape of a request."""

import asyncio
import ipaddress
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import nullcontext
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse

from sightline.demo.routes import CONNECTION, Route, Table
from sightline.demo.sessions import Sessions
from sightline.demo.turns import BUSY, Busy, Turns, client_of

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

GRACE = 10.0  # seconds in which a body may arrive, however small it is, or pause
SLOWEST = 64_000  # bytes per second of one that takes longer
DEEPEST = 20  # lists and objects inside each other
MOST_ENTRIES = 5_000  # of all lists and objects of a body together
AT_ONCE = 8  # requests that are worked on at the same time
OF_CLIENT = 4  # of them of one client
MOST_WAITING = 1_000  # requests that wait for that


class Refused(Exception):
    """A request that is not answered, with its status and a sentence."""

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status = status


class Gate:
    """Refuses a request before the app sees it, and before its body is read where that suffices.

    In this order: the name of the host, the route, the login, then the size, the speed and, of
    JSON, the shape of the body. Then clients take turns.

    Args:
        app: Gradio's, which holds the logins.
        sessions: Which learn whose page is connected.
        is_local: Whether the page is reached as this machine's own alone. Then a request for
            another host is one that a foreign page's script was tricked into (DNS rebinding).
    """

    def __init__(self, app: App, sessions: Sessions, is_local: bool):
        self.app = app
        self.sessions = sessions
        self.is_local = is_local
        self.table = Table()
        self._turns = Turns(AT_ONCE, OF_CLIENT, MOST_WAITING)
        self._held: Counter[tuple[str, ...]] = Counter()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            route = self._admit(scope)
            if not route.most:
                await self._answer(route, scope, receive, send)
                return
            body = Body(route, client_of(HTTPConnection(scope)), self._held)
            try:
                content = await body.read(scope, receive)
                await self._answer(route, scope, replayed(content, receive), send)
            finally:
                body.release()
        except Refused as refused:
            # What is left of the body is not read.
            answer = PlainTextResponse(str(refused), refused.status, {"connection": "close"})
            await answer(scope, receive, send)

    async def _answer(self, route: Route, scope: Message, receive: Receive, send: Send) -> None:
        """Lets the app answer, in the client's turn if that is work and no waiting for news."""
        if route.is_long:
            is_page = route.path == CONNECTION
            name = scope["path"].rpartition("/")[2]
            with self.sessions.connected(name) if is_page else nullcontext():
                await self.app(scope, receive, send)
            return
        turn = self._turns.ask(client_of(HTTPConnection(scope)))

        async def sending(message: Message) -> None:
            self._turns.end(turn)  # how fast the client reads is its own affair
            await send(message)

        try:
            await asyncio.wrap_future(turn.given)
            await self.app(scope, receive, sending)
        except Busy as told:
            raise Refused(503, str(told)) from None
        finally:
            self._turns.end(turn)

    def _admit(self, scope: Message) -> Route:
        """The route of a request that may go on; else raises `Refused`."""
        asked = HTTPConnection(scope)
        host = asked.headers.get("host", "")
        if self.is_local and listens_here(scope) and not is_own_name(host):
            raise Refused(
                400,
                "this page is served as localhost; a proxy in front of it has to send "
                "Host: localhost, and the name that visitors use in X-Forwarded-Host",
            )
        route = self.table.find(scope["method"], scope["path"])
        if route is None:
            raise Refused(404, "this page has nothing here")
        if not (route.is_open or is_known(scope["app"], asked.cookies)):
            raise Refused(401, "log in first")
        return route


class Body:
    """The body of one request.

    Args:
        route: Whose limits hold.
        client: Who sends it; it may have half of what there is for bodies of this route.
        held: Bytes of the bodies of all requests, by the route's path, and by path and client.
    """

    def __init__(self, route: Route, client: str, held: Counter[tuple[str, ...]]):
        self.route = route
        self._all, self._own = (route.path,), (route.path, client)
        self._held = held
        self._came = 0

    async def read(self, scope: Message, receive: Receive) -> bytes:
        """All of it, or `Refused`."""
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and (len(declared) > 15 or int(declared) > self.route.most):
            raise Refused(413, "this request is too large")
        end, content, is_more = time.monotonic() + GRACE, bytearray(), True
        while is_more:
            try:
                message = await asyncio.wait_for(receive(), max(end - time.monotonic(), 0))
            except asyncio.TimeoutError:
                raise Refused(408, "this request took too long to arrive") from None
            if message["type"] == "http.disconnect":
                raise Refused(400, "this request was cut off")
            self._take(chunk := message.get("body", b""))
            content += chunk
            end = min(end + len(chunk) / SLOWEST, time.monotonic() + GRACE)
            is_more = message.get("more_body", False)
        if self.route.is_json:
            check_json(content)
        return bytes(content)

    def _take(self, chunk: bytes) -> None:
        self._came += len(chunk)
        self._count(len(chunk))
        if self._came > self.route.most:
            raise Refused(413, "this request is too large")
        together = self.route.together
        if self._held[self._all] > together or self._held[self._own] > together / 2:
            raise Refused(503, BUSY)

    def release(self) -> None:
        self._count(-self._came)

    def _count(self, more: int) -> None:
        for key in (self._all, self._own):
            self._held[key] += more
            if not self._held[key]:
                del self._held[key]


def replayed(content: bytes, receive: Receive) -> Receive:
    """Gives the body that was read, then whatever comes after it."""
    is_first = True

    async def again() -> Message:
        nonlocal is_first
        if not is_first:
            return await receive()
        is_first = False
        return {"type": "http.request", "body": content, "more_body": False}

    return again


def listens_here(scope: Message) -> bool:
    """Whether the request came in at an address that this machine alone can reach."""
    try:
        return ipaddress.ip_address((scope.get("server") or ("",))[0]).is_loopback
    except ValueError:
        return False


def is_own_name(host: str) -> bool:
    """Whether a `Host` header names this machine itself: localhost, 127.0.0.1, [::1]:7860."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def is_known(app: Any, cookies: Mapping[str, str]) -> bool:
    """Whether cookies hold a login of a Gradio app, or the app asks for none."""
    names = (f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}")
    return app.auth is None or any(cookies.get(name) in app.tokens for name in names)


def check_json(content: bytes | bytearray) -> None:
    """Raises `Refused` for what is no JSON, or is nested deeper or longer than any event."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise Refused(400, "this request is no JSON that can be read") from None
    entries, level, depth = 0, [value], 0
    while level:
        inner: list[Any] = []
        for one in level:
            if isinstance(one, Mapping):
                if "path" in one and "meta" in one:  # Gradio would fetch or copy what it names
                    raise Refused(400, "an event of this page names no files")
                inner += one.values()
            elif isinstance(one, list):
                inner += one
        entries, level, depth = entries + len(inner), inner, depth + 1
        if entries > MOST_ENTRIES or depth > DEEPEST:
            raise Refused(413, "this request has too many entries, or nests them too deeply")
