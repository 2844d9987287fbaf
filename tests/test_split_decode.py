"""Decoding for others: diffusers' own client of remote autoencoders, and what is refused."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch
from diffusers.utils import remote_utils
from torch import Tensor

from ertacache.serving.order import Limits
from ertacache.serving.split_app import make_split_app
from ertacache.serving.split_service import SplitService
from pipelines import CFG_CALL, PROMPTS, flux
from served import running
from small_images import stable_diffusion
from split_http import call

#: Of diffusers' own: numpy's arrays of tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    service = SplitService("sd", [stable_diffusion().pipe], limits=Limits(pixels=64 * 64, images=3))
    with running(service, app=make_split_app(service)) as address:
        yield address


def test_diffusers_own_client_decodes(url: str, small: Any, whole: Tensor) -> None:
    latents = small(**call(output_type="latent"))[0]
    known = {"endpoint": f"{url}/v1/decode", "scaling_factor": small.vae.config.scaling_factor}
    floats = remote_utils.remote_decode(tensor=latents, output_type="pt", return_type="pt", **known)
    assert torch.equal((floats / 2 + 0.5).clamp(0, 1), whole)
    eight = remote_utils.remote_decode(
        tensor=latents, output_type="pt", return_type="pt", partial_postprocess=True, **known
    )
    assert torch.equal(eight, (whole * 255).round().to(torch.uint8).movedim(1, -1))
    picture = remote_utils.remote_decode(tensor=latents, image_format="png", **known)
    assert picture.size == (32, 32) and bytes(picture.tobytes()) == eight.numpy().tobytes()
    shown = remote_utils.remote_decode(
        tensor=latents, processor=small.image_processor, output_type="pil", return_type="pil", **known
    )
    assert shown[0].tobytes() == picture.tobytes()


DECODE = {"shape": [1, 4, 16, 16], "dtype": "float32", "output_type": "pt"}
UNDECODED: dict[str, tuple[dict[str, Any], bytes | None, str]] = {
    "no shape": ({"shape": []}, None, r"shape is []; give the 3 to 5 sizes of the latents"),
    "shape": ({"shape": ["1", "x", "4", "4"]}, None, "shape is ['1', 'x', '4', '4']; give the 3 to 5"),
    "channels": ({"shape": [1, 8, 16, 8]}, None, "shape is [1, 8, 16, 8], and this autoencoder's latents have 4"),
    "frames": ({"shape": [1, 4, 1, 16, 16]}, None, "shape is [1, 4, 1, 16, 16], which is not how StableDiffusion"),
    "packed": ({"shape": [1, 64, 16], "height": 32, "width": 32}, None, "height, width: [32, 32] have 64 packed cells"),
    "vast": ({"shape": [1, 4, 99999, 9999]}, b"", "shape is [1, 4, 99999, 9999]: 1 of "),
    "samples": ({"shape": [4, 4, 16, 16]}, b"", "shape is [4, 4, 16, 16]: 4 of 1024 pixels; this server takes 3 of"),
    "dtype": ({"dtype": "int64"}, None, "dtype is 'int64'; choose one of float16, float32, bfloat16"),
    "output": ({"output_type": "mp4"}, None, "output_type is 'mp4'; choose one of pil, pt"),
    "format": ({"image_format": "gif"}, None, "image_format is 'gif'; choose one of jpg, png"),
    "flag": ({"partial_postprocess": "1"}, None, "partial_postprocess is '1'; choose one of False, True"),
    "factor": ({"scaling_factor": "nan"}, None, "scaling_factor is 'nan'; give a number such as 0.18215"),
    "pictures": ({"output_type": "pil", "shape": [2, 4, 16, 16]}, None, "shape is [2, 4, 16, 16], and a file holds"),
    "length": ({}, b"xx", "shape is [1, 4, 16, 16] in torch.float32, 4096 bytes, and 2 came"),
    "NaN": ({}, b"\xff" * 4096, "latents hold NaN or infinity; send those of a sound run"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNDECODED)
def test_what_cannot_be_decoded(url: str, case: str) -> None:
    changes, body, message = UNDECODED[case]
    said = httpx.post(f"{url}/v1/decode", params={**DECODE, **changes}, content=b"\0" * 4096 if body is None else body)
    assert (said.status_code, said.json()["error"]["message"][: len(message)]) == (400, message)


def test_packed_latents_of_flux(flux_cfg: Any) -> None:
    large = flux(guidance_embeds=False, seed=5)
    large.default_sample_size = 8  # of a warm-up
    service = SplitService("flux", [large])
    given = {**CFG_CALL, "prompt": PROMPTS[0], "num_inference_steps": 2}
    latents = flux_cfg(**given, generator=torch.Generator().manual_seed(1), output_type="latent")[0]
    images = flux_cfg(**given, generator=torch.Generator().manual_seed(1), output_type="pt")[0]
    config = flux_cfg.vae.config
    with running(service, app=make_split_app(service)) as url:
        floats = remote_utils.remote_decode(
            f"{url}/v1/decode", latents, scaling_factor=config.scaling_factor, shift_factor=config.shift_factor,
            height=given["height"], width=given["width"], output_type="pt", return_type="pt",
        )  # fmt: skip
    assert torch.equal((floats / 2 + 0.5).clamp(0, 1), images)
