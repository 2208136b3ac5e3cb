"""The version of this package: what a certificate says it was made by, and what hatchling builds."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
