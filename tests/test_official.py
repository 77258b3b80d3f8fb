"""Released checkpoints: every key finds its place, numbers agree, and what does not fit is refused."""

import argparse
import json
import math
import os
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import released
import tiny
import torch
from safetensors.torch import save_file

from gear_studio import Run, cli, official, places, sampling
from gear_studio.models import families, text_encoders
from gear_studio.models.discriminator import Discriminator, DiscriminatorConfig
from gear_studio.models.families.llamagen import LlamaGen
from gear_studio.models.generator import SIZES, Generator, paper_config, rotary_table, rotate
from gear_studio.models.projector import Projector, ProjectorConfig
from gear_studio.models.tokenizer import PRESETS, Tokenizer, TokenizerConfig
from gear_studio.training import loop
from gear_studio.training.checkpoints import Checkpoints
from gear_studio.training.request import Training

SHAPES = json.loads((Path(__file__).parent / "data" / "checkpoint_keys.json").read_text())

# The paper's three networks with few channels and levels: 32 px, 8 x 8 tokens.
SCALED = {"image_size": 32, "channels": 32, "multipliers": (1, 2, 2)}
SMALL = {
    "vq": replace(PRESETS["vq-16"], **SCALED, res_blocks=2, latent=32, codes=64, code_dim=4),
    "lfq": replace(PRESETS["lfq-16"], **SCALED, res_blocks=2, latent=6, codes=64, code_dim=6),
    "lfq-8": replace(PRESETS["lfq-8"], **SCALED, res_blocks=2, latent=6, codes=64, code_dim=6),
    "ibq": replace(PRESETS["ibq-16"], **SCALED, res_blocks=4, latent=32, codes=64, code_dim=16),
    "euclidean": replace(
        PRESETS["ibq-16"], **SCALED, quantizer="euclidean", res_blocks=2, latent=32, codes=64, code_dim=16
    ),
}


def tokenizer(kind: str, seed: int = 0) -> Tokenizer:
    """With weights that are not the ones a layer starts with, norms' included."""
    torch.manual_seed(seed)
    made = Tokenizer(SMALL[kind]).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


@pytest.fixture
def generator(monkeypatch) -> Generator:
    """LlamaGen with three narrow blocks, a size of its own."""
    monkeypatch.setitem(SIZES, "tiny", (3, 32, 2, 2))
    made = Generator(paper_config("tiny", classes=10, codes=64, grid=8)).eval()
    tiny.wake(made)
    return made


def near(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to 1e-4 of the largest value."""
    assert (found.double() - expected).abs().max() < 1e-4 * expected.abs().max()


# Keys


@pytest.mark.slow
@pytest.mark.parametrize("name", ["VQ-16", "LFQ-16", "IBQ-16", "LlamaGen-B"])
def test_every_released_key_finds_its_place_and_comes_back(name):
    torch.manual_seed(0)
    numbers = torch.randn(max(map(math.prod, SHAPES[name].values())))  # drawn once: it is what takes the time
    state = {k: numbers[: math.prod(s)].view(s) + torch.rand(()) for k, s in SHAPES[name].items()}
    if name in ("VQ-16", "LFQ-16", "IBQ-16"):
        model = families.tokenizer_from(state, 256, name, name.split("-")[0].lower())
        assert model.config == PRESETS[name.lower()] and model.grid == 16
    else:
        model = families.generator_from(state, None, name)
        assert model.config == paper_config("B")
    listed = families.names_of(model)
    assert listed.keys() == model.state_dict().keys()  # nothing of ours is left as it was
    assert sorted(key for keys in listed.values() for key in keys) == sorted(
        state
    )  # nothing of theirs is left over
    back = families.to_released(model)
    assert all(torch.equal(back[key], state[key]) for key in state)


T2I = "LlamaGen-T2I (n_layer=6, dim=128, caption_dim=64, vocab=1024)"


@pytest.fixture
def painter(monkeypatch) -> Generator:
    """The text-to-image generator of the key file, with a size of its own, and random weights."""
    monkeypatch.setitem(SIZES, "tiny", (6, 128, 2, 2))
    state = {k: torch.randn(s) * (0.1 if len(s) > 1 else 1) for k, s in SHAPES[T2I].items()}
    return families.generator_from(state | {"freqs_cis": torch.zeros(12 + 16, 32, 2)}, 4, "a file")


def test_every_released_key_of_text_to_image_finds_its_place_and_comes_back(painter):
    config = painter.config
    assert (config.caption_dim, config.caption_length, config.text_blocks) == (64, 12, 2)
    assert (config.classes, config.codes, config.grid, config.zero_condition_key) == (0, 1024, 4, True)
    listed, back = families.names_of(painter), families.to_released(painter)
    assert listed.keys() == dict(painter.named_parameters()).keys()
    assert {key: list(value.shape) for key, value in back.items()} == SHAPES[T2I]
    again = families.generator_from(back, 4, "a file")
    assert again.config == replace(config, caption_length=300)  # nothing in the file says another
    for key, value in painter.named_parameters():
        assert torch.equal(again.get_parameter(key), value)


def test_a_text_to_image_generator_computes_what_the_released_network_does(painter):
    tokens, features = torch.randint(1024, (3, 15)), torch.randn(3, 12, 64)
    lengths = [12, 0, 5]
    expected = released.Net(families.to_released(painter)).caption_logits(tokens, features, lengths, 2, 4)
    words = torch.arange(12) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        given = torch.cat([words[..., None].float(), features], -1)
        near(painter(painter.tokens(tokens), given), expected)


def test_words_that_see_each_other_and_other_numbers_of_dual_blocks_are_read_off_a_file(painter, tmp_path):
    """How words see each other is in the training's arguments, the blocks in the keys."""
    state = families.to_released(painter)
    state = {k: v for k, v in state.items() if not (k.startswith("layers.1.") and "_text" in k)}
    torch.save({"ema": state, "args": {"text_attn": "prefix", "lr": 1e-4}}, tmp_path / "t2i.pt")
    made = official.load_generator(tmp_path / "t2i.pt", grid=4)
    assert (made.config.text_attention, made.config.text_blocks) == ("prefix", 1)
    tokens, features = torch.randint(1024, (3, 15)), torch.randn(3, 300, 64)
    lengths = [300, 0, 5]
    net = released.Net(state)
    expected = net.caption_logits(tokens, features, lengths, 2, 4, prefix=True)
    words = torch.arange(300) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        given = torch.cat([words[..., None].float(), features], -1)
        near(made(made.tokens(tokens), given), expected)
    causal = net.caption_logits(tokens, features, lengths, 2, 4)
    assert (causal - expected).abs().max() > 0.01 * expected.abs().max()


def test_the_paper_s_text_to_image_generator_is_told_by_its_shapes():
    config = replace(paper_config("1B", 0), caption_dim=2048, caption_length=300)
    with torch.device("meta"):
        made = Generator(config)
        state = {
            name: value.new_empty(value.shape)
            for key, value in made.named_parameters()
            for name in families.names_of(made)[key]
        }
    assert (config.blocks, config.dim, config.heads, config.text_blocks) == (36, 1440, 20, 12)
    assert LlamaGen().config_of(state, None, "a file") == config
    with pytest.raises(ValueError, match="a file has 200 rotary positions, too few for 16 x 16"):
        LlamaGen().config_of(state | {"freqs_cis": torch.zeros(200, 36, 2)}, None, "a file")


def test_a_text_stream_too_many_or_too_few_is_refused(painter):
    state = families.to_released(painter)
    del state["layers.1.attention.wqkv_text.weight"]
    with pytest.raises(ValueError, match="missing layers.1.attention.wqkv_text.weight"):
        families.generator_from(state, 4, "a file")


def test_lfq_8_has_lfq_16_s_blocks_and_one_step_of_resolution_less():
    shapes = {k: s for k, s in SHAPES["LFQ-16"].items() if not k.startswith("encoder.down.3.downsample.")}
    shapes = {k: s for k, s in shapes.items() if not k.startswith("decoder.up.4.upsample.")}
    with torch.device("meta"):  # an eighth of f, and so many signs in the place of 14
        state = {k: torch.empty([8 if size == 14 else size for size in s]) for k, s in shapes.items()}
        family = families.tokenizer_family(state)
        config = family.config_of(state, 256, "a file", "lfq")
        assert config == PRESETS["lfq-8"] and (config.factor, config.grid) == (8, 32)
        made = Tokenizer(config)
    names = [key for keys in family.names_of(made).values() for key in keys]
    assert sorted(names) == sorted(state)


def test_grouped_lfq_is_refused_in_words():
    torch.manual_seed(0)
    wide = Tokenizer(SMALL["lfq"])
    state = {
        k: torch.zeros([32 if size == 6 else size for size in v.shape])
        for k, v in families.to_released(wide).items()
    }
    with pytest.raises(ValueError, match=r"codes of 32 signs, 2\^32 of them, as grouped LFQ \(GLFQ-16\)"):
        families.tokenizer_from(state, 32, "a file", "lfq")


def test_flat_levels_are_of_magvit2_alone():
    for kind, flat in (("vq", 1), ("lfq", 2)):
        with pytest.raises(ValueError, match=f"flat_levels is {flat}; it is of architecture magvit2"):
            replace(SMALL[kind], flat_levels=flat)


def test_query_key_and_value_are_put_together_in_that_order():
    model = tokenizer("vq")
    state = families.to_released(model)
    fused = model.state_dict()["encoder.blocks.9.qkv.weight"]
    name = "encoder.conv_blocks.2.attn.0"
    assert torch.equal(fused, torch.cat([state[f"{name}.{part}.weight"] for part in "qkv"]))


@pytest.mark.parametrize("size", SIZES)
def test_generator_sizes_are_told_by_their_shapes(size):
    with torch.device("meta"):
        made = Generator(paper_config(size, classes=100, codes=4096, grid=24))
        state = {
            name: value.new_empty(value.shape)
            for key, value in made.state_dict().items()
            for name in families.names_of(made)[key]
        }
    assert LlamaGen().config_of(state, 24, "a file") == made.config


# Numbers


@pytest.mark.parametrize("kind", SMALL)
def test_a_tokenizer_computes_what_the_released_network_does(kind):
    model = tokenizer(kind)
    net = released.Net(families.to_released(model))
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        z = model.encode(images)
        near(z, net.encode(images).flatten(2).transpose(1, 2))
        codes = torch.randn(2, model.config.code_dim, model.grid, model.grid)
        near(model.decode_codes(codes.flatten(2).transpose(1, 2)), net.decode(codes.double()))


def test_a_generator_computes_what_the_released_network_does(generator):
    tokens, labels = torch.randint(64, (2, 63)), torch.tensor([3, 10])
    expected = released.Net(families.to_released(generator)).logits(tokens, labels, heads=2, grid=8)
    with torch.no_grad():
        near(generator(generator.tokens(tokens), labels), expected)


def test_the_released_rotary_table_hides_the_condition_s_key_and_ours_need_not():
    x = torch.randn(17, 16)
    hidden, shown = (rotate(x, rotary_table(4, 16, zero_condition_key=zero)) for zero in (True, False))
    assert not hidden[0].any() and torch.equal(shown[0], x[0])
    assert torch.equal(hidden[1:], shown[1:])
    assert paper_config("B").zero_condition_key and not Generator.Config().zero_condition_key


def test_sampling_step_by_step_agrees_with_the_whole_sequence(generator):
    tokens, labels = torch.randint(64, (2, 63)), torch.tensor([1, 2])
    embedded = torch.cat([generator.condition(labels), generator.tokens(tokens)], 1)
    with torch.no_grad():
        whole, cache = generator(embedded[:, 1:], labels), generator.new_cache(labels)
        caches = [cache.at(torch.tensor([i]), i + 1) for i in range(64)]
        steps = [generator.decode(embedded[:, i : i + 1], here) for i, here in enumerate(caches)]
    torch.testing.assert_close(torch.stack(steps, 1), whole, atol=1e-4, rtol=1e-4)


# Files


def lightning(state: dict, **more) -> dict:
    """As Open-MAGVIT2 and IBQ were saved: live weights, EMA shadows, and what training needed besides."""
    live = {key: value + 1 for key, value in state.items()}
    shadows = {f"model_ema.{key.replace('.', '')}": value for key, value in state.items()}
    extra = {"loss.discriminator.main.0.weight": torch.ones(3), "model_ema.decay": torch.tensor(0.999)}
    return {"state_dict": live | shadows | extra, "epoch": 3, **more}


WRAPPED = {
    "bare": lambda state: state,
    "vq": lambda state: {"vq": state, "global_step": 5},
    "vq_ema": lambda state: {"vq": {k: v + 1 for k, v in state.items()}, "vq_ema": state},
    "model": lambda state: {"model": state | {"quantize.codebook_used": torch.zeros(65536)}},
    "discriminator": lambda state: {"vq": state, "discriminator": {"main.0.weight": torch.ones(2)}},
    "arguments": lambda state: {"vq": state, "args": argparse.Namespace(image_size=256)},
    "lightning": lightning,
    "data parallel": lambda state: {"model": {f"module.{k}": v for k, v in state.items()}},
    "compiled": lambda state: {"vq": {f"_orig_mod.module.{k}": v for k, v in state.items()}},
    "sharded": lambda state: {
        "model": {
            "_fsdp_wrapped_module." + k.replace(".conv1", "._fsdp_wrapped_module.conv1"): v
            for k, v in state.items()
        }
    },
    "in a module": lambda state: {"state_dict": {f"model.{k}": v for k, v in state.items()}, "epoch": 3},
    "nested": lambda state: {"ema": {"state_dict": state}, "model": {k: v + 1 for k, v in state.items()}},
    "nested and wrapped": lambda state: {
        "state_dict": {"model": {f"module.model.{k}": v for k, v in state.items()}}
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("wrapping", WRAPPED)
@pytest.mark.parametrize("kind", SMALL)
def test_every_wrapping_of_a_tokenizer(kind, wrapping, tmp_path):
    model = tokenizer(kind)
    torch.save(WRAPPED[wrapping](families.to_released(model)), tmp_path / "file.pt")
    told = "euclidean" if kind == "euclidean" else None
    loaded = official.load_tokenizer(tmp_path / "file.pt", image_size=32, quantizer=told)
    assert loaded.config == model.config and not loaded.training
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


@pytest.mark.parametrize("key", ["ema", "ar", "model", None])
def test_every_wrapping_of_a_generator(generator, key, tmp_path):
    state = families.to_released(generator)
    raw = {key: state, "vq_ema": families.to_released(tokenizer("vq"))} if key else state
    if key == "ema":
        raw["ar"] = {name: value + 1 for name, value in state.items()}
    torch.save(raw, tmp_path / "file.pt")
    loaded = official.load_generator(tmp_path / "file.pt", grid=8)
    assert loaded.config == generator.config
    for name, value in generator.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_a_stored_rotary_table_tells_the_grid(generator):
    state = families.to_released(generator) | {"freqs_cis": torch.zeros(1 + 8 * 8, 8, 2)}
    assert families.generator_from(state, None, "a file").config.grid == 8
    with pytest.raises(ValueError, match="a file is for 8 x 8 tokens, asked for 16 x 16"):
        families.generator_from(state, 16, "a file")


def test_what_is_saved_is_loaded(generator, tmp_path):
    models = ((tokenizer(kind), official.load_tokenizer) for kind in SMALL)
    for model, load in (*models, (generator, official.load_generator)):
        official.save(model, tmp_path / "file.pt")
        loaded = load(tmp_path / "file.pt", 32 if isinstance(model, Tokenizer) else 8)
        assert loaded.config == model.config
        assert all(torch.equal(loaded.state_dict()[k], v) for k, v in model.state_dict().items())


def test_half_precision_and_safetensors_are_read(tmp_path):
    model = tokenizer("ibq")
    save_file({k: v.bfloat16() for k, v in families.to_released(model).items()}, tmp_path / "a.safetensors")
    loaded = official.load_tokenizer(tmp_path / "a.safetensors", 32)
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value.bfloat16().float())


# What names and shapes do not say


def taming(kind: str = "euclidean", blocks: int = 2) -> dict:
    """A state dict as taming-transformers saves it: the loss's networks beside the weights."""
    torch.manual_seed(0)
    model = Tokenizer(replace(SMALL[kind], res_blocks=blocks))
    loss = {"loss.perceptual_loss.lin0.model.1.weight": torch.ones(1, 64, 1, 1)}
    return {"state_dict": families.to_released(model) | loss, "global_step": 7}


def told_from(raw: dict, folder: Path, config: str = "", name: str = "file.yaml") -> str:
    """The quantizer of a file, with a config beside it."""
    folder.mkdir(exist_ok=True)
    torch.save(raw, folder / "file.ckpt")
    (folder / name).write_text(config)
    loaded = official.load_tokenizer(folder / "file.ckpt", 32)
    (folder / name).unlink()
    return loaded.config.quantizer


def without_loss(raw: dict) -> dict:
    return {"state_dict": {k: v for k, v in raw["state_dict"].items() if not k.startswith("loss.")}}


def test_a_vqgan_of_taming_is_no_ibq(tmp_path):
    """The keys are the same; the loss and the number of blocks tell, and codes differ."""
    raw = taming()
    raw["state_dict"]["quantize.embedding.weight"] = torch.randn(64, 16)
    assert told_from(raw, tmp_path) == "euclidean"
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    chosen = official.load_tokenizer(tmp_path / "file.ckpt", 32)
    wrong = official.load_tokenizer(tmp_path / "file.ckpt", 32, quantizer="ibq")
    z = released.Net(raw["state_dict"]).encode(images).flatten(2).transpose(1, 2)
    nearest = torch.cdist(z, raw["state_dict"]["quantize.embedding.weight"].double()[None]).argmin(-1)
    assert torch.equal(chosen.indices(images), nearest)
    assert (wrong.indices(images) == nearest).float().mean() < 0.9


def test_ibq_is_told_by_its_blocks_and_its_averages(tmp_path):
    state = families.to_released(tokenizer("ibq"))
    assert told_from({"vq": state}, tmp_path) == told_from(lightning(state), tmp_path) == "ibq"


@pytest.mark.slow
@pytest.mark.parametrize(
    "raw",
    [without_loss(taming()), taming(blocks=3), taming("ibq", blocks=4)],
    ids=["no loss", "other blocks", "blocks of one and loss of the other"],
)
def test_where_it_is_not_sure_the_quantizer_is_asked_for(raw, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"several quantizers share.*--quantizer vq\|lfq\|ibq\|euclidean"):
        told_from(raw, tmp_path)
    (tmp_path / "file.yaml").unlink()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="Say it: --quantizer"):
        imported(monkeypatch, "file.ckpt", "asked", "--image-size", 32)
    assert not Path("runs").exists()
    for said in ("euclidean", "ibq", "vq"):
        imported(monkeypatch, "file.ckpt", said, "--image-size", 32, "--quantizer", said)
        assert Run.from_pretrained(f"runs/{said}").tokenizer.config.quantizer == said
    with pytest.raises(ValueError, match="unknown quantizer 'fsq'; choose one of vq, lfq, ibq, euclidean"):
        official.load_tokenizer("file.ckpt", 32, quantizer="fsq")


@pytest.mark.parametrize(
    ("config", "quantizer"),
    [
        ("model:\n  base_learning_rate: 4.5e-06\n  target: taming.models.vqgan.VQModel\n", "euclidean"),
        ("model:\n  target: ldm.models.autoencoder.VQModelInterface\n", "euclidean"),
        ("seed_everything: true\nmodel:\n  class_path: src.IBQ.models.ibqgan.IBQ\n", "ibq"),
        ('{"model": {"target": "taming.models.vqgan.VQModel"}}', "euclidean"),
    ],
)
def test_a_config_beside_the_file_tells(config, quantizer, tmp_path):
    bare = without_loss(taming())
    for name in ("file.yaml", "config.yml", "model.yaml", "config.json"):
        assert told_from(bare, tmp_path, config, name) == quantizer


@pytest.mark.parametrize("config", ["model: [", "model:\n  target: a.diffusion.Model\n", "- 1", "\x00"])
def test_a_config_of_something_else_tells_nothing(config, tmp_path):
    with pytest.raises(ValueError, match="several quantizers share"):
        told_from(without_loss(taming()), tmp_path, config)
    assert told_from(taming(), tmp_path, config) == "euclidean"


def test_a_config_that_contradicts_the_keys_is_not_believed(tmp_path):
    of_taming = "model:\n  target: taming.models.vqgan.VQModel\n"
    for kind in ("vq", "ibq", "lfq"):
        raw = {"vq": families.to_released(tokenizer(kind))}
        with pytest.raises(ValueError, match=f"keys of quantizer {kind}, and the config .* says euclidean"):
            told_from(raw, tmp_path / kind, of_taming)


def test_a_key_within_and_without_a_wrapper_is_refused(tmp_path):
    state = families.to_released(tokenizer("vq"))
    torch.save(state | {"module.quant_conv.bias": torch.zeros(4)}, tmp_path / "file.pt")
    with pytest.raises(ValueError, match="holds quant_conv.bias twice"):
        official.load_tokenizer(tmp_path / "file.pt", 32)


@pytest.mark.parametrize(
    "changes",
    [
        {"channels": 64, "multipliers": (1, 1), "latent": 16, "codes": 100},
        {"multipliers": (1, 2, 3, 4), "image_size": 64, "code_dim": 3},
    ],
)
@pytest.mark.parametrize("kind", ["vq", "ibq", "euclidean"])
def test_tokenizers_of_other_widths_and_levels_are_told_by_their_shapes(kind, changes, tmp_path):
    torch.manual_seed(0)
    model = Tokenizer(replace(SMALL[kind], **changes)).eval()
    official.save(model, tmp_path / "file.pt")
    loaded = official.load_tokenizer(tmp_path / "file.pt", model.config.image_size)
    assert loaded.config == model.config
    images = torch.rand(1, 3, model.config.image_size, model.config.image_size) * 2 - 1
    assert torch.equal(loaded.indices(images), model.indices(images))


def test_a_generator_of_a_size_nobody_released_needs_its_heads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = replace(paper_config("B", 10, 64, 8), blocks=4, dim=96, heads=6, tap=1)
    model = Generator(config).eval()
    tiny.wake(model)
    torch.save({"ema": families.to_released(model)}, "generator.pt")
    with pytest.raises(ValueError, match="4 blocks of width 96.*--heads N"):
        official.load_generator("generator.pt", 8)
    loaded = official.load_generator("generator.pt", 8, heads=6)
    assert loaded.config == config
    tokens, labels = torch.randint(64, (2, 63)), torch.tensor([3, 10])
    expected = released.Net(families.to_released(model)).logits(tokens, labels, heads=6, grid=8)
    with torch.no_grad():
        near(loaded(loaded.tokens(tokens), labels), expected)
    with pytest.raises(ValueError, match="dim 96 with 5 heads"):
        official.load_generator("generator.pt", 8, heads=5)

    official.save(tokenizer("vq"), "vq.pt")
    imported(monkeypatch, "vq.pt", "vq", "--image-size", 32)
    imported(monkeypatch, "generator.pt", "asked", "--parent", "runs/vq", "--heads", 6)
    assert Run.from_pretrained("runs/asked").generator.config == config


def test_a_stored_rotary_table_tells_the_heads():
    config = replace(paper_config("B", 10, 64, 8), blocks=4, dim=96, heads=6, tap=1)
    state = families.to_released(Generator(config)) | {"freqs_cis": torch.zeros(1 + 8 * 8, 8, 2)}
    assert families.generator_from(state, None, "a file").config == config
    with pytest.raises(ValueError, match="a file has 6 heads by its rotary table, not 3"):
        families.generator_from(state, None, "a file", heads=3)


# Discriminators


def patch_gan(**changes) -> tuple[Discriminator, dict]:
    """Ours, and its state dict under the names of taming-transformers and LlamaGen."""
    torch.manual_seed(0)
    made = Discriminator(DiscriminatorConfig(**{"channels": 8} | changes))
    return made, {key.replace("blocks.", "main."): value for key, value in made.state_dict().items()}


@pytest.mark.parametrize("changes", [{}, {"channels": 16, "layers": 2}])
def test_a_warm_up_s_discriminator_comes_along_and_the_joint_stage_starts_from_it(
    changes, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    made, state = patch_gan(**changes)
    vq = families.to_released(tokenizer("vq"))
    torch.save({"vq_ema": vq, "discriminator": {f"module.{k}": v for k, v in state.items()}}, "gear.pt")
    loss = {f"loss.discriminator.{key}": value for key, value in state.items()}
    torch.save({"state_dict": taming()["state_dict"] | loss}, "taming.ckpt")
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    for file in ("gear.pt", "taming.ckpt"):
        run = official.import_run(file, f"runs/{file}", image_size=32)
        assert run.has("discriminator")
        loaded = Discriminator.from_pretrained(run.folder)
        assert loaded.config == made.config
        assert torch.equal(loaded.train()(images), made(images))


@pytest.mark.parametrize(
    "held",
    [
        {"main.0.weight": torch.ones(2)},
        {k: v for k, v in patch_gan()[1].items() if k != "main.3.bias"},
        {k.replace("main", "model"): v for k, v in patch_gan()[1].items()},
        torch.ones(3),
    ],
)
def test_a_discriminator_of_another_kind_stays_behind_and_that_is_said(held, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    vq = families.to_released(tokenizer("vq"))
    torch.save({"vq": vq, "discriminator": held}, "file.pt")
    imported(monkeypatch, "file.pt", "run", "--image-size", 32)
    assert not Run("runs/run").has("discriminator")
    said = (
        "left out: its discriminator, which is of another kind than the PatchGAN here; a training that goes"
    )
    assert said in capsys.readouterr().out

    beside = (
        {f"loss.discriminator.{key}": value for key, value in held.items()} if isinstance(held, dict) else {}
    )
    torch.save({"state_dict": taming()["state_dict"] | beside}, "taming.ckpt")
    imported(monkeypatch, "taming.ckpt", "taming", "--image-size", 32)
    assert (said in capsys.readouterr().out) == bool(beside)


def test_a_projector_of_another_kind_stays_behind_and_that_is_said(generator, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    vq = Tokenizer(replace(SMALL["vq"], codes=generator.config.codes))
    held = {"ema": families.to_released(generator), "vq_ema": families.to_released(vq)}
    for name, projectors in (("none", {}), ("other", {"projs.1.0.weight": torch.ones(2, 2)})):
        torch.save(held | {"projectors": projectors, "quantizer": "vq"}, "both.pt")
        imported(monkeypatch, "both.pt", name, "--image-size", 32)
        assert ("left out: its projectors, which" in capsys.readouterr().out) == (name == "other")


# Refusals


def test_missing_extra_and_misshapen_keys_are_named(tmp_path):
    state = families.to_released(tokenizer("vq"))
    state["stranger.weight"] = state.pop("decoder.norm_out.bias")
    state["quant_conv.bias"] = torch.zeros(5)
    torch.save(state, tmp_path / "file.pt")
    with pytest.raises(ValueError) as refusal:
        official.load_tokenizer(tmp_path / "file.pt", 32)
    for part in (
        "file.pt does not fit Tokenizer (3 keys differ",
        "missing decoder.norm_out.bias",
        "unexpected stranger.weight",
        "quant_conv.bias has shape (5,), expected (4,)",
    ):
        assert part in str(refusal.value)
    del state["encoder.conv_in.weight"]
    torch.save(state, tmp_path / "file.pt")
    with pytest.raises(ValueError, match="missing encoder.conv_in.weight"):
        official.load_tokenizer(tmp_path / "file.pt", 32)


def test_averages_of_some_weights_are_not_mixed_with_the_others(tmp_path):
    raw = lightning(families.to_released(tokenizer("ibq")))
    del raw["state_dict"]["model_ema.quantizeembeddingweight"]
    torch.save(raw, tmp_path / "file.ckpt")
    with pytest.raises(ValueError, match="1 missing: model_ema.quantizeembeddingweight"):
        official.load_tokenizer(tmp_path / "file.ckpt", 32)


def test_a_size_nobody_released_lists_the_known_ones():
    shapes = {k: s for k, s in SHAPES["LlamaGen-B"].items() if not k.startswith("layers.11.")}
    with pytest.raises(ValueError, match="11 blocks of width 768.*--heads N .*: S 12 x 384, B 12 x 768"):
        LlamaGen().config_of({k: torch.empty(s, device="meta") for k, s in shapes.items()}, None, "a file")


def test_files_that_are_none_are_refused(tmp_path):
    path = tmp_path / "file.pt"
    with pytest.raises(
        FileNotFoundError, match=r"there is no file .*file.pt; give a file, or owner/repository"
    ):
        official.load_tokenizer(path)
    with pytest.raises(FileNotFoundError, match="there is no file checkpoints/gear-vq.pt; give a file"):
        official.load_tokenizer("checkpoints/gear-vq.pt")
    torch.save({"optimizer": {}, "step": 3}, path)
    with pytest.raises(ValueError, match="holds no tokenizer.*it has optimizer, step"):
        official.load_tokenizer(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds a list; expected a dict"):
        official.load_tokenizer(path)
    torch.save({"vq": families.to_released(tokenizer("lfq"))}, path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ValueError, match="file.pt is (damaged|not a complete file)"):
        official.load_tokenizer(path)


class Trap:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code in a checkpoint was run')",))


def test_nothing_in_a_file_is_run(tmp_path):
    torch.save({"vq": families.to_released(tokenizer("lfq")), "callbacks": Trap()}, tmp_path / "file.ckpt")
    with pytest.raises(ValueError, match="holds more than weights.*save its state dict alone"):
        official.load_tokenizer(tmp_path / "file.ckpt")


def test_small_presets_have_no_released_names(tmp_path):
    with pytest.raises(ValueError, match="no names for a vq tokenizer of architecture vqgan, patch 4"):
        official.save(Tokenizer(tiny.TOKENIZER), tmp_path / "file.pt")
    assert not (tmp_path / "file.pt").exists()


# The Hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub with one repository, or none: hub(files) or hub(None)."""

    def answer(files: list[str] | None):
        def listed(_self, repository):
            if files is None:
                raise ConnectionError("no route to the Hub\nat all")
            return files

        def download(repository, name):
            if files is None or name not in files:
                raise ConnectionError("no route to the Hub\nat all")
            return str(tmp_path / name)

        monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", listed)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)

    return answer


def test_a_repository_with_one_file_needs_no_more_than_its_name(hub, tmp_path):
    model = tokenizer("lfq")
    official.save(model, tmp_path / "gear-lfq.pt")
    hub(["README.md", "gear-lfq.pt"])
    for name in ("someone/GEAR-LFQ", "someone/GEAR-LFQ/gear-lfq.pt"):
        assert official.load_tokenizer(name, 32).config == model.config


def test_a_repository_with_several_files_asks_which(hub):
    hub(["a.pt", "b.pt"])
    with pytest.raises(
        FileNotFoundError, match=r"holds 2 files of weights \(a.pt, b.pt\); name one as .*/FILE"
    ):
        official.load_tokenizer("someone/many")


def test_offline_the_way_out_is_named(hub):
    hub(None)
    for name in ("someone/GEAR-VQ", "someone/GEAR-VQ/gear-vq.pt"):
        with pytest.raises(
            FileNotFoundError, match=r"no file someone/GEAR-VQ.*\(no route to the Hub at all\)\. Without a"
        ):
            official.load_tokenizer(name)


# Runs


def imported(monkeypatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["gear-studio", "import", *map(str, words)])
    cli.main()


def test_an_imported_tokenizer_is_a_run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    model = tokenizer("ibq")
    torch.save(lightning(families.to_released(model)), "ibq.ckpt")
    imported(monkeypatch, "ibq.ckpt", "ibq", "--image-size", 32)
    run = Run.from_pretrained("runs/ibq")
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.equal(run.tokenizer.reconstruct(images), model.reconstruct(images))
    assert run.finished and run.metrics == [] and run.config["stage"] == "imported"
    with pytest.raises(SystemExit, match="runs/ibq already holds a run"):
        imported(monkeypatch, "ibq.ckpt", "ibq", "--image-size", 32)


def test_a_generator_comes_with_its_tokenizer_or_names_it(monkeypatch, tmp_path, generator):
    monkeypatch.chdir(tmp_path)
    official.save(tokenizer("vq"), "vq.pt")
    official.save(generator, "generator.pt")
    both = {"ema": families.to_released(generator), "vq_ema": families.to_released(tokenizer("vq"))}
    torch.save(both, "both.pt")
    imported(monkeypatch, "vq.pt", "vq", "--image-size", 32)
    imported(monkeypatch, "both.pt", "both", "--image-size", 32)
    with pytest.raises(SystemExit, match="name .* with --parent"):
        imported(monkeypatch, "generator.pt", "alone")
    imported(monkeypatch, "generator.pt", "alone", "--parent", "runs/vq")
    with pytest.raises(SystemExit, match="parent runs/vq is for pictures of 32 px, asked for 64"):
        imported(monkeypatch, "generator.pt", "other", "--parent", "runs/vq", "--image-size", 64)
    grids = []
    for name in ("both", "alone"):
        run = Run.from_pretrained(f"runs/{name}")
        assert run.class_numbers(["9"]) == [9] and run.generator.config == generator.config
        tokens = sampling.sample(run.generator, torch.tensor([1]), seed=3)
        grids.append(run.tokenizer.decode(tokens))
    assert torch.equal(*grids) and Run.from_pretrained("runs/alone").parent.name == "vq"


def test_a_generator_is_imported_for_a_shipped_tokenizer(monkeypatch, tmp_path, generator):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(places, "ZOO", tmp_path / "zoo")
    for module, file in ((tokenizer("vq"), "vq.pt"), (generator, "generator.pt")):
        official.save(module, file)
    official.import_run("vq.pt", tmp_path / "zoo" / "vq", image_size=32)
    imported(monkeypatch, "generator.pt", "alone", "--parent", "vq")
    run = Run.from_pretrained("runs/alone")
    assert run.config["parent"] == "shipped:vq" and run.parent.folder == tmp_path / "zoo" / "vq"
    official.import_run("vq.pt", "elsewhere/vq", image_size=32)
    with pytest.raises(SystemExit, match="parent elsewhere/vq does not lie beside runs/other"):
        imported(monkeypatch, "generator.pt", "other", "--parent", "elsewhere/vq")


def test_an_imported_text_to_image_generator_is_asked_in_words(monkeypatch, tmp_path, painter):
    monkeypatch.chdir(tmp_path)
    vq = Tokenizer(replace(SMALL["vq"], codes=1024))
    torch.save({"ema": families.to_released(painter), "vq_ema": families.to_released(vq)}, "both.pt")
    imported(monkeypatch, "both.pt", "painter", "--image-size", 32)
    run = Run.from_pretrained("runs/painter")
    assert run.config["classes"] == [] and run.config["recipe"]["text_encoder"] == "Qwen/Qwen3-1.7B"
    assert not run.generator.condition.null.any()  # the file does not hold it
    asked = []

    def load(name: str, length: int, device: torch.device):
        assert device == torch.device("cpu")
        return lambda captions: (
            asked.append((name, length, captions)) or torch.rand(len(captions), length, 65)
        )

    monkeypatch.setattr(text_encoders, "load_text_encoder", load)
    given = run.encode(["a red ring"])
    assert given.shape == (1, 300, 65) and run.generator.condition.null.any()
    assert asked == [("Qwen/Qwen3-1.7B", 300, [""]), ("Qwen/Qwen3-1.7B", 300, ["a red ring"])]
    assert sampling.sample(run.generator, given, seed=0).shape == (1, 64)


def test_the_warm_up_starts_from_an_imported_tokenizer_and_a_new_discriminator(tmp_path, teacher_folder):
    """The paper's stage 0. At a learning rate of 0 the tokenizer stays what it started from."""
    released = tokenizer("vq")
    official.save(released, tmp_path / "vq.pt")
    parent = official.import_run(tmp_path / "vq.pt", tmp_path / "vq", image_size=32).folder
    short = {"steps": 2, "batch_size": 2, "log_every": 1, "checkpoint_every": 2}
    recipe = tiny.recipe(teacher_folder, tokenizer=released.config, gan_weight=0.1, tokenizer_lr=0.0, **short)
    training = Training("digits", "warmup", "warmup", recipe, out=tmp_path / "s0", parent=parent)
    run = loop.train(training, progress=False)
    assert run.parent.name == "vq" and run.has("discriminator")
    checkpoints = Checkpoints(run.folder / "checkpoints")
    state = checkpoints.load(checkpoints.newest())
    for held in (run.tokenizer.state_dict(), state["modules"]["tokenizer"], state["ema"]["tokenizer"]):
        assert held.keys() == released.state_dict().keys()
        assert all(torch.equal(value, released.state_dict()[key]) for key, value in held.items())


def test_a_stage_0_file_gives_the_joint_stage_all_three(tmp_path, teacher_folder):
    """`vq`, `vq_ema` and `discriminator`; at a learning rate of 0 they stay what they were."""
    live, average = tokenizer("vq"), tokenizer("vq", seed=1)
    gan, state = patch_gan()
    raw = {"vq": families.to_released(live), "vq_ema": families.to_released(average), "discriminator": state}
    torch.save(raw | {"quantizer": "vq"}, tmp_path / "stage0.pt")
    parent = official.import_run(tmp_path / "stage0.pt", tmp_path / "s0", image_size=32)
    assert torch.equal(parent.tokenizer.to_code.weight, average.to_code.weight)
    short = {"steps": 2, "batch_size": 2, "log_every": 1, "checkpoint_every": 2, "tokenizer_lr": 0.0}
    recipe = tiny.recipe(teacher_folder, gan_weight=0.1, ema=0.999999, ema_climbs=False, **short)
    training = Training("digits", "joint", "gear", recipe, out=tmp_path / "joint", parent=parent.folder)
    checkpoints = Checkpoints(loop.train(training, progress=False).folder / "checkpoints")
    held = checkpoints.load(checkpoints.newest())
    for ours, theirs in (
        (held["modules"]["tokenizer"], live.state_dict()),
        (held["ema"]["tokenizer"], average.state_dict()),
        (held["modules"]["discriminator"], {k: v for k, v in gan.state_dict().items() if "running" not in k}),
    ):
        assert all(
            torch.allclose(ours[key], value, atol=1e-5)
            for key, value in theirs.items()
            if value.is_floating_point()
        )
    torch.save({"vq_ema": raw["vq_ema"], "quantizer": "vq"}, tmp_path / "one.pt")
    assert not official.import_run(tmp_path / "one.pt", tmp_path / "s1", image_size=32).has("live-tokenizer")


def test_a_joint_stage_s_file_trains_on(generator, tmp_path, teacher_folder):
    """A file of `ema`, `vq_ema` and `projectors`, imported, is what `start=joint` goes on with."""
    vq = Tokenizer(replace(SMALL["vq"], codes=64))
    projector = Projector(ProjectorConfig(32, 32, 16))
    projs = {f"projs.0.{k.removeprefix('layers.')}": v for k, v in projector.state_dict().items()}
    raw = {"ema": families.to_released(generator), "vq_ema": families.to_released(vq), "projectors": projs}
    torch.save(raw | {"quantizer": "vq"}, tmp_path / "stage1.pt")
    parent = official.import_run(tmp_path / "stage1.pt", tmp_path / "s1", image_size=32)
    assert torch.equal(parent.projector.layers[2].weight, projector.layers[2].weight)
    short = {"steps": 2, "batch_size": 2, "log_every": 1, "checkpoint_every": 2, "generator_lr": 0.0}
    own = parent.generator.config
    recipe = tiny.recipe(teacher_folder, start="joint", generator=own, projector_hidden=16, **short)
    training = Training("digits", "generator", "gear", recipe, out=tmp_path / "g", parent=parent.folder)
    run = loop.train(training, progress=False)
    for ours, theirs in ((run.generator, generator), (run.projector, projector)):
        assert all(torch.allclose(v, theirs.state_dict()[k], atol=1e-7) for k, v in ours.state_dict().items())


def test_a_generator_of_other_codes_is_refused(monkeypatch, tmp_path, generator):
    monkeypatch.chdir(tmp_path)
    other = Tokenizer(replace(SMALL["vq"], codes=32))
    torch.save({"ar": families.to_released(generator), "vq": families.to_released(other)}, "both.pt")
    with pytest.raises(SystemExit, match="predicts 64 codes and the tokenizer has 32"):
        imported(monkeypatch, "both.pt", "both", "--image-size", 32)


@pytest.mark.parametrize("one", ["vq", "vq_ema"])
@pytest.mark.parametrize("other", ["ar", "ema", "model"])
def test_averaged_and_live_weights_are_never_mixed(one, other, monkeypatch, tmp_path, generator):
    monkeypatch.chdir(tmp_path)
    vq, live = families.to_released(tokenizer("vq")), one == "vq"
    held = {one: vq, other: families.to_released(generator)}
    torch.save(held, "both.pt")
    if live == (other != "ema"):
        official.import_run("both.pt", "runs/both", image_size=32)
        return
    with pytest.raises(ValueError, match=f"tokenizer under {one} and a generator under {other}: .*--parent"):
        official.import_run("both.pt", "runs/both", image_size=32)
    assert not Path("runs").exists()
    # With the other kind of tokenizer beside it there is a pair, and that one is taken.
    pair = "vq_ema" if live else "vq"
    torch.save(held | {pair: {key: value + 1 for key, value in vq.items()}}, "three.pt")
    run = official.import_run("three.pt", "runs/three", image_size=32)
    expected = families.tokenizer_from({key: value + 1 for key, value in vq.items()}, 32, "a file", "vq")
    assert all(torch.equal(v, expected.state_dict()[k]) for k, v in run.tokenizer.state_dict().items())


def test_lightning_s_averages_are_no_pair_with_a_live_generator(tmp_path, generator):
    raw = lightning(families.to_released(tokenizer("ibq")))
    torch.save(raw | {"ar": families.to_released(generator)}, tmp_path / "both.pt")
    with pytest.raises(ValueError, match="under state_dict and a generator under ar"):
        official.import_run(tmp_path / "both.pt", tmp_path / "both", image_size=32)


def test_a_thousand_classes_are_imagenet_s():
    names = official.class_names(1000)
    assert (len(names), names[0], names[207]) == (1000, "tench", "golden retriever")
    assert official.class_names(3) == ["0", "1", "2"]


def test_configs_written_before_there_was_a_choice_of_quantizer_still_load(tmp_path):
    Tokenizer(tiny.TOKENIZER).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if k not in ("quantizer", "architecture")})
    )
    assert Tokenizer.from_pretrained(tmp_path).config == replace(tiny.TOKENIZER, multipliers=[1, 1])
    assert TokenizerConfig().quantizer == "vq"


# What is no file of weights


class Harmful:
    def __reduce__(self):
        return os.system, ("true",)


def test_what_is_no_file_of_weights_is_refused_in_words(tmp_path):
    (tmp_path / "text.pt").write_text("hello there\n")
    (tmp_path / "empty.pt").touch()
    torch.save({"model": Harmful()}, tmp_path / "harmful.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"model": Harmful()}))
    for name in ("text", "empty", "harmful", "plain"):
        with pytest.raises(ValueError) as refused:
            official.import_run(tmp_path / f"{name}.pt", tmp_path / "run", image_size=32)
        said = str(refused.value)
        assert said.startswith(str(tmp_path / name)) and "\n" not in said
        assert "weights_only" not in said and "trusted" not in said
    assert "asks for posix.system" in str(refused.value) or "plain weights" in str(refused.value)
    with pytest.raises(ValueError, match="/etc/passwd is"):
        official.import_run("/etc/passwd", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", [".", "..", "a/.."])
def test_a_run_needs_a_name_of_its_own(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    official.save(tokenizer("vq"), "vq.pt")
    with pytest.raises(SystemExit, match="is not a run's own folder; give it a name"):
        imported(monkeypatch, "vq.pt", name, "--image-size", 32)
    with pytest.raises(SystemExit, match="vq.pt is a file, and a run is a folder"):
        imported(monkeypatch, "vq.pt", tmp_path / "vq.pt" / "run", "--image-size", 32)
    with pytest.raises(ValueError, match="is not a run's own folder"):
        Training("digits", out=Path(name)).completed()
    assert [path.name for path in tmp_path.iterdir()] == ["vq.pt"]


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    held = families.to_released(tokenizer("vq"))
    torch.save(
        {"vq": {key: torch.full_like(value, torch.nan) for key, value in held.items()}}, tmp_path / "nan.pt"
    )
    with pytest.raises(ValueError, match="holds weights that are not numbers .*take an earlier one"):
        official.import_run(tmp_path / "nan.pt", tmp_path / "run", image_size=32)


def test_a_small_file_of_many_channels_is_refused_by_its_header(tmp_path):
    held = families.to_released(tokenizer("lfq"))
    for key in ("encoder.conv_out.weight", "encoder.conv_out.bias"):
        held[key] = held[key][:1].expand(28, *held[key].shape[1:])
    torch.save({"vq": held, "quantizer": "lfq"}, tmp_path / "wide.pt")
    with pytest.raises(ValueError, match=r"wide.pt has codes of 28 signs, 2\^28 of them"):
        official.load_tokenizer(tmp_path / "wide.pt", 32)
