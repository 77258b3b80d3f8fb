"""How many pictures of the shapes world one thread draws in a second: `python benchmarks/world.py`."""

import argparse
import time

import stored
import torch

from gear_studio.data import Shapes

BATCH, BATCHES = 64, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help=f"times that {BATCHES} batches are drawn")
    stored.add_store(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    around = stored.circumstances()
    stored.say(around)
    world = Shapes()
    world.read(range(BATCH))  # the first one pays for imports and caches
    seconds = []
    for repeat in range(options.repeats):
        begin = time.perf_counter()
        for batch in range(BATCHES):
            at = (repeat * BATCHES + batch) * BATCH
            world.read(range(at, at + BATCH))
        seconds.append(time.perf_counter() - begin)
    row = stored.rate("drawing shapes, 64 px, one thread", BATCH * BATCHES, seconds)
    stored.store("world", [row], around, options.store)


if __name__ == "__main__":
    main()
