"""The dashboard: the page of the report, live, from a server on 127.0.0.1 that cannot write.

A thread reads the facts while somebody looks, on connections that cannot write, and a request is answered with what was
read last: it waits for no lock and for no scan. starlette and uvicorn, of the extra `dashboard`, are imported when the
server is made.
"""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from consensus_orm import errors
from consensus_orm.databases import opening
from consensus_orm.formats import count, moment
from consensus_orm.migration.details import Cell, RowDetail, of_mismatch
from consensus_orm.report.charts import require_pygal
from consensus_orm.report.facts import collect
from consensus_orm.report.html import Html, note, tag
from consensus_orm.report.page import Place, document, page, policy, sections
from consensus_orm.report.tables import FORMATS, Table, as_data

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from consensus_orm.store import Store

__all__ = ["HOST", "Dashboard", "listen", "serve"]

HOST = "127.0.0.1"

NAMES = [HOST, "localhost"]
"""How a browser may call this server; another name is that of a page elsewhere, which was pointed at this machine."""

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": f"{policy()}; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class _Seen:
    """What was read last: the page, the tables on it, and why it could not be read again."""

    page: str = ""
    tables: dict[str, Table] | None = None
    at: datetime | None = None
    problem: str = ""


class Dashboard:
    """The pages about a store, and what they show.

    Args:
        store: The store. From now on its connections cannot write.
        refresh: Seconds between two readings.
        contents: Whether the page about a mismatch shows the values of its row.

    Raises:
        ConfigurationError: The extra `dashboard` is not installed.
    """

    def __init__(self, store: Store[Any], *, refresh: float = 2.0, contents: bool = False) -> None:
        require_pygal()
        _require("starlette")
        opening.forbid_writing(store.engine)
        self._store = store
        self._contents = contents
        self._place = Place(lambda table, kind: f"/tables/{table.name}.{kind}", "/mismatches/", refresh)
        self._seen = _Seen()
        self._asked = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="consensus_orm-dashboard", daemon=True)

    # Reading --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """End reading."""
        self._ended.set()
        self._asked.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._ended.is_set():
            self.read()
            self._asked.clear()
            self._ended.wait(self._place.refresh)
            self._asked.wait()  # while nobody looks, nothing is read

    def read(self) -> None:
        """Read the facts once; where that fails, what was read before stays, with the reason."""
        try:
            facts = collect(self._store, timed=False)
            tables = [
                part for parts in sections(facts, self._place).values() for part in parts if isinstance(part, Table)
            ]
            text = page(facts, self._place)
            self._seen = _Seen(text, {table.name: table for table in tables}, facts.at)
        except errors.ConsensusError as error:
            self._seen = replace(self._seen, problem=str(error))

    # Answers --------------------------------------------------------------------------------------------

    def application(self) -> Starlette:
        """The ASGI application: reads alone, and for no other host."""
        from starlette.applications import Starlette
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.routing import Route

        return Starlette(
            routes=[
                Route("/", self._page, methods=["GET"]),
                Route("/tables/{name}.{kind}", self._table, methods=["GET"]),
                Route("/mismatches/{number:int}", self._mismatch, methods=["GET"]),
            ],
            middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=NAMES, www_redirect=False)],
        )

    def _look(self) -> _Seen:
        self._asked.set()
        return self._seen

    def _page(self, _request: Request) -> Response:
        seen = self._look()
        if seen.page and not seen.problem:
            return _answer(seen.page)
        since = f" What was read last is of {moment(seen.at)}." if seen.at else ""
        problem = seen.problem or "The database is read for the first time."
        answer = self._message("Not read", f"{problem}{since}", 503)
        answer.headers["Refresh"] = f"{self._place.refresh:.0f}"
        return answer

    def _table(self, request: Request) -> Response:
        name, kind = request.path_params["name"], request.path_params["kind"]
        table = (self._look().tables or {}).get(name)
        if table is None or kind not in FORMATS:
            return self._message("Not found", "There is no such table.", 404)
        media_type, made = FORMATS[kind]
        answer = _answer(made(table), media_type=media_type)
        answer.headers["Content-Disposition"] = f'attachment; filename="{table.name}.{kind}"'
        return answer

    def _mismatch(self, request: Request) -> Response:
        number = request.path_params["number"]
        try:
            with self._store._units.on_primary(read_only=True, readable=True) as uow:
                detail = of_mismatch(uow, number, contents=self._contents)
        except errors.InvalidValueError:
            return self._message("Not found", f"There is no mismatch {number}.", 404)
        except errors.ConsensusError as error:
            return self._message("Not read", str(error), 503)
        return _answer(self._document(f"Mismatch {number}", *_detail(detail)))

    def _message(self, title: str, text: str, status: int) -> Response:
        return _answer(self._document(title, tag("p", text)), status=status)

    def _document(self, title: str, *body: Html) -> str:
        back = tag("nav", tag("a", "Back to the dashboard", href="/"), aria_label="Dashboard")
        return document(title, back, tag("main", tag("h1", title), *body, id="content"))


def _answer(text: str, *, media_type: str = "text/html", status: int = 200) -> Response:
    from starlette.responses import Response

    data = text.encode("utf-8", "replace")
    return Response(data, status, headers=HEADERS, media_type=f"{media_type}; charset=utf-8")


def _detail(detail: RowDetail) -> list[Html]:
    """A mismatch, and its row column by column."""
    facts = detail.entry.model_dump()
    entries = [Html(tag("dt", name.replace("_", " ")) + tag("dd", _told(value))) for name, value in facts.items()]
    rows = [
        (column.name, column.differs, _cell(column.legacy), _cell(column.normalized), _cell(column.image))
        for column in detail.columns
    ]
    if not rows:
        return [tag("dl", *entries), note("The row is on neither side now, or the entry stands for many rows.")]
    on = " and ".join(detail.on) or "neither side"
    table = Table("Columns", ("column", "differs", "legacy", "normalized", "kept"), rows)
    return [tag("dl", *entries), note(f"The row is on {on} now."), table.html(as_data), note(CONTENTS)]


CONTENTS = "Values are shown by `consensus-orm dashboard --contents`, types and sizes always."


def _told(value: object) -> object:
    return moment(value) if isinstance(value, datetime) else value


def _cell(cell: Cell | None) -> str | None:
    """A value, or its type and size."""
    if cell is None:
        return None
    return f"{cell.type}, {count(cell.bytes, 'byte')}" if cell.value is None else cell.value


# The server -----------------------------------------------------------------------------------------------


def _require(library: str) -> None:
    import importlib

    try:
        importlib.import_module(library)
    except ImportError:
        raise errors.ConfigurationError(
            f"the dashboard needs {library}, which is not installed",
            hint="run: pip install 'consensus-orm[dashboard]'",
            package=library,
        ) from None


def listen(port: int) -> socket.socket:
    """Take a port of this machine alone.

    Args:
        port: The port; 0 takes a free one.

    Raises:
        ConfigurationError: Another program has it.
    """
    taken = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((HOST, port))
        taken.listen()  # who connects before the server runs waits for it
    except OSError as error:
        taken.close()
        raise errors.ConfigurationError(
            f"port {port} of {HOST} cannot be taken: {error.strerror}",
            hint="give another one: --port 0 takes a free one",
        ) from error
    return taken


def serve(dashboard: Dashboard, taken: socket.socket) -> None:
    """Answer requests until the process is interrupted.

    Args:
        dashboard: What to answer.
        taken: The port.

    Raises:
        ConfigurationError: The extra `dashboard` is not installed.
    """
    _require("uvicorn")
    import uvicorn

    config = uvicorn.Config(
        dashboard.application(),
        log_level="error",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=1,
    )
    dashboard.start()
    try:
        uvicorn.Server(config).run(sockets=[taken])
    finally:
        dashboard.stop()
