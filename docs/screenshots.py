"""Make the pictures of MLflow's UI in docs/pictures: a sweep is run, and looked at in Chromium.

    python docs/screenshots.py

Takes playwright and a Chromium on PATH; about a minute.
"""

import os
import shutil
import socket
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

from playwright.sync_api import Page, expect, sync_playwright
from waymark import api
from waymark.tracking.address import page_of

PICTURES = Path(__file__).parent.resolve() / "pictures"
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
SIZE = {"width": 1280, "height": 700}
SWEEP = [
    "optimizer.learning_rate=1e-4,1e-3,1e-2",
    "batch_size=50,100",
    "steps=400",
]
LINES = "() => document.querySelectorAll('.js-plotly-plot path.js-line').length > 2"


def main() -> None:
    """Run a sweep in a folder of its own, and take four pictures of it."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        os.chdir(folder)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        found = api.sweep(*SWEEP, "progress=false")
        assert found.best
        with api.ui(port=port) as opened, sync_playwright() as playwright:
            wait_for(opened.address)
            program = next(filter(None, map(shutil.which, PROGRAMS)))
            browser = playwright.chromium.launch(executable_path=program)
            context = browser.new_context(viewport=SIZE)
            seen = "'mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true'"
            context.add_init_script(f"localStorage.setItem({seen})")
            expect.set_options(timeout=60_000)
            page = context.new_page()
            page.goto(opened.address)
            site = opened.address.partition("#")[0]
            take_list(page, found.run_id)
            take_charts(page, [trial.run_id for trial in found.trials[1::2]])
            best = page_of(f"experiments/1/runs/{found.best.run_id}")
            take_run(page, site + best, found.best.name)
            browser.close()


def wait_for(address: str) -> None:
    """Wait until the UI answers."""
    while True:
        try:
            urlopen(f"{address.partition('#')[0]}health").close()
            return
        except OSError:
            time.sleep(0.2)


def take_list(page: Page, sweep: str) -> None:
    """Show the experiment's runs, with the sweep's trials below it."""
    page.get_by_label("Toggle sidebar").click()
    page.get_by_label("Hide banner").click()
    row = page.locator(f'[row-id="{sweep}"]')
    row.get_by_role("button").first.click()
    page.evaluate("document.activeElement.blur()")
    expect(page.get_by_role("link", name="lr=0.01 bs=100")).to_be_visible()
    take(page, "ui_list")


def take_charts(page: Page, runs: list[str]) -> None:
    """Show the losses of some runs, as Compare does."""
    for run in runs:
        page.locator(f'[row-id="{run}"]').get_by_role("checkbox").first.check()
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("link", name="train/loss", exact=True).click()
    page.wait_for_function(LINES)
    take(page, "ui_compare")


def take_run(page: Page, address: str, name: str) -> None:
    """Show a run's overview, and its confusion matrix."""
    page.goto(address)
    expect(page.get_by_role("heading", name=name)).to_be_visible()
    expect(page.get_by_text("waymark rerun")).to_be_visible()
    take(page, "ui_run")
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("evaluation", exact=True).click()
    page.get_by_text("confusion_matrix.png", exact=True).click()
    image = page.get_by_alt_text("evaluation/confusion_matrix.png").first
    expect(image).to_be_visible()
    loaded = "image => image.complete && image.naturalWidth > 300"
    page.wait_for_function(loaded, arg=image.element_handle())
    take(page, "ui_artifacts")


def take(page: Page, name: str) -> None:
    """Write one picture, without what the mouse hovers over."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(1000)  # until what moves has come to rest
    page.screenshot(path=PICTURES / f"{name}.png", animations="disabled")


if __name__ == "__main__":
    main()
