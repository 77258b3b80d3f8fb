"""What the tabs that look at one picture say, as actions of the app's API that answer in numbers.

The tabs themselves draw step by step for whoever looks; these answer once. A picture is named as in the
lists: its collection, and its number in it.
"""

from collections.abc import Mapping
from typing import Any

import gradio as gr
import torch
from components import polite
from page import Page
from pictures import OWN, Choice
from side_by_side import ANY, class_condition, sampling_settings
from teacher_look import teacher_for

from gear_studio import sampling
from gear_studio.analysis import codes
from gear_studio.analysis.features import similarity
from gear_studio.analysis.similarity import Estimate
from gear_studio.errors import InputError
from gear_studio.looking.view import View

MOST_ANSWERS = 8


def offer(page: Page) -> None:
    """Add the actions to the page's API."""
    runs, background = page.runs, page.background

    def look(run: str, pictures: str, picture: int) -> View:
        chosen = Choice().of_source(pictures, picture)
        return runs.view(run, page.pictures.picture(chosen, runs[run]))

    def codebook(
        run: str, pictures: str = OWN, picture: int = 0, token: int = 0, tau: float = 0.1
    ) -> dict[str, Any]:
        """What a tokenizer makes of a picture: its tokens, how well it is rebuilt, how sure the choice was,
        and the likeliest codes of one token.

        Args:
            run: A run of the list Tokenizer.
            pictures: A collection of the list Pictures.
            picture: The picture's number in it.
            token: Which token's codes are given, in raster order.
            tau: Temperature of the soft read-out, above 0.
        """
        with polite():
            view = look(run, pictures, picture)
            if not 0 <= token < len(view.indices) or not tau > 0:
                raise InputError(
                    f"token is {token}, tau is {tau}; a token is one of 0..{len(view.indices) - 1}, and tau "
                    "is above 0"
                )
            candidates = codes.top_codes(view.assignment.scores[0, token], tau)
            return {
                "tokens": view.indices.view(view.grid, view.grid).tolist(),
                "entropy": view.entropy(tau).view(view.grid, view.grid).tolist(),
                "figures": view.figures,
                "codes": [each._asdict() for each in candidates],
            }

    def alignment(
        run: str, pictures: str = OWN, picture: int = 0, patch: int = 0, block: int = 1
    ) -> dict[str, Any]:
        """How alike a patch's features are to those of the picture's other patches, cosines by model, and
        where the generator agrees with its teacher at the tap.

        Args:
            run: A run of the tab Alignment.
            pictures: A collection of the list Pictures.
            picture: The picture's number in it.
            patch: The patch that the others are compared with, in raster order.
            block: Of the generator, whose features are taken after it, from 1.
        """
        with polite():
            view, asked = look(run, pictures, picture), teacher_for(runs[run], None)
            if not 0 <= patch < len(view.indices):
                raise InputError(f"patch is {patch}; it is one of 0..{len(view.indices) - 1}")
            teacher = background.teacher(run, asked).result()
            seen = {"f(x)": view.teacher_features(asked, teacher), "z": view.z, "c_q": view.c_q}
            if runs[run].has("generator"):
                blocks = runs.generator(run).config.blocks
                if not 1 <= block <= blocks:
                    raise InputError(f"block is {block}; {run} has 1..{blocks}")
                seen[f"h{block}"] = view.hidden(block)
            answer: dict[str, Any] = {
                "similarity": {key: similarity(each, patch).tolist() for key, each in seen.items()}
            }
            if runs[run].has("projector"):
                runs.projector(run)
                answer["cosines"] = view.alignment(teacher, asked).tolist()
            return answer

    def features(run: str, pictures: str = OWN) -> dict[str, Any]:
        """Likeness to the teacher, Moran's I, high-frequency ratio and probes at every place of a run, each
        with interval and chance level, over some of a collection's pictures. It takes up to minutes.

        Args:
            run: A run of the tab Features.
            pictures: A collection of the list Pictures.
        """
        with polite():
            asked, collection = teacher_for(runs[run], None), page.pictures.collection(pictures, runs[run])
            found = background.by_block(
                run, collection, asked, background.teacher(run, asked).result()
            ).result()
            return {
                "protocol": found.protocol,
                "values": {measure: _as_numbers(places) for measure, places in found.values.items()},
            }

    def edit(
        run: str,
        tokens: list[int],
        pictures: str = OWN,
        picture: int = 0,
        label: str = ANY,
        count: int = 1,
        guidance: float = 1.5,
        seed: int = 0,
    ) -> list[list[int]]:
        """Draw some tokens of a picture anew, each after all before it, and keep the others. Returns the
        answers' tokens, in raster order.

        Args:
            run: A generator of classes.
            tokens: Which are drawn, numbers in raster order.
            pictures: A collection of the list Pictures.
            picture: The picture's number in it.
            label: The class that is asked for.
            count: How many answers, at most 8.
            guidance: Scale of classifier-free guidance; of no use without a class.
            seed: Of the random numbers.
        """
        with polite():
            if not 1 <= count <= MOST_ANSWERS:
                raise InputError(f"count is {count}; it is one of 1..{MOST_ANSWERS}")
            view = look(run, pictures, picture)
            mask = torch.zeros(len(view.indices), dtype=torch.bool)
            if not tokens or not all(0 <= token < len(mask) for token in tokens):
                raise InputError(f"tokens is {tokens}; name some of 0..{len(mask) - 1}")
            mask[tokens] = True
            how = sampling_settings(1.0 if label == ANY else guidance, 1.0, 0, 1.0, seed)
            condition = class_condition(runs, run, label, count)
            with torch.no_grad():
                return sampling.resample(runs.generator(run), condition, view.indices, mask, **how).tolist()

    for action in (codebook, alignment, features, edit):
        gr.api(action, api_name=action.__name__)


def _as_numbers(places: Mapping[str, Estimate | str]) -> dict[str, Any]:
    """Of every place [value, low, high, chance], or in words why there is none."""
    return {
        place: [each.value, each.low, each.high, each.null.mean if each.null else None]
        if isinstance(each, Estimate)
        else each
        for place, each in places.items()
    }
