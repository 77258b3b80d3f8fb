"""The tables of the shipped Runs, as docs/results.md shows them: every number there is printed here."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from gear_studio import plots, sampling
from gear_studio.analysis.convergence import speed_up
from gear_studio.analysis.fidelity import AGREEMENT_SAMPLES
from gear_studio.devices import choose_device
from gear_studio.errors import MissingError
from gear_studio.files import read_json
from gear_studio.models.judges import ATTRIBUTES
from gear_studio.places import ZOO
from gear_studio.runs import Run
from gear_studio.studies.reproduce import GENERATORS, TOKENIZERS
from gear_studio.studies.tables import markdown_table

TOKENIZER_FIGURES = (
    *("samples", "psnr", "rfd", "real_fd", "usage", "perplexity"),
    *("entropy_tau", "effective_size_tau", "mass_1_tau", "judge_accuracy"),
)
GENERATOR_FIGURES = ("fd", "fd_guided", "rfd", "class_agreement")


def format_spread(value: dict, digits: int = 2, scale: float = 1.0) -> str:
    """mean ± standard deviation over sampling seeds."""
    text = f"{value['mean'] * scale:.{digits}f}"
    return text if value["std"] is None else f"{text} ± {value['std'] * scale:.{digits}f}"


def tables(folder: Path) -> str:
    """Markdown: the teacher's probes, the tokenizers, the generators, and the speed-ups.

    Raises FileNotFoundError where the folder lacks a Run of `reproduce`, or one is not measured, or not as
    `reproduce` measures it."""
    needed = (*TOKENIZERS, *GENERATORS)
    if lacking := [name for name in needed if not (folder / name / "evaluation.json").is_file()]:
        raise MissingError(
            f"{folder} holds no measured {', '.join(lacking)}: a report is of a folder that gear-studio "
            f"reproduce filled (--out {folder}); single runs are measured with gear-studio evaluate"
        )
    runs = {name: Run(folder / name) for name in needed}
    for name, run in runs.items():
        figures = TOKENIZER_FIGURES if name in TOKENIZERS else GENERATOR_FIGURES
        if lacking := [figure for figure in figures if run.evaluation.get(figure) is None]:
            raise MissingError(
                f"{run.folder / 'evaluation.json'} has no {', '.join(lacking)}, which the report shows; "
                f"measure it again: gear-studio evaluate {run.folder}"
            )
    parts = ["### Teacher and judge", teacher_table(folder), "### Tokenizers", tokenizer_table(runs)]
    parts += ["### Generators, each from scratch on the frozen tokenizer", generator_table(runs)]
    parts.append(agreement_table(runs))
    parts += ["### Steps to the control's final value", speed_table(runs)]
    seconds = sum(run.record["seconds"] for run in runs.values())
    devices = ", ".join(sorted({run.record["device"] for run in runs.values()}))
    parts.append(f"Training time of these runs, added up: {seconds / 60:.0f} min on {devices}.")
    return "\n\n".join(parts)


def teacher_table(folder: Path) -> str:
    """The teacher and judges that were retrained in `folder`, else the shipped ones."""
    retrained = (folder / "teacher" / "evaluation.json").is_file()

    def measured(model: str) -> dict:
        return read_json(
            (folder if retrained else ZOO) / model / "evaluation.json", f"the evaluation of {model}"
        )

    teacher, judge, attributes = map(measured, ("teacher", "judge", "attribute-judge"))
    tasks = ("foreground", "texture", "shape")
    rows = [
        [
            label,
            *(f"{100 * teacher[key][t]['mean']:.1f} ± {100 * teacher[key][t]['spread']:.1f}" for t in tasks),
        ]
        for key, label in (("teacher", "tiny teacher"), ("random", "the same ViT, random weights"))
    ]
    probes = markdown_table(["linear probe on held-out patches (%)", *tasks], rows)
    each = ", ".join(f"{name} {100 * attributes[name]:.1f} %" for name in (*ATTRIBUTES, "all"))
    accuracy = f"The judge names the class of {100 * judge['accuracy']:.2f} % of held-out images."
    text = f"{probes}\n\n{accuracy} The judge of attributes, for captions, is right in: {each}."
    if retrained and folder != ZOO:
        text += " The runs below are aligned with, and measured by, the teacher and judges that ship."
    return text


def tokenizer_table(runs: dict[str, Run]) -> str:
    rows = []
    for name in TOKENIZERS:
        e = runs[name].evaluation
        rows.append(
            [
                f"`{name}`",
                f"{e['psnr']:.2f}",
                f"{e['rfd']:.2f}",
                f"{100 * e['usage']:.1f}",
                f"{e['perplexity']:.0f}",
                f"{e['entropy_tau']:.3f}",
                f"{e['effective_size_tau']:.1f}",
                f"{e['mass_1_tau']:.3f}",
                f"{100 * e['judge_accuracy']['reconstructed']:.1f}",
            ]
        )
    header = [
        "tokenizer",
        "PSNR (dB)",
        "rFD",
        "codes used (%)",
        "perplexity",
        "entropy of softmax(A/tau) (nats)",
    ]
    header += ["effective size (codes)", "top-1 mass", "judge on reconstructions (%)"]
    e = runs["gear"].evaluation
    note = (
        f"On {e['samples']:,} held-out images, in the features of the tiny teacher. As many other real "
        f"images are at FD {e['real_fd']:.2f}; of the images themselves the judge names "
        f"{100 * e['judge_accuracy']['real']:.2f} % right."
    )
    return f"{markdown_table(header, rows)}\n\n{note}"


def generator_table(runs: dict[str, Run]) -> str:
    rows = []
    for name in GENERATORS:
        run = runs[name]
        e = run.evaluation
        rows.append(
            [
                f"`{name}`",
                f"{run.series('val_ntp')[1][-1]:.3f}",
                f"{run.series('val_alignment')[1][-1]:.3f}",
                format_spread(e["fd"]),
                format_spread(e["fd_guided"]),
                f"{e['rfd']:.2f}",
            ]
        )
    header = ["generator", "NTP (nats/token)", "alignment (-cos)", "FD", "FD, guidance 1.5"]
    return markdown_table([*header, "tokenizer's rFD"], rows)


def agreement_table(runs: dict[str, Run]) -> str:
    agreement = {name: runs[name].evaluation["class_agreement"] for name in GENERATORS}
    scales = list(next(iter(agreement.values())))
    rows = [
        [f"`{name}`", *(format_spread(agreement[name][s], 1, 100) for s in scales)] for name in GENERATORS
    ]
    note = f"{AGREEMENT_SAMPLES} samples a seed."
    seeds = len(agreement["generator-gear"][scales[0]]["values"])
    if seeds > 1:
        note = f"± is the standard deviation over {seeds} sampling seeds, here of {note}"
    header = ["samples that show the asked class (%)", *(f"guidance {scale}" for scale in scales)]
    return f"{markdown_table(header, rows)}\n\n{note}"


def speed_table(runs: dict[str, Run]) -> str:
    rows = []
    for key, label in (("val_ntp", "NTP"), ("val_alignment", "alignment")):
        curves = {name: runs[name].series(key) for name in GENERATORS}
        gear = curves["generator-gear"]
        ratios = [
            speed_up(curves[control], gear) for control in ("generator-baseline", "generator-continued")
        ]
        rows.append(
            [label, *("not reached" if not np.isfinite(r) or r == 0 else f"{r:.2f}x" for r in ratios)]
        )
    return markdown_table(["measure", "gear against baseline", "gear against continued"], rows)


def figures(folder: Path, out: Path, device: str | None = None) -> list[Path]:
    """Write the figures of docs/results.md into `out` as PNGs: convergence curves, samples of every arm.
    device: where samples are drawn, as of `choose_device`."""
    there = choose_device(device)
    runs = {name: Run.from_pretrained(folder / name) for name in GENERATORS}
    labels = {name.removeprefix("generator-"): [run] for name, run in runs.items()}
    drawings = {
        "convergence-ntp": plots.convergence(labels, "val_ntp", "validation next-token loss (nats a token)"),
        "convergence-alignment": plots.convergence(
            labels, "val_alignment", "validation alignment loss (-cos)"
        ),
        "samples": samples_figure(runs, there),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, figure in drawings.items():
        figure.savefig(out / f"{name}.png", dpi=110)
    return [out / f"{name}.png" for name in drawings]


@torch.no_grad()
def samples_figure(runs: dict[str, Run], device: torch.device, columns: int = 12, seed: int = 0) -> Figure:
    """One row of guided samples a generator: the same classes, the same random numbers."""
    condition = torch.arange(columns) * 2 + torch.arange(columns) // 2 % 2
    rows = []
    for run in runs.values():
        indices = sampling.sample(run.generator.to(device), condition, seed=seed)
        rows.append(run.tokenizer.to(device).decode(indices))
    names = next(iter(runs.values())).config["classes"]
    titles = [names[i].replace(" ", "\n") for i in condition.tolist()]
    arms = [run.config["arm"] for run in runs.values()]
    return plots.sample_grid(torch.cat(rows), columns, titles, arms)
