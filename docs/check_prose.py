"""Measure the prose: sentences of 30 words at most, no banned metaphor. ``python docs/check_prose.py`` lists faults."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 30
BANNED = (
    "the whole line", "honest", "is told", "are told", "taught by", "what lost", "lesson", "steeper", "the slope",
    "left-out", "pen slip", "in a slower hour", "is the attention true",
)  # fmt: skip
NOT_PROSE = re.compile(r"^(\s*(\||```|~~~|:::|<|\$\$|#|:\w|\.\. |>>>|\.\.\. )|\s*!\[)")


def _paragraphs(text: str) -> Iterator[str]:
    """Give the prose of a Markdown or reStructuredText text: no code, table, equation, directive or heading."""
    text = re.sub(r"(?ms)^\s*(```|~~~)\{(note|glossary|warning|tip)\}\s*$(.*?)^\s*\1\s*$", r"\3", text)
    text = re.sub(r"(?ms)^(`{3,}|~{3,}).*?^\1\s*$", "\n\n", text)
    text = re.sub(r"(?ms)^\$\$.*?\$\$", "\n\n", text)
    for block in re.split(r"\n\s*\n", text):
        lines: list[str] = []
        for line in block.splitlines():
            if NOT_PROSE.match(line):
                continue
            if re.match(r"\s*([-*+]|\d+\.)\s", line) and lines:
                yield " ".join(lines)
                lines = []
            lines.append(re.sub(r"^\s*([-*+]|\d+\.)\s+", "", line.strip()))
        if lines:
            yield " ".join(lines)


def sentences(text: str) -> list[str]:
    """Split prose into sentences; a code span, a link's address, a citation or a number is one word at most."""
    found = []
    for paragraph in _paragraphs(text):
        plain = re.sub(r"\{[\w:]+\}`[^`]*`|:\w+:`[^`]*`|``[^`]*``|`[^`]*`|\$[^$]*\$", "X", paragraph)
        plain = re.sub(r"\]\([^)]*\)", "]", plain)
        plain = re.sub(r"\b(e\.g|i\.e|vs|al|Fig|approx)\.", r"\1", plain)
        found += [s.strip() for s in re.split(r"(?<=[.!?])[)\]\"*]*\s+(?=[A-Z\[\"(*`\d]|X)", plain) if s.strip()]
    return found


def words(sentence: str) -> int:
    """Count the words: what has a letter, so that rows of numbers and signs do not count."""
    return sum(1 for word in sentence.split() if re.search(r"[A-Za-z]", word))


def _docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Give the first paragraph of each public docstring of a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)):
            continue
        name = getattr(node, "name", path.stem)
        text = ast.get_docstring(node)
        if text and not name.startswith("_"):
            yield name, text.split("\n\n")[0]


def texts() -> Iterator[tuple[str, str]]:
    """Give the name and the text of everything that is measured."""
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        parts = path.relative_to(ROOT).parts
        if not {"_build", "generated"} & set(parts):
            yield "/".join(parts), path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "tutorials").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        yield path.name, "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    for path in sorted((ROOT / "stxtools").rglob("*.py")):
        for name, text in _docstrings(path):
            yield f"{path.relative_to(ROOT)}:{name}", text


def faults() -> list[str]:
    """Return what is to be mended: where, and the sentence."""
    found = []
    for where, text in texts():
        for sentence in sentences(text):
            if words(sentence) > LONGEST:
                found.append(f"{where}: {words(sentence)} words: {sentence}")
            found += [f"{where}: {word!r}: {sentence}" for word in BANNED if word in sentence.lower()]
    return found


def count() -> int:
    """Return the number of words of prose in the pages, tutorials and tables aside."""
    pages = (text for where, text in texts() if where.startswith("docs/"))
    return sum(words(sentence) for text in pages for sentence in sentences(text))


if __name__ == "__main__":
    print("\n".join(faults()))
    print(f"{len(faults())} to mend; {count()} words of prose in the pages.")
