"""The report on the terminal and as a page: the answer comes first, nothing is claimed that is not so."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import studies
from matplotlib.image import imread
from rich.console import Console

from tuner import analysis, report
from tuner.failures import Cause
from tuner.objective import OBJECTIVES, SloTerm
from tuner.report import sentences, words
from tuner.results import StudyResults

LAUNCH = "python -m sglang.launch_server --model-path llama --tp-size 2"
ATTACK = "<script>alert('x')</script>&\"$\\frac{"


def _continuous() -> studies.Made:
    rng = np.random.default_rng(0)
    configs = [
        {"mem-fraction-static": float(x), "enable-mixed-chunk": bool(x > 0.7)}
        for x in rng.uniform(0.5, 0.9, 15)
    ]
    space = {
        "mem-fraction-static": {"type": "float", "low": 0.5, "high": 0.9},
        "enable-mixed-chunk": {"type": "boolean"},
    }
    return studies.make(configs, parameters=space)


STUDIES = {
    "plain": studies.make(),
    "simulated": studies.make(simulated=True, stopped=[3]),
    "throughput": studies.make(objective="maximize_throughput"),
    "slos met by some": studies.make(terms=[SloTerm("latency", "p90", 0.8)]),
    "slos met by none": studies.make(terms=[SloTerm("ttft", "p99", 0.001), SloTerm("latency", "mean", 0.1)]),
    "hard slo failures": studies.make(terms=[SloTerm("latency", "p90", 0.5, hard_fail=True)]),
    "no baseline": studies.make(baseline=False),
    "baseline failed": studies.make(fails=lambda config: None if config else Cause.CRASH),
    "no gain": studies.make(effect=lambda _: 1.0),
    "continuous": _continuous(),
    "one parameter": studies.make([{"tp-size": 1}, {"tp-size": 2}]),
    "one trial": studies.make([]),
    "nothing finished": studies.make(fails=lambda _: Cause.OUT_OF_MEMORY),
    "no trial": studies.make([], baseline=False),
}


def on_terminal(results: StudyResults, launch: str | None = LAUNCH, width: int = 80) -> str:
    sink = io.StringIO()
    Console(file=sink, width=width).print(report.terminal(results, launch))
    return sink.getvalue()


@cache
def page_of(name: str) -> str:
    """The page of a study, with a launch command where there is something to launch."""
    results = STUDIES[name].results()
    return report.html(results, None if analysis.summary(results).best is None else LAUNCH)


class _Page(HTMLParser):
    """Collects a page's tags, its links, and its visible text."""

    VOID = ("meta", "br", "img", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.visible = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.visible += data


@pytest.mark.parametrize("name", STUDIES)
class TestEveryStudy:
    def test_fits_a_terminal(self, name: str) -> None:
        lines = on_terminal(STUDIES[name].results()).splitlines()
        assert max(map(len, lines)) <= 80
        assert ("SIMULATED" in lines[0]) is (name == "simulated")

    def test_is_a_page_that_needs_nothing_else(self, name: str) -> None:
        text = page_of(name)
        page = _Page(text)
        assert page.open == [] and page.tags.count("script") == 1
        assert all(link.startswith("#") for link in page.links)
        assert "@import" not in text and not re.search(r"url\((?!#)", text)
        assert ("SIMULATED" in page.visible) is (name == "simulated")
        assert "nan" not in page.visible.lower()

    def test_plots_are_well_formed_and_named(self, name: str) -> None:
        text = page_of(name)
        drawn = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
        for svg in drawn:
            root = ElementTree.fromstring(svg)
            assert root.get("aria-label") and root.get("viewBox") and root.get("width") is None
        if name == "plain":  # of three kinds of latency, four parameters, six pairs; one tells of failures
            sections = re.findall(r'aria-label="([a-z]+): ', "".join(drawn))
            assert Counter(sections) == {"search": 4, "requests": 3, "effect": 4, "pair": 6, "failures": 1}


class TestAnswer:
    def test_comes_first_on_both(self) -> None:
        results = STUDIES["plain"].results()
        best = analysis.summary(results).best
        assert best is not None
        for text in (on_terminal(results), _Page(page_of("plain")).visible):
            places = [
                text.index(part)
                for part in (f"Best: trial {best['trial']}", "tp-size=2", "Objective", "Gain")
            ]
            assert places == sorted(places)
            assert "default 0.88" in text
            assert "launch_server" in text
            assert "% less [95 %:" in " ".join(text.split())

    def test_says_plainly_that_there_is_no_gain(self) -> None:
        results = STUDIES["no gain"].results()
        for text in (on_terminal(results), report.html(results, LAUNCH)):
            assert "No significant gain over the engine's defaults" in " ".join(
                text.replace("&#x27;", "'").split()
            )

    def test_names_no_best_where_none_finished(self) -> None:
        for name in ("nothing finished", "no trial", "hard slo failures"):
            for text in (on_terminal(STUDIES[name].results(), None), _Page(page_of(name)).visible):
                assert "No best configuration" in text and "Launch" not in text

    def test_says_which_slo_is_missed(self) -> None:
        assert "nearest is trial 17: latency p90 754 ms, promised 500 ms" in " ".join(
            on_terminal(STUDIES["hard slo failures"].results()).split()
        )

    def test_says_the_highest_load_that_was_looked_for(self) -> None:
        results = studies.make().results()
        assert "Max load" not in on_terminal(results)
        results.trials["max_load"] = 34.0
        results.trials.loc[0, "max_load"] = 20.0
        for text in (on_terminal(results), _Page(report.html(results, None)).visible):
            assert "34 at a time within the SLOs (engine's defaults: 20 at a time)" in text

    def test_says_what_the_gpus_drew(self) -> None:
        results = studies.make().results()
        assert "per output token" not in on_terminal(results)
        tokens = results.steps["output_tok_s"] * results.steps["duration_s"]
        results.steps["gpu_energy_j"] = 2.0 * tokens
        results.steps.loc[results.steps["trial"] == 0, "gpu_energy_j"] = 3.0 * tokens
        results.steps["gpu_memory_max_bytes"], results.steps["gpu_memory_max_share"] = 60.0 * 2**30, 0.75
        best = analysis.summary(results).best
        assert best is not None
        own = results.steps[results.steps["trial"] == best["trial"]]
        watts = words.digits(own["gpu_energy_j"].sum() / own["duration_s"].sum())
        said = f"2.00 J per output token, {watts} W, 60.0 GiB in use at most (75.0 %)"
        said += " (engine's defaults: 3.00 J)"
        for text in (on_terminal(results), _Page(report.html(results, None)).visible):
            assert said in " ".join(text.split())

    def test_counts_failures_by_cause(self) -> None:
        assert re.search(r"25\s+failed: out of memory", on_terminal(STUDIES["nothing finished"].results()))

    def test_names_unreadable_files(self) -> None:
        results = replace(STUDIES["one trial"].results(), skipped=("trials/00003.parquet: cut short",))
        assert "1 result file" in on_terminal(results)
        assert "trials/00003.parquet: cut short" in report.html(results, None)


class TestPage:
    def test_escapes_everything_that_others_wrote(self) -> None:
        made = studies.make(
            [{"tp-size": 1, ATTACK: ATTACK}, {"tp-size": 2, ATTACK: "b"}] * 5,
            name=ATTACK,
            description=ATTACK,
            parameters={ATTACK: [ATTACK, "b"]},
            fails=lambda config: (
                Cause.CRASH if config.get("tp-size") == 2 and config[ATTACK] == "c" else None
            ),
        )
        said = dict.fromkeys(("failure_detail", "failure_evidence"), ATTACK)
        for trial in made.trials[1:3]:
            trial.update(said, failure_cause="crash", command=json.dumps([ATTACK]))
        made.about.update(engine=ATTACK, engine_version=ATTACK, seed=ATTACK)
        made.about["task"]["model"]["id_or_path"] = ATTACK
        for step in made.steps:
            step["scenario"] = ATTACK
        text = report.html(replace(made.results(), skipped=(ATTACK,)), ATTACK)
        assert "<script>alert" not in text
        page = _Page(text)
        assert page.tags.count("script") == 1 and page.open == []
        assert page.visible.count(ATTACK) > 10

    def test_shows_every_trial_and_the_engines_last_words(self) -> None:
        text = page_of("plain")
        assert text.count('<tr class="') == 25
        assert text.count('<tr class="best">') == text.count('<tr class="baseline">') == 1
        assert "torch.OutOfMemoryError" in text

    def test_holds_the_task(self) -> None:
        made = STUDIES["plain"]
        visible = _Page(page_of("plain")).visible
        assert json.dumps(made.about["task"], indent=2) in visible

    def test_is_the_same_each_time(self) -> None:
        assert report.html(STUDIES["plain"].results(), LAUNCH) == page_of("plain")

    def test_slo_line_and_units_are_on_the_plots(self) -> None:
        text = page_of("slos met by some")
        for label in (
            "SLO latency p90",
            "latency p90 (ms)",
            "input + output tok/s per GPU",
            "mean latency (ms)",
            "finished, SLO broken",
            "time since the start (min)",
            "variance of log(score) explained (%)",
            "requests (%)",
        ):
            assert label in text

    def test_what_was_not_measured_is_blank(self) -> None:
        """A map draws a rectangle for each cell with a value, and a text in it; none for the others."""
        made = studies.make(
            [{"a": a, "b": b} for a, b in [(1, 1), (1, 2), (2, 1), (3, 3)] * 3], name="blank", parameters={}
        )
        text = report.html(made.results(), None)
        (drawn,) = re.findall(r'<svg role="img" aria-label="pair: b by a".*?</svg>', text, flags=re.DOTALL)
        cells = re.findall(r'<path d=[^>]*?style="fill: #[0-9a-f]{6}; stroke: var\(--paper\)', drawn)
        texts = re.findall(r"<text[^>]*>([\d,.]+)</text>", drawn)
        assert len(cells) == 4
        assert len(texts) == 4 + 3 + 3  # and the values along either axis

    def test_says_what_random_search_and_a_grid_would_take(self) -> None:
        visible = " ".join(_Page(page_of("plain")).visible.split())
        assert re.search(r"24 random trials of the whole space would be expected to find, \d+ ms", visible)
        assert "A grid would take 80 trials" in visible
        assert "it has a continuous parameter" in " ".join(_Page(page_of("continuous")).visible.split())

    def test_the_time_line_has_the_nodes_and_gpus(self) -> None:
        assert "node-1 GPU 0" in page_of("plain") and "node-1 GPU 1" in page_of("plain")
        made = studies.make()
        for trial in made.trials:
            trial["gpu_ids"], trial["node"] = [], None
        assert "GPU 0" not in report.html(made.results(), None)

    def test_a_promise_of_a_percentile_is_on_the_distributions(self) -> None:
        text = page_of("slos met by some")
        drawn = re.findall(r'<svg role="img" aria-label="requests: .*?</svg>', text, flags=re.DOTALL)
        assert ["SLO latency p90" in svg for svg in drawn] == [False, False, True]
        assert all("best, n = " in svg and "defaults, n = 40" in svg for svg in drawn)

    def test_five_hundred_trials_are_one_file_of_two_megabytes(self) -> None:
        grid = studies.grid(studies.PARAMETERS, 80)
        configs = [{**config, "more": k, "other": k % 3} for k in range(7) for config in grid]
        text = report.html(studies.make(configs[:500], requests=5).results(), LAUNCH)
        assert text.count('<tr class="') == 501
        assert len(text.encode()) < 2_000_000


class TestPictures:
    @pytest.mark.parametrize("name", ["plain", "throughput", "continuous", "slos met by none", "one trial"])
    def test_are_images_that_show_something(self, name: str) -> None:
        drawn = report.pictures(STUDIES[name].results())
        assert drawn
        for title, content in drawn.items():
            assert re.fullmatch(r"[a-z0-9-]+", title)
            image = imread(io.BytesIO(content), format="png")
            height, width = image.shape[:2]
            assert 600 < width < 1100 and 300 < height < 1400
            dark = (image[:, :, :3].min(axis=2) < 0.7).mean()
            assert 0.005 < dark < 0.9, title

    def test_have_the_names_of_what_they_show(self) -> None:
        names = set(report.pictures(STUDIES["plain"].results()))
        assert {"search-convergence", "search-what-matters", "effect-tp-size", "requests-ttft"} <= names
        assert "pair-chunked-prefill-size-by-tp-size" in names

    def test_titles_that_others_wrote_make_safe_and_different_names(self) -> None:
        made = studies.make([{"../a": 1, "..-a": k} for k in range(9)] + [{"../a": 2, "..-a": 3}])
        names = [name for name in report.pictures(made.results()) if name.startswith("effect")]
        assert sorted(names) == ["effect-a", "effect-a-2"]


class TestWords:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (0, "0"),
            (0.01234, "0.0123"),
            (1.5, "1.50"),
            (41.26, "41.3"),
            (1234.5, "1,234"),
            (-2.5, "-2.50"),
            (1e12, "1.0e+12"),
            (float("nan"), "–"),
            (float("inf"), "–"),
        ],
    )
    def test_digits(self, value: float, text: str) -> None:
        assert words.digits(value) == text

    def test_trimmed_digits(self) -> None:
        assert [words.digits(x, trim=True) for x in (20.0, 0.5, 100.0, 0.0)] == ["20", "0.5", "100", "0"]

    def test_a_minus_is_a_minus_and_zero_has_none(self) -> None:
        assert [words.percent(share) for share in (-0.123, -0.0001, 0.5)] == ["−12.3 %", "0.0 %", "50.0 %"]

    def test_durations(self) -> None:
        assert [words.duration(s) for s in (48, 720, 7500)] == ["48 s", "12 min", "2 h 05 min"]

    def test_latencies_are_milliseconds_and_rates_are_not(self) -> None:
        assert words.unit_of(STUDIES["plain"].results()).amount(0.412) == "412 ms"
        assert words.unit_of(STUDIES["throughput"].results()).name == OBJECTIVES["maximize_throughput"].unit

    def test_defaults_are_found_in_either_spelling(self) -> None:
        baseline = {"effective_args": {"tp_size": 1, "mem-fraction-static": 0.9}}
        assert words.against_default("tp-size", 2, baseline) == "default 1"
        assert words.against_default("mem-fraction-static", 0.9, baseline) == "as by default"
        assert words.against_default("other", 1, baseline) == words.against_default("tp-size", 2, None) == ""

    def test_a_command_is_broken_only_where_that_is_safe(self) -> None:
        assert words.copyable(LAUNCH).split(" \\\n    ") == LAUNCH.replace(" --", "\0--").split("\0")
        quoted = 'serve --args \'{"a": "b --c"}\''
        assert words.copyable(quoted) == quoted


def test_what_is_worse_and_keeps_the_promises_has_its_interval_the_same_way_round() -> None:
    answer = analysis.summary(studies.make().results())
    worse = analysis.Gain(-0.05, -0.08, -0.02, 3, 3)
    told = sentences.gain_sentence(
        replace(answer, gain=worse, verdict=analysis.Verdict.BETTER, reason="It meets the SLOs.")
    )
    assert told.startswith("5.0 % more [95 %: 2.0 % to 8.0 %] than the engine's defaults.")


@pytest.mark.parametrize("lost", ["best", "best and defaults"])
def test_a_page_is_made_where_load_levels_of_the_best_cannot_be_read(lost: str) -> None:
    results = studies.make(terms=[SloTerm("latency", "p90", 0.8)]).results()
    best = analysis.summary(results).best
    assert best is not None
    missing = [best["trial"], *([0] if "defaults" in lost else [])]
    steps = results.steps[~results.steps["trial"].isin(missing)]
    assert "Best" in report.html(replace(results, steps=steps), LAUNCH)
