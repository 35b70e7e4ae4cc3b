"""The page in a real browser: what people do with it, and what must never happen to them."""

import json
import re
import shutil
import threading
import urllib.parse
from collections.abc import Iterator

import pytest
import uvicorn

from tests.serving.conftest import wait_until
from user_llm.api import Answer
from user_llm.serving.app import create_app
from user_llm.serving.service import READY, Service
from user_llm.serving.settings import Settings

play = pytest.importorskip("playwright.sync_api", reason="the page is tested with playwright")
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("the page is tested with Debian's chromium, which is not installed", allow_module_level=True)

from tests.serving.on_the_page import (  # noqa: E402
    answers_of,
    choose,
    search,
    settled,
    tab_to,
    timeline_of,
    titles_of,
)
from tests.serving.page_stub import ORIGIN, TITLES, Stub, problem  # noqa: E402

SECONDS = 1000  # Playwright counts in milliseconds
REFUSED = "Failed to load resource"  # what the browser says of each answer that is an error
HACK = TITLES[0]
MINUS = "\N{MINUS SIGN}"


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


@pytest.fixture(scope="module")
def served(model) -> Iterator[str]:
    """Where a real server of the made-up run is; its token is "right"."""
    service = Service("made_up", model, None, Settings(batch=1, answers=("beams",)))  # little to compile
    config = uvicorn.Config(create_app(service, "right"), port=0, log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    service.start()
    thread.start()
    wait_until(lambda: service.failed or service.state == READY)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def stub(context) -> Stub:
    return Stub(context)


def address(*titles: str) -> str:
    """Of the page with these events."""
    return f"{ORIGIN}/#" + "&".join(f"item={urllib.parse.quote(title)}&rating=4" for title in titles)


@pytest.fixture
def page(context, stub) -> play.Page:
    page = context.new_page()
    page.goto(f"{ORIGIN}/")
    play.expect(page.get_by_label("Search the catalogue")).to_be_visible()
    return page


def as_shown(answers: list[Answer]) -> list[tuple[str, str]]:
    return [(answer.text, f"{answer.score:.2f}".replace("-", MINUS)) for answer in answers]


def marks(before: list[str], after: list[str]) -> list[str]:
    """What is said of each title that stands there after a change."""
    ways = [before.index(title) - place if title in before else None for place, title in enumerate(after)]
    words = {None: "new", 0: "as before"}
    return [words.get(way) or f"{'up' if way > 0 else 'down'} {abs(way)}" for way in ways]


def test_by_keyboard_alone_a_real_server_is_asked_what_the_library_answers(context, model, served):
    context.refusals = True  # of a token
    page = context.new_page()
    page.goto(f"{served}/")
    dialog = page.get_by_role("dialog", name="This server asks for a token")
    play.expect(dialog).to_be_visible()
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    play.expect(dialog).to_contain_text("refused the token")
    page.keyboard.type("right")
    page.keyboard.press("Enter")
    box = page.get_by_label("Search the catalogue")
    play.expect(box).to_be_visible()
    tab_to(page, box)
    page.keyboard.type("amelie")
    play.expect(page.locator("[role=option]").nth(1)).to_be_visible()
    page.keyboard.press("ArrowDown")
    title = page.locator("#search-list [aria-selected=true]").text_content()
    assert title.startswith("Amélie")
    page.keyboard.press("Enter")
    play.expect(page.locator("#beams li")).to_have_count(10)
    settled(page)
    events = [{"item": title, "rating": 4.0}]
    # Asked as the server asks, what is compiled for it serves here, too.
    (first,) = model.recommend([events], exclude=[[]])
    assert answers_of(page, "#beams") == as_shown(first)
    assert answers_of(page, "#category") == as_shown(model.answer(events, "favorite_category"))[:5]
    # Where the items of the timeline are, of which there is one.
    play.expect(page.locator("#near")).to_contain_text(f"Nearest to the user: {title} ·")

    tab_to(page, page.get_by_label(f"Rating of {title}"))
    page.keyboard.press("Home")
    play.expect(page.locator("#beams .mark.same")).not_to_have_count(10)
    settled(page)
    events = [{"item": title, "rating": 0.5}]
    (after,) = model.recommend([events], exclude=[[]])
    assert answers_of(page, "#beams") == as_shown(after) != as_shown(first)
    told = page.locator("#beams .mark .unseen").all_text_contents()
    assert told == marks([answer.text for answer in first], [answer.text for answer in after])

    tab_to(page, page.get_by_label("The model continues"))
    page.keyboard.type("The user's")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    play.expect(page.locator("#text blockquote")).to_have_text(model.generate(events, "The user's"))

    page.goto(f"{served}/#item=Crimson+0&rating=4")
    play.expect(page.get_by_role("alert")).to_contain_text("'Crimson 0' is no title of the catalogue")


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

    tab_to(page, page.get_by_label(f"Rating of {TITLES[2]}"))
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
    tab_to(page, page.get_by_label(f"Move earlier: {TITLES[2]}"))
    page.keyboard.press("Enter")
    play.expect(page.locator("#timeline li").first).to_contain_text(TITLES[2])
    # At the top nothing is earlier: the row's next control has the focus.
    assert page.evaluate("document.activeElement.closest('li').innerText").startswith("⠿")
    tab_to(page, page.get_by_label(f"Remove: {TITLES[2]}"))
    page.keyboard.press("Enter")
    assert timeline_of(page) == [TITLES[1]]
    assert page.evaluate("document.activeElement.ariaLabel") == f"Remove: {TITLES[1]}"
    page.keyboard.press("Enter")
    play.expect(page.get_by_label("Search the catalogue")).to_be_focused()
    play.expect(page.locator("#beams")).to_be_hidden()
    play.expect(page.locator("#near")).to_have_text("The user is not on the map yet.")


def test_events_that_the_model_does_not_read_are_told(page):
    page.goto(address(*TITLES[1:6]))
    play.expect(page.locator("#timeline li")).to_have_count(5)
    assert ["not read" in row for row in page.locator("#timeline li").all_inner_texts()] == [True, *[False] * 4]
    play.expect(page.locator("#reads")).to_have_text("The model reads the latest 4 events.")


def test_a_row_is_pulled_elsewhere_by_its_handle(page):
    page.goto(address(*TITLES[1:4]))
    settled(page)
    handle, last = (page.locator("#timeline .handle").nth(place).bounding_box() for place in (0, 2))
    page.mouse.move(handle["x"] + 5, handle["y"] + 5)
    page.mouse.down()
    page.mouse.move(last["x"] + 5, last["y"] + last["height"], steps=8)
    page.mouse.up()
    settled(page)
    assert timeline_of(page) == [TITLES[2], TITLES[3], TITLES[1]]
    assert urllib.parse.parse_qs(urllib.parse.urlsplit(page.url).fragment)["item"] == [TITLES[2], TITLES[3], TITLES[1]]


def test_enter_chooses_nothing_that_was_found_for_other_words(page, stub):
    play.expect(search(page, "film 1")).to_have_text(TITLES[1])
    held = []
    stub.instead["/items"] = held.append
    page.keyboard.type("7")
    page.keyboard.press("Enter")
    play.expect(page.locator("#search-list")).to_have_attribute("aria-busy", "true")
    assert timeline_of(page) == []
    del stub.instead["/items"]
    page.keyboard.press("Backspace")
    page.keyboard.press("Escape")
    play.expect(page.locator("#search-list")).to_be_hidden()
    page.keyboard.press("Escape")
    play.expect(page.get_by_label("Search the catalogue")).to_have_value("")


def test_a_text_is_about_the_timeline_that_stands_there(page):
    page.get_by_label("The model continues").fill("So")
    page.get_by_role("button", name="Continue the text").click()
    play.expect(page.get_by_role("alert")).to_have_text("Put an event on the timeline first.")
    choose(page, "film 1 ")
    play.expect(page.locator("#trouble")).to_be_hidden()
    page.get_by_role("button", name="Continue the text").click()
    play.expect(page.locator("#text blockquote")).to_be_visible()
    choose(page, "film 2 ")
    play.expect(page.locator("#text blockquote")).to_have_count(0)
    play.expect(page.get_by_label("The model continues")).to_have_value("So")


def test_titles_are_text_whatever_they_hold(page, stub):
    choose(page, "<img")
    choose(page, "film 1 ")
    choose(page, "<img", "About which item")
    play.expect(search(page, "<")).to_have_text(HACK)
    page.get_by_label("With which rating").fill("2.5")
    page.get_by_role("button", name="Write the review").click()
    play.expect(page.locator("#review blockquote")).to_have_text(f"<u>A</u> review of {HACK}")
    assert stub.bodies("/answer")[-1]["about"] == {"item": HACK, "rating": 2.5}
    page.get_by_label("The model continues").fill("<b>")
    page.get_by_role("button", name="Continue the text").click()
    play.expect(page.locator("#text blockquote")).to_have_text("<b> and <u>so on</u>")
    page.get_by_role("application").press("ArrowLeft")
    settled(page)
    assert HACK in timeline_of(page)
    assert page.locator("main :is(img, b, u, i)").count() == 0
    assert page.evaluate("window.hacked") is None


def test_an_address_can_be_shared_and_back_undoes(page, context, stub):
    choose(page, "film 1 ")
    choose(page, "<img")
    page.locator("#timeline select").last.select_option("2")
    settled(page)
    other = context.new_page()
    other.goto(page.url)
    play.expect(other.locator("#timeline li")).to_have_count(2)
    assert timeline_of(other) == timeline_of(page) == [TITLES[1], HACK]
    settled(other)
    assert titles_of(other, "fused") == titles_of(page, "fused")
    assert stub.bodies("/recommend")[-1]["events"] == [{"item": TITLES[1], "rating": 4}, {"item": HACK, "rating": 2}]
    page.go_back()
    play.expect(page.locator("#timeline select").last).to_have_value("4")
    page.go_back()
    play.expect(page.locator("#timeline li")).to_have_count(1)


def test_a_late_answer_never_stands_over_a_newer_one(page, stub):
    late = []

    def hold(route):
        if len(json.loads(route.request.post_data)["events"]) == 1:
            late.append(route)
        else:
            route.fulfill(json=stub.reply("/recommend", json.loads(route.request.post_data)))

    stub.instead["/recommend"] = hold
    choose(page, "film 1 ")
    play.expect(page.locator("#timeline li")).to_have_count(1)
    choose(page, "film 9 ")
    settled(page)
    newer = titles_of(page, "beams")
    assert len(late) == 3
    assert newer
    for route in late:
        route.fulfill(json=stub.reply("/recommend", json.loads(route.request.post_data)))
    page.wait_for_timeout(100)
    assert titles_of(page, "beams") == newer


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            problem(422, "event 0: 'Film' is no title of the catalogue; did you mean 'Film 1'?"),
            "did you mean 'Film 1'?",
        ),
        (problem(429, "The queue is full.", {"Retry-After": "2"}), "The queue is full. It asks to wait 2 s."),
        (lambda route: route.fulfill(status=502, body="<h1>Bad Gateway</h1>"), "The server answered 502 Bad Gateway."),
        (lambda route: route.abort(), "The server cannot be reached."),
        (lambda route: route.fulfill(body='{"items": ['), "The server cannot be reached."),
    ],
    ids=["problem", "busy", "no problem+json", "unreachable", "cut off"],
)
def test_an_error_of_the_server_is_told_in_words(page, stub, context, fault, words):
    context.refusals = True
    stub.instead["/recommend"] = fault
    choose(page, "film 1 ")
    told = page.get_by_role("alert")
    play.expect(told).to_contain_text(words)
    settled(page)
    assert told.locator("p").count() == 1  # three lists failed for one reason
    # The favourite category is not held up by it, and all is well as soon as the server is.
    play.expect(page.locator("#category")).to_be_visible()
    del stub.instead["/recommend"]
    page.get_by_role("button", name="Try again").click()
    play.expect(page.locator("#trouble")).to_be_hidden()
    play.expect(page.locator("#beams li")).to_have_count(10)


def test_a_token_is_asked_for_and_kept_in_the_tab_alone(context, stub):
    context.refusals = True
    real = stub.reply

    def guarded(route):
        if route.request.headers.get("authorization") != "Bearer right":
            return problem(401, "a token")(route)
        path = urllib.parse.urlsplit(route.request.url).path
        return route.fulfill(json=real(path, json.loads(route.request.post_data or "null"), route.request.url))

    stub.instead = dict.fromkeys(("/info", "/map", "/items", "/recommend", "/answer"), guarded)
    page = context.new_page()
    page.goto(f"{ORIGIN}/")
    dialog = page.get_by_role("dialog", name="This server asks for a token")
    play.expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    play.expect(page.get_by_role("alert")).to_contain_text("answers only with its token")
    page.get_by_role("button", name="Try again").click()
    play.expect(dialog).to_be_visible()
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    play.expect(dialog).to_contain_text("refused the token")
    page.keyboard.type("right")
    page.keyboard.press("Enter")
    choose(page, "film 1 ")
    play.expect(page.locator("#beams li")).to_have_count(10)
    kept = page.evaluate("[Object.values(sessionStorage), Object.values(localStorage), document.cookie, location.href]")
    assert kept[:3] == [["right"], [], ""]
    assert "right" not in kept[3]
    # A token that is no longer good: all lists are refused at once, and one dialog asks for all.
    page.evaluate("sessionStorage.setItem('user-llm-token', 'old')")
    page.locator("#timeline select").select_option("1")
    play.expect(dialog).to_be_visible()
    page.keyboard.type("right")
    page.keyboard.press("Enter")
    play.expect(page.locator("#beams .mark.down")).to_have_count(7)
    settled(page)
    play.expect(dialog).to_be_hidden()


def test_a_run_shows_what_it_has_and_no_more(context, stub):
    stub.info |= dict(answers=["beams", "exact"], tasks=["next_item"], ratings=[], categories=None)
    context.refusals = True
    stub.instead["/map"] = problem(422, "the run has no encoder, and so no map")
    page = context.new_page()
    page.goto(f"{ORIGIN}/")
    play.expect(page.get_by_role("alert")).to_contain_text("no map")
    choose(page, "film 1 ")
    play.expect(page.locator("#beams li")).to_have_count(10)
    assert page.locator("#lists > div").count() == 1
    assert page.locator("#timeline select").count() == 0
    assert page.locator("#category:visible, #review:visible, #map:visible").count() == 0
    assert [body["events"] for body in stub.bodies("/recommend")] == [[{"item": TITLES[1]}]]
    assert stub.bodies("/answer") == []


def test_a_run_of_reviews_alone_has_no_list_of_what_comes_next(context, stub):
    stub.info |= {"tasks": ["review_generation"], "answers": []}
    page = context.new_page()
    page.goto(f"{ORIGIN}/")
    choose(page, "film 1 ")
    choose(page, "film 2 ", "About which item")
    page.get_by_role("button", name="Write the review").click()
    play.expect(page.locator("#review blockquote")).to_have_text(f"<u>A</u> review of {TITLES[2]}")
    play.expect(page.get_by_role("heading", name="What comes next")).to_be_hidden()
    assert stub.bodies("/recommend") == []


@pytest.mark.parametrize("reads", ["past", "asked"])
def test_events_have_times_where_they_are_read(context, stub, reads):
    stub.info["reads_times"] = reads
    page = context.new_page()
    page.clock.install(time=1_700_000_000)
    page.goto(f"{ORIGIN}/")
    choose(page, "film 1 ")
    page.clock.run_for(60 * SECONDS)
    choose(page, "film 2 ")
    page.get_by_role("button", name=f"Move later: {TITLES[1]}").click()
    settled(page)
    asked = stub.bodies("/recommend")[-1]
    first, second = asked["events"]
    assert (first["item"], second["item"]) == (TITLES[2], TITLES[1])
    # An event that moves was at another time: the oldest stands first.
    assert 1_700_000_000 <= first["time"] < second["time"] - 50
    assert ("now" in asked) == (reads == "asked")
    assert asked.get("now", second["time"]) >= second["time"]


@pytest.mark.parametrize("context", [{"reduced_motion": "reduce"}], indirect=True)  # each move is drawn at once
def test_a_trail_tells_where_the_user_came_from(context, page):
    choose(page, "film 1 ")
    settled(page)
    choose(page, "film 2 ")
    settled(page)
    came = page.locator("#map").evaluate("canvas => canvas.toDataURL()")
    page.reload()  # with the same events, but without a past
    play.expect(page.locator("#beams li")).to_have_count(10)
    settled(page)
    assert page.locator("#map").evaluate("canvas => canvas.toDataURL()") != came


def test_the_map_tells_by_keyboard_and_pointer_and_the_user_moves(page, stub):
    map_ = page.get_by_role("application", name="Map of the catalogue")
    near, pointed = page.locator("#near"), page.locator("#pointed p")
    choose(page, "film 1 ")
    play.expect(near).to_have_text(re.compile(f"Nearest to the user: {re.escape(TITLES[13])} ·"))
    assert stub.bodies("/map")[-1] == {"events": [{"item": TITLES[1], "rating": 4}]}
    drawn = map_.evaluate("canvas => canvas.toDataURL()")
    map_.press("ArrowRight")
    play.expect(pointed).to_have_text(f"{TITLES[13]} (Comedy)")
    map_.press("ArrowUp")
    play.expect(pointed).to_have_text(f"{TITLES[19]} (Comedy)")
    page.get_by_role("button", name="Add to the timeline", exact=True).click()
    play.expect(near).to_have_text(re.compile(f"Nearest to the user: {re.escape(TITLES[14])} ·"))
    assert timeline_of(page) == [TITLES[1], TITLES[19]]
    settled(page)
    assert map_.evaluate("canvas => canvas.toDataURL()") != drawn
    box = map_.bounding_box()
    # Half a column from the middle: 5 columns of the made-up map take 4 / 1.44 quarters of its width.
    map_.hover(position={"x": box["width"] * (0.5 + 0.5 / 5.76), "y": box["height"] / 2})
    play.expect(pointed).to_have_text(f"{TITLES[15]} (Comedy)")


@pytest.mark.parametrize("context", [{"reduced_motion": "reduce"}, {"reduced_motion": "no-preference"}], indirect=True)
def test_the_user_walks_on_the_map_only_where_motion_is_wanted(context, page):
    frames = "window.frames_ = 0; const real = requestAnimationFrame; window.requestAnimationFrame = (go) => "
    page.evaluate(f"() => {{ {frames} {{ window.frames_++; return real(go); }} }}")
    choose(page, "film 1 ")
    choose(page, "film 2 ")
    settled(page)
    page.wait_for_timeout(50)
    still = page.evaluate("matchMedia('(prefers-reduced-motion: reduce)').matches")
    assert (page.evaluate("window.frames_") == 0) == still


@pytest.mark.parametrize(
    "context",
    [
        {"color_scheme": "light"},
        {"color_scheme": "dark", "viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
    ],
    indirect=True,
    ids=["desktop-light", "phone-dark"],
)
def test_nothing_is_wider_than_the_screen_nor_closed_to_anyone(context, page, stub):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe checks who can use the page").Axe()

    def check(what):
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{what} is wider than the screen"
        found = axe.run(page)
        assert found.violations_count == 0, f"{what}: {found.generate_report()}"

    check("the empty page")
    long = "A_title_without_any_space_that_is_much_longer_than_a_phone_is_wide_" * 2
    stub.instead["/recommend"] = lambda route: route.fulfill(json={"items": [{"title": long, "score": -1}] * 10})
    page.goto(address(long, *TITLES[1:4]))
    choose(page, "film 9 ")
    page.get_by_label("The model continues").fill("so")
    page.get_by_role("button", name="Continue the text").click()
    play.expect(page.locator("#text blockquote")).to_be_visible()
    page.get_by_role("application").press("ArrowLeft")
    settled(page)
    check("the full page")
    play.expect(search(page, "film")).to_be_visible()
    check("the list of titles")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 200) == dark
    context.refusals = True
    stub.instead["/recommend"] = problem(429, "The queue is full.")
    stub.instead["/answer"] = problem(401, "a token")
    page.locator("#timeline select").last.select_option("1")
    play.expect(page.get_by_role("alert")).to_contain_text("queue")
    play.expect(page.get_by_role("dialog")).to_be_visible()
    check("errors and the dialog")
