"""What SECURITY.md promises, a test for each line; see also test_export and test_layers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from uuid import uuid4

import processes
import pytest
import ray
from hypothesis import example, given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tuner import run_study
from tuner.cli import main
from tuner.datasets import read_dataset
from tuner.engines import make_engine
from tuner.engines.attached import Attached
from tuner.engines.flags import Flags
from tuner.engines.packaged import PackagedEngine
from tuner.errors import EngineUnavailable, StudyError, TaskError, UsageError
from tuner.failures import Cause, TrialFailed
from tuner.results import ResultStore, studies
from tuner.secrets import HIDDEN, is_secret, redacted, resolved
from tuner.task import make_task

ROOT = Path(__file__).parents[1]
SECRET = f"hf-{uuid4().hex}"


def told(*words: str) -> int:
    """The exit code of a command line."""
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def files_with(text: str, *folders: Path) -> list[str]:
    return [
        str(path)
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and text.encode() in path.read_bytes()
    ]


# --- loopback -------------------------------------------------------------------------------------------

OURS = ["host", "hos", "port", "po", "model", "model_path", "model-pa", "served_model_name", "served-model"]


@pytest.mark.parametrize("flag", OURS)
def test_a_task_cannot_say_where_an_engine_listens(flag: str, tmp_path: Path) -> None:
    for sections in ({"parameters": {flag: ["0.0.0.0"]}}, {"engine": {"args": {flag: "0.0.0.0"}}}):
        with pytest.raises(TaskError, match=rf"\.{flag}: is "):
            make_task(sections)
    (tmp_path / "task.json").write_text("{}")
    assert told("trial", str(tmp_path / "task.json"), "--set", f"{flag}=0.0.0.0") == 2


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
@pytest.mark.parametrize("flag", ["host", "hos", "port", "api_key", "api"])
def test_an_adapter_refuses_it_whatever_its_parser_would_take(
    engine: str, flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PackagedEngine, "_flags", lambda self: None)  # a parser that cannot be asked
    task = make_task({"base_runtime": engine, "model": {"id_or_path": "m"}})
    with pytest.raises(TrialFailed) as refused:
        make_engine(task).check({flag: "0.0.0.0"})
    assert refused.value.failure.cause is Cause.INVALID_FLAGS


@pytest.mark.parametrize("value", ["--host=0.0.0.0", "-h", "--", "-", "-1x", "--1"])
def test_a_value_cannot_be_another_flag(value: str, tmp_path: Path) -> None:
    for sections in ({"parameters": {"a": ["x", value]}}, {"engine": {"args": {"enable-metrics": value}}}):
        with pytest.raises(TaskError, match="must not begin with a dash"):
            make_task(sections)
    (tmp_path / "task.json").write_text("{}")
    assert told("trial", str(tmp_path / "task.json"), "--set", f"enable-metrics={value}") == 2


@pytest.mark.parametrize("value", ["-1", "-0.5", "-.5", "a-b", "", -1, -0.5])
def test_a_negative_number_is_a_value(value: Any) -> None:
    assert make_task({"engine": {"args": {"a": value}}}).engine.args == {"a": value}
    Flags([]).check({})


# --- paths ----------------------------------------------------------------------------------------------

ESCAPES = ["..", ".", "", "../x", "a/b", "/etc", "a\\b", "a\0b", ".hidden", "a b", "é", "x" * 121, "a\n"]


@pytest.mark.parametrize("name", ESCAPES)
def test_no_study_is_called_like_a_path(name: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no study can be called"):
        ResultStore(tmp_path / "root", name)
    with pytest.raises(UsageError):
        run_study(make_task({}), results=tmp_path / "root", study=name)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("command", ["report", "export"])
def test_no_command_reads_or_writes_a_study_outside_of_the_results(command: str, tmp_path: Path) -> None:
    outside = ResultStore(tmp_path, "outside")
    outside.create({"study": "outside"})
    (tmp_path / "results").mkdir()
    assert told(command, "../outside", "--results", str(tmp_path / "results")) == 2
    assert not (tmp_path / "outside" / "report.html").exists()


def test_a_folder_that_is_called_like_no_study_is_none(tmp_path: Path) -> None:
    ResultStore(tmp_path, "study").create({})
    shutil.copytree(tmp_path / "study", tmp_path / ".hidden")
    shutil.copytree(tmp_path / "study", tmp_path / "a b")
    assert studies(tmp_path) == ["study"]


@given(st.text(max_size=80))
def test_any_name_of_a_task_makes_a_study_in_the_results(name: str) -> None:
    from tuner.study import _study_name

    assert ResultStore("root", _study_name(make_task({}).model_copy(update={"task_name": name}), None))


def test_a_data_set_is_a_file_with_an_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", str(tmp_path / "pipe"), str(tmp_path)):
        with pytest.raises(ValueError, match="is no file"):
            read_dataset(path)


# --- secrets: names, references, redaction --------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("HF_TOKEN", "OPENAI_API_KEY", "api-key", "admin_api_key", "AWS_ACCESS_KEY_ID", "db_password"),
        *("AWS_SECRET_ACCESS_KEY", "MY_SECRET", "DB_PASS", "SSL-KEYFILE-PASSWORD", "RAY_AUTH_TOKEN"),
        *("AZURE_STORAGE_CONNECTION_STRING", "GOOGLE_CREDENTIALS", "OPENAI_APIKEY"),
    ],
)
def test_what_is_a_secret(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        *("TOKENIZERS_PARALLELISM", "max-total-tokens", "HF_HOME", "RAY_AUTH_TOKEN_PATH", "ssl-keyfile"),
        *("bucket-time-to-first-token", "kt-max-deferred-experts-per-token", "BYPASS", "KEYS_DIR", "PATH"),
    ],
)
def test_what_is_none(name: str) -> None:
    assert not is_secret(name)


def test_a_task_file_holds_no_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = [
        {"engine": {"env": {"HF_TOKEN": SECRET}}},
        {"engine": {"env": {"HF_TOKEN": f"{SECRET}\n"}}},
        {"engine": {"env": {"HF_TOKEN": [SECRET]}}},
        {"engine": {"env": {"HF_TOKEN": f"x${{{SECRET}}}"}}},
        {"engine": {"args": {"hf-token": SECRET}}},
        {"engine": {"command": ["env", f"HF_TOKEN={SECRET}", "python"]}},
        {"engine": {"command": ["serve", "--api-key", SECRET]}},
        {"parameters": {"admin-api-key": [SECRET, SECRET]}},
        {"HF_TOKEN": SECRET},
        {"description": f"hf_{'a' * 34}"},
        {"model": {"id_or_path": f"https://me:{SECRET}@hub/model"}},
    ]
    for number, task in enumerate(broken):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(task))
        assert told("check", str(path)) == 2
        said = capsys.readouterr()
        assert path.name in said.err, task
        assert SECRET not in said.err + said.out and "hf_a" not in said.err, task
    path.write_text(f'{{"HF_TOKEN": "{SECRET}", "HF_TOKEN": "{SECRET}"}}')
    assert told("check", str(path)) == 2
    assert SECRET not in capsys.readouterr().err


def test_a_switch_is_no_secret() -> None:
    env = {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "TOKENIZERS_PARALLELISM": "false", "A": "${B}"}
    assert make_task({"engine": {"env": env}}).engine.env == env


def test_a_reference_is_resolved_where_the_engine_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolved({"A": "${B}", "C": "x${B}", "D": ""}, {"B": "b"}) == {"A": "b", "C": "x${B}", "D": ""}
    monkeypatch.delenv("NOT_THERE", raising=False)
    missing = make_task({"engine": {"env": {"HF_TOKEN": "${NOT_THERE}"}}})
    with pytest.raises(EngineUnavailable, match=r"^engine\.env\.HF_TOKEN: .* no variable NOT_THERE"):
        run_study(missing)
    with pytest.raises(EngineUnavailable, match=r"^task\.json: engine\.env\.HF_TOKEN: "):
        run_study(missing, source="task.json")


@example("a", "hf_" + "x" * 40, "b")
@given(
    st.text(max_size=20),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=50),
    st.text(max_size=20),
)
def test_a_known_secret_is_nowhere_in_redacted_text(before: str, secret: str, after: str) -> None:
    env = {"THE_TOKEN": secret, "SHORT_KEY": "1", "HOME": "/root"}
    for text in (secret, json.dumps({"x": secret}), f"http://u:{secret}@h"):
        shown = redacted(f"{before}{text}{after} 1 /root", env)
        assert secret not in shown.replace(HIDDEN, "")
    assert (
        redacted("/root 1 max-total-tokens=7 http://h:80/x@y", env)
        == "/root 1 max-total-tokens=7 http://h:80/x@y"
    )


@pytest.mark.parametrize("pad", ["hf_", "://a:", "sk-", "x", "AKIA", "ghp_a", "://"])
def test_redaction_takes_no_longer_than_the_text(pad: str) -> None:
    assert (
        len(redacted(pad * 200_000, {"A_TOKEN": "y" * 20})) > 0
    )  # quadratic, it would end in pytest's timeout


@pytest.mark.parametrize(
    "url", ["http://me:word@127.0.0.1:1", "http://127.0.0.1:1?key=word", "http://h:1#word"]
)
def test_a_server_is_not_named_with_a_password(url: str) -> None:
    with pytest.raises(UsageError, match="--base-url") as refused:
        Attached(make_task({}), url)
    assert "me:word" not in str(refused.value)


def test_results_are_not_kept_at_a_uri_with_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "task.json").write_text("{}")
    uri = f"s3://AKID:{SECRET}@bucket/studies"
    for words in (
        ["studies"],
        ["report"],
        ["report", "s"],
        ["export", "s"],
        ["run", str(tmp_path / "task.json")],
    ):
        assert told(*words, "--results", uri) == 2
        said = capsys.readouterr()
        assert SECRET not in said.err + said.out and "AWS_ACCESS_KEY_ID" in said.err


# --- secrets: a trial, from its task to what is kept of it ------------------------------------------------

TALKATIVE = "import os, sys; print('starting with', os.environ['HF_TOKEN'], file=sys.stderr); " * 3 + (
    "sys.exit(f'RuntimeError: 401 for {os.environ[\"HF_TOKEN\"]}')"
)


@pytest.fixture
def talkative(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A task whose engine writes its token into its log and dies."""
    monkeypatch.setenv("MINE", SECRET)
    return {
        "base_runtime": "sglang",
        "model": {"id_or_path": "m"},
        "parameters": {"tp-size": [1, 2]},
        "optimization": {"strategy": "grid", "confirm": 0, "baseline": False},
        "engine": {"command": [sys.executable, "-c", TALKATIVE], "env": {"HF_TOKEN": "${MINE}"}},
    }


def test_what_an_engine_says_of_its_token_is_not_shown(
    talkative: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "task.json"
    path.write_text(json.dumps(talkative))
    for options in ([], ["--json"]):
        assert told("trial", str(path), *options) == 4
        said = capsys.readouterr()
        assert f"401 for {HIDDEN}" in said.out and SECRET not in said.out + said.err


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_nothing_that_a_study_keeps_or_ray_writes_has_the_token(
    talkative: dict[str, Any], tmp_path: Path, data_folder: Path
) -> None:
    outcome = run_study(make_task(talkative), results=tmp_path, study="s")
    assert set(outcome.results.trials["failure_cause"]) == {"crash"}
    assert all(f"401 for {HIDDEN}" in text for text in outcome.results.trials["failure_detail"])
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    assert files_with("401 for", tmp_path, data_folder)
    assert files_with(SECRET, tmp_path, data_folder, session) == []


def test_no_command_line_has_the_token_while_an_engine_has_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MINE", SECRET)
    marker = f"served-{uuid4().hex}"
    task = make_task({"benchmark": {"model_name": marker}, "engine": {"env": {"HF_TOKEN": "${MINE}"}}})
    with make_engine(task).launch({}, gpu_ids=[], log_path=tmp_path / "log", timeout_s=60):
        environments = [Path(f"/proc/{pid}/environ").read_bytes() for pid in processes.with_marker(marker)]
        lines = processes.command_lines().values()
    assert environments and all(f"HF_TOKEN={SECRET}".encode() in env for env in environments)
    assert not any(SECRET in line for line in lines)


# --- Ray ------------------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.slow
@pytest.mark.parametrize(("token", "enters"), [("0" * 64, False), ("its own", True)])
def test_a_local_cluster_lets_nobody_in_without_its_token(token: str, enters: bool, tmp_path: Path) -> None:
    """Ray's ports are open to the network: whoever enters runs what he likes."""
    address = ray.get_runtime_context().gcs_address
    program = f"import ray; ray.init({address!r}, log_to_driver=False); print('entered')"
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    if token == "its own":
        env["RAY_AUTH_TOKEN_PATH"] = str(Path.home() / ".ray" / "auth_token")
    else:
        env["RAY_AUTH_TOKEN"] = token
    env |= {"RAY_AUTH_MODE": "token", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert ("entered" in done.stdout) is enters, done.stderr


# --- what is installed ----------------------------------------------------------------------------------

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def locked(name: str) -> dict[str, tuple[Version, str]]:
    """(version, condition) by package of a lock file, whose every line must pin one."""
    found = {}
    for line in (ROOT / name).read_text().splitlines():
        match = re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[a-z,]+\])?==([^ ;]+)(?: ; (.+))?", line)
        assert match, f"{name}: {line}"
        found[canonicalize_name(match[1])] = (Version(match[2]), match[3] or "")
    return found


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("requirements.lock", PROJECT["dependencies"]),
        ("requirements-dev.lock", [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]),
    ],
)
def test_the_lock_pins_what_the_project_asks_for(name: str, wanted: list[str]) -> None:
    pins = locked(name)
    for text in wanted:
        requirement = Requirement(text)
        version, _ = pins[canonicalize_name(requirement.name)]
        assert version in requirement.specifier, text


def test_development_adds_to_the_lock_and_changes_nothing() -> None:
    assert locked("requirements.lock").items() <= locked("requirements-dev.lock").items()
