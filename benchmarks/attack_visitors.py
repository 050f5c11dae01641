"""Visitors of the page at once, without and with hostile ones among them: times and memory."""

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from attack_client import NAME, PASSWORD, Client, Page, Turned
from attack_files import encoded, flat, noise, tiff

VISITORS, HOSTILE = 30, 5
FEW_VISITORS, FEW_TOKENS = 3, 8
SLACK = 10.0  # seconds more in the short form, whose few seconds are not telling
SLOWER = 3.0  # times the slowest of the run without hostile ones
MOST_MB, LEFT_MB = 1000.0, 100.0  # above the memory before
PAUSE = 0.1  # seconds between two tries: what the hostile ones compute here is not the server's
CALM = 60.0  # seconds until memory is back
PATIENCE = 600.0  # seconds for one run
NETWORK = sys.platform == "linux"  # where 127.0.0.2 is this machine too


class Server:
    """The page in a process of its own, behind a login, on the lab's model."""

    def __init__(self, folder: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.files, self.log = folder / "files", folder / "log"
        command = [sys.executable, "-m", "sightline.demo", "--port", str(self.port)]
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                [*command, "--auth", f"{NAME}:{PASSWORD}"],
                stdout=out,
                stderr=out,
                env={**os.environ, "GRADIO_TEMP_DIR": str(self.files)},
            )
        end = time.monotonic() + PATIENCE
        while not self.is_up():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the page did not start: {self.log.read_text()[-500:]}")
            time.sleep(0.1)

    def is_up(self) -> bool:
        try:
            return Client(self.port).request("GET", "/")[0] == 200
        except OSError:
            return False

    def end(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def megabytes(self) -> float:
        """Resident memory of the server and of the processes that it has started."""
        total = 0.0
        for process in (self.process.pid, *children(self.process.pid)):
            with suppress(OSError):
                status = Path(f"/proc/{process}/status").read_text()
                sizes = [line.split()[1] for line in status.splitlines() if "VmRSS" in line]
                total += sum(int(size) for size in sizes) / 1024
        return total


def children(process: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError):
            if int(entry.read_text().rpartition(")")[2].split()[1]) == process:
                found.append(int(entry.parent.name))
    return found


@contextmanager
def watched(server: Server) -> Iterator[list[float]]:
    """The most memory while the block runs, as the list's one number."""
    most, over = [server.megabytes()], threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            most[0] = max(most[0], server.megabytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


# Honest visitors


@dataclass(frozen=True)
class Visit:
    """How one visitor fared."""

    seconds: float
    waits: Counter[str]
    failed: str = ""


def visit(port: int, number: int, tokens: int, columns: int) -> Visit:
    """Logs in, chooses an image, presses Compare, and reads the answers; waits where told to."""
    start, waits = time.monotonic(), Counter[str]()
    client = Client(port, f"127.0.1.{number + 1}" if NETWORK else "127.0.0.1")
    try:
        client.log_in()
        with client.open_page() as page:
            while time.monotonic() - start < PATIENCE:
                if not (told := attempt(client, page, tokens, columns)):
                    return Visit(time.monotonic() - start, waits)
                waits[told] += 1
                time.sleep(1.0)
        return Visit(time.monotonic() - start, waits, "no answers")
    except Exception as error:
        return Visit(time.monotonic() - start, waits, f"{type(error).__name__}: {error}")


def attempt(client: Client, page: Page, tokens: int, columns: int) -> str:
    """One comparison on an image of the visitor's own; why it has to be tried again, or ""."""
    drawing = {"max_new_tokens": str(tokens), "temperature": "0.0", "seed": "0"}
    ways = {f"way-{i}": {**page.value(f"way-{i}"), "is_shown": True} for i in range(columns)}
    try:
        said = client.choose(page, encoded(noise(), "PNG"))
        if "figcaption" in said:
            said = client.compare(page, drawing=drawing, **ways)
        answers = client.answers(page)
    except Turned as turned:
        return str(turned)
    is_done = len(answers) == columns and all(one["state"] == "done" for one in answers)
    return "" if is_done else reason(said, answers)


def reason(said: str, answers: list[dict[str, Any]]) -> str:
    """Why a visitor has to try again."""
    told = re.findall(r'role="alert">([^<]+)<', said)
    states = sorted({one["state"] + " " + one["note"] for one in answers})
    return "; ".join(told or states or [said[:100]])


def visits(port: int, count: int, tokens: int, columns: int = 3) -> list[Visit]:
    """Of all at once."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda one: visit(port, one, tokens, columns), range(count)))


# Hostile ones: each tries one thing over and over


@dataclass(frozen=True, eq=False)
class Attacker:
    """A hostile visitor, who has a login.

    Args:
        number: Which of them.
        port: Of the page.
        page: Its layout.
        over: Set when it is enough.
        seen: Counts what came of its tries.
    """

    number: int
    port: int
    page: Page
    over: threading.Event
    seen: Counter[str]

    def client(self) -> Client:
        made = Client(self.port, f"127.0.2.{self.number + 1}" if NETWORK else "127.0.0.1")
        made.log_in()
        return made

    def repeat(self, attempt: Callable[[Client], None]) -> None:
        client = self.client()
        while not self.over.is_set():
            try:
                attempt(client)
                self.seen["answered"] += 1
            except Turned as turned:
                self.seen[str(turned.status)] += 1
            except Exception as error:
                self.seen[type(error).__name__] += 1
            time.sleep(PAUSE)


def large_bodies(attacker: Attacker) -> None:
    """Nested JSON of 60 MB with and without a login, and requests that stop half-way."""
    nested = b"[" * 60_000_000
    held: list[socket.socket] = []

    def attempt(client: Client) -> None:
        if secrets.randbelow(2):
            client.cookie = ""
        for _ in range(10):
            half = socket.create_connection(("127.0.0.1", client.port), timeout=5)
            half.sendall(
                b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
                b"application/json\r\nCookie: " + client.cookie.encode() + b"\r\n"
                b"Content-Length: 900000\r\n\r\n[[["
            )
            held.append(half)
        for half in held[:-300]:
            half.close()
        del held[:-300]
        client.request("POST", "/gradio_api/queue/join", nested, content_type="application/json")
        client.log_in()

    attacker.repeat(attempt)


def large_images(attacker: Attacker) -> None:
    """Images that are small as files, for a new visitor each."""
    files = [flat("RGB", 7000), tiff(50_000), flat("L", 7000), tiff(height=10**6, strips=10**6)]

    def attempt(client: Client) -> None:
        client.session = secrets.token_hex(6)
        client.choose(attacker.page, files[secrets.randbelow(len(files))])

    attacker.repeat(attempt)


def many_visitors(attacker: Attacker) -> None:
    """New visitors that take places and never come back; every other one leaves its page open."""
    with ExitStack() as pages:

        def attempt(client: Client) -> None:
            client.session = secrets.token_hex(6)
            if secrets.randbelow(2):
                pages.enter_context(client.open_page())
            client.fire(attacker.page.event("image", "scene"), [], {})

        attacker.repeat(attempt)


def long_answers(attacker: Attacker) -> None:
    """Four long answers at a time, by a new visitor whenever one has got them."""
    page = attacker.page
    ways = {f"way-{i}": {"name": "vcd", "settings": {}, "is_shown": True} for i in range(4)}
    drawing = {"max_new_tokens": "256", "temperature": "5.0", "seed": "1"}

    def attempt(client: Client) -> None:
        client.session = secrets.token_hex(6)
        client.compare(page, **{"drawing": drawing, **ways})

    attacker.repeat(attempt)


def strange_requests(attacker: Attacker) -> None:
    """Routes that are not for visitors, files named in events, and junk in all controls."""
    page = attacker.page
    press = page.event("compare", "click")
    file = {"path": "http://127.0.0.1:1/x.png", "meta": {"_type": "gradio.FileData"}}
    junk: list[Any] = [None, "half \ud800", "scene:" + "9" * 5000, {"name": []}, [[[[]]]], file]

    def attempt(client: Client) -> None:
        session = client.session
        for path in (f"deep_link?session_hash={session}", "info", "upload", "file=/etc/passwd"):
            client.request("GET", f"/gradio_api/{path}")
            client.request("POST", f"/gradio_api/{path}", b"{}", content_type="application/json")
        client.request("GET", "/", host="evil.example")
        client.fire(press, [junk[secrets.randbelow(len(junk))] for _ in press["inputs"]])

    attacker.repeat(attempt)


ATTACKS = (large_bodies, large_images, many_visitors, long_answers, strange_requests)


@contextmanager
def attacked(port: int, page: Page, few: bool) -> Iterator[dict[str, Counter[str]]]:
    """Hostile visitors while the block runs: what came of the tries of each."""
    over, threads, seen = threading.Event(), [], {}
    for number, attack_ in enumerate(ATTACKS[:2] if few else ATTACKS[:HOSTILE]):
        seen[attack_.__name__] = Counter[str]()
        attacker = Attacker(number, port, page, over, seen[attack_.__name__])
        threads.append(threading.Thread(target=attack_, args=(attacker,), daemon=True))
        threads[-1].start()
    try:
        yield seen
    finally:
        over.set()
        for thread in threads:
            thread.join(60)


def attack(short: bool) -> dict[str, Any]:
    count, tokens = (FEW_VISITORS, FEW_TOKENS) if short else (VISITORS, 128)
    with TemporaryDirectory(prefix="sightline-attack-") as folder:
        server = Server(Path(folder))
        try:
            return figures(server, count, tokens, short)
        finally:
            server.end()


def figures(server: Server, count: int, tokens: int, short: bool) -> dict[str, Any]:
    client = Client(server.port)
    client.log_in()
    page = client.page()
    # The first ones pay for what is loaded late, and for the memory of as many threads as answer.
    visits(server.port, 2 if short else 4, tokens if short else 256, columns=4)
    alone = visits(server.port, count, tokens)
    base = server.megabytes()
    with watched(server) as most, attacked(server.port, page, short) as seen:
        among = visits(server.port, count, tokens)
    after = server.megabytes()
    end = time.monotonic() + CALM
    while after > base + LEFT_MB and time.monotonic() < end:
        time.sleep(1.0)
        after = server.megabytes()
    slowest, before = (max(one.seconds for one in run) for run in (among, alone))
    failed = [one.failed for one in (*alone, *among) if one.failed]
    left = [str(path.name) for path in server.files.rglob("*.*")] if server.files.exists() else []
    log = server.log.read_text()
    return {
        "passed": not failed
        and slowest <= SLOWER * before + (SLACK if short else 0)
        and most[0] - base <= MOST_MB
        and after - base <= LEFT_MB
        and not left
        and "Traceback" not in log,
        "visitors": count,
        "hostile": {name: dict(tries) for name, tries in seen.items()},
        "failed": failed[:5],
        "slowest alone s": round(before, 1),
        "slowest among hostile s": round(slowest, 1),
        "told to wait alone": dict(sum((one.waits for one in alone), Counter[str]())),
        "told to wait among hostile": dict(sum((one.waits for one in among), Counter[str]())),
        "MB before": round(base),
        "MB at most": round(most[0]),
        "MB after": round(after),
        "files left": left[:5],
        "tracebacks": log.count("Traceback"),
        "log": log[log.find("Traceback") :][:1500] if "Traceback" in log else "",
    }
