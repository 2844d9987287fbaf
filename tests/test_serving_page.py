"""The page of the server in Chromium: clicked through from a frame of the same server, without further packages."""

import asyncio
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request, Response

import served
import served_flux
from ertacache.serving import app as application

CHROMIUM = shutil.which("chromium")
#: Waits for the page, moves the budget, generates, moves the comparison; then what a person would read is sent.
#: Chromium stays until the page is whole, which the picture /held delays to the end.
DRIVER = """<!doctype html><iframe id="f" src="/" width="WIDTH" height="900"></iframe><img src="/held"><script>
const wait = done => new Promise(go => { const ask = () => done() ? go() : setTimeout(ask, 50); ask(); });
(async () => {
  await wait(() => document.getElementById("f").contentDocument?.getElementById("go")?.disabled === false);
  const d = document.getElementById("f").contentDocument, $ = id => d.getElementById(id), seen = {};
  seen.model = $("model").textContent;
  seen.said = [];
  for (const at of [0, 1, 2]) {
    $("budget").value = at; $("budget").dispatchEvent(new Event("input"));
    seen.said.push($("said").textContent);
  }
  $("budget").value = 1; $("budget").dispatchEvent(new Event("input"));
  $("go").click();
  await wait(() => d.body.dataset.state);
  seen.state = d.body.dataset.state;
  seen.pictures = [...d.querySelectorAll("#view img")].map(i => [i.alt, i.naturalWidth]);
  const strip = id => [...d.querySelectorAll(`#${id} .strip i`)].map(i => i.className).join();
  seen.cached = strip("cached"); seen.plain = strip("plain");
  $("at").value = 25; $("at").dispatchEvent(new Event("input"));
  seen.clip = getComputedStyle(d.querySelector(".over")).clipPath;
  await wait(() => $("card").textContent.includes("5 of 10"));
  seen.wider = d.documentElement.scrollWidth > d.documentElement.clientWidth;
  seen.right = $("right").textContent;
  $("prompt").value = " "; delete d.body.dataset.state; $("go").click();
  await wait(() => d.body.dataset.state);
  seen.error = $("error").textContent;
  await fetch("/seen", {method: "POST", body: JSON.stringify(seen)});
})();
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_clicked_through(width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made, found = application.make_app, list[dict[str, Any]]()

    async def note(request: Request) -> None:
        found.append(await request.json())

    async def hold() -> None:
        while not found:
            await asyncio.sleep(0.05)

    def with_driver(service: application.Service) -> application.FastAPI:
        app = made(service)
        page = DRIVER.replace("WIDTH", str(width))
        app.get("/drive")(lambda: Response(page, media_type="text/html"))
        app.get("/held")(hold)
        app.post("/seen")(note)
        return app

    monkeypatch.setattr(served, "make_app", with_driver)
    with served.running(served_flux.service()) as url:
        command = (
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path}", "--dump-dom", f"{url}/drive",
        )  # fmt: skip
        subprocess.run(command, capture_output=True, timeout=300, check=True)
    (seen,) = found
    assert seen["model"] == "tiny-flux, 64 × 64"
    plans = ["computes 3 of 10 steps", "computes 5 of 10 steps, 31.5 dB on judged prompts", "computes all 10 steps"]
    for said, plan in zip(seen["said"], plans, strict=True):
        assert re.fullmatch(rf"about [\d.]+ s, uncached( [\d.]+ s)?{re.escape(plan)}", said), said
    assert seen["state"] == "done"
    assert seen["pictures"] == [["uncached", 64], ["half", 64]]
    assert seen["cached"] == ",".join("c done" if mark == "#" else " done" for mark in served_flux.MASKS["half"])
    assert seen["plain"] == ",".join(["c done"] * 10)
    assert seen["clip"] == "inset(0px 0px 0px 25%)"
    assert re.fullmatch(r"half, [\d.]+ s: [\d.]+ × (faster|slower)", seen["right"])
    assert not seen["wider"]
    assert seen["error"] == "prompt is missing or empty; say what to draw"
