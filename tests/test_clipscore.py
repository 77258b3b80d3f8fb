"""CLIPScore against CLIP's two towers one by one, and the evaluation of a Run on captions, with those of its
pictures and with prompts. The CLIP has random weights and the files of a published one."""

import json
import sys
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from gear_studio import Run, cli, data, sampling
from gear_studio.analysis.fidelity import EvaluationOptions, evaluate
from gear_studio.data.images import to_uint8
from gear_studio.files import write_json
from gear_studio.models import clipscore
from gear_studio.models.clipscore import CLIPScore
from gear_studio.models.text_encoders import Words
from gear_studio.models.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

LETTERS = "abcdefghijklmnopqrstuvwxyz"
START, END = "<|startoftext|>", "<|endoftext|>"
VOCABULARY = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "re", "red</w>", START, END]
IDS = {token: number for number, token in enumerate(VOCABULARY)}
COUNT = 12


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """A CLIP of 32 px pictures, and of a vocabulary of letters and "red", as a folder."""
    folder = tmp_path_factory.mktemp("clip")
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(IDS), "bos_token_id": IDS[START], "eos_token_id": IDS[END]}
    config = transformers.CLIPConfig(
        text_config=tower | text,
        vision_config=tower | {"image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config)
    for parameter in model.parameters():  # as drawn, everything looks alike
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    write_json(folder / "vocab.json", IDS)
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer"})
    transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    return folder


def tokens(caption: str) -> list[int]:
    """As CLIP has it: at most 77 with start and end, letters but for "red", the last of a word marked."""
    found = []
    for word in caption.split():
        found += [IDS["red</w>"]] if word == "red" else [*(IDS[x] for x in word[:-1]), IDS[word[-1] + "</w>"]]
    return [IDS[START], *found[:75], IDS[END]]


def scores(folder: Path, pictures: torch.Tensor, captions: list[str]) -> list[float]:
    """By the definition, one pair at a time; pictures of 32 px."""
    model = transformers.CLIPModel.from_pretrained(folder)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    found = []
    with torch.no_grad():
        for picture, caption in zip(pictures, captions, strict=True):
            seen = model.vision_model(((picture / 255 - mean) / std)[None]).pooler_output
            read = model.text_model(torch.tensor([tokens(caption)])).last_hidden_state[:, -1]
            pair = model.visual_projection(seen), model.text_projection(read)
            found.append(100 * torch.cosine_similarity(*pair).item())
    return [max(score, 0) for score in found]


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    return to_uint8(tiny.batch(seed, count)[0])


# The score


def test_a_score_is_the_cosine_of_clip_s_two_embeddings_and_never_negative(clip):
    captions = [
        "a red ring",
        "star",
        "a",
        "red red red",
        "blue stripes on a ground",
        "dots",
        "b",
        "ring",
    ]
    found = CLIPScore(str(clip))(pictures(8), captions)
    expected = scores(clip, pictures(8), captions)
    assert found.tolist() == pytest.approx(expected, abs=1e-3)
    assert min(expected) == 0 and max(expected) > 10 and len(set(expected)) > 3


def test_a_caption_is_cut_to_77_tokens_with_its_end(clip):
    captions = ["a b " * 60, "red " * 75, "red " * 76]
    same = pictures(1).expand(3, -1, -1, -1)
    found = CLIPScore(str(clip))(same, captions)
    assert len(tokens(captions[0])) == 77
    assert found.tolist() == pytest.approx(scores(clip, same, captions), abs=1e-3)
    assert found[1] == pytest.approx(found[2].item(), abs=1e-4)


def test_pictures_of_other_sizes_are_resized_as_pillow_does(clip):
    large = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    small = np.array(Image.fromarray(large).resize((32, 32), Image.Resampling.BICUBIC))
    one, other = (torch.from_numpy(x).permute(2, 0, 1)[None] for x in (large, small))
    made = CLIPScore(str(clip))
    assert made(one, ["b"]).item() == pytest.approx(made(other, ["b"]).item(), abs=0.2)


def test_without_a_connection_or_the_package_the_way_out_is_named(clip, tmp_path, monkeypatch):
    half = transformers.CLIPModel.from_pretrained(clip).config.text_config
    transformers.CLIPTextModel(half).save_pretrained(tmp_path / "half")
    with pytest.raises(ValueError, match="half is a CLIPTextModel, not a CLIP; name one: --clip FOLDER"):
        CLIPScore(str(tmp_path / "half"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(FileNotFoundError) as caught:
        CLIPScore()
    for part in (clipscore.MODEL, f"hf download {clipscore.MODEL} --local-dir FOLDER", "--clip FOLDER"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"needs transformers; install it with .*\.\[text\]"):
        CLIPScore()


# A Run on captions


@pytest.fixture(scope="module")
def album(tmp_path_factory) -> Path:
    """Pictures with captions, as many held out as are measured."""
    folder = tmp_path_factory.mktemp("album")
    for split, seed in (("train", 1), ("val", 2)):
        (folder / split).mkdir()
        for i, picture in enumerate(pictures(COUNT, seed)):
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / split / f"{i:02}.png")
            (folder / split / f"{i:02}.txt").write_text(f"{LETTERS[i]} red {LETTERS[i + 3]}ing")
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, teacher_folder) -> Path:
    """A generator's Run on captions, with random weights and, as an imported one, without a null caption."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    recipe = {"text_encoder": "words", "generator": {"caption_length": 6}, "tau": 0.1}
    write_json(
        folder / "config.json",
        {
            "source": "folder",
            "stage": "generator",
            "arm": "gear",
            "seed": 0,
            "parent": None,
            "classes": [],
            "recipe": recipe | {"teacher": str(teacher_folder)},
        },
    )
    torch.manual_seed(0)
    Tokenizer(tiny.TOKENIZER).save_pretrained(folder / "tokenizer")
    tiny.generator(caption_dim=Words.dim, caption_length=6).save_pretrained(folder / "generator")
    return folder


def options(clip: Path, **changes) -> EvaluationOptions:
    given = {"samples": COUNT, "seeds": 2, "metrics": ("clipscore",), "clip": str(clip), "batch_size": 5}
    return EvaluationOptions(**given | changes)


@torch.no_grad()
def drawn(run: Run, captions: list[str], seed: int, scale: float) -> torch.Tensor:
    """The evaluation's samples, drawn in one go: uint8."""
    run.generator.condition.null.copy_(Words(6)([""])[0])
    indices = sampling.sample(run.generator, Words(6)(captions), cfg_scale=scale, seed=seed)
    return to_uint8(run.tokenizer.decode(indices))


def test_samples_are_scored_with_the_captions_they_were_asked_for(run_folder, album, clip):
    found = evaluate(Run.from_pretrained(run_folder), options(clip, folder=album))
    run = Run.from_pretrained(run_folder)
    source = data.load("folder", "val", 32, album, captions=True)
    captions = source.captions(range(COUNT))
    assert len(set(captions)) == COUNT
    for name, scale in (("clipscore", 1.0), ("clipscore_guided", 1.5)):
        each = [np.mean(scores(clip, drawn(run, captions, seed, scale), captions)) for seed in (0, 1)]
        assert found[name]["values"] == pytest.approx(each, abs=1e-3)
        assert found[name]["mean"] == pytest.approx(np.mean(each), abs=1e-3) and found[name]["std"] > 0
    real = source.read(range(COUNT))["image"]
    with torch.no_grad():
        reconstructed = to_uint8(run.tokenizer.reconstruct(data.to_float(real)))
    assert found["real_clipscore"] == pytest.approx(np.mean(scores(clip, real, captions)), abs=1e-3)
    assert found["rclipscore"] == pytest.approx(np.mean(scores(clip, reconstructed, captions)), abs=1e-3)
    assert found["clip"] == str(clip) and not {"fd", "rfd", "teacher", "prompts_file"} & found.keys()


def test_prompts_are_asked_for_in_turn_by_command(run_folder, album, clip, monkeypatch, tmp_path):
    prompts = ["a red ring", "b", "stripes", "dots on red", "a long caption of more words than six"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    words = ["evaluate", run_folder, "--prompts", tmp_path / "prompts.txt", "--metrics", "clipscore", "fd"]
    words += ["--clip", clip, "--samples", COUNT, "--seeds", 1, "--cache", tmp_path / "cache"]
    words += ["--reference", album / "train", "--save-samples", tmp_path / "samples"]
    monkeypatch.setattr(sys, "argv", ["gear-studio", *map(str, words)])
    with pytest.warns(UserWarning, match="a caption of 8 words is cut to 6"):
        cli.main()
    found = Run.from_pretrained(run_folder).evaluation
    captions = [prompts[i % 5] for i in range(COUNT)]
    with pytest.warns(UserWarning):
        expected = drawn(Run.from_pretrained(run_folder), captions, 0, 1.5)
    mean = np.mean(scores(clip, expected, captions))
    assert found["clipscore_guided"]["mean"] == pytest.approx(mean, abs=1e-3)
    assert {"fd", "fd_guided"} <= found.keys() and found["reference"] == str(album / "train")
    assert found["prompts_file"] == str(tmp_path / "prompts.txt") and "real_clipscore" not in found
    seventh = np.array(Image.open(tmp_path / "samples-cfg1.5" / "000007.png"))
    assert np.array_equal(seventh, expected[7].permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    "name, says", [("generator-gear", "is asked by class labels"), ("warmup", "has no generator")]
)
def test_a_run_that_takes_no_captions_is_refused_before_anything_is_drawn(name, says, clip, monkeypatch):
    monkeypatch.setattr(sampling, "sample", None)
    for changes in ({}, {"metrics": ("fd",), "prompts": Path("prompts.txt")}):
        with pytest.raises(ValueError, match=f"run {name} {says}; clipscore and --prompts are for runs that"):
            evaluate(Run.from_pretrained(name), options(clip, **changes))


def evaluate_together(rank: int, run: Path, out: Path, given: EvaluationOptions) -> None:
    """One of two processes."""
    result = evaluate(Run.from_pretrained(run), given)
    if rank == 0:
        write_json(out / "by-two.json", result)


@pytest.mark.slow
def test_two_processes_score_what_one_scores(run_folder, album, clip, tmp_path):
    given = options(clip, folder=album, seeds=1)
    one = evaluate(Run.from_pretrained(run_folder), given)
    tiny.in_two(evaluate_together, run_folder, tmp_path, given)
    two = json.loads((tmp_path / "by-two.json").read_text())
    for name in ("clipscore", "clipscore_guided"):
        assert two[name]["values"] == pytest.approx(one[name]["values"], rel=1e-5)
    for name in ("real_clipscore", "rclipscore"):
        assert two[name] == pytest.approx(one[name], rel=1e-5)
