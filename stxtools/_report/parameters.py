"""Parameters, seeds and versions of every step, as tables."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from stxtools import _keys
from stxtools.pl._base import params_of

if TYPE_CHECKING:
    from anndata import AnnData

_SHOWN = 20  # values of an array


def parameter_tables(adata: AnnData, key: str, biomarkers_key: str) -> str:
    """Return one table for each step that was run."""
    slots: list[Any] = [adata.uns.get(name) for name in (key, _keys.REGIONS, _keys.EMBED, _keys.MULTITASK)]
    steps = [*map(params_of, slots), dict(adata.uns.get(f"{biomarkers_key}_params", {}))]
    return "".join(_step(params) for params in steps if params)


def _step(params: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th scope=row>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>"
        for name, text in _flat(params) if name not in ("call", "slots")
    )  # fmt: skip
    return f"<details><summary>{html.escape(str(params.get('call', 'step')))}</summary><table>{rows}</table></details>"


def _flat(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in params.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _said(value)


def _said(value: Any) -> str:
    if isinstance(value, (list, np.ndarray)):
        listed = [_said(v) for v in np.ravel(np.asarray(value, dtype=object))]
        return ", ".join(listed[:_SHOWN]) + (f", ... ({len(listed)})" if len(listed) > _SHOWN else "")
    return f"{value:.6g}" if isinstance(value, (float, np.floating)) else str(value)
