"""Model cards: the first page of a repository, written from what the small files of a run say.

What a run does not say is not on its card. The licence is for whoever publishes it to say.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

PAPER = "GEAR: Guided End-to-End AutoRegression for Image Synthesis (Lin et al., arXiv 2606.32039)"

_STAGES = {
    "warmup": "An image tokenizer with a codebook, trained on its own: the warm-up.",
    "joint": "An image tokenizer with a codebook, trained on from a warm-up (joint stage, arm `{arm}`).",
    "generator": "An autoregressive image generator, trained on the tokens of a frozen tokenizer that comes "
    "along (arm `{arm}`: how that tokenizer was trained).",
    "imported": "Weights that others have released, in the format of GEAR Studio.",
}
_SOURCES = {
    "shapes": "An embedded world of drawn shapes, without end; `val` has pictures that no training sees.",
    "digits": "The handwritten digits that come with scikit-learn.",
    "folder": "A folder of pictures by class. It is not published here.",
    "shards": "WebDataset shards. They are not published here.",
}
_SETTINGS = (
    "steps",
    "batch_size",
    "image_size",
    "teacher",
    "tau",
    "alignment_weight",
    "start",
    "text_encoder",
)
# What evaluation.json may hold: its name there, in words, and what it is measured of.
_MEASURES = {
    "psnr": ("PSNR, dB", "reconstructions"),
    "ssim": ("SSIM", "reconstructions"),
    "lpips": ("LPIPS", "reconstructions"),
    "rfd": ("FD in the teacher's features", "reconstructions"),
    "rfid": ("FID", "reconstructions"),
    "usage": ("share of the codes that are used", "reconstructions"),
    "perplexity": ("perplexity of the codes", "reconstructions"),
    "fd": ("FD in the teacher's features", "samples"),
    "fd_guided": ("FD in the teacher's features, guided", "samples"),
    "fid": ("FID", "samples"),
    "fid_guided": ("FID, guided", "samples"),
    "is": ("inception score", "samples"),
    "is_guided": ("inception score, guided", "samples"),
    "clipscore": ("CLIPScore", "samples"),
}


def of_run(
    name: str,
    config: Mapping[str, Any],
    record: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    weights: Mapping[str, int],
    license: str | None = None,
) -> str:
    """The card of a run, as Markdown with its facts in YAML before it.

    name: OWNER/NAME. config, record, evaluation: what its files hold, without places of a machine. weights:
    how many each of its parts has. license: as the Hub writes it, such as apache-2.0; None: not said."""
    recipe, stage, source = config["recipe"], config["stage"], config["source"]
    trained = stage != "imported"
    facts: dict[str, Any] = {"stage": stage}
    if trained:
        facts |= {key: config[key] for key in ("arm", "source", "seed", "parent") if config[key] is not None}
        facts |= {key: recipe[key] for key in _SETTINGS if recipe.get(key)}
        facts |= {key: record[key] for key in ("device", "seconds") if record.get(key)}
    facts |= {f"weights of the {part}": f"{count:,}" for part, count in weights.items()}

    if not trained:
        data = f"Of whoever released it: `{record.get('imported_from', 'unknown')}`."
    else:
        data = _SOURCES.get(source, f"Source `{source}`.")
    if pictures := config.get("pictures"):
        data += f" It was called `{pictures['folder']}`; its digest is {pictures['sha256']}."
    command = f": `{record['command']}`" if record.get("command") else ""
    words = "generator" in weights and bool(recipe.get("text_encoder"))
    return _card(
        name,
        [stage],
        {
            "": _STAGES.get(stage, "A training of stage {stage}.").format(**config),
            "How to load it": _how_to_load(name, config, weights, words),
            "Recipe": f"{_table(facts)}\n\nEvery setting is in `config.json`; what happened is in "
            f"`record.json`{command}.",
            "Data": data,
            "Measures": _describe_measures(evaluation),
            "Limits": "\n".join(f"- {limit}" for limit in _limits(config, evaluation)),
        },
        license,
        _results(evaluation, source, words),
        words,
    )


def of_model(
    name: str, kind: str, settings: Mapping[str, Any], weights: int, license: str | None = None
) -> str:
    """The card of one model alone. kind: its class, such as Tokenizer. settings: of its config. weights: how
    many it has."""
    load = f"from gear_studio.models.{kind.lower()} import {kind}\n\n"
    load += f"model = {kind}.from_pretrained({json.dumps(name)})"
    return _card(
        name,
        [kind.lower()],
        {
            "": f"A {kind} of GEAR Studio: {weights:,} weights.",
            "How to load it": f"```python\n{load}\n```",
            "Settings": _table(settings),
            "Limits": "- A model alone does not say how it was trained and what it is worth; a run does.",
        },
        license,
    )


def _card(
    name: str,
    tags: list[str],
    sections: Mapping[str, str],
    license: str | None,
    results: Sequence["EvalResult"] = (),
    words: bool = False,
) -> str:
    from huggingface_hub import ModelCardData  # here: only this needs it

    title = name.rpartition("/")[2]
    facts = ModelCardData(
        license=license,
        library_name="gear-studio",
        pipeline_tag="text-to-image" if words else None,
        tags=[*tags, "image-tokenizer", "autoregressive", "arxiv:2606.32039"],
        model_name=title if results else None,
        eval_results=list(results) or None,
    )
    told = {
        **sections,
        "Licence": f"`{license}`" if license else "Whoever published these weights has not said it yet.",
        "Paper": f"The method is that of *{PAPER}*. Made with GEAR Studio, which is not its authors'.",
    }
    body = "\n\n".join(f"## {head}\n\n{text}" if head else text for head, text in told.items())
    return f"---\n{facts.to_yaml()}\n---\n\n# {title}\n\n{body}\n"


def _table(facts: Mapping[str, Any]) -> str:
    rows = [f"| {key} | {str(value).replace('|', '/')} |" for key, value in facts.items()]
    return "\n".join(["| what | value |", "|---|---|", *rows])


def _how_to_load(name: str, config: Mapping[str, Any], weights: Mapping[str, int], words: bool) -> str:
    lines = [
        "from gear_studio import Run, data",
        "from gear_studio.data.picture_output import write_grid",
        "",
    ]
    lines += [f"run = Run.from_pretrained({json.dumps(name)})"]
    if "generator" in weights:
        asked = ["a red ring"] if words else config["classes"][:2] or [0]
        lines[0] = "from gear_studio import Run"
        lines += [f'write_grid(run.sample({json.dumps(asked)}, seed=0), "samples.png")']
    else:
        lines += [
            'images = data.to_float(data.load("shapes", "val").read(range(8))["image"])  # or yours',
            'write_grid(run.reconstruct(images), "reconstructions.png")',
        ]
    return "```python\n" + "\n".join(lines) + "\n```"


def _measured(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, float, float | None, int]]:
    """(name, value, its standard deviation over seeds or None, seeds) of every measure that there is."""
    for key in _MEASURES:
        value = evaluation.get(key)
        if isinstance(value, Mapping) and value.get("mean") is not None:
            yield key, value["mean"], value.get("std"), len(value.get("values", ())) or 1
        elif isinstance(value, int | float):
            yield key, value, None, 1


def _results(evaluation: Mapping[str, Any], source: str, words: bool) -> list["EvalResult"]:
    """What is measured, as the Hub reads it."""
    from huggingface_hub import EvalResult

    drawing = "text-to-image" if words else "unconditional-image-generation"
    return [
        EvalResult(
            task_type=drawing if _MEASURES[key][1] == "samples" else "image-to-image",
            task_name=_MEASURES[key][1],
            dataset_type=source,
            dataset_name=evaluation.get("reference", f"{source}, held out"),
            metric_type=key,
            metric_name=_MEASURES[key][0],
            metric_value=value,
        )
        for key, value, _, _ in _measured(evaluation)
    ]


def _describe_measures(evaluation: Mapping[str, Any]) -> str:
    rows, seeds = [], 1
    for key, value, spread, count in _measured(evaluation):
        label, of = _MEASURES[key]
        figure = f"{value:.4g}" if spread is None else f"{value:.4g} ± {spread:.2g}"
        rows.append(f"| {label} | {of} | {figure} |")
        seeds = max(seeds, count)
    if not rows:
        return "None was taken."
    said = (
        f"Of {evaluation['samples']:,} held-out pictures"
        if "samples" in evaluation
        else "Of held-out pictures"
    )
    if "generated" in evaluation:
        said += f" and {evaluation['generated']:,} samples for each of {seeds} sampling seeds"
        said += ", ± is the standard deviation over these" if seeds > 1 else ""
        if evaluation.get("cfg_scale", 1) != 1:
            said += f"; guided is at scale {evaluation['cfg_scale']:g}"
    return "\n".join(
        [f"{said}. All of them: `evaluation.json`.", "", "| measure | of | value |", "|---|---|---|", *rows]
    )


def _limits(config: Mapping[str, Any], evaluation: Mapping[str, Any]) -> Iterator[str]:
    if config["stage"] == "imported":
        yield "Converted, not trained, by GEAR Studio: what its authors say of it holds."
    else:
        yield f"One training, of seed {config['seed']}: what another seed would give is not known from it."
        if config["source"] == "shapes":
            yield "It knows drawn shapes and no photographs: what a mechanism does, no quality of pictures."
    if "rfd" in evaluation or "fd" in evaluation:
        said = (
            f"FD is taken in the features of the teacher `{evaluation.get('teacher', 'unknown')}`. It is no "
        )
        yield f"{said}FID and compares only with itself. {evaluation.get('teacher_note', '')}".strip()
    if not evaluation:
        yield "Nothing has been measured of it."
    yield "Nothing filters what it draws, and nobody has studied how biased it is."
