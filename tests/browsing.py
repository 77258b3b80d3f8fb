"""What tests do in real Chromium with the explorer, as a visitor would."""

import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).parents[1]
APPS = ROOT / "apps"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SWITCHES = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE = 60_000  # ms; machines that run tests are busy ones
GREY = 128  # of what is not decoded yet
HOSTILE = "<img src=x onerror=window.ran=1>"  # a name of Run, arm or class that a browser must not read
expect.set_options(timeout=PATIENCE)


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        installed = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
        path = installed or playwright.chromium.executable_path
        if not Path(path).exists():
            pytest.fail(
                "no Chromium found: install one (apt-get install chromium, or python -m playwright install "
                "chromium), or name it in the environment variable CHROMIUM"
            )
        running = playwright.chromium.launch(executable_path=path, args=list(SWITCHES))
        yield running
        running.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(temporary: Path, folder: str | Path | None, *options: str) -> Iterator[str]:
    """The explorer, started as a user starts it; yields its address. options: more words of its command."""
    port, log = free_port(), temporary / "log.txt"
    command = [sys.executable, str(APPS / "explorer.py"), "--port", str(port), *options]
    if folder:
        command += ["--runs", str(folder)]
    here = {**os.environ, "PYTHONPATH": str(ROOT), "GRADIO_TEMP_DIR": str(log.parent / "files")}
    with log.open("w") as file:
        app = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=here)
    url = f"http://127.0.0.1:{port}"
    for _ in range(240):
        if app.poll() is not None:
            pytest.fail(f"the explorer ended with code {app.returncode}:\n{log.read_text()}")
        try:
            urllib.request.urlopen(url, timeout=10)
            break
        except OSError:
            time.sleep(0.5)
    else:
        app.kill()
        pytest.fail(f"the explorer did not answer within two minutes:\n{log.read_text()}")
    try:
        yield url
    finally:
        app.terminate()
        app.wait(20)
    assert "Traceback" not in log.read_text(), log.read_text()


@contextmanager
def visiting(browser: Browser, address: str) -> Iterator[Page]:
    """The explorer freshly opened. Complaints of the page and requests to other hosts fail the test."""
    opened = browser.new_page(viewport={"width": 1400, "height": 1000})
    opened.set_default_timeout(PATIENCE)
    complaints, hosts = [], set()
    opened.on("console", lambda m: complaints.append(f"{m.text} {m.location}") if m.type == "error" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: hosts.add(re.match(r"\w+:(//[^/]*)?", request.url)[0]))
    opened.goto(address)
    yield opened
    opened.close()
    assert complaints == [], complaints
    assert {host for host in hosts if host.startswith(("http", "ws"))} == {address.partition("/?")[0]}


def pixels(page: Page, selector: str) -> np.ndarray:
    """What an image of the page shows, as served: uint8 (H, W, 3)."""
    with urllib.request.urlopen(page.locator(f"{selector} img").evaluate("image => image.src")) as answer:
        return np.asarray(Image.open(io.BytesIO(answer.read())).convert("RGB"))


def changed(page: Page, selector: str, before: np.ndarray) -> np.ndarray:
    """The image, once it differs from what it was."""
    for _ in range(PATIENCE // 100):
        if page.locator(f"{selector} img").count():  # none while it is emptied
            now = pixels(page, selector)
            if now.shape != before.shape or (now != before).any():
                return now
        page.wait_for_timeout(100)
    raise AssertionError(f"{selector} has not changed")


def open_tab(page: Page, name: str, image: str) -> None:
    page.get_by_role("tab", name=name).click()
    page.locator(image).scroll_into_view_if_needed()  # pictures far below are loaded late
    page.locator(f"{image} img").wait_for()
    if name in ("Codebook", "Alignment"):  # these fill view by view
        expect(page.locator(f"#{name.lower()}-status")).to_have_text(
            re.compile("done|appears here by itself")
        )


def click_cell(page: Page, selector: str, row: int, column: int, grid: int = 8) -> None:
    page.wait_for_function(  # a picture that is still on its way has another size
        """selector => {
            const image = document.querySelector(selector + ' img');
            return image?.complete && image.naturalWidth > 0;
        }""",
        arg=selector,
    )
    box = page.locator(f"{selector} img").bounding_box()
    cell = box["width"] / grid, box["height"] / grid
    at = {"x": (column + 0.5) * cell[0], "y": (row + 0.5) * cell[1]}
    page.locator(f"{selector} img").click(position=at)


def choose(page: Page, selector: str, option: str) -> None:
    page.locator(f"{selector} input").click()
    page.get_by_role("option", name=option, exact=True).click()


def sampled(page: Page) -> None:
    """Wait until the pictures under way are finished."""
    page.locator("#sample-status [data-done='64']").wait_for()
