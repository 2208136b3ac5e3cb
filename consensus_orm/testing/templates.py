"""Template databases that are made once and copied for each test: files, or databases of a PostgreSQL server."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import URL, make_url

from consensus_orm.consensus.store import ConsensusStore
from consensus_orm.phase import Phase
from consensus_orm.settings import Settings
from consensus_orm.testing.phases import take_to

__all__ = ["Templates"]


class Templates:
    """The databases of a history at a phase, each made at its first use; files are kept in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: dict[str, _Place] = {}
        self._made: dict[tuple[str, object, Phase], str] = {}

    @contextmanager
    def copy(self, history: Callable[..., object] | None, phase: Phase, target: str | Path) -> Iterator[None]:
        """Make a database, and remove it when the block ends.

        Args:
            history: Makes a legacy database; without it the database is new.
            phase: Its phase.
            target: Its path or URL, where there is none yet.
        """
        place = self._place_of(target)
        with self._made_at(target, self._source(place, history, phase)):
            yield

    @contextmanager
    def empty(self, target: str | Path) -> Iterator[None]:
        """Make a database without tables, and remove it when the block ends.

        Args:
            target: Its path or URL, where there is none yet.
        """
        with self._made_at(target, None):
            yield

    @contextmanager
    def _made_at(self, target: str | Path, source: str | None) -> Iterator[None]:
        place = self._place_of(target)
        place.create(str(target), source)
        try:
            yield
        finally:
            place.remove(str(target))

    def _source(self, place: _Place, history: Callable[..., object] | None, phase: Phase) -> str:
        if (made := self._made.get((place.kind, history, phase))) is not None:
            return made
        before = phase.previous if history else None
        source = None if before is None else self._source(place, history, before)
        name = place.name(f"{len(self._made)}_{phase.name.lower()}")
        place.create(name, source)
        if history and not source:
            history(place.given(name))
        settings = Settings(chunk_pause=timedelta(0), backup_dir=self._folder)
        with ConsensusStore.open(name, settings=settings) as store:
            take_to(store, phase)
        self._made[place.kind, history, phase] = name
        return name

    def _place_of(self, target: str | Path) -> _Place:
        url = None if isinstance(target, Path) or "://" not in target else make_url(target)
        kind = "sqlite" if url is None else url.get_backend_name()
        if kind not in self._places:
            self._places[kind] = _Files(self._folder) if url is None or kind == "sqlite" else _Server(url)
        return self._places[kind]

    def close(self) -> None:
        """Remove the databases that were made on a server."""
        for (kind, *_), name in self._made.items():
            self._places[kind].remove(name)
        for place in self._places.values():
            place.close()


class _Place(Protocol):
    """Where databases are made."""

    kind: str

    def name(self, word: str) -> str: ...
    def given(self, name: str) -> str | Path: ...
    def create(self, name: str, source: str | None) -> None: ...
    def remove(self, name: str) -> None: ...
    def close(self) -> None: ...


class _Files:
    kind = "sqlite"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def name(self, word: str) -> str:
        return str(self._folder / f"{word}.db")

    def given(self, name: str) -> Path:
        return Path(name)

    def create(self, name: str, source: str | None) -> None:
        if source is not None:  # otherwise the first write makes the file
            shutil.copyfile(source, name.removeprefix("sqlite:///"))

    def remove(self, name: str) -> None:
        """Do nothing: pytest keeps the folders of the last tests."""

    def close(self) -> None:
        """Do nothing."""


class _Server:
    kind = "postgresql"

    def __init__(self, url: URL) -> None:
        import psycopg

        self._url = url.set(drivername="postgresql")
        # The database that every server has, and every role may connect to.
        self._admin: psycopg.Connection[Any] = psycopg.connect(_spelled(self._url, "postgres"), autocommit=True)

    def name(self, word: str) -> str:
        return _spelled(self._url, f"{self._url.database}_{word}")

    def given(self, name: str) -> str:
        return name

    def create(self, name: str, source: str | None) -> None:
        template = "template0" if source is None else make_url(source).database
        # As files: some megabytes take half the time that they take through the log of the server (both were timed).
        sql = f'CREATE DATABASE "{make_url(name).database}" TEMPLATE "{template}" STRATEGY FILE_COPY'
        self._admin.execute(sql.encode())

    def remove(self, name: str) -> None:
        self._admin.execute(f'DROP DATABASE IF EXISTS "{make_url(name).database}" WITH (FORCE)'.encode())

    def close(self) -> None:
        self._admin.close()


def _spelled(url: URL, database: str) -> str:
    return url.set(database=database).render_as_string(hide_password=False)
