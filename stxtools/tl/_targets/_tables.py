"""Reading target tables: one row per gene out of the files that Open Targets and DGIdb publish."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import numpy as np
import pandas as pd
from pandas.io.common import get_handle

from stxtools._checks import check_path, unstorable

_SEPARATOR = "; "
_MODALITIES = ("SM", "AB", "PR", "OC")
_CATEGORIES = (  # columns of genes and of their categories in DGIdb's versions
    ("entrez_gene_symbol", "category"), ("name", "name-2"), ("gene_name", "gene_category"), ("gene_name", "category"),
    ("gene_claim_name", "gene_category_name"),
)  # fmt: skip
_CLINICAL = frozenset({"targetId", "drugId", "diseases", "maxClinicalStage"})
_PRIORITISATION = frozenset(
    {"maxClinicalStage", "maxClinicalTrialPhase", "isInMembrane", "isSecreted", "hasLigand", "hasSafetyEvent"}
)
_STAGES = (
    "PRECLINICAL", "IND", "EARLY_PHASE_1", "PHASE_1", "PHASE_1_2", "PHASE_2", "PHASE_2_3", "PHASE_3", "PREAPPROVAL",
    "PHASE_4", "APPROVAL",
)  # fmt: skip
_VERSION = r"\.\d+$"  # of an Ensembl id
_NULL = ["NULL", "null", "None", "NA", "N/A", "nan", "NaN", ""]


@dataclass
class TargetTable:
    """One row per gene, indexed by symbol, by Ensembl id, or both ways; symbols that are ambiguous or outdated."""

    format: str
    by_symbol: pd.DataFrame | None = None
    by_id: pd.DataFrame | None = None
    ambiguous: set[str] = field(default_factory=set)
    aliases: dict[str, str] = field(default_factory=dict)


def read_table(table: Any, param: str = "table") -> pd.DataFrame:
    """Read a tsv, csv or parquet file (or a folder of parquet parts); a DataFrame is returned as it is."""
    if isinstance(table, pd.DataFrame):
        return table
    if not isinstance(table, (str, os.PathLike)):
        raise TypeError(f"`{param}` must be a path or a DataFrame, not {type(table).__name__}.")
    path = check_path(param, table)
    if not path.exists():
        raise FileNotFoundError(f"There is no file {str(path)!r}; `{param}` is a path or a DataFrame.")
    suffixes = [s.lower() for s in path.suffixes]
    if path.is_dir() or ".parquet" in suffixes:
        try:
            return pd.read_parquet(path)
        except ImportError as err:
            raise ImportError("Reading parquet needs pyarrow: `pip install pyarrow`, or pass a DataFrame.") from err
        except (ValueError, OSError) as err:
            raise ValueError(
                f"`{param}={str(path)!r}` is not a parquet file or a folder of parquet files: {err}"
            ) from err
    if not {".tsv", ".csv", ".txt"} & set(suffixes):
        raise ValueError(f"`{param}={str(path)!r}` ends in none of .tsv, .csv, .txt, .parquet (also with .gz).")
    separator = "," if ".csv" in suffixes else "\t"
    with get_handle(path, "r", encoding="utf-8", compression="infer") as opened:  # DGIdb 5 states its version first
        comments = [str(line) for line in takewhile(lambda line: str(line).startswith("#"), opened.handle)]
    how: dict[str, Any] = {"na_values": _NULL, "keep_default_na": False, "low_memory": False}
    out = pd.read_csv(path, sep=separator, skiprows=len(comments), **how)
    out.attrs["release"] = "; ".join(line.strip("# \r\n") for line in comments)
    return out


def origin(table: Any, raw: pd.DataFrame) -> dict[str, str | None]:
    """Return what identifies the release of a table: its name, SHA-256 of file or parts, and what it states."""
    if isinstance(table, pd.DataFrame):
        return {"table": "DataFrame"}
    path = check_path("table", table)
    digest = hashlib.sha256()
    for part in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        with part.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return {"table": path.name, "sha256": digest.hexdigest(), "release": raw.attrs.get("release") or None}


def parse_target_table(raw: pd.DataFrame, symbol_col: str | None = None, disease: str | None = None) -> TargetTable:
    """Recognise the format of a table by its header and bring it to one row per gene."""
    header = set(map(str, raw.columns))
    if duplicated := sorted({str(c) for c in raw.columns[raw.columns.astype(str).duplicated()]}):
        raise ValueError(f"Column(s) {duplicated} are in the table more than once; drop or rename all but one.")
    if disease is not None:
        if symbol_col is not None or not header >= _CLINICAL:
            raise ValueError("`disease=` is for Open Targets' clinical targets (targetId, drugId, diseases, ...).")
        raw = _select_disease(raw, disease)
    if symbol_col is not None:
        if symbol_col not in header:
            raise KeyError(f"`symbol_col={symbol_col!r}` is not a column of the table; it has {sorted(header)}.")
        return _generic(raw, symbol_col)
    if {"gene_name", "drug_name"} <= header:
        return _interactions(raw)
    for symbol, category in _CATEGORIES:
        if {symbol, category} <= header:
            values = raw[[category]].set_axis(["gene_categories"], axis=1)
            return TargetTable("dgidb_categories", _aggregate(values, _text(raw[symbol])))
    if header >= _CLINICAL:
        return _clinical(raw)
    if {"mechanismOfAction", "targets"} <= header:
        long = raw.reset_index(drop=True).explode("targets")
        names = {"mechanismOfAction": "mechanisms", "actionType": "action_types"}
        values = long[[c for c in names if c in long]].rename(columns=names)
        return _by_id_and_symbol("opentargets_mechanisms", long.rename(columns={"targets": "targetId"}), values)
    if "geneEssentiality" in header and header & {"id", "targetId"}:
        essential = [any(e.get("isEssential") for e in _structs(v)) for v in raw["geneEssentiality"]]
        values = pd.DataFrame({"is_essential": essential}, index=raw.index)
        return _by_id_and_symbol("opentargets_essentiality", raw, values)
    if "targetId" in header and header & _PRIORITISATION:
        numeric = [c for c in raw.columns if c != "targetId" and pd.api.types.is_numeric_dtype(raw[c].dtype)]
        return _by_id_and_symbol("opentargets_prioritisation", raw, raw[numeric].astype(np.float64))
    if "tractability" in header and header & {"id", "targetId"}:
        return _by_id_and_symbol("opentargets_tractability", raw, _tractability(raw))
    raise ValueError(
        "The table has no known format: DGIdb interactions (gene_name, drug_name), DGIdb categories "
        "(gene_claim_name, gene_category_name), Open Targets prioritisation (targetId, maxClinicalStage, ...), targets "
        "(id, approvedSymbol, tractability), clinical targets (targetId, drugId, diseases, maxClinicalStage), "
        "mechanisms of action (mechanismOfAction, targets) or essentiality (id, geneEssentiality). "
        f"It has {sorted(header)}. Name its column of gene symbols: `symbol_col=`."
    )


def _text(values: pd.Series) -> pd.Series:
    return values.astype(object).where(values.notna(), "").astype(str).str.strip()


def _booleans(values: pd.Series) -> pd.Series:
    return values if values.dtype == bool else _text(values).str.lower().isin(["true", "t", "1", "1.0", "yes"])


def _join(values: Iterable[Any]) -> str:
    parts = [p.strip() for v in values for p in str(v).split("|")]
    return _SEPARATOR.join(dict.fromkeys(p for p in parts if p))


def _interactions(raw: pd.DataFrame) -> TargetTable:
    gene, drug = _text(raw["gene_name"]), _text(raw["drug_name"])
    approved = next((c for c in ("approved", "drug_is_approved") if c in raw), None)
    kind = next((c for c in ("interaction_type", "interaction_types") if c in raw), None)
    score = next((c for c in ("interaction_score", "interaction_group_score") if c in raw), None)
    if "drug_claim_name" in raw:
        drug = drug.where(drug != "", _text(raw["drug_claim_name"]))
    rows = pd.DataFrame({
        "gene": gene, "drug": drug, "approved": _booleans(raw[approved]) if approved else False,
        "interaction_types": _text(raw[kind]).str.replace(",", "|") if kind else "",
        "interaction_score": pd.to_numeric(raw[score], errors="coerce") if score else np.nan,
    })[gene != ""]  # fmt: skip
    per_drug = rows[rows["drug"] != ""].groupby(["gene", "drug"], sort=False, as_index=False)["approved"].any()
    by_gene = per_drug.sort_values("approved", ascending=False, kind="stable").groupby("gene", sort=False)
    types = _aggregate(rows[["interaction_types", "interaction_score"]], rows["gene"])
    counts = {"n_drugs": by_gene.size()} | ({"n_approved_drugs": by_gene["approved"].sum()} if approved else {})
    columns = pd.DataFrame(counts).reindex(types.index, fill_value=0).astype(np.int64)
    columns["drugs"] = by_gene["drug"].agg(_SEPARATOR.join).reindex(types.index, fill_value="").astype(object)
    out = TargetTable("dgidb_interactions", columns.join(types))
    if "gene_claim_name" in raw:
        pairs = pd.DataFrame({"old": _text(raw["gene_claim_name"]), "new": gene}).drop_duplicates()
        pairs = pairs[(pairs["old"] != "") & (pairs["new"] != "") & (pairs["old"] != pairs["new"])]
        out.aliases = pairs.groupby("old")["new"].agg(lambda s: " or ".join(sorted(s))).to_dict()
    return out


def _tractability(raw: pd.DataFrame) -> pd.DataFrame:
    values = pd.DataFrame(index=raw.index)
    positive = [[a for a in _structs(v) if a.get("value")] for v in raw["tractability"]]
    for modality in _MODALITIES:  # Open Targets lists the strongest first
        labels = [[str(a.get("id", a.get("label"))) for a in one if a.get("modality") == modality] for one in positive]
        values[f"tractability_{modality.lower()}"] = list(map(_SEPARATOR.join, labels))
    for column, key, name in (
        ("safetyLiabilities", "event", "safety_events"),
        ("subcellularLocations", "location", "subcellular_locations"),
    ):
        if column in raw:
            values[name] = [_join(e[key] for e in _structs(v) if e.get(key)) for v in raw[column]]
    return values


def _structs(value: Any) -> list[Mapping[str, Any]]:
    """Return the structures of a nested column of parquet; none where it is null."""
    return [v for v in value if isinstance(v, Mapping)] if isinstance(value, (list, tuple, np.ndarray)) else []


def _select_disease(raw: pd.DataFrame, disease: str) -> pd.DataFrame:
    named = ([str(x).lower() for entry in _structs(v) for x in entry.values()] for v in raw["diseases"])
    rows = np.array([disease.lower() in names for names in named], dtype=bool)
    if not rows.any():
        raise ValueError(
            f"No clinical target has `disease={disease!r}`. It takes an id (such as 'EFO_0000305') or a name of the "
            "column `diseases`, in full."
        )
    return raw[rows]


def _clinical(raw: pd.DataFrame) -> TargetTable:
    """Drugs in clinical development, the most advanced first, and its stage."""
    rows = pd.DataFrame({"gene": _text(raw["targetId"]), "drug": _text(raw["drugId"])})
    rows["stage"] = _text(raw["maxClinicalStage"])
    rows["rank"] = rows["stage"].map({name: i for i, name in enumerate(_STAGES)}).fillna(-1)
    rows = rows[rows["gene"] != ""].sort_values("rank", ascending=False, kind="stable")
    by_gene = rows.drop_duplicates(["gene", "drug"]).groupby("gene", sort=True)
    columns = pd.DataFrame({
        "n_clinical_drugs": by_gene["drug"].nunique().astype(np.int64),
        "clinical_drugs": by_gene["drug"].agg(_join).astype(object),
        "clinical_stage": by_gene["stage"].first().astype(object),
    })  # fmt: skip
    return TargetTable("opentargets_clinical", by_id=columns.set_axis(columns.index.astype(object)))


def symbol_map(raw: pd.DataFrame) -> pd.Series:
    """Ensembl id of every symbol that Open Targets' targets give to one gene only."""
    if not {"id", "approvedSymbol"} <= set(map(str, raw.columns)):
        raise ValueError("`symbols` must be Open Targets' table of targets, with the columns id and approvedSymbol.")
    pairs = pd.DataFrame({"id": _text(raw["id"]), "symbol": _text(raw["approvedSymbol"])}).drop_duplicates()
    pairs = pairs[(pairs["symbol"] != "") & ~pairs["symbol"].duplicated(keep=False)]
    return pairs.set_index("symbol")["id"]


def _by_id_and_symbol(name: str, raw: pd.DataFrame, values: pd.DataFrame) -> TargetTable:
    """Bring values to one row per Ensembl id, and per symbol where the table has symbols."""
    ids = _text(raw["targetId" if "targetId" in raw else "id"]).str.replace(_VERSION, "", regex=True)
    by_id = _aggregate(values, ids)
    if "approvedSymbol" not in raw:
        return TargetTable(name, by_id=by_id)
    symbol = _text(raw["approvedSymbol"])
    n_ids = ids.groupby(symbol).nunique()
    return TargetTable(name, _aggregate(values, symbol), by_id, ambiguous=set(n_ids.index[n_ids > 1]) - {""})


def _generic(raw: pd.DataFrame, symbol_col: str) -> TargetTable:
    values = raw.drop(columns=symbol_col)
    values.columns = [str(c) for c in values.columns]
    if bad := [c for c in values.columns if unstorable(c)]:
        raise ValueError(f"Column(s) {bad} of the table have names that h5ad and zarr cannot store; rename them.")
    if unordered := [c for c in values.columns if pd.api.types.is_complex_dtype(values[c].dtype)]:
        raise TypeError(f"Column(s) {unordered} of the table hold complex numbers, which have no order; drop them.")
    gene = _text(raw[symbol_col])
    if gene.str.match(r"ENS[A-Z]*G\d+").mean() > 0.5:
        return TargetTable("table", by_id=_aggregate(values, gene.str.replace(_VERSION, "", regex=True)))
    return TargetTable("table", _aggregate(values, gene))


def _aggregate(values: pd.DataFrame, gene: pd.Series) -> pd.DataFrame:
    """Aggregate rows of a gene: largest number, any boolean, distinct texts."""
    named = (gene != "").to_numpy()
    out = {}
    for column, dtype in values.dtypes.items():
        is_bool = pd.api.types.is_bool_dtype(dtype)
        is_text = not is_bool and not pd.api.types.is_numeric_dtype(dtype)
        grouped = (_text(values[column]) if is_text else values[column])[named].groupby(gene[named].to_numpy())
        if is_bool:
            out[column] = grouped.any()
        else:
            out[column] = grouped.agg(_join).astype(object) if is_text else grouped.max().astype(np.float64)
    frame = pd.DataFrame(out, index=np.unique(gene[named]))  # a list of genes has no other columns
    return frame.set_axis(frame.index.astype(object))
