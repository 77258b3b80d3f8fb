"""From Runs to a table."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from gear_studio.analysis.convergence import speed_up, speed_up_over_seeds
from gear_studio.errors import InputError
from gear_studio.files import atomic, write_json
from gear_studio.runs import Run
from gear_studio.studies.catalogue import Study
from gear_studio.studies.chains import FD_SAMPLES
from gear_studio.studies.measures import CURVES, LIKENESS, MEASURES, Measure, final_value
from gear_studio.studies.world import World
from gear_studio.training.recipes import BUDGET_NOTES, EVALUATION, STAGES


def runs_by_arm(runs: dict[tuple[str, int], Run]) -> dict[str, list[Run]]:
    """Each arm's Runs, in the order of their seeds."""
    arms: dict[str, list[Run]] = {}
    for (label, _), run in sorted(runs.items(), key=lambda item: item[0][1]):
        arms.setdefault(label, []).append(run)
    return arms


def table_rows(study: Study, runs: dict[tuple[str, int], Run]) -> list[dict]:
    """One dict an arm and seed: arm, seed, run, the study's measures, and speed-ups where it has controls.
    None: not measured."""
    table = []
    for arm in study.arms:
        for label, seed in runs:
            if label == arm.label:
                run = runs[label, seed]
                row = {"arm": label, "seed": seed, "run": run.name}
                row |= {key: MEASURES[key].read(run) for key in study.measures}
                row |= {key: measure.read(run) for key, measure in LIKENESS.items()}
                row |= speed_ups({control: runs[control, seed] for control in study.controls}, run)
                table.append(row)
    return table


def speed_ups(controls: dict[str, Run], run: Run) -> dict[str, float | None]:
    """Steps each control needs to its own final value over the steps this Run needs to get there, for each
    of `CURVES`; 0 where it never does, None where it was not measured."""
    columns: dict[str, float | None] = {}
    for key in CURVES:
        for name, control in controls.items():
            both = all(final_value(key)(each) is not None for each in (control, run))
            value = speed_up(control.series(key), run.series(key)) if both else None
            columns[f"{key.removeprefix('val_')}_speed_up_over_{name}"] = value
    return columns


def speed_up_table(study: Study, runs: dict[tuple[str, int], Run]) -> list[list[str]]:
    """Header and rows: for each arm its speed-up over each control, with its interval where seeds are
    several."""
    by_arm = runs_by_arm(runs)

    def cell(key: str, control: str, label: str) -> str:
        pair = by_arm[control], by_arm[label]
        if any(final_value(key)(run) is None for side in pair for run in side):
            return "not measured"
        controls, arms = ([run.series(key) for run in side] for side in pair)
        if len(arms) > 1:
            return speed_up_over_seeds(controls, arms).with_paired()
        ratio = speed_up(controls[0], arms[0])
        return f"{ratio:.2f}x" if ratio else "not reached"

    pairs = [(key, control) for key in CURVES for control in study.controls]
    titles = {"val_ntp": "NTP", "val_alignment": "alignment", "val_fd": "FD"}
    header = [study.varies, *(f"{titles[key]}, over {control}" for key, control in pairs)]
    return [header, *([arm.label, *(cell(*pair, arm.label) for pair in pairs)] for arm in study.arms)]


def compare_arms(table: Sequence[dict], arm: str, other: str, key: str) -> tuple[str, str]:
    """Where a measure of one arm lies relative to another's, seed by seed: ("above" or "below", "in every
    seed" or "in 2 of 3 seeds"). The arms of one seed share their warm-up and their pictures.

    table: `table_rows`. Where neither has more: ("equal to", "in every seed") or ("above and below", "in as
    many seeds"). Raises ValueError where a seed has only one of the two."""
    ours, theirs = ({row["seed"]: row[key] for row in table if row["arm"] == each} for each in (arm, other))
    if ours.keys() != theirs.keys() or None in [*ours.values(), *theirs.values()]:
        raise InputError(f"{key} of {arm} is there for seeds {list(ours)}, of {other} for {list(theirs)}")
    above = sum(ours[seed] > theirs[seed] for seed in ours)
    below = sum(ours[seed] < theirs[seed] for seed in ours)
    if above == below:
        return ("above and below", "in as many seeds") if above else ("equal to", "in every seed")
    most = max(above, below)
    often = "in every seed" if most == len(ours) else f"in {most} of {len(ours)} seeds"
    return ("above" if above > below else "below"), often


def tokenizer_changes(runs: Sequence[Run]) -> list[dict]:
    """How much more like the teacher tokenizers are than their controls of the same seed, in CKA of z and of
    c_q, patch by patch.

    runs: generators as `shipped_runs` gives them, whose evaluations measured their tokenizers; a warm-up's
    was measured where some generator was trained on it. One dict a tokenizer and seed: `arm` (its Run's name
    without the seed), `seed`, `z_cka_over_CONTROL`, `c_q_cka_over_CONTROL`. The control `warmup` is the
    tokenizer that this one was trained from, `continued` the arm of the same quantizer. None: the control
    was not measured, or is the tokenizer itself."""
    tokenizers: dict[str, Run] = {}
    measured: dict[str, dict[str, float | None]] = {}
    for run in runs:
        if (tokenizer := run.parent) is not None:
            tokenizers[tokenizer.name] = tokenizer
            measured[tokenizer.name] = {key: LIKENESS[key].read(run) for key in ("z_cka", "c_q_cka")}
    table = []
    for name, tokenizer in tokenizers.items():
        if tokenizer.parent is None:
            continue
        arm, _, seed = name.rpartition("-s")
        quantizer = tokenizer.config["recipe"]["tokenizer"]["quantizer"]
        continued = f"continued-s{seed}" if quantizer == "vq" else f"continued-{quantizer}-s{seed}"
        row: dict[str, str | int | float | None] = {"arm": arm, "seed": int(seed)}
        for control, other in {"warmup": tokenizer.parent.name, "continued": continued}.items():
            of_control = measured.get(other, {}) if other != name else {}
            for key, value in measured[name].items():
                reference = of_control.get(key)
                change = None if value is None or reference is None else value - reference
                row[f"{key}_over_{control}"] = change
        table.append(row)
    return table


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def format_over_seeds(values: list[float | None], to_text: Callable[[float], str]) -> str:
    """The median of a value's seeds, and minimum to maximum where they are several. None: not measured."""
    known = [value for value in values if value is not None]
    if not known:
        return "not measured"
    text = to_text(float(np.median(known)))
    return f"{text} ({to_text(min(known))} to {to_text(max(known))})" if len(known) > 1 else text


def summarize(study: Study, runs: dict[tuple[str, int], Run]) -> str:
    """Markdown: the medians over seeds, the speed-ups, and the paper's own figures."""
    table = table_rows(study, runs)

    def over_arms(measures: dict[str, Measure]) -> str:
        lines = []
        for arm in study.arms:
            of_arm = [row for row in table if row["arm"] == arm.label]
            cells = [
                format_over_seeds([row[key] for row in of_arm], f"{{:.{measure.digits}f}}".format)
                for key, measure in measures.items()
            ]
            lines.append([arm.label, str(len(of_arm)), *cells])
        return markdown_table(
            [study.varies, "seeds", *(measure.label for measure in measures.values())], lines
        )

    seeds = ", ".join(map(str, sorted({seed for _, seed in runs})))
    parts = [f"## {study.name}", study.question]
    parts.append(over_arms({key: MEASURES[key] for key in study.measures}))
    parts.append(
        f"Median over training seeds ({seeds}), in brackets the least and the most. {study.note}".strip()
    )
    parts += ["How like the teacher's the features are, patch by patch:", over_arms(LIKENESS)]
    if study.controls:
        parts.append(
            "Steps a control needs to its own final value, over the steps to get there; of several seeds the "
            "median, in brackets a bootstrap's 95 % interval over seeds, which is rough when they are few; "
            "paired: a seed's control and arm, which share their warm-up and their pictures, drawn together."
        )
        header, *lines = speed_up_table(study, runs)
        parts.append(markdown_table(header, lines))
    if study.paper:
        parts.append(
            markdown_table(
                ["measure, on the paper's own data", "paper"], list(map(list, study.paper.items()))
            )
        )
    return "\n\n".join(parts)


def make_record(study: Study, world: World, seeds: Sequence[int], settings: tuple[str, ...] = ()) -> dict:
    """What a study was made of, for record.json: its world, seeds, the settings on top, and the recipe of
    each stage without them."""
    return {
        "study": study.name,
        "source": world.source,
        "folder": str(Path(world.folder).absolute()) if world.folder else None,
        "recipe_name": world.recipe,
        "budget": world.budget,
        "seeds": list(seeds),
        "set": list(settings),
        "fd_samples": {"table": EVALUATION[world.budget][0], "curves": FD_SAMPLES[world.budget]},
        "recipe": {stage: world.recipe_of(stage).asdict() for stage in STAGES},
    }


def describe_sizes(world: World) -> str:
    """How large what a study trains is, as a sentence to put in front of its numbers."""
    if world.recipe != "small":
        return f"Recipe {world.recipe}."
    return f"Budget {world.budget}: {BUDGET_NOTES[world.budget]}."


def describe_record(record: dict) -> str:
    """What a record says, as a few sentences."""
    steps = ", ".join(f"{stage} {recipe['steps']:,}" for stage, recipe in record["recipe"].items())
    recipe = record["recipe"]["generator"]
    settings = f" Set on top: {', '.join(record['set'])}." if record["set"] else ""
    world = World.from_record(record)
    sizes = f"Budget {world.budget}" if world.recipe == "small" else f"Recipe {world.recipe}"
    source = "" if world.source == "shapes" else f", source {world.source}"
    return (
        f"{sizes}{source}, seeds {', '.join(map(str, record['seeds']))}. Steps: {steps}; "
        f"{recipe['batch_size']} images each, of {recipe['tokenizer']['image_size']} px; "
        f"{recipe['tokenizer']['codes']:,} codes; a generator of {recipe['generator']['blocks']} blocks, "
        f"{recipe['generator']['dim']} wide. FD is of {record['fd_samples']['table']:,} samples, against "
        f"steps of {record['fd_samples']['curves']:,}.{settings}"
    )


def write_study(study: Study, runs: dict[tuple[str, int], Run], folder: Path, record: dict) -> str:
    """Write table.csv, summary.md, record.json and figure.png into `folder`, of a study with controls
    speed-ups.png as well, and return what to print. record: of `make_record`."""
    from gear_studio import plots

    table = table_rows(study, runs)
    title, rest = summarize(study, runs).split("\n\n", 1)
    text = f"{title}\n\n{describe_sizes(World.from_record(record))}\n\n{rest}\n\n{describe_record(record)}"
    with atomic(folder / "table.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)
    with atomic(folder / "summary.md") as temporary:
        temporary.write_text(text + "\n")
    figures: dict[str, Figure] = {}
    measured = {
        key: label
        for key, label in CURVES.items()
        if any(final_value(key)(run) is not None for run in runs.values())
    }
    if study.shown:
        labels = {key: MEASURES[key].label for key in study.shown}
        figures["figure.png"] = plots.by_seed(table, labels, study.varies)
    else:
        figures["figure.png"] = plots.curves(runs_by_arm(runs), measured)
    if study.controls:
        control = study.controls[-1]
        figures["speed-ups.png"] = plots.speed_ups_by_level(runs_by_arm(runs), control, measured)
    for name, figure in figures.items():
        with atomic(folder / name) as temporary:
            figure.savefig(temporary, format="png", dpi=110)
    write_json(folder / "record.json", record)  # last: it says that all is there
    names = ("table.csv", "summary.md", *figures, "record.json")
    return text + "\n\n" + "\n".join(f"wrote {folder / name}" for name in names)
