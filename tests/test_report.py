"""The tables say whose figures they hold."""

import json
import shutil

import pytest
import torch

from gear_studio import Run
from gear_studio.places import ZOO
from gear_studio.studies import report


def test_a_retrained_teacher_is_shown_with_its_own_figures(tmp_path):
    for model in ("teacher", "judge", "attribute-judge"):
        measured = json.loads((ZOO / model / "evaluation.json").read_text())
        if model == "teacher":
            measured["teacher"]["shape"] = {"mean": 0.5, "spread": 0.02}
        (tmp_path / model).mkdir()
        (tmp_path / model / "evaluation.json").write_text(json.dumps(measured))
    own, shipped = report.teacher_table(tmp_path), report.teacher_table(ZOO)
    assert "50.0 ± 2.0 |" in own and "50.0 ± 2.0" not in shipped
    assert "measured by, the teacher and judges that ship" in own and "that ship" not in shipped
    assert report.teacher_table(tmp_path / "runs of a generator alone") == shipped


def test_a_run_that_was_measured_otherwise_is_named_with_what_it_lacks(tmp_path):
    for name in (*report.TOKENIZERS, *report.GENERATORS):
        (tmp_path / name).mkdir()
        for file in ("config.json", "evaluation.json"):
            shutil.copy(ZOO / name / file, tmp_path / name)
    path = tmp_path / "generator-gear" / "evaluation.json"
    measured = json.loads(path.read_text())
    path.write_text(json.dumps({name: measured[name] for name in measured if not name.startswith("fd")}))
    said = f"{path} has no fd, fd_guided, .* gear-studio evaluate {path.parent}"
    with pytest.raises(FileNotFoundError, match=said):
        report.tables(tmp_path)


def test_the_samples_are_drawn_on_the_device_that_is_said(monkeypatch):
    def sample(generator, condition, **_):
        used.append(generator.token_table.device.type)
        return torch.zeros(len(condition), generator.length, dtype=torch.long, device="meta")

    used, shown = [], []
    monkeypatch.setattr(report.sampling, "sample", sample)
    monkeypatch.setattr(report.plots, "sample_grid", lambda pictures, *_: shown.append(pictures))
    report.samples_figure({"generator-gear": Run.from_pretrained("generator-gear")}, torch.device("meta"))
    assert used == ["meta"] and shown[0].device.type == "meta"


def test_a_spread_is_promised_only_where_seeds_are_several():
    class Measured:
        def __init__(self, values):
            spread = {"mean": 0.25, "std": 0.01 if len(values) > 1 else None, "values": values}
            self.evaluation = {"class_agreement": {"1": spread}}

    one, three = (
        report.agreement_table(dict.fromkeys(report.GENERATORS, Measured([0.25] * count))) for count in (1, 3)
    )
    assert "±" not in one and "480 samples a seed" in one
    assert "25.0 ± 1.0" in three and "over 3 sampling seeds" in three
