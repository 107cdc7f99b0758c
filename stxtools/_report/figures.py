"""How the number of segments was chosen, and the training curves: the figures of ``st.pl`` as SVG."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from stxtools import _keys, pl
from stxtools.pl._history import stage_name

if TYPE_CHECKING:
    from anndata import AnnData

_SIZE = (3.7, 2.7)  # inches: as wide as a phone, so that text keeps its size there


def training_figures(adata: AnnData, key: str) -> str:
    """Return the figures as HTML, empty where nothing was trained or chosen."""
    figures = []
    if "bic" in _table(adata, key, "stability"):
        figures.append(_figure("How the number of segments was chosen", pl.stability, adata, key))
    for name, what in ((key, "U-Net"), (_keys.EMBED, "Graph network"), (_keys.MULTITASK, "Multi-task network")):
        history = _table(adata, name, "history")
        stages = list(dict.fromkeys(history["stage"].astype(str))) if "stage" in history else []
        for stage in stages:
            title = f"{what}: {stage_name(stage)}"
            figures.append(_figure(title, pl.history, adata, name, stage=stage))
    return "".join(figures)


def _table(adata: AnnData, key: str, name: str) -> pd.DataFrame:
    slot = adata.uns.get(key)
    table = slot.get(name) if isinstance(slot, Mapping) else None
    return table if isinstance(table, pd.DataFrame) and len(table) else pd.DataFrame()


def _figure(title: str, draw: Any, adata: AnnData, key: str, **how: Any) -> str:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "stxtools", "font.size": 9}):  # the same file each time
        figure = Figure(figsize=_SIZE, layout="constrained")
        FigureCanvasAgg(figure)
        draw(adata, key, ax=figure.subplots(), title="", show=False, **how)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    source = base64.b64encode(file.getvalue()).decode()
    text = html.escape(title)
    return (
        f'<figure><figcaption>{text}</figcaption><img alt="{text}" src="data:image/svg+xml;base64,{source}"></figure>'
    )
