"""One run of a task: space, search, trials and results wired into Ray Tune."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NoReturn

from ray import tune

from tuner import __version__
from tuner.accelerators import required
from tuner.analysis import summary
from tuner.capacity import capacity_for, gpu_flags_of, refusal
from tuner.cluster import cluster, gpus_by_kind, nodes_of
from tuner.dashboard import StudyMetrics, show_log, trial_name
from tuner.engines.base import Engine
from tuner.errors import EngineUnavailable, UsageError, told_of
from tuner.experience import Experience, experience
from tuner.past import Setup, newest_of, past_of, seed_of
from tuner.plan import allowed_size
from tuner.progress import StudyProgress
from tuner.recorder import LOG, Recorder
from tuner.results import (
    SCHEMA_VERSION,
    ResultStore,
    StudyResults,
    data_home,
    default_root,
    new_study_name,
    require_place,
)
from tuner.rig import calibrated, rig
from tuner.search import LosingTrials, StudySearcher, make_searcher
from tuner.secrets import redacted, referenced
from tuner.sharing import Sharing, demand
from tuner.standing import Journal, State
from tuner.suggestion import METRIC, MODE
from tuner.task import Task
from tuner.trial import TrialContext, trainable

LOGICAL_GPUS = 8  # of a local cluster on which the engine is simulated
_TURN_S = 0.5  # after which a study that gave way looks whether it may go on


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
        return 130 if self.interrupted else summary(self.results).exit_code


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
    resume: bool = False,
    adopt: bool = False,
    virtual: bool = False,
    calibration: str | Path | None = None,
    source: str = "",
    watch: Callable[[StudyProgress], None] | None = None,
) -> StudyOutcome:
    """Runs `task` to its end and returns what it found.

    `engine` replaces the task's `base_runtime`, `seed` its seed. `num_gpus` are the GPUs, real or
    logical, of the local Ray cluster that is started where RAY_ADDRESS names none. `results` is a folder
    or a URI, `study` a new study's name in it. `warm_start` names earlier studies there to learn from;
    the simulator's predictions are another `prior`. A `virtual` study runs on the simulator in virtual time,
    in seconds. `calibration` is a file of `tuner calibrate` for the simulator. `watch` is called whenever a
    trial starts or ends.

    `resume` goes on with `study`, or else with the newest study of a task of this name, and begins one where
    there is none: what was measured is kept and not measured again. If the task has changed since, that is a
    StudyError, unless `adopt` takes it as it is now and the trials still compare.

    Raises a UsageError before anything is started; Ctrl-C and SIGTERM end the study early, with
    everything that was finished kept.
    """
    if calibration is not None:
        task = _calibrated(task, calibration, engine, virtual=virtual, is_prior=prior is not None)
    with told_of(source):
        chosen = rig(task, engine, virtual=virtual)
    chosen.load.require()
    adapter = chosen.engine
    secrets, version = _secrets(task, source), adapter.version()
    file = None if calibration is None else str(Path(calibration).absolute())
    setup = Setup(num_gpus, max_concurrent, tuple(warm_start), prior, virtual, file)
    root = str(results or default_root())
    wanted = newest_of(task, root, virtual=virtual) if resume and study is None else study
    store = ResultStore(root, _study_name(task, wanted))
    require_place(root)
    if not (resume and store.exists()):
        store = _new_store(store, wanted=wanted is not None)
    with store.locked(), _interrupts_kept():
        past = past_of(store, task, adapter, version, adopt=adopt) if store.exists() else None
        setup = setup.going_on(past.about) if past else setup
        seed = seed_of(task, seed, past.about if past else None)
        known = _known(task, adapter, setup, root, seed)
        local_gpus = setup.num_gpus or (LOGICAL_GPUS if adapter.simulated else None)
        with cluster(num_gpus, local_gpus=local_gpus):
            kind = required(task.resources.accelerator_type, gpus_by_kind(), simulated=adapter.simulated)
            sharing, space = Sharing(lambda: demand(nodes_of(kind))), task.space
            capacity = capacity_for(adapter, space, lambda: nodes_of(kind), sharing.share, sharing.gives_way)
            searcher = make_searcher(
                task,
                seed=seed,
                known=known,
                past=past,
                gpu_flags=gpu_flags_of(space, adapter),
                capacity=capacity,
            )
            about = _about(task, adapter, version, searcher.budget, seed, setup, source)
            if past is None:
                store.create(about)
            else:
                store.tidy()
                store.amend(**past.amended(about))
            context = TrialContext(
                study=store.study,
                task=task,
                engine=adapter.name,
                seed=seed,
                virtual=setup.virtual,
                secrets=secrets,
                accelerator=kind,
            )
            at_once = setup.max_concurrent or capacity.at_once
            watch = _watched_by(watch, store.study, task.objective.name)
            with _study_log(store.study) as log_path, Journal(store, watch) as journal:
                show_log(store.study, "study", log_path)
                recorder = Recorder(
                    store,
                    task,
                    adapter,
                    capacity,
                    lambda: searcher.planned,
                    lambda: searcher.ended_early,
                    journal.show,
                    past,
                )
                searcher.guard(lambda config: refusal(adapter, config, capacity), recorder.refused)
                interrupted = _searched(context, searcher, recorder, store, at_once)
                journal.end(State.INTERRUPTED if interrupted else State.FINISHED)
    return StudyOutcome(store.read(), store.location, log_path, interrupted)


def _secrets(task: Task, source: str) -> dict[str, str]:
    try:
        return referenced(task.engine.env, os.environ)
    except EngineUnavailable as missing:
        raise EngineUnavailable(f"{source}: {missing}" if source else str(missing)) from missing


def _known(task: Task, engine: Engine, setup: Setup, root: str, seed: int) -> Experience:
    return experience(
        task,
        engine,
        warm_start=setup.warm_start,
        simulate=setup.prior == "simulator",
        root=root,
        seed=seed,
        calibration=setup.calibration,
    )


def _calibrated(
    task: Task, calibration: str | Path, engine: str | None, *, virtual: bool, is_prior: bool
) -> Task:
    """The task with a calibration where it runs on the simulator; UsageError where nothing is simulated."""
    if rig(task, engine, virtual=virtual).engine.simulated:
        return calibrated(task, calibration)
    if not is_prior:
        raise UsageError("--calibration is the simulator's: it goes with --virtual or --prior simulator")
    return task


def _searched(
    context: TrialContext, searcher: StudySearcher, recorder: Recorder, store: ResultStore, at_once: int
) -> bool:
    """Runs the trials and says how that ended; whether it was interrupted."""
    LOG.info("Study %s: %d trials, %d at once, seed %d", store.study, searcher.planned, at_once, context.seed)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        interrupted = _fit(context, searcher, recorder, at_once, scratch)
    recorder.name_end()
    LOG.info("Study %s: %s", store.study, "interrupted" if interrupted else "done")
    return interrupted


def _fit(
    context: TrialContext, searcher: StudySearcher, recorder: Recorder, at_once: int, scratch: str
) -> bool:
    """Lets Tune run the trials; whether that was interrupted.

    Tune keeps its last actor, and with it the GPUs, until it has ended. Where others wait for these it ends,
    and begins anew when they have had their turn.
    """
    try:
        with _sigterm_interrupts():
            for turn in itertools.count():
                _tuner(context, searcher, recorder, at_once, f"{scratch}/{turn}").fit()
                if not searcher.waits:
                    return False
                LOG.info("Study %s: another one waits for the GPUs, and goes first", context.study)
                while searcher.gives_way:
                    time.sleep(_TURN_S)
    except KeyboardInterrupt:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would break into the clean-up
    return True


def _tuner(
    context: TrialContext, searcher: StudySearcher, recorder: Recorder, at_once: int, scratch: str
) -> tune.Tuner:
    return tune.Tuner(
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
        ),
    )


def _trial_name(trial: Any) -> str:
    return trial_name(trial.config["number"], trial.config["flags"], trial.config["attempt"])


def _watched_by(
    watch: Callable[[StudyProgress], None] | None, study: str, objective: str
) -> Callable[[StudyProgress], None]:
    """Tells the dashboard as well."""
    metrics = StudyMetrics(study)

    def show(progress: StudyProgress) -> None:
        metrics.show(progress, objective)
        if watch:
            watch(progress)

    return show


def _study_name(task: Task, wanted: str | None) -> str:
    return new_study_name(task.task_name) if wanted is None else wanted  # the store refuses what is no name


def _new_store(store: ResultStore, *, wanted: bool) -> ResultStore:
    """A store that can be written and holds no study yet; a name that nobody `wanted` gets a number.

    One that another driver has taken holds none either until its Ray is up: then its lock tells.
    """
    name, number = store.study, 2
    while not wanted and (store.exists() or store.held()):
        store = ResultStore(store.root, f"{name}-{number}")
        number += 1
    store.require_new()
    return store


def _about(
    task: Task, engine: Engine, version: str, budget: int, seed: int, setup: Setup, source: str
) -> dict[str, Any]:
    size = allowed_size(task)
    return {
        "schema_version": SCHEMA_VERSION,
        "tuner_version": __version__,
        "task": task.model_dump(mode="json", exclude_unset=True),
        "source": source,
        "engine": engine.name,
        "engine_version": version,
        "simulated": engine.simulated,
        "seed": seed,
        **asdict(setup),
        "started_at": datetime.now(UTC).isoformat(),
        "planned_trials": budget,
        "space_size": None if size == float("inf") else int(size),
    }


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
def _study_log(study: str) -> Iterator[Path]:
    """Sends this package's study log to a file that `tail -f` can follow; its path."""
    path = data_home() / "logs" / f"task_{study}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_Formatter("%(asctime)s %(message)s"))
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    try:
        yield path
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
