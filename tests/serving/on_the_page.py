"""What people do with the page in a browser, and what they see there."""

import playwright.sync_api as play


def titles_of(page: play.Page, answers: str) -> list[str]:
    return page.locator(f"#{answers} li > span:nth-child(2)").all_text_contents()


def timeline_of(page: play.Page) -> list[str]:
    return page.locator("#timeline li > span:nth-child(2)").all_text_contents()


def answers_of(page: play.Page, place: str) -> list[tuple[str, str]]:
    """Texts and scores, as they stand there."""
    texts = page.locator(f"{place} li > span:nth-child(2)").all_text_contents()
    return list(zip(texts, page.locator(f"{place} .score").all_text_contents(), strict=True))


def search(page: play.Page, words: str, box: str = "Search the catalogue") -> play.Locator:
    """What Enter would choose of the titles found."""
    play.expect(page.get_by_label(box)).to_be_visible()
    page.get_by_label(box).press_sequentially(words)
    titles = page.get_by_label(box).get_attribute("aria-controls")
    return page.locator(f"#{titles} [aria-selected=true]")


def choose(page: play.Page, words: str, box: str = "Search the catalogue") -> None:
    """The first title with these words, by keyboard."""
    play.expect(search(page, words, box)).to_be_visible()
    page.keyboard.press("Enter")


def settled(page: play.Page) -> None:
    """Waits until every answer that was asked for stands there."""
    page.wait_for_function("() => !document.querySelector('[aria-busy=true]')", polling=20)


def tab_to(page: play.Page, control: play.Locator) -> None:
    """Goes on by Tab until the control has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if control.evaluate("control => control === document.activeElement"):
            return
    raise AssertionError(f"Tab never comes to {control}")
