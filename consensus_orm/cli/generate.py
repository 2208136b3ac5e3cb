"""The command generate: the draft of a move between two classes, and of the revision of the new tables."""

from __future__ import annotations

from pathlib import Path

import click

from consensus_orm.cli.app import json_option, main
from consensus_orm.cli.mapping import class_named
from consensus_orm.cli.output import say, show_json
from consensus_orm.errors import OutputError

__all__: list[str] = []

FILE = click.Path(dir_okay=False, path_type=Path)


@main.command(
    shared=[],
    examples=[
        "generate shop.models:Customers shop.models:Account",
        "generate shop.models:Customers shop.models:Account --moves shop/moves.py --revision versions/accounts.py",
    ],
)
@click.argument("legacy", metavar="MODULE:LEGACY")
@click.argument("normalized", metavar="MODULE:NEW")
@click.option("--moves", metavar="FILE", type=FILE, help="Write the declaration to FILE, which does not exist yet.")
@click.option("--revision", metavar="FILE", type=FILE, help="Write the revision to FILE, which does not exist yet.")
@click.option("--revises", metavar="REVISION", help="The revision of yours that the new one follows.")
@json_option
def generate(
    legacy: str, normalized: str, moves: Path | None, revision: Path | None, revises: str | None, as_json: bool
) -> None:
    """Draft the move between two mapped classes, and the revision of the new tables.

    Columns are matched by name and type. Each decision that is left open is a comment that begins with "# open:", and
    what it may become stands in comments below it; `Moves` refuses the declaration until they are taken.

    The revision creates the tables that the new class needs and the legacy class does not know. Both are printed, or
    written to files. No database is opened.
    """
    from consensus_orm.declaration.drafting import Draft, new_tables
    from consensus_orm.schema.drafting import revision_of

    of, to = class_named(legacy), class_named(normalized)
    draft = Draft(of, to)
    texts = {"moves": f"{draft}\n", "revision": revision_of(new_tables(of[2], to[2]), revises=revises)}
    decisions = draft.open + (revises is None)
    for text, file in zip(texts.values(), (moves, revision), strict=True):
        if file is not None:
            _write(file, text)
        elif not as_json:
            say(text)
    if as_json:
        show_json({**texts, "open": decisions})
    click.echo(f"consensus-orm: {decisions} decision{'' if decisions == 1 else 's'} left open", err=True)


def _write(file: Path, text: str) -> None:
    """Write a text to a file that does not exist yet.

    Raises:
        OutputError: It exists, or cannot be written.
    """
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(text)
    except OSError as error:
        raise OutputError(
            f"{file} could not be written: {error.strerror}", hint="name a file that does not exist yet"
        ) from error
