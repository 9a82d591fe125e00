"""SGLang's endpoints over a paced scheduler."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tuner import __version__
from tuner.engines.simulator.answers import Answer, error_body, json_response, response
from tuner.engines.simulator.calls import read_call
from tuner.engines.simulator.connection import Connection
from tuner.engines.simulator.flags import ServerArgs
from tuner.engines.simulator.launch import effective_args
from tuner.engines.simulator.memory import Plan
from tuner.engines.simulator.pacing import Pacer
from tuner.engines.simulator.ranks import Balancer
from tuner.engines.simulator.scheduler import Scheduler, Step

log = logging.getLogger("simulator")

GENERATING = {"/v1/completions", "/v1/chat/completions", "/generate"}
HEALTH_CALL = b'{"text": "health", "sampling_params": {"max_new_tokens": 1}}'


def serve(args: ServerArgs, plan: Plan, schedulers: Sequence[Scheduler]) -> None:
    """Serves until SIGTERM or SIGINT ends the process; OSError where host and port cannot be bound."""
    _leave_on_signals()
    loop = _event_loop()
    server = Server(args, plan, schedulers, loop)
    loop.run_until_complete(
        loop.create_server(lambda: Connection(server.serve), args.host, args.port, backlog=2048)
    )
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)  # the prefix cache is large and has few cycles to find
    log.info("Uvicorn running on http://%s:%d (Press CTRL+C to quit)", args.host, args.port)
    log.info("The server is fired up and ready to roll!")
    loop.run_forever()


def _leave_on_signals() -> None:
    """Ends the process with exit code 0 on SIGTERM and SIGINT, at once.

    A thread waits for them, because uvloop can lose a signal that comes between two runs of its loop.
    """
    signals = {signal.SIGTERM, signal.SIGINT}

    def wait() -> None:
        name = signal.Signals(signal.sigwait(signals)).name
        log.info("%s: shutting down", name)
        os._exit(0)

    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    threading.Thread(target=wait, daemon=True).start()


def _event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop  # noqa: PLC0415  where it is not installed (Windows), asyncio's own loop does
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


class Server:
    """Routes requests and keeps the counters that /metrics and /server_info show."""

    def __init__(
        self,
        args: ServerArgs,
        plan: Plan,
        schedulers: Sequence[Scheduler],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._args = args
        self._plan = plan
        self._schedulers = schedulers
        self._model = args.served_model_name or args.model_path
        self._pacers = [Pacer(scheduler, loop, self._count) for scheduler in schedulers]
        self._balancer = Balancer(args.load_balance_method, schedulers)
        self._loop = loop
        self._decode_steps = 0
        self._interval_tokens = 0
        self._interval_start_s = loop.time()
        self._gen_throughput = 0.0
        self._cache_hit_rate = 0.0
        self._generation_tokens = 0
        self._prompt_tokens = 0
        self._pages: dict[str, Callable[[], bytes]] = {
            "/health": lambda: response(200, b""),
            "/v1/models": self._models,
            "/model_info": self._model_info,
            "/get_model_info": self._model_info,
            "/server_info": self._server_info,
            "/get_server_info": self._server_info,
            "/metrics": self._metrics,
            "/flush_cache": self._flush_cache,
        }

    def serve(self, connection: Connection, method: str, path: str, body: bytes) -> None:
        """Answers one request on `connection`, now or token by token."""
        if path == "/health_generate":
            self._generate(connection, "/generate", HEALTH_CALL)
        elif path in GENERATING and method == "POST":
            self._generate(connection, path, body)
        elif path in GENERATING or (path in self._pages and method not in ("GET", "POST")):
            self._answer(connection, json_response({"detail": "Method Not Allowed"}, 405))
        elif path in self._pages:
            self._answer(connection, self._pages[path]())
        else:
            self._answer(connection, json_response({"detail": "Not Found"}, 404))

    def _answer(self, connection: Connection, data: bytes) -> None:
        connection.write(data)
        connection.done()

    def _refuse(self, connection: Connection, status: int, message: str) -> None:
        self._answer(connection, json_response(error_body(status, message), status))

    def _generate(self, connection: Connection, path: str, body: bytes) -> None:
        most = self._args.max_queued_requests
        if most is not None and self._queued() >= most:
            self._refuse(connection, 503, "The request queue is full.")
            return
        try:
            request, form, stream = read_call(path, body, self._args, self._plan.context_length)
            answer = Answer(
                request,
                form,
                connection.write,
                connection.done,
                stream=stream,
                interval=self._args.stream_interval,
            )
            pacer = self._pacers[self._balancer.choose()]
            pacer.submit(request, answer)
        except ValueError as error:
            self._refuse(connection, 400, str(error))
            return
        connection.on_lost = partial(pacer.abort, request)

    # Counters

    def _count(self, step: Step) -> None:
        self._generation_tokens += step.generated
        self._interval_tokens += step.generated
        if step.retraction:
            log.warning(step.retraction)
        for request in step.aborted:
            log.warning("%s Aborting the request.", request.error)
        if step.new_requests:
            self._count_prefill(step)
            return
        self._decode_steps += 1
        if self._decode_steps % max(1, self._args.decode_log_interval) == 0:
            self._log_decode()

    def _count_prefill(self, step: Step) -> None:
        seen = step.new_tokens + step.cached_tokens
        self._prompt_tokens += seen
        self._cache_hit_rate = step.cached_tokens / seen if seen else 0.0
        log.info(
            "Prefill batch, #new-seq: %d, #new-token: %d, #cached-token: %d, token usage: %.2f, "
            "#running-req: %d, #queue-req: %d",
            step.new_requests,
            step.new_tokens,
            step.cached_tokens,
            self._token_usage(),
            self._running(),
            self._queued(),
        )

    def _log_decode(self) -> None:
        now = self._loop.time()
        self._gen_throughput = self._interval_tokens / max(1e-9, now - self._interval_start_s)
        self._interval_tokens, self._interval_start_s = 0, now
        log.info(
            "Decode batch, #running-req: %d, #token: %d, token usage: %.2f, cuda graph: %s, gen throughput "
            "(token/s): %.2f, #queue-req: %d",
            self._running(),
            self._used(),
            self._token_usage(),
            self._running() <= self._plan.cuda_graph_max_bs * len(self._schedulers),
            self._gen_throughput,
            self._queued(),
        )

    # Of all ranks together

    def _running(self) -> int:
        return sum(len(rank.running) for rank in self._schedulers)

    def _queued(self) -> int:
        return sum(len(rank.waiting) for rank in self._schedulers)

    def _used(self) -> int:
        return sum(rank.kv.used for rank in self._schedulers)

    def _token_usage(self) -> float:
        return self._used() / sum(rank.kv.capacity for rank in self._schedulers)

    # Endpoints

    def _models(self) -> bytes:
        card: dict[str, Any] = {
            "id": self._model,
            "object": "model",
            "owned_by": "sglang",
            "root": self._args.model_path,
        }
        card |= {"max_model_len": self._plan.context_length}
        return json_response({"object": "list", "data": [card]})

    def _model_info(self) -> bytes:
        return json_response(
            {
                "model_path": self._args.model_path,
                "served_model_name": self._model,
                "tokenizer_path": self._args.model_path,
                "is_generation": True,
                "simulated": True,
            }
        )

    def _server_info(self) -> bytes:
        state = {
            "last_gen_throughput": self._gen_throughput,
            "num_running_reqs": self._running(),
            "num_waiting_reqs": self._queued(),
            "token_usage": self._token_usage(),
            "new_token_ratio": self._schedulers[0].new_token_ratio,
        }
        info: dict[str, Any] = {
            **effective_args(self._args, self._plan),
            "version": f"simulator-{__version__}",
            "simulated": True,
            "max_total_num_tokens": self._plan.kv_tokens,
            "late_s": max(pacer.late_s for pacer in self._pacers),
            "internal_states": [state],
        }
        return json_response(info)

    def _metrics(self) -> bytes:
        lines = []
        for kind, name, value in (
            ("gauge", "num_running_reqs", self._running()),
            ("gauge", "num_queue_reqs", self._queued()),
            ("gauge", "num_used_tokens", self._used()),
            ("gauge", "token_usage", self._token_usage()),
            ("gauge", "cache_hit_rate", self._cache_hit_rate),
            ("gauge", "gen_throughput", self._gen_throughput),
            ("counter", "num_retracted_reqs", sum(rank.retracted_total for rank in self._schedulers)),
            ("counter", "prompt_tokens_total", self._prompt_tokens),
            ("counter", "generation_tokens_total", self._generation_tokens),
        ):
            lines.append(
                f'# TYPE sglang:{name} {kind}\nsglang:{name}{{model_name="{self._model}"}} {value}\n'
            )
        return response(200, "".join(lines).encode(), "text/plain; version=0.0.4; charset=utf-8")

    def _flush_cache(self) -> bytes:
        if not any(rank.in_flight for rank in self._schedulers):
            for rank in self._schedulers:
                rank.flush_cache()
            return response(200, b"Cache flushed.\n", "text/plain")
        return response(400, b"Cache not flushed: requests are in flight.\n", "text/plain")
