"""The loaders of public data as a table: what each reads, where it comes from, and the docstring that says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from textwrap import fill, indent
from typing import Any, TypeVar

from stxtools._docs import PARAMETERS, WIDTH

F = TypeVar("F", bound=Callable[..., Any])

# of each loader: what it reads, its publication, what it returns, texts of the parameters, and sections or ``samples``;
# of sections their ``source`` and names without extension (``pattern``, or ``files`` of some samples); of downloads
# their ``url``, ``files`` with checksums (or the ``file`` of a sample), and ``help`` where a download fails
REGISTRY: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("_registry.json").read_text("utf-8"))

_DOC = """\
Read {about}

{publication}
{parameters}
Returns
-------
{holds}

Raises
------
{raises}

Examples
--------
>>> import stxtools as st
{example}
"""
_ABSENT = """\
FileNotFoundError
    If the section is not in ``settings.datasetdir``; the message says where it comes from."""
_FAILED = """\
ConnectionError
    A download fails; nothing is left behind, and the message says how to do it by hand.
ValueError
    A file is not what it should be."""


def described(loader: F) -> F:
    """Write a loader's docstring from its row of the table."""
    name, entry = loader.__name__, REGISTRY[loader.__name__]
    shown = {"show_progress": PARAMETERS["show_progress"]} if "url" in entry else {}
    parameters = entry.get("parameters", {}) | shown
    texts = [f"{k}\n{indent(fill(v, WIDTH - 4), '    ')}\n" for k, v in parameters.items()]
    calls = entry.get("example", [f"adata = st.datasets.{name}()"])
    loader.__doc__ = _DOC.format(
        about=entry["about"],
        publication=fill(f"{entry['publication']}.", WIDTH),
        parameters="\nParameters\n----------\n" + "".join(texts) if texts else "",
        holds=fill(entry["holds"], WIDTH),
        raises=_FAILED if "url" in entry else _ABSENT,
        example="\n".join(f">>> {call}  # doctest: +SKIP" for call in calls),
    )
    return loader
