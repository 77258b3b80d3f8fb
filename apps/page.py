"""The page as its tabs see it: what they share, and when they draw.

A tab is a module with a TITLE and `build(page)`. A new one is a file here and a line in `explorer.TABS`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import gradio as gr
import picker
from background import Background
from pictures import Picture
from runs_on_offer import RunsOnOffer

Trigger = Callable[..., Any]  # an event of Gradio's, such as `button.click`, taking what answers it
Render = Callable[[Trigger], Any]  # makes something be drawn at the event


class Tab(Protocol):
    """What a tab's module defines. TITLE: shown in the page, and in lower case its id."""

    TITLE: str

    def build(self, page: "Page") -> None:
        """Lay the tab out, inside `page.tab`."""
        ...


@dataclass
class Page:
    """One page under construction. picture: the Picture looked at, of one visitor, shared by the tabs.

    tab: the tab being built; its `select` is the event of it being opened."""

    runs: RunsOnOffer
    background: Background
    demo: gr.Blocks
    picture: gr.State = field(init=False, default_factory=lambda: gr.State(Picture()))
    tab: gr.Tab = field(init=False)
    _filled: Trigger = field(init=False)
    _on_picture: list[Render] = field(init=False, default_factory=list)
    _pickers: list[picker.Picker] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._filled = self.demo.load

    def add(self, tab: Tab) -> None:
        with gr.Tab(tab.TITLE, id=tab.TITLE.lower()) as self.tab:
            tab.build(self)

    def on_open(self, render: Render) -> None:
        """Draw as soon as a visitor opens the page: for the tab that is seen first.

        render: returns what the trigger returns, as the hidden tabs are drawn after it."""
        self._filled = render(self.demo.load).then

    def on_picture(self, render: Render) -> None:
        """Draw when the page is open, and again whenever another picture is chosen in any tab."""
        self._on_picture.append(render)

    def add_picker(self, prefix: str) -> picker.Picker:
        """Lay out the choice of the picture, the same in all tabs that have one. prefix: of its ids."""
        self._pickers.append(picker.build(prefix))
        return self._pickers[-1]

    def connect(self) -> None:
        """Once all tabs are there: let the renders of `on_picture` draw."""
        # Hidden tabs fill after the visible one: at the same time, all would be late.
        chosen = picker.connect(self.runs, self._pickers, self.picture)
        for trigger in (self._filled, *(event.success for event in chosen)):
            for render in self._on_picture:
                render(trigger)
