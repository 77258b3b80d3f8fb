"""How many 256 px training views a second the folder and the shards give: `python benchmarks/data.py`.

Photos of ImageNet's size (500 x 375, JPEG, some 110 KB) are made in a temporary folder, once as files and
once as shards, and read through the training's stream by 0, 1, 2, 4, ... workers, up to the number of cores.
Files just written lie in the system's cache: this times decoding, resizing and handing over, not the disk.
The batches that workers prepare before the first arrives are not counted.
"""

import argparse
import io
import os
import platform
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image

from gear_studio import data
from gear_studio.data.shards import RUN

SIZE, BATCH, PER_SHARD = 256, 32, 4 * RUN


def photo(rng: np.random.Generator) -> bytes:
    """Coarse tiles under fine noise: as hard to decode as a photo that is stored in as many bytes."""
    tiles = np.kron(rng.integers(0, 255, (15, 20, 3)), np.ones((25, 25, 1)))
    picture = (tiles + rng.normal(0, 22, tiles.shape)).clip(0, 255).astype(np.uint8)
    stored = io.BytesIO()
    Image.fromarray(picture).save(stored, "JPEG", quality=90)
    return stored.getvalue()


def fill(folder: Path, pictures: int) -> float:
    """The same pictures in folder/files and folder/shards; the mean bytes of one."""
    rng = np.random.default_rng(0)
    photos = [photo(rng) for _ in range(32)]
    for number in range(pictures):
        path = folder / "files" / f"{number % 10}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photos[number % len(photos)])
    (folder / "shards").mkdir()
    for begin in range(0, pictures, PER_SHARD):
        with tarfile.open(folder / "shards" / f"{begin // PER_SHARD:06}.tar", "w") as tar:
            for number in range(begin, min(begin + PER_SHARD, pictures)):
                for kind, content in (("jpg", photos[number % len(photos)]), ("cls", b"%d" % (number % 10))):
                    member = tarfile.TarInfo(f"{number:06}.{kind}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return float(np.mean([len(one) for one in photos]))


def rate(source: data.Source, workers: int, batches: int) -> float:
    """Images a second, after the batches that lay ready when the first one came."""
    early = 2 * workers + 1
    stream = data.stream(source, BATCH, 0, steps=early + batches, workers=workers)
    for _ in range(early):
        next(stream)
    begin = time.perf_counter()
    for _ in stream:
        pass
    return BATCH * batches / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=2048, help="how many to make")
    parser.add_argument("--batches", type=int, default=16, help="batches behind each figure")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    print(
        f"{platform.processor() or platform.machine()}, {cores} cores; python {platform.python_version()}, ",
        end="",
    )
    print(f"torch {torch.__version__}, pillow {PIL.__version__}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # the index goes with them
        size = fill(folder, options.pictures)
        print(f"{options.pictures} pictures of 500 x 375, {size / 1e3:.0f} KB each; batches of {BATCH}")
        began = time.perf_counter()
        shards = data.load("shards", image_size=SIZE, folder=folder / "shards")
        built = time.perf_counter() - began
        print(f"index of the shards: {built * 1e6 / options.pictures:.0f} us a picture, of all cores")
        sources = {"folder": data.load("folder", image_size=SIZE, folder=folder / "files"), "shards": shards}
        for workers in [0, *(2**i for i in range(cores.bit_length()) if 2**i <= cores)]:
            rates = {name: rate(source, workers, options.batches) for name, source in sources.items()}
            print(f"{workers:3} workers: " + ", ".join(f"{n} {r:7,.0f} images/s" for n, r in rates.items()))


if __name__ == "__main__":
    main()
