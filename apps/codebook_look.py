"""What the tab Codebook says of one picture through one tokenizer: the survey beside it, a token, a code."""

from collections.abc import Mapping
from concurrent.futures import Future, wait
from functools import lru_cache

import gradio as gr
import numpy as np
import torch
from background import Background
from components import Place, div, heading, token_at
from PIL.Image import Image
from torch import Tensor

from gear_studio import plots
from gear_studio.analysis import codes
from gear_studio.analysis.codebook import usage_statistics
from gear_studio.analysis.codes import Survey
from gear_studio.analysis.typical import FIGURES, TAU, find_untypical, range_of
from gear_studio.looking.pictures import SourcePictures
from gear_studio.looking.view import View

Edits = Mapping[int, int]  # token -> its new code
KEPT = 16  # charts that are drawn once, for codes to be pointed out; some MB each


@lru_cache(KEPT)
def _usage_of(survey: Survey) -> plots.PointedOut:
    return plots.PointedOut.usage(survey.counts)


@lru_cache(KEPT)
def _map_of(layout: Future[np.ndarray], survey: Survey) -> plots.PointedOut:
    return plots.PointedOut.map(layout.result(), survey.counts, survey.colors, "UMAP")


class Surveyed:
    """A survey of pictures by a tokenizer, as far as the background has it at one moment.

    ended: well or not. found: as far as it has grown; None before that, and where it cannot be made."""

    def __init__(self, background: Background, name: str, pictures: SourcePictures):
        self.pictures = pictures
        self.grown = background.survey_so_far(name, pictures)
        coming = background.known_survey(name, pictures)
        self.ended = coming is not None and coming.done()
        self.error = coming.exception() if coming is not None and self.ended else None
        self.found: Survey | None = self.grown.found if self.grown else None
        if coming is not None and self.ended:
            self.found = None if self.error else coming.result()

    @property
    def count(self) -> int:
        return len(self.found.images) if self.found else 0

    @property
    def note(self) -> str:
        """What to say of one that is not there, or not whole."""
        if self.ended:
            return f"the survey cannot be made: {self.error}"
        if self.grown is None:
            return "the survey is being computed"
        return (
            f"surveyed {self.grown.count} of {self.grown.total} pictures, about "
            f"{self.grown.seconds_left:.0f} s left"
        )

    @property
    def said(self) -> str:
        """What was surveyed, such as "10 pictures of photos"."""
        return f"{self.count:,} pictures of {self.pictures.name}"


class Look:
    """One picture through one tokenizer, with what the background knows of others.

    surveyed: the collection beside the picture. known: those that the tokenizer knows. place: where in the
    picture the visitor looks."""

    def __init__(
        self,
        view: View,
        name: str,
        surveyed: SourcePictures,
        known: SourcePictures,
        place: Place,
        background: Background,
    ):
        self.view, self.name = view, name
        self.token = token_at(place, view.grid)
        self._background, self._pictures = background, (surveyed, known)
        self._read()

    def _read(self) -> None:
        """One state of the surveys for all that this Look shows."""
        self._surveyed, self._known = (
            Surveyed(self._background, self.name, pictures) for pictures in self._pictures
        )

    def wait(self, seconds: float) -> None:
        """Have the surveys made, one after the other, and wait for the first, but not for long."""
        wait([self._background.survey(self.name, self._pictures[0])], timeout=seconds)
        self._read()
        if self.surveyed:
            self._background.survey(self.name, self._pictures[1])

    @property
    def surveyed(self) -> bool:
        """Whether the survey of the collection has ended, well or not."""
        return self._surveyed.ended

    @property
    def survey(self) -> Survey | None:
        """Of the collection, as far as it has grown; None before that, and where it cannot be made."""
        return self._surveyed.found

    @property
    def layout(self) -> Future[np.ndarray] | None:
        """Of the codes that the whole survey has found; None where there is none, or not yet."""
        if not self.surveyed or self.survey is None:
            return None
        return self._background.layout(self.name, self._surveyed.pictures, self.survey)

    @property
    def news(self) -> tuple:
        """What changes when there is more to see."""
        layout, surveys = self.layout, (self._surveyed, self._known)
        done = bool(layout and layout.done())
        return done, *((each.ended, each.count) for each in surveys)

    @property
    def missing(self) -> str:
        """What is still being computed; empty when all is there."""
        if self.survey_missing:
            return self.survey_missing
        layout = self.layout
        waiting = layout is not None and not layout.done()
        return "the layout of the codes is still being computed" if waiting else ""

    @property
    def survey_missing(self) -> str:
        """What is missing of the surveys; empty when both have ended."""
        if not self.surveyed:
            return self.survey_note
        return "" if self._known.ended else f"of the pictures that {self.name} knows: {self._known.note}"

    @property
    def survey_note(self) -> str:
        """What to say of a survey of the collection that is not there, or not whole."""
        return self._surveyed.note

    @property
    def pictures_said(self) -> str:
        """What was surveyed, such as "10 pictures of photos"."""
        return self._surveyed.said

    @property
    def usage_said(self) -> str:
        """How many codes are used; empty without a survey."""
        if self.survey is None:
            return ""
        counts = self.survey.counts
        used, perplexity = int((counts > 0).sum()), usage_statistics(counts)["perplexity"]
        return (
            f"{used:,} of {len(counts):,} codes used; perplexity {perplexity:,.0f} "
            f"(it would be {len(counts):,} if all were used alike)"
        )

    def usage_chart(self, code: int) -> Image | None:
        """How often the survey found each code, with one pointed out; None without a survey."""
        return _usage_of(self.survey).draw(code) if self.survey else None

    def code_map(self, code: int) -> Image | None:
        """The codes laid out, with one pointed out; None while there is no layout."""
        layout = self.layout
        if not (self.survey and layout and layout.done()) or layout.exception():
            return None
        return _map_of(layout, self.survey).draw(code)

    @property
    def typical(self) -> str:
        """The picture's figures beside those of the pictures that the tokenizer knows, as HTML."""
        known = self._known
        if known.found is None:
            return heading("Is this picture typical?", known.note)
        return describe_typical(self.view.figures, known.found.figures, known.said)

    @property
    def colors(self) -> Tensor:
        """The codes' mean colours, (K, 3) in [0, 1]; grey while they are not known."""
        return self.survey.colors if self.survey else torch.full((self.view.tokenizer.config.codes, 3), 0.75)

    def framed(self, picture: Image) -> Image:
        """The picture with the token looked at framed."""
        return plots.mark(picture, self.token, self.view.grid)

    def current_code(self, edits: Edits) -> int:
        """The code that the token looked at has now, replaced or not."""
        return int(self.view.edited(edits)[self.token])

    def candidates(self, tau: float) -> list[codes.Candidate]:
        """The likeliest codes of the token looked at."""
        return codes.top_codes(self.view.assignment.scores[0, self.token], tau)

    def token_title(self, edits: Edits) -> str:
        """Which token is looked at, as HTML."""
        row, column = divmod(self.token, self.view.grid)
        was, now = int(self.view.indices[self.token]), self.current_code(edits)
        replaced = f", replaced by {now}" if now != was else ""
        place = f"Token {self.token} (row {row + 1}, column {column + 1})"
        title = div("title", f"{place}: code {was}{replaced}", token=self.token)
        return title + div("note", "Its likeliest codes, and their weight in the two read-outs of GEAR")

    def token_table(self, tau: float) -> str:
        """The likeliest codes of the token looked at, as HTML."""
        lines, candidates, colors = [], self.candidates(tau), self.colors
        for c in candidates:
            swatch = "rgb(" + ",".join(str(round(255 * v)) for v in colors[c.code].tolist()) + ")"
            lines.append(
                f'<tr><td>{c.code}</td><td><i class="swatch" style="background:{swatch}"></i></td>'
                f"<td>{c.score:.3f}</td><td>{c.hard:.0f}</td>{_weight_cell(c.soft)}</tr>"
            )
        rest = 1 - sum(c.soft for c in candidates)
        return (
            '<table class="codes"><tr><th>code</th><th>colour</th><th>score A</th><th>hard</th><th>soft</th>'
            "</tr>"
            + "".join(lines)
            + f'<tr class="rest"><td colspan="4">all other codes</td>{_weight_cell(rest)}</tr></table>'
        )

    def replacements(self, tau: float) -> tuple[gr.Dropdown, int]:
        """The choices to replace the token's code by, and the first of them: the second best."""
        choices = [(str(c.code), c.code) for c in self.candidates(tau)]
        second = choices[1][1]
        return gr.Dropdown(choices=choices, value=second), second

    def gallery(self, edits: Edits) -> tuple[str, Image | None]:
        """Heading and patches of the code of the token looked at."""
        code, survey = self.current_code(edits), self.survey
        if survey is None:
            return heading(f"Patches of code {code}", self.survey_note), None
        crops, total = codes.gallery(survey, code, count=16)
        note = f"{total} of {survey.indices.numel():,} patches in {self.pictures_said} use it"
        patches = plots.patch_gallery(crops, columns=4) if total else None
        return heading(f"Patches of code {code}", note), patches


def describe_typical(figures: Mapping[str, float], known: Mapping[str, Tensor], pictures: str) -> str:
    """The figures of a picture beside their range over others, and in words which lie outside, as HTML.
    known: of the others, key -> (n,). pictures: which these are."""
    ranges = {key: range_of(known[key]) for key in FIGURES}
    if None in ranges.values():
        return heading("Is this picture typical?", f"{pictures} so far, too few for a range")
    outside = find_untypical(figures, known)
    said = [
        f"{FIGURES[key].label} lies {place} of them ({FIGURES[key].format(figures[key])})"
        for key, place in outside.items()
    ]
    words = "; ".join(said) or "Every figure lies in the range of these pictures"
    lines = []
    for key, figure in FIGURES.items():
        if found := ranges[key]:
            cells = (figures[key], found.median, found.low, found.high)
            one, median, low, high = (f"{value:.{figure.digits}f}" for value in cells)
            mark = ' class="outside"' if key in outside else ""
            lines.append(
                f"<tr{mark}><th scope=row>{figure.label}{figure.unit and ','}{figure.unit}</th><td>{one}</td>"
                f"<td>{median}</td><td>{low} to {high}</td></tr>"
            )
    return (
        heading("Is this picture typical?", f"beside {pictures}, which this tokenizer knows; at τ = {TAU}")
        + div("untypical" if outside else "note", f"{words}.", outside=" ".join(outside))
        + '<div class="wide"><table class="codes typical"><tr><th></th><th>this picture</th><th>median</th>'
        + f"<th>5th to 95th percentile</th></tr>{''.join(lines)}</table></div>"
        + div("note", "Of every figure, one in ten of these pictures lies outside of its range, too.")
    )


def _weight_cell(share: float) -> str:
    """A table cell with a share in [0, 1] and a bar behind it."""
    return f'<td class="weight" style="--share:{100 * share:.1f}%">{share:.3f}</td>'
