"""The page as its tabs see it: what they share, and when they draw.

A tab is a module with a TITLE and `build(page)`. A new one is a file here and a line in `explorer.TABS`.
"""

import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import address
import gradio as gr
import picker
from background import OWN_TEACHER, TEACHERS, Background
from components import MIDDLE, QUIET, polite, status
from newest import Newest
from pictures import Choice, PicturesOnOffer
from runs_on_offer import RunsOnOffer

ALONE = "no other"  # instead of a second Run
EVERY = 3.0  # seconds after which a page asks whether there are more Runs
# Of what draws a picture's views: the page takes what the newest request says, and drops the others.
OVERTAKEN: dict[str, Any] = {**QUIET, "trigger_mode": "multiple"}


class Tab(Protocol):
    """What a tab's module defines. TITLE: shown in the page, and in lower case its id."""

    TITLE: str

    def build(self, page: "Page") -> None:
        """Lay the tab out, inside `page.tab`."""
        ...


@dataclass
class Looking:
    """What one tab shows of a Run and a picture, both of which may be chosen anew at any time.

    Drawn when the tab is first opened: before that it is not in the page. At the choice of another, the page
    itself empties `cleared` and drops answers under way; then `draw` fills the views again. draw: a generator
    of updates by component. reopen: the same, of what has changed in other tabs. runs: the choices of Runs.
    others: further events that draw here, such as clicks. ticket: a number in the page that changes with
    every choice; 0 until the tab is opened."""

    tab: gr.Tab
    runs: Sequence[gr.Dropdown]
    draw: Callable
    reopen: Callable
    inputs: list
    outputs: list
    cleared: Sequence[gr.components.Component]
    others: list
    ticket: gr.Number

    def _once_laid_out(self, opened: str) -> str:
        """JavaScript that gives out the first ticket where `opened` holds, once the tab's views are in the
        page: what reaches a view while it is being put there may get lost."""
        views = json.dumps([view.elem_id for view in self.cleared if view.elem_id and view.visible])
        return f"""async (ticket) => {{
            if (ticket || !({opened})) return ticket;
            const pause = () => new Promise((resume) => setTimeout(resume, 30));
            while (!{views}.every((view) => document.getElementById(view))) await pause();
            await pause();
            return 1;
        }}"""

    def connect(self, load: Callable, chosen: list[Any]) -> None:
        """Draw on emptied views at another Run and after each event of `chosen`. load: the event of the page
        being there."""
        drawing = self.ticket.change(self.draw, self.inputs, self.outputs, **OVERTAKEN)
        self.tab.select(None, self.ticket, self.ticket, js=self._once_laid_out("true"), **QUIET)
        self.tab.select(self.reopen, self.inputs, self.outputs, **OVERTAKEN)
        # A visitor may have opened the tab before the page could hear of it.
        opened = (
            "[...document.querySelectorAll('[role=tab][aria-selected=true]')].map(t => t.textContent.trim())"
        )
        is_open = f"{opened}.includes({json.dumps(self.tab.label)})"
        load(None, self.ticket, self.ticket, js=self._once_laid_out(is_open), **QUIET)
        nothing = json.dumps(list(emptied(self.cleared).values()))
        clear = f"(ticket) => [...{nothing}, ticket && Date.now()]"
        for choose in (*(run.change for run in self.runs), *(event.success for event in chosen)):
            choose(None, cancels=[drawing, *self.others])  # first: what comes later is not dropped
            choose(None, self.ticket, [*self.cleared, self.ticket], js=clear, **QUIET)


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
    _looking: list[Looking] = field(init=False, default_factory=list)
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
            tab.build(self)
        self._tabs.append(self.tab)

    def add_looking(self, runs: Sequence[gr.Dropdown], draw: Callable, inputs: list, **more: Any) -> None:
        """Draw when the tab is opened, and again whenever another Run or picture is chosen: see `Looking`."""
        ticket = gr.Number(0, elem_classes="ticket", container=False, render=False)
        self._looking.append(Looking(self.tab, runs, draw, inputs=inputs, ticket=ticket, **more))

    def fill(
        self,
        place: str,
        request: gr.Request,
        what: Hashable,
        steps: Iterable[dict],
        nothing: dict,
        state_line: gr.HTML,
    ) -> Iterator[dict]:
        """`nothing`, then `steps`, updates by component, until a newer request from the same place; an error
        that may be said to the visitor is said. what: is looked at from now on."""
        ticket = self.newest.take(place, request, what)
        yield nothing  # what was still on its way when the page emptied the views goes, too
        try:
            with polite():
                shown: dict = {}
                for updates in steps:
                    if not ticket.valid:
                        return
                    shown |= updates
                    yield updates
            if ticket.valid:
                yield shown  # again: Gradio may lose what reaches a view while it is put into the page
        except gr.Error:
            yield {state_line: status("This cannot be shown; the message says why.", done=True)}
            raise

    def looks_elsewhere(self, place: str, request: gr.Request, what: Hashable) -> bool:
        """Whether the visitor has seen something there, and not `what`."""
        newest = self.newest
        return newest.has_looked(place, request) and not newest.is_looking_at(what, place, request)

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
        for looking in self._looking:
            # Outside of the tabs: a tab that was never opened is not in the page, and hears of no change.
            looking.ticket.render()
            looking.connect(loaded, chosen)
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


def emptied(components: Sequence[gr.components.Component]) -> dict[Any, Any]:
    """Each component with what it holds when it shows nothing."""
    return {each: "" if isinstance(each, gr.HTML | gr.Markdown) else None for each in components}
