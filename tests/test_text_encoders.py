"""Text encoders, prompts and prompt files, and training on captions from end to end."""

import importlib.util
import io
import json
import shutil
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from gear_studio import Run, cli, data
from gear_studio.analysis import reference
from gear_studio.data import prompts, shapes
from gear_studio.models import text_encoders
from gear_studio.models.text_encoders import Words
from gear_studio.training import build, loop, recipes, run_folder, stages
from gear_studio.training.request import Training

needs_pyarrow = pytest.mark.skipif(
    importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed"
)

# Of the hash of "red" and of the empty word.
RED = [-1, -1, -1, 1, -1, -1, 1, -1, 1, -1, 1, 1, -1, -1, 1, -1]
PADDING = [-1, 1, 1, -1, -1, -1, 1, -1, 1, -1, -1, 1, 1, 1, -1, 1]

# Words


def test_words_are_the_same_wherever_they_stand_but_for_their_place():
    encoder = Words(6)
    found = encoder(["a red ring", "a ring, RED!"])
    assert found.shape == (2, 6, 1 + encoder.dim) and found.dtype == torch.float32
    assert found[..., 0].tolist() == [[1, 1, 1, 0, 0, 0]] * 2
    signs = found[..., 1:97]
    assert torch.equal(signs[0, 1], signs[1, 2]) and torch.equal(signs[0, 2], signs[1, 1])
    assert not torch.equal(found[0, 1], found[1, 2])
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert encoder.words("A red, RED ring") == ["a", "red", "red", "ring"]


def test_words_do_not_change_with_the_version_of_anything():
    """Shipped generators have learnt these features."""
    row = Words(2)(["red"])[0]
    assert row[0, 1:17].int().tolist() == RED and row[1, 1:17].int().tolist() == PADDING
    torch.testing.assert_close(row[0, 97:], torch.tensor([0.0] * 16 + [1.0] * 16))
    assert not row[1, 97:].any()


def test_unknown_words_have_features_of_their_own_and_no_words_none():
    encoder = Words(8)
    one, other, empty = encoder(["a zyzzyva", "a qoph", "?!"])
    assert not torch.equal(one[1], other[1]) and one[1, 0] == 1
    assert not empty[:, 0].any() and torch.equal(empty, encoder([""])[0])
    assert (empty == empty[0]).all()  # padding is alike everywhere


def test_words_of_the_world_are_told_apart():
    known = {w for caption in shapes.Shapes().captions(range(300)) for w in Words().words(caption)}
    rows = Words(1)(sorted(known))[:, 0, 1:97]
    cosines = rows @ rows.T / 96 - torch.eye(len(rows))
    assert 40 < len(known) < 70 and cosines.abs().max() < 0.5


def test_longer_captions_are_cut_with_one_warning():
    encoder = Words(3)
    with pytest.warns(UserWarning, match="a caption of 5 words is cut to 3.*'a b c d e'"):
        found = encoder(["a b c d e"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(encoder(["a b c x y z"]), found)
    assert [encoder.count_cut(caption) for caption in ("", "a b c", "a b c, d e")] == [0, 0, 2]


def test_the_longest_caption_of_the_world_leaves_padding():
    longest = max(len(Words().words(c)) for c in shapes.Shapes().captions(range(3000)))
    assert 15 <= longest < text_encoders.LENGTH


def test_the_words_of_the_world_and_no_others_are_known():
    told = {
        w for caption in shapes.Shapes().captions(range(3000)) for w in text_encoders.split_words(caption)
    }
    assert prompts.vocabulary() == told
    assert prompts.unknown_words("A zebra, a RED zebra on a violin") == ["zebra", "violin"]
    assert prompts.unknown_words("") == []


# Language models


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> Path:
    """A Qwen3 of random weights with a tokenizer of 40 words, as a folder."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("qwen")
    known = ["<pad>", "<unk>", "<end>", "a", "red", "blue", "ring", "star", *(f"w{i}" for i in range(32))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", eos_token="<end>", padding_side="left"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=len(known),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    transformers.Qwen3Model(config).save_pretrained(folder)
    return folder


def test_a_language_model_s_last_hidden_states_padded_on_the_right(qwen):
    import transformers

    encoder = text_encoders.load_text_encoder(str(qwen), 6)
    assert (encoder.dim, encoder.length, encoder.words("a red zyzzyva")) == (16, 6, ["a", "red", "<unk>"])
    found = encoder(["a red ring", "", "a"])
    assert found.shape == (3, 6, 17) and found.dtype == torch.float32 and found.isfinite().all()
    assert found[..., 0].sum(1).tolist() == [3, 0, 1]
    model = transformers.AutoModel.from_pretrained(qwen)
    with torch.no_grad():
        alone = model(input_ids=torch.tensor([[3, 4, 6]])).last_hidden_state
    torch.testing.assert_close(found[0, :3, 1:], alone[0], atol=1e-5, rtol=1e-5)
    assert found[:, -1, 1:].abs().sum(1).all()  # padding keeps what the model makes of it
    assert not any(p.requires_grad for p in encoder.model.parameters())


def test_whoever_has_the_same_language_model_shares_it_in_memory(qwen, tmp_path, monkeypatch):
    import transformers

    read, really = [], transformers.AutoModel.from_pretrained
    monkeypatch.setattr(
        transformers.AutoModel,
        "from_pretrained",
        lambda name, **more: read.append(name) or really(name, **more),
    )
    copy, other = (Path(shutil.copytree(qwen, tmp_path / name)) for name in ("copy", "other"))
    (copy / "README.md").write_text("downloaded again")
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 0.5'))
    with ThreadPoolExecutor(2) as both:  # two visitors at once
        one, same = both.map(text_encoders.load_text_encoder, [str(qwen), str(copy)], [6, 4])
    assert len(read) == 1 and same.model is one.model and same.name == str(copy)
    assert (one(["a red ring"]).shape, same(["a red ring"]).shape) == ((1, 6, 17), (1, 4, 17))
    differs = text_encoders.load_text_encoder(str(other), 6)
    assert len(read) == 2 and differs.model is not one.model
    assert not torch.equal(differs(["a red ring"]), one(["a red ring"]))
    del one, same
    text_encoders.load_text_encoder(str(qwen), 6)  # nobody had it any longer
    assert len(read) == 3


def test_the_language_model_is_where_the_generator_is(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        text_encoders, "load_text_encoder", lambda *given: asked.append(given) or Words(given[1])
    )
    tiny.generator(caption_dim=Words.dim, caption_length=5).save_pretrained(tmp_path / "generator")
    recipe = {"text_encoder": "words", "generator": {"caption_length": 5}}
    (tmp_path / "config.json").write_text(json.dumps({"stage": "generator", "recipe": recipe}))
    run = Run(tmp_path)
    run.generator.to("meta")
    assert run.text_encoder is not None and asked == [("words", 5, torch.device("meta"))]


def test_captions_are_encoded_once(qwen, monkeypatch):
    encoder = text_encoders.load_text_encoder(str(qwen), 6)
    seen = []
    really = encoder.model.forward
    monkeypatch.setattr(
        encoder.model, "forward", lambda **given: seen.append(len(given["input_ids"])) or really(**given)
    )
    first = encoder(["a ring", "a star", "a ring"])
    again = encoder(["a star", "a blue ring"])
    assert seen == [2, 1]
    assert torch.equal(first[1], again[0]) and torch.equal(first[0], first[2])
    encoder.KEPT = 1
    encoder(["w1", "w2"])
    assert len(encoder._kept) == 1


def test_a_step_on_captions_waits_for_no_answer_of_the_language_model_s_device(qwen, monkeypatch):
    """As of the whole step on class labels in `test_stages`, where nothing is read between two logs."""
    encoder = text_encoders.load_text_encoder(str(qwen), 6)
    generator = tiny.replace(tiny.GENERATOR, classes=0, caption_dim=16, caption_length=6)
    stage = tiny.stage("generator", "gear", generator=generator)
    for optimizer in stage.optimizers.values():
        monkeypatch.setattr(optimizer, "step", lambda: None)
    conditions = prompts.SourceCaptions(encoder, shapes.Shapes("val", 32), [0])
    trainee = SimpleNamespace(conditions=conditions, accelerator=stage.accelerator, stage=stage)
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    with tiny.Waits() as waits:
        for number, captions in enumerate((["a red ring", "a star"], ["a star", "blue"]), start=1):
            batch = {"image": images, "caption": captions}
            build.StageTrainee.step(trainee, number, batch)
        assert not waits.found
    assert encoder(["a red ring"]).device == encoder.device


def test_a_language_model_says_once_that_it_cuts(qwen):
    encoder = text_encoders.load_text_encoder(str(qwen), 2)
    with pytest.warns(UserWarning, match="a caption of 3 words is cut to 2"):
        found = encoder(["a red ring"])
    assert torch.equal(found[..., 0], torch.ones(1, 2))
    assert encoder.count_cut("a red ring") == 1


def test_without_a_connection_or_the_package_the_way_out_is_named(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="is neither a folder nor to be had from the Hub .*local-dir"):
        text_encoders.load_text_encoder(str(tmp_path / "nothing"), 4)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"needs transformers; install it with .*\.\[text\]"):
        text_encoders.load_text_encoder("Qwen/Qwen3-1.7B", 4)


def test_training_on_a_language_model_s_features(qwen, trained, teacher_folder, tmp_path):
    shutil.copytree(trained / "warmup", tmp_path / "warmup")
    generator = tiny.replace(tiny.GENERATOR, caption_length=7)
    changes = {"text_encoder": str(qwen), "generator": generator}
    run = train(tmp_path, teacher_folder, "generator", "generator", "warmup", **changes)
    assert (run.generator.config.caption_dim, run.generator.config.caption_length) == (16, 7)
    assert torch.equal(run.generator.condition.null, run.text_encoder([""])[0])

    # What decides the run is what the folder holds, not where it lies.
    moved = Path(shutil.copytree(qwen, tmp_path / "moved"))
    changes |= {"text_encoder": str(moved)}
    again = train(tmp_path, teacher_folder, "generator", "generator", "warmup", **changes)
    assert again.finished
    with safe_open(moved / "model.safetensors", "pt") as file:
        weights = {key: file.get_tensor(key) for key in file.keys()}
    weights["norm.weight"] += 1
    save_file(weights, moved / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="already holds another run .text_encoder"):
        train(tmp_path, teacher_folder, "generator", "generator", "warmup", **changes)


def test_a_language_model_is_known_by_its_weights_in_any_precision_and_by_its_words(qwen, tmp_path):
    encoder = text_encoders.load_text_encoder(str(qwen), 6)
    known = encoder.fingerprint()
    encoder(["a red ring"])
    encoder.model.to(torch.bfloat16)
    assert encoder.fingerprint() == known
    other = Path(shutil.copytree(qwen, tmp_path / "other"))
    words = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(words.replace('"red"', '"green"'))
    assert text_encoders.load_text_encoder(str(other), 6).fingerprint() != known


# Prompts


def test_samples_are_asked_for_every_class_or_every_caption_in_turn():
    world = data.load("shapes", "val", captions=True)
    encoder = Words()
    asked = prompts.SourceCaptions(encoder, world, [7, 3])
    assert torch.equal(asked.for_samples(range(1, 4)), encoder([world.captions([i])[0] for i in (3, 7, 3)]))
    assert asked.captions(range(1, 4)) == [world.captions([i])[0] for i in (3, 7, 3)]
    assert torch.equal(asked.of_batch(world.read([5])), encoder(world.captions([5])))
    written = prompts.WrittenCaptions(encoder, ["a ring", "a star"])
    assert written.captions([1, 2]) == ["a star", "a ring"]
    assert torch.equal(written.for_samples([1, 2]), encoder(["a star", "a ring"]))
    labels = prompts.ClassLabels(3)
    assert labels.for_samples(range(2, 5)).tolist() == [2, 0, 1]
    assert torch.equal(labels.of_batch(world.read([5])), world.read([5])["label"])


def test_prompt_files_of_every_kind(tmp_path):
    (tmp_path / "plain.txt").write_text("a red ring\n\n a star \n")
    plain = prompts.read_prompts(tmp_path / "plain.txt")
    assert [(p.text, p.name) for p in plain] == [("a red ring", "00000"), ("a star", "00001")]
    lines = [{"tag": "single_object", "include": [], "prompt": f"a {what}"} for what in ("ring", "star")]
    (tmp_path / "geneval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    geneval = prompts.read_prompts(tmp_path / "geneval.jsonl")
    assert [p.metadata for p in geneval] == lines and geneval[1].text == "a star"
    dpg = tmp_path / "dpg"
    dpg.mkdir()
    (dpg / "b7.txt").write_text("a long\nprompt\n")
    (dpg / "a3.txt").write_text("a ring")
    assert [(p.name, p.text) for p in prompts.read_prompts(dpg)] == [
        ("a3", "a ring"),
        ("b7", "a long prompt"),
    ]


def test_prompt_files_as_wise_dpg_bench_and_gpic_publish_them(tmp_path):
    listed = [
        {"Prompt": f"prompt {i}", "Explanation": "why", "Category": "Biology", "prompt_id": i}
        for i in (12, 9, 640)
    ]
    wise = tmp_path / "data_verified"
    wise.mkdir()
    (wise / "natural_science_verified.json").write_text(json.dumps(listed[:2]))
    (wise / "cultural_verified.json").write_text(json.dumps(listed[2:]))
    (wise / "merge.json").write_text(json.dumps(listed))  # the same again, as published beside them
    found = prompts.read_prompts(wise)
    assert {(p.name, p.text, p.pictures) for p in found} == {
        ("9", "prompt 9", 1),
        ("12", "prompt 12", 1),
        ("640", "prompt 640", 1),
    }
    assert [p.name for p in prompts.read_prompts(wise / "merge.json")] == ["9", "12", "640"]
    (tmp_path / "dpg.json").write_text(json.dumps({"226.txt": "a long\nprompt", "partiprompts7.txt": "b"}))
    found = prompts.read_prompts(tmp_path / "dpg.json")
    assert [(p.name, p.text, p.pictures) for p in found] == [
        ("226", "a long prompt", 4),
        ("partiprompts7", "b", 4),
    ]
    lines = [{"key": f"k{i}", "caption": f"caption {i}", "caption_type": "short"} for i in range(2)]
    (tmp_path / "gpic.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = prompts.read_prompts(tmp_path / "gpic.jsonl")
    assert [(p.name, p.text, p.pictures, p.metadata) for p in found] == [
        ("000000", "caption 0", 1, {}),
        ("000001", "caption 1", 1, {}),
    ]


@pytest.mark.parametrize(
    ("held", "complaint"),
    [
        ('{"../up.txt": "a"}', "'../up' is no file's name"),
        ('{"a.txt": 1}', "what it names no text"),
        ('[{"Prompt": "a"}]', "holds no prompts .*expected {file name: prompt} as DPG-Bench"),
        ('[{"Prompt": "a", "prompt_id": 1}, {"Prompt": "b", "prompt_id": 1}]', "1 names two prompts"),
        ("{", "holds no prompts"),
    ],
)
def test_a_json_that_is_no_benchmark_s_is_refused(held, complaint, tmp_path):
    (tmp_path / "a.json").write_text(held)
    with pytest.raises(ValueError, match=complaint):
        prompts.read_prompts(tmp_path / "a.json")


class Rows:
    """In the place of pyarrow's ParquetFile: a file of two row groups, as JSON."""

    def __init__(self, file: Path):
        self.rows = json.loads(file.read_text())
        self.schema_arrow = SimpleNamespace(names=list(self.rows[0]))
        self.num_row_groups = 2

    def _group(self, number: int) -> list[dict]:
        return self.rows[:2] if number == 0 else self.rows[2:]

    @property
    def metadata(self):
        return SimpleNamespace(row_group=lambda number: SimpleNamespace(num_rows=len(self._group(number))))

    def read_row_group(self, number: int, columns: list[str]):
        (name,) = columns
        held = [row[name] for row in self._group(number)]
        if name == "image":
            held = [{"bytes": bytes.fromhex(each["bytes"]), "path": "a.jpg"} for each in held]
        return SimpleNamespace(column=lambda _: SimpleNamespace(to_pylist=lambda: held))


def coco(folder: Path, real: bool) -> list[torch.Tensor]:
    """Five pictures with captions in two .parquet files, as COCO2017-Val is published. Returns the pictures.
    real: by pyarrow, else as `Rows` reads them."""
    folder.mkdir()
    pictures, rows = [], []
    for i in range(5):
        stored = io.BytesIO()
        Image.new("RGB", (40, 30), (40 * i, 0, 90)).save(stored, "PNG")
        pictures.append(torch.tensor([40 * i, 0, 90]))
        rows.append({"image": {"bytes": stored.getvalue(), "path": f"{i}.png"}, "caption": f"caption\n {i}"})
    for name, part in (("a.parquet", rows[:3]), ("b.parquet", rows[3:])):
        if real:
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(part), folder / name, row_group_size=2)
        else:
            held = [row | {"image": {"bytes": row["image"]["bytes"].hex()}} for row in part]
            (folder / name).write_text(json.dumps(held))
    return pictures


@pytest.mark.parametrize(
    "real", [False, pytest.param(True, marks=needs_pyarrow)], ids=["stand-in", "pyarrow"]
)
def test_coco_s_parquet_holds_prompts_and_their_pictures(real, tmp_path, monkeypatch):
    if not real:
        module = SimpleNamespace(ParquetFile=Rows)
        monkeypatch.setitem(sys.modules, "pyarrow", SimpleNamespace(parquet=module))
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", module)
    pictures = coco(tmp_path / "coco", real)
    found = prompts.read_prompts(tmp_path / "coco")
    assert [(p.name, p.text, p.pictures) for p in found] == [
        (f"{i:06d}", f"caption {i}", 1) for i in range(5)
    ]
    opened = reference.open_reference(tmp_path / "coco", 16)
    assert opened.count == 5 and opened.name == str(tmp_path / "coco")
    batch = opened.read(range(1, 5))
    assert batch.shape == (4, 3, 16, 16) and torch.equal(batch[:, :, 0, 0], torch.stack(pictures[1:]).byte())
    assert reference.open_reference(tmp_path / "coco", 32).fingerprint != opened.fingerprint


@needs_pyarrow
def test_parquet_without_rows_is_refused_by_name(tmp_path):
    import pyarrow.parquet

    rows = pyarrow.Table.from_pylist([{"image": {"bytes": b""}, "caption": "a"}]).slice(0, 0)
    pyarrow.parquet.write_table(rows, tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="reference .*none.parquet has no pictures; .* no rows"):
        reference.open_reference(tmp_path / "none.parquet", 16)


def test_parquet_says_which_package_reads_it(tmp_path, monkeypatch):
    coco(tmp_path / "coco", real=False)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"coco holds .parquet files.*pyarrow.*\[parquet\]"):
        prompts.read_prompts(tmp_path / "coco")


def test_what_is_no_prompt_file_says_why(tmp_path):
    with pytest.raises(FileNotFoundError, match="no prompts at .*; expected a .jsonl of GenEval"):
        prompts.read_prompts(tmp_path / "missing")
    with pytest.raises(ValueError, match="holds no prompts"):
        prompts.read_prompts(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"prompt": "x"}\n{"text": "y"}\n')
    with pytest.raises(ValueError, match=r"a.jsonl, line 2: expected a JSON object with a \"prompt\""):
        prompts.read_prompts(tmp_path / "a.jsonl")
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="b.txt is not UTF-8 text"):
        prompts.read_prompts(tmp_path / "b.txt")


# Training


def train(folder: Path, teacher: Path, name: str, stage: str, parent: str | None, **changes) -> Run:
    arm = "warmup" if stage == "warmup" else "gear"
    made = tiny.recipe(teacher, steps=4, log_every=1, checkpoint_every=2, batch_size=4, **changes)
    parent_folder = folder / parent if parent else None
    training = Training("shapes", stage, arm, made, out=folder / name, parent=parent_folder)
    return loop.train(training, progress=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, teacher_folder) -> Path:
    folder = tmp_path_factory.mktemp("captions")
    captioned = {"text_encoder": "words", "held_out_combinations": True}
    train(folder, teacher_folder, "warmup", "warmup", None)
    train(folder, teacher_folder, "joint", "joint", "warmup", **captioned)
    train(folder, teacher_folder, "generator", "generator", "joint", **captioned, fd_every=4, fd_samples=8)
    return folder


def test_a_run_trained_on_captions_is_asked_in_words(trained):
    run = Run.from_pretrained(trained / "generator")
    config = run.generator.config
    assert (config.classes, config.caption_dim, config.caption_length) == (0, Words.dim, text_encoders.LENGTH)
    assert torch.equal(run.generator.condition.null, Words()([""])[0])
    assert run.encode(["a red ring"]).shape == (1, text_encoders.LENGTH, 1 + Words.dim)
    assert (trained / "generator" / "samples.png").is_file()
    assert {"val_ntp", "val_alignment", "val_fd"} <= run.metrics[-1].keys()
    assert Run.from_pretrained(trained / "joint").generator.config == config
    with pytest.raises(ValueError, match="run warmup has no generator that takes captions"):
        Run.from_pretrained(trained / "warmup").encode(["a ring"])


def test_captions_are_what_it_learns_from(trained, teacher_folder, tmp_path, monkeypatch):
    """Another caption of the same pictures is another training."""
    shutil.copytree(trained / "joint", tmp_path / "joint")
    monkeypatch.setattr(shapes.Shapes, "captions", lambda self, indices: ["a ring"] * len(indices))
    changes = {"text_encoder": "words", "held_out_combinations": True, "fd_every": 4, "fd_samples": 8}
    train(tmp_path, teacher_folder, "generator", "generator", "joint", **changes)
    one, other = (tiny.metrics(folder / "generator") for folder in (trained, tmp_path))
    assert one[0]["ntp"] == other[0]["ntp"]  # a head of zeros predicts the same from anything
    assert one[-1]["ntp"] != other[-1]["ntp"]


def test_a_training_on_captions_goes_on_exactly_where_it_was_killed(
    trained, teacher_folder, tmp_path, monkeypatch
):
    shutil.copytree(trained / "joint", tmp_path / "joint")
    changes = {"text_encoder": "words", "held_out_combinations": True, "fd_every": 4, "fd_samples": 8}
    really_step = stages.Stage.step

    def killed(self, number, *rest):
        if number == 4:
            raise KeyboardInterrupt
        return really_step(self, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(stages.Stage, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, teacher_folder, "generator", "generator", "joint", **changes)
    assert not Run(tmp_path / "generator").finished
    again = train(tmp_path, teacher_folder, "generator", "generator", "joint", **changes)
    whole = Run.from_pretrained(trained / "generator")
    assert not tiny.metric_differences(tiny.metrics(again.folder), tiny.metrics(whole.folder))
    state, expected = again.generator.state_dict(), whole.generator.state_dict()
    assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_encoding_ahead_and_sources_without_captions_are_refused(trained, teacher_folder):
    with pytest.raises(ValueError, match="token_views=2: views encoded ahead keep no captions"):
        train(trained, teacher_folder, "x", "generator", "joint", text_encoder="words", token_views=2)
    made = tiny.recipe(teacher_folder, text_encoder="words")
    with pytest.raises(ValueError, match="'digits' has no captions"):
        loop.train(Training("digits", "generator", "gear", made, out=trained / "x", parent=trained / "joint"))


def test_a_run_from_before_there_were_captions_is_continued(tmp_path):
    old = {"source": "shapes", "stage": "generator", "recipe": tiny.recipe().asdict()}
    now = json.loads(json.dumps(old))
    for key in ("text_encoder", "held_out_combinations"):
        del old["recipe"][key]
    for key in ("caption_dim", "caption_length"):
        del old["recipe"]["generator"][key]
    (tmp_path / "config.json").write_text(json.dumps(old))
    run_folder.check_folder(tmp_path, now)
    now["recipe"]["generator"]["caption_dim"] = 3
    with pytest.raises(ValueError, match="already holds another run .generator is"):
        run_folder.check_folder(tmp_path, now)


# The command line


@pytest.mark.slow
@tiny.minutes
def test_train_sample_and_evaluate_by_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def command(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["gear-studio", *map(str, words)])
        cli.main()
        return capsys.readouterr().out

    smoke = ("--budget", "smoke")
    command("train", "shapes", *smoke)
    command("train", "shapes", *smoke, "--stage", "joint")
    out = command("train", "shapes", *smoke, "--stage", "generator", "--condition", "caption")
    run = Path("runs/shapes-caption-generator-gear-smoke-s0")
    assert str(run) in out and Run.from_pretrained(run).parent.name == "shapes-joint-gear-smoke-s0"
    command("sample", run, "--prompt", "a red ring", "a blue star", "--count", 4, "--out", "grid.png")
    assert Image.open("grid.png").size == (4 * 66 + 2, 68)
    said = command("sample", run, "--prompt", "a Purple unicorn", "--count", 1, "--out", "grid.png")
    assert "'purple' is in no caption" in said or "'unicorn' is in no caption" in said
    assert "'a' is" not in said
    Path("geneval.jsonl").write_text('{"tag": "colors", "prompt": "a red ring"}\n{"prompt": "a star"}\n')
    command("sample", run, "--prompts", "geneval.jsonl", "--count", 2, "--out", "geneval")
    written = sorted(p.relative_to("geneval").as_posix() for p in Path("geneval").rglob("*.*"))
    names = [("metadata.jsonl", "samples/0000.png", "samples/0001.png")] * 2
    assert written == [f"{i:05d}/{name}" for i, each in enumerate(names) for name in each]
    metadata = json.loads(Path("geneval/00000/metadata.jsonl").read_text())
    assert metadata == {"tag": "colors", "prompt": "a red ring"}
    Path("dpg").mkdir()
    Path("dpg/partiprompts12.txt").write_text("a red ring")
    command("sample", run, "--prompts", "dpg", "--out", "dpg-out")
    grid = np.asarray(Image.open("dpg-out/partiprompts12.png"))
    assert grid.shape == (128, 128, 3)  # two by two
    first = np.asarray(Image.open("geneval/00000/samples/0000.png"))
    assert np.array_equal(grid[:64, :64], first)  # the same prompt, the same random numbers
    wise = [{"Prompt": prompt, "prompt_id": i} for i, prompt in ((7, "a star"), (3, "a red ring"))]
    Path("wise.json").write_text(json.dumps(wise))
    command("sample", run, "--prompts", "wise.json", "--size", 96, "--out", "wise-out")
    assert sorted(path.name for path in Path("wise-out").iterdir()) == ["3.png", "7.png"]
    enlarged = Image.fromarray(first).resize((96, 96), Image.Resampling.BICUBIC)
    found = np.asarray(Image.open("wise-out/3.png")).astype(int)
    assert abs(found - np.asarray(enlarged)).max() <= 2  # drawn in another batch
    with pytest.raises(SystemExit, match="--size 96 is for the pictures of --prompts"):
        command("sample", run, "--prompt", "a ring", "--size", 96, "--out", "x.png")
    with pytest.raises(SystemExit, match="is asked in words; say what to show with --prompt"):
        command("sample", run, "--out", "x.png")
    with pytest.raises(SystemExit, match="no generator that takes captions; train one with --condition"):
        command("sample", "generator-gear", "--prompt", "a ring", "--out", "x.png")
    with pytest.raises(SystemExit, match="give one of --labels, --prompt and --prompts"):
        command("sample", run, "--prompt", "a ring", "--labels", "1", "--out", "x.png")
    command("evaluate", run, "--samples", 24, "--seeds", 1)
    assert {"fd", "fd_guided"} <= Run.from_pretrained(run).evaluation.keys()


def test_the_recipe_of_text_to_image_is_the_paper_s(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gear-studio", "recipe", "gpic-1b", "--stage", "generator"])
    cli.main()
    pairs = (line.split("  ", 1) for line in capsys.readouterr().out.splitlines()[1:] if line)
    found = {key: value.split("#")[0].strip() for key, value in pairs}
    expected = {
        "text_encoder": "Qwen/Qwen3-1.7B",
        "generator.caption_length": "300",
        "generator.caption_dim": "2048",
        "generator.blocks": "36",
        "generator.dim": "1440",
        "generator.heads": "20",
        "generator.label_drop": "0.1",
        "generator.zero_condition_key": "True",
        "alignment_weight": "0.5",
        "teacher": "dinov2-b",
        "batch_size": "256",
        "steps": "390000",
    }
    assert {key: found.get(key) for key in expected} == expected
    assert recipes.recipe_of("gpic-1b", "joint").steps == 400_000
