"""Twenty seconds of the explorer for the README: `python benchmarks/film.py docs/explorer.webp`.

A visitor draws samples, clicks a token and replaces it, compares features and reads off a speed-up. Frames
are screenshots of the real app in Chromium; what lasts longer than a moment is shown faster than it was.
"""

import argparse
import io
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright
from serving import find_chromium, serve

PORT = 7897
VIEW = {"width": 1200, "height": 900}
SHOWN = 900, 675  # pixels of the film
MOMENT = 120  # milliseconds a frame is shown while something happens
POINTER = """() => {
    const arrow = document.createElement('div');
    arrow.style = `position: fixed; z-index: 10000; pointer-events: none; width: 22px; height: 22px;
        margin: -11px; border-radius: 50%; background: #e69f00cc; border: 2px solid white;
        box-shadow: 0 0 4px #0008; left: -50px; top: 0`;
    document.body.append(arrow);
    document.addEventListener('mousemove', ({clientX, clientY}) => {
        arrow.style.left = clientX + 'px'; arrow.style.top = clientY + 'px';
    });
    document.addEventListener('mousedown', () => { arrow.style.background = '#d55e00'; });
    document.addEventListener('mouseup', () => { arrow.style.background = '#e69f00cc'; });
}"""


class Film:
    """Frames of a page, and how long each is shown, in milliseconds."""

    def __init__(self, page: Page):
        self.page = page
        self.frames: list[Image.Image] = []
        self.lasting: list[int] = []

    def shoot(self, milliseconds: int = MOMENT) -> None:
        frame = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        frame = frame.resize(SHOWN, Image.Resampling.LANCZOS)
        if self.frames and frame == self.frames[-1]:
            self.lasting[-1] += milliseconds
        else:
            self.frames.append(frame)
            self.lasting.append(milliseconds)

    def hold(self, seconds: float) -> None:
        self.page.wait_for_timeout(400)  # what fades in is there
        self.shoot(int(1000 * seconds))

    def watch(self, there: Callable[[], bool], most: int) -> None:
        """Shoot until it is there, at most so many frames, then wait without."""
        for number in range(3000):
            if there():
                return
            if number < most:
                self.shoot()
            self.page.wait_for_timeout(100)
        raise TimeoutError("the page did not show in five minutes what the film waits for")

    def point(self, x: float, y: float, steps: int = 5) -> None:
        """Move the pointer to a place of the page, in pixels of the window."""
        self.page.mouse.move(x, y, steps=steps)
        self.shoot(4 * MOMENT)

    def click(self, selector: str, across: float = 0.5, down: float = 0.5) -> None:
        place = self.page.locator(selector).first
        place.scroll_into_view_if_needed()
        box = place.bounding_box()
        assert box, f"{selector} is not in the page"
        self.point(box["x"] + across * box["width"], box["y"] + down * box["height"])
        self.page.mouse.down()
        self.shoot()
        self.page.mouse.up()

    def tab(self, name: str) -> None:
        self.page.evaluate("scrollTo(0, 0)")
        self.click(f"[role=tab]:text-is('{name}')")

    def write(self, path: Path) -> None:
        first, *others = self.frames
        first.save(
            path, save_all=True, append_images=others, duration=self.lasting, loop=0, quality=70, method=6
        )


def play(film: Film) -> None:
    page = film.page

    def is_there(selector: str) -> Callable[[], bool]:
        return lambda: page.locator(selector).count() > 0

    def renewed(selector: str) -> Callable[[], bool]:
        image = page.locator(f"{selector} img")
        before = image.get_attribute("src") if image.count() else None
        return lambda: bool(image.count()) and image.get_attribute("src") not in (None, before)

    page.locator("#sample-status [data-done='64']").wait_for()
    film.hold(1.5)
    anew = renewed("#left-sheet")
    film.click("#next-seed")
    film.watch(anew, 8)
    film.watch(is_there("#sample-status [data-done='64']"), 12)
    film.hold(1.2)
    film.tab("Codebook")
    film.watch(is_there("#usage img"), 10)
    page.wait_for_timeout(1500)
    film.hold(1.2)
    looked = renewed("#gallery")
    film.click("#original", 0.55, 0.55)
    film.watch(looked, 4)
    film.hold(1.6)
    swapped = renewed("#edited")
    film.click("#replace")
    film.watch(swapped, 4)
    film.hold(1.8)
    film.tab("Alignment")
    film.watch(is_there("#generator-similarity img"), 8)
    film.hold(1.0)
    compared = renewed("#teacher-similarity")
    film.click("#teacher-pca", 0.3, 0.7)
    film.watch(compared, 4)
    film.hold(1.8)
    film.tab("Convergence")
    film.watch(is_there("#convergence-chart canvas"), 8)
    page.wait_for_timeout(1500)
    box = page.locator("#convergence-chart").bounding_box()
    assert box
    film.point(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    film.hold(2.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="a .webp file")
    options = parser.parse_args()
    with serve(PORT), sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_chromium(), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport=VIEW)
        page.set_default_timeout(300_000)
        page.goto(f"http://127.0.0.1:{PORT}")
        page.evaluate(POINTER)
        film = Film(page)
        play(film)
        browser.close()
    film.write(options.out)
    seconds, size = sum(film.lasting) / 1000, options.out.stat().st_size / 2**20
    print(f"wrote {options.out}: {len(film.frames)} frames, {seconds:.1f} s, {size:.2f} MiB")


if __name__ == "__main__":
    main()
