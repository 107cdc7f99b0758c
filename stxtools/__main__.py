"""Command line ``python -m stxtools``: the whole pipeline or single steps."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from stxtools._run.options import STEPS, UsageError, add_options, as_flags, error_text, options_of

from ._version import __version__

if TYPE_CHECKING:
    from stxtools._run.pipeline import Run

_DESCRIPTION = """\
Segments tissue, builds the region graph, embeds it and finds biomarkers; writes adata.h5ad, biomarkers.csv,
report.html, figures and run.json. Arguments are checked against the file before anything long starts. Each step is
saved in OUT/unfinished when it ends, and --resume goes on from there; results of an earlier run stay until the new ones
are complete."""
_EPILOG = "exit status: 0 done; 1 an error on the way; 2 the arguments do not fit; 130 interrupted (Ctrl-C, SIGTERM)"


def parser(selected: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of the command line; only the selected command has its options."""
    main_parser = argparse.ArgumentParser(
        prog="stxtools", description="Spatial transcriptomics: from a section to biomarkers."
    )
    main_parser.add_argument("--version", action="version", version=f"stxtools {__version__}")
    commands = main_parser.add_subparsers(dest="command", required=True)
    summaries = {"run": "segment, region graph, embedding, biomarkers and report of one file or several"} | STEPS
    for name, summary in summaries.items():
        description = _DESCRIPTION if name == "run" else f"One step on a file: {summary}."
        command = commands.add_parser(name, help=summary, description=description, epilog=_EPILOG)
        if name == selected:
            if name != "run":
                suffix = ".html" if name == "report" else ".h5ad"
                command.add_argument("input", metavar="IN", help="the section, as for `run --input`")
                command.add_argument("output", metavar="OUT", help=f"the {suffix} file to write or replace")
            add_options(command, name)
    return main_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = vars(parser(next(iter(argv), None)).parse_args(argv))
    os.environ.setdefault("MPLBACKEND", "Agg")  # figures go to files
    known = options_of(arguments["command"])
    with warnings.catch_warnings(), _terminable():
        warnings.showwarning = partial(_show_warning, known)
        return _run(arguments, known)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM, which a cluster sends at a job's time limit, stop a run as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # only it may set a handler
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(arguments: dict[str, Any], known: Collection[str]) -> int:
    run: Run | None = None
    try:
        from stxtools._run.pipeline import Run, run_step

        if arguments["command"] != "run":
            run_step(arguments)
            return 0
        run = Run(arguments)
        if not run():
            _print_error(f"the run in {run.options.out} is complete; nothing to do.")
            return 0
    except UsageError as err:
        _print_error(str(err))
        return 2
    except KeyboardInterrupt:
        _print_error(f"interrupted; {'nothing was written.' if run is None else run.saved()}")
        return 130
    except (KeyError, ValueError, TypeError, OSError, RuntimeError, MemoryError) as err:
        where = f"{arguments['command']}; nothing was written." if run is None else f"{run.step}; {run.saved()}"
        _print_error(f"{as_flags(error_text(err), known)}\nstopped in step {where}")
        return 1
    sys.stdout.write(run.summary())
    return 0


def _print_error(text: str) -> None:
    for line in text.splitlines():
        sys.stderr.write(f"stxtools: {line}\n")


def _show_warning(
    known: Collection[str], message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any
) -> None:
    """Show a warning of this package without the line of code."""
    from tqdm import tqdm

    if issubclass(category, (UserWarning, RuntimeWarning)):
        tqdm.write(f"stxtools: warning: {as_flags(str(message), known)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
