"""LoRA adapters by request: each picture is the one that diffusers makes alone with them, and the next is without."""

import base64
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import served_flux
from ertacache.calibration.pipeline_run import call_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.errors import ErtacacheError, InvalidArgument, UnsupportedPipeline
from ertacache.evaluation.sample_files import eight_bit
from ertacache.pipelines.adapters import load_adapters, switched_on
from ertacache.pipelines.loading import load_pipeline
from ertacache.runtime.apply import apply
from ertacache.serving.adapters import read_adapters, read_scales
from ertacache.serving.service import Service
from pipelines import CALL
from served import Held, running, until

# What peft says of a second adapter, which diffusers loads alone as well.
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
PROMPT = "a small red ring"
INK, WOOL = {"name": "ink", "scale": 0.5}, {"name": "wool"}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    pytest.importorskip("peft", reason="pip install 'ertacache[lora]'")
    folder, denoiser = tmp_path_factory.mktemp("adapters"), load_pipeline("tiny-flux").transformer
    for seed, name in enumerate(("ink", "wool")):
        generator, weights = torch.Generator().manual_seed(seed), dict[str, torch.Tensor]()
        for place, module in denoiser.named_modules():
            if isinstance(module, torch.nn.Linear) and place.endswith(("to_q", "to_k", "to_v")):
                for part, shape in (("A", (2, module.in_features)), ("B", (module.out_features, 2))):
                    key = f"transformer.{place}.lora_{part}.weight"
                    weights[key] = torch.randn(shape, generator=generator) * 0.3
        save_file(weights, folder / f"{name}.safetensors")
    return {name: str(folder / f"{name}.safetensors") for name in ("ink", "wool")}


@pytest.fixture(scope="module")
def service(adapters: dict[str, str]) -> Service:
    return served_flux.service(adapters=adapters, batch=2)


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    with running(service) as address:
        yield address


@pytest.fixture(scope="module")
def alone(adapters: dict[str, str], service: Service) -> Any:
    """A picture of diffusers' own pipeline, where the adapters of a call are all that was ever loaded."""

    def make(scales: dict[str, float], profile: Any = None) -> np.ndarray:
        pipe = load_pipeline("tiny-flux")
        for name in scales:
            pipe.load_lora_weights(adapters[name], adapter_name=name)
        if scales:
            pipe.set_adapters(list(scales), list(scales.values()))
        if profile is None:
            return eight_bit(call_pipeline(pipe, Prompts((PROMPT,), 5), dict(CALL)))[0].numpy()
        with apply(pipe, profile):
            return eight_bit(call_pipeline(pipe, Prompts((PROMPT,), 5), dict(CALL)))[0].numpy()

    return make


def ask(url: str, **body: Any) -> dict[str, Any]:
    given = {"prompt": PROMPT, "seed": 5, "quality": "max", **body}
    return httpx.post(f"{url}/v1/images/generations", json=given, timeout=None).raise_for_status().json()["data"][0]


def pixels(data: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(base64.b64decode(data["b64_json"]))))


def test_a_picture_has_the_adapters_of_its_request_and_the_next_has_none(url: str, alone: Any):
    base = alone({})
    made = [base]
    for lora, scales in ((INK, {"ink": 0.5}), ([WOOL], {"wool": 1.0}), ([WOOL, INK], {"wool": 1.0, "ink": 0.5})):
        data = ask(url, lora=lora)
        assert data["ertacache"]["lora"] == scales
        assert np.array_equal(pixels(data), alone(scales))
        assert not any(np.array_equal(pixels(data), other) for other in made)
        made.append(pixels(data))
        assert np.array_equal(pixels(ask(url, lora=[])), base)


def test_a_profile_serves_it_too_and_does_not_claim_its_judged_loss(url: str, service: Service, alone: Any):
    half = service.ladder.rungs[1].profile
    plain, styled = ask(url, quality="high"), ask(url, quality="high", lora=INK)
    assert (plain["ertacache"]["judged_psnr_db"], styled["ertacache"]["judged_psnr_db"]) == (31.5, None)
    assert (styled["ertacache"]["computed"], styled["ertacache"]["predicted"]) == (5, 5)
    assert np.array_equal(pixels(styled), alone({"ink": 0.5}, half))
    assert httpx.get(f"{url}/v1/models").json()["data"][0]["ertacache"]["lora"] == ["ink", "wool"]


def test_a_cancelled_and_a_broken_run_leave_no_adapter_on(url: str, service: Service, alone: Any):
    pipe, base = service.pipes[0], alone({})
    held = Held(pipe.transformer)
    try:
        held.hold(3)
        answers: list[int] = []
        body = {"prompt": PROMPT, "quality": "max", "lora": [INK]}
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{url}/v1/images/generations", json=body).status_code)
        )
        asking.start()
        assert held.reached.wait(60)
        job = service.queue.running[0]
        service.queue.cancel(job)
        held.released.set()
        asking.join()
        until(lambda: not service.queue.running)
        assert (job.state, held.calls) == ("cancelled", 3)
    finally:
        held.released.set()
        held.remove()
    assert np.array_equal(pixels(ask(url)), base)
    with pytest.raises(ZeroDivisionError), switched_on(pipe, (("ink", 1.0),)):
        raise ZeroDivisionError
    assert np.array_equal(pixels(ask(url)), base)


def test_only_equal_requests_are_one_call(url: str, service: Service):
    held = Held(service.pipes[0].transformer)
    try:
        bodies = [{"lora": INK}, {"lora": INK}, {"lora": WOOL}, {}, {"lora": {"name": "ink", "scale": 1.0}}]
        held.queue([threading.Thread(target=lambda body=body: ask(url, **body)) for body in bodies], service)
        assert held.calls == 10 * len(bodies)  # the first began alone
    finally:
        held.released.set()
        held.remove()


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ("ink", """lora is 'ink'; give {"name": "style", "scale": 1.0}, or a list of such"""),
        ([[]], """lora is [[]]; give {"name": "style", "scale": 1.0}, or a list of such"""),
        ({"scale": 1}, """lora is {'scale': 1}; give {"name": "style", "scale": 1.0}, or a list of such"""),
        (
            {"name": "ink", "path": "/etc"},
            """lora is {'name': 'ink', 'path': '/etc'}; give {"name": "style", "scale": 1.0}, or a list of such""",
        ),
        ({"name": "inc"}, "lora 'inc' is not served here; did you mean ink?"),
        ({"name": "x"}, "lora 'x' is not served here; there are ink, wool"),
        ({"name": ["ink"]}, "lora ['ink'] is not served here; there are ink, wool"),
        ([INK, INK], "lora 'ink' is named twice; name it once"),
        ({"name": "ink", "scale": "1"}, "lora scale is '1'; give a number from -10 to 10"),
        ({"name": "ink", "scale": True}, "lora scale is True; give a number from -10 to 10"),
        ({"name": "ink", "scale": 11}, "lora scale is 11; give a number from -10 to 10"),
        ({"name": "ink", "scale": float("nan")}, "lora scale is nan; give a number from -10 to 10"),
    ],
)
def test_bad_adapters_of_a_request_are_refused(lora: Any, message: str):
    with pytest.raises(InvalidArgument) as refused:
        read_scales(lora, ("ink", "wool"))
    assert str(refused.value) == message


def test_adapters_are_read_in_the_order_of_the_request():
    assert read_scales([WOOL, INK], ("ink", "wool")) == (("wool", 1.0), ("ink", 0.5))
    assert read_scales([], ()) == ()


def test_bad_adapters_of_the_server_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    there = tmp_path / "there.safetensors"
    there.touch()
    form = "give NAME=PATH, with a name of letters, digits, - and _"
    for given, message in (
        (["ink"], f"lora is 'ink'; {form}"),
        (["ink="], f"lora is 'ink='; {form}"),
        (["a.b=x/y"], f"lora is 'a.b=x/y'; {form}"),
        ([f"ink={there}", "ink=a/b"], "lora 'ink' is given twice; give one of them another name"),
        (["ink=a.safetensors"], "lora 'ink': there is nothing at 'a.safetensors', and it is no Hub id; check the path"),
    ):
        with pytest.raises(InvalidArgument) as refused:
            read_adapters(given)
        assert str(refused.value) == message
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ErtacacheError, match=r"needs peft; install it with: pip install 'ertacache\[lora\]'$"):
        read_adapters([f"ink={there}"])
    with pytest.raises(UnsupportedPipeline, match=r"^object takes no LoRA adapters; start the server without --lora$"):
        load_adapters(object(), {"ink": "x"})


def test_an_adapter_of_another_model_is_refused_by_its_name(adapters: dict[str, str], tmp_path: Path):
    pipe = load_pipeline("tiny-flux")
    path = tmp_path / "other.safetensors"
    wrong = {f"transformer.transformer_blocks.0.attn.to_q.lora_{part}.weight": torch.zeros(2, 2) for part in "AB"}
    for weights, why in ((wrong, "size mismatch"), ({"unet.x": torch.zeros(1)}, "")):
        save_file(weights, path)
        with pytest.raises(InvalidArgument, match=rf"^lora 'other': .* does not load into FluxPipeline \(.*{why}.*\)"):
            load_adapters(pipe, {"other": str(path)})
    path.write_bytes(b"x")
    with pytest.raises(InvalidArgument, match=r"^lora 'other': .* give one made for it$"):
        load_adapters(pipe, {"other": str(path)})
