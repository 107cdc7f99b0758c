"""``python -m stxtools run``: from a section to biomarkers, for cluster jobs and the demo."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ._version import __version__


def parser() -> argparse.ArgumentParser:
    """Return the command line's description."""
    top = argparse.ArgumentParser(prog="stxtools", description="Spatial transcriptomics: from a section to biomarkers.")
    top.add_argument("--version", action="version", version=f"stxtools {__version__}")
    commands = top.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "run",
        help="segment, region graph, embedding and biomarkers of one file",
        description="Runs the whole line on one .h5ad or .zarr file (or on generated tissue) and writes adata.h5ad, "
        "biomarkers.csv and figures.",
    )
    run.add_argument("--input", metavar="FILE", help="section(s), .h5ad or .zarr; default: generated tissue")
    run.add_argument("--out", default="demo", metavar="FOLDER", help="where to write (default: %(default)s)")
    run.add_argument("--library-key", metavar="COLUMN", help="obs column that names the section")
    run.add_argument(
        "--groupby", metavar="COLUMN", help="obs column to find biomarkers for (default: the segments, or disease)"
    )
    run.add_argument("--labels-key", metavar="COLUMN", help="obs column with a few labelled observations")
    run.add_argument("--n-segments", type=int, metavar="K", help="number of segments (default: chosen)")
    run.add_argument("--seed", type=int, default=0, help="seed of every random choice (default: %(default)s)")
    run.add_argument("--accelerator", default="auto", help="auto, cpu, gpu ... (default: %(default)s)")
    run.add_argument("--quiet", action="store_true", help="no progress bars")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = parser().parse_args(argv)
    from ._run import run

    try:
        run(
            args.input,
            out=args.out,
            library_key=args.library_key,
            groupby=args.groupby,
            labels_key=args.labels_key,
            n_segments=args.n_segments,
            random_state=args.seed,
            accelerator=args.accelerator,
            show_progress=False if args.quiet else None,
        )
    except (KeyError, ValueError, TypeError, OSError) as err:
        message = err.args[0] if isinstance(err, KeyError) and err.args else err
        sys.stderr.write(f"stxtools: {message}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stxtools: interrupted; nothing was written.\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
