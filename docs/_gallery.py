"""Figures of the plots, made at build time by running the examples in their docstrings."""

from __future__ import annotations

import contextlib
import doctest
import inspect
import io
import tempfile
import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl

FIGURES = Path(__file__).resolve().parent / "generated" / "figures"
DPI = 110


def _run(function: Any, folder: str) -> Any:
    """Run the examples of a docstring in `folder` and return the figure that they leave, or None."""
    import matplotlib.pyplot as plt

    import stxtools as st

    names: dict[str, Any] = {"st": st, "__name__": "__main__"}
    plt.close("all")
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        for example in doctest.DocTestParser().get_examples(inspect.getdoc(function) or ""):
            exec(compile(example.source, f"<example of {function.__name__}>", "single"), names)
    return plt.figure(plt.get_fignums()[-1]) if plt.get_fignums() else None


def draw_all(functions: dict[str, Any]) -> None:
    """Draw each function's figure into ``pl.name.png``; one that is younger than the package is kept."""
    import matplotlib.pyplot as plt

    import stxtools as st

    root = Path(st.__file__).parent
    youngest = max(path.stat().st_mtime for path in root.rglob("*.py"))
    FIGURES.mkdir(parents=True, exist_ok=True)
    for stale in FIGURES.glob("pl.*.png"):
        if stale.stem.removeprefix("pl.") not in functions:
            stale.unlink()
    shown, st.settings.show_progress = st.settings.show_progress, False
    backend = mpl.get_backend()
    try:
        plt.switch_backend("Agg")
        for name, function in functions.items():
            path = FIGURES / f"pl.{name}.png"
            if path.exists() and path.stat().st_mtime > youngest:
                continue
            with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                figure = _run(function, folder)
            if figure is None:
                raise RuntimeError(f"The example of pl.{name} draws no figure.")
            figure.savefig(path, dpi=DPI, bbox_inches="tight")
            plt.close("all")
    finally:
        st.settings.show_progress = shown
        plt.switch_backend(backend)
