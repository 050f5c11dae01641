"""What each control of the page is wired to. Needs Gradio 6."""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import gradio as gr

from sightline.demo.events import IDLE, Events
from sightline.demo.lab_events import LabEvents, Parts
from sightline.demo.rendering import error
from sightline.demo.sessions import Full, Sessions
from sightline.demo.turns import client_of

UNEXPECTED = "something went wrong here; try again, or load the page again"
KEPT = ("chosen", "round", "opened", "job")
"""What is kept for a visitor between events and is no part that can be seen."""
UNSEEN = (*KEPT, "client")
"""What an event gets beside what parts hold."""

READY = {**IDLE, "lab-run": True, "lab-stop": False}
"""Which buttons can be pressed while nothing runs."""

logger = logging.getLogger(__name__)


def wire(parts: Mapping[str, Any], events: Events, lab: LabEvents, sessions: Sessions) -> None:
    """What each control does."""
    columns = range(events.host.limits.ways)
    answers = [f"answer-{place}" for place in columns]
    ways = [f"way-{place}" for place in columns]
    complaints = [f"error-{place}" for place in events.error_places()]
    shown = ["round", "opened", "panel", "legend", "script", "error-load", *answers]
    buttons = ["compare", "stop"]
    image = ["chosen", "source", "image", "error-image"]
    quick: dict[str, Any] = {"queue": False}
    on = partial(connect, parts, sessions)

    on(parts["image"].chosen, events.choose_file, [], image, **quick)
    on(parts["image"].shipped, events.choose_shipped, [], image, **quick)
    on(parts["image"].scene, events.draw_scene, [], image, **quick)

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
    loaded = [*shown, *complaints, *image, *ways, "question", "drawing", *buttons]
    on(parts["files"].loaded, events.load, ["round"], list(dict.fromkeys(loaded)), **quick)

    run = ["job", "error-lab", "lab-progress", "lab-table", "lab-plots", "lab-run", "lab-stop"]
    on(parts["lab-run"].click, lab.run, ["client", "scenes", "drawing", *ways], run)
    on(parts["lab-stop"].click, lab.stop, ["job"], [], **quick)


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
