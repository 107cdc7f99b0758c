"""How every plot begins and ends: its Axes are checked, and the figure is saved and shown as in scanpy."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from stxtools import _keys
from stxtools._colors import colors_slot
from stxtools._docs import documented
from stxtools._spatialdata import OnSpatialData
from stxtools._validate import check_adata, check_bool, check_number

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

    Colors = tuple[AnnData, str, Mapping[str, str]]

P = ParamSpec("P")
R = TypeVar("R")

_CANNOT_SHOW = frozenset({"agg", "cairo", "pdf", "pgf", "ps", "svg", "template"})


_SHARED_DOC = """\
Returns
-------
None where the figure was shown, else the Axes, or a list of one Axes per panel.

Raises
------
KeyError
    What is to be drawn is missing; the message names the call that makes it.
ValueError, TypeError
    An argument does not fit the data, or ``ax`` is given and there are several panels.

"""


def plot(function: Callable[P, R]) -> OnSpatialData[P, R]:
    """Check what all plots take, close the figures that a failing call leaves, and complete the docstring."""
    if function.__doc__ is not None:  # python -OO
        function.__doc__ = inspect.cleandoc(function.__doc__).replace("Examples\n---", f"{_SHARED_DOC}Examples\n---", 1)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        import matplotlib.pyplot as plt

        if args or "adata" in kwargs:
            check_adata(args[0] if args else kwargs["adata"], unique_vars=False)
        for name, check in _CHECKS.items():
            if name in kwargs:
                check(kwargs[name])
        before = set(plt.get_fignums())
        try:
            return function(*args, **kwargs)
        except BaseException:
            for number in set(plt.get_fignums()) - before:
                plt.close(number)
            raise

    return documented(checked)


def done(
    name: str,
    axes: Sequence[Axes],
    *,
    ax: Axes | None,
    show: bool | None,
    save: bool | str | os.PathLike[str] | None,
    colors: Sequence[Colors] = (),
) -> Any:
    """Save the figure, then store the colours of categories, show it; return its Axes where it was not shown."""
    import matplotlib.pyplot as plt

    figure = axes[0].figure.canvas.figure  # of an Axes in a sub-figure, the whole
    saved = _save(figure, name, save, own=ax is None)
    for adata, key, chosen in colors:
        store_colors(adata, key, chosen)
    if show is None:
        show = ax is None and _can_show()
    if show:
        plt.show()
    if saved and ax is None:  # as scanpy does: a loop over many plots leaves no figures open
        plt.close(figure)
    if show:
        return None
    return axes[0] if len(axes) == 1 else list(axes)


def store_colors(adata: AnnData, key: str, colors: Mapping[str, str]) -> None:
    """Keep the colours of categories where scanpy and squidpy look for them; views are never written."""
    slot, new = _keys.colors(key), colors_slot(colors)
    old = adata.uns.get(slot)
    same = np.ndim(old) == 1 and [str(c) for c in old] == list(new)
    if not (adata.is_view or isinstance(old, Mapping) or same):
        adata.uns[slot] = new


def _can_show() -> bool:
    """Whether a figure is shown without being asked: the backend can, and scanpy's settings do not forbid it."""
    import matplotlib.pyplot as plt

    if plt.get_backend().lower() in _CANNOT_SHOW:
        return False
    import scanpy as sc

    return bool(sc.settings.autoshow)


def _save(figure: Any, name: str, save: bool | str | os.PathLike[str] | None, *, own: bool) -> bool:
    if save is None and own:
        scanpy = sys.modules.get("scanpy")  # settings of a scanpy that was not imported are its defaults
        save = scanpy is not None and bool(scanpy.settings.autosave)
    if save is None or save is False:
        return False
    if isinstance(save, os.PathLike):
        path = Path(save).expanduser()
    else:
        from scanpy import settings

        text = "" if save is True else save
        ending = Path(text).suffix
        if ending[1:] not in figure.canvas.get_supported_filetypes():
            ending = f".{settings.file_format_figs}"
        path = Path(settings.figdir) / f"{name}{text.removesuffix(ending)}{settings.plot_suffix}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight")
    return True


def _check_axes(ax: Any) -> None:
    from matplotlib.axes import Axes

    if ax is not None and not isinstance(ax, Axes):
        hint = " One of them is, such as `ax=axes[0]`." if isinstance(ax, (list, tuple)) or hasattr(ax, "ravel") else ""
        raise TypeError(f"`ax` must be a matplotlib Axes, such as `plt.subplots()[1]`, not {type(ax).__name__}.{hint}")


def _check_show(show: Any) -> None:
    if show is not None and not isinstance(show, bool):
        raise TypeError(f"`show` must be True, False or None, not {show!r}.")


def _check_save(save: Any) -> None:
    if save is None or isinstance(save, (bool, os.PathLike)):
        return
    if not isinstance(save, str):
        raise TypeError(f"`save` must be True, a string that follows the plot's name, or a path; got {save!r}.")
    if "/" in save or "\\" in save or "\0" in save:
        raise ValueError(
            f"`save={save!r}` follows the plot's name in `scanpy.settings.figdir` and cannot hold a folder; pass "
            f"`save=pathlib.Path({save!r})` for that very file."
        )


def _check_img(img: Any) -> None:
    if img is not None and not isinstance(img, (bool, str)):
        raise TypeError(f"`img` must be True, False, None or the name of an image, not {img!r}.")


_SWITCHES = ("legend", "heatmap", "labels", "log", "mask", "show_confidence", "spots")
_CHECKS: dict[str, Callable[[Any], object]] = {
    "ax": _check_axes,
    "show": _check_show,
    "save": _check_save,
    "fdr": functools.partial(check_number, "fdr", minimum=0, maximum=1),
    **{name: functools.partial(check_bool, name) for name in _SWITCHES},
    "img": _check_img,
}
