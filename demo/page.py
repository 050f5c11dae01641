"""The page in a browser: its parts, what is wired to what, and how it is served. Needs Gradio 6."""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from sightline.demo.events import IDLE, Events, Parts
from sightline.demo.forms import drawing_controls, fields, form_of_way, offer, scene_controls
from sightline.demo.gate import Gate
from sightline.demo.host import FIRST_WAYS, Host
from sightline.demo.rendering import blank_card, code, error, shown_picture, thumbnail
from sightline.demo.sessions import BYTES, Full, Sessions
from sightline.demo.tidying import tidy
from sightline.demo.turns import client_of
from sightline.demo.uploads import COMPARISON_MEGABYTES, PICTURE_MEGABYTES

TITLE = "sightline"
LEAD = (
    "One picture, one question, several decoders: their answers side by side, "
    "what each of them changed, and why."
)
FIRST_SHOWN = 3
LAB_QUESTIONS = ("Describe the image.", "Is there a dog in the image?")
QUESTIONS = ("Describe the image.", "What is unusual about this picture?")
UNEXPECTED = "something went wrong here; try again, or load the page again"
SHOWN = 16  # visitors of whom Gradio remembers what it shows, a megabyte each; it needs none
THREADS = 256  # of events, those that wait for their turn included
KEPT = ("chosen", "round", "opened", "job")
"""What is kept for a visitor between events and is no part that can be seen."""
UNSEEN = (*KEPT, "client")
"""What an event gets beside what parts hold."""

READY = {**IDLE, "lab-run": True, "lab-stop": False}
"""Which buttons can be pressed while nothing runs."""

STYLE = Path(__file__).with_name("style.css")
SCRIPT = Path(__file__).with_name("script.js")

PICTURE = """
<figure class="frame">${value}</figure>
<div class="sources">
  <button type="button" class="minor" id="new-scene">Draw me a new scene</button>
  <label class="minor file" for="picture-file">Choose a file</label>
  <input type="file" id="picture-file" accept="image/*">
  <button type="button" class="minor" id="webcam">Webcam</button>
</div>
<div class="gallery" role="group" aria-label="Pictures of the lab">${gallery}</div>
<p class="hint">Or drop a picture here, or paste one.</p>
<dialog aria-label="Webcam"><form method="dialog">
  <video muted playsinline></video><p role="alert" class="error"></p>
  <div class="sources"><button type="button" class="minor" data-shoot>Take the picture</button>
  <button class="minor">Cancel</button></div>
</form></dialog>
"""
FILES = """
<div class="sources">
  <button type="button" class="minor" id="copy">Copy as Python</button>
  <button type="button" class="minor" id="save">Save this comparison</button>
  <label class="minor file" for="load">Load a saved one</label>
  <input type="file" id="load" accept="application/json,.json">
  <span role="status" class="hint"></span>
</div>
"""
COLOURS = {
    "body_background_fill": "ground",
    "body_text_color": "ink",
    "body_text_color_subdued": "quiet",
    "background_fill_primary": "sheet",
    "background_fill_secondary": "sheet",
    "block_background_fill": "sheet",
    "block_border_color": "line",
    "block_title_text_color": "ink",
    "block_label_text_color": "quiet",
    "border_color_primary": "line",
    "border_color_accent": "accent",
    "input_background_fill": "sheet",
    "input_border_color": "edge",
    "input_border_color_focus": "accent",
    "button_primary_background_fill": "accent",
    "button_primary_background_fill_hover": "accent-strong",
    "button_primary_text_color": "on-accent",
    "button_primary_text_color_hover": "on-accent",
    "button_secondary_background_fill": "sheet",
    "button_secondary_background_fill_hover": "wash",
    "button_secondary_text_color": "ink",
    "button_secondary_text_color_hover": "ink",
    "button_secondary_border_color": "edge",
    "link_text_color": "accent",
    "table_text_color": "ink",
}
"""Gradio's names for what it paints -> those of `style.css`."""

logger = logging.getLogger(__name__)


def build(events: Events, sessions: Sessions) -> gr.Blocks:
    """The page, ready to be launched. All of its sessions share the host and nothing else."""
    with gr.Blocks(
        title=f"{TITLE}: answers side by side",
        analytics_enabled=False,
        delete_cache=(600, 600),
        fill_width=True,
    ) as page:
        parts = lay_out(events)
        wire(parts, events, sessions)
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


def head() -> str:
    """The page's style and script. Gradio would change the selectors of a `css`."""
    style, script = (path.read_text(encoding="utf-8") for path in (STYLE, SCRIPT))
    return f"<style>{style}</style><script>{script}</script>"


def theme() -> gr.themes.Base:
    """Gradio's own controls in the page's colours; all fonts are the reader's own."""
    made = gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        font=("ui-sans-serif", "system-ui", "sans-serif"),
        font_mono=("ui-monospace", "monospace"),
    )
    both = {
        f"{name}{mode}": f"var(--{colour})"
        for name, colour in COLOURS.items()
        for mode in ("", "_dark")
    }
    return made.set(**both)


# Parts


def html(value: Any = "", **others: Any) -> gr.HTML:
    """HTML of our own, without Gradio's style. (A subclass would make Gradio write a stub file.)"""
    return gr.HTML(value, apply_default_css=False, **others)


def lay_out(events: Events) -> dict[str, Any]:
    """All parts of the page, by name."""
    host = events.host
    parts: dict[str, Any] = {}
    html(f'<header class="title"><h1>{TITLE}</h1><p>{LEAD}</p></header>', elem_classes=["masthead"])
    with gr.Row(elem_classes=["asking"]):
        with gr.Column(elem_classes=["left"], scale=1, min_width=280):
            parts |= lay_out_picture(events)
        with gr.Column(elem_classes=["right"], scale=2, min_width=280):
            parts |= lay_out_question(host)
    parts |= lay_out_columns(host)
    parts["legend"] = html(elem_id="legend")
    parts["panel"] = html(
        elem_id="panel",
        js_on_load="sightline.panel(element, (...sent) => trigger(...sent), watch); 'token'",
    )
    parts |= lay_out_taking()
    return parts


def lay_out_picture(events: Events) -> dict[str, Any]:
    host = events.host
    first = events.first_picture()
    gallery = "".join(thumbnail(name, host.open_shipped(name)) for name in host.shipped())
    return {
        "source": gr.Textbox(first.source, visible=False),
        "picture": html(
            shown_picture(first),
            html_template=PICTURE,
            gallery=gallery,
            elem_id="picture",
            js_on_load=f"sightline.picture(element, trigger, {PICTURE_MEGABYTES}e6); "
            "['chosen', 'shipped', 'scene']",
        ),
        "error-picture": told("picture", "#picture-file"),
    }


def lay_out_question(host: Host) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    questions = LAB_QUESTIONS if host.is_lab else QUESTIONS
    parts["question"] = gr.Textbox(
        questions[0],
        label="Question",
        lines=1,
        max_lines=6,
        elem_id="question",
    )
    parts["error-question"] = told("question", "#question textarea")
    with gr.Row(elem_classes=["examples"]):
        for question in questions:
            ask = gr.Button(question, size="sm", elem_classes=["example"])
            ask.click(None, None, parts["question"], js=f"() => {question!r}")
    with gr.Accordion("Length and sampling", open=False):
        parts["drawing"] = form("drawing", drawing_controls(host.limits.max_new_tokens))
    parts["error-drawing"] = told("drawing")
    with gr.Row(elem_classes=["doing"]):
        parts["compare"] = gr.Button("Compare", variant="primary", elem_id="compare")
        parts["stop"] = gr.Button("Stop", elem_id="stop", interactive=False)
    html(
        f'<p class="hint">Enter in the question, or Ctrl+Enter anywhere. {about(host)}</p>',
    )
    parts["error-page"] = told("page")
    return parts


def about(host: Host) -> str:
    """Who answers."""
    if host.is_lab:
        return (
            "The model that answers comes with sightline: it is small, and knows drawn scenes of "
            "24 objects and the two kinds of question above."
        )
    return f"The model that answers is {escape(host.name)}."


def lay_out_columns(host: Host) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    html('<h2 class="unseen">Decoders and their answers</h2>')
    offered = offer(host.way)
    with gr.Row(elem_classes=["way-columns"], elem_id="columns"):
        for place in range(host.limits.ways):
            with gr.Column(elem_classes=["way-column"], elem_id=f"column-{place}", min_width=0):
                way = host.way(FIRST_WAYS[place % len(FIRST_WAYS)])
                parts[f"way-{place}"] = html(
                    form_of_way(way, place < FIRST_SHOWN),
                    html_template='<div class="way"></div>',
                    offer=offered,
                    place=place,
                    js_on_load="sightline.way(element, props, watch)",
                )
                parts[f"error-way-{place}"] = told(f"way-{place}", f"#way-{place}")
                parts[f"answer-{place}"] = html(
                    blank_card(place),
                    elem_classes=["way-answer"],
                    js_on_load="sightline.answer(element, trigger); ['token', 'halt']",
                )
    html(
        '<button type="button" class="minor" id="add-way">Add a decoder</button>',
        js_on_load="sightline.add(element)",
    )
    return parts


def lay_out_taking() -> dict[str, Any]:
    """What can be taken away: a script, a file, figures over many scenes."""
    parts: dict[str, Any] = {}
    html('<h2 class="section">Take it with you</h2>')
    parts["files"] = html(
        {},
        html_template=FILES,
        elem_id="files",
        js_on_load=f"sightline.files(element, trigger, props, watch, {COMPARISON_MEGABYTES}e6); "
        "['saved', 'loaded', 'empty']",
    )
    parts["error-load"] = told("load", "#load")
    parts["script"] = html(code(""))
    with gr.Accordion("Run on many scenes of the lab", open=False):
        parts["scenes"] = form("lab", scene_controls())
        with gr.Row(elem_classes=["doing"]):
            parts["lab-run"] = gr.Button("Run on these scenes", elem_id="lab-run")
            parts["lab-stop"] = gr.Button("Stop", elem_id="lab-stop", interactive=False)
        parts["error-lab"] = told("lab")
        parts["lab-progress"] = html(elem_id="lab-progress")
        parts["lab-table"] = gr.Markdown(elem_id="lab-table")
        parts["lab-plots"] = html(elem_id="lab-plots")
    return parts


def form(name: str, controls: Sequence[Any]) -> gr.HTML:
    """A form of our own controls; its value is a text by name."""
    return html(
        {control.name: control.default for control in controls},
        html_template='<div class="fields"></div>',
        controls=fields(controls),
        form=name,
        js_on_load="sightline.form(element, props, watch)",
    )


def told(place: str, control: str = "") -> gr.HTML:
    """Where a complaint about a control appears."""
    return html(
        error(place),
        control=control,
        elem_classes=["told"],
        js_on_load="sightline.error(element, props, watch)",
    )


# Wires


def wire(parts: Mapping[str, Any], events: Events, sessions: Sessions) -> None:
    """What each control does."""
    columns = range(events.host.limits.ways)
    answers = [f"answer-{place}" for place in columns]
    ways = [f"way-{place}" for place in columns]
    complaints = [f"error-{place}" for place in events.error_places()]
    shown = ["round", "opened", "panel", "legend", "script", "error-load", *answers]
    buttons = ["compare", "stop"]
    picture = ["chosen", "source", "picture", "error-picture"]
    quick: dict[str, Any] = {"queue": False}
    on = partial(connect, parts, sessions)

    on(parts["picture"].chosen, events.choose_file, [], picture, **quick)
    on(parts["picture"].shipped, events.choose_shipped, [], picture, **quick)
    on(parts["picture"].scene, events.draw_scene, [], picture, **quick)

    asked = ["chosen", "source", "round", "question", "drawing", *ways]
    for trigger in (parts["compare"].click, parts["question"].submit):
        begun = on(trigger, events.begin, asked, [*shown, *complaints, *buttons], **quick)
        # Each press is followed, also where one that was stopped still waits in the queue.
        following = {"trigger_mode": "multiple"}
        inputs = ["round", "client"]
        followed = on(begun.then, events.follow, inputs, answers, is_whole=True, **following)
        on(followed.then, events.rest, ["round"], buttons, **quick)
        on(followed.failure, events.give_up, ["round"], [*answers, *buttons], **quick)
    on(parts["stop"].click, events.stop, ["round"], [*answers, *buttons], **quick)

    seen, why = ["round", "opened", "client"], ["opened", "panel"]
    for place in columns:
        answer = parts[f"answer-{place}"]
        on(answer.halt, partial(halt, events, place), ["round"], answers, **quick)
        on(answer.token, partial(open_token, events, place), seen, why)
    on(parts["panel"].token, events.open_token, seen, why)

    saved = on(parts["files"].saved, events.save, ["round"], ["files", "error-load"], **quick)
    on(saved.then, events.sent_file, [], ["files"], **quick)
    on(parts["files"].empty, events.copy_nothing, [], ["error-load"], **quick)
    loaded = [*shown, *complaints, *picture, *ways, "question", "drawing", *buttons]
    on(parts["files"].loaded, events.load, ["round"], list(dict.fromkeys(loaded)), **quick)

    run = ["job", "error-lab", "lab-progress", "lab-table", "lab-plots", "lab-run", "lab-stop"]
    on(parts["lab-run"].click, events.run_lab, ["client", "scenes", "drawing", *ways], run)
    on(parts["lab-stop"].click, events.stop_lab, ["job"], [], **quick)


def halt(events: Events, place: int, _: Any, round: Any) -> Parts:
    return events.halt(place, round)


def open_token(events: Events, place: int, sent: Mapping[str, Any], *others: Any) -> Parts:
    return events.open_token({**sent, "place": place}, *others)


def connect(
    parts: Mapping[str, Any],
    sessions: Sessions,
    trigger: Callable[..., Any],
    handler: Callable[..., Any],
    inputs: Sequence[str],
    outputs: Sequence[str],
    is_whole: bool = False,
    **options: Any,
) -> Any:
    """An event with its handler, whose mistakes no client sees.

    Args:
        parts: All, by name.
        sessions: Where that is kept which is no part.
        trigger: Such as `button.click`.
        handler: What the event sends, then the inputs' values -> new values of outputs, by name.
        inputs: Names of parts and of what is unseen.
        outputs: Such names; where mistakes are told is added.
        is_whole: Whether the handler gives all of them, as they are shown. Gradio makes a component
            anew of each that stays as it is, which is most of its work where answers grow.
    """
    named = list(dict.fromkeys([*(name for name in outputs if name not in KEPT), "error-page"]))
    return trigger(
        guarded(handler, inputs, named, sessions, is_whole),
        [parts[name] for name in inputs if name not in UNSEEN],
        [parts[name] for name in named],
        api_visibility="private",
        show_progress="hidden",
        postprocess=not is_whole,
        **options,
    )


def guarded(
    handler: Callable[..., Any],
    inputs: Sequence[str],
    outputs: Sequence[str],
    sessions: Sessions,
    is_whole: bool = False,
) -> Callable[..., Any]:
    """The handler as Gradio calls it; what it raises is logged here, and said in one sentence."""

    def begin(event: gr.EventData, request: gr.Request, values: Sequence[Any]) -> Any:
        unseen, given = sessions.values(name_of(request)), iter(values)
        if "client" in inputs:
            unseen["client"] = client_of(request)
        return handler(
            sent(event), *(unseen.get(name) if name in UNSEEN else next(given) for name in inputs)
        )

    def keep(request: gr.Request, changed: Parts) -> list[Any]:
        if kept := {name: value for name, value in changed.items() if name in KEPT}:
            sessions.keep(name_of(request), client_of(request), kept)
        return [changed[name] for name in outputs] if is_whole else updates(changed, outputs)

    def told(error_: Exception) -> list[Any]:
        if not isinstance(error_, Full):
            logger.exception("an event of the page failed")
        text = str(error_) if isinstance(error_, Full) else UNEXPECTED
        return updates({"error-page": error("page", text), **READY}, outputs)

    def once(event: gr.EventData, request: gr.Request, *values: Any) -> list[Any]:
        try:
            return keep(request, begin(event, request, values))
        except Exception as failed:
            return told(failed)

    def often(event: gr.EventData, request: gr.Request, *values: Any) -> Iterator[list[Any]]:
        try:
            for changed in begin(event, request, values):
                sessions.values(name_of(request))  # whoever looks on is not idle
                yield keep(request, changed)
        except Exception as failed:
            yield told(failed)

    return often if inspect.isgeneratorfunction(handler) else once


def name_of(request: gr.Request | None) -> str:
    """What a page calls itself, which no other visitor knows."""
    return (request.session_hash if request else None) or ""


def sent(event: gr.EventData | None) -> dict[str, Any]:
    """What an event sends along; nothing where that is no mapping."""
    data = getattr(event, "_data", None)
    return data if isinstance(data, dict) else {}


def updates(changed: Parts, outputs: Sequence[str]) -> list[Any]:
    """New values in the outputs' order; those that stay are skipped."""
    return [update(changed[name]) if name in changed else gr.skip() for name in outputs]


def update(value: Any) -> Any:
    """A truth value says whether a button can be pressed."""
    return gr.update(interactive=value) if isinstance(value, bool) else value
