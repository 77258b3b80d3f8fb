"""The Hub: what is pushed comes back equal, its card says what the run says, and what fails says so."""

import json
import shutil
import sys
import zipfile
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pytest
import tiny
import torch
from fake_hub import FakeHub

from gear_studio import Run, Tokenizer, cli, hub
from gear_studio.errors import describe
from gear_studio.files import read_json, write_json
from gear_studio.inspection.measuring import load_tokenizers
from gear_studio.models.generator import Generator
from gear_studio.places import ZOO


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A Hub on this machine, in the place of the real one, an empty cache and a token."""
    fake, constants = FakeHub(), huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", fake.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "ENDPOINT", fake.address)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.chdir(tmp_path)
    yield fake
    fake.shutdown()
    fake.server_close()


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def said(*words: object) -> str:
    """The line that `gear-studio ...` ends with where it fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["gear-studio", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert isinstance(end.value.code, str) and "\n" not in end.value.code
    return end.value.code


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, yours = one.state_dict(), other.state_dict()
    return mine.keys() == yours.keys() and all(torch.equal(mine[key], yours[key]) for key in mine)


def card_of(files: dict[str, bytes]) -> huggingface_hub.ModelCard:
    return huggingface_hub.ModelCard(files["README.md"].decode())


def test_a_pushed_run_comes_back_equal_with_its_tokenizer(server, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gear-studio", "push", "generator-gear", "me/words", "--private"])
    cli.main()
    printed = capsys.readouterr()
    assert f"pushed: {server.address}/me/words" in printed.out and server.private == {"me/words": True}
    assert printed.err.splitlines()[-1] == "next: gear-studio sample me/words --out samples.png"
    files = server.repositories["me/words"]
    assert {Path(path).suffix for path in files} == {".json", ".jsonl", ".png", ".safetensors", ".md"}

    ours, theirs = Run.from_pretrained("generator-gear"), Run.from_pretrained("me/words")
    assert theirs.name == "words" and theirs.config == ours.config and theirs.record == ours.record
    assert theirs.metrics == ours.metrics and theirs.evaluation == ours.evaluation
    for part in ("tokenizer", "generator", "projector"):
        assert equal(getattr(theirs, part), getattr(ours, part))
    assert torch.equal(theirs.sample([3], seed=1), ours.sample([3], seed=1))
    fetched = len(server.asked)
    assert equal(Generator.from_pretrained("me/words"), ours.generator)
    assert not any("/resolve/" in line for line in server.asked[fetched:])  # it is here already


def test_a_part_of_a_pushed_run_comes_alone(server):
    Run.from_pretrained("generator-gear").push_to_hub("me/words")
    assert equal(Tokenizer.from_pretrained("me/words"), Run.from_pretrained("gear").tokenizer)
    came = {line.rpartition("/resolve/")[2].partition("/")[2] for line in server.asked if "/resolve/" in line}
    assert came == {"config.json", "tokenizer/config.json", "tokenizer/model.safetensors"}
    assert equal(load_tokenizers(["me/words"])["words"].tokenizer, Tokenizer.from_pretrained("me/words"))


@pytest.mark.parametrize("model", [Tokenizer(tiny.TOKENIZER).eval(), tiny.generator()])
def test_a_pushed_model_comes_back_equal(model, server):
    assert model.push_to_hub("me/model", license="mit") == f"{server.address}/me/model"
    files = server.repositories["me/model"]
    assert files.keys() == {"README.md", "config.json", "model.safetensors"}
    assert equal(type(model).from_pretrained("me/model"), model)
    assert card_of(files).data.license == "mit" and type(model).__name__ in card_of(files).text


def test_the_card_says_the_run_s_numbers(server):
    run = Run.from_pretrained("generator-gear")
    run.push_to_hub("me/words")
    card = card_of(server.repositories["me/words"])
    figures = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert figures["fd"] == run.evaluation["fd"]["mean"] and figures["psnr"] == run.evaluation["psnr"]
    fd, guided = run.evaluation["fd"], run.evaluation["fd_guided"]
    for text in (
        f"{fd['mean']:.4g} ± {fd['std']:.2g}",
        f"{guided['mean']:.4g} ± {guided['std']:.2g}",
        "3 sampling seeds",
        "| seed | 0 |",
        "| steps | 6000 |",
        'Run.from_pretrained("me/words")',
        "GEAR: Guided End-to-End AutoRegression for Image Synthesis",
        run.evaluation["teacher_note"],
    ):
        assert text in card.text
    assert card.data.license is None and "has not said it yet" in card.text
    assert card.data.library_name == "gear-studio" and "arxiv:2606.32039" in card.data.tags


def test_what_the_card_says_about_loading_runs(server, tmp_path):
    for name in ("gear", "generator-gear"):
        Run.from_pretrained(name).push_to_hub(f"me/{name}")
        text = card_of(server.repositories[f"me/{name}"]).text
        exec(text.split("```python\n")[1].split("```")[0], {})
    assert (tmp_path / "reconstructions.png").is_file() and (tmp_path / "samples.png").is_file()


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    """A run on files, whose records name places of a machine."""
    folder = tmp_path / "runs" / "mine"
    shutil.copytree(ZOO / "gear", folder)
    place = tmp_path / "secret place"
    config = read_json(folder / "config.json", "a run")
    config |= {"source": "folder", "pictures": {"folder": str(place / "cats"), "sha256": "ab"}}
    config["recipe"] |= {"teacher_weights": [str(place / "vit.pt")]}
    write_json(folder / "config.json", config)
    words = (
        f"gear-studio train folder --folder {tmp_path}/cats --set teacher={tmp_path}/vit.pt --out ~/runs/x"
    )
    write_json(folder / "record.json", read_json(folder / "record.json", "a run") | {"command": words})
    evaluation = read_json(folder / "evaluation.json", "a run")
    write_json(folder / "evaluation.json", evaluation | {"reference": f"{place}/statistics.npz"})
    return folder


def test_nothing_that_is_pushed_holds_a_place_of_the_machine(elsewhere, server, tmp_path):
    Run.from_pretrained(elsewhere).push_to_hub("me/cats")
    files = server.repositories["me/cats"]
    for path, held in files.items():
        assert str(tmp_path).encode() not in held and b"secret" not in held, path
    text = card_of(files).text
    assert "`cats`" in text and "gear-studio train folder --folder cats --set teacher=vit.pt --out x" in text
    again = Run.from_pretrained("me/cats")
    assert again.config["pictures"] == {"folder": "cats", "sha256": "ab"}
    assert again.evaluation["reference"] == "statistics.npz"


def test_places_are_told_from_other_text():
    kept = ["a/b", "runs/x", "../x", "1/2", "https://host/x/y", "", "shapes, val", 3, None, {"a": [True]}]
    assert hub.without_places(kept) == kept
    for text, left in {
        "/home/me/my cats": "my cats",
        r"C:\Users\me\x.pt": "x.pt",
        "--folder '/data/{000..999}.tar' -x": "--folder '{000..999}.tar' -x",
        "~/x/y and /a/b/": "y and b/",
    }.items():
        assert hub.without_places({"a": [text]}) == {"a": [left]}


def test_what_would_be_pushed_can_be_looked_at(server, tmp_path, monkeypatch, capsys):
    words = ["push", "gear", "me/gear", "--license", "apache-2.0", "--out", "here"]
    monkeypatch.setattr(sys, "argv", ["gear-studio", *words])
    cli.main()
    assert server.asked == [] and capsys.readouterr().err.endswith("hf upload me/gear here\n")
    assert huggingface_hub.ModelCard.load(tmp_path / "here" / "README.md").data.license == "apache-2.0"
    assert equal(Run.from_pretrained("here").tokenizer, Run.from_pretrained("gear").tokenizer)
    assert "here is there already" in said(*words)


def test_results_about_a_downloaded_run_lie_beside_ours(server, monkeypatch, capsys):
    Run.from_pretrained("gear").push_to_hub("me/gear")
    words = ["evaluate", "me/gear", "--samples", "8", "--metrics", "ssim"]
    monkeypatch.setattr(sys, "argv", ["gear-studio", *words])
    cli.main()
    assert (
        "measured: runs/hub/me--gear/evaluation.json (what was downloaded is left" in capsys.readouterr().out
    )
    assert Run.from_pretrained("me/gear").evaluation["samples"] == 5000


def test_released_files_are_never_opened_here(server, tmp_path):
    with zipfile.ZipFile(tmp_path / "file.pt", "w") as file:
        file.writestr("data.pkl", b"cos\nabort\n.")
    server.repositories["them/GEAR-VQ"] = {"gear-vq.pt": (tmp_path / "file.pt").read_bytes()}
    for kind in (Tokenizer, Run):
        with pytest.raises(FileNotFoundError, match="`gear-studio import them/GEAR-VQ NAME` makes a run"):
            kind.from_pretrained("them/GEAR-VQ")
    assert not any("/resolve/" in line for line in server.asked)


# What fails


@pytest.mark.parametrize(
    ("status", "way_out"),
    [(401, "log in with `hf auth login`"), (403, "your token may not do that there"), (500, "again")],
)
def test_a_refusal_of_the_hub_is_one_line(status, way_out, server, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server.refuse = status
    line = said("push", "gear", "them/gear")
    assert line.startswith("gear-studio: them/gear could not be pushed to the Hub: ") and way_out in line


def test_a_repository_that_is_not_there_is_one_line(server):
    line = said("sample", "me/nothing", "--out", "x.png")
    assert "me/nothing" in line and "no such repository that you may see; check the name, or log in" in line


def test_offline_it_says_so(offline):
    line = said("push", "gear", "me/gear")
    assert (
        "me/gear could not be pushed to the Hub: there is no way to it" in line
        and "hf upload me/gear FOLDER" in line
    )
    for load in (Tokenizer.from_pretrained, Run.from_pretrained):
        with pytest.raises(FileNotFoundError) as refused:
            load("me/gear")
        assert (
            "there is no folder me/gear, and it could not be had from the Hub: there is no way to it"
            in str(describe(refused.value))
        )


def test_a_server_that_does_not_answer_is_no_connection(server):
    server.shutdown()
    server.server_close()
    assert "there is no way to it" in said("push", "gear", "me/gear")
    assert "there is no way to it" in said("sample", "me/gear", "--out", "x.png")


def test_a_mistyped_folder_is_not_asked_for(server, tmp_path):
    (tmp_path / "runs").mkdir()
    for name in ("runs/nothing", "gaer", "a/b/c"):
        with pytest.raises(FileNotFoundError, match=f"no folder '{name}', and no shipped run"):
            Run.from_pretrained(name)
    assert server.asked == []


def test_what_cannot_be_published_is_refused_before_anything_is_sent(elsewhere, server):
    assert "'gear' is no repository of the Hub; give OWNER/NAME" in said("push", "gear", "gear")
    write_json(elsewhere / "record.json", {"finished": False})
    assert "run mine is not finished" in said("push", elsewhere, "me/mine")
    write_json(elsewhere / "record.json", {"finished": True})
    shutil.rmtree(elsewhere / "tokenizer")
    assert "run mine holds no weights" in said("push", elsewhere, "me/mine")
    assert server.asked == [] and json.loads((elsewhere / "record.json").read_text()) == {"finished": True}
