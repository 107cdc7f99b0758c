"""Checks of arguments and slots against an AnnData: each error says what was found and how to mend it."""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from . import _keys
from ._checks import check_bool, check_key, check_names, listing, unstorable
from ._types import Floats, Ints
from ._warn import warn

_MISSING_AS_TEXT = {"nan", "na", "<na>"}
_UNLABELLED = _MISSING_AS_TEXT | {"", "none", "unlabelled", "unlabeled", "unannotated", "unassigned", "unknown"}
CONTROLS = (
    r"(?i)neg ?control|negprb|negative\d|systemcontrol|falsecode|blank|(?:unassigned|deprecated)codeword|antisense_"
)
_GENES = "Gene Expression"  # in ``var["feature_types"]`` of 10x Genomics
_LARGEST_COORDINATE = 1e100  # squares of larger ones may be infinite


def check_adata(
    adata: Any, *, min_obs: int = 1, unique_vars: bool = True, layer: str | None = None, copy: bool = False,
    genes: bool = False,
) -> None:  # fmt: skip
    """Check that ``adata`` is a non-empty AnnData with unique names, has the layer and, for a copy, is in memory.

    ``genes``: warn if some variables are control probes, proteins or other features.
    """
    if not isinstance(adata, AnnData):
        raise TypeError(f"`adata` must be an anndata.AnnData, not {type(adata).__name__}.")
    if not isinstance(adata.obs, pd.DataFrame) or not isinstance(adata.var, pd.DataFrame):
        raise TypeError(
            "`adata.obs` or `adata.var` is not in memory (`anndata.experimental.read_lazy`); read them first: "
            "`adata.obs = adata.obs.to_memory(); adata.var = adata.var.to_memory()`. `adata.X` may stay where it is."
        )
    if adata.n_vars == 0:
        raise ValueError("`adata` has no variables (0 genes); nothing can be computed.")
    if adata.n_obs < min_obs:
        raise ValueError(f"`adata` has {adata.n_obs} observation(s); this call needs at least {min_obs}.")
    if not adata.obs_names.is_unique:
        raise ValueError("`adata.obs_names` are not unique; call `adata.obs_names_make_unique()` first.")
    if unique_vars and not adata.var_names.is_unique:
        raise ValueError("`adata.var_names` are not unique; call `adata.var_names_make_unique()` first.")
    for slot in ("obs_names", "var_names"):  # a table beside them would make a file that anndata cannot read
        if pd.api.types.is_numeric_dtype(getattr(adata, slot)):
            raise TypeError(f"`adata.{slot}` are numbers; make them text: `adata.{slot} = adata.{slot}.astype(str)`.")
    if layer is not None:
        check_in(adata, "layers", layer, "layer")
    if check_bool("copy", copy) and adata.isbacked:
        raise ValueError("`copy=True` cannot copy a backed AnnData; pass `adata.to_memory()`.")
    if genes:
        _warn_of_other_features(adata)


def _warn_of_other_features(adata: AnnData) -> None:
    if (types := adata.var.get("feature_types")) is not None and (types == _GENES).any():
        others, genes = np.asarray(types != _GENES), f"adata.var['feature_types'] == {_GENES!r}"
    else:
        others, genes = adata.var_names.str.match(CONTROLS), f"~adata.var_names.str.match({CONTROLS!r})"
    if 0 < others.sum() < len(others):
        warn(
            f"{others.sum()} of {len(others)} variables are control probes or other features than genes "
            f"({listing(adata.var_names[others], 3)}) and are used like genes. To drop them: "
            f"`adata = adata[:, {genes}].copy()`."
        )


def check_in(adata: AnnData, slot: str, key: Any, param: str, hint: str = "") -> None:
    """Check that ``key`` is in a slot (``"obs"``, ``"obsm"``, ``"layers"`` ...)."""
    if not isinstance(key, str):
        raise TypeError(f"`{param}` must be a string, a key of `adata.{slot}`; got {key!r}.")
    container = getattr(adata, slot)
    if key not in container:
        names = container.columns if isinstance(container, pd.DataFrame) else container.keys()
        names = [n for n in names if n is not None]  # anndata 0.13 lists X among the layers, as None
        hint = hint or ("Run `st.tl.segment(adata)` first, or name another column." if key == _keys.SEGMENT else "")
        near = "".join(f" Did you mean {name!r}?" for name in difflib.get_close_matches(key, map(str, names), 1))
        raise KeyError(f"`{param}={key!r}` is not in `adata.{slot}`; it has {listing(names)}.{near} {hint}".rstrip())


def check_key_added(value: Any, default: str, param: str = "key_added") -> str:
    """Return the name of an output, checked to be a string that h5ad and zarr can store."""
    if value is None:
        return default
    if not isinstance(value, str) or not value:
        raise TypeError(f"`{param}` must be a non-empty string, not {value!r}.")
    if reason := unstorable(value):
        raise ValueError(f"`{param}={value!r}` {reason}: h5ad and zarr cannot store such a key. Choose another name.")
    if value in _keys.RESERVED and value != default:
        raise ValueError(f"`{param}={value!r}` would overwrite what another call keeps there; choose another name.")
    return value


def stored_table(
    adata: AnnData, key: str, columns: Set[str], what: str, call: str, part: str | None = None, param: str = "key"
) -> pd.DataFrame:
    """Return the table ``uns[key]``, or a ``part`` of that slot, checked to have ``columns``."""
    check_adata(adata, unique_vars=False)
    table = _table_in(adata.uns.get(check_key(param, key)), columns, part)
    if table is None:
        others = [
            k for k, slot in adata.uns.items() if (columns or part) and _table_in(slot, columns, part) is not None
        ]
        found = f"; {listing(others)} {'does' if len(others) == 1 else 'do'}" if others else ""
        raise KeyError(
            f"`adata.uns[{key!r}]` holds no {what}{found}. Run `{call}` first, or name the slot with `{param}`."
        )
    return table


def _table_in(slot: Any, columns: Set[str], part: str | None) -> pd.DataFrame | None:
    table = slot if part is None else slot.get(part) if isinstance(slot, Mapping) else None
    return table if isinstance(table, pd.DataFrame) and columns <= set(table.columns) else None


def _check_distinct(names: Iterable[Any], labels: Sequence[str], key: str) -> None:
    """Check that classes differ as strings: 1 and "1" would not."""
    seen: dict[str, Any] = {}
    for name, text in zip(names, labels, strict=True):
        if text in seen:
            raise ValueError(
                f"`adata.obs[{key!r}]` has the values {seen[text]!r} ({type(seen[text]).__name__}) and {name!r} "
                f"({type(name).__name__}), which are equal as strings. Rename one of them, or merge them: "
                f"`adata.obs[{key!r}] = adata.obs[{key!r}].astype(str)`."
            )
        seen[text] = name


def check_class_names(names: Sequence[str], key: str) -> None:
    """Check that h5ad and zarr can store class names as values; names of columns are replaced."""
    if bad := [n for n in names if "\0" in n or n.encode("utf-8", "ignore").decode() != n]:
        raise ValueError(
            f"Classes of `adata.obs[{key!r}]` contain NUL or characters that UTF-8 cannot encode, which h5ad and zarr "
            f"cannot store: {listing(bad)}. Rename them, e.g. `adata.obs[{key!r}] = adata.obs[{key!r}]"
            ".astype('category').cat.rename_categories(...)`."
        )


@dataclass(frozen=True)
class Libraries:
    """The sections of an AnnData: their names and, per observation, the index of its section."""

    names: list[str]
    codes: Ints

    def __len__(self) -> int:
        return len(self.names)


class Labels(NamedTuple):
    """Classes of the observations: codes (-1: none) and names."""

    codes: Ints
    names: list[str]


def coordinates(adata: AnnData, spatial_key: str = _keys.SPATIAL, libs: Libraries | None = None) -> Floats:
    """Return x and y of ``obsm[spatial_key]`` as float64, checked to be finite; z may vary between sections only."""
    mend = "Put the x, y position of every observation there (n_obs x 2), or name the key that holds them."
    check_in(adata, "obsm", spatial_key, "spatial_key", mend)
    where, stored = f"`adata.obsm[{spatial_key!r}]`", adata.obsm[spatial_key]
    if np.ma.is_masked(stored):
        raise ValueError(f"{where} has masked positions; drop these observations, and store a plain array.")
    values = np.asarray(stored)
    if values.dtype.kind not in "buifO":
        raise TypeError(f"{where} holds {values.dtype}, not real numbers.")
    try:
        xy = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as err:
        raise TypeError(f"{where} does not hold numbers: {err}") from err
    if xy.ndim != 2 or xy.shape[1] < 2:
        raise ValueError(f"{where} has shape {xy.shape}; expected (n_obs, 2).")
    bad = ~np.isfinite(xy[:, :2]).all(axis=1)
    if bad.any():
        raise ValueError(
            f"{int(bad.sum())} of {len(xy)} observations have NaN or infinite coordinates in {where} (first: "
            f"{adata.obs_names[int(np.argmax(bad))]!r}); "
            f"drop them, e.g. `adata = adata[np.isfinite(adata.obsm[{spatial_key!r}]).all(axis=1)].copy()`."
        )
    if np.abs(xy[:, :2]).max(initial=0) > _LARGEST_COORDINATE:
        raise ValueError(f"{where} has coordinates beyond {_LARGEST_COORDINATE:g}: distances would overflow.")
    _check_flat(xy[:, 2:], spatial_key, libs)
    return np.ascontiguousarray(xy[:, :2])


def _check_flat(rest: Floats, spatial_key: str, libs: Libraries | None) -> None:
    """Check that columns beyond x and y are constant within every section."""
    if libs is None:
        libs = Libraries([""], np.zeros(len(rest), dtype=np.int64))
    for code, name in enumerate(libs.names):
        part = rest[libs.codes == code]
        if part.size == 0 or np.isnan(part).all() or not np.any(part != part[0]):
            continue
        within = "" if len(libs) == 1 else f" within section {name!r}"
        raise ValueError(
            f"`adata.obsm[{spatial_key!r}]` has {rest.shape[1] + 2} columns, and z varies{within} from "
            f"{np.nanmin(part):g} to {np.nanmax(part):g}: two dimensions are used. For a stack of sections name the "
            "section of each observation with `library_key=`; z may differ between them. To project onto the plane, "
            f"keep x and y: `adata.obsm[{spatial_key!r}] = adata.obsm[{spatial_key!r}][:, :2]`."
        )


def libraries(adata: AnnData, library_key: str | bool | None) -> Libraries:
    """Return the sections named by ``obs[library_key]``, or one section for None and False."""
    if library_key is None or library_key is False:
        spatial = adata.uns.get(_keys.SPATIAL)
        entries = spatial.items() if isinstance(spatial, Mapping) else ()
        names = [str(name) for name, entry in entries if isinstance(entry, Mapping)]  # others are not sections
        if len(names) > 1 and library_key is None:
            raise ValueError(
                f"`adata.uns['spatial']` names several sections ({listing(names)}) but `library_key` is None; "
                "pass `library_key=`, the obs column that says which section an observation belongs to, or "
                "`library_key=False` if all are one section."
            )
        if len(names) == 1 and (why := unstorable(names[0])):
            raise ValueError(
                f"`adata.uns['spatial']` names a section that h5ad and zarr cannot store in a key: {names[0]!r} {why}. "
                f"Rename it: `adata.uns['spatial'] = {{'name': adata.uns['spatial'][{names[0]!r}]}}`."
            )
        return Libraries(names if len(names) == 1 else [_keys.LIBRARY], np.zeros(adata.n_obs, dtype=np.int64))
    if library_key is True:
        raise TypeError("`library_key=True` is not a column; it takes a column of `adata.obs`, False or None.")
    check_in(adata, "obs", library_key, "library_key")
    column = adata.obs[library_key]
    if column.isna().any():
        raise ValueError(f"`adata.obs[{library_key!r}]` has {int(column.isna().sum())} missing values; every "
                         "observation must belong to a section.")  # fmt: skip
    if column.nunique() == adata.n_obs > 1:
        raise ValueError(f"`adata.obs[{library_key!r}]` has another value for each of the {adata.n_obs} observations; "
                         "it should name the section of each.")  # fmt: skip
    values = column.unique()
    _check_distinct(values, [str(n) for n in values], library_key)
    if bad := sorted(filter(unstorable, {str(n) for n in values})):
        raise ValueError(
            f"Section names in `adata.obs[{library_key!r}]` that h5ad and zarr cannot store in a key: {listing(bad)} "
            f"({bad[0]!r} {unstorable(bad[0])}). Rename them, e.g. with `.astype(str).str.replace('/', '_')`."
        )
    codes, names = pd.factorize(column.astype(str), sort=True)
    return Libraries([str(n) for n in names], codes.astype(np.int64))


def spatial_entry(adata: AnnData, library: str) -> dict[str, Mapping[str, Any]]:
    """Return images, scale factors and metadata in ``uns["spatial"][library]``, each empty where there is none."""

    def mapping(value: Any) -> Mapping[str, Any]:
        return value if isinstance(value, Mapping) else {}

    entry = mapping(mapping(adata.uns.get(_keys.SPATIAL)).get(library))
    return {name: mapping(entry.get(name)) for name in (_keys.IMAGES, _keys.SCALEFACTORS, "metadata")}


def params_of(slot: Any) -> dict[str, Any]:
    """Return the ``params`` of a slot: in a mapping, or in ``uns`` of an AnnData; empty where there are none."""
    holder = getattr(slot, "uns", slot)
    params = holder.get("params", {}) if isinstance(holder, Mapping) else {}
    return dict(params) if isinstance(params, Mapping) else {}


def stored_library_key(params: Mapping[str, Any]) -> str | bool | None:
    """Return the ``library_key`` in the stored ``params`` of a call."""
    stored = params.get("library_key")
    return None if stored is None else False if isinstance(stored, (bool, np.bool_)) else str(stored)


def inherited_library_key(adata: AnnData, key: str, library_key: str | bool | None) -> str | bool | None:
    """Return ``library_key`` or, for None, that of the call that wrote ``uns[key]``."""
    return stored_library_key(params_of(adata.uns.get(key))) if library_key is None else library_key


def array_positions(adata: AnnData) -> Floats | None:
    """Return array row and column as numbers (NaN where they are not numbers), or None without them."""
    keys = [_keys.ARRAY_ROW, _keys.ARRAY_COL]
    if not set(keys) <= set(adata.obs):
        return None
    columns = adata.obs[keys].astype(object).apply(pd.to_numeric, errors="coerce")
    return columns.to_numpy(dtype=np.float64, na_value=np.nan)


def fingerprint(xy: Floats) -> int:
    """Return a checksum of coordinates, which shows whether a stored raster belongs to them."""
    return zlib.crc32(np.ascontiguousarray(xy, dtype=np.float64).tobytes())


def class_column(adata: AnnData, key: str, param: str) -> pd.Series:
    """Return a categorical, string, boolean or integer column as categorical, with unused categories."""
    check_in(adata, "obs", key, param)
    column = adata.obs[key]
    if pd.api.types.is_float_dtype(column.dtype):
        finite = column.dropna()
        whole = len(finite) and (finite == np.rint(finite)).all()
        code = f"adata.obs[{key!r}]"
        classes = f"{code}.astype('Int64').astype('category')" if whole else f"pd.cut({code}, 2)"
        raise TypeError(
            f"`{code}` holds floating-point numbers; `{param}` needs classes. Convert it, e.g. `{code} = {classes}`."
        )
    try:
        return column.astype("category")
    except TypeError as err:
        raise TypeError(f"`adata.obs[{key!r}]` holds no classes: {err}; store one string per observation.") from err


def categories(adata: AnnData, key: str, param: str, *, min_classes: int = 1) -> Labels:
    """Return the classes that a column holds."""
    column = class_column(adata, key, param).cat.remove_unused_categories()
    labels = [str(name) for name in column.cat.categories]
    _check_distinct(column.cat.categories, labels, key)
    if len(labels) < min_classes:
        raise ValueError(
            f"`adata.obs[{key!r}]` has {len(labels)} class(es) ({listing(labels)}); `{param}` needs {min_classes}."
        )
    missing = _UNLABELLED if param == "labels_key" else _MISSING_AS_TEXT
    lost = next((name for name in labels if name.strip().lower() in missing), None)
    if lost is not None:
        code = f"adata.obs[{key!r}]"
        warn(f"`{code}` has the class {lost!r}, which counts as any other class. If it stands for missing values: "
             f"`{code} = {code}.where({code} != {lost!r})`.")  # fmt: skip
    return Labels(column.cat.codes.to_numpy(np.int64), labels)


def value_per_unit(
    units: Libraries, codes: Ints, names: Sequence[Any], key: str, unit_key: str = "library_key",
    reason: str = "A section belongs to one subject and to one condition.",
) -> Ints:  # fmt: skip
    """Return the one code that each section (or subject) has; -1 where it has none."""
    pairs = np.unique(np.stack([units.codes, codes], axis=1)[(units.codes >= 0) & (codes >= 0)], axis=0)
    unit, counts = np.unique(pairs[:, 0], return_counts=True)
    if (counts > 1).any():
        first = int(unit[np.argmax(counts > 1)])
        several = [names[i] for i in pairs[pairs[:, 0] == first, 1]]
        raise ValueError(
            f"{units.names[first]!r} (`{unit_key}`) has several values in `adata.obs[{key!r}]`: {listing(several)}. "
            + reason
        )
    out = np.full(len(units.names), -1)
    out[pairs[:, 0]] = pairs[:, 1]
    return out


def subjects_of(adata: AnnData, libs: Libraries, subject_key: str) -> Libraries:
    """Return names of the subjects and, per section, the index of its subject."""
    codes, names = categories(adata, subject_key, "subject_key")
    out = value_per_unit(libs, codes, names, subject_key)
    without = [name for name, code in zip(libs.names, out, strict=True) if code < 0]
    if without:
        raise ValueError(f"`adata.obs[{subject_key!r}]` is missing in all observations of {listing(without)}.")
    return Libraries(names, out)


def subject_of_libraries(adata: AnnData, libs: Libraries, subject_key: str | None) -> tuple[int, ...] | None:
    """Return the subject of each section, or None where every subject has one or no key is given."""
    if subject_key is None:
        return None
    codes = subjects_of(adata, libs, subject_key).codes
    return tuple(codes.tolist()) if len(np.unique(codes)) < len(codes) else None


def label_classes(adata: AnnData, key: str, param: str) -> Labels:
    """Return the classes of a label column, checked to be at least two with names that files can store."""
    labels = categories(adata, key, param, min_classes=2)
    check_class_names(labels.names, key)
    return labels


def genes_to_predict(
    adata: AnnData, genes: Sequence[str] | None, key: str | None, param: str = "expression"
) -> list[str]:
    """Check genes to predict from the others, and the mask ``obs[key]`` of the observations to learn them from."""
    if genes is None:
        if key is not None:
            raise ValueError("`expression_key` needs `expression`, the genes to predict.")
        return []
    if isinstance(genes, str):
        raise TypeError(f"`{param}={genes!r}` must be a list of genes, such as [{genes!r}].")
    names = check_names(param, genes, "a gene")
    if absent := [g for g in names if g not in adata.var_names]:
        raise KeyError(f"`{param}` names {absent[:3]}, not found in `adata.var_names`.")
    if not names or len(set(names)) < len(names) or len(names) > adata.n_vars - 2:
        raise ValueError(
            f"`{param}` names {len(names)} gene(s), {len(set(names))} different ones, of {adata.n_vars}; name each "
            "gene once, and leave at least two as input."
        )
    if key is not None:
        check_in(adata, "obs", key, "expression_key")
        column = adata.obs[key]
        if column.dtype != bool:
            raise TypeError(f"`adata.obs[{key!r}]` is {column.dtype}; `expression_key` takes a boolean column.")
        if not column.any():
            raise ValueError(f"`adata.obs[{key!r}]` is False everywhere: there is nothing to learn from.")
    return names
