"""Take the pictures in docs/screenshots: the page and the dashboard of a real server, in a real browser.

Started by `make screenshots`, which puts the repository on the path: browser and server are those of the tests.
"""

import base64
import contextlib
import io
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import requests
from PIL import Image

from tests.support.browser import DESKTOP, PHONE, Browser, Screen, open_browser
from tests.support.server import FLAMBEAU, started

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "screenshots"
SAMPLES = ROOT / "src" / "flambeau" / "ui" / "static" / "samples"
LARGEST = 150_000  # bytes
WATCHED_SECONDS = 75  # how long the dashboard looks on before its picture is taken


@contextlib.contextmanager
def served() -> Iterator[str]:
    """The default model on a free port; gives its address."""
    with tempfile.TemporaryDirectory() as folder, started([*FLAMBEAU, "serve", "--port", "0"], Path(folder)) as server:
        yield server.url


@contextlib.contextmanager
def asked(url: str) -> Iterator[None]:
    """Meanwhile four clients send pictures, more and less often, and now and then something that is none."""
    over = threading.Event()
    pictures = [each.read_bytes() for each in sorted(SAMPLES.glob("*.jpg"))]

    def client(number: int) -> None:
        with requests.Session() as session:
            sent = number
            while not over.is_set():
                sent += 1
                picture = pictures[sent % len(pictures)] if sent % 23 else b"no picture"
                session.post(f"{url}/predict", files={"file": picture}, timeout=60)
                over.wait(0.03 + 0.08 * (int(time.monotonic() / 9 + number / 2) % 3))

    clients = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for each in clients:
        each.start()
    try:
        yield
    finally:
        over.set()
        for each in clients:
            each.join()


def take(browser: Browser, name: str) -> None:
    """Take the picture of what the screen shows, in light and in dark, with as few colours as make it small."""
    for theme in ("light", "dark"):
        browser.darken(theme == "dark")
        shot = browser.command("Page.captureScreenshot", format="png")
        picture = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
        file = FOLDER / f"{name}-{theme}.png"
        for colours in (256, 128, 64):
            picture.quantize(colours, dither=Image.Dither.NONE).save(file, optimize=True)
            if file.stat().st_size <= LARGEST:
                break
        print(f"{file.relative_to(ROOT)}: {file.stat().st_size / 1000:.0f} kB")


def show_page(browser: Browser, url: str, screen: Screen) -> None:
    """Two samples, answered; on a phone the answers are scrolled to."""
    browser.resize(screen)
    browser.open(url)
    for sample in reversed(browser.all(".sample")[:2]):
        browser.driver.execute_script("arguments[0].click()", sample)
        browser.until(lambda: not browser.all(".card.busy"))
    if screen.phone:
        browser.driver.execute_script("document.querySelector('.samples').scrollIntoView()")
    browser.until(lambda: browser.run("return [...document.images].every((image) => image.complete)"))


def main() -> None:
    """Take them all."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as profile, served() as url, open_browser(Path(profile)) as browser:
        for screen in (DESKTOP, PHONE):
            show_page(browser, url, screen)
            take(browser, f"page-{screen.name}")
        browser.resize(DESKTOP)
        browser.open(f"{url}/dashboard")
        with asked(url):
            time.sleep(WATCHED_SECONDS)
            for screen in (DESKTOP, PHONE):
                browser.resize(screen)
                take(browser, f"dashboard-{screen.name}")


if __name__ == "__main__":
    main()
