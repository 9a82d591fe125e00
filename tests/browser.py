"""A headless Chromium, driven over its own protocol: what a person sees, and nothing but Chromium to install.

https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = "no Chromium is installed: `make browser`, or apt-get install chromium"


class Page:
    """One tab. `complaints` are the console's errors and warnings, and exceptions that nothing caught."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._number = 0
        self.complaints: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a method of the protocol; events that come meanwhile are looked at."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            said = json.loads(self._socket.recv(timeout=60))
            if said.get("id") == self._number:
                assert "error" not in said, (method, said["error"])
                result: dict[str, Any] = said["result"]
                return result
            self._listen(said)

    def _listen(self, said: dict[str, Any]) -> None:
        about = said.get("params", {})
        if said.get("method") == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")
        elif said.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(about["exceptionDetails"]))
        elif said.get("method") == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning"):
            self.complaints.append(json.dumps(about["args"]))

    def open(self, url: str) -> None:
        """Goes to `url`."""
        self.call("Page.navigate", url=url)

    def run(self, script: str, *, frame: int | None = None) -> Any:
        """The value of a JavaScript expression, awaited; in a `frame` of the page on request."""
        where = {} if frame is None else {"contextId": frame}
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, **where
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def frame(self) -> int:
        """The page's first frame, to look into: in a world of its own, beside the frame's scripts."""
        tree = self.call("Page.getFrameTree")["frameTree"]
        name = tree["childFrames"][0]["frame"]["id"]
        found: int = self.call("Page.createIsolatedWorld", frameId=name)["executionContextId"]
        return found

    def wait_for(self, condition: str, within_s: float = 60.0, *, frame: int | None = None) -> None:
        """Waits until a JavaScript expression is true."""
        deadline = time.monotonic() + within_s
        while not self.run(f"Boolean({condition})", frame=frame):
            text = self.run("document.body?.innerText")
            assert time.monotonic() < deadline, f"{condition} did not come: {text} {self.complaints}"
            time.sleep(0.1)

    def wait_for_text(self, text: str, within_s: float = 60.0) -> None:
        """Waits until the page shows `text`."""
        self.wait_for(f"document.body?.innerText.includes({json.dumps(text)})", within_s)

    def click(self, selector: str) -> None:
        """Clicks the element, once it is there, with a real mouse where it stands."""
        self.wait_for(f"document.querySelector({json.dumps(selector)})")
        box = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center'});"
            " const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def type(self, selector: str, text: str) -> None:
        """Replaces what a field holds."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{found}.focus(), {found}.select()")
        self.call("Input.insertText", text=text)

    def size(self, width: int, height: int, *, mobile: bool = False) -> None:
        """The window's size, in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=mobile,
        )  # fmt: skip

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """A PNG of the page."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser() -> Iterator[Page]:
    """A Chromium with a profile of its own; it and all of it are gone at the end."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(prefix="tuner-chromium-", ignore_cleanup_errors=True) as profile:
        argv = [CHROMIUM, "--headless=new", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
        argv += [
            "--no-first-run",
            "--disable-gpu",
            "--hide-scrollbars",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-features=IsolateSandboxedIframes",  # or such a frame is a target of its own,
        ]
        argv += ["--no-sandbox"] * (os.geteuid() == 0)  # Chromium has none for root
        with Path(profile, "log").open("w") as log:
            process = subprocess.Popen([*argv, "about:blank"], stdout=log, stderr=log, start_new_session=True)
        try:
            with connect(_address(Path(profile), process), max_size=None) as socket:
                yield Page(socket)
        finally:
            os.killpg(process.pid, 9)
            process.wait()


def _address(profile: Path, process: subprocess.Popen[bytes]) -> str:
    place, deadline = profile / "DevToolsActivePort", time.monotonic() + 60
    while not (place.exists() and place.read_text().count("\n")):
        assert process.poll() is None and time.monotonic() < deadline, (profile / "log").read_text()
        time.sleep(0.1)
    port = place.read_text().split()[0]
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
            pages = [each for each in json.loads(answer.read()) if each["type"] == "page"]
        if pages:
            return str(pages[0]["webSocketDebuggerUrl"])
        time.sleep(0.1)
