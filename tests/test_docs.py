"""What the documentation says is so."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import sharpkern

README = Path(__file__).parents[1] / "README.md"
# what the extras install
OPTIONAL = {"accelerate", "lightning", "matplotlib", "pytorch_optimizer", "rich", "sklearn", "tqdm", "transformers"}
NOT_TO_IMPORT = re.compile(r"\.(__main__|_kernels)$")  # runs a command; is compiled

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(sharpkern.__path__, "sharpkern.")
    if not NOT_TO_IMPORT.search(module.name)
)


@contextmanager
def optional(name: str) -> Generator[None]:
    """Skips the test if an extra is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in OPTIONAL:
            raise
        pytest.skip(f"{name} wants {error.name}, which is not installed")


def load(name: str) -> Any:
    """A module of the package, unless it lacks an extra."""
    with optional(name):
        return importlib.import_module(name)


@pytest.mark.parametrize("name", ["sharpkern", *MODULES])
def test_examples_in_docstrings(name: str) -> None:
    assert doctest.testmod(load(name)).failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    assert [test.name for name in MODULES for test in finder.find(load(name)) if test.examples]


@pytest.mark.parametrize("name", sharpkern.__all__)
def test_what_is_public_has_a_docstring(name: str) -> None:
    public = getattr(sharpkern, name)
    assert public.__doc__
    assert public.__doc__.strip()
    if inspect.isclass(public):
        methods = [n for n, m in vars(public).items() if inspect.isfunction(m) and not n.startswith("_")]
        assert [n for n in methods if not inspect.getdoc(getattr(public, n))] == []


def test_what_is_public_is_listed_once_and_exists() -> None:
    assert len(set(sharpkern.__all__)) == len(sharpkern.__all__)
    assert set(sharpkern.__all__) <= set(dir(sharpkern))


def test_the_table_of_methods_is_the_one_made_from_the_code() -> None:
    table = importlib.import_module("sharpkern.table").methods_markdown()
    found = re.findall(r"<!-- methods -->\n(.*?)<!-- /methods -->", README.read_text(), re.DOTALL)
    assert len(found) == 1
    assert found[0].strip() == table.strip()


PAGES = [README, *sorted((README.parent / "docs").glob("*.md"))]
RUN = [page for page in PAGES if page.name not in {"distributed.md", "benchmarks.md"}]  # torchrun; commands alone


# torch warns of itself when its compilers are first imported, and of a loss after the graph break at its backward
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
@pytest.mark.filterwarnings(r"default:::(lightning|accelerate|transformers|torch)\.")  # theirs are not ours
def test_the_examples_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order and in one namespace, so that a later block may use what an earlier one made."""
    text = page.read_text()
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    assert blocks
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": page.stem}
    for block in blocks:
        lines_before = text.count("\n", 0, block.start(1))  # so that an error names the line of the page
        with optional(page.name):
            exec(compile("\n" * lines_before + block[1], str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []
