"""Results on disk: the store wherever it lies, rows that come back, and the page that explains them."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from contracts.scripted_server import free_port
from contracts.store_contract import ABOUT, ResultStoreContract, row
from hypothesis import given, settings
from hypothesis import strategies as st
from studies import make
from test_security import told

from tuner.engines.base import ServerInfo
from tuner.engines.meters import GpuFigures
from tuner.engines.sglang import SGLangEngine
from tuner.engines.telemetry import EngineFigures
from tuner.errors import ResultsError, StudyError
from tuner.evaluate import Report, scores
from tuner.failures import Cause, Failure, Stage
from tuner.load.base import GLANCES, LoadResult
from tuner.measure import Step
from tuner.metrics import RequestError, RequestRecord, summarise
from tuner.objective import score
from tuner.results import (
    LATENCIES,
    SCHEMA_VERSION,
    STATISTICS,
    TABLES,
    ResultStore,
    data_home,
    default_root,
    studies,
)
from tuner.rows import TrialInfo, record, trial_row
from tuner.scenarios import parse_scenario
from tuner.task import make_task
from tuner.workload import LoadLevel

ROOT = Path(__file__).parents[1]


class TestLocalFolder(ResultStoreContract):
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        return tmp_path / "not yet" / "there"


class TestFileUri(ResultStoreContract):
    @pytest.fixture
    def root(self, tmp_path: Path) -> str:
        return (tmp_path / "results").as_uri() + "/"


class TestMemory(ResultStoreContract):
    """fsspec's file system in memory: as far from a local disk as object storage is."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> str:
        return f"fsspec+memory:/{tmp_path}"


def test_the_newest_study_is_the_first(tmp_path: Path) -> None:
    for age, name in enumerate(["new", "old", "oldest"]):
        ResultStore(tmp_path, name).create({})
        os.utime(tmp_path / name / "study.json", (1e9 - age, 1e9 - age))
    assert studies(tmp_path) == ["new", "old", "oldest"]


def test_a_study_that_is_amended_gets_no_newer(tmp_path: Path) -> None:
    for number, name in enumerate(["first", "second", "third"]):
        ResultStore(tmp_path, name).create({"started_at": f"2026-01-01T00:00:0{number}+00:00"})
    ResultStore(tmp_path, "silent").create({"started_at": None})
    os.utime(tmp_path / "silent" / "study.json", (1e9, 1e9))  # all that is known of its age
    ResultStore(tmp_path, "first").amend(ended_early="no better configuration in 5 trials")
    assert studies(tmp_path) == ["third", "second", "first", "silent"]


def test_a_root_that_cannot_be_written_ends_in_a_results_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResultsError, match="cannot create"):
        ResultStore(tmp_path / "file", "study").create({})
    store = ResultStore(tmp_path, "study")
    store.create({})
    shutil.rmtree(tmp_path / "study" / "steps")
    with pytest.raises(ResultsError, match="cannot write trial 3 to"):
        store.write_trial(row(3), [], [])
    assert len(store.read().trials) == 0


@pytest.mark.parametrize(
    ("command", "place"),
    [
        *((command, "file") for command in ("run", "studies", "report", "serve")),
        *((command, place) for command in ("run", "serve") for place in ("file/below", "/proc/x")),
    ],
)
def test_results_that_can_be_kept_nowhere_are_refused_before_anything_starts(
    tmp_path: Path, data_folder: Path, capsys: pytest.CaptureFixture[str], command: str, place: str
) -> None:
    task = tmp_path / "task.json"
    task.write_text('{"base_runtime": "simulator"}')
    (tmp_path / "file").write_text("in the way")
    words = {"run": [str(task)], "serve": ["--no-token", "--port", str(free_port())]}.get(command, [])
    assert told(command, *words, "--results", str(tmp_path / place)) == 2
    said = capsys.readouterr()
    assert f"error: --results: results cannot be kept at {tmp_path / place}: " in said.err
    assert "Errno" not in said.err and not list(data_folder.rglob("*.log"))


def test_a_study_whose_description_is_broken_ends_in_a_results_error(tmp_path: Path) -> None:
    store = ResultStore(tmp_path, "study")
    store.create({})
    (tmp_path / "study" / "study.json").write_text("{")
    with pytest.raises(ResultsError, match="cannot read"):
        store.read()


@pytest.mark.parametrize("root", ["nosuch://bucket/x", "fsspec+nosuch://x", "file://host:port/x"])
def test_a_uri_that_nothing_opens_is_refused(root: str) -> None:
    with pytest.raises(StudyError, match="results cannot be kept at"):
        ResultStore(root, "study")


def test_where_results_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data_folder: Path) -> None:
    assert default_root() == data_folder / "results"
    monkeypatch.setenv("HOME", str(tmp_path))
    for unusable in ("", "relative/path"):  # the XDG specification has relative paths ignored
        monkeypatch.setenv("XDG_DATA_HOME", unusable)
        assert data_home() == tmp_path / ".local" / "share" / "autotuner"
    assert ResultStore("~/studies", "a").exists() is False
    ResultStore("~/studies", "a").create({})
    assert (tmp_path / "studies" / "a" / "study.json").exists()


# --- the schema's versions -----------------------------------------------------------------------------

ADDED = {
    "attempts",
    "lost",
    "expected_gain",  # since then
    *(
        "gpu_model",
        "gpu_others",
        "request_rate",
        "late_p99_s",
        "requests_held",
        "late_s",
        "goodput",
        "max_load",
        "max_loads",
    ),
    *("client_lag_mean_s", "client_lag_p99_s", "client_cpu", "client_limit"),
    *(f"engine_{field.name}" for field in fields(EngineFigures)),
    *(f"gpu_{field.name}" for field in fields(GpuFigures)),
    *("gpu_energy_per_token_j", "gpu_energy_per_output_token_j"),
    *(f"itl_{statistic}_s" for statistic in STATISTICS),
    *(f"{latency}_{added}" for latency in LATENCIES for added in ("ci95_s", "n")),
}
KEPT_STUDY = ROOT / "tests" / "data" / "results-v1"


def test_files_carry_the_schema_version(tmp_path: Path) -> None:
    store = ResultStore(tmp_path, "study")
    store.create({})
    store.write_trial(row(0), [], [])
    for name in TABLES:
        metadata = pq.read_schema(tmp_path / "study" / name / "00000.parquet").metadata
        assert metadata[b"tuner_schema_version"] == str(SCHEMA_VERSION).encode()


def test_a_study_that_was_written_with_fewer_columns_is_still_read() -> None:
    found = ResultStore(KEPT_STUDY, "first").read()
    assert (found.about, found.skipped) == (ABOUT, ())
    assert list(found.trials["trial"]) == [0, 1]
    for name, frame in {"steps": found.steps, "requests": found.requests, "trials": found.trials}.items():
        (kept,) = pq.read_table(KEPT_STUDY / "first" / name / "00001.parquet", partitioning=None).to_pylist()[
            -1:
        ]
        last = frame.iloc[-1]
        assert kept["trial"] == 1 and len(kept) > 10
        for column in TABLES[name].names:
            if column in ("objectives", "max_loads", "curve"):
                assert last[column] == {}
            elif column in ("config", "effective_args", "errors"):
                assert last[column] == json.loads(kept[column])
            elif column in kept:
                value = last[column]
                assert (list(value) if column == "gpu_ids" else value) == kept[column]
            else:
                assert column in ADDED and pd.isna(last[column])


# --- rows ----------------------------------------------------------------------------------------------

TASK = make_task(
    {
        "parameters": {"tp-size": [1, 2], "policy": ["lpm", "fcfs"]},
        "benchmark": {"num_concurrency": [1, 2, 3]},
        "slo": {"ttft": {"p90": {"threshold": 1.0, "hard_fail": True}}},
    }
)
ENGINE = SGLangEngine(TASK)
SECONDS = st.floats(0, 1e6)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
RECORDS = st.builds(
    RequestRecord,
    sent_s=SECONDS,
    ttft_s=st.none() | SECONDS,
    e2e_s=st.none() | SECONDS,
    input_tokens=st.integers(0, 2**31 - 1),
    output_tokens=st.integers(0, 2**31 - 1),
    error=st.none() | st.sampled_from(RequestError),
    status=st.none() | st.integers(100, 599),
    number=st.integers(0, 2**31 - 1),
)
FAILURES = st.builds(
    Failure,
    stage=st.sampled_from(Stage),
    cause=st.sampled_from(Cause),
    detail=TEXT,
    evidence=TEXT,
    exit_code=st.none() | st.integers(-64, 255),
    progress=st.floats(0, 1),
)
CONFIGS = st.fixed_dictionaries(
    {}, optional={"tp-size": st.integers(1, 64), "policy": TEXT, "flag": st.booleans() | st.none()}
)


@st.composite
def trials(draw: st.DrawFn) -> tuple[TrialInfo, Report, list[Step]]:
    """What an evaluated trial may look like."""
    steps = []
    for _ in range(draw(st.integers(0, 3))):
        level = LoadLevel(parse_scenario("N(9,3)/(4,2)"), draw(st.integers(1, 4096)), 9, 1.0, 0, 1)
        records = tuple(draw(st.lists(RECORDS, max_size=4)))
        window_s = draw(st.floats(1e-3, 1e4))
        metrics = summarise(records, window_s=window_s, gpus=draw(st.integers(1, 8)))
        steps.append(Step(level, LoadResult(records, window_s, draw(SECONDS)), metrics))
    metrics = [step.metrics for step in steps]
    failure = draw(FAILURES)
    measured = any(m.latency is not None for m in metrics)
    failed = None if measured and draw(st.booleans()) else failure
    report = Report(
        planned=3,
        finished=len(steps),
        score=score(TASK.objective, TASK.slo_terms, metrics, failed),
        done=True,
        failure=failed,
        info=ServerInfo(
            draw(TEXT), draw(st.none() | st.integers(0, 2**62)), draw(st.dictionaries(TEXT, TEXT, max_size=2))
        ),
        start_s=draw(st.none() | SECONDS),
    )
    info = TrialInfo(
        number=draw(st.integers(0, 99_999)),
        kind=draw(st.sampled_from(["baseline", "search"])),
        config=draw(CONFIGS),
        gpu_ids=draw(st.lists(TEXT, max_size=2)),
        started_at=draw(st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1))).replace(tzinfo=UTC),
        duration_s=draw(SECONDS),
        node=draw(TEXT),
        log_path=draw(TEXT),
        stopped_early=draw(st.booleans()),
        curve=draw(st.dictionaries(st.sampled_from([0.25, 0.5, 1.0]), SECONDS)),
        attempts=draw(st.integers(0, 3)),
        lost=draw(st.lists(TEXT.filter(bool), max_size=2)),
        expected_gain=draw(st.none() | SECONDS),
    )
    return info, report, steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


def same(got: Any, expected: Any) -> bool:
    if expected is None:
        return got is None or bool(pd.isna(got))
    return bool(got == expected)


def test_a_trial_that_ends_while_a_study_is_read_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make()
    store = ResultStore(tmp_path, "live")
    store.create(made.about)

    def ends(number: int) -> None:
        parts = ([row for row in rows if row["trial"] == number] for rows in (made.steps, made.requests))
        store.write_trial(made.trials[number], *parts)

    read_tables, numbers = ResultStore._read_tables, iter(range(4))

    def meanwhile(self: ResultStore, *args: Any) -> Any:
        ends(next(numbers))
        return read_tables(self, *args)

    monkeypatch.setattr(ResultStore, "_read_tables", meanwhile)
    found = store.read()
    assert set(found.trials["trial"]) == set(found.steps["trial"]) == set(found.requests["trial"]) == {0}


@given(planned=st.integers(1, 40), part=st.sampled_from([0.0, *GLANCES]), data=st.data())
def test_the_shares_of_a_curve_are_found_again(planned: int, part: float, data: st.DataObject) -> None:
    finished = data.draw(st.integers(0, planned - 1))
    share = Report(
        planned,
        finished,
        scores(TASK, [], Failure(Stage.CHECK, Cause.INTERNAL, ""))[0],
        done=False,
        part=part,
    ).share
    assert float(f"{share:.6g}") == share


def test_what_a_server_says_of_itself_is_kept_as_json() -> None:
    said = {"scale": math.inf, "rope": {"factors": [1.5, math.nan]}, "tp-size": 2}
    nothing = score(TASK.objective, TASK.slo_terms, [], Failure(Stage.START, Cause.CRASH, "x"))
    report = Report(1, 0, nothing, done=True, info=ServerInfo("1", None, said))
    info = TrialInfo(0, "search", {}, [], datetime.now(UTC), 0.0, "", "")
    kept = trial_row(TASK, ENGINE, info, report)["effective_args"]
    assert kept == '{"scale": null, "rope": {"factors": [1.5, null]}, "tp-size": 2}'


@given(trial=trials())
@settings(max_examples=40)
def test_rows_of_any_trial_come_back(folder: Path, trial: tuple[TrialInfo, Report, list[Step]]) -> None:
    info, report, steps = trial
    store = ResultStore(folder, "any")
    shutil.rmtree(folder / "any", ignore_errors=True)
    store.create({})
    written = record(store, TASK, ENGINE, info, report, steps)
    assert written.keys() == set(TABLES["trials"].names)
    found = store.read()
    assert found.skipped == ()

    got = found.trials.iloc[0].to_dict()
    assert (got["config"], got["effective_args"]) == (dict(info.config), dict(report.info.effective_args))
    assert json.loads(got["command"]) == ENGINE.launch_command(info.config)
    assert list(got["gpu_ids"]) == list(info.gpu_ids)
    assert got["started_at"] == info.started_at
    failure = report.failure
    expected = {
        **{"study": "any", "trial": info.number, "kind": info.kind, "node": info.node},
        "gpus": info.config.get("tp-size", 1),
        **{"engine": "sglang", "simulated": False, "engine_version": report.info.version or None},
        **{"objective_name": "minimize_latency", "objective_unit": "s", "kv_tokens": report.info.kv_tokens},
        **{"objective": report.score.objective, "score": report.score.score, "loss": report.score.loss},
        "slo_met": report.score.slo.met if steps else None,
        "slo_hard_failed": report.score.slo.hard_failed if steps else None,
        "slo_worst": "ttft p90" if steps else None,
        "slo_worst_violation": report.score.slo.worst_violation if steps else None,
        "failure_stage": failure and failure.stage.value,
        "failure_cause": failure and failure.cause.value,
        "failure_detail": failure and failure.detail,
        "failure_evidence": failure and failure.evidence,
        "failure_progress": failure and failure.progress,
        "exit_code": failure and failure.exit_code,
        "curve": {f"{share:g}": loss for share, loss in info.curve.items()},
        **{"attempts": info.attempts, "lost": "\n".join(info.lost) or None},
        "expected_gain": info.expected_gain,
        **{"levels_planned": 3, "levels_finished": len(steps), "stopped_early": info.stopped_early},
        **{"start_s": report.start_s, "duration_s": info.duration_s, "log_path": info.log_path},
        "model": TASK.model.id_or_path,
    }
    assert [name for name, value in expected.items() if not same(got[name], value)] == []

    assert len(found.steps) == len(steps)
    for (number, step), (_, row_) in zip(enumerate(steps), found.steps.iterrows(), strict=True):
        metrics = step.metrics
        assert (row_["step"], row_["errors"]) == (number, metrics.errors)
        assert (row_["scenario"], row_["concurrency"]) == (str(step.level.scenario), step.level.concurrency)
        for name in ("latency", "ttft", "tpot"):
            for statistic in ("mean", "p50", "p90", "p95", "p99"):
                distribution = getattr(metrics, name)
                value = None if distribution is None else getattr(distribution, statistic)
                assert same(row_[f"{name}_{statistic}_s"], value)
        rates = ("input_tok_s", "output_tok_s", "total_tok_s", "requests_per_s", "success_rate")
        for name in (*rates, "duration_s", "requests_ok", "requests_failed"):
            assert row_[name] == getattr(metrics, name)
        assert row_["total_tok_s_per_gpu"] == metrics.total_tok_s / metrics.gpus
        assert row_["output_tok_s_per_gpu"] == metrics.output_tok_s / metrics.gpus
        assert row_["client_lag_s"] == step.load.client_lag_s

    sent = [(number, request) for number, step in enumerate(steps) for request in step.load.records]
    assert len(found.requests) == len(sent)
    for (step_number, request), (_, row_) in zip(sent, found.requests.iterrows(), strict=True):
        assert (row_["step"], row_["request"]) == (step_number, request.number)
        for name in ("sent_s", "ttft_s", "tpot_s", "e2e_s", "input_tokens", "output_tokens"):
            assert same(row_[name], getattr(request, name)), name
        assert same(row_["error"], request.error and request.error.value)
        assert same(row_["http_status"], request.status)


# --- docs/results.md -----------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "results.md").read_text()


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("table", TABLES)
def test_the_page_has_every_column_with_its_type(table: str) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \| (.+?) \|$", section(table), re.MULTILINE)
    types = {field.name: re.sub(r"item: |element: |tz=", "", str(field.type)) for field in TABLES[table]}
    assert {name: kind for name, kind, _, _ in rows} == types
    assert [name for name, *_ in rows] == list(types)
    for name, _, unit, _ in rows:
        if name.endswith("_s") and "tok_s" not in name and name != "requests_per_s":
            assert unit == "s", name


READERS = re.findall(r"```python\n(.+?)```", section("Reading"), re.DOTALL)


def test_the_page_reads_with_three_libraries() -> None:
    imports = [re.findall(r"^import (\w+)", block, re.MULTILINE) for block in READERS]
    assert imports == [["pandas"], ["pyarrow"], ["duckdb"]]


@pytest.mark.parametrize("block", READERS, ids=["pandas", "pyarrow", "duckdb"])
def test_the_page_reads_a_study(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ResultStore(tmp_path, "first")
    store.create(ABOUT)
    for number, loss in enumerate([3.0, 1.0, 2.0]):
        store.write_trial(row(number, loss=loss), [], [])
    monkeypatch.chdir(tmp_path / "first")
    names: dict[str, Any] = {}
    exec(block, names)
    trials = names["trials"]
    frame = trials.to_pandas() if isinstance(trials, pa.Table) else trials
    assert list(frame["trial"]) == [1, 2, 0]
    assert set(frame.columns) == set(TABLES["trials"].names)
