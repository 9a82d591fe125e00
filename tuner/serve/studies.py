"""The studies that are served: what a request asks for, as calls of the library. Knows nothing of HTTP.

Results lie in one root that the server was started with; a study is looked for by its name there and nowhere
else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock

from tuner.analysis import objective_of, summary
from tuner.check import check_task
from tuner.errors import ResultsError, StudyError, TaskError, TunerError, told_of
from tuner.failures import OF_THE_CLUSTER
from tuner.report import sentences
from tuner.results import ResultStore, StudyResults, data_home, new_study_name, studies
from tuner.rig import rig
from tuner.serve.jobs import Job, Jobs, JobState, Order
from tuner.serve.models import BestBody, StudiesBody, StudyBody, TrialBody
from tuner.serve.views import best_body, body_of, body_of_a_job, unreadable_body, winner_body
from tuner.standing import State, standing
from tuner.task import Task, load_task

_MOST_REMEMBERED = 500  # answers of studies that have ended


@dataclass(frozen=True)
class Upload:
    """A task as somebody sent it: the bytes of its file, and whether that is YAML."""

    content: bytes
    yaml: bool

    @property
    def name(self) -> str:
        """What the file is called where it is read."""
        return "task.yaml" if self.yaml else "task.json"


@dataclass(frozen=True)
class Options:
    """How a task is run: those of `tuner run` that make sense from afar."""

    study: str | None = None
    engine: str | None = None
    virtual: bool = False
    seed: int | None = None
    max_concurrent: int | None = None
    warm_start: tuple[str, ...] = ()
    prior: str | None = None

    def words(self) -> list[str]:
        """As options of `tuner run`."""
        values: dict[str, Sequence[object]] = {
            "--engine": [self.engine],
            "--seed": [self.seed],
            "--max-concurrent": [self.max_concurrent],
            "--warm-start": self.warm_start,
            "--prior": [self.prior],
        }
        given = [
            word
            for name, each in values.items()
            for value in each
            if value is not None
            for word in (name, str(value))
        ]
        return [*given, "--virtual"] if self.virtual else given


class Studies:
    """The studies in `root`, and the jobs that run them."""

    def __init__(self, root: str, jobs: Jobs) -> None:
        self.root = root
        self._jobs = jobs
        self._starting = Lock()  # requests come in threads, and two may ask for the same
        self._answers: OrderedDict[tuple[str, str], tuple[str, TrialBody | None]] = OrderedDict()

    def check(self, upload: Upload, options: Options) -> tuple[Task, list[str]]:
        """The task, and what `tuner check` says of it; a UsageError, TaskError first, for what is wrong."""
        with TemporaryDirectory(prefix="tuner-upload-") as folder:
            path = Path(folder, upload.name)
            path.write_bytes(upload.content)
            try:
                task = load_task(path)
                if not options.virtual:
                    return task, list(check_task(path, options.engine))
            except TaskError as error:  # which names a file that only this server knows
                raise TaskError(upload.name, list(error.problems)) from None
        with told_of(upload.name):
            simulated = rig(task, options.engine, virtual=True)
        return task, [f"Task        {task.task_name}, on the {simulated.engine.name} in virtual time"]

    def submit(self, upload: Upload, options: Options) -> StudyBody:
        """Starts a study of the task, which is checked first; StudyError where its name is taken.

        LookupError where a study to learn from is not kept.
        """
        task, _ = self.check(upload, options)
        for earlier in options.warm_start:
            self.store(earlier)
        with self._starting:
            name = options.study or self._new_name(task)
            if ResultStore(self.root, name).exists() or self._job_of(name) is not None:
                raise StudyError(f"study {name!r} exists already")
            words_ = ("run", upload.name, "--study", name, "--results", self.root, *options.words())
            job = self._jobs.start(Order(name, self.root, words_, {upload.name: upload.content}))
        return body_of_a_job(job, task, options.virtual)

    def list(self, limit: int, offset: int) -> StudiesBody:
        """The studies, the newest first; those whose job has yet to make them stand before all others."""
        jobs, kept = self._newest_jobs(), studies(self.root)
        coming = [job for name, job in jobs.items() if name not in kept]
        names = [*(job.study for job in coming), *kept]
        page = [self._listed(name, jobs.get(name)) for name in names[offset : offset + limit]]
        return StudiesBody(studies=page, total=len(names))

    def _listed(self, name: str, job: Job | None) -> StudyBody:
        """How one of many stands: one that cannot be read says why, and hides no other."""
        try:
            return self._body(name, job)
        except ResultsError as error:
            return unreadable_body(name, str(error), job)

    def study(self, name: str) -> StudyBody:
        """How one study stands; LookupError where there is none of that name."""
        return self._body(name, self._job_of(name))

    def cancel(self, name: str) -> StudyBody:
        """Ends a study that runs; finished trials are kept. StudyError where no job here runs it."""
        job = self._job_of(name)
        if job is None or job.state.over:
            raise StudyError(f"no job of this server runs study {name!r}")
        self._jobs.stop(job.id)
        return self._body(name, job)

    def resume(self, name: str, max_concurrent: int | None) -> StudyBody:
        """Goes on with a study where it was left; StudyError where it runs."""
        at_once = () if max_concurrent is None else ("--max-concurrent", str(max_concurrent))
        words_ = ("resume", name, "--results", self.root, *at_once)
        with self._starting:
            self._require_at_rest(name)
            job = self._jobs.start(Order(name, self.root, words_))
        return self._body(name, job)

    def _require_at_rest(self, name: str) -> None:
        """StudyError where the study runs, or has nothing to go on with."""
        job, store = self._job_of(name), self.store(name)
        about, state = store.about(), self._body(name, job).state
        if (job is not None and not job.state.over) or not state.ended:
            raise StudyError(f"study {name!r} is being run")
        if about.get("kind") == "bench":
            raise StudyError(f"study {name!r} measured a server that ran already: there is nothing to resume")
        if state is State.FINISHED and not _tries_again(store):
            raise StudyError(f"study {name!r} is finished: there is nothing to go on with")

    def store(self, name: str) -> ResultStore:
        """The study's results; LookupError where none are kept."""
        store = ResultStore(self.root, name)
        if not store.exists():
            raise LookupError(f"no study {name!r} is kept")
        return store

    def results(self, name: str) -> StudyResults:
        """The study's results as read from disk; LookupError where none are kept."""
        return self.store(name).read()

    def best(self, name: str) -> BestBody:
        """The best configuration so far; StudyError where no trial has finished."""
        found = self.results(name)
        answer = summary(found)
        if found.about.get("kind") == "bench" or answer.best is None:
            raise StudyError(f"study {name!r} has no configuration to recommend: {answer.reason}")
        return best_body(name, found, answer, answer.best)

    def log(self, name: str, *, job_output: bool, lines: int) -> str:
        """The last lines of the study's log, or of what its job printed; LookupError without either."""
        job = self._job_of(name)
        path = data_home() / "logs" / f"task_{ResultStore(self.root, name).study}.log"
        if not job_output and path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
        elif job is not None:
            text = self._jobs.output(job.id)
        else:
            raise LookupError(f"no log of study {name!r} lies on this machine")
        return "".join(text.splitlines(keepends=True)[-lines:])

    def _body(self, name: str, job: Job | None) -> StudyBody:
        store = ResultStore(self.root, name)
        if not store.exists():
            if job is None:
                raise LookupError(f"no study {name!r} is kept")
            stopped = job.state is JobState.STOPPED
            reason = "cancelled before it began" if stopped else self._why(job)
            return body_of_a_job(job, None, virtual=False, reason=reason)
        body = body_of(standing(store), job)
        if body.state is State.BROKEN and job is not None and job.state is JobState.FAILED:
            body = body.model_copy(update={"reason": self._why(job)})
        return self._with_answer(body, store) if body.state.ended else body

    def _why(self, job: Job) -> str:
        """What a job that failed said last; of one that ended well, that nothing of it is kept here."""
        if job.state is JobState.SUCCEEDED:
            return f"its job has ended, and kept no results in {self.root}"
        if job.state is not JobState.FAILED:
            return ""
        try:
            said = self._jobs.output(job.id).strip().splitlines()
        except TunerError:
            said = []
        return said[-1] if said else job.message

    def _with_answer(self, body: StudyBody, store: ResultStore) -> StudyBody:
        """With what came of it: the gain in a sentence, and the best by its repeats, not by its first run."""
        gain, best = self._answer(body, store)
        progress = body.progress and body.progress.model_copy(update={"best": best or body.progress.best})
        return body.model_copy(update={"gain": gain, "progress": progress})

    def _answer(self, body: StudyBody, store: ResultStore) -> tuple[str, TrialBody | None]:
        """Worked out once for each end of a study."""
        key = (body.study, body.updated_at)
        if key not in self._answers:
            self._answers[key] = _answer_of(store)
            while len(self._answers) > _MOST_REMEMBERED:
                self._answers.popitem(last=False)
        return self._answers[key]

    def _newest_jobs(self) -> dict[str, Job]:
        """By study its newest job, or an older one that goes on: it kept the newer out of the study."""
        newest: dict[str, Job] = {}
        for job in self._jobs.known(self.root):
            known = newest.setdefault(job.study, job)
            if known.state.over and not job.state.over:
                newest[job.study] = job
        return newest

    def _job_of(self, name: str) -> Job | None:
        return self._newest_jobs().get(name)

    def _new_name(self, task: Task) -> str:
        """As `tuner run` names a study; with a number where that is taken."""
        first = name = new_study_name(task.task_name)
        number = 2
        while ResultStore(self.root, name).exists() or self._job_of(name) is not None:
            name, number = f"{first}-{number}", number + 1
        return name


def _answer_of(store: ResultStore) -> tuple[str, TrialBody | None]:
    try:
        found = store.read()
        if found.about.get("kind") == "bench" or objective_of(found) is None or not len(found.trials):
            return "", None
        answer = summary(found)
    except TunerError as error:
        return str(error), None
    return sentences.gain_sentence(answer), None if answer.best is None else winner_body(answer.best)


def _tries_again(store: ResultStore) -> bool:
    """Whether a finished study has something to do when it goes on: what its machines failed."""
    return any(row["failure_cause"] in OF_THE_CLUSTER for row in store.new_trials(()))
