"""The explorer's parts without a browser: its options, what it keeps, and what it offers."""

import asyncio
import html
import os
import shutil
import socket
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import gradio as gr
import hostile
import httpx
import numpy as np
import pytest
import tiny
import torch
from browsing import APPS, PATIENCE
from gradio.state_holder import SessionState
from gradio_client.utils import apply_diff

from gear_studio.analysis.codes import Survey
from gear_studio.looking.pictures import Picture, pictures_of_source
from gear_studio.models.teachers import Teacher, timm_encoder, timm_name
from gear_studio.places import ZOO


@pytest.mark.parametrize("grid", [4, 8, 12, 16])
def test_on_another_grid_the_token_is_the_one_in_the_same_place(app, grid):
    components = sys.modules["components"]
    clicked = components.clicked_place(gr.SelectData(None, {"index": [330, 90], "value": None}))
    (row, column), size = divmod(components.token_at(clicked, grid), grid), components.SIDE / grid
    assert row * size <= 90 < (row + 1) * size and column * size <= 330 < (column + 1) * size


def test_a_layout_whose_process_died_is_made_again_and_then_kept(
    app, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runs = app.RunsOnOffer(None)
    background = app.Background(runs)
    monkeypatch.setattr(sys.modules["background"].codes, "code_layout", np.take)
    died = background._process.submit(os._exit, 1)
    assert isinstance(died.exception(60), BrokenProcessPool)
    pictures = pictures_of_source("shapes")
    background._work["layout", "gear", pictures.key] = died
    nothing = torch.empty(0, dtype=torch.uint8)
    survey = Survey(nothing, nothing, torch.arange(1024), torch.zeros(1024, 3), {})
    laid_out = background.layout("gear", pictures, survey).result(60)
    codebook = runs.tokenizer("gear").quantizer.codebook.detach().numpy()
    np.testing.assert_array_equal(laid_out, codebook.flatten()[:1024])
    folder = tmp_path / "gear-studio" / "layouts"
    while not (kept := [*folder.glob("*.npy")]):  # it is told first, and then kept
        time.sleep(0.01)

    later = app.Background(runs)  # which has no process yet
    monkeypatch.setattr(later, "_submit", None)
    again = later.layout("gear", pictures, survey)
    assert again.done()
    np.testing.assert_array_equal(again.result(), laid_out)
    with pytest.raises(TypeError):
        app.Background._lay_out(later, np.take, codebook, np.arange(3))  # of others nothing is kept
    kept[0].write_bytes(b"")
    another = app.Background(runs).layout("gear", pictures, survey).result(60)
    np.testing.assert_array_equal(another, laid_out)


def test_models_used_longest_ago_leave_memory(app, monkeypatch: pytest.MonkeyPatch):
    runs = app.RunsOnOffer(None)
    monkeypatch.setattr(sys.modules["runs_on_offer"], "LIMIT", 1)
    picture = Picture(pictures_of_source("shapes"))
    first = runs.view("gear", picture).indices
    assert "tokenizer" in vars(runs["gear"])
    runs.tokenizer("warmup")
    assert "tokenizer" not in vars(runs["gear"]) and "tokenizer" in vars(runs["warmup"])
    assert torch.equal(runs.view("gear", picture).indices, first)
    assert "tokenizer" not in vars(runs["warmup"])


def test_the_class_of_any_run_can_be_asked_for(app):
    """Also by who asks the API, whose list of classes is that of the run the page opens with."""
    runs = app.RunsOnOffer(None)
    parts = app.build(runs, app.Background(runs)).blocks.values()
    (label,) = (part for part in parts if getattr(part, "elem_id", None) == "class")
    assert label.preprocess("tabby") == "tabby"
    name = runs.generators[0]
    asked = sys.modules["sample_tab"]._draw(runs, (name, name), "tabby", 1, 1.0, 1.0, 0, 1.0, 0)
    with pytest.raises(ValueError, match=f"Run {name} does not know the class 'tabby'; it knows solid"):
        next(asked)


def test_a_damaged_run_is_named_among_those_that_are_not_offered(app, tmp_path: Path):
    shutil.copytree(ZOO / "gear", tmp_path / "good")
    for name, content in {"null": "null", "alone": '{"stage": "generator", "parent": "alone"}'}.items():
        (tmp_path / name / "generator").mkdir(parents=True)
        (tmp_path / name / "config.json").write_text(content)
    (tmp_path / "pipe").mkdir()
    hostile.pipe(tmp_path / "pipe" / "config.json")
    runs = app.RunsOnOffer(tmp_path)
    assert "good" in runs.names and runs.lacking.keys() == {"null", "alone", "pipe"}
    assert "holds no JSON object; the file is damaged" in runs.lacking["null"]
    assert f"null: {runs.lacking['null']}" in html.unescape(sys.modules["open_tab"].list_runs(runs))


def test_a_teacher_that_is_being_downloaded_stops_no_tab(app, monkeypatch: pytest.MonkeyPatch):
    runs, began, there = app.RunsOnOffer(None), threading.Event(), threading.Event()

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


def test_a_host_leaves_out_what_reads_its_files(app):
    runs = app.RunsOnOffer(None)
    for read_only in (False, True):
        demo = app.build(runs, app.Background(runs), read_only)
        names = {dependency["api_name"] for dependency in demo.config["dependencies"]}
        assert "sample" in names
        for tab in ("open", "train", "train_study"):
            assert (tab in names) == (not read_only)
        (teacher,) = (each for each in demo.blocks.values() if getattr(each, "elem_id", "") == "teacher")
        assert teacher.allow_custom_value == (not read_only)


def test_a_teacher_s_file_is_taken_instead_of_a_download(app, explorer, tmp_path: Path):
    torch.save(timm_encoder(timm_name("dinov2-s")).state_dict(), tmp_path / "dino.pth")
    weights = explorer.read_weights([f"dinov2-s={tmp_path / 'dino.pth'}"])
    background = app.Background(app.RunsOnOffer(None), weights=weights)
    teacher = background.teacher("gear", "dinov2-s").result(120)
    assert teacher.note.startswith("vit_small") and "weights of dino.pth" in teacher.note
    for wrong in ("dinov2-s", f"dinov2-s={tmp_path / 'none.pth'}"):
        with pytest.raises(ValueError, match="give NAME=FILE"):
            explorer.read_weights([wrong])


def test_a_folder_without_pictures_is_named(explorer, tmp_path: Path):
    with pytest.raises(SystemExit, match=f"{tmp_path} holds no picture files"):
        explorer.main(explorer.Options(pictures=tmp_path))


def test_every_tab_is_in_the_page(app):
    assert {tab.__name__ for tab in app.TABS} == {path.stem for path in APPS.glob("*_tab.py")}


def test_a_folder_without_runs_is_named(explorer, tmp_path: Path):
    with pytest.raises(SystemExit, match=f"{tmp_path} holds no finished run"):
        explorer.main(explorer.Options(runs=tmp_path))


def test_a_page_that_is_slow_at_first_is_served_all_the_same(app, explorer, monkeypatch: pytest.MonkeyPatch):
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
    monkeypatch.setattr(app.Background, "warm_up", lambda *_: None)
    folder = os.environ.get("GEAR_EXPLORER_RUNS")
    explorer.main(explorer.Options(runs=folder and Path(folder)))
    assert visited


def test_only_those_in_the_file_may_enter(app, explorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
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
    monkeypatch.setattr(app.Background, "warm_up", lambda *_: None)
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


def test_schemas_are_worked_out_once_a_kind_and_are_what_they_were(app, monkeypatch: pytest.MonkeyPatch):
    faults, worked_out = sys.modules["gradio_faults"], []
    kinds = faults.data_classes.GradioModel, faults.data_classes.GradioRootModel
    told = {kind: kind().api_info() for kind in (gr.Gallery, gr.Image, gr.Plot)}
    for kind in kinds:
        work_out = kind.model_json_schema.__func__
        noted = classmethod(lambda of, work_out=work_out: worked_out.append(of) or work_out(of))
        monkeypatch.setattr(kind, "model_json_schema", noted)
    faults.work_out_schemas_once()
    for _ in range(2):
        assert {kind: kind().api_info() for kind in told} == told
    assert len(worked_out) == len(set(worked_out)) == len(told)


def test_what_an_answer_does_not_name_is_left_alone_and_all_else_is_said_as_ever(
    app, monkeypatch: pytest.MonkeyPatch
):
    with gr.Blocks() as demo:
        outputs = [gr.HTML(), gr.State(0), gr.Number(), gr.Timer(1, active=False), gr.Row()]
        gr.Button().click(lambda: None, None, outputs)
    said, kept, number, timer, row = outputs
    (event,) = demo.fns.values()
    answers = [
        {said: "<b>a</b>"},
        {kept: 3},
        {number: gr.Number(4, label="four"), row: gr.Row(visible=False)},
        {timer: gr.Timer(active=True), said: gr.skip(), kept: 5},
        dict(zip(outputs, ["b", 6, 7.0, gr.skip(), gr.skip()], strict=True)),
        gr.skip(),
        ["c", 8, 9.0, gr.skip(), gr.skip()],
    ]

    nothing = gr.skip()
    nothing_of_html = {"props": nothing, **nothing}

    def give_all() -> tuple[list, list]:
        state = SessionState(demo)
        given = [asyncio.run(demo.postprocess_data(event, answer, state)) for answer in answers]
        given = [[nothing if each == nothing_of_html else each for each in row] for row in given]
        return given, [state[kept._id], state[number._id].label]

    expected = give_all()
    sys.modules["gradio_faults"].pass_over_what_is_not_named(demo)
    assert give_all() == expected and expected[1] == [8, "four"]
    built, state = [], SessionState(demo)
    monkeypatch.setattr(state, "_update_config", built.append)
    asyncio.run(demo.postprocess_data(event, {said: "d"}, state))
    assert built == []
    asyncio.run(demo.postprocess_data(event, {number: gr.Number(label="five")}, state))
    assert built == [number._id]
    with pytest.raises(ValueError, match="not specified as output"):
        asyncio.run(demo.postprocess_data(event, {gr.HTML(render=False): "e", said: "f"}, state))


def test_a_value_is_never_changed_in_place(app, monkeypatch: pytest.MonkeyPatch):
    """The page would change the picture that it has not shown yet."""
    faults = sys.modules["gradio_faults"]
    monkeypatch.setattr(faults.utils, "diff", faults.utils.diff)
    picture, other, nothing = {"path": "a", "url": "b"}, {"path": "c", "url": "b"}, gr.skip()
    faults.send_values_whole()
    for old, new in ((picture, nothing), (picture, other), ("a", "ab"), ([1, 2], [1]), (nothing, picture)):
        assert apply_diff(old, edits := faults.utils.diff(old, new)) == new
        assert [path for _, path, _ in edits] == [[]]
    assert faults.utils.diff(picture, dict(picture)) == []


def test_an_answer_that_is_overtaken_empties_nothing_and_shows_nothing_again(app):
    """Gradio gives the last of an answer's parts again, and None to all views where there was none."""
    ending_quietly, line = sys.modules["views"].ending_quietly, gr.HTML(render=False)
    for parts in ([], [{line: "a"}], [{line: "a"}, {line: "b"}]):
        assert [*ending_quietly(lambda parts=parts: iter(parts), line)()] == [*parts, {line: gr.skip()}]


def test_a_click_first_ends_what_is_still_being_filled(app):
    """Else what is on its way to the page would come after the answer to the click, and stay."""
    demo = app.build(runs := app.RunsOnOffer(None), app.Background(runs))
    ids = {getattr(block, "elem_id", None): number for number, block in demo.blocks.items()}
    for square in ("indices", "teacher-pca", "features-cells"):
        first, then = (
            each
            for each in demo.config["dependencies"]
            if [ids[square], "select"] in map(list, each["targets"])
            and (each["cancels"] or each["backend_fn"])
        )
        (filling,) = first["cancels"]
        assert not then["cancels"] and then["outputs"] == demo.config["dependencies"][filling]["outputs"]


def test_models_and_trainings_of_the_page_are_where_it_was_told(app):
    runs = app.RunsOnOffer(None, "cpu")
    assert runs.device == torch.device("cpu") and app.Background(runs).trainings.device == "cpu"
    with pytest.raises(ValueError, match="device 'moon' is not to be had here"):
        app.RunsOnOffer(None, "moon")
