"""Markdown of a data frame, which pandas makes only with a further package."""

from __future__ import annotations

import pandas as pd


def markdown(table: pd.DataFrame) -> str:
    """Return a table with the names of the index and of the columns."""
    table = table.reset_index()
    names = [", ".join(f"{part:g}" if isinstance(part, float) else str(part) for part in name if part != "")
             if isinstance(name, tuple) else str(name) for name in table.columns]  # fmt: skip
    cells = [
        [f"{cell:g}" if isinstance(cell, float) else str(cell) for cell in row] for row in table.itertuples(index=False)
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in [names, ["---"] * len(names), *cells])
