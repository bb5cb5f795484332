"""A real browser: Debian's Chromium, driven through Selenium, which reports what it complained about.

`make screenshots` uses it, too.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

T = TypeVar("T")

CHROMIUM = "/usr/bin/chromium"
CHROMEDRIVER = "/usr/bin/chromedriver"
TIMEOUT = 60  # seconds
AXE = Path(__file__).parents[1] / "browser" / "vendor" / "axe-core" / "axe.min.js"
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--disable-dev-shm-usage", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
)  # fmt: skip
READY = """
return !document.querySelector("script[src$='page/main.js']") || document.documentElement.matches(".scripted");
"""
WATCH_POLICY = """
window.reports = [];
addEventListener("securitypolicyviolation", (event) => window.reports.push(
    event.violatedDirective + " " + event.blockedURI + " " + event.sourceFile));
"""


class NoBrowserError(Exception):
    """There is no Chromium, and we are not the ones to install it."""


def install() -> None:
    """Make sure that Chromium is there: on a fresh Debian, root installs it.

    Raises `NoBrowserError` where that cannot be tried, and `RuntimeError` where it failed.
    """
    if Path(CHROMIUM).exists() and Path(CHROMEDRIVER).exists():
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise NoBrowserError("the browser tests need Debian's packages chromium and chromium-driver: install them")
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "chromium", "chromium-driver"]):
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        )
        if done.returncode and command[1] == "install":
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-500:]}")


@dataclass(frozen=True)
class Screen:
    """A size in CSS pixels. A phone is touched, and has no mouse."""

    name: str
    width: int
    height: int
    phone: bool = False


DESKTOP = Screen("desktop", 1280, 900)
PHONE = Screen("phone", 390, 844, phone=True)


class Browser:
    """One window. Elements are found by CSS selectors; waiting ends as soon as what is waited for is so."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver
        self._scripted = True
        self._wait = WebDriverWait(driver, TIMEOUT, poll_frequency=0.02)
        self.command("Page.addScriptToEvaluateOnNewDocument", source=WATCH_POLICY)

    def command(self, name: str, **parameters: Any) -> Any:
        """A command of Chromium's own protocol."""
        return self.driver.execute_cdp_cmd(name, parameters)

    def resize(self, screen: Screen) -> None:
        """Become that screen."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=screen.width, height=screen.height, deviceScaleFactor=1, mobile=screen.phone,
        )  # fmt: skip
        self.command("Emulation.setTouchEmulationEnabled", enabled=screen.phone)

    def darken(self, dark: bool) -> None:
        """Prefer dark colours, or light ones."""
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        self.command("Emulation.setEmulatedMedia", features=[feature, still])

    @contextlib.contextmanager
    def without_scripts(self) -> Iterator[None]:
        """No JavaScript on the pages opened meanwhile."""
        self.command("Emulation.setScriptExecutionDisabled", value=True)
        self._scripted = False
        try:
            yield
        finally:
            self._scripted = True
            self.command("Emulation.setScriptExecutionDisabled", value=False)

    def open(self, url: str) -> None:
        """Go there, with nothing remembered of what was complained about before, and wait for the page's script."""
        self.driver.get_log("browser")
        self.driver.get(url)
        if self._scripted:
            self.until(lambda: self.driver.execute_script(READY))

    def find(self, selector: str) -> WebElement:
        """The first such element that is shown."""
        script = "return [...document.querySelectorAll(arguments[0])].find((each) => each.checkVisibility())"
        return self.until(lambda: self.driver.execute_script(script, selector))

    def all(self, selector: str) -> list[WebElement]:
        """Every such element, shown or not."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """The texts of those that are shown, all of the same moment."""
        script = "return [...document.querySelectorAll(arguments[0])].filter((each) => each.checkVisibility())"
        return self.driver.execute_script(f"{script}.map((each) => each.innerText)", selector)

    def press(self, key: str) -> None:
        """Press a key, wherever the focus is."""
        ActionChains(self.driver).send_keys(key).perform()

    def until(self, found: Callable[[], T | None]) -> T:
        """Wait for something that is true, and return it."""
        return self._wait.until(lambda driver: found())  # type: ignore[return-value]

    def run(self, script: str, *arguments: object) -> Any:
        """The value of a script's `return`, awaited; in it `arguments` are an array."""
        done = "arguments[arguments.length - 1]"
        whole = f"const done = {done}; (async () => {{{script}}})().then(done, (error) => done(`${{error}}`))"
        return self.driver.execute_async_script(whole, *arguments)

    def save_into(self, folder: Path) -> None:
        """Where downloads go from now on."""
        self.command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def saved(self, folder: Path, pattern: str) -> bytes:
        """The contents of the one download of such a name, once it is whole: it is empty before, or has another."""
        [file] = self.until(lambda: [each for each in folder.glob(pattern) if each.stat().st_size])
        return file.read_bytes()

    def verdicts(self, count: int) -> list[str]:
        """The verdicts of so many cards, as soon as all are answered."""
        self.until(lambda: len(self.all("#cards .card")) == count and not self.all(".card.busy"))
        return self.texts("#cards .verdict")

    def violations(self) -> list[str]:
        """What axe-core finds serious or critical."""
        self.driver.execute_script(AXE.read_text())
        found = self.run("return (await axe.run()).violations")
        return [
            f"{each['id']}: {node['html']}"
            for each in found
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"]
        ]

    def complaints(self, *, refusals: bool = False) -> list[str]:
        """What the console says, and what the policy has blocked. `refusals` are answers that were no 2xx."""
        said = [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if not (refusals and entry["source"] == "network")
        ]
        return said + self.driver.execute_script("return window.reports ?? []")


@contextlib.contextmanager
def open_browser(profile: Path) -> Iterator[Browser]:
    """A browser with a fresh profile in that folder, at the desktop's size, light. Raises `NoBrowserError`."""
    install()
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={DESKTOP.width},{DESKTOP.height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    try:
        driver.set_script_timeout(TIMEOUT)
        browser = Browser(driver)
        browser.resize(DESKTOP)
        browser.darken(False)
        yield browser
    finally:
        driver.quit()
