"""What one tab shows of a Run and a picture, both of which may be chosen anew at any time.

    another Run or picture   the page empties the views; then `steps` fills them, one after the other
    a click, a slider        `at_once` draws on views that show something
    a timer                  `catch_up` adds what the background has finished

A visitor's newest request counts; what draws for an older one stops.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Protocol

import gradio as gr
from components import LAST_COUNTS, QUIET, Place, polite, status, token_at
from newest import Newest

# Of what draws a picture's views: the page takes what the newest request says, and drops the others.
OVERTAKEN: dict[str, Any] = {**QUIET, "trigger_mode": "multiple"}
STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # columns and rows


class Asked(Protocol):
    """What a visitor asks to see: a dataclass of the values of the tab's inputs, in their order."""

    run: str

    @property
    def looked_at(self) -> tuple[Hashable, ...]:
        """What and at last where, however it is drawn."""
        ...


@dataclass
class Views:
    """The views of one tab, drawn when it is first opened: before that they are not in the page.

    runs: the choices of Runs. ask: makes an `Asked` of the inputs' values. cleared: what is emptied at
    another choice; of_run: what at another Run alone. first: what else is so before `steps`, which gives
    updates by component and may raise what is said to the visitor. at_once: the same for views that are
    filled; None where no other tab changes what is seen here. ticket: a number in the page that changes with
    every choice; 0 until the tab is opened."""

    tab: gr.Tab
    newest: Newest
    runs: Sequence[gr.Dropdown]
    ask: Callable[..., Any]
    inputs: list
    outputs: list
    cleared: Sequence[gr.components.Component]
    of_run: Sequence[gr.components.Component]
    state_line: gr.HTML
    steps: Callable[[Any], Iterable[dict]]
    at_once: Callable[[Any], Iterable[dict]] | None = None
    first: Callable[[Any], dict] = lambda asked: {}
    cancelled: list = field(default_factory=list)  # events that another choice ends
    ticket: gr.Number = field(init=False)

    def __post_init__(self) -> None:
        self.place = str(self.tab.label)
        self.ticket = gr.Number(0, elem_classes="ticket", container=False, render=False)
        fill = ending_quietly(self._fill, self.state_line)
        self._filling = self.ticket.change(fill, self.inputs, self.outputs, **OVERTAKEN)

    # What draws

    def on(
        self,
        event: Callable[..., Any],
        change: Callable[..., Any] = lambda asked: asked,
        more: Sequence[gr.components.Component] = (),
        draw: Callable[[Any], Iterable[dict]] | None = None,
    ) -> None:
        """Draw at once after an event. change: makes what is asked for of what was asked, and of the values
        of `more`. draw: instead of `at_once`."""

        def answer(request: gr.Request, *values: Any) -> Iterator[dict]:
            with polite():
                asked = change(self.ask(*values[len(more) :]), *values[: len(more)])
            yield from self._draw_at_once(request, asked, draw)

        self._listen(event, answer, [*more, *self.inputs])

    def on_click(self, shown: gr.HTML | gr.Image, where: Callable[[gr.SelectData], Place]) -> None:
        """Draw at once where `shown` is clicked, from then on the place looked at."""

        def answer(request: gr.Request, event: gr.SelectData, *values: Any) -> Iterator[dict]:
            yield from self._draw_at_once(request, dataclasses.replace(self.ask(*values), place=where(event)))

        self._listen(shown.select, answer, self.inputs)

    def _listen(self, event: Callable[..., Any], answer: Callable[..., Any], inputs: list) -> None:
        # A ticket that has run out stops what is still to be drawn, but not what is on its way to the page.
        event(None, cancels=[self._filling])
        answer = ending_quietly(answer, self.state_line)
        self.cancelled.append(event(answer, inputs, self.outputs, **OVERTAKEN))

    def on_arrows(self, grid_of: Callable[[Any], int]) -> None:
        """Draw at once at the next token in the direction of an arrow key; see explorer.js. grid_of: tokens a
        side of what is asked for."""
        keys = gr.Textbox(elem_id=f"{self.place.lower()}-keys", visible="hidden", container=False)

        def answer(request: gr.Request, pressed: str, *values: Any) -> Iterator[dict]:
            with polite():
                asked = self.ask(*values)
                grid = grid_of(asked)
            # Gradio may tell of several presses at once: how many there were, then the last of them.
            if not re.fullmatch(r"\d{1,9}( [a-z]+)*", pressed):
                return
            count, *last = pressed.split()
            known = self.newest.latest(f"{self.place} keys", request)
            self.newest.take(f"{self.place} keys", request, int(count))
            more = int(count) - (known if isinstance(known, int) else 0)
            new = last[max(0, len(last) - more) :] if more > 0 else []
            if not new:
                return
            # From where the newest request has got to: the page may not know yet.
            before, at = self.newest.latest(self.place, request), asked.place
            if isinstance(before, tuple) and before[:-1] == asked.looked_at[:-1]:
                at = before[-1]
            row, column = divmod(token_at(at, grid), grid)
            for across, down in (STEPS[key] for key in new if key in STEPS):
                row, column = (min(max(to, 0), grid - 1) for to in (row + down, column + across))
            place = (column + 0.5) / grid, (row + 0.5) / grid
            yield from self._draw_at_once(request, dataclasses.replace(asked, place=place))

        self._listen(keys.change, answer, [keys, *self.inputs])

    def follow(self, timer: gr.Timer, known: gr.State, catch_up: Callable[[Any, Any], dict]) -> None:
        """Have `catch_up` add to the views at every tick. known: what it was told the last time."""

        def answer(request: gr.Request, before: Any, *values: Any) -> dict:
            asked = self.ask(*values)
            if not self.newest.is_looking_at(asked.looked_at, self.place, request):
                return {known: before}
            with polite():
                return {known: before} | catch_up(asked, before)

        self.cancelled.append(timer.tick(answer, [known, *self.inputs], self.outputs, **LAST_COUNTS))

    def _fill(self, request: gr.Request, *values: Any) -> Iterator[dict]:
        """What is seen of another choice, from nothing on."""
        asked = self.ask(*values)
        ticket = self.newest.take(self.place, request, asked.looked_at)
        # What was still on its way when the page emptied the views goes, too.
        yield {
            **emptied(self.cleared),
            self.state_line: status(f"reading {asked.run} …"),
            **self.first(asked),
        }
        try:
            with polite():
                for updates in self.steps(asked):
                    if not ticket.valid:
                        return
                    yield updates
        except gr.Error:
            yield {self.state_line: status("This cannot be shown; the message says why.", done=True)}
            raise

    def _draw_at_once(
        self, request: gr.Request, asked: Any, draw: Callable[[Any], Iterable[dict]] | None = None
    ) -> Iterator[dict]:
        draw = draw or self.at_once
        assert draw is not None, "a tab that draws at once says how"
        ticket = self.newest.take(self.place, request, asked.looked_at)
        with polite():
            for updates in draw(asked):
                if not ticket.valid:
                    return
                yield updates

    def _reopen(self, request: gr.Request, *values: Any) -> Iterator[dict]:
        """What another tab has changed meanwhile."""
        asked = self.ask(*values)
        seen = self.newest.is_looking_at(asked.looked_at, self.place, request)
        if self.at_once and not seen and self.newest.has_looked(self.place, request):
            yield from self._draw_at_once(request, asked)

    # When

    def connect(self, load: Callable, chosen: list[Any]) -> None:
        """Draw on emptied views at another Run and after each event of `chosen`. load: the event of the page
        being there."""
        # Outside of the tabs: a tab that was never opened is not in the page, and hears of no change.
        self.ticket.render()
        self.tab.select(None, self.ticket, self.ticket, js=self._once_laid_out("true"), **QUIET)
        self.tab.select(ending_quietly(self._reopen, self.state_line), self.inputs, self.outputs, **OVERTAKEN)
        # A visitor may have opened the tab before the page could hear of it.
        opened = (
            "[...document.querySelectorAll('[role=tab][aria-selected=true]')].map(t => t.textContent.trim())"
        )
        is_open = f"{opened}.includes({json.dumps(self.tab.label)})"
        load(None, self.ticket, self.ticket, js=self._once_laid_out(is_open), **QUIET)
        anew = [*self.cleared, *self.of_run]
        choices = [(run.change, anew) for run in self.runs] + [
            (each.success, self.cleared) for each in chosen
        ]
        for choose, cleared in choices:
            nothing = json.dumps(list(emptied(cleared).values()))
            clear = f"(ticket) => [...{nothing}, ticket && Date.now()]"
            choose(None, cancels=[self._filling, *self.cancelled])  # first: what comes later is not dropped
            choose(None, self.ticket, [*cleared, self.ticket], js=clear, **QUIET)

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


def ending_quietly(
    answer: Callable[..., Iterator[dict]], view: gr.components.Component
) -> Callable[..., Iterator[dict]]:
    """The same answer, at last with nothing to show. Gradio gives the last one again at the end, when a newer
    request may have been answered, and where there was none it empties all views. view: one of them."""

    @wraps(answer)  # Gradio reads off the signature what else to give
    def quietly(*given: Any, **more: Any) -> Iterator[dict]:
        yield from answer(*given, **more)
        yield {view: gr.skip()}

    return quietly


def emptied(components: Sequence[gr.components.Component]) -> dict[Any, Any]:
    """Each component with what it holds when it shows nothing."""
    return {each: "" if isinstance(each, gr.HTML | gr.Markdown) else None for each in components}
