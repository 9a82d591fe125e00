"""The token that the API asks for: made, kept in a file of its owner's alone, compared in constant time.

The server itself keeps the SHA-256 of it and no more: what Ray Serve stores and shows of an application's
arguments has no token in it.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
from hashlib import sha256
from pathlib import Path

from tuner.errors import UsageError
from tuner.results import data_home

_TOKEN = re.compile(r"[\x21-\x7e]{16,512}")  # what an Authorization header carries as it is
_OTHERS = 0o077


def digest(token: str) -> str:
    """What the server keeps of a token."""
    return sha256(token.encode()).hexdigest()


def matches(token: str, kept: str) -> bool:
    """Whether `token` is the one that `kept` is the digest of; takes as long for any that is not."""
    return hmac.compare_digest(digest(token), kept)


def token_file() -> Path:
    """Where a token that nobody chose is kept."""
    return data_home() / "serve" / "token"


def token_in(variable: str) -> str:
    """The token in an environment variable; its text is in no message."""
    return _checked(os.environ.get(variable, ""), f"the environment variable {variable}")


def kept_token() -> str:
    """The token in `token_file()`, made where there is none; UsageError where others may read the file."""
    path = token_file()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if path.stat().st_mode & _OTHERS:
            raise UsageError(
                f"{path} may be read by others: chmod 600 it, or remove it for a new one"
            ) from None
        return _checked(path.read_text(encoding="utf-8", errors="replace").strip(), str(path))
    except OSError as error:
        raise UsageError(f"no token can be kept in {path}: {error.strerror}") from error
    token = secrets.token_urlsafe(32)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(f"{token}\n")
    return token


def _checked(token: str, place: str) -> str:
    if not _TOKEN.fullmatch(token):
        raise UsageError(f"{place} holds no token: 16 to 512 printable ASCII characters without blanks")
    return token
