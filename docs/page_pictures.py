"""Takes the pictures of the server's page: `python -m docs.page_pictures http://127.0.0.1:8000`.

Of a server without a token, whose run answers in several ways and for several tasks:

    python -m user_llm.main --config=configs/simulated.py --workdir=runs/page \
        --config.task=next_item,favorite_category --config.evaluation.answers=fused
    user-llm serve --workdir=runs/page
"""

import shutil
import sys
from pathlib import Path

from PIL import Image  # matplotlib needs it
from playwright.sync_api import Browser, Page, sync_playwright

FIGURES = Path(__file__).parent / "figures"
DESKTOP = {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"}
PHONE = {
    "viewport": {"width": 390, "height": 1300},
    "color_scheme": "dark",
    "device_scale_factor": 1.5,
    "has_touch": True,
    "is_mobile": True,
}


def settled(page: Page) -> None:
    page.wait_for_function("() => !document.querySelector('[aria-busy=true]')")
    page.wait_for_timeout(500)  # on the map the user is on the way


def put_events(page: Page, url: str) -> None:
    """A title of the catalogue, and what is recommended next, three times."""
    page.goto(url)
    page.get_by_label("Search the catalogue").press("ArrowDown")
    page.locator("[role=option]").nth(3).click()
    settled(page)
    page.locator("#timeline select").select_option(index=2)
    for place in (2, 1, 4):
        settled(page)
        page.locator("#lists button").nth(place).click()
    settled(page)
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur()")


def take(browser: Browser, url: str, name: str, options: dict, *, whole: bool) -> None:
    page = browser.new_context(**options).new_page()
    put_events(page, url)
    page.screenshot(path=FIGURES / name, full_page=whole)
    # The edges of letters have thousands of colours: of 128 a picture is a third as large.
    Image.open(FIGURES / name).quantize(128).save(FIGURES / name, optimize=True)


if __name__ == "__main__":
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        take(browser, sys.argv[1], "serving-desktop.png", DESKTOP, whole=True)
        take(browser, sys.argv[1], "serving-phone.png", PHONE, whole=False)
        browser.close()
