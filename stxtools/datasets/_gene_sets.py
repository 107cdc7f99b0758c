"""Gene sets that are downloaded."""

from __future__ import annotations

import pandas as pd

from stxtools._docs import documented
from stxtools._settings import settings

from ._download import fetch

_HALLMARK = "h.all.v7.0.symbols.gmt"
_HALLMARK_URL = "https://raw.githubusercontent.com/zqfang/GSEApy/8611014ddbde0117dc0d1f0422c9846ac94a6a41/tests/extdata"
_HALLMARK_HASH = "sha256:4803c09aae50bbd96d53fc681bd5545a4c89278993c15145dd7b7c994f893516"  # of the file at that commit
_HELP = "Check the connection, or download the hallmark sets (symbols, release 7.0) from https://www.gsea-msigdb.org."


@documented
def hallmark_gene_sets(*, show_progress: bool | None = None) -> pd.DataFrame:
    """Read the hallmark gene sets, 50 pathways and states of human cells, for :func:`stxtools.tl.describe`.

    MSigDB 7.0 (CC BY 4.0), Liberzon et al. 2015, Cell Systems 1:417, doi:10.1016/j.cels.2015.12.004. Downloaded at the
    first call into ``settings.datasetdir / "gene_sets"`` from the repository of GSEApy at a fixed commit, and checked.

    Parameters
    ----------
    %(parameters)s

    Returns
    -------
    DataFrame with ``source`` (the set) and ``target`` (a gene symbol), decoupler's layout.

    Raises
    ------
    ConnectionError
        If the download fails; nothing is left behind.
    ValueError
        If the file does not have its checksum.

    Examples
    --------
    >>> net = st.datasets.hallmark_gene_sets()  # doctest: +SKIP
    >>> st.tl.describe(adata, "compartment", net=net)  # doctest: +SKIP
    """
    folder = settings.datasetdir / "gene_sets"
    fetch({_HALLMARK: f"{_HALLMARK_URL}/{_HALLMARK}"}, folder, _HELP, show_progress, {_HALLMARK: _HALLMARK_HASH})
    sets = [line.split("\t") for line in (folder / _HALLMARK).read_text().splitlines()]
    rows = [(name.removeprefix("HALLMARK_"), gene) for name, _, *genes in sets for gene in genes]
    return pd.DataFrame(rows, columns=["source", "target"])
