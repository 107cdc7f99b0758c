"""Labels drawn with the pointer, in a notebook."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from stxtools import _keys
from stxtools._api import public
from stxtools._checks import check_int, check_key
from stxtools._colors import colors_for
from stxtools._on_spatialdata import temporary_spatial
from stxtools._types import Ints
from stxtools._validate import (
    check_adata,
    check_class_names,
    check_in,
    check_key_added,
    inherited_library_key,
    params_of,
)

from ._base import store_colors
from ._legend import MISSING, category_codes, colors_of
from ._sections import Panel, grid_offsets, panels_of

_UNLABELLED, _SUGGESTED = "no label", "suggested"
_DARK = "#1d2329"
_MAP_SIZE = 430  # pixels of a map
_ERASER = "(erase)"


@public
def annotate(
    adata: AnnData, key: str = "annotation", classes: Sequence[str] = (), *,
    n_suggested: int = 10, segment_key: str = _keys.SEGMENT, spatial_key: str = _keys.SPATIAL,
    library_key: str | bool | None = None, segment_params: Mapping[str, Any] | None = None,
) -> Annotator:  # fmt: skip
    """Annotate observations interactively in Jupyter, and segment with these labels.

    Choose a class and select observations with the lasso or the brush: they are labelled in ``obs[key]`` immediately.
    "Segment" runs :func:`stxtools.tl.segment` with these labels, shows the result, and marks the observations that
    :func:`stxtools.tl.suggest_labels` suggests to label next. Needs ``pip install 'stxtools[annotate]'``.

    Parameters
    ----------
    key
        Column of ``obs`` for the labels; existing labels are kept.
    classes
        Names of classes, in addition to those in ``obs[key]``; more can be added in the notebook.
    n_suggested
        Number of observations to suggest.
    segment_key
        Key of the segments, the ``key_added`` of :func:`stxtools.tl.segment`.
    spatial_key
        Key of ``obsm`` with the spatial coordinates (x, y).
    segment_params
        Further arguments of :func:`stxtools.tl.segment`, such as ``{"use_rep": "X_pca"}``.

    Returns
    -------
    An ``Annotator``, which Jupyter displays. Its methods do the same as its buttons.

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=500)
    >>> st.pl.annotate(adata, "layer", ["outer", "inner"])  # doctest: +SKIP
    """
    check_adata(adata)
    if adata.is_view:
        raise ValueError("`adata` is a view, whose labels would be lost; pass a copy (`adata = adata.copy()`).")
    check_key("key", key)
    if not isinstance(segment_params, (Mapping, type(None))):
        raise TypeError(f"`segment_params` must be a mapping of arguments, not {segment_params!r}.")
    if key not in adata.obs:
        check_key_added(key, "annotation", "key")
    segment_key = check_key_added(segment_key, _keys.SEGMENT, "segment_key")
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise TypeError(f"`classes` must be a list of names, not {classes!r}.")
    library_key = inherited_library_key(adata, segment_key, library_key)
    keys = {"spatial_key": spatial_key, "library_key": library_key, "key_added": segment_key}
    n_suggested = check_int("n_suggested", n_suggested, minimum=1)
    return Annotator(adata, key, classes, n_suggested, keys, segment_params or {})


class Annotator:
    """A map on which observations are labelled in ``adata.obs[key]``, beside a map of the segments.

    - ``classes``, ``active``: Names of the classes, and the one that the next stroke gives; None removes labels.
    - ``widget``: The ipywidgets box that a notebook shows.
    """

    def __init__(
        self, adata: AnnData, key: str, classes: Sequence[str], n_suggested: int, keys: Mapping[str, Any],
        segment_params: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self.adata, self.key = adata, key
        # the table of SpatialData has them only until this call returns; each button sets them again
        self._spatial = adata.obsm.get(_keys.SPATIAL), adata.uns.get(_keys.SPATIAL)
        self._n_suggested, self._segment_keys, self._segment_params = n_suggested, keys, segment_params
        codes, present = category_codes(adata, key) if key in adata.obs else (np.full(adata.n_obs, -1), [])
        self.classes = list(dict.fromkeys([*present, *map(str, classes)]))
        check_class_names(self.classes, key)
        self._colors = colors_for(self.classes, colors_of(adata, key) if present else {})
        self._codes: Ints = np.array(codes, dtype=np.int64)
        self._undo_stack: list[Ints] = []
        self.active: str | None = self.classes[0] if self.classes else None
        params = params_of(adata.uns.get(keys["key_added"]))
        panels = panels_of(adata, params, spatial_key=keys["spatial_key"], library_key=keys["library_key"])
        self._order = np.concatenate([panel.rows for panel in panels])  # points of the maps -> observations
        self.widget = self._build_widget(panels)
        self.refresh()

    def label(self, observations: Any, name: str | None) -> None:
        """Give observations (rows, names or a mask) a class, or remove their labels (None)."""
        rows = self._rows(observations)
        if name is not None and name not in self.classes:
            raise ValueError(f"{name!r} is not one of the classes {self.classes}; `add_class({name!r})` adds it.")
        self._undo_stack.append(self._codes.copy())
        self._codes[rows] = -1 if name is None else self.classes.index(name)
        self._write()

    def undo(self) -> None:
        """Undo the last stroke."""
        if self._undo_stack:
            self._codes = self._undo_stack.pop()
            self._write()

    def add_class(self, name: str) -> None:
        """Add a class, which the next stroke gives."""
        if name not in self.classes:
            check_class_names([*self.classes, name], self.key)
            self.classes.append(name)
            self._colors = colors_for(self.classes, self._colors)
        self.active = name
        self.refresh()

    def suggest(self) -> None:
        """Mark the observations that should be labelled next."""
        from stxtools import tl

        labels: dict[str, Any] = {"labels_key": self.key} if self.key in self.adata.obs else {}
        keys: dict[str, Any] = {name: self._segment_keys[name] for name in ("spatial_key", "library_key")}
        with self._with_spatial_slots():
            tl.suggest_labels(self.adata, self._n_suggested, key=self._segment_keys["key_added"], **labels, **keys)
        self.refresh()

    def segment(self) -> None:
        """Segment with the labels, draw the result, and suggest what to label next."""
        from stxtools import tl

        check_in(self.adata, "obs", self.key, "key", "Label some observations first.")
        with self._with_spatial_slots():
            tl.segment(self.adata, labels_key=self.key, show_progress=False, **self._segment_keys,
                       **self._segment_params)  # fmt: skip
        self.suggest()

    def _with_spatial_slots(self) -> AbstractContextManager[Any]:
        """Return a context in which a table of SpatialData has its positions and images."""
        return nullcontext() if _keys.SPATIAL in self.adata.obsm else temporary_spatial(self.adata, *self._spatial)

    def refresh(self) -> None:
        """Draw what the AnnData holds."""
        (left, right), key, obs = self.maps, self._segment_keys["key_added"], self.adata.obs
        suggested = obs[_keys.SUGGESTED].notna().to_numpy() if _keys.SUGGESTED in obs else False
        # 0: no label, 1: suggested, from 2: the classes
        shown = np.where(self._codes < 0, np.where(suggested, 1, 0), self._codes + 2)[self._order]
        colors = [self._colors[name] for name in self.classes]
        self._color(left, shown, [_UNLABELLED, _SUGGESTED, *self.classes], [MISSING, _DARK, *colors], shown == 1)
        self.right.layout.display = "" if key in obs else "none"
        if key in obs:
            codes, palette = category_codes(self.adata, key)[0][self._order], colors_of(self.adata, key)
            self._color(right, codes + 1, [_UNLABELLED, *palette], [MISSING, *palette.values()], codes < -1)
        active = self.active  # new options choose the first of them
        self.choice.options = [*self.classes, _ERASER]
        self.choice.value = active or _ERASER
        counts = np.bincount(shown, minlength=len(self.classes) + 2)
        self.status.value = f"{counts[2:].sum():,} of {len(shown):,} labelled"
        entries = list(zip(self.classes, colors, counts[2:], strict=True))
        entries += [(_SUGGESTED, _DARK, counts[1])] if counts[1] else []
        self.legend.value = " &emsp; ".join(
            f'<span style="color:{color}">&#9679;</span> {html.escape(name)} {n:,}' for name, color, n in entries
        )

    def _color(self, scatter: Any, codes: Any, names: Sequence[str], colors: Sequence[str], large: Any) -> None:
        """Colour points by class, among those that occur: jupyter-scatter gives colours to no others."""
        used, at = np.unique(codes, return_inverse=True)
        # a class may have the name of one of ours
        by = pd.Categorical.from_codes(at, [f"{i}: {names[i]}" for i in used])
        scatter.color(by=by, map=[colors[i] for i in used], skip_widget_update=True)
        scatter.size(by=large.astype(float), map=self._sizes, norm=(0, 1))  # sends the colours, too

    def _rows(self, observations: Any) -> Ints:
        given = np.atleast_1d(np.asarray(observations))
        if given.dtype.kind == "b" and given.shape == (self.adata.n_obs,):
            return np.flatnonzero(given)
        if given.dtype.kind in "OU":
            rows = self.adata.obs_names.get_indexer(given)
            if (rows < 0).any():
                raise KeyError(f"{given[rows < 0][0]!r} is not in `adata.obs_names`.")
            return np.asarray(rows, dtype=np.int64)
        if given.dtype.kind not in "iu" or (len(given) and not 0 <= given.min() <= given.max() < self.adata.n_obs):
            raise ValueError(f"Observations are rows from 0 to {self.adata.n_obs - 1}, names, or a mask of all.")
        return given.astype(np.int64)

    def _write(self) -> None:
        self.adata.obs[self.key] = pd.Categorical.from_codes(self._codes, categories=self.classes)
        store_colors(self.adata, self.key, self._colors)
        self.refresh()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        return self.widget._repr_mimebundle_(**kwargs)

    # --- widgets -------------------------------------------------------------------------------------------------

    def _build_widget(self, panels: Sequence[Panel]) -> Any:
        """Return the widget: two maps, the classes and the buttons."""
        try:
            import ipywidgets as ui
            import jscatter
        except ImportError as err:
            raise ImportError("`pl.annotate` needs jupyter-scatter: `pip install 'stxtools[annotate]'`.") from err
        xy = np.concatenate([p.xy + s for p, s in zip(panels, grid_offsets(panels), strict=True)])
        xy[:, 1] *= -1  # positions count downwards, as pixels do
        middle, half = (xy.max(axis=0) + xy.min(axis=0)) / 2, 0.52 * max(np.ptp(xy, axis=0).max(), 1e-9)
        pitch = min(panel.pitch for panel in panels)
        size = float(np.clip(0.9 * pitch * _MAP_SIZE / (2 * half), 2, 14))
        self._sizes = [size, max(1.8 * size, 7.0)]
        self.maps = [
            jscatter.Scatter(
                x=xy[:, 0], y=xy[:, 1], x_scale=(middle[0] - half, middle[0] + half),
                y_scale=(middle[1] - half, middle[1] + half), width=_MAP_SIZE, height=_MAP_SIZE, axes=False,
                size=size, opacity=1.0, lasso_initiator=False, reticle=False,
            )
            for _ in range(2)
        ]  # fmt: skip
        labels, segments = self.maps
        labels.mouse("lasso").lasso(type="brush")
        labels.widget.observe(self._on_stroke, "selection")
        self.choice = ui.ToggleButtons(options=[_ERASER], description="Class")
        self.new = ui.Text(placeholder="new class", continuous_update=False, layout={"width": "10em"})
        self.buttons = {name: ui.Button(description=name) for name in ("Undo", "Suggest", "Segment")}
        self.status, self.legend = ui.HTML(), ui.HTML()
        self.choice.observe(self._on_class, "value")
        self.new.observe(self._on_new_class, "value")
        for name, button in self.buttons.items():
            button.on_click(lambda _, name=name: self._on_button(name))
        tools = ["pan_zoom", "lasso", "lasso_type", "lasso_brush_size", "reset"]
        self.right: Any = ui.VBox([ui.HTML("<b>Segments</b>"), segments.show(buttons=["pan_zoom", "reset"])])
        return ui.VBox([
            ui.HBox([self.choice, self.new]),
            ui.HBox([*self.buttons.values(), self.status]),
            ui.HBox([ui.VBox([ui.HTML("<b>Labels</b>"), labels.show(buttons=tools), self.legend]), self.right]),
        ])  # fmt: skip

    def _on_stroke(self, change: Mapping[str, Any]) -> None:
        points = change["new"]
        if points is not None and len(points):
            self.label(self._order[np.asarray(points, dtype=np.int64)], self.active)
            self.maps[0].selection(None)

    def _on_class(self, change: Mapping[str, Any]) -> None:
        self.active = None if change["new"] == _ERASER else change["new"]

    def _on_new_class(self, change: Mapping[str, Any]) -> None:
        name = change["new"].strip()
        if name:
            self._show_errors(lambda: self.add_class(name))
            self.new.value = ""

    def _on_button(self, name: str) -> None:
        self.status.value = "segmenting ..." if name == "Segment" else ""
        self._show_errors(getattr(self, name.lower()))

    def _show_errors(self, call: Any) -> None:
        """Call, and show an error beside the buttons: a notebook shows none that a button raises."""
        try:
            call()
        except (KeyError, ValueError, TypeError) as err:
            text = str(err.args[0]) if err.args else str(err)
            self.status.value = f'<span style="color:#b00020">{html.escape(text)}</span>'
