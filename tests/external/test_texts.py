"""How rows are written to external stores, and the store that is a folder."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus_orm.consensus.declaration import ARTIFACTS
from consensus_orm.errors import InvalidValueError, SinkContractError, SinkUnavailableError
from consensus_orm.external import FileSink, Sink
from consensus_orm.external.canonical import content_of, name_of, parse, row_named
from consensus_orm.external.file_sink import PAGE

MOVES = {"artifacts": ARTIFACTS}
VALUES = st.none() | st.integers() | st.floats(allow_nan=False) | st.binary() | st.text(st.characters())


@given(st.lists(VALUES, min_size=len(ARTIFACTS.legacy_columns), max_size=len(ARTIFACTS.legacy_columns)))
def test_a_row_comes_back_in_type_and_value(row: list[Any]) -> None:
    """Whatever a cell holds, its text is ASCII, the same every time, and is read back as it was."""
    content = content_of(ARTIFACTS, tuple(row))
    assert content.isascii()
    name, values = parse(content)
    assert name == "artifacts"
    found = tuple(values[column] for column in ARTIFACTS.legacy_columns)
    assert [(type(v), v) for v in found] == [(type(v), v) for v in row]
    assert content_of(ARTIFACTS, found) == content


def test_numbers_that_json_lacks() -> None:
    """Infinity and NaN have a text, too."""
    row = (math.inf, -math.inf, math.nan, *[None] * (len(ARTIFACTS.legacy_columns) - 3))
    found = parse(content_of(ARTIFACTS, row))[1]
    values = [found[column] for column in ARTIFACTS.legacy_columns]
    assert values[:2] == [math.inf, -math.inf]
    assert math.isnan(values[2])


@given(st.integers(-(2**63), 2**63 - 1))
def test_a_name_leads_back_to_its_row(key: int) -> None:
    """Names are ASCII, and no two keys have the same."""
    name = name_of(ARTIFACTS, key)
    assert name.isascii()
    assert row_named(MOVES, name) == (ARTIFACTS, key)
    assert row_named(MOVES, f"{name} ") is None


KEYS_OF_NO_ROW = [
    *("", "1.0x", " 1", "1.0", "1e0", "-0", "true", "null", '"1"', str(2**63), "1" * 5000, "[1]", "[" * 100_000, "{}"),
    *('{"x":1}', '{"$bytes":"00"}', '{"$number":"inf"}', '{"$json":[1]}', '{"$text":"1"}'),
]


@pytest.mark.parametrize("name", ["", "artifacts", "others:1", ":1", *(f"artifacts:{key}" for key in KEYS_OF_NO_ROW)])
def test_names_of_others_lead_nowhere(name: str) -> None:
    """An entry is nobody's row whose name this package did not give, or is that of a key which no row can have."""
    assert row_named(MOVES, name) is None


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '{"move": 1}', '{"move":"a","row":[]}', "[" * 100_000])
def test_texts_of_others_are_refused(content: str) -> None:
    """A text that is no row of ours is one clear error."""
    with pytest.raises(InvalidValueError):
        parse(content)


def test_a_folder_keeps_names_apart_and_lists_them_in_pages(tmp_path: Path) -> None:
    """Names that differ in case, are long, or look like paths have files of their own in the folder."""
    sink = FileSink(tmp_path / "sink")
    assert isinstance(sink, Sink)
    assert (sink.get("a"), sink.list().items) == (None, ())
    names = [
        "a:1",
        "A:1",
        "x" * 5000,
        "../../etc/passwd",
        "..",
        "a/b",
        "",
        "\ud800",
        *(f"n:{number}" for number in range(PAGE)),
    ]
    for name in names:
        sink.put(name, name[::-1])
    first = sink.list()
    second = sink.list(first.following)
    assert second.following is None
    assert {item.name: item.content for item in (*first.items, *second.items)} == {n: n[::-1] for n in names}
    assert all(file.parent == tmp_path / "sink" for file in tmp_path.rglob("*.json"))
    sink.put("a:1", "new")
    sink.delete("A:1")
    sink.delete("A:1")
    assert (sink.get("a:1"), sink.get("A:1")) == ("new", None)
    sink.close()


def test_a_damaged_folder_is_named(tmp_path: Path) -> None:
    """What is no entry of its name (damaged, copied, a link, a folder) is an error, and so is a folder of no use."""
    sink = FileSink(tmp_path / "sink")
    sink.put("a:1", "x")
    (file,) = (tmp_path / "sink").glob("*.json")
    other = FileSink(tmp_path / "other")
    other.put("a:1", "of another folder")
    (outside,) = (tmp_path / "other").glob("*.json")
    texts = ["", "{}", "[]", "null", "[" * 100_000, '{"name": "a:1"}', '{"name": "a:1", "content": 5}']
    contents = [text.encode() for text in [*texts, '{"name": "b:2", "content": "x"}', '{"name": 5, "content": "x"}']]
    for content in [*contents, b'{"name": "a:1", "content": "\xff"}']:
        file.write_bytes(content)
        with pytest.raises(SinkContractError, match=file.name):
            sink.get("a:1")
        with pytest.raises(SinkContractError, match=file.name):
            sink.list()
    for instead in ("folder", outside, "nowhere"):
        file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink()
        file.mkdir() if instead == "folder" else file.symlink_to(instead)
        with pytest.raises(SinkContractError, match=file.name):
            sink.list()
    sink.put("a:1", "here again")
    assert (sink.get("a:1"), other.get("a:1")) == ("here again", "of another folder")
    second = file.with_name(f"{'0' * 64}.json")
    second.write_bytes(file.read_bytes())  # the same entry twice
    with pytest.raises(SinkContractError, match=second.name):
        sink.list()
    second.unlink()
    (tmp_path / "file").touch()
    with pytest.raises(SinkUnavailableError):
        FileSink(tmp_path / "file").put("a:1", "x")
    with pytest.raises(SinkUnavailableError):
        FileSink(tmp_path / "file").list()
    assert os.listdir(tmp_path / "sink") == [file.name]  # noqa: PTH208 - names
