"""The documentation site: built with warnings as errors, whole, and without anything from elsewhere."""

from __future__ import annotations

import html
import importlib.util
import re
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType, SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest

import sharpkern
from sharpkern import table

for package in ("mkdocs", "material", "mkdocstrings_handlers.python", "latex2mathml", "matplotlib"):
    pytest.importorskip(package, reason="the extra docs is not installed")

from mkdocs.config.defaults import MkDocsConfig  # ruff: ignore[module-import-not-at-top-of-file]
from mkdocs.exceptions import PluginError  # ruff: ignore[module-import-not-at-top-of-file]
from mkdocs.structure.files import File, Files  # ruff: ignore[module-import-not-at-top-of-file]

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "docs" / "site" / "mkdocs.yml"
FORMULA = re.compile(r"\$\$.+?\$\$|\$[^$\n]+\$", re.DOTALL)
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.DOTALL | re.MULTILINE)
LOADED = {"script": "src", "link": "href", "img": "src", "source": "src", "iframe": "src", "object": "data"}


@dataclass
class Seen(HTMLParser):
    """What a page offers and wants."""

    text: str
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by the parser."""
        found = {name: value for name, value in attrs if value is not None}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if found.get(LOADED.get(tag, "")):
            self.loads.append(found[LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-f", str(CONFIG), "-d", str(out)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return out


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Seen]:
    return {path: Seen(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", CONFIG.with_name("hooks.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_has_its_place_in_the_api(pages: dict[Path, Seen]) -> None:
    ids = {name for path, page in pages.items() if path.parent.name == "api" for name in page.ids}
    assert {f"sharpkern.{name}" for name in sharpkern.__all__} - ids == set()
    methods = ("step", "first_step", "second_step", "perturbed", "restore", "diagnostics", "state_dict")
    assert {f"sharpkern.SharpnessAware.{name}" for name in methods} - ids == set()


def test_examples_of_docstrings_are_code(pages: dict[Path, Seen]) -> None:
    """Under another heading than `Examples:` their prompts would be quotations."""
    assert [path.name for path, page in pages.items() if "<blockquote>" in page.text] == []


def test_every_page_of_the_folder_is_there(pages: dict[Path, Seen], site: Path) -> None:
    folder = ROOT / "docs"
    wanted = {path.relative_to(folder).with_suffix(".html") for path in folder.rglob("*.md")}
    assert wanted - {path.relative_to(site) for path in pages} == set()


def test_links_lead_somewhere(pages: dict[Path, Seen], site: Path) -> None:
    broken = []
    for path, page in pages.items():
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            base = site if parts.path.startswith("/") else path.parent  # the page for errors may be shown anywhere
            target = (base / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(parts.fragment)
            if not target.exists() or (anchor and target in pages and anchor not in pages[target].ids):
                broken.append((path.name, link))
    assert broken == []


def test_nothing_is_loaded_from_elsewhere(pages: dict[Path, Seen], site: Path) -> None:
    away = [(path.name, url) for path, page in pages.items() for url in page.loads if urlsplit(url).netloc]
    assert away == []
    sheets = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert sheets
    assert [found for sheet in sheets for found in re.findall(r"(?:url\(|@import\s)[\"']?(?:https?:)?//", sheet)] == []


def test_formulas_are_mathml(pages: dict[Path, Seen], site: Path) -> None:
    for name in ("index", "methods", "choosing"):
        written = FORMULA.findall(CODE.sub("", (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")))
        made = re.findall(r"<math .*?</math>", pages[site / f"{name}.html"].text, re.DOTALL)
        assert written
        assert len(made) == len(written)
        assert [formula for formula in made if "\\" in formula] == []  # a command that was not understood
    assert [path.name for path, page in pages.items() if "arithmatex" in page.text] == []


def test_the_options_of_methods_are_those_of_the_code(pages: dict[Path, Seen], site: Path) -> None:
    text = html.unescape(pages[site / "methods.html"].text)
    assert [name for name, _, options, _ in table.methods() if f"<code>{options}</code>" not in text] == []


def test_a_method_that_does_not_exist_is_an_error(hooks: ModuleType) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="methods.md"))
    with pytest.raises(PluginError, match=r"methods\.md: .*SMA.* names no method: wanted one of SAM, ASAM"):
        hooks.on_page_markdown("<!-- options SMA -->", page, MkDocsConfig(), Files([]))


def test_the_gallery_shows_the_figures_that_there_are(hooks: ModuleType) -> None:
    config = MkDocsConfig()
    files = Files([File(uri, "docs", "site", False) for uri in ("figures/speedup.svg", "figures/data.csv")])
    shown = hooks.on_page_markdown("# Figures\n\n<!-- gallery -->", None, config, files)
    assert shown == "# Figures\n\n### Speedup\n\n![Speedup](figures/speedup.svg)"
    assert "None was drawn yet" in hooks.on_page_markdown("<!-- gallery -->", None, config, Files([]))
