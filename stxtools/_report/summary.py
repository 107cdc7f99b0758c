"""What was found, in words and figures, and what it was found with, in tables."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stxtools import _keys, get, pl
from stxtools.pl._base import params_of
from stxtools.pl._evaluation import stage_name

FDR = 0.05
_NAMED = 8  # genes that are named in each direction
_DOUBT = 0.5
_SHOWN = 20  # values of an array
_SIZE = (3.7, 2.7)  # inches: as wide as a phone, so that text keeps its size there


def findings(
    adata: AnnData, sections: Sequence[str], key: str = _keys.SEGMENT, biomarkers_key: str = _keys.BIOMARKERS
) -> list[str]:
    """Return a paragraph each on the data, the segments, the regions and the biomarkers, as far as there are any."""
    out = [f"{adata.n_obs:,} observations (spots or cells) and {adata.n_vars:,} genes of {_named(sections)}."]
    slot = adata.uns.get(key)
    if key in adata.obs and isinstance(slot, Mapping):
        out.append(_segments(adata, key, params_of(slot), slot))
    if _keys.REGIONS in adata.uns:
        out.append(_regions(adata))
    if len(adata.uns.get(biomarkers_key, ())):
        out.append(_biomarkers(adata.uns[biomarkers_key], adata.uns.get(f"{biomarkers_key}_params", {}), key))
    return out


def _named(sections: Sequence[str]) -> str:
    if len(sections) > 1:
        return f"{len(sections)} sections ({', '.join(sections[:4])}{', ...' if len(sections) > 4 else ''})"
    return "one section" if sections[0] == _keys.LIBRARY else f"section {sections[0]}"


def _segments(adata: AnnData, key: str, params: Mapping[str, Any], slot: Mapping[str, Any]) -> str:
    table = get.segments(adata, key=key)
    table = table[table["n_obs"] > 0].sort_values("n_obs", ascending=False, kind="stable")
    if params.get("labels_key") is not None:
        how = f"They follow the labels in obs[{str(params['labels_key'])!r}]."
    elif params.get("model") == "given":
        how = "They are the classes of a trained model."
    elif "stability" in slot:
        most = int(slot["stability"]["n_segments"].max())  # one segment is chosen by another test
        how = f"Of 2 to {most} this number has the lowest BIC." if most > 1 else "Nothing in it is arranged in space."
    else:
        how = "Their number was given."
    first, last = table.iloc[0], table.iloc[-1]
    text = f"The tissue falls into {_count(len(table), 'segment')}. {how}"
    if len(table) > 1:
        text += (
            f" The largest ({first['segment']}) holds {_share(first['share'])} of the observations, the smallest "
            f"({last['segment']}) {_share(last['share'])}."
        )
    confidence = adata.obs.get(_keys.confidence(key))
    if confidence is not None:
        values = confidence.to_numpy(dtype=float)
        doubt = float((values < _DOUBT).mean())
        text += f" Mean confidence is {np.nanmean(values):.2f}; {_share(doubt)} of the observations are below {_DOUBT}."
    return text


def _regions(adata: AnnData) -> str:
    table = get.regions(adata)
    borders = int(table["degree"].sum()) // 2
    text = f"Segments form {_count(len(table), 'connected region')} with {_count(borders, 'common border')}."
    if "attention" in table and table["attention"].notna().any():
        by = table.groupby("segment", observed=True)["attention"].mean().sort_values(ascending=False, kind="stable")
        text += f" The graph network attends most to regions of segment {by.index[0]} (mean {by.iloc[0]:.2f})."
    return text


def _biomarkers(table: pd.DataFrame, params: Mapping[str, Any], key: str) -> str:
    found = table[table["pvals_adj"] <= FDR]
    groups, what = table["group"].unique(), "segment" if params.get("groupby") == key else "group"
    text = f"At a false discovery rate of {_share(FDR)}, "
    if not len(found):
        text += f"no gene marks a {what}."
    elif len(groups) == 1:
        text += f"{len(found):,} of {len(table):,} genes tell {groups[0]} from {_other(params)}."
    else:
        most = found["group"].value_counts()
        text += (
            f"{found['names'].nunique():,} of {table['names'].nunique():,} genes mark at least one of "
            f"{len(groups)} {what}s; {most.iloc[0]:,} of them mark {what} {most.index[0]}."
        )
    if "beyond_composition" in found and len(found):
        beyond = int(found["beyond_composition"].sum())
        text += f" Of {len(found):,} differences {beyond:,} are beyond composition (more than the mixture explains)."
    return text


def _other(params: Mapping[str, Any]) -> str:
    reference = str(params.get("reference", "rest"))
    return "the rest" if reference == "rest" else reference


def all_marked(adata: AnnData, key: str = _keys.BIOMARKERS) -> list[list[str]]:
    """Say which genes mark each group: a line on how many, and one for each direction."""
    reference, told = _other(adata.uns[f"{key}_params"]), []
    for group, table in adata.uns[key].groupby("group", sort=False, observed=True):
        found = table[table["pvals_adj"] <= FDR]
        lines = [f"{group} against {reference}: {len(found) or 'none'} of {len(table)} genes"]
        if "beyond_composition" in found:
            lines[0] += f", {int(found['beyond_composition'].sum())} beyond composition"
        for direction, sign in (("higher", 1), ("lower", -1)):
            part = found[found["scores"] * sign > 0][::sign]
            first = part[["names", "logfoldchanges"]].head(_NAMED).itertuples(index=False)
            genes = [f"{gene} ({2.0**change:.2g}-fold)" for gene, change in first]
            if genes:
                lines.append(f"  {direction}: {', '.join(genes)}{', ...' if len(part) > _NAMED else ''}")
        told.append(lines)
    return told


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _share(part: float) -> str:
    return "none" if part == 0 else f"{100 * part:.0f} %" if part >= 0.01 else "less than 1 %"


def parameter_tables(adata: AnnData, key: str, biomarkers_key: str) -> list[tuple[str, dict[str, str]]]:
    """Return the parameters of each step that was run, as text."""
    slots: list[Any] = [adata.uns.get(name) for name in (key, _keys.REGIONS, _keys.EMBED, _keys.MULTITASK)]
    steps = [*map(params_of, slots), dict(adata.uns.get(f"{biomarkers_key}_params", {}))]
    tables = []
    for params in filter(None, steps):
        (flat,) = pd.json_normalize({k: v for k, v in params.items() if k not in ("call", "slots")}).to_dict("records")
        tables.append((str(params.get("call", "step")), {str(name): _said(value) for name, value in flat.items()}))
    return tables


def _said(value: Any) -> str:
    if isinstance(value, (list, np.ndarray)):
        listed = [_said(v) for v in np.ravel(np.asarray(value, dtype=object))]
        return ", ".join(listed[:_SHOWN]) + (f", ... ({len(listed)})" if len(listed) > _SHOWN else "")
    return f"{value:.6g}" if isinstance(value, (float, np.floating)) else str(value)


def training_figures(adata: AnnData, key: str) -> list[tuple[str, str]]:
    """Return title and SVG of each figure, none where nothing was trained or chosen."""
    figures = []
    if "bic" in _table(adata, key, "stability"):
        figures.append(("How the number of segments was chosen", _svg(pl.stability, adata, key)))
    for name, what in ((key, "U-Net"), (_keys.EMBED, "Graph network"), (_keys.MULTITASK, "Multi-task network")):
        history = _table(adata, name, "history")
        stages = pd.unique(history["stage"].astype(str)) if "stage" in history else ()
        figures += [(f"{what}: {stage_name(stage)}", _svg(pl.history, adata, name, stage=stage)) for stage in stages]
    return figures


def _table(adata: AnnData, key: str, name: str) -> pd.DataFrame:
    slot = adata.uns.get(key)
    table = slot.get(name) if isinstance(slot, Mapping) else None
    return table if isinstance(table, pd.DataFrame) and len(table) else pd.DataFrame()


def _svg(draw: Any, adata: AnnData, key: str, **how: Any) -> str:
    """Draw a figure and return it as base64 of SVG."""
    with mpl.rc_context({"svg.hashsalt": "stxtools", "font.size": 9}):  # the same file each time
        figure = Figure(figsize=_SIZE, layout="constrained")
        FigureCanvasAgg(figure)
        draw(adata, key, ax=figure.subplots(), title="", show=False, **how)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return base64.b64encode(file.getvalue()).decode()
