"""What the framework reads of expression: a representation, genes, and the genes that it is to predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from stxtools._types import Floats32, Ints
from stxtools._warn import warn

from .chunks import is_out_of_core
from .expression import Expression, log_chunks
from .features import GeneNames, ModelFeatures, TrainingFeatures, check_genes
from .regions import Regions, region_sections
from .representation import log_normalize, median_depth, select_genes

if TYPE_CHECKING:
    from stxtools.models import TissueNet


class _FrameworkInput:
    """Features of the observations, and log expression of genes."""

    values: Floats32
    genes: sparse.csr_matrix | None
    labels: Mapping[str, Ints] = MappingProxyType({})
    targets: Floats32 | None = None
    named: tuple[Expression, Sequence[str], Ints | None] | None = None
    record: dict[str, Any]

    def sections(self, regions: Regions) -> list[Any]:
        """Split by section what a model reads and learns."""
        by_name = None if self.named is None else self.named[0].by_section(regions.where, *self.named[1:])
        return region_sections(
            self.values, regions, self.labels, genes=self.genes, expression=self.targets, by_name=by_name
        )


class TrainingInput(_FrameworkInput):
    """What a new model reads and learns; it remembers what it reads."""

    def __init__(
        self, adata: AnnData, model: TissueNet, labels: Mapping[str, Ints],
        targets: tuple[Sequence[str], str | None], *,
        use_rep: str | None, layer: str | None, portable: bool, random_state: int,
    ) -> None:  # fmt: skip
        self.labels, self.genes, self.targets = labels, None, None
        withheld, learned_at = targets
        own: dict[str, str] = {}
        if withheld:
            learned = Expression(adata, layer)
            at, own = learned.names.get_indexer(list(withheld)), learned.record
            self.targets = log_normalize(learned.matrix, learned.scale)[:, at].toarray().astype(np.float32)
            if learned_at is not None:
                self.targets[~adata.obs[learned_at].to_numpy()] = np.nan
        source = adata[:, ~adata.var_names.isin(list(withheld))] if withheld else adata
        features = TrainingFeatures(
            source, use_rep, layer, portable=portable, anew=bool(withheld), random_state=random_state
        )
        model.use_rep, model.projection = features.name, features.projection
        self.values, self.record = features.values, own | features.record
        if not model.params.genes:
            return
        read = features.expression
        if read is None or is_out_of_core(read.matrix):
            read = Expression(source, layer, scaled=True)
        if read.scale == "scaled":
            warn(
                "`adata.X` holds negative values, as after scaling, which are not expression, and there is no other: "
                "the model reads the representation alone. `params={'genes': False}` says so beforehand."
            )
            return
        chosen = _genes_to_read(read, model.params.genes)
        model.target_sum = median_depth(np.asarray(read.matrix.sum(axis=1)).ravel())
        model.genes = [str(g) for g in read.names[chosen]]
        self.record = own | read.record
        self.genes = log_normalize(read.matrix, read.scale, target_sum=model.target_sum)[:, chosen]
        known = GeneNames(source)
        self.named, model.ids = (read, known.own, None), known.others()


def _genes_to_read(read: Expression, named: bool | tuple[str, ...]) -> Ints:
    """Positions of the genes that are named, or of the variable ones."""
    if isinstance(named, bool):
        return select_genes(read.matrix, read.scale)
    at = read.names.get_indexer(list(named))
    if (at < 0).any():
        raise KeyError(f"`params['genes']` names {[named[i] for i in np.flatnonzero(at < 0)[:3]]}, not found in "
                       "`adata.var_names` (genes to predict are not read).")  # fmt: skip
    return np.unique(at)


class KnownInput(_FrameworkInput):
    """What a trained model reads: ``values``, ``genes`` and, as ``record``, what ``params`` say of them."""

    def __init__(self, adata: AnnData, model: TissueNet, layer: str | None) -> None:
        if model.expression:  # they took no part in the depth when it was trained
            adata = adata[:, ~adata.var_names.isin(model.expression)]
        names = GeneNames(adata).as_model(model.read_genes, model.ids)
        if model.projection is not None:
            check_genes(model.projection.genes, names)
        features = ModelFeatures(adata, model, layer, names=names, by_name=model.genes is not None)
        self.values, self.record = features.values, features.record
        self.genes, read = None, features.expression
        if model.genes is None or read is None:
            return
        self.named = read, names, np.flatnonzero(np.isin(names, model.read_genes))
        at = pd.Index(names).get_indexer(model.genes)
        # a gene that is not there stays 0, which is average after centring by section
        pick = sparse.csr_matrix(
            (np.ones(int((at >= 0).sum()), np.float32), (at[at >= 0], np.flatnonzero(at >= 0))),
            shape=(len(read.names), len(at)),
        )
        parts = list(log_chunks(read, lambda logged, rows: logged @ pick, model.target_sum))
        self.genes = sparse.csr_matrix(sparse.vstack(parts, format="csr"))
        self.record = self.record or {"genes_found": float((at >= 0).mean()), **read.record}
