"""What a SELECT may be that somebody wants answered."""

import re

from marketprism.storage.engine import Engine, EngineError

_READS = re.compile(r"\(*\s*(SELECT|WITH|SHOW|DESCRIBE|EXISTS|EXPLAIN)\b")
_ELSEWHERE = re.compile(r"^\s*(INTO OUTFILE|FORMAT) ", re.MULTILINE)
# What reads files or memory of this process even where nothing may be changed.
_OUTSIDE = re.compile(r"\b(file|python)\s*\(", re.IGNORECASE)


def checked(reader: Engine, sql: str) -> str:
    """A statement as the engine's own parser writes it down, if all it does is read tables. Raises EngineError.

    The connection cannot change anything in any case; but a file of this user's could still be read or written.
    """
    plain = str(reader.value("SELECT formatQuery({sql:String})", {"sql": sql}))
    if not _READS.match(plain):
        raise EngineError(f"expected a SELECT, got {plain[:60]!r}")
    if _ELSEWHERE.search(plain):
        raise EngineError("leave out FORMAT and INTO OUTFILE: the request's `format` says what comes back")
    if found := _OUTSIDE.search(plain):
        raise EngineError(f"{found[1]}() is not served here")
    return plain
