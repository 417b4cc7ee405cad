#!/usr/bin/env python3
"""Pages in a browser: pages_test.py TPLIMIT FOLDER-OF-PROGRAMS [SCREENSHOTS].

Each command's page is opened from disk in headless Chromium, with a script behind its own that records errors, moves every
slider, points at every chart and saves every CSV.  Exit code 77 (a skipped test) without Chromium.
"""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

PROBE = """<script>
"use strict";
(() => {
  const seen = { errors: window.faults, figures: 0, marks: 0, sliders: 0, moved: 0, read: 0, files: [] };
  const make = URL.createObjectURL;
  const pending = [];
  URL.createObjectURL = (blob) => { pending.push(blob.text()); return make(blob); };
  HTMLAnchorElement.prototype.click = () => {};
  for (const figure of document.querySelectorAll("figure")) {
    seen.figures += 1;
    const picture = figure.querySelector(":scope > svg");
    seen.marks += picture.querySelectorAll("path, polyline, rect, circle, line").length;
    const box = picture.getBoundingClientRect();
    for (const [type, target] of [["pointermove", picture], ["pointerenter", picture.querySelector(".cells rect")]])
      target?.dispatchEvent(new PointerEvent(type, { clientX: box.left + box.width / 2, clientY: box.top + box.height / 2 }));
    if (figure.querySelector(".readout").textContent) seen.read += 1;
    const slider = figure.querySelector("input[type=range]");
    if (slider) {
      seen.sliders += 1;
      const colours = () => [...picture.querySelectorAll(".cells rect")].map((r) => r.getAttribute("fill")).join();
      const before = colours();
      slider.value = 0;
      slider.dispatchEvent(new Event("input"));
      if (colours() !== before) seen.moved += 1;
    }
    figure.querySelector(".csv").click();
  }
  Promise.all(pending).then((files) => {
    seen.files = files.map((text) => text.split("\\n").length - 2);
    document.body.setAttribute("data-seen", JSON.stringify(seen));
  });
})();
</script></body>"""
CATCH = """<script>window.faults = [];
window.addEventListener("error", (e) => window.faults.push(e.message));
const say = console.error; console.error = (...words) => { window.faults.push(words.join(" ")); say(...words); };</script>"""
BROWSER = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
           "--disable-component-update", "--disable-sync", "--hide-scrollbars"]


def browser():
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def visited(page, folder):
    """What the probe saw in a copy of the page."""
    text = page.read_text(encoding="utf-8")
    head, body = text.find("<head>") + len("<head>"), text.rfind("</body>")
    assert head >= len("<head>") and body > 0, f"{page}: no head, or no end of the body"
    copy = folder / "probe.html"
    copy.write_text(text[:head] + CATCH + text[head:body] + PROBE + text[body + len("</body>"):], encoding="utf-8")
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run([browser(), *BROWSER, f"--user-data-dir={profile}", "--virtual-time-budget=4000", "--dump-dom",
                               copy.as_uri()], capture_output=True, text=True, timeout=240)
    found = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert found, f"{page}: the probe did not end\n{done.stderr[-2000:]}"
    return json.loads(found.group(1).replace("&quot;", '"').replace("&amp;", "&"))


def main(tplimit, programs, screenshots=None):
    if not browser():
        print("no Chromium: skipped")
        return 77
    programs = pathlib.Path(programs).resolve()
    small = ["--particles", "512", "--randomisations", "2"]
    pages = {
        "run": ["run", "start/mlp_mup.tp", *small],
        "compare": ["compare", "start/mlp_mup.tp", "--widths", "32,64,128", "--seeds", "4", *small],
        "simulate": ["simulate", "start/classifier.tp", "--width", "64", "--seeds", "2"],
        "check": ["check", "architectures/decoder.tp"],
        "explain": ["explain", "start/netsor_tied.tp"],
        "sweep": ["sweep", "start/mlp_linear.tp", "--over", "eta=0.1,0.2", "--widths", "16,32", "--seeds", "4"],
        "coordcheck": ["coordcheck", "start/mlp_mup.tp", "--widths", "32,64", "--seeds", "2", "--steps", "2", *small],
    }
    charts = {"run", "compare", "simulate", "sweep", "coordcheck"}
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        for name, words in pages.items():
            page = scratch / f"{name}.html"
            done = subprocess.run([tplimit, words[0], str(programs / words[1]), *words[2:], "--quiet", "--html", str(page)],
                                  capture_output=True, text=True)
            assert page.exists(), f"{name}: no page\n{done.stderr}"
            seen = visited(page, scratch)
            print(name, seen)
            assert not seen["errors"], f"{name}: {seen['errors']}"
            assert (seen["figures"] > 0) == (name in charts), f"{name}: {seen['figures']} charts"
            assert len(seen["files"]) == seen["figures"] and all(rows > 0 for rows in seen["files"]), f"{name}: CSV {seen['files']}"
            if name in charts:
                assert seen["marks"] > 5 * seen["figures"], f"{name}: {seen['marks']} marks"
                assert seen["read"] == seen["figures"], f"{name}: {seen['read']} charts say what is under the pointer"
                assert seen["moved"] == seen["sliders"], f"{name}: {seen['moved']} of {seen['sliders']} sliders change the picture"
            if screenshots:
                with tempfile.TemporaryDirectory() as profile:
                    subprocess.run([browser(), *BROWSER, f"--user-data-dir={profile}", "--window-size=1100,1600",
                                    f"--screenshot={pathlib.Path(screenshots).resolve() / name}.png", page.as_uri()],
                                   capture_output=True, timeout=240, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
