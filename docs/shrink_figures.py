"""Store the figures of notebooks with 256 colours, a third of the size: ``python docs/shrink_figures.py FILE ...``."""

from __future__ import annotations

import base64
import io
import json
import sys
from pathlib import Path

from PIL import Image


def shrink(png: str) -> str:
    """Return a base64-encoded PNG with a palette of its main and rare colours, or the same if smaller."""
    figure = Image.open(io.BytesIO(base64.b64decode(png)))
    white = Image.new("RGBA", figure.size, "white")
    flat = Image.alpha_composite(white, figure.convert("RGBA")).convert("RGB")
    out = io.BytesIO()
    flat.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE).save(
        out, "PNG", optimize=True
    )
    return min(png, base64.b64encode(out.getvalue()).decode(), key=len)


def main(paths: list[str]) -> None:
    for path in map(Path, paths):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            for output in cell.get("outputs", []):
                png = output.get("data", {}).get("image/png")
                if png is not None:
                    output["data"]["image/png"] = shrink("".join(png))
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
