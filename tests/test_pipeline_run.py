"""Runs of a pipeline as it is: its noise, its arguments, and what the uncached run leaves behind."""

from pathlib import Path
from typing import Any

import pytest
import torch

import small_modular
from by_hand import ByHand
from dummy_pipeline import PROMPTS, decode, mixture_pipeline
from ertacache.calibration.calibrate import calibrate
from ertacache.calibration.pipeline_run import Final, check_call, run_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.calibration.recording import Recording
from ertacache.calibration.reference_log import ReferenceLog
from ertacache.errors import InvalidArgument, UnsupportedPipeline
from ertacache.pipelines.pipeline_call import defaults_of, progress_bars
from ertacache.runtime.run import Controller, Run
from small_parts import THREE_PROMPTS

T, W = 10, 7.0
CALL: dict[str, Any] = {"num_inference_steps": T, "guidance_scale": W}
BLOCKS_CALL: dict[str, Any] = {"num_inference_steps": 2, "height": 32, "width": 32, "max_sequence_length": 32}


def by_hand(n: int = 8) -> ByHand:
    return ByHand(PROMPTS[:n], 3, T, W, mixture_pipeline().transformer.mixture)


def test_prompt_n_starts_from_the_noise_of_seed_plus_n_in_any_batch():
    prompts = Prompts(tuple(PROMPTS), 3)
    expected = by_hand().uncached()[0].float()
    for size in (None, 8, 3, 1):
        parts = prompts.batches(size)
        assert [text for part in parts for text in part.texts] == PROMPTS
        pipe = mixture_pipeline()
        latents = torch.cat([run_pipeline(pipe, part, Controller(), CALL, decode=False) for part in parts])
        torch.testing.assert_close(latents, expected, rtol=1e-6, atol=1e-6)
    assert [part.seed for part in prompts.batches(3)] == [3, 6, 9]
    assert [len(part.texts) for part in prompts.batches(3)] == [3, 3, 2]


def test_images_are_decoded_and_latents_are_kept():
    final = Final(keep_outputs=True)
    images = run_pipeline(mixture_pipeline(), Prompts(tuple(PROMPTS[:4]), 3), final, CALL)
    latents, _, guided = by_hand(4).uncached()
    assert images.dtype == torch.float32 and images.shape == (4, 3, 12, 12)
    torch.testing.assert_close(images, decode(latents).float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(final.latents, latents.float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.stack(final.outputs), torch.stack(guided).float(), rtol=1e-5, atol=1e-5)
    assert torch.equal(final.sigmas, by_hand().sigmas)


def test_final_keeps_what_the_solver_received_from_the_controller_inside():
    class Halves(Controller):
        call_names = ("a", "b")

        def solve(self, run: Run, output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            assert run.contexts == ["a", "b"]
            return output / 2

    plain, halved = Final(keep_outputs=True), Final(Halves(), keep_outputs=True)
    for final in (plain, halved):
        run_pipeline(mixture_pipeline(named=False), Prompts(tuple(PROMPTS[:2]), 3), final, CALL)
    assert torch.equal(halved.outputs[0], plain.outputs[0] / 2) and len(halved.outputs) == T


def test_texts_are_given_once_per_prompt_and_nothing_else_is_changed():
    pipe = mixture_pipeline()
    pipe.set_progress_bar_config(desc="mine")
    run_pipeline(
        pipe, Prompts(("a of class 1", "b of class 2"), 0), Controller(), {**CALL, "negative_prompt": "blurred"}
    )
    assert pipe.seen[0]["prompt"] == ["a of class 1", "b of class 2"]
    assert pipe.seen[0]["negative_prompt"] == ["blurred", "blurred"]
    assert pipe.seen[0]["bar"] == {"desc": "mine", "disable": True}
    assert pipe._progress_bar_config == {"desc": "mine"}
    run_pipeline(
        pipe, Prompts(("a of class 1", "b of class 2"), 0), Controller(), {**CALL, "negative_prompt": ["", "x"]}
    )
    assert pipe.seen[1]["negative_prompt"] == ["", "x"]


def test_second_prompts_are_repeated_too():
    class Pipeline:
        transformer, scheduler = mixture_pipeline().transformer, mixture_pipeline().scheduler

        def set_progress_bar_config(self, **config: Any) -> None:
            pass

        def __call__(self, **arguments: Any) -> tuple[torch.Tensor]:
            self.arguments = arguments
            return (torch.zeros(2, 1),)

    pipe = Pipeline()
    call = {"prompt_2": "a", "negative_prompt_2": "b", "negative_prompt_3": "c", "prompt_template": "d", "system": "e"}
    run_pipeline(pipe, Prompts(("x", "y"), 0), Controller(), call)
    kept = {name: pipe.arguments[name] for name in call}
    assert kept == {
        "prompt_2": ["a", "a"],
        "negative_prompt_2": ["b", "b"],
        "negative_prompt_3": ["c", "c"],
        "prompt_template": "d",
        "system": "e",
    }


def test_a_pipeline_that_returns_no_tensor_is_refused():
    class Pipeline:
        transformer, scheduler = mixture_pipeline().transformer, mixture_pipeline().scheduler

        def set_progress_bar_config(self, **config: Any) -> None:
            pass

        def __call__(self, **arguments: Any) -> tuple[list[str]]:
            return (["picture"],)

    with pytest.raises(UnsupportedPipeline, match="Pipeline returned list for output_type='pt'"):
        run_pipeline(Pipeline(), Prompts(("x",), 0), Controller(), {})


def test_sections_of_a_clip_are_joined_on_their_frames():
    class Pipeline:
        transformer, scheduler = mixture_pipeline().transformer, mixture_pipeline().scheduler

        def set_progress_bar_config(self, **config: Any) -> None:
            pass

        def __call__(self, **arguments: Any) -> tuple[list[torch.Tensor]]:
            return ([torch.full((1, 2, frames, 1, 1), float(frames)) for frames in (1, 2)],)

    found = run_pipeline(Pipeline(), Prompts(("x",), 0), Controller(), {}, decode=False)
    assert found[0, 0, :, 0, 0].tolist() == [1, 2, 2]


def test_a_pipeline_of_blocks_is_called_by_what_its_blocks_take_and_give():
    pipe: Any = small_modular.flux().pipe
    (bar,) = progress_bars(pipe)
    bar.set_progress_bar_config(desc="mine")
    prompts = Prompts(tuple(THREE_PROMPTS[:2]), 3)
    final, seen = Final(), list[dict[str, Any]]()
    loop = type(bar).__call__

    def looped(block: Any, *args: Any) -> Any:
        seen.append(dict(block._progress_bar_config))
        return loop(block, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(bar), "__call__", looped)
        images = run_pipeline(pipe, prompts, final, BLOCKS_CALL)
    assert images.shape == (2, 3, 32, 32) and 0 <= images.min() and images.max() <= 1
    assert seen == [{"desc": "mine", "disable": True}] and bar._progress_bar_config == {"desc": "mine"}
    latents = run_pipeline(pipe, prompts, Controller(), BLOCKS_CALL, decode=False)
    assert latents.shape == (2, 4, 16, 16) and latents.numel() == final.latents.numel()
    assert defaults_of(pipe)["num_inference_steps"] == 50
    check_call(pipe, BLOCKS_CALL)
    with pytest.raises(InvalidArgument, match=r"no argument 'num_inference_step'.*num_inference_steps"):
        check_call(pipe, {"num_inference_step": 4})


@pytest.mark.filterwarnings("ignore:.*steps leave caching little", "ignore:this plan", "ignore:.*judged prompts")
def test_calls_in_lockstep_leave_the_bars_of_shared_blocks_as_they_were():
    pipe: Any = small_modular.flux().pipe
    (bar,) = progress_bars(pipe)
    bar.set_progress_bar_config(desc="mine")
    call = {**BLOCKS_CALL, "num_inference_steps": 3}
    calibrate(pipe, THREE_PROMPTS, schedule="#.#", batch_size=1, show_progress=False, call=call)
    assert bar._progress_bar_config == {"desc": "mine"}


def test_a_pipeline_of_blocks_without_one_that_decodes_is_refused():
    pipe = small_modular.without_decoder()
    prompts = Prompts(tuple(THREE_PROMPTS[:1]), 0)
    with pytest.raises(UnsupportedPipeline, match=r"no block that gives images or videos.*block that decodes"):
        run_pipeline(pipe, prompts, Controller(), BLOCKS_CALL)
    assert run_pipeline(pipe, prompts, Controller(), BLOCKS_CALL, decode=False).shape == (1, 4, 16, 16)


@pytest.mark.parametrize(("named", "contexts"), [(True, ("cond", "uncond")), (False, ("call0", "call1"))])
def test_the_uncached_run_leaves_its_facts(named: bool, contexts: tuple[str, ...], tmp_path: Path):
    log = ReferenceLog(tmp_path / "run.bin")
    run_pipeline(mixture_pipeline(named=named), Prompts(tuple(PROMPTS), 3), log, CALL)
    latents, xs, gs = by_hand().uncached()
    recording = Recording.open(tmp_path / "run.bin", log.finish())
    torch.testing.assert_close(recording.outputs, torch.stack(gs), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(recording.latents, torch.stack([*xs, latents]), rtol=1e-9, atol=1e-9)
    assert recording.directions is not None and log.directed
    torch.testing.assert_close(recording.directions, directions(xs), rtol=1e-9, atol=1e-9)
    assert torch.equal(log.sigmas, by_hand().sigmas)
    assert log.contexts == contexts and log.dtype == "torch.float64" and log.hidden == []
    assert log.weights == pytest.approx((W,), rel=1e-5) and log.embedded is None


def directions(xs: list[torch.Tensor]) -> torch.Tensor:
    """c − u at the latents of an uncached run."""
    hand = by_hand()
    calls = [hand.call(x, sigma) for x, sigma in zip(xs, hand.sigmas, strict=False)]
    return torch.stack([call["cond"] - call["uncond"] for call in calls])


def test_a_run_that_starts_late_is_refused(tmp_path: Path):
    pipe = mixture_pipeline()
    pipe.start = 2
    with pytest.raises(UnsupportedPipeline, match="starts at step 2; calibrate on a run that starts at step 0"):
        run_pipeline(pipe, Prompts(tuple(PROMPTS), 0), ReferenceLog(tmp_path / "x"), CALL)


def test_what_the_pipeline_refuses_is_bad_input(monkeypatch: pytest.MonkeyPatch):
    def refuses(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise ValueError("`height` has to be divisible by 8 but is 37")

    pipe = mixture_pipeline()
    monkeypatch.setattr(type(pipe), "__call__", refuses)
    message = r"DummyPipeline refuses the call: `height` has to be divisible by 8 but is 37$"
    with pytest.raises(InvalidArgument, match=message):
        run_pipeline(pipe, Prompts(("x",), 0), Controller(), CALL)


def test_arguments_of_the_call_are_checked_by_name_and_kind():
    pipe = mixture_pipeline()
    check_call(pipe, {**CALL, "negative_prompt": "", "sigmas": [1.0, 0.5]})
    with pytest.raises(
        InvalidArgument, match="no argument 'true_cfg_scale'; DummyPipeline takes prompt, num_inference_steps"
    ):
        check_call(pipe, {"true_cfg_scale": 4})
    with pytest.raises(InvalidArgument, match="'prompt' is set by this package for each prompt; leave it out"):
        check_call(pipe, {"prompt": "a"})
    with pytest.raises(InvalidArgument, match=r"extra=.*Tensor|tensor.* cannot be written in a profile"):
        check_call(pipe, {"extra": torch.ones(2)})
