"""Devices without float64, as Apple's are: everything that needs it is computed on the CPU."""

import pytest
import tiny
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from gear_studio import cli, devices, sampling
from gear_studio.analysis import similarity, spatial
from gear_studio.analysis.statistics import Moments, Predictions
from gear_studio.data import picture_output
from gear_studio.devices import float64_device, to_float64
from gear_studio.training.loop import Meter


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


@pytest.mark.parametrize("there", [True, False])
def test_the_device_there_is(there, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert devices.choose_device().type == ("cuda" if there else "cpu")
    with pytest.raises(ValueError, match="device 'moon' is not to be had here .*; choose cpu, or leave it"):
        devices.choose_device("moon")
