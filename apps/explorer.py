"""The explorer: look into trained tokenizers and generators in the browser.

    python apps/explorer.py [--runs FOLDER] [--pictures FOLDER] [--port N] [--host ADDRESS] [--read-only]

Thin on purpose: tabs lay out components and call gear_studio, which does the computing. Needs no network.

    app.py            the tabs together, and how they are served
    *_tab.py          one tab each; `page.py` says what a tab is and what tabs share
    *_look.py         what a tab says of what it shows, without the page
    runs_on_offer.py  which Runs there are, their models
    pictures.py       the pictures to look at; `picker.py` chooses one
    views.py          what a tab shows of a Run and a picture, and when it draws
    newest.py         which of a visitor's requests counts
    background.py     what takes long, made beside the app
    side_by_side.py   what the tabs that sample share
    endpoints.py      what tabs say, in numbers, for the app's API
    address.py        what is looked at, in the page's address; `snippets.py` the same in Python, and
                      `numbers_file.py` in numbers
    components.py     small pieces of the page; `charts.py` what charts share
    gradio_faults.py  what Gradio itself gets wrong
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import tyro

from gear_studio.devices import Device
from gear_studio.errors import InputError
from gear_studio.ranges import Port, check


@dataclass
class Options:
    """Look into trained models in the browser."""

    runs: Path | None = None
    """Folder of more runs, shown beside the shipped ones."""
    pictures: Path | None = None
    """Folder of picture files to look at, with or without sub-folders."""
    teacher_weights: tuple[str, ...] = ()
    """Files of published teachers' weights, instead of downloads, as NAME=FILE: dinov2-b=dinov2.pth."""
    port: Port | None = None
    """Port to serve on; default: the first free one from 7860."""
    host: str = "127.0.0.1"
    """Address to serve on; 0.0.0.0 lets other machines in."""
    share: bool = False
    """Also open a public link through Gradio's servers."""
    auth: Path | None = None
    """File of those who may enter, a line NAME:PASSWORD each."""
    mcp: bool = False
    """Also offer the actions of the API as tools of the Model Context Protocol, at gradio_api/mcp/."""
    read_only: bool = False
    """For hosting: leave out what reads and writes files of this machine, or downloads: the tabs Train and
    Open, and teachers beside those in the list."""
    device: Device = None


def read_weights(given: Sequence[str]) -> dict[str, Path]:
    """The files of NAME=FILE by name. Raises ValueError for other text, and a file that is missing."""
    weights = {}
    for each in given:
        name, _, file = each.partition("=")
        if not file or not Path(file).is_file():
            raise InputError(
                f"--teacher-weights {each!r}: give NAME=FILE, such as dinov2-b=weights.pth, of a file"
            )
        weights[name] = Path(file)
    return weights


def read_visitors(file: Path) -> list[tuple[str, str]]:
    """Names and passwords of a file of lines NAME:PASSWORD. Raises ValueError for another line, and where
    there is none; no password is in the message."""
    try:
        lines = [line for line in file.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--auth {file} cannot be read: {error}") from error
    visitors = []
    for number, line in enumerate(lines, start=1):
        name, _, password = line.partition(":")
        if not (name.strip() and password):
            raise InputError(f"--auth {file}: line {number} is not NAME:PASSWORD")
        visitors.append((name.strip(), password))
    if not visitors:
        raise InputError(f"--auth {file}: the file is empty; give a line NAME:PASSWORD for each visitor")
    return visitors


def check_mcp(options: Options) -> None:
    """Raise ValueError where --mcp cannot be had."""
    if find_spec("mcp") is None:
        raise InputError("--mcp needs the package mcp; install it with uv pip install 'mcp<2'")
    if options.auth:
        raise InputError("--mcp asks for no password, which --auth wants of everybody; leave one out")


def main(options: Options) -> None:
    try:
        check(options)
        if options.mcp:
            check_mcp(options)
        weights = read_weights(options.teacher_weights)
        visitors = read_visitors(options.auth) if options.auth else None

        # Here: Gradio takes seconds to import, which whoever asks for --help need not wait for, and seconds
        # more with mcp, which it imports where that is installed.
        if not options.mcp:
            sys.modules.setdefault("mcp", None)  # type: ignore[arg-type]
        from app import serve
        from background import Background
        from pictures import PicturesOnOffer
        from runs_on_offer import RunsOnOffer

        runs, pictures = RunsOnOffer(options.runs, options.device), PicturesOnOffer(options.pictures)
    except ValueError as error:
        sys.exit(f"explorer: {error}")
    serve(Background(runs, pictures, weights), options, visitors)


if __name__ == "__main__":
    main(tyro.cli(Options))
