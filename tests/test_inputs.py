"""What prompts bring along beside their text: it reaches the pipeline with its prompt, and no profile."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dummy_pipeline import PROMPTS, DummyPipeline, label_of, mixture_pipeline
from ertacache.baselines.baseline import Bench
from ertacache.calibration.calibrate import calibrate
from ertacache.calibration.pipeline_run import check_call, run_pipeline
from ertacache.calibration.prompts import Prompts, split_prompts
from ertacache.errors import CalibrationError, InvalidArgument
from ertacache.pipelines import pipeline_call
from ertacache.pipelines.inputs import digest, input_names
from ertacache.profile.profile import Profile
from ertacache.runtime.run import Controller

#: Few judged prompts, which is said.
pytestmark = pytest.mark.filterwarnings("ignore:.*judged prompts cannot tell")

CALL: dict[str, Any] = {"num_inference_steps": 9, "guidance_scale": 5.0, "seed": 5, "show_progress": False}
CHOICES: dict[str, Any] = {"compute_steps": 4, "basis": "fitted", "history": 2}


class ImagePipeline(DummyPipeline):
    """The grey value of the image picks the class, not the prompt."""

    def __call__(
        self,
        prompt: Sequence[str],
        num_inference_steps: int = 30,
        guidance_scale: float = 7.0,
        generator: Sequence[torch.Generator] = (),
        negative_prompt: Sequence[str] | None = None,
        output_type: str = "pil",
        image: Any = None,
        masks: Any = None,
    ) -> tuple[torch.Tensor]:
        self.images.append((image, masks, negative_prompt))
        images = image if isinstance(image, list) else [image]
        return super().__call__(
            [str(one.getpixel((0, 0))) for one in images], num_inference_steps, guidance_scale, generator,
            negative_prompt, output_type,
        )  # fmt: skip


def image_pipeline() -> ImagePipeline:
    pipe = ImagePipeline(mixture_pipeline().transformer, (4, 4), branches=True)
    pipe.images = []
    return pipe


def grey(value: int) -> Image.Image:
    return Image.new("L", (3, 2), value)


TEXTS = [f"prompt {n}" for n in range(len(PROMPTS))]
INPUTS = [{"image": grey(label_of(text))} for text in PROMPTS]


def calibrated(pipe: DummyPipeline, prompts: list[str] = TEXTS, **options: Any) -> Profile:
    if isinstance(pipe, ImagePipeline):
        options = {"inputs": INPUTS, **options}
    return calibrate(pipe, prompts, **{**CALL, **CHOICES, **options})


@pytest.mark.parametrize("batch_size", [None, 3, 1])
def test_each_prompt_runs_with_its_own_image_in_any_batch(batch_size: int | None):
    pipe = image_pipeline()
    found = calibrated(pipe, batch_size=batch_size)
    expected = calibrated(mixture_pipeline(), PROMPTS, batch_size=batch_size)
    assert torch.equal(found.predictor.a, expected.predictor.a) and found.schedule == expected.schedule
    assert found.provenance.heldout == expected.provenance.heldout
    if batch_size == 1:
        assert {type(image) for image, _, _ in pipe.images} == {Image.Image}  # bare, not in a list
    # The first call makes the first steps of one prompt.
    assert pipe.images[0][0] is INPUTS[0]["image"] and pipe.images[1][0] == (
        INPUTS[0]["image"] if batch_size == 1 else [x["image"] for x in INPUTS[: batch_size or 6]]
    )


def test_a_profile_keeps_the_names_alone():
    profile = calibrated(image_pipeline(), inputs=[{**one, "masks": None} for one in INPUTS])
    assert profile.provenance.method["inputs"] == ["image", "masks"]
    assert "image" not in profile.provenance.call and len(profile.to_bytes()) < 10_000
    assert Profile.from_bytes(profile.to_bytes()) == profile
    assert "inputs" not in calibrated(mixture_pipeline(), PROMPTS).provenance.method


def test_texts_of_a_prompt_stay_lists_as_the_prompts_are():
    pipe = image_pipeline()
    brought = tuple({**one, "negative_prompt": f"not {n}"} for n, one in enumerate(INPUTS))
    for part in Prompts(tuple(TEXTS[:3]), 0, brought[:3]).batches(2):
        run_pipeline(pipe, part, Controller(), {"num_inference_steps": 2})
    assert [negative for _, _, negative in pipe.images] == [["not 0", "not 1"], ["not 2"]]


def test_a_pipeline_that_takes_one_prompt_gets_it_in_no_list():
    class WanVACEPipeline(ImagePipeline):
        def __call__(self, prompt: str, generator: torch.Generator, **more: Any) -> tuple[torch.Tensor]:
            assert prompt == "prompt 1" and generator.initial_seed() == 7
            return super().__call__([prompt], generator=[generator], **more)

    pipe = WanVACEPipeline(mixture_pipeline().transformer, (4, 4), branches=True)
    pipe.images = []
    call = {"num_inference_steps": 2, "negative_prompt": ""}
    run_pipeline(pipe, Prompts((TEXTS[1],), 7, (INPUTS[1],)), Controller(), call)
    assert pipe.images == [(INPUTS[1]["image"], None, "")]
    with pytest.raises(InvalidArgument, match="WanVACEPipeline takes one prompt per call, not 2; use batch_size=1"):
        run_pipeline(pipe, Prompts(tuple(TEXTS[:2]), 0, tuple(INPUTS[:2])), Controller(), call)


def test_inputs_stay_with_their_prompts():
    fitted, chosen, held = split_prompts(TEXTS, 0.0, 0.25, 40, INPUTS)
    assert chosen.inputs == ()
    assert (fitted.inputs, held.inputs) == (tuple(INPUTS[:6]), tuple(INPUTS[6:]))
    assert [part.inputs for part in fitted.batches(4)] == [tuple(INPUTS[:4]), tuple(INPUTS[4:6])]
    assert fitted.first(2) == Prompts(tuple(TEXTS[:2]), 40) and fitted.first(2).inputs == tuple(INPUTS[:2])
    assert Prompts(("a", "b"), 0).batches(1)[1].inputs == ()


def test_a_comparison_calibrates_with_them_too():
    pipe = image_pipeline()
    bench = Bench(pipe, {"num_inference_steps": 4}, Prompts(tuple(TEXTS), 0, tuple(INPUTS)))
    parts = bench.calibrator.parts
    assert (parts.fitted.inputs, parts.chosen.inputs) == (tuple(INPUTS[:5]), tuple(INPUTS[5:]))
    pipe.images.clear()
    bench.record(Controller(), 2)
    assert [image for image, _, _ in pipe.images] == [INPUTS[0]["image"], INPUTS[1]["image"]]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"inputs": INPUTS[:3]}, "3 inputs for 8 prompts; give one dictionary per prompt"),
    ({"inputs": []}, "0 inputs for 8 prompts"),
    ({"inputs": [{}, *INPUTS[1:]]}, r"inputs\[1\] has \['image'\] and inputs\[0\] has \[\]; give every"),
    ({"inputs": [grey(1)] * 8}, r"inputs\[0\] is <PIL.*; give one dictionary of arguments per prompt, such as"),
    ({"inputs": [{1: grey(1)}] * 8}, r"inputs\[0\] is {1: .*; give one dictionary of arguments"),
    ({"inputs": [{"picture": grey(1)}] * 8}, "no argument 'picture'; ImagePipeline takes prompt, "),
    ({"inputs": [{"generator": None}] * 8}, "'generator' is set by this package for each prompt; leave it out"),
    ({"guidance_scale": 5.0, "inputs": [{**one, "guidance_scale": 7.0} for one in INPUTS]},
     "'guidance_scale' is given for all prompts and in inputs for each; give it once"),
    ({"inputs": (one for one in INPUTS)}, "inputs is <generator .*; give a list of one dictionary per prompt, such as"),
    ({"inputs": torch.zeros(8, 3)}, r"inputs is tensor\(\[.*; give a list of one dictionary per prompt"),
    ({"inputs": "images"}, "inputs is 'images'; give a list of one dictionary per prompt"),
    ({"inputs": {"image": grey(1)}}, "inputs is {'image': .*; give a list of one dictionary per prompt"),
    ({"image": grey(1), "inputs": None},
     r"image=.* cannot be written .*, or give it for each prompt: inputs=\[{'image': "),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_given_is_refused_before_any_run(options: dict[str, Any], message: str):
    pipe = image_pipeline()
    with pytest.raises(InvalidArgument, match=message):
        calibrated(pipe, **options)
    assert pipe.calls == 0


@pytest.mark.parametrize("name", ["guidance_scale", "num_inference_steps"])
def test_what_is_one_for_all_prompts_is_no_input_of_each(name: str):
    with pytest.raises(InvalidArgument, match=f"'{name}' is one for all prompts; give it in call, not in inputs"):
        check_call(image_pipeline(), {}, [{name: 3}, {name: 7}])


@pytest.mark.parametrize(
    "name",
    ["guidance_scale_2", "image_guidance_scale", "guidance_rescale", "strength", "sigmas", "denoising_end"],
)
def test_what_decides_the_steps_and_the_guidance_is_alike_for_all(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pipeline_call, "defaults_of", lambda pipe: {"prompt": None, name: None})
    check_call(image_pipeline(), {}, [{name: [0.5, 0.1]}, {name: [0.5, 0.1]}])
    with pytest.raises(
        InvalidArgument, match=f"'{name}' is one for all prompts, and differs in inputs; give it in call"
    ):
        check_call(image_pipeline(), {}, [{name: [0.5, 0.1]}, {name: [0.5, 0.2]}])


def test_what_only_some_prompts_have_is_refused():
    """A prompt without a negative one has no guidance, or an image of its own: its run is another one."""
    assert input_names([{"negative_prompt": "", "image": None}, {"negative_prompt": "x", "image": None}]) == (
        "image", "negative_prompt",
    )  # fmt: skip
    match = r"negative_prompt is None in inputs\[2\] and 'dark' in inputs\[0\]; give every prompt the same arguments"
    with pytest.raises(InvalidArgument, match=match):
        input_names([{"negative_prompt": text} for text in ("dark", "", None)])
    with pytest.raises(InvalidArgument, match=r"image is 5 in inputs\[1\] and None in inputs\[0\]; give every prompt"):
        input_names([{"image": None}, {"image": 5}])


def test_an_empty_dictionary_for_every_prompt_is_no_argument():
    assert input_names([{}, {}]) == () and input_names([]) == ()
    check_call(image_pipeline(), {}, [{}, {}])


def test_a_checkpoint_belongs_to_its_pixels(tmp_path: Path):
    path, pipe = tmp_path / "runs.pt", image_pipeline()
    first = calibrated(pipe, checkpoint=path)
    runs = pipe.calls
    equal = [{"image": one["image"].copy()} for one in INPUTS]
    assert calibrated(pipe, checkpoint=path, inputs=equal) == first and pipe.calls == runs
    equal[7]["image"].putpixel((2, 1), 9)
    with pytest.raises(CalibrationError, match="belongs to another calibration"):
        calibrated(pipe, checkpoint=path, inputs=equal)
    with pytest.raises(InvalidArgument, match=r"masks\[1\]\['a'\] is a object, by which a checkpoint cannot tell"):
        calibrated(
            pipe, checkpoint=tmp_path / "other.pt", inputs=[{**x, "masks": [1, {"a": object()}]} for x in INPUTS]
        )
    calibrated(pipe, inputs=[{**one, "masks": object()} for one in INPUTS])  # without a checkpoint anything goes


def test_the_digest_tells_contents_apart_and_nothing_else():
    tensor = torch.arange(6, dtype=torch.bfloat16)
    rows: list[Any] = [
        tensor, tensor.float(), tensor.view(2, 3), tensor + 1, torch.tensor(1), torch.tensor([True]), np.arange(6),
        np.arange(6.0), np.float32(1), grey(1), grey(2), grey(1).convert("RGB"), grey(1).resize((2, 3)), [grey(1)],
        [grey(1), grey(1)], [[grey(1)], grey(1)], {"a": 1}, {"b": 1}, 1, 1.0, True, "1", None, "None", [], {}, "",
        grey(1).convert("P"),
    ]  # fmt: skip
    digests = [digest([{"x": row}]) for row in rows]
    assert len(set(digests)) == len(rows)
    assert digests == [digest([{"x": row}]) for row in rows]
    assert digest([{"x": tensor[::2]}]) == digest([{"x": tensor[::2].contiguous()}])
    assert digest([{"x": {"a": 1, "b": 2}}]) == digest([{"x": {"b": 2, "a": 1}}])
    assert digest([{"x": 1, "y": 2}]) == digest([{"y": 2, "x": 1}]) != digest([{"x": 2, "y": 1}])
    assert digest([{"x": 1}, {"x": 2}]) != digest([{"x": 2}, {"x": 1}])
