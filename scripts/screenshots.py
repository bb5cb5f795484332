"""Take the pictures in docs/screenshots: every task on the page of a real server, in a real browser.

Started by `make screenshots`, which puts the repository on the path: browser and server are those of the tests. Each is
looked at by axe-core, and the browser's console must be silent, or no picture is kept. With names behind it, as in
`python scripts/screenshots.py text sound`, it takes only those.
"""

import base64
import contextlib
import io
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import requests
import screenshot_models
import screenshot_senses
from PIL import Image

from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache
from tests.support import page_models, task_models
from tests.support.browser import DESKTOP, PHONE, Browser, Screen, open_browser
from tests.support.server import FLAMBEAU, started

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "screenshots"
SAMPLES = ROOT / "src" / "flambeau" / "ui" / "static" / "samples"
QUALITY = 80  # of WebP
WATCHED_SECONDS = 75  # how long the dashboard looks on before its picture is taken
SCREENS = (DESKTOP, PHONE)
DEFAULT = "efficientnet_lite0"
DASHBOARD = "dashboard"


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The default model and small ones, one for each task, on a free port; gives the address."""
    default = build_cache.open_source(SourceOptions(), progress=lambda event: None)
    bundles = [*screenshot_models.make(folder), *screenshot_senses.make(folder)]
    task_models.embedding(folder / "features")
    page_models.numbers("sums", folder / "sums", (4,))
    named = [f"{each.name}={each}" for each in (*bundles, folder / "features", folder / "sums")]
    (folder / "run").mkdir()
    command = [*FLAMBEAU, "serve", "--port", "0", "--replicas", "1", f"{DEFAULT}={default.path}", *named]
    with started(command, folder / "run") as server:
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


def take(browser: Browser, name: str, screen: Screen) -> None:
    """Take the picture of what the screen shows, in light and in dark. Raises `SystemExit` for what is amiss."""
    for theme in ("light", "dark"):
        browser.darken(theme == "dark")
        file = FOLDER / f"{name}-{screen.name}-{theme}.webp"
        amiss = [*browser.violations(), *browser.complaints()]
        if browser.run("return document.documentElement.scrollWidth > innerWidth"):
            amiss.append("it is wider than its window")
        if amiss:
            raise SystemExit(f"{file.name}: " + "; ".join(amiss))
        shot = browser.command("Page.captureScreenshot", format="png")
        picture = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
        picture.save(file, quality=QUALITY, method=6)
        print(f"{file.relative_to(ROOT)}: {file.stat().st_size / 1000:.0f} kB", flush=True)


def give(browser: Browser, *files: Path) -> None:
    """Choose files, and wait for their answers."""
    browser.all("#file")[0].send_keys("\n".join(map(str, files)))
    browser.verdicts(len(files))
    browser.until(lambda: browser.run("return [...document.images].every((image) => image.complete)"))


def show_numbers(browser: Browser) -> None:
    """Fill in four numbers, and predict."""
    for field, number in zip(browser.all("[name=number]"), (5.1, 3.5, 1.4, 0.2), strict=True):
        field.clear()
        field.send_keys(str(number))
    browser.find("button.primary").click()
    browser.verdicts(1)


def show_text(browser: Browser) -> None:
    """Write a sentence, and predict."""
    browser.find("#input").send_keys(screenshot_senses.SENTENCE)
    browser.find("button.primary").click()
    browser.verdicts(1)


def show_sound(browser: Browser, file: Path) -> None:
    """Choose a sound, and predict."""
    browser.all("#file")[0].send_keys(str(file))
    browser.find("button.primary").click()
    browser.verdicts(1)


def show_live(browser: Browser) -> None:
    """Begin the live camera, and wait for its rate."""
    browser.find("#go-live").click()
    browser.until(lambda: "per second" in "".join(browser.texts("#live-rate")))


def pages(folder: Path) -> dict[str, tuple[str, Callable[[Browser], None]]]:
    """The pictures by name: the page's model, and what is done on it."""
    cat, coffee, rocket = (SAMPLES / f"{name}.jpg" for name in ("chelsea", "coffee", "rocket"))
    coins = folder / "coins.png"
    screenshot_models.coins().save(coins)
    sound = folder / "chord.wav"
    screenshot_senses.chord(sound)
    many = [folder / f"{number:02}-{each.name}" for number in range(3) for each in (cat, coffee, rocket)]
    for file in many:
        file.write_bytes((SAMPLES / file.name[3:]).read_bytes())
    return {
        "page": (DEFAULT, lambda browser: give(browser, cat, coffee)),
        "many": (DEFAULT, lambda browser: give(browser, *many)),
        "detection": ("coins", lambda browser: give(browser, coins)),
        "segmentation": ("coin-masks", lambda browser: give(browser, coins)),
        "image-to-image": ("edges", lambda browser: give(browser, cat)),
        "several-labels": ("looks", lambda browser: give(browser, rocket, coffee)),
        "regression": ("brightness", lambda browser: give(browser, rocket, coffee)),
        "embedding": ("features", lambda browser: give(browser, coffee)),
        "numbers": ("sums", show_numbers),
        "text": ("moods", show_text),
        "sound": ("pitch", lambda browser: show_sound(browser, sound)),
        "live": (DEFAULT, show_live),
    }  # fmt: skip


def main(*only: str) -> None:
    """Take them all, or those of these names."""
    FOLDER.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        shown = pages(folder)
        chosen = only or (*shown, DASHBOARD)
        if unknown := [name for name in chosen if name not in (*shown, DASHBOARD)]:
            raise SystemExit(f"there is no picture {', '.join(unknown)}: name some of {', '.join((*shown, DASHBOARD))}")
        for each in FOLDER.iterdir() if not only else ():
            each.unlink()
        url = stack.enter_context(served(folder))
        browser = stack.enter_context(open_browser(folder / "profile"))
        for name, (model, show) in shown.items():
            for screen in SCREENS if name in chosen else ():
                browser.resize(screen)
                browser.open(f"{url}/?model={model}")
                show(browser)
                if screen.phone:
                    browser.driver.execute_script("document.querySelector('.answers').scrollIntoView()")
                take(browser, name, screen)
        if DASHBOARD in chosen:
            watch(browser, url)


def watch(browser: Browser, url: str) -> None:
    """Take the dashboard, after it has seen requests for a while."""
    browser.resize(DESKTOP)
    browser.open(f"{url}/dashboard")
    with asked(url):
        time.sleep(WATCHED_SECONDS)
        for screen in SCREENS:
            browser.resize(screen)
            take(browser, DASHBOARD, screen)


if __name__ == "__main__":
    main(*sys.argv[1:])
