"""Faults of Gradio that visitors would notice, put right here, each by the smallest change."""

import copy
import functools
import hashlib
import html
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, cast

import gradio as gr
from components import polite
from gradio import data_classes, processing_utils, routes, utils
from PIL.Image import Image
from pydantic import BeforeValidator

from gear_studio.errors import InputError
from gear_studio.files import atomic


def write_pictures_once() -> None:
    """Have Gradio write the file of a picture once, whole. By itself it writes equal ones again in place,
    also while a browser reads them, which then shows none."""

    def save(image: Image, cache_dir: str, name: str = "image", format: str = "webp") -> str:
        content = processing_utils.encode_pil_to_bytes(image, format)
        path = Path(cache_dir).resolve() / hashlib.sha256(content).hexdigest() / f"{name}.{format}"
        if path.exists():
            path.touch()  # files are deleted by age
        else:
            with atomic(path) as temporary:
                temporary.write_bytes(content)
        return str(path)

    processing_utils.save_pil_to_cache = save


def work_out_schemas_once() -> None:
    """Have Gradio work out the schema of each kind of component once. To be called before the launch.

    By itself it does so at every update that says more than a value, a quarter of the time of a view."""
    for model in (data_classes.GradioModel, data_classes.GradioRootModel):
        work_out = cast(Any, model.model_json_schema).__func__

        @functools.cache
        def kept(kind: type, work_out: Callable[..., dict] = work_out) -> dict:
            return work_out(kind)

        def schema(
            kind: type, *options: Any, kept: Any = kept, work_out: Any = work_out, **more: Any
        ) -> dict:
            return work_out(kind, *options, **more) if options or more else copy.deepcopy(kept(kind))

        model.model_json_schema = classmethod(schema)  # type: ignore[method-assign,assignment]


def pass_over_what_is_not_named(demo: gr.Blocks) -> None:
    """Have Gradio leave the components alone that an answer, a dictionary, does not name. To be called before
    the launch.

    By itself it builds each of them anew to say nothing of it, half of the time of a view."""
    postprocess = demo.postprocess_data

    async def only_named(block_fn: Any, predictions: Any, state: Any) -> list:
        said = {}
        if isinstance(predictions, dict) and not block_fn.batch:
            said = {key._id: value for key, value in predictions.items() if isinstance(key, gr.blocks.Block)}
        named = [each for each in block_fn.outputs if each._id in said]
        if not named or len(named) < len(predictions) or len(named) == len(block_fn.outputs):
            return await postprocess(block_fn, predictions, state)
        fewer = copy.copy(block_fn)
        fewer.outputs = named
        values = [said[each._id] for each in named]
        answers = await postprocess(fewer, values if len(named) > 1 else values[0], state)
        whole = dict(zip((each._id for each in named), answers, strict=True))
        unsaid = {each._id: None if each.stateful else gr.skip() for each in block_fn.outputs}
        return [*(unsaid | whole).values()]

    demo.postprocess_data = only_named  # type: ignore[method-assign]


def send_values_whole() -> None:
    """Have Gradio send a value that has changed whole. To be called before the launch.

    By itself it sends what to change in the last one, and the page changes that in place: where two answers
    come close together, a picture of the first is taken apart before it is shown."""

    def diff(old: Any, new: Any) -> list:
        return [] if old == new else [["replace", [], new]]

    utils.diff = diff


def keep_streams_open(demo: gr.Blocks) -> None:
    """Leave the stream of answers to a page open until the page is closed. To be called before the launch.

    By itself Gradio closes it whenever nothing is under way, and the page opens another for its next request.
    A request made just then takes the closing stream for open, and its answer waits for a later request."""
    demo._queue.pending_event_ids_session = _NeverEmpty()


def cancel_what_has_no_number() -> None:
    """Let a page take back a request whose number it has not heard yet. To be called before the launch.

    By itself Gradio refuses that, and the browser logs an error."""
    number = Annotated[str, BeforeValidator(lambda number: number or "")]

    class Cancelled(routes.CancelBody):
        event_id: number = ""

    class Reset(routes.ResetBody):
        event_id: number = ""

    routes.CancelBody, routes.ResetBody = Cancelled, Reset  # type: ignore[misc]


def say_what_is_refused(demo: gr.Blocks) -> None:
    """Say which field does not take a value, and what it takes, without a traceback in the log. To be called
    before the launch.

    By itself Gradio names no field, shows the value as HTML, and has no words for a number that is none."""
    preprocess = demo.preprocess_data

    async def judge(block_fn: Any, inputs: list, state: Any, explicit_call: bool = False) -> list:
        with polite():
            for field, value in zip(block_fn.inputs, inputs, strict=False):
                if isinstance(field, gr.Slider | gr.Number):
                    _check_number(state[field._id] if state and field._id in state else field, value)
        try:
            return await preprocess(block_fn, inputs, state, explicit_call)
        except gr.Error as error:
            said = html.escape(error.message, quote=False)
            raise gr.Error(said, duration=12, print_exception=False) from error

    demo.preprocess_data = judge  # type: ignore[method-assign]


def _check_number(field: gr.Slider | gr.Number, value: object) -> None:
    """Raise ValueError for what is no number in the field's range. A number's field may be empty."""
    low, high = field.minimum, field.maximum
    if value is None and isinstance(field, gr.Number):
        return
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        if (low is None or value >= low) and (high is None or value <= high):
            return
    kind = "a whole number" if field.precision == 0 else "a number"
    limits = (f"at least {low:g}" if low is not None else "", f"at most {high:g}" if high is not None else "")
    wanted = ", ".join(filter(None, [kind, " and ".join(filter(None, limits))]))
    raise InputError(f"{field.label} is {value!r:.100}; it has to be {wanted}")


class _NeverEmpty(dict[str, set[str]]):
    """The requests under way of every session, and one more, so that there are always some."""

    def __setitem__(self, session: str, requests: set[str]) -> None:
        super().__setitem__(session, requests | {"the page itself"})
