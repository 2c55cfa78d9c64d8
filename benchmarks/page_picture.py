"""The picture of a run's page in the README: the page is written anew and photographed in a real browser.

    python -m benchmarks.page_picture RUN [-o FILE.png] [--width 1100] [--height 860] [--dark]

Needs Playwright's Python package and a Chromium on the PATH.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from lowmem_layers import open_run
from lowmem_layers.report import write_report


def main() -> None:
    """Write the page and take its picture."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("-o", "--output", default="benchmarks/figures/page.png")
    parser.add_argument("--width", type=int, default=1100)
    parser.add_argument("--height", type=int, default=860)
    parser.add_argument("--dark", action="store_true")
    asked = parser.parse_args()
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise SystemExit("no Chromium on the PATH")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = write_report(open_run(asked.run), folder, ("svg",), every_value=True)
        started = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        opened = started.new_page(
            viewport={"width": asked.width, "height": asked.height}, color_scheme="dark" if asked.dark else "light"
        )
        opened.goto(page.as_uri())
        opened.wait_for_selector("html[data-ready=yes]", state="attached")
        Path(asked.output).parent.mkdir(parents=True, exist_ok=True)
        opened.screenshot(path=asked.output)
        started.close()
    print(asked.output)


if __name__ == "__main__":
    main()
