"""Gene sets, pairs of ligand and receptor, and the values that they give observations, to test beside genes."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from stxtools._checks import check_key, listing
from stxtools.tl._targets._tables import read_table

_ROWS = 5000  # observations that decoupler makes dense at a time
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


class Features:
    """Features of all observations (CSR), read like expression."""

    depth = n_genes = None
    limit = np.inf

    def __init__(self, values: sparse.csr_matrix, names: Sequence[str]) -> None:
        self.values, self.names = values, list(names)
        self.shape = (int(values.shape[0]), int(values.shape[1]))
        self.slices = [slice(0, self.shape[1])]

    def block(self, genes: slice) -> sparse.csr_matrix:
        """Return all features, of which there is one block."""
        return self.values

    def rows(self, genes: NDArray[np.int64] | None = None) -> Iterator[tuple[slice, sparse.csr_matrix]]:
        """Yield all observations at once."""
        yield slice(0, self.shape[0]), self.values if genes is None else self.values[:, genes]

    def means(self, side: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Mean of each feature over some observations."""
        return np.asarray(self.values.T @ side.astype(np.float64)) / max(int(side.sum()), 1)


def activities(logged: sparse.csr_matrix, genes: Sequence[str], net: pd.DataFrame) -> Features:
    """Activity of each source in each observation: decoupler's univariate linear model, centred."""
    decoupler = library("decoupler", "`net=`")
    expressed = np.flatnonzero(np.diff(logged.indptr))  # others have no activity
    box = AnnData(logged[expressed], var=pd.DataFrame(index=pd.Index(genes)))
    decoupler.mt.ulm(box, net, tmin=MIN_TARGETS, empty=False, bsize=_ROWS)
    found = box.obsm["score_ulm"]
    values = np.zeros((logged.shape[0], found.shape[1]))
    values[expressed] = np.nan_to_num(found.to_numpy(dtype=np.float64))
    centred = (values - values.mean(axis=0)).astype(np.float32)
    return Features(sparse.csr_matrix(centred), [str(name) for name in found.columns])


class Contacts:
    """Observations that touch another compartment: their ``code`` is ``own * n + other``, the one they touch most."""

    def __init__(self, graph: sparse.csr_matrix, codes: NDArray[np.int64], n: int) -> None:
        from sklearn.preprocessing import normalize

        edges = graph.tocoo()
        across = (codes[edges.row] >= 0) & (codes[edges.col] >= 0) & (codes[edges.row] != codes[edges.col])
        row, col = edges.row[across], edges.col[across]
        touched = sparse.csr_matrix((np.ones(len(row)), (row, codes[col])), shape=(len(codes), n))
        other = np.asarray(touched.argmax(axis=1)).ravel()
        self.code = np.where(np.diff(touched.indptr) > 0, codes * n + other, -1)
        kept = codes[col] == other[row]
        weights = sparse.csr_matrix((np.ones(kept.sum()), (row[kept], col[kept])), shape=graph.shape)
        self._mean = normalize(weights, norm="l1")

    def scores(self, logged: sparse.csr_matrix, genes: Sequence[str], pairs: pd.DataFrame, min_obs: int) -> Features:
        """Geometric mean of a ligand in an observation and its receptor in the neighbours across the border."""
        border = np.flatnonzero(self.code >= 0)
        by_gene, across = sparse.csc_matrix(logged[border]), self._mean[border][:, border]
        at = {gene: i for i, gene in enumerate(genes)}
        sides = []
        for column in ("ligand", "receptor"):
            each = {name: _least(by_gene, [at[g] for g in subunits(name)]) for name in pairs[column].unique()}
            sides.append(sparse.hstack([each[name] for name in pairs[column]], format="csr"))
        score = sparse.csc_matrix(sides[0].multiply(across @ sides[1])).sqrt()
        seen = np.flatnonzero(np.diff(score.indptr) >= min_obs)
        part = sparse.coo_matrix(score[:, seen], dtype=np.float32)
        values = sparse.csr_matrix((part.data, (border[part.row], part.col)), shape=(len(self.code), len(seen)))
        names = (pairs["ligand"] + "^" + pairs["receptor"]).to_numpy()[seen]
        return Features(values, [str(name) for name in names])


def _least(by_gene: sparse.csc_matrix, genes: list[int]) -> sparse.csc_matrix:
    """Expression of a complex: that of its least expressed gene."""
    out = by_gene[:, [genes[0]]]
    for gene in genes[1:]:
        out = out.minimum(by_gene[:, [gene]])
    return out
