"""The report's page in a real browser, opened from disk: what people see and click."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tokengym.benchmarks.reports.content import Report
from tokengym.benchmarks.reports.html import write_report
from tokengym.benchmarks.reports.text import visible

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="needs Chromium and its driver (Debian: apt-get install chromium chromium-driver)",
)
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-prefers-reduced-motion",  # no smooth scrolling: a click must not miss
    "--window-size=1280,1000",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def report(make_report: Callable[..., Report]) -> Report:
    return make_report(60)


@pytest.fixture(scope="module")
def page(report: Report, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    write_report(report, folder)
    return (folder / "report.html").as_uri()


@pytest.fixture
def opened(browser: Any, page: str) -> Any:
    """The page, freshly opened in light colors."""
    for log in ("browser", "performance"):
        browser.get_log(log)  # what is read is forgotten
    colors(browser, "light")
    open_page(browser, page)
    return browser


def open_page(browser: Any, page: str) -> None:
    browser.get("about:blank")
    browser.get(page)
    # A page that is loaded may not be laid out yet on a busy machine, and what has no box has no visible text.
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")


def colors(browser: Any, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def at(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def every(browser: Any, selector: str) -> list[Any]:
    return browser.find_elements("css selector", selector)


def choose(browser: Any, selector: str, beginning: str) -> None:
    """Chooses the option of a <select> that begins so."""
    options = every(browser, f"{selector} option")
    (option,) = [option for option in options if option.get_property("text").startswith(beginning)]
    option.click()


def shown(browser: Any) -> dict[str, Any]:
    """The attempt that is shown."""
    names = {"system": "#who", "verdict": "#graded", "problem_id": "#problem-id", "reference": "#reference"}
    found = {name: at(browser, selector).text for name, selector in names.items()}
    found["steps"] = [cell.get_property("textContent") for cell in every(browser, "#steps .step-text")]
    return found


def expected(attempt: Any) -> dict[str, Any]:
    return {
        "system": attempt.system,
        "verdict": ("✓ " if attempt.verdict == "correct" else "✗ ") + attempt.verdict,
        "problem_id": attempt.problem_id,
        "reference": attempt.reference,
        "steps": [visible(step.text.removesuffix("\n")) for step in attempt.steps],
    }


def test_the_page_says_nothing_on_the_console_and_asks_nobody_for_anything(opened, page: str) -> None:
    at(opened, "#every-seed").click()
    at(opened, "#next").click()
    assert opened.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    # The browser's own first page asks for much, and not always in time to be forgotten.
    asked = {request["request"]["url"] for request in sent if request["documentURL"].startswith(page)}
    assert {address for address in asked if not address.startswith("data:")} == {page}


def test_figures_are_drawn_in_their_own_size_where_there_is_room(opened) -> None:
    widths = opened.execute_script(
        "return [...document.querySelectorAll('.picture img')].map((image) => [image.naturalWidth, image.clientWidth])"
    )
    assert len(widths) == 3
    assert all(0 < shown <= natural for natural, shown in widths)


def test_the_policy_stops_a_request_and_a_script_that_get_in(opened) -> None:
    blocked = opened.execute_async_script("""
        const done = arguments[0], seen = [];
        document.addEventListener("securitypolicyviolation", (event) => {
          seen.push(event.effectiveDirective);
          if (seen.length === 3) done(seen.sort());
        });
        fetch("http://127.0.0.1:9/").catch(() => {});
        new Image().src = "http://127.0.0.1:9/";
        const script = document.createElement("script");
        script.textContent = "window.hacked = 3";
        document.body.append(script);
    """)
    assert blocked == ["connect-src", "img-src", "script-src-elem"]
    assert opened.execute_script("return window.hacked") is None


def test_hostile_text_shows_as_it_was_written(opened, report: Report, hostile: str) -> None:
    first = report.attempts[0]
    assert shown(opened) == expected(first)
    assert at(opened, "#question").get_property("textContent") == f"Hostile: {visible(hostile)}"
    assert "⟨U+202E⟩right to left" in at(opened, "#question").text
    assert opened.execute_script("return window.hacked") is None
    assert every(opened, "#attempts img, #steps script") == []


def test_next_and_previous_by_button_and_by_key(opened, report: Report) -> None:
    from selenium.webdriver.common.keys import Keys

    assert not at(opened, "#previous").is_enabled()
    at(opened, "#next").click()
    assert shown(opened) == expected(report.attempts[1])
    at(opened, "#next").send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT, Keys.ARROW_RIGHT)
    assert shown(opened) == expected(report.attempts[3])
    assert at(opened, "#position").text == "4 of 60"
    at(opened, "#previous").click()
    assert shown(opened) == expected(report.attempts[2])
    listbox = at(opened, "#list")
    listbox.send_keys(Keys.END)
    assert shown(opened) == expected(report.attempts[59])
    assert not at(opened, "#next").is_enabled()
    listbox.send_keys(Keys.ARROW_UP)
    assert shown(opened) == expected(report.attempts[58])
    assert at(opened, "#list [aria-selected=true]").get_attribute("id") == listbox.get_attribute(
        "aria-activedescendant"
    )
    # Where keys have a meaning of their own they keep it.
    at(opened, "#words").send_keys("12", Keys.ARROW_LEFT, "3")
    assert at(opened, "#words").get_property("value") == "132"


def test_filters_by_system_verdict_and_words(opened, report: Report) -> None:
    choose(opened, "#system", "Sparse PPO")
    choose(opened, "#verdict", "correct")
    right = [a for a in report.attempts if a.system == "Sparse PPO" and a.verdict == "correct"]
    assert at(opened, "#position").text == f"1 of {len(right)}"
    for attempt in right:
        assert shown(opened) == expected(attempt)
        at(opened, "#next").click()
    at(opened, "#words").send_keys("APPLES 13 more")
    (only,) = [a for a in right if all(word in a.question for word in ("apples", "13", "more"))]
    assert shown(opened) == expected(only)
    at(opened, "#words").send_keys(" pears")
    assert at(opened, "#position").text == "No attempt matches these filters."
    assert not at(opened, "#shown").is_displayed()
    at(opened, "#filters button").click()
    assert at(opened, "#position").text.endswith("of 60")


def test_a_problems_attempts_side_by_side_but_not_those_of_problems_named_alike(opened, report: Report) -> None:
    every(opened, "#list li")[5].click()
    assert shown(opened) == expected(report.attempts[5])
    at(opened, "#same").click()  # made-up-1, and not made-up-10 to made-up-14
    assert at(opened, "#position").text == "2 of 4"
    assert shown(opened) == expected(report.attempts[5])


def mixed(browser: Any, level: float) -> list[float]:
    """The color that far from the middle of the scale to its end: orange below, blue above, linear in sRGB."""
    ends = [browser.execute_script(
        "return getComputedStyle(document.documentElement).getPropertyValue(arguments[0])", name
    ).strip() for name in ("--neutral", "--low" if level < 0 else "--high")]  # fmt: skip
    middle, end = ([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)] for color in ends)
    return [(1 - abs(level)) * a + abs(level) * b for a, b in zip(middle, end, strict=True)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_steps_have_the_colors_of_their_rewards_and_scores(opened, report: Report, scheme: str) -> None:
    colors(opened, scheme)
    for attempt in report.attempts[:2]:
        rows = every(opened, "#steps tr")
        assert len(rows) == len(attempt.steps)
        for row, step in zip(rows, attempt.steps, strict=True):
            # The largest reward of all attempts is 1.
            wanted = {"reward": (step.reward, f"{step.reward:+.3f}")}
            if step.score is not None:
                wanted["score"] = (2 * step.score - 1, f"{step.score:.3f}")
            else:
                assert at(row, ".score").text == "–"
            for name, (level, text) in wanted.items():
                chip = at(row, f".{name} .chip")
                assert chip.text.replace("−", "-").lstrip("+") == text.lstrip("+")
                color = re.findall(r"[\d.]+", chip.value_of_css_property("background-color").replace("srgb", ""))
                assert list(map(float, color[:3])) == pytest.approx(mixed(opened, level), abs=0.01)
                assert contrast(opened, chip) >= 4.5
        at(opened, "#next").click()
    # Colour-blind-safe: the ends differ in blue against red, not in red against green alone.
    low, high = mixed(opened, -1), mixed(opened, 1)
    assert low[0] - low[2] > 0.2 < high[2] - high[0]


def contrast(browser: Any, element: Any) -> float:
    """Of text and background, by the formula of WCAG 2."""
    lights = []
    for name in ("color", "background-color"):
        value = element.value_of_css_property(name)
        numbers = [float(number) for number in re.findall(r"[\d.]+", value.replace("srgb", ""))[:3]]
        rgb = numbers if value.startswith("color(") else [number / 255 for number in numbers]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_tables_fit_a_narrow_screen_and_every_seed_shows_on_request(opened, report: Report) -> None:
    seeds = at(opened, ".results .seeds")
    assert not seeds.is_displayed()
    at(opened, "#every-seed").click()
    cell: Any = report.tables[0].rows[0].cells[0]
    assert seeds.text == ", ".join(f"seed {seed}: {value:.3f}" for seed, value in cell.values.items())
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert opened.execute_script("return document.documentElement.scrollWidth") == 360
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_an_address_leads_to_an_attempt(browser, page: str, report: Report) -> None:
    browser.get("about:blank")
    browser.get(f"{page}#attempt-8")
    assert shown(browser) == expected(report.attempts[7])
    at(browser, "#next").click()
    assert browser.current_url == f"{page}#attempt-9"


def test_thousands_of_attempts_are_a_hundred_rows_at_a_time(browser, make_report, tmp_path: Path) -> None:
    report = make_report(5000)
    write_report(report, tmp_path)
    open_page(browser, (tmp_path / "report.html").as_uri())
    assert len(every(browser, "#list li")) == 100
    at(browser, "#page-on").click()
    assert at(browser, "#page").text == "101–200 of 5,000"
    assert shown(browser) == expected(report.attempts[100])
    at(browser, "#words").send_keys("1249")
    assert at(browser, "#position").text == f"1 of {sum('1249' in a.question + a.problem_id for a in report.attempts)}"


def test_a_report_without_attempts_says_so(browser, make_report, tmp_path: Path) -> None:
    write_report(make_report(0), tmp_path)
    open_page(browser, (tmp_path / "report.html").as_uri())
    assert at(browser, "#no-attempts").is_displayed()
    assert not at(browser, "#browser").is_displayed()
