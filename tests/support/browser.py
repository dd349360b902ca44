"""A real headless browser, driven over WebDriver: Debian's chromium and chromium-driver, no further packages."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


class Browser:
    """One session with the driver at ``url``."""

    def __init__(self, url: str, chromium: str, profile: str) -> None:
        self.url = url
        options = {"binary": chromium, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        self.url += "/session/" + self._send("/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def open(self, page: Path, width: int = 1280, height: int = 900) -> None:
        """Show a file. What was logged before is forgotten: a browser's own first page asks for much."""
        self._send("/url", {"url": "about:blank"})
        self.console(), self.requests()
        self._send("/window/rect", {"width": width, "height": height})
        self._send("/url", {"url": page.absolute().as_uri()})

    def run(self, script: str) -> Any:
        """What ``script`` returns, run in the page."""
        return self._send("/execute/sync", {"script": script, "args": []})

    def console(self) -> list[str]:
        """What the page complained about since it was opened, or since the last call."""
        return [entry["message"] for entry in self._send("/se/log", {"type": "browser"})]

    def requests(self) -> list[str]:
        """Every address that was asked for since then."""
        events = [json.loads(entry["message"])["message"] for entry in self._send("/se/log", {"type": "performance"})]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]

    def screenshot(self) -> bytes:
        """PNG of the window."""
        with urllib.request.urlopen(self.url + "/screenshot", timeout=60) as answer:
            return base64.b64decode(json.load(answer)["value"])

    def _send(self, path: str, content: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self.url + path, json.dumps(content).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def close(self) -> None:
        urllib.request.urlopen(urllib.request.Request(self.url, method="DELETE"), timeout=60).close()


@contextlib.contextmanager
def headless() -> Iterator[Browser]:
    """A browser; the test is skipped where none is installed."""
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no headless browser here (Debian: apt-get install chromium chromium-driver)")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert process.stdout is not None
            port = next(
                line.split()[-1].rstrip(".") for line in process.stdout if "started successfully on port" in line
            )
            browser = Browser(f"http://127.0.0.1:{port}", chromium, profile)
            try:
                yield browser
            finally:
                browser.close()
        finally:
            process.terminate()
            process.wait(30)
