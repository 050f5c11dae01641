"""The page in a browser, and how it is served. Needs Gradio 6."""

from collections.abc import Sequence
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from sightline.demo.events import Events
from sightline.demo.gate import Gate
from sightline.demo.host import Host
from sightline.demo.lab_events import LabEvents
from sightline.demo.layout import TITLE, head, lay_out, theme
from sightline.demo.sessions import BYTES, Sessions
from sightline.demo.tidying import tidy
from sightline.demo.wiring import wire

SHOWN = 16  # visitors of whom Gradio remembers what it shows, a megabyte each; it needs none
THREADS = 256  # of events, those that wait for their turn included


def build(events: Events, sessions: Sessions) -> gr.Blocks:
    """The page, ready to be launched. All of its sessions share the host and nothing else."""
    with gr.Blocks(
        title=f"{TITLE}: answers side by side",
        analytics_enabled=False,
        delete_cache=(600, 600),
        fill_width=True,
    ) as page:
        parts = lay_out(events)
        wire(parts, events, LabEvents(events.host), sessions)
    return page


def launch(
    host: Host,
    *,
    port: int | None = None,
    share: bool = False,
    auth: Sequence[tuple[str, str]] | None = None,
    open_browser: bool = False,
    block: bool = True,
) -> str:
    """Serves the page.

    Args:
        host: Shared by all sessions.
        port: To listen on; None: the first free one from 7860.
        share: Whether Gradio's tunnel makes it reachable from anywhere.
        auth: Names with passwords; None lets everybody in.
        open_browser: Whether a browser is opened.
        block: Whether to serve until interrupted.

    Returns:
        The address; of the tunnel where there is one.
    """
    events = Events(host)
    sessions = Sessions(bytes=max(BYTES, 4 * host.bounds.kept_bytes))
    page = build(events, sessions)
    # Who may go on is decided by client, in `Events`.
    page.queue(max_size=host.limits.waiting, default_concurrency_limit=None, api_open=False)
    _, local, shared = page.launch(
        server_port=port,
        share=share,
        auth=list(auth) if auth else None,
        inbrowser=open_browser,
        prevent_thread_lock=True,
        quiet=True,
        show_error=False,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        state_session_capacity=SHOWN,
        max_threads=THREADS,
        app_kwargs=app_arguments(events, sessions, is_local=not share),
        theme=theme(),
        head=head(),
    )
    tidy([sessions.forget, events.uploads.forget])
    if block:
        page.block_thread()
    return shared or local


def app_arguments(events: Events, sessions: Sessions, is_local: bool) -> dict[str, Any]:
    """For `FastAPI`: the gate, the route of files, and no pages that list the routes."""
    return {
        "middleware": [Middleware(Gate, sessions=sessions, is_local=is_local)],
        "routes": [events.uploads.route],
        "docs_url": None,
        "redoc_url": None,
        "openapi_url": None,
    }
