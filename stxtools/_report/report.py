"""``st.report``: results as one HTML file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from importlib.resources import files

import pandas as pd
from anndata import AnnData
from anndata.utils import make_index_unique

from stxtools import _keys, get
from stxtools._api import public
from stxtools._checks import check_key, check_writable, listing
from stxtools._files import write_text
from stxtools._slots import records
from stxtools._validate import check_adata, check_in
from stxtools._version import __version__
from stxtools._warn import warn
from stxtools.get._tables import symbols_of

_FILES = ("page.html", "page.css", "page.js", "map.js", "biomarkers.js")


@public
def report(
    adata: AnnData, path: str | os.PathLike[str] = "report.html", *,
    genes: Sequence[str] | None = None, color: Sequence[str] = (), title: str | None = None,
    key: str = _keys.SEGMENT, biomarkers_key: str = _keys.BIOMARKERS, gene_symbols: str | None = None,
    layer: str | None = None, spatial_key: str | None = None, library_key: str | bool | None = None,
) -> None:  # fmt: skip
    """Write an interactive report of the results: one HTML file that opens offline in any browser.

    The report has a zoomable map of the tissue, coloured by segment, confidence, region, attention or gene; biomarkers
    as volcano plot and as a table to sort and filter; stability, training curves, parameters and versions; and a
    summary in words. Steps that were not run are omitted. The map shows a random sample of at most 200,000
    observations.

    Parameters
    ----------
    adata
        Annotated data matrix, usually after :func:`stxtools.tl.segment`, :func:`stxtools.tl.region_graph`,
        :func:`stxtools.tl.embed` and :func:`stxtools.tl.biomarkers`.
    path
        File to write; an existing file is replaced.
    genes
        Genes to colour the map by; by default the top 100 biomarkers, else the 100 most variable genes.
    color
        Additional columns of ``obs`` to colour the map by, categorical or numeric.
    title
        Title of the page; by default the section's name, or the number of sections.
    key
        Key of the segments, the ``key_added`` of :func:`stxtools.tl.segment`.
    biomarkers_key
        Key of the biomarkers, the ``key_added`` of :func:`stxtools.tl.biomarkers`.
    spatial_key
        Key of ``obsm`` with the coordinates; by default those that the segments were computed with.

    Returns
    -------
    None. ``adata`` is not modified.

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=500)
    >>> st.tl.segment(adata, n_segments=4)
    >>> st.report(adata, "report.html")
    """
    from jinja2 import Template

    from .arrays import biomarker_arrays, tissue_map
    from .summary import findings, parameter_tables, training_figures

    check_adata(adata, layer=layer)
    if gene_symbols is not None:
        adata = _by_symbol(adata, gene_symbols, biomarkers_key)
    if title is not None and not isinstance(title, str):
        raise TypeError(f"`title` must be a string, not {title!r}.")
    for name, value in (("genes", genes if genes is not None else ()), ("color", color)):
        if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(v, str) for v in value):
            raise TypeError(f"`{name}` must be a list of names, not {value!r}.")
    if check_key("key", key) != _keys.SEGMENT:  # of the defaults, a step may not have been run
        check_in(adata, "obs", key, "key")
    if check_key("biomarkers_key", biomarkers_key) != _keys.BIOMARKERS:
        check_in(adata, "uns", biomarkers_key, "biomarkers_key")
    for column in color:
        check_in(adata, "obs", column, "color")
    if absent := [gene for gene in genes or () if gene not in adata.var_names]:
        raise KeyError(f"`genes` names {listing(absent)}, which are not in `adata.var_names`.")
    check_writable(path)
    _warn_of_other_keys(adata, key=(key, "tl.segment"), biomarkers_key=(biomarkers_key, "tl.biomarkers"))

    rows = get.biomarkers(adata, key=biomarkers_key) if biomarkers_key in adata.uns else ()
    biomarkers = rows if len(rows) else None
    params = adata.uns.get(f"{biomarkers_key}_params", {})
    colored = [params.get("groupby"), *color] if biomarkers is not None else color
    meta, blocks = tissue_map(adata, genes, colored, key, biomarkers, layer, spatial_key, library_key)
    meta |= {"key": key, "biomarkers": None}
    if biomarkers is not None:
        meta["biomarkers"], columns = biomarker_arrays(biomarkers, params)
        blocks |= columns
    sections = [section["name"] for section in meta["sections"]]
    name = "Tissue section" if sections[0] == _keys.LIBRARY else f"Section {sections[0]}"
    title = title or (name if len(sections) == 1 else f"{len(sections)} sections")
    folder = files("stxtools._report")
    text = {name: (folder / name).read_text(encoding="utf-8") for name in _FILES}
    page = Template(text["page.html"], autoescape=True, keep_trailing_newline=True).render(
        text=text, title=title, n_obs=adata.n_obs, n_drawn=meta["n"], version=__version__,
        findings=findings(adata, sections, key, biomarkers_key), figures=training_figures(adata, key),
        parameters=parameter_tables(adata, key, biomarkers_key), blocks=blocks,
        meta=json.dumps(meta, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    )  # fmt: skip
    write_text(path, page)


def _warn_of_other_keys(adata: AnnData, **parameters: tuple[str, str]) -> None:
    """Warn of results that the report lacks because they have a key of their own."""
    for parameter, (key, call) in parameters.items():
        entries = [name for name, entry in adata.uns.items() if any(p.get("call") == call for p in records(entry))]
        others = [name.removesuffix("_params") for name in entries]
        if others and key not in adata.uns and key not in adata.obs:
            warn(
                f"`adata.uns[{key!r}]` is missing, but st.{call} wrote {listing(others)}: name it with `{parameter}=`."
            )


def _by_symbol(adata: AnnData, gene_symbols: str, biomarkers_key: str) -> AnnData:
    """Return an AnnData on the same arrays whose genes have their symbols, also in the table of biomarkers."""
    names = make_index_unique(pd.Index(symbols_of(adata, adata.var_names, gene_symbols)))
    uns, var = dict(adata.uns), adata.var[[]].set_axis(names)
    if biomarkers_key in uns:
        known, table = pd.Series(names, index=adata.var_names, dtype=object), uns[biomarkers_key]
        uns[biomarkers_key] = table.assign(names=known.reindex(table["names"].astype(object)).to_numpy())
    layers = {key: layer for key, layer in adata.layers.items() if key is not None}  # None: X, in recent versions
    return AnnData(adata.X, obs=adata.obs, var=var, uns=uns, obsm=dict(adata.obsm), layers=layers)
