"""Whether samples show what their captions ask for: prompts that say it, and a score that counts it."""

import pytest
import tiny
import torch

from gear_studio.analysis import agreement
from gear_studio.data.shapes import HELD_OUT, Shapes
from gear_studio.models.judges import ATTRIBUTES
from gear_studio.models.tokenizer import Tokenizer


def test_prompts_say_all_four_attributes_and_are_always_the_same():
    captions, wanted = agreement.make_prompts("seen", 40)
    assert (captions, {name: ids.tolist() for name, ids in wanted.items()}) == (
        agreement.make_prompts("seen", 40)[0],
        {name: ids.tolist() for name, ids in agreement.make_prompts("seen", 40)[1].items()},
    )
    assert len({caption.split()[0] for caption in captions}) > 1  # told in several ways
    for i, caption in enumerate(captions):
        for name, ids in wanted.items():
            word = agreement.NAMES[name][int(ids[i])]
            assert word in caption or (word == "center" and "middle" in caption), (caption, name, word)


def test_unseen_prompts_are_of_held_out_combinations_and_seen_ones_are_not():
    for kind in agreement.KINDS:
        _, wanted = agreement.make_prompts(kind, 60)
        found = [
            tuple(agreement.NAMES[name][int(wanted[name][i])] for name in ("texture", "shape", "color"))
            for i in range(60)
        ]
        assert all((each in HELD_OUT) == (kind == "unseen") for each in found)


def test_agreement_by_hand():
    wanted = {name: torch.tensor([0, 1, 2, 3]) for name in ATTRIBUTES}
    seen = {name: ids.clone() for name, ids in wanted.items()}
    assert set(agreement.score(seen, wanted).values()) == {1.0}
    seen["shape"][0], seen["color"][0], seen["color"][1] = 3, 3, 3
    found = agreement.score(seen, wanted)
    assert (found["shape"], found["color"], found["texture"], found["all"]) == (0.75, 0.5, 1.0, 0.5)
    moved = agreement.shuffle(wanted)
    assert all(torch.equal(ids, moved["shape"]) for ids in moved.values())
    assert sorted(moved["shape"].tolist()) == [0, 1, 2, 3] and moved["shape"].tolist() != [0, 1, 2, 3]


def test_chance_is_what_guessing_scores():
    assert (agreement.CHANCE["shape"], agreement.CHANCE["position"]) == (1 / 6, 1 / 9)
    assert (
        agreement.CHANCE["all"] == pytest.approx(1 / (6 * 4 * 8 * 9)) and list(agreement.CHANCE)[-1] == "all"
    )


def test_the_ceiling_is_of_the_pictures_that_the_prompts_are_of():
    """A judge that knows the pictures by heart: right of them, and of no others."""
    truth = Shapes("val", 32, combinations="unseen").truth(range(6))
    _, wanted = agreement.make_prompts("unseen", 6)

    class ByHeart:
        def says(self, images):
            pixels = ((images + 1) * 127.5).round().byte()
            known = (pixels == truth["image"]).flatten(1).all(1)
            return {name: torch.where(known, ids, ids - 1) for name, ids in wanted.items()}

    tokenizer = Tokenizer(tiny.TOKENIZER).eval()
    assert set(agreement.score_ceiling(ByHeart(), "unseen", 6, 32).values()) == {1.0}
    assert set(agreement.score_ceiling(ByHeart(), "unseen", 6, 32, tokenizer).values()) == {0.0}
