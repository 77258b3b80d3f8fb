"""The notebooks' figures: what they say, read off their axes."""

import json
from itertools import pairwise

import numpy as np
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from gear_studio import plots
from gear_studio.analysis.codes import top_codes
from gear_studio.analysis.convergence import SpeedUp
from gear_studio.analysis.similarity import Estimate
from gear_studio.models.generator import attention_mask
from gear_studio.models.quantizers import QUANTIZERS
from gear_studio.runs import Run


def text(axes) -> list[str]:
    return [each.get_text() for each in axes.texts]


def test_one_token_and_its_codes():
    torch.manual_seed(0)
    scores, image = -torch.rand(64), torch.rand(3, 32, 32) * 2 - 1
    best = top_codes(scores, tau=0.1, count=5)
    picture, bars = plots.token_codes(image, 6, best, 4, QUANTIZERS["vq"].formula).axes
    assert picture.get_title(loc="left") == "token 6"
    assert [label.get_text() for label in bars.get_yticklabels()] == [str(each.code) for each in best]
    np.testing.assert_allclose([bar.get_width() for bar in bars.patches], scores.topk(5).values)

    assert bars.get_xlabel() == "score A$_k$ = −‖z − c$_k$‖²"
    for name, formula in (("lfq", "2 ⟨z, c$_k$⟩"), ("ibq", "⟨z, c$_k$⟩")):
        _, bars = plots.token_codes(image, 6, best, 4, QUANTIZERS[name].formula).axes
        assert bars.get_xlabel() == f"score A$_k$ = {formula}"

    *_, weights = plots.token_codes(image, 6, best, 4, QUANTIZERS["vq"].formula, tau=0.1).axes
    widths = [bar.get_width() for bar in weights.patches]
    assert widths[:5] == [1, 0, 0, 0, 0]
    np.testing.assert_allclose(widths[5:], torch.softmax(scores / 0.1, 0).topk(5).values)
    assert f"{1 - sum(widths[5:]):.2f}" in weights.get_xlabel()


def test_measures_against_the_temperature():
    panels = {
        "size": {"soft": [3, 2, 1], "other": 1.5},
        "use": {"soft": [1, 2, 3]},
        "reach": {"soft": [1, 1, 1]},
    }
    figure = plots.against_tau((0.01, 0.1, 1.0), panels, logarithmic=("size",))
    size, use, reach, unused = figure.axes
    assert not unused.axison
    assert [axes.get_ylabel() for axes in (size, use, reach)] == list(panels)
    assert size.get_yscale() == "log" and use.get_yscale() == "linear" and use.get_xscale() == "log"
    soft, other, marked = size.get_lines()
    np.testing.assert_allclose(soft.get_xydata(), [(0.01, 3), (0.1, 2), (1, 1)])
    assert set(other.get_ydata()) == {1.5} and set(marked.get_xdata()) == {0.1}
    (legend,) = figure.legends
    assert [each.get_text() for each in legend.get_texts()] == ["soft", "other", "τ = 0.1 (paper)"]


def test_the_matrix_of_gradients_is_blank_where_there_is_none():
    gear = {("1", "l1"): {"encoder": 0.5, "decoder": 2.0}, ("3", "ntp"): {"generator": 0.01}}
    arms = {"gear": gear, "continued": {("1", "l1"): {"encoder": 1.0}}}
    first, second, _ = plots.gradient_matrix(arms, ["encoder", "decoder", "generator"]).axes
    assert sorted(text(first)) == sorted(["0.5", "2", "0.01", "1", "3"])  # cells, and the updates' names
    assert text(second) == ["1", "1"]
    blank = np.ma.getmaskarray(np.ma.masked_invalid(first.images[0].get_array()))
    assert blank.tolist() == [[False, False, True], [True, True, False]]
    assert [each.get_text() for each in first.get_yticklabels()] == ["l1", "ntp"]


def test_maps_share_one_scale_and_stand_beside_their_picture():
    values = torch.arange(32.0).reshape(2, 16)
    image = torch.zeros(3, 8, 8)
    picture, left, right, bar = plots.token_maps(values, ["a", "b"], "entropy (nats)", 0, 31, image).axes
    np.testing.assert_array_equal(right.images[0].get_array(), values[1].reshape(4, 4))
    assert left.images[0].get_clim() == right.images[0].get_clim() == (0, 31)
    assert picture.get_title(loc="left") == "picture" and bar.get_ylabel() == "entropy (nats)"
    assert len(plots.token_maps(values, ["a", "b"], "x", 0, 1).axes) == 3


def test_pictures_in_a_row_keep_their_titles():
    pictures = [np.zeros((8, 8, 3), np.uint8), Image.new("RGB", (16, 16), "red")]
    axes = plots.picture_row(pictures, ["one", "two"]).axes
    assert [each.get_title(loc="left") for each in axes] == ["one", "two"]


def test_many_pictures_take_several_rows():
    titles = [f"picture {i}" for i in range(7)]
    figure = plots.picture_row([np.zeros((8, 8, 3), np.uint8)] * 7, titles)
    figure.draw_without_rendering()
    axes = figure.axes
    assert [each.get_title(loc="left") for each in axes] == [*titles, ""] and not axes[-1].axison
    places = [each.get_position() for each in axes[:7]]
    assert len({round(place.y0, 2) for place in places}) == 2 and places[0].y0 > places[4].y0
    assert figure.get_figwidth() < 14


def test_speed_ups_show_median_interval_seeds_and_the_line_at_one():
    found = {
        "gear": {"NTP": SpeedUp((1.5, 2.0, 0.0), 1.5, 0.0, 2.0), "FD": SpeedUp((3.0, 3.5), 3.0, 2.5, 3.5)},
        "other": {"NTP": SpeedUp((0.0, 0.0), 0.0, 0.0, 0.0), "FD": SpeedUp((0.5, 0.6), 0.5, 0.5, 0.6)},
    }
    figure = plots.speed_ups(found, "times")
    (axes,) = figure.axes
    lines = [line.get_xdata() for line in axes.lines]
    for each in (each for of_arm in found.values() for each in of_arm.values()):
        assert any(np.array_equal(line, each.pairs) for line in lines)
        assert any(np.array_equal(line, [each.value]) for line in lines)
    intervals = [tuple(segment[:, 0]) for lines in axes.collections for segment in lines.get_segments()]
    assert intervals == [(0.0, 2.0), (2.5, 3.5), (0.0, 0.0), (0.5, 0.6)]
    assert any(np.array_equal(line, [1, 1]) for line in lines)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["NTP", "FD"]
    assert axes.xaxis.get_major_formatter()(0) == "never" and axes.xaxis.get_major_formatter()(1.5) == "1.5x"
    (legend,) = figure.legends
    assert [each.get_text() for each in legend.get_texts()] == ["gear", "other"]


def test_speed_ups_by_level_have_a_line_a_seed_and_their_median(tmp_path):
    runs: dict[str, list[Run]] = {"control": [], "twice": [], "unmeasured": []}
    for label, pace in {"control": 1, "twice": 2, "unmeasured": 0}.items():
        for seed in (1, 2):
            folder = tmp_path / f"{label}-{seed}"
            folder.mkdir()
            (folder / "config.json").write_text('{"stage": "generator"}')
            rows = [{"step": i} | ({"loss": 10 - pace * seed * i} if pace else {}) for i in range(5)]
            (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
            runs[label].append(Run(folder))
    (axes,) = plots.speed_ups_by_level(runs, "control", {"loss": "loss (nats)"}).axes
    *seeds, median, one = axes.lines
    assert len(seeds) == 2 and median.get_label() == "twice"
    assert all(np.allclose(line.get_ydata(), 2) for line in (*seeds, median))
    assert one.get_ydata() == [1, 1] and axes.xaxis_inverted()
    assert axes.get_ylabel() == "times fewer steps than control"


def test_a_run_that_lacks_a_metric_is_left_out_of_its_panel_and_keeps_its_colour(tmp_path):
    for name, keys in {"a": ("loss",), "b": ("loss", "more"), "begun": ()}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"stage": "joint"}')
        rows = [json.dumps({"step": i} | dict.fromkeys(keys, i)) for i in (1, 2)]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(rows))
    runs = {name: [Run(tmp_path / name)] for name in ("a", "b", "begun")}
    figure = plots.curves(runs, {"loss": "loss (nats)", "more": "more"})
    loss, more = figure.axes
    assert [line.get_label() for line in loss.lines] == ["a", "b"]
    (line,) = more.lines
    assert line.get_label() == "b" and line.get_color() == loss.lines[1].get_color()
    (legend,) = figure.legends
    assert [each.get_text() for each in legend.get_texts()] == ["a", "b"]


def test_arms_whose_curves_coincide_can_both_be_seen(tmp_path):
    rows = [json.dumps({"step": i, "usage": 1.0}) for i in range(20)]
    runs = {}
    for name in ("gear", "straight-through", "soft-ntp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"stage": "joint"}')
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(rows))
        runs[name] = [Run(tmp_path / name)]
    figure = plots.curves(runs, {"usage": "codes used", "no": "no"})
    marked = [
        set(range(20)[slice(line.get_markevery()[0], None, line.get_markevery()[1])])
        for line in figure.axes[0].lines
    ]
    assert all(marked) and not set.union(*marked[:2]) & marked[2] and not marked[0] & marked[1]
    assert len({line.get_marker() for line in figure.axes[0].lines}) == 3
    (legend,) = figure.legends
    assert legend._ncols == 3  # not two above one

    values = {"one": [1, 2, 3], "two": [1, 2, 3]}
    first, second, _ = plots.against_tau((0.01, 0.1, 1.0), {"use": values}).axes[0].lines
    assert first.get_markersize() > second.get_markersize() and first.get_marker() != second.get_marker()
    assert second.is_dashed() and not first.is_dashed()


def test_colours_mean_arms_and_seeds_are_grey():
    rows = [{"arm": arm, "seed": seed, "c": seed} for arm in "ab" for seed in range(4)]
    dots = plots.by_seed(rows, {"c": "CKA of c_q"}, "arm").axes[0].lines
    looks = {}
    for dot in dots:
        red, green, blue = to_rgb(dot.get_color())
        assert red == green == blue < 0.65  # on white
        looks.setdefault(dot.get_label(), set()).add((dot.get_color(), dot.get_marker()))
    assert len(looks) == len(set.union(*looks.values())) == 4 and all(len(of) == 1 for of in looks.values())


def test_six_measures_of_few_arms_fill_two_rows_with_a_protocol_below():
    measures = {f"m{i}": f"measure {i}" for i in range(6)} | {"m0": "CKA of c_q"}
    rows = [
        {"arm": arm, "seed": 0} | dict.fromkeys(measures, 1.0) for arm in ("baseline", "continued", "gear")
    ]
    figure = plots.by_seed(rows, measures, "tokenizer", protocol="512 images")
    figure.draw_without_rendering()
    assert len({round(axes.get_position().y0, 2) for axes in figure.axes}) == 2
    assert figure._supxlabel.get_text() == "512 images"
    assert figure.axes[0].get_ylabel() == "CKA of c$_q$"  # tables have it plain
    assert not any(label.get_rotation() for label in figure.axes[0].get_xticklabels())
    named = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in pairwise(named))


def test_panels_of_many_arms_stand_below_each_other():
    rows = [{"arm": f"arm {n}", "seed": 0, "a": n, "b": n} for n in range(14)]
    figure = plots.by_seed(rows, {"a": "one", "b": "other"}, "tokenizer")
    figure.draw_without_rendering()
    upper, lower = (axes.get_position() for axes in figure.axes)
    assert upper.y0 > lower.y1 and upper.x0 < 0.2 > lower.x0
    assert figure.get_figwidth() < 13


def test_the_tap_is_named_above_the_panel_where_nothing_is_covered():
    curve = {block: Estimate(float(block), block - 0.1, block + 0.1, None) for block in (1, 2, 3)}
    figure = plots.estimate_panels({"Moran's I": {"gear": curve}, "contrast": {"gear": curve}}, tap=2)
    figure.draw_without_rendering()
    boxes = [legend.get_window_extent() for legend in figure.legends]
    for axes in figure.axes:
        (named,) = axes.texts
        box = named.get_window_extent()
        assert named.get_text() == "tap" and box.y0 > axes.bbox.y1
        assert box.x0 < axes.transData.transform((2, 0))[0] < box.x1
        assert not any(box.overlaps(other) for other in boxes)


def test_scores_of_prompts_have_a_dot_a_seed_hollow_where_the_caption_is_another():
    asked = {"seen": {"a": {"shape": [40, 60, 50], "all": [10, 20, 30]}, "b": {"shape": [70], "all": [5]}}}
    other = {"seen": {"a": {"shape": [16, 18, 17], "all": [1, 0, 2]}, "b": {"shape": [15], "all": [0]}}}
    chance, best = {"shape": 17, "all": 0.1}, {"seen": {"shape": 99, "all": 97}}
    (axes,) = plots.prompt_scores(asked, other, chance, best).axes
    dots = {False: [], True: []}
    for line in axes.lines:
        dots[line.get_markerfacecolor() == "white"] += list(line.get_ydata())
    assert dots[False] == [40, 60, 50, 10, 20, 30, 70, 5] and dots[True] == [16, 18, 17, 1, 0, 2, 15, 0]
    levels = [segment[0][1] for lines in axes.collections for segment in lines.get_segments()]
    assert levels == [50, 20, 70, 5, 17, 0.1, 99, 97]
    assert axes.get_title(loc="left") == "seen"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["shape", "all"]
    (legend,) = axes.figure.legends
    told = ["a", "b", "median", "against other captions", "chance", "real pictures"]
    assert [each.get_text() for each in legend.get_texts()] == told


def test_the_mask_shows_who_looks_at_whom():
    visible = torch.tensor([[True, True, False]])
    mask = attention_mask(visible, 0, 5)[0, 0]
    figure = plots.attention_mask(mask, ["red", "ring"], 3)
    (axes,) = figure.axes
    seen = (np.asarray(axes.images[0].get_array()) < 1).any(-1)
    np.testing.assert_array_equal(seen, mask.numpy())
    assert not seen[4, 2] and seen[2, 2] and seen[4, 1]
    told = ["red", "ring", "padding → token 1", "token 1 → token 2", "token 2 → token 3"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == told
    looked_at = [tick.get_text() for tick in axes.get_xticklabels()]
    assert looked_at == ["red", "ring", "padding", "token 1", "token 2"]


def test_a_caption_s_features_and_pictures_with_their_captions():
    features = torch.rand(4, 6) * 2 - 1
    axes, _ = plots.encoded_caption(features, ["red", "ring"], {"signs": 4, "place": 2}).axes
    np.testing.assert_array_equal(axes.images[0].get_array(), features.numpy())
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["red", "ring", "(padding)", "(padding)"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["signs", "place"]
    assert list(axes.get_xticks()) == [1.5, 4.5]

    captions = [["a ring", "a red thing"], ["a star"]]
    _, first, _, second = plots.captioned_pictures(torch.zeros(2, 3, 8, 8), captions).axes
    assert (text(first), text(second)) == (["a ring\na red thing"], ["a star"])


def test_rows_are_named_and_a_note_stands_below():
    figure = plots.sample_grid(torch.zeros(4, 3, 8, 8), 2, row_names=["one", "two"], protocol="asked so")
    assert [text(axes) for axes in figure.axes] == [["one"], [], ["two"], []]
    assert figure._supxlabel.get_text() == "asked so"
    maps = {"red": torch.rand(2, 4)}
    axes = plots.map_grid(torch.zeros(2, 3, 8, 8), maps, "share", row_names=["one", "two"]).axes
    assert [text(each) for each in axes[:4]] == [["one"], [], ["two"], []]


def test_painted_cells_are_tinted_and_the_picture_shines_through():
    picture = plots.enlarge(np.random.default_rng(0).integers(200, size=(64, 64, 3), dtype=np.uint8), 128)
    before, after = (
        np.asarray(picture).astype(int),
        np.asarray(plots.paint(picture, [1, 6], grid=4)).astype(int),
    )
    cells = (before != after).any(-1).reshape(4, 32, 4, 32).mean((1, 3)).flatten()
    assert (cells[[1, 6]] > 0.95).all() and not np.delete(cells, [1, 6]).any()
    inside = np.corrcoef(before[4:28, 36:60, 0].ravel(), after[4:28, 36:60, 0].ravel())[0, 1]
    assert inside > 0.99 and (after[4:28, 36:60, 0] > before[4:28, 36:60, 0]).all()
