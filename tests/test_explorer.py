"""The explorer in real Chromium, on the shipped runs: what a visitor does, and what must not go wrong.

GEAR_EXPLORER_RUNS=FOLDER tries it on the runs in that folder instead, say in the middle of a training.
"""

import dataclasses
import html
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
import hostile
import httpx
import numpy as np
import pytest
import tiny
import torch
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from gear_studio import official, studies
from gear_studio.analysis.codes import Survey
from gear_studio.looking.pictures import Picture, pictures_of_source
from gear_studio.models import families
from gear_studio.models.generator import Generator, paper_config
from gear_studio.models.teachers import Teacher, timm_encoder, timm_name
from gear_studio.models.tokenizer import PRESETS, Tokenizer
from gear_studio.places import ZOO

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
GREY = 128
MODELS = ("teacher", "tokenizer", "generator")
HOSTILE = "<img src=x onerror=window.ran=1>"  # a name of Run, arm or class that a browser must not read
expect.set_options(timeout=PATIENCE)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(temporary: Path, folder: str | Path | None) -> Iterator[str]:
    """The explorer, started as a user starts it; yields its address."""
    port, log = free_port(), temporary / "log.txt"
    command = [sys.executable, str(APPS / "explorer.py"), "--port", str(port)]
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


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """On the shipped runs."""
    with serving(tmp_path_factory.mktemp("explorer"), os.environ.get("GEAR_EXPLORER_RUNS")) as url:
        yield url


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
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


@contextmanager
def visiting(browser: Browser, address: str) -> Iterator[Page]:
    """The explorer freshly opened. Complaints of the page and requests to other hosts fail the test."""
    opened = browser.new_page(viewport={"width": 1400, "height": 1000})
    opened.set_default_timeout(PATIENCE)
    complaints, hosts = [], set()
    opened.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: hosts.add(re.match(r"\w+:(//[^/]*)?", request.url)[0]))
    opened.goto(address)
    yield opened
    opened.close()
    assert complaints == []
    assert {host for host in hosts if host.startswith(("http", "ws"))} == {address.partition("/?")[0]}


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    with visiting(browser, address) as opened:
        yield opened


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
    page.locator(f"{image} img").wait_for()
    if name in ("Codebook", "Alignment"):  # these fill view by view
        expect(page.locator(f"#{name.lower()}-status")).to_have_text(
            re.compile("done|appears here by itself")
        )


def click_cell(page: Page, selector: str, row: int, column: int, grid: int = 8) -> None:
    box = page.locator(f"{selector} img").bounding_box()
    cell = box["width"] / grid, box["height"] / grid
    at = {"x": (column + 0.5) * cell[0], "y": (row + 0.5) * cell[1]}
    page.locator(f"{selector} img").click(position=at)


def sampled(page: Page) -> None:
    """Wait until the pictures under way are finished."""
    page.locator("#sample-status [data-done='64']").wait_for()


def drawn_anew(page: Page, before: np.ndarray) -> np.ndarray:
    """The right-hand pictures, once they have left `before` and are finished."""
    changed(page, "#right-sheet", before)
    sampled(page)
    return pixels(page, "#right-sheet")


def test_samples_appear_row_by_row(page: Page):
    sampled(page)  # the page opens with a first sample
    sheets = []
    page.on(
        "response",
        lambda response: sheets.append(response) if response.url.endswith("image.png") else None,
    )
    page.evaluate(
        """() => { window.seen = [];
        const find = (selector) => document.querySelector(selector);
        new MutationObserver(() => window.seen.push(
            [find('#sample-status [data-done]')?.dataset.done,
             find('#left-sheet img')?.src, find('#right-sheet img')?.src]
        )).observe(document.body, {childList: true, subtree: true, attributes: true}); }"""
    )
    page.locator("#seed input").fill("7")
    page.locator("#sample").click()
    page.wait_for_function("window.seen.some(s => s[0] && s[0] != '64')")
    page.wait_for_function("window.seen.at(-1)[0] == '64'")
    seen = [row for row in page.evaluate("window.seen") if row[0]]
    assert len({done for done, *_ in seen}) >= 4, seen
    for side in (1, 2):
        assert len({row[side] for row in seen if row[side]}) >= 4, seen
    final = pixels(page, "#left-sheet")[:384, :384]
    assert final.std() > 0 and not (final[-48:] == GREY).all()
    unfinished = 0
    for response in sheets:
        tile = np.asarray(Image.open(io.BytesIO(response.body())).convert("RGB"))[:384, :384]
        unfinished += bool((tile[-48:] == GREY).all() and (tile[:48] != GREY).any())
    assert unfinished >= 2


def test_the_same_seed_gives_the_same_pictures(page: Page):
    sampled(page)
    first = pixels(page, "#right-sheet")
    page.locator("h1").click()
    page.keyboard.press("Space")  # as the button Next seed
    other = drawn_anew(page, first)
    assert page.locator("#seed input").input_value() == "1"
    page.locator("#seed input").fill("0")
    page.locator("#sample").click()
    np.testing.assert_array_equal(drawn_anew(page, other), first)


def test_a_sheet_says_what_drew_it(page: Page):
    sampled(page)
    caption = page.locator("#right-caption")
    expect(caption).to_have_text("Drawn by generator-gear: striped star, guidance 1.5, seed 0")
    page.locator("#right-run input").click()
    page.get_by_role("option", name="generator-continued").click()
    page.get_by_text("arm continued").wait_for()  # the run chosen is described; the sheet is the old one's
    expect(caption).to_contain_text("generator-gear: ")
    page.locator("#sample").click()
    expect(caption).to_contain_text("generator-continued: ")


def test_maps_to_compare_are_of_one_size(page: Page):
    page.set_viewport_size({"width": 800, "height": 1000})
    for tab, image in (("Codebook", "#edited"), ("Alignment", "#generator-similarity")):
        open_tab(page, tab, image)
        shown = page.locator(".maps .panel img:visible")
        shown.nth(4).wait_for()
        assert len({round(each.bounding_box()["width"]) for each in shown.all()}) == 1


def test_a_number_beyond_the_slider_is_clamped(page: Page):
    open_tab(page, "Codebook", "#original")
    for typed, picture in (("5000", 999), ("-3", 0)):
        page.locator("#codebook-index input[type=number]").fill(typed)
        page.locator("#codebook-index input[type=number]").press("Tab")
        expect(page.locator("#codebook-caption")).to_contain_text(f"Picture {picture} of")
    expect(page.locator(".toast-wrap", has_text="Error")).to_have_count(0)


def test_a_token_is_clicked_and_swapped(page: Page):
    open_tab(page, "Codebook", "#indices")
    expect(page.locator("#codebook-token")).to_contain_text("Token 27 (row 4, column 4)")  # at first
    click_cell(page, "#indices", row=3, column=5)
    expect(page.locator("#codebook-token")).to_contain_text("Token 29 (row 4, column 6)")
    for key, token in (("ArrowRight", 30), ("ArrowUp", 22), ("ArrowLeft", 21), ("ArrowDown", 29)):
        page.keyboard.press(key)
        expect(page.locator("#codebook-token")).to_contain_text(f"Token {token} ")
    expect(page.locator("#top-codes tr")).to_have_count(10)  # heading, eight codes, the rest
    rebuilt = pixels(page, "#reconstruction")
    np.testing.assert_array_equal(pixels(page, "#edited"), rebuilt)
    expect(page.locator("#difference-text")).to_contain_text("no change yet")
    weights = [float(text) for text in page.locator("#top-codes td.weight").all_inner_texts()]
    assert sum(weights) == pytest.approx(1, abs=0.006) and weights[:8] == sorted(weights[:8], reverse=True)

    page.locator("#replace").click()  # by the second best, which is offered first
    expect(page.locator("#edits")).to_contain_text("1 of 64 tokens replaced")
    edited = pixels(page, "#edited")
    assert (edited != rebuilt).any()
    expect(page.locator("#difference-text")).to_contain_text("what changed")
    assert pixels(page, "#difference").std() > 0 and pixels(page, "#gallery").std() > 0

    page.locator("#new-code input").fill("5")
    page.locator("#replace").click()
    expect(page.locator("#codebook-token")).to_contain_text("replaced by 5")
    assert (pixels(page, "#edited") != edited).any()
    page.locator("#new-code input").fill("1024")
    page.locator("#replace").click()
    expect(page.locator(".toast-wrap")).to_contain_text("choose a number from 0 to 1023")
    expect(page.locator("#codebook-token")).to_contain_text("replaced by 5")

    page.locator("#reset").click()
    expect(page.locator("#edits")).to_contain_text("0 of 64 tokens replaced")
    np.testing.assert_array_equal(pixels(page, "#edited"), rebuilt)


def test_tau_changes_the_soft_assignment_only(page: Page):
    open_tab(page, "Codebook", "#entropy")
    entropy, indices = pixels(page, "#entropy"), pixels(page, "#indices")
    page.locator("#tau input[type=number]").fill("0.8")
    page.locator("#tau input[type=number]").press("Tab")
    assert changed(page, "#entropy", entropy).mean() > entropy.mean()  # viridis: more is brighter
    np.testing.assert_array_equal(pixels(page, "#indices"), indices)


def test_photos_are_shown_as_they_are_meant(page: Page, tmp_path: Path):
    clear = Image.new("RGBA", (300, 200), (0, 0, 0, 0))
    clear.paste((220, 0, 0, 255), (0, 0, 150, 200))
    clear.save(tmp_path / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.new("RGB", (400, 400), (0, 0, 220))
    turned.paste((220, 0, 0), (0, 0, 200, 400))
    turned.save(tmp_path / "turned.jpg", exif=exif, quality=95)

    open_tab(page, "Codebook", "#original")
    before, rebuilt = pixels(page, "#original"), pixels(page, "#reconstruction")
    expect(page.locator("#quality")).not_to_contain_text("only ever seen")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "clear.png")
    expect(page.locator("#codebook-caption")).to_contain_text("clear.png")
    shown = changed(page, "#original", before)
    np.testing.assert_allclose(shown[256, 64], (220, 0, 0), atol=3)
    np.testing.assert_allclose(shown[256, 448], (255, 255, 255), atol=3)
    changed(page, "#reconstruction", rebuilt)
    expect(page.locator("#quality")).to_contain_text("only ever seen the embedded world")

    page.locator("input[type=file]").first.set_input_files(tmp_path / "turned.jpg")
    expect(page.locator("#codebook-caption")).to_contain_text("turned.jpg")
    shown = changed(page, "#original", shown)
    np.testing.assert_allclose(shown[64, 256], (220, 0, 0), atol=12)  # its left is the top now
    np.testing.assert_allclose(shown[448, 256], (0, 0, 220), atol=12)

    number = page.locator("#codebook-index input[type=number]")  # both are kept for the session
    for typed, name in (("0", "clear.png"), ("1", "turned.jpg")):
        number.fill(typed)
        number.press("Tab")
        expect(page.locator("#codebook-caption")).to_contain_text(name)
    thumbs = page.locator("#codebook-strip button")
    expect(thumbs).to_have_count(2)
    for number, name in enumerate(("clear.png", "turned.jpg")):
        thumbs.nth(number).click()
        expect(page.locator("#codebook-caption")).to_contain_text(name)
        expect(thumbs.nth(number)).to_have_class(re.compile("selected"))
    open_tab(page, "Alignment", "#alignment-picture")  # the same picture, and it has no class
    expect(page.locator("#alignment-caption")).to_contain_text("turned.jpg")
    expect(page.locator("#protocol")).to_contain_text("null condition")
    np.testing.assert_allclose(pixels(page, "#alignment-picture")[64, 400], (220, 0, 0), atol=12)


def test_bad_uploads_get_a_message_and_do_no_harm(page: Page, tmp_path: Path):
    (tmp_path / "note.png").write_text("just words")
    (tmp_path / "none.png").touch()
    (tmp_path / "large.jpg").write_bytes(bytes(21 * 1024**2))
    Image.new("L", (4100, 20)).save(tmp_path / "wide.png")
    open_tab(page, "Codebook", "#original")
    before = pixels(page, "#original")
    for name, message in (
        ("note.png", "is not a picture"),
        ("none.png", "is empty"),
        ("large.jpg", "the limit is 20 MB"),
        ("wide.png", "the limit is 4096 px"),
    ):
        page.locator("input[type=file]").first.set_input_files(tmp_path / name)
        expect(page.locator(".toast-wrap")).to_contain_text(message)
    np.testing.assert_array_equal(pixels(page, "#original"), before)
    click_cell(page, "#original", row=0, column=0)
    expect(page.locator("#codebook-token")).to_contain_text("Token 0")


def test_alignment_follows_patch_and_block(page: Page):
    open_tab(page, "Alignment", "#generator-similarity")
    expect(page.locator("#protocol")).to_contain_text("stand-in")  # the teacher's note
    maps = [f"#{name}-similarity" for name in MODELS]
    before = [pixels(page, selector) for selector in maps]
    click_cell(page, "#teacher-pca", row=6, column=1)
    expect(page.locator("#alignment-facts")).to_contain_text("at the framed patch 49")
    yellow = (253, 231, 37)  # viridis at cosine 1: the patch with itself
    for selector, old in zip(maps, before, strict=True):
        now = changed(page, selector, old)
        assert now[6 * 64 + 32, 64 + 32].tolist() == list(yellow)
    teacher, generator = pixels(page, "#teacher-pca"), pixels(page, "#generator-pca")
    page.locator("#block input[type=number]").fill("1")
    page.locator("#block input[type=number]").press("Tab")
    changed(page, "#generator-pca", generator)
    expect(page.locator("#generator-title")).to_contain_text("h after block 1")
    assert len({page.locator(f"#{name}-scale").inner_text() for name in MODELS}) == 1
    np.testing.assert_array_equal(pixels(page, "#teacher-pca"), teacher)


def test_features_follow_run_and_patch_and_are_measured_and_mapped(page: Page):
    page.get_by_role("tab", name="Features").click()
    maps = page.locator("#features-cells img")
    expect(maps).to_have_count(10)  # x, f(x), z, c_q, h1 to h6
    page.locator("#features-chart-0 .vega-embed").wait_for(timeout=3 * PATIENCE)
    expect(page.locator("#features-said")).to_contain_text("generator-gear: measured over")
    cell = page.locator("#features-cells .patches").nth(5)
    side = cell.bounding_box()["width"]
    cell.click(position={"x": 1.5 / 8 * side, "y": 6.5 / 8 * side})
    frame = page.locator("#features-cells i").first
    expect(frame).to_have_attribute("style", re.compile(r"left:12\.500%;top:75\.000%"))
    expect(page.locator("#features-cells i")).to_have_count(10)
    page.get_by_role("tab", name="Codebook").click()
    expect(page.locator("#codebook-token")).to_contain_text("Token 49 (row 7, column 2)")

    page.get_by_role("tab", name="Features").click()
    expect(page.locator("#features-map circle")).to_have_count(2048, timeout=3 * PATIENCE)
    page.locator("#features-map svg").scroll_into_view_if_needed()
    box = page.locator("#features-map svg").bounding_box()
    left, right = box["x"] + 2, box["x"] + box["width"] - 2
    page.mouse.move(left, box["y"] + 2)
    page.mouse.down()
    for place in ((right, box["y"] + 2), (right, box["y"] + box["height"] - 2), (left, box["y"] + 300)):
        page.mouse.move(*place)
    page.mouse.up()
    chosen = page.locator("#features-map circle.chosen").count()
    expect(page.locator("#features-chosen")).to_contain_text(f"{chosen:,} patches of")
    assert 100 < chosen < 2048 and page.locator("#features-chosen img").count() == 12

    choose(page, "#features-run", "warmup")
    expect(maps).to_have_count(4)
    expect(page.locator("#features-chosen")).to_be_empty()


def choose(page: Page, selector: str, option: str) -> None:
    page.locator(f"{selector} input").click()
    page.get_by_role("option", name=option, exact=True).click()


def test_two_runs_stand_side_by_side_with_the_same_token(page: Page):
    open_tab(page, "Codebook", "#indices")
    assert not page.locator("#beside").is_visible()
    choose(page, "#tokenizer-beside", "warmup")
    page.locator("#beside-entropy img").wait_for()
    expect(page.locator("#beside-title")).to_contain_text("warmup")
    expect(page.locator("#codebook-status")).to_have_text(re.compile("done|appears here by itself"))
    click_cell(page, "#beside-indices", row=6, column=1)
    for selector in ("#codebook-token", "#beside-codes"):
        expect(page.locator(selector)).to_contain_text("Token 49 (row 7, column 2)")
    assert (pixels(page, "#beside-reconstruction") != pixels(page, "#reconstruction")).any()

    open_tab(page, "Alignment", "#generator-similarity")  # the place is the same in every tab
    expect(page.locator("#alignment-facts")).to_contain_text("at the framed patch 49")
    choose(page, "#alignment-beside", "generator-continued")
    page.locator("#beside-generator-similarity img").wait_for()
    expect(page.locator("#beside-facts [data-cosine]")).to_have_count(1)
    both = [
        float(page.locator(f"{place} [data-cosine]").get_attribute("data-cosine"))
        for place in ("#alignment-facts", "#beside-facts")
    ]
    assert both[0] != both[1]
    click_cell(page, "#beside-generator-pca", row=1, column=2)
    for place in ("#alignment-facts", "#beside-facts"):
        expect(page.locator(place)).to_contain_text("at the framed patch 10")

    page.get_by_role("tab", name="Codebook").click()  # which was drawn before: it follows
    expect(page.locator("#codebook-token")).to_contain_text("Token 10 (row 2, column 3)")
    choose(page, "#tokenizer-beside", "no other")
    page.locator("#beside").wait_for(state="hidden")


def test_every_question_opens_the_tab_that_answers_it(page: Page, explorer):
    for question, address in explorer.QUESTIONS.items():
        page.get_by_role("link", name=question).click()
        tab = page.locator("[role=tab][aria-selected=true]")
        expect(tab).to_have_text(re.compile(address.removeprefix("?tab="), re.IGNORECASE))
        expect(page.locator(".guide:visible")).to_have_count(1)


@pytest.mark.parametrize("grid", [4, 8, 12, 16])
def test_on_another_grid_the_token_is_the_one_in_the_same_place(explorer, grid):
    components = sys.modules["components"]
    clicked = components.clicked_place(gr.SelectData(None, {"index": [330, 90], "value": None}))
    (row, column), size = divmod(components.token_at(clicked, grid), grid), components.SIDE / grid
    assert row * size <= 90 < (row + 1) * size and column * size <= 330 < (column + 1) * size


def test_eight_users_at_once_all_get_their_own_answers(address: str):
    clients = [Client(address, verbose=False, httpx_kwargs={"timeout": PATIENCE / 1000}) for _ in range(8)]
    start = threading.Barrier(8)

    def ask(client: Client, seed: int) -> np.ndarray:
        left, *_, status = client.predict(count=1, seed=seed, api_name="/sample")
        assert "token 64 of 64" in status
        return np.asarray(Image.open(left["path"] if isinstance(left, dict) else left).convert("RGB"))

    def user(number: int) -> np.ndarray:
        start.wait()
        return ask(clients[number], seed=number)

    with ThreadPoolExecutor(8) as pool:
        pictures = list(pool.map(user, range(8)))
    assert len({picture.tobytes() for picture in pictures}) == 8
    for number, picture in enumerate(pictures):  # each got its own: the one that it gets when it asks alone
        np.testing.assert_array_equal(picture, ask(clients[0], seed=number))
    assert not any((picture[448:512, :512] == GREY).all() for picture in pictures)


def test_the_api_takes_whole_numbers_and_says_what_it_refuses(address: str):
    client = Client(address, verbose=False, httpx_kwargs={"timeout": PATIENCE / 1000})
    sliders = {
        each["parameter_name"]: each["type"]
        for each in client.view_api(return_format="dict", print_info=False)["named_endpoints"]["/sample"][
            "parameters"
        ]
    }
    assert sliders["count"]["type"] == sliders["top_k"]["type"] == "integer"
    with pytest.raises(AppError, match="2,001 characters; at most 2,000"):
        client.predict(text="a" * 2001, api_name="/prompt")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"count": "a"}, "Pictures is 'a'; it has to be a whole number, at least 1 and at most 16"),
        ({"count": None}, "Pictures is None; it has to be a whole number"),
        ({"count": 17}, "Pictures is 17; it has to be a whole number, at least 1 and at most 16"),
        ({"count": True}, "Pictures is True;"),
        ({"top_p": "<b>"}, "Top-p is '&lt;b&gt;'; it has to be a number, at least 0.05 and at most 1"),
        ({"seed": -1}, "Seed is -1; it has to be a whole number, at least 0"),
        ({"left": "<img>"}, "&lt;img&gt; is not in the list of choices"),
        ({"left": None}, "There is no run None in the list"),
    ],
    ids=str,
)
def test_a_value_that_a_field_does_not_take_is_refused_in_words(address: str, given, said):
    """Nor is there a traceback in the log: `serving` looks for one."""
    client = Client(address, verbose=False, httpx_kwargs={"timeout": PATIENCE / 1000})
    with pytest.raises(AppError) as refused:
        client.predict(**given, api_name="/sample")
    assert said in str(refused.value)


def test_a_prompt_is_drawn_row_by_row_and_its_words_are_clicked(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
):
    temporary = tmp_path_factory.mktemp("prompt")
    with (
        serving(temporary, tiny.caption_runs(temporary)) as address,
        visiting(browser, address) as page,
    ):
        open_tab(page, "Prompt", "#prompt-sheet-0")  # draws once by itself
        done, text = page.locator("#prompt-status [data-done='64']"), page.locator("#prompt-text textarea")
        done.wait_for()
        expect(text).to_have_value("a red striped star, top left")
        page.locator("#prompt-size input").click()
        page.get_by_role("option", name="large").click()
        expect(text).to_have_value("a large red striped star, top left")
        expect(page.locator("#prompt-notes")).to_be_empty()

        page.evaluate(
            """() => { window.seen = [];
            const find = (selector) => document.querySelector(selector);
            new MutationObserver(() => window.seen.push(
                [find('#prompt-status [data-done]')?.dataset.done, find('#prompt-sheet-0 img')?.src]
            )).observe(document.body, {childList: true, subtree: true, attributes: true}); }"""
        )
        text.fill("a red zebra")
        page.locator("#prompt-go").click()
        page.wait_for_function("window.seen.some(s => s[0] && s[0] != '64')")
        page.wait_for_function("window.seen.at(-1)[0] == '64'")
        seen = page.evaluate("window.seen")
        assert len({done for done, _ in seen if done}) >= 4 and len({src for _, src in seen if src}) >= 4
        expect(page.locator("#prompt-notes")).to_contain_text(
            "‘zebra’ is not a word of this world's captions"
        )

        page.locator("#prompt-words").get_by_text("zebra", exact=True).click()
        zebra = page.locator("#prompt-map-0 img")
        zebra.wait_for()
        shown = pixels(page, "#prompt-map-0")
        assert shown[:, -100:].std() > 0
        page.locator("#prompt-words").get_by_text("red", exact=True).click()
        shown = changed(page, "#prompt-map-0", shown)
        page.locator("#prompt-block input[type=number]").fill("1")
        page.locator("#prompt-block input[type=number]").press("Tab")
        changed(page, "#prompt-map-0", shown)

        page.locator("#prompt-control input").check()
        page.locator("#prompt-go").click()
        page.locator("#prompt-control-0 img").wait_for()
        done.wait_for()
        expect(page.locator("#prompt-caption-0")).to_contain_text("“a red zebra”, guidance 1.5, seed 0")
        title = page.locator("#prompt-control-title-0")
        expect(title).to_contain_text("the same random numbers, asked for “a ")


def test_the_shipped_generators_of_captions_are_side_by_side(page: Page):
    if os.environ.get("GEAR_EXPLORER_RUNS"):
        pytest.skip("other runs than the shipped ones may be chosen")
    if not (studies.SHIPPED / "text").is_dir():
        pytest.skip("no runs of the study text ship yet: gear-studio study text --ship")
    open_tab(page, "Prompt", "#prompt-sheet-1")
    for number, arm in enumerate(("baseline", "gear")):
        name = page.locator(f"#prompt-run-{number} input")
        expect(name).to_have_value(f"generator-{arm}+captions-s0 (studies)")
    page.locator("#prompt-status [data-done='64']").wait_for()


@pytest.fixture
def explorer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(APPS))
    import explorer

    return explorer


@pytest.fixture(scope="session")
def hostile_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer's and a generator's Run whose names, arm and first class are HTML."""
    folder = tmp_path_factory.mktemp("hostile")
    shutil.copytree(ZOO / "gear", folder / HOSTILE)
    shutil.copytree(ZOO / "generator-gear", folder / f"generator {HOSTILE}")
    path = folder / f"generator {HOSTILE}" / "config.json"
    config = json.loads(path.read_text())
    config |= {"arm": f"arm {HOSTILE}", "parent": HOSTILE, "classes": [HOSTILE, *config["classes"][1:]]}
    path.write_text(json.dumps(config))
    return folder


def test_a_view_is_sent_by_its_address(browser: Browser, address: str):
    asked = "tab=codebook&tokenizer-run=warmup&pictures=photos&picture=3&place=0.8,0.1&tau=2&seed=<b>"
    with visiting(browser, f"{address}/?{asked}") as page:
        page.locator("#gallery img").wait_for()
        expect(page.locator("#codebook-caption")).to_contain_text("Photo 3")
        expect(page.locator("#codebook-token")).to_contain_text("Token 6 (row 1, column 7)")
        expect(page.locator("#tokenizer-run input")).to_have_value("warmup")
        expect(page.locator("#tau input[type=number]")).to_have_value("0.1")  # it cannot be 2
        choose(page, "#tokenizer-run", "gear")
        click_cell(page, "#indices", row=2, column=1)
        expect(page.locator("#codebook-token")).to_contain_text("Token 17 (row 3, column 2)")
        page.get_by_role("tab", name="Alignment").click()
        page.wait_for_function("location.search.includes('tab=alignment')")
        sent = page.url
    with visiting(browser, sent) as page:
        expect(page.locator("#alignment-caption")).to_contain_text("Photo 3")
        expect(page.locator("#alignment-facts")).to_contain_text(
            "at the framed patch 17", timeout=2 * PATIENCE
        )
        open_tab(page, "Codebook", "#original")
        expect(page.locator("#tokenizer-run input")).to_have_value("gear")
        expect(page.locator("#codebook-token")).to_contain_text("Token 17 (row 3, column 2)")


def test_the_stream_of_answers_stays_open(address: str):
    """Were it closed after an answer, a request made just then would not be answered."""
    one = ["generator-gear", "generator-gear", "striped star", 1, 1.5, 1, 0, 1, 0]
    asked: dict = {"data": one, "session_hash": "one-page"}
    with httpx.Client(base_url=f"{address}/gradio_api/queue", timeout=PATIENCE / 1000) as visitor:
        functions = visitor.get(f"{address}/config").json()["dependencies"]
        asked["fn_index"] = next(each["id"] for each in functions if each["api_name"] == "sample")
        visitor.post("/join", json=asked)
        with visitor.stream("GET", "/data", params={"session_hash": "one-page"}) as answers:
            completed = 0
            for line in answers.iter_lines():
                if not line.startswith("data:"):
                    continue
                message = json.loads(line.removeprefix("data:"))["msg"]
                assert message != "close_stream"
                completed += message == "process_completed"
                if completed == 2:
                    break
                if message == "process_completed":
                    visitor.post("/join", json=asked)
    assert completed == 2


def test_html_in_files_and_prompts_is_shown_as_text(
    browser: Browser, hostile_runs: Path, tmp_path_factory: pytest.TempPathFactory
):
    temporary = tmp_path_factory.mktemp("shown")
    with serving(temporary, hostile_runs) as address, visiting(browser, address) as page:
        sampled(page)
        page.locator("#left-run input").click()
        page.get_by_role("option", name=f"generator {HOSTILE}").click()
        page.get_by_text(f"arm arm {HOSTILE}, on tokenizer {HOSTILE};").wait_for()
        page.locator("#sample").click()
        expect(page.locator("#left-caption")).to_contain_text(f"Drawn by generator {HOSTILE}: striped star")
        sampled(page)
        page.locator("#class input").click()
        page.get_by_role("option", name=HOSTILE, exact=True).click()
        page.locator("#sample").click()
        expect(page.locator(".toast-wrap")).to_contain_text(f"does not know the class '{HOSTILE}'")

        open_tab(page, "Prompt", "#prompt-sheet-0")
        page.locator("#prompt-text textarea").fill(HOSTILE)
        page.locator("#prompt-go").click()
        expect(page.locator("#prompt-caption-0")).to_contain_text(f"“{HOSTILE}”")

        open_tab(page, "Codebook", "#original")
        Image.new("RGB", (64, 64)).save(temporary / "_me_ 2.png")
        page.locator("input[type=file]").first.set_input_files(temporary / "_me_ 2.png")
        expect(page.locator("#codebook-caption")).to_contain_text("Your picture _me_ 2.png, its middle")

        assert page.locator("img[src=x]").count() == 0 and page.evaluate("window.ran") is None


def test_html_in_a_teachers_note_and_a_class_is_shown_as_text(
    explorer, hostile_runs: Path, monkeypatch: pytest.MonkeyPatch
):
    tab, runs = explorer.alignment_tab, explorer.RunsOnOffer(hostile_runs)
    own = sys.modules["background"].OWN_TEACHER
    background = explorer.Background(runs)
    name = f"generator {HOSTILE}"
    monkeypatch.setattr(Picture, "class_number", lambda *_: 0)
    monkeypatch.setattr(runs.teacher(name), "note", HOSTILE)
    assert background.teacher(name, own).result(60).note == HOSTILE
    pictures = pictures_of_source("shapes")
    view = runs.view(name, Picture(pictures))
    runs.generator(name)
    look = tab.Look(view, name, own, pictures, 3, "z", (0.4, 0.4), background)
    protocol = look.protocol
    assert "<img" not in protocol and protocol.count(html.escape(HOSTILE)) == 2


@pytest.fixture(scope="session")
def imported_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of VQ-16's family for 64 px and a small LlamaGen on it, imported, with random weights; and
    a generator whose tokenizer is missing."""
    folder = tmp_path_factory.mktemp("imported")
    torch.manual_seed(0)
    small = {"image_size": 64, "channels": 32, "multipliers": (1, 1, 2, 2), "codes": 1024, "res_blocks": 1}
    tokenizer = Tokenizer(dataclasses.replace(PRESETS["vq-16"], **small)).eval()
    torch.save({"model": families.to_released(tokenizer)}, folder / "vq.pt")
    official.import_run(folder / "vq.pt", folder / "vq-16", image_size=64)
    generator = Generator(paper_config("S", classes=1000, codes=1024, grid=8)).eval()
    torch.save({"model": families.to_released(generator)}, folder / "generator.pt")
    official.import_run(folder / "generator.pt", folder / "llamagen", parent=folder / "vq-16")
    shutil.copytree(folder / "llamagen", folder / "orphan")
    config = json.loads((folder / "orphan" / "config.json").read_text())
    (folder / "orphan" / "config.json").write_text(json.dumps(config | {"parent": "gone"}))
    return folder


def test_imported_runs_are_looked_at_and_nothing_of_the_last_run_stays(
    browser: Browser, imported_runs: Path, tmp_path_factory: pytest.TempPathFactory
):
    temporary = tmp_path_factory.mktemp("imported-app")
    with serving(temporary, imported_runs) as address, visiting(browser, address) as page:
        sampled(page)
        expect(page.locator("#lacking")).to_contain_text("orphan: the run of its tokenizer, gone, does not")
        open_tab(page, "Codebook", "#usage")
        page.evaluate(
            """() => { window.seen = [];
            const find = (selector) => document.querySelector(selector);
            const quality = () => find('#quality .note')?.textContent ?? '';
            const old = [find('#original img').src, find('#reconstruction img').src, quality()];
            window.old = old;
            new MutationObserver(() => window.seen.push(
                [find('#tokenizer-run input').value, find('#original img')?.src,
                 find('#reconstruction img')?.src, quality(),
                 find('#codebook-status').textContent.includes('reading vq-16')]
            )).observe(document.body, {childList: true, subtree: true, attributes: true,
                                       characterData: true}); }"""
        )
        page.locator("#tokenizer-run input").click()
        page.get_by_role("option", name="vq-16", exact=True).click()
        expect(page.locator("#codebook-caption")).to_contain_text("Photo 0: the face of a tabby cat")
        page.locator("#entropy img").wait_for()
        page.locator("#usage img").wait_for()
        expect(page.get_by_text("of 10 pictures of photos")).to_have_count(1)
        seen, old = page.evaluate("window.seen"), page.evaluate("window.old")
        of_new = [row[1:] for row in seen if row[0] == "vq-16"]
        emptied = next(i for i, row in enumerate(of_new) if row[3])
        assert of_new[emptied][:3] == [None, None, ""]
        for row in of_new[emptied:]:  # once the app answers, nothing old comes back
            assert all(now != before for now, before in zip(row, old, strict=False) if now)
        order = [next(i for i, row in enumerate(of_new) if i > emptied and row[k]) for k in (0, 1)]
        assert order == sorted(order)

        before = pixels(page, "#original")
        page.locator("#codebook-source input").click()
        page.get_by_role("option", name="digits").click()
        expect(page.locator("#codebook-caption")).to_contain_text("Picture 0 of digits: class")
        changed(page, "#original", before)

        open_tab(page, "Alignment", "#generator-similarity")
        page.locator("#alignment-source input").click()
        page.get_by_role("option", name="photos").click()
        page.locator("#alignment-run input").click()
        page.get_by_role("option", name="vq-16", exact=True).click()
        page.locator("[data-likeness]").wait_for(timeout=3 * PATIENCE)
        expect(page.locator("#generator-title")).to_contain_text("Tokenizer: c_q")
        expect(page.locator("#protocol")).to_contain_text("10 images (photos)")
        expect(page.locator("#protocol")).to_contain_text("efficientnet-lite0")
        page.locator("#teacher input").fill("no-such-teacher")
        page.locator("#teacher input").press("Enter")
        expect(page.locator("#alignment-facts")).to_contain_text("no-such-teacher cannot be had")
        page.locator("#tokenizer-pca img").wait_for()

        page.get_by_role("tab", name="Sample").click()
        for side in ("left", "right"):
            page.locator(f"#{side}-run input").click()
            page.get_by_role("option", name="llamagen", exact=True).last.click()
            expect(page.get_by_role("option", name="llamagen", exact=True)).to_have_count(0)
        page.locator("#class input").click()
        page.wait_for_function("window.getSelection().toString().startsWith('no class')")
        page.locator("#class input").press_sequentially("tabby")
        page.get_by_role("option", name="tabby", exact=True).click()
        page.locator("#sample").click()
        expect(page.locator("#left-caption")).to_contain_text("Drawn by llamagen: tabby")
        sampled(page)


def test_two_visitors_look_at_two_runs(browser: Browser, address: str, page: Page):
    with visiting(browser, address) as other:
        for each in (page, other):
            open_tab(each, "Codebook", "#reconstruction")
        before, mine = pixels(other, "#reconstruction"), pixels(page, "#reconstruction")
        np.testing.assert_array_equal(before, mine)
        other.locator("#tokenizer-run input").click()
        other.get_by_role("option", name="warmup", exact=True).click()
        theirs = changed(other, "#reconstruction", before)
        click_cell(page, "#indices", row=1, column=1)
        expect(page.locator("#codebook-token")).to_contain_text("Token 9")
        np.testing.assert_array_equal(pixels(page, "#reconstruction")[272:], mine[272:])  # below the frames
        expect(other.locator("#codebook-token")).to_contain_text("Token 27")
        np.testing.assert_array_equal(pixels(other, "#reconstruction"), theirs)


def test_a_file_is_opened_and_at_once_in_the_lists(
    browser: Browser, imported_runs: Path, tmp_path_factory: pytest.TempPathFactory
):
    temporary = tmp_path_factory.mktemp("opened")
    folder = shutil.copytree(imported_runs, temporary / "runs")
    (temporary / "words.pt").write_text("no weights")
    with serving(temporary, folder) as address, visiting(browser, address) as page:
        page.get_by_role("tab", name="Open").click()
        source, go = page.locator("#open-source textarea"), page.locator("#open-go")
        for what, message in (
            (str(temporary / "words.pt"), "words.pt"),
            ("nobody/nothing", "could not be had from the Hub"),
            (str(folder / "orphan"), "the run of its tokenizer, gone, does not lie beside it"),
        ):
            source.fill(what)
            go.click()
            expect(page.locator(".toast-wrap")).to_contain_text(message)
            expect(page.locator("#open-status")).to_contain_text("cannot be opened")
        source.fill(str(folder / "generator.pt"))
        page.locator("#open-name textarea").fill("second generator")
        page.locator("#open-parent input").click()
        page.get_by_role("option", name="vq-16", exact=True).click()
        go.click()
        done = "second generator is in the lists of Sample, Alignment"
        expect(page.locator("#open-status")).to_contain_text(done)
        expect(page.locator("#open-runs")).to_contain_text("second generator: Sample, Alignment")
        page.get_by_role("tab", name="Sample").click()
        page.locator("#left-run input").click()
        page.get_by_role("option", name="second generator", exact=True).click()
        page.get_by_text("imported, on tokenizer vq-16; 12 blocks x 384").first.wait_for()
        client = Client(address, verbose=False, httpx_kwargs={"timeout": PATIENCE / 1000})
        opened = dict.fromkeys(("left", "right"), "second generator")
        client.predict(**opened, label="no class (null condition)", count=1, api_name="/sample")
        with visiting(browser, address) as other:  # another visitor's lists have it too
            sampled(other)
            other.locator("#left-run input").click()
            other.get_by_role("option", name="second generator", exact=True).wait_for()


def test_a_training_is_followed_by_whoever_opens_the_page_and_its_run_is_in_the_lists(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
):
    temporary = tmp_path_factory.mktemp("trained")
    shutil.copytree(ZOO / "gear", temporary / "runs" / "gear")
    with serving(temporary, temporary / "runs") as address:
        with visiting(browser, address) as page:
            progress = page.locator("#train-status progress")
            page.get_by_role("tab", name="Train").click()
            page.locator("#train-budget").get_by_label("smoke").check()
            page.locator("#train-name textarea").fill("../mine")
            expect(page.locator("#train-effort")).to_contain_text("The name '../mine' cannot be a folder's")
            page.locator("#train-start").click()
            expect(page.locator(".toast-wrap")).to_contain_text("The name '../mine' cannot be a folder's")
            page.locator("#train-name textarea").fill("mine")
            page.locator("#train-steps textarea").fill("12")
            asked = f"gear-studio train shapes --out {temporary}/runs/mine --budget smoke --steps 12"
            expect(page.locator("#train-command textarea")).to_have_value(asked)
            page.locator("#train-start").click()
            progress.wait_for()
            page.locator("#train-reconstructions img").wait_for()
            page.locator("#train-chart canvas").wait_for()
            drawn = "document.querySelector('#train-chart canvas')?.toDataURL()"
            page.wait_for_function(
                f"curve => ![undefined, curve].includes({drawn})", arg=page.evaluate(drawn)
            )
        with visiting(browser, address) as page, visiting(browser, address) as other:
            for each in (page, other):
                each.get_by_role("tab", name="Train").click()
                expect(each.locator("#train-list")).to_contain_text("mine: ")
            expect(page.locator("#train-status [data-state=finished] progress")).to_have_attribute(
                "value", "12"
            )
            page.get_by_role("tab", name="Codebook").click()
            page.locator("#tokenizer-run input").click()
            page.get_by_role("option", name="mine", exact=True).wait_for()
            page.get_by_role("tab", name="Train").click()
            expect(other.locator("#train-list")).to_contain_text("mine: finished, 12 steps")
            other.locator("#train-remove").click()
            for each in (other, page):
                expect(each.locator("#train-status")).to_contain_text("None yet")


def test_curves_are_compared_at_a_level_that_one_moves(page: Page):
    page.get_by_role("tab", name="Convergence").click()
    read, canvas = page.locator("#convergence-read"), page.locator("#convergence-chart canvas")
    expect(read).to_contain_text(re.compile(r"val_ntp falls to .* over generator-continued: \d"))
    expect(page.locator("#convergence-table")).to_contain_text("generator-baseline")
    canvas.wait_for()
    canvas.hover()
    for what in ("run", "seed", "step", "value", "generator-"):
        expect(page.locator("#vg-tooltip-element")).to_contain_text(what)

    page.locator("#convergence-metric input").click()
    page.get_by_role("option", name="val_alignment", exact=True).click()
    expect(read).to_contain_text("val_alignment falls to -0.9")
    level = page.locator("#convergence-level input[type=number]")
    expect(level).to_have_value(re.compile("^-0.9"))
    level.fill("-0.8")
    level.press("Tab")
    expect(read).to_contain_text("val_alignment falls to -0.8:")
    page.locator("#convergence-reset").click()
    expect(read).to_contain_text("val_alignment falls to -0.9")

    page.locator("#convergence-runs input").fill("generator-gear-s0")
    page.get_by_role("option", name="generator-gear-s0 (studies)", exact=True).click()
    expect(page.locator("#convergence-table")).to_contain_text("0, 1, 2")  # with its other seeds


def test_a_layout_whose_process_died_is_made_again(explorer, monkeypatch: pytest.MonkeyPatch):
    runs = explorer.RunsOnOffer(None)
    background = explorer.Background(runs)
    monkeypatch.setattr(sys.modules["background"].codes, "code_layout", np.take)
    died = background._process.submit(os._exit, 1)
    assert isinstance(died.exception(60), BrokenProcessPool)
    pictures = pictures_of_source("shapes")
    background._work["layout", "gear", pictures.key] = died
    nothing = torch.empty(0, dtype=torch.uint8)
    survey = Survey(nothing, nothing, torch.arange(1024), torch.zeros(1024, 3))
    laid_out = background.layout("gear", pictures, survey).result(60)
    codebook = runs.tokenizer("gear").quantizer.codebook.detach().numpy()
    np.testing.assert_array_equal(laid_out, codebook.flatten()[:1024])


def test_models_used_longest_ago_leave_memory(explorer, monkeypatch: pytest.MonkeyPatch):
    runs = explorer.RunsOnOffer(None)
    monkeypatch.setattr(sys.modules["runs_on_offer"], "LIMIT", 1)
    picture = Picture(pictures_of_source("shapes"))
    first = runs.view("gear", picture).indices
    assert "tokenizer" in vars(runs["gear"])
    runs.tokenizer("warmup")
    assert "tokenizer" not in vars(runs["gear"]) and "tokenizer" in vars(runs["warmup"])
    assert torch.equal(runs.view("gear", picture).indices, first)
    assert "tokenizer" not in vars(runs["warmup"])


def test_the_class_of_any_run_can_be_asked_for(explorer):
    """Also by who asks the API, whose list of classes is that of the run the page opens with."""
    runs = explorer.RunsOnOffer(None)
    parts = explorer.build(runs, explorer.Background(runs)).blocks.values()
    (label,) = (part for part in parts if getattr(part, "elem_id", None) == "class")
    assert label.preprocess("tabby") == "tabby"
    name = runs.generators[0]
    asked = sys.modules["sample_tab"]._draw(runs, (name, name), "tabby", 1, 1.0, 1.0, 0, 1.0, 0)
    with pytest.raises(ValueError, match=f"Run {name} does not know the class 'tabby'; it knows solid"):
        next(asked)


def test_a_damaged_run_is_named_among_those_that_are_not_offered(explorer, tmp_path: Path):
    shutil.copytree(ZOO / "gear", tmp_path / "good")
    for name, content in {"null": "null", "alone": '{"stage": "generator", "parent": "alone"}'}.items():
        (tmp_path / name / "generator").mkdir(parents=True)
        (tmp_path / name / "config.json").write_text(content)
    (tmp_path / "pipe").mkdir()
    hostile.pipe(tmp_path / "pipe" / "config.json")
    runs = explorer.RunsOnOffer(tmp_path)
    assert "good" in runs.names and runs.lacking.keys() == {"null", "alone", "pipe"}
    assert "holds no JSON object; the file is damaged" in runs.lacking["null"]
    assert f"null: {runs.lacking['null']}" in html.unescape(sys.modules["open_tab"].list_runs(runs))


def test_a_teacher_that_is_being_downloaded_stops_no_tab(explorer, monkeypatch: pytest.MonkeyPatch):
    runs, began, there = explorer.RunsOnOffer(None), threading.Event(), threading.Event()

    def download(*_) -> Teacher:
        began.set()
        assert there.wait(60)
        return tiny.teacher()

    monkeypatch.setattr(Teacher, "from_pretrained", download)
    monkeypatch.setitem(runs["gear"].config, "teacher_sha256", [tiny.teacher().fingerprint()])
    picture = Picture(pictures_of_source("shapes"))
    with ThreadPoolExecutor(2) as pool:
        teacher = pool.submit(runs.teacher, "gear")
        assert began.wait(60)
        try:
            assert pool.submit(lambda: runs.view("gear", picture).indices).result(30).shape == (64,)
        finally:
            there.set()
        assert teacher.result(60).dim == 32


def test_a_host_leaves_out_what_reads_its_files(explorer):
    runs = explorer.RunsOnOffer(None)
    for read_only in (False, True):
        demo = explorer.build(runs, explorer.Background(runs), read_only)
        names = {dependency["api_name"] for dependency in demo.config["dependencies"]}
        assert "sample" in names
        for tab in ("open", "train"):
            assert (tab in names) == (not read_only)
        (teacher,) = (each for each in demo.blocks.values() if getattr(each, "elem_id", "") == "teacher")
        assert teacher.allow_custom_value == (not read_only)


def test_a_teacher_s_file_is_taken_instead_of_a_download(explorer, tmp_path: Path):
    torch.save(timm_encoder(timm_name("dinov2-s")).state_dict(), tmp_path / "dino.pth")
    weights = explorer.read_weights([f"dinov2-s={tmp_path / 'dino.pth'}"])
    background = explorer.Background(explorer.RunsOnOffer(None), weights=weights)
    teacher = background.teacher("gear", "dinov2-s").result(120)
    assert teacher.note.startswith("vit_small") and "weights of dino.pth" in teacher.note
    for wrong in ("dinov2-s", f"dinov2-s={tmp_path / 'none.pth'}"):
        with pytest.raises(ValueError, match="give NAME=FILE"):
            explorer.read_weights([wrong])


def test_a_folder_without_pictures_is_named(explorer, tmp_path: Path):
    with pytest.raises(SystemExit, match=f"{tmp_path} holds no picture files"):
        explorer.main(explorer.Options(pictures=tmp_path))


def test_the_layout_of_the_codes_arrives(page: Page):
    """Last, as it is computed in the background for some time after the start."""
    open_tab(page, "Codebook", "#usage")
    expect(page.locator("#layout img")).to_be_visible(timeout=3 * PATIENCE)


def test_every_tab_is_in_the_page(explorer):
    assert {tab.__name__ for tab in explorer.TABS} == {path.stem for path in APPS.glob("*_tab.py")}


def test_a_folder_without_runs_is_named(explorer, tmp_path: Path):
    with pytest.raises(SystemExit, match=f"{tmp_path} holds no finished run"):
        explorer.main(explorer.Options(runs=tmp_path))


def test_a_page_that_is_slow_at_first_is_served_all_the_same(explorer, monkeypatch: pytest.MonkeyPatch):
    """Gradio's launch may ask for the page itself and give up after three seconds."""

    def late(url: str, **_):
        raise httpx.ReadTimeout(f"{url} did not answer in time")

    def visit(demo: gr.Blocks):
        with urllib.request.urlopen(demo.local_url) as answer:
            assert answer.status == 200
        demo.close()
        visited.append(demo)

    visited = []
    monkeypatch.setattr(httpx, "head", late)
    monkeypatch.setattr(gr.Blocks, "block_thread", visit)
    monkeypatch.setattr(explorer.Background, "warm_up", lambda *_: None)
    folder = os.environ.get("GEAR_EXPLORER_RUNS")
    explorer.main(explorer.Options(runs=folder and Path(folder)))
    assert visited


def test_only_those_in_the_file_may_enter(explorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def visit(demo: gr.Blocks):
        with httpx.Client(base_url=demo.local_url, timeout=PATIENCE / 1000) as visitor:
            seen.append(visitor.get("config").status_code)
            for password in ("wrong", "se:cret"):
                visitor.post("login", data={"username": "ada", "password": password})
                seen.append(visitor.get("config").status_code)
        demo.close()

    file, seen = tmp_path / "visitors", []
    file.write_text("grace:hopper\n\nada:se:cret\n")
    monkeypatch.setattr(gr.Blocks, "block_thread", visit)
    monkeypatch.setattr(explorer.Background, "warm_up", lambda *_: None)
    explorer.main(explorer.Options(auth=file))
    assert seen == [401, 401, 200]
    for text, said in (
        ("", "is empty"),
        ("ada:x\nsecret", "line 2 is not NAME:PASSWORD"),
        (None, "No such file"),
    ):
        file.unlink()
        if text is not None:
            file.write_text(text)
        with pytest.raises(SystemExit, match=said) as ended:
            explorer.main(explorer.Options(auth=file))
        assert "secret" not in str(ended.value)


def test_a_taken_port_is_named(explorer):
    folder = os.environ.get("GEAR_EXPLORER_RUNS")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=f"port {port}"):
            explorer.main(explorer.Options(runs=folder and Path(folder), port=port))


def test_a_painted_region_is_resampled_and_an_answer_chosen_and_undone(page: Page):
    open_tab(page, "Edit", "#edit-picture")
    expect(page.locator("#edit-region")).to_contain_text("0 of 64 tokens painted")
    whole = pixels(page, "#edit-picture")
    page.locator("#edit-go").click()
    expect(page.locator(".toast-wrap")).to_contain_text("No token is painted")
    click_cell(page, "#edit-picture", row=3, column=1)
    expect(page.locator("#edit-region")).to_contain_text("1 of 64 tokens painted")
    page.get_by_label("a rectangle").check()
    click_cell(page, "#edit-picture", row=5, column=4)
    expect(page.locator("#edit-region")).to_contain_text("click the opposite corner")
    click_cell(page, "#edit-picture", row=3, column=3)
    expect(page.locator("#edit-region")).to_have_text("7 of 64 tokens painted")
    painted = (pixels(page, "#edit-picture") != whole).any(-1).reshape(8, 64, 8, 64).mean((1, 3)) > 0.9
    assert {tuple(place) for place in np.argwhere(painted).tolist()} == {
        (3, 1), *((row, column) for row in (3, 4, 5) for column in (3, 4))
    }  # fmt: skip

    page.locator("#edit-go").click()
    page.locator("#edit-status [data-done='64']").wait_for()
    answers = page.locator("#edit-answers button img")
    expect(page.locator("#edit-answers-text")).to_contain_text("guidance 1.5, seed 0")
    expect(page.locator("#edit-answers button", has_text="log p")).to_have_count(4)
    assert len({answers.nth(number).get_attribute("src") for number in range(4)}) == 4

    page.locator("#edit-clear").click()
    expect(page.locator("#edit-region")).to_contain_text("0 of 64 tokens painted")
    np.testing.assert_array_equal(pixels(page, "#edit-picture"), whole)
    answers.nth(1).click()
    chosen = changed(page, "#edit-picture", whole)
    with urllib.request.urlopen(answers.nth(1).get_attribute("src")) as answer:
        offered = np.asarray(Image.open(io.BytesIO(answer.read())).convert("RGB"))
    np.testing.assert_allclose(chosen.astype(int), offered, atol=2)  # decoded alone, and in a batch
    page.locator("#edit-undo").click()
    np.testing.assert_array_equal(changed(page, "#edit-picture", chosen), whole)
    page.locator("#edit-undo").click()  # the paint comes back
    expect(page.locator("#edit-region")).to_contain_text("7 of 64 tokens painted")

    page.locator("#edit-count input[type=number]").fill("16")
    page.locator("#edit-count input[type=number]").press("Tab")
    page.locator("#edit-go").click()
    page.locator("#edit-status [data-done]:not([data-done='64'])").wait_for()
    page.locator("#edit-stop").click()
    expect(page.locator("#edit-status")).to_contain_text("stopped")

    page.locator("#edit-another").click()  # a new picture begins anew
    expect(page.locator("#edit-region")).to_contain_text("0 of 64 tokens painted")
    expect(page.locator("#edit-answers button")).to_have_count(0)
