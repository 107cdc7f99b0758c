"""Sets of genes and pairs of ligand and receptor, as tables that a user gives or that libraries bring."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from stxtools._checks import check_key, listing
from stxtools.tl._targets._tables import read_table

MIN_TARGETS = 5  # of a source, among the genes: decoupler's own default
Table: TypeAlias = pd.DataFrame | str | os.PathLike[str]
_OWN = ("contact", "markers", "n_obs", "proposed_name", "share")  # names in the output


def library(name: str, what: str) -> ModuleType:
    """Import a library of the extra ``describe``; its import changes neither matplotlib's settings nor the root log."""
    import matplotlib as mpl

    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    try:
        with mpl.rc_context():
            return import_module(name)
    except ImportError as err:
        raise ImportError(f"{what} needs {name}: `pip install 'stxtools[describe]'`.") from err
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


def read_nets(net: Table | Mapping[str, Table] | None, genes: Collection[str]) -> dict[str, pd.DataFrame]:
    """Read decoupler's networks (source, target, weight) by name, with the sources that have enough of the genes."""
    if net is None:
        return {}
    named = dict(net) if isinstance(net, Mapping) else {"activity": net}
    taken = [name for name in named if name in _OWN]
    if taken:
        raise ValueError(f"`net` uses the name(s) {taken}, which the output has already; give others.")
    return {check_key("net", name): _read_net(table, f"net[{name!r}]", genes) for name, table in named.items()}


def _read_net(table: Table, param: str, genes: Collection[str]) -> pd.DataFrame:
    if isinstance(table, (str, os.PathLike)) and Path(table).suffix == ".gmt":
        table = library("decoupler", "Reading .gmt").pp.read_gmt(table)
    raw = read_table(table, param)
    _check_columns(raw, ("source", "target"), param)
    found = raw[["source", "target"]].astype(str)
    found["weight"] = pd.to_numeric(raw["weight"], errors="coerce") if "weight" in raw else 1.0
    if not np.isfinite(found["weight"]).all():
        raise ValueError(f"Column 'weight' of `{param}` has values that are no finite numbers.")
    found = found[raw["source"].notna() & raw["target"].notna()].drop_duplicates(["source", "target"])
    known = found[found["target"].isin(genes)]
    enough = known.groupby("source")["target"].transform("size") >= MIN_TARGETS
    if not enough.any():
        raise ValueError(
            f"No source of `{param}` has {MIN_TARGETS} targets among the {len(genes)} genes: {len(known)} of its "
            f"{len(found)} rows name one. Its targets look like {listing(found['target'][:3])}, the genes like "
            f"{listing(list(genes)[:3])}; both must be symbols of one species, or ids."
        )
    return known[enough].reset_index(drop=True)


def read_pairs(resource: Table | None, genes: Collection[str]) -> pd.DataFrame | None:
    """Read pairs of ligand and receptor whose genes, all subunits joined by ``_``, are there."""
    if resource is None:
        return None
    if isinstance(resource, str) and not Path(resource).suffix:
        resources = library("liana", f"`resource={resource!r}`").rs
        if resource not in resources.show_resources():
            raise ValueError(f"`resource={resource!r}` is none of liana's: {listing(resources.show_resources(), 20)}.")
        resource = resources.select_resource(resource)
    raw = read_table(resource, "resource")
    _check_columns(raw, ("ligand", "receptor"), "resource")
    pairs = raw[["ligand", "receptor"]].dropna().astype(str).drop_duplicates()
    known = pairs[[all(g in genes for g in subunits(row)) for row in pairs["ligand"] + "_" + pairs["receptor"]]]
    if known.empty:
        raise ValueError(
            f"None of the {len(pairs)} pairs of `resource` has all of its genes among the {len(genes)} genes, such as "
            f"{listing(list(genes)[:3])}; its pairs are like {listing(pairs['ligand'][:3])}. Is it of another species?"
        )
    return known.reset_index(drop=True)


def subunits(name: str) -> list[str]:
    """Genes of a ligand or receptor."""
    return name.split("_")


def _check_columns(table: pd.DataFrame, columns: Sequence[str], param: str) -> None:
    absent: list[Any] = [c for c in columns if c not in table.columns]
    if absent:
        raise KeyError(f"`{param}` lacks the column(s) {absent}; it has {listing(table.columns)}.")
