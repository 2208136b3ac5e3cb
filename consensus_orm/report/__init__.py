"""The report: one self-contained HTML page about a migration.

It needs no network, and a script only to sort its tables; it suits phones, light and dark mode, screen readers and
paper. Each table can be downloaded as CSV and as JSON. It says what is not stored instead of drawing it, and holds no
contents of rows; names and reasons that people wrote are escaped. pygal, of the extra `report`, draws the charts, and
is imported when a page is made.
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
    """Make the page as HTML.

    Reads are timed meanwhile, in a read-only unit of work, which takes about a second. Nothing is written.

    Args:
        store: The store to report on.

    Raises:
        ConfigurationError: The extra `report` is not installed.
        StorageError: The database cannot be read.
    """
    require_pygal()
    from consensus_orm.report.page import page

    return page(collect(store))


def write(store: Store, path: Path | str) -> Path:
    """Write the page to a file, atomically; an existing file is replaced.

    Args:
        store: The store to report on.
        path: The file.

    Returns:
        The resolved path.

    Raises:
        ConfigurationError: The extra `report` is not installed.
        InvalidValueError: The path is that of the database.
        StorageError: The database cannot be read, or the page cannot be written.
    """
    target = files.resolved(path)
    if store.path is not None and files.is_part_of(target, store.path):
        raise errors.InvalidValueError(
            f"{target} is the database itself, or a file of it", hint="give another path", field="path"
        )
    if files.is_special(target):
        raise errors.InvalidValueError(f"{target} is not a regular file", hint="give the path of a file", field="path")
    text = render(store)
    try:
        files.write_whole(target, text)
    except OSError as error:
        raise errors.StorageError(f"{target} cannot be written: {error.strerror}", hint="give another path") from error
    return target
