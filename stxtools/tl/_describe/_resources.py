"""Gene sets and ligand-receptor pairs, read and checked against the genes of the data."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

import numpy as np
import pandas as pd

from stxtools._checks import check_key, listing
from stxtools.tl._targets._tables import read_table

CONTACT = "contact"
SUMMARY = (CONTACT, "markers", "n_obs", "proposed_name", "share")  # columns of the summary besides those of `net`
MIN_TARGETS = 5  # of a source, among the genes: decoupler's own default
Table: TypeAlias = pd.DataFrame | str | os.PathLike[str]


def import_extra(name: str, feature: str) -> ModuleType:
    """Import a library of the extra ``describe``; matplotlib's settings and the root logger stay as they are."""
    import matplotlib as mpl

    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    try:
        with mpl.rc_context():
            return import_module(name)
    except ImportError as err:
        raise ImportError(f"{feature} needs {name}: `pip install 'stxtools[describe]'`.") from err
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


def read_nets(net: Table | Mapping[str, Table] | None, genes: set[str]) -> dict[str, pd.DataFrame]:
    """Read decoupler's networks (source, target, weight) by name, with the sources that have enough genes."""
    if net is None:
        return {}
    named = dict(net) if isinstance(net, Mapping) else {"activity": net}
    taken = [name for name in named if name in SUMMARY]
    if taken:
        raise ValueError(f"`net` uses the name(s) {taken}, which are columns of the output; choose others.")
    return {check_key("net", name): _read_net(table, f"net[{name!r}]", genes) for name, table in named.items()}


def _read_net(table: Table, param: str, genes: set[str]) -> pd.DataFrame:
    if isinstance(table, (str, os.PathLike)) and Path(table).suffix == ".gmt":
        table = import_extra("decoupler", "Reading .gmt").pp.read_gmt(table)
    raw = read_table(table, param)
    _check_columns(raw, ("source", "target"), param)
    net = raw[["source", "target"]].astype(str)
    net["weight"] = pd.to_numeric(raw["weight"], errors="coerce") if "weight" in raw else 1.0
    if not np.isfinite(net["weight"]).all():
        raise ValueError(f"Column 'weight' of `{param}` has values that are not finite numbers.")
    net = net[raw["source"].notna() & raw["target"].notna()].drop_duplicates(["source", "target"])
    known = net[net["target"].isin(genes)]
    enough = known.groupby("source")["target"].transform("size") >= MIN_TARGETS
    if not enough.any():
        raise ValueError(
            f"No source of `{param}` has {MIN_TARGETS} targets among the {len(genes)} genes: {len(known)} of its "
            f"{len(net)} rows name one. Its targets look like {listing(net['target'][:3])}, the genes like "
            f"{listing(list(genes)[:3])}; both must be symbols of one species, or ids."
        )
    return known[enough].reset_index(drop=True)


def read_pairs(resource: Table | None, genes: set[str]) -> pd.DataFrame | None:
    """Read pairs of ligand and receptor of which all genes, subunits joined by ``_``, are known."""
    if resource is None:
        return None
    if isinstance(resource, str) and not Path(resource).suffix:
        resources = import_extra("liana", f"`resource={resource!r}`").rs
        if resource not in resources.show_resources():
            raise ValueError(
                f"`resource={resource!r}` is not in liana, which has {listing(resources.show_resources(), 20)}."
            )
        resource = resources.select_resource(resource)
    raw = read_table(resource, "resource")
    _check_columns(raw, ("ligand", "receptor"), "resource")
    pairs = raw[["ligand", "receptor"]].dropna().astype(str).drop_duplicates()
    known = pairs[[genes.issuperset(row.split("_")) for row in pairs["ligand"] + "_" + pairs["receptor"]]]
    if known.empty:
        raise ValueError(
            f"None of the {len(pairs)} pairs of `resource` has all of its genes among the {len(genes)} genes, such as "
            f"{listing(list(genes)[:3])}; its pairs are like {listing(pairs['ligand'][:3])}. Is it of another species?"
        )
    return known.reset_index(drop=True)


def _check_columns(table: pd.DataFrame, columns: Sequence[str], param: str) -> None:
    missing = [c for c in columns if c not in table.columns]
    if missing:
        raise KeyError(f"`{param}` lacks the column(s) {missing}; it has {listing(table.columns)}.")
