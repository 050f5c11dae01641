"""The page, driven in headless Chromium as a visitor would. Screenshots go to build/screenshots."""

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
from lab_copies import random_checkpoint
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from sightline import VCD, VDD, answer
from sightline.lab import CHECKPOINT, IMAGES, mentioned, truth

try:
    from playwright.sync_api import TimeoutError
except ImportError:  # then all is skipped
    TimeoutError = Exception

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.skipif(
        importlib.util.find_spec("playwright") is None, reason="Playwright is not installed"
    ),
]

SCREENSHOTS = Path(__file__).parents[1] / "build" / "screenshots"
DESCRIBE = "Describe the image."
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
PATIENCE = 60_000  # milliseconds; two busy cores are slow
GROWN = 20.0  # megabytes that twenty requests may leave behind: Python and its allocator breathe


class Server:
    """`python -m sightline.demo` in a process of its own.

    Args:
        folder: For its log, and for the files that Gradio would keep of visitors.
        arguments: Of the command.
    """

    def __init__(self, folder, *arguments):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/"
        self.log, self.files = folder / "log", folder / "files"
        environment = {"OMP_NUM_THREADS": "1", "GRADIO_TEMP_DIR": str(self.files)}
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sightline.demo", "--port", str(port), *arguments],
                stdout=out,
                stderr=out,
                env={**os.environ, **environment},
            )
        end = time.monotonic() + PATIENCE / 1000
        while not is_up(self.url):
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.1)

    def end(self):
        self.process.terminate()
        self.process.wait(20)
        assert "Traceback" not in self.log.read_text()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """On the lab's model."""
    served = Server(tmp_path_factory.mktemp("demo"))
    yield served
    served.end()


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """On a model of the lab's shape that never stops talking."""
    folder = random_checkpoint(tmp_path_factory.mktemp("endless"))
    served = Server(tmp_path_factory.mktemp("demo"), "--model", folder, "--max-tokens", "4000")
    yield served
    served.end()


def is_up(url):
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture(scope="module")
def usual(browser):
    """The context that most pages share, so that it loads the page's own files once."""
    allowed = ["clipboard-read", "clipboard-write"]
    return browser.new_context(viewport=DESKTOP, permissions=allowed)


@pytest.fixture
def visit(browser, usual, server):
    """Opens the page, in a context of its own where settings are given.

    Afterwards nothing has been asked of another machine, and no script has failed.
    """
    pages, asked, errors = [], [], []

    def open_page(at=server, **settings):
        context = browser.new_context(**{"viewport": DESKTOP, **settings}) if settings else usual
        page = context.new_page()
        pages.append(page)
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(at.url)
        page.wait_for_selector("#compare:not([disabled])")
        page.wait_for_selector("select#way-2")
        return page

    yield open_page
    for page in pages:
        page.close()
        if page.context is not usual:
            page.context.close()
    near = ("http://127.0.0.1:", "data:", "blob:")
    away = [url for url in asked if not url.startswith(near)]
    assert not away and not errors


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(CHECKPOINT, dtype="float32").eval()


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(CHECKPOINT)


def choose(page, name):
    """One of the shipped images."""
    page.click(f'.gallery [data-name="{name}.png"]')
    page.wait_for_selector(f'#image figcaption:has-text("{name}.png")')


def compare(page, columns=3):
    """Presses Compare, waits, and gives the answers' texts."""
    for _ in range(3):  # the button is off for a third of a second: a look may come too late
        page.click("#compare")
        with suppress(TimeoutError):
            page.wait_for_selector("#compare[disabled]", timeout=5000)
            break
    page.wait_for_selector("#compare:not([disabled])")
    return texts(page, columns)


def texts(page, columns=3):
    return [said(page, place) for place in range(columns)]


def said(page, place):
    return page.inner_text(f"#answer-{place} .tokens").strip()


def state(page, place):
    return page.get_attribute(f"#answer-{place}", "data-state")


def open_drawing(page):
    page.click('button:has-text("Length and sampling")')
    page.wait_for_selector("#drawing-temperature")


def fill(page, selector, text):
    page.fill(selector, str(text))


def complaint(page, place):
    """The sentence beside a control, once there is one."""
    page.wait_for_function(f"document.querySelector('#error-{place}').textContent !== ''")
    return page.inner_text(f"#error-{place}")


def snapshot(page, name):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


def test_three_decoders_answer_side_by_side_as_they_do_alone(visit, model, processor):
    page = visit()
    choose(page, "corner")
    page.evaluate(
        """() => {
            window.seen = [[], [], []];
            new MutationObserver(() => window.seen.forEach((lengths, place) => {
                const answer = document.querySelector(`#answer-${place}`);
                const length = answer?.querySelector(".tokens")?.textContent.length ?? 0;
                if (answer?.dataset.state === "answering" && length) lengths.push(length);
            })).observe(document.body, {subtree: true, childList: true, characterData: true});
        }"""
    )
    shown = compare(page)
    alone = [
        answer(model, processor, IMAGES / "corner.png", DESCRIBE, way, max_new_tokens=128)
        for way in (None, VCD(), VDD())
    ]
    assert shown == alone and len(set(alone)) == 3
    for lengths in page.evaluate("window.seen"):
        assert lengths == sorted(lengths) and len(set(lengths)) >= 2, "it did not grow"
    for place in range(3):
        figures = page.inner_text(f"#answer-{place} .figures")
        assert re.search(r"first token\s+\d", figures) and re.search(r"per token\s+\d", figures)
    assert "greedy" in page.inner_text("#answer-2 .figures")
    snapshot(page, "desktop")


def test_inventions_finds_and_changes_are_marked(visit):
    page = visit()
    choose(page, "corner")
    present = truth(IMAGES / "corner.png")
    for place, text in enumerate(compare(page)):
        named = set(mentioned(text))

        def marked(kind, place=place):
            marks = page.locator(f"#answer-{place} .tokens mark.{kind}").all_inner_texts()
            return set(mentioned(" ".join(marks)))

        assert marked("invented") == named - present
        assert marked("found") == named & present
        missing = ", ".join(sorted(present - named))
        assert f"missed: {missing}" in page.inner_text(f"#answer-{place}")
    assert page.locator("#answer-0 mark.new").count() == 0
    assert page.locator("#answer-2 mark.new").count() > 0


def test_a_token_says_why_it_came(visit):
    page = visit()
    choose(page, "corner")
    compare(page)
    page.click('#answer-1 .token[data-index="4"]')
    page.wait_for_selector("#token-table")
    rows = page.locator("#token-table tbody tr")
    assert 10 <= rows.count() <= 11
    assert page.locator("#token-table thead th").all_inner_texts() == [
        "token",
        "as asked",
        "noisy image",
        "after the rule",
    ]
    came = page.locator("#token-table tr.chosen th code").inner_text()
    assert came.strip("\N{OPEN BOX}") == page.inner_text('#answer-1 .token[data-index="4"]').strip()
    assert page.locator("#token-table tr.cut").count() > 0
    assert page.locator("#overlay img").evaluate("image => image.naturalWidth") == 256
    snapshot(page, "token")
    page.click("#next-token")
    page.wait_for_selector('.why[data-index="5"]')


def test_keys_reach_what_the_mouse_does(visit):
    page = visit()
    page.focus("#question textarea")
    page.keyboard.press("Enter")
    page.wait_for_selector("#compare[disabled]")
    page.wait_for_selector("#compare:not([disabled])")
    page.focus('#answer-1 .token[tabindex="0"]')
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
    assert page.evaluate("document.activeElement.dataset.index") == "1"
    page.keyboard.press("Enter")
    page.wait_for_selector('.why[data-place="1"][data-index="1"]')


def begin_long_answers(page):
    open_drawing(page)
    fill(page, "#drawing-max_new_tokens", 4000)
    page.click("#compare")
    page.wait_for_function("document.querySelectorAll('#answer-1 .token').length > 3")


def test_one_answer_is_stopped_and_the_others_go_on(visit, endless):
    page = visit(endless)
    begin_long_answers(page)
    page.click("#stop-1")
    page.wait_for_selector('#answer-1[data-state="stopped"]')
    length = page.locator("#answer-1 .token").count()
    page.wait_for_function(f"document.querySelectorAll('#answer-0 .token').length > {length + 5}")
    assert state(page, 0) == state(page, 2) == "answering"
    start = time.monotonic()
    page.click("#stop")
    page.wait_for_selector('#answer-0[data-state="stopped"]')
    assert time.monotonic() - start < 3
    page.wait_for_selector("#compare:not([disabled])")
    assert [state(page, place) for place in range(3)] == ["stopped"] * 3
    assert page.locator("#answer-1 .token").count() == length < 4000
    page.click('#answer-1 .token[data-index="2"]')  # a stopped answer is explained too
    page.wait_for_selector("#token-table")


def test_a_closed_tab_stops_its_answers(visit, endless):
    page = visit(endless)
    begin_long_answers(page)
    assert cpu_of(endless.process.pid, 1.0) > 0.3
    page.close()
    deadline = time.monotonic() + 10
    while cpu_of(endless.process.pid, 1.0) > 0.1:
        assert time.monotonic() < deadline, "the server still works for nobody"


def test_another_image_has_other_answers(visit, model, processor):
    page = visit()
    choose(page, "corner")
    first = compare(page)
    choose(page, "yard")
    second = compare(page)
    assert second[0] == answer(model, processor, IMAGES / "yard.png", DESCRIBE)
    assert first[0] != second[0]
    page.click("#new-scene")
    page.wait_for_selector('#image figcaption:has-text("scene")')
    assert compare(page)[0].startswith("The image contains")


def test_columns_are_added_and_removed(visit):
    page = visit()
    page.click("#add-way")
    page.wait_for_selector("select#way-3")
    page.select_option("select#way-3", "dola")
    assert len([text for text in compare(page, columns=4) if text]) == 4
    for place in (3, 2):
        page.click(f"#column-{place} [data-remove]")
    assert not page.is_visible("#column-2 [data-remove]")
    assert not page.is_visible("#column-0 [data-remove]"), "two are the least"


def test_settings_change_the_answer(visit, model, processor):
    page = visit()
    choose(page, "crossing")
    page.locator("#column-1 summary").click()
    fill(page, "#way-1-alpha", 3)
    shown = compare(page)[1]
    assert "alpha" in page.inner_text("#answer-1 h3")
    strong = VCD(alpha=3.0)
    assert shown == answer(model, processor, IMAGES / "crossing.png", DESCRIBE, strong)


WRONG_IMAGES = {
    "text": (b"this is no image", "not an image that can be read"),
    "huge": (None, "100 megapixels, and at most 50 are allowed"),
}


@pytest.mark.parametrize("kind", WRONG_IMAGES)
def test_files_that_are_no_usable_images_are_refused(visit, tmp_path, kind):
    data, message = WRONG_IMAGES[kind]
    file = tmp_path / "holiday.png"
    if data is None:
        Image.new("1", (10_000, 10_000)).save(file)
    else:
        file.write_bytes(data)
    page = visit()
    page.set_input_files("#image-file", file)
    assert message in complaint(page, "image")
    assert compare(page)[0]  # the page stays usable, with the image from before
    own = tmp_path / "own.png"
    Image.open(IMAGES / "yard.png").save(own)
    page.set_input_files("#image-file", own)
    page.wait_for_selector('#image figcaption:has-text("own.png")')
    assert page.inner_text("#error-image") == ""


@pytest.mark.parametrize(
    ("question", "message"),
    [("   ", "there is no question"), ("why " * 5000, "20000 characters, and at most 2000")],
)
def test_questions_that_cannot_be_asked_are_refused(visit, question, message):
    page = visit()
    fill(page, "#question textarea", question)
    page.click("#compare")
    assert message in complaint(page, "question")
    assert page.get_attribute("#question textarea", "aria-invalid") == "true"
    fill(page, "#question textarea", "Is there a dog in the image?")
    assert compare(page)[0] in ("Yes", "No")
    assert page.inner_text("#error-question") == ""


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("beta", "7", "beta must be in [0, 1], got 7"),
        ("noise_step", "half", "noise_step of vcd must be a whole number, got 'half'"),
        ("alpha", "", "alpha"),
    ],
)
def test_settings_outside_their_range_are_refused(visit, setting, value, message):
    page = visit()
    page.locator("#column-1 summary").click()
    fill(page, f"#way-1-{setting}", value)
    page.click("#compare")
    assert message in complaint(page, "way-1")
    fill(page, f"#way-1-{setting}", "0.5" if setting != "noise_step" else "300")
    assert all(compare(page))


def test_tokens_and_heat_outside_their_range_are_refused(visit):
    page = visit()
    open_drawing(page)
    fill(page, "#drawing-max_new_tokens", 100_000)
    page.click("#compare")
    assert "1 to 256 tokens, got 100000" in complaint(page, "drawing")


def test_votes_are_not_explained_and_say_so(visit):
    page = visit()
    page.select_option("select#way-1", "mvp")
    fill(page, "#question textarea", "Is there a bus in the image?")
    assert compare(page)[1] in ("Yes", "No")
    page.click("#answer-1 .token")
    assert "MVP lets whole answers vote" in page.locator(".why [role=alert]").inner_text()


def test_a_comparison_is_saved_and_loaded(visit, tmp_path):
    page = visit()
    choose(page, "shelf")
    page.select_option("select#way-1", "damro")
    shown = compare(page)
    with page.expect_download() as download:
        page.click("#save")
    file = tmp_path / "saved.json"
    download.value.save_as(file)
    other = visit()
    other.set_input_files("#load", file)
    other.wait_for_selector('#answer-1[data-state="done"]')
    assert texts(other) == shown
    assert other.input_value("select#way-1") == "damro"
    other.click('#answer-1 .token[data-index="3"]')
    other.wait_for_selector("#token-table")
    assert compare(other) == shown
    file.write_text(json.dumps({"format": "holiday"}))
    other.set_input_files("#load", file)
    assert complaint(other, "load")
    assert texts(other) == shown


def test_the_script_does_the_same(visit, tmp_path):
    page = visit()
    choose(page, "crossing")
    shown = compare(page)
    page.click("#copy")
    page.wait_for_function("async () => (await navigator.clipboard.readText()).includes('import')")
    file = tmp_path / "same.py"
    file.write_text(page.evaluate("navigator.clipboard.readText()"))
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for text in shown:
        assert text in done.stdout


def test_many_scenes_are_evaluated(visit):
    page = visit()
    page.click("#column-2 [data-remove]")
    page.click('button:has-text("Run on many scenes")')
    fill(page, "#lab-scenes", 4)
    page.click("#lab-run")
    page.wait_for_selector("#lab-table table")
    table = page.inner_text("#lab-table")
    assert "greedy" in table and "vcd" in table and "CHAIR_i" in table
    page.wait_for_selector("#lab-plots img")
    snapshot(page, "lab")


def test_two_visitors_get_what_each_gets_alone(visit, model, processor):
    pages = [visit(), visit(locale="en-GB")]  # two contexts: nothing is shared
    for page, name in zip(pages, ("corner", "yard"), strict=True):
        choose(page, name)
    for page in pages:
        page.click("#compare")
    for page, name in zip(pages, ("corner", "yard"), strict=True):
        page.wait_for_selector("#compare:not([disabled])")
        page.wait_for_selector('#answer-2[data-state="done"]')
        alone = [
            answer(model, processor, IMAGES / f"{name}.png", DESCRIBE, way)
            for way in (None, VCD(), VDD())
        ]
        assert texts(page) == alone


def cpu_of(process, seconds):
    """Share of a core that a process uses."""

    def used():
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before = used()
    time.sleep(seconds)
    return (used() - before) / seconds


def test_twenty_requests_leave_memory_where_it_was(visit, server):
    page = visit()
    for _ in range(20):
        compare(page)
    before = resident(server.process.pid)
    for _ in range(20):
        page.click("#new-scene")
        compare(page)
    assert resident(server.process.pid) - before < GROWN
    assert not list(server.files.rglob("*.*")), "a file was left behind"


def resident(process):
    """Megabytes."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("phone", {"viewport": PHONE, "is_mobile": True, "has_touch": True}),
        ("dark", {"color_scheme": "dark"}),
        ("phone-dark", {"viewport": PHONE, "color_scheme": "dark"}),
    ],
)
def test_narrow_and_dark_pages_work(visit, name, settings):
    page = visit(**settings)
    choose(page, "corner")
    compare(page)
    page.click('#answer-2 .token[data-index="4"]')
    page.wait_for_selector("#token-table")
    width = page.evaluate("document.scrollingElement.scrollWidth - window.innerWidth")
    assert width <= 0, f"{width} pixels too wide"
    snapshot(page, name)


def test_every_control_has_a_name(visit):
    page = visit()
    open_drawing(page)
    page.locator("#column-1 summary").click()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("input, select, textarea, button")]
            .filter((one) => one.offsetParent && !(one.labels?.length || one.ariaLabel
                || one.getAttribute("aria-labelledby") || one.title || one.textContent.trim()))
            .map((one) => one.outerHTML.slice(0, 200))"""
    )
    assert nameless == []


def test_nothing_of_the_server_is_handed_out(server):
    """No API to call by name, no path in its configuration."""
    with urllib.request.urlopen(f"{server.url}config", timeout=10) as reply:
        config = reply.read().decode()
    assert str(Path.home()) not in config or str(Path.home()) == "/"
    assert str(Path(__file__).parents[1]) not in config
    for route in ("gradio_api/info", f"gradio_api/file={__file__}", "gradio_api/deep_link"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{server.url}{route}", timeout=10)
        assert refused.value.code == 404
