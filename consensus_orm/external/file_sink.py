"""An external store that is a folder: one file for each entry."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from consensus_orm import errors
from consensus_orm import validation as check
from consensus_orm.external.sink import Capabilities, Item, Page
from consensus_orm.files import write_whole

__all__ = ["FileSink"]

PAGE = 500
"""Entries of a page."""


class FileSink:
    """A folder that holds each entry as a JSON file, named by the SHA-256 of the name of the entry.

    So names of any length, and names that differ only in case, have files of their own. Each file is replaced
    atomically.

    Args:
        folder: The folder; made when the first entry is put.
        name: The name under which the database keeps its stage.
    """

    capabilities = Capabilities(exact_key=True, complete_list=True, atomic_update=True)

    def __init__(self, folder: Path | str, *, name: str = "file") -> None:
        self.folder = Path(folder)
        self.name: str = check.identifier("name", name)

    def put(self, name: str, content: str) -> None:
        """Store an entry, in the place of the one with this name if there is one."""
        with _translated(self.name):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self._file(name), json.dumps({"name": name, "content": content}))

    def get(self, name: str) -> str | None:
        """The content of an entry; None where there is none."""
        with _translated(self.name):
            found = self._read(self._file(name))
            return None if found is None else found.content

    def delete(self, name: str) -> None:
        """Delete an entry; nothing happens where there is none."""
        with _translated(self.name):
            self._file(name).unlink(missing_ok=True)

    def list(self, following: str | None = None) -> Page:
        """A page of all entries, in the order of their files."""
        with _translated(self.name):
            try:
                there = [file.name for file in self.folder.iterdir()]  # glob finds nothing where it may not read
            except FileNotFoundError:
                there = []
            names = sorted(name for name in there if name.endswith(".json") and name > (following or ""))
            found = (self._read(self.folder / name) for name in names[:PAGE])
            items = tuple(item for item in found if item is not None)
        return Page(items, names[PAGE - 1] if len(names) > PAGE else None)

    def close(self) -> None:
        """Nothing: no file stays open."""

    def _file(self, name: str) -> Path:
        return self.folder / f"{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()}.json"

    def _read(self, file: Path) -> Item | None:
        """The entry in a file; None where there is none, any more.

        Raises:
            SinkContractError: It is no file with an entry of this name: another program has put something there.
        """
        try:
            if not file.is_symlink():
                found = json.loads(file.read_bytes())
                name, content = found["name"], found["content"]
                if isinstance(content, str) and self._file(name) == file:
                    return Item(name, content)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, IsADirectoryError):
            pass
        raise errors.SinkContractError(
            f"{file.name} in the folder of {self.name} is no entry",
            hint="remove or restore that file, then run the relay again",
            sink=self.name,
        )


class _translated:
    """A block whose errors of the file system say that the store is away."""

    def __init__(self, sink: str) -> None:
        self._sink = sink

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, OSError):
            raise errors.SinkUnavailableError(
                f"the folder of {self._sink} cannot be used: {error.strerror or type(error).__name__}",
                hint="nothing was lost, the outbox keeps the entries; see to the folder, then run the relay again",
                sink=self._sink,
            ) from error
