"""Who may order workers about over HTTP: whoever knows the token; without a token nobody."""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CREDENTIAL = "control.token"  # systemd.exec(5), LoadCredential=

_SHORTEST = 16


class TokenError(Exception):
    """A token file cannot be used; the text is one line for a person."""


@dataclass(frozen=True, slots=True)
class Actions:
    """The token, or "" when actions are off."""

    token: str = ""

    def __post_init__(self) -> None:
        """Raises TokenError for a token that could be guessed."""
        if 0 < len(self.token) < _SHORTEST:
            raise TokenError(
                f"expected a token of at least {_SHORTEST} characters, got {len(self.token)}; "
                "make one with: openssl rand -hex 32"
            )

    def allows(self, authorization: str) -> bool:
        """Whether this Authorization header carries the token (RFC 6750, section 2.1)."""
        scheme, _, given = authorization.partition(" ")
        same = hmac.compare_digest(given.strip().encode(), self.token.encode())
        return bool(self.token) and scheme.lower() == "bearer" and same


def read_token(configured: Path | None, environ: Mapping[str, str] = os.environ) -> str:
    """The token in systemd's credential `control.token`, else in the configured file, else "".

    Raises TokenError for a file that cannot be read, but not for a credential that is not there.
    """
    directory = environ.get("CREDENTIALS_DIRECTORY")
    credential = Path(directory) / CREDENTIAL if directory else None
    file = credential if credential is not None and credential.exists() else configured
    if file is None:
        return ""
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise TokenError(f"cannot read the token file {file}: {exc}") from exc
