"""The command line's front: the names of the commands, and how an error looks.

What the commands do is in `commands`, which imports torch; help on their names and a mistyped one wait for
nothing.
"""

import sys
from collections.abc import Callable

import tyro

COMMANDS = {
    "train": "Train one stage, or continue it where it was killed.",
    "import": "Turn a released checkpoint into a run.",
    "recipe": "Print a recipe: every setting, and what follows from them.",
    "supervise": "Train the tiny teacher or a judge on the world's truth.",
    "evaluate": "Measure runs on held-out images.",
    "inspect": "Look at tokenizers on the same pictures: a page of reconstructions, maps and measures.",
    "sample": "Write a grid of samples, or the pictures of a file of prompts.",
    "reconstruct": "Write pictures and what a tokenizer makes of them.",
    "study": "Train a named set of runs over arms and seeds, and end in a table and a figure.",
    "reproduce": "Retrain and measure every shipped run.",
    "report": "Print the README's tables.",
}


def run(words: list[str] | None = None) -> None:
    """Do what a command line says. words: what follows `gear-studio`; None takes this process's own."""
    words = sys.argv[1:] if words is None else words
    if not words or words[0] not in COMMANDS:
        tyro.extras.subcommand_cli_from_dict(
            {name: _described(summary) for name, summary in COMMANDS.items()},
            prog="gear-studio",
            description="Understand, reproduce and build on guided end-to-end autoregression. "
            "gear-studio COMMAND --help explains a command.",
            args=words,
        )
        return
    from gear_studio import commands

    tyro.cli(commands.COMMANDS[words[0]], prog=f"gear-studio {words[0]}", args=words[1:])


def _described(summary: str) -> Callable[[], None]:
    """A command without options, for the help page."""

    def command() -> None: ...

    command.__doc__ = summary
    return command


def main() -> None:
    try:
        run()
    except (FileNotFoundError, ValueError, KeyError, RuntimeError, ImportError) as error:
        sys.exit(f"gear-studio: {error.args[0] if isinstance(error, KeyError) else error}")
