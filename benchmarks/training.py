"""How many images a second the small recipe trains on: `python benchmarks/training.py [--steps N]`.

One line each for the warm-up step (tokenizer alone), the joint step (the tokenizer guided by the
generator, then the generator) and the generator step (frozen tokenizer), at the recipe's batch size, on
the accelerator if there is one. Pictures are drawn before the clock starts (benchmarks/world.py times
them); weights are random and the teacher is the untrained control, which costs what the shipped one
does. After 3 steps for caches and allocation, the median step counts.

Threads follow OMP_NUM_THREADS. Other work on the machine shows in the spread of fastest and slowest.
"""

import argparse
import time

import stored
import torch
from accelerate import Accelerator

from gear_studio import data
from gear_studio.models.teachers import Teacher
from gear_studio.models.tokenizer import Tokenizer
from gear_studio.training.recipes import small_recipe
from gear_studio.training.stages import Stage

WARM_UP = 3


def step_seconds(
    stage: str, steps: int, accelerator: Accelerator, budget: str = "shipped"
) -> tuple[list[float], int]:
    """Seconds of each of `steps` steps, and the images in one."""
    recipe = small_recipe(stage, budget)
    arm = "warmup" if stage == "warmup" else "gear"
    tokenizer = Tokenizer(recipe.tokenizer)
    training = Stage(stage, arm, recipe, Teacher.random(grid=tokenizer.grid), accelerator, tokenizer)
    batch = data.load("shapes", image_size=recipe.tokenizer.image_size).read(range(recipe.batch_size))
    images = data.to_float(batch["image"].to(accelerator.device))
    labels = batch["label"].to(accelerator.device)
    taken = []
    for number in range(1, WARM_UP + steps + 1):
        begin = time.perf_counter()
        training.step(number, images, labels)
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begin)
    return taken[WARM_UP:], recipe.batch_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="steps behind each figure")
    stored.add_store(parser)
    options = parser.parse_args()
    accelerator = Accelerator(mixed_precision="bf16" if torch.cuda.is_available() else "no")
    around = stored.circumstances(accelerator.device)
    stored.say(around)
    print(f"precision: {accelerator.mixed_precision}")
    rows = []
    for stage in ("warmup", "joint", "generator"):
        seconds, batch = step_seconds(stage, options.steps, accelerator)
        rows.append(stored.rate(f"{stage} step, batch {batch}", batch, seconds))
    stored.store("training", rows, around, options.store)


if __name__ == "__main__":
    main()
