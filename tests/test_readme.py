"""The README's Python runs as it stands there, and its tables of results are what the commands print. The
commands of docs/paper_scale.md and docs/from_official.md reach the program as they are meant."""

import functools
import re
import subprocess
from pathlib import Path

import pytest

from gear_studio import cli, commands, studies
from gear_studio.places import ZOO
from gear_studio.studies import report
from gear_studio.training.recipes import recipe_of, with_settings

HERE = Path(__file__).parents[1]
README = (HERE / "README.md").read_text()
# Stand-ins for the programs: one word a line, and an empty line behind each command.
STAND_INS = """
accelerate() { printf '%s\\n' "$@" ""; }
gear-studio() { printf '%s\\n' -m gear_studio "$@" ""; }
RANK=1 FIRST_NODE=node
"""


def test_the_examples_run_one_after_the_other(capsys):
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL):
        exec(compile(block, "README.md", "exec"), names)
    assert names["hard"].shape == names["soft"].shape == (16, 64, 128)
    assert names["pictures"].shape == (4, 3, 64, 64)
    estimate, protocol = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"0\.\d+ \[-?0\.\d+, 0\.\d+\], chance -?0\.\d+", estimate)
    assert "16 images (shapes, val)" in protocol and "256 drawn" in protocol


def rows(markdown: str) -> list[str]:
    """The rows of all tables, headers among them."""
    return [line for line in markdown.splitlines() if line.startswith("| ")]


def section(title: str) -> str:
    """What stands below a heading of the README, up to the next of its level or above."""
    level, below = re.search(rf"^(#+) {re.escape(title)}\n([\s\S]*)", README, flags=re.MULTILINE).group(1, 2)
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


@pytest.mark.parametrize("page", ["paper_scale.md", "from_official.md"])
def test_the_commands_of_the_pages_on_paper_scale_are_ones_that_the_program_takes(page, monkeypatch):
    text = (HERE / "docs" / page).read_text()
    script = STAND_INS + "".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL))
    done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True)
    lines = [command.split("\n") for command in done.stdout.removesuffix("\n\n").split("\n\n")]
    assert (
        len(lines) > (10 if page == "paper_scale.md" else 5)
        and "'" not in done.stdout
        and '"' not in done.stdout
    )
    understood = []
    for name, command in commands.COMMANDS.items():

        def takes(*given, _name=name, **more):
            understood.append((_name, [*given, *more.values()]))

        monkeypatch.setitem(commands.COMMANDS, name, functools.wraps(command)(takes))
    for words in lines:
        cli.run(words[words.index("gear_studio") + 1 :])
    assert [name for name, _ in understood] == [w[w.index("gear_studio") + 1] for w in lines]
    folders = [getattr(value, "folder", None) for _, values in understood for value in values]
    assert page == "from_official.md" or Path("/data/gpic/{00000..00999}.tar") in folders
