"""The page of a comparison or a sweep: it needs nothing else, and works in a real browser."""

import html.parser
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect, sync_playwright
from waymark.comparison.page import Extras, page, sorted_by
from waymark.errors import printable
from waymark.names import STATE_DIGEST

from tests.support.comparisons import HARM, compared, made
from tests.support.processes import BOUND

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
PNG = bytes.fromhex("89504e470d0a1a0a0000000d49484452000005a0000003e80802000000")


class Page(html.parser.HTMLParser):
    """Take a page apart: its tags, their attributes, the texts of cells, scripts and so on."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in ("meta", "img", "i"):
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        while tag in self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        for tag in self._open:
            self.texts[tag][-1] += data


def harmful() -> Any:
    """Return a comparison of runs whose names and settings would do harm, and extras likewise."""
    curve = {"train/loss": {1: 1.0, 2: 0.5, 3: math.nan}, "test/accuracy": {2: 0.5}}
    runs = [
        made(i, {"lr": str(i), "<b>": harm}, curve, {STATE_DIGEST: "0"}, harm)
        for i, harm in enumerate(HARM)
    ]
    extras = Extras(
        HARM[1],
        {"best trial": HARM[1], "command": HARM[2]},
        lambda run: f"https://example.org/#/runs/{run}?<script>",
        {"best trial": "a" * 32},
        [("b" * 32, HARM[1], "FAILED", HARM[2])],
        {HARM[1]: PNG},
    )
    return compared(*runs), extras


def test_a_page_holds_the_table_and_no_harm() -> None:
    found, extras = harmful()
    text = page(found.content(), extras)
    shown = Page(text)
    tags = [tag for tag, _ in shown.tags]
    assert tags.count("script") == 2 and tags.count("img") == 1
    assert not {"b", "link", "iframe", "object", "image", "base"} & set(tags)
    for _, attributes in shown.tags:
        assert not [key for key in attributes if key.startswith("on")]
        assert attributes.get("src", "data:image/png").startswith("data:image/png")
        assert attributes.get("href", "https://example.org/").startswith("https://example.org/")
    assert not re.search(r"@import|url\((?!#)", text.replace("url(#clip${number})", ""))
    columns, rows = found.table()
    heads = [head for head in shown.texts["th"] if head not in ("run", "status", "why")]
    assert heads == columns[1:]
    cells = shown.texts["td"][: len(columns) * len(rows)]
    assert cells == [printable(cell) for row in rows for cell in row]
    assert shown.texts["li"] == found.notes() != []
    assert shown.texts["h1"] == [HARM[1]]
    data = json.loads(shown.texts["script"][0])
    assert [len(panel["lines"]) for panel in data] == [len(HARM)] * 2
    assert "<" not in shown.texts["script"][0]
    links = [at["href"] for tag, at in shown.tags if tag == "a"]
    assert len(links) == len(rows) + 2  # of each run, the best one, and one that failed


def test_an_address_that_is_none_of_the_web_is_no_link() -> None:
    found, _ = harmful()
    for address in (None, "javascript:alert(1)", "there"):
        text = page(found.content(), Extras(link=lambda run, address=address: address))
        assert "<a " not in text


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("0.9034*", "0.9034"),
        ("0.9034~", "0.9034"),
        ("± 0.0012", "0.0012"),
        ("1.5e-05", "1.5e-05"),
        ("1 min 3 s", "63.0"),
        ("2 h 5 min", "7500.0"),
        ("12.5 s", "12.5"),
        ("nan", ""),
        ("-", ""),
        ("inf", "Infinity"),
        ("softmax", "softmax"),
        ("3 seeds", "3 seeds"),
    ],
)
def test_cells_are_sorted_by_the_number_they_show(cell: str, expected: str) -> None:
    assert sorted_by(cell) == expected


def many() -> Any:
    """Return a comparison of 60 trials, one of which diverged."""
    runs = []
    for i in range(60):
        losses = {s: math.nan if i == 7 else (i + 1) / s for s in range(1, 400)}
        metrics = {"train/loss": losses, "test/accuracy": {200: 0.5 + i / 200, 399: 0.6 + i / 200}}
        runs.append(made(i, {"optimizer.learning_rate": repr(0.001 * 1.1**i)}, metrics))
    return compared(*runs).best_first()


@pytest.mark.parametrize(("runs", "steps", "points"), [(3, 2000, 200), (500, 70, 60)])
def test_the_curves_of_many_trials_are_thinned(runs: int, steps: int, points: int) -> None:
    curve = {"train/loss": dict.fromkeys(range(1, steps + 1), 1 / 3)}
    found = compared(*(made(i, {"lr": str(i)}, curve) for i in range(runs)))
    text = page(found.content(), Extras())
    panel = json.loads(Page(text).texts["script"][0])[0]
    assert {len(line["x"]) for line in panel["lines"]} == {points}
    assert len(panel["lines"]) == runs and len(text) < 1_500_000


@pytest.mark.parametrize(("count", "said"), [(1, "lr=9"), (4, "4 curves")])
def test_a_page_tells_which_curves_are_not_all_shown(count: int, said: str) -> None:
    usual = [made(i, {"lr": str(i)}, {"train/loss": {1: 2.0, 2: 1.0 + i / 9}}) for i in range(9)]
    away = [made(9 + i, {"lr": str(9 + i)}, {"train/loss": {1: 2.0, 2: 1e9}}) for i in range(count)]
    shown = Page(page(compared(*usual, *away).content(), Extras()))
    losses, metric = json.loads(shown.texts["script"][0])
    assert losses["title"] == f"training loss (mean over examples) (not all in this range: {said})"
    assert "range" not in metric["title"]


def test_a_page_in_a_browser(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "page.html").write_text(page(many().content(), harmful()[1]), encoding="utf-8")
    said: list[str] = []
    asked: list[str] = []
    expect.set_options(timeout=BOUND * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, env=dict(environment))
        try:
            shown = browser.new_page(viewport={"width": 1280, "height": 720})
            shown.on("console", lambda message: said.append(message.text))
            shown.on("pageerror", lambda error: said.append(str(error)))
            shown.on("dialog", lambda dialog: said.append(dialog.message))
            shown.on("request", lambda request: asked.append(request.url))
            shown.goto(f"file://{tmp_path}/page.html")
            lines = shown.locator("#panels svg").first.locator("path[stroke-width]")
            expect(lines).to_have_count(60)
            # A click sorts by the number, the next one the other way round.
            head = shown.locator("#rows th button", has_text="optimizer.learning_rate")
            column = shown.locator("#rows td:nth-child(2)")
            head.click()
            rates = [float(text) for text in column.all_inner_texts()]
            assert rates == sorted(rates) and len(rates) == 60
            head.click()
            assert [float(text) for text in column.all_inner_texts()] == rates[::-1]
            # What the pointer is on is told, and marked in the table.
            box = shown.locator("#panels svg").nth(1).bounding_box()
            assert box
            tip = shown.locator("#tip")
            shown.mouse.move(box["x"] + 57, box["y"] + 12)
            for down in range(20, 260, 8):
                if tip.is_visible():
                    break
                shown.mouse.move(box["x"] + 57, box["y"] + down)
            expect(tip).to_contain_text(re.compile(r"^lr=\S+: 0\.\d+ at step 200$"))
            expect(shown.locator("#rows tr.on")).to_have_count(1)
            shown.set_viewport_size({"width": 375, "height": 700})
            wide = "[document.documentElement.scrollWidth, document.body.scrollWidth]"
            assert max(shown.evaluate(wide)) <= 375
        finally:
            browser.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
