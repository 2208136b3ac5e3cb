"""The commands, each with the module that defines it and a sentence for the help; importing this loads none of them."""

from __future__ import annotations

__all__ = ["EXAMPLES", "MODULES", "SECTIONS"]

SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Begin": {
        "demo": ("demo", "Show a legacy file going through all phases and back."),
        "status": ("status", "Show where the migration stands, and the next command."),
        "check": ("dependencies", "Name what will keep a gate shut on the way, before anything is written."),
        "dashboard": ("dashboard", "Serve a live page on the migration to a browser of this machine; it cannot write."),
        "health": ("health", "Check whether the database can be served, for load balancers and systemd."),
        "docs": ("docs", "Show a page of the documentation, or list the pages."),
        "explain": ("explain", "Explain an error by its CODE, such as GATE_CLOSED; list all codes without one."),
    },
    "Move": {
        "generate": ("generate", "Draft the move between two mapped classes, and the revision of the new tables."),
        "rehearse": (
            "rehearsal",
            "Migrate a copy through all phases and back, and check that its rows come out unchanged.",
        ),
        "plan": ("plan", "Show the steps ahead, what each does, and how long it took in the rehearsal."),
        "upgrade": ("steps", "Bring the schema to the newest revision; safe at any time."),
        "backfill": ("steps", "Carry the existing rows; continues where it stopped."),
        "verify": ("steps", "Compare all rows of both sides, and write a certificate."),
        "advance": ("steps", "Go to the next phase, or to PHASE; each gate must be open."),
        "rollback": ("steps", "Go back one phase, or to PHASE; nothing is lost on the way."),
        "migrate": ("steps", "Take every step, up to the first gate that refuses."),
        "contract": ("steps", "Remove for good what CONTRACT has put away."),
    },
    "Steer a step that runs, from any terminal or machine": {
        "pause": ("control", "Stop long steps after their current chunk, until `resume`."),
        "resume": ("control", "Let paused steps go on."),
        "throttle": ("control", "Limit long steps to so many rows a second."),
        "hold": ("control", "Refuse every change of phase, until `hold --release`."),
    },
    "Decide": {
        "mismatches": ("rows", "List differences between the sides, or accept them."),
        "rejects": ("rows", "List rows that cannot be carried, or decide on them."),
        "images": ("rows", "List rows that were kept before they were overwritten or deleted, or put one back."),
        "dependencies": ("dependencies", "List what others use of the legacy tables, or accept that it breaks."),
        "reconcile": ("steps", "Make both sides equal, or only the rows of some mismatches or of a table."),
        "history": ("status", "List every change of phase and every repair; writes nothing."),
        "report": ("rehearsal", "Write a report on the migration to one page, FILE.html."),
    },
    "Leave an external store": {
        "external": (
            "external",
            "Import, mirror and leave an external store: stages OFF, IMPORT, MIRROR and DETACHED.",
        ),
        "relay": ("external", "Send what was written to the external store, outside of every request."),
    },
    "Upkeep": {
        "keep": ("keep", "Look after the database between two changes of phase: verify, back up, vacuum, watch."),
        "stats": ("maintenance", "Show the settings in force and the space on disk; writes nothing."),
        "vacuum": ("maintenance", "Return the space of deleted rows to the file system, in small steps."),
        "backup": ("maintenance", "Copy the database to PATH, verified, while writers go on."),
        "restore": (
            "maintenance",
            "Replace a SQLite database that no process has open with BACKUP, or fill an empty database of a server.",
        ),
        "alembic": (
            "revisions",
            "Run a command of alembic on the revisions of this package; no alembic.ini is needed.",
        ),
        "copy": ("copying", "Copy a store to another database, in any phase."),
    },
}
"""The commands by what they are for."""

MODULES = {name: module for section in SECTIONS.values() for name, (module, _) in section.items()}

EXAMPLES = (
    "consensus-orm demo",
    "consensus-orm status --url artifacts.db",
    "consensus-orm migrate --to dual_write",
)
