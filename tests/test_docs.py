"""The pages: their links lead somewhere, the site has all of them, and it builds."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import markdown
import pytest
import yaml

import common

from .conftest import REPOSITORY
from .evaluation.browser import Browser, chromium

PATTERNS = ("*.md", "docs/**/*.md", "bundles/*/docs/*.md")
PAGES = sorted(path for pattern in PATTERNS for path in REPOSITORY.glob(pattern))
NAMES = [page.relative_to(REPOSITORY).as_posix() for page in PAGES]
PACKAGES = ("networks", "blocks", "ops", "losses", "evaluation", "workflows")


@dataclass
class Block:
    """A block of code.

    Attributes:
        heading: that it is under.
        language: as its fence has it; empty where there is none.
    """

    heading: str
    language: str
    text: str = ""


class Html(HTMLParser):
    """Where a page's links lead, what it loads, its headings, its code, and its parts' names."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.headings: list[str] = []
        self.blocks: list[Block] = []
        self.inline: list[str] = []  # code within sentences
        self.names: set[str] = set()
        self._in_heading = False
        self._within: list[str] = []  # pre and code
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = {name: value or "" for name, value in attrs}
        if "id" in told:
            self.names.add(told["id"])
        if tag == "a" and "href" in told:
            self.links.append(told["href"])
        elif tag == "link" and told.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(told["href"])
        elif tag != "a" and "src" in told:
            self.loads.append(told["src"])
        if re.fullmatch("h[1-6]", tag):
            self._in_heading = True
            self.headings.append("")
        elif tag == "code" and "pre" in self._within:
            language = told.get("class", "").removeprefix("language-")
            self.blocks.append(Block(self.headings[-1] if self.headings else "", language))
        elif tag == "code":
            self.inline.append("")
        if tag in ("pre", "code"):
            self._within.append(tag)

    def handle_data(self, data: str) -> None:
        if self._in_heading:
            self.headings[-1] += data
        if self._within == ["pre", "code"]:
            self.blocks[-1].text += data
        elif self._within == ["code"]:
            self.inline[-1] += data

    def handle_endtag(self, tag: str) -> None:
        if re.fullmatch("h[1-6]", tag):
            self._in_heading = False
        elif tag in ("pre", "code"):
            self._within.pop()


@cache
def read(page: Path) -> Html:
    text = page.read_text(encoding="utf-8")
    return Html(markdown.markdown(text, extensions=["fenced_code", "tables", "sane_lists"]))


def anchors(page: Path) -> set[str]:
    """What GitHub calls a page's headings; the site calls them so too, see mkdocs.yml."""
    found: Counter[str] = Counter()
    names = set()
    for heading in read(page).headings:
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        names.add(f"{name}-{found[name]}" if found[name] else name)
        found[name] += 1
    return names


def broken(page: Path) -> Iterator[str]:
    """The links of a page, and its pictures, that are not in the repository."""
    for link in read(page).links + read(page).loads:
        parts = urlsplit(link)
        if parts.scheme:
            continue
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        if not target.is_file():
            yield f"{link}: no such file"
        elif parts.fragment and parts.fragment not in anchors(target):
            yield f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_to_files_and_headings(page: Path):
    assert list(broken(page)) == []


def test_links_are_seen():
    found = read(REPOSITORY / "README.md").links
    assert {"docs/data.md", "docs/bundles.md#train", "CONTRIBUTING.md"} <= set(found)
    assert "docs/model_zoo.md#verify" in read(REPOSITORY / "CONTRIBUTING.md").links  # in a list


def test_broken_links_are_found(tmp_path: Path):
    page, other = tmp_path / "page.md", tmp_path / "docs/other.md"
    other.parent.mkdir()
    other.write_text(
        "# Ensembles *\n## Twice\n## Twice\n## `--fast` and more\n```\n# no heading\n```\n"
    )
    page.write_text(
        "# Here\n[a](docs/other.md), [b](docs/other.md#ensembles-), ![c](docs/missing.png)\n"
        "[d](docs/other.md#twice-1) [e](docs/other.md#twice-2)\n"
        "[`f`](docs/other.md#--fast-and-more) [g](docs/other.md#no-heading) [h](#here)\n"
        "[i](#there) [j](docs) [k](https://example.org)\n"
        "`[l](code.md)`\n\n    [m](code.md)\n\n```\n[n](code.md)\n```\n"
    )
    assert list(broken(page)) == [
        "docs/other.md#twice-2: no such heading",
        "docs/other.md#no-heading: no such heading",
        "#there: no such heading",
        "docs: no such file",
        "docs/missing.png: no such file",
    ]


class Loader(yaml.SafeLoader):
    """Leaves out what MkDocs makes of Python's names."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, tag, node: None)


def in_nav(part: Any) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    else:
        for inner in part.values() if isinstance(part, dict) else part:
            yield from in_nav(inner)


def test_every_page_is_in_the_nav_once():
    settings = yaml.load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"), Loader)
    assert sorted(in_nav(settings["nav"])) == sorted(NAMES)


def test_every_public_package_has_a_page_of_its_docstrings():
    told = [
        name
        for page in (REPOSITORY / "docs/api").glob("*.md")
        for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.M)
    ]
    assert {"common.segment", *(f"common.{x}" for x in PACKAGES)} <= set(told)
    assert "segment" in common.__all__
    for package in PACKAGES:
        assert importlib.import_module(f"common.{package}").__doc__


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("mkdocs", "material", "mkdocstrings"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f'needs {package} (pip install -c constraints.txt ".[docs]")')
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def built(site: Path) -> dict[str, Html]:
    pages = site.rglob("*.html")
    return {x.relative_to(site).as_posix(): Html(x.read_text(encoding="utf-8")) for x in pages}


def address(name: str) -> str:
    """Where a page of the repository is in the site."""
    if name == "README.md":
        return "overview.html"
    file = Path(name.removeprefix("docs/")).with_suffix(".html")
    return file.with_stem("index").as_posix() if file.stem == "README" else file.as_posix()


@pytest.mark.slow
def test_the_site_has_every_page(built: dict[str, Html]):
    assert {address(name) for name in NAMES} == built.keys() - {"404.html"}


@pytest.mark.slow
def test_the_sites_links_lead_somewhere(site: Path, built: dict[str, Html]):
    """The theme's too, and to parts of pages; those of 404.html are of a server's root."""
    wrong = []
    for name in built.keys() - {"404.html"}:
        for link in built[name].links + built[name].loads:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (site / name).parent / unquote(parts.path) if parts.path else site / name
            other = built.get(target.resolve().relative_to(site.resolve()).as_posix())
            lost = parts.fragment and other and unquote(parts.fragment) not in other.names
            if lost or not target.is_file():
                wrong.append(f"{name}: {link}")
    assert wrong == []


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(built: dict[str, Html]):
    loads = {load for page in built.values() for load in page.loads}
    assert {x for x in loads if urlsplit(x).netloc} == set()
    assert any(x.endswith(".js") for x in loads)
    assert any(x.endswith(".css") for x in loads)
    assert any(x.endswith(".png") for x in loads)


@pytest.mark.slow
def test_the_site_opens_from_disk_and_asks_nobody(site: Path):
    with Browser(chromium()) as browser:
        for name in ("index.html", "overview.html", "api/networks.html"):
            browser.open(site / name)
        title = browser.value("document.querySelector('h1').innerText")
        assert title.startswith("common.networks")
        asked = [x for x in browser.requests if not x.startswith(("file:", "data:", "blob:"))]
        assert asked == []
        assert any(x.endswith(".css") for x in browser.requests)


@pytest.mark.slow
def test_public_names_are_in_the_site_and_in_its_search(site: Path, built: dict[str, Html]):
    for package in PACKAGES:
        module = importlib.import_module(f"common.{package}")
        members = {name: getattr(module, name) for name in module.__all__}
        named = [x for x, y in members.items() if inspect.isroutine(y) or inspect.isclass(y)]
        here = built[f"api/{package}.html"].names
        # A function of its module's name has a heading of its own: what reads the sources takes
        # such a name for the module's.
        prefix = f"common.{package}"
        assert [x for x in named if not {f"{prefix}.{x}", f"{prefix}.{x}.{x}"} & here] == []
    assert "common.segment" in built["api/segment.html"].names
    entries = json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))["docs"]
    places = {entry["location"] for entry in entries}
    assert "api/networks.html#common.networks.LightMUNet" in places
