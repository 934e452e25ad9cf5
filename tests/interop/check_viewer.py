"""OHIF, a standard viewer, unchanged, in a real browser, shows a study that the gateway serves."""

import asyncio
import subprocess
import tarfile
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path

import pydicom
from aiohttp import web
from PIL import Image
from pydicom.uid import RLELossless

from tests.gateway.web.conftest import TOKEN, serving
from tests.interop.browser import Page, browser
from tests.interop.check_retrieval import uid
from tests.interop.series import head_ct
from tests.interop.tools import free_port, program

NAME = "viewer: OHIF in Chromium shows a study by DICOMweb"
PACKAGES = {"chromium": "chromium", "npm": "npm"}
VIEWER = "@ohif/app@3.13.2"
FOLDER = Path(__file__).parents[2] / "build" / "interop" / "ohif-3.13.2"
_CONFIG = """
window.config = {
  routerBasename: "/", extensions: [], modes: [], showStudyList: true, maxNumberOfWebWorkers: 2,
  showErrorDetails: "always", defaultDataSourceName: "gateway",
  dataSources: [{
    namespace: "@ohif/extension-default.dataSourcesModule.dicomweb",
    sourceName: "gateway",
    configuration: {
      friendlyName: "gateway", name: "gateway",
      qidoRoot: "%(url)s", wadoRoot: "%(url)s", wadoUriRoot: "%(url)s",
      qidoSupportsIncludeField: true, imageRendering: "wadors", thumbnailRendering: "wadors",
      enableStudyLazyLoad: true, supportsFuzzyMatching: false, supportsWildcard: true,
      omitQuotationForMultipartRequest: true,  // as in the configuration that comes with it
    },
  }],
};
"""
_CANVAS = 'document.querySelector(".cornerstone-canvas")'


def prepare() -> None:
    """Have the viewer's published build at hand; needs the network."""
    if FOLDER.is_dir():
        return
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    packed = subprocess.run(
        [program("npm"), "pack", "--silent", VIEWER],
        check=False,
        capture_output=True,
        text=True,
        cwd=FOLDER.parent,
    )
    assert packed.returncode == 0, f"npm pack {VIEWER}: {packed.stderr.strip()}"
    archive = FOLDER.parent / packed.stdout.split()[-1]
    fresh = FOLDER.with_suffix(".new")
    with tarfile.open(archive) as tar:
        tar.extractall(fresh, filter="data")
    archive.unlink()
    fresh.rename(FOLDER)


def run(work: Path) -> list[str]:
    """Check, and return what was found."""
    native = head_ct()
    compressed = [_compressed(path, work / path.name) for path in native]
    found = []
    for how, paths in (("as they came", native), ("in RLE", compressed)):
        folder = work / how
        folder.mkdir()
        found.append(asyncio.run(_run(folder, paths, how)))
    return found


def _compressed(path: Path, target: Path) -> Path:
    ds = pydicom.dcmread(path)
    ds.compress(RLELossless, generate_instance_uid=False)
    ds.save_as(target)
    return target


async def _run(work: Path, paths: list[Path], how: str) -> str:
    port = free_port()
    origin = f"http://127.0.0.1:{port}"
    async with (
        serving(work, paths, allowed_origins=(origin,)) as site,
        viewer(port, site.server.url),
        browser(work / "browser") as page,
    ):
        study = uid(paths[0])
        url = f"{origin}/viewer?StudyInstanceUIDs={study}&token={TOKEN}"
        await page.call("Page.navigate", url=url)
        slices = {uid(path, "SOPInstanceUID") for path in paths}
        await page.until(lambda: page.value(f"{_CANVAS} !== null"))

        async def has_all_slices() -> bool:
            frames = [url for _, url in page.answers if "/frames/1" in url]
            return all(any(f"/{each}/" in url for url in frames) for each in slices)

        async def is_drawn() -> bool:
            """Whether there is tissue and bone: what has come is not drawn at once."""
            tissue, bone = await _grey(page)
            return tissue > 0.02 and bone > 0.01

        await page.until(has_all_slices)
        await page.until(is_drawn)
        tissue, bone = await _grey(page)
        refused = [answer for answer in page.answers if answer[0] >= 400]
        assert not refused, refused[:3]
        assert not page.errors, page.errors[:3]
    assert tissue > 0.02, f"no image: {tissue:.1%} of the viewport is grey"
    assert bone > 0.01, f"no image: {bone:.1%} of the viewport is bright"
    return (
        f"{VIEWER}: {len(slices)} slices {how} retrieved, nothing refused; of the viewport "
        f"{tissue:.0%} are grey and {bone:.0%} bright"
    )


async def _grey(page: Page) -> tuple[float, float]:
    """Return the shares of grey and of bright pixels on the screen where the image is."""
    box = await page.value(
        f"(b => [b.left, b.top, b.right, b.bottom])({_CANVAS}.getBoundingClientRect())"
    )
    with Image.open(BytesIO(await page.screenshot())) as screen:
        levels = screen.crop(tuple(map(round, box))).convert("L").histogram()
    total = sum(levels)
    return sum(levels[60:200]) / total, sum(levels[200:]) / total


@asynccontextmanager
async def viewer(port: int, dicomweb: str):
    """Serve the viewer's files on loopback, configured for one DICOMweb server."""

    async def file(request: web.Request) -> web.StreamResponse:
        if request.path == "/app-config.js":
            return web.Response(text=_CONFIG % {"url": dicomweb}, content_type="text/javascript")
        files = FOLDER / "package" / "dist"
        path = files / request.match_info["path"]
        return web.FileResponse(path if path.is_file() else files / "index.html")

    application = web.Application()
    application.router.add_get("/{path:[A-Za-z0-9._/-]*}", file)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield
    finally:
        await runner.cleanup()
