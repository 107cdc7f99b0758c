"""The matrix of an AnnData that holds expression: found, read and brought to logarithms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
from anndata import AnnData
from scipy import sparse

from stxtools import _keys
from stxtools._progress import stage
from stxtools._settings import settings
from stxtools._types import Csr, Floats32, Ints
from stxtools._warn import warn
from stxtools.models.ensemble.gene_means import GeneSection
from stxtools.stats._composition import rescale

from .chunks import MAX_PENDING, ChunkFunction, MatrixSummary, is_backed, is_out_of_core, map_row_chunks, to_csr
from .representation import log_normalize, median_depth
from .sections import Geometry

T = TypeVar("T")

MAX_SAMPLED = 60_000_000  # stored values of a sample that is read into memory
_BYTES_PER_VALUE = 64  # by row and by column, logarithmic, linear and ranked: all copies that a test needs
_ONE_DEPTH = 1e-2  # largest relative range of depths that count as one
_MEMORY_SHARE = 1 / 4  # for what is held from block to block


class Expression:
    """The matrix of an AnnData that holds expression, with its scale, its source and a summary of its values.

    By default ``layers["counts"]`` if present, else ``X``, else (with a warning) ``raw``. ``allow_scaled`` accepts
    negative values if there is nothing else. ``matrix`` is CSR, or with ``in_memory=False`` a file or dask array if the
    AnnData holds that; ``stored`` is the matrix as the AnnData holds it.
    """

    def __init__(
        self, adata: AnnData, layer: str | None = None, *, allow_scaled: bool = False, in_memory: bool = True
    ) -> None:
        stage("reading expression")
        self.names, self._obs_names = adata.var_names, adata.obs_names
        self.stored, self.source = stored_matrix(adata, layer)
        self.matrix = _loaded(self.stored, in_memory)
        self.summary = MatrixSummary.of(self.matrix)
        if self.scale != "scaled":
            if self.source == "X" and "log1p" in adata.uns:
                _check_log1p(self.summary)
            return
        if self.source == "X":
            problem = self._read_raw(adata, in_memory)
        else:
            problem = "the name of the layer says counts" if layer is None else "only the named layer is read"
        if problem and (not allow_scaled or layer is not None):
            raise ValueError(
                f"`adata.{self.source}` holds negative values (from {self.summary.minimum:.3g} to "
                f"{self.summary.maximum:.3g}), as after scaling or centring: they are not expression, counts or "
                f"logarithms, and {problem}. Put raw counts into `adata.layers['counts']`, keep log values before you "
                "scale (`adata.raw = adata`), or name a `layer` that holds either. Calls with `use_rep=` read scaled "
                "values as features: `use_rep='X'`, or a key of `adata.obsm`."
            )

    @classmethod
    def if_any(cls, adata: AnnData, *, in_memory: bool = True) -> Expression | None:
        """Return the expression, or None if there is none, as in an AnnData with only a PCA."""
        try:
            return cls(adata, in_memory=in_memory)
        except (ValueError, KeyError):
            return None

    def _read_raw(self, adata: AnnData, in_memory: bool) -> str:
        """Read the genes of ``adata`` from ``raw`` with a warning, or return why that is impossible."""
        if adata.raw is None:
            return "there is no `adata.layers['counts']` and no `adata.raw`"
        names, stored = adata.raw.var_names, adata.raw.X
        if not names.equals(adata.var_names):
            if not names.is_unique:
                return "`adata.raw` names genes twice"
            index: Ints = names.get_indexer(adata.var_names)
            if (index < 0).any():
                return f"`adata.raw` lacks {int((index < 0).sum())} of the {adata.n_vars} genes"
            stored = (to_csr(stored) if is_backed(stored) else stored)[:, index]
        matrix = _loaded(stored, in_memory)
        summary = MatrixSummary.of(matrix)
        if summary.scale == "scaled":
            return "`adata.raw` holds negative values, too"
        warn(
            "`adata.X` holds negative values, as after scaling, which are not expression: `adata.raw` is read instead "
            f"(scale: {summary.scale}). Counts in `adata.layers['counts']` would take precedence."
        )
        self.matrix, self.stored, self.summary, self.source = matrix, stored, summary, "raw.X"
        return ""

    @property
    def scale(self) -> str:
        """The scale of the values, as :attr:`MatrixSummary.scale`."""
        return self.summary.scale

    @property
    def record(self) -> dict[str, str]:
        """Entries of ``params`` on the expression."""
        return {"expression_scale": self.scale, "expression_source": self.source}

    def sample_rows(self, seed: int) -> Ints:
        """Return random observations, in the order of rows: as many as hold ``MAX_SAMPLED`` values, or all."""
        n_obs = int(self.matrix.shape[0])
        share = MAX_SAMPLED / max(float(self.summary.n_cells.sum()), 1.0)
        if share >= 1:
            return np.arange(n_obs)
        drawn = np.random.default_rng(seed).permutation(n_obs)[: int(share * n_obs)]
        return np.sort(np.argsort(np.asarray(self._obs_names, dtype=str), kind="stable")[drawn])

    def sample(self, seed: int) -> Csr:
        """Return the expression of :meth:`sample_rows`."""
        sampled = self.sample_rows(seed)

        def select(chunk: Csr, rows: slice) -> Csr:
            first, last = np.searchsorted(sampled, [rows.start, rows.stop])
            return chunk if last - first == chunk.shape[0] else chunk[sampled[first:last] - rows.start]

        parts = [part for part in map_row_chunks(self.matrix, select) if part.shape[0]]
        return sparse.csr_matrix(sparse.vstack(parts, format="csr"))

    def by_section(self, where: Geometry, names: Sequence[str], genes: Ints | None = None) -> list[GeneSection]:
        """Return log expression of ``genes`` (default: all), under their ``names``, by section."""
        genes = np.arange(len(self.names)) if genes is None else genes
        logged = log_matrix(self, genes)
        return [GeneSection(logged[rows], [names[k] for k in genes], where.xy[rows]) for rows in where.parts]


def stored_matrix(adata: AnnData, layer: str | None) -> tuple[Any, str]:
    """Return ``layers[layer]``, by default ``layers["counts"]`` if present, else ``X``, as stored, and its name."""
    if layer is not None:
        return adata.layers[layer], f"layers[{layer!r}]"
    if _keys.COUNTS in adata.layers:
        return adata.layers[_keys.COUNTS], f"layers[{_keys.COUNTS!r}]"
    if adata.X is None:
        raise ValueError("`adata.X` is empty (None); put expression there or name a `layer`.")
    return adata.X, "X"


def _loaded(stored: Any, in_memory: bool) -> Any:
    return to_csr(stored) if in_memory or not is_out_of_core(stored) else stored


def with_expression_in_x(adata: AnnData, expression: Expression) -> AnnData:
    """Return ``adata``, or a copy with ``expression`` in ``X`` if ``X`` is scaled and not its source."""
    elsewhere = expression.source in ("raw.X", f"layers[{_keys.COUNTS!r}]") and adata.X is not None
    if not elsewhere or MatrixSummary.of(to_csr(adata.X)).scale != "scaled":
        return adata
    out = adata.copy()
    out.X, out.raw = expression.matrix, None
    out.layers.pop(_keys.COUNTS, None)
    if expression.scale != "log":
        out.uns.pop("log1p", None)
    return out


def without_genes(
    adata: AnnData, genes: Sequence[str], layer: str | None, noised: AnnData | None = None
) -> tuple[AnnData, str | None]:
    """Return ``adata`` (or it ``noised``, in ``X``) without ``genes``, and the layer that holds expression.

    Where all observations have one depth, that of the others would reveal the hidden genes: it is made equal, too.
    """
    rest, kept_layer = (adata, layer) if noised is None else (noised, None)
    hidden = adata.var_names.isin(genes)
    if not hidden.any():
        return rest, kept_layer
    rest = rest[:, ~hidden]
    read = Expression(adata, layer, in_memory=False)  # counts stay where they are
    if read.scale not in ("linear", "log"):
        return rest, kept_layer
    given = to_csr(read.matrix)
    linear = given.astype(np.float64)
    if read.scale == "log":
        np.expm1(linear.data, out=linear.data)
    depth, kept = (np.asarray(part.sum(axis=1)).ravel() for part in (linear, linear[:, ~hidden]))
    target, matrix = median_depth(depth), given[:, ~hidden] if noised is None else Expression(rest).matrix
    if read.scale == "linear":
        x = log_normalize(matrix, "linear", target_sum=target)
    elif np.ptp(depth[depth > 0]) > _ONE_DEPTH * target:
        return rest, kept_layer
    else:
        x = rescale(matrix, np.divide(target, kept, out=np.zeros_like(kept), where=kept > 0))
    return AnnData(x, obs=rest.obs, var=rest.var, obsm=dict(rest.obsm), uns={"log1p": {}}), None


def log_values(
    adata: AnnData, genes: Sequence[str], layer: str | None, known: str | None
) -> tuple[Floats32, dict[str, str]]:
    """Return log expression of ``genes`` (n, T), NaN where ``obs[known]`` (if named) is False, and its record."""
    read = Expression(adata, layer)
    values = log_normalize(read.matrix, read.scale)[:, read.names.get_indexer(genes)].toarray().astype(np.float32)
    if known is not None:
        values[~adata.obs[known].to_numpy()] = np.nan
    return values, read.record


def _check_log1p(summary: MatrixSummary) -> None:
    """Warn if the values are not logarithms although ``uns["log1p"]`` exists."""
    if summary.scale == "log" or summary.maximum == 0:
        return
    counts = summary.scale == "counts"
    warn(
        "`adata.uns['log1p']` says that `adata.X` holds logarithms, but its values are "
        f"{'integers' if counts else f'not logarithms (the largest is {summary.maximum:.4g})'}: they are taken as "
        f"{'counts' if counts else 'linear expression'}. If the entry is out of date, `del adata.uns['log1p']`; if "
        "not, name the `layer` with expression."
    )


def log_chunks(
    read: Expression, function: ChunkFunction[T], target_sum: float | None = None, *, max_pending: int | None = None,
    within: Ints | None = None,
) -> Iterator[T]:  # fmt: skip
    """Yield results of ``function`` for chunks of log expression, of all rows or those ``within``."""
    target = median_depth(read.summary.depth) if target_sum is None else target_sum
    normalize = partial(log_normalize, scale=read.scale, target_sum=target)  # workers do not get the whole expression
    return map_row_chunks(
        read.matrix, lambda chunk, rows: function(normalize(chunk), rows), max_pending=max_pending, within=within
    )


def log_matrix(read: Expression, genes: Any = slice(None)) -> Csr:
    """Return log expression of ``genes`` (default: all) in memory."""
    parts = log_chunks(read, lambda logged, rows: logged[:, genes])
    return sparse.csr_matrix(sparse.vstack(list(parts), "csr"))


def log_columns(read: Expression, genes: Ints, target_sum: float | None) -> Csr:
    """Return log expression of ``genes`` in memory, one column each; 0 for absent ones (-1)."""
    present = np.flatnonzero(genes >= 0)
    ones = np.ones(len(present), np.float32)
    selection = sparse.csr_matrix((ones, (genes[present], present)), shape=(len(read.names), len(genes)))
    parts = log_chunks(read, lambda logged, rows: logged @ selection, target_sum)
    return sparse.csr_matrix(sparse.vstack(list(parts), format="csr"))


class GeneBlocks:
    """Blocks of genes, and chunks of rows, of expression that may be out of core."""

    def __init__(self, read: Expression) -> None:
        self.read = read
        self.shape = (int(read.matrix.shape[0]), int(read.matrix.shape[1]))
        budget = settings.max_memory * 2**30
        self.slices = gene_slices(read.summary.n_cells, budget / _BYTES_PER_VALUE)
        self.limit = budget * _MEMORY_SHARE
        self.depth = None if read.scale == "log" else read.summary.depth
        self.signed = read.scale == "scaled"
        self.n_genes = read.summary.n_genes

    def block(self, genes: slice) -> Csr:
        """Return read-only log expression of ``genes`` for all observations."""
        if is_out_of_core(self.read.matrix):
            return log_matrix(self.read, genes)
        part = self.read.matrix if genes == slice(0, self.shape[1]) else self.read.matrix[:, genes]
        return log_normalize(part, self.read.scale, library_size=self.read.summary.depth)

    def rows(self, genes: Ints | None = None, within: Ints | None = None) -> Iterator[tuple[slice, Csr]]:
        """Yield log expression of ``genes`` (default: all) by chunks of rows, of all rows or those ``within``."""
        every = genes is None or len(genes) == self.shape[1]
        return log_chunks(
            self.read, lambda logged, rows: (rows, logged if every else logged[:, genes]), max_pending=MAX_PENDING,
            within=within,
        )  # fmt: skip


def gene_slices(n_values: Ints, max_values: float) -> list[slice]:
    """Divide genes, of ``n_values`` stored values each, into runs of at most ``max_values``, or of one gene."""
    ends = np.cumsum(np.asarray(n_values, dtype=np.float64))
    out: list[slice] = []
    start, before = 0, 0.0
    while start < len(n_values):
        stop = max(start + 1, int(np.searchsorted(ends, before + max_values, side="right")))
        out.append(slice(start, stop))
        start, before = stop, float(ends[stop - 1])
    return out
