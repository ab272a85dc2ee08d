"""MLflow's UI shows, in a real browser, what a small sweep has recorded."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Response, TimeoutError, expect, sync_playwright
from waymark import __version__, api
from waymark.comparison import view
from waymark.sweeps.multirun import SweepResult
from waymark.tracking.opening import open_store

from tests.support.processes import BOUND, answers, free_port, poll

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, PROGRAMS)), None)

STEPS = 40  # all of them are drawn: a chart takes 320 points at most
RATES = ["0.0003", "0.001", "0.003", "0.01"]
NAMES = ["lr=3e-4", "lr=1e-3", "lr=3e-3", "lr=0.01"]
RATE, LOSS, ACCURACY = "optimizer.learning_rate", "train/loss", "test/accuracy"
OBJECTIVE = "restored/accuracy"

# What Plotly has drawn: each curve's name and values; each axis of parallel coordinates.
CURVES = """() => Object.values(Object.fromEntries(
    [...document.querySelectorAll(".js-plotly-plot")]
        .flatMap(plot => plot.data ?? [])
        .filter(trace => trace.type === "scatter")
        .map(trace => [trace.name, [trace.name, Array.from(trace.y)]])))"""
AXES = """() => [...document.querySelectorAll(".js-plotly-plot")]
    .flatMap(plot => plot.data ?? [])
    .flatMap(trace => trace.dimensions ?? [])
    .map(axis => [axis.label, Array.from(axis.values)])"""
# How wide and high the lines are on the screen, whatever the data behind them say.
LINES = """() => [...document.querySelectorAll(".js-plotly-plot path.js-line")]
    .map(line => line.getBoundingClientRect())
    .filter(box => box.width > 100 && box.height > 20).length > 0"""
# The table of metrics is no <table>: what stands at one height is a row.
METRICS = """() => [...document.querySelectorAll('a[href*="#/metric?"]')].map(link => {
    const height = element => {
        const box = element.getBoundingClientRect();
        return (box.top + box.bottom) / 2;
    };
    const cells = [...document.querySelectorAll("[role=rowgroup] span")];
    const row = cells.filter(cell => Math.abs(height(cell) - height(link)) < 9);
    return [link.innerText, row.map(cell => cell.innerText).filter(text => text > "")];
})"""


@pytest.fixture
def sweep(place: Path) -> SweepResult:
    """Return a small sweep, the last trial of which learns fastest and is registered."""
    settings = [f"steps={STEPS}", "save.every=20", "eval_every=20", "seed=0", "progress=false"]
    found = api.sweep(*settings, "runtime.intra_op_threads=2", f"{RATE}={','.join(RATES)}")
    api.register(found.trials[-1].run_id, "digits", alias="champion")
    return found


@pytest.fixture
def ui(
    place: Path,
    sweep: SweepResult,
    start: Callable[..., "subprocess.Popen[str]"],
) -> Iterator[str]:
    """Start `waymark ui` on the sweep; yield the address that it prints."""
    port, said = free_port(), place / "ui.out"  # a file: nobody empties a pipe meanwhile
    with said.open("w") as out:
        streams = {"stdout": out, "stderr": subprocess.STDOUT}
        process = start("ui", "--port", str(port), cwd=place, start_new_session=True, **streams)
    try:
        poll(lambda: answers(f"http://127.0.0.1:{port}/health") == b"OK")
        yield next(line for line in said.read_text().splitlines() if line.startswith("http"))
        process.send_signal(signal.SIGTERM)
        process.wait(BOUND)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(BOUND)


@pytest.fixture
def page(environment: dict[str, str]) -> Iterator[Page]:
    """Yield a page of Chromium, which finds no other host and must show no error of the UI."""
    errors: list[str] = []

    def answered(response: Response) -> None:
        # MLflow asks who the user is of a server without users, too.
        if response.status >= 400 and not response.url.endswith("/users/current"):
            errors.append(f"{response.status} {response.url}")

    expect.set_options(timeout=BOUND * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            env=dict(environment),
            args=["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
        )
        try:
            context = browser.new_context(viewport={"width": 1280, "height": 720})
            context.set_default_timeout(BOUND * 1000)
            # Else a panel to chat in opens over a quarter of the first page.
            seen = "'mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true'"
            context.add_init_script(f"localStorage.setItem({seen})")
            page = context.new_page()
            page.on("response", answered)
            page.on("pageerror", lambda error: errors.append(str(error)))
            yield page
        finally:
            browser.close()
    assert errors == []


def shows(page: Page, script: str, expected: Any) -> None:
    """Wait until a script finds on the page what is expected; else tell what it finds."""
    same = f"expected => JSON.stringify(({script})()) === JSON.stringify(expected)"
    with suppress(TimeoutError):
        page.wait_for_function(same, arg=expected)
    assert page.evaluate(script) == expected


@pytest.mark.skipif(CHROMIUM is None, reason=f"none of {', '.join(PROGRAMS)} is on PATH")
def test_the_ui_shows_a_sweep(
    sweep: SweepResult,
    ui: str,
    page: Page,
    client: Callable[[Path], Any],
    place: Path,
) -> None:
    store, site = client(place), ui.partition("#")[0]
    runs = [store.get_run(trial.run_id) for trial in sweep.trials]
    last = [run.data.metrics for run in runs]
    losses = [
        [point.value for point in store.get_metric_history(run.info.run_id, LOSS)] for run in runs
    ]
    assert [len(values) for values in losses] == [STEPS] * len(RATES)

    # What the command opens: the sweep is one row, with columns for objective and varied key.
    page.goto(ui)
    expect(page.get_by_text("5 matching runs")).to_be_visible()
    columns = [f"metrics.`{OBJECTIVE}`", f"params.`{RATE}`"]
    for column in columns:
        expect(page.locator(f'.ag-header-cell[col-id="{column}"]')).to_be_visible()
    row = page.locator(f'[row-id="{sweep.run_id}"]')
    expect(row.get_by_role("link", name="sweep: lr (4)", exact=True)).to_be_visible()
    shown = page.locator(".ag-header-cell").evaluate_all(
        "cells => cells.map(cell => cell.getAttribute('col-id'))"
    )
    assert sorted(name for name in shown if re.match("params|metrics|tags", name)) == columns

    # The sweep's own view: its trials, the best first.
    page.goto(site + view.page(open_store(None), sweep.run_id))
    expect(page.get_by_text("4 matching runs")).to_be_visible()
    for run, name, rate in zip(runs, NAMES, RATES, strict=True):
        row = page.locator(f'[row-id="{run.info.run_id}"]')
        expect(row.get_by_role("link", name=name, exact=True)).to_be_visible()
        for column, text in zip(columns, [str(run.data.metrics[OBJECTIVE]), rate], strict=True):
            expect(row.locator(f'[col-id="{column}"]')).to_have_text(text)
    page.screenshot(path=place / "ui_runs.png")

    # Compare, for three of the four.
    for run in runs[1:]:
        page.locator(f'[row-id="{run.info.run_id}"]').get_by_role("checkbox").first.check()
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("heading", name="Comparing 3 Runs")).to_be_visible()
    for label, cells in [("Run Name:", NAMES[1:]), (RATE, RATES[1:]), ("steps", [str(STEPS)] * 3)]:
        row = page.locator("tr").filter(has=page.get_by_text(label, exact=True))
        expect(row.locator("th, td")).to_have_text([label, *cells])
    axes = [[RATE, [float(rate) for rate in RATES[1:]]]]
    shows(page, AXES, [*axes, [LOSS, [values[-1] for values in losses[1:]]]])
    expect(page.get_by_role("link", name=LOSS, exact=True)).to_be_visible()
    shown = dict(page.evaluate(METRICS))
    for metric, numbers in [
        (LOSS, [values[-1] for values in losses[1:]]),
        (ACCURACY, [metrics[ACCURACY] for metrics in last[1:]]),
    ]:
        assert [float(text) for text in shown[metric]] == pytest.approx(numbers, abs=6e-4)
    page.screenshot(path=place / "ui_parallel.png")

    # Their losses in one chart, every point of them.
    page.get_by_role("link", name=LOSS, exact=True).click()
    shows(page, CURVES, [list(curve) for curve in zip(NAMES[1:], losses[1:], strict=True)])
    page.wait_for_function(LINES)
    for name, values in zip(NAMES[1:], losses[1:], strict=True):
        row = page.get_by_role("row").filter(has=page.get_by_role("link", name=name, exact=True))
        expect(row).to_contain_text(f"{values[-1]} (step={STEPS})")
    page.screenshot(path=place / "ui_compare.png")

    # The sweep's own page, whose description has a table with links to the trials.
    run_page = f"{site}#/experiments/1/runs"
    page.goto(f"{run_page}/{sweep.run_id}?workflowType=machine_learning")
    expect(page.get_by_role("heading", name="sweep: lr (4)")).to_be_visible()
    told = page.get_by_role("table").filter(has_text=OBJECTIVE).first
    assert sweep.best
    best = told.get_by_role("row").nth(1)
    expect(best).to_contain_text(f"{sweep.best.objective:.4f}")
    expect(page.get_by_text("<!--")).to_have_count(0)
    page.screenshot(path=place / "ui_sweep.png")
    with page.expect_popup() as popup:
        best.get_by_role("link", name=sweep.best.run_id[:8]).click()
    expect(popup.value.get_by_role("heading", name=sweep.best.name)).to_be_visible()

    # One run's own pages.
    page.goto(site + view.page(open_store(None), runs[-1].info.run_id))
    expect(page.get_by_role("heading", name=NAMES[-1])).to_be_visible()
    expect(page.get_by_test_id("key-value-Status")).to_contain_text("Finished")
    expect(page.get_by_text(f"waymark rerun {runs[-1].info.run_id}")).to_be_visible()
    expect(page.get_by_text(f"test accuracy {last[-1][OBJECTIVE]:.4f}")).to_be_visible()
    page.screenshot(path=place / "ui_run.png")
    for tag in [f"waymark.version: {__version__}", f"waymark.steps: {STEPS}"]:
        expect(page.get_by_text(tag).first).to_be_visible()
    page.get_by_role("tab", name="Model metrics").click()
    page.get_by_placeholder("Search metric charts").fill(LOSS)
    shows(page, CURVES, [[NAMES[-1], losses[-1]]])
    page.wait_for_function(LINES)
    page.screenshot(path=place / "ui_loss.png")
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("evaluation", exact=True).click()
    for picture in ["loss.png", "confusion_matrix.png"]:
        page.get_by_text(picture, exact=True).click()
        image = page.get_by_alt_text(f"evaluation/{picture}").first
        expect(image).to_be_visible()
        page.wait_for_function(
            "image => image.complete && image.naturalWidth > 300", arg=image.element_handle()
        )
        page.screenshot(path=place / f"ui_{picture}")

    # Its model: below the run, with its scores on the data set, and its signature.
    page.get_by_role("tab", name="Overview").click()
    models = page.get_by_text("Logged models (1)").locator("xpath=ancestor::*[2]")
    expect(models).to_contain_text("Ready")
    page.screenshot(path=place / "ui_logged_models.png")
    models.get_by_role("link", name=f"step-{STEPS}").click()
    expect(page.get_by_role("heading", name=f"step-{STEPS}")).to_be_visible()
    (data,) = runs[-1].inputs.dataset_inputs
    for metric in (ACCURACY, "restored/loss"):
        row = page.get_by_role("row").filter(has=page.get_by_text(metric, exact=True))
        expect(row).to_contain_text(f"{data.dataset.name} (#{data.dataset.digest})")
        expect(row.get_by_role("link", name=NAMES[-1], exact=True)).to_be_visible()
        expect(row).to_contain_text(str(last[-1][metric]))
    expect(page.get_by_role("link", name="digits", exact=False).first).to_be_visible()
    page.screenshot(path=place / "ui_model.png")
    page.get_by_text("Artifacts", exact=True).click()
    page.get_by_text("MLmodel", exact=True).click()
    expect(page.get_by_text("signature:")).to_be_visible()
    page.screenshot(path=place / "ui_signature.png")
