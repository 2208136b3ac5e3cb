"""Power cuts: what a program wrote and synced is recorded, and replayed up to any moment as a disk may have kept it.

A disk keeps what was synced. Of what was written since, it may have kept anything: nothing, all, some writes without
those before them, or parts of a write by sectors. Changes of names are kept in their order, as journaling file systems
do, up to any of them that came after the last sync of the folder.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Disk", "Recording", "record"]

CALLS = (
    "open,openat,creat,close,write,pwrite64,sendfile,copy_file_range,fsync,fdatasync,ftruncate,truncate,fallocate,"
    "unlink,unlinkat,rmdir,rename,renameat,renameat2,link,linkat,mkdir,mkdirat"
)

_LINE = re.compile(r"^\d+ +(\w+)\((.*)\) += +(-?\d+)")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_HANDLE = re.compile(r"^(\d+|AT_FDCWD)(?:<((?:\\x[0-9a-f]{2})*)>)?")


def require_strace() -> None:
    """Skip, and say so, where programs cannot be traced."""
    if shutil.which("strace") is None:
        pytest.skip("NO STRACE: no power cut was tried (apt install strace)")
    done = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True)
    if done.returncode:
        pytest.skip("STRACE MAY NOT TRACE: no power cut was tried")


@dataclass
class Inode:
    """A file or folder: what is on the disk, and what was done to it since."""

    folder: bool
    live: Any  # bytearray, or the names with their inodes
    durable: Any = None
    pending: list[tuple[Any, ...]] = field(default_factory=list)

    def sync(self) -> None:
        """Have all of it on the disk."""
        self.durable, self.pending = self.live.copy() if self.folder else bytes(self.live), []


def _written(data: bytearray, offset: int, more: bytes) -> None:
    if len(data) < offset:
        data.extend(bytes(offset - len(data)))
    data[offset : offset + len(more)] = more


def _cut(data: bytearray, size: int) -> None:
    del data[size:]
    data.extend(bytes(size - len(data)))


class Disk:
    """The files below a folder, as a recording goes on.

    Args:
        root: The folder as it is before; all of it is on the disk.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.inode = self._load(root)
        self.handles: dict[int, tuple[Inode, int]] = {}

    def _load(self, path: Path) -> Inode:
        if path.is_dir():
            made = Inode(True, {each.name: self._load(each) for each in path.iterdir()})
        else:
            made = Inode(False, bytearray(path.read_bytes()))
        made.sync()
        return made

    def _find(self, path: Path) -> Inode | None:
        """What is at a path now; None where there is nothing, or it is elsewhere."""
        if not path.is_relative_to(self.root):
            return None
        found: Inode | None = self.inode
        for part in path.relative_to(self.root).parts:
            found = found.live.get(part) if found is not None and found.folder else None
        return found

    def _rename(self, *changes: tuple[Path, Inode | None]) -> None:
        """Change names, all at once where they are in one folder."""
        for folder in dict.fromkeys(path.parent for path, _ in changes):
            inode = self._find(folder)
            if inode is None:
                continue
            mine = [(path.name, what) for path, what in changes if path.parent == folder]
            inode.pending.append(("names", mine))
            _apply_names(inode.live, mine)

    # Calls ----------------------------------------------------------------------------------------------

    def call(self, name: str, arguments: str, result: int) -> None:
        """Do what a call did that succeeded."""
        paths = [Path(os.fsdecode(_decoded(text))) for text in _STRING.findall(arguments)]
        handle = _HANDLE.match(arguments)
        if name in ("openat", "unlinkat", "mkdirat", "renameat", "renameat2", "linkat") and handle and handle[2]:
            base = Path(os.fsdecode(_decoded(handle[2])))
            paths = [base / path for path in paths]
        number = int(handle[1]) if handle and handle[1].isdigit() else -1
        match name:
            case "open" | "openat" | "creat":
                self._open(paths[0], arguments, result)
            case "close":
                self.handles.pop(number, None)
            case "write" | "pwrite64":
                self._write(name, number, arguments)
            case "sendfile" | "copy_file_range":
                self._send(name, number, arguments, result)
            case "fsync" | "fdatasync":
                if number in self.handles:
                    self.handles[number][0].sync()
            case "ftruncate":
                if number in self.handles:
                    self._truncate(self.handles[number][0], int(arguments.rpartition(",")[2]))
            case "fallocate":
                assert number not in self.handles, "fallocate is not understood"
            case "unlink" | "unlinkat" | "rmdir":
                self._rename((paths[0], None))
            case "rename" | "renameat" | "renameat2":
                moved = self._find(paths[0])
                if moved is not None:
                    self._rename((paths[0], None), (paths[1], moved))
            case "link" | "linkat":
                linked = self._find(paths[0])
                if linked is not None:
                    self._rename((paths[1], linked))
            case "mkdir" | "mkdirat":
                made = Inode(True, {})
                made.sync()
                self._rename((paths[0], made))

    def _open(self, path: Path, arguments: str, number: int) -> None:
        self.handles.pop(number, None)
        inode = self._find(path)
        if inode is None and path.is_relative_to(self.root):
            inode = Inode(False, bytearray(), b"")
            self._rename((path, inode))
        elif inode is not None and "O_TRUNC" in arguments:
            self._truncate(inode, 0)
        if inode is not None:
            self.handles[number] = inode, 0

    def _write(self, name: str, number: int, arguments: str) -> None:
        if number not in self.handles:
            return
        inode, position = self.handles[number]
        data = _decoded(_STRING.findall(arguments)[-1])
        if name == "pwrite64":
            position = int(arguments.rpartition(",")[2])
        else:
            self.handles[number] = inode, position + len(data)
        self._put(inode, position, data)

    def _send(self, name: str, number: int, arguments: str, size: int) -> None:
        assert name == "sendfile", f"{name} is not understood"
        if number not in self.handles:
            return
        inode, position = self.handles[number]
        parts = arguments.split(", ")
        source, _ = self.handles[int(parts[1].partition("<")[0])]
        offset = int(re.findall(r"\d+", parts[2])[0])
        self.handles[number] = inode, position + size
        self._put(inode, position, bytes(source.live[offset : offset + size]))

    def _put(self, inode: Inode, position: int, data: bytes) -> None:
        _written(inode.live, position, data)
        inode.pending.append(("write", position, data))

    def _truncate(self, inode: Inode, size: int) -> None:
        _cut(inode.live, size)
        inode.pending.append(("size", size))

    # Images ---------------------------------------------------------------------------------------------

    def image(self, where: Path, chance: random.Random) -> None:
        """Write what a disk may have after a power cut now."""
        self._image(self.inode, where, chance, chance.choice(WAYS))

    def _image(self, inode: Inode, where: Path, chance: random.Random, way: Callable[..., Iterator[Any]]) -> None:
        if inode.folder:
            where.mkdir()
            names = dict(inode.durable)
            kept = len(inode.pending) if way is everything else 0 if way is nothing else None
            for _, changes in inode.pending[: chance.randint(0, len(inode.pending)) if kept is None else kept]:
                _apply_names(names, changes)
            for name, each in names.items():
                self._image(each, where / name, chance, way)
            return
        data = bytearray(inode.durable)
        for kind, at, *more in way(inode.pending, chance):
            _cut(data, at) if kind == "size" else _written(data, at, more[0])
        where.write_bytes(data)


def _apply_names(names: dict[str, Inode], changes: list[tuple[str, Inode | None]]) -> None:
    for name, inode in changes:
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode


def _decoded(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


# What a disk may keep of what was not synced: functions of the operations and of chance ----------------------


def nothing(pending: list[tuple[Any, ...]], chance: random.Random) -> Iterator[Any]:
    """None of it."""
    yield from ()


def everything(pending: list[tuple[Any, ...]], chance: random.Random) -> Iterator[Any]:
    """All of it."""
    yield from pending


def a_beginning(pending: list[tuple[Any, ...]], chance: random.Random) -> Iterator[Any]:
    """What came first."""
    yield from pending[: chance.randint(0, len(pending))]


def some(pending: list[tuple[Any, ...]], chance: random.Random) -> Iterator[Any]:
    """Any writes, without those before them."""
    yield from (each for each in pending if chance.random() < 0.5)


def torn(pending: list[tuple[Any, ...]], chance: random.Random) -> Iterator[Any]:
    """Any sectors of any writes."""
    sector = chance.choice((512, 4096))
    for kind, at, *more in pending:
        if kind == "size":
            if chance.random() < 0.5:
                yield kind, at
            continue
        (data,) = more
        begin = 0
        while begin < len(data):
            end = min(len(data), (at + begin) // sector * sector + sector - at)
            if chance.random() < 0.5:
                yield kind, at + begin, data[begin:end]
            begin = end


WAYS = (nothing, everything, a_beginning, some, torn)


# Recording ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recording:
    """What a program did to a folder.

    Attributes:
        before: A copy of the folder as it was.
        root: The folder.
        calls: The calls that succeeded: name, arguments, result.
    """

    before: Path
    root: Path
    calls: list[tuple[str, str, int]]

    @property
    def printed(self) -> list[str]:
        """All lines that the program printed."""
        return [line for call in self.calls for line in _printed(*call)]

    def images(self, number: int, seed: int, folder: Path) -> Iterator[tuple[Path, list[str]]]:
        """Images of power cuts.

        Args:
            number: How many, at least; there is one behind each line that the program printed, too.
            seed: Of chance.
            folder: Where they are made, one after the other.

        Yields:
            The image, and the lines that the program had printed by then.
        """
        chance = random.Random(seed)
        disk = Disk(self.before)
        disk.root = self.root
        at = {chance.randrange(len(self.calls)) for _ in range(number)}
        printed: list[str] = []
        for index, (name, arguments, result) in enumerate(self.calls):
            disk.call(name, arguments, result)
            printed += (told := _printed(name, arguments, result))
            if told or index in at:
                image = folder / "image"
                shutil.rmtree(image, ignore_errors=True)
                disk.image(image, chance)
                yield image, list(printed)


def _printed(name: str, arguments: str, _result: int) -> list[str]:
    if name != "write" or not arguments.startswith(("1<", "1,")):
        return []
    return _decoded(_STRING.findall(arguments)[-1]).decode().splitlines()


def record(code: str, root: Path, before: Path, *arguments: str, **env: str) -> Recording:
    """Run a program, and record what it does to the files in a folder.

    Args:
        code: The program, Python; what it prints with `os.write(1, ...)` says how far it is.
        root: The folder.
        before: Where a copy of the folder as it is now goes.
        *arguments: For the program, behind the folder.
        **env: More of the environment.
    """
    require_strace()
    shutil.copytree(root, before)
    trace = before.with_name(f"{before.name}.trace")
    command = ["strace", "-f", "-y", "-xx", "-s", "100000000", "-o", str(trace), "-e", f"trace={CALLS}"]
    done = subprocess.run(
        [*command, sys.executable, "-c", code, str(root), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | env,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    with trace.open() as lines:
        calls = list(_calls(lines))
    trace.unlink()
    return Recording(before, root, calls)


def _calls(lines: Iterable[str]) -> Iterator[tuple[str, str, int]]:
    """The calls that succeeded, in the order in which they ended."""
    begun: dict[str, str] = {}
    for line in lines:
        thread = line.partition(" ")[0]
        if line.endswith("<unfinished ...>\n"):
            begun[thread] = line.removesuffix(" <unfinished ...>\n")
            continue
        whole = begun.pop(thread) + line.partition("resumed>")[2] if " resumed>" in line else line
        if (found := _LINE.match(whole)) and int(found[3]) >= 0:
            yield found[1], found[2], int(found[3])
