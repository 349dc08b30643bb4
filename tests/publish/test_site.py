"""The documentation site: built with every link checked, whole without a network, and complete."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import headcount
from headcount.scores import all_scores

pytest.importorskip("mkdocs", reason="what scripts/publish.txt installs is not there")
pytestmark = pytest.mark.publish
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """What `make docs` has just built, as it says by HEADCOUNT_SITE; else the site is built here."""
    if built := os.environ.get("HEADCOUNT_SITE"):
        return ROOT / built
    folder = tmp_path_factory.mktemp("site")
    surroundings = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(build, cwd=ROOT, env=surroundings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


class Loaded(HTMLParser):
    """What a browser loads to show a page: scripts, styles, images, frames and fonts, but no page that is linked."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.found += [given[name] for name in ("src", "srcset", "data") if tag != "a" and given.get(name)]
        if tag == "link" and given.get("rel") not in ("canonical", "prev", "next"):
            self.found.append(given.get("href") or "")


def test_nothing_is_loaded_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        for address in Loaded(page.read_text("utf-8")).found:
            assert not re.match(r"(https?:)?//", address), f"{page.name} loads {address}"
            if not address.startswith("data:"):
                path = address.split("?")[0].split("#")[0]
                at = site / path[1:] if path.startswith("/") else page.parent / path
                assert at.exists(), f"{page.name} lacks {address}"
    for style in site.rglob("*.css"):
        assert not re.search(r"@import|url\(['\"]?(https?:)?//", style.read_text("utf-8")), style


def test_every_command_and_option_is_there(site):
    from typer.main import get_command

    from headcount.cli.app import add_commands, app

    add_commands()
    text = (site / "reference/commands.html").read_text("utf-8")
    for name, command in get_command(app).commands.items():
        assert f">headcount {name}<" in text
        for option in command.params:
            assert option.param_type_name == "argument" or f"<code>{option.opts[0]}" in text, (name, option.opts)


def test_every_public_name_is_there_with_its_docstring(site):
    text = (site / "reference/python.html").read_text("utf-8")
    for name in set(headcount.__all__) - {"plot"}:
        value = getattr(headcount, name)
        assert f'id="{value.__module__}.{value.__qualname__}"' in text, name
    assert "A causal language model in evaluation mode, and its tokenizer." in text
    for name in headcount.plot.__all__:
        assert re.search(rf'id="headcount\.[\w.]+\.{name}"', text), name


def test_every_score_is_there(site):
    text = (site / "scores.html").read_text("utf-8")
    assert all(f"<code>{score.id}</code>" in text for score in all_scores())
