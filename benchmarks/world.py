"""How many pictures of the shapes world one thread draws in a second: `python benchmarks/world.py`."""

import platform
import time

import numpy as np
import torch

from gear_studio.data import Shapes

BATCH, BATCHES, REPEATS = 64, 16, 5


def main() -> None:
    torch.set_num_threads(1)
    world = Shapes()
    world.read(range(BATCH))  # the first one pays for imports and caches
    rates = []
    for repeat in range(REPEATS):
        begin = time.perf_counter()
        for batch in range(BATCHES):
            at = (repeat * BATCHES + batch) * BATCH
            world.read(range(at, at + BATCH))
        rates.append(BATCH * BATCHES / (time.perf_counter() - begin))
    print(f"shapes, 64x64, batches of {BATCH}, one thread: {np.median(rates):,.0f} images/s")
    print(f"(median of {REPEATS}; lowest {min(rates):,.0f}, highest {max(rates):,.0f})")
    print(f"device: {_processor()}")
    print(f"python {platform.python_version()}, numpy {np.__version__}, torch {torch.__version__}")


def _processor() -> str:
    if platform.system() == "Linux":
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
