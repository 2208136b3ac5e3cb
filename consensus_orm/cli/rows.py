"""The commands for single rows of ledgers: show a mismatch, a reject or an image, and restore an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from consensus_orm.cli.app import App, NumbersType, app_command, json_option, main
from consensus_orm.cli.confirmation import confirm, yes_option
from consensus_orm.cli.output import key, one_line, say, show_entries, show_json, table
from consensus_orm.cli.status import LISTED, all_option, mismatches, number_argument, rejects
from consensus_orm.formats import count

if TYPE_CHECKING:
    from consensus_orm.migration import Migration
    from consensus_orm.migration.details import Cell, RowDetail

__all__: list[str] = []

SHOWN = 60
"""Characters of a value that are shown; `--json` has all of them."""

contents_option = click.option("--contents", is_flag=True, help="Show the values, not only their types and sizes.")


@mismatches.command("show", examples=["mismatches show 3 --contents"])
@number_argument
@contents_option
@json_option
@app_command
def show_mismatch(app: App, number: int, contents: bool, as_json: bool) -> None:
    """Show the row of mismatch ID as both sides have it now, column by column."""
    _show(app, as_json, contents, lambda migration: migration.mismatch(number, contents=contents))


@rejects.command("show", examples=["rejects show 3 --contents"])
@number_argument
@contents_option
@json_option
@app_command
def show_reject(app: App, number: int, contents: bool, as_json: bool) -> None:
    """Show the row of reject ID as it was kept, and as both sides have it now."""
    _show(app, as_json, contents, lambda migration: migration.reject(number, contents=contents))


@main.group(invoke_without_command=True, examples=["images", "images show 3", "images restore 3 4"])
@all_option
@json_option
@app_command
@click.pass_context
def images(ctx: click.Context, app: App, everything: bool, as_json: bool) -> None:
    """List rows that were kept before they were overwritten or deleted, or put one back."""
    if ctx.invoked_subcommand is not None:
        return
    with app.store() as store:
        entries = store.migration.images(everything=everything)
    show_entries(
        entries,
        "no images",
        ("id", "pair", "key", "table", "why", "when", "put back"),
        lambda i: (i.id, i.pair, key(i.key), i.table, i.cause, i.at, i.restored_at),
        as_json=as_json,
        most=LISTED,
    )


@images.command("show", examples=["images show 3 --contents"])
@number_argument
@contents_option
@json_option
@app_command
def show_image(app: App, number: int, contents: bool, as_json: bool) -> None:
    """Show image ID, and its row as both sides have it now, column by column."""
    _show(app, as_json, contents, lambda migration: migration.image(number, contents=contents))


@images.command("restore", examples=["images restore 3 7-12 --reason 'they were right'"])
@click.argument("numbers", metavar="[ID|FIRST-LAST]...", nargs=-1, required=True, type=NumbersType())
@click.option("--reason", metavar="TEXT", help="Why, for the audit.")
@yes_option
@json_option
@app_command
def restore_images(app: App, numbers: tuple[int | range, ...], reason: str | None, yes: bool, as_json: bool) -> None:
    """Put back the rows of images.

    Each row is written to the sides of the phase and compared. A row that stands under its key now is kept as an image
    first. Either all of them are put back or none; of several images of one row the newest counts.
    """
    confirm(
        "The rows of these images are put back; a row that stands under the same key now is overwritten, and kept as"
        " an image first",
        yes=yes,
        as_json=as_json,
    )
    with app.store() as store:
        done = store.migration.restore_images(numbers, reason=reason)
    if as_json:
        show_json([{"image": number, "not_put_back": row.not_put_back} for number, row in done.items()])
        return
    for number, row in done.items():
        say(f"the row of image {number} was put back")
        if row.not_put_back:
            say(f"  not put back: {', '.join(row.not_put_back)}; what follows from others is derived again")


def _show(app: App, as_json: bool, contents: bool, look: Callable[[Migration], RowDetail]) -> None:
    with app.store() as store:
        detail = look(store.migration)
    if as_json:
        show_json(detail)
        return
    from consensus_orm.ledgers.entries import MismatchEntry, RejectEntry

    entry = detail.entry
    if isinstance(entry, MismatchEntry):
        what = f"{entry.column or 'row'} {entry.kind}, {entry.state}"
    else:
        what = f"{entry.reason}, {entry.state}" if isinstance(entry, RejectEntry) else entry.cause
    say(f"{entry.pair} {entry.key}: {what}")
    sides = " and ".join(side.value for side in detail.on)
    say(f"the row stands on: {sides}" if sides else "no side has the row")
    kept = any(column.image for column in detail.columns)
    headings = ("column", "legacy", "normalized", *(["image"] if kept else []), "differs")
    rows = []
    for column in detail.columns:
        cells = [column.legacy, column.normalized, *([column.image] if kept else [])]
        rows.append((column.name, *(_shown(cell, contents) for cell in cells), "yes" if column.differs else ""))
    if rows:
        table(headings, rows)


def _shown(cell: Cell | None, contents: bool) -> str | None:
    if cell is None:
        return None
    if cell.type == "null":
        return "null"
    if not contents or cell.value is None:
        return f"{cell.type}, {count(cell.bytes, 'byte')}"
    text = one_line(cell.value[: SHOWN + 1])
    return f"{cell.type} {text[:SHOWN]}" + (f"... ({cell.bytes:,} bytes)" if len(cell.value) > SHOWN else "")
