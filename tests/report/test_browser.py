"""The page in a real browser: it draws, answers hover, click, keys and choices, and takes names for text."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from lowmem_layers import StudySpec, run_study
from lowmem_layers.report import write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
HOSTILE = "<img src=x onerror=alert(1)></script><b>bold</b>\u2028"

TALLEST_BAR = """() => {
    const bars = [...document.querySelectorAll("#chart-importance .bars .point path")];
    const boxes = bars.map((bar) => bar.getBoundingClientRect());
    const tallest = boxes.reduce((one, two) => (one.height > two.height ? one : two));
    return [tallest.x + tallest.width / 2, tallest.y + tallest.height / 2];
}"""


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Write the page of a run whose task, items and groups have names that want to be markup."""
    from tests.dictionary import Bench

    made = Bench(metrics={"one": "acc", HOSTILE: "acc"})

    def prepare(*arguments):
        prepared = made.prepare(*arguments)
        named = {"three": HOSTILE}
        tasks = tuple(replace(task, name=named.get(task.name, task.name)) for task in prepared.tasks)
        encoded = tuple(
            replace(item, task=named.get(item.task, item.task), id=f"{item.id}{HOSTILE}") for item in prepared.encoded
        )
        return replace(prepared, tasks=tasks, encoded=encoded)

    spec = StudySpec(tasks=("one", "three"), max_removed=2)
    run = run_study(spec, tmp_path_factory.mktemp("hostile") / "r", prepare=prepare)
    return write_report(run, formats=("svg",))


@pytest.fixture
def opened(browser, hostile):
    """Open the page at a width; its errors are collected."""
    pages = []

    def at(width, **settings):
        page = browser.new_page(viewport={"width": width, "height": 800}, **settings)
        page.errors = []
        page.on("console", lambda said: page.errors.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("dialog", lambda dialog: page.errors.append(f"dialog {dialog.message}"))
        page.goto(hostile.as_uri())
        page.wait_for_selector("html[data-ready=yes]", state="attached")
        pages.append(page)
        return page

    yield at
    for page in pages:
        page.close()


def overflow(page):
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def test_the_page_draws_answers_and_takes_names_for_text(opened):
    page = opened(1280)
    # 1) names are text, nothing ran, nothing was loaded
    assert page.locator("img[src='x']").count() == 0
    assert HOSTILE.rstrip("\u2028") in page.locator("#choose-task").inner_text()
    assert HOSTILE.rstrip("\u2028") in page.locator("#chart-tasks svg").first.text_content()
    # 2) hover says sublayer, value, interval, n
    page.locator("#chart-importance").scroll_into_view_if_needed()
    page.mouse.move(*page.evaluate(TALLEST_BAR))
    page.wait_for_selector("#chart-importance .hoverlayer .hovertext")
    words = page.locator("#chart-importance .hoverlayer").text_content()
    assert all(part in words for part in (" of decoder layer ", "95 % interval", "items of all tasks")), words
    # 3) a click chooses a sublayer, an arrow key the next one
    page.mouse.down()
    page.mouse.up()
    page.wait_for_function("name => document.querySelector('#chosen h2').textContent.startsWith(name)", arg=words[:6])
    page.locator("#choose-player").select_option("attn.0")
    page.locator("#chart-importance").press("ArrowRight")
    assert page.locator("#chosen h2").text_content().startswith("ffn.0")
    assert page.locator("#chosen-tables table").count() == 2
    # 4) another task, value and estimator without a reload
    before = page.locator("#table caption").text_content()
    for name, option in (("task", 0), ("value", 1), ("estimator", 1)):
        page.locator(f"#choose-{name}").select_option(index=option)
    assert page.locator("#table caption").text_content() != before
    # 5) tables sort, filter and are saved
    page.locator("#table th button", has_text="sublayer").click()
    assert page.locator("#table tbody th").first.text_content() == "attn.0"
    with page.expect_download() as saved:
        page.locator("#table button", has_text="CSV").click()
    assert saved.value.path().read_text().splitlines()[1].startswith("attn.0,attention,")
    with page.expect_download() as drawn:
        page.locator("#panel-importance button", has_text="SVG").click()
    assert drawn.value.path().read_text().startswith("<svg")
    # 6) narrow and wide, nothing runs off the side
    assert overflow(page) == 0
    page.set_viewport_size({"width": 390, "height": 800})
    page.wait_for_timeout(300)
    assert overflow(page) == 0
    assert page.errors == []


@pytest.mark.slow
def test_the_page_in_the_dark_on_paper_and_without_scripts(opened, browser, hostile):
    dark = opened(390, color_scheme="dark")
    assert overflow(dark) == 0
    ink = "getComputedStyle(document.querySelector('#chart-importance .xtick text')).fill"
    assert dark.evaluate(ink) == "rgb(232, 232, 232)"
    paper = dark.pdf(format="A4")
    assert paper.startswith(b"%PDF")
    assert dark.errors == []
    context = browser.new_context(java_script_enabled=False, viewport={"width": 390, "height": 800})
    plain = context.new_page()
    plain.goto(hostile.as_uri())
    assert plain.locator("#still img").is_visible()
    assert plain.locator("#explore").is_hidden()
    assert plain.locator(".plain").first.is_visible()
    context.close()


@pytest.mark.slow
def test_groups_are_chosen_by_name(opened, browser, bench, tmp_path):
    spec = StudySpec(tasks=("one",), players="a<b>=attn.0+ffn.0,b=attn.1,c=ffn.1", max_removed=2)
    page = browser.new_page()
    page.goto(write_report(run_study(spec, tmp_path / "r", prepare=bench().prepare), formats=("svg",)).as_uri())
    page.wait_for_selector("html[data-ready=yes]", state="attached")
    page.locator("#table .name", has_text="a<b>").click()
    assert page.locator("#chosen h2").text_content() == "a<b> group of 2 sublayers"
    page.close()


@pytest.mark.slow
def test_runs_are_switched_and_compared(browser, tmp_path):
    from lowmem_layers.report import write_joint_report
    from tests.report.test_several import made

    runs = [made(tmp_path / name, "m", seed) for name, seed in (("a", 0), ("b", 1))]
    page = browser.new_page(viewport={"width": 390, "height": 800})
    errors = []
    page.on("console", lambda said: errors.append(said.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(write_joint_report(runs, tmp_path / "report", ("svg",)).as_uri())
    page.wait_for_selector("html[data-ready=yes]", state="attached")
    before = page.locator("#table td").all_text_contents()
    assert page.locator("#chart-compared .point").count() == 6
    page.locator("#choose-run").select_option(index=1)
    assert page.locator("#table td").all_text_contents() != before
    assert page.locator("#chart-compared .point").count() == 6
    assert page.locator("#chart-runs .hm").count() == 1
    titles = page.locator("#choose-run option").all_text_contents()
    assert page.locator("#table caption").nth(1).text_content() == f"A: {titles[0]}; B: {titles[1]}; all"
    assert overflow(page) == 0
    assert [error for error in errors if "auto-margin" not in error] == []
    page.close()
