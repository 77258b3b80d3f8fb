"""What the tab Codebook says of one picture through one tokenizer: the survey beside it, a token, a code."""

from collections.abc import Mapping
from concurrent.futures import Future, wait

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
from gear_studio.looking.pictures import SourcePictures
from gear_studio.looking.view import View

Edits = Mapping[int, int]  # token -> its new code


class Look:
    """One picture through one tokenizer, with what the background knows of the collection's others.

    surveyed: the collection. place: where in the picture the visitor looks."""

    def __init__(self, view: View, name: str, surveyed: SourcePictures, place: Place, background: Background):
        self.view, self.name = view, name
        self.token = token_at(place, view.grid)
        self._background, self._pictures = background, surveyed
        self._grown = background.survey_so_far(name, surveyed)  # one for all that this Look shows
        self._coming = background.known_survey(name, surveyed)

    def wait(self, seconds: float) -> None:
        """Have the survey made, and wait for it, but not for long."""
        self._coming = self._background.survey(self.name, self._pictures)
        wait([self._coming], timeout=seconds)
        self._grown = self._background.survey_so_far(self.name, self._pictures)

    @property
    def surveyed(self) -> bool:
        """Whether the survey has ended, well or not."""
        return self._coming is not None and self._coming.done()

    @property
    def survey(self) -> Survey | None:
        """As far as it has grown; None before that, and where it cannot be made."""
        if self._coming is None or not self.surveyed:
            return self._grown.found if self._grown else None
        return None if self._coming.exception() else self._coming.result()

    @property
    def layout(self) -> Future[np.ndarray] | None:
        """Of the codes that the whole survey has found; None where there is none, or not yet."""
        if not self.surveyed or self.survey is None:
            return None
        return self._background.layout(self.name, self._pictures, self.survey)

    @property
    def news(self) -> tuple:
        """What changes when there is more to see."""
        layout = self.layout
        return self.surveyed, bool(layout and layout.done()), self._grown.count if self._grown else 0

    @property
    def missing(self) -> str:
        """What is still being computed; empty when all is there."""
        if not self.surveyed:
            return self.survey_note
        layout = self.layout
        waiting = layout is not None and not layout.done()
        return "the layout of the codes is still being computed" if waiting else ""

    @property
    def survey_note(self) -> str:
        """What to say of a survey that is not there, or not whole."""
        if self._coming is not None and self.surveyed:
            return f"the survey cannot be made: {self._coming.exception()}"
        if self._grown is None:
            return "the survey is being computed"
        grown = self._grown
        return f"surveyed {grown.count} of {grown.total} pictures, about {grown.seconds_left:.0f} s left"

    @property
    def pictures_said(self) -> str:
        """What was surveyed, such as "10 pictures of photos"."""
        return f"{len(self.survey.images) if self.survey else 0:,} pictures of {self._pictures.name}"

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


def _weight_cell(share: float) -> str:
    """A table cell with a share in [0, 1] and a bar behind it."""
    return f'<td class="weight" style="--share:{100 * share:.1f}%">{share:.3f}</td>'
