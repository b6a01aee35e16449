"""The documentation is true where a machine can tell: generated parts, links, names, examples, the example policy."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *(page for name in ("docs", "deploy", "examples", "bench") for page in sorted((ROOT / name).rglob("*.md"))),
]
SOURCES = [
    path
    for name in ("src", "bench", "rust")
    for path in sorted((ROOT / name).rglob("*"))
    if path.suffix in (".py", ".rs", ".pyi") and "target" not in path.parts
]
LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, made as the usual renderers make them."""
    text = FENCE.sub("", page.read_text())
    headings = re.findall(r"^#+ +(.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_generated_parts_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"run `python docs/generate.py`: {done.stdout}{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_local_links_lead_somewhere(page: Path) -> None:
    dead = []
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        path = page.parent / file if file else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            dead.append(target)
    assert not dead


def test_sources_name_only_pages_that_exist() -> None:
    dead = [
        f"{source.relative_to(ROOT)}: {page}"
        for source in SOURCES
        for page in re.findall(r"\bdocs/[\w/.-]+\.md\b", source.read_text())
        if not (ROOT / page).exists()
    ]
    assert not dead


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_tests_that_a_page_names_exist(page: Path) -> None:
    missing = []
    for path, _, function in re.findall(r"`((?:tests|rust)/[\w/.-]+?)(::(\w+))?`", page.read_text()):
        file = ROOT / path
        if not file.exists() or (function and f"def {function}(" not in file.read_text()):
            missing.append(f"{path}::{function}" if function else path)
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_pages_hold_no_machine_path(page: Path) -> None:
    assert not re.search(r"(?<![\w.])/(work|home)/", page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_python_in_pages_compiles_and_its_imports_exist(page: Path) -> None:
    for code in PYTHON.findall(page.read_text()):
        compile(code, str(page), "exec")
        imports = "\n".join(line for line in code.splitlines() if line.startswith(("from ", "import ")))
        exec(compile(imports, str(page), "exec"), {})  # noqa: S102  # our own page


EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=names(EXAMPLES))
def test_examples_run(example: Path) -> None:
    done = subprocess.run([sys.executable, "-W", "error", example], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert len(example.read_text().splitlines()) < 40
    assert f"({example.name})" in (example.parent / "README.md").read_text()


def test_example_policy_is_accepted_without_a_finding() -> None:
    command = [sys.executable, "-m", "tidegate.cli.main", "policy", "check", str(ROOT / "deploy" / "policy.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stdout


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text()
    assert not [page.name for page in folder.glob("[0-9]*.md") if f"({page.name})" not in index]


def test_every_format_page_is_listed() -> None:
    folder = ROOT / "docs" / "formats"
    index = (folder / "README.md").read_text()
    assert not [page.name for page in folder.glob("[a-z]*.md") if f"({page.name})" not in index]


def test_every_dependency_has_its_reason() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    packages = {re.split(r"[^\w-]", text, maxsplit=1)[0] for text in wanted}
    for manifest in (ROOT / "rust").glob("*/Cargo.toml"):
        crates = tomllib.loads(manifest.read_text()).get("dependencies", {})
        packages |= {name for name, how in crates.items() if not (isinstance(how, dict) and "path" in how)}
    for listing in (ROOT / "requirements").glob("debian-*.txt"):
        packages |= {line for line in listing.read_text().split("\n") if line and not line.startswith("#")}
    assert not sorted(name for name in packages if f"`{name}`" not in page)
