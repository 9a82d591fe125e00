"""Programs that reach servers on loopback, whatever proxy the environment names."""

from __future__ import annotations

import urllib.request

import pytest
from contracts.scripted_server import ScriptedServer, status

from tuner.engines import make_engine
from tuner.loopback import unproxied
from tuner.task import make_task

PROXY = {"http_proxy": "http://proxy.example:3128"}


@pytest.mark.parametrize(
    ("environment", "excepted"),
    [
        ({}, None),
        ({"no_proxy": "intranet"}, "intranet"),
        (PROXY, "127.0.0.1,localhost"),
        ({"ALL_PROXY": "socks5://x"}, "127.0.0.1,localhost"),
        ({**PROXY, "no_proxy": "a.example, localhost"}, "a.example,localhost,127.0.0.1"),
        ({**PROXY, "NO_PROXY": "a.example"}, "a.example,127.0.0.1,localhost"),
        ({**PROXY, "no_proxy": "*"}, "*"),
    ],
)
def test_loopback_is_excepted_where_there_is_a_proxy(
    environment: dict[str, str], excepted: str | None
) -> None:
    found = unproxied({"PATH": "/bin", **environment})
    assert found["PATH"] == "/bin" and found.get("no_proxy") == excepted
    if environment.keys() & {"http_proxy", "ALL_PROXY"}:
        assert found["NO_PROXY"] == excepted
        assert (
            found.items()
            >= {name: v for name, v in environment.items() if "no_proxy" not in name.lower()}.items()
        )


@pytest.mark.parametrize("engine", ["sglang", "vllm", "llamacpp", "simulator"])
def test_an_engine_reaches_its_own_server(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # where nobody listens
    task = make_task({"base_runtime": engine, "model": {"id_or_path": "m"}})
    for name, value in make_engine(task)._env().items():  # type: ignore[attr-defined]
        monkeypatch.setenv(name, value)
    asks = urllib.request.build_opener()  # urlopen would keep this proxy for every test that follows
    with ScriptedServer(status(200, b"{}")) as server, asks.open(server.url) as answer:
        assert answer.status == 200
