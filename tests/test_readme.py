"""The Python of README and docs/api.md runs as it stands there, the tables of docs/results.md are what the
commands print, the commands of the pages reach the program as they are meant, and links lead somewhere."""

import functools
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from gear_studio import cli, commands, studies
from gear_studio.places import ZOO
from gear_studio.studies import report
from gear_studio.training.recipes import recipe_of, with_settings

HERE = Path(__file__).parents[1]
RESULTS = (HERE / "docs" / "results.md").read_text()
# Stand-ins for the programs: one word a line, and an empty line behind each command.
STAND_INS = """
accelerate() { printf '%s\\n' "$@" ""; }
gear-studio() { printf '%s\\n' -m gear_studio "$@" ""; }
make() { :; }
source() { :; }
hf() { :; }
RANK=1 FIRST_NODE=node
"""


def run_python(page: Path, until: str = "\0") -> dict:
    """Run the Python of a page, one snippet after the other. Returns the names it has made.
    until: a heading, from which on nothing is run."""
    names: dict = {}
    text = page.read_text().partition(until)[0]
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(compile(block, page.name, "exec"), names)
    return names


def test_the_readme_is_short_and_its_snippet_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_python(HERE / "README.md")
    assert "Run generator-gear: stage generator, arm gear" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"samples.png", "reconstructions.png"}
    assert len((HERE / "README.md").read_text().splitlines()) <= 150


def test_the_python_of_the_page_on_python_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_python(HERE / "docs" / "api.md", until="## The explorer's API")  # test_endpoints has the rest
    assert names["hard"].shape == names["soft"].shape == (16, 64, 128)
    said = capsys.readouterr().out
    estimates = re.findall(r"^-?\d\.\d+ \[-?\d\.\d+, -?\d\.\d+\], chance -?\d\.\d+$", said, flags=re.M)
    assert len(estimates) == 2 and "16 images (shapes, val)" in said and "256 drawn" in said
    written = {"samples.png", "reconstructions.png", "alignment.png", "smoke.png", "warmup"}
    assert {path.name for path in tmp_path.iterdir()} == written


FENCED = re.compile(r"^( *)```.*?^\1```", flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What a link may name behind #, as GitHub derives it from the headings of a page."""
    headings = re.findall(r"^#+ (.*)", FENCED.sub("", page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "page", [HERE / "README.md", *sorted((HERE / "docs").glob("*.md"))], ids=lambda p: p.name
)
def test_every_link_of_a_page_leads_somewhere(page):
    text = re.sub(r"`[^`\n]*`", "", FENCED.sub("", page.read_text()))
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    broken = []
    for link in links:
        file, _, anchor = link.partition("#")
        there = (page.parent / file).resolve() if file else page
        if not there.is_file() or (anchor and anchor not in anchors(there)):
            broken.append(link)
    assert not broken


def test_every_page_is_linked_from_the_readme():
    pages = {path.name for path in (HERE / "docs").glob("*.md")}
    assert pages == set(re.findall(r"\]\(docs/([\w.]+\.md)\)", (HERE / "README.md").read_text()))


def rows(markdown: str) -> list[str]:
    """The rows of all tables, headers among them."""
    return [line for line in markdown.splitlines() if line.startswith("| ")]


def section(title: str) -> str:
    """What stands below a heading of docs/results.md, up to the next of its level or above."""
    level, below = re.search(rf"^(#+) {re.escape(title)}\n([\s\S]*)", RESULTS, flags=re.MULTILINE).group(1, 2)
    return re.split(rf"^#{{1,{len(level)}}} ", below, flags=re.MULTILINE)[0]


def test_the_tables_of_the_shipped_runs_are_those_of_report():
    shown = rows(section("What the shipped runs show"))
    printed = rows(report.tables(ZOO))
    assert len(shown) > 15 and not [row for row in shown if row not in printed]


@pytest.mark.parametrize(
    "name", [path.name for path in sorted(studies.SHIPPED.iterdir()) if path.name != "runs"]
)
def test_the_tables_of_a_shipped_study_are_those_it_prints(name):
    study = studies.study_of(name)
    shown = rows(section(name.replace("-", " ").capitalize()))
    printed = rows(studies.summarize(study, studies.shipped_runs(name)))
    assert len(shown) >= 1 + len(study.arms) and not [row for row in shown if row not in printed]


def test_the_summary_of_speed_ups_is_that_of_the_tables():
    def over_continued(title: str, row: str, *columns: int) -> list[str]:
        (cells,) = [
            line.split(" | ")
            for line in rows(section(title))
            if line.startswith(f"| {row} |") and "x" in line
        ]
        return [f"{float(cells[column].split('x')[0]):.1f}x" for column in columns]

    steps = "Steps to the control's final value"
    tables = [
        over_continued("Convergence", "gear", 2, 4, 6),
        over_continued("Text", "gear", 2, 4),
        [*over_continued(steps, "NTP", 2), *over_continued(steps, "alignment", 2)],
    ]
    summary = [line for line in rows(section("Does gear learn sooner?")) if line.startswith("| [")]
    assert [re.findall(r"\d\.\dx", line) for line in summary] == tables
    readme = (HERE / "README.md").read_text()
    assert f"{tables[0][0]} fewer steps" in readme and f"{tables[0][2]} fewer to its FD" in readme


def test_every_make_target_that_is_named_is_there():
    there = set(re.findall(r"^([a-z-]+):", (HERE / "Makefile").read_text(), flags=re.MULTILINE))
    pages = [HERE / "README.md", HERE / "CONTRIBUTING.md", *(HERE / "docs").glob("*.md")]
    for path in [*pages, *(HERE / ".github" / "workflows").iterdir(), HERE / ".ci" / "run"]:
        named = set(re.findall(r"(?:^|`|run: )make ([a-z-]+)", path.read_text(), flags=re.MULTILINE))
        assert named <= there, path.name
        assert named or path.parent.name not in ("workflows", ".ci")


# Every option of the official training programs.
FLAGS = """
output-dir exp-name logging-dir report-to wandb-project sampling-steps sampling-num sampling-pairs-per-row
sampling-cfg-scale sampling-cfg-interval sampling-temperature sampling-top-k sampling-top-p resume-step
cont-dir eval-steps eval-fid-num eval-per-proc-batch-size fid-reference-file eval-temperature eval-top-k
eval-top-p eval-fid-batch-size eval-fid-num-workers eval-save-workers eval-keep-samples vq-eval-steps
vq-eval-data-dir vq-eval-batch-size vq-eval-l1 vq-eval-psnr vq-eval-ssim vq-ema-decay vq-eval-fid
eval-at-step-1 data-dir image-size num-classes batch-size num-workers random-hflip vq-model codebook-size
codebook-embed-dim downsample-ratio vq-pretrained-ckpt entropy-loss-ratio entropy-num-groups
commit-loss-beta ar-model cls-token-num dropout-p token-dropout-p drop-path-rate use-checkpoint temperature
vq-align-straight-through enc-type encoder-depth repa-encoder-layer repa-target-spnorm repa-spnorm-alpha
projector-dim proj-coeff vae-align-proj-coeff loss-cfg-path disc-pretrained-ckpt stage0-init-ckpt ar-lr
vq-lr disc-lr warmup-steps adam-beta1 adam-beta2 adam-weight-decay adam-epsilon max-grad-norm
gradient-accumulation-steps max-train-steps checkpointing-steps mixed-precision allow-tf32 compile seed
vq-ckpt vq-use-ema vq-override-from-ar-init ar-init-ckpt use-repa coco-fid-steps coco-fid-dataset-path
coco-fid-num-samples coco-fid-image-size coco-fid-seed coco-fid-inception-batch coco-fid-cfg-scale
clip-model-path clip-batch-size data-type text-encoder text-max-len caption-dropout data-probs text-attn
text-stream-copy-init lr-scheduler lr-warmup-steps lr-min epochs samples-per-epoch
"""


def test_every_flag_of_the_official_training_programs_is_answered_once():
    table = (HERE / "docs" / "from_official.md").read_text().split("## Flags", 1)[1].split("\n## ", 1)[0]
    answered = [flag for row in rows(table) for flag in re.findall(r"`--([\w-]+)`", row.split(" | ")[0])]
    assert sorted(answered) == sorted(FLAGS.split())


def test_settings_named_for_official_flags_are_ones_there_are():
    page = (HERE / "docs" / "from_official.md").read_text()
    recipe = recipe_of("gpic-1b", "joint")
    asked = [
        re.findall(r'[\w.]+=(?:\([^)]*\)|[^ "]+)', words)
        for words in re.findall(r"`[^`]*?--set ([^`]+)`", page)
    ]
    asked = [settings for settings in asked if settings[0] not in ("NAME=VALUE", "teacher_block=N")]
    assert len(asked) > 20
    for settings in asked:
        with_settings(recipe, settings)


@pytest.fixture
def understood(monkeypatch) -> list[tuple[str, list]]:
    """What the program was told, command by command, instead of doing it."""
    told = []
    for name, command in commands.COMMANDS.items():

        def takes(*given, _name=name, **more):
            told.append((_name, [*given, *more.values()]))

        monkeypatch.setitem(commands.COMMANDS, name, functools.wraps(command)(takes))
    monkeypatch.setattr(commands, "explorer", lambda words: told.append(("explorer", words)))
    return told


LEAST = {"README.md": 4, "docs/paper_scale.md": 11, "docs/from_official.md": 6, "docs/training.md": 13}
LEAST |= {"docs/studies.md": 4, "docs/data.md": 4, "docs/checkpoints.md": 9, "docs/inspect.md": 2}
LEAST |= {"docs/explorer.md": 1}


@pytest.mark.parametrize("page", LEAST)
def test_the_commands_of_the_pages_are_ones_that_the_program_takes(page, understood):
    blocks = re.findall(r"^ *```bash\n(.*?)```", (HERE / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    script = STAND_INS + "".join(blocks)
    done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True)
    lines = [command.split("\n") for command in done.stdout.removesuffix("\n\n").split("\n\n")]
    assert len(lines) >= LEAST[page] and "'" not in done.stdout and '"' not in done.stdout
    for words in lines:
        cli.run(words[words.index("gear_studio") + 1 :])
    assert [name for name, _ in understood] == [w[w.index("gear_studio") + 1] for w in lines]
    folders = [getattr(value, "folder", None) for _, values in understood for value in values]
    assert page != "docs/paper_scale.md" or Path("/data/gpic/{00000..00999}.tar") in folders


# What a reader puts in the place of a word in capitals, where the program takes not every word.
PUT_IN = {"study NAME": "study tap", "recipe NAME": "recipe small", "STAGE": "joint", "SOURCE": "shapes"}


def test_commands_inside_of_sentences_are_ones_that_the_program_takes(understood):
    pages = [HERE / "README.md", HERE / "CONTRIBUTING.md", *(HERE / "docs").glob("*.md")]
    found = [
        (path.name, command)
        for path in pages
        for command in re.findall(r"`gear-studio ([a-z]+ [^`]+)`", FENCED.sub("", path.read_text()))
        if not command.endswith((" --help", " ..."))
    ]
    for page, command in found:
        for word, value in PUT_IN.items():
            command = command.replace(word, value)
        try:
            cli.run(shlex.split(command))
        except SystemExit as error:
            pytest.fail(f"{page}: gear-studio {command}: {error}")
    assert len(understood) == len(found) > 40
