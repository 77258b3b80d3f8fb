"""Where commands compute; and devices without float64, as Apple's are, whose sums the CPU computes."""

import json
from types import SimpleNamespace

import accelerate
import pytest
import tiny
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from torch import Tensor

from gear_studio import cli, commands, devices, sampling
from gear_studio.analysis import similarity, spatial
from gear_studio.analysis.statistics import Moments, Predictions
from gear_studio.data import picture_output
from gear_studio.devices import float64_device, to_float64
from gear_studio.errors import InputError
from gear_studio.studies import STUDIES, World, chains, fit_to_world, study_jobs
from gear_studio.studies.reproduce import zoo_jobs
from gear_studio.training import jobs, loop, supervised
from gear_studio.training.execution import Execution
from gear_studio.training.loop import Meter
from gear_studio.training.request import Training


class Apple(Tensor):
    """A tensor that says it lies on Apple's GPU, and cannot be float64 there."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is Tensor.device.__get__:
            return torch.device("mps")
        result = super().__torch_function__(function, types, args, kwargs)
        if function is Tensor.to and args[1] == torch.device("cpu"):
            return result.as_subclass(Tensor)
        if isinstance(result, Apple) and result.as_subclass(Tensor).dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64")
        return result


def rows(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def on_apple(x: Tensor) -> Tensor:
    return x.clone().as_subclass(Apple)


def test_what_has_no_float64_is_known():
    assert float64_device("mps").type == "cpu" and float64_device("cuda:1") == torch.device("cuda:1")
    found = to_float64(on_apple(rows(0, 3)))
    assert found.dtype == torch.float64 and not isinstance(found, Apple)


def test_samples_are_those_of_the_cpu(monkeypatch):
    generator = tiny.generator()
    expected = sampling.sample(generator, [1, 2], top_k=20, seed=0)
    decode = generator.decode
    monkeypatch.setattr(generator, "decode", lambda *given: on_apple(decode(*given)))
    assert torch.equal(sampling.sample(generator, [1, 2], top_k=20, seed=0), expected)


def test_similarities_are_those_of_the_cpu():
    x, y = rows(0, 60, 8), rows(1, 60, 8) + rows(0, 60, 8)
    for measure in (similarity.cka, similarity.cknna, similarity.mutual_knn):
        assert measure(on_apple(x), on_apple(y)) == measure(x, y)
    maps = rows(2, 3, 16, 8)
    for found, expected in zip(
        spatial.local_similarity(on_apple(maps), 4), spatial.local_similarity(maps, 4), strict=True
    ):
        assert torch.equal(found, expected)


def test_statistics_of_pictures_are_those_of_the_cpu():
    x = rows(3, 20, 5)
    for make in (lambda device: Moments(5, device), lambda device: Predictions(20, 5, device)):
        there, here = make("mps"), make("cpu")
        there.add(0, on_apple(x))
        here.add(0, x)
        assert torch.equal(there.sums, here.sums)


def test_metrics_that_are_rounded_are_those_of_the_cpu():
    read = []
    for value in (torch.tensor(0.1), on_apple(torch.tensor(0.1))):
        meter = Meter(Accelerator(cpu=True), exact=True)
        for step in (1, 2, 3):
            meter.add(step, {"loss": value})
        read.append(meter.read())
    assert read[0] == read[1]


def test_sampling_and_reconstructing_compute_on_the_device_there_is(tmp_path, monkeypatch):
    asked, written = [], []
    monkeypatch.setattr(devices, "choose_device", lambda name: asked.append(name) or torch.device("meta"))
    monkeypatch.setattr(picture_output, "write_grid", lambda pictures, *_: written.append(pictures))
    monkeypatch.setattr(picture_output, "write_above", lambda pairs, *_: written.extend(*pairs))
    monkeypatch.setattr(
        sampling,
        "sample",
        lambda generator, condition, **_: torch.zeros(
            len(condition), 64, dtype=torch.long, device=generator.token_table.device
        ),
    )
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    for words in (["sample", "generator-gear"], ["reconstruct", "gear", str(tmp_path / "a.png")]):
        for option in ([], ["--device", "cuda:1"]):
            monkeypatch.setattr("sys.argv", ["gear-studio", *words, "--out", "x.png", *option])
            cli.main()
    assert asked == [None, "cuda:1"] * 2
    assert len(written) == 6 and {pictures.device.type for pictures in written} == {"meta"}


@pytest.fixture
def two_gpus(monkeypatch):
    """Two are said to be there; nothing can be computed on them."""
    monkeypatch.setattr(devices, "list_devices", lambda: ["cuda", "cuda:0", "cuda:1", "cpu"])
    monkeypatch.setattr(accelerate.accelerator, "is_bf16_available", lambda *_: True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_the_device_there_is(two_gpus, monkeypatch):
    assert devices.choose_device() == torch.device("cuda")
    assert devices.choose_device("cuda:1") == torch.device("cuda:1")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert devices.choose_device() == torch.device("cpu")


@pytest.mark.parametrize("name", ["moon", "meta", "cuda:2", "hpu", ""])
def test_a_device_that_is_not_there_is_an_error_that_names_what_is(name, two_gpus):
    said = f"device '{name}' is not to be had here.*; choose one of cuda, cuda:0, cuda:1, cpu$"
    with pytest.raises(InputError, match=said):
        devices.choose_device(name)


def test_the_devices_of_a_machine_with_gpus_and_of_one_without(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda")
    )
    assert devices.list_devices() == ["cuda", "cuda:0", "cuda:1", "cpu"]
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert devices.list_devices() == ["cpu"] and devices.choose_device() == torch.device("cpu")
    with pytest.raises(InputError, match="device 'cuda' is not to be had here .*; choose one of cpu$"):
        devices.choose_device("cuda")


def test_a_process_computes_on_another_device_each_time(two_gpus):
    for name, device, precision in (
        ("cpu", "cpu", "no"), ("cuda:1", "cuda:1", "bf16"), (None, "cuda", "bf16"), ("cpu", "cpu", "no")
    ):  # fmt: skip
        made = devices.new_accelerator(name)
        assert (made.device, made.mixed_precision) == (torch.device(device), precision)


def test_of_several_processes_each_has_a_gpu_of_its_own(two_gpus, monkeypatch):
    monkeypatch.setattr(accelerate, "PartialState", lambda **_: SimpleNamespace(num_processes=2))
    with pytest.raises(InputError, match="'cuda:1' is one, and there are 2 processes; say cuda,.*VISIBLE"):
        devices.new_accelerator("cuda:1")


# What a command is told


COMPUTING = [name for name in commands.COMMANDS if name not in ("import", "recipe", "push")]


@pytest.mark.parametrize("name", [*COMPUTING, "explorer"])
def test_every_command_that_computes_takes_a_device(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.run([name, "--help"])
    helped = capsys.readouterr().out
    assert "--device " in helped and helped.count("Where to compute: cpu,") == 1


def test_a_device_is_not_what_decides_a_run(tmp_path, teacher_folder, two_gpus):
    """It trains on the device that is said, and is the same run on another."""
    recipe = tiny.recipe(teacher_folder, steps=1, log_every=1, checkpoint_every=1)
    asked = Training(
        "digits", "warmup", recipe=recipe, out=tmp_path / "run", execution=Execution(device="cpu")
    )
    run = loop.train(asked, progress=False)
    assert run.record["execution"]["device"] == "cpu" and "CPU" in run.record["device"]
    assert "device" not in json.dumps(run.config)
    other = tiny.replace(asked, execution=Execution(device="cuda:1"))
    assert loop.train(other, progress=False).finished
    # A cluster's device is not there on the node that submits its jobs.
    assert chains._is_finished(tiny.replace(asked, execution=Execution(device="cuda:9")), asked.out)


def test_all_that_a_command_starts_computes_where_it_was_told(tmp_path):
    world = World(budget="smoke", execution=Execution(device="cuda:1"))
    asked = study_jobs(fit_to_world(STUDIES["convergence"], world), world, (0,), tmp_path)
    asked += zoo_jobs(tmp_path, "smoke", 0, "cuda:1")
    kinds = {job.command[0] for job in asked}
    assert kinds == {"train", "evaluate", "supervise"}
    for job in asked:
        assert job.command[job.command.index("--device") + 1] == "cuda:1"
    for job in zoo_jobs(tmp_path, "smoke", 0):
        assert "--device" not in job.command


def test_cores_are_shared_by_what_computes_on_them(two_gpus, monkeypatch):
    monkeypatch.setattr(jobs.os, "sched_getaffinity", lambda _: {0})
    assert jobs.share_cores() == (3, 1) and jobs.share_cores(device="cpu") == (1, 1)


def test_the_tiny_teacher_and_judges_are_trained_where_they_are_told(tmp_path, monkeypatch):
    asked = []

    def stop(name, **_):
        asked.append(name)
        raise InputError("enough")

    monkeypatch.setattr(supervised, "new_accelerator", stop)
    for train in (supervised.train_teacher, supervised.train_judge):
        with pytest.raises(InputError, match="enough"):
            train(tmp_path / train.__name__, device="cuda:1", steps=1)
    assert asked == ["cuda:1"] * 2
