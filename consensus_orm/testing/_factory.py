"""Imports factory-boy, or raises an error that names the extra it comes with.

Its declarations are untyped; here they are `Any`, so that the factories themselves can be typed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from consensus_orm.errors import ConfigurationError
from consensus_orm.testing.session import is_on_server
from consensus_orm.testing.shapes import CONTENTS, RUN_IDS, TIMES, is_text

try:
    from factory import declarations, random
    from factory.alchemy import SQLAlchemyModelFactory
    from factory.base import DictFactory, Factory
except ImportError as error:
    raise ConfigurationError(
        "the factories of consensus_orm.testing need factory-boy, which is not installed",
        hint="run: pip install 'consensus-orm[testing]'",
    ) from error

__all__ = [
    "RANDOM",
    "RANDOM_TEXTS",
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
    "seed",
]

Iterator: Any = declarations.Iterator
LazyAttribute: Any = declarations.LazyAttribute
LazyFunction: Any = declarations.LazyFunction
SelfAttribute: Any = declarations.SelfAttribute
Sequence: Any = declarations.Sequence
SubFactory: Any = declarations.SubFactory
Trait: Any = declarations.Trait


def seed(number: int) -> None:
    """Seed the trait `random`: the same factories, called in the same order, then make the same values.

    Args:
        number: The seed; print it where a test fails.
    """
    random.reseed_random(number)  # type: ignore[no-untyped-call]  # untyped there


def _any_of(shapes: Mapping[str, Any], *, plain: bool = False) -> Any:
    """The name of a shape by chance; the huge one has to be asked for."""
    names = [name for name in shapes if name != "huge"]
    texts = [name for name in names if is_text(shapes[name])]
    return LazyFunction(lambda: random.randgen.choice(texts if plain or is_on_server() else names))


RANDOM: Any = Trait(time_shape=_any_of(TIMES), content_shape=_any_of(CONTENTS), run_shape=_any_of(RUN_IDS))
"""Any shapes of time, content and run id that the database in use holds."""

RANDOM_TEXTS: Any = Trait(content_shape=_any_of(CONTENTS, plain=True), run_shape=_any_of(RUN_IDS))
"""Any content and run id that a repository takes on every kind of database."""


def choice(parameter: str, of: Any) -> Any:
    """A field with the value of a shape, which a parameter of the factory names."""
    return LazyAttribute(lambda o: of[getattr(o, parameter)])
