"""A headless Chromium driven through chromedriver's HTTP interface; no library between."""

import base64
import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from typing import Any

BINARIES = ("chromium", "chromedriver")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]


def missing() -> list[str]:
    """Which of the two programs are not installed."""
    return [name for name in BINARIES if shutil.which(name) is None]


class Browser:
    """One browser with an empty profile, as a context manager."""

    def __enter__(self) -> "Browser":
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"http://127.0.0.1:{free.getsockname()[1]}"
        self.driver = subprocess.Popen(
            [shutil.which("chromedriver") or "chromedriver", f"--port={self.address.rpartition(':')[2]}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._wait()
            options = {
                "args": [*FLAGS, f"--user-data-dir={self.profile.name}"],
                "binary": shutil.which("chromium"),
                "perfLoggingPrefs": {"enableNetwork": True},
            }
            logs = {"browser": "ALL", "performance": "ALL"}
            wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": logs}
            made = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        except BaseException:
            self.driver.kill()
            raise
        self.session = f"/session/{made['sessionId']}"
        self.open("about:blank")
        self.requests()  # the browser's own start page
        return self

    def __exit__(self, *raised: object) -> None:
        try:
            self._call("DELETE", self.session)
        finally:
            self.driver.terminate()
            self.driver.wait(10)
            self.profile.cleanup()

    def _wait(self) -> None:
        for _ in range(100):
            try:
                if self._call("GET", "/status")["ready"]:
                    return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        raise TimeoutError("chromedriver does not answer")

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if method != "POST" else json.dumps(body or {}).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"}, method=method)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=240) as answer:
            return json.load(answer)["value"]

    def cdp(self, command: str, parameters: dict[str, Any] | None = None) -> Any:
        """A command of the DevTools protocol."""
        return self._call("POST", f"{self.session}/goog/cdp/execute", {"cmd": command, "params": parameters or {}})

    def emulate(self, width: int, dark: bool = False) -> None:
        """A window `width` CSS pixels wide, in a light or dark setting."""
        size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
        self.cdp("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.cdp("Emulation.setEmulatedMedia", {"features": [scheme]})

    def open(self, address: str) -> None:
        """Load a page and wait for it."""
        self._call("POST", f"{self.session}/url", {"url": address})

    def run(self, script: str, *arguments: object) -> Any:
        """Value that a script returns."""
        return self._call("POST", f"{self.session}/execute/sync", {"script": script, "args": arguments})

    def screenshot(self) -> bytes:
        """PNG of the whole page."""
        return base64.b64decode(self.cdp("Page.captureScreenshot", {"captureBeyondViewport": True})["data"])

    def console(self) -> list[str]:
        """Warnings and errors since the last call."""
        found = self._call("POST", f"{self.session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in found if entry["level"] in ("WARNING", "SEVERE")]

    def requests(self) -> list[str]:
        """Addresses asked for since the last call, data: addresses left out."""
        found = self._call("POST", f"{self.session}/se/log", {"type": "performance"})
        events = [json.loads(entry["message"])["message"] for entry in found]
        sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [address for address in sent if not address.startswith("data:")]
