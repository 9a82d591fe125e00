"""The server's page in a real browser: what a person sees and does, with studies that are kept. No Ray."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from browser import CHROMIUM, MISSING, Page, browser
from serving import TOKEN, Served, served
from studies import make

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason=MISSING),
]
HOSTILE = "<img src=x onerror=\"document.title='owned'\">"
REFUSED = "status of 422"  # which Chromium writes to its console for every answer of the kind


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("page")
    make(
        name="measured",
        stopped=[5],
        repeats=[{"tp-size": 2}] * 2,
        description=HOSTILE,
        parameters={HOSTILE: [1, 2]},
    ).write(root)
    make(name="foreseen", simulated=True, seed=3).write(root)
    with served(root) as running:
        yield running


@pytest.fixture(scope="module")
def chromium() -> Iterator[Page]:
    with browser() as page:
        yield page


@pytest.fixture
def page(chromium: Page, server: Served) -> Iterator[Page]:
    """The list of studies, signed in; at the end, nothing was complained of and nothing hostile ran."""
    chromium.size(1200, 900)
    chromium.open("about:blank")
    chromium.complaints.clear()
    chromium.open(f"{server.url}#token={TOKEN}")
    chromium.wait_for("document.querySelector('.studies')")
    yield chromium
    assert [said for said in chromium.complaints if REFUSED not in said] == []
    assert chromium.run("document.title") == "autotuner"


def test_the_token_leaves_the_address_and_stays_in_the_tab(page: Page, server: Served) -> None:
    assert TOKEN not in page.run("location.href + document.documentElement.outerHTML + document.cookie")
    assert page.run("sessionStorage.getItem('token')") == TOKEN and page.run("localStorage.length") == 0
    page.run("sessionStorage.clear()")
    page.run("location.reload()")
    page.wait_for("document.querySelector('#token')")
    page.type("#token", TOKEN)
    page.click("form button")
    page.wait_for("document.querySelector('.studies')")
    page.complaints[:] = [said for said in page.complaints if "status of 401" not in said]


def test_the_list_says_how_studies_stand(page: Page) -> None:
    text = page.run("document.body.innerText")
    assert "measured" in text and "foreseen" in text and text.count("SIMULATED") == 1
    assert "interrupted" in text and "than the engine's defaults" in text


def test_a_study_is_shown_with_its_trials_and_its_best(page: Page, server: Served) -> None:
    page.click("a[href='#/studies/measured']")
    page.wait_for("document.querySelector('#launch')")
    trials = server.ask("studies/measured/trials").json
    failed = [trial for trial in trials if trial["failure_cause"]]
    again = [trial for trial in trials if trial["kind"] == "confirm"]
    assert page.run("document.querySelectorAll('#plot rect.again').length") == len(again) == 2
    drawn = page.run("document.querySelectorAll('#plot circle').length")
    assert drawn == len(trials) - len(failed) - len(again)
    assert page.run("document.querySelectorAll('#plot path.failed').length") == len(failed) > 0
    best = server.ask("studies/measured/best").json
    text = page.run("document.body.innerText")
    assert best["gain_text"] in text and "SIMULATED" not in text
    assert page.run("document.querySelector('#launch').textContent") == best["launch"]
    page.run(
        "(() => { const s = document.querySelector('#best select'); s.value = 'json';"
        " s.dispatchEvent(new Event('change')); })()"
    )
    page.wait_for("document.querySelector('#launch').textContent.startsWith('{')")


def test_the_report_opens_in_a_frame_without_rights(page: Page, server: Served) -> None:
    """It is drawn, and its tables sort; what a study holds runs nowhere."""
    page.open(f"{server.url}#/studies/foreseen")
    page.wait_for("document.querySelector('#launch')")  # which moves what stands below it
    page.click("#report")
    page.wait_for("document.querySelector('iframe')?.srcdoc.includes('SIMULATED')")
    frame = page.frame()
    page.wait_for("document.querySelectorAll('svg').length > 3", frame=frame)
    assert page.run("getComputedStyle(document.querySelector('h1')).margin", frame=frame) == "0px"
    assert page.run("document.querySelector('table.trials th').tabIndex", frame=frame) == 0  # its script ran
    refused = "(() => { try { return Boolean(sessionStorage) } catch { return false } })()"
    assert page.run(refused, frame=frame) is False
    page.open(f"{server.url}#/studies/measured")
    page.wait_for("document.querySelector('h1')?.textContent === 'measured'")
    page.wait_for("document.querySelector('#launch')")
    page.click("#report")
    page.wait_for("document.querySelector('iframe')?.srcdoc.includes('onerror')")


def test_a_wrong_task_is_shown_with_its_problems_and_a_right_one_starts(page: Page, server: Served) -> None:
    page.click("nav a[href='#/new']")
    page.wait_for("document.querySelector('#task')")
    page.type("#task", '{"optimisation": {}, "parameters": {"tp-size": []}}')
    page.click("form button:not([type=button])")
    page.wait_for("document.querySelectorAll('.problem').length === 2")
    text = page.run("document.querySelector('#said').innerText")
    assert "did you mean optimization?" in text and "parameters.tp-size" in text
    assert not server.jobs.orders

    task = {"task_name": "typed", "optimization": {"max_iterations": 2}}
    page.type("#task", json.dumps(task))
    page.click("form button.plain")
    page.wait_for_text("No problem found")
    page.click("form button:not([type=button])")
    page.wait_for("location.hash.startsWith('#/studies/typed-')")
    page.wait_for_text("Starting: the first trial is yet to come")
    (order,) = server.jobs.orders
    assert json.loads(order.files["task.json"]) == task
    page.click("#cancel")
    page.wait_for_text("cancelled before it began")


@pytest.mark.parametrize("path", ["#/", "#/new", "#/studies/measured", "#/studies/foreseen"])
def test_it_fits_a_phone(page: Page, server: Served, path: str) -> None:
    page.size(390, 800, mobile=True)
    page.open(f"{server.url}{path}")
    page.wait_for("document.querySelector('h1')")
    if "studies" in path:
        page.wait_for("document.querySelector('#launch')")
    assert page.run("document.documentElement.scrollWidth") <= 390
    smallest = (
        "Math.min(...[...document.querySelectorAll('main *')].filter(e => e.childElementCount === 0"
        " && e.getBoundingClientRect().height && e.textContent.trim()).map(e =>"
        " parseFloat(getComputedStyle(e).fontSize) * (e.ownerSVGElement ? e.getScreenCTM().a : 1)))"
    )
    assert page.run(smallest) >= 11


def test_the_pages_of_the_api_need_no_network(page: Page, server: Served) -> None:
    page.open(f"{server.url}docs")
    page.wait_for_text("Start a study of a task")
    assert page.run("performance.getEntriesByType('resource').every(e => e.name.startsWith(location.origin))")
    page.run("document.title = 'autotuner'")
