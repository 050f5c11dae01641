"""What stands before the page: host, route, login, size, speed and shape of a request."""

import asyncio
import json
import time
from types import SimpleNamespace

import pytest
from gradio.routes import App

from sightline.demo import gate as gates
from sightline.demo import page as demo_page
from sightline.demo.events import Events
from sightline.demo.gate import Gate, is_own_name
from sightline.demo.host import Host
from sightline.demo.routes import EVENT_BYTES, FILES, REFUSED, SERVED
from sightline.demo.sessions import Sessions

JOIN = "/gradio_api/queue/join"
LOGIN = {"cookie": "access-token-c=good"}


class Sender:
    """A client that sends a body in chunks, and counts how many were asked for."""

    def __init__(self, chunks, pause=0.0):
        self.chunks, self.pause, self.asked = list(chunks), pause, 0

    async def receive(self):
        self.asked += 1
        await asyncio.sleep(self.pause)
        if not self.chunks:
            await asyncio.sleep(3600)  # no end comes
        return self.chunks.pop(0)


def parts(*chunks, end=True):
    last = len(chunks) - 1 if end else len(chunks)
    return [
        {"type": "http.request", "body": chunk, "more_body": number < last}
        for number, chunk in enumerate(chunks)
    ]


def ask(
    path=JOIN, *chunks, method="POST", auth=True, is_local=True, end=True, pause=0.0, **headers
):
    """(status, text, chunks that were read, body that the app got) of a request."""
    got, sent = [], []
    sender = Sender(parts(*chunks, end=end), pause)

    async def app(scope, receive, send):
        got.append(await receive() if chunks else {"body": b""})
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"fine"})

    async def send(message):
        sent.append(message)

    given = {"host": "127.0.0.1:7860", **headers}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": [(name.encode(), text.encode()) for name, text in given.items()],
        "server": ("127.0.0.1", 7860),
        "app": SimpleNamespace(
            auth={"ada": "secret"} if auth else None, cookie_id="c", tokens={"good": "ada"}
        ),
    }
    guard = Gate(app, Sessions(), is_local)
    asyncio.run(guard(scope, sender.receive, send))
    assert not guard._held
    text = b"".join(message.get("body", b"") for message in sent).decode()
    return sent[0]["status"], text, sender.asked, got[0]["body"] if got else None


# Login


@pytest.mark.parametrize("route", [r for r in SERVED if not r.is_open], ids=lambda r: r.path)
def test_without_a_login_nothing_of_a_body_is_read(route):
    path = route.path.replace("{api_name}", "predict").replace("{session_hash}", "abc")
    for cookie in ({}, {"cookie": "access-token-c=bad"}, {"cookie": "access-token-x=good"}):
        status, text, asked, _ = ask(path, b"{}" * 500, method=route.methods[0], **cookie)
        assert (status, text, asked) == (401, "log in first", 0)


def test_with_a_login_or_where_none_is_asked_for_the_app_gets_the_whole_body():
    assert ask(JOIN, b'{"a"', b": 1}", **LOGIN) == (200, "fine", 2, b'{"a": 1}')
    assert ask(JOIN, b"[1]", auth=False)[0] == 200
    unsecure = {"cookie": "theme=dark; access-token-unsecure-c=good"}
    assert ask(JOIN, b"[1]", **unsecure)[0] == 200
    assert ask("/", method="GET")[0] == ask("/assets/a.js", method="GET")[0] == 200
    assert ask("/login", b"username=a&password=b")[0] == 200


# Size, speed, shape


def test_bodies_have_one_megabyte_but_those_of_files():
    whole = json.dumps("x" * (EVENT_BYTES - 2)).encode()
    assert ask(JOIN, whole, **LOGIN)[0] == 200
    assert ask(JOIN, whole[:-1], b'x"', **LOGIN)[0] == 413
    assert ask(JOIN, **{"content-length": "1000001"}, **LOGIN)[:3] == (
        413, "this request is too large", 0,
    )  # fmt: skip
    assert ask(JOIN, **{"content-length": "9" * 5000}, **LOGIN)[0] == 413
    assert ask(FILES, *[b"x" * 10_000_000] * 6, **LOGIN)[0] == 200
    assert ask(FILES, *[b"x" * 10_000_000] * 7, **LOGIN)[0] == 413
    for route in SERVED:
        assert route.path == FILES or route.most <= EVENT_BYTES


def test_all_bodies_of_a_route_together_are_bounded(monkeypatch):
    """Those of a client by half of it, so that it leaves room for others."""
    monkeypatch.setattr(gates.Table, "find", lambda *_: SimpleNamespace(
        path="p", most=100, together=300, is_json=False, is_open=True, is_long=False))  # fmt: skip

    async def go(*clients):
        guard = Gate(lambda *_: asyncio.sleep(0.2), Sessions(), is_local=False)
        statuses = []

        async def one(client):
            async def send(message):
                statuses.append(message.get("status"))

            scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
            scope["client"] = (client, 1)
            await guard(scope, Sender(parts(b"x" * 100)).receive, send)

        await asyncio.gather(*map(one, clients))
        assert not guard._held
        return statuses.count(503)

    assert asyncio.run(go("a", "b", "c")) == 0
    assert asyncio.run(go("a", "b", "c", "d", "e")) == 2
    assert asyncio.run(go("a", "a", "b")) == 1


def test_a_body_that_stops_has_no_more_time_for_what_came_before(monkeypatch):
    monkeypatch.setattr(gates, "GRACE", 0.1)
    monkeypatch.setattr(gates, "SLOWEST", 1000)
    start = time.monotonic()
    assert ask(FILES, b"x" * 60_000, end=False, **LOGIN)[0] == 408  # 60 s by its bytes alone
    assert time.monotonic() - start < 10


def test_requests_are_worked_on_a_few_at_a_time_and_clients_take_turns():
    """Not so those that wait for news. How fast an answer is taken holds up nobody."""
    order, at_once, most = [], [0], [0]

    async def app(scope, receive, send):
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        await asyncio.sleep(0.01)
        at_once[0] -= 1
        order.append(scope["client"][0])
        await send({"type": "http.response.start"})

    async def slow_send(message):
        await asyncio.sleep(0.5)

    async def go(path, count):
        guard = Gate(app, Sessions(), is_local=False)

        def ask_once(client):
            scope = {
                "type": "http",
                "method": "GET",
                "path": path,
                "headers": [(b"cookie", b"access-token-c=good")],
            }
            scope |= {
                "client": (client, 1),
                "app": SimpleNamespace(auth={}, cookie_id="c", tokens=["good"]),
            }
            return guard(scope, None, slow_send)

        await asyncio.gather(*[ask_once("a") for _ in range(count)], ask_once("b"))

    asyncio.run(go("/config", 40))
    assert most[0] <= gates.AT_ONCE and order.index("b") <= gates.AT_ONCE
    asyncio.run(go("/gradio_api/heartbeat/abc", 40))
    assert most[0] == 41


def test_a_page_is_connected_as_long_as_its_connection_is_open():
    sessions = Sessions()

    async def app(scope, receive, send):
        assert sessions._connected == {"abc": 1}

    scope = {"type": "http", "method": "GET", "path": "/gradio_api/heartbeat/abc", "headers": []}
    scope |= {"app": SimpleNamespace(auth=None, cookie_id="c", tokens=[])}
    asyncio.run(Gate(app, sessions, is_local=False)(scope, None, None))
    assert not sessions._connected


def test_slow_bodies_time_out_whatever_their_route(monkeypatch):
    monkeypatch.setattr(gates, "GRACE", 0.1)
    for path, login in ((JOIN, LOGIN), (FILES, LOGIN), ("/login", {})):
        status, text, _, body = ask(path, b"[", end=False, **login)
        assert status == 408 and "too long to arrive" in text and body is None
    drops = [b" "] * 50
    status, _, asked, _ = ask(JOIN, *drops, pause=0.02, **LOGIN)
    assert status == 408 and asked < 10  # each in time, and all together too slow


def test_a_fast_body_may_take_its_time(monkeypatch):
    monkeypatch.setattr(gates, "GRACE", 0.1)
    monkeypatch.setattr(gates, "SLOWEST", 1000)
    chunks = [b"x" * 100] * 5  # 0.1 s more for each
    assert ask(FILES, *chunks, pause=0.05, **LOGIN)[0] == 200


NESTED = {
    "lists": b"[" * 30 + b"]" * 30,
    "more than Python reads": b"[" * 400_000,
    "objects": b'{"a":' * 30 + b"1" + b"}" * 30,
    "wide": b"[" + b"0," * 6000 + b"0]",
    "many": b"[" + b"[0,0,0]," * 2000 + b"0]",
    "keys": json.dumps(dict.fromkeys(map(str, range(6000)))).encode(),
}


@pytest.mark.parametrize("name", NESTED)
def test_json_is_bounded_in_depth_and_entries(name):
    status, text, _, body = ask(JOIN, NESTED[name], **LOGIN)
    assert status in (400, 413) and "this request" in text and body is None


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[1" + b"0" * 5000 + b"]", b"nothing"])
def test_what_is_no_json_is_refused(text):
    assert ask(JOIN, text, **LOGIN)[0] == 400


def test_events_name_no_files():
    """Gradio would copy a local file, or fetch and keep one from another machine."""
    for path in ("http://127.0.0.1:1/x.png", "/etc/hostname"):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        sent = json.dumps({"data": [1, {"a": [file]}], "fn_index": 0}).encode()
        assert ask(JOIN, sent, **LOGIN)[1] == "an event of this page names no files"


# Host


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        ("localhost", True),
        ("LocalHost:7860", True),
        ("127.0.0.1:7860", True),
        ("127.8.8.8", True),
        ("[::1]:7860", True),
        ("[::1]", True),
        ("", False),
        ("evil.example", False),
        ("evil.example:7860", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example:80", False),
        ("192.0.2.7:7860", False),
        ("[2001:db8::1]", False),
    ],
)
def test_a_page_of_this_machine_answers_to_its_own_names(host, is_own):
    assert is_own_name(host) is is_own
    status, text, _, _ = ask("/", method="GET", host=host)
    assert (status == 200) is is_own and ("X-Forwarded-Host" in text) is not is_own
    assert ask("/", method="GET", host=host, is_local=False)[0] == 200  # by a tunnel


# Routes


def walk(routes):
    """All routes of an app, those of included routers too."""
    for route in routes:
        if hasattr(route, "original_router"):
            yield from walk(route.original_router.routes)
            continue
        yield route
        yield from walk(getattr(route, "routes", None) or [])


@pytest.fixture(scope="module")
def installed():
    """The page's app, as the installed Gradio makes it; with login, monitoring and history too."""
    events = Events(Host())
    page = demo_page.build(events, sessions := Sessions())
    page.auth, page.auth_message, page.run_history = None, None, True
    return App.create_app(page, app_kwargs=demo_page.app_arguments(events, sessions, is_local=True))


def test_every_route_of_the_installed_gradio_is_known(installed):
    """A new one is refused as it is. Read what it does, and list it in `demo/routes.py`."""
    listed = {route.path for route in (*SERVED, *REFUSED)}
    found = {route.path for route in walk(installed.routes)}
    assert found - listed == set()
    assert len(found) > 60 and JOIN in found and FILES in found


def test_no_route_is_listed_twice_and_each_says_what_it_is_for():
    paths = [route.path for route in (*SERVED, *REFUSED)]
    assert len(paths) == len(set(paths))
    assert all(len(route.purpose) > 10 for route in (*SERVED, *REFUSED))
    assert not any(route.methods for route in REFUSED)


@pytest.mark.parametrize("route", REFUSED, ids=lambda route: route.path)
def test_other_routes_are_refused_also_with_a_login(route):
    path = route.path.replace("{", "").replace("}", "").replace(":path", "")
    for method in ("GET", "POST", "HEAD", "PUT", "DELETE"):
        status, _, asked, _ = ask(path, b"{}", method=method, **LOGIN)
        assert (status, asked) == (404, 0)


@pytest.mark.parametrize(
    "path", ["/nothing", "/gradio_api/new", "//gradio_api/deep_link", "/gradio_api//upload", ""]
)
def test_unknown_routes_are_refused(path):
    assert ask(path, b"{}", **LOGIN)[0] == 404
