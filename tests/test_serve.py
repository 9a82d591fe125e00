"""The API over real HTTP: tasks, studies, results and errors, as a client sees them. No Ray."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from serving import Answer, JobsInMemory, Served, served
from studies import make, never_fails

from tuner.analysis import summary
from tuner.analysis.trials import objectives_of
from tuner.errors import StudyError, TaskError
from tuner.export import FORMATS, best_deployment
from tuner.failures import Cause
from tuner.progress import StudyProgress
from tuner.report.sentences import gain_sentence, other_objectives
from tuner.results import TABLES, ResultStore, default_root
from tuner.serve import deployment, session
from tuner.serve.jobs import Job, JobState, Order
from tuner.serve.models import State
from tuner.serve.studies import Studies
from tuner.standing import Journal
from tuner.task import load_task, make_task

FORMS = ", ".join(FORMATS)
TASK: dict[str, Any] = {"task_name": "mine", "optimization": {"max_iterations": 3}}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path / "results") as running:
        yield running


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with two studies on disk; nothing here writes to it."""
    root = tmp_path_factory.mktemp("kept")
    make(name="older", repeats=[{"tp-size": 2}]).write(root)
    make(name="newer", simulated=True, seed=1).write(root)
    with served(root) as running:
        yield running


# --- tasks ----------------------------------------------------------------------------------------------


def test_a_task_is_checked_as_by_the_command(server: Served) -> None:
    answer = server.post("check", TASK)
    assert answer.status == 200 and answer.json["task_name"] == "mine"
    assert any(line.startswith("Space") for line in answer.json["lines"])


@pytest.mark.parametrize(
    "task",
    [
        {"optimisation": {}, "parameters": {"tp-size": [0, 1], "x": []}},
        {"engine": {"env": {"HF_TOKEN": "a-secret-of-mine"}}},
        {"slo": {"ttft": {"p94": {}}}, "benchmark": {"num_concurrency": [0]}},
        [],
    ],
)
@pytest.mark.parametrize("path", ["check", "check?virtual=true", "studies"])
def test_every_problem_comes_back_with_its_path(server: Served, path: str, task: Any) -> None:
    with pytest.raises(TaskError) as wrong:
        make_task(task)
    answer = server.post(path, task)
    assert answer.status == 422
    expected = [
        {"path": each.path, "message": each.message, "hint": each.hint} for each in wrong.value.problems
    ]
    assert answer.json["problems"] == expected
    assert "a-secret-of-mine" not in answer.text and not server.jobs.orders


@pytest.mark.parametrize("path", ["check", "check?virtual=true", "studies"])
def test_what_the_engine_finds_wrong_comes_back_with_its_path(server: Served, path: str) -> None:
    answer = server.post(path, {"parameters": {"tp-size": [1, 0]}})
    assert answer.status == 422
    assert [problem["path"] for problem in answer.json["problems"]] == ["parameters.tp-size[1]"]
    assert not server.jobs.orders


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b'{"task_name": "mine", /* why */}', "application/json"),
        (b"task_name: mine\n", "application/yaml"),
        (b"task_name: mine\n", "application/x-www-form-urlencoded"),  # what curl says
        (b'// why\n{"task_name": "mine"}', "application/x-www-form-urlencoded"),
        (b'\xef\xbb\xbf {"task_name": "mine"}', ""),
    ],
)
def test_a_task_is_json_or_yaml(server: Served, content: bytes, kind: str) -> None:
    answer = server.post("check", content, Content_Type=kind)
    assert answer.status == 200, answer.text
    assert answer.json["task_name"] == "mine"


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{", b"a: [", b"[" * 3000, b"\0"])
def test_what_is_no_task_is_refused(server: Served, content: bytes) -> None:
    answer = server.post("check", content)
    assert answer.status == 422 and answer.json["problems"]


def test_an_engine_that_is_not_here_is_said_to_be_missing(server: Served) -> None:
    answer = server.post("studies?engine=nonsense", TASK)
    assert answer.status == 422 and "nonsense" in answer.json["error"]
    assert not server.jobs.orders


def test_a_task_is_started_as_a_job(server: Served, tmp_path: Path) -> None:
    content = b"task_name: mine   # as it was sent\n"
    answer = server.post(
        "studies?study=first&engine=simulator&virtual=true&seed=7&max_concurrent=2",
        content,
        Content_Type="application/yaml",
    )
    assert answer.status == 201 and answer.json["state"] == "starting"
    assert answer.headers["location"] == "/api/v1/studies/first"
    (order,) = server.jobs.orders
    words = ["run", "task.yaml", "--study", "first", "--results"]
    words += [str(tmp_path / "results"), "--engine", "simulator", "--seed", "7", "--max-concurrent", "2"]
    assert list(order.words) == [*words, "--virtual"] and order.files == {"task.yaml": content}
    assert server.ask("studies/first").json["state"] == "starting"
    assert server.ask("studies").json["studies"][0]["study"] == "first"
    again = server.post("studies?study=first", TASK)
    assert again.status == 409 and "exists already" in again.json["error"]


def test_a_study_may_learn_from_earlier_ones(server: Served, tmp_path: Path) -> None:
    for name in ("older", "newer"):
        make(name=name).write(tmp_path / "results")
    answer = server.post("studies?warm_start=older&warm_start=newer&prior=simulator", TASK)
    assert answer.status == 201, answer.text
    (order,) = server.jobs.orders
    told = ("--warm-start", "older", "--warm-start", "newer", "--prior", "simulator")
    assert order.words[-len(told) :] == told
    missing = server.post("studies?warm_start=neverwas", TASK)
    assert missing.status == 404 and "neverwas" in missing.json["error"]
    assert server.post("studies?prior=magic", TASK).status == 422
    assert len(server.jobs.orders) == 1


def test_a_study_without_a_name_gets_one_and_no_other_has_it(server: Served) -> None:
    names = {server.post("studies", TASK).json["study"] for _ in range(3)}
    assert len(names) == 3 and all(name.startswith("mine-") for name in names)


def test_a_study_that_its_job_could_not_make_says_why(server: Served) -> None:
    job = server.post("studies?study=lost", TASK).json["job"]
    server.jobs.printed = "Tuning mine\nerror: a trial asks for more GPUs than any node has\n"
    server.jobs.become(job, JobState.FAILED)
    found = server.ask("studies/lost").json
    assert found["state"] == "broken" and found["reason"].startswith("error: a trial asks for more")
    assert server.ask("studies/lost/log").text == server.jobs.printed


def test_a_study_that_its_job_left_elsewhere_says_so(server: Served) -> None:
    server.jobs.become(server.post("studies?study=lost", TASK).json["job"], JobState.SUCCEEDED)
    found = server.ask("studies/lost").json
    assert (found["state"], found["kept"]) == ("broken", False)
    assert found["reason"] == f"its job has ended, and kept no results in {server.root}"


def test_jobs_keep_results_where_the_server_does_whatever_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(deployment, "_Server", SimpleNamespace(bind=lambda root, token_digest: root))
    for given, kept in (("here", str(tmp_path / "here")), ("s3://bucket/x", "s3://bucket/x")):
        assert session.Place(results=given).root == kept
        assert deployment.application(given, None) == kept
    assert session.Place().root == deployment.application(None, None) == str(default_root())


def test_a_study_that_is_cancelled_before_it_began_is_not_broken(server: Served) -> None:
    assert server.post("studies?study=early", TASK).json["state"] == "starting"
    assert server.post("studies/early/cancel").status == 202
    found = server.ask("studies/early").json
    assert (found["state"], found["reason"]) == ("interrupted", "cancelled before it began")
    assert not found["kept"] and server.ask("studies").json["studies"] == [found]


@pytest.mark.parametrize(
    ("method", "path", "problem"),
    [
        ("POST", "studies?study=x&max_concurent=1", ("query.max_concurent", "is not a known key, got '1'")),
        ("POST", "check?vritual=true", ("query.vritual", "is not a known key, got 'true'")),
        ("GET", "studies?limits=3", ("query.limits", "is not a known key, got '3'")),
        ("GET", "studies/mine/export?format=x", ("query.format", f"must be one of {FORMS}, got 'x'")),
        ("GET", "studies/mine/trials?columns=x,y", ("query.columns", "trials has no 'x', 'y'")),
        ("GET", "studies/mine?formt=csv", ("query.formt", "is not a known key, got 'csv'")),
        ("GET", "studies/mine/trials?formt=csv", ("query.formt", "is not a known key, got 'csv'")),
        ("GET", "studies/mine/log?lines=0", ("query.lines", "must be >= 1, got '0'")),
        ("GET", "studies?limit=many", ("query.limit", "must be an integer, got 'many'")),
        ("POST", "studies?seed=-1", ("query.seed", "must be >= 0, got '-1'")),
    ],
)
def test_what_a_request_asks_for_wrongly_is_named(
    server: Served, method: str, path: str, problem: tuple[str, str]
) -> None:
    make(name="mine").write(server.root)
    answer = server.ask(path, method=method, body=b"{}" if method == "POST" else None)
    (found,) = answer.json["problems"]
    assert answer.status == 422 and found["path"] == problem[0] and found["message"].startswith(problem[1])
    near = {"query.max_concurent": "max_concurrent", "query.vritual": "virtual", "query.limits": "limit"}
    if wanted := near.get(problem[0]):
        assert found["hint"] == f"did you mean {wanted}?"
    assert not server.jobs.orders


# --- how studies stand -----------------------------------------------------------------------------------


def test_studies_are_listed_page_by_page(kept: Served) -> None:
    every = kept.ask("studies").json
    assert every["total"] == 2
    names = [study["study"] for study in every["studies"]]
    assert sorted(names) == ["newer", "older"]
    assert kept.ask("studies?limit=1&offset=1").json["studies"] == every["studies"][1:]
    assert {study["study"]: study["simulated"] for study in every["studies"]} == {
        "newer": True,
        "older": False,
    }


def test_a_study_says_what_tuning_bought(kept: Served) -> None:
    expected = gain_sentence(summary(ResultStore(kept.root, "older").read()))
    assert kept.ask("studies/older").json["gain"] == expected


def test_a_study_that_has_ended_shows_the_best_of_its_report_and_nothing_that_runs(server: Served) -> None:
    lucky, steady = {"tp-size": 1}, {"tp-size": 2}
    store = make([lucky, steady], name="ended", repeats=[steady, {}] * 2).write(server.root)
    [seen] = [row for row in store.new_trials(()) if row["config"] == json.dumps(lucky)]
    best = summary(store.read()).best
    assert best is not None and best["config"] == steady
    with store.locked(), Journal(store) as journal:
        journal.show(StudyProgress(3, 1, 7, 0, 1.0, best=seen, last=seen))
        journal.end(State.FINISHED)
    told = server.ask("studies/ended").json["progress"]
    assert (told["best"]["trial"], told["best"]["objective"]) == (best["trial"], best["objective"])
    assert told["running"] == 0


def test_a_study_is_followed_until_it_ends(server: Served) -> None:
    store = make(name="going").write(server.root)
    with store.locked(), Journal(store) as journal:
        journal.show(StudyProgress(planned=5, running=1, finished=2, failed=0, elapsed_s=1.0))
        stream = _events(server, "going")
        kind, data = next(stream)
        assert kind == "study"
        while data["state"] != "running":  # what the journal has yet to write
            _, data = next(stream)
        assert data["progress"]["finished"] == 2
        journal.show(StudyProgress(planned=5, running=0, finished=3, failed=1, elapsed_s=2.0))
        _, data = next(stream)
        assert (data["progress"]["finished"], data["progress"]["failed"]) == (3, 1)
        journal.end(State.FINISHED)
    rest = list(stream)
    assert rest[-1] == ("end", "finished") and rest[-2][1]["state"] == "finished" and rest[-2][1]["gain"]


def _events(server: Served, study: str) -> Iterator[tuple[str, Any]]:
    """(kind, data) of a study's events as they arrive."""
    import urllib.request

    headers = {"Authorization": f"Bearer {server.token}"}
    request = urllib.request.Request(f"{server.url}api/v1/studies/{study}/events", headers=headers)
    with urllib.request.urlopen(request, timeout=60) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        fields: dict[str, str] = {}
        for line in stream:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name:
                fields[name] = value
            elif fields:
                data = fields["data"]
                yield fields["event"], json.loads(data) if fields["event"] == "study" else data
                fields = {}


def test_a_study_that_runs_is_cancelled_and_resumed(server: Served) -> None:
    make(name="mine").write(server.root)
    assert server.post("studies/mine/cancel").status == 409  # nobody runs it
    resumed = server.post("studies/mine/resume?max_concurrent=3")
    assert resumed.status == 202 and resumed.json["state"] == "starting"
    (order,) = server.jobs.orders
    assert list(order.words) == f"resume mine --results {server.root} --max-concurrent 3".split()
    assert server.post("studies/mine/resume").status == 409  # it runs
    assert server.post("studies/mine/cancel").status == 202
    assert server.jobs.jobs[0].state is JobState.STOPPED
    assert server.ask("studies/mine").json["state"] == "interrupted"


def test_a_finished_study_is_resumed_where_there_is_something_to_do(server: Served) -> None:
    lacking = make(name="lacking", fails=lambda config: Cause.NO_SUCH_GPUS if config == {} else None)
    for made in (make(name="whole"), lacking):
        store = made.write(server.root)
        with Journal(store) as journal:
            journal.end(State.FINISHED)
    refused = server.post("studies/whole/resume")
    assert refused.status == 409 and "is finished: there is nothing to go on with" in refused.json["error"]
    assert server.post("studies/lacking/resume").status == 202  # a node may have the GPUs by now
    assert [order.study for order in server.jobs.orders] == ["lacking"]


@pytest.mark.parametrize("end", [JobState.STOPPED, JobState.SUCCEEDED, JobState.FAILED])
def test_a_study_that_a_shell_resumed_runs_whatever_became_of_its_job(server: Served, end: JobState) -> None:
    store = make(name="mine").write(server.root)
    server.jobs.become(server.post("studies/mine/resume").json["job"], end)
    with store.locked(), Journal(store):
        assert server.ask("studies/mine").json["state"] == "starting"
        refused = server.post("studies/mine/resume")
        assert refused.status == 409 and "is being run" in refused.json["error"]
    assert len(server.jobs.orders) == 1


def test_without_a_lock_whoever_wrote_after_the_job_ended_runs_the_study() -> None:
    root = f"fsspec+memory://{time.monotonic_ns()}"
    store, jobs = ResultStore(root, "far"), JobsInMemory()
    store.create({})
    job, kept = jobs.start(Order("far", root, ())), Studies(root, jobs)
    with Journal(store):
        assert kept.study("far").state is State.STARTING
        jobs.become(job.id, JobState.STOPPED)  # killed: it could say no more
        assert kept.study("far").state is State.INTERRUPTED
    with Journal(store):
        assert kept.study("far").state is State.STARTING


class SlowJobs(JobsInMemory):
    """Takes so long to start a job that another request comes meanwhile."""

    def start(self, order: Order) -> Job:
        time.sleep(0.3)
        return super().start(order)


def test_of_requests_that_come_together_one_starts_the_study(tmp_path: Path) -> None:
    with served(tmp_path, jobs=SlowJobs()) as server, ThreadPoolExecutor(2) as pool:
        make(name="mine").write(server.root)

        def twice(path: str, body: Any = b"") -> list[Answer]:
            return sorted(pool.map(lambda _: server.post(path, body), range(2)), key=lambda each: each.status)

        assert [each.status for each in twice("studies/mine/resume")] == [202, 409]
        assert [each.status for each in twice("studies?study=first", TASK)] == [201, 409]
        unnamed = twice("studies", TASK)
        assert [each.status for each in unnamed] == [201, 201]
        assert len({each.json["study"] for each in unnamed}) == 2 and len(server.jobs.jobs) == 4


def test_a_job_that_another_kept_out_of_the_study_does_not_hide_it(server: Served) -> None:
    make(name="mine").write(server.root)
    first = server.post("studies/mine/resume").json["job"]
    late = server.jobs.start(Order("mine", str(server.root), ()))
    server.jobs.become(late.id, JobState.FAILED)
    assert server.post("studies/mine/cancel").json["job"] == first
    assert [job.state for job in server.jobs.jobs] == [JobState.FAILED, JobState.STOPPED]


def test_a_study_that_a_killed_driver_left_is_not_running(server: Served) -> None:
    store = make(name="mine").write(server.root)
    with store.locked(), Journal(store) as journal:
        journal.show(StudyProgress(planned=5, running=1, finished=2, failed=0, elapsed_s=1.0))
        assert server.ask("studies/mine").json["state"] in ("starting", "running")
        written = store.read_file("progress.json")
    assert written
    store.write_file("progress.json", written.replace(b'"finished"', b'"running"', 1))
    assert server.ask("studies/mine").json["state"] == "interrupted"


def test_a_server_that_was_measured_as_it_ran_is_no_study_to_resume(server: Served) -> None:
    made = make(name="bench")
    made.about["kind"] = "bench"
    made.write(server.root)
    assert server.ask("studies/bench").json["state"] == "finished"
    for answer in (
        server.post("studies/bench/resume"),
        server.ask("studies/bench/best"),
        server.ask("studies/bench/report"),
        server.ask("studies/bench/export"),
    ):
        assert answer.status == 409, answer.text


def test_what_is_not_there_is_not_found(kept: Served) -> None:
    for path in ("", "/events", "/log", "/trials", "/best", "/export", "/report"):
        answer = kept.ask(f"studies/nobody{path}")
        assert answer.status == 404 and answer.json["error"], path
    for path in ("cancel", "resume"):
        assert kept.post(f"studies/nobody/{path}").status in (404, 409)
    assert kept.ask("nonsense").status == 404
    assert kept.ask("studies/older", method="DELETE").status == 405


# --- results ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", TABLES)
def test_a_table_is_the_same_in_every_form(kept: Served, table: str) -> None:
    expected = getattr(ResultStore(kept.root, "older").read(), table)
    from_json = kept.ask(f"studies/older/{table}").json
    assert list(from_json[0]) == list(expected.columns) and len(from_json) == len(expected)
    csv = pd.read_csv(io.BytesIO(kept.ask(f"studies/older/{table}?format=csv").content))
    parquet = pd.read_parquet(io.BytesIO(kept.ask(f"studies/older/{table}?format=parquet").content))
    for name in expected.columns:
        values = [None if _missing(value) else value for value in expected[name]]
        texts = [json.dumps(value) if isinstance(value, dict) else value for value in values]
        for value, text, one, two, three in zip(
            values, texts, from_json, csv[name], parquet[name], strict=True
        ):
            if value is None:
                assert one[name] is None and _missing(two) and _missing(three)
            elif isinstance(value, float | int | bool | dict):
                assert one[name] == value and three == text
                assert two == text or two == pytest.approx(text, rel=1e-12)
            else:
                assert str(one[name])[:10] == str(list(value) if hasattr(value, "tolist") else value)[:10]


def _missing(value: Any) -> bool:
    return value is None or (not hasattr(value, "__len__") and bool(pd.isna(value)))


def test_what_is_not_finite_is_null_at_any_depth(server: Served) -> None:
    made = make([{"tp-size": 2}], name="mine")
    for trial in made.trials:
        trial["effective_args"] = '{"scale": Infinity, "rope": {"factors": [1.5, NaN]}}'
    made.write(server.root)
    expected = {"scale": None, "rope": {"factors": [1.5, None]}}
    path = "studies/mine/trials?columns=effective_args"
    answer = server.ask(path)
    assert "Infinity" not in answer.text and "NaN" not in answer.text
    assert answer.json[0]["effective_args"] == expected
    csv = pd.read_csv(io.BytesIO(server.ask(f"{path}&format=csv").content))
    parquet = pd.read_parquet(io.BytesIO(server.ask(f"{path}&format=parquet").content))
    for table in (csv, parquet):
        assert table["effective_args"][0] == json.dumps(expected)


def test_lists_are_json_in_csv(server: Served) -> None:
    make([{"tp-size": 2}], name="mine").write(server.root)
    path = "studies/mine/trials?columns=gpu_ids"
    csv = pd.read_csv(io.BytesIO(server.ask(f"{path}&format=csv").content))
    lists = [row["gpu_ids"] for row in server.ask(path).json]
    assert [json.loads(text) for text in csv["gpu_ids"]] == lists and any(lists)


def test_some_columns_are_enough(kept: Served) -> None:
    rows = kept.ask("studies/older/trials?columns=score,trial").json
    assert [list(row) for row in rows[:2]] == [["trial", "score"]] * 2
    answer = kept.ask("studies/older/trials?columns=trial,nonsense")
    assert answer.status == 422 and "nonsense" in answer.json["error"]
    assert kept.ask("studies/older/trials?format=xlsx").status == 422


def test_the_best_configuration_is_the_reports(kept: Served) -> None:
    results = ResultStore(kept.root, "older").read()
    answer = summary(results)
    assert answer.best is not None and answer.gain is not None
    best = kept.ask("studies/older/best").json
    assert best["trial"] == answer.best["trial"] and best["config"] == answer.best["config"]
    assert best["gain"]["share"] == answer.gain.share and best["launch"].startswith("python -m sglang")
    report = kept.ask("studies/older/report")
    assert report.headers["content-type"].startswith("text/html")
    assert "sandbox" in report.headers["content-security-policy"]
    assert best["gain_text"] in report.text.replace("&#x27;", "'")


def test_of_several_objectives_the_best_says_all_and_has_the_front(server: Served) -> None:
    made = make([{"tp-size": 2}, {"tp-size": 4}], name="several", fails=never_fails)
    losses = {None: (1.0, 1.0), 2: (0.5, 0.9), 4: (0.2, 4.0)}
    names = ["minimize_ttft", "maximize_throughput"]
    made.with_objectives(lambda config: losses[config.get("tp-size")], *names).write(server.root)
    best = server.ask("studies/several/best").json
    assert best["config"] == {"tp-size": 2}
    assert [point["config"] for point in best["front"]] == [{"tp-size": 2}, {"tp-size": 4}]
    assert best["front"][1]["values"] == {
        names[0]: pytest.approx(1.221, 1e-3),
        names[1]: pytest.approx(0.018, 0.1),
    }
    results = ResultStore(server.root, "several").read()
    assert best["others_text"] == other_objectives(summary(results), objectives_of(results)) != ""


def test_of_one_objective_there_is_no_front(kept: Served) -> None:
    best = kept.ask("studies/older/best").json
    assert best["front"] == [] and best["others_text"] == ""


@pytest.mark.parametrize("form", FORMATS)
def test_every_export_is_the_commands(kept: Served, form: str) -> None:
    deployment = best_deployment(ResultStore(kept.root, "older").read())
    answer = kept.ask(f"studies/older/export?format={form}")
    try:
        assert answer.text == FORMATS[form](deployment)
    except StudyError as refused:  # this made-up study's command names no model and no port
        assert form == "ome" and answer.status >= 400 and str(refused) in answer.json["error"]
    assert form in kept.ask("about").json["export_formats"]


def test_an_export_in_no_form_is_refused(kept: Served) -> None:
    answer = kept.ask("studies/older/export?format=nonsense")
    assert answer.status == 422 and "must be one of" in answer.json["error"]


def test_simulated_results_say_so(kept: Served) -> None:
    assert kept.ask("studies/newer/best").json["simulated"] is True
    assert "SIMULATED" in kept.ask("studies/newer/report").text
    assert "SIMULATOR" in kept.ask("studies/newer/export").text


def test_the_log_is_the_studys_or_its_jobs(server: Served, data_folder: Path) -> None:
    make(name="mine").write(server.root)
    assert server.ask("studies/mine/log").status == 404
    (data_folder / "logs").mkdir(parents=True)
    (data_folder / "logs" / "task_mine.log").write_text("".join(f"line {n}\n" for n in range(9)))
    assert server.ask("studies/mine/log?lines=2").text == "line 7\nline 8\n"
    server.post("studies/mine/resume")
    assert server.ask("studies/mine/log?job=true").text == server.jobs.printed


def test_a_broken_study_is_an_error_of_ours(server: Served) -> None:
    make(name="torn").write(server.root)
    (server.root / "torn" / "study.json").write_text("{")
    for path in ("", "/trials", "/best"):
        answer = server.ask(f"studies/torn{path}")
        assert answer.status == 500 and "study.json" in answer.json["error"]


def test_a_broken_study_hides_no_other_in_the_list(server: Served) -> None:
    for name in ("sound", "torn"):
        make(name=name).write(server.root)
    (server.root / "torn" / "study.json").write_text("{")
    listed = server.ask("studies").json
    found = {study["study"]: (study["state"], study["reason"]) for study in listed["studies"]}
    assert listed["total"] == len(found) == 2
    assert found["sound"] == (server.ask("studies/sound").json["state"], "")
    assert found["torn"] == ("broken", server.ask("studies/torn").json["error"])


def test_the_document_has_every_route_with_its_errors(kept: Served) -> None:
    document = kept.ask("/openapi.json", token=None).json
    for path, methods in document["paths"].items():
        assert path.startswith("/api/v1/")
        for route in methods.values():
            assert route["summary"] and {"401", "422"} <= set(route["responses"])
            assert route["security"] == [{"HTTPBearer": []}]
            errors = [body for status, body in route["responses"].items() if status >= "400"]
            schemas = [body["content"]["application/json"]["schema"]["$ref"] for body in errors]
            assert set(schemas) == {"#/components/schemas/ErrorBody"}


def test_the_example_of_the_document_is_a_task(kept: Served, tmp_path: Path) -> None:
    document = kept.ask("/openapi.json", token=None).json
    examples = document["paths"]["/api/v1/check"]["post"]["requestBody"]["content"]
    make_task(examples["application/json"]["example"])
    (tmp_path / "task.yaml").write_text(examples["application/yaml"]["example"])
    load_task(tmp_path / "task.yaml")
