"""Every figure, once, in one style: matplotlib Figures for charts, PIL images for pictures and token maps.

    style.py    colours, typeface and settings that all share
    charts.py   measures against steps, seeds, blocks and temperatures
    codes.py    a codebook's use and layout
    maps.py     one picture's tokens and patches
    sheets.py   many pictures

Notable here:
- Charts are `Figure` objects made without pyplot, whose global state does not survive several users at once.
- Pictures and token maps are enlarged without smoothing, cell for cell, so that a click finds its token.
- Colours are safe for the colour-blind: Okabe-Ito for lines, matplotlib's perceptual maps for quantities.
  `legend` states a map's scale and unit. A colour of a line stands for an arm. Each arm has a dash pattern
  too, so that both of two lines that coincide are seen. Seeds are grey.
"""

from gear_studio.plots.charts import (
    against_tau,
    attention_mask,
    by_seed,
    convergence,
    curves,
    encoded_caption,
    estimate_panels,
    gradient_matrix,
    interval_bars,
    layouts,
    prompt_scores,
    speed_ups,
    speed_ups_by_level,
    token_codes,
)
from gear_studio.plots.codes import PointedOut, code_map, usage_histogram
from gear_studio.plots.maps import (
    colored,
    enlarge,
    grid_map,
    heat_map,
    index_map,
    legend,
    map_grid,
    mark,
    paint,
    to_rgb,
    token_maps,
)
from gear_studio.plots.sheets import (
    attention_sheet,
    captioned_pictures,
    patch_gallery,
    picture_row,
    sample_grid,
    sample_sheet,
)
from gear_studio.plots.style import (
    DASHES,
    GREYS,
    INK,
    MARKERS,
    OKABE_ITO,
    PALE,
    PENDING,
    STYLE,
    styled,
    text_font,
)

__all__ = [
    "PointedOut",
    "DASHES",
    "GREYS",
    "INK",
    "MARKERS",
    "OKABE_ITO",
    "PALE",
    "PENDING",
    "STYLE",
    "against_tau",
    "attention_mask",
    "attention_sheet",
    "by_seed",
    "captioned_pictures",
    "code_map",
    "colored",
    "convergence",
    "curves",
    "encoded_caption",
    "enlarge",
    "estimate_panels",
    "gradient_matrix",
    "grid_map",
    "heat_map",
    "index_map",
    "interval_bars",
    "layouts",
    "legend",
    "map_grid",
    "mark",
    "paint",
    "patch_gallery",
    "picture_row",
    "prompt_scores",
    "sample_grid",
    "sample_sheet",
    "speed_ups",
    "speed_ups_by_level",
    "styled",
    "text_font",
    "to_rgb",
    "token_codes",
    "token_maps",
    "usage_histogram",
]
