"""How long a visitor of the explorer waits: `python benchmarks/explorer.py [--repeats N]`.

Starts the app as a user does and drives it in Chromium (found as the tests find it, or named in the
environment variable CHROMIUM). What counts is the page: the clock stops when the picture is there. The first
visit is the very first after the start, while the app still prepares what visitors will ask for; everything
else is the median of `--repeats`. A page is 1400 x 1000 px.

The last rows are of a tokenizer of VQ-16's size on photographs at 256 px, with random weights, opened as a
released file is.

With `--pictures FOLDER` it takes the documentation's pictures of the tabs instead of times.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import gradio
import stored
import torch
from playwright.sync_api import Page, sync_playwright
from serving import find_chromium, serve

from gear_studio.models import families
from gear_studio.models.tokenizer import PRESETS, Tokenizer

PORT = 7899
DONE = "#sample-status [data-done='64']"
DRAWN = "#prompt-status [data-done='64']"


def renewed(page: Page, selector: str) -> Callable[[], None]:
    """Waits until the image of now has been replaced by another one."""
    old = page.locator(f"{selector} img").get_attribute("src")
    return lambda: page.wait_for_function(
        "([selector, old]) => ![undefined, old].includes(document.querySelector(selector + ' img')?.src)",
        arg=[selector, old],
    )


def click_cell(page: Page, selector: str, row: int, column: int) -> None:
    image = page.locator(f"{selector} img")
    cell = image.bounding_box()["width"] / 8
    image.click(position={"x": (column + 0.5) * cell, "y": (row + 0.5) * cell})


def clicks(page: Page, selector: str, answer: str, repeats: int) -> list[float]:
    """Seconds from a click on one token after another to the new picture in `answer`."""
    times = []
    for number in range(repeats):
        wait = renewed(page, answer)
        begin = time.perf_counter()
        click_cell(page, selector, 1 + number % 6, 2 + number % 5)
        wait()
        times.append(time.perf_counter() - begin)
    return times


def swaps(page: Page, repeats: int) -> list[float]:
    """Seconds from replacing the clicked token's code to the new picture."""
    times = []
    for code in range(repeats):
        page.locator("#new-code input").fill(str(code))
        wait = renewed(page, "#edited")
        begin = time.perf_counter()
        page.locator("#replace").click()
        wait()
        times.append(time.perf_counter() - begin)
    return times


def sample(page: Page, count: int, prefix: str = "", sheet: str = "#left-sheet", done: str = DONE):
    """Seconds to the first row of tokens and to the last, in the tab whose ids begin with `prefix`."""
    page.locator(f"#{prefix}count input[type=number]").fill(str(count))
    page.locator(f"#{prefix}count input[type=number]").press("Tab")
    wait = renewed(page, sheet)
    begin = time.perf_counter()
    page.locator(f"#{prefix}next-seed").click()
    wait()
    first = time.perf_counter() - begin
    page.locator(done).wait_for()
    return first, time.perf_counter() - begin


def photograph(page: Page, folder: Path) -> None:
    """explorer-TAB.png of every tab but Open: a word looked at, a token replaced, a region drawn anew, a
    training under way, patches of a map chosen."""

    def take(tab: str) -> None:
        page.mouse.move(0, 0)
        page.wait_for_timeout(1000)
        page.screenshot(path=folder / f"explorer-{tab}.png", full_page=True)
        print(f"wrote {folder / f'explorer-{tab}.png'}")

    page.locator(DONE).wait_for()
    take("sample")
    page.get_by_role("tab", name="Prompt").click()
    page.locator(DRAWN).wait_for()
    page.locator("#prompt-words label").filter(has_text="top").click()
    page.locator("#prompt-map-1 img").wait_for()
    take("prompt")
    page.get_by_role("tab", name="Codebook").click()
    page.locator("#layout img").wait_for(timeout=300_000)
    click_cell(page, "#indices", 3, 3)
    page.locator("#gallery img").wait_for()
    wait, chart = renewed(page, "#gallery"), renewed(page, "#layout")
    page.locator("#replace").click()
    wait()
    chart()
    take("codebook")
    page.get_by_role("tab", name="Alignment").click()
    page.locator("#generator-similarity img").wait_for()
    take("alignment")
    page.get_by_role("tab", name="Edit").click()
    page.locator("#edit-picture img").wait_for()
    page.get_by_label("a rectangle").check()
    for corner in (2, 5):
        click_cell(page, "#edit-picture", corner, corner)
        page.wait_for_timeout(2000)
    page.locator("#edit-go").click()
    page.locator("#edit-status [data-done='64']").wait_for()
    take("edit")
    page.get_by_role("tab", name="Convergence").click()
    page.locator("#convergence-chart canvas").wait_for()
    take("convergence")
    page.get_by_role("tab", name="Train").click()
    page.locator("#train-budget").get_by_label("smoke").check()
    page.locator("#train-steps textarea").fill("400")
    page.locator("#train-start").click()
    page.locator("#train-samples img, #train-reconstructions img").first.wait_for(timeout=600_000)
    page.locator("#train-chart canvas").wait_for()
    take("train")
    page.locator("#train-stop").click()
    page.get_by_role("tab", name="Features").click()
    page.locator("#features-map circle").first.wait_for(timeout=600_000)
    box = page.locator("#features-map svg").bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    page.mouse.down()
    for across, down in ((0.3, 0), (0.3, 0.3), (0, 0.3)):
        page.mouse.move(box["x"] + 2 + across * box["width"], box["y"] + 2 + down * box["height"])
    page.mouse.up()
    page.locator("#features-chosen").wait_for()
    take("features")


def write_vq16(folder: Path) -> Path:
    """A file of VQ-16's size in the released format, with random weights."""
    torch.manual_seed(0)
    path = folder / "vq-16.pt"
    torch.save({"model": families.to_released(Tokenizer(PRESETS["vq-16"]).eval())}, path)
    return path


def settled(page: Page) -> None:
    """Wait until all views of the tab Codebook are there, apart from charts of surveys."""
    page.wait_for_function(
        """() => /^(done|.*appears here by itself)$/.test(
            document.querySelector('#codebook-status [data-state]')?.textContent ?? '')"""
    )


def look_at_released(page: Page, file: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds from opening a released file to its views, and from what one does there to the answer."""
    times: dict[str, list[float]] = {}
    page.get_by_role("tab", name="Open").click()
    page.locator("#open-source textarea").fill(str(file))
    begin = time.perf_counter()
    page.locator("#open-go").click()
    page.locator("#open-status [data-state=done]").wait_for()
    times["opened"] = [time.perf_counter() - begin]
    page.get_by_role("tab", name="Codebook").click()
    page.locator("#tokenizer-run input").click()
    begin = time.perf_counter()
    page.get_by_role("option", name="vq-16", exact=True).click()
    page.locator("#original img").wait_for()
    times["its first picture"] = [time.perf_counter() - begin]
    settled(page)
    times["all views of it"] = [time.perf_counter() - begin]
    page.locator("#usage img").wait_for(timeout=600_000)
    times["the survey of ten photographs"] = [time.perf_counter() - begin]
    page.locator("#layout img").wait_for(timeout=600_000)
    pictures = times["another picture, all views"] = []
    for number in range(1, 1 + repeats):
        page.locator("#codebook-index input[type=number]").fill(str(number))
        begin = time.perf_counter()
        page.locator("#codebook-index input[type=number]").press("Tab")
        page.locator("#codebook-caption", has_text=f"Photo {number}").wait_for()
        settled(page)
        pictures.append(time.perf_counter() - begin)
    click_cell(page, "#indices", 0, 0)
    page.locator("#gallery img").wait_for()
    times["a token clicked"] = clicks(page, "#indices", "#gallery", repeats)
    times["its code replaced"] = swaps(page, repeats)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pictures", type=Path, help="folder to put pictures of the tabs in; no times then")
    stored.add_store(parser)
    options = parser.parse_args()
    repeats, rows = options.repeats, []
    around = stored.circumstances()
    around["versions"]["gradio"] = gradio.__version__
    stored.say(around)

    def row_of(what: str, times: Sequence[float]) -> None:
        rows.append({"what": what, "seconds": stored.spread(times)})
        print(f"{what:48} {statistics.median(times):6.2f} s  (slowest {max(times):.2f})", flush=True)

    begin = time.perf_counter()
    with serve(PORT), tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        row_of("up after its start", [time.perf_counter() - begin])
        browser = playwright.chromium.launch(
            executable_path=find_chromium(), args=["--no-sandbox", "--disable-gpu"]
        )

        def visit() -> Page:
            page = browser.new_page(viewport={"width": 1400, "height": 1000})
            page.set_default_timeout(60_000)
            page.goto(f"http://127.0.0.1:{PORT}")
            return page

        if options.pictures:
            photograph(visit(), options.pictures)
            return
        begin = time.perf_counter()
        page = visit()
        page.locator("#left-sheet img").wait_for()
        row_of("first visit: first row", [time.perf_counter() - begin])
        page.locator(DONE).wait_for()
        row_of("first visit: 4 pictures of two runs", [time.perf_counter() - begin])
        for tab, image in (("Codebook", "#usage"), ("Alignment", "#generator-similarity")):
            begin = time.perf_counter()
            page.get_by_role("tab", name=tab).click()
            page.locator(f"{image} img").wait_for()
            row_of(f"then the tab {tab}", [time.perf_counter() - begin])
        again = []
        for _ in range(repeats):
            begin = time.perf_counter()
            other = visit()
            other.locator(DONE).wait_for()
            again.append(time.perf_counter() - begin)
            other.close()
        row_of("a later visit", again)
        page.get_by_role("tab", name="Sample").click()
        for count in (4, 16):
            times = [sample(page, count) for _ in range(repeats)]
            row_of(f"{count} pictures of two runs", [last for _, last in times])
            row_of(f"{count} pictures of two runs: first row", [first for first, _ in times])
        page.get_by_role("tab", name="Prompt").click()
        page.locator(DRAWN).wait_for()
        for count in (4, 16):
            place = "prompt-", "#prompt-sheet-0", DRAWN
            times = [sample(page, count, *place) for _ in range(repeats)]
            row_of(f"{count} pictures of a prompt", [last for _, last in times])
            row_of(f"{count} pictures of a prompt: first row", [first for first, _ in times])
        words = page.locator("#prompt-words label")
        words.first.click()
        page.locator("#prompt-map-1 img").wait_for()
        looks = []
        for number in range(repeats):
            wait = renewed(page, "#prompt-map-1")
            begin = time.perf_counter()
            words.nth(1 + number % 4).click()
            wait()
            looks.append(time.perf_counter() - begin)
        row_of("a word clicked", looks)
        page.get_by_role("tab", name="Codebook").click()
        click_cell(page, "#indices", 0, 0)
        page.locator("#gallery img").wait_for()
        row_of("a token clicked", clicks(page, "#indices", "#gallery", repeats))
        row_of("its code replaced", swaps(page, repeats))
        page.get_by_role("tab", name="Alignment").click()
        row_of("a patch clicked", clicks(page, "#teacher-pca", "#teacher-similarity", repeats))
        for name, times in look_at_released(page, write_vq16(Path(folder)), repeats).items():
            row_of(f"VQ-16: {name}", times)
        browser.close()
    stored.store("explorer", rows, around, options.store)


if __name__ == "__main__":
    main()
