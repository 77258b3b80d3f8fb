"""Through which teacher a picture is seen: the one that was asked for, once it is read."""

from background import OWN_TEACHER, Background

from gear_studio.looking.view import View
from gear_studio.models.teachers import Teacher
from gear_studio.runs import Run

STAND_IN = "efficientnet-lite0"  # for Runs that were imported, which name no teacher


class TeacherLook:
    """One picture through Run `name`, and a teacher that may still be on its way. asked: the teacher."""

    def __init__(self, view: View, name: str, asked: str, background: Background):
        self.view, self.name, self.asked = view, name, teacher_for(view.run, asked)
        self.has_generator = view.run.has("generator")
        self.coming = background.teacher(name, self.asked)

    @property
    def teacher(self) -> Teacher | None:
        """None while it is being read, and where it cannot be had."""
        return self.coming.result() if self.coming.done() and not self.coming.exception() else None

    @property
    def lack(self) -> str:
        """Why there is no teacher."""
        if not self.coming.done():
            return f"teacher {self.asked} is being read"
        return f"teacher {self.asked} cannot be had: {self.coming.exception()}"


def teacher_for(run: Run, asked: str | None) -> str:
    """The name of the teacher that is meant: an imported Run has none of its own."""
    asked = (asked or OWN_TEACHER).strip()
    return STAND_IN if asked == OWN_TEACHER and run.config["stage"] == "imported" else asked
