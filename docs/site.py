"""What mkdocs.yml cannot say: pages that are made of the README, the notebooks and the docstrings.

MkDocs calls these functions while it builds the site. Nothing here imports gear_studio or runs a notebook:
notebooks are shown with the outputs that are saved in them, formulas as MathML, which needs no script.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

HERE = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((HERE / "notebooks").glob("*.ipynb"))
# Pages of the repository's root: what they are called in the site.
ROOT = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md"}
FORMULA = re.compile(r"\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$]+?)\$", flags=re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name the pages that are made here in the list at the left."""
    assert config.nav is not None
    config.nav += [
        {"Notebooks": [f"notebooks/{path.stem}.md" for path in NOTEBOOKS]},
        {"Reference": [{room: f"reference/{room}.md"} for room in rooms()]},
        {"The project": ["contributing.md", "changes.md"]},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    for name, page in ROOT.items():
        files.append(File.generated(config, page, content=relink_root((HERE / name).read_text())))
    for name in ("LICENSE", "CITATION.cff"):
        files.append(File.generated(config, name, abs_src_path=str(HERE / name)))
    for path in NOTEBOOKS:
        for name, content in render_notebook(path):
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    for room, modules in rooms().items():
        content = f"# {room}\n\n" + "\n\n".join(f"::: {module}" for module in modules)
        files.append(File.generated(config, f"reference/{room}.md", content=content))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Links of the pages in docs/ that point at notebooks or at the repository's root."""
    markdown = re.sub(r"\]\(\.\./notebooks/(\w+)\.ipynb", r"](notebooks/\1.md", markdown)
    for name, page in ROOT.items():
        markdown = markdown.replace(f"](../{name}", f"]({page}")
    return markdown


def relink_root(markdown: str) -> str:
    """The same links, of pages that lie beside docs/."""
    markdown = re.sub(r"\]\(notebooks/(\w+)\.ipynb", r"](notebooks/\1.md", markdown.replace("](docs/", "]("))
    for name, page in ROOT.items():
        markdown = markdown.replace(f"]({name}", f"]({page}")
    return markdown


def rooms() -> dict[str, list[str]]:
    """The modules of each room of the package, by name; private ones are left out."""
    found: dict[str, list[str]] = {}
    for path in sorted((HERE / "gear_studio").rglob("*.py")):
        parts = path.relative_to(HERE).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if len(parts) > 1 and not any(part.startswith("_") for part in parts):
            found.setdefault(parts[1], []).append(".".join(parts))
    return {room: sorted(modules) for room, modules in sorted(found.items())}


def render_notebook(path: Path) -> Iterator[tuple[str, str | bytes]]:
    """A notebook as a page of Markdown and its pictures: names and contents."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = FORMULA.sub(to_mathml, cell.source)
        for output in cell.get("outputs", []):
            if "text/markdown" in output.get("data", {}):
                output.data["text/markdown"] = FORMULA.sub(to_mathml, output.data["text/markdown"])
    names = {"unique_key": path.stem, "output_files_dir": "pictures"}
    page, made = MarkdownExporter().from_notebook_node(notebook, resources=names)
    yield f"{path.stem}.md", page
    yield from made["outputs"].items()


def to_mathml(formula: re.Match) -> str:
    text = (formula["block"] or formula["inline"]).replace(r"\arg\max", r"\operatorname{arg\,max}")
    mathml = convert(text, display="block" if formula["block"] else "inline")
    return re.sub(
        r"[*_]", lambda sign: f"&#{ord(sign[0])};", mathml
    )  # which Markdown would take for emphasis
