"""Which requests are answered: the routes that the page uses. All others are refused.

Gradio brings about eighty routes. A route that a later Gradio adds is refused until it is listed
here, and a test fails on it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from re import Pattern

from starlette.routing import compile_path

EVENT_BYTES = 1_000_000  # of a request that carries no file
FORM_BYTES = 10_000  # of a name with a password
FILE_BYTES = 61_000_000  # of a request that carries a file
FILES = "/sightline/files"

EVENT = "what a control of the page sends, and what comes of it"


@dataclass(frozen=True)
class Route:
    """A route, and who may use it.

    Args:
        path: As Starlette writes it.
        purpose: What the page needs it for; where it is refused, what it would do.
        methods: Those that are answered; none: the route is refused.
        is_open: Whether it is answered without a login, where logins are asked for.
        most: Bytes of a body at most; 0: a body is not read.
        together: Bytes of the bodies of all its requests that are being answered, at most.
        is_json: Whether the body is JSON.
        is_long: Whether an answer takes its time, without work or in turns of its own.
    """

    path: str
    purpose: str
    methods: tuple[str, ...] = ()
    is_open: bool = False
    most: int = 0
    together: int = 0
    is_json: bool = False
    is_long: bool = False

    @property
    def is_served(self) -> bool:
        return bool(self.methods)


def opened(path: str, purpose: str, *methods: str) -> Route:
    """A route without a body that needs no login: the login form is made of these."""
    return Route(path, purpose, methods or ("GET",), is_open=True)


def read(path: str, purpose: str) -> Route:
    """A route without a body."""
    return Route(path, purpose, ("GET",))


def event(path: str) -> Route:
    return Route(path, EVENT, ("POST",), most=EVENT_BYTES, together=32 * EVENT_BYTES, is_json=True)


def login(path: str) -> Route:
    purpose = "takes a name and a password"
    return Route(path, purpose, ("POST",), True, FORM_BYTES, 100 * FORM_BYTES)


API = "/gradio_api"
CONNECTION = f"{API}/heartbeat/{{session_hash}}"
SERVED = (
    opened("/", "the page; without a login, the form for it", "GET", "HEAD"),
    opened("/assets/{path:path}", "Gradio's scripts and styles"),
    opened("/static/{path:path}", "Gradio's images and its script for frames"),
    opened("/theme.css", "the page's colours"),
    opened(f"{API}/theme.css", "the page's colours"),
    opened("/favicon.ico", "the icon of the tab"),
    opened("/manifest.json", "the page's name for a home screen"),
    opened("/robots.txt", "tells search engines to stay away"),
    opened(f"{API}/startup-events", "starts the queue; asked by the server itself"),
    login("/login"),
    login("/login/"),
    read("/logout", "ends a login"),
    read("/config", "the page's layout, asked again after a lost connection"),
    read(f"{API}/app_id", "whether the server is still the same after a lost connection"),
    read(f"{API}/app_id/", "whether the server is still the same after a lost connection"),
    Route(CONNECTION, "tells whether a page is still open", ("GET",), is_long=True),
    Route(f"{API}/queue/data", "answers as they grow", ("GET",), is_long=True),
    event(f"{API}/queue/join"),
    event(f"{API}/run/{{api_name}}"),
    Route(
        FILES,
        "takes the file of an image or of a comparison",
        ("POST",),
        most=FILE_BYTES,
        together=2 * FILE_BYTES,
        is_long=True,
    ),
)
"""Routes that the page uses."""

NAMED = "calls events by name, and the page's have none"
OUTPUT = "hands out media that an event streams, and none does"
VIBE = "lets an assistant change the page's source"
HISTORY = "keeps what was asked in a bucket on a hub"
WATCH = "shows how the page is used"
REFUSED = tuple(
    Route(path, purpose)
    for path, purpose in {
        "/gradio_api/deep_link": "writes what a page shows to the disk, to be read by a link",
        "/gradio_api/upload": "writes files to the disk",
        "/gradio_api/upload_progress": "tells how far such an upload is",
        "/gradio_api/file={path_or_url:path}": "hands out files of the disk",
        "/gradio_api/file/{path:path}": "hands out files of the disk",
        "/gradio_api/proxy={url_path:path}": "fetches from another machine",
        "/gradio_api/custom_component/{id}/{environment}/{type}/{file_name}": (
            "hands out scripts of components that others wrote"
        ),
        "/gradio_api/component_server": "calls functions of components",
        "/gradio_api/component_server/": "calls functions of components",
        "/gradio_api/process_recording": "turns a recording of the screen into a film",
        "/gradio_api/call/{api_name}": NAMED,
        "/gradio_api/call/{api_name}/": NAMED,
        "/gradio_api/call/v2/{api_name}": NAMED,
        "/gradio_api/call/v2/{api_name}/": NAMED,
        "/gradio_api/call/{api_name}/{event_id}": NAMED,
        "/gradio_api/call/v2/{api_name}/{event_id}": NAMED,
        "/gradio_api/api/{api_name}": NAMED,
        "/gradio_api/api/{api_name}/": NAMED,
        "/gradio_api/run/{api_name}/": NAMED,
        "/gradio_api/info": "lists events that can be called by name",
        "/gradio_api/info/": "lists events that can be called by name",
        "/gradio_api/openapi.json": "lists events that can be called by name",
        "/gradio_api/queue/status": "tells how long the queue is",
        "/gradio_api/cancel": "ends an event; the page's own Stop does",
        "/gradio_api/reset": "does nothing any more",
        "/gradio_api/reset/": "does nothing any more",
        "/gradio_api/stream/{event_id}": OUTPUT,
        "/gradio_api/stream/{event_id}/close": OUTPUT,
        "/gradio_api/stream/{session_hash}/{run}/{component_id}/playlist.m3u8": OUTPUT,
        "/gradio_api/stream/{session_hash}/{run}/{component_id}/{segment_id}.{ext}": OUTPUT,
        "/gradio_api/stream/{session_hash}/{run}/{component_id}/playlist-file": OUTPUT,
        "/gradio_api/user": "tells whose login a cookie is",
        "/gradio_api/user/": "tells whose login a cookie is",
        "/gradio_api/token": "tells a cookie back",
        "/gradio_api/token/": "tells a cookie back",
        "/gradio_api/login_check": "tells whether a login is known",
        "/gradio_api/login_check/": "tells whether a login is known",
        "/gradio_api/dev/reload": "loads the page again while its source is edited",
        "/gradio_api/runs": HISTORY,
        "/gradio_api/runs/": HISTORY,
        "/gradio_api/run-history/connect": HISTORY,
        "/gradio_api/run-history/buckets": HISTORY,
        "/gradio_api/run-history/records": HISTORY,
        "/gradio_api/run-history/records/{endpoint}/{record_id}/assets/{asset_id}": HISTORY,
        "/gradio_api/vibe-edit": VIBE,
        "/gradio_api/vibe-edit/": VIBE,
        "/gradio_api/undo-vibe-edit": VIBE,
        "/gradio_api/undo-vibe-edit/": VIBE,
        "/gradio_api/vibe-code": VIBE,
        "/gradio_api/vibe-code/": VIBE,
        "/gradio_api/vibe-starter-queries": VIBE,
        "/gradio_api/vibe-starter-queries/": VIBE,
        "/config/": "the page's layout, by a path that the page does not use",
        "/svelte/{path:path}": "scripts of components that others wrote",
        "/pwa_icon": "an icon for an installed page, which this is not",
        "/pwa_icon/{size}": "an icon for an installed page, which this is not",
        "/monitoring": WATCH,
        "/monitoring/summary": WATCH,
        "/monitoring/{key}": WATCH,
    }.items()
)
"""Gradio's other routes: listed so that a new one is noticed."""


class Table:
    """Finds the route of a request among those that are served."""

    def __init__(self, routes: Iterable[Route] = SERVED):
        self._routes: list[tuple[Pattern[str], Route]] = [
            (compile_path(route.path)[0], route) for route in routes
        ]

    def find(self, method: str, path: str) -> Route | None:
        for pattern, route in self._routes:
            if method in route.methods and pattern.match(path):
                return route
        return None
