"""Reports on tokenizers: numbers equal to those of the measures themselves, parts that are used again, a page
that holds everything and lets nothing through."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch import nn

from gear_studio import Run, cli, data, inspection, official
from gear_studio.analysis.codebook import assignment_statistics, usage_statistics
from gear_studio.analysis.reconstruction import psnr, ssim
from gear_studio.analysis.similarity import cka
from gear_studio.inspection import Inspection, measuring
from gear_studio.inspection.pictures import choose_pictures
from gear_studio.models.teachers import Teacher
from gear_studio.models.tokenizer import PRESETS, Tokenizer

PAGE = (Path(__file__).parents[1] / "docs" / "inspect.md").read_text()
RELEASED = replace(
    PRESETS["vq-16"], image_size=32, channels=32, multipliers=(1, 2), latent=32, codes=64, code_dim=4
)


def report_of(out: Path) -> dict:
    return json.loads((out / "report.json").read_text())


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """A small tokenizer as a released file."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("released") / "<b>small.pt"
    official.save(Tokenizer(RELEASED).eval(), path)
    return path


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> Path:
    """The report of two shipped runs on the photographs, made by the command."""
    out = tmp_path_factory.mktemp("shipped") / "report"
    cli.run(["inspect", "warmup", "gear", "--teacher", "tiny", "--out", str(out)])
    return out


@torch.no_grad()
def test_its_numbers_are_those_of_all_pictures_at_once(shipped):
    found = report_of(shipped)["tokenizers"]["gear"]
    tokenizer = Run.from_pretrained("gear").tokenizer
    images = data.to_float(data.load("photos", "val", 64).read(range(10))["image"])
    assignment = tokenizer.assign(images)
    again = data.to_float(data.to_uint8(tokenizer.decode(assignment.indices)))
    for name, values in (("psnr", psnr(again, images)), ("ssim", ssim(again, images))):
        assert found["measures"][name]["mean"] == pytest.approx(values.mean().item(), rel=1e-4)
        assert found["measures"][name]["std"] == pytest.approx(values.std().item(), rel=1e-3)
    for name, value in assignment_statistics(assignment.scores, 0.1).items():
        assert found["measures"][name]["mean"] == pytest.approx(value.item(), rel=1e-3)
    counts = torch.bincount(assignment.indices.flatten(), minlength=1024)
    for name, value in usage_statistics(counts).items():
        assert found["codebook"][name] == pytest.approx(value.item(), rel=1e-5)
    features = Teacher.from_pretrained("tiny", tokenizer.grid)(images)
    expected = cka(tokenizer.encode(images).flatten(0, 1), features.flatten(0, 1))
    likeness = found["likeness"]["patch"]["z"]["cka"]
    assert likeness["value"] == pytest.approx(expected, abs=1e-4)
    assert likeness["low"] < likeness["value"] < likeness["high"]
    assert "equal, as after quantization" in found["likeness"]["patch"]["c_q"]["cknna"]["why"]


def test_differences_are_paired_over_the_same_pictures(shipped):
    report = report_of(shipped)
    rows = list(csv.DictReader((shipped / "pictures.csv").open()))
    assert len(rows) == 20
    values = {
        name: np.array([float(row["psnr"]) for row in rows if row["tokenizer"] == name])
        for name in ("warmup", "gear")
    }
    found = report["differences"]["gear"]["measures"]["psnr"]
    gains = values["gear"] - values["warmup"]
    assert found["value"] == pytest.approx(gains.mean())
    reach = (found["high"] - found["low"]) / 2
    assert reach == pytest.approx(1.96 * gains.std() / 10**0.5, rel=0.2)
    likeness = {name: each["likeness"]["patch"]["z"]["cka"] for name, each in report["tokenizers"].items()}
    found = report["differences"]["gear"]["likeness"]["patch"]["z"]["cka"]
    assert found["value"] == pytest.approx(likeness["gear"]["value"] - likeness["warmup"]["value"], abs=1e-6)


def test_the_page_stands_alone(shipped):
    page = (shipped / "report.html").read_text()
    assert "<script" not in page and not re.search(r'(src|href)="(?!data:image/png;base64,)', page)
    assert page.count("<img") == 10 * 2 * 7 + 2  # maps of ten pictures, and two histograms
    assert "21.06 → 20.78" in page and "0.1727 → 0.1070" in page and "danielbuechele (CC BY 2.0)" in page
    assert report_of(shipped)["command"] in page.replace("&#x27;", "'")


def test_what_is_done_is_not_done_again_and_what_changed_is(tmp_path, monkeypatch):
    asked = Inspection(tmp_path, "shapes", "tiny", count=3)
    torch.manual_seed(0)
    tokenizer = Tokenizer(tiny.TOKENIZER).eval()
    looked: list[int] = []
    look = measuring._look

    def counted(*given):
        if len(looked) == stop:
            raise KeyboardInterrupt
        looked.append(given[3])
        return look(*given)

    monkeypatch.setattr(measuring, "_look", counted)
    stop = 2
    with pytest.raises(KeyboardInterrupt):
        inspection.inspect({"mine": tokenizer}, asked)
    stop = -1
    inspection.inspect({"mine": tokenizer}, asked)
    assert looked == [0, 1, 2]
    first = report_of(tmp_path)
    (damaged,) = (tmp_path / "parts").glob("tokenizer-*/000001.npz")
    damaged.write_bytes(damaged.read_bytes()[:1000])
    inspection.inspect({"mine": tokenizer}, asked)
    assert looked == [0, 1, 2, 1] and report_of(tmp_path)["tokenizers"] == first["tokenizers"]
    inspection.inspect({"mine": tokenizer}, replace(asked, tau=0.2))
    with torch.no_grad():
        tokenizer.from_code.bias.add_(1)
    inspection.inspect({"mine": tokenizer}, asked)
    assert looked == [0, 1, 2, 1] + [0, 1, 2] * 2


def test_a_released_file_on_a_folder_of_any_pictures(released, tmp_path):
    """Names from outside are escaped, damaged files counted, and the network is asked for classes."""
    pictures = tmp_path / "pictures"
    (pictures / "deep" / "er").mkdir(parents=True)
    names = ["<i>a.png", "deep/b.jpg", "deep/er/c.webp"]
    for name, photo in zip(names, (0, 1, 4), strict=True):
        data.load("photos", "val").open(photo).resize((90, 60)).save(pictures / name)
    (pictures / "deep" / "bad.png").write_bytes(b"no picture")
    (pictures / ".hidden.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    cli.run(["inspect", str(released), "--image-size", "32", "--pictures", str(pictures), "--out", str(out)])
    report = report_of(out)
    assert report["pictures"]["passed_over"] == ["deep/bad.png"] and report["pictures"]["count"] == 3
    (seen,) = report["tokenizers"].values()
    assert (seen["tokens"], seen["codes"], seen["image_size"]) == (256, 64, 32)
    assert 0 <= seen["measures"]["class_kept"]["mean"] <= 1
    rows = list(csv.DictReader((out / "pictures.csv").open()))
    assert [row["picture"] for row in rows] == names and "cat" in rows[0]["class_of_picture"].lower()
    page = (out / "report.html").read_text()
    assert "&lt;i&gt;a.png" in page and "<i>" not in page and "<b>small" not in page
    assert "1 damaged file was passed over: deep/bad.png" in page


def test_metrics_that_need_weights(tmp_path, monkeypatch):
    asked = Inspection(
        tmp_path, "shapes", "tiny", count=12, metrics=("lpips",), lpips_weights=Path("none.pt")
    )
    tokenizer = Tokenizer(tiny.TOKENIZER).eval()
    with pytest.raises(FileNotFoundError, match="none.pt"):
        inspection.inspect({"mine": tokenizer}, asked)

    class Distance(nn.Module):
        def __init__(self, weights):
            super().__init__()

        def forward(self, images, reference):
            return (images - reference).abs().flatten(1).mean(1)

    class Features(Distance):
        def forward(self, pictures):
            assert pictures.dtype == torch.uint8
            return {"fid": pictures.float().mean((2, 3))}

    monkeypatch.setattr(measuring, "LPIPS", Distance)
    monkeypatch.setattr(measuring, "Inception", Features)
    inspection.inspect({"mine": tokenizer}, replace(asked, metrics=("lpips", "rfid")))
    seen = report_of(tmp_path)["tokenizers"]["mine"]
    assert seen["measures"]["lpips"]["mean"] > 0 and seen["rfid"] > 0
    assert "rFID, 12 pictures" in (tmp_path / "report.html").read_text()


def test_the_page_s_own_tokenizer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(compile(block, "docs/inspect.md", "exec"), names)
    report = report_of(tmp_path / "report")
    assert names["page"] == Path("report/report.html") and names["page"].is_file()
    assert report["tokenizers"]["grays"]["codes"] == 8
    assert not list(Path("report/parts").glob("*/*.npz"))  # it cannot be known again


def test_what_cannot_be_looked_at_is_named(tmp_path):
    asked = Inspection(tmp_path, "shapes", "tiny")
    with pytest.raises(ValueError, match="mine is a Linear; .*assign"):
        inspection.inspect({"mine": nn.Linear(2, 2)}, asked)
    with pytest.raises(FileNotFoundError, match="no folder 'nowhere'.*gear"):
        inspection.inspect(["nowhere"], asked)
    with pytest.raises(ValueError, match="gear, gear: name each one once"):
        inspection.inspect(["gear", "gear"], asked)
    with pytest.raises(FileNotFoundError, match="neither photos, shapes, digits nor a folder"):
        choose_pictures("elsewhere", 3)
    with pytest.raises(ValueError, match="holds no picture files"):
        choose_pictures(str(tmp_path), 3)
    with pytest.raises(ValueError, match="tau is 0; it has to be greater than 0"):
        inspection.inspect(["gear"], replace(asked, tau=0))


def test_bars_are_drawn_where_they_are_wanted(tmp_path, capsys):
    asked = Inspection(tmp_path, "shapes", "tiny", count=1)
    for progress in (False, True):
        measuring.measure({"mine": Tokenizer(tiny.TOKENIZER).eval()}, asked, progress)
        assert ("looking with mine" in capsys.readouterr().err) == progress


def test_of_many_pictures_a_seed_draws(tmp_path):
    for number in range(9):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
    one, same, other = (choose_pictures(str(tmp_path), 4, seed) for seed in (0, 0, 1))
    assert one.names == same.names == sorted(one.names) != other.names and len(one) == 4
    assert one.identity == same.identity != other.identity
    assert [int(one.read(i, 4)[0, 0, 0]) for i in range(4)] == [int(name[0]) for name in one.names]
