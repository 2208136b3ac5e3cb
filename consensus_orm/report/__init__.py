"""The report: one self-contained page about a migration, for people who were not there.

It needs no network and no script, is readable in light and dark, and prints. It says where something is not
stored rather than draw it. No contents of rows are in it; names and reasons that people wrote are escaped.
Charts come from pygal, extra `report`, imported when a page is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from consensus_orm import errors, files
from consensus_orm.report.charts import require_pygal
from consensus_orm.report.facts import collect

if TYPE_CHECKING:
    from consensus_orm.store import Store

__all__ = ["render", "write"]


def render(store: Store) -> str:
    """Make the page.

    Reads are timed on the spot, in a read-only unit of work, which takes a second or so. Nothing is written.

    Args:
        store: The store to report on.

    Returns:
        The page, HTML.

    Raises:
        ConfigurationError: The extra `report` is not installed.
        StorageError: The database cannot be read.
    """
    require_pygal()
    from consensus_orm.report.page import page

    return page(collect(store))


def write(store: Store, path: Path | str) -> Path:
    """Make the page and put it into a file; one that is there is replaced, and never by half a page.

    Args:
        store: The store to report on.
        path: Where the page goes.

    Returns:
        Where it is.

    Raises:
        ConfigurationError: The extra `report` is not installed.
        InvalidValueError: The path is that of the database.
        StorageError: The database cannot be read, or the page not written.
    """
    target = files.resolved(path)
    if store.path is not None and files.is_part_of(target, store.path):
        raise errors.InvalidValueError(
            f"{target} is the database itself, or a file of it", hint="give another path", field="path"
        )
    text = render(store)
    try:
        files.write_whole(target, text)
    except OSError as error:
        raise errors.StorageError(f"{target} cannot be written: {error.strerror}", hint="give another path") from error
    return target
