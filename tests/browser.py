"""A page as headless Chromium sees it, through its DevTools protocol on a pipe."""

import base64
import functools
import http.server
import json
import os
import shutil
import subprocess
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe",
)  # fmt: skip


@dataclass
class Page:
    """What opening the page brought about, and what can be asked of it while it is open."""

    send: object
    requests: list[str] = field(default_factory=list)  # addresses
    errors: list[str] = field(default_factory=list)  # of the console: scripts, styles, requests that failed

    def evaluate(self, expression):
        """The value of a JavaScript expression; of a promise what it resolves to."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", {}).get("description", "no description"))
        return answer["result"].get("value")

    def screenshot(self, path):
        """The whole page as a PNG."""
        picture = self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        Path(path).write_bytes(base64.b64decode(picture))


def violations(page):
    """What axe-core finds wrong with the page as it is shown now: a line for each element that breaks a rule."""
    page.evaluate(f"{_axe()};0")
    found = page.evaluate("axe.run({resultTypes: ['violations']}).then(found => found.violations)")
    return [f"{rule['id']}: {node['html'][:200]}: {node['failureSummary']}" for rule in found for node in rule["nodes"]]


@functools.cache
def _axe():
    package = pytest.importorskip("axe_core_python", reason="no axe-core here: pip install axe-core-python")
    (script,) = Path(package.__file__).parent.rglob("axe.min.js")
    return script.read_text(encoding="utf-8")


@contextmanager
def opened(address, width=1200, dark=False):
    """A loaded `Page` in a browser of its own, with a fresh profile."""
    to_browser, ours_out = os.pipe()
    ours_in, from_browser = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # Chromium reads from descriptor 3 and writes to 4.
        script = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        command = ["bash", "-c", script, "bash", CHROMIUM, *_FLAGS, f"--user-data-dir={profile}"]
        process = subprocess.Popen(
            command, pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(from_browser)
        try:
            with open(ours_out, "wb", buffering=0) as out, open(ours_in, "rb", buffering=0) as into:
                yield _load(_Connection(out, into), address, width, dark)
        finally:
            process.kill()
            process.wait()


@contextmanager
def serve(folder):
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


class _Connection:
    """Commands, answers and events: JSON between zero bytes."""

    def __init__(self, out, into):
        self.out, self.into, self.rest, self.number, self.session, self.page = out, into, b"", 0, {}, None

    def receive(self):
        while b"\0" not in self.rest:
            piece = self.into.read(2**16)
            if not piece:
                raise RuntimeError("chromium ended")
            self.rest += piece
        message, _, self.rest = self.rest.partition(b"\0")
        message = json.loads(message)
        if self.page is not None:
            _note(self.page, message.get("method"), message.get("params", {}))
        return message

    def send(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params} | self.session
        self.out.write(json.dumps(message).encode() + b"\0")
        while (answer := self.receive()).get("id") != self.number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]


def _note(page, method, params):
    if method == "Network.requestWillBeSent":
        page.requests.append(params["request"]["url"])
    elif method == "Network.loadingFailed":
        page.errors.append(params["errorText"])
    elif method == "Runtime.exceptionThrown":
        page.errors.append(params["exceptionDetails"]["text"])
    elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
        page.errors.append(str(params["args"]))
    elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
        page.errors.append(params["entry"]["text"])


def _load(connection, address, width, dark):
    send = connection.send
    target = send("Target.createTarget", url="about:blank")["targetId"]
    connection.session = {"sessionId": send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
    connection.page = Page(send)
    for domain in ("Page", "Runtime", "Log", "Network"):
        send(f"{domain}.enable")
    send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    send(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    )
    send("Page.navigate", url=address)
    while connection.receive().get("method") != "Page.loadEventFired":
        pass
    return connection.page
