"""Who is updated by what: for each loss exactly the intended parameters receive gradient."""

import functools
from collections import defaultdict
from copy import deepcopy
from dataclasses import replace

import pytest
import tiny
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gear_studio.models.quantizers import QUANTIZERS
from gear_studio.models.teachers import Teacher
from gear_studio.models.tokenizer import Tokenizer
from gear_studio.readout import Assignment
from gear_studio.training import stages
from gear_studio.training.execution import Execution
from gear_studio.training.loop import Meter
from gear_studio.training.objectives import perceptual_loss
from gear_studio.training.stages import Stage

GAN = {"gan_weight": 0.1}
ARMS = [
    pytest.param("warmup", "warmup", {}, ["tokenizer"], id="warmup"),
    pytest.param("warmup", "warmup", GAN, ["tokenizer", "discriminator"], id="warmup-gan"),
    pytest.param("joint", "gear", {}, ["tokenizer", "aligned"], id="gear"),
    pytest.param("joint", "gear", GAN, ["tokenizer", "discriminator", "aligned"], id="gear-gan"),
    pytest.param("joint", "straight-through", {}, ["tokenizer", "aligned"], id="straight-through"),
    pytest.param(
        "joint", "straight-through", GAN, ["tokenizer", "discriminator", "aligned"], id="straight-through-gan"
    ),
    pytest.param("joint", "straight-through-alignment", {}, ["tokenizer", "aligned"], id="through-alignment"),
    pytest.param("joint", "soft-ntp", {}, ["tokenizer", "aligned"], id="soft-ntp"),
    pytest.param("joint", "soft-ntp", GAN, ["tokenizer", "discriminator", "aligned"], id="soft-ntp-gan"),
    pytest.param("joint", "latent", {}, ["tokenizer"], id="latent"),
    pytest.param("joint", "latent", GAN, ["tokenizer", "discriminator"], id="latent-gan"),
    pytest.param("joint", "continued", {}, ["tokenizer"], id="continued"),
    pytest.param("joint", "continued", GAN, ["tokenizer", "discriminator"], id="continued-gan"),
    pytest.param("generator", "baseline", {}, ["aligned"], id="baseline"),
    pytest.param("generator", "gear", {}, ["aligned"], id="generator"),
    *(
        pytest.param(
            "joint", arm, {"generator": tiny.CAPTIONED}, ["tokenizer", "aligned"], id=f"{arm}-caption"
        )
        for arm in ("gear", "straight-through", "soft-ntp")
    ),
    pytest.param("generator", "gear", {"generator": tiny.CAPTIONED}, ["aligned"], id="generator-caption"),
]

ENCODER = {"tokenizer.encoder", "tokenizer.to_code"}
CODES = ENCODER | {"tokenizer.quantizer"}
PICTURE = ENCODER | {
    "tokenizer.from_code",
    "tokenizer.decoder",
}  # the codebook is behind the decoder's stop-gradient
UP_TO_TAP = {"condition", "tokens", "blocks.0", "blocks.1"}
GENERATOR = {f"aligned.generator.{part}" for part in UP_TO_TAP | {"blocks.2", "norm", "head"}}
REACHED = {  # by the gradient of each loss
    "l1": PICTURE,
    "perceptual": PICTURE,
    "gan": PICTURE,
    "quantizer": CODES,
    "code_entropy": CODES,
    "alignment_soft": CODES,
    "alignment_straight_through": CODES,
    "ntp_straight_through": CODES,
    "ntp_soft": CODES,
    "alignment_latent": ENCODER | {"latent"},
    "discriminator": {"discriminator"},
    "ntp": GENERATOR,
    "alignment_hard": {f"aligned.generator.{part}" for part in UP_TO_TAP} | {"aligned.projectors"},
}


def everything(stage: Stage) -> dict[str, nn.Parameter]:
    """All parameters, trained or not, by name."""
    modules = {"tokenizer": stage.tokenizer, "teacher": stage.teacher, **stage.modules}
    return {f"{name}.{key}": p for name, module in modules.items() for key, p in module.named_parameters()}


def group(name: str) -> str:
    """The part of the model that the table above speaks of."""
    parts = name.split(".")
    if name.startswith("aligned.generator.blocks"):
        return ".".join(parts[:4])
    depth = {"tokenizer": 2, "aligned": 2}.get(parts[0], 1)
    return ".".join(parts[: 3 if name.startswith("aligned.generator") else depth])


def copies(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in parameters.items()}


@pytest.mark.parametrize(("name", "arm", "changes", "updates"), ARMS)
def test_each_loss_reaches_exactly_the_intended_parameters(name, arm, changes, updates, monkeypatch):
    stage = tiny.stage(name, arm, **changes)
    parameters = everything(stage)
    reached: dict[str, set[str]] = {}
    really_backward = Stage._backward

    def look_first(self, objective, losses):
        for loss in losses.keys() - reached.keys() - {"tokenizer", "generator"}:
            wanted = [p for p in parameters.values() if p.requires_grad]
            gradients = torch.autograd.grad(losses[loss], wanted, retain_graph=True, allow_unused=True)
            names = [n for n, p in parameters.items() if p.requires_grad]
            moved = {n for n, g in zip(names, gradients, strict=True) if g is not None and g.any()}
            reached[loss] = {group(n) for n in moved}
        really_backward(self, objective, losses)

    monkeypatch.setattr(Stage, "_backward", look_first)
    stage.step(1, *tiny.asked(stage))
    expected = {"l1", "quantizer", "code_entropy", "perceptual"} if "tokenizer" in updates else set()
    expected |= {"gan", "discriminator"} if "discriminator" in updates else set()
    expected |= {"ntp", "alignment_hard"} if "aligned" in updates else set()
    if name == "joint":
        expected |= {
            "gear": {"alignment_soft"},
            "straight-through": {"ntp_straight_through", "alignment_straight_through"},
            "straight-through-alignment": {"alignment_straight_through"},
            "soft-ntp": {"ntp_soft", "alignment_soft"},
            "latent": {"alignment_latent"},
            "continued": set(),
        }[arm]
    assert reached == {loss: REACHED[loss] for loss in expected}


@pytest.mark.parametrize(("name", "arm", "changes", "updates"), ARMS)
def test_each_update_gives_gradients_to_its_own_module_alone(name, arm, changes, updates, monkeypatch):
    stage = tiny.stage(name, arm, **changes)
    parameters = everything(stage)
    before = copies(parameters)
    seen = []
    really_backward = Stage._backward

    def watch(self, objective, losses):
        had = {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None}
        really_backward(self, objective, losses)
        now = {n: p.grad for n, p in parameters.items() if p.grad is not None}
        assert all(torch.equal(now[n], had[n]) for n in had)
        assert any(now[n].any() for n in now.keys() - had.keys())
        seen.append(("aligned" if objective == "generator" else objective, now.keys() - had.keys()))

    monkeypatch.setattr(Stage, "_backward", watch)
    stage.step(1, *tiny.asked(stage))
    assert [which for which, _ in seen] == updates
    beside = {"tokenizer": "latent."} if arm == "latent" else {}  # that projector learns in update 1
    for which, here in seen:
        own = (which + ".", beside.get(which, which + "."))
        assert here == {n for n in parameters if n.startswith(own)}
    changed = {n.split(".")[0] for n, p in parameters.items() if not torch.equal(p, before[n])}
    assert changed == set(updates) | ({"latent"} if arm == "latent" else set())


def test_every_part_of_what_is_trained_moves():
    stage = tiny.stage("joint", "gear", **GAN)
    before = copies(everything(stage))
    stage.step(1, *tiny.batch())
    moved = defaultdict(set)
    for name, parameter in everything(stage).items():
        moved[not torch.equal(parameter, before[name])].add(group(name))
    assert moved[True] == CODES | PICTURE | GENERATOR | {"aligned.projectors", "discriminator"}
    assert "teacher" in moved[False]


@pytest.mark.parametrize("name", ["warmup", "joint", "generator"])
def test_the_teacher_is_never_given_a_gradient_and_never_trains(name):
    stage = tiny.stage(name, "warmup" if name == "warmup" else "gear")
    stage.step(1, *tiny.batch())
    assert all(p.grad is None and not p.requires_grad for p in stage.teacher.parameters())
    assert not any(module.training for module in stage.teacher.encoder.modules())


def modes(stage: Stage) -> list[tuple[bool, bool]]:
    """For each pass through the generator to come: is it in training mode, and would its weights learn?"""
    seen = []
    generator = stage.modules["aligned"].generator.eval()
    generator.blocks[0].register_forward_pre_hook(
        lambda *_: seen.append(
            (
                any(m.training for m in stage.modules["aligned"].modules()),
                any(p.requires_grad for p in stage.modules["aligned"].parameters()),
            )
        )
    )
    return seen


@pytest.mark.parametrize("arm", ["gear", "straight-through", "soft-ntp"])
def test_the_generator_is_frozen_and_in_eval_mode_in_update_1_and_trains_in_update_3(arm):
    stage = tiny.stage("joint", arm)
    seen = modes(stage)
    stage.step(1, *tiny.batch())
    stage.step(2, *tiny.batch(1))
    assert seen == [(False, False), (True, True)] * 2
    assert all(m.training for m in stage.modules["aligned"].modules())
    assert all(p.requires_grad for p in stage.modules["aligned"].parameters())


def test_under_autocast_the_pass_before_the_pieces_takes_no_gradient_from_the_tokenizer(monkeypatch):
    """Older torch would use again what autocast has cast without a gradient: it must be gone before."""
    stage = tiny.stage("joint", "gear", execution=Execution(micro_batch=2))
    monkeypatch.setattr(stage.accelerator, "autocast", lambda: torch.autocast("cpu", torch.bfloat16))
    really_clear, order = torch.clear_autocast_cache, []
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: (order.append("clear"), really_clear()))
    stage.tokenizer.register_forward_pre_hook(lambda *_: order.append("piece"))
    stage.step(1, *tiny.batch())
    assert order == ["clear", "piece", "piece", "clear"]  # the last by autocast itself
    assert not [n for n, p in stage.tokenizer.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("quantizer", list(QUANTIZERS))
def test_under_autocast_scores_have_gradients_in_single_precision(quantizer, monkeypatch):
    config = replace(tiny.TOKENIZER, quantizer=quantizer, code_dim=6 if quantizer == "lfq" else 8)
    monkeypatch.setattr(tiny, "TOKENIZER", config)
    stage = tiny.stage("joint", "gear")
    monkeypatch.setattr(stage.accelerator, "autocast", lambda: torch.autocast("cpu", torch.bfloat16))
    scores, passed = stage.tokenizer.quantizer.scores, []

    def watch(z: torch.Tensor) -> torch.Tensor:
        z = z.float().view(z.shape)  # of its own: what reaches it has passed the scores
        answer = scores(z)
        if answer.requires_grad:
            seen = {"z": z.detach()}
            answer.register_hook(lambda gradient: seen.update(incoming=gradient))
            z.register_hook(lambda gradient: seen.update(outgoing=gradient))
            passed.append(seen)
        return answer

    monkeypatch.setattr(stage.tokenizer.quantizer, "scores", watch)
    before = {name: p.detach().clone() for name, p in stage.tokenizer.quantizer.named_parameters()}
    stage.step(1, *tiny.batch())
    (seen,) = passed
    with torch.no_grad():
        for name, parameter in stage.tokenizer.quantizer.named_parameters():
            parameter.copy_(before[name])
    z = seen["z"].requires_grad_()
    (expected,) = torch.autograd.grad(scores(z), z, seen["incoming"])
    assert expected.abs().max() > 0 and seen["outgoing"].dtype == torch.float32
    torch.testing.assert_close(seen["outgoing"], expected, rtol=1e-5, atol=1e-6 * expected.abs().max().item())


def test_captions_in_pieces_add_up_to_the_batch():
    never = {"generator": tiny.replace(tiny.CAPTIONED, label_drop=0.0, dropout=0.0)}
    whole = tiny.stage("generator", "gear", **never)
    pieces = tiny.stage("generator", "gear", execution=Execution(micro_batch=2, recompute=True), **never)
    found = [stage.step(1, *tiny.asked(stage)) for stage in (whole, pieces)]
    torch.testing.assert_close(found[0]["ntp"], found[1]["ntp"])
    gradients = [[p.grad for p in stage.modules["aligned"].parameters()] for stage in (whole, pieces)]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


def test_guidance_runs_only_the_blocks_up_to_the_tap():
    stage = tiny.stage("joint", "gear")
    ran = []
    for number, block in enumerate(stage.modules["aligned"].generator.blocks, start=1):
        block.register_forward_hook(lambda *_, n=number: ran.append(n))
    stage.step(1, *tiny.batch())
    assert ran == [1, 2] + [1, 2, 3]


def guidance(stage: Stage, seed: int = 0) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The guidance losses and what they make of the tokenizer's gradient."""
    images, labels = tiny.batch()
    torch.manual_seed(seed)
    losses: dict[str, Tensor] = {}
    with stages.frozen(stage.modules["aligned"]):
        loss = stage.compute_guidance(stage.tokenizer.assign(images), labels, [stage.teacher(images)], losses)
    wanted = [*stage.tokenizer.encoder.parameters(), stage.tokenizer.quantizer.codebook]
    return losses, list(torch.autograd.grad(loss, wanted))


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("arm", ["gear", "straight-through", "soft-ntp"])
def test_label_drop_and_dropout_are_off_in_update_1(arm):
    certain = {"generator": tiny.replace(tiny.GENERATOR, label_drop=1.0, dropout=0.5)}
    never = {"generator": tiny.replace(tiny.GENERATOR, label_drop=0.0, dropout=0.0)}
    dropping, plain = tiny.stage("joint", arm, **certain), tiny.stage("joint", arm, **never)
    assert equal(guidance(dropping, seed=1)[1], guidance(plain, seed=2)[1])
    images, labels = tiny.batch()
    with torch.no_grad():
        assignment = dropping.tokenizer.assign(images)
        first, second = (dropping.modules["aligned"](assignment, labels)[0] for _ in range(2))
    assert not torch.equal(first, second)  # while in update 3 they are on


def test_next_token_prediction_reaches_the_tokenizer_in_the_two_arms_that_let_it_only():
    for arm, blind in (("gear", True), ("straight-through", False), ("soft-ntp", False)):
        stage = tiny.stage("joint", arm)
        before = guidance(stage)[1]
        with torch.no_grad():  # the head decides what is predicted and nothing else
            stage.modules["aligned"].generator.head.weight.copy_(torch.randn(64, 32))
        assert equal(before, guidance(stage)[1]) == blind, arm


def test_guidance_is_weighted_and_read_at_tau():
    losses, gradient = guidance(tiny.stage("joint", "gear", alignment_weight=0.5))
    doubled, twice = guidance(tiny.stage("joint", "gear", alignment_weight=1.0))
    assert torch.equal(losses["alignment_soft"], doubled["alignment_soft"])
    torch.testing.assert_close([2 * g for g in gradient], twice)
    sharper, _ = guidance(tiny.stage("joint", "gear", tau=0.01))
    assert not torch.equal(sharper["alignment_soft"], losses["alignment_soft"])


def test_straight_through_alignment_has_the_hard_value_and_the_soft_gradient():
    """The released option: soft + (one-hot - soft), the latter detached, of softmax(A / tau)."""
    stage = tiny.stage("joint", "straight-through-alignment", tau=0.3, alignment_weight=2.0)
    images, labels = tiny.batch()
    aligned = stage.modules["aligned"]
    assignment = stage.tokenizer.assign(images)
    scores = assignment.scores.detach().requires_grad_()
    targets, losses = stage.ask_teachers(images)[1], {}
    with stages.frozen(aligned):
        guidance = stage.compute_guidance(Assignment(scores, assignment.indices), labels, targets, losses)
        (found,) = torch.autograd.grad(guidance, scores)
        soft = torch.softmax(scores / 0.3, -1)
        one_hot = nn.functional.one_hot(assignment.indices, soft.shape[-1]).float()
        seen = (soft + (one_hot - soft).detach()) @ aligned.generator.token_table
        hidden = aligned.generator.hidden(seen[:, :-1], labels, [aligned.generator.config.tap])[0]
        expected = (
            -2.0 * nn.functional.cosine_similarity(aligned.projectors(hidden)[0], targets[0], dim=-1).mean()
        )
        (wanted,) = torch.autograd.grad(expected, scores)
    assert guidance.item() == pytest.approx(expected.item(), abs=1e-5)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-7)
    assert found.any()


def test_soft_ntp_is_the_next_token_loss_of_the_chosen_codes_on_soft_embeddings():
    stage = tiny.stage("joint", "soft-ntp", alignment_weight=0.0)
    losses, gradient = guidance(stage)
    images, labels = tiny.batch()
    assignment = stage.tokenizer.assign(images)
    generator = stage.modules["aligned"].generator.eval()
    mixed = torch.softmax(assignment.scores / stage.recipe.tau, -1) @ generator.token_table.detach()
    logits = generator(mixed[:, :-1], labels)
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), assignment.indices.flatten())
    torch.testing.assert_close(losses["ntp_soft"], expected)
    wanted = [*stage.tokenizer.encoder.parameters(), stage.tokenizer.quantizer.codebook]
    torch.testing.assert_close(gradient, list(torch.autograd.grad(expected, wanted)))


def test_latent_aligns_the_latents_and_its_projector_learns_at_the_generator_s_rate():
    stage = tiny.stage("joint", "latent", alignment_weight=0.5, tokenizer_lr=1e-4, generator_lr=3e-3)
    images, labels = tiny.batch()
    projector = stage.modules["latent"][0]
    with torch.no_grad():
        z = nn.functional.normalize(stage.tokenizer.encode(images), dim=-1)
        cosine = nn.functional.cosine_similarity(projector(z), stage.teacher(images), dim=-1)
    found = stage.step(1, images, labels)
    torch.testing.assert_close(found["alignment_latent"], -cosine.mean())
    others = found["l1"] + found["quantizer"] + 0.05 * found["code_entropy"] + found["perceptual"]
    torch.testing.assert_close(found["tokenizer"], others + 0.5 * found["alignment_latent"])
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in stage.optimizers.items()}
    assert rates == {"tokenizer": 1e-4, "latent": 3e-3}
    assert set(stage.gather_parts()) == {"tokenizer", "latent-projector"}


def test_another_network_may_look_at_reconstructions_than_the_one_that_aligns(monkeypatch):
    shipped = Teacher.random(3, grid=4)
    monkeypatch.setattr(stages.Teacher, "from_pretrained", lambda name, grid: shipped)
    stage = tiny.stage("joint", "gear", perceptual="tiny")
    images, labels = tiny.batch()
    with torch.no_grad():
        reconstruction, _ = stage.tokenizer(images)
        ours, theirs = (shipped.features(x, (1, 2)) for x in (reconstruction, images))
    found = stage.step(1, images, labels)
    torch.testing.assert_close(found["perceptual"], perceptual_loss(ours, theirs))
    assert stage.modules["aligned"].projectors[0].config.teacher_dim == stage.teacher.dim == 32


def test_guidance_is_what_training_the_tokenizer_adds():
    """`continued` differs from `gear` by the guidance and by nothing else."""
    gear, continued = tiny.stage("joint", "gear"), tiny.stage("joint", "continued")
    unguided = tiny.stage("joint", "gear", alignment_weight=0.0)
    for stage in (gear, continued, unguided):
        stage.step(1, *tiny.batch())
    same, other = (
        [torch.equal(a, b) for a, b in zip(x.tokenizer.parameters(), y.tokenizer.parameters(), strict=True)]
        for x, y in ((unguided, continued), (gear, continued))
    )
    assert all(same) and not all(other)


def test_the_discriminator_of_update_1_is_the_function_that_update_2_trains(monkeypatch):
    """It normalises by the batch at hand in both, as in taming-transformers and LlamaGen."""
    stage = tiny.stage("warmup", "warmup", **GAN)
    discriminator = stage.modules["discriminator"]
    seen = []
    discriminator.register_forward_hook(lambda module, given, logits: seen.append((given[0], logits)))
    copy = deepcopy(discriminator).train()
    copy._forward_hooks.clear()
    images, labels = tiny.batch()
    found = stage.step(1, images, labels)
    (guiding, by_guide), (_, _), (judged, _) = seen
    assert torch.equal(guiding, judged) and discriminator.training
    torch.testing.assert_close(by_guide, copy(judged))
    assert found["gan"] == -by_guide.mean()
    # Running statistics would have given something else.
    assert not torch.allclose(by_guide, copy.eval()(judged), rtol=0.1)


@pytest.mark.parametrize(("processes", "device"), [(2, "cuda"), (1, "cuda"), (2, "cpu")])
def test_the_discriminator_s_batchnorm_is_synchronised_over_gpus(processes, device, monkeypatch):
    """Asked without a GPU: nothing is moved to the device. On a CPU torch cannot synchronise it."""
    parts = tiny.teacher(), Accelerator(cpu=True), Tokenizer(tiny.TOKENIZER)
    zeros = torch.zeros
    monkeypatch.setattr(Accelerator, "num_processes", processes)
    monkeypatch.setattr(Accelerator, "device", torch.device(device))
    monkeypatch.setattr(Accelerator, "prepare", lambda self, module: module)
    monkeypatch.setattr(nn.Module, "to", lambda self, *_, **__: self)
    monkeypatch.setattr(torch, "zeros", lambda *size, device=None, **more: zeros(*size, **more))
    discriminator = Stage("warmup", "warmup", tiny.recipe(**GAN), *parts).modules["discriminator"]
    norms = [module for module in discriminator.modules() if "BatchNorm" in type(module).__name__]
    expected = nn.SyncBatchNorm if (processes, device) == (2, "cuda") else nn.BatchNorm2d
    assert {type(module) for module in norms} == {expected}


def test_update_3_learns_from_detached_indices_of_this_very_step(monkeypatch):
    stage = tiny.stage("joint", "gear")
    given = []
    monkeypatch.setattr(
        stages,
        "next_token_loss",
        lambda logits, indices: given.append(indices) or nn.functional.mse_loss(logits, logits * 0),
    )
    images, labels = tiny.batch()
    with torch.no_grad():
        expected = stage.tokenizer.assign(images).indices
    stage.step(1, images, labels)
    assert torch.equal(given[0], expected)


def test_the_generator_stage_leaves_the_tokenizer_alone_and_in_eval_mode():
    stage = tiny.stage("generator", "gear")
    assert not any(p.requires_grad for p in stage.tokenizer.parameters())
    assert not stage.tokenizer.training and "tokenizer" not in stage.optimizers


def test_gradients_are_clipped_to_the_norm_and_the_norm_before_is_reported(monkeypatch):
    stage = tiny.stage("joint", "gear", clip=1e-3)
    norms = {}
    for name, optimizer in stage.optimizers.items():

        def step(name=name):
            gradients = [p.grad for p in stage.modules[name].parameters()]
            norms[name] = nn.utils.get_total_norm(gradients).item()

        monkeypatch.setattr(optimizer, "step", step)
    losses = stage.step(1, *tiny.batch())
    assert norms == {"tokenizer": pytest.approx(1e-3, rel=1e-3), "aligned": pytest.approx(1e-3, rel=1e-3)}
    assert losses["grad_norm_tokenizer"] > 1e-2 and losses["grad_norm_generator"] > 1e-2


def test_the_tokenizer_objective_is_the_weighted_sum_of_its_terms():
    stage = tiny.stage("joint", "gear", gan_weight=0.1, entropy_weight=0.05, perceptual_weight=0.7)
    found = stage.step(1, *tiny.batch())
    expected = (
        found["l1"]
        + found["quantizer"]
        + 0.05 * found["code_entropy"]
        + 0.7 * found["perceptual"]
        + 0.1 * found["gan"]
        + 0.5 * found["alignment_soft"]
    )
    torch.testing.assert_close(found["tokenizer"], expected)
    torch.testing.assert_close(found["generator"], found["ntp"] + 0.5 * found["alignment_hard"])


def test_the_average_weights_follow_the_trained_ones():
    stage = tiny.stage("joint", "gear", ema=0.9)
    for number in (1, 2, 3, 4):
        before = copies(dict(stage.ema["tokenizer"].module.named_parameters()))
        stage.step(number, *tiny.batch(number))
    decay = stage.ema["tokenizer"].get_decay(4)
    assert 0.5 < decay < 0.9  # still warming up
    trained = dict(stage.tokenizer.named_parameters())
    for name, average in stage.gather_parts()["tokenizer"].named_parameters():
        torch.testing.assert_close(average, decay * before[name] + (1 - decay) * trained[name])
    assert set(stage.gather_parts()) == {"tokenizer", "generator", "projector"}


def test_an_average_that_does_not_climb_has_its_decay_from_the_first_step():
    stage = tiny.stage("generator", "gear", ema=0.9, ema_climbs=False)
    before = copies(dict(stage.ema["aligned"].module.named_parameters()))
    stage.step(1, *tiny.batch())
    after = dict(stage.modules["aligned"].named_parameters())
    for name, average in stage.ema["aligned"].module.named_parameters():
        assert torch.allclose(average, 0.9 * before[name] + 0.1 * after[name], atol=1e-7)
    assert any(not torch.equal(before[name], after[name]) for name in after)


def test_every_optimizer_takes_its_rate_from_the_number_of_the_step():
    """With a warm-up of one step, as released, the first step changes no weight."""
    stage = tiny.stage("joint", "gear", lr_warmup=1, tokenizer_lr=1e-3, generator_lr=2e-3, **GAN)
    before = copies(everything(stage))
    stage.step(1, *tiny.batch())
    assert all(torch.equal(before[name], value) for name, value in everything(stage).items())
    stage.step(2, *tiny.batch())
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in stage.optimizers.items()}
    assert rates == {"tokenizer": 1e-3, "discriminator": 1e-3, "aligned": 2e-3}
    moved = {
        name.split(".")[0]
        for name, value in everything(stage).items()
        if not torch.equal(before[name], value)
    }
    assert moved == {"tokenizer", "discriminator", "aligned"}


def test_codebook_metrics_count_the_codes_since_the_last_call():
    stage = tiny.stage("generator", "gear")
    with torch.no_grad():
        images = [tiny.batch(seed)[0] for seed in range(3)]
        indices = [stage.tokenizer.assign(image).indices.unique() for image in images]
    for number in (0, 1):
        stage.step(number + 1, images[number], tiny.batch()[1])
    used = torch.cat(indices[:2]).unique()
    assert stage.measure_codes()["usage"].item() == pytest.approx(len(used) / 64)
    stage.step(3, images[2], tiny.batch()[1])
    assert stage.measure_codes()["usage"].item() == pytest.approx(len(indices[2]) / 64)


def test_frozen_lets_gradients_through_and_gives_the_module_back_as_it_was():
    layer = nn.Linear(2, 2).train()
    x = torch.randn(1, 2, requires_grad=True)
    with stages.frozen(layer):
        assert not layer.training
        layer(x).sum().backward()
    assert x.grad.any() and layer.weight.grad is None
    assert layer.training and layer.weight.requires_grad


def two_steps(stage: Stage) -> list[dict[str, Tensor]]:
    """The losses and gradient norms of two steps, the second of weights that the first has changed."""
    losses = []
    for number in (1, 2):
        torch.manual_seed(number)
        losses.append(stage.step(number, *tiny.batch(number)))
    return losses


@pytest.mark.parametrize("arm", ["gear", "straight-through", "soft-ntp"])
def test_recomputing_activations_changes_nothing(arm):
    """Neither dropout, whose dice must fall again as before, nor the generator's being frozen in update 1."""
    plain, again = tiny.stage("joint", arm), tiny.stage("joint", arm, execution=Execution(recompute=True))
    ran = []
    for block in again.modules["aligned"].generator.blocks:
        block.attention.register_forward_hook(lambda *_: ran.append(1))
    torch.testing.assert_close(two_steps(again), two_steps(plain), rtol=1e-6, atol=1e-6)
    forward = {"gear": 2 + 3}.get(arm, 3 + 3)
    assert len(ran) == 2 * 2 * forward  # two steps, each block again in the backward pass


@pytest.mark.slow
def test_compiled_steps_are_the_same_steps(monkeypatch):
    """Traced and differentiated by the compiler, and run without its code generator."""
    eager = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", eager)
    torch._dynamo.utils.counters.clear()
    still = {
        "generator": tiny.replace(tiny.GENERATOR, dropout=0.0),
        "tokenizer_lr": 3e-5,
        "generator_lr": 1e-4,
        **GAN,
    }
    plain = tiny.stage("joint", "gear", **still)
    compiled = tiny.stage("joint", "gear", execution=Execution(compile=True, recompute=True), **still)
    torch.testing.assert_close(two_steps(compiled), two_steps(plain), rtol=1e-3, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 5  # two halves, blocks, the teacher's
    torch.compiler.reset()


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize(
    ("name", "arm"),
    [*(("joint", arm) for arm in ("gear", "straight-through", "soft-ntp", "latent")), ("generator", "gear")],
)
def test_between_two_logs_nothing_is_read_from_the_device(name, arm, pieces, monkeypatch):
    stage = tiny.stage(name, arm, execution=Execution(micro_batch=4 // pieces), **GAN)
    meter = Meter(stage.accelerator)
    for optimizer in stage.optimizers.values():  # AdamW counts its steps on the CPU, fused on the device
        monkeypatch.setattr(optimizer, "step", lambda: None)
    with tiny.Waits() as waits:
        for number in (1, 2):
            meter.add(number, stage.step(number, *tiny.batch()))
        assert not waits.found
        stage.measure_codes()["usage"].item()
    assert waits.found


def test_a_step_takes_no_other_assignment_than_the_detached_one(monkeypatch):
    stage = tiny.stage("joint", "gear")
    seen: list[Assignment] = []
    really = Stage.add_generator_gradients
    monkeypatch.setattr(
        Stage, "add_generator_gradients", lambda self, a, *rest: seen.append(a) or really(self, a, *rest)
    )
    stage.step(1, *tiny.batch())
    assert not seen[0].scores.requires_grad
