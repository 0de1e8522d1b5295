"""A page as headless Chromium sees it: its final DOM, what it wrote to the console, and what it asked for."""

import contextlib
import functools
import http.server
import json
import re
import shutil
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urldefrag

import pytest

CHROMIUM = shutil.which("chromium")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=5000 --dump-dom"
).split()


@dataclass(frozen=True)
class Visit:
    dom: str
    console: tuple[str, ...]  # errors, and all else that was logged
    requests: tuple[str, ...]  # what the page asked for after itself, over the network
    failed: tuple[str, ...]  # those that were refused or not found


def visit(url: str, width: int = 1300, dark: bool = False) -> Visit:
    """Opens the page with a fresh profile. No other host than 127.0.0.1 can be reached."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "requests.json")
        options = [f"--user-data-dir={folder}/profile", f"--log-net-log={log}", f"--window-size={width},1000"]
        options += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        options += ["--blink-settings=preferredColorScheme=0"] if dark else []
        done = subprocess.run(
            [CHROMIUM, *FLAGS, *options, url], capture_output=True, text=True, timeout=120, check=True
        )
        requests, failed = _requests(json.loads(log.read_text(encoding="utf-8")))
    console = re.findall(r"CONSOLE[:\d]*\] (.*)", done.stderr)
    return Visit(done.stdout, tuple(console), requests, failed)


def _requests(log):
    """The addresses, without fragments, that the page asked for, and those of them that it did not get."""
    ended, aborted = log["constants"]["logEventTypes"]["REQUEST_ALIVE"], -3  # as the page itself does at times
    addresses, failed = {}, {}
    for event in log["events"]:
        about, source = event.get("params", {}), event["source"]["id"]
        # The browser's own requests, and the page itself, come from no origin.
        if about.get("initiator", "not an origin") != "not an origin" and about.get("url", "").startswith("http"):
            addresses[source] = urldefrag(about["url"]).url
        status = re.match(r"HTTP/[\d.]+ (\d+)", (about.get("headers") or [""])[0])
        broken = event["type"] == ended and about.get("net_error", 0) not in (0, aborted)
        if source in addresses and (broken or (status and int(status[1]) >= 400)):
            failed[addresses[source]] = None
    return tuple(dict.fromkeys(addresses.values())), tuple(failed)


@contextlib.contextmanager
def serve(folder: Path):
    """The folder on a free port of 127.0.0.1, as the address of its root."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
