"""The explorer in real Chromium on runs of one's own: trained, imported, opened, and hostile ones."""

import dataclasses
import html
import json
import shutil
import sys
from pathlib import Path

import pytest
import tiny
import torch
from browsing import HOSTILE, PATIENCE, changed, choose, open_tab, pixels, sampled, serving, visiting
from gradio_client import Client
from PIL import Image
from playwright.sync_api import Browser, expect

from gear_studio import official
from gear_studio.looking.pictures import Picture, pictures_of_source
from gear_studio.models import families
from gear_studio.models.generator import Generator, paper_config
from gear_studio.models.tokenizer import PRESETS, Tokenizer
from gear_studio.places import ZOO
from gear_studio.studies import AskedStudy
from gear_studio.training.queue import Queue


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
    app, hostile_runs: Path, monkeypatch: pytest.MonkeyPatch
):
    tab, runs = app.alignment_tab, app.RunsOnOffer(hostile_runs)
    own = sys.modules["background"].OWN_TEACHER
    background = app.Background(runs)
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


def test_a_study_is_started_stopped_and_ends_in_its_table_and_in_the_lists(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
):
    temporary = tmp_path_factory.mktemp("studied")
    runs = temporary / "runs"
    done = AskedStudy("tap", "quick", (0,), runs)
    shutil.copytree(ZOO / "gear", done.makes[0])
    written = done.out / "tap"
    written.mkdir()
    (written / "summary.md").write_text(f"## tap\n\n| tap | {HOSTILE} |\n| --- | --- |\n| 4 | 12.34 |\n")
    Image.new("RGB", (300, 200), "teal").save(written / "figure.png")
    queue = Queue(runs)
    job = done.ask(queue)
    queue._write(job, queue.read()[job].model_copy(update={"pid": 1}))  # its process has ended
    (written / "record.json").write_text("{}")
    with serving(temporary, runs) as address, visiting(browser, address) as page:
        page.get_by_role("tab", name="Train").click()
        table = page.locator("#train-table")
        expect(page.locator("#train-status")).to_contain_text("Finished, 5 trainings")
        expect(table.get_by_role("row").last).to_contain_text("12.34")
        expect(table).to_contain_text(HOSTILE)
        page.locator("#train-figure img").wait_for()
        expect(page.locator("#train-study")).to_be_hidden()
        page.locator("#train-what").get_by_label("a study").check()
        expect(page.locator("#train-stage")).to_be_hidden()
        choose(page, "#train-study", "start")
        page.locator("#train-study-budget").get_by_label("smoke").check()
        page.locator("#train-seeds textarea").fill("0 x")
        expect(page.locator("#train-study-effort")).to_contain_text("give 1 to 20 whole numbers")
        page.locator("#train-seeds textarea").fill("0")
        command = f"gear-studio study start --budget smoke --seeds 0 --at-once 2 --out {runs}/studies-smoke"
        expect(page.locator("#train-study-command textarea")).to_have_value(command)
        page.locator("#train-study-start").click()
        state = page.locator("#train-status")
        expect(state).to_contain_text("of 4 trainings")
        expect(table).to_be_hidden()
        expect(state).to_contain_text("-s0: running")  # which, a quick machine decides
        page.locator("#train-stop").click()
        page.locator("#train-status [data-state=stopped]").wait_for()
        expect(state).to_contain_text("Resume: what is finished stays")
        page.get_by_role("tab", name="Codebook").click()
        page.locator("#tokenizer-run input").click()
        page.get_by_role("option", name="warmup-s0 (studies-quick)", exact=True).wait_for()
        assert page.locator("img[src=x]").count() == 0 and page.evaluate("window.ran") is None


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
