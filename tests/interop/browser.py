"""A headless Chromium, driven by its DevTools protocol."""

import asyncio
import base64
import itertools
import json
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp

from tests.interop.tools import program

_FLAGS = (
    "--headless",
    "--no-sandbox",  # we may be root
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--use-angle=swiftshader",  # WebGL without a graphics card
    "--enable-unsafe-swiftshader",
    "--window-size=1600,1000",
    "--remote-debugging-port=0",
)


class Page:
    """One tab: what it shows, and the answers that it got."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future] = {}
        self.answers: list[tuple[int, str]] = []  # (HTTP status, URL)
        self.errors: list[str] = []

    async def listen(self) -> None:
        """Take what the browser says, until it hangs up."""
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                self._calls.pop(said["id"]).set_result(said)
                continue
            told = said["params"]
            if said["method"] == "Network.responseReceived":
                self.answers.append((told["response"]["status"], told["response"]["url"]))
            elif said["method"] == "Runtime.exceptionThrown":
                details = told["exceptionDetails"]
                self.errors.append(details.get("exception", details).get("description", "?"))

    async def call(self, method: str, **parameters: object) -> dict:
        """Call a method of the protocol."""
        number = next(self._numbers)
        future = self._calls[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        said = await asyncio.wait_for(future, 60)
        assert "error" not in said, f"{method}: {said}"
        return said["result"]

    async def value(self, expression: str):
        """Return what an expression of JavaScript comes to."""
        done = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    async def until(self, is_so: Callable[[], Awaitable[bool]], seconds: float = 120) -> None:
        """Wait until `is_so()`."""
        end = asyncio.get_running_loop().time() + seconds
        while not await is_so():
            assert asyncio.get_running_loop().time() < end, (
                f"not shown; errors {self.errors[:3]}; answers {self.answers[-5:]}"
            )
            await asyncio.sleep(0.2)

    async def screenshot(self) -> bytes:
        """Return what the page looks like, as PNG."""
        return base64.b64decode((await self.call("Page.captureScreenshot"))["data"])


@asynccontextmanager
async def browser(folder):
    """Yield a `Page` of a Chromium whose profile is in `folder`."""
    folder.mkdir()
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            program("chromium"),
            *_FLAGS,
            f"--user-data-dir={folder}",
            "about:blank",
            stdout=log,
            stderr=log,
        )
    try:
        port = await _port(folder / "DevToolsActivePort", process)
        async with aiohttp.ClientSession() as http:
            async with http.get(f"http://127.0.0.1:{port}/json/list") as answer:
                tabs = await answer.json(content_type=None)
            url = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
            async with http.ws_connect(url, max_msg_size=64 * 2**20) as socket:
                page = Page(socket)
                listening = asyncio.create_task(page.listen())
                for domain in ("Page", "Network", "Runtime"):
                    await page.call(f"{domain}.enable")
                yield page
                listening.cancel()
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 30)


async def _port(path, process) -> int:
    for _ in range(300):
        if path.exists() and (text := path.read_text()):
            return int(text.split()[0])
        assert process.returncode is None, "Chromium ended"
        await asyncio.sleep(0.1)
    raise AssertionError("Chromium does not open its port")
