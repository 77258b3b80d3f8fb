"""Everything that a GPU has to show, in one command: `python benchmarks/gpu.py --minutes 8`.

First whether results on CUDA are right, then how fast decoding, the joint step at the paper's size,
similarity and small-world training are. It needs the package and a GPU, and no download: weights are random,
which cost what trained ones do. Every part is written to benchmarks/results/DEVICE.json as soon as it is
done, so a run that is cut keeps what it has, and started again it goes on with what is missing. No part
begins after `--minutes`.

`--print` prints the section "On a GPU" of docs/performance.md from the results that lie there. `--smoke` runs
all of it with tiny sizes, on a CPU.

Times are medians of rounds in which the ways that are compared take turns.
"""

import argparse
import copy
import json
import platform
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import paper_scale
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from stored import RESULTS, circumstances
from torch import Tensor
from training import step_seconds

from gear_studio.analysis.similarity import cknna
from gear_studio.devices import choose_device
from gear_studio.files import write_json
from gear_studio.models.generator import Generator, GeneratorConfig, paper_config, rotate
from gear_studio.models.teachers import Teacher
from gear_studio.models.tokenizer import Tokenizer
from gear_studio.sampling import Decoder, SamplingSettings, draw_uniforms
from gear_studio.training.execution import Execution
from gear_studio.training.recipes import ARMS, small_recipe
from gear_studio.training.run_folder import device_name
from gear_studio.training.stages import Stage

Row = dict[str, float | str | bool]


@dataclass(frozen=True)
class Sizes:
    """How large the parts are."""

    generators: tuple[str, ...] = ("B", "L", "XL")
    batches: tuple[int, ...] = (1, 64)
    rounds: int = 3
    stage_batch: int = 8
    joint_batch: int = 32
    joint_steps: int = 10
    rows: int = 50_000
    dim: int = 768
    training_steps: int = 50
    bandwidth_bytes: int = 2**32


SMOKE = Sizes(("tiny",), (1, 2), 1, 2, 2, 1, 200, 8, 1, 2**20)
TINY = GeneratorConfig(classes=10, codes=64, grid=4, dim=32, blocks=2, heads=2, tap=1)


class Bench:
    def __init__(self, device: torch.device, sizes: Sizes):
        self.device, self.sizes, self.smoke = device, sizes, sizes is SMOKE

    def accelerator(self, precision: str) -> Accelerator:
        AcceleratorState._reset_state(reset_partial_state=True)  # its precision is one of the process
        return Accelerator(mixed_precision=precision, cpu=self.device.type == "cpu")

    def parts(self) -> dict[str, Callable[[], Row]]:
        """What is done, by name, in this order."""
        sizes, found = self.sizes, {}
        for stage, arms in ARMS.items():
            for arm in arms if stage == "joint" else arms[:1]:  # the others' arms take the same step
                found[f"correct: {stage} {arm}, bf16 and float32"] = partial(self.compare_stage, stage, arm)
        for kind, execution in (
            ("recompute", Execution(recompute=True)),
            *(() if self.smoke else (("compile", Execution(compile=True)),)),
        ):
            found[f"correct: joint gear, {kind}"] = partial(self.compare_execution, execution)
        found["correct: joint gear, resumed"] = self.compare_resumed
        for name in sizes.generators:
            found[f"correct: decoding {name}"] = partial(self.compare_decoding, name)
        found["limit: memory bandwidth"] = self.measure_bandwidth
        for name in sizes.generators:
            for batch in sizes.batches:
                found[f"decoding: {name}, batch {batch}"] = partial(self.time_decoding, name, batch)
        for way in ("plain", "studio", "studio, --recompute", "studio, --compile"):
            if self.device.type == "cuda" or "compile" not in way:
                found[f"joint step: {way}"] = partial(self.time_joint_step, way)
        found[f"similarity: CKNNA, N = {sizes.rows:,}"] = self.time_similarity
        for stage in ("warmup", "joint", "generator"):
            found[f"training: {stage}"] = partial(self.time_training, stage)
        return found

    # Right?

    def stage(self, name: str, arm: str, precision: str, execution: Execution = Execution()) -> Stage:  # noqa: B008
        recipe = replace(small_recipe(name, "quick"), batch_size=self.sizes.stage_batch, perceptual="teacher")
        generator = replace(recipe.generator, codes=recipe.tokenizer.codes)
        recipe, accelerator = replace(recipe, generator=generator), self.accelerator(precision)
        torch.manual_seed(0)
        tokenizer = Tokenizer(recipe.tokenizer)
        teacher = Teacher.random(grid=tokenizer.grid)
        return Stage(name, arm, recipe, teacher, accelerator, tokenizer, execution=execution)

    def losses(self, stage: Stage, steps: int = 1, begin: int = 1) -> dict[str, float]:
        """Losses of the last of the steps `begin`..`steps` on the same pictures."""
        size, batch = stage.recipe.tokenizer.image_size, self.sizes.stage_batch
        images = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
        for number in range(begin, steps + 1):
            torch.manual_seed(number)
            losses = stage.step(number, images.to(self.device), torch.arange(batch, device=self.device))
        return {name: float(value) for name, value in losses.items()}

    def compare_stage(self, stage: str, arm: str) -> Row:
        exact, rounded = (self.losses(self.stage(stage, arm, precision)) for precision in ("no", "bf16"))
        return differ(exact, rounded, 0.05)

    def compare_execution(self, execution: Execution) -> Row:
        plain, other = (self.losses(self.stage("joint", "gear", "no", e)) for e in (Execution(), execution))
        dice = {"ntp", "alignment_hard", "generator", "grad_norm_generator"} if execution.compile else set()
        return differ(plain, {k: v for k, v in other.items() if k not in dice}, 1e-3)

    def compare_resumed(self) -> Row:
        """Three steps, and two, a checkpoint and one."""
        whole, first = self.stage("joint", "gear", "no"), self.stage("joint", "gear", "no")
        expected = self.losses(whole, 3)
        self.losses(first, 2)
        state, second = copy.deepcopy(first.state_dict()), self.stage("joint", "gear", "no")
        second.load_state_dict(state)
        return differ(expected, self.losses(second, 3, begin=3), 1e-3)

    def generator(self, name: str) -> Generator:
        torch.manual_seed(0)
        made = Generator(TINY if name == "tiny" else paper_config(name))
        torch.nn.init.normal_(made.head.weight, std=0.02)
        return made.to(self.device).eval()

    def decoded(self, gen: Generator, dtype: torch.dtype, captured: bool) -> Decoder:
        """The second batch of a decoder: replayed, where its steps are captured."""
        batch = 4
        decoder = Decoder(gen, batch, SamplingSettings(), dtype, captured)
        for _ in range(2):
            decoder.start(gen, torch.arange(batch), draw_uniforms(0, batch, gen.length))
            for _ in range(gen.length):
                decoder.step()
        return decoder

    def compare_decoding(self, name: str) -> Row:
        gen, row = self.generator(name), Row(right=True)
        first = {}
        for kind, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
            eager, captured = (self.decoded(gen, dtype, way) for way in (False, True))
            row[f"equal tokens, captured and eager, {kind}"] = equal = torch.equal(
                eager.indices, captured.indices
            )
            row["right"] = bool(row["right"] and equal)
            first[kind] = eager
        off = first["float32"].entropy[:, 0] - first["bf16"].entropy[:, 0]
        row["entropy of the first token, bf16 and float32 differ by"] = float(off.abs().max())
        row["right"] = bool(row["right"] and off.abs().max() < 0.05)
        return row

    # How fast?

    def timed(self, function: Callable[[], object]) -> float:
        """Seconds until the device has done it."""
        self.wait()
        begin = time.perf_counter()
        function()
        self.wait()
        return time.perf_counter() - begin

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak(self, function: Callable[[], object]) -> float:
        """The most memory allocated while it runs, in GiB; 0 on a CPU."""
        if self.device.type != "cuda":
            function()
            return 0.0
        torch.cuda.reset_peak_memory_stats()
        function()
        return torch.cuda.max_memory_allocated() / 2**30

    def measure_bandwidth(self) -> Row:
        """Bytes a second that the device reads and writes, copying."""
        source = torch.zeros(self.sizes.bandwidth_bytes, dtype=torch.uint8, device=self.device)
        target = torch.zeros_like(source)
        seconds = [self.timed(lambda: target.copy_(source)) for _ in range(6)][1:]
        return {"GB/s": 2 * len(source) / statistics.median(seconds) / 1e9}

    def time_decoding(self, name: str, batch: int) -> Row:
        gen = self.generator(name)
        labels = torch.arange(batch, device=self.device) % gen.config.classes
        decoder = Decoder(gen, batch, SamplingSettings())
        plain = Plain(gen, batch)

        def ours() -> None:
            decoder.start(gen, labels, draw_uniforms(0, batch, gen.length))
            for _ in range(gen.length):
                decoder.step()

        ways = {"plain": lambda: plain.sample(labels, 1.5), "ours": ours}
        memory = {way: self.peak(function) for way, function in ways.items()}  # and warm up
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(self.sizes.rounds):
            for way, function in ways.items():
                taken[way].append(self.timed(function))
        median = {way: statistics.median(seconds) for way, seconds in taken.items()}
        weights = sum(p.numel() for p in (*gen.blocks.parameters(), *gen.head.parameters()))
        width = 2 if self.device.type == "cuda" else 4
        read = weights * width * gen.length
        return {
            "plain, s": median["plain"],
            "ours, s": median["ours"],
            "spread": max((max(s) - min(s)) / statistics.median(s) for s in taken.values()),
            "speed": median["plain"] / median["ours"],
            "images/s": batch / median["ours"],
            "weights read, GB/s": read / median["ours"] / 1e9,
            "plain, GiB": memory["plain"],
            "ours, GiB": memory["ours"],
        }

    def time_joint_step(self, way: str) -> Row:
        sizes, accelerator = self.sizes, self.accelerator("bf16" if self.device.type == "cuda" else "no")
        recipe, teacher = (paper_scale.toy if self.smoke else paper_scale.paper)(sizes.joint_batch)
        build = paper_scale.ways(recipe, teacher, accelerator, sizes.joint_steps)[way]
        seconds, memory, _ = paper_scale.measure(build, sizes.joint_steps, self.device)
        torch.compiler.reset()
        return {"s/step": seconds, "images/s": sizes.joint_batch / seconds, "GiB": memory}

    def time_similarity(self) -> Row:
        source = torch.Generator().manual_seed(0)
        x = torch.randn(self.sizes.rows, self.sizes.dim, generator=source)
        x, y = x.to(self.device), (x + 0.5 * torch.randn(x.shape, generator=source)).to(self.device)
        memory = self.peak(lambda: cknna(x, y))
        seconds = [self.timed(lambda: cknna(x, y)) for _ in range(self.sizes.rounds)]
        return {"s": statistics.median(seconds), "GiB": memory, "value": float(cknna(x, y))}

    def time_training(self, stage: str) -> Row:
        accelerator = self.accelerator("bf16" if self.device.type == "cuda" else "no")
        steps, budget = self.sizes.training_steps, "smoke" if self.smoke else "quick"
        seconds, batch = step_seconds(stage, steps, accelerator, budget)
        median = statistics.median(seconds)
        return {"steps/s": 1 / median, "images/s": batch / median, "batch": batch}


class Plain:
    """Decoding as released, eager: growing nothing, a mask over all positions, a token's work as it comes."""

    @torch.no_grad()
    def __init__(self, gen: Generator, batch: int):
        self.gen, self.batch, config = copy.deepcopy(gen), batch, gen.config
        dtype = torch.bfloat16 if gen.token_table.device.type == "cuda" else torch.float32
        for parameter in self.gen.parameters():
            parameter.data = parameter.to(dtype)
        self.options = {"device": gen.token_table.device, "dtype": dtype}
        self.shape = (config.blocks, 2, 2 * batch, config.heads, gen.length, config.dim // config.heads)

    @torch.no_grad()
    def sample(self, labels: Tensor, scale: float) -> Tensor:
        gen, device = self.gen, labels.device
        caches = torch.zeros(self.shape, **self.options)
        causal = torch.ones(gen.length, gen.length, dtype=torch.bool, device=device).tril()
        x = gen.condition(torch.cat([labels, gen.condition.nulls(self.batch, device)]))
        tokens = []
        for i in range(gen.length):
            position = torch.tensor([i], device=device)
            for block, (keys, values) in zip(gen.blocks, caches, strict=True):
                own = block.attention
                qkv = own.qkv(block.attention_norm(x)).unflatten(-1, (3, own.heads, -1))
                q, k, v = qkv.permute(2, 0, 3, 1, 4)
                keys[:, :, position] = rotate(k, gen.angles[position])
                values[:, :, position] = v
                mask = causal[position][None, None]
                y = F.scaled_dot_product_attention(rotate(q, gen.angles[position]), keys, values, mask)
                x = x + own.out(y.transpose(1, 2).flatten(2))
                x = x + block.feed_forward(block.feed_forward_norm(x))
            conditional, unconditional = gen.logits(x[:, -1]).float().chunk(2)
            probs = (unconditional + scale * (conditional - unconditional)).softmax(-1)
            tokens.append(torch.multinomial(probs, 1))
            x = gen.token_table[tokens[-1].repeat(2, 1)]
        return torch.cat(tokens, 1)


def differ(expected: dict[str, float], found: dict[str, float], bound: float) -> Row:
    """The largest difference of a loss, relative to losses of at least 1. Gradients' norms are shown, and not
    judged."""
    off = {k: abs(v - expected[k]) / max(1.0, abs(expected[k])) for k, v in found.items()}
    losses = [value for name, value in off.items() if not name.startswith("grad_norm")]
    norms = [value for name, value in off.items() if name.startswith("grad_norm")]
    return {"right": max(losses) <= bound, "losses differ by": max(losses), "gradients' norms by": max(norms)}


def run(folder: Path, minutes: float, device: torch.device, sizes: Sizes) -> None:
    begin, name = time.monotonic(), device_name(device)
    path = folder / f"{re.sub('[^A-Za-z0-9]+', '-', name).strip('-')}.json"
    results: dict = json.loads(path.read_text()) if path.exists() else {"parts": {}}
    results |= {"device": name, "python": platform.python_version(), "torch": torch.__version__}
    results |= {key: circumstances(device)[key] for key in ("date", "command")}
    folder.mkdir(parents=True, exist_ok=True)
    parts = Bench(device, sizes).parts()
    for part, work in parts.items():
        if part in results["parts"] and "error" not in results["parts"][part]:
            continue
        if time.monotonic() - begin > 60 * minutes:
            print(f"{minutes:g} minutes are over; start again for the rest")
            break
        started = time.monotonic()
        try:
            row = work()
        except Exception as error:  # the others still count
            row = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        if device.type == "cuda":
            torch.cuda.empty_cache()
        results["parts"][part] = row | {"took, s": round(time.monotonic() - started, 1)}
        write_json(path, results)
        print(f"{part}: " + ", ".join(f"{key} {shown(value)}" for key, value in row.items()), flush=True)
    print(f"wrote {path}")


def shown(value: float | str | bool) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def page(folder: Path) -> str:
    """The section of docs/performance.md, from all results of a folder."""
    lines = ["## On a GPU", ""]
    measured = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    measured = [results for results in measured if "parts" in results]  # the others are of other benchmarks
    if not measured:
        lines += [
            "Nothing has been measured on a GPU yet. `python benchmarks/gpu.py --minutes 8` measures, on any",
            "CUDA device, and writes `benchmarks/results/DEVICE.json`; `python benchmarks/gpu.py --print`",
            "prints this section.",
        ]
    for results in measured:
        lines += [f"### {results['device']}", "", f"torch {results['torch']}. Medians; peak memory.", ""]
        for group in dict.fromkeys(part.partition(": ")[0] for part in results["parts"]):
            rows = {
                part.partition(": ")[2]: row
                for part, row in results["parts"].items()
                if part.startswith(f"{group}: ")
            }
            columns = list(dict.fromkeys(key for row in rows.values() for key in row if key != "took, s"))
            lines += [f"| {group} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
            for name, row in rows.items():
                lines.append(f"| {name} | " + " | ".join(shown(row.get(key, "")) for key in columns) + " |")
            lines.append("")
        limit = results["parts"].get("limit: memory bandwidth", {}).get("GB/s")
        shares = [
            f"{part.partition(': ')[2]}: {row['weights read, GB/s'] / limit:.0%}"
            for part, row in results["parts"].items()
            if limit and "weights read, GB/s" in row
        ]
        if shares:
            lines += [
                "Share of the weight-reading limit (the measured bandwidth): " + "; ".join(shares) + ".",
                "",
            ]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8, help="no part begins later")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--print", action="store_true", help="print the section of docs/performance.md")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on a CPU")
    chosen = parser.parse_args()
    if chosen.print:
        print(page(chosen.out), end="")
    elif chosen.smoke:
        run(chosen.out, chosen.minutes, torch.device("cpu"), SMOKE)
    elif choose_device().type != "cuda":
        parser.error("there is no GPU here; --smoke runs tiny sizes on a CPU")
    else:
        run(chosen.out, chosen.minutes, torch.device("cuda"), Sizes())


if __name__ == "__main__":
    main()
