"""The page as its tabs see it: what they share, and when they draw.

A tab is a module with a TITLE, a GUIDE and `build(page)`. A new one is a file here and a line in
`app.TABS`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import address
import gradio as gr
import picker
from background import OWN_TEACHER, TEACHERS, Background
from components import MIDDLE, QUIET, div
from newest import Newest
from pictures import Choice, PicturesOnOffer
from runs_on_offer import RunsOnOffer
from views import Views

ALONE = "no other"  # instead of a second Run
EVERY = 3.0  # seconds after which a page asks whether there are more Runs


class Tab(Protocol):
    """What a tab's module defines. TITLE: shown in the page, and in lower case its id. GUIDE: what it shows
    and what to do first, in a line."""

    TITLE: str
    GUIDE: str

    def build(self, page: "Page") -> None:
        """Lay the tab out, inside `page.tab`."""
        ...


@dataclass
class Page:
    """One page under construction. choice: which picture one visitor looks at, a Choice, and place: where in
    it, a Place; the tabs share both.

    read_only: nothing that a visitor types is looked for on this machine's disk, or downloaded.
    tab: the tab being built; its `select` is the event of it being opened. lists: every choice of a Run, with
    the names that it offers, which grow when one is opened or trained, and what else stands before them.
    known: how many Runs there are, as far as the page knows; its `change` is the event of there being
    more."""

    runs: RunsOnOffer
    background: Background
    demo: gr.Blocks
    pictures: PicturesOnOffer = field(default_factory=PicturesOnOffer)
    read_only: bool = False
    newest: Newest = field(default_factory=Newest)
    choice: gr.State = field(init=False, default_factory=lambda: gr.State(Choice()))
    place: gr.State = field(init=False, default_factory=lambda: gr.State(MIDDLE))
    tab: gr.Tab = field(init=False)
    lists: list[tuple[gr.Dropdown, list[str], list[str]]] = field(init=False, default_factory=list)
    _remembered: list[gr.components.Component] = field(init=False, default_factory=list)
    _first: list[tuple[Callable, dict[str, Any]]] = field(init=False, default_factory=list)
    _tabs: list[gr.Tab] = field(init=False, default_factory=list)
    known: gr.Number = field(init=False)
    _views: list[Views] = field(init=False, default_factory=list)
    _pickers: list[picker.Picker] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.known = gr.Number(len(self.runs.names), elem_classes="ticket", container=False, render=False)

    def choose_run(self, names: list[str], value: str, label: str, elem_id: str) -> gr.Dropdown:
        """Lay out a list of Runs. names: of `runs`, such as `runs.tokenizers`."""
        choice = gr.Dropdown(names, value=value, label=label, elem_id=elem_id)
        self.lists.append((choice, names, []))
        self.remember(choice)
        return choice

    def choose_beside(self, names: list[str], elem_id: str) -> gr.Dropdown:
        """Lay out the choice of a second Run, at first of none."""
        choice = gr.Dropdown([ALONE, *names], value=ALONE, label="Beside it", elem_id=elem_id)
        self.lists.append((choice, names, [ALONE]))
        self.remember(choice)
        return choice

    def offer_anew(self) -> list[gr.Dropdown]:
        """Every list of Runs as it is now; the API keeps to the lists of the components themselves."""
        for choice, names, first in self.lists:
            choice.choices = [(name, name) for name in [*first, *names]]
        return [gr.Dropdown(choices=[*first, *names]) for _, names, first in self.lists]

    def remember(self, *controls: gr.components.Component) -> None:
        """Keep what these say in the page's address, under their ids."""
        self._remembered += controls

    def draw_first(self, draw: Callable, **event: Any) -> None:
        """Draw once the page is there and its controls say what its address says. event: as Gradio's."""
        self._first.append((draw, event))

    def choose_teacher(self, elem_id: str) -> gr.Dropdown:
        """Lay out the choice of a teacher, at first of the Run's own."""
        offered = dict.fromkeys([*TEACHERS, *self.background.weights])
        choice = gr.Dropdown(
            list(offered), value=OWN_TEACHER, label="Teacher", elem_id=elem_id,
            allow_custom_value=not self.read_only,
            info=None if self.read_only else "or type a name of timm's",
        )  # fmt: skip
        self.remember(choice)
        return choice

    def add(self, tab: Tab) -> None:
        with gr.Tab(tab.TITLE, id=tab.TITLE.lower()) as self.tab:
            gr.HTML(div("guide", tab.GUIDE), padding=False)
            tab.build(self)
        self._tabs.append(self.tab)

    def add_views(self, runs: Sequence[gr.Dropdown], ask: Callable[..., Any], **more: Any) -> Views:
        """What the tab shows of a Run and a picture; they follow the picture that is chosen. See `Views`."""
        views = Views(self.tab, self.newest, runs, ask, **more)
        self._views.append(views)
        return views

    def add_picker(self, prefix: str, run: gr.Dropdown) -> picker.Picker:
        """Lay out the choice of the picture, the same in all tabs that have one. prefix: of its ids."""
        self._pickers.append(picker.build(prefix, run, self.pictures))
        return self._pickers[-1]

    def connect(self, tabs: gr.Tabs) -> None:
        """Once all tabs are there: let the address be read, what is looked at be drawn, and lists follow the
        Runs."""
        self.known.render()
        lists = [choice for choice, *_ in self.lists]
        self.known.change(self.offer_anew, None, lists, **QUIET)
        if not self.read_only:  # else none is added
            asking = gr.Timer(EVERY)
            for event in (self.demo.load, asking.tick):
                event(lambda: len(self.runs.names), None, self.known, queue=False, **QUIET)
        chosen = picker.connect(self.runs, self.pictures, self._pickers, self.choice)
        loaded = self._connect_address(tabs).then
        for views in self._views:
            views.connect(loaded, chosen)
        for draw, settings in self._first:
            loaded(draw, **settings)

    def _connect_address(self, tabs: gr.Tabs) -> Any:
        """Returns the event of the address having been read."""
        place = gr.Textbox(elem_id="place", visible="hidden", container=False)
        # Not an output of `read`: a change of the tabs touches all that is in them, also where it is none.
        opened = gr.Textbox(visible="hidden", container=False)
        opened.change(lambda tab: gr.Tabs(selected=tab), opened, tabs, **QUIET)
        self.place.change(address.write_place, self.place, place, **QUIET)
        sources, numbers = ([getattr(each, name) for each in self._pickers] for name in ("source", "index"))
        for control in (place, *self._remembered):
            address.remember(control, str(control.elem_id))
        for source, number in zip(sources, numbers, strict=True):
            address.remember(source, "pictures")
            address.remember(number, "picture")
        for tab in self._tabs:
            tab.select(None, None, None, js=f"() => ({address.write('tab')})({json.dumps(tab.id)})", **QUIET)

        def read(request: gr.Request) -> list:
            self.offer_anew()
            said = {} if request is None else dict(request.query_params)
            choice = Choice()
            source, number = (said.get(key, "") for key in ("pictures", "picture"))
            if source in self.pictures.names[:-1]:  # a visitor's own are not there for another
                choice = choice.of_source(source)
            if number.isdecimal() and len(number) < 10:
                choice = replace(choice, index=int(number))
            return [
                next((tab.id for tab in self._tabs if tab.id == said.get("tab")), gr.skip()),
                choice,
                address.read_place(said.get("place", "")),
                *[choice.source] * len(sources),
                *[choice.index] * len(numbers),
                *[address.read(control, said) for control in self._remembered],
            ]

        outputs = [opened, self.choice, self.place, *sources, *numbers, *self._remembered]
        loaded = self.demo.load(read, None, outputs, **QUIET)
        loaded.then(None, None, None, js=address.READ, **QUIET)
        return loaded
