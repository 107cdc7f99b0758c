"""Docstrings: placeholders filled, length limited, parameters in the order of the signature."""

from __future__ import annotations

import importlib
import inspect
import re

import pytest

NAMESPACES = ("pp", "tl", "pl", "get", "io", "datasets")
PUBLIC = [
    f"{namespace}.{name}"
    for namespace in NAMESPACES
    for name in importlib.import_module(f"stxtools.{namespace}").__all__
]


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring_is_filled_and_short(name: str) -> None:
    namespace, function = name.split(".")
    found = getattr(importlib.import_module(f"stxtools.{namespace}"), function)
    text = inspect.getdoc(found)
    assert text is not None
    assert re.findall(r"%\(\w+\)s", text) == [], "a placeholder is not filled"
    lines = text.splitlines()
    assert len(lines) <= 75
    assert max(map(len, lines)) <= 116
    parameters = list(inspect.signature(found).parameters)
    if parameters:
        heads = lines[lines.index("Parameters") + 2 : lines.index("Returns")]
        described = [n.strip() for line in heads if line and not line.startswith(" ") for n in line.split(",")]
        assert described == parameters
