"""How many pictures a second the small generator samples: `python benchmarks/sampling.py [--repeats N]`.

A batch of 64, with guidance 1.5 (twice the work of 1.0, shown beside it), 64 tokens each, decoded to
pixels at the end, on the accelerator if there is one. Weights are random: they cost what trained ones
do. The first batch is not counted; the median of the others is shown. Threads follow OMP_NUM_THREADS.
"""

import argparse
import time

import stored
import torch
from accelerate import Accelerator

from gear_studio import sampling
from gear_studio.models.generator import Generator, GeneratorConfig
from gear_studio.models.tokenizer import Tokenizer, TokenizerConfig

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
    stored.add_store(parser)
    options = parser.parse_args()
    device = Accelerator().device
    around = stored.circumstances(device)
    stored.say(around)
    rows = []
    for name, cfg_scale in (("with guidance 1.5", 1.5), ("without guidance", 1.0)):
        seconds = batch_seconds(cfg_scale, options.repeats, device)
        rows.append(stored.rate(f"sampling {name}, batch {BATCH}", BATCH, seconds))
    stored.store("sampling", rows, around, options.store)


if __name__ == "__main__":
    main()
