"""What the page of the API says: every public class and function with its signature and docstring, from the code."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from functools import cached_property
from textwrap import indent
from typing import Any

__all__ = ["api"]

_PARTS = {
    "consensus_orm": (),
    "consensus_orm.migration": ("Migration",),
    "consensus_orm.databases.maintenance": ("Maintenance",),
    "consensus_orm.repository.repository": ("Repository",),
    "consensus_orm.consensus.artifacts": ("Artifacts",),
    "consensus_orm.consensus.syntheses": ("Syntheses",),
    "consensus_orm.consensus.runs": ("Runs",),
    "consensus_orm.consensus.executions": ("Executions",),
    "consensus_orm.keeper": (),
    "consensus_orm.telemetry": (),
    "consensus_orm.external": (),
}
"""The modules with what applications use; of those without names, all that they export."""


def api() -> Iterator[str]:
    """Every public class and function by its module; errors have a page of their own."""
    for module, names in _PARTS.items():
        home = importlib.import_module(module)
        yield f"## {module}"
        for name in names or sorted(home.__all__):
            found = getattr(home, name)
            if inspect.isclass(found) and not issubclass(found, Exception):
                yield f"### {name}"
                yield _block(_class(name, found))
            elif inspect.isfunction(found):
                yield f"### {name}"
                yield _block(_callable(name, found))


def _block(lines: Iterator[str]) -> str:
    return "```text\n" + "\n\n".join(lines).replace("```", "'''") + "\n```"


def _class(name: str, kind: type) -> Iterator[str]:
    yield f"class {name}\n{_text(kind)}"
    if fields := "\n".join(_fields(kind)):
        yield fields
    for member, found in _members(kind):
        if isinstance(found, property | cached_property):
            yield f"{member}\n{_text(found)}"
        else:
            yield from _callable(member, found.__func__ if isinstance(found, classmethod | staticmethod) else found)


def _fields(kind: type) -> Iterator[str]:
    """The declared attributes of a record, a setting or a dataclass, with their types."""
    for owner in reversed(kind.__mro__):
        if owner.__module__.startswith("consensus_orm"):
            for name, annotation in inspect.get_annotations(owner).items():
                if not name.startswith("_") and name != "model_config":
                    yield f"{name}: {inspect.formatannotation(_plain(annotation))}"


def _members(kind: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties of a class, those of its bases in this package included."""
    seen: set[str] = set()
    for owner in kind.__mro__:
        for name, found in vars(owner).items() if owner.__module__.startswith("consensus_orm") else ():
            told = inspect.isfunction(found) or isinstance(
                found, classmethod | staticmethod | property | cached_property
            )
            if told and not name.startswith("_") and name not in seen:
                yield name, found
            seen.add(name)


def _callable(name: str, function: Callable[..., Any]) -> Iterator[str]:
    yield f"{name}{_signature(function)}\n{_text(function)}"


class _Plain(str):
    """An annotation as it stands in the source, without quotation marks."""

    __repr__ = str.__str__


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    """The signature without self, and with annotations as they are written."""
    signature = inspect.signature(function)
    parameters = [each for each in signature.parameters.values() if each.name not in ("self", "cls")]
    return signature.replace(
        parameters=[each.replace(annotation=_plain(each.annotation)) for each in parameters],
        return_annotation=_plain(signature.return_annotation),
    )


def _plain(annotation: Any) -> Any:
    return _Plain(annotation) if isinstance(annotation, str) else annotation


def _text(of: Any) -> str:
    return indent(inspect.getdoc(of) or "", "    ")
