"""What the tab Alignment says of one picture through a Run and a teacher."""

import html
from concurrent.futures import Future

from background import OWN_TEACHER, Background
from components import Place, div, token_at
from PIL.Image import Image
from teacher_look import TeacherLook
from torch import Tensor

from gear_studio import plots
from gear_studio.analysis import features
from gear_studio.looking.likeness import Likeness
from gear_studio.looking.pictures import SourcePictures
from gear_studio.looking.view import View

BEFORE, AFTER = "z", "c_q"


class Look(TeacherLook):
    """One picture through a Run and a teacher, and what the background knows of others.

    asked: the teacher. pictures: over which likeness is measured. block, stage: which features of generator
    and tokenizer. place: in the picture, of the patch that the others are compared with."""

    def __init__(
        self, view: View, name: str, asked: str, pictures: SourcePictures, block: int, stage: str,
        place: Place, background: Background,
    ):  # fmt: skip
        super().__init__(view, name, asked, background)
        self.patch, self.stage = token_at(place, view.grid), stage
        self.block = min(block, view.run.generator.config.blocks) if self.has_generator else block
        own = self.asked == OWN_TEACHER
        self.has_cosines = view.run.has("projector") and self.has_generator and own
        self.likeness: Future[Likeness] | None = (
            None  # where cosines are shown instead, and without a teacher
        )
        if self.teacher is not None and not self.has_cosines:
            self.likeness = background.likeness(name, pictures, self.asked, self.teacher)

    @property
    def news(self) -> tuple:
        """What changes when there is more to see."""
        return self.coming.done(), bool(self.likeness and self.likeness.done())

    @property
    def missing(self) -> str:
        """What is still being computed; empty when all is there."""
        if not self.coming.done():
            return f"teacher {self.asked} is still being read"
        waiting = self.likeness is not None and not self.likeness.done()
        return "how alike the features are is still being computed" if waiting else ""

    def words(self, column: int) -> tuple[str, str]:
        """Which model a column shows, and the symbol of its features."""
        if column == 0:
            return "Teacher", "f(x)"
        if not self.has_generator:
            return "Tokenizer", (BEFORE, AFTER)[column - 1]
        return ("Tokenizer", self.stage) if column == 1 else ("Generator", f"h after block {self.block}")

    def features(self, column: int) -> Tensor | None:
        """What a column shows, (N, d); None where that is the teacher's and it is not there."""
        view, (word, symbol) = self.view, self.words(column)
        if word == "Teacher":
            return None if self.teacher is None else view.teacher_features(self.asked, self.teacher)
        if word == "Tokenizer":
            return view.z if symbol == BEFORE else view.c_q
        return view.hidden(self.block)

    def similarity(self, column: int) -> Tensor | None:
        """Cosine of what a column shows with the framed patch, (N,); None where there is nothing to show."""
        values = self.features(column)
        return None if values is None else features.similarity(values, self.patch)

    @property
    def cosines(self) -> Tensor | None:
        """cos(g(h), f(x)) at the tap, (N,); None without projector or teacher."""
        if not self.has_cosines or self.teacher is None:
            return None
        return self.view.alignment(self.teacher, self.asked)

    def framed(self, picture: Image) -> Image:
        """The picture with the patch framed that others are compared with."""
        return plots.mark(picture, self.patch, self.view.grid)

    @property
    def facts(self) -> str:
        """How like the teacher the features are: the mean cosine, or a table of likeness; as HTML."""
        if self.cosines is not None and self.teacher is not None:
            tap, at = self.view.run.generator.config.tap, self.patch
            others = self.view.alignment_of_others(self.teacher, self.asked)
            return (
                f'<div class="big" data-cosine="{self.cosines.mean():.4f}">mean cos(g(h), f(x)) at the tap, '
                f"block {tap}: <b>{self.cosines.mean():.3f}</b>; at the framed patch {at}: "
                f"<b>{self.cosines[at]:.3f}</b></div>"
                + div("note", f"For comparison, with f(x) of all other patches of the picture: {others:.3f}")
            )
        if self.likeness is None:
            return div("note", self.lack)
        if not self.likeness.done():
            return div("note", "How alike the features are over pictures is being computed.")
        if self.likeness.exception():
            return div("note", f"How alike the features are cannot be said: {self.likeness.exception()}")
        rows = "".join(
            f"<tr><td>{html.escape(place)} and f(x)</td>"
            + "".join(f"<td>{html.escape(str(estimate))}</td>" for estimate in measures.values())
            + "</tr>"
            for place, measures in self.likeness.result().values.items()
        )
        return (
            '<table class="codes likeness" data-likeness><tr><th>patch by patch</th><th>CKA [95 % interval]'
            f"</th><th>CKNNA [95 % interval]</th></tr>{rows}</table>"
        )

    @property
    def protocol(self) -> str:
        """How features were taken, as HTML."""
        condition = self.view.condition()
        if condition is None:
            conditioned = "the null condition (the picture has no class of the run's)"
        else:
            name = self.view.run.config["classes"][int(condition[0])]
            conditioned = f"its own class as condition ({name})"
        generator = (
            "The generator is teacher-forced on the tokens of x, with "
            f"{html.escape(conditioned)}. Its features are the hidden states after block {self.block}, "
            "before the projector; position i, which has seen only the tokens before i, stands for patch i. "
        )
        teacher = self.teacher
        said = (
            f"<b>Protocol.</b> {generator if self.has_generator else ''}PCA is fitted to this picture's "
            f"{self.view.grid**2} patches, each model for itself: compare outlines, not colours."
            f"<br><b>Teacher.</b> {html.escape(teacher.note if teacher else self.lack)}"
        )
        if self.likeness and self.likeness.done() and not self.likeness.exception():
            said += f"<br><b>Likeness.</b> {html.escape(self.likeness.result().protocol)}"
        return said
