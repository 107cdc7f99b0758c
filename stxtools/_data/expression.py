"""Which matrix of an AnnData holds expression, and on which scale: decided by all of its values.

* ``counts``: non-negative integers;
* ``linear``: non-negative, with a largest value above 30 or one depth for all observations;
* ``log``: other non-negative values;
* ``scaled``: some are negative. That is no expression, which is then looked for in ``adata.raw``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from anndata import AnnData
from scipy import sparse

from stxtools import _keys
from stxtools._progress import stage
from stxtools._settings import settings
from stxtools._types import Ints
from stxtools._warn import warn
from stxtools.models.ensemble.gene_means import GeneSection

from .chunks import AT_ONCE, Survey, is_backed, is_out_of_core, iter_rows, look_at, to_csr
from .representation import log_normalize, median_depth
from .sections import Geometry

T = TypeVar("T")

_BYTES = 64  # of a stored value, in all forms that a test needs: by row and by column, logged, linear, ranked
_SHARE = 4  # of the memory, for what is held from block to block
AT_HAND = 60_000_000  # stored values that may be read together to choose genes or for Lanczos steps


class Expression:
    """The matrix of an AnnData that holds expression, unchanged, with its scale, its source and what its values say.

    By default ``layers["counts"]`` if there, else ``X``, else (with a warning) ``raw``. With ``scaled`` negative values
    are taken where nothing else is there. ``in_memory=False`` leaves ``matrix`` where it is, None only where that is a
    file or dask; ``stored`` is that in any case.
    """

    def __init__(
        self, adata: AnnData, layer: str | None = None, *, scaled: bool = False, in_memory: bool | None = True
    ) -> None:
        stage("reading expression")
        self.names, self._obs_names = adata.var_names, adata.obs_names
        self.stored, self.source = stored_matrix(adata, layer)
        in_memory = not is_out_of_core(self.stored) if in_memory is None else in_memory
        self.matrix, self.survey = look_at(self.stored, in_memory)
        if self.scale != "scaled":
            if self.source == "X" and "log1p" in adata.uns:
                _check_marker(self.survey)
            return
        if self.source == "X":
            why = self._read_raw(adata, in_memory)
        else:
            named = layer is not None
            why = "nothing else is read where a layer was named" if named else "the layer's name says counts"
        if why and (not scaled or layer is not None):
            raise ValueError(
                f"`adata.{self.source}` holds negative values (from {self.survey.lowest:.3g} to "
                f"{self.survey.highest:.3g}), as after scaling or centring: they are not expression, counts or "
                f"logarithms, and {why}. Put raw counts into `adata.layers['counts']`, keep log values before you "
                "scale (`adata.raw = adata`), or name a `layer` that holds either. Calls with `use_rep=` read scaled "
                "values as features: `use_rep='X'`, or a key of `adata.obsm`."
            )

    @classmethod
    def if_any(cls, adata: AnnData) -> Expression | None:
        """Return the expression; None where there is none, as beside a PCA that is all there is."""
        try:
            return cls(adata)
        except (ValueError, KeyError):
            return None

    @property
    def scale(self) -> str:
        """``"counts"``, ``"linear"``, ``"log"`` or ``"scaled"``."""
        return self.survey.scale

    def _read_raw(self, adata: AnnData, in_memory: bool) -> str:
        """Take the values of ``raw`` for the genes of ``adata``, and warn of it; or say why not."""
        if adata.raw is None:
            return "there is no `adata.layers['counts']` and no `adata.raw`"
        names, stored = adata.raw.var_names, adata.raw.X
        if not names.equals(adata.var_names):
            if not names.is_unique:
                return "`adata.raw` names genes twice"
            at: Ints = names.get_indexer(adata.var_names)
            if (at < 0).any():
                return f"`adata.raw` lacks {int((at < 0).sum())} of the {adata.n_vars} genes"
            stored = (to_csr(stored) if is_backed(stored) else stored)[:, at]
        matrix, survey = look_at(stored, in_memory)
        if survey.scale == "scaled":
            return "`adata.raw` holds negative values, too"
        warn(
            "`adata.X` holds negative values, as after scaling, which are not expression: `adata.raw` is read instead "
            f"(scale: {survey.scale}). Counts in `adata.layers['counts']` would come first."
        )
        self.matrix, self.stored, self.survey, self.source = matrix, stored, survey, "raw.X"
        return ""

    def sampled(self, seed: int) -> Ints:
        """Return observations at random, in the order of rows: as many as hold ``AT_HAND`` values, or all."""
        n_obs = int(self.matrix.shape[0])
        share = AT_HAND / max(float(self.survey.seen.sum()), 1.0)
        if share >= 1:
            return np.arange(n_obs)
        drawn = np.random.default_rng(seed).permutation(n_obs)[: int(share * n_obs)]
        return np.sort(np.argsort(np.asarray(self._obs_names, dtype=str), kind="stable")[drawn])

    def sample(self, seed: int) -> sparse.csr_matrix:
        """Return the expression of :meth:`sampled` observations."""
        taken = self.sampled(seed)

        def among(chunk: sparse.csr_matrix, rows: slice) -> sparse.csr_matrix:
            low, high = np.searchsorted(taken, [rows.start, rows.stop])
            return chunk if high - low == chunk.shape[0] else chunk[taken[low:high] - rows.start]

        pieces = [piece for piece in iter_rows(self.matrix, among) if piece.shape[0]]
        return sparse.csr_matrix(sparse.vstack(pieces, format="csr"))

    def by_section(self, where: Geometry, names: Sequence[str], genes: Ints | None = None) -> list[GeneSection]:
        """Log expression of some genes (all by default), under their ``names``, by section."""
        at = np.arange(len(self.names)) if genes is None else genes
        logged = log_matrix(self, at)
        return [GeneSection(logged[rows], [names[k] for k in at], where.xy[rows]) for rows in where.parts]

    @property
    def record(self) -> dict[str, str]:
        """Entries of ``params`` on the expression."""
        return {"expression_scale": self.scale, "expression_source": self.source}


def stored_matrix(adata: AnnData, layer: str | None) -> tuple[Any, str]:
    """Return ``layers[layer]``, or ``layers["counts"]`` where there is one, or ``X``, as stored, and which it is."""
    if layer is not None:
        return adata.layers[layer], f"layers[{layer!r}]"
    if _keys.COUNTS in adata.layers:
        return adata.layers[_keys.COUNTS], f"layers[{_keys.COUNTS!r}]"
    if adata.X is None:
        raise ValueError("`adata.X` is empty (None); put expression there or name a `layer`.")
    return adata.X, "X"


def with_expression_in_x(adata: AnnData, found: Expression) -> AnnData:
    """Return ``adata``, or a copy whose ``X`` holds the expression that was found beside a scaled ``X``."""
    beside = found.source == "raw.X" or (found.source == f"layers[{_keys.COUNTS!r}]" and adata.X is not None)
    if not beside or Survey.of(to_csr(adata.X)).scale != "scaled":
        return adata
    out = adata.copy()
    out.X, out.raw = found.matrix, None
    out.layers.pop(_keys.COUNTS, None)
    if found.scale != "log":
        out.uns.pop("log1p", None)
    return out


def _check_marker(seen: Survey) -> None:
    """Warn where ``uns["log1p"]`` is there and the values are no logarithms."""
    if seen.scale == "log" or seen.highest == 0:
        return
    found = "integers" if seen.scale == "counts" else f"no logarithms (the largest is {seen.highest:.4g})"
    warn(
        f"`adata.uns['log1p']` says that `adata.X` holds logarithms, but its values are {found}: they are taken as "
        f"{seen.scale if seen.scale == 'counts' else 'linear expression'}. If the entry is out of date, "
        "`del adata.uns['log1p']`; if not, name the `layer` with expression."
    )


def log_chunks(
    read: Expression, work: Callable[[sparse.csr_matrix, slice], T], target_sum: float | None = None, *,
    at_once: int | None = None,
) -> Iterator[T]:  # fmt: skip
    """Yield ``work(logged_chunk, rows)``, which is to read the chunk only, for every chunk of rows."""
    target = median_depth(read.survey.depth) if target_sum is None else target_sum
    scale = read.scale  # what goes to the workers is the scale, not all that was read
    yield from iter_rows(
        read.matrix, lambda chunk, rows: work(log_normalize(chunk, scale, target_sum=target), rows), at_once=at_once
    )


def log_matrix(read: Expression, genes: Any = slice(None)) -> sparse.csr_matrix:
    """Return log expression of some genes, or all, of all observations."""
    parts = log_chunks(read, lambda logged, rows: logged[:, genes])
    return sparse.csr_matrix(sparse.vstack(list(parts), "csr"))


class GeneBlocks:
    """Expression, as read, for tests gene by gene; it may be out of core."""

    def __init__(self, read: Expression) -> None:
        self.read = read
        self.shape = (int(read.matrix.shape[0]), int(read.matrix.shape[1]))
        budget = settings.max_memory * 2**30
        self.slices = gene_slices(read.survey.seen, budget / _BYTES)
        self.limit = budget / _SHARE
        self.depth = None if read.scale == "log" else read.survey.depth
        self.n_genes = read.survey.n_genes

    def block(self, genes: slice) -> sparse.csr_matrix:
        """Return log expression of some genes for all observations, to be read only."""
        if is_out_of_core(self.read.matrix):
            return log_matrix(self.read, genes)
        matrix, depth = to_csr(self.read.matrix), self.read.survey.depth
        some = matrix if genes == slice(0, self.shape[1]) else matrix[:, genes]
        return log_normalize(some, self.read.scale, library_size=depth)

    def rows(self, genes: Ints | None = None) -> Iterator[tuple[slice, sparse.csr_matrix]]:
        """Yield log expression chunk of rows by chunk, of some genes or of all."""
        every = genes is None or len(genes) == self.shape[1]
        yield from log_chunks(
            self.read, lambda logged, rows: (rows, logged if every else logged[:, genes]), at_once=AT_ONCE
        )


def gene_slices(seen: Ints, most: float) -> list[slice]:
    """Divide genes into runs of ``most`` stored values at most; a gene is never divided."""
    ends = np.cumsum(np.asarray(seen, dtype=np.float64))
    out: list[slice] = []
    start, before = 0, 0.0
    while start < len(seen):
        stop = max(start + 1, int(np.searchsorted(ends, before + most, side="right")))
        out.append(slice(start, stop))
        start, before = stop, float(ends[stop - 1])
    return out or [slice(0, 0)]
