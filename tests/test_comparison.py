"""Studies side by side: what differs is named, noise is no difference, no verdict where none can be."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import studies
from click.testing import CliRunner
from rich.console import Console

from tuner.analysis.comparison import Comparison, compare, spread
from tuner.analysis.trials import at_levels
from tuner.cli import cli
from tuner.errors import ResultsError
from tuner.objective import SloTerm
from tuner.report import comparison_html, comparison_terminal
from tuner.results import StudyResults

CONFIGS = studies.grid(studies.PARAMETERS, 12)
REPEATS = [CONFIGS[0], {}, CONFIGS[0], {}]


def study(name: str, *, factor: float = 1.0, seed: int = 0, **options: object) -> studies.Made:
    """12 configurations and repeats of one, on an engine that takes `factor` times as long."""
    effect = options.pop("effect", lambda config: factor * studies.factor(config))
    options = {"configs": CONFIGS, "repeats": REPEATS, "fails": studies.never_fails, "drift": 0.01} | options
    return studies.make(name=name, seed=seed, effect=effect, **options)  # type: ignore[arg-type]


def of(*made: studies.Made) -> Comparison:
    return compare([each.results() for each in made])


def with_about(made: studies.Made, **about: object) -> StudyResults:
    results = made.results()
    return replace(results, about={**results.about, **about})


def on_terminal(found: Comparison, width: int = 80) -> str:
    sink = io.StringIO()
    Console(file=sink, width=width).print(comparison_terminal(found))
    return sink.getvalue()


class TestNoise:
    def test_the_same_study_twice_is_equal_in_everything(self) -> None:
        """All of 20 pairs of equal studies: what repeats of one differ by is no difference."""
        wrong = 0
        for seed in range(20):
            one, two = study("a", seed=2 * seed), study("b", seed=2 * seed + 1)
            (match,) = compare([with_about(each, seed=0) for each in (one, two)]).matches
            assert match.best is not None and match.overall is not None and len(match.shared) == 13
            wrong += match.best.certain + match.overall.certain
        assert wrong <= 3  # of 40 verdicts at 95 %

    def test_a_slower_engine_is_found_to_be_slower(self) -> None:
        slower = with_about(study("b", factor=1.25, seed=1), seed=0)
        (match,) = compare([study("a").results(), slower]).matches
        assert match.overall is not None and match.overall.certain
        assert match.overall.low is not None and match.overall.high is not None
        assert match.overall.low < -0.25 < match.overall.high < 0
        assert all(each.second > each.first for each in match.shared)

    def test_a_throughput_that_rises_is_better(self) -> None:
        first = study("a", objective="maximize_throughput")
        (match,) = of(first, study("b", objective="maximize_throughput", factor=0.8)).matches
        assert match.overall is not None and match.overall.share > 0.15 and match.overall.certain

    def test_other_prompts_widen_every_interval(self) -> None:
        """Prompts are the same for all of a study's trials, so that many trials do not average them out."""
        made = study("a", noise=0.6), study("b", noise=0.6)
        same = compare([each.results() for each in made]).matches[0]
        other = compare([made[0].results(), with_about(made[1], seed=99)]).matches[0]
        for one, two in ((same.best, other.best), (same.overall, other.overall)):
            assert one is not None and two is not None and one.share == two.share
            assert None not in (one.low, one.high, two.low, two.high)
            assert two.high - two.low > 1.2 * (one.high - one.low)  # type: ignore[operator]

    @pytest.mark.parametrize("objective", ["minimize_latency", "maximize_throughput", "maximize_goodput"])
    def test_a_load_level_of_other_prompts_counts_as_in_the_objective(self, objective: str) -> None:
        """The standard error is that of a bootstrap, where load levels are far apart."""
        made = study("a", objective=objective, levels=(1, 2, 4, 300), noise=0.6)
        side = of(made, study("b", objective=objective, levels=(1, 2, 4, 300))).sides[0]
        best = side.answer.best
        assert best is not None
        own = side.results.requests[side.results.requests["trial"] == best["trial"]]
        latencies = [level.to_numpy() for _, level in own.groupby("step")["e2e_s"]]
        values = at_levels(side.results, best).values()
        rng = np.random.default_rng(0)
        sums = np.zeros(4000)
        for level, value in zip(latencies, values, strict=True):
            ratio = rng.choice(level, (4000, len(level))).mean(axis=1) / level.mean()
            sums += value / ratio if objective.startswith("maximize") else value * ratio
        assert side.prompts_error == pytest.approx(float(np.log(sums).std()), rel=0.1)

    def test_without_repeats_a_small_difference_is_none(self) -> None:
        first, second = (
            study("a", repeats=[], noise=0.0, drift=0.0),
            study("b", repeats=[], noise=0.0, drift=0.0),
        )
        third = study("c", repeats=[], noise=0.0, drift=0.0, factor=1.1)
        small, large, _ = of(first, second, third).matches
        assert small.best is not None and not small.best.certain and small.best.low is None
        assert (
            large.best is not None
            and large.best.certain
            and large.best.share == pytest.approx(-0.1, abs=0.01)
        )


class TestWhatCompares:
    @pytest.mark.parametrize(
        ("other", "named"),
        [
            (study("b", levels=(4, 16)), "load: num_concurrency"),
            (study("b", objective="minimize_ttft"), "objective"),
            (study("b", terms=[SloTerm("ttft", "p99", 0.5)]), "SLOs"),
            (study("b", simulated=True), "kind of measurement"),
        ],
    )
    def test_another_question_gets_no_verdict_but_its_table(self, other: studies.Made, named: str) -> None:
        found = of(study("a"), other)
        (match,) = found.matches
        assert any(obstacle.startswith(named) for obstacle in match.obstacles)
        assert match.best is None and match.overall is None and not match.shared
        text = on_terminal(found)
        assert "no verdict" in text and "What each found" in text and named in text
        assert "better" not in text and "worse" not in text

    def test_two_models_have_names_and_tokenizers_of_their_own(self) -> None:
        made = [study("a"), study("b")]
        for each, model in zip(made, ("llama", "qwen"), strict=True):
            own = {"model_name": model, "model_tokenizer": f"/models/{model}"}
            each.about["task"]["benchmark"] = {**each.about["task"].get("benchmark", {}), **own}
        found = of(*made)
        (match,) = found.matches
        assert not match.obstacles and match.best is not None
        assert "model_tokenizer" in on_terminal(found)

    def test_other_engines_share_no_configuration(self) -> None:
        found = compare([study("a").results(), with_about(study("b"), engine="vllm")])
        (match,) = found.matches
        assert not match.obstacles and match.best is not None and not match.shared
        assert "The engines differ" in on_terminal(found)

    def test_what_differs_is_named_and_what_does_not_is_not(self) -> None:
        other = study("b", parameters={**studies.PARAMETERS, "tp-size": [1, 2, 4]})
        other.about["task"]["model"]["id_or_path"] = "qwen"
        for trial in other.trials:
            trial["gpu_model"] = "NVIDIA H200"
        found = compare([study("a").results(), with_about(other, engine_version="0.6.0")])
        assert set(found.differences) == {"model", "engine version", "GPU", "space: tp-size"}
        assert found.differences["GPU"] == ("not known", "NVIDIA H200")

    def test_spends_what_trials_took_on_their_gpus(self) -> None:
        made = study("a")
        (side, _) = of(made, study("b")).sides
        assert side.gpu_s == pytest.approx(sum(t["duration_s"] * t["gpus"] for t in made.trials))

    def test_a_study_without_a_best_is_shown(self) -> None:
        found = of(study("a"), study("b", fails=lambda _: studies.Cause.CRASH, repeats=[]))
        assert "One of them has no best configuration" in on_terminal(found)
        assert found.sides[1].answer.best is None

    def test_a_study_of_which_no_request_kept_the_slos_is_shown(self) -> None:
        goodput = {"objective": "maximize_goodput", "terms": [SloTerm("ttft", "p95", 1e-9)], "repeats": []}
        found = of(study("a", **goodput), study("b", **goodput))
        assert found.sides[0].answer.best is not None and found.sides[0].answer.best["objective"] == 0
        (match,) = found.matches
        assert not match.obstacles and match.best is None and not match.shared
        for text in (" ".join(on_terminal(found).split()), comparison_html(found)):
            assert "No request of one of them kept the SLOs" in text

    def test_a_study_without_a_trial_is_shown(self) -> None:
        empty = study("b", configs=[], repeats=[], baseline=False, objective="maximize_throughput")
        found = of(study("a", objective="maximize_throughput"), empty)
        for text in (on_terminal(found), comparison_html(found)):
            assert "One of them has no best configuration" in text

    def test_what_is_simulated_says_so(self) -> None:
        both = of(study("a", simulated=True), study("b", simulated=True))
        one = of(study("a", simulated=True), study("b"))
        for found, said in ((both, "SIMULATED: "), (one, "a: SIMULATED: ")):
            assert on_terminal(found).startswith(said)
            assert f'<p class="simulated">{said}' in comparison_html(found)

    def test_one_study_is_no_comparison(self) -> None:
        with pytest.raises(ResultsError, match="two studies"):
            of(study("a"))

    def test_an_interval_is_of_repeats_or_of_requests(self) -> None:
        (repeated, once) = of(study("a"), study("b", repeats=[])).sides
        found = spread(repeated, repeated.answer.best)
        assert found is not None and found.basis == "repeats"
        assert repeated.answer.best is not None
        assert found.low < repeated.answer.best["objective"] < found.high
        steps = once.results.steps
        steps["latency_ci95_s"] = 0.05
        found = spread(once, once.answer.best)
        assert found is not None and found.basis == "requests"


class _Text(HTMLParser):
    """A page's tags and what one sees."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.visible = ""
        self._within = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._within = tag

    def handle_data(self, data: str) -> None:
        if self._within not in ("script", "style"):
            self.visible += data


class TestShown:
    def test_fits_a_terminal(self) -> None:
        text = on_terminal(of(study("llama-3-1-8b-on-h100-20260101"), study("llama-3-1-8b-on-h200-20260102")))
        assert max(map(len, text.splitlines())) <= 80

    def test_is_a_page_that_needs_nothing_else_and_escapes_what_tasks_wrote(self) -> None:
        attack = "<script>alert('x')</script>"
        other = study("b")
        other.about["task"]["model"]["id_or_path"] = attack
        other.about["engine_version"] = attack
        configs = [{**config, attack: attack} for config in CONFIGS]
        third = study(attack, configs=configs, repeats=[])
        page = comparison_html(compare([study("a").results(), other.results(), third.results()]))
        assert "<script>alert" not in page and "http" not in page.replace("http-equiv", "").replace(
            "http://www.w3.org", ""
        )
        found = _Text(page)
        assert found.tags.count("script") == 1
        assert attack in found.visible and "13 configurations that both measured" in found.visible

    def test_on_the_command_line(self, tmp_path: Path) -> None:
        study("first").write(tmp_path)
        study("second", factor=1.3).write(tmp_path)
        words = ["compare", "first", "second", "--results", str(tmp_path)]
        shown = CliRunner().invoke(cli, [*words, "--html", str(tmp_path / "page" / "both.html")])
        assert shown.exit_code == 0 and "worse" in shown.output
        assert "second against first" in (tmp_path / "page" / "both.html").read_text()
        told = json.loads(CliRunner().invoke(cli, [*words, "--json"]).output)
        assert [each["study"] for each in told["studies"]] == ["first", "second"]
        assert told["pairs"][0]["overall"]["certain"] is True
        assert len(told["pairs"][0]["shared"]) == 13

    def test_two_studies_have_to_be_named(self, tmp_path: Path) -> None:
        study("first").write(tmp_path)
        for names, said in (
            (["first"], "Error: name two studies"),
            (["first"] * 2, "first is named twice"),
        ):
            done = CliRunner().invoke(cli, ["compare", *names, "--results", str(tmp_path)])
            assert done.exit_code == 2 and said in done.output
