"""The address that servers of trials listen on, and that no proxy stands before."""

from __future__ import annotations

from collections.abc import Mapping

_PROXIES = ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")
_EXCEPT = ("no_proxy", "NO_PROXY")
_LOOPBACK = ("127.0.0.1", "localhost")


def unproxied(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` in which programs reach loopback by themselves, and all else as before.

    Where there is a proxy, SGLang's warm-up of its own server and genai-bench's load would go to it.
    """
    if not any(environment.get(name) for name in _PROXIES):
        return dict(environment)
    known = next(filter(None, (environment.get(name, "").strip() for name in _EXCEPT)), "")
    if known != "*":
        hosts = [host for host in map(str.strip, known.split(",")) if host]
        known = ",".join([*hosts, *(host for host in _LOOPBACK if host not in hosts)])
    return {**environment, **dict.fromkeys(_EXCEPT, known)}
