"""The prose is easy to read: docs/check_prose.py measures sentences and looks for banned metaphors."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "docs" / "check_prose.py"


@pytest.fixture(scope="module")
def prose() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_prose", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_docs_have_short_sentences_and_no_banned_metaphors(prose: ModuleType) -> None:
    found = prose.faults()
    assert not found, "\n".join(found)
    assert prose.count() <= 12_000, "the pages have more prose than a reader takes in"


def test_check_finds_long_sentences_and_metaphors(prose: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"# {'word ' * 40}\n\nIt is {'very ' * 29}long.\n\nHonest.\n\n| {'x ' * 40}|\n\n```\n{'x ' * 40}\n```\n"
    monkeypatch.setattr(prose, "texts", lambda: iter([("page", text)]))
    assert [fault.split(":")[1].strip() for fault in prose.faults()][:2] == ["32 words", "'honest'"]
    sentences = prose.sentences("A b (`c d e`). Two [linked words](http://x.y/z). 0.5 ± 0.1")
    assert [prose.words(sentence) for sentence in sentences] == [3, 3, 0]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_files_that_a_page_links_exist(page: str) -> None:
    root = SCRIPT.parents[1]
    links = re.findall(r"\]\(([^)#\s]+)", (root / page).read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (root / link).exists()] == []
