"""Files that come from a browser: decoded as they arrive, and never written to disk.

The browser posts a file to a route of its own and gets a token, which the page's event then sends.
"""

import asyncio
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from sightline.demo.decoding import Bounds, Decoded, Kind, decode
from sightline.demo.routes import FILES
from sightline.demo.turns import BUSY, Busy, Turns, client_of

IMAGE_MEGABYTES = 30
COMPARISON_MEGABYTES = 60
LONGEST_NAME = 100
MOST_WAITING = 64  # files that wait until they are decoded, one after the other
MOST_OF_CLIENT = 32  # files of one client whose event has not come yet
SECONDS = 60.0  # until its event has come
BYTES = 32_000_000  # of all files whose events have not come yet, or two of the largest
BINARY = "application/octet-stream"
UNNAMED = "the image"  # what a file is called whose name is not known
KINDS: dict[str, tuple[Kind, int, str]] = {
    "image": ("image", IMAGE_MEGABYTES, "choose a smaller file, such as a JPEG"),
    "comparison": ("comparison", COMPARISON_MEGABYTES, "compare on a smaller image"),
}
"""What a page sends -> how it is decoded, its megabytes at most, and the way out."""


@dataclass(frozen=True, eq=False)
class Arrived:
    """A file that waits for its event: what it holds, or why it is refused."""

    client: str
    kind: Kind
    since: float
    found: Decoded | None = None
    refused: str = ""

    @property
    def bytes(self) -> int:
        image, document = (self.found.image, self.found.document) if self.found else (None, "")
        return len(document) + (4 * image.width * image.height if image else 0)


@dataclass(frozen=True, eq=False)
class Upload:
    """A file's bare name and what it holds."""

    name: str
    found: Decoded


class Uploads:
    """Takes files, one after the other, and keeps each until its event asks for it.

    Args:
        bounds: Of what is decoded.
        decoder: Opens a file; it takes its time, and raises `ValueError`.
    """

    def __init__(
        self,
        bounds: Bounds,
        decoder: Callable[[bytes, Kind, Bounds], Decoded] = decode,
    ):
        self.bounds = bounds
        self._decode = decoder
        self._turns = Turns(1, waiting=MOST_WAITING)
        self._arrived: dict[str, Arrived] = {}
        self._lock = threading.Lock()

    @property
    def route(self) -> Route:
        return Route(FILES, self.receive, methods=["POST"])

    async def receive(self, request: Request) -> Response:
        """Answers with a token for the file in the body: `?kind=image` or `comparison`.

        The body has been bounded by `sightline.demo.gate`.
        """
        if request.query_params.get("kind") not in KINDS:
            return PlainTextResponse("kind is image or comparison", 400)
        if request.headers.get("content-type") != BINARY:  # which no foreign page can send
            return PlainTextResponse(f"a file is sent as {BINARY}", 415)
        kind, _, _ = KINDS[request.query_params["kind"]]
        client = client_of(request)
        turn = self._turns.ask(client)
        try:
            await asyncio.wrap_future(turn.given)
            data = await request.body()
            found = await to_thread.run_sync(self._decode, data, kind, self.bounds)
            arrived = Arrived(client, kind, time.monotonic(), found)
        except Busy as told:
            return PlainTextResponse(str(told), 503)
        except ValueError as error:
            arrived = Arrived(client, kind, time.monotonic(), refused=str(error))
        finally:
            self._turns.end(turn)
        return JSONResponse({"token": self._put(arrived)})

    def read_image(self, sent: Any) -> Upload:
        """What a page sends of an image's file: `{"name": ..., "size": bytes, "token": ...}`.

        Anything may come.

        Raises:
            ValueError: For a file that is empty, too large, no image, or did not arrive.
        """
        return self._read(sent, "image")

    def read_comparison(self, sent: Any) -> Decoded:
        """What a page sends of a comparison's file; raises as `read_image`."""
        return self._read(sent, "comparison").found

    def _read(self, sent: Any, wanted: str) -> Upload:
        kind, megabytes, way_out = KINDS[wanted]
        name = sent.get("name") if isinstance(sent, Mapping) else None
        if not isinstance(name, str):
            raise ValueError("no file arrived: choose it again")
        name, size, token = bare(name), sent.get("size"), sent.get("token")
        if isinstance(size, int | float) and size > megabytes * 10**6:
            raise ValueError(f"{name} has more than {megabytes} MB: {way_out}")
        if size == 0:
            raise ValueError(f"{name} is empty: choose another file")
        if sent.get("status") == 503:
            raise ValueError(BUSY)
        with self._lock:
            arrived = self._arrived.pop(token, None) if isinstance(token, str) else None
        if arrived is None or arrived.kind != kind:
            raise ValueError(f"{name} did not arrive: choose it again")
        if arrived.found is None:
            text = arrived.refused
            raise ValueError(
                name + text.removeprefix(UNNAMED) if text.startswith(UNNAMED) else text
            )
        return Upload(name, arrived.found)

    def forget(self) -> None:
        """Keeps no file whose event does not come."""
        first = time.monotonic() - SECONDS
        with self._lock:
            for key in [key for key, one in self._arrived.items() if one.since < first]:
                del self._arrived[key]

    def _put(self, arrived: Arrived) -> str:
        """Keeps a file under a new token; of too many, a client's own oldest goes first."""
        token = secrets.token_urlsafe(16)
        self.forget()
        with self._lock:
            self._arrived[token] = arrived
            own = [key for key, one in self._arrived.items() if one.client == arrived.client]
            for key in own[:-MOST_OF_CLIENT]:
                del self._arrived[key]
            most = max(BYTES, 2 * self.bounds.kept_bytes)
            while sum(one.bytes for one in self._arrived.values()) > most:
                del self._arrived[next(iter(self._arrived))]
        return token


def bare(name: str) -> str:
    """A file's name without folders, unprintable characters and undue length."""
    last = PureWindowsPath(PurePosixPath(name).name).name
    shown = "".join(letter for letter in last if letter.isprintable()).strip()
    return shown[-LONGEST_NAME:] or "image"
