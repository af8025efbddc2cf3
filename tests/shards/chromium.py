"""A real browser for the tests: Debian's chromium without a window, driven through its own driver."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from shards import reader
from shards.view import app
from shards.view.desk import Desk
from shards.view.pages import Pages, View

SECONDS = 30  # that a page may take

LOADED = "return [...document.images].every(i => i.complete && i.naturalWidth > 0)"
UNNAMED = """return [...document.querySelectorAll('input, button, a, svg[role=img], img')].filter(e =>
  e.matches('img') ? !e.hasAttribute('alt') :
  e.matches('input') ? !(e.labels && e.labels.length) :
  !(e.textContent.trim() || e.getAttribute('aria-label'))).map(e => e.outerHTML)"""
WIDER = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"


def missing() -> str | None:
    """Why there is no browser, None where there is one."""
    lacking = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"no {' and '.join(lacking)}: apt-get install chromium chromium-driver" if lacking else None


class Browser:
    """One window. What it shows is waited for, with a deadline."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        """Go there."""
        self.driver.get(url)

    def all(self, selector: str) -> list[WebElement]:
        """Every element of a CSS selector, in the page's order."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        """The first. Raises NoSuchElementException."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """What each says."""
        return [element.text for element in self.all(selector)]

    def run(self, script: str, *values: Any) -> Any:
        """What JavaScript returns."""
        return self.driver.execute_script(script, *values)

    def until(self, script: str, *values: Any) -> None:
        """Wait until this JavaScript says so. Raises TimeoutException."""
        WebDriverWait(self.driver, SECONDS).until(lambda _: self.run(script, *values), script)

    def loaded(self) -> None:
        """Wait until every picture is there. A lazy one has to be asked for."""
        self.run("for (const i of document.images) i.loading = 'eager'")
        self.until(LOADED)

    def press(self, key: str) -> None:
        """A key, pressed where the focus is."""
        webdriver.ActionChains(self.driver).send_keys(key).perform()

    def point(self, element: WebElement) -> None:
        """Move the pointer onto the middle of an element."""
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        webdriver.ActionChains(self.driver).move_to_element(element).perform()

    def path(self) -> str:
        """Of the address, behind the host, without the query."""
        return self.run("return location.pathname")

    def size(self, width: int, height: int) -> None:
        """Of the page, in CSS pixels, as a phone's if it is narrow."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


@contextmanager
def browser() -> Iterator[Browser]:
    """A window, closed at the end."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run", "--disable-extensions"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.set_page_load_timeout(SECONDS)
        made = Browser(driver)
        made.size(1200, 900)
        yield made
    finally:
        driver.quit()


@contextmanager
def served(place: str | Path, **given: Any) -> Iterator[str]:
    """The address of the page of a data set, as long as this lasts. given: fields of View."""
    with reader.open(place) as data:
        listening = app.listen(0)
        server = app.server(Pages(View(Desk(data), **given)))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://{app.HOST}:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(SECONDS)
            listening.close()
