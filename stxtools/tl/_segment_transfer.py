"""Genes and labels as a model reads them that learned from labels and is applied to other sections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stxtools._data.features import check_genes
from stxtools._data.gene_sections import GeneNames, GeneSource
from stxtools._validate import Labels, listing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stxtools._data.sections import Geometry
    from stxtools.models import GeneSection, Segmenter


def training_genes(source: GeneSource | None, where: Geometry, known: GeneNames) -> list[GeneSection] | None:
    """Genes of all sections to learn from; None where there is no expression."""
    return None if source is None else source.sections(where, known.own)


def remember_names(known: GeneNames, fitted: Segmenter) -> None:
    """Let the model know its genes by their second names, too."""
    ids = known.others()
    if fitted.transfer is not None and ids:
        read = set(_genes_read(fitted))
        fitted.transfer.ids = {g: i for g, i in zip(known.own, ids, strict=True) if g in read}


def transfer_names(known: GeneNames, fitted: Segmenter) -> list[str] | None:
    """Names of the genes as the model calls them; None where it learned of no genes by name.

    Raises
    ------
    ValueError
        If it knows too few of them.
    """
    if fitted.transfer is None:
        return None
    names = known.as_model(_genes_read(fitted), fitted.transfer.ids)
    check_genes(fitted.transfer.moments.genes, names, enough=fitted.transfer.enough)
    return names


def _genes_read(fitted: Segmenter) -> list[str]:
    """Genes of the model, of the linear members and of the components."""
    members = [] if fitted.transfer is None else fitted.transfer.moments.genes
    return list(dict.fromkeys([*members, *(fitted.projection.genes if fitted.projection is not None else [])]))


def transfer_genes(
    source: GeneSource | None, fitted: Segmenter, where: Geometry, names: Sequence[str] | None
) -> list[GeneSection] | None:
    """Genes of all sections that the model's linear members read."""
    if fitted.transfer is None or source is None or names is None:
        return None
    return source.sections(where, names, fitted.transfer.moments.match(names)[1])


def labels_for_model(
    labels: Labels | None, labels_key: str | None, fitted: Segmenter, where: Geometry
) -> list[NDArray[np.int64]] | None:
    """Class codes of the labelled observations by section, in the model's classes.

    Raises
    ------
    ValueError
        If the model cannot use labels, or does not know their classes.
    """
    if labels is None:
        return None
    if fitted.transfer is None:
        raise ValueError(
            "`labels_key=` corrects a model that learned from labels and genes; this one did not. Drop one of "
            "`labels_key=` and `model=`, or train a model with `segment(adata, labels_key=..., save_model=...)`."
        )
    codes = label_codes(labels, labels_key, fitted.classes)
    return [codes[rows] for rows in where.parts]


def label_codes(labels: Labels, labels_key: str | None, classes: Sequence[str]) -> NDArray[np.int64]:
    """Class of each observation among ``classes``, -1 where it has no label."""
    unknown = [name for name in labels.names if name not in classes]
    if unknown:
        raise ValueError(
            f"`adata.obs[{labels_key!r}]` has the classes {listing(unknown)}, which the model does not know; it knows "
            f"{listing(list(classes))}. Rename them, or train without `model=`."
        )
    place = np.array([list(classes).index(name) for name in labels.names], dtype=np.int64)
    return np.where(labels.codes >= 0, place[labels.codes], -1)
