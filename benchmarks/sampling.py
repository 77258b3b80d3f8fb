"""How many pictures a second the small generator samples: `python benchmarks/sampling.py [--repeats N]`.

A batch of 64, with guidance 1.5 (twice the work of 1.0, shown beside it), 64 tokens each, decoded to
pixels at the end, on the accelerator if there is one. Weights are random: they cost what trained ones
do. The first batch is not counted; the median of the others is shown. Threads follow OMP_NUM_THREADS.
"""

import argparse
import platform
import time

import numpy as np
import torch
from accelerate import Accelerator

from gear_studio import sampling
from gear_studio.models.generator import Generator, GeneratorConfig
from gear_studio.models.tokenizer import Tokenizer, TokenizerConfig
from gear_studio.training.run_folder import device_name

BATCH = 64


@torch.no_grad()
def batch_seconds(cfg_scale: float, repeats: int, device: torch.device) -> list[float]:
    """Seconds of each of `repeats` batches, from labels to pixels."""
    generator = Generator(GeneratorConfig()).to(device).eval()
    tokenizer = Tokenizer(TokenizerConfig()).to(device).eval()
    labels = torch.arange(BATCH) % generator.config.classes
    taken = []
    for seed in range(repeats + 1):
        begin = time.perf_counter()
        tokenizer.decode(sampling.sample(generator, labels, cfg_scale=cfg_scale, seed=seed)).cpu()
        taken.append(time.perf_counter() - begin)
    return taken[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="batches behind each figure")
    repeats = parser.parse_args().repeats
    device = Accelerator().device
    print(f"device: {device_name(device)}; float32")
    print(f"python {platform.python_version()}, torch {torch.__version__}")
    for name, cfg_scale in (("with guidance 1.5", 1.5), ("without guidance", 1.0)):
        seconds = batch_seconds(cfg_scale, repeats, device)
        print(
            f"sampling {name}, batch {BATCH}: {BATCH / np.median(seconds):8,.1f} images/s   "
            f"({np.median(seconds):.2f} s a batch; fastest {min(seconds):.2f}, slowest {max(seconds):.2f})"
        )


if __name__ == "__main__":
    main()
