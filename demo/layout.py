"""What the page looks like: its parts by name, its style and its colours. Needs Gradio 6."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from sightline.demo.events import Events
from sightline.demo.forms import drawing_controls, fields, form_of_way, offer, scene_controls
from sightline.demo.host import FIRST_WAYS, Host
from sightline.demo.rendering import blank_card, code, error, shown_image, thumbnail
from sightline.demo.uploads import COMPARISON_MEGABYTES, IMAGE_MEGABYTES

TITLE = "sightline"
LEAD = (
    "One image, one question, several decoders: their answers side by side, "
    "what each of them changed, and why."
)
FIRST_SHOWN = 3
LAB_QUESTIONS = ("Describe the image.", "Is there a dog in the image?")
QUESTIONS = ("Describe the image.", "What is unusual about this picture?")

STYLE = Path(__file__).with_name("style.css")
SCRIPT = Path(__file__).with_name("script.js")

IMAGE = """
<figure class="frame">${value}</figure>
<div class="sources">
  <button type="button" class="minor" id="new-scene">Draw me a new scene</button>
  <label class="minor file" for="image-file">Choose a file</label>
  <input type="file" id="image-file" accept="image/*">
  <button type="button" class="minor" id="webcam">Webcam</button>
</div>
<div class="gallery" role="group" aria-label="Images of the lab">${gallery}</div>
<p class="hint">Or drop an image here, or paste one.</p>
<dialog aria-label="Webcam"><form method="dialog">
  <video muted playsinline></video><p role="alert" class="error"></p>
  <div class="sources"><button type="button" class="minor" data-shoot>Take the image</button>
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
            parts |= lay_out_image(events)
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


def lay_out_image(events: Events) -> dict[str, Any]:
    host = events.host
    first = events.first_image()
    gallery = "".join(thumbnail(name, host.open_shipped(name)) for name in host.shipped())
    return {
        "source": gr.Textbox(first.source, visible=False),
        "image": html(
            shown_image(first),
            html_template=IMAGE,
            gallery=gallery,
            elem_id="image",
            js_on_load=f"sightline.image(element, trigger, {IMAGE_MEGABYTES}e6); "
            "['chosen', 'shipped', 'scene']",
        ),
        "error-image": told("image", "#image-file"),
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
