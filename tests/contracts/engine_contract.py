"""What every engine adapter promises. Subclass it, give the fixtures, and name the class Test..."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import processes
import pytest

from tuner.engines.base import DEPLOYED_PORT, Engine, StartsExported
from tuner.engines.server import call
from tuner.failures import Stage, TrialFailed


class EngineContract:
    """`engine` serves under a name that no other process on the machine has in its command line."""

    start_limit_s = 60.0

    @pytest.fixture
    def engine(self) -> Engine:
        raise AssertionError("a subclass gives its engine")

    @pytest.fixture
    def good(self) -> Mapping[str, Any]:
        """A configuration that starts."""
        return {}

    @pytest.fixture
    def hopeless(self) -> Mapping[str, Any]:
        """A configuration that passes the check and dies while starting."""
        raise AssertionError("a subclass gives a configuration that cannot start")

    @pytest.fixture
    def marker(self, engine: Engine) -> str:
        """The unique part of the server's command line."""
        command = engine.launch_command({})
        return command[command.index("--served-model-name") + 1]

    def test_it_knows_its_version_and_needs_gpus(self, engine: Engine, good: Mapping[str, Any]) -> None:
        assert engine.version()
        assert engine.gpus(good) >= 0
        assert engine.cpus(good) >= 1

    def test_its_launch_command_is_argv(self, engine: Engine, good: Mapping[str, Any]) -> None:
        command = engine.launch_command(good)
        assert command and all(isinstance(word, str) and word for word in command)

    def test_it_serves_a_token_and_says_what_it_is(
        self, engine: Engine, good: Mapping[str, Any], marker: str, tmp_path: Path
    ) -> None:
        with self._launch(engine, good, tmp_path) as server:
            assert server.alive()
            server.raise_if_failed()
            server.flush_cache()
            body = {"model": server.model, "prompt": "a b c", "max_tokens": 4}
            answer = call(f"{server.base_url}/v1/completions", body=body)
            assert answer["usage"]["completion_tokens"] >= 1
            assert server.info.version
            json.dumps(dict(server.info.effective_args))
            assert processes.listening(int(server.base_url.rpartition(":")[2])) <= {"127.0.0.1", "::1"}
            assert processes.with_marker(marker)
        assert not processes.with_marker(marker)
        assert (tmp_path / "engine.log").stat().st_size > 0

    def test_what_it_exports_is_started_as_it_stands(
        self, engine: Engine, good: Mapping[str, Any], marker: str, tmp_path: Path
    ) -> None:
        if not isinstance(engine, StartsExported):
            pytest.skip("starts no exported command, and need not")
        argv, gpus = engine.launch_command(good), engine.gpus(good)
        starting = engine.launch_exported(
            argv, gpus=gpus, gpu_ids=[], log_path=tmp_path / "engine.log", timeout_s=self.start_limit_s
        )
        with starting as server:
            body = {"model": server.model, "prompt": "a b c", "max_tokens": 4}
            assert call(f"{server.base_url}/v1/completions", body=body)["usage"]["completion_tokens"] >= 1
            port = int(server.base_url.rpartition(":")[2])
            assert port != DEPLOYED_PORT and processes.listening(port) <= {"127.0.0.1", "::1"}
            [line, *_] = processes.with_marker(marker).values()
            kept = [word for word in argv[argv.index("--port") + 2 :] if word]
            assert all(word in line for word in kept)
        assert not processes.with_marker(marker)

    def test_its_processes_end_with_an_exception(
        self, engine: Engine, good: Mapping[str, Any], marker: str, tmp_path: Path
    ) -> None:
        with pytest.raises(ZeroDivisionError), self._launch(engine, good, tmp_path):
            raise ZeroDivisionError
        assert not processes.with_marker(marker)

    def test_a_configuration_that_cannot_start_is_told_with_evidence(
        self, engine: Engine, hopeless: Mapping[str, Any], marker: str, tmp_path: Path
    ) -> None:
        engine.check(hopeless)
        with pytest.raises(TrialFailed) as failed, self._launch(engine, hopeless, tmp_path):
            pass
        failure = failed.value.failure
        assert failure.stage is Stage.START
        assert not failure.cause.infrastructure
        assert failure.detail and failure.evidence and failure.exit_code
        assert not processes.with_marker(marker)

    def test_a_start_that_takes_too_long_is_ended(
        self, engine: Engine, good: Mapping[str, Any], marker: str, tmp_path: Path
    ) -> None:
        with (
            pytest.raises(TrialFailed, match="start timeout"),
            engine.launch(good, gpu_ids=[], log_path=tmp_path / "engine.log", timeout_s=0.0),
        ):
            pass
        assert not processes.with_marker(marker)

    def test_a_death_under_load_is_noticed(
        self, engine: Engine, good: Mapping[str, Any], marker: str, tmp_path: Path
    ) -> None:
        with self._launch(engine, good, tmp_path) as server:
            for pid, line in processes.with_marker(marker).items():
                if "watchdog" not in line:
                    os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + 30
            while server.alive() and time.monotonic() < deadline:
                time.sleep(0.05)
            with pytest.raises(TrialFailed) as failed:
                server.raise_if_failed()
        assert failed.value.failure.stage is Stage.LOAD
        assert failed.value.failure.exit_code == -signal.SIGKILL

    def _launch(self, engine: Engine, config: Mapping[str, Any], folder: Path) -> Any:
        log_path = folder / "engine.log"
        return engine.launch(config, gpu_ids=[], log_path=log_path, timeout_s=self.start_limit_s)
