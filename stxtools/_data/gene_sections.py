"""Log expression of sections for models that read genes by name, be they symbols or Ensembl ids."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from .expression import Expression, log_chunks

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from stxtools.models import GeneSection

    from .sections import Geometry

_NAME_COLUMNS = (
    "gene_ids", "gene_id", "ensembl_id", "ensembl", "feature_id", "gene_symbols", "gene_symbol", "symbol", "gene_name",
    "gene_names", "feature_name",
)  # fmt: skip
_VERSION = re.compile(r"^(ENS[A-Z]*G\d+)\.\d+$")


class GeneSource:
    """Log expression of genes, out of core where it lies there; none where there is no expression and ``optional``."""

    def __init__(self, adata: AnnData, layer: str | None, *, optional: bool = False) -> None:
        self.read: Expression | None = None
        try:
            self.read = Expression(adata, layer, in_memory=False)
        except ValueError:
            if not optional:
                raise

    def sections(
        self, where: Geometry, names: Sequence[str], genes: NDArray[np.int64] | None = None
    ) -> list[GeneSection] | None:
        """Log expression of some genes (all by default), under their ``names``, by section."""
        from stxtools.models import GeneSection

        if self.read is None:
            return None
        at = np.arange(len(self.read.names)) if genes is None else genes
        parts = list(log_chunks(self.read, partial(_columns_of, at), at_once=None))
        logged = sparse.csr_matrix(sparse.vstack(parts, format="csr"))
        return [GeneSection(logged[rows], [names[k] for k in at], where.xy[rows]) for rows in where.parts]


class GeneNames:
    """What genes are called: their names, and the columns of ``var`` that give them others."""

    def __init__(self, adata: AnnData) -> None:
        self.own = [str(name) for name in adata.var_names]
        found: list[Any] = [adata.var[c] for c in _NAME_COLUMNS if c in adata.var]
        self._columns = [[_plain(str(name)) for name in column] for column in found]

    def others(self) -> list[str]:
        """Second name of each gene, from the first column that gives one to all; none where there is none."""
        return next((names for names in self._columns if len(set(names)) == len(names)), [])

    def as_model(self, genes: Sequence[str], ids: Mapping[str, str]) -> list[str]:
        """Names as a model calls the genes, which knows ``genes`` and second names of some.

        Those names are taken that match best; a version after an Ensembl id is left out. Other genes keep their own
        name.
        """
        known = [{_plain(g): g for g in genes}, {_plain(i): g for g, i in ids.items()}]
        best, most = self.own, sum(g in known[0] for g in self.own)
        for names in ([_plain(g) for g in self.own], *self._columns):
            for called in known:
                found = [called.get(name, "") for name in names]
                count = len({f for f in found if f})
                if count > most:
                    best, most = _once(found, self.own), count
        return best


def _once(found: Sequence[str], own: Sequence[str]) -> list[str]:
    """Names that the model uses, each for one gene alone; the others keep their own."""
    used: set[str] = {f for f in found if f}
    seen: set[str] = set()
    out = []
    for name, mine in zip(found, own, strict=True):
        if name and name not in seen:
            seen.add(name)
            out.append(name)
        else:
            out.append(mine if mine not in used else f"{mine}'")
    return out


def _columns_of(genes: NDArray[np.int64], logged: sparse.csr_matrix, rows: slice) -> sparse.csr_matrix:
    return logged[:, genes]


def _plain(name: str) -> str:
    return _VERSION.sub(r"\1", name)
