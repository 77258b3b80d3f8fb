"""The command line's front: the names of the commands, and how an error looks.

What the commands do is in `commands`, which imports torch; help on their names and a mistyped one wait for
nothing.
"""

import os
import sys
from collections.abc import Callable

import tyro

from gear_studio import __version__
from gear_studio.errors import describe

COMMANDS = {
    "train": "Train one stage, or continue it where it was killed.",
    "import": "Turn a released checkpoint into a run.",
    "recipe": "Print a recipe: every setting, and what follows from them.",
    "supervise": "Train the tiny teacher or a judge on the world's truth.",
    "evaluate": "Measure runs on held-out images.",
    "inspect": "Look at tokenizers on the same pictures: a page of reconstructions, maps and measures.",
    "sample": "Write a grid of samples, or the pictures of a file of prompts.",
    "reconstruct": "Write pictures and what a tokenizer makes of them.",
    "push": "Publish a run on the Hugging Face Hub, with a model card written from its record.",
    "study": "Train a named set of runs over arms and seeds, and end in a table and a figure.",
    "reproduce": "Retrain and measure every shipped run.",
    "report": "Print the tables of the shipped runs, as in docs/results.md.",
    "explorer": "Look into trained models in the browser.",
}
RESUMED = ("train", "supervise", "inspect", "study", "reproduce")  # a killed one goes on where it was


def run(words: list[str] | None = None) -> None:
    """Do what a command line says. words: what follows `gear-studio`; None takes this process's own."""
    words = sys.argv[1:] if words is None else words
    if words == ["--version"]:
        print(__version__)
        return
    if not words or words[0] not in COMMANDS:
        tyro.extras.subcommand_cli_from_dict(
            {name: _described(summary) for name, summary in COMMANDS.items()},
            prog="gear-studio",
            description="Understand, reproduce and build on guided end-to-end autoregression. "
            "gear-studio COMMAND --help explains a command, gear-studio --version names this version.",
            args=words,
        )
        return
    from gear_studio import commands

    if words[0] == "explorer":
        commands.explorer(words[1:])
        return
    tyro.cli(commands.COMMANDS[words[0]], prog=f"gear-studio {words[0]}", args=words[1:])


def _described(summary: str) -> Callable[[], None]:
    """A command without options, for the help page."""

    def command() -> None: ...

    command.__doc__ = summary
    return command


def main() -> None:
    """Do what this process's command line says. What the user can act on ends in one line; every other error
    keeps its traceback."""
    try:
        run()
    except KeyboardInterrupt:
        name = sys.argv[1] if len(sys.argv) > 1 else ""
        goes_on = "the same command goes on from there" if name in RESUMED else "nothing is half written"
        print(f"\ngear-studio: interrupted; what was written before is whole, {goes_on}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # of who read along, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if (said := describe(error)) is None:
            raise
        sys.exit(f"gear-studio: {said}")
