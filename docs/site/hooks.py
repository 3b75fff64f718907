"""What the site has beyond its Markdown: options of the methods and figures from the code, formulas as MathML."""

from __future__ import annotations

import html
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from sharpkern import table
from sharpkern.toy import SCENES, figure, minima, trajectory

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
OPTIONS = re.compile(r"<!-- options (\w+) -->")
GALLERY = "<!-- gallery -->"
TOY = ("<!-- toy -->", "![Ways of SGD, SAM, ASAM and Fisher SAM over the contours of the toy loss](figures/toy.png)")
IMAGES = (".svg", ".png")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Draws the figures of the toy and adds them to the files of the site.

    Args:
        files: Those of the folder of documentation.
        config: Of the site.

    Returns:
        The same with the figures.
    """
    with TemporaryDirectory() as folder:
        paths = {(name, method): trajectory(scene, method) for name, scene in SCENES.items() for method in scene.rho}
        for path in figure.draw_paths(paths, SCENES, minima(), Path(folder) / "toy"):
            if path.suffix in IMAGES:
                files.append(File.generated(config, f"figures/{path.name}", content=path.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Writes the options of methods, as the code has them, and the figures where the page asks for them.

    Args:
        markdown: Of the page.
        page: The page.
        config: Of the site.
        files: All of the site.

    Returns:
        The page's Markdown with both.

    Raises:
        PluginError: A method is named that does not exist.
    """
    methods = {name: (options, passes) for name, _, options, passes in table.methods()}

    def options(found: re.Match[str]) -> str:
        if found[1] not in methods:
            raise PluginError(f"{page.file.src_uri}: {found[0]} names no method: wanted one of {', '.join(methods)}")
        values, passes = methods[found[1]]
        return f"**Options and defaults:** `{values}`. **Backward passes a step:** {passes}."

    return OPTIONS.sub(options, markdown).replace(*TOY).replace(GALLERY, _gallery(files))


def _gallery(files: Files) -> str:
    """The figures of the benchmarks that there are, as Markdown."""
    found = [file for file in files if Path(file.src_uri).parent.name == "figures" and file.name != "toy"]
    images = {Path(file.src_uri).stem: file.src_uri for file in found if Path(file.src_uri).suffix in IMAGES}
    if not images:
        return "None was drawn yet: `python bench/figures.py` makes them from the CSV files."
    return "\n\n".join(f"### {_title(stem)}\n\n![{_title(stem)}]({uri})" for stem, uri in sorted(images.items()))


def _title(stem: str) -> str:
    return stem.replace("_", " ").replace("-", " ").capitalize()


def on_page_content(content: str, **_: Any) -> str:
    r"""Turns TeX, which the Markdown extension has put between \( \) or \[ \], into MathML: no script, no font.

    Args:
        content: HTML of the page.

    Returns:
        The same with MathML.
    """

    def formula(found: re.Match[str]) -> str:
        block = found[1] == "div"
        mathml = convert(html.unescape(found[2]).strip(), display="block" if block else "inline")
        return f'<div class="formula">{mathml}</div>' if block else mathml

    return FORMULA.sub(formula, content)
