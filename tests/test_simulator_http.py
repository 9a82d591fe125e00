"""The simulator as a real process: its endpoints, its streams, and how it leaves."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MODEL = "llama-3.2-1b-instruct"


class Running:
    """A simulator on a free loopback port."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process, self.port, self.log = process, port, log

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        with contextlib.closing(self.connect()) as connection:
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            connection.request(method, path, data)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def json(self, method: str, path: str, body: Any = None) -> Any:
        status, text = self.ask(method, path, body)
        assert status == 200, text
        return json.loads(text)

    def events(self, path: str, body: Any) -> list[Any]:
        """The JSON of every event of a stream, which must end in [DONE]."""
        status, text = self.ask("POST", path, {**body, "stream": True})
        assert status == 200, text
        data = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        assert data.pop() == "[DONE]"
        return [json.loads(event) for event in data]

    def metric(self, name: str) -> float:
        _, text = self.ask("GET", "/metrics")
        (line,) = [line for line in text.splitlines() if line.startswith(f"sglang:{name}{{")]
        return float(line.rsplit(" ", 1)[1])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def simulator(folder: Path, *flags: str) -> Iterator[Running]:
    port, log = free_port(), folder / "server.log"
    command = [
        sys.executable,
        "-m",
        "tuner.engines.simulator",
        "--model-path",
        MODEL,
        "--port",
        str(port),
        *flags,
    ]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 20
        while b"ready to roll" not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
        yield Running(process, port, log)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with simulator(
        tmp_path_factory.mktemp("simulator"), "--enable-cache-report", "--random-seed", "3"
    ) as running:
        yield running


def test_every_line_of_the_log_says_that_it_is_a_simulation(server: Running) -> None:
    lines = server.log.read_text().splitlines()
    assert lines
    assert all("SIMULATION]" in line for line in lines)
    assert "The server is fired up and ready to roll!" in server.log.read_text()


def test_completion_stream_has_every_token_and_the_usage(server: Running) -> None:
    body = {
        "prompt": "one two three",
        "max_tokens": 7,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    *tokens, usage = server.events("/v1/completions", body)
    assert [event["choices"][0]["finish_reason"] for event in tokens] == [None] * 6 + ["length"]
    assert len("".join(event["choices"][0]["text"] for event in tokens).split()) == 7
    assert usage["choices"] == []
    assert (usage["usage"]["prompt_tokens"], usage["usage"]["completion_tokens"]) == (3, 7)
    assert len({event["id"] for event in tokens}) == 1


def test_completion_without_a_stream_is_the_same_text(server: Running) -> None:
    body = {"prompt": "one two three", "max_tokens": 7}
    streamed = "".join(event["choices"][0]["text"] for event in server.events("/v1/completions", body))
    whole = server.json("POST", "/v1/completions", body)
    assert whole["choices"][0]["text"] == streamed
    assert whole["usage"]["total_tokens"] == 10


def test_no_usage_unless_asked_for(server: Running) -> None:
    events = server.events("/v1/completions", {"prompt": "a", "max_tokens": 2})
    assert all("usage" not in event for event in events)


def test_chat_stream_and_whole(server: Running) -> None:
    body = {"messages": [{"role": "user", "content": "how are you"}], "max_tokens": 4}
    first, *tokens, last = server.events("/v1/chat/completions", body)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert last["choices"][0]["finish_reason"] == "length"
    whole = server.json("POST", "/v1/chat/completions", body)
    content = "".join(event["choices"][0]["delta"]["content"] for event in tokens)
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": content}
    assert whole["usage"]["completion_tokens"] == len(tokens) == 4


def test_a_conversation_sent_back_is_cached(server: Running) -> None:
    turn = [{"role": "user", "content": " ".join(f"word{i}" for i in range(200))}]
    answer = server.json("POST", "/v1/chat/completions", {"messages": turn, "max_tokens": 50})
    turn += [answer["choices"][0]["message"], {"role": "user", "content": "and then"}]
    again = server.json("POST", "/v1/chat/completions", {"messages": turn, "max_tokens": 1})
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= 250


def test_native_generate_is_cumulative(server: Running) -> None:
    events = server.events("/generate", {"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 3}})
    assert [len(event["text"].split()) for event in events] == [1, 2, 3]
    assert events[-1]["meta_info"]["completion_tokens"] == 3
    assert events[-1]["meta_info"]["finish_reason"] == {"type": "length", "length": 3}
    whole = server.json("POST", "/generate", {"text": "a b", "sampling_params": {"max_new_tokens": 2}})
    assert whole["meta_info"]["prompt_tokens"] == 2


def test_token_ids_are_taken_as_they_are(server: Running) -> None:
    assert (
        server.json("POST", "/v1/completions", {"prompt": [5] * 40, "max_tokens": 1})["usage"][
            "prompt_tokens"
        ]
        == 40
    )


def test_keep_alive_and_pipelining(server: Running) -> None:
    body = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
    request = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(request * 3 + b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        data = b"".join(iter(lambda: client.recv(65536), b""))
    assert data.count(b"HTTP/1.1 200 OK") == 4
    assert data.count(b"text_completion") == 3


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("POST", "/v1/completions", b"{", 400, "Invalid JSON"),
        ("POST", "/v1/completions", b"[]", 400, "must be a JSON object"),
        ("POST", "/v1/completions", {}, 400, "The prompt must be"),
        ("POST", "/v1/completions", {"prompt": ""}, 400, "cannot be empty"),
        ("POST", "/v1/completions", {"prompt": ["a", "b"]}, 400, "The prompt must be"),
        ("POST", "/v1/completions", {"prompt": "a", "max_tokens": 0}, 400, "max_tokens must be positive"),
        ("POST", "/v1/completions", {"prompt": "a", "max_tokens": "9"}, 400, "max_tokens must be positive"),
        ("POST", "/v1/completions", {"prompt": "a", "n": 2}, 400, "not simulated"),
        (
            "POST",
            "/v1/completions",
            {"prompt": "a", "max_tokens": 131072},
            400,
            "maximum context length of 131072",
        ),
        ("POST", "/v1/completions", {"prompt": [1] * 131072}, 400, "longer than the model's context length"),
        ("POST", "/v1/chat/completions", {"messages": []}, 400, "at least one message"),
        (
            "POST",
            "/generate",
            {"sampling_params": {"max_new_tokens": -1}, "text": "a"},
            400,
            "must be positive",
        ),
        ("GET", "/nosuch", None, 404, "Not Found"),
        ("GET", "/v1/completions", None, 405, "Method Not Allowed"),
    ],
)
def test_errors(server: Running, method: str, path: str, body: Any, status: int, message: str) -> None:
    got, text = server.ask(method, path, body)
    assert (got, message in text) == (status, True), text
    if got == 400:
        error = json.loads(text)
        assert (error["object"], error["code"], error["type"]) == ("error", 400, "BadRequestError")


def test_garbage_closes_the_connection(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 400")
        assert client.recv(65536) == b""
    assert server.ask("GET", "/health")[0] == 200


def test_server_info_has_the_resolved_arguments(server: Running) -> None:
    info = server.json("GET", "/server_info")
    assert info == {**server.json("GET", "/get_server_info"), "internal_states": info["internal_states"]}
    assert info["version"].startswith("simulator-")
    assert info["simulated"] is True
    assert info["chunked_prefill_size"] == 8192
    assert info["mem_fraction_static"] == pytest.approx(0.836, abs=0.002)
    assert info["random_seed"] == 3
    assert info["max_total_num_tokens"] > 1_000_000
    assert info["internal_states"][0]["num_running_reqs"] == 0
    assert info["late_s"] >= 0


def test_model_endpoints(server: Running) -> None:
    assert server.json("GET", "/v1/models")["data"][0]["id"] == MODEL
    for path in ("/model_info", "/get_model_info"):
        assert server.json("GET", path)["model_path"] == MODEL
    assert server.ask("GET", "/health") == (200, "")
    assert server.ask("GET", "/health_generate")[0] == 200


def test_metrics_count_what_was_served(server: Running) -> None:
    before = server.metric("generation_tokens_total")
    server.json("POST", "/v1/completions", {"prompt": "count me", "max_tokens": 9})
    assert server.metric("generation_tokens_total") - before == 9
    for name in ("num_running_reqs", "num_queue_reqs", "token_usage", "num_retracted_reqs"):
        assert server.metric(name) == 0
    assert server.metric("cache_hit_rate") <= 1
    assert server.metric("gen_throughput") >= 0


def test_flush_cache_forgets_prefixes(server: Running) -> None:
    body = {"prompt": " ".join(f"flush{i}" for i in range(100)), "max_tokens": 1}

    def cached() -> int:
        usage = server.json("POST", "/v1/completions", body)["usage"]
        tokens: int = usage["prompt_tokens_details"]["cached_tokens"]
        return tokens

    assert [cached(), cached()] == [0, 99]
    assert server.ask("POST", "/flush_cache")[0] == 200
    assert cached() == 0


def test_a_client_that_leaves_frees_its_place(server: Running) -> None:
    with contextlib.closing(server.connect()) as client:
        body = {"prompt": "a", "max_tokens": 100_000, "stream": True}
        client.request("POST", "/v1/completions", json.dumps(body))
        response = client.getresponse()
        assert response.read1(10)
        assert server.metric("num_running_reqs") == 1
        assert server.ask("POST", "/flush_cache")[0] == 400
    deadline = time.monotonic() + 10
    while server.metric("num_running_reqs"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert server.ask("POST", "/flush_cache")[0] == 200


def test_many_streams_at_once_get_exactly_their_tokens(server: Running) -> None:
    counts: list[int] = []

    def client(index: int) -> None:
        for turn in range(3):
            body = {"prompt": [index, turn] * 50, "max_tokens": 20 + index}
            counts.append(len(server.events("/v1/completions", body)) - 20 - index)

    threads = [threading.Thread(target=client, args=(index,)) for index in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [0] * 72


def test_small_memory_retracts_and_still_answers(tmp_path: Path) -> None:
    """Two answers of 1000 tokens on a cache of 1750, let in because nothing is reserved for the first."""
    flags = ["--max-total-tokens", "1750", "--schedule-conservativeness", "0", "--stream-interval", "10"]
    with simulator(tmp_path, *flags, "--served-model-name", "small") as server:
        body = {"prompt": [1] * 50, "max_tokens": 1000, "stream": True}
        with contextlib.closing(server.connect()) as client:
            client.request("POST", "/v1/completions", json.dumps(body))
            first = client.getresponse()
            start = first.read1(10)
            second = server.events("/v1/completions", {**body, "prompt": [2] * 50})
            answer = (start + first.read()).decode()
        assert answer.endswith("data: [DONE]\n\n")
        texts = [json.loads(line[6:])["choices"][0]["text"] for line in answer.split("\n\n")[:-2]]
        assert len("".join(texts).split()) == 1000
        assert len("".join(event["choices"][0]["text"] for event in second).split()) == 1000
        assert server.metric("num_retracted_reqs") == 1
        assert "KV cache pool is full. Retract requests." in server.log.read_text()
        assert server.json("GET", "/v1/models")["data"][0]["id"] == "small"
        status, text = server.ask("POST", "/v1/completions", {"prompt": [1] * 3000, "max_tokens": 5})
        assert (status, "exceeds the maximum allowed length" in text) == (400, True)


def test_a_full_queue_refuses(tmp_path: Path) -> None:
    with simulator(tmp_path, "--max-running-requests", "1", "--max-queued-requests", "1") as server:
        body = json.dumps({"prompt": "a", "max_tokens": 50_000, "stream": True})
        with contextlib.closing(server.connect()) as first, contextlib.closing(server.connect()) as second:
            first.request("POST", "/v1/completions", body)
            first.getresponse().read1(1)
            second.request("POST", "/v1/completions", body)
            deadline = time.monotonic() + 10
            while server.metric("num_queue_reqs") == 0:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            status, text = server.ask("POST", "/v1/completions", {"prompt": "a"})
        assert (status, json.loads(text)["message"]) == (503, "The request queue is full.")


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_it_leaves_at_once_even_with_a_stream_in_flight(tmp_path: Path, name: signal.Signals) -> None:
    with simulator(tmp_path) as server, contextlib.closing(server.connect()) as client:
        client.request(
            "POST", "/v1/completions", json.dumps({"prompt": "a", "max_tokens": 100_000, "stream": True})
        )
        client.getresponse().read1(10)
        server.process.send_signal(name)
        assert server.process.wait(timeout=10) == 0


def test_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, tuner.engines.simulator.launch, tuner.engines.simulator.server\n"
        "heavy = {'numpy', 'pandas', 'pydantic', 'ray'} & sys.modules.keys()\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
