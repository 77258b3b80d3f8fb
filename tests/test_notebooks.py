"""Every notebook, run from a clean kernel: no error, figures that show something, controls that work, and a
committed file that is what this run gives.

A notebook's text cells hold no typed results; see `typed_numbers`."""

import base64
import inspect
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
import tiny
import torch
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

import gear_studio
from gear_studio import data, official, studies
from gear_studio.analysis.reconstruction import psnr
from gear_studio.files import write_json
from gear_studio.inspection.pictures import choose_pictures
from gear_studio.models.projector import Projector, ProjectorConfig
from gear_studio.models.tokenizer import PRESETS, Tokenizer

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 1_500_000  # bytes


HASTE = """# Fewer draws for intervals, fewer rows for probes, and no UMAP, which compiles for 20 s: what is
# tested is that everything runs.
import torch
from gear_studio.analysis import features, probes, similarity
features.umap_layout = lambda x, seed: torch.pca_lowrank(torch.as_tensor(x), 2)[0].numpy()
assert similarity.interval.__wrapped__.__defaults__ == (None, 0.95, 50, 20, 0)
similarity.interval.__wrapped__.__defaults__ = (None, 0.95, 4, 2, 0)
fit_linear = probes._fit_linear
probes._fit_linear = lambda x, y: fit_linear(x[::4], y[::4]) if len(x) > 1000 else fit_linear(x, y)"""

FEWER = {  # what notebooks look at -> enough to see that they run
    "IMAGES = 256": "IMAGES = 96",
    "ROWS, MANY = 1024, 4096": "ROWS, MANY = 256, 512",
    "COUNTS = [32, 64, 128, 256, 512, 1024]": "COUNTS = [32, 64, 128, 256]",
    "FEW, DRAWS, WIDTHS = 64, 5": "FEW, DRAWS, WIDTHS = 64, 2",
    "IMAGES, TRAIN, TEST = 128, 120, 80": "IMAGES, TRAIN, TEST = 64, 60, 24",
    "SEEDS = range(3)": "SEEDS = range(2)",
    "many = world.read(range(64))": "many = world.read(range(16))",
    "PICTURES, DRAWS = 16, 4": "PICTURES, DRAWS = 8, 2",
    "agreement.SAMPLES // 2": "32",
    "\nSTEPS = 12": "\nSTEPS = 4",
    "many = world.captions(range(1000))": "many = world.captions(range(200))",
}


@pytest.fixture
def execute(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory):
    """notebooks/execute.py, in whose kernels the Hub cannot be reached and nothing of it is kept."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
    monkeypatch.syspath_prepend(str(FOLDER))
    import execute

    whole = execute.execute

    def hastily(notebook: NotebookNode, folder: Path) -> None:
        notebook.cells.insert(0, new_code_cell(HASTE))
        whole(notebook, folder)
        del notebook.cells[0]

    monkeypatch.setattr(execute, "execute", hastily)
    return execute


def turn_every_control() -> None:
    """Runs inside the kernel, after the notebook: sets each control to several values, one at a time.

    Prints how many controls there were."""
    import gc

    from gear_studio.notebook import Interactive

    turned = []
    for shown in [thing for thing in gc.get_objects() if type(thing) is Interactive]:
        for name, control in shown.controls.items():
            first, pictures = control.value, {shown.picture.value}
            if isinstance(first, bool):
                values = [False, True]
            elif isinstance(first, str) and not hasattr(control, "_options_full"):  # free text
                values = [control.options[0], "a purple zebra", ""]
            elif hasattr(control, "options"):
                values = [value for _, value in control._options_full]
                values = values[:: max(1, len(values) - 1)]
            else:
                values = [control.min, control.max]
            for value in values:
                control.value = value
                pictures.add(shown.picture.value)
            control.value = first
            shows = f"{shown.draw.__name__} shows the same whatever {name} is"
            assert len(pictures) >= 2, shows
            turned.append(name)
    print(len(turned))


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    for study in re.findall(r'studies\.study_of\(\\"([\w-]+)\\"\)', request.param.read_text()):
        if not (studies.SHIPPED / study).is_dir():
            pytest.skip(f"no runs of the study {study} ship yet: gear-studio study {study} --ship")
    return request.param


def committed(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def figures(notebook: NotebookNode) -> list[np.ndarray]:
    """The PNGs, uint8 (H, W, 3)."""
    shown = [output.get("data", {}).get("image/png") for output in outputs(notebook)]
    files = [io.BytesIO(base64.b64decode(coded)) for coded in shown if coded]
    return [np.asarray(Image.open(file).convert("RGB")) for file in files]


def empty(pixels: np.ndarray) -> bool:
    """One flat colour, or so nearly that there is nothing to see."""
    _, counts = np.unique(pixels @ np.array([65536, 256, 1]), return_counts=True)
    return len(counts) < 4 or counts.max() > 0.995 * counts.sum()


def kinds(notebook: NotebookNode) -> list[list[list[str]]]:
    """What each cell showed: the types of its outputs, without what they say."""
    return [
        [[output.output_type, *sorted(output.get("data", {}))] for output in cell.get("outputs", [])]
        for cell in notebook.cells
    ]


def typed_numbers(text: str) -> list[str]:
    """Numbers in a text cell that look like results: decimals, percentages, factors, and whole numbers above
    10, in sentences that do not speak of the paper.

    What was measured is to be computed and displayed by a code cell; the paper's figures are labelled
    "paper". Names (`GEAR-2`, DINOv2), links and fenced code are no results."""
    text = re.sub(r"```.*?```|\]\([^)]*\)|https?://\S+", " ", text, flags=re.DOTALL)
    found = []
    for sentence in re.split(r"(?<=[.!?:;])\s+(?=[A-Z*$`|-])|\n\s*\n|\n(?=[|*-])", text):
        if re.search(r"\bpaper\b", sentence, re.IGNORECASE):
            continue
        for match in re.finditer(r"(?<![\w./-])-?(\d+(?:[.,]\d+)*)\s?(%|[x×](?!\w))?", sentence):
            if match[2] or not match[1].isdigit() or int(match[1]) > 10:
                found.append(match[0].strip())
    return found


def test_there_are_notebooks():
    assert NOTEBOOKS
    sources = "\n".join(cell.source for path in NOTEBOOKS for cell in committed(path).cells)
    assert [asked for asked in FEWER if asked not in sources] == []


def test_it_runs_from_a_clean_kernel(path: Path, tmp_path: Path, execute):
    notebook = committed(path)
    shipped = kinds(notebook)
    for cell in notebook.cells:
        for asked, fewer in FEWER.items():
            cell.source = cell.source.replace(asked, fewer)
    controls = sum("Interactive(" in cell.source for cell in notebook.cells if cell.cell_type == "code")
    check = new_code_cell(inspect.getsource(turn_every_control) + "\n\nturn_every_control()")
    notebook.cells.append(check)
    execute.execute(notebook, tmp_path)

    (said,) = notebook.cells.pop().outputs
    assert int(said.text) >= controls
    assert not [output.text for output in outputs(notebook) if output.get("name") == "stderr"]
    assert kinds(notebook) == shipped, "the committed outputs are of other cells: make notebooks"
    drawn = figures(notebook)
    assert drawn and not any(map(empty, drawn))
    assert not list(tmp_path.iterdir()), "a notebook leaves no files behind"


def test_the_committed_file_is_whole_and_small(path: Path, execute):
    notebook = committed(path)
    assert path.stat().st_size <= LARGEST
    nbformat.validate(notebook)
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in codes] == list(range(1, len(codes) + 1))
    drawn = figures(notebook)
    assert drawn and not any(map(empty, drawn))
    tidy = nbformat.from_dict(notebook)
    execute.tidy(tidy)
    assert tidy == notebook, "saved with traces of a session: make notebooks"


def test_a_chart_is_stored_small_and_a_picture_whole(execute):
    def stored(pixels: np.ndarray) -> tuple[int, np.ndarray]:
        file = io.BytesIO()
        Image.fromarray(pixels).convert("RGBA").save(file, "png")
        png = execute.smaller(file.getvalue())
        return len(png), np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))

    chart = np.full((200, 300, 3), 255, np.uint8)
    chart[90:110, 20:280] = (0, 114, 178)
    size, kept = stored(chart)
    assert size < 500 and np.array_equal(kept, chart)
    picture = np.random.default_rng(0).integers(256, size=(60, 60, 3), dtype=np.uint8)
    assert np.array_equal(stored(picture)[1], picture)


def test_the_committed_file_names_no_machine(path: Path):
    text = re.sub(r'"image/png": "[^"]*"', "", path.read_text())
    places = [r"/(?:home|root|work|tmp|Users|usr|var|opt|mnt)/[\w.]", r"[A-Z]:\\\\", r" at 0x[0-9a-f]{6,}"]
    assert not re.findall("|".join(places), text)


def test_text_cells_hold_no_typed_results(path: Path):
    texts = [cell.source for cell in committed(path).cells if cell.cell_type == "markdown"]
    assert not [number for text in texts for number in typed_numbers(text)]


STAND_INS = {  # what the documented cell asks for -> what there is here
    '"../runs/folder-generator-{name}-s0"': '"generator-{name}"',
    'from_pretrained("dinov2-b", tokenizer.grid)': 'random(0, "dinov2-s", tokenizer.grid)',
    '"cuda"': '"cpu"',
    "256, 1024, 4096": "40, 128, 256",
    "256, 150, 100": "40, 24, 16",
}

ROWS = "## Few rows, wide features"


@tiny.minutes
@pytest.mark.parametrize("name", ["04_alignment", "05_patch_features"])
def test_one_cell_decides_what_is_looked_at(name: str, tmp_path: Path, execute):
    """The cell that the text gives for real pictures and DINOv2, with a folder of PNGs and random weights."""
    tiny.pngs(tmp_path, {"train": 3, "val": 42}, classes=3, size=64)
    shown = committed(FOLDER / f"{name}.ipynb")
    (text,) = [cell.source for cell in shown.cells if cell.source.startswith("## What is looked at")]
    (given,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for asked, here in STAND_INS.items():
        given = given.replace(asked, here)
    assert "cuda" not in given and "dinov2-b" not in given and "40" in given
    first = next(cell for cell in shown.cells if cell.cell_type == "code")
    imports, _, _ = first.source.partition("\nIMAGES")
    first.source = f"{imports}\n{given.replace('PICTURES', str(tmp_path))}"
    begins = [cell.source.partition("\n")[0] for cell in shown.cells]
    if ROWS in begins:  # long, and the same whatever is looked at
        del shown.cells[begins.index(ROWS) : begins.index("## Retrain live")]
    execute.execute(shown, tmp_path)
    drawn = figures(shown)
    assert drawn and not any(map(empty, drawn))
    said = "".join(output.get("data", {}).get("text/markdown", "") for output in outputs(shown))
    assert "40 images (folder, val)" in said and "vit_small_patch14_dinov2" in said


TOKENIZERS = {  # of stand-ins
    "vq": tiny.TOKENIZER,
    "lfq": replace(tiny.TOKENIZER, code_dim=6, quantizer="lfq"),
    "ibq": replace(tiny.TOKENIZER, quantizer="ibq"),
}
CURVES = ("val_ntp", "val_alignment", "val_fd", "usage", "perplexity", "entropy_tau")
EVALUATED = (
    *("rfd", "psnr", "usage", "perplexity", "entropy", "entropy_tau", "effective_size_tau"),
    *("mass_1_tau", "mass_10_tau"),
)


def stand_in(out: Path, pictures: Path, names: tuple[str, ...]) -> None:
    """Studies as a user has them with one seed on a folder of 32 px pictures: finished folders that hold
    numbers, weights of a few thousand, and no agreement with a class."""
    world, numbers = studies.World("folder", pictures, "imagenet-b-vq"), np.random.default_rng(0)
    generator = tiny.generator(classes=3)
    for study in map(studies.study_of, names):
        for link in [link for arm in study.arms for link in studies.chain_of(arm)]:
            folder = out / "runs" / f"{link.name}-s0"
            if folder.exists():
                continue
            quantizer = next((kind for kind in ("lfq", "ibq") if kind in link.name), "vq")
            recipe = tiny.recipe("tiny", tokenizer=TOKENIZERS[quantizer], generator=generator.config)
            config = {"source": "folder", "stage": link.stage, "arm": link.arm, "seed": 0}
            config |= {"parent": link.parent and f"{link.parent}-s0", "recipe": recipe.asdict()}
            write_json(folder / "config.json", config)
            write_json(folder / "record.json", {"finished": True})
            rows = [{"step": n, **{key: numbers.random() / n for key in CURVES}} for n in (4, 8, 12)]
            (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
            patch = {"tokenizer.z": {"cka": 0.2}, "tokenizer.c_q": {"cka": 0.1}}
            patch["generator.2"] = {"cka": numbers.random(), "cknna": numbers.random()}
            evaluation = {key: numbers.random() for key in EVALUATED}
            evaluation |= {key: {"mean": numbers.random()} for key in ("fd", "fd_guided")}
            write_json(
                folder / "evaluation.json", evaluation | {"likeness": {"patch": patch, "protocol": "none"}}
            )
            if link.stage == "generator":
                generator.save_pretrained(folder / "generator")
                Projector(ProjectorConfig(32, 128, 32)).save_pretrained(folder / "projector")
            else:
                Tokenizer(TOKENIZERS[quantizer]).save_pretrained(folder / "tokenizer")
        write_json(out / study.name / "record.json", studies.make_record(study, world, [0]))


def test_one_cell_decides_which_study_is_looked_at(tmp_path: Path, execute):
    """The cells that the texts give for studies of one's own, on a folder of PNGs; in one kernel."""
    pictures, out = tmp_path / "pictures", tmp_path / "own"
    tiny.pngs(pictures, {"train": 3, "val": 64}, classes=3)
    stand_in(out, pictures, ("convergence", "collapse", "quantizers"))
    cells, needed = [], []
    for name in ("02_convergence", "03_collapse", "06_quantizers"):
        shown = committed(FOLDER / f"{name}.ipynb")
        (text,) = [cell.source for cell in shown.cells if cell.source.startswith("## What is looked at")]
        (given,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        needed.append(re.findall(r"gear-studio study (\S+) --source folder", text))
        given = given.replace("../runs/my-study", str(out)).replace("PICTURES", str(pictures))
        first, *others = [cell for cell in shown.cells if cell.cell_type == "code"]
        first.source, count = re.subn(r"OUT = .*\nWORLD = .*\n", given, first.source)
        assert count == 1 and str(out) in first.source
        cells += [first, *others]
    assert needed == [["convergence"], ["convergence", "collapse"], ["quantizers"]]
    together = new_notebook(cells=cells)
    execute.execute(together, tmp_path)
    drawn = figures(together)
    assert drawn and not any(map(empty, drawn))
    said = "".join(output.get("data", {}).get("text/markdown", "") for output in outputs(together))
    assert said.count("Recipe imagenet-b-vq, source folder, seeds 0.") == 3
    assert said.count("over one training seed") == 3
    assert said.count("Passed over") == 2 and "The larger runs" not in said
    assert "asked class, guidance" not in said


RELEASED = {  # as small as their families take them
    "VQ": {"latent": 32, "codes": 64},
    "IBQ": {"latent": 32, "code_dim": 32, "codes": 64},
}


def test_one_cell_decides_which_released_files_are_measured(tmp_path: Path, execute):
    """Files of one's own, of two quantizers, on a folder of pictures, with a teacher that is there."""
    pictures = tmp_path / "pictures"
    tiny.pngs(pictures, {"val": 8}, classes=2)
    files, kept = {}, tmp_path / "kept"
    for quantizer, sizes in RELEASED.items():
        small = {"image_size": 32, "channels": 32, "multipliers": (1, 1, 1)} | sizes
        pair = [str(tmp_path / f"{quantizer}-{number}.pt") for number in range(2)]
        for number, file in enumerate(pair):
            torch.manual_seed(number)
            config = replace(PRESETS[f"{quantizer.lower()}-16"], **small)
            official.save(Tokenizer(config).eval(), file)
        files[quantizer] = tuple(pair)
    settings = {"PICTURES": str(pictures), "COUNT": 50, "IMAGE_SIZE": 32}
    settings |= {"TOKENIZERS": files, "TEACHER": "tiny", "OUT": str(kept)}
    shown = committed(FOLDER / "09_released_tokenizers.ipynb")
    first = next(cell for cell in shown.cells if cell.cell_type == "code")
    assert all(f"\n{name} = " in first.source for name in settings)
    first.source = "%matplotlib inline\n" + "\n".join(
        f"{name} = {value!r}" for name, value in settings.items()
    )
    execute.execute(shown, tmp_path)

    drawn = figures(shown)
    assert len(drawn) == 3 and not any(map(empty, drawn))
    said = {
        cell.id: "".join(output.get("data", {}).get("text/markdown", "") for output in cell.outputs)
        for cell in shown.cells
        if cell.cell_type == "code"
    }
    assert "random" not in "".join(said.values()) and "be had" not in said["load"]
    assert "`IBQ-1.pt`" in said["load"] and "LFQ" not in "".join(said.values())
    assert "8 pictures" in said["found"]
    for name in ("reconstruction-table", "assignments-table", "likeness-table"):
        assert said[name].startswith("After GEAR, ") and " | paper, " in said[name]
    images = data.to_float(torch.stack([choose_pictures(str(pictures), 50).read(i, 32) for i in range(8)]))
    for quantizer, published in (("VQ", "21.06 → 20.78"), ("IBQ", "21.18 → 20.92")):
        values = []
        for file in files[quantizer]:
            with torch.no_grad():
                again = official.load_tokenizer(file, 32).reconstruct(images)
            values.append(psnr(data.to_float(data.to_uint8(again)), images).mean().item())
        (row,) = re.findall(rf"^\| {quantizer} \| PSNR.*$", said["reconstruction-table"], re.MULTILINE)
        assert f"| {values[0]:.2f} | {values[1]:.2f} | {values[1] - values[0]:+.2f} [" in row
        assert published in row
    assert "0.1727 → 0.1070" in said["likeness-table"] and list((kept / "parts").iterdir())


def test_random_weights_are_said_with_all_that_is_shown():
    """In the committed file, which was made without a connection."""
    shown = 0
    for cell in committed(FOLDER / "09_released_tokenizers.ipynb").cells:
        for given in [output.get("data", {}) for output in cell.get("outputs", [])]:
            text = given.get("text/markdown", "")
            if "| --- |" in text:
                assert "(random weights: shows the form, not the finding)" in text
                shown += 1
            if "image/png" in given:
                assert "caption(" in cell.source  # the text is part of the picture
                shown += 1
    assert shown == 7


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("FD falls from 1.31 to 1.08.", ["1.31", "1.08"]),
        ("In the paper gFID falls from 20.16 to 16.96. Here it is 1.08.", ["1.08"]),
        ("It needs 3x fewer steps, and 77 % show the class.", ["3x", "77 %"]),
        ("| gear | 986 |\n| paper | 16384 |", ["986"]),
        ("Three updates: 1, 2 and 3, on $2 - 2z$. See [it](https://arxiv.org/abs/2606.32039), DINOv2.", []),
        ("The loss is $-0.93$ and `tau=0.2`.", ["-0.93", "0.2"]),
        ("One sentence about the paper.\n\nAnother: -0.5", ["-0.5"]),
    ],
)
def test_typed_results_are_found(text: str, numbers: list[str]):
    assert typed_numbers(text) == numbers


def test_an_empty_figure_is_found():
    blank = np.full((60, 80, 3), 255, np.uint8)
    assert empty(blank)
    ramp = blank.copy()
    ramp[10:50, :, 0] = np.arange(80)
    assert not empty(ramp)


def test_it_runs_on_this_python_whatever_kernels_are_installed(tmp_path: Path, execute, monkeypatch):
    """A kernel called python3 that starts something else, where Jupyter looks first."""
    spec = tmp_path / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text('{"argv": ["false"], "display_name": "another", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    source = "import sys, gear_studio\nprint(sys.prefix, gear_studio.__file__)"
    notebook = new_notebook(cells=[new_code_cell(source)])
    execute.execute(notebook, tmp_path)
    assert outputs(notebook)[0].text.split() == [sys.prefix, gear_studio.__file__]


def test_a_cell_that_fails_is_reported(tmp_path: Path, execute):
    notebook = new_notebook(cells=[new_code_cell("1 + 1"), new_code_cell("raise ValueError('no')")])
    with pytest.raises(CellExecutionError, match="ValueError"):
        execute.execute(notebook, tmp_path)


def test_saving_keeps_what_a_reader_sees_and_nothing_else(execute):
    seen = {"image/png": "iVBORw0KGgo=", execute.WIDGET: {"model_id": "0123"}, "text/plain": "VBox(...)"}
    cell = new_code_cell("show", metadata={"execution": {"iopub.status.busy": "2026"}})
    cell.outputs = [new_output("display_data", data=seen, metadata={"image/png": {"width": 10}})]
    notebook = new_notebook(cells=[new_markdown_cell("# Title"), cell], metadata={"widgets": {"state": {}}})
    execute.tidy(notebook)
    assert notebook.metadata == execute.METADATA
    assert cell.metadata == {} and cell.outputs[0].metadata == {}
    assert sorted(cell.outputs[0].data) == ["image/png", "text/plain"]
    assert "figure at its first values; run the cell" in cell.outputs[0].data["text/plain"]
