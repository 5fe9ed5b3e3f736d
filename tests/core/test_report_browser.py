"""The report in a browser: drawn in light and dark, wide and on a phone, without sideways scrolling; sorting works."""

from __future__ import annotations

import re
import shutil
import subprocess
from html import unescape
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from latticework.core import report

BROWSER = next((found for found in map(shutil.which, ("chromium", "google-chrome", "chromium-browser")) if found), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome is installed")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--disable-dev-shm-usage",
)  # fmt: skip
PHONE, WIDE = 390, 1280


def sibling(name: str) -> ModuleType:
    """Another test file's helpers."""
    import sys

    spec = spec_from_file_location(f"shared_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of several data sets, one name hostile and long."""
    reports = sibling("test_report")
    text = report.html(reports.synthetic(names=(reports.HOSTILE,)))
    path: Path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


def browse(profile: Path, *arguments: str) -> str:
    assert BROWSER is not None
    done = subprocess.run(
        [BROWSER, *FLAGS, f"--user-data-dir={profile}", *arguments], capture_output=True, text=True, timeout=120, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def framed(page: Path, folder: Path, width: int, probe: str) -> Path:
    """A page that shows the report in a frame of this width and writes what `probe` returns into its own title.

    A headless window has a least width of about 500 px, a frame has none. The report's own policy would stop the probe, so
    it is taken out of this copy; the frame's document is the report's text otherwise.
    """
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"), count=1)
    text = text.replace("</body>", f"<script>parent.document.title = JSON.stringify((() => {{ {probe} }})());</script></body>")
    escaped = text.replace("&", "&amp;").replace('"', "&quot;")
    frame = folder / f"framed-{width}.html"
    frame.write_text(
        f'<!doctype html><html><head><meta charset="utf-8"><meta name="color-scheme" content="light dark"><title></title></head>'
        f'<body style="margin:0"><iframe style="border:0;display:block;width:{width}px;height:3000px" srcdoc="{escaped}"></iframe></body></html>',
        encoding="utf-8",
    )
    return frame


def probed(page: Path, folder: Path, width: int, probe: str) -> str:
    shown = browse(
        folder / f"profile-{width}", f"--window-size={max(width, 600)},3000", "--virtual-time-budget=4000", "--dump-dom",
        framed(page, folder, width, probe).as_uri(),
    )  # fmt: skip
    found = re.search(r"<title>(.*?)</title>", shown, re.S)
    assert found is not None
    return unescape(found.group(1))


def screenshot(page: Path, folder: Path, width: int, dark: bool, height: int = 1800) -> np.ndarray:
    """RGB, of the report itself where the window can be this narrow, of a frame of that width otherwise."""
    out = folder / f"{'dark' if dark else 'light'}-{width}.png"
    source = page if width >= 600 else framed(page, folder, width, "return 0")
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else ["--blink-settings=preferredColorScheme=1"]
    browse(
        folder / f"profile-{width}-{dark}", *scheme, f"--window-size={max(width, 600)},{height}", f"--screenshot={out}", source.as_uri()
    )  # fmt: skip
    return np.asarray(Image.open(out).convert("RGB"))[:, :width]


@pytest.mark.parametrize("width", [WIDE, PHONE])
@pytest.mark.parametrize("dark", [False, True])
def test_drawn_in_light_and_dark_wide_and_narrow(page: Path, tmp_path: Path, width: int, dark: bool) -> None:
    pixels = screenshot(page, tmp_path, width, dark)
    assert pixels.shape[1] == width
    colours = np.unique(pixels.astype(np.int64) @ [65536, 256, 1])
    assert len(colours) > 200  # not blank, and not one block of one colour
    mean = pixels.mean()
    assert mean < 60 if dark else mean > 225
    written = (np.abs(pixels.astype(int) - pixels[2, 2].astype(int)).sum(axis=2) > 120).mean()
    assert 0.01 < written < 0.5  # the text stands out from the ground


@pytest.mark.parametrize("width", [WIDE, PHONE, 320])
def test_nothing_scrolls_sideways_but_tables_in_their_boxes(page: Path, tmp_path: Path, width: int) -> None:
    probe = """
      document.querySelectorAll('details').forEach(d => d.open = true);
      const wide = [...document.querySelectorAll('body *')].filter(e =>
        !e.closest('.scroll, pre, svg') && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + '.' + e.className);
      const boxes = [...document.querySelectorAll('.scroll')].some(e => e.scrollWidth > e.clientWidth);
      return {page: document.documentElement.scrollWidth, inner: innerWidth, wide: wide.slice(0, 5), boxes};
    """
    import json

    found = json.loads(probed(page, tmp_path, width, probe))
    assert found["inner"] == width and found["page"] <= width, found
    assert found["wide"] == [] and found["boxes"]


def test_sorting_turns_rows_and_says_so_and_nothing_hostile_ran(page: Path, tmp_path: Path) -> None:
    probe = """
      const table = document.querySelector('table.sortable');
      const names = () => [...table.tBodies[0].rows].map(r => r.cells[1].dataset.v);
      const column = text => [...table.tHead.rows[0].cells].findIndex(c => c.textContent.trim() === text);
      const click = i => { const b = table.tHead.rows[0].cells[i].querySelector('button'); b.focus(); b.click(); return document.activeElement === b; };
      const before = names();
      const fit = column('fit'), focus = click(fit);
      const seconds = () => [...table.tBodies[0].rows].map(r => r.cells[fit].dataset.v);
      const up = seconds(), sort = table.tHead.rows[0].cells[fit].getAttribute('aria-sort');
      click(fit);
      const down = seconds();
      click(column('p'));
      const last = table.tBodies[0].rows[before.length - 1].cells[column('p')].dataset.v;
      click(column('method'));
      return {before, up, sort, down, last, focus, names: names(), title: document.title, sorted: table.querySelectorAll('th[aria-sort]').length};
    """
    import json

    found = json.loads(probed(page, tmp_path, WIDE, probe))
    up = [float(v) for v in found["up"]]
    assert up == sorted(up) and [float(v) for v in found["down"]] == up[::-1]
    assert found["sort"] == "ascending" and found["sorted"] == 1 and found["focus"]
    assert found["last"] == ""  # what has no value stands last either way
    assert sorted(found["names"]) == sorted(found["before"]) and found["names"] != found["before"]
    assert found["title"].endswith("· Latticework")


def test_the_policy_lets_the_reports_own_script_run_and_nothing_else(page: Path, tmp_path: Path) -> None:
    """The page as it is, with one foreign script put in: that one must not run, the report's own must."""
    text = page.read_text(encoding="utf-8")
    probe = "<script>document.title = 'owned'</script>"
    changed = tmp_path / "foreign.html"
    changed.write_text(text.replace("</main>", probe + "</main>"), encoding="utf-8")
    bare = tmp_path / "bare.html"
    bare.write_text(
        re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", changed.read_text(encoding="utf-8")), encoding="utf-8"
    )

    def seen(path: Path) -> tuple[str, bool]:
        done = subprocess.run(
            [str(BROWSER), *FLAGS, f"--user-data-dir={tmp_path / path.stem}", "--enable-logging=stderr", "--dump-dom", path.as_uri()],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        title = re.search(r"<title>(.*?)</title>", done.stdout, re.S)
        return (title.group(1) if title else ""), "Content Security Policy" in done.stderr

    assert seen(bare) == ("owned", False)  # without the policy it would run
    title, refused = seen(changed)
    assert title.endswith("· Latticework") and refused
    title, refused = seen(page)
    assert title.endswith("· Latticework") and not refused  # the report's own script, styles and images all pass
