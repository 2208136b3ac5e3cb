"""The commands that steer a migration which runs in another terminal, or on another machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from consensus_orm.cli.app import App, app_command, json_option, main, whole_number
from consensus_orm.cli.output import say, show_json
from consensus_orm.formats import count, moment

if TYPE_CHECKING:
    from consensus_orm.ledgers.control import Control
    from consensus_orm.migration import Migration

__all__: list[str] = []

reason_option = click.option("--reason", metavar="TEXT", help="Why, for the audit.")


@main.command(examples=["pause --reason 'the nightly import runs'", "pause --url postgresql://app@db/consensus"])
@reason_option
@json_option
@app_command
def pause(app: App, reason: str | None, as_json: bool) -> None:
    """Stop long steps after their current chunk, until `resume`.

    Backfill, reconcile, rollback and the end of CONTRACT wait between two chunks, and hold neither lock nor
    transaction meanwhile. A verify goes on, because it reads one snapshot.
    """
    _tell(app, as_json, lambda migration: migration.pause(reason=reason))


@main.command(examples=["resume"])
@reason_option
@json_option
@app_command
def resume(app: App, reason: str | None, as_json: bool) -> None:
    """Let paused steps go on."""
    _tell(app, as_json, lambda migration: migration.resume(reason=reason))


class _Rate(click.ParamType):  # type: ignore[type-arg]  # older releases of click refuse the argument
    """Rows a second, or `off`."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read a rate; 0 is none."""
        if str(value).lower() == "off":
            return 0
        if not (rate := whole_number(str(value))):
            self.fail(f"{value!r:.40} is neither a number of rows a second nor `off`", param, ctx)
        return rate


@main.command(examples=["throttle 500", "throttle off"])
@click.argument("rows_per_second", metavar="ROWS_PER_S|off", type=_Rate())
@reason_option
@json_option
@app_command
def throttle(app: App, rows_per_second: int, reason: str | None, as_json: bool) -> None:
    """Limit long steps to so many rows a second.

    The steps that `pause` stops obey it from their next chunk on; `off` takes the limit away.
    """
    _tell(app, as_json, lambda migration: migration.throttle(rows_per_second or None, reason=reason))


@main.command(examples=["hold --reason 'release freeze until Monday'", "hold --release"])
@click.option("--release", is_flag=True, help="Let phases change again.")
@reason_option
@json_option
@app_command
def hold(app: App, release: bool, reason: str | None, as_json: bool) -> None:
    """Refuse every change of phase, until `hold --release`.

    Forward and back, by hand and by an alarm. Long steps go on.
    """
    _tell(app, as_json, lambda migration: (migration.release if release else migration.hold)(reason=reason))


def _tell(app: App, as_json: bool, work: Callable[[Migration], Control]) -> None:
    with app.store() as store:
        told = work(store.migration)
    if as_json:
        show_json(told)
        return
    say(f"long steps: {f'paused since {moment(told.paused_at)}' if told.paused_at else 'go on'}")
    say(f"throttle: {count(told.throttle, 'row') + ' a second' if told.throttle else 'off'}")
    say(f"changes of phase: {f'on hold since {moment(told.held_at)}' if told.held_at else 'possible'}")
