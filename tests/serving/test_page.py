"""The page in a real browser: what people do with it, and what must never happen to them."""

import json
import re
import shutil
import urllib.parse
from collections.abc import Iterator

import pytest

play = pytest.importorskip("playwright.sync_api", reason="the page is tested with playwright")
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("the page is tested with Debian's chromium, which is not installed", allow_module_level=True)

from tests.page_stub import ORIGIN, TITLES, Stub, problem  # noqa: E402

SECONDS = 1000  # Playwright counts in milliseconds
REFUSED = "Failed to load resource"  # what the browser says of each answer that is an error
HACK = TITLES[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[play.Browser]:
    with play.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def context(browser, request) -> Iterator[play.BrowserContext]:
    """With nothing wrong in its console, and no request to any other origin."""
    options = {"viewport": {"width": 1280, "height": 900}, **getattr(request, "param", {})}
    context = browser.new_context(**options)
    context.set_default_timeout(10 * SECONDS)
    wrong, origins = [], set()
    context.on("weberror", lambda error: wrong.append(str(error.error)))
    context.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    context.on("request", lambda asked: origins.add(urllib.parse.urlsplit(asked.url)[:2]))
    yield context
    context.close()
    allowed = getattr(context, "refusals", False)
    assert [text for text in wrong if not (allowed and text.startswith(REFUSED))] == []
    assert len(origins - {("data", "")}) == 1


@pytest.fixture
def stub(context) -> Stub:
    return Stub(context)


@pytest.fixture
def page(context, stub) -> play.Page:
    page = context.new_page()
    page.goto(f"{ORIGIN}/")
    play.expect(page.get_by_label("Search the catalogue")).to_be_visible()
    return page


def titles_of(page: play.Page, answers: str) -> list[str]:
    return page.locator(f"#{answers} li > span:nth-child(2)").all_text_contents()


def timeline_of(page: play.Page) -> list[str]:
    return page.locator("#timeline li > span:nth-child(2)").all_text_contents()


def choose(page: play.Page, words: str, box: str = "Search the catalogue") -> None:
    """The first title with these words, by keyboard."""
    page.get_by_label(box).press_sequentially(words)
    play.expect(page.get_by_role("option").first).to_be_visible()
    page.keyboard.press("Enter")


def settled(page: play.Page) -> None:
    """Waits until every answer that was asked for stands there."""
    page.wait_for_function("() => !document.querySelector('[aria-busy=true]')")


def tab_to(page: play.Page, name: str) -> None:
    """Goes on by Tab until the control of this name has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.ariaLabel || document.activeElement.textContent") == name:
            return
    raise AssertionError(f"Tab never comes to {name!r}")


def test_by_keyboard_alone_from_the_empty_page_to_changed_recommendations(page):
    page.keyboard.press("Tab")
    page.keyboard.type("film")
    search = page.get_by_label("Search the catalogue")
    play.expect(search).to_be_focused()
    play.expect(search).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("ArrowDown")
    chosen = page.locator(f"#{search.get_attribute('aria-activedescendant')}")
    play.expect(chosen).to_have_attribute("aria-selected", "true")
    play.expect(chosen).to_have_text(TITLES[2])
    page.keyboard.press("Enter")
    play.expect(page.locator("#timeline li")).to_have_count(1)
    play.expect(search).to_have_attribute("aria-expanded", "false")
    play.expect(search).to_have_value("")
    settled(page)
    first = titles_of(page, "beams")
    assert len(first) == 10
    assert first != titles_of(page, "encoder")

    tab_to(page, f"Rating of {TITLES[2]}")
    page.keyboard.press("ArrowUp")
    play.expect(page.locator("#beams .mark.up")).to_have_count(0)
    play.expect(page.locator("#beams .mark.down")).to_have_count(9)
    settled(page)
    after = titles_of(page, "beams")
    assert after[1:] == first[:-1]
    assert page.locator("#beams .mark").all_inner_texts() == ["new\nnew", *["▼ 1\ndown 1"] * 9]
    play.expect(page.locator("#beams .gone")).to_have_text(f"Gone: {first[-1]}")
    play.expect(page.locator("#status")).to_contain_text(f"User-LLM: {after[0]} first, 1 new, 0 moved up, 9 down.")
    # The control that was used keeps the focus, though the timeline is made anew.
    assert page.evaluate("document.activeElement.ariaLabel") == f"Rating of {TITLES[2]}"


def test_the_timeline_is_reordered_and_emptied_by_keyboard(page):
    choose(page, "film 1 ")
    choose(page, "film 2 ")
    tab_to(page, f"Move earlier: {TITLES[2]}")
    page.keyboard.press("Enter")
    play.expect(page.locator("#timeline li").first).to_contain_text(TITLES[2])
    # At the top nothing is earlier: the row's next control has the focus.
    assert page.evaluate("document.activeElement.closest('li').innerText").startswith("⠿")
    tab_to(page, f"Remove: {TITLES[2]}")
    page.keyboard.press("Enter")
    assert timeline_of(page) == [TITLES[1]]
    assert page.evaluate("document.activeElement.ariaLabel") == f"Remove: {TITLES[1]}"
    page.keyboard.press("Enter")
    play.expect(page.get_by_label("Search the catalogue")).to_be_focused()
    play.expect(page.locator("#beams")).to_be_hidden()
    play.expect(page.locator("#near")).to_have_text("The user is not on the map yet.")
