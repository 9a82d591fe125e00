"""Scores: what is optimised, what a broken promise costs, and the order that a sampler is taught."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tuner.failures import Cause, Failure, Stage
from tuner.metrics import Distribution, Metrics
from tuner.objective import FAILED_TIER, HARD_SLO_TIER, OBJECTIVES, Objective, Slo, SloTerm, score

LATENCIES = ("latency", "ttft", "tpot")
STATISTICS = ("mean", "p50", "p90", "p95", "p99")
RATES = ("input_tok_s", "output_tok_s", "goodput")

ANY_SECONDS = st.one_of(st.floats(1e-4, 100.0), st.floats(0, 1e300), st.sampled_from([0.0, 5e-324, 1e-300]))
DISTRIBUTIONS = st.builds(Distribution, *[ANY_SECONDS] * 5, n=st.integers(1, 100))
ANY_METRICS = st.builds(
    Metrics,
    latency=DISTRIBUTIONS,
    ttft=DISTRIBUTIONS,
    tpot=st.none() | DISTRIBUTIONS,
    duration_s=st.floats(1e-3, 1e6),
    requests_ok=st.integers(1, 1000),
    requests_failed=st.integers(0, 1000),
    input_tok_s=ANY_SECONDS,
    output_tok_s=ANY_SECONDS,
    goodput=ANY_SECONDS,
    gpus=st.integers(1, 4096),
)
TERMS = st.builds(
    SloTerm,
    latency=st.sampled_from(LATENCIES),
    statistic=st.sampled_from(STATISTICS),
    threshold_s=st.one_of(st.floats(1e-3, 10), st.floats(5e-324, 1e6)),
    weight=st.floats(0, 1e6),
    hard_fail=st.booleans(),
    fail_ratio=st.floats(0, 1e6),
)
SLOS = st.builds(Slo, st.lists(TERMS, max_size=4).map(tuple), st.floats(1e-3, 1e3))
LEVELS = st.lists(ANY_METRICS, min_size=1, max_size=3)
ANY_OBJECTIVE = st.sampled_from(list(OBJECTIVES.values()))
FAILURES = st.builds(
    Failure,
    stage=st.sampled_from(Stage),
    cause=st.sampled_from(Cause),
    detail=st.just(""),
    progress=st.floats(0, 1),
)


def distribution(mean: float, **others: float) -> Distribution:
    return Distribution(**{**dict.fromkeys(STATISTICS, mean), **others}, n=10)  # type: ignore[arg-type]


def metrics(**values: Any) -> Metrics:
    """Metrics in which nothing is remarkable, but for `values`."""
    usual: dict[str, Any] = {
        **{"latency": distribution(4.0), "ttft": distribution(0.5), "tpot": distribution(0.02)},
        **{"duration_s": 10.0, "requests_ok": 100, "requests_failed": 0},
        **{"input_tok_s": 600.0, "output_tok_s": 200.0, "goodput": 6.0, "gpus": 2},
    }
    return Metrics(**{**usual, **values})


def measured(objective: Objective, levels: Sequence[Metrics]) -> bool:
    return any(objective.value(level) is not None for level in levels)


def about(value: float) -> Any:
    return pytest.approx(value, rel=1e-12)


LATENCY, THROUGHPUT = OBJECTIVES["minimize_latency"], OBJECTIVES["maximize_throughput"]


# --- what is optimised ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "unit", "maximise"),
    [
        ("minimize_latency", 4.0, "s", False),
        ("minimize_ttft", 0.5, "s", False),
        ("minimize_tpot", 0.02, "s", False),
        ("maximize_throughput", 400.0, "tok/s/GPU", True),
        ("maximize_output_throughput", 100.0, "tok/s/GPU", True),
        ("maximize_goodput", 3.0, "requests/s/GPU", True),
    ],
)
def test_the_objectives(name: str, value: float, unit: str, maximise: bool) -> None:
    objective = OBJECTIVES[name]
    one = metrics(
        latency=distribution(4.0, p50=9.0, p99=9.0),
        ttft=distribution(0.5, p50=9.0),
        tpot=distribution(0.02, p90=9.0),
    )
    assert (objective.name, objective.unit, objective.maximise) == (name, unit, maximise)
    assert objective.value(one) == value
    assert (objective.unit_on(2), objective.unit_on(0)) == (unit, unit.removesuffix("/GPU"))
    assert objective.better(2.0, 1.0) is maximise and objective.better(1.0, 2.0) is not maximise
    assert not objective.better(1.0, 1.0)
    twice = score(objective, Slo(), [one, metrics(tpot=None, latency=distribution(8.0), gpus=1)])
    other = {"minimize_latency": 8.0, "minimize_tpot": 0.02, "minimize_ttft": 0.5}.get(name, 2 * value)
    assert twice.objective == twice.score == about((value + other) / 2)


def test_there_are_no_other_objectives() -> None:
    assert len(OBJECTIVES) == 6


def test_a_gain_is_the_share_taken_off_or_added() -> None:
    assert LATENCY.gain(best=3.0, baseline=4.0) == 0.25
    assert LATENCY.gain(best=5.0, baseline=4.0) == -0.25
    assert THROUGHPUT.gain(best=500.0, baseline=400.0) == 0.25
    assert THROUGHPUT.gain(best=300.0, baseline=400.0) == -0.25


# --- the penalty, by hand ------------------------------------------------------------------------------


def test_a_broken_promise_multiplies_a_latency() -> None:
    # p90 of 6 s against 5 s: violation 0.2, penalty 2·e^(0.2/0.1) = 14.7781, 4 s · 15.7781 = 63.1124 s
    slo = Slo((SloTerm("latency", "p90", 5.0, weight=2.0),), steepness=0.1)
    found = score(LATENCY, slo, [metrics(latency=distribution(4.0, p90=6.0))])
    assert (found.objective, found.slo.worst) == (4.0, "latency p90")
    assert found.slo.worst_violation == about(0.2)
    assert found.score == pytest.approx(63.11244, rel=1e-6)
    penalty = math.log(15.7781122)
    assert found.loss == pytest.approx(math.log(4.0) + penalty, rel=1e-6)
    assert (found.slo.met, found.slo.hard_failed) == (False, False)


def test_a_broken_promise_divides_a_throughput() -> None:
    # mean ttft of 0.6 s against 0.5 s: violation 0.2, penalty e^(0.2/0.4) = 1.648721, 400/2.648721 = 151.0163
    slo = Slo((SloTerm("ttft", "mean", 0.5),), steepness=0.4)
    found = score(THROUGHPUT, slo, [metrics(ttft=distribution(0.6))])
    assert found.score == pytest.approx(151.016279, rel=1e-6)
    penalty = math.log(2.6487213)
    assert found.loss == pytest.approx(-math.log(400.0) + penalty, rel=1e-6)


def test_penalties_add_up() -> None:
    # violations 0.5 and 1.0, steepness 0.5: 1·e^1 + 3·e^2 = 24.885450
    slo = Slo((SloTerm("latency", "p50", 2.0), SloTerm("tpot", "p99", 0.02, weight=3.0)), steepness=0.5)
    found = score(LATENCY, slo, [metrics(latency=distribution(3.0), tpot=distribution(0.04))])
    assert found.score == pytest.approx(3.0 * 25.885450, rel=1e-6)
    assert found.slo.log_penalty == pytest.approx(math.log(25.885450), rel=1e-6)
    assert found.slo.worst == "tpot p99"


@pytest.mark.parametrize("p90", [4.9, 5.0])
def test_a_promise_kept_to_the_letter_costs_nothing(p90: float) -> None:
    slo = Slo((SloTerm("latency", "p90", 5.0, weight=1e6, hard_fail=True, fail_ratio=0.0),))
    found = score(LATENCY, slo, [metrics(latency=distribution(4.0, p90=p90))])
    assert found.score == found.objective == 4.0
    assert found.loss == about(math.log(4.0))
    assert (found.slo.met, found.slo.hard_failed, found.slo.log_penalty) == (True, False, 0.0)
    assert found.slo.worst_violation <= 0


def test_a_promise_without_weight_is_broken_for_free() -> None:
    found = score(LATENCY, Slo((SloTerm("latency", "p90", 1.0, weight=0.0),)), [metrics()])
    assert (found.score, found.slo.met, found.slo.worst_violation) == (4.0, False, 3.0)


@pytest.mark.parametrize(("p90", "hard"), [(1.25, False), (1.5, False), (1.75, True)])
def test_beyond_the_fail_ratio_it_is_a_hard_failure(p90: float, hard: bool) -> None:
    term = SloTerm("latency", "p90", 1.0, hard_fail=True, fail_ratio=0.5)
    levels = [metrics(latency=distribution(1.0, p90=p90))]
    found, soft = (score(LATENCY, Slo((t,), 1.0), levels) for t in (term, replace(term, hard_fail=False)))
    assert (found.slo.hard_failed, soft.slo.hard_failed) == (hard, False)
    assert found.score == soft.score
    assert found.loss == about(soft.loss + (HARD_SLO_TIER if hard else 0))


def test_the_worst_load_level_counts() -> None:
    slo = Slo((SloTerm("latency", "p90", 5.0), SloTerm("ttft", "p90", 1.0)), 0.3)
    slow = metrics(latency=distribution(4.0, p90=6.0))
    late = metrics(ttft=distribution(0.5, p90=1.5))
    both = metrics(latency=distribution(4.0, p90=6.0), ttft=distribution(0.5, p90=1.5))
    fine = metrics()
    assert slo.judge([slow, fine]) == slo.judge([fine, slow]) == slo.judge([slow])
    assert slo.judge([slow, late, fine]) == slo.judge([both])
    assert slo.judge([both]).worst == "ttft p90"
    assert score(LATENCY, slo, [slow, fine]).score == about(4.0 * (1 + math.exp(0.2 / 0.3)))


def test_what_was_not_measured_breaks_every_promise_on_it() -> None:
    found = score(LATENCY, Slo((SloTerm("tpot", "p50", 1.0, hard_fail=True),)), [metrics(tpot=None)])
    assert (found.slo.met, found.slo.hard_failed, found.slo.worst_violation) == (False, True, math.inf)
    assert math.isfinite(found.loss)


def test_without_promises_they_are_all_kept() -> None:
    verdict = Slo().judge([metrics()])
    assert (verdict.met, verdict.hard_failed, verdict.worst, verdict.log_penalty) == (True, False, "", 0.0)


@pytest.mark.parametrize("objective", [LATENCY, THROUGHPUT], ids=lambda objective: objective.name)
def test_an_enormous_violation_overflows_nothing_and_still_has_an_order(objective: Objective) -> None:
    slo = Slo((SloTerm("latency", "p99", 1e-3, weight=1e6),), steepness=1e-3)
    losses, scores = [], []
    for p99 in (1e-2, 1.0, 1e3, 1e6, 1e300):
        found = score(objective, slo, [metrics(latency=distribution(4.0, p99=p99))])
        assert found.score is not None and math.isfinite(found.score)
        losses.append(found.loss)
        scores.append(found.score)
    assert losses == sorted(losses) and losses[-1] < HARD_SLO_TIER / 2
    assert losses[0] < losses[1] < losses[2]
    assert scores == sorted(scores, reverse=objective.maximise)


@pytest.mark.parametrize("objective", [LATENCY, THROUGHPUT])
@pytest.mark.parametrize("threshold_s", [0.25, 1.0])  # penalties of e^40 and more, and small ones
def test_loss_and_score_rank_alike(objective: Objective, threshold_s: float) -> None:
    slo = Slo((SloTerm("latency", "mean", threshold_s),), steepness=0.1)
    found = [
        score(objective, slo, [metrics(latency=distribution(latency), output_tok_s=rate)])
        for latency in (1.0, 1.2, 1.21)
        for rate in (90.0, 100.0)
    ]
    ordered = sorted(found, key=lambda one: one.loss)
    assert ordered == sorted(found, key=lambda one: one.score or 0.0, reverse=objective.maximise)
    for one in found:
        assert one.score is not None and one.slo.log_penalty <= 50
        assert abs(one.loss) == pytest.approx(abs(math.log(one.score)))


def test_nothing_measured_and_no_failure_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="at least one load level"):
        score(LATENCY, Slo(), [])


# --- any metrics whatever ------------------------------------------------------------------------------


@given(
    objective=ANY_OBJECTIVE, slo=SLOS, levels=st.lists(ANY_METRICS, max_size=3), failure=st.none() | FAILURES
)
def test_a_loss_is_always_finite(
    objective: Objective, slo: Slo, levels: list[Metrics], failure: Failure | None
) -> None:
    if failure is None and not measured(objective, levels):
        return
    found = score(objective, slo, levels, failure)
    assert math.isfinite(found.loss)
    assert found.slo.log_penalty >= 0
    for value in (found.objective, found.score):
        assert value is None or math.isfinite(value)


HARD = SloTerm("latency", "mean", 1.0, hard_fail=True, fail_ratio=0.0)


@given(objective=ANY_OBJECTIVE, slo=SLOS, levels=st.tuples(LEVELS, LEVELS, LEVELS), failure=FAILURES)
@example(
    objective=LATENCY,
    slo=Slo((SloTerm("ttft", "p50", 5e-324, weight=1e6),), 1e-3),
    levels=([metrics(latency=distribution(1e300))], [metrics(latency=distribution(2.0))], []),
    failure=Failure(Stage.LOAD, Cause.HANG, "", progress=1.0),
)
def test_failed_is_worse_than_a_hard_failure_is_worse_than_finished(
    objective: Objective,
    slo: Slo,
    levels: tuple[list[Metrics], list[Metrics], list[Metrics]],
    failure: Failure,
) -> None:
    finished, broken, failed = levels
    broken = [*broken, metrics(latency=distribution(2.0))]
    if not measured(objective, finished):
        return
    soft = Slo(tuple(replace(term, hard_fail=False) for term in slo.terms), slo.steepness)
    best_of_failed = score(objective, soft, failed, failure).loss
    hard = score(objective, Slo((*slo.terms, HARD), slo.steepness), broken)
    assert hard.slo.hard_failed
    assert best_of_failed >= FAILED_TIER > hard.loss > score(objective, soft, finished).loss


@given(
    objective=ANY_OBJECTIVE,
    slo=SLOS,
    levels=st.lists(ANY_METRICS, max_size=2),
    failures=st.tuples(FAILURES, FAILURES),
)
def test_who_came_further_failed_less(
    objective: Objective, slo: Slo, levels: list[Metrics], failures: tuple[Failure, Failure]
) -> None:
    one, other = sorted(failures, key=lambda f: (f.stage.rank, f.progress))
    less, more = (score(objective, slo, levels, failure).loss for failure in (one, other))
    if (one.stage.rank + one.progress) + 1e-9 < other.stage.rank + other.progress:
        assert less > more
    assert less >= more
    assert score(objective, slo, [], other).loss == more


@pytest.mark.parametrize("stage", Stage)
def test_every_finished_load_level_makes_a_failure_smaller(stage: Stage) -> None:
    losses = [
        score(LATENCY, Slo(), [], Failure(stage, Cause.CRASH, "", progress=k / 4)).loss for k in range(5)
    ]
    assert losses == sorted(losses, reverse=True) and len(set(losses)) == 5


def test_a_later_stage_makes_a_failure_smaller() -> None:
    losses = [score(LATENCY, Slo(), [], Failure(stage, Cause.CRASH, "")).loss for stage in Stage]
    assert losses == [2300.0, 2200.0, 2100.0]


@given(data=st.data(), objective=ANY_OBJECTIVE, slo=SLOS, levels=LEVELS, factor=st.floats(1.0, 1e6))
def test_a_worse_metric_never_improves_score_or_loss(
    data: st.DataObject, objective: Objective, slo: Slo, levels: list[Metrics], factor: float
) -> None:
    if not measured(objective, levels):
        return
    at = data.draw(st.integers(0, len(levels) - 1))
    level = levels[at]
    name = data.draw(st.sampled_from([*LATENCIES, *RATES]))
    if getattr(level, name) is None:
        return
    if name in RATES:
        worse = replace(level, **{name: getattr(level, name) / factor})
    else:
        statistic = data.draw(st.sampled_from(STATISTICS))
        distribution_ = getattr(level, name)
        value = min(getattr(distribution_, statistic) * factor, 1e300)
        worse = replace(level, **{name: replace(distribution_, **{statistic: value})})
    before = score(objective, slo, levels)
    after = score(objective, slo, [*levels[:at], worse, *levels[at + 1 :]])
    assert after.loss >= before.loss - 1e-9 * max(1.0, abs(before.loss))
    assert before.score is not None and after.score is not None
    if objective.maximise:
        assert after.score <= before.score * (1 + 1e-9)
    else:
        assert after.score >= before.score * (1 - 1e-9)
    assert after.slo.met <= before.slo.met
    assert after.slo.hard_failed >= before.slo.hard_failed


# --- goodput -------------------------------------------------------------------------------------------

GOODPUT = OBJECTIVES["maximize_goodput"]
BROKEN = Slo((SloTerm("ttft", "p95", 0.1),))


def test_goodput_is_not_penalised_for_what_it_leaves_out() -> None:
    seen = score(GOODPUT, BROKEN, [metrics()])
    assert seen.objective == seen.score == 3.0
    assert not seen.slo.met
    assert seen.loss == score(GOODPUT, Slo(), [metrics()]).loss


def test_where_nothing_kept_the_promises_the_nearer_is_the_better() -> None:
    far, near = (metrics(goodput=0.0, ttft=distribution(ttft)) for ttft in (0.9, 0.2))
    assert score(GOODPUT, BROKEN, [near]).loss < score(GOODPUT, BROKEN, [far]).loss < 1000
    assert score(GOODPUT, BROKEN, [metrics(goodput=1e-6)]).loss < score(GOODPUT, BROKEN, [near]).loss


def test_each_request_must_keep_the_loosest_promise_on_a_latency() -> None:
    terms = (SloTerm("ttft", "mean", 0.2), SloTerm("ttft", "p99", 1.0), SloTerm("tpot", "p50", 0.05))
    assert Slo(terms).of_each_request == {"ttft": 1.0, "tpot": 0.05}
