"""What CKNNA and CKA cost: `python benchmarks/similarity.py [--rows N] [--dim D]`.

Against the same measures written down from their formulas with N x N kernels, HSIC's last term as a product
of two of them, as published code has it ("dense"), and with that term from row and column sums ("dense, by
sums"), which is what one would write next. Then the memory that ours takes beyond its input at 50,000 rows:
the growth of the peak resident size of a process of its own. Rows are random; float32 on one thread of the
CPU. Times are processor seconds of one call, so that other work on the machine shows in them only where it
crowds the caches. `differ` is the difference from the dense value.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import stored
import torch
from torch import Tensor

from gear_studio.analysis.similarity import cka, cknna, interval

K = 10


def rows(count: int, dim: int) -> tuple[Tensor, Tensor]:
    """Two views of the same numbers, (count, dim) each."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(count, dim, generator=source)
    return x, x + 0.5 * torch.randn(count, dim, generator=source)


def dense_hsic(k: Tensor, m: Tensor, by_sums: bool) -> Tensor:
    n = len(k)
    k, m = k.clone().fill_diagonal_(0), m.clone().fill_diagonal_(0)
    cross = k.sum(0) @ m.sum(1) if by_sums else (k @ m).sum()
    return (k * m.T).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * cross / (n - 2)


def dense(x: Tensor, y: Tensor, nearest: int | None, by_sums: bool) -> float:
    """CKNNA of the `nearest` neighbours, or debiased CKA without them."""
    if nearest:
        x, y = (torch.nn.functional.normalize(part, dim=1) for part in (x, y))
    kernels = [part @ part.T for part in (x, y)]
    masks = [torch.ones(())] * 2
    if nearest:
        masks = []
        for kernel in kernels:
            found = kernel.clone().fill_diagonal_(-torch.inf).topk(nearest, dim=1).indices
            masks.append(torch.zeros_like(kernel).scatter_(1, found, 1))
    both = masks[0] * masks[1]
    together = dense_hsic(both * kernels[0], both * kernels[1], by_sums)
    alone = [
        dense_hsic(mask * kernel, mask * kernel, by_sums) for mask, kernel in zip(masks, kernels, strict=True)
    ]
    return (together / (alone[0] * alone[1]).sqrt()).item()


def timed(function: Callable[[], float]) -> tuple[float, float]:
    begin = time.process_time()
    value = function()
    return value, time.process_time() - begin


def peak() -> int:
    """The largest resident size of this process so far, in bytes."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000, help="rows that times are taken of")
    parser.add_argument("--dim", type=int, default=128, help="numbers a row")
    parser.add_argument("--memory-rows", type=int, default=50_000, help="rows that memory is taken of")
    parser.add_argument("--peak", choices=("cknna", "cka"), help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=3, help="times that ours are taken")
    stored.add_store(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    measures = {"cknna": (cknna, K), "cka": (cka, None)}
    for measure, _ in measures.values():
        measure(*rows(100, options.dim))
    if options.peak:  # the process whose memory is taken
        x, y = rows(options.memory_rows, options.dim)
        before = peak()
        _, seconds = timed(lambda: measures[options.peak][0](x, y))
        print(json.dumps({"gigabytes": (peak() - before) / 1e9, "seconds": seconds}))
        return
    around = stored.circumstances()
    stored.say(around)
    print(f"{options.dim} numbers a row", flush=True)
    x, y = rows(options.rows, options.dim)
    table, values = [], {}
    for name, (measure, _) in measures.items():
        taken = [timed(lambda m=measure: m(x, y)) for _ in range(options.repeats)]
        values[name], seconds = taken[0][0], [each[1] for each in taken]
        table.append(
            {"what": name, "rows": options.rows, "dim": options.dim, "seconds": stored.spread(seconds)}
        )
        print(f"{name} of {options.rows:,} rows: {table[-1]['seconds']['median']:.2f} s", flush=True)
    _, seconds = timed(lambda: interval(cknna, x, y))
    what = "cknna with interval (50 halves) and chance (20 permutations)"
    table.append(
        {"what": what, "rows": options.rows, "dim": options.dim, "seconds": stored.spread([seconds])}
    )
    print(f"{what}: {seconds:.2f} s", flush=True)
    for name, row in zip(measures, table, strict=False):
        command = [sys.executable, __file__, "--peak", name, "--dim", str(options.dim)]
        command += ["--memory-rows", str(options.memory_rows)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        row["of many"] = {"rows": options.memory_rows} | json.loads(said)
        print(
            f"{name} of {options.memory_rows:,} rows: {row['of many']['gigabytes']:.2f} GB beyond the input, "
            f"{row['of many']['seconds']:.1f} s",
            flush=True,
        )
    for name, row in zip(measures, table, strict=False):
        for kind, by_sums in (("dense, by sums", True), ("dense", False)):
            other, seconds = timed(lambda n=measures[name][1], s=by_sums: dense(x, y, n, s))
            row[kind] = {"seconds": seconds, "differ": abs(other - values[name])}
            ratio = f"{seconds / row['seconds']['median']:.1f} times ours"
            print(f"{name}, {kind}: {seconds:.2f} s, {ratio}; differ {row[kind]['differ']:.1e}", flush=True)
    stored.store("similarity", table, around, options.store)


if __name__ == "__main__":
    main()
