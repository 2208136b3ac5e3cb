"""The command explain, which explains an error by its code."""

from __future__ import annotations

import difflib
import inspect

import click

from consensus_orm import errors
from consensus_orm.cli.app import json_option, main
from consensus_orm.cli.output import say, show_json
from consensus_orm.errors import ConsensusError, InvalidValueError

__all__ = ["kinds", "meaning"]


@main.command(shared=[], examples=["explain GATE_CLOSED", "explain"])
@click.argument("code", required=False)
@json_option
def explain(code: str | None, as_json: bool) -> None:
    """Explain an error by its CODE, such as GATE_CLOSED; list all codes without one.

    The code stands at the end of each error that a command prints, and in its JSON document.
    """
    found = sorted(kinds().values(), key=lambda kind: kind.code) if code is None else [_of_code(code)]
    if as_json:
        show_json([_facts(kind) for kind in found])
    elif code is None:
        for kind in found:
            say(f"{kind.code:28}{meaning(kind)[0]}")
    else:
        _tell(found[0])


def kinds() -> dict[str, type[ConsensusError]]:
    """Every class of error by its code."""
    kinds = (getattr(errors, name) for name in errors.__all__)
    return {kind.code: kind for kind in kinds if issubclass(kind, ConsensusError)}


def _of_code(code: str) -> type[ConsensusError]:
    """The class of error with a code or class name, in any case, with dashes or underscores."""
    known, wanted = kinds(), code.upper().replace("-", "_")
    named = {kind.__name__.upper(): kind for kind in known.values()}
    if (found := known.get(wanted) or named.get(wanted)) is None:
        near = "".join(f"the nearest one is {each}; " for each in difflib.get_close_matches(wanted, known, 1))
        raise InvalidValueError(
            f"no error has the code {code!r:.40}", hint=f"{near}see: consensus-orm explain", field="code"
        )
    return found


def _tell(kind: type[ConsensusError]) -> None:
    first, *more = meaning(kind)
    say(f"{kind.code}: {first}")
    for line in more:
        say(f"    {line}")
    say(f"what to do: {kind.hint or 'see the text of the error'}")
    say(f"in Python: consensus_orm.errors.{kind.__name__}; exit code of the command: {kind.exit_code}")


def meaning(kind: type[ConsensusError]) -> list[str]:
    """The meaning of an error by its docstring, without its arguments."""
    text = inspect.getdoc(kind) or ""
    return [line.strip() for line in text.partition("\n\nArgs:")[0].splitlines() if line.strip()]


def _facts(kind: type[ConsensusError]) -> dict[str, object]:
    parents = [parent.code for parent in kind.__mro__[1:] if issubclass(parent, ConsensusError)]
    named = {"code": kind.code, "class": kind.__name__, "is_a": parents}
    return named | {"meaning": " ".join(meaning(kind)), "hint": kind.hint, "exit_code": kind.exit_code}
