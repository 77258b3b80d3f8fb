"""Tokenizer, generator, rotary positions, and weights on disk."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from gear_studio.files import atomic
from gear_studio.models.conditions import ClassCondition
from gear_studio.models.discriminator import Discriminator, DiscriminatorConfig
from gear_studio.models.generator import FeedForward, Generator, RMSNorm, paper_config, rotary_table, rotate
from gear_studio.models.projector import Projector, ProjectorConfig
from gear_studio.models.tokenizer import PRESETS, Tokenizer, TokenizerConfig


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer(tiny.TOKENIZER).eval()


# Tokenizer


def test_an_image_becomes_indices_and_an_image_again(tokenizer):
    images, _ = tiny.batch()
    assignment = tokenizer.assign(images)
    assert assignment.scores.shape == (4, 16, 64)
    assert torch.equal(assignment.indices, assignment.scores.argmax(-1))
    decoded = tokenizer.decode(assignment.indices)
    assert decoded.shape == images.shape and decoded.abs().max() <= 1
    assert torch.equal(decoded, tokenizer.reconstruct(images))


def test_the_training_pass_shows_the_losses_what_decoding_will_show(tokenizer):
    images, _ = tiny.batch()
    reconstruction, quantized = tokenizer(images)
    torch.testing.assert_close(
        reconstruction, tokenizer.decode_codes(tokenizer.quantizer.codes(quantized.assignment.indices))
    )


def test_tokens_are_in_raster_order():
    torch.manual_seed(0)
    config = replace(tiny.TOKENIZER, multipliers=(1,), patch=8)
    tokenizer = Tokenizer(config)
    for block in tokenizer.encoder.blocks:  # without norms and attention only neighbours are seen
        if hasattr(block, "num_groups") or hasattr(block, "qkv") or hasattr(block, "body"):
            block.forward = lambda x: x
    images = torch.zeros(1, 3, 32, 32)
    changed = images.clone()
    changed[..., 0:8, 24:32] = 1  # the patch in the top right corner: row 0, column 3
    moved = (tokenizer.encode(images) - tokenizer.encode(changed)).abs().sum(-1)[0].nonzero().flatten()
    assert (
        {3} <= set(moved.tolist()) <= {2, 3, 6, 7, 1, 5, 9, 10, 11}
    )  # two 3x3 convolutions reach two patches


def test_an_image_of_a_size_that_f_does_not_divide_is_refused_with_the_next_ones(tokenizer):
    assert tokenizer.assign(torch.zeros(2, 3, 64, 64)).indices.shape == (2, 64)
    with pytest.raises(ValueError, match="width 60, no multiple of f = 8.* 56 or 64"):
        tokenizer.assign(torch.zeros(2, 3, 64, 60))


def test_presets_have_the_grids_they_promise():
    assert TokenizerConfig().grid == 8 and PRESETS["small"] == TokenizerConfig()
    assert PRESETS["vq-16"].grid == 16
    with torch.device("meta"):
        vq16, small = Tokenizer(PRESETS["vq-16"]), Tokenizer(PRESETS["small"])
        assert vq16.encode(torch.zeros(1, 3, 256, 256)).shape == (1, 256, 8)
        assert vq16.decode(torch.zeros(1, 256, dtype=torch.long)).shape == (1, 3, 256, 256)
        assert small.encode(torch.zeros(1, 3, 64, 64)).shape == (1, 64, 8)
        assert small.decode(torch.zeros(1, 64, dtype=torch.long)).shape == (1, 3, 64, 64)
    assert 70e6 < parameters(vq16) < 74e6  # LlamaGen's VQ-16 has 72 M
    assert 0.5e6 < parameters(small) < 3e6


def test_the_discriminator_answers_for_patches():
    assert Discriminator()(torch.zeros(2, 3, 64, 64)).shape == (2, 1, 6, 6)


def test_under_autocast_the_discriminator_stays_in_single_precision():
    torch.manual_seed(0)
    discriminator, images = Discriminator(DiscriminatorConfig(channels=8)), torch.rand(2, 3, 32, 32)
    expected = discriminator(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(discriminator(images), expected)
        assert discriminator(images.bfloat16()).dtype == torch.float32


def test_the_discriminator_is_the_patchgan_of_taming_transformers():
    """Convolutions of 4 x 4 to 64, 128, 256, 512 and 1 channels, the first three by steps of 2."""
    torch.manual_seed(0)
    discriminator = Discriminator()
    convolutions = [m for m in discriminator.modules() if isinstance(m, torch.nn.Conv2d)]
    norms = [m for m in discriminator.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    shape = [(c.in_channels, c.out_channels, c.stride[0], c.bias is not None) for c in convolutions]
    assert shape == [(3, 64, 2, True), (64, 128, 2, False), (128, 256, 2, False)] + [
        (256, 512, 1, False),
        (512, 1, 1, True),
    ]
    assert {(c.kernel_size, c.padding) for c in convolutions} == {((4, 4), (1, 1))}
    assert [n.num_features for n in norms] == [128, 256, 512]
    for convolution in convolutions:
        assert convolution.weight.std().item() == pytest.approx(0.02, rel=0.05)
    scales = torch.cat([norm.weight.detach() for norm in norms])
    assert scales.mean().item() == pytest.approx(1, abs=5e-3)
    assert scales.std().item() == pytest.approx(0.02, rel=0.1)
    # A logit sees 70 x 70 pixels and no more.
    image = torch.zeros(1, 3, 128, 128, requires_grad=True)
    discriminator.eval()(image)[0, 0, 7, 7].backward()
    rows = image.grad.abs().sum((0, 1, 3)).nonzero()
    assert rows.max() - rows.min() + 1 == 70


# Generator


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("size", "millions"), [("B", 111), ("L", 343), ("XL", 775), ("XXL", 1411)])
def test_paper_sizes(size, millions):
    with torch.device("meta"):
        generator = Generator(paper_config(size))
    assert parameters(generator) / 1e6 == pytest.approx(millions, rel=0.005)


def test_an_unknown_size_lists_the_known_ones():
    with pytest.raises(ValueError, match="'M'.*S, B, L, XL"):
        paper_config("M")


@pytest.mark.parametrize(("dim", "hidden"), [(384, 1024), (768, 2048), (1024, 2816), (1280, 3584)])
def test_feed_forward_widths_are_two_thirds_of_four_rounded_up_to_256(dim, hidden):
    with torch.device("meta"):
        assert FeedForward(dim).gate.weight.shape == (hidden, dim)


def test_feed_forward_is_swiglu_without_biases():
    torch.manual_seed(0)
    net, x = FeedForward(8), torch.randn(3, 8)
    gate, up, down = (w.detach().numpy() for w in (net.gate.weight, net.up.weight, net.down.weight))
    a = x.numpy() @ gate.T
    expected = (a / (1 + np.exp(-a)) * (x.numpy() @ up.T)) @ down.T
    torch.testing.assert_close(net(x).detach(), torch.from_numpy(expected), atol=1e-5, rtol=1e-4)


def test_rms_norm_by_hand():
    found = RMSNorm(2)(torch.tensor([3.0, 4.0]))
    assert found.tolist() == pytest.approx([v / math.sqrt(12.5 + 1e-5) for v in (3, 4)])
    tiny_input = RMSNorm(2)(torch.tensor([1e-3, 1e-3]))  # where eps decides
    assert tiny_input.tolist() == pytest.approx([1e-3 / math.sqrt(1e-6 + 1e-5)] * 2)


def test_no_biases_anywhere_and_a_head_that_starts_at_zero():
    torch.manual_seed(0)
    generator = Generator(tiny.GENERATOR)
    assert not [name for name, _ in generator.named_parameters() if name.endswith("bias")]
    assert not generator.head.weight.any()
    assert generator.blocks[0].attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert generator.token_table.std().item() == pytest.approx(0.02, rel=0.1)


def rotated_apart(vector: np.ndarray, row: int, column: int) -> np.ndarray:
    """2-D rotary positions by definition: complex pairs, the first half turned by row, the rest by column."""
    pairs = vector[0::2].astype(complex) + 1j * vector[1::2]
    half = len(pairs) // 2
    for position, offset in ((row, 0), (column, half)):
        for j in range(half):
            pairs[offset + j] *= np.exp(1j * position * 10000 ** (-j / half))
    return np.stack([pairs.real, pairs.imag], axis=1).reshape(-1)


def test_rotation_equals_its_definition():
    grid, width = 4, 16
    x = torch.randn(1 + grid**2, width, dtype=torch.float64)
    found = rotate(x.float(), rotary_table(grid, width))
    assert torch.equal(found[0], x[0].float())  # the condition is not rotated
    for position in range(grid**2):
        expected = rotated_apart(x[1 + position].numpy(), position // grid, position % grid)
        np.testing.assert_allclose(found[1 + position].numpy(), expected, atol=1e-5)


def test_rotated_products_depend_on_the_offset_alone():
    grid, width = 6, 16
    q, k = torch.randn(width), torch.randn(width)
    angles = rotary_table(grid, width)[1:].view(grid, grid, width // 2, 2)

    def product(r1: int, c1: int, r2: int, c2: int) -> float:
        return (rotate(q[None], angles[r1, c1][None]) @ rotate(k[None], angles[r2, c2][None]).T).item()

    here = product(1, 0, 3, 2)
    assert product(3, 3, 5, 5) == pytest.approx(here, abs=1e-4)
    assert product(0, 2, 2, 4) == pytest.approx(here, abs=1e-4)
    assert abs(product(1, 0, 2, 2) - here) > 1e-3 and abs(product(1, 0, 3, 1) - here) > 1e-3


def test_a_token_changes_only_the_logits_after_it():
    gen = tiny.generator()
    embeddings = torch.randn(1, 15, 32)
    changed = embeddings.clone()
    changed[0, 6] += 1
    with torch.no_grad():
        (before, tap_before), (after, tap_after) = (
            gen(e, torch.tensor([1]), tap=2) for e in (embeddings, changed)
        )
    # embeddings[6] is token 7, at position 7 behind the condition; position 6 still predicts it unseen.
    assert torch.equal(before[:, :7], after[:, :7]) and torch.equal(tap_before[:, :7], tap_after[:, :7])
    assert ((before - after).abs().amax(-1)[0, 7:] > 1e-4).all()


def test_the_condition_reaches_every_position():
    gen, embeddings = tiny.generator(), torch.randn(1, 15, 32)
    with torch.no_grad():
        one, other = gen(embeddings, torch.tensor([1])), gen(embeddings, torch.tensor([2]))
    assert ((one - other).abs().amax(-1) > 1e-4).all()


def test_the_tap_is_the_output_of_its_block_and_later_blocks_do_not_run_for_it():
    gen, embeddings, labels = tiny.generator(), torch.randn(2, 15, 32), torch.tensor([0, 1])
    outputs, runs = {}, []
    for number, block in enumerate(gen.blocks, start=1):
        block.register_forward_hook(lambda _m, _i, out, n=number: outputs.update({n: out}) or runs.append(n))
    with torch.no_grad():
        logits, hidden = gen(embeddings, labels, tap=2)
        assert torch.equal(hidden, outputs[2]) and hidden.shape == (2, 16, 32)
        assert torch.equal(logits, gen(embeddings, labels))
        runs.clear()
        (alone,) = gen.hidden(embeddings, labels, [2])
    assert torch.equal(alone, hidden) and runs == [1, 2]


@pytest.mark.parametrize("blocks", [[0], [4], [1, 4]])
def test_blocks_that_do_not_exist_are_refused(blocks):
    with pytest.raises(ValueError, match=r"not within 1\.\.3"):
        tiny.generator().hidden(torch.randn(1, 15, 32), torch.tensor([0]), blocks)


@pytest.mark.parametrize("wrong", [{"heads": 16}, {"tap": 4}, {"tap": 0}])
def test_a_configuration_that_cannot_work_is_refused(wrong):
    with pytest.raises(ValueError, match="head width divisible by 4|not one of the blocks|tap is 0"):
        Generator(replace(tiny.GENERATOR, **wrong))


def test_labels_are_dropped_to_the_null_in_training_only():
    torch.manual_seed(0)
    condition = ClassCondition(classes=3, dim=4, drop=0.25)
    labels = torch.ones(4000, dtype=torch.long)
    kept, null = condition.table.weight[1], condition.table.weight[3]
    found = condition(condition.with_nulls(labels))[:, 0]
    dropped = (found == null).all(-1)
    assert ((found == kept).all(-1) | dropped).all()
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.03)
    condition.eval()
    assert (condition(condition.with_nulls(labels))[:, 0] == kept).all()
    assert (condition(condition.nulls(2))[:, 0] == null).all()


def test_dropout_is_active_in_training_only():
    gen, embeddings, label = tiny.generator(label_drop=0.0), torch.randn(1, 15, 32), torch.tensor([0])
    with torch.no_grad():
        assert torch.equal(gen(embeddings, label), gen(embeddings, label))
        gen.train()
        assert not torch.equal(gen(embeddings, label), gen(embeddings, label))


# On disk


@pytest.mark.parametrize(
    "model",
    [
        lambda: Tokenizer(tiny.TOKENIZER),
        lambda: tiny.generator(),
        lambda: Projector(ProjectorConfig(8, 4, hidden=16)),
    ],
    ids=["tokenizer", "generator", "projector"],
)
def test_weights_survive_the_disk_in_full_and_half_precision(model, tmp_path):
    saved = model().train()
    saved.save_pretrained(tmp_path / "full")
    saved.save_pretrained(tmp_path / "half", dtype=torch.float16)
    loaded = type(saved).from_pretrained(tmp_path / "full")
    assert not loaded.training and json.dumps(asdict(loaded.config)) == json.dumps(asdict(saved.config))
    for name, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    half = type(saved).from_pretrained(tmp_path / "half")
    for name, value in saved.state_dict().items():
        assert torch.equal(half.state_dict()[name], value.half().float())
    sizes = [(tmp_path / kind / "model.safetensors").stat().st_size for kind in ("full", "half")]
    assert sizes[1] < 0.7 * sizes[0]


def test_truncated_weights_are_refused_by_name(tmp_path):
    tiny.generator().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="model.safetensors is not a complete safetensors file"):
        Generator.from_pretrained(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="model.safetensors is not a complete safetensors file"):
        Generator.from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="no weights at .*model.safetensors"):
        Generator.from_pretrained(tmp_path)


def test_foreign_weights_are_refused_naming_keys_and_shapes(tmp_path):
    tiny.generator().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    state["stranger"] = state.pop("norm.weight")
    state["head.weight"] = state["head.weight"][:5].clone()
    save_file(state, path)
    with pytest.raises(ValueError) as refusal:
        Generator.from_pretrained(tmp_path)
    for part in (
        "does not fit Generator",
        "3 keys",
        "missing norm.weight",
        "unexpected stranger",
        "head.weight has shape (5, 32), expected (64, 32)",
    ):
        assert part in str(refusal.value)


def test_another_model_s_folder_and_broken_configs_are_refused(tmp_path):
    Tokenizer(tiny.TOKENIZER).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="config.json does not describe a Generator"):
        Generator.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"dim": 3')
    with pytest.raises(ValueError, match="config.json is not valid JSON"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="is not a Tokenizer: it has no config.json"):
        Tokenizer.from_pretrained(tmp_path)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with atomic(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
