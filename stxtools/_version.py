"""The version: the installed distribution's, so that it is written in pyproject.toml alone."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("stxtools")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0.0.0+source"
