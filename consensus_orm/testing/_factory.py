"""Imports factory-boy, or raises an error that names the extra it comes with.

Its declarations are untyped; here they are `Any`, so that the factories themselves can be typed.
"""

from __future__ import annotations

from typing import Any

from consensus_orm.errors import ConfigurationError

try:
    from factory import declarations
    from factory.alchemy import SQLAlchemyModelFactory
    from factory.base import DictFactory, Factory
except ImportError as error:
    raise ConfigurationError(
        "the factories of consensus_orm.testing need factory-boy, which is not installed",
        hint="run: pip install 'consensus-orm[testing]'",
    ) from error

__all__ = [
    "DictFactory",
    "Factory",
    "Iterator",
    "LazyAttribute",
    "LazyFunction",
    "SQLAlchemyModelFactory",
    "SelfAttribute",
    "Sequence",
    "SubFactory",
    "Trait",
    "choice",
]

Iterator: Any = declarations.Iterator
LazyAttribute: Any = declarations.LazyAttribute
LazyFunction: Any = declarations.LazyFunction
SelfAttribute: Any = declarations.SelfAttribute
Sequence: Any = declarations.Sequence
SubFactory: Any = declarations.SubFactory
Trait: Any = declarations.Trait


def choice(parameter: str, of: Any) -> Any:
    """A field with the value of a shape, which a parameter of the factory names."""
    return LazyAttribute(lambda o: of[getattr(o, parameter)])
