"""A visitor of the page without a browser: what its script and Gradio's send, and nothing else."""

import http.client
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SECONDS = 300.0  # the longest wait for one answer
NAME, PASSWORD = "ada", "secret"


class Page:
    """What the page's layout says of its events: which number, which inputs.

    Args:
        config: Gradio's.
    """

    def __init__(self, config: dict[str, Any]):
        self.values = {part["id"]: part["props"].get("value") for part in config["components"]}
        self._ids = {name_of(part["props"]): part["id"] for part in config["components"]}
        self._events = config["dependencies"]

    def value(self, part: str) -> Any:
        """What a control holds at first."""
        return self.values[self._ids[part]]

    def event(self, part: str, name: str) -> dict[str, Any]:
        """The event of a part: `event("compare", "click")`."""
        wanted = (self._ids[part], name)
        return next(one for one in self._events if wanted in map(tuple, one["targets"]))

    def after(self, event: dict[str, Any]) -> dict[str, Any]:
        """The event that follows another one."""
        return next(one for one in self._events if one.get("trigger_after") == event["id"])

    def inputs(self, event: dict[str, Any], **changed: Any) -> list[Any]:
        """What the page's controls hold, but for those that are changed, by name."""
        ids = {self._ids[name]: value for name, value in changed.items()}
        return [ids.get(id, self.values.get(id)) for id in event["inputs"]]


def name_of(props: dict[str, Any]) -> str:
    """What a part is called: its own name, a form's, or "way-0" of a column."""
    given = props.get("props") or {}
    if "offer" in given:
        return f"way-{given['place']}"
    return props.get("elem_id") or given.get("form") or ""


class Client:
    """One visitor, at an address of its own where the machine has more than one.

    Args:
        port: Of the page, on this machine.
        address: Where the visitor comes from: all of 127.0.0.0/8 on Linux.
    """

    def __init__(self, port: int, address: str = "127.0.0.1"):
        self.port, self.address = port, address
        self.cookie = ""
        self.session = secrets.token_hex(6)

    def log_in(self) -> None:
        body = f"username={NAME}&password={PASSWORD}".encode()
        form = {"content-type": "application/x-www-form-urlencoded"}
        with self.connection() as link:
            link.request("POST", "/login", body, form)
            reply = link.getresponse()
            cookies = reply.headers.get_all("set-cookie") or []
            reply.read()
        if reply.status != 200:
            raise RuntimeError(f"the login was answered with {reply.status}")
        self.cookie = "; ".join(cookie.partition(";")[0] for cookie in cookies)

    def connection(self) -> "Link":
        return Link(self.port, self.address)

    def request(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, bytes]:
        """The status and the text of a reply."""
        given = {"cookie": self.cookie, **{k.replace("_", "-"): v for k, v in headers.items()}}
        with self.connection() as link:
            link.request(method, path, body, given)
            reply = link.getresponse()
            return reply.status, reply.read()

    def page(self) -> Page:
        self.request("GET", "/")
        return Page(json.loads(self.request("GET", "/config")[1]))

    def fire(
        self, event: dict[str, Any], data: list[Any], sent: Any = None, path: str = "run/predict"
    ) -> dict[str, Any]:
        """Sends an event, and gives the reply."""
        body = {
            "data": data,
            "event_data": sent,
            "fn_index": event["id"],
            "trigger_id": event["targets"][0][0] if event["targets"] else None,
            "session_hash": self.session,
        }
        text = json.dumps(body, allow_nan=False).encode()
        status, reply = self.request(
            "POST", f"/gradio_api/{path}", text, content_type="application/json"
        )
        if status != 200:
            raise Turned(status, reply.decode(errors="replace"))
        return json.loads(reply)

    def send_file(self, data: bytes) -> str:
        """Posts an image's file, and gives its token."""
        status, reply = self.request(
            "POST", "/sightline/files?kind=image", data, content_type="application/octet-stream"
        )
        if status != 200:
            raise Turned(status, reply.decode(errors="replace"))
        return json.loads(reply)["token"]

    def choose(self, page: Page, data: bytes) -> str:
        """Chooses an image's file, and gives what the page then shows of it."""
        sent = {"name": "a.png", "size": len(data), "token": self.send_file(data)}
        return str(self.fire(page.event("image", "chosen"), [], sent)["data"])

    def compare(self, page: Page, **changed: Any) -> str:
        """Presses Compare and waits for the answers; gives what the page says of the pressing."""
        press = page.event("compare", "click")
        said = str(self.fire(press, page.inputs(press, **changed))["data"])
        follow = page.after(press)
        self.fire(follow, [], path="queue/join")
        self.wait()
        return said

    @contextmanager
    def open_page(self) -> Iterator[Page]:
        """The page, which holds a connection as long as it is open."""
        page = self.page()
        with self.connection() as link:
            path = f"/gradio_api/heartbeat/{self.session}"
            link.request("GET", path, headers={"cookie": self.cookie})
            link.getresponse()
            yield page

    def wait(self) -> None:
        """Until the event in the queue is over."""
        with self.connection() as link:
            path = f"/gradio_api/queue/data?session_hash={self.session}"
            link.request("GET", path, headers={"cookie": self.cookie})
            for line in link.getresponse():
                message = json.loads(line[5:]) if line.startswith(b"data:") else {}
                if message.get("msg") in ("process_completed", "close_stream"):
                    return

    def answers(self, page: Page) -> list[dict[str, Any]]:
        """What has been answered, as a saved comparison tells it; none where nothing is kept."""
        reply = self.fire(page.event("files", "saved"), [], {})["data"]
        files = next((one for one in reply if isinstance(one, dict) and "text" in one), None)
        return json.loads(files["text"])["answers"] if files else []


class Turned(Exception):
    """A request that was turned away."""

    def __init__(self, status: int, text: str):
        super().__init__(f"{status} {text[:200]}")
        self.status = status


class Link(http.client.HTTPConnection):
    """A connection that ends with its block."""

    def __init__(self, port: int, address: str):
        super().__init__("127.0.0.1", port, timeout=SECONDS, source_address=(address, 0))

    def __enter__(self) -> "Link":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
