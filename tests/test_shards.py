"""WebDataset shards: what the index finds, when it is made anew, and that reading them is exact."""

import functools
import io
import json
import os
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from gear_studio import data
from gear_studio.analysis.reference import reference_of
from gear_studio.data import shards
from gear_studio.data.images import crop_and_resize
from gear_studio.data.shards import Shards
from gear_studio.data.source import Ordered

PER_SHARD = 12
COLUMNS = {"offset", "size", "label", "key", "text_offset", "text_size", "whole", "odd_label"}
COLUMNS |= {"json_offset", "json_size", "json_kind", "json_kinds"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gear-studio" / "shards"


@functools.cache
def jpeg(shade: int, size: tuple[int, int] = (40, 30)) -> bytes:
    stored = io.BytesIO()
    ramp = np.add.outer(np.arange(size[1]), np.arange(size[0]))[..., None] + np.array([shade, 0, 255 - shade])
    Image.fromarray(ramp.clip(0, 255).astype(np.uint8)).save(stored, "JPEG")
    return stored.getvalue()


def write(path: Path, numbers: range, **changes) -> Path:
    """A shard by the WebDataset package: sample i is its own picture, of class i % 5."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as tar:
        for i in numbers:
            sample = {
                "__key__": f"pic{i:04}",
                "jpg": jpeg(i),
                "cls": i % 5,
                "json": {"label": 4, "width": 40},
            }
            tar.write({key: value for key, value in (sample | changes).items() if value is not None})
    return path


def plain(path: Path, members: dict[str, bytes], **options) -> Path:
    """A tar by Python's own writer, whose members need not be samples."""
    with tarfile.open(path, options.pop("mode", "w"), **options) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def six(tmp_path) -> Path:
    for s in range(6):
        write(tmp_path / "six" / f"{s:03}.tar", range(s * PER_SHARD, (s + 1) * PER_SHARD))
    return tmp_path / "six"


def test_statistics_of_the_pictures_of_one_pattern_are_not_taken_for_another_s(six):
    halves = [data.load("shards", folder=f"{six}/{{{part}}}.tar") for part in ("000..002", "003..005")]
    one, other = (reference_of(half, range(9)).fingerprint for half in halves)
    assert one != other and one == reference_of(halves[0], range(9)).fingerprint


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def keys(source: Shards) -> list[str]:
    return [source._name(i) for i in range(len(source))]


# What is found


def test_pictures_and_labels_are_those_that_webdataset_reads(six):
    tars = sorted(map(str, six.glob("*.tar")))
    expected = {}
    for sample in webdataset.WebDataset(tars, shardshuffle=False).decode("pil"):
        image = crop_and_resize(sample["jpg"], 32)
        expected[f"{sample['__url__']}: {sample['__key__']}"] = image, sample["cls"]
    found = {}
    for split in ("train", "val"):
        source = data.load("shards", split, 32, six)
        batch = source.read(range(len(source)))
        found |= dict(
            zip(keys(source), zip(batch["image"], batch["label"].tolist(), strict=True), strict=True)
        )
        assert source.classes == ["0", "1", "2", "3", "4"]
    assert found.keys() == expected.keys() and len(found) == 6 * PER_SHARD
    assert all(torch.equal(found[key][0], expected[key][0]) for key in found)
    assert all(found[key][1] == expected[key][1] for key in found)


def test_a_folder_and_patterns_name_the_same_shards(six, monkeypatch):
    whole = keys(Shards(six))
    assert keys(Shards(f"{six}/{{000..005}}.tar")) == keys(Shards(f"{six}/*.tar")) == whole
    monkeypatch.chdir(six.parent)
    assert keys(Shards("six/{000..005}.tar")) == whole
    monkeypatch.setenv("HOME", str(six.parent))
    assert keys(Shards("~/six")) == whole
    assert {key.split(":")[0] for key in keys(Shards(six / "{001,004}.tar"))} == {
        f"{six}/001.tar",
        f"{six}/004.tar",
    }


def test_samples_held_out_are_others_and_the_same_wherever_the_shards_lie(six):
    train, val = keys(Shards(six)), keys(Shards(six, "val"))
    assert (len(train), len(val)) == (69, 3) and len({*train, *val}) == 72
    elsewhere = six.rename(six.parent / "elsewhere")
    assert [key.replace("elsewhere", "six") for key in keys(Shards(elsewhere, "val"))] == val


@pytest.mark.parametrize(
    "layout",
    [("train/000.tar", "val/000.tar"), ("set-train-00.tar", "set-validation-00.tar", "set-test-00.tar")],
)
def test_a_split_in_the_names_is_taken(layout, tmp_path):
    for s, name in enumerate(layout):
        write(tmp_path / "set" / name, range(s * 3, s * 3 + 3))
    train, val = Shards(tmp_path / "set"), Shards(tmp_path / "set", "val")
    assert [key[-7:] for key in keys(train)] == ["pic0000", "pic0001", "pic0002"]
    assert [key[-7:] for key in keys(val)] == ["pic0003", "pic0004", "pic0005"]
    assert train.classes == val.classes


def test_every_class_keeps_a_sample_to_train_on(tmp_path):
    for i in range(8):  # each with classes of its own: 0 and 1 large, 2 to 9 of a single sample
        write(tmp_path / "set" / f"{i}.tar", range(4 * i, 4 * i + 3), cls=i % 2, json=None)
        write(tmp_path / "set" / f"{i}-single.tar", range(4 * i + 3, 4 * i + 4), cls=2 + i, json=None)
    with pytest.warns(UserWarning, match="8 of 10 classes in .*set have a single picture"):
        train = Shards(tmp_path / "set")
    assert set(train.read(range(len(train)))["label"].tolist()) == set(range(10))
    assert len(train) + len(Shards(tmp_path / "set", "val")) == 32


def test_classes_that_no_sample_is_of_are_named(tmp_path):
    (tmp_path / "classnames.txt").write_text("ant\nbee\ncat\n")
    for split, classes in (("train", (0, 2)), ("val", (0, 1))):
        for label in classes:
            write(tmp_path / f"{split}-{label}.tar", range(3 * label, 3 * label + 3), cls=label, json=None)
    with pytest.warns(UserWarning, match="1 of 3 classes .* no picture to train on; the first is 'bee'"):
        assert Shards(tmp_path).classes == ["ant", "bee", "cat"]


def test_members_that_other_tools_write(tmp_path):
    deep = "a/" * 60 + "n01440764_7"  # longer than a tar header has room for
    made = {
        "./plain.jpg": jpeg(1),
        "./plain.cls": b" 3\n",
        "notes.txt": b"no sample",
        "dotted.JPEG": jpeg(2),
        "dotted.json": b'{"label": 1, "caption": "a cat"}',
        "dotted.seg.png": b"a mask, not the picture",
        f"{deep}.jpg": jpeg(3),
        f"{deep}.cls": b"0",
    }
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        path = plain(tmp_path / f"{form}.tar", made, format=form)
        table = shards.index_shard(path)
        assert table["key"].tolist() == [b"plain", b"dotted", deep.encode()]
        assert table["label"].tolist() == [3, 1, 0]
        stored = path.read_bytes()
        for i, (offset, size) in enumerate(zip(table["offset"], table["size"], strict=True), start=1):
            assert stored[offset : offset + size] == jpeg(i)


def test_class_names_come_from_a_file(six):
    (six.parent / "classnames.txt").write_text("ant\nbee\ncat\ndog\nelk\n")
    assert Shards(six).classes == ["ant", "bee", "cat", "dog", "elk"]
    (six / "classnames.txt").write_text("ant\nbee\n")
    with pytest.raises(ValueError, match="classnames.txt names 2 classes.*up to 4"):
        Shards(six)


def test_what_cannot_be_used_says_why(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no shards in .*none; expected a folder of .tar files, a pattern"):
        Shards(tmp_path / "none")
    with pytest.raises(ValueError, match="no shards in .*none/a"):
        Shards(tmp_path / "none" / "a*.tar")
    with pytest.raises(ValueError, match="2 of 2 shards are missing, the first is .*/8.tar"):
        Shards(tmp_path / "none" / "{8..9}.tar")
    with pytest.raises(ValueError, match="'test'.*train, val"):
        Shards(tmp_path, "test")
    with pytest.raises(ValueError, match="'shards' needs the path"):
        data.load("shards")

    def refused(path: Path, match: str) -> None:
        with pytest.raises(ValueError, match=f"{path}.*{match}"):
            Shards(path)

    refused(plain(tmp_path / "empty.tar", {}), "is empty")
    refused(plain(tmp_path / "words.tar", {"a.txt": b"", "a.cls": b"1"}), "is empty")
    refused(write(tmp_path / "bare.tar", range(3), cls=None, json=None), "3 of 3 .* no label, .* pic0000")
    refused(write(tmp_path / "other.tar", range(3), cls=None, json={"tag": 1}), "no label, .*pic0000.cls")
    refused(write(tmp_path / "word.tar", range(3), cls="cat"), "pic0000.cls says b'cat'; expected a class")
    refused(write(tmp_path / "minus.tar", range(3), cls=-1), "pic0000.cls says -1; expected a class number")
    refused(
        plain(tmp_path / "list.tar", {"a.jpg": jpeg(1), "a.json": b"[1]"}), r"a.json says b'\[1\]'; expected"
    )
    refused(plain(tmp_path / "packed.tar", {"a.jpg": jpeg(1)}, mode="w:gz"), "no uncompressed tar")
    whole = write(tmp_path / "cut.tar", range(3)).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: whole.index(jpeg(1)) + 100])
    refused(tmp_path / "cut.tar", "is damaged")
    single = write(tmp_path / "single.tar", range(1))
    with pytest.raises(ValueError, match=f"{single} has too few samples"):
        Shards(single, "val")


def blank(colour: str) -> bytes:
    stored = io.BytesIO()
    Image.new("RGB", (40, 40), colour).save(stored, "PNG")
    return stored.getvalue()


@pytest.mark.parametrize("between", [0, 3], ids=["adjacent", "distant"])
@pytest.mark.parametrize("twice", ["png", "cls", "json", "txt"])
def test_a_key_that_is_there_twice_is_refused(tmp_path, twice, between):
    content = {"png": blank("red"), "cls": b"0", "json": b"{}", "txt": b"red"}
    members = [(f"a.{kind}", held) for kind, held in content.items()]
    for i in range(between):
        members += [(f"b{i}.png", blank("green")), (f"b{i}.cls", b"1")]
    members += [("a." + twice.upper(), content[twice])]
    with tarfile.open(tmp_path / "twice.tar", "w") as tar:
        for name, held in members:
            member = tarfile.TarInfo(name)
            member.size = len(held)
            tar.addfile(member, io.BytesIO(held))
    with pytest.raises(ValueError, match=f"twice.tar holds a.{twice.upper()} twice: key a is of two"):
        Shards(tmp_path)


@pytest.mark.parametrize("kind", ["cut", "damaged", "joined"])
def test_a_shard_that_does_not_end_as_a_tar_does_is_named_and_counted(six, kind, indexed):
    whole = (six / "002.tar").read_bytes()
    with tarfile.open(six / "002.tar") as tar:
        fourth = min(member.offset for member in tar if member.name.startswith("pic0027."))
    indexed.clear()
    (six / "002.tar").write_bytes(
        {
            "cut": whole[:fourth],  # exactly between two samples
            "damaged": whole[:fourth] + b"nonsense" * 64 + whole[fourth + 512 :],
            "joined": whole + (six / "003.tar").read_bytes(),
        }[kind]
    )
    count = PER_SHARD if kind == "joined" else 3
    for split in ("train", "val"):  # the second is told by the stored index
        with pytest.warns(UserWarning, match=f"1 of 6 shards .* {six}/002.tar, with {count} samples before"):
            Shards(six, split)
    assert indexed.count("002.tar") == 1


def test_whole_shards_are_taken_without_a_word(six):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(Shards(six)) > 0


# The index


@pytest.fixture
def indexed(monkeypatch) -> list[str]:
    """The names of the shards that are read through, as they are."""
    seen, real = [], tarfile.open

    def spy(path=None, *rest, **options):
        seen.extend([Path(path).name] if path else [])  # without: the package that writes
        return real(path, *rest, **options)

    monkeypatch.setattr(shards.tarfile, "open", spy)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)  # in this process
    return seen


def test_the_index_is_kept_and_follows_a_shard_that_changes(six, indexed, cache):
    before = Shards(six).read(range(69))
    assert sorted(indexed) == [f"{s:03}.tar" for s in range(6)]
    assert equal(Shards(six).read(range(69)), before) and len(indexed) == 6
    assert len(list(cache.iterdir())) == 6

    fingerprint = Shards(six).fingerprint()
    write(six / "002.tar", range(100, 105))
    changed = Shards(six)
    assert indexed[6:] == ["002.tar"] and len(list(cache.iterdir())) == 6
    assert changed.fingerprint() != fingerprint
    found = [key.split("pic")[1] for key in keys(changed) + keys(Shards(six, "val"))]
    assert {int(number) for number in found} == {*range(24), *range(100, 105), *range(36, 72)}
    batch = changed.read(range(len(changed)))
    assert batch["label"].tolist() == [int(key[-4:]) % 5 for key in keys(changed)]


def test_a_shard_rewritten_at_the_same_size_is_noticed(six, indexed):
    Shards(six)
    stat = (six / "000.tar").stat()
    os.utime(six / "000.tar", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    Shards(six)
    assert indexed[6:] == ["000.tar"]


def test_shards_are_known_by_names_and_contents_wherever_they_lie(six, tmp_path):
    before = Shards(six).identity()
    (tmp_path / "copied").mkdir()
    for path in six.iterdir():
        (tmp_path / "copied" / path.name).write_bytes(path.read_bytes())
    assert Shards(tmp_path / "copied").identity() == Shards(f"{six}/{{000..005}}.tar").identity() == before
    size = (six / "002.tar").stat().st_size
    write(six / "002.tar", range(100, 112))
    assert (six / "002.tar").stat().st_size == size  # tars are padded
    assert Shards(six).identity() != before


@pytest.mark.parametrize("damage", [b"", b"nonsense", "cut"])
def test_a_damaged_index_is_built_again(six, indexed, cache, damage):
    before = keys(Shards(six))
    torn = sorted(cache.iterdir())[0]
    torn.write_bytes(torn.read_bytes()[:100] if damage == "cut" else damage)
    assert keys(Shards(six)) == before and len(indexed) == 7


def test_built_side_by_side_it_is_the_same(six, monkeypatch):
    def tables(cores: int, where: str) -> list[dict[str, np.ndarray]]:
        monkeypatch.setenv("XDG_CACHE_HOME", str(six.parent / where))
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
        built = shards.index_shards(shards.find_shards(six))
        again = shards.index_shards(shards.find_shards(six))
        for one, other in zip(built, again, strict=True):
            assert all(np.array_equal(one[key], other[key]) for key in one)
        return built

    alone = tables(1, "alone")
    for one, other in zip(alone, tables(2, "together"), strict=True):
        assert one.keys() == other.keys() == COLUMNS
        assert all(one[key].dtype == other[key].dtype and np.array_equal(one[key], other[key]) for key in one)


def test_an_error_in_another_process_is_as_clear(six, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    plain(six / "003.tar", {})
    with pytest.raises(ValueError, match=f"^{six}/003.tar is empty"):
        Shards(six)


# Reading


def test_the_shuffle_shows_all_once_and_stays_near(six, monkeypatch):
    source = Shards(six)
    assert isinstance(source, Ordered)
    monkeypatch.setattr(source, "_labels", np.zeros(1000))  # its length is all that matters here
    monkeypatch.setattr(shards, "RUN", 10)
    monkeypatch.setattr(shards, "WINDOW", 100)
    order = source.order(np.random.default_rng(0))
    assert sorted(order.tolist()) == list(range(1000))
    assert np.array_equal(order, source.order(np.random.default_rng(0)))
    assert not np.array_equal(order, source.order(np.random.default_rng(1)))
    runs = order // 10
    spans = [np.ptp(np.flatnonzero(runs == run)) for run in range(100)]
    assert max(spans) < 2 * (100 + 10)  # a run is done soon after it is begun
    for begin in range(100, 800, 100):  # and a hundred in a row are of many runs, from all over
        near = runs[begin : begin + 100]
        assert len(set(near)) >= 15 and np.ptp(near) > 50


def test_shards_are_read_alike_by_workers_by_processes_and_after_a_kill(six):
    source = Shards(six, image_size=16)
    whole = list(data.stream(source, 10, seed=3, steps=9))  # 69 pictures: the epoch ends within a batch
    assert all(
        equal(a, b) for a, b in zip(whole, data.stream(source, 10, seed=3, steps=9, workers=2), strict=True)
    )
    rest = data.stream(Shards(six, image_size=16), 10, seed=3, start=5, steps=4)
    assert all(equal(a, b) for a, b in zip(whole[5:], rest, strict=True))
    parts = [data.stream(source, 10, seed=3, steps=9, process=r, processes=2) for r in range(2)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert equal(batch, {key: torch.cat([share[key] for share in shares]) for key in batch})


def test_every_epoch_of_the_stream_shows_every_picture(six):
    source = Shards(six, image_size=8)
    seen = []
    real = source.read
    source.read = lambda indices, rngs: (seen.extend(indices), real(indices, rngs))[1]
    list(data.stream(source, 23, seed=0, steps=6))
    assert sorted(seen[:69]) == sorted(seen[69:]) == list(range(69)) and seen[:69] != seen[69:]


def test_a_corrupt_member_is_named_once_skipped_and_counted(six):
    whole = Shards(six).read(range(69))
    source = Shards(six)
    bad = next(i for i, key in enumerate(keys(source)) if i > 10 and not key.endswith("pic0000"))
    name, path = keys(source)[bad], source._shards[source._shard[bad]]
    with open(path, "r+b") as file:
        file.seek(int(source._offset[bad]))
        file.write(bytes(200))
    with pytest.warns(UserWarning) as caught:
        batch = source.read(range(69))
    assert [str(warning.message).split(": Unid")[0] for warning in caught] == [f"skipped {name}"]
    assert source.skipped == {name}
    stand_in = [i if i != bad else bad + 1 for i in range(69)]
    assert equal(batch, {key: value[stand_in] for key, value in whole.items()})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert equal(source.read(range(69)), batch)


def test_several_views_of_one_picture_are_what_they_are_alone(six):
    source = Shards(six, image_size=16)
    together = source.read([4, 4, 4, 9], [np.random.default_rng(i) for i in range(4)])
    alone = [source.read([at], [np.random.default_rng(i)]) for i, at in enumerate((4, 4, 4, 9))]
    assert equal(together, {key: torch.cat([one[key] for one in alone]) for key in together})
    assert not torch.equal(together["image"][0], together["image"][1])


def test_labels_of_a_json_alone(tmp_path):
    path = write(tmp_path / "json" / "0.tar", range(4), cls=None, json={"label": 2})
    assert Shards(path.parent).read([0, 1, 2])["label"].tolist() == [2, 2, 2]


def test_captions_come_from_the_txt_beside_the_picture(tmp_path):
    content = {}
    for i in range(30):
        content[f"{i:02}.jpg"] = jpeg(i)
        if i != 3:
            content[f"{i:02}.txt"] = f"a picture\nnumber {i}".encode()
    content["05.txt"], content["06.txt"] = b"", b"caf\xe9"
    plain(tmp_path / "a.tar", content)
    with pytest.warns(UserWarning) as said:
        parts = [data.load("shards", split, folder=tmp_path, captions=True) for split in ("train", "val")]
        read = [part.read(range(len(part))) for part in parts]
    assert sum(map(len, parts)) == 29 and parts[0].classes == []
    assert any("passed over 1 of" in str(w.message) for w in said)
    assert {name[-2:] for part in parts for name in part.skipped} == {"05", "06"}
    captions = {caption for batch in read for caption in batch["caption"]}
    assert captions == {f"a picture number {i}" for i in range(30) if i not in (3, 5, 6)}
    alone = parts[0].read([0])
    assert alone["caption"] == read[0]["caption"][:1] and torch.equal(alone["image"], read[0]["image"][:1])
    with pytest.raises(ValueError, match="30 of 30 samples have no label, the first is 00"):
        data.load("shards", folder=tmp_path)


def test_shards_without_captions_say_so(six):
    with pytest.raises(
        ValueError, match='no sample .* has a caption; expected KEY.txt, or KEY.json with a text "caption"$'
    ):
        with pytest.warns(UserWarning, match="passed over"):
            data.load("shards", folder=six, captions=True)


# Captions in KEY.json, and mixtures


def captioned(path: Path, numbers: range, in_txt: bool = False) -> Path:
    """A shard as GPIC's, .jpg and .png with the caption in KEY.json; or as BLIP3o's, with KEY.txt."""
    content = {}
    for i in numbers:
        said = {"caption": f"short {i}", "caption_type": "short", "long": f"long {i}", "width": 40}
        content[f"{i:04}.json"] = json.dumps(said).encode()
        content[f"{i:04}.png" if i % 3 == 0 and not in_txt else f"{i:04}.jpg"] = (
            blank("red") if i % 3 == 0 and not in_txt else jpeg(i)
        )
        if in_txt:
            content[f"{i:04}.txt"] = f"text {i}".encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    return plain(path, content)


def told(source: Shards) -> set[str]:
    return set(source.read(range(len(source)))["caption"])


def mixture(tmp_path: Path, *parts: dict) -> Path:
    (tmp_path / "mix.json").write_text(json.dumps({"mixture": parts}))
    return tmp_path / "mix.json"


def test_captions_inside_the_json_are_taken_where_there_is_no_txt(tmp_path):
    captioned(tmp_path / "gpic" / "0.tar", range(24))
    parts = [Shards(tmp_path / "gpic", split, captions=True) for split in ("train", "val")]
    assert set.union(*map(told, parts)) == {f"short {i}" for i in range(24)}
    assert parts[0].classes == [] and not set(parts[0].read(range(3))["label"].tolist()) - {0}
    captioned(tmp_path / "blip3o" / "0.tar", range(24), in_txt=True)
    assert all(caption.startswith("text ") for caption in told(Shards(tmp_path / "blip3o", captions=True)))
    with pytest.raises(ValueError, match="24 of 24 samples have no label.*--condition caption"):
        Shards(tmp_path / "gpic")


def test_a_json_that_is_no_object_costs_a_caption_and_not_the_run(tmp_path):
    made = {
        f"{i}.{kind}": b"[1]" if kind == "json" else jpeg(i) for i in range(3) for kind in ("jpg", "json")
    }
    made["2.json"], made["2.cls"] = b'{"caption": "two"}', b"cat"
    plain(tmp_path / "a.tar", made)
    with pytest.warns(UserWarning, match="passed over"):
        assert told(Shards(tmp_path, "train", captions=True)) == {"two"}
    with pytest.raises(ValueError, match=r"0.json says b'\[1\]'; expected a class number"):
        Shards(tmp_path)


def test_the_field_of_captions_is_chosen_by_name(tmp_path):
    captioned(tmp_path / "a" / "0.tar", range(20), in_txt=True)
    for field, word in (("json.long", "long"), ("json.caption", "short"), ("txt", "text")):
        path = mixture(tmp_path, {"shards": "a", "caption": field})
        assert {caption.split()[0] for caption in told(Shards(path, captions=True))} == {word}
    other = Shards(path, captions=True).identity()
    assert other != Shards(mixture(tmp_path, {"shards": "a"}), captions=True).identity()
    with pytest.raises(
        ValueError, match="expected KEY.json with a text \"wide\"; .* are 'caption', .*'long'"
    ):
        with pytest.warns(UserWarning, match="passed over"):
            Shards(mixture(tmp_path, {"shards": "a", "caption": "json.wide"}), captions=True)


def test_sources_are_mixed_by_weight_all_along(tmp_path):
    captioned(tmp_path / "gpic" / "0.tar", range(200))
    captioned(tmp_path / "blip3o" / "0.tar", range(20), in_txt=True)
    parts = {"shards": "gpic", "weight": 1}, {"shards": str(tmp_path / "blip3o"), "weight": 3}
    source = Shards(mixture(tmp_path, *parts), captions=True, image_size=8)
    assert len(source) == 190 + 19
    order = source.order(np.random.default_rng(0))
    small = np.flatnonzero(source._part == 1)
    counts = np.bincount(order, minlength=209)
    assert len(order) == 209 and counts[small].sum() == 157 and set(counts[small]) == {8, 9}
    assert counts[source._part == 0].max() == 1
    for tenth in np.split(order[:200], 5):  # and not one source after the other
        assert 24 <= np.isin(tenth, small).sum() <= 36
    assert set(source.read(order[:8].tolist())["caption"]) <= {
        *(f"short {i}" for i in range(200)),
        *(f"text {i}" for i in range(20)),
    }


def test_without_weights_every_sample_of_a_mixture_comes_once(tmp_path):
    captioned(tmp_path / "a" / "0.tar", range(30))
    captioned(tmp_path / "b" / "0.tar", range(10), in_txt=True)
    source = Shards(mixture(tmp_path, {"shards": "a"}, {"shards": "b/{0..0}.tar"}), captions=True)
    assert sorted(source.order(np.random.default_rng(0)).tolist()) == list(range(len(source)))
    assert len(told(source)) == len(source) == 29 + 9


def test_a_mixture_that_says_nothing_useful_is_refused_in_words(tmp_path):
    write(tmp_path / "a" / "0.tar", range(4))

    def refused(match: str, *parts) -> None:
        with pytest.raises(ValueError, match=f"mix.json.*{match}"):
            Shards(mixture(tmp_path, *parts))

    refused("lists no shards")
    refused("is no part of a mixture", {"folder": "a"})
    refused("is no part of a mixture", {"shards": "a", "prob": 1})
    refused("weight is 0; it must be a number above 0", {"shards": "a", "weight": 0})
    refused('caption is \'long\'; expected "txt" or "json.NAME"', {"shards": "a", "caption": "long"})
    refused("gives a weight to some", {"shards": "a", "weight": 1}, {"shards": "a"})
    with pytest.raises(FileNotFoundError, match="none.json"):
        Shards(tmp_path / "none.json")
