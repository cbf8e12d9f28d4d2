"""The page of a report as a browser shows it, without a network."""

import json
import os
import re
import shutil
import subprocess

import pytest
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"there is none of the browsers {', '.join(NAMES)}")
QUIET = (
    *("--headless=new", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-background-networking"),
    *("--disable-sync", "--disable-component-update", "--disable-default-apps", "--metrics-recording-only"),
    *("--window-size=1200,3000", "--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND"),
)
ITS_OWN = re.compile(
    r"https?://([\w-]+\.google\.com|[\w.-]+\.gvt1\.com|(update|optimizationguide-pa)\.googleapis\.com)/"
)
"""What a browser asks for by itself, whatever page it shows."""
COUNT = """<script>addEventListener("load", () => {
  const found = [...document.images].map(each => [each.complete, each.naturalWidth, each.alt.length]);
  const wide = document.documentElement.scrollWidth <= innerWidth;
  const shown = [...document.images].map(each => getComputedStyle(each).display != "none");
  document.body.textContent = "FOUND" + JSON.stringify({found, wide, shown}) + "END";
});</script>"""


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """``browse(page, *options)``: what a browser prints, and the addresses that it asked for."""

    def run(page, *options):
        home = tmp_path_factory.mktemp("browser")
        log = home / "net.json"
        given = [*QUIET, f"--user-data-dir={home / 'profile'}", f"--log-net-log={log}", *options]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            given.append("--no-sandbox")
        given.append(page.as_uri())
        environment = os.environ | {"HOME": str(home)}
        done = subprocess.run(
            [BROWSER, *given], capture_output=True, text=True, timeout=120, env=environment, check=False
        )
        asked = re.findall(r'"url":"((?:https?|wss?|ftp)://[^"]*)"', log.read_text(errors="replace"))
        return done, {address for address in asked if not ITS_OWN.match(address)}

    return run


def console_of(done):
    return [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def ground_of(path):
    with Image.open(path) as image:
        return image.convert("RGB").getpixel((3, 3))


@pytest.fixture(scope="module")
def shots(browse, written, tmp_path_factory):
    """Scheme to what was printed, what was asked for, and the picture of the page."""
    found = {}
    for scheme, number in (("dark", 0), ("light", 1)):
        path = tmp_path_factory.mktemp("shots") / f"{scheme}.png"
        options = (f"--screenshot={path}", f"--blink-settings=preferredColorScheme={number}")
        found[scheme] = (*browse(written / "report.html", *options), path)
    return found


def test_the_page_is_light_or_dark_as_the_reader_has_it(shots):
    assert min(ground_of(shots["light"][2])) > 240
    assert max(ground_of(shots["dark"][2])) < 40
    for _, _, path in shots.values():
        with Image.open(path) as image:
            assert len(image.convert("RGB").resize((300, 750)).getcolors(1 << 20)) > 500


def test_the_page_asks_for_nothing_and_complains_of_nothing(shots, browse, written, tmp_path):
    for done, asked, _ in shots.values():
        assert done.returncode == 0
        assert console_of(done) == []
        assert asked == set()
    # The same page with what it must not have: both checks would see it.
    page = (written / "report.html").read_text(encoding="utf-8")
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    broken = tmp_path / "broken.html"
    broken.write_text(
        page.replace("</main>", '<img src="https://example.com/a.png" alt="a"><script>nothing()</script></main>')
    )
    done, asked = browse(broken, "--dump-dom")
    assert any("nothing is not defined" in line for line in console_of(done))
    assert "https://example.com/a.png" in asked


@pytest.mark.parametrize(("width", "scheme"), [(1200, 1), (500, 0)])
def test_all_pictures_are_there_and_the_page_is_not_wider_than_the_window(width, scheme, browse, written, tmp_path):
    page = (written / "report.html").read_text(encoding="utf-8")
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    copy = tmp_path / "copy.html"
    copy.write_text(page.replace("</head>", f"{COUNT}</head>"), encoding="utf-8")
    options = ("--dump-dom", f"--window-size={width},900", f"--blink-settings=preferredColorScheme={scheme}")
    done, _ = browse(copy, *options)
    seen = json.loads(re.search(r"FOUND(\{.*\})END", done.stdout)[1])
    assert len(seen["found"]) == 2 * len(list((written / "figures").glob("*.svg")))
    assert all(complete and wide > 300 and alt > 20 for complete, wide, alt in seen["found"])
    assert seen["wide"]
    assert seen["shown"] == [True, False] * 6 if scheme else seen["shown"] == [False, True] * 6
