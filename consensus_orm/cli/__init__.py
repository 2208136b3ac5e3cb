"""The command line `consensus-orm`.

Exit codes: 0 done and clean, 1 refused or something found, 2 wrong usage, 130 interrupted.

Importing this module loads nothing: the commands take half a second to import, and Ctrl-C must work meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from consensus_orm.cli import process

__all__ = ["main"]

if TYPE_CHECKING:
    from consensus_orm.cli.app import main
else:

    class _CommandLine:
        """The command group of `consensus_orm.cli.app`, loaded at its first use."""

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            """Run the command line as this process, and end it."""
            process.own()
            from consensus_orm.cli.app import main as group

            return group(*args, **kwargs)

        def __getattr__(self, name: str) -> Any:
            from consensus_orm.cli.app import main as group

            return getattr(group, name)

    main = _CommandLine()
