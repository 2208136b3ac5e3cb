"""Values as SQLite binds and returns them: text that is not valid UTF-8 travels as its bytes."""

from __future__ import annotations

__all__ = ["by_code_points", "codec", "decode", "is_kept_by_utf16", "is_text", "storable"]

_REPLACED = frozenset("\ufffe\uffff")
"""Characters that SQLite replaces when it converts UTF-8 to UTF-16 (READ_UTF8 in its utf.c)."""


def storable(value: object) -> object:
    """The bytes of a text that UTF-8 cannot encode, lone surrogates included; any other value unchanged.

    Text that UTF-8 can encode stays text: some expressions, as the key of a run, depend on the type.
    """
    if not isinstance(value, str):
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        pass
    else:
        return value
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogatepass")


def is_kept_by_utf16(value: object) -> bool:
    """Whether a file in UTF-16 stores a value unchanged."""
    return storable(value) is value and not (isinstance(value, str) and not _REPLACED.isdisjoint(value))


def decode(value: bytes) -> str:
    """Decode a text, and escape its bytes that are not valid UTF-8."""
    return value.decode("utf-8", "surrogateescape")


def codec(encoding: str) -> str:
    """Python's name of an encoding of SQLite."""
    return encoding.lower().replace("utf-16", "utf-16-")


def is_text(value: object, encoding: str) -> bool:
    """Whether the bytes of a text are valid in the encoding of the file; SQL has no function for that."""
    try:
        value.decode(codec(encoding)) if isinstance(value, bytes) else None
    except UnicodeDecodeError:
        return False
    return True


def by_code_points(a: str, b: str) -> int:
    """Order texts as their bytes in UTF-8 are ordered, in a file with another encoding."""
    return (a > b) - (a < b)
