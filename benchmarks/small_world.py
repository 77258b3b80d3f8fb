"""How much CPU time a training step of the budget `long` takes, with kept pictures and without:
`python benchmarks/small_world.py [--steps N] [--rounds N]`.

Each line compares a step that draws its pictures and asks every frozen network (kept_pictures=0) with one
that reads from disk what these have said (gear_studio/data/kept_pictures.py). Both train the same models at
the recipe's batch size, in turns; the median of each turn's steps counts, and the ratio's median and range
are over pairs of turns. Validation is of 64 pictures. Times are of the process (time.process_time) on one
thread, so that other work on the machine shows less; weights are random but for the teachers'.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace

import stored
import torch
from accelerate import Accelerator

from gear_studio import data
from gear_studio.data.kept_pictures import KeptPictures
from gear_studio.models.teachers import Teacher
from gear_studio.models.tokenizer import Tokenizer
from gear_studio.training.frozen_networks import features_in, keep_pictures
from gear_studio.training.recipes import small_recipe
from gear_studio.training.stages import Stage

Step = Callable[[int], object]
PIXELS = small_recipe("joint", "long").tokenizer.image_size


def new_stage(stage: str, teacher: str, kept: int) -> Stage:
    torch.manual_seed(0)
    recipe = replace(small_recipe(stage, "long"), teacher=teacher, kept_pictures=kept)
    tokenizer = Tokenizer(recipe.tokenizer)
    generator = replace(recipe.generator, codes=recipe.tokenizer.codes, grid=tokenizer.grid)
    recipe = replace(recipe, generator=generator)
    arm = "baseline" if stage == "generator" else "gear"
    network = Teacher.from_pretrained(teacher, tokenizer.grid)
    return Stage(stage, arm, recipe, network, Accelerator(cpu=True), tokenizer)


def step_of(stage: Stage, source: data.Source) -> Step:
    """A training step as `StageTrainee` takes it, the reading of its batch included."""
    size = stage.recipe.batch_size

    def step(number: int) -> None:
        batch = source.read([(number * size + i) % len(source) for i in range(size)])
        images = data.to_float(batch["image"]) if "image" in batch else None
        stage.step(number, images, batch["label"], batch.get("tokens"), features_in(batch))

    return step


def validation_of(stage: Stage, known: bool) -> Step:
    batch = data.load("shapes", "val", PIXELS).read(range(64))
    images, labels = data.to_float(batch["image"]), batch["label"]
    said = stage.ask_frozen(images) if known else None
    return lambda number: stage.validate(images, labels, said)


def median_seconds(step: Step, steps: int) -> float:
    taken = []
    for number in range(1, steps + 1):
        begin = time.process_time()
        step(number)
        taken.append(time.process_time() - begin)
    return statistics.median(taken)


def compare(name: str, today: Step, kept: Step, steps: int, rounds: int) -> stored.Row:
    for step in (today, kept):  # caches, allocation
        step(1)
    pairs = [(median_seconds(today, steps), median_seconds(kept, steps)) for _ in range(rounds)]
    asking, reading = zip(*pairs, strict=True)
    row = {"what": name, "asking": stored.spread(asking), "kept": stored.spread(reading)}
    row["times faster"] = faster = stored.spread([a / b for a, b in pairs])
    before, after = (1000 * row[way]["median"] for way in ("asking", "kept"))
    print(
        f"{name}: {before:.0f} ms asking each time, {after:.0f} kept; {faster['median']:.2f} times faster "
        f"({faster['least']:.2f} to {faster['most']:.2f})",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5, help="steps of a turn")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of turns")
    parser.add_argument("--pictures", type=int, default=160, help="pictures kept")
    stored.add_store(parser)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # as `loop.train` does
    around, rows = stored.circumstances(), []
    stored.say(around)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        for stage in ("generator", "joint"):
            for teacher in ("tiny", "efficientnet-lite0"):
                source = data.load("shapes", image_size=PIXELS)
                models = new_stage(stage, teacher, asked.pictures)
                kept: KeptPictures = keep_pictures(source, False, models, progress=False)
                today = step_of(new_stage(stage, teacher, 0), source)
                turns = today, step_of(models, kept), asked.steps, asked.rounds
                rows.append(compare(f"{stage}, {teacher}", *turns))
        models = new_stage("generator", "efficientnet-lite0", 1)
        both = validation_of(models, False), validation_of(models, True)
        rows.append(compare("generator, validation", *both, 1, asked.rounds))
    stored.store("small_world", rows, around, asked.store)


if __name__ == "__main__":
    main()
