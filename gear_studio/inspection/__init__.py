"""Inspection: a report on any tokenizers, as a page that needs no program to be read.

    request.py        what is asked for, and what a tokenizer must be able to do
    pictures.py       which pictures are looked at
    picture_cache.py  what is kept on the way, so that a killed inspection goes on
    measuring.py      what is measured of one picture, of all, and between tokenizers
    page.py           report.html

Every tokenizer sees the same pictures at its own size, one at a time, so that scores of 16,384 codes are held
of one picture only.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from gear_studio.inspection.request import Inspectable, Inspection

__all__ = ["Inspectable", "Inspection", "inspect"]


def inspect(tokenizers: Sequence[str] | Mapping[str, Inspectable], asked: Inspection) -> Path:
    """Measure tokenizers and write report.html, report.json and pictures.csv into `asked.out`.

    tokenizers: folders of runs, names of shipped ones or released files; or tokenizers by the names that the
    report calls them. Returns the page. Raises FileNotFoundError or ValueError where something named is not
    there or is not what it should be."""
    from gear_studio.inspection.measuring import load_tokenizers, measure, write_numbers
    from gear_studio.inspection.page import write_page

    named = tokenizers if isinstance(tokenizers, Mapping) else load_tokenizers(tokenizers, asked.image_size)
    measured = measure(named, asked)
    write_numbers(measured)
    return write_page(measured)
