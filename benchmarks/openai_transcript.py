"""What OpenAI's own client sends to `ertacache serve` and gets: `python benchmarks/openai_transcript.py`.

Starts the command on loopback with tiny-flux and two profiles of ten steps, then with tiny-wan, runs what is shown,
and writes docs/openai-transcript.md. Pictures are shortened there.
"""

import contextlib
import io
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Generator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import openai

import ertacache
from ertacache.pipelines import bundled
from ertacache.pipelines.loading import call_arguments, load_pipeline

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "openai-transcript.md"
PORT = 8123
HEAD = """# What OpenAI's client sees

Written by `python benchmarks/openai_transcript.py`, which starts `ertacache serve` on loopback and runs each of these
blocks with the official client (`openai` {version}), pictures shortened. What the fields mean: [Serving](serving.md).
"""
#: A heading and what is run below it.
Steps = tuple[tuple[str, str], ...]
IMAGES: Steps = (
    ("The model and its profiles", "show(client.models.list().data[0])"),
    (
        "A picture at each quality",
        """for quality in ("low", "medium", "high", "xhigh", "max", "auto"):
    answer = client.images.generate(prompt="a small red ring", quality=quality, size="64x64", extra_body={"seed": 7})
    own = answer.data[0].ertacache
    print(quality, own["profile"], own["computed"], "computed", own["predicted"], "predicted")
show(answer)""",
    ),
    (
        "Pictures on the way",
        """for event in client.images.generate(
    prompt="a small red ring", quality="low", stream=True, partial_images=2, extra_body={"seed": 7}
):
    show(event)""",
    ),
    (
        "What no profile fits is computed whole, and says so",
        """answer = client.images.generate(
    prompt="a small red ring", quality="low", extra_body={"seed": 7, "num_inference_steps": 6}
)
show(answer.data[0].ertacache)""",
    ),
    (
        "Refused",
        """for wrong in ({"size": "65x64"}, {"n": 0}, {"extra_body": {"num_inference_step": 6}}):
    try:
        client.images.generate(prompt="a small red ring", **wrong)
    except openai.BadRequestError as error:
        print(error.status_code, error.body["param"], "|", error.body["message"])""",
    ),
    (
        "A client that goes away: the denoiser stops at its next step",
        """with client.images.generate(
    prompt="a small red ring", stream=True, partial_images=1, extra_body={"num_inference_steps": 100}
) as stream:
    print(next(iter(stream)).type)
print(metric('requests_total{status="cancelled"}', at_least=1))""",
    ),
)
CLIPS: Steps = (
    (
        "A clip, followed to its end",
        """video = client.videos.create(prompt="a red ball", extra_body={"seed": 7, "num_inference_steps": 4})
print(video.status, video.progress)
while video.status in ("queued", "in_progress"):
    time.sleep(0.2)
    video = client.videos.retrieve(video.id)
show(video)
print(len(client.videos.download_content(video.id).read()), "bytes of mp4")""",
    ),
    (
        "A clip that is deleted while it is made",
        """video = client.videos.create(prompt="a red ball", extra_body={"num_inference_steps": 100})
show(client.videos.delete(video.id))
print(metric('requests_total{status="cancelled"}', at_least=1))
print([video.id for video in client.videos.list()])""",
    ),
)


def shortened(value: Any) -> Any:
    """Without the bulk of a picture."""
    if isinstance(value, dict):
        return {key: shortened(one) for key, one in value.items()}
    if isinstance(value, list):
        return [shortened(one) for one in value]
    if isinstance(value, float):
        return round(value, 3)
    return f"{value[:12]}… ({len(value)} letters)" if isinstance(value, str) and len(value) > 400 else value


def show(answer: Any) -> None:
    """As the client has it, without what it does not say."""
    fields = answer if isinstance(answer, dict) else answer.model_dump(exclude_unset=True)
    print(json.dumps(shortened(fields), indent=1, ensure_ascii=False))


def metric(name: str, at_least: float) -> str:
    """The line of /metrics, once its value is that large."""
    while True:
        page = httpx.get(f"http://127.0.0.1:{PORT}/metrics").text
        lines = [line for line in page.splitlines() if line.startswith(f"ertacache:diffusion_{name} ")]
        if lines and float(lines[0].split()[1]) >= at_least:
            return lines[0]
        time.sleep(0.05)


@contextlib.contextmanager
def served(*words: str) -> Generator[openai.OpenAI]:
    """A client of the command, once it is warm."""
    command = (sys.executable, "-c", "from ertacache.cli.app import main; main()", "serve", *words)
    with subprocess.Popen([*command, "--port", str(PORT)], stderr=subprocess.DEVNULL) as server:
        try:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"http://127.0.0.1:{PORT}/health").status_code == 200:
                        break
                if server.poll() is not None:
                    raise SystemExit(f"the server ended with {server.returncode}")
                time.sleep(0.2)
            with openai.OpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key="none", max_retries=0) as client:
                yield client
        finally:
            server.terminate()


def calibrated(folder: Path) -> list[str]:
    """The files of two profiles of ten steps, calibrated here."""
    pipe, prompts = load_pipeline("tiny-flux"), bundled.calibration_prompts(16, "tiny-flux")
    call = call_arguments("tiny-flux", {"num_inference_steps": 10})
    profiles = ertacache.calibrate(pipe, prompts, compute_steps=[4, 7], show_progress=False, **call)
    paths = [folder / f"{name}.safetensors" for name in ("fast", "fine")]
    for path, profile in zip(paths, profiles, strict=True):
        profile.save(path)
    return [str(path) for path in paths]


def run(client: openai.OpenAI, steps: Steps) -> list[str]:
    """Each step as a section: what is run, and what it prints."""
    names, parts = {"client": client, "show": show, "metric": metric, "openai": openai, "time": time}, list[str]()
    for title, source in steps:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(source, names)  # what is shown is what is run
        code = f"<!-- not run: it needs a server that runs -->\n```python\n{source}\n```"
        parts.append(f"## {title}\n\n{code}\n\n```text\n{printed.getvalue().strip()}\n```")
    return parts


def main() -> None:
    warnings.filterwarnings("ignore", "The Sora API")
    with TemporaryDirectory() as folder:
        words = [word for path in calibrated(Path(folder)) for word in ("--profile", path)]
        with served("tiny-flux", *words) as client:
            parts = run(client, IMAGES)
    with served("tiny-wan") as client:
        parts += run(client, CLIPS)
    PAGE.write_text("\n\n".join([HEAD.format(version=openai.__version__).strip(), *parts]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
