"""How connections log in on a server: the parameters of the URL, and the password."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from typing import Any, TypeVar

import psycopg
from psycopg.pq import Conninfo
from sqlalchemy import URL
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from consensus_orm import errors
from consensus_orm.databases.postgresql.errors import words
from consensus_orm.settings import Settings

__all__ = ["Login"]

C = TypeVar("C", bound=psycopg.Connection[Any])

THRESHOLD = "prepare_threshold"
"""The parameter of psycopg that a URL may have besides those of libpq."""

DEFAULTS = {"application_name": "consensus_orm", "connect_timeout": 10}

COMMAND_PATIENCE = 30
"""Seconds until a command that prints the password fails."""


class Login:
    """Logs in on a server, each time with a password that is asked for anew.

    Args:
        url: The server and database.
        settings: Where the password comes from, if not from the URL.

    Raises:
        ConfigurationError: The URL has a parameter that is unknown, or that cannot be used.
    """

    def __init__(self, url: URL, settings: Settings) -> None:
        query = dict(url.query)
        threshold = query.pop(THRESHOLD, None)
        known = {option.keyword.decode() for option in Conninfo.get_defaults()}
        if unknown := sorted(query.keys() - known):
            raise errors.ConfigurationError(
                f"the URL has the parameter {unknown[0]!r}, which a server does not know",
                hint="postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS lists the parameters",
            )
        (_, arguments) = PGDialect_psycopg().create_connect_args(url.set(query=query))  # type: ignore[no-untyped-call] # SQLAlchemy has no types here
        self._arguments: dict[str, Any] = {**DEFAULTS, **arguments}
        self._settings = settings
        self.threshold = _threshold(threshold)
        """How often a statement is executed before it is prepared; 0 if never, None if the URL does not say."""

    @property
    def options(self) -> dict[str, str]:
        """The settings of the server in the parameter `options`, as `-c name=value` or `--name=value`."""
        found = re.findall(r"(?:^|\s)(?:-c\s*|--)([\w.-]+)=((?:\\.|[^\s\\])*)", str(self._arguments.get("options", "")))
        return {name.replace("-", "_"): re.sub(r"\\(.)", r"\1", value) for name, value in found}

    def connect(self, kind: type[C], **changes: Any) -> C:
        """Open a connection that commits each statement.

        Args:
            kind: Its class.
            **changes: Arguments of the driver, instead of those of the URL.

        Raises:
            ConfigurationError: The driver refuses a parameter, or the command for the password fails.
            psycopg.OperationalError: The server cannot be reached, or refuses.
        """
        arguments = self._arguments | changes
        if (password := self._password()) is not None:
            arguments["password"] = password
        try:
            connection = kind.connect(**arguments, autocommit=True)
        except psycopg.ProgrammingError as error:  # raised by the driver, of a parameter
            raise errors.ConfigurationError(f"the URL cannot be used: {words(error)}") from error
        if self.threshold is not None:
            connection.prepare_threshold = self.threshold or None
        return connection

    def _password(self) -> str | None:
        if self._settings.password is not None:
            password = self._settings.password()
            if not isinstance(password, str):
                raise errors.ConfigurationError(
                    f"password() returned {type(password).__name__}, no text", hint="return the password as str"
                )
            return password
        if self._settings.password_command is not None:
            return _printed(self._settings.password_command, self._arguments)
        return None


def _threshold(given: Any) -> int | None:
    if given is None:
        return None
    if not re.fullmatch(r"\d{1,9}", str(given)) and str(given).lower() != "none":
        raise errors.ConfigurationError(
            f"the URL sets {THRESHOLD} to something that is no number", hint="0 prepares no statement"
        )
    return int(given) if str(given).isdecimal() else 0


def _printed(command: str, arguments: Mapping[str, Any]) -> str:
    """The first line that a command prints, which knows the server by libpq's variables of the environment."""
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "dbname": "PGDATABASE"}
    there = {variable: str(arguments[name]) for name, variable in names.items() if arguments.get(name)}
    hint = "CONSENSUS_ORM_PASSWORD_COMMAND is a command that prints the password in its first line"
    try:
        said = subprocess.run(
            shlex.split(command),
            check=False,
            capture_output=True,
            text=True,
            timeout=COMMAND_PATIENCE,
            env=os.environ | there,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        # Its text is not repeated: the command may have a secret in it.
        raise errors.ConfigurationError(
            f"the command for the password cannot be run ({type(error).__name__})", hint=hint
        ) from None
    lines = said.stdout.splitlines()
    if said.returncode or not lines or not lines[0]:
        raise errors.ConfigurationError(
            f"the command for the password ended with {said.returncode} and printed {len(lines)} lines", hint=hint
        )
    return lines[0]
