"""Which of a visitor's requests is the newest: an older one stops between its steps.

Gradio lets the page overtake a request, but what runs in the app would run on. `Ticket`s tell it.
"""

from collections import OrderedDict
from threading import Lock

import gradio as gr


class Newest:
    """Of every visitor and place in the page, the request that was made last."""

    LIMIT = 10_000  # visitors remembered

    def __init__(self) -> None:
        self._numbers: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._lock = Lock()

    def take(self, place: str, request: gr.Request | None) -> "Ticket":
        """A ticket for a request that has just come in; older ones of the same place are then outdated."""
        key = str(request.session_hash if request else ""), place
        with self._lock:
            number = self._numbers.pop(key, 0) + 1
            self._numbers[key] = number
            if len(self._numbers) > self.LIMIT:
                self._numbers.popitem(last=False)
        return Ticket(self, key, number)

    def number(self, key: tuple[str, str]) -> int:
        with self._lock:
            return self._numbers.get(key, 0)


class Ticket:
    """valid: no newer request has come in from the same visitor and place."""

    def __init__(self, newest: Newest, key: tuple[str, str], number: int):
        self._newest, self._key, self._number = newest, key, number

    @property
    def valid(self) -> bool:
        return self._newest.number(self._key) == self._number
