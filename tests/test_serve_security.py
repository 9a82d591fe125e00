"""What SECURITY.md promises of the API: a test for each line."""

from __future__ import annotations

import contextlib
import hmac
import http.client
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import TOKEN, Served, served
from studies import make
from test_security import ESCAPES, told

from tuner.errors import UsageError
from tuner.results import ResultStore
from tuner.serve import tokens
from tuner.task.file import MAX_BYTES


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    make(name="outside").write(folder)
    make(name="inside").write(folder / "results")
    with served(folder / "results") as running:
        yield running


def raw(server: Served, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, bytes]:
    """A request whose path nobody tidies up first."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    with contextlib.closing(connection):
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body=body, headers=sent, encode_chunked=hasattr(body, "__next__"))
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


# --- the token -------------------------------------------------------------------------------------------


def test_every_route_asks_for_the_token(server: Served) -> None:
    document = server.ask("/openapi.json", token=None).json
    routes = [(path, method) for path, methods in document["paths"].items() for method in methods]
    assert len(routes) > 12
    for path, method in routes:
        for token in (None, "wrong", TOKEN[:-1], f"{TOKEN}x", TOKEN.upper()):
            answer = server.ask(path.replace("{study}", "inside"), method=method.upper(), token=token)
            assert answer.status == 401, (path, token)
            assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/api/v1/studies/",
            "//api/v1/studies",
            "/api//v1/studies",
            "/api/v1/../v1/studies",
            "/docs/",
            "/x",
        ),
        *(
            "/static/../api/v1/studies",
            "/static/%2e%2e/api/v1/studies",
            "/docs/",
            "/API/V1/studies",
            "/docs/../x",
        ),
    ],
)
def test_no_spelling_of_a_path_goes_without(server: Served, path: str) -> None:
    status, _, content = raw(server, "GET", path)
    assert status in (401, 404), path
    assert b"inside" not in content


@pytest.mark.parametrize("scheme", ["Basic", "Token", ""])
def test_the_token_stands_where_no_log_has_it(server: Served, scheme: str) -> None:
    assert server.ask("studies", token=None, Authorization=f"{scheme} {TOKEN}".strip()).status == 401
    for query in (f"?token={TOKEN}", f"?access_token={TOKEN}"):
        assert server.ask(f"studies{query}", token=None).status == 401
    assert server.ask("studies", token=None, Cookie=f"token={TOKEN}").status == 401
    assert server.ask("studies", token=None, Authorization=f"bearer {TOKEN}").status == 200


@given(st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=80))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_other_token_passes(server: Served, token: str) -> None:
    if token.strip() == TOKEN:
        return
    assert raw(server, "GET", "/api/v1/studies", Authorization=f"Bearer {token}")[0] in (400, 401)


def test_tokens_are_compared_in_constant_time(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(one: str, other: str) -> bool:
        compared.append((len(one), len(other)))
        return hmac.compare_digest(one, other)

    monkeypatch.setattr(tokens, "hmac", type("hmac", (), {"compare_digest": staticmethod(compare)}))
    assert server.ask("studies").status == 200
    assert server.ask("studies", token="x").status == 401
    assert compared == [(64, 64), (64, 64)]  # of digests: no length is told either


def test_the_server_does_not_keep_the_token(tmp_path: Path) -> None:
    from tuner.serve.deployment import application

    held = application(str(tmp_path), tokens.digest(TOKEN))
    assert TOKEN not in repr(vars(held)) and TOKEN not in tokens.digest(TOKEN)


def test_a_token_that_nobody_chose_is_its_owners_alone(data_folder: Path) -> None:
    token = tokens.kept_token()
    path = data_folder / "serve" / "token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and path.read_text().strip() == token
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert tokens.kept_token() == token and len(token) >= 43
    path.chmod(0o640)
    with pytest.raises(UsageError, match="may be read by others") as refused:
        tokens.kept_token()
    assert token not in str(refused.value)


@pytest.mark.parametrize("value", ["", "short", "with a blank, which no header has", "é" * 20, "x" * 513])
def test_what_is_no_token_is_refused_and_not_repeated(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINE", value)
    assert told("serve", "--token-env", "MINE") == 2
    said = capsys.readouterr().err
    assert "MINE" in said and (not value or value not in said)


def test_going_without_a_token_is_for_loopback_and_said_aloud(capsys: pytest.CaptureFixture[str]) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.com"):
        assert told("serve", "--no-token", "--host", host) == 2
        assert "only on loopback" in capsys.readouterr().err
    assert told("serve", "--no-token", "--token-env", "MINE") == 2


def test_the_application_of_serve_run_is_never_without_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_folder: Path
) -> None:
    from ray.serve import Application

    from tuner.serve import app

    assert isinstance(app({"results": str(tmp_path)}), Application)
    assert (data_folder / "serve" / "token").exists()
    monkeypatch.setenv("MINE", TOKEN)
    assert isinstance(app({"token_env": "MINE"}), Application)
    for arguments in ({"token_env": "NOT_THERE"}, {"no_token": True}, {"token": TOKEN}):
        with pytest.raises(UsageError) as refused:
            app(arguments)
        assert TOKEN not in str(refused.value)


# --- whose pages may ask ---------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [TOKEN, None])
def test_another_sites_page_may_not_ask(tmp_path: Path, token: str | None) -> None:
    with served(tmp_path, token=token) as server:
        own = server.url.rstrip("/")
        assert server.post("check", {}, Origin=own).status == 200
        for origin in ("http://evil.example", "null", own + "1", own.replace("127.0.0.1", "localhost")):
            assert server.post("studies", {}, Origin=origin).status == 403
        assert not server.jobs.orders
        assert "access-control-allow-origin" not in server.ask("studies").headers


def test_without_a_token_no_name_that_leads_here_is_served(tmp_path: Path) -> None:
    """DNS rebinding: a page of evil.example, whose name suddenly means 127.0.0.1."""
    with served(tmp_path, token=None) as server:
        port = urlsplit(server.url).port
        for host in ("127.0.0.1", "localhost", f"127.0.0.1:{port}", f"[::1]:{port}"):
            assert server.ask("studies", Host=host).status == 200
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil:80"):
            assert server.ask("studies", Host=host).status == 403
            assert server.ask("/", Host=host).status == 403


def test_pages_load_nothing_from_elsewhere(server: Served) -> None:
    for path in ("/", "/docs"):
        answer = server.ask(path, token=None)
        assert answer.status == 200
        policy = dict(
            part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
        assert "unsafe" not in policy["script-src"] and policy["frame-ancestors"] == "'none'"
        assert "http" not in answer.text.replace("http-equiv", "")
        assert answer.headers["x-content-type-options"] == "nosniff"
    for path in ("studies", "studies/inside/report"):
        assert server.ask(path).headers["cache-control"] == "no-store"
        assert "frame-ancestors 'none'" in server.ask(path).headers["content-security-policy"]


# --- sizes and paths -------------------------------------------------------------------------------------


def test_an_upload_has_a_limit_however_it_is_sent(server: Served) -> None:
    credentials = {"Authorization": f"Bearer {TOKEN}"}
    assert raw(server, "POST", "/api/v1/check", b" " * (MAX_BYTES + 1), **credentials)[0] == 413
    assert raw(server, "POST", "/api/v1/studies", b"", Content_Length=str(2**40), **credentials)[0] == 413
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        while sent < 64 * MAX_BYTES:
            sent += 65536
            yield b" " * 65536

    with contextlib.suppress(ConnectionError):  # it may hang up before it has been told all
        assert (
            raw(server, "POST", "/api/v1/check", chunks(), Transfer_Encoding="chunked", **credentials)[0]
            == 413
        )
    assert server.post("check", b"{}" + b" " * (MAX_BYTES - 2)).status == 200
    assert not server.jobs.orders


@pytest.mark.parametrize("name", [*ESCAPES, "../outside", "..%2foutside", "%2e%2e%2foutside"])
def test_no_name_in_a_request_leaves_the_results(server: Served, name: str, data_folder: Path) -> None:
    quoted = name if "%" in name else quote(name, safe="")
    credentials = {"Authorization": f"Bearer {TOKEN}"}
    for below in ("", "/trials", "/best", "/report", "/log", "/export", "/events"):
        status, _, content = raw(server, "GET", f"/api/v1/studies/{quoted}{below}", **credentials)
        assert b"mem-fraction-static" not in content, below
        if name not in ("", "."):  # of which nothing is left in an address but the list of studies
            assert status in (404, 422), below
    for below in ("/cancel", "/resume"):
        assert raw(server, "POST", f"/api/v1/studies/{quoted}{below}", **credentials)[0] in (404, 405, 422)
    if name:
        assert raw(server, "POST", f"/api/v1/studies?study={quoted}", b"{}", **credentials)[0] == 422
    assert not server.jobs.orders


def test_a_page_is_no_way_to_other_files(server: Served) -> None:
    for path in (
        "/static/../api.py",
        "/static/%2e%2e/api.py",
        "/static//etc/passwd",
        "/static/swagger/../../api.py",
    ):
        assert raw(server, "GET", f"/static/{path}")[0] in (401, 404), path


def test_nothing_in_a_request_reaches_a_shell(server: Served, tmp_path: Path) -> None:
    """Ray hands a job's command line to a shell: each word of it is quoted."""
    import shlex

    from tuner.serve.jobs import Order
    from tuner.serve.ray_jobs import RayJobs

    submitted: list[str] = []

    class Client:
        def submit_job(self, **job: Any) -> str:
            submitted.append(job["entrypoint"])
            return "job"

    jobs = RayJobs()
    jobs._connected = Client()  # type: ignore[assignment]
    words = ("run", "task.json", "--results", "/tmp/a b; touch $(HOME) 'x' \"y\" `z`")
    jobs.start(Order("name", words[-1], words, {"task.json": b"{}"}))
    assert tuple(shlex.split(submitted[0])[-4:]) == words
    engine = quote("simulator;touch x", safe="")
    assert server.post(f"studies?engine={engine}", {}).status == 422
    assert not server.jobs.orders


def test_what_a_study_holds_is_inert_in_its_report(tmp_path: Path) -> None:
    made = make(name="hostile", description="<script>fetch('/api/v1/studies')</script>")
    made.write(tmp_path)
    with served(tmp_path) as server:
        answer = server.ask("studies/hostile/report")
        assert "<script>fetch" not in answer.text
        assert answer.headers["content-security-policy"].startswith("sandbox allow-scripts;")
        assert "allow-same-origin" not in answer.headers["content-security-policy"]


def test_a_study_that_is_asked_for_is_not_created(server: Served) -> None:
    server.ask("studies/never")
    assert not (server.root / "never").exists() and not ResultStore(server.root, "never").exists()
    assert [path.name for path in server.root.iterdir()] == ["inside"]
