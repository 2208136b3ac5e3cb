"""The version of this package: what a certificate says it was made by."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__"]

try:
    __version__ = version("consensus-orm")
except PackageNotFoundError:  # a checkout that nobody installed
    __version__ = "0+unknown"
