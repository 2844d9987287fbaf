"""Real Ray, two actors of one CPU each: what they make together is what one process makes, also where one is killed."""

import io
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import cached
import ertacache.cli.app as cli
import ertacache.ray
import pipelines
from benchmark_scripts import ROOT
from doc_blocks import blocks, compiled
from dummy_pipeline import DummyPipeline, mixture_pipeline
from ertacache.calibration.calibrate import calibrate
from ertacache.errors import CalibrationError, InvalidArgument
from ertacache.evaluation.comparison.run import run_comparison
from ertacache.pipelines.loading import call_arguments, load_pipeline
from ertacache.profile.profile import Profile
from ertacache.ray.dataset import eight_bit_samples
from ertacache.runtime.apply import apply
from ertacache_zoo import catalogue
from on_ray import EXAMPLES, started
from test_spread import CALL, ENTRANTS, JOB, KINDS, files, plain

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*judged prompts cannot tell"),
    pytest.mark.filterwarnings("ignore:this plan's results are far"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of Ray's own
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
STEPS = {"num_inference_steps": 8}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As Ray gives an actor of one CPU: sums in another number of threads differ in their last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    pytest.importorskip("ray")
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, started(Path(folder)) as found:
        yield found


def on_cpus(pipeline: Any = None, **options: Any) -> Any:
    return ertacache.ray.map(pipeline, num_gpus=0, **options)


def test_ray_asks_for_a_token_and_leaves_none_at_home(ray: Any):
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert Path(os.environ["RAY_AUTH_TOKEN_PATH"]).parent != Path.home() / ".ray"


def test_a_calibration_of_a_loaded_pipeline_needs_no_word_about_it(ray: Any, tmp_path: Path):
    pipe, prompts = load_pipeline("tiny-flux"), catalogue.calibration_prompts(6)
    options = {"compute_steps": 4, "effort": "fast", "batch_size": 1, "show_progress": False}
    options |= {"call": call_arguments("tiny-flux", STEPS)}
    alone = calibrate(pipe, prompts, **options)
    spread = calibrate(pipe, prompts, **options, map=on_cpus(), checkpoint=tmp_path / "runs")
    assert spread.schedule == alone.schedule and spread.provenance.heldout == alone.provenance.heldout
    torch.testing.assert_close(spread.predictor.a, alone.predictor.a, rtol=0, atol=1e-6)


def test_a_command_spreads_a_calibration(ray: Any, tmp_path: Path):
    (tmp_path / "prompts.txt").write_text("\n".join(catalogue.calibration_prompts(6)))
    asked = ["calibrate", "tiny-flux", "--prompts", "prompts.txt", "--num-inference-steps", 8, "--compute-steps", 4]
    asked += ["--effort", "fast", "--batch-size", 1, "--quiet", "--out"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        for more in (["alone"], ["spread", "--ray-actors", 2, "--num-gpus", 0]):
            result = CliRunner().invoke(cli.app, [str(one) for one in (*asked, *more)], catch_exceptions=False)
            assert result.exit_code == 0, result.output
    assert plain(Profile.load(tmp_path / "spread")) == plain(Profile.load(tmp_path / "alone"))


def killed_once(marker: Path) -> Callable[[], DummyPipeline]:
    """Makes a pipeline of which the first that comes to its 40th denoiser call ends its process."""

    def make() -> DummyPipeline:
        pipe = mixture_pipeline()

        def pause() -> None:
            if len(pipe.transformer.made.sizes) == 40 and not marker.exists():
                marker.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)

        pipe.transformer.made.pause = pause
        return pipe

    return make


def test_the_work_of_a_killed_actor_is_done_again(ray: Any, tmp_path: Path):
    prompts, options = KINDS["search"]
    spread = on_cpus(killed_once(tmp_path / "killed"), actors=2)
    expected = calibrate(mixture_pipeline(), prompts, **CALL, **options)
    found = calibrate(mixture_pipeline(), prompts, **CALL, **options, map=spread)
    assert int((tmp_path / "killed").read_text()) != os.getpid()
    assert plain(found) == plain(expected)
    assert found.provenance.measured["uncached_runs"] == expected.provenance.measured["uncached_runs"]
    spread.close()


def ended(pipe: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_unit_that_always_ends_its_actor_is_given_up_and_others_are_not_waited_for(ray: Any):
    spread = on_cpus(mixture_pipeline, actors=1)
    with pytest.raises(CalibrationError, match=r"^a unit of work has ended its actor 3 times"):
        list(spread(mixture_pipeline(), _same, [ended]))
    assert list(spread(mixture_pipeline(), _same, [_name, _name])) == ["DummyPipeline"] * 2
    spread.close()


def _same(pipe: Any) -> Any:
    return pipe


def _name(pipe: Any) -> str:
    return type(pipe).__name__


def test_the_rows_of_a_comparison_are_those_of_one_process(ray: Any, tmp_path: Path):
    run_comparison(pipelines.flux(), ENTRANTS[:2], JOB, tmp_path / "alone", show_progress=False)
    spread = on_cpus(pipelines.flux)
    run_comparison(pipelines.flux(), ENTRANTS[:2], JOB, tmp_path / "spread", map=spread, show_progress=False)
    alone = files(tmp_path / "alone")
    times = {name for name in alone if name == "timings.jsonl" or name.startswith("references/")}
    assert files(tmp_path / "spread", *times) == {name: data for name, data in alone.items() if name not in times}
    spread.close()


def rows(count: int = 3) -> list[dict[str, Any]]:
    return [{"prompt": text, "n": 7 * n} for n, text in enumerate(pipelines.PROMPTS[:count])]


def flux_profile() -> Profile:
    return cached.profile(pipelines.flux(), "output", cached.MASK)


def test_each_row_has_the_picture_that_its_seed_gives_alone(ray: Any):
    dataset, options = ray.data.from_items(rows()), {"num_gpus": 0, "concurrency": 2, "seed_column": "n"}
    made = ertacache.ray.generate(dataset, pipelines.flux, flux_profile(), call=pipelines.CALL, **options).take_all()
    pipe = pipelines.flux()
    assert sorted(row["n"] for row in made) == [0, 7, 14]
    with apply(pipe, flux_profile()) as stats:
        for row in made:
            generator = torch.Generator("cpu").manual_seed(row["n"])
            alone = pipe(prompt=row["prompt"], generator=generator, output_type="pt", **pipelines.CALL).images
            assert np.array_equal(row["image"], eight_bit_samples(alone)[0]) and row["image"].dtype == np.uint8
            assert (row["computed"], row["predicted"]) == (stats.computed.total(), stats.predicted.total()) == (5, 5)
            assert row["reason"] is None


def test_rows_that_the_profile_does_not_suit_say_why(ray: Any, tmp_path: Path):
    dataset, path = ray.data.from_items(rows(2)), flux_profile().save(tmp_path / "p.safetensors")
    call = {**pipelines.CALL, "num_inference_steps": 4}
    options = {"call": call, "num_gpus": 0, "on_mismatch": "compute", "batch_size": 2, "seed": 3}
    made = ertacache.ray.generate(dataset, pipelines.flux, path, **options).take_all()
    assert [(row["computed"], row["predicted"]) for row in made] == [(4, 0)] * 2
    assert all("steps" in row["reason"] for row in made)


def test_what_cannot_be_sent_or_is_another_is_refused_by_name(ray: Any):
    dataset, pipe, profile = ray.data.from_items(rows()), mixture_pipeline(), flux_profile()
    refused: list[tuple[str, Callable[[], object]]] = [
        (
            "pipeline is a DummyPipeline, which cannot be sent to actors; give its folder or Hub id, or a function "
            "without arguments that makes it",
            lambda: on_cpus(pipe),
        ),
        (
            "this DummyPipeline cannot be sent to actors and was loaded from nowhere; say how they get one like it: "
            "ertacache.ray.map(pipeline=...), a folder, a Hub id or a function without arguments",
            lambda: list(on_cpus()(pipe, _same, [_name])),
        ),
        (
            "pipeline=other_weights gives the actors another DummyPipeline than the one that was given (its weights, a "
            "configuration or the scheduler differ); give a function that makes this one: "
            "ertacache.ray.map(pipeline=...)",
            lambda: list(on_cpus(other_weights)(pipe, _same, [_name])),
        ),
        (
            "3 actor(s) with num_gpus=0 and num_cpus=1 do not fit into a cluster of 0 GPUs and 2 CPUs; ask for less, "
            "such as num_gpus=0 to work on CPUs",
            lambda: list(on_cpus(mixture_pipeline, actors=3)(pipe, _same, [_name])),
        ),
        (
            "prompt_column is 'text', and the dataset has prompt, n; name one of them",
            lambda: ertacache.ray.generate(dataset, pipelines.flux, profile, prompt_column="text"),
        ),
        (
            "the dataset has a column 'image', which the result would overwrite; rename it: rename_columns",
            lambda: ertacache.ray.generate(dataset.rename_columns({"n": "image"}), pipelines.flux, profile),
        ),
        (
            "dataset is a list; give a ray.data.Dataset, as ray.data.from_items",
            lambda: ertacache.ray.generate(rows(), pipelines.flux, profile),
        ),
        ("profile is a int; pass a Profile, or", lambda: ertacache.ray.generate(dataset, pipelines.flux, 3)),  # pyright: ignore[reportArgumentType]
        (
            "lock is a lock, which cannot be sent to actors (cannot pickle '_thread.lock' object)",
            lambda: ertacache.ray.generate(dataset, pipelines.flux, profile, call={"lock": _lock()}),
        ),
        ("num_gpus is -1; give the GPUs of each actor", lambda: ertacache.ray.map(num_gpus=-1)),
        ("num_cpus is 0; give the CPUs of each actor, 1 or more", lambda: on_cpus(num_cpus=0)),
        ("actors is 0; choose a whole number of 1 or more", lambda: on_cpus(actors=0)),
        (
            "concurrency is 1; choose a whole number of 2 or more",
            lambda: ertacache.ray.generate(dataset, pipelines.flux, profile, concurrency=(2, 1)),
        ),
        (
            "on_mismatch is 'ignore'; choose 'refuse' or 'compute'",
            lambda: ertacache.ray.generate(dataset, pipelines.flux, profile, on_mismatch="ignore"),  # pyright: ignore[reportArgumentType]
        ),
        ("no model 'tiny-flx'; did you mean tiny-flux?", lambda: on_cpus("tiny-flx")),
    ]
    for message, use in refused:
        with pytest.raises(InvalidArgument) as error:
            use()
        assert str(error.value).startswith(message), str(error.value)


def other_weights() -> DummyPipeline:
    return mixture_pipeline(seed=3)


def _lock() -> Any:
    return threading.Lock()


def test_ray_serve_answers_with_the_profile_of_the_budget(ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from ray import serve

    monkeypatch.syspath_prepend(EXAMPLES)
    from ray_serve import app

    pipe = load_pipeline("tiny-flux")
    for name, mask in (("half", cached.MASK), ("third", "#...#....#")):
        cached.profile(pipe, "output", mask).save(tmp_path / f"{name}.safetensors")
    paths = [str(tmp_path / f"{name}.safetensors") for name in ("half", "third")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(app({"model": "tiny-flux", "profiles": ",".join(paths), "num_gpus": "0"}))
        url = f"http://127.0.0.1:{port}"
        order = {"prompt": pipelines.PROMPTS[0], "seed": 4, "num_inference_steps": 10}
        for budget, computed in ((1.0, "all"), (0.5, "5"), (0.3, "3"), (0.1, "3")):
            answer = httpx.post(url, json={**order, "budget": budget}, timeout=None)
            assert answer.status_code == 200 and answer.headers["x-computed"] == computed, answer.text
            assert Image.open(io.BytesIO(answer.content)).size == (64, 64)
        wrong = httpx.post(url, json={"seed": 4}, timeout=None)
        assert (wrong.status_code, wrong.text) == (400, "prompt is missing; give a text")
    finally:
        serve.shutdown()


def test_the_page_does_what_it_says(ray: Any, capsys: pytest.CaptureFixture[str]):
    page, namespace = ROOT / "docs" / "many-machines.md", dict[str, Any](__name__="page")
    for block in blocks(page, "python"):
        exec(compiled(page, block), namespace)
    assert capsys.readouterr().out.count("(64, 64, 3) 4 4 None") == 4
    assert plain(namespace["again"]) == plain(namespace["profile"])
