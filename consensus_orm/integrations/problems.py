"""Errors as answers of HTTP, for any framework: a status, and a body after RFC 9457 (`application/problem+json`)."""

from __future__ import annotations

from typing import Any

from consensus_orm import errors

__all__ = ["MEDIA_TYPE", "RETRY_AFTER", "STATUS", "problem"]

MEDIA_TYPE = "application/problem+json"

STATUS: dict[type[errors.ConsensusError], int] = {
    errors.InvalidValueError: 422,
    errors.UnknownAgentError: 404,
    errors.CircuitOpenError: 503,
    errors.DatabaseBusyError: 503,
    errors.DatabaseUnavailableError: 503,
    errors.PoolExhaustedError: 503,
    errors.StoreClosedError: 503,
    errors.ConsensusError: 500,
}
"""The status of an error: that of its class, or of the nearest class above. With 503, the request may be repeated."""

RETRY_AFTER = "1"
"""Seconds after which a client may repeat a request that was answered by 503."""


def problem(error: errors.ConsensusError) -> tuple[int, dict[str, Any]]:
    """Make the answer to an error.

    Args:
        error: The error.

    Returns:
        The status, and the body: the code of the error; for one that the client made (4xx) also the message and the
        hint.
    """
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    title = (type(error).__doc__ or "").partition("\n")[0]  # the rest of it is for programmers
    body: dict[str, Any] = {"title": title, "status": status, "code": error.code}
    if status < 500:
        body |= {"detail": error.message, "hint": error.hint}
    return status, body
