"""When trials and searches end: what loses is stopped, what may win is not, and a reason is given."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.stopping import IN_A_ROW, LEAST_TRIALS, EarlyStopping, SearchEnd

# --- trials --------------------------------------------------------------------------------------------


def seen(*finals: float, change: float = 0.3) -> EarlyStopping:
    """A rule that has seen trials to their end, whose loss grew by `change` in their second half."""
    rule = EarlyStopping()
    for final in finals:
        rule.finished({0.5: final - change, 1.0: final})
    return rule


def test_a_trial_that_is_far_behind_is_stopped_and_one_that_leads_is_not() -> None:
    rule = seen(1.0, 1.2, 1.1, 1.4, 1.3)
    assert rule.best == 1.0
    assert not rule.hopeless(0.5, 0.5)
    assert not rule.hopeless(0.5, 0.71)  # 1.01 in the end, which noise may turn round
    assert rule.hopeless(0.5, 0.9)


def test_nothing_is_stopped_before_enough_trials_were_seen_to_their_end() -> None:
    rule = seen(*[1.0] * (LEAST_TRIALS - 1))
    assert not rule.hopeless(0.5, 1e6)
    assert rule.expected(0.5, 1.0) is None
    rule.finished({0.5: 0.7, 1.0: 1.0})
    assert rule.hopeless(0.5, 1e6)
    assert not rule.hopeless(0.25, 1e6)  # nobody was seen there


def test_the_less_alike_trials_were_the_more_a_trial_has_to_be_behind() -> None:
    unlike = EarlyStopping()
    for number, change in enumerate((0.0, 0.6, 0.1, 0.5, 0.3)):
        unlike.finished({0.5: 1.0 + number - change, 1.0: 1.0 + number})
    assert seen(1.0, 2.0, 3.0, 4.0, 5.0).hopeless(0.5, 0.85)
    assert not unlike.hopeless(0.5, 0.85)
    assert unlike.hopeless(0.5, 2.0)


LOSSES = st.floats(-20, 20)


@given(st.lists(st.tuples(LOSSES, LOSSES), min_size=LEAST_TRIALS, max_size=12), LOSSES)
def test_what_is_expected_is_in_the_middle_and_stopping_agrees_with_it(
    curves: list[tuple[float, float]], loss: float
) -> None:
    rule = EarlyStopping()
    for half, whole in curves:
        rule.finished({0.5: half, 1.0: whole})
    found = rule.expected(0.5, loss)
    assert found is not None
    expected, lowest = found
    assert lowest < expected
    assert rule.hopeless(0.5, loss) == (lowest > rule.best)
    assert not rule.hopeless(0.5, loss) or expected > rule.best


# --- searches ------------------------------------------------------------------------------------------


class Clock:
    """Time that passes when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def run(end: SearchEnd, losses: list[float], *, gpus: int = 1, duration_s: float = 10.0) -> None:
    end.began()
    for loss in losses:
        end.ended(loss, gpus=gpus, duration_s=duration_s)


def test_without_a_rule_a_search_goes_on() -> None:
    end = SearchEnd()
    run(end, [1.0] * 100)
    for _ in range(10):
        end.expects(0.0)
    assert end.reason() == ""


def test_patience_counts_trials_since_the_last_better_one() -> None:
    end = SearchEnd(patience=3, least_gain=0.01)
    run(end, [1.0, 2.0, 0.5, 0.6, 0.495])  # the last is better, and by too little
    assert end.reason() == ""
    run(end, [0.7])
    assert end.reason() == "no better configuration in 3 trials"
    run(end, [0.4])
    assert end.reason() == ""


def test_small_steps_that_add_up_are_progress() -> None:
    end = SearchEnd(patience=2, least_gain=0.01)
    run(end, [1.0, 0.994, 0.988, 0.982, 0.976])  # each second one is better by more than 0.01
    assert end.reason() == ""


def test_it_ends_when_the_sampler_expects_little_several_times_in_a_row() -> None:
    end = SearchEnd(least_gain=0.01)
    for gain in [0.5, *[0.001] * (IN_A_ROW - 1), None, 0.02]:
        end.expects(gain)
        assert end.reason() == ""
    for _ in range(IN_A_ROW):
        assert end.reason() == ""
        end.expects(0.005)
    assert end.reason() == "the next trial is expected to gain less than 1 %"


def test_a_time_budget_leaves_room_for_the_repeats() -> None:
    clock = Clock()
    end = SearchEnd(max_time_s=100.0, repeats=4, clock=clock)
    assert end.reason() == ""
    run(end, [1.0, 2.0], duration_s=10.0)
    clock.now += 49.0
    assert end.reason() == ""
    clock.now += 2.0
    assert end.reason() == "another trial would pass optimization.max_time (100 s)"


@pytest.mark.parametrize(("at_once", "room_s"), [(1, 50.0), (2, 30.0), (3, 30.0), (4, 20.0), (8, 20.0)])
def test_repeats_that_run_side_by_side_need_less_time(at_once: int, room_s: float) -> None:
    clock = Clock()
    end = SearchEnd(max_time_s=100.0, repeats=4, clock=clock)
    run(end, [1.0, 2.0], duration_s=10.0)
    assert end.reason(at_once=at_once) == ""
    clock.now += 100.0 - room_s
    assert end.reason() == "", "though nothing runs at this moment"
    clock.now += 0.1
    assert end.reason() == "another trial would pass optimization.max_time (100 s)"


@pytest.mark.parametrize(("gpus", "trials"), [(1, 9), (4, 1), (0, 50)])
def test_gpu_hours_are_what_trials_hold(gpus: int, trials: int) -> None:
    end = SearchEnd(max_gpu_hours=1.0, repeats=1)
    done = 0
    while not end.reason() and done < 50:
        run(end, [1.0], gpus=gpus, duration_s=360.0)
        done += 1
    assert done == trials


def test_gpu_hours_leave_room_for_the_trials_that_run() -> None:
    end = SearchEnd(max_gpu_hours=1.0)
    run(end, [1.0], gpus=1, duration_s=600.0)
    assert end.reason(running=4) == ""
    assert end.reason(running=5) == "another trial would pass optimization.max_gpu_hours (1)"
