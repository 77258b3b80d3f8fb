"""A generator with the projectors that are trained with it, as one module."""

from collections.abc import Callable

from torch import Tensor, nn

from gear_studio import readout
from gear_studio.models.generator import Generator
from gear_studio.readout import Assignment

ReadOut = Callable[[Assignment, Tensor], Tensor]  # of `readout`: embeddings (B, N, d) from a token table


class Projectors(nn.ModuleList):
    """One projector a teacher."""

    def forward(self, hidden: Tensor) -> list[Tensor]:
        """Tap states or latents (B, N, d) -> one projection (B, N, d_f) a teacher."""
        return [projector(hidden) for projector in self]


class AlignedGenerator(nn.Module):
    """Generator and its projectors, trained together (and wrapped together when several processes train)."""

    def __init__(self, generator: Generator, projectors: Projectors):
        super().__init__()
        self.generator = generator
        self.projectors = projectors

    def embed(self, assignment: Assignment, read: ReadOut = readout.hard) -> Tensor:
        """What the generator sees of the first N-1 tokens: (B, N-1, d)."""
        return read(assignment, self.generator.token_table)[:, :-1]

    def forward(
        self, assignment: Assignment, condition: Tensor, read: ReadOut = readout.hard
    ) -> tuple[Tensor, list[Tensor]]:
        """Next-token logits (B, N, K) and projected tap states (B, N, d_f), one a teacher."""
        tap = self.generator.config.tap
        logits, hidden = self.generator(self.embed(assignment, read), condition, tap)
        return logits, self.projectors(hidden)

    def project_tap(self, assignment: Assignment, condition: Tensor, read: ReadOut) -> list[Tensor]:
        """Projected tap states alone: only the blocks up to the tap run."""
        tap = self.generator.config.tap
        return self.projectors(self.generator.hidden(self.embed(assignment, read), condition, [tap])[0])
