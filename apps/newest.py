"""Which of a visitor's requests is the newest: an older one stops between its steps.

Gradio lets the page overtake a request, but what runs in the app would run on. `Ticket`s tell it.
"""

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock

import gradio as gr


class Newest:
    """Of every visitor and place in the page, the request that was made last."""

    LIMIT = 10_000  # visitors remembered

    def __init__(self) -> None:
        self._last: OrderedDict[tuple[str, str], tuple[int, Hashable]] = OrderedDict()
        self._lock = Lock()

    def take(self, place: str, request: gr.Request | None, what: Hashable) -> "Ticket":
        """A ticket for a request that has just come in; older ones of the same place are then outdated.

        what: is looked at from now on."""
        key = _key(place, request)
        with self._lock:
            number = self._last.pop(key, (0, None))[0] + 1
            self._last[key] = number, what
            if len(self._last) > self.LIMIT:
                self._last.popitem(last=False)
        return Ticket(self, key, number)

    def has_looked(self, place: str, request: gr.Request | None) -> bool:
        """Whether there has been a request at all."""
        with self._lock:
            return _key(place, request) in self._last

    def is_looking_at(self, what: Hashable, place: str, request: gr.Request | None) -> bool:
        """Whether the last request was for the same."""
        with self._lock:
            return self._last.get(_key(place, request), (0, None))[1] == what

    def latest(self, place: str, request: gr.Request | None) -> Hashable:
        """What the last request was for; None where there was none."""
        with self._lock:
            return self._last.get(_key(place, request), (0, None))[1]

    def number(self, key: tuple[str, str]) -> int:
        with self._lock:
            return self._last.get(key, (0, None))[0]


def _key(place: str, request: gr.Request | None) -> tuple[str, str]:
    return str(request.session_hash if request else ""), place


class Ticket:
    """valid: no newer request has come in from the same visitor and place."""

    def __init__(self, newest: Newest, key: tuple[str, str], number: int):
        self._newest, self._key, self._number = newest, key, number

    @property
    def valid(self) -> bool:
        return self._newest.number(self._key) == self._number
