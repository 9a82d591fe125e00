"""One run of a task: space, search, trials and results wired into Ray Tune."""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NoReturn

from ray import tune

from tuner import __version__
from tuner.accelerators import required
from tuner.analysis import summary
from tuner.cluster import Resources, cluster, gpus_by_kind, resources_of
from tuner.engines import make_engine
from tuner.engines.base import Engine
from tuner.errors import NotEnoughGpus
from tuner.experience import experience
from tuner.failures import Cause, Failure, Stage, TrialFailed
from tuner.recorder import LOG, Recorder, StudyProgress
from tuner.results import SCHEMA_VERSION, ResultStore, StudyResults, data_home, default_root
from tuner.search import METRIC, MODE, Config, LosingTrials, StudySearcher, make_searcher
from tuner.secrets import redacted, referenced
from tuner.sharing import Sharing
from tuner.task import Task
from tuner.trial import TrialContext, trainable

LOGICAL_GPUS = 8  # of a local cluster on which the engine is simulated
_RETRIES = 2  # of a trial whose node or actor was lost


@dataclass(frozen=True)
class StudyOutcome:
    """How a study ended, and what it found."""

    results: StudyResults
    location: str
    log_path: Path
    interrupted: bool

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The row of the best configuration, its figures those of its repeats; None where none finished."""
        return summary(self.results).best

    @property
    def exit_code(self) -> int:
        """0; 3 where no trial met the SLOs; 4 where no trial finished; 130 where it was interrupted."""
        if self.interrupted:
            return 130
        found = summary(self.results)
        if found.slo is not None and found.slo.judged and not found.slo.met:
            return 3
        return 4 if found.best is None else 0


def run_study(
    task: Task,
    *,
    engine: str | None = None,
    num_gpus: int | None = None,
    results: str | Path | None = None,
    study: str | None = None,
    max_concurrent: int | None = None,
    seed: int | None = None,
    warm_start: Sequence[str] = (),
    prior: Literal["simulator"] | None = None,
    source: str = "",
    watch: Callable[[StudyProgress], None] | None = None,
) -> StudyOutcome:
    """Runs `task` to its end and returns what it found.

    `engine` replaces the task's `base_runtime`, `seed` its seed. `num_gpus` are the GPUs, real or
    logical, of the local Ray cluster that is started where RAY_ADDRESS names none. `results` is a folder
    or a URI, `study` a new study's name in it. `warm_start` names earlier studies there to learn from;
    the simulator's predictions are another `prior`. `watch` is called whenever a trial starts or ends.
    Raises a UsageError before anything is started; Ctrl-C and SIGTERM end the study early, with
    everything that was finished kept.
    """
    adapter = make_engine(task, engine)
    name = _study_name(task, study)
    if seed is None:
        seed = secrets.randbelow(2**31) if task.optimization.seed is None else task.optimization.seed
    store = _new_store(results or default_root(), name, wanted=study is not None)
    name = store.study
    version, secrets_of_task = adapter.version(), referenced(task.engine.env, os.environ)
    known = experience(
        task, adapter, warm_start=warm_start, simulate=prior == "simulator", root=store.root, seed=seed
    )
    log_path = data_home() / "logs" / f"task_{name}.log"
    local_gpus = LOGICAL_GPUS if adapter.simulated else None
    with _interrupts_kept(), cluster(num_gpus, local_gpus=local_gpus) as everything:
        kind = required(task.resources.accelerator_type, gpus_by_kind(), simulated=adapter.simulated)
        resources = resources_of(kind) if kind else everything
        least = _require_gpus(task, adapter, resources)
        at_once = max_concurrent or _trials_at_once(resources, least)
        context = TrialContext(
            name, task, adapter.name, seed, resources.largest_node_cpus, secrets_of_task, kind
        )
        searcher = make_searcher(task, seed=seed, known=known, **_limits(adapter, resources, least))
        store.create(_about(task, adapter, name, seed, version, source, searcher))
        recorder = Recorder(store, task, adapter, lambda: searcher.planned, watch)
        searcher.guard(lambda config: _refusal(adapter, config, resources), recorder.refused)
        with _study_log(log_path), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            LOG.info("Study %s: %d trials, %d at once, seed %d", name, searcher.planned, at_once, seed)
            interrupted = _fit(context, searcher, recorder, at_once, scratch)
            if searcher.ended_early:
                LOG.info("Study %s: the search has ended early: %s", name, searcher.ended_early)
                store.amend(ended_early=searcher.ended_early)
            LOG.info("Study %s: %s", name, "interrupted" if interrupted else "done")
    return StudyOutcome(store.read(), store.location, log_path, interrupted)


def _fit(
    context: TrialContext, searcher: StudySearcher, recorder: Recorder, at_once: int, scratch: str
) -> bool:
    """Lets Tune run the trials; whether that was interrupted."""
    tuner = tune.Tuner(
        trainable(context),
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode=MODE,
            search_alg=searcher,
            scheduler=LosingTrials(searcher.stopping) if searcher.stopping else None,
            num_samples=-1,
            max_concurrent_trials=at_once,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=context.study,
            storage_path=scratch,
            verbose=0,
            callbacks=[recorder],
            failure_config=tune.FailureConfig(max_failures=_RETRIES),
        ),
    )
    try:
        with _sigterm_interrupts():
            tuner.fit()
    except KeyboardInterrupt:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would break into the clean-up
        return True
    return False


def _trial_name(trial: Any) -> str:
    return f"trial-{trial.config['number']:05d}"


def _study_name(task: Task, wanted: str | None) -> str:
    if wanted is not None:
        return wanted  # the store refuses what is no name
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", task.task_name).strip("-._")[:60] or "study"
    return f"{slug}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def _new_store(root: str | Path, name: str, *, wanted: bool) -> ResultStore:
    """A store that can be written and holds no study yet; a name that nobody `wanted` gets a number."""
    store = ResultStore(root, name)
    number = 2
    while store.exists() and not wanted:
        store = ResultStore(root, f"{name}-{number}")
        number += 1
    store.require_new()
    return store


def _about(
    task: Task, engine: Engine, study: str, seed: int, version: str, source: str, searcher: StudySearcher
) -> dict[str, Any]:
    size = task.space.size
    return {
        "schema_version": SCHEMA_VERSION,
        "tuner_version": __version__,
        "study": study,
        "task": task.model_dump(mode="json", exclude_unset=True),
        "source": source,
        "engine": engine.name,
        "engine_version": version,
        "simulated": engine.simulated,
        "seed": seed,
        "started_at": datetime.now(UTC).isoformat(),
        "planned_trials": searcher.budget,
        "space_size": None if size == float("inf") else int(size),
    }


def _require_gpus(task: Task, engine: Engine, resources: Resources) -> int:
    """The fewest GPUs of a trial; NotEnoughGpus where no node could run a single one."""
    fewest, _ = task.gpu_range(engine.gpus)
    if fewest > resources.largest_node_gpus:
        raise NotEnoughGpus(
            f"every configuration needs at least {fewest} GPU(s) on one node; the largest node has "
            f"{resources.largest_node_gpus:g} (--num-gpus {fewest} gives a local cluster logical ones)"
        )
    return fewest


def _trials_at_once(resources: Resources, fewest_gpus: int) -> int:
    by_gpus = resources.gpus // fewest_gpus if fewest_gpus else resources.cpus
    return max(1, int(min(by_gpus, resources.cpus)))


def _limits(engine: Engine, resources: Resources, fewest_gpus: int) -> dict[str, Any]:
    """What the searcher waits for before it suggests another trial: GPUs, or CPUs where none needs a GPU."""
    if fewest_gpus:
        return {"gpus": engine.gpus, "total_gpus": resources.gpus, "share": Sharing().share}
    most = int(resources.largest_node_cpus)
    return {
        "gpus": lambda config: min(engine.cpus(config), most),
        "total_gpus": resources.cpus,
        "counts_gpus": False,
    }


def _refusal(engine: Engine, config: Config, resources: Resources) -> Failure | None:
    """Why a configuration can never run here; None where it may."""
    needed = engine.gpus(config)
    if needed > resources.largest_node_gpus:
        detail = f"needs {needed} GPUs on one node; the largest node has {resources.largest_node_gpus:g}"
        return Failure(Stage.CHECK, Cause.NO_SUCH_GPUS, detail)
    try:
        engine.check(config)
    except TrialFailed as refused:
        return refused.failure
    return None


@contextmanager
def _interrupts_kept() -> Iterator[None]:
    """Gives SIGINT its handler back at the end: a study that is interrupted is deaf while it cleans up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Formatter(logging.Formatter):
    """Lines without secrets: failures and tracebacks quote what others wrote."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record), os.environ)


@contextmanager
def _study_log(path: Path) -> Iterator[None]:
    """Sends this package's study log to a file that `tail -f` can follow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_Formatter("%(asctime)s %(message)s"))
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    try:
        yield
    finally:
        LOG.removeHandler(handler)
        handler.close()


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """`ray job stop` sends SIGTERM; Ray replaces handlers that were there before ray.init."""

    def interrupt(number: int, frame: Any) -> NoReturn:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
