"""`tuner bench`: a server that runs already is measured, reported and kept; nothing is started."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from contracts.scripted_server import Call, Script, ScriptedServer, free_port, status, streaming

from tuner.bench import bench
from tuner.cli import main
from tuner.engines.attached import Attached, AttachedServer
from tuner.engines.base import ServerInfo
from tuner.errors import StudyError, UsageError
from tuner.export import best_deployment
from tuner.load.base import Target
from tuner.results import ResultStore, default_root, studies
from tuner.task import Task, make_task

STATISTICS = {"mean", "p50", "p90", "p95", "p99"}


def data(**sections: Any) -> dict[str, Any]:
    load = {"traffic_scenarios": ["D(7,5)"], "num_concurrency": [1, 2], "max_requests_per_iteration": 6}
    return {"model": {"id_or_path": "m"}, **sections, "benchmark": load | sections.get("benchmark", {})}


def task(**sections: Any) -> Task:
    return make_task(data(**sections))


def serving(models: Sequence[str] = ("served",), answer: Script | None = None) -> Script:
    """A server that lists `models`, tells a version, and answers completions by `answer`."""
    answer = answer or streaming(pause_s=0.001)

    async def script(call: Call) -> None:
        if call.path == "/v1/completions":
            await answer(call)
        elif call.path == "/v1/models":
            await _reply(call, {"data": [{"id": name} for name in models]})
        elif call.path == "/version":
            await _reply(call, {"version": "9.9"})
        else:
            await status(404)(call)

    return script


async def _reply(call: Call, value: Any) -> None:
    body = json.dumps(value).encode()
    await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


def tuner(*words: str) -> int:
    """The exit code of a command line."""
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert isinstance(ended.value.code, int)
    return ended.value.code


# The server that is found.


def test_it_asks_for_the_one_model_that_is_served_and_the_version() -> None:
    with ScriptedServer(serving()) as server:
        found = Attached(task(), server.url + "/v1/")
    assert (found.base_url, found.model, found.version(), found.simulated) == (
        server.url,
        "served",
        "9.9",
        False,
    )


def test_of_many_models_it_takes_the_one_that_the_task_names() -> None:
    with ScriptedServer(serving(["a", "m"])) as server:
        assert Attached(task(), server.url).model == "m"
        assert Attached(task(benchmark={"model_name": "b"}), server.url).model == "b"
    unclear = pytest.raises(UsageError, match=r"2 models \(a, b\); give benchmark.model_name")
    with ScriptedServer(serving(["a", "b"])) as server, unclear:
        Attached(task(), server.url)
    with ScriptedServer(status(404)) as server:
        assert Attached(task(benchmark={"model_name": "b"}), server.url).model == "b"
        with pytest.raises(UsageError, match=r"/v1/models answers 404; give benchmark\.model_name"):
            Attached(task(), server.url)


@pytest.mark.parametrize("url", ["127.0.0.1:80", "ftp://h", "http://", "http://h:99999", "http://[x"])
def test_what_is_no_base_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="--base-url"):
        Attached(task(), url)


# What is measured and kept.


def test_a_bench_is_a_study_of_one_trial(tmp_path: Path) -> None:
    seen = []
    with ScriptedServer(serving()) as server:
        attached = Attached(task(), server.url, gpus=2)
        outcome = bench(task(), attached, seed=3, results=tmp_path, watch=seen.append)
    assert [report.finished for report in seen] == [1, 2]
    assert outcome.exit_code == 0
    [name] = studies(tmp_path)
    found = ResultStore(tmp_path, name).read()
    [trial] = found.trials.to_dict("records")
    assert (trial["kind"], trial["engine_version"], trial["gpus"], trial["levels_finished"]) == (
        "bench",
        "9.9",
        2,
        2,
    )
    assert list(found.steps["requests_ok"]) == [6, 6]
    assert (found.steps["total_tok_s_per_gpu"] == found.steps["total_tok_s"] / 2).all()
    assert len(found.requests) == 12
    assert found.about["base_url"] == server.url
    with pytest.raises(StudyError, match="ran already"):
        best_deployment(found)


def test_the_same_seed_puts_the_same_requests_on_it(tmp_path: Path) -> None:
    sent = []
    for seed in (1, 1, 2):
        with ScriptedServer(serving()) as server:
            bench(task(), Attached(task(), server.url), seed=seed, results=tmp_path)
        sent.append(sorted(call.raw for call in server.calls if call.path == "/v1/completions"))
    assert sent[0] == sent[1] != sent[2]


def test_its_cache_is_left_alone(tmp_path: Path) -> None:
    with ScriptedServer(serving()) as server:
        bench(task(), Attached(task(), server.url), seed=0, results=tmp_path)
    assert not [call.path for call in server.calls if "flush" in call.path or "reset" in call.path]


def test_a_server_that_fails_under_load_is_an_outcome(tmp_path: Path) -> None:
    with ScriptedServer(serving(answer=status(503))) as server:
        outcome = bench(task(), Attached(task(), server.url), seed=0, results=tmp_path)
    assert outcome.exit_code == 4
    assert outcome.trial["failure_cause"] == "request errors"
    assert outcome.document()["levels"] == []
    assert len(ResultStore(tmp_path, studies(tmp_path)[0]).read().trials) == 1


# The command.


def written(folder: Path, **sections: Any) -> str:
    path = folder / "task.json"
    path.write_text(json.dumps(data(**sections)))
    return str(path)


def test_the_document_for_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ScriptedServer(serving()) as server:
        assert tuner("bench", written(tmp_path), "--base-url", server.url, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["base_url"], document["model"], document["simulated"]) == (server.url, "served", False)
    assert [(level["scenario"], level["concurrency"]) for level in document["levels"]] == [
        ("D(7,5)", 1),
        ("D(7,5)", 2),
    ]
    for level in document["levels"]:
        for latency in ("ttft_s", "tpot_s", "e2e_s"):
            assert level[latency].keys() >= STATISTICS
            assert all(level[latency][name] > 0 for name in STATISTICS)
            assert level[latency]["ci95"] is None  # of 6 requests
            assert level[latency]["n"] == 6
        assert level["itl_s"]["n"] == 6 * 4
        assert level["ttft_s"]["mean"] < level["e2e_s"]["mean"]
        assert (level["requests_ok"], level["success_rate"], level["errors"]) == (6, 1.0, {})
        assert level["output_tok_s"] > 0


def test_without_a_seed_no_two_send_the_same_prompts(tmp_path: Path) -> None:
    """Else the second would find the first's prefixes in a cache that is not its own to flush."""
    with ScriptedServer(serving()) as server:
        for seed in ([], [], ["--seed", "5"], ["--seed", "5"]):
            assert tuner("bench", written(tmp_path), "--base-url", server.url, *seed) == 0
    prompts = [call.body["prompt"] for call in server.calls if call.path == "/v1/completions"]
    sent = len(prompts) // 4
    first, second, third, fourth = (set(prompts[sent * k : sent * (k + 1)]) for k in range(4))
    assert not first & second and third == fourth


def test_the_table_for_people_comes_back_in_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedServer(serving()) as server:
        assert tuner("bench", written(tmp_path), "--base-url", server.url) == 0
    shown = capsys.readouterr().out
    assert "served at" in shown and str(default_root()) in shown
    assert tuner("report") == 0
    again = capsys.readouterr().out
    for text in (
        "D(7,5), 1 at a time",
        "D(7,5), 2 at a time",
        "p99",
        "TTFT",
        "TPOT",
        "ITL",
        "e2e",
        "output tok/s",
    ):
        assert text in shown and text in again
    assert tuner("export") == 2


def test_what_was_simulated_says_so_when_it_is_read_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedServer(serving()) as server:
        assert tuner("bench", written(tmp_path), "--base-url", server.url) == 0
    assert tuner("report") == 0
    assert "SIMULATED" not in capsys.readouterr().out
    [study] = studies(default_root())
    path = Path(default_root(), study, "study.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "simulated": True}))
    assert tuner("report") == 0
    assert "SIMULATED" in capsys.readouterr().out


def test_a_broken_promise_ends_with_exit_code_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    promise = {"ttft": {"p95": {"threshold": 1e-6}}}
    with ScriptedServer(serving()) as server:
        assert tuner("bench", written(tmp_path, slo=promise), "--base-url", server.url) == 3
    assert "broken: ttft p95 by" in capsys.readouterr().out


def test_no_server_no_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert tuner("bench", written(tmp_path), "--base-url", url) == 2
    assert f"no server answers at {url}" in capsys.readouterr().err
    assert studies(default_root()) == []


# A server that asks for a key.

KEY = "sk-not-to-be-found-anywhere-3f9a"


def locked(answer: Script) -> Script:
    """A server that answers 401 to whoever does not bear the key."""

    async def script(call: Call) -> None:
        bears = call.headers.get("authorization") == f"Bearer {KEY}"
        await (answer if bears else status(401))(call)

    return script


def test_a_protected_server_gets_the_key_with_every_request_and_nothing_else_does(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_KEY", f" {KEY}\n")

    async def answer(call: Call) -> None:
        if call.path == "/metrics":
            body = b"sglang:num_running_reqs 3"
            await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        else:
            await serving()(call)

    command = ("bench", written(tmp_path), "--api-key-env", "BENCH_KEY", "--results", str(tmp_path / "kept"))
    with ScriptedServer(locked(answer)) as server:
        assert tuner(*command, "--base-url", server.url, "--json") == 0
    assert {"/v1/models", "/v1/completions", "/metrics"} <= {call.path for call in server.calls}
    assert {call.headers.get("authorization") for call in server.calls} == {f"Bearer {KEY}"}
    said = capfd.readouterr()
    assert json.loads(said.out)["levels"][1]["requests_ok"] == 6
    assert KEY not in said.out + said.err
    files = [path for folder in (tmp_path, default_root()) for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".parquet" for path in files)
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    served = AttachedServer(server.url, "m", ServerInfo(""), api_key=KEY)
    assert KEY not in repr(served) + repr(Target(server.url, "m", {}, api_key=KEY))


def test_without_the_key_it_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ScriptedServer(locked(serving())) as server:
        for load in ({}, {"model_name": "served"}):
            task_file = written(tmp_path, benchmark=load)
            assert tuner("bench", task_file, "--base-url", server.url) == 2
            assert "answers 401; give --api-key-env" in capsys.readouterr().err
    assert {call.path for call in server.calls} == {"/v1/models"}


def test_a_wrong_key_is_told_by_its_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_KEY", "another")
    with ScriptedServer(locked(serving())) as server:
        task_file = written(tmp_path, benchmark={"model_name": "served"})
        assert tuner("bench", task_file, "--base-url", server.url, "--api-key-env", "BENCH_KEY") == 4
    assert "6 of 6 requests failed (6 http status 401)" in capsys.readouterr().out


@pytest.mark.parametrize("value", [None, " ", "two\nlines", "clé"])
def test_a_variable_without_a_key_is_refused_and_not_shown(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    value: str | None,
) -> None:
    if value is not None:
        monkeypatch.setenv("BENCH_KEY", value)
    url = f"http://127.0.0.1:{free_port()}"
    assert tuner("bench", written(tmp_path), "--base-url", url, "--api-key-env", "BENCH_KEY") == 2
    said = capsys.readouterr().err
    assert "environment variable BENCH_KEY holds no key" in said
    assert not (value or "").strip() or value not in said


def test_a_key_does_not_follow_to_another_server(tmp_path: Path) -> None:
    with ScriptedServer(serving()) as other:

        async def elsewhere(call: Call) -> None:
            await call.send(
                b"HTTP/1.1 307 Moved\r\nContent-Length: 0\r\nLocation: %b%b\r\n\r\n"
                % (other.url.encode(), call.path.encode())
            )

        with ScriptedServer(elsewhere) as server:
            assert Attached(task(), server.url, api_key=KEY).model == "served"
    assert other.calls and not [call for call in other.calls if "authorization" in call.headers]


def test_a_password_in_the_url_would_be_kept_with_the_results() -> None:
    with pytest.raises(UsageError, match="use --api-key-env"):
        Attached(task(), "http://user:secret@127.0.0.1:80")


def test_genai_bench_would_show_the_key() -> None:
    with pytest.raises(UsageError, match="genai-bench shows its key"):
        Attached(task(benchmark={"tool": "genai-bench"}), "http://127.0.0.1:80", api_key=KEY)
