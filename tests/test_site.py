"""The documentation's site: no link leads nowhere, and notebooks, formulas and the reference are in it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")

HERE = Path(__file__).parents[1]
MADE_OF = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "mkdocs.yml")


def build(folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", "site"],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    for name in MADE_OF:
        shutil.copy(HERE / name, folder)
    for name in ("docs", "notebooks", "gear_studio"):
        ignored = shutil.ignore_patterns("zoo", "__pycache__", "runs")
        shutil.copytree(HERE / name, folder / name, ignore=ignored)
    return folder


@pytest.fixture(scope="module")
def site(copy: Path) -> Path:
    done = build(copy)
    assert done.returncode == 0, done.stderr
    return copy / "site"


def test_every_page_notebook_and_module_is_in_it(site):
    pages = {path.stem for path in site.glob("*.html")}
    assert pages >= {path.stem for path in (HERE / "docs").glob("*.md")} | {"index", "changes"}
    notebooks = {path.stem for path in (site / "notebooks").glob("*.html")}
    assert notebooks == {path.stem for path in (HERE / "notebooks").glob("*.ipynb")}
    reference = "".join(path.read_text() for path in (site / "reference").glob("*.html"))
    for name in ("runs.Run.sample", "models.quantizers.VectorQuantizer", "analysis.similarity.cknna"):
        assert f'id="gear_studio.{name}"' in reference
    assert "A_k = 2 &lt;z, c_k&gt;" in reference  # text, not HTML
    assert (
        '"location":"reference/runs.html#gear_studio.runs.Run"'
        in (site / "search" / "search_index.json").read_text()
    )


def test_a_notebook_shows_its_pictures_and_formulas_and_nothing_is_fetched(site):
    page = (site / "notebooks" / "01_dual_readout.html").read_text()
    pictures = re.findall(r'<img [^>]*src="(pictures/[^"]+)"', page)
    assert len(pictures) > 3 and all((site / "notebooks" / name).stat().st_size > 1000 for name in pictures)
    assert "<math" in page and "<msub>" in page
    prose = re.sub(r"<pre.*?</pre>|<code.*?</code>", "", page, flags=re.DOTALL)
    assert not re.search(r"\$[^$<]+\$|\\[a-z]+", re.sub(r"<script.*?</script>", "", prose, flags=re.DOTALL))
    for path in site.rglob("*.html"):
        assert not re.search(
            r'<(script|img|link rel="stylesheet")[^>]+(src|href)="(https?:)?//', path.read_text()
        )


def test_a_link_that_leads_nowhere_fails_it(copy, site):
    for path in [*(copy / "notebooks").iterdir(), *(copy / "gear_studio").rglob("*.py")]:
        path.unlink()  # which take long
    (copy / "docs" / "data.md").write_text("[a](training.md#nowhere) [b](nowhere.md)")
    done = build(copy)
    assert done.returncode != 0
    assert "'training.md#nowhere', but the doc 'training.md' does not contain an anchor" in done.stderr
    assert "'nowhere.md', but the target is not found" in done.stderr
