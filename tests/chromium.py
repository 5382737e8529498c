"""A headless Chromium, driven over its DevTools protocol: what a page logs, requests and looks like."""

import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import websocket

COMMAND = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --use-angle=swiftshader --enable-unsafe-swiftshader --hide-scrollbars "
    "--no-first-run --disable-extensions --disable-background-networking --disable-component-update --disable-sync "
    "--remote-debugging-port=0 --remote-allow-origins=* --mute-audio"
).split()


class Browser:
    """One tab. `errors` holds what it has logged as errors since `open`, `requests` the addresses it has asked for."""

    def __enter__(self):
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        command = [COMMAND, *FLAGS, f"--user-data-dir={self._folder.name}", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port_file = Path(self._folder.name) / "DevToolsActivePort"
        deadline = time.monotonic() + 60
        while not (port_file.exists() and len(port_file.read_text().splitlines()) == 2):
            assert self._process.poll() is None and time.monotonic() < deadline, "Chromium did not start"
            time.sleep(0.05)
        port, path = port_file.read_text().splitlines()
        self._socket = websocket.create_connection(f"ws://127.0.0.1:{port}{path}", timeout=120)
        self._ids, self.errors, self.requests, self._session = itertools.count(1), [], [], None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        return self

    def __exit__(self, *_):
        self._socket.close()
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def send(self, method: str, **params):
        """Call a DevTools method and return its result; events that arrive meanwhile are noted."""
        call = {"id": next(self._ids), "method": method, "params": params}
        self._socket.send(json.dumps(call | ({"sessionId": self._session} if self._session else {})))
        while (answer := json.loads(self._socket.recv())).get("id") != call["id"]:
            self._note(answer.get("method"), answer.get("params", {}))
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, path: Path, width: int = 1200, height: int = 900, dark: bool = False, hash: str = "") -> None:
        """Open a file in a window of this size; return once it is loaded."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Page.navigate", url="about:blank")
        self.errors, self.requests = [], []
        self.send("Page.navigate", url=path.resolve().as_uri() + hash)
        self.wait("document.readyState === 'complete'")

    def js(self, expression: str):
        """The value of an expression in the page; the value of a promise once it is settled."""
        result = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, condition: str, seconds: float = 120) -> None:
        """Wait until a condition holds in the page."""
        deadline = time.monotonic() + seconds
        while not self.js(condition):
            assert time.monotonic() < deadline, f"never: {condition}; {self.errors}"
            time.sleep(0.05)

    def click(self, x: float, y: float) -> None:
        """Click the mouse at a place in the window."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, path: Path) -> None:
        """Write a PNG of the window."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))

    def _note(self, method: str, params: dict) -> None:
        if method == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.errors.append(params["args"])
        elif method == "Network.requestWillBeSent" and not params["request"]["url"].startswith(
            ("file:", "data:", "blob:")
        ):
            if params["request"]["url"] != "about:blank":
                self.requests.append(params["request"]["url"])
