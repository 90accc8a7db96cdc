"""A served page in a real browser, driven over the DevTools protocol as a person would: real time, real requests."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp

from tests.report.browser import executable

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-proxy-server",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0",
)  # fmt: skip


class Tab:
    """One page. `requests` are the addresses that it asked for, `errors` what its scripts complained of."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._loop, self._socket, self._ids = loop, socket, itertools.count(1)

    def call(self, method: str, timeout_s: float = 60, **params: Any) -> dict[str, Any]:
        return self._loop.run_until_complete(asyncio.wait_for(self._call(method, params), timeout_s))

    async def _call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        number = next(self._ids)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while True:
            said = json.loads(await self._socket.receive_str())
            if said.get("method") == "Network.requestWillBeSent":
                self.requests.append(said["params"]["request"]["url"])
            elif said.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.errors.append(json.dumps(said["params"]))
            elif said.get("id") == number:
                assert "error" not in said, said
                return said["result"]

    def run(self, script: str) -> Any:
        """The value of a script, its promises awaited."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, condition: str, timeout_s: float = 60) -> None:
        """Until a script is true."""
        end_s = time.monotonic() + timeout_s
        while not self.run(condition):
            assert time.monotonic() < end_s, f"not within {timeout_s} s: {condition}"
            time.sleep(0.05)

    def open(self, address: str, width: int) -> None:
        """A screen of this width; below 600 px a phone's, with touch."""
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1 + phone, mobile=phone
        )
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        result = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(result["data"]))


@contextlib.contextmanager
def tab() -> Iterator[Tab]:
    """A fresh browser with one page; both end with the block."""
    loop = asyncio.new_event_loop()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [executable(), *FLAGS, f"--user-data-dir={folder}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port = _port(Path(folder) / "DevToolsActivePort", process)
            session = aiohttp.ClientSession(loop=loop)
            try:
                yield loop.run_until_complete(_connect(session, loop, port))
            finally:
                loop.run_until_complete(session.close())
        finally:
            process.kill()
            process.wait()
            loop.close()


def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    for _ in range(600):
        if file.exists() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        assert process.poll() is None, "the browser ended"
        time.sleep(0.1)
    raise AssertionError("the browser does not start")


async def _connect(session: aiohttp.ClientSession, loop: asyncio.AbstractEventLoop, port: int) -> Tab:
    async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
        (page,) = [each for each in await answer.json() if each["type"] == "page"]
    socket = await session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)
    made = Tab(loop, socket)
    for domain in ("Page", "Runtime", "Network", "Log"):
        await made._call(f"{domain}.enable", {})
    return made
