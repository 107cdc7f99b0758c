"""The text, the figures and the tables of parameters of the report."""

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
from stxtools._slots import records
from stxtools._validate import params_of
from stxtools.pl._biomarkers import evidence_texts
from stxtools.pl._evaluation import stage_name

FDR = 0.05
_GENES_LISTED = 8  # genes that are named in each direction
_LOW_CONFIDENCE = 0.5
_VALUES_LISTED = 20  # values of an array
_FIGURE_SIZE = (3.7, 2.7)  # inches: as wide as a phone, so that text keeps its size there


def findings(
    adata: AnnData, sections: Sequence[str], key: str = _keys.SEGMENT, biomarkers_key: str = _keys.BIOMARKERS
) -> list[str]:
    """Return one paragraph each on the data and on every result that there is."""
    named = "one section" if sections[0] == _keys.LIBRARY else f"section {sections[0]}"
    if len(sections) > 1:
        named = f"{len(sections)} sections ({', '.join(sections[:4])}{', ...' if len(sections) > 4 else ''})"
    out = [f"{adata.n_obs:,} observations (spots or cells) and {adata.n_vars:,} genes of {named}."]
    slot = adata.uns.get(key)
    if key in adata.obs and isinstance(slot, Mapping):
        out.append(_segments(adata, key, params_of(slot), slot))
    if _keys.REGIONS in adata.uns:
        table, of = get.regions(adata), params_of(adata.uns[_keys.REGIONS]).get("segment_key", key)
        borders = _count(int(table["degree"].sum()) // 2, "common border")
        whose = "Segments" if of == key else f"Classes of obs[{str(of)!r}]"
        out.append(f"{whose} form {_count(len(table), 'connected region')} with {borders}.")
    table = adata.uns.get(biomarkers_key, ())
    if len(table):
        params = adata.uns.get(f"{biomarkers_key}_params", {})
        out += [f"{_biomarkers(table, params, key)} {_reservations(table, params)}", *_targets(table)]
    calls = {str(params.get("call")) for params in records(adata.uns)}  # not a user's own table of the same name
    if "tl.describe" in calls and _keys.DESCRIBE in adata.uns:
        names = adata.uns[_keys.DESCRIBE]["proposed_name"]
        out.append(f"Proposed names: {'; '.join(f'{group}: {name}' for group, name in names.items())}.")
    if "tl.compare" in calls and _keys.COMPARE in adata.uns:
        out.append(_conditions(adata.uns[_keys.COMPARE], adata.uns[f"{_keys.COMPARE}_params"]))
    return out


def _segments(adata: AnnData, key: str, params: Mapping[str, Any], slot: Mapping[str, Any]) -> str:
    table = get.segments(adata, key=key)
    table = table[table["n_obs"] > 0].sort_values("n_obs", ascending=False, kind="stable")
    if params.get("labels_key") is not None:
        source = f"Segments follow the labels in obs[{str(params['labels_key'])!r}]."
    elif params.get("model") == "given":
        source = "Segments are the classes of a trained model."
    elif "stability" in slot:
        most = int(slot["stability"]["n_segments"].max())  # one segment is chosen by another test
        source = f"Of 2 to {most} this number has the lowest BIC." if most > 1 else "It has no spatial structure."
    else:
        source = "Their number was given."
    if table.empty:
        return "No observation has a segment."
    first, last = table.iloc[0], table.iloc[-1]
    text = f"The tissue falls into {_count(len(table), 'segment')}. {source}"
    if len(table) > 1:
        text += (
            f" The largest ({first['segment']}) holds {_percent(first['share'])} of the observations, the smallest "
            f"({last['segment']}) {_percent(last['share'])}."
        )
    confidence = adata.obs.get(_keys.confidence(key))
    if confidence is not None:
        values = confidence.to_numpy(dtype=float)
        low = _percent(float((values < _LOW_CONFIDENCE).mean()))
        text += f" Mean confidence is {np.nanmean(values):.2f}; {low} of the observations are below {_LOW_CONFIDENCE}."
    return text


def _biomarkers(table: pd.DataFrame, params: Mapping[str, Any], key: str) -> str:
    markers = table[table["pvals_adj"] <= FDR]
    groups, what = table["group"].unique(), "segment" if params.get("groupby") == key else "group"
    text = f"At a false discovery rate of {_percent(FDR)}, "
    if markers.empty:
        return text + f"no gene marks a {what}."
    if len(groups) == 1:
        sizes = [f"{int(n):,}" for name in ("n_obs_group", "n_obs_reference") for n in params.get(name, ())[:1]]
        observations = f" ({' and '.join(sizes)} observations)" if sizes else ""
        text += f"{len(markers):,} of {len(table):,} genes tell {groups[0]} from {_reference(params)}{observations}."
    else:
        counts = markers["group"].value_counts()
        text += (
            f"{markers['names'].nunique():,} of {table['names'].nunique():,} genes mark at least one of "
            f"{len(groups)} {what}s; {counts.iloc[0]:,} of them mark {what} {counts.index[0]}."
        )
    if tests_composition(table):
        beyond = int(markers["beyond_composition"].sum())
        text += f" Of {len(markers):,} differences {beyond:,} are beyond composition (more than the mixture explains)."
    return text


def _reservations(table: pd.DataFrame, params: Mapping[str, Any]) -> str:
    """Say what the p-values rest on: the sections, their agreement, and how the groups were found."""
    n = int(table["n_libraries"].max()) if "n_libraries" in table else 0
    text = "The p-values allow for neighbours that resemble each other."
    if n == 1:
        text += " They rest on one section and do not hold for other sections or patients."
    if n > 1:
        unit = "section" if params.get("subject_key") is None else "subject"
        alone = ", and each counts alone, also where a patient has several" if unit == "section" else ""
        text += f" The unit is the {unit}: {n} were combined{alone}."
        agree = table.loc[table["pvals_adj"] <= FDR].get("direction_consistent", pd.Series(dtype="boolean")).dropna()
        if len(agree):
            text += f" Of {len(agree):,} differences {int(agree.sum()):,} have the same direction in all {unit}s."
    if "unprotected" in params:
        text += " The groups were found in the tested expression, so the p-values are too small: only the order counts."
    elif "protect_agreement" in params:
        agreement = f"adjusted Rand index {float(params['protect_agreement']):.2f}, 1 is the same"
        text += f" The groups were found again in one half of the counts ({agreement}) and tested in the other half."
    return text


def _targets(table: pd.DataFrame) -> list[str]:
    """Return the higher genes with evidence as targets, if tables of targets were joined."""
    if not (joined := [c.removeprefix("in_") for c in table if c.startswith("in_")]):
        return []
    higher = table[(table["pvals_adj"] <= FDR) & (table["scores"] > 0)].drop_duplicates("names")
    texts = [f"{gene}: {text}" for gene, text in zip(higher["names"], evidence_texts(higher), strict=True) if text]
    listed = "; ".join(texts[:_GENES_LISTED]) + ("; ..." if len(texts) > _GENES_LISTED else "")
    return [
        f"Of the {_count(len(higher), 'gene')} that are significantly higher, {len(texts) or 'none'} "
        f"{'has' if len(texts) == 1 else 'have'} evidence as targets in {', '.join(joined)}"
        f"{f' ({listed})' if listed else ''}. A gene without evidence may only be "
        "missing there."
    ]


def _conditions(table: pd.DataFrame, params: Mapping[str, Any]) -> str:
    texts = []
    for group, part in table.groupby("group", sort=False, observed=True):
        n = f"{int(part['n_group'].max())} and {_count(int(part['n_reference'].max()), 'subject')}"
        tested = part[part["pvals"].notna()]
        kinds = tested.groupby("kind", sort=False, observed=True)["pvals_adj"]
        found = ", ".join(f"{int((p <= FDR).sum()):,} of {len(p):,} values of {kind}" for kind, p in kinds)
        what = "nothing was tested, because a condition has fewer than three subjects"
        what = f"{found} differ at a false discovery rate of {_percent(FDR)}" if found else what
        texts.append(f"{group} against {params['reference']} ({n}): {what}.")
    return " ".join(texts)


def tests_composition(table: pd.DataFrame) -> bool:
    """Return whether the table says what the mixture explains; of groups that are whole sections it does not."""
    untested = "pvals_composition" in table and table["pvals_composition"].isna().all()
    return "beyond_composition" in table and not untested


def _reference(params: Mapping[str, Any]) -> str:
    reference = str(params.get("reference", "rest"))
    return "the rest" if reference == "rest" else reference


def marker_lines(adata: AnnData) -> list[str]:
    """Return the lines of each group: how many genes mark it, and the first in each direction."""
    reference, lines = _reference(adata.uns[f"{_keys.BIOMARKERS}_params"]), []
    for group, table in adata.uns[_keys.BIOMARKERS].groupby("group", sort=False, observed=True):
        markers = table[table["pvals_adj"] <= FDR]
        line = f"{group} against {reference}: {len(markers) or 'none'} of {len(table)} genes"
        if tests_composition(table):
            line += f", {int(markers['beyond_composition'].sum())} beyond composition"
        lines.append(line)
        for direction, sign in (("higher", 1), ("lower", -1)):
            part = markers[markers["scores"] * sign > 0][::sign]
            first = part[["names", "logfoldchanges"]].head(_GENES_LISTED).itertuples(index=False)
            # the test compares smooth logarithms, the ratio is one of means: of few genes, their directions differ
            genes = [f"{gene} ({2.0**x:.2g}-fold)" if x * sign > 0 else str(gene) for gene, x in first]
            if genes:
                lines.append(f"  {direction}: {', '.join(genes)}{', ...' if len(part) > _GENES_LISTED else ''}")
    return lines


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _percent(part: float) -> str:
    return "none" if part == 0 else f"{100 * part:.0f} %" if part >= 0.01 else "less than 1 %"


def parameter_tables(adata: AnnData, key: str, biomarkers_key: str) -> list[tuple[str, dict[str, str]]]:
    """Return the parameters of each step that was run, as text: first those of the report's own tables."""
    slots, table = (key, _keys.REGIONS, _keys.EMBED, _keys.MULTITASK), f"{biomarkers_key}_params"
    steps = [("", params_of(adata.uns.get(name))) for name in slots] + [("", dict(adata.uns.get(table, {})))]
    others = [name for name in sorted(adata.uns) if name not in (*slots, table)]
    steps += [(name.removesuffix("_params"), params) for name in others for params in records(adata.uns[name])]
    tables = []
    for where, params in steps:
        if params:
            kept = {k: v for k, v in params.items() if k not in ("call", "slots")}
            (flat,) = pd.json_normalize(kept).to_dict("records")
            call = str(params.get("call", where or "step"))
            title = call if call.endswith(where) else f"{call}: {where}"
            tables.append((title, {str(name): _format(value) for name, value in flat.items()}))
    return tables


def _format(value: Any) -> str:
    if isinstance(value, (list, np.ndarray)):
        listed = [_format(v) for v in np.ravel(np.asarray(value, dtype=object))]
        return ", ".join(listed[:_VALUES_LISTED]) + (f", ... ({len(listed)})" if len(listed) > _VALUES_LISTED else "")
    return f"{value:.6g}" if isinstance(value, (float, np.floating)) else str(value)


def training_figures(adata: AnnData, key: str) -> list[tuple[str, str]]:
    """Return title and SVG of each figure, none where nothing was trained or chosen."""
    figures = []
    if "bic" in _stored_table(adata, key, "stability"):
        figures.append(("How the number of segments was chosen", _svg(pl.stability, adata, key)))
    for name, what in ((key, "U-Net"), (_keys.EMBED, "Graph network"), (_keys.MULTITASK, "Multi-task network")):
        history = _stored_table(adata, name, "history")
        stages = pd.unique(history["stage"].astype(str)) if "stage" in history else ()
        figures += [(f"{what}: {stage_name(stage)}", _svg(pl.history, adata, name, stage=stage)) for stage in stages]
    return figures


def _stored_table(adata: AnnData, key: str, name: str) -> pd.DataFrame:
    slot = adata.uns.get(key)
    table = slot.get(name) if isinstance(slot, Mapping) else None
    return table if isinstance(table, pd.DataFrame) and len(table) else pd.DataFrame()


def _svg(draw: Any, adata: AnnData, key: str, **kwargs: Any) -> str:
    """Draw a figure and return it as base64 of SVG."""
    with mpl.rc_context({"svg.hashsalt": "stxtools", "font.size": 9}):  # the same file each time
        figure = Figure(figsize=_FIGURE_SIZE, layout="constrained")
        FigureCanvasAgg(figure)
        draw(adata, key, ax=figure.subplots(), title="", show=False, **kwargs)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return base64.b64encode(file.getvalue()).decode()
