"""How soon the page answers, and whether its memory stays where it was.

python benchmarks/demo.py --out benchmarks/results/demo-cpu.json --screenshot demo/page.png

Starts `sightline demo` on the lab's model in a process of its own, drives it in headless Chromium,
and measures: seconds from the start of the process to a page whose first comparison is complete;
the server's resident memory after the first requests, and after twenty more.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from machine import machine
from playwright.sync_api import Page, sync_playwright

from sightline.json_text import json_text

WARM = 20  # comparisons before memory is taken for the first time
MORE = 20
PATIENCE = 120.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def resident(process: int) -> float:
    """Megabytes of a process."""
    status = Path(f"/proc/{process}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if "VmRSS" in line) / 1024


def compare(page: Page) -> None:
    """Presses Compare and waits for all answers."""
    page.click("#compare")
    for wanted in ("#compare[disabled]", "#compare:not([disabled])"):
        page.wait_for_selector(wanted, timeout=1000 * PATIENCE)
    states = page.locator(".answer[data-state]:not([data-state=none])")
    got = [one.get_attribute("data-state") for one in states.all()]
    if set(got) != {"done"}:
        raise SystemExit(f"answers ended as {got}")


def measure(screenshot: Path | None) -> dict[str, Any]:
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        start = time.perf_counter()
        command = [sys.executable, "-m", "sightline.demo", "--port", str(port)]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            while not is_up(url):
                time.sleep(0.05)
                if server.poll() is not None or time.perf_counter() - start > PATIENCE:
                    raise SystemExit("the page did not start")
            served = time.perf_counter() - start
            page.goto(url)
            page.wait_for_selector("#compare:not([disabled])")
            loaded = time.perf_counter() - start
            compare(page)
            answered = time.perf_counter() - start
            if screenshot is not None:
                page.locator("#answer-0 .token").nth(10).click()
                page.wait_for_selector("#overlay")
                page.mouse.move(0, 0)
                page.screenshot(path=screenshot, full_page=True)
            for _ in range(WARM):
                compare(page)
            before = resident(server.pid)
            for _ in range(MORE):
                page.click("#new-scene")
                compare(page)
            after = resident(server.pid)
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(20)
            browser.close()
    return {
        "seconds until served": round(served, 2),
        "seconds until shown": round(loaded, 2),
        "seconds until answered": round(answered, 2),
        "MB after the first requests": round(before, 1),
        f"MB after {MORE} more": round(after, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--screenshot", type=Path, help="PNG of the page with answers")
    options = parser.parse_args()
    result = {"machine": machine("cpu"), "cores": os.cpu_count(), **measure(options.screenshot)}
    text = json_text(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
