"""``python -m stxtools``: from a section to biomarkers at once or step by step, for cluster jobs and the demo."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stxtools._run.options import UsageError, add_arguments, as_flags, gathered
from stxtools._run.steps import STEPS, Step, add_step

from ._version import __version__

if TYPE_CHECKING:
    from stxtools._run.pipeline import Run

_DESCRIPTION = """\
Segments tissue, builds the region graph, embeds it and finds biomarkers; writes adata.h5ad, biomarkers.csv,
report.html, figures and run.json. Arguments are checked against the file before anything long starts. Each step is
saved in OUT/unfinished when it ends, and --resume goes on from there; results of an earlier run stay until the new ones
are complete."""
_EPILOG = "exit status: 0 done; 1 an error on the way; 2 the arguments do not fit; 130 interrupted (Ctrl-C, SIGTERM)"


def parser(asked: str | None = None) -> argparse.ArgumentParser:
    """Return the command line's description; of the steps only the one asked for, whose function is imported."""
    top = argparse.ArgumentParser(prog="stxtools", description="Spatial transcriptomics: from a section to biomarkers.")
    top.add_argument("--version", action="version", version=f"stxtools {__version__}")
    commands = top.add_subparsers(dest="command", required=True)
    help_ = "segment, region graph, embedding, biomarkers and report of one file or several"
    add_arguments(commands.add_parser("run", help=help_, description=_DESCRIPTION, epilog=_EPILOG))
    for step, help_ in STEPS.items():
        one = commands.add_parser(step, help=help_, description=f"One step on a file: {help_}.", epilog=_EPILOG)
        if step == asked:
            add_step(one, step)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = vars(parser(next(iter(argv), None)).parse_args(argv))
    os.environ.setdefault("MPLBACKEND", "Agg")  # figures go to files
    with warnings.catch_warnings(), _terminable():
        warnings.showwarning = _show_warning
        return _run(arguments)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM, which a cluster sends when a job's time is over, stop a run as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # others may set no handler
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(arguments: dict[str, Any]) -> int:
    run: Run | Step | None = None
    try:
        if arguments["command"] == "run":
            from stxtools._run.pipeline import Run

            run = Run(gathered(arguments))
        else:
            run = Step(arguments)
        if not run():
            _say(f"the run in {run.output} is complete; nothing to do.")
            return 0
    except UsageError as err:
        _say(as_flags(str(err)))
        return 2
    except KeyboardInterrupt:
        _say(f"interrupted; {'nothing was written.' if run is None else run.saved()}")
        return 130
    except (KeyError, ValueError, TypeError, OSError, RuntimeError, MemoryError) as err:
        message = err.args[0] if isinstance(err, KeyError) and err.args else str(err) or type(err).__name__
        if isinstance(err, OSError) and err.strerror:
            message = err.strerror if err.filename is None else f"{err.strerror}: {err.filename}"
        _say(f"{as_flags(str(message))}\nstopped{'' if run is None else f' in step {run.step}; {run.saved()}'}")
        return 1
    sys.stdout.write(run.summary())
    return 0


def _say(text: str) -> None:
    for line in text.splitlines():
        sys.stderr.write(f"stxtools: {line}\n")


def _show_warning(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
    """Show a warning of this package without the line of code; it is nothing the user wrote."""
    from tqdm import tqdm

    if issubclass(category, (UserWarning, RuntimeWarning)):
        tqdm.write(f"stxtools: warning: {as_flags(str(message))}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
