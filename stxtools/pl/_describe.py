"""What compartments are: gene sets and contacts against compartments."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stxtools import _keys
from stxtools._validate import check_int
from stxtools.get import describe as get_describe

from . import _base, _output

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_LIMIT, _MOST = 6.0, 60


@_output.plot
def describe(
    adata: AnnData,
    kind: str = "activity",
    *,
    group: str | Sequence[str] | None = None,
    n_top: int = 3,
    fdr: float = 0.05,
    key: str = _keys.DESCRIBE,
    title: str | None = None, legend: bool = True,
    ax: Axes | None = None, show: bool | None = None, save: bool | str | PathLike[str] | None = None,
) -> Axes | list[Axes] | None:  # fmt: skip
    """Draw the evidence of :func:`stxtools.tl.describe`: the first rows of each compartment against all of them.

    Colour is the test statistic z; a dot marks what passes ``fdr``. Of contacts, those with a significant pair are
    drawn, or all where there is none.

    Parameters
    ----------
    kind
        ``"activity"`` (or a name that ``net`` was given) or ``"contact"``.
    n_top
        Rows that each compartment or contact contributes: those with the largest z above 0.
    %(parameters)s

    Examples
    --------
    >>> import pandas as pd
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> st.tl.biomarkers(adata, groupby="compartment", n_null=100)
    >>> pairs = pd.DataFrame({"ligand": adata.var_names[:5], "receptor": adata.var_names[5:10]})
    >>> st.tl.describe(adata, "compartment", resource=pairs)
    >>> ax = st.pl.describe(adata, "contact")
    """
    n_top = check_int("n_top", n_top, minimum=1)
    table = get_describe(adata, kind, group=group, key=key)
    where = f"adata.uns[{f'{key}_evidence'!r}]"
    _base.check_columns(table, ["scores", "pvals_adj"], where, "st.tl.describe(adata, ...)")
    partner = table["partner"].astype(str)
    table["column"] = table["group"].astype(str) + np.where(partner == "", "", " \N{RIGHTWARDS ARROW} " + partner)
    if table.duplicated(["column", "names"]).any():
        raise ValueError(f"`{where}` names rows twice; run `st.tl.describe` again.")
    higher = table[table["scores"] > 0]
    called = pd.unique(higher.loc[higher["pvals_adj"] <= fdr, "column"])
    if kind == "contact" and len(called):
        table, higher = (part[part["column"].isin(called)] for part in (table, higher))
    names = pd.unique(higher.sort_values("scores", ascending=False, kind="stable").groupby("column", sort=False)
                      .head(n_top).sort_index()["names"])  # fmt: skip
    columns = pd.unique(table["column"])
    if not len(names):
        raise ValueError(f"`{where}` has no row of this kind with `scores` above 0 to draw.")
    if max(len(columns), len(names)) > _MOST:
        raise ValueError(f"{len(names)} rows and {len(columns)} columns are more than one figure shows ({_MOST}); "
                         "choose some with `group=`, or fewer with `n_top=`.")  # fmt: skip
    wide = [table.pivot(index="names", columns="column", values=v).reindex(index=names, columns=columns)
            for v in ("scores", "pvals_adj")]  # fmt: skip
    (text,) = _base.titles_of([kind], title)
    axis = _base.heat(wide[0], text, label="z, against random regions", limit=_LIMIT, marks=wide[1] <= fdr,
                      mark=f"FDR ≤ {fdr:g}", legend=legend, ax=ax)  # fmt: skip
    return _output.done("describe", [axis], ax=ax, show=show, save=save)
