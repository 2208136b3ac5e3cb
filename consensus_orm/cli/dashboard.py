"""The command dashboard, which serves a page until Ctrl-C."""

from __future__ import annotations

import contextlib
import sys
from datetime import timedelta

import click

from consensus_orm.cli.app import App, app_command, json_option, main
from consensus_orm.cli.output import say, show_json

__all__: list[str] = []

PATIENCE = timedelta(milliseconds=250)
"""Longest wait for a lock; what was read before is shown until the next try."""


@main.command(examples=["dashboard", "dashboard --port 8000 --refresh 10", "dashboard --mapping shop.moves:MOVES"])
@click.option("--port", type=click.IntRange(0, 65535), default=8377, show_default=True, help="0 takes a free one.")
@click.option(
    "--refresh",
    metavar="SECONDS",
    type=click.FloatRange(min=0.5, max=3600),
    default=2.0,
    show_default=True,
    help="Time between two readings of the database.",
)
@click.option("--contents", is_flag=True, help="Show the values of a mismatch's row, too.")
@json_option
@app_command
def dashboard(app: App, port: int, refresh: float, contents: bool, as_json: bool) -> None:
    """Serve a live page on the migration to a browser of this machine; it cannot write.

    The server listens on 127.0.0.1 alone, opens the database for reading, needs no network, and ends with Ctrl-C. While
    no browser shows the page, nothing is read. With --json the document has the address.
    """
    from consensus_orm.report.dashboard import Dashboard, listen, serve

    with app.store(replica=False, busy_timeout=PATIENCE, retry_attempts=1) as store:
        shown = Dashboard(store, refresh=refresh, contents=contents)
        with contextlib.closing(listen(port)) as taken, contextlib.suppress(KeyboardInterrupt):
            address = f"http://127.0.0.1:{taken.getsockname()[1]}/"
            show_json({"url": address}) if as_json else say(f"{address} shows {store.name}; Ctrl-C ends it")
            sys.stdout.flush()
            serve(shown, taken)
