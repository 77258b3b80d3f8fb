"""Notebooks' one widget: a figure that follows its controls, and that is still there without them.

Where no widgets run (GitHub, a printed page) an `Interactive` shows as the figure of its first values.
"""

import base64
import io
from collections.abc import Callable

import ipywidgets
from matplotlib.figure import Figure


class Interactive(ipywidgets.VBox):
    """The figure draw(**values), above it the controls of the values, each by the name of its argument.

    controls: ipywidgets with a `value`. `picture.value` holds the figure as PNG; an error of `draw` reaches
    whoever sets a control from Python."""

    def __init__(self, draw: Callable[..., Figure], **controls: ipywidgets.ValueWidget):
        self.draw, self.controls = draw, controls
        # As large as it was drawn, or as wide as the page: a box would stretch it.
        size = ipywidgets.Layout(align_self="flex-start", max_width="100%")
        self.picture = ipywidgets.Image(format="png", layout=size)
        self.redraw()
        for control in controls.values():
            control.observe(self.redraw, "value")
        super().__init__([ipywidgets.HBox(list(controls.values())), self.picture])

    def redraw(self, _change: dict | None = None) -> None:
        figure = self.draw(**{name: control.value for name, control in self.controls.items()})
        file = io.BytesIO()
        figure.savefig(file, format="png")
        self.picture.value = file.getvalue()

    def _repr_mimebundle_(self, **settings) -> dict[str, str]:
        """The widget, and for those who cannot show it the picture."""
        picture = {"image/png": base64.b64encode(self.picture.value).decode()}
        return super()._repr_mimebundle_(**settings) | picture
