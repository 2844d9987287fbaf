"""Pictures of the server's page in Chromium, for docs/serving.md: `python benchmarks/serving_pictures.py`.

Generates a picture under a calibrated profile beside the uncached one, as a person would, at 1280 and at 390 pixels.
"""

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from fastapi import Request, Response
from openai_transcript import calibrated
from PIL import Image

from ertacache.pipelines.loading import load_pipeline
from ertacache.serving import app as application
from ertacache.serving.ladder import read_rungs
from ertacache.serving.service import Service

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
SIZES = {1280: 1210, 390: 1720}
#: Chromium takes its picture when the page is whole, which the picture /held delays until the click-through is done.
CLICKS = """<img src="/held" alt="" hidden><script>
const until = done => new Promise(go => { const ask = () => done() ? go() : setTimeout(ask, 50); ask(); });
(async () => {
  await until(() => !$("go").disabled);
  $("budget").value = 0; choose();
  await generate();
  $("at").value = 60; $("at").dispatchEvent(new Event("input"));
  await until(() => $("card").textContent.includes(" of 10"));
  await fetch("/seen", {method: "POST"});
})();
</script></body>"""


def with_clicks(service: Service) -> application.FastAPI:
    """The application with /clicked, the page that clicks on itself."""
    app, seen = application.make_app(service), asyncio.Event()

    async def note(request: Request) -> None:
        seen.set()

    async def hold() -> None:
        await seen.wait()
        seen.clear()

    page = (ROOT / "src" / "ertacache" / "serving" / "page.html").read_text(encoding="utf-8")
    page = page.replace("</body>", CLICKS)
    app.get("/clicked")(lambda: Response(page, media_type="text/html"))
    app.get("/held")(hold)
    app.post("/seen")(note)
    return app


def main() -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    import served

    served.make_app = with_clicks
    with TemporaryDirectory() as folder:
        rungs = read_rungs(calibrated(Path(folder)))
        with served.running(Service("tiny-flux", [load_pipeline("tiny-flux")], rungs)) as url:
            for width, height in SIZES.items():
                shot = Path(folder) / f"{width}.png"
                command = (
                    str(shutil.which("chromium")), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
                    "--no-first-run", "--disable-background-networking", "--disable-component-update",
                    "--disable-sync", "--hide-scrollbars", f"--user-data-dir={folder}/{width}",
                    f"--window-size={width},{height}", f"--screenshot={shot}", f"{url}/clicked",
                )  # fmt: skip
                subprocess.run(command, capture_output=True, timeout=300, check=True)
                Image.open(shot).convert("RGB").save(IMAGES / f"serving-{width}.webp", quality=70, method=6)


if __name__ == "__main__":
    main()
