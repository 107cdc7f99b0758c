"""Biomarkers as drug targets: evidence joined from files of Open Targets and DGIdb."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import chain, count
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from stxtools import _keys
from stxtools._api import public
from stxtools._checks import check_key, listing
from stxtools._slots import Slots, check_free, provenance
from stxtools._validate import check_adata, check_in, check_key_added, stored_table
from stxtools._warn import warn
from stxtools.tl._biomarkers._table import COLUMNS

from ._tables import TargetTable, origin, parse_target_table, read_table, symbol_map

_N_SHOWN = 8


@public
def targets(
    adata: AnnData, table: str | os.PathLike[str] | pd.DataFrame, *, disease: str | None = None,
    symbols: str | os.PathLike[str] | pd.DataFrame | None = None, symbol_col: str | None = None,
    symbol_key: str | None = None, ensembl_key: str = "gene_ids", key: str = _keys.BIOMARKERS,
    key_added: str | None = None, copy: bool = False,
) -> AnnData | None:  # fmt: skip
    """Annotate biomarkers with tractability, known drugs and safety, from Open Targets or DGIdb.

    The format of ``table`` is recognised by its column names:

    - **DGIdb** ``interactions.tsv`` (Cannon et al. 2024): ``n_drugs``, ``n_approved_drugs``, ``drugs`` (approved
      first), ``interaction_types``, ``interaction_score`` (largest);
    - **DGIdb** ``categories.tsv``: ``gene_categories``;
    - **Open Targets** clinical targets: ``n_clinical_drugs``, ``clinical_drugs`` (latest phase first),
      ``clinical_stage``;
    - **Open Targets** mechanisms of action: ``mechanisms``, ``action_types``; essentiality: ``is_essential``;
    - **Open Targets** target prioritisation (Ochoa et al. 2023): its numeric columns on their own scale, -1 to 1;
    - **Open Targets** targets: ``tractability_sm`` (small molecule), ``_ab`` (antibody), ``_pr`` (degrader), ``_oc``
      (other): the positive assessments, best first; ``safety_events``, ``subcellular_locations``;
    - any other table with ``symbol_col``: its other columns (format ``table``; further ones ``table_2``, ...).

    Rows of the same gene are merged: maximum of numbers, any of booleans, distinct texts joined by ``"; "``. Genes that
    the table lacks have False in ``in_{format}``, and NaN, NA, 0 or an empty text. Nothing recorded is no proof of
    safety. ``uns["targets_params"]`` holds the SHA-256 of each file, and the release that it states.

    Parameters
    ----------
    table
        A DataFrame or a path: tsv, csv (also gzipped), parquet (needs pyarrow) or a folder of parquet files.
    disease
        Id or name of a disease: of clinical targets, keep only drugs for it.
    symbols
        Open Targets' table of targets, which maps gene symbols to Ensembl ids if ``table`` has ids only.
    symbol_col
        Column of ``table`` with gene symbols (or Ensembl ids), for tables in none of the formats above.
    symbol_key
        Column of ``var`` with gene symbols; by default ``var_names``. Matching is case-sensitive: ``Erbb2`` is a mouse
        gene.
    ensembl_key
        Column of ``var`` with Ensembl ids (versions such as ``.5`` are ignored), used where the table has ids.
    key
        Name of the biomarker table in ``uns``.
    key_added
        Name in ``uns`` of a new joined table. By default the columns are joined to ``uns[key]``.

    %(returns)s

    Warns
    -----
    UserWarning
        Genes are not in the table, or their symbols are ambiguous: how many and which.

    Examples
    --------
    >>> import pandas as pd, stxtools as st
    >>> adata = st.datasets.synthetic_tissue()
    >>> st.tl.biomarkers(adata, groupby="compartment", n_null=100)
    >>> drugs = pd.DataFrame({"gene_name": adata.var_names[:2], "drug_name": ["A", "B"], "approved": [True, False]})
    >>> st.tl.targets(adata, drugs)
    """
    check_adata(adata, copy=copy)
    check_key("key", key)
    biomarkers = stored_table(adata, key, {"names"}, "biomarker table", "st.tl.biomarkers(adata, groupby=...)")
    out_key = check_key_added(key_added, key)
    if out_key != key:
        check_free(adata, "tl.targets", uns=[out_key])
    if symbol_key is not None:
        check_in(adata, "var", symbol_key, "symbol_key")
    if check_key("ensembl_key", ensembl_key) != "gene_ids":  # the default may be absent
        check_in(adata, "var", ensembl_key, "ensembl_key")
    if symbol_col is not None:
        check_key("symbol_col", symbol_col)
    raw = read_table(table)
    parsed = parse_target_table(raw, symbol_col, disease)
    names = pd.Index(adata.var_names.astype(str))
    known = None if symbols is None else symbol_map(read_table(symbols))
    rows, queries, matched_by = _queries(adata, parsed, symbol_key, ensembl_key, known)
    position = rows.index.get_indexer(queries.to_numpy())
    report = _report(parsed, rows.index, queries, names, position, matched_by)

    params_key = f"{_keys.TARGETS if key_added is None else out_key}_params"
    earlier = adata.uns.get(params_key)
    record = dict(earlier) if isinstance(earlier, Mapping) else {}
    row = position[names.get_indexer(biomarkers["names"].astype(str))]
    name = _record_name(parsed.format, rows.columns, record, row >= 0, biomarkers)
    others = {str(c) for other, params in record.items() if other != name for c in params.get("columns", ())}
    if clash := [c for c in rows.columns if c in COLUMNS or (c in others and c in biomarkers)]:
        raise ValueError(
            f"The table's column(s) {clash} are already columns of the biomarker table, or of a table that was joined "
            "before; rename them."
        )
    joined = biomarkers.copy()
    joined[f"in_{name}"] = row >= 0
    for column in rows.columns:  # where a gene is not listed: NaN, NA of truth values, 0 or an empty text
        values = rows[column].to_numpy()
        fill = {"O": "", "f": np.nan}.get(values.dtype.kind, values.dtype.type(0))
        values = pd.api.extensions.take(values, row, allow_fill=True, fill_value=fill)
        if values.dtype == bool:
            values = pd.arrays.BooleanArray(values, row < 0)
        joined[column] = pd.Series(values, index=joined.index).astype(str) if values.dtype == object else values
    record[name] = provenance(
        **origin(table, raw), disease=disease, symbol_col=symbol_col, symbol_key=symbol_key, ensembl_key=ensembl_key,
        key=key, columns=list(map(str, rows.columns)), matched_by=matched_by, n_matched=int((position >= 0).sum()),
        n_unmatched=int((position < 0).sum()),
        **{name: np.array(genes, dtype=object) for name, genes in report.items()},
    )  # fmt: skip
    _warn(parsed.format, len(names), report)
    replaces = {f"uns/{key}"} if out_key == key else set()  # the biomarker table gets more columns
    return Slots("tl.targets", uns={out_key: joined, params_key: record}, replaces=replaces).write(adata, copy)


def _record_name(
    kind: str, columns: pd.Index, record: Mapping[str, Any], listed: np.ndarray, biomarkers: pd.DataFrame
) -> str:
    """Return the format, with a number for a further table of one's own; the same table again keeps its name."""

    def is_same(name: str) -> bool:
        earlier = set(record[name].get("columns", ()))
        if earlier or not columns.empty:
            return bool(earlier) and earlier <= set(columns)
        return np.array_equal(biomarkers[f"in_{name}"], listed)  # lists of genes

    names = chain([kind], (f"{kind}_{i}" for i in count(2)))
    # records may be of an earlier biomarker table
    return next(n for n in names if kind != "table" or not (n in record and f"in_{n}" in biomarkers) or is_same(n))


def _queries(
    adata: AnnData, parsed: TargetTable, symbol_key: str | None, ensembl_key: str, known: pd.Series | None
) -> tuple[pd.DataFrame, pd.Series, str]:
    """Return the table to look genes up in, their names in it, and the kind of these names."""

    def texts(values: pd.Index | pd.Series) -> pd.Series:
        return pd.Series(np.asarray(values.astype(str), dtype=str), dtype=object)

    names = texts(adata.var_names)
    named_by_id = names.str.match(r"ENS[A-Z]*G\d+").mean() > 0.5
    ids = texts(adata.var[ensembl_key]) if ensembl_key in adata.var else names if named_by_id else None
    if parsed.by_id is not None and ids is not None:
        return parsed.by_id, ids.str.replace(r"\.\d+$", "", regex=True), "ensembl"
    if symbol_key is not None:
        names = texts(adata.var[symbol_key])
    if parsed.by_symbol is not None:
        return parsed.by_symbol, names, "symbol"
    if parsed.by_id is None or known is None:
        raise ValueError(
            f"The table ({parsed.format}) names genes by Ensembl id only, and `adata.var` has no column "
            f"{ensembl_key!r} with such ids; add one, name it with `ensembl_key`, or pass Open Targets' table of "
            "targets as `symbols=`."
        )
    return parsed.by_id, names.map(known).fillna(names).astype(object), "symbol to ensembl"


def _report(
    parsed: TargetTable, known: pd.Index, queries: pd.Series, names: pd.Index, position: np.ndarray, matched_by: str
) -> dict[str, list[str]]:
    """Return the genes that were not matched, or not surely, by reason."""
    labels = pd.Series([n if n == q else f"{n} ({q})" for n, q in zip(names, queries, strict=True)], dtype=object)
    missing, duplicated = position < 0, queries.duplicated(keep=False)
    ambiguous = queries.isin(parsed.ambiguous) & (matched_by == "symbol")
    out = {"unmatched": list(labels[missing]), "ambiguous": list(labels[(duplicated & ~missing) | ambiguous])}
    if matched_by == "symbol":
        out["case_mismatch"] = list(labels[missing & queries.str.upper().isin({str(s).upper() for s in known})])
        old = missing & queries.isin(parsed.aliases.keys())
        out["outdated"] = list(labels[old] + " -> " + queries[old].map(parsed.aliases))
    return out


def _warn(fmt: str, n_vars: int, report: dict[str, list[str]]) -> None:
    reasons = {
        "unmatched": "are not in it", "ambiguous": "have a symbol of several ids or variables",
        "case_mismatch": "differ from one of its symbols only by case (another species?)",
        "outdated": "have an outdated symbol",
    }  # fmt: skip
    parts = [f"{len(genes)} {reasons[name]} ({listing(genes, _N_SHOWN)})" for name, genes in report.items() if genes]
    none = len(report["unmatched"]) == n_vars
    hint = " If a column of `adata.var` holds the table's names, name it with `symbol_key=`." if none else ""
    if parts:
        warn(f"Of {n_vars} genes looked up in {fmt}, {'; '.join(parts)}. All are listed in `uns['targets_params']`."
             + hint)  # fmt: skip
