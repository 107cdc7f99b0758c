"""Log expression of sections for models that read genes by name, be they symbols or Ensembl ids."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from scipy import sparse

from .expression import Expression, log_chunks

if TYPE_CHECKING:
    import numpy as np
    from anndata import AnnData
    from numpy.typing import NDArray

    from stxtools.models import GeneSection

    from .sections import Geometry

_NAME_COLUMNS = (
    "gene_ids", "gene_id", "ensembl_id", "ensembl", "feature_id", "gene_symbols", "gene_symbol", "symbol", "gene_name",
    "gene_names", "feature_name",
)  # fmt: skip
_VERSION = re.compile(r"^(ENS[A-Z]*G\d+)\.\d+$")


def gene_sections(
    adata: AnnData, layer: str | None, where: Geometry, genes: NDArray[np.int64], names: Sequence[str]
) -> list[GeneSection]:
    """Log expression of some genes, under their ``names``, by section."""
    from stxtools.models import GeneSection

    read = Expression(adata, layer, in_memory=False)
    parts = list(log_chunks(read, partial(_columns_of, genes), at_once=None))
    logged = sparse.csr_matrix(sparse.vstack(parts, format="csr"))
    return [GeneSection(logged[rows], list(names), where.xy[rows]) for rows in where.parts]


def other_names(adata: AnnData) -> list[str]:
    """Second name of each gene, from the first column of ``var`` that gives one to all; none where there is none."""
    for names in _columns(adata):
        if len(set(names)) == len(names):
            return names
    return []


def named_as(adata: AnnData, genes: Sequence[str], ids: Mapping[str, str]) -> list[str]:
    """Names of the genes of ``adata`` as a model calls them, which knows ``genes`` and second names of some.

    Of the names in ``var_names`` and ``var``, those that match best are taken; a version after an Ensembl id is left
    out. Genes that the model does not know keep their own name.
    """
    own = [str(v) for v in adata.var_names]
    known = [{_plain(g): g for g in genes}, {_plain(i): g for g, i in ids.items()}]
    best, most = own, sum(g in known[0] for g in own)
    for names in ([_plain(g) for g in own], *_columns(adata)):
        for called in known:
            found = [called.get(name, "") for name in names]
            count = len({f for f in found if f})
            if count > most:
                best, most = _once(found, own), count
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


def _columns(adata: AnnData) -> list[list[str]]:
    found: list[Any] = [adata.var[c] for c in _NAME_COLUMNS if c in adata.var]
    return [[_plain(str(v)) for v in column] for column in found]


def _plain(name: str) -> str:
    return _VERSION.sub(r"\1", name)
