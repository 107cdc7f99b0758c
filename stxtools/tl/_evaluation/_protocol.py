"""Checked settings of an evaluation or a search: targets, splits and input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stxtools._data.expression import Expression, with_expression_in_x
from stxtools._validate import categories, check_choice, check_in, check_int, libraries
from stxtools._version import __version__

from ._checkpoint import settings_fingerprint
from ._data import FeatureSource, Target, data_checksum
from ._function_code import function_code
from ._splits import SCHEMES

if TYPE_CHECKING:
    from anndata import AnnData

    from stxtools._data.sections import Geometry


@dataclass(frozen=True)
class Protocol:
    """Everything that an evaluation and a search have in common, checked."""

    models: Mapping[str, str | Callable[..., Any]]
    targets: list[Target]
    schemes: list[str]
    n_folds: int
    max_folds: int | None
    seeds: list[int]
    source: FeatureSource
    spatial_key: str
    library_key: str | bool | None
    accelerator: str
    params: dict[str, dict[str, Any]] = field(default_factory=dict)
    genes: Any = None
    noise: Sequence[float] = (0.0,)
    noise_kind: str = "gaussian"

    def codes(self) -> dict[str, str]:
        """Model -> what it is: the registered name, or a digest of the function's code."""
        return {name: m if isinstance(m, str) else function_code(m) for name, m in self.models.items()}

    def fingerprint(self, adata: AnnData, where: Geometry) -> str:
        """Digest of data and settings. Models, seeds and levels are left out: each row names its own."""
        genes = self.genes if self.genes is None or isinstance(self.genes, int) else [str(g) for g in self.genes]
        return settings_fingerprint(
            {
                "version": __version__, "data": data_checksum(adata, where, self.targets, self.source),
                "n_folds": self.n_folds, "genes": genes, "noise_kind": self.noise_kind, "params": self.params,
                "use_rep": self.source.use_rep, "layer": self.source.layer, "pca_seed": self.source.seed,
            }
        )  # fmt: skip


def checked_protocol(
    adata: AnnData,
    models: Mapping[str, str | Callable[..., Any]],
    keys: Mapping[str, str | None],
    schemes: Sequence[str],
    seeds: list[int],
    source: FeatureSource,
    *,
    n_folds: int,
    max_folds: int | None,
    library_key: str | bool | None,
    allowed: Sequence[str] = SCHEMES,
    **how: Any,
) -> Protocol:
    """Check what both calls take: the keys of the targets (``biomarker``, ``region``), splits and representation."""
    for name in schemes:
        check_choice("scheme", name, allowed)
    if "library" in schemes and len(libraries(adata, library_key)) < 2:
        raise ValueError("`scheme='library'` leaves whole sections out: name them with `library_key=`; two at least.")
    if source.use_rep is not None:
        check_in(adata, "obsm", source.use_rep, "use_rep")
    return Protocol(
        models, _targets(adata, keys), list(dict.fromkeys(schemes)), check_int("n_folds", n_folds, minimum=2),
        None if max_folds is None else check_int("max_folds", max_folds, minimum=1),
        seeds, source, library_key=library_key, **how,
    )  # fmt: skip


def _targets(adata: AnnData, keys: Mapping[str, str | None]) -> list[Target]:
    named = {name: key for name, key in keys.items() if key is not None}
    if not named:
        raise ValueError("Name what is to be predicted: `biomarker_key=`, `region_key=` or both.")
    out = [Target(name, key, *categories(adata, key, f"{name}_key", min_classes=2)) for name, key in named.items()]
    if len(set(named.values())) < len(named):
        key = next(iter(named.values()))
        raise ValueError(f"`biomarker_key` and `region_key` are both {key!r}; they name two different columns.")
    return out


def readable(adata: AnnData, source: FeatureSource) -> tuple[AnnData, dict[str, str]]:
    """Return the AnnData to read, with the expression that was found in ``X``, and what ``params`` say of it."""
    if source.use_rep is not None:
        return adata, {}
    found = Expression(adata, source.layer)
    return (adata if source.layer is not None else with_expression_in_x(adata, found)), found.record
