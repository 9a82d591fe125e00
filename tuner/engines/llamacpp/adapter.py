"""llama.cpp: its command line, the CPUs it keeps busy, what its server says, the signs of its failures."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tuner.engines.base import DEPLOYED, DEPLOYED_PORT, Config, RunningEngine, ServerInfo
from tuner.engines.llamacpp import __main__ as launcher
from tuner.engines.packaged import installed_version
from tuner.engines.server import HOST, Sign, call, launched, on_loopback
from tuner.errors import EngineUnavailable
from tuner.failures import Cause, Failure, Stage, TrialFailed
from tuner.loopback import unproxied
from tuner.secrets import resolved
from tuner.task import Task

# In this order: what is said last is generic ("exiting due to model loading error"), the cause stands
# further up. Lines of xllamacpp 2026.10.11549.
SIGNS = (
    Sign.of(r"error: (unrecognized arguments|argument |ambiguous option)", Cause.INVALID_FLAGS),
    Sign.of(r"couldn't bind HTTP server socket", Cause.PORT_TAKEN),
    Sign.of(r"insufficient memory|failed to allocate|unable to allocate", Cause.OUT_OF_MEMORY),
    Sign.of(r"std::bad_alloc|MemoryError", Cause.OUT_OF_MEMORY),
    Sign.of(r"Resource temporarily unavailable", Cause.OUT_OF_MEMORY),  # no stack for another slot's thread
    Sign.of(r"quantized V cache requires flash_attn", Cause.INVALID_FLAGS),
    Sign.of(r"failed to open GGUF file|invalid magic|corrupted or incomplete", Cause.MODEL_NOT_FOUND),
    Sign.of(r"error loading model:", Cause.MODEL_NOT_FOUND),
    Sign.of(r"GGML_ASSERT|GGML_ABORT", Cause.CRASH),
)
_PACKAGE = "xllamacpp"
_OWN_FLAGS = ("memory-limit",)  # which llama-server does not have


def flag_arguments(config: Config) -> list[str]:
    """`{"a": 1, "b": True, "c": False, "d": None}` as argv: `--a 1 --b --no-c`."""
    argv: list[str] = []
    for flag, value in config.items():
        if isinstance(value, bool):
            argv.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            argv += [f"--{flag}", str(value)]
    return argv


class LlamaCppEngine:
    """llama.cpp's server on the CPU, started by this package's own launcher."""

    name = "llamacpp"
    simulated = False
    gpu_flags = ()

    def __init__(self, task: Task) -> None:
        self.task = task
        self.python = task.engine.python or sys.executable

    def version(self) -> str:
        if self.task.engine.command:
            raise EngineUnavailable("llamacpp: engine.command is of no use here; name engine.python instead")
        try:
            installed = installed_version([self.python], _PACKAGE, self._env())
        except EngineUnavailable as error:
            raise EngineUnavailable(f"llamacpp: engine.python {error}") from error
        if installed is None:
            raise EngineUnavailable(
                f"llamacpp: {_PACKAGE} is not installed for {self.python}: `pip install "
                "'inference-autotuner[llamacpp]'`, or name in engine.python an interpreter that has it"
            )
        return installed

    def _env(self) -> dict[str, str]:
        return unproxied({**os.environ, **resolved(self.task.engine.env, os.environ)})

    def gpus(self, config: Config) -> int:
        """None: it computes on the CPU (and on Apple's GPU, which is not counted)."""
        return 0

    def cpus(self, config: Config) -> int:
        """Its threads' and the load generator's: trials on the same cores would measure each other."""
        flags = {**self.task.engine.args, **config}
        threads, batch = (str(flags.get(flag)) for flag in ("threads", "threads-batch"))
        of_its_own = int(threads) if threads.isdecimal() else os.cpu_count() or 1
        return 1 + max(of_its_own, int(batch) if batch.isdecimal() else 0)

    def check(self, config: Config) -> None:
        """Refuses flags that the launcher would refuse."""
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                launcher.parser().parse_args(self._arguments(config, HOST, 0))
        except SystemExit as refused:
            code = refused.code if isinstance(refused.code, int) else 2
            lines = said.getvalue().strip().splitlines() or ["refused"]
            failure = Failure(Stage.CHECK, Cause.INVALID_FLAGS, lines[-1], said.getvalue(), code)
            raise TrialFailed(failure) from refused

    def launch_command(self, config: Config) -> list[str]:
        """llama-server's: its flags are the same, and it is what people deploy."""
        flags = {**self.task.engine.args, **config}
        shared = {flag: value for flag, value in flags.items() if flag not in _OWN_FLAGS}
        return ["llama-server", *self._head(DEPLOYED, DEPLOYED_PORT), *flag_arguments(shared)]

    def _arguments(self, config: Config, host: str, port: int) -> list[str]:
        return [*self._head(host, port), *flag_arguments({**self.task.engine.args, **config})]

    def _head(self, host: str, port: int) -> list[str]:
        served = ("--model", self.task.model.id_or_path, "--alias", self.task.served_model_name)
        return [*served, "--host", host, "--port", str(port)]

    def launch(
        self, config: Config, *, gpu_ids: Sequence[str], log_path: Path, timeout_s: float
    ) -> AbstractContextManager[RunningEngine]:
        """See `Engine.launch`."""
        return self._launched(self._arguments(config, HOST, 0), log_path, timeout_s)

    def launch_exported(
        self, argv: Sequence[str], *, gpus: int, gpu_ids: Sequence[str], log_path: Path, timeout_s: float
    ) -> AbstractContextManager[RunningEngine]:
        """See `StartsExported`: by this package's launcher, which takes llama-server's flags."""
        own = {flag: value for flag, value in self.task.engine.args.items() if flag in _OWN_FLAGS}
        return self._launched([*argv[1:], *flag_arguments(own)], log_path, timeout_s)

    @contextmanager
    def _launched(
        self, arguments: Sequence[str], log_path: Path, timeout_s: float
    ) -> Iterator[RunningEngine]:
        def argv(port: int) -> list[str]:
            return [self.python, str(launcher.__file__), *on_loopback(arguments, port)]

        env, model = self._env(), self.task.served_model_name
        with launched(
            argv, env=env, log_path=log_path, timeout_s=timeout_s, model=model, signs=SIGNS
        ) as server:
            server.info = self._info(on_loopback(arguments, 0), server.base_url)
            slots = int(server.info.effective_args["parallel"])
            server.flush_paths = [f"slots/{slot}?action=erase" for slot in range(slots)]
            yield server

    def _info(self, arguments: list[str], base_url: str) -> ServerInfo:
        """The launcher's flags, defaults included, with the slots and the context that the server chose."""
        args = vars(launcher.parser().parse_args(arguments))
        shared = args["kv_unified"] or args["parallel"] == -1  # then one slot may have the whole KV cache
        kv_tokens = None
        # A server that has died meanwhile, or answers what it should not, is found under load.
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            said = call(f"{base_url}/props", timeout_s=30.0)
            slots, slot_tokens = int(said["total_slots"]), int(said["default_generation_settings"]["n_ctx"])
            # A slot's is cut to what the model was trained for; the cache is as large as it was asked to be.
            kv_tokens = args["ctx_size"] or (slot_tokens if shared else slot_tokens * slots)
            args |= {"parallel": slots, "ctx_size": kv_tokens, "kv_unified": shared}
        effective = {flag.replace("_", "-"): value for flag, value in args.items()}
        return ServerInfo(self.version(), kv_tokens, effective)
