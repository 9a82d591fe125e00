"""Fitting constants: a traced run timed anew is the run simulated anew, and known constants are found."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.engines.simulator.constants import DEFAULT, FITTED_NAMES, MOST, Constants
from tuner.engines.simulator.cost import Parts
from tuner.engines.simulator.fit import GUESS, Latencies, Run, fit, held_out, mean_errors
from tuner.engines.simulator.virtual import ClosedLoop, build, closed_loop

UNKNOWN = Latencies(None, None, None)


def simulate(
    flags: str, constants: Constants, *, streams: int = 8, length: int = 200, output: int = 30
) -> tuple[ClosedLoop, list[tuple[float, Parts]]]:
    argv = ["--model-path", "llama-3.1-8b", "--noise", "0", *flags.split()]
    _, _, scheduler = build(argv, constants)
    load = [(tuple((i, j) for j in range(length)), output) for i in range(3 * streams)]
    trace: list[tuple[float, Parts]] = []
    return closed_loop(scheduler, load, streams, trace), trace


def run(flags: str, constants: Constants, measured: Latencies = UNKNOWN, **load: int) -> Run:
    loop, trace = simulate(flags, constants, **load)
    requests = [(r.sent_s, r.sent_s + r.ttft_s, r.sent_s + r.e2e_s, r.output_tokens) for r in loop.served]
    return Run.of(trace, requests, constants, measured, flags=flags, tp=flags[-1:])


def measured(flags: str, truth: Constants, **load: int) -> Latencies:
    loop, _ = simulate(flags, truth, **load)
    return Latencies(loop.ttft_s, loop.tpot_s, loop.e2e_s)


others = st.builds(
    lambda factors: replace(
        DEFAULT,
        **{
            name: min(MOST[name], getattr(DEFAULT, name) * factor)
            for name, factor in zip(FITTED_NAMES, factors, strict=True)
        },
    ),
    st.tuples(*[st.floats(0.3, 3)] * len(FITTED_NAMES)),
)


@settings(max_examples=30)
@given(
    others,
    st.sampled_from(
        ["", "--tp-size 4", "--quantization fp8", "--enable-mixed-chunk --chunked-prefill-size 512"]
    ),
)
def test_timing_a_trace_anew_is_simulating_it_anew(constants: Constants, flags: str) -> None:
    again = measured(flags, constants)
    timed = run(flags, DEFAULT).simulated(constants)
    assert timed.ttft == pytest.approx(again.ttft)
    assert timed.tpot == pytest.approx(again.tpot)
    assert timed.e2e == pytest.approx(again.e2e)


LOADS = [
    (f"{kind} --tp-size {tp}".strip(), {"streams": streams, "length": length})
    for kind, tp, (streams, length) in product(
        ("", "--quantization fp8"), (1, 2, 4), ((1, 200), (64, 100), (16, 3000))
    )
]
TRUTH = replace(DEFAULT, gemm=0.45, memory=0.6, allreduce_s=2e-5, prefill_layer_s=3e-4, request_s=6e-5)


def test_the_constants_that_made_the_figures_are_found() -> None:
    runs = [run(flags, DEFAULT, measured(flags, TRUTH, **load), **load) for flags, load in LOADS]
    before = mean_errors(each.errors(DEFAULT) for each in runs)
    fitted = fit(runs, DEFAULT, sd=1.0)
    after = mean_errors(each.errors(fitted) for each in runs)
    for name in FITTED_NAMES:
        assert getattr(fitted, name) == pytest.approx(getattr(TRUTH, name), rel=0.15), name
    assert all(after[name] < before[name] / 10 for name in before)


def test_errors_of_what_was_held_out_are_those_of_a_fit_without_it() -> None:
    runs = [run(flags, DEFAULT, measured(flags, TRUTH, **load), **load) for flags, load in LOADS]
    folds = [each.labels["tp"] for each in runs]
    errors = held_out(runs, folds, DEFAULT)
    alone = fit([each for each, fold in zip(runs, folds, strict=True) if fold != "4"], DEFAULT)
    assert [e for e, fold in zip(errors, folds, strict=True) if fold == "4"] == [
        each.errors(alone) for each, fold in zip(runs, folds, strict=True) if fold == "4"
    ]


def test_what_runs_do_not_tell_stays_as_it_was() -> None:
    """One GPU knows nothing of all-reduces, 16-bit weights nothing of fp8."""
    fitted = fit([run("", DEFAULT, measured("", TRUTH))], GUESS)
    assert fitted.allreduce_s == pytest.approx(GUESS.allreduce_s)
    assert fitted.fp8_gemm == pytest.approx(GUESS.fp8_gemm, rel=1e-3)
    assert fitted != GUESS


def test_latencies_that_were_not_measured_do_not_count() -> None:
    half = run("", DEFAULT, Latencies(None, 0.01, None))
    assert half.errors(DEFAULT).keys() == {"tpot"}
    assert mean_errors([half.errors(DEFAULT)]).keys() == {"tpot"}


def test_the_documents_table_of_constants_is_the_simulators() -> None:
    text = (Path(__file__).parent.parent / "docs" / "simulator.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([\d.e-]+) \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    described = [(c.name, c.default, c.metadata["what"], c.metadata["source"]) for c in fields(Constants)]
    assert [(name, float(value), what, source) for name, value, what, source in rows] == described
