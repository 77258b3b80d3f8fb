"""The explorer in real Chromium, on the shipped runs: what a visitor does, and what must not go wrong.

GEAR_EXPLORER_RUNS=FOLDER tries it on the runs in that folder instead, say in the middle of a training.
"""

import io
import json
import os
import re
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from browsing import GREY, PATIENCE, changed, choose, click_cell, open_tab, pixels, sampled, visiting
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from gear_studio import studies

MODELS = ("teacher", "tokenizer", "generator")


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


def open_tabs(page: Page, app) -> Iterator[str]:
    """The titles of all tabs, each while it is open."""
    for tab in app.TABS:
        page.locator("[role=tab]:visible", has_text=tab.TITLE).click()
        page.locator(".guide:visible", has_text=tab.GUIDE).wait_for()
        page.wait_for_timeout(700)  # its views come
        yield tab.TITLE


def test_every_tab_can_be_used_by_everyone(page: Page, app):
    """No serious finding of axe by WCAG's level AA."""
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"], "resultTypes": ["violations"]}
    found = {}
    for title in open_tabs(page, app):
        violations = Axe().run(page, options=rules).response["violations"]
        serious = [each for each in violations if each["impact"] in ("serious", "critical")]
        found[title] = [(each["id"], node["html"]) for each in serious for node in each["nodes"]]
    assert not any(found.values()), found


def test_on_a_phone_every_tab_can_be_reached_and_nothing_is_cut_off(page: Page, app):
    page.set_viewport_size({"width": 390, "height": 800})
    wide = {title: page.evaluate("document.documentElement.scrollWidth") for title in open_tabs(page, app)}
    assert set(wide.values()) == {390}, wide


def test_a_number_beyond_the_slider_is_clamped(page: Page):
    open_tab(page, "Codebook", "#original")
    for typed, picture in (("5000", 999), ("-3", 0)):
        page.locator("#codebook-index input[type=number]").fill(typed)
        page.locator("#codebook-index input[type=number]").press("Tab")
        expect(page.locator("#codebook-caption")).to_contain_text(f"Picture {picture} of")
    expect(page.locator(".toast-wrap", has_text="Error")).to_have_count(0)


def marked(page: Page, selector: str, row: int, column: int) -> np.ndarray:
    """The image, once its mark is around this token: black, as no picture of this world is."""
    for _ in range(PATIENCE // 100):
        shown = pixels(page, selector)
        cell = shown.shape[0] // 8
        if (shown[row * cell : (row + 1) * cell, column * cell] == 0).all():  # neighbours' frames touch less
            return shown
        page.wait_for_timeout(100)
    raise AssertionError(f"{selector} does not mark row {row}, column {column}")


def test_a_token_is_clicked_and_swapped(page: Page):
    open_tab(page, "Codebook", "#indices")
    expect(page.locator("#codebook-token")).to_contain_text("Token 27 (row 4, column 4)")  # at first
    click_cell(page, "#indices", row=3, column=5)
    expect(page.locator("#codebook-token")).to_contain_text("Token 29 (row 4, column 6)")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):  # faster than the app answers
        page.keyboard.press(key)
    expect(page.locator("#codebook-token")).to_contain_text("Token 39 ")
    for square in ("#original", "#reconstruction", "#indices", "#entropy", "#edited"):
        marked(page, square, row=4, column=7)
    for key, token in (("ArrowLeft", 38), ("ArrowUp", 30), ("ArrowLeft", 29)):
        page.keyboard.press(key)
        expect(page.locator("#codebook-token")).to_contain_text(f"Token {token} ")
    expect(page.locator("#top-codes tr")).to_have_count(10)  # heading, eight codes, the rest
    rebuilt = marked(page, "#reconstruction", row=3, column=5)  # pictures come later than their text
    np.testing.assert_array_equal(marked(page, "#edited", row=3, column=5), rebuilt)
    expect(page.locator("#difference-text")).to_contain_text("no change yet")
    weights = [float(text) for text in page.locator("#top-codes td.weight").all_inner_texts()]
    assert sum(weights) == pytest.approx(1, abs=0.006) and weights[:8] == sorted(weights[:8], reverse=True)

    page.locator("#replace").click()  # by the second best, which is offered first
    expect(page.locator("#edits")).to_contain_text("1 of 64 tokens replaced")
    edited = changed(page, "#edited", rebuilt)
    expect(page.locator("#difference-text")).to_contain_text("what changed")
    assert pixels(page, "#difference").std() > 0 and pixels(page, "#gallery").std() > 0

    page.locator("#new-code input").fill("5")
    page.locator("#replace").click()
    expect(page.locator("#codebook-token")).to_contain_text("replaced by 5")
    edited = changed(page, "#edited", edited)
    page.locator("#new-code input").fill("1024")
    page.locator("#replace").click()
    expect(page.locator(".toast-wrap")).to_contain_text("choose a number from 0 to 1023")
    expect(page.locator("#codebook-token")).to_contain_text("replaced by 5")

    page.locator("#codebook-numbers-go").click()
    with urllib.request.urlopen(
        page.locator("#codebook-numbers a[href]").first.get_attribute("href")
    ) as answer:
        numbers = np.load(io.BytesIO(answer.read()))
    assert numbers["indices"].shape == (8, 8) and numbers["edited_indices"].flat[29] == 5
    assert numbers["z"].shape[0] == 64 and (numbers["edited"] != numbers["reconstruction"]).any()

    page.locator("#reset").click()
    expect(page.locator("#edits")).to_contain_text("0 of 64 tokens replaced")
    np.testing.assert_array_equal(changed(page, "#edited", edited), rebuilt)


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
    facts = page.locator("#alignment-facts")
    expect(facts).to_contain_text("at the framed patch 49")
    (others,) = re.findall(
        r"with f\(x\) of all other patches of the picture: (-?\d\.\d+)", facts.inner_text()
    )
    assert float(others) < float(facts.locator("[data-cosine]").get_attribute("data-cosine"))
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


def test_every_question_opens_the_tab_that_answers_it(page: Page, app):
    for question, address in app.QUESTIONS.items():
        page.get_by_role("link", name=question).click()
        tab = page.locator("[role=tab][aria-selected=true]")
        expect(tab).to_have_text(re.compile(address.removeprefix("?tab="), re.IGNORECASE))
        expect(page.locator(".guide:visible")).to_have_count(1)


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


def test_a_view_is_sent_by_its_address(browser: Browser, address: str):
    asked = "tab=codebook&tokenizer-run=warmup&pictures=photos&picture=3&place=0.8,0.1&tau=2&seed=<b>"
    with visiting(browser, f"{address}/?{asked}") as page:
        page.locator("#gallery img").wait_for()
        expect(page.locator("#codebook-caption")).to_contain_text("Photo 3")
        expect(page.locator("#codebook-token")).to_contain_text("Token 6 (row 1, column 7)")
        expect(page.locator("#tokenizer-run input")).to_have_value("warmup")
        expect(page.locator("#tau input[type=number]")).to_have_value("0.1")  # it cannot be 2
        typical = page.locator("#typical")  # of what the tokenizer knows, whatever is chosen
        expect(typical).to_contain_text("beside 512 pictures of shapes")
        expect(typical).to_contain_text("PSNR lies below all of them")
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


def test_a_request_without_a_number_can_be_taken_back(address: str):
    """The page hears a request's number later than a quick visitor changes their mind."""
    taken_back = {"session_hash": "one-page", "fn_index": 0, "event_id": None}
    for place, said in {"cancel": taken_back, "reset": {"event_id": None}}.items():
        assert httpx.post(f"{address}/gradio_api/{place}", json=said).json() == {"success": True}


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


def test_the_layout_of_the_codes_arrives(page: Page):
    """Last, as it is computed in the background for some time after the start."""
    open_tab(page, "Codebook", "#usage")
    expect(page.locator("#layout img")).to_be_visible(timeout=3 * PATIENCE)


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
