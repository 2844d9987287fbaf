"""The bytes of a handover: what goes there comes back, and whatever a stranger writes is refused by name."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import benchmark_scripts
from ertacache.errors import HandoverInvalid, InvalidArgument
from ertacache.profile import sealed
from ertacache.split import Handover, wire
from ertacache.split.solver_state import MEMORIES

#: Of diffusers' own: numpy's arrays of tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
fuzz = benchmark_scripts.load("handover_fuzz")
KEY = "ertacache-handover"


def blob(name: str = "UniPCMultistepScheduler") -> bytes:
    torch.manual_seed(0)
    return fuzz.sound(name).to_bytes()


@pytest.mark.parametrize("name", [row.scheduler for row in MEMORIES])
def test_what_goes_there_comes_back(name: str) -> None:
    torch.manual_seed(0)
    made = fuzz.sound(name)
    back = Handover.from_bytes(made.to_bytes())
    assert back.to_bytes() == made.to_bytes()
    assert (back.step, back.calls, back.call, back.space, back.source) == (2, 2, made.call, made.space, made.source)
    assert back.solver.counts == made.solver.counts and back.solver.tensors.keys() == made.solver.tensors.keys()
    for name, tensor in made.solver.tensors.items():
        assert torch.equal(back.solver.tensors[name], tensor)


def with_document(edit: Callable[[dict[str, Any]], object]) -> bytes:
    """The blob with another document under a checksum that is right."""

    def changed(header: dict[str, Any]) -> None:
        document = json.loads(header["__metadata__"][KEY])
        edit(document)
        header["__metadata__"][KEY] = json.dumps(document)

    return with_header(changed)


def with_header(edit: Callable[[dict[str, Any]], object]) -> bytes:
    data = blob()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    edit(header)
    return fuzz.resealed(fuzz.framed(header, data[8 + size :]))


def solver(**changes: Any) -> bytes:
    return with_document(lambda d: d["solver"].update(changes))


def document(**changes: Any) -> bytes:
    return with_document(lambda d: d.update(changes))


def counts(**changes: Any) -> bytes:
    return with_document(lambda d: d["solver"]["counts"].update(changes))


def entry(name: str, **changes: Any) -> bytes:
    return with_header(lambda h: h[name].update(changes))


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "file: has 0 bytes, too few for a header; the file is damaged or is no handover"),
    "pickled": (lambda: b"\x80\x04\x95" * 99, r"header: claims \d+ bytes, over the cap of 1048576"),
    "cut": (lambda: blob()[:-1], "checksum: is .* and the content has"),
    "a profile": (
        lambda: with_header(lambda h: h.update(__metadata__={"ertacache": "{}"})),
        r"__metadata__: holds \['ertacache'\] where exactly one text under 'ertacache-handover' belongs; this is no",
    ),
    "another version": (lambda: document(version=2), "version: is 2 where this release reads 1 to 1; install a newer"),
    "key missing": (lambda: with_document(lambda d: d.pop("space")), "document: 'space' is missing; ask the other"),
    "key unknown": (lambda: document(hook=1), "document: 'hook' is unknown in version 1"),
    "kind of a value": (lambda: document(step="2"), "step: is '2', not a whole number"),
    "kind of a flag": (lambda: document(listed=1), "listed: is 1, not true or false"),
    "kind of a part": (lambda: document(solver=[]), r"solver: is \[\], not an object"),
    "long text": (lambda: document(protocol="x" * 300), "protocol: has 300 characters, over the cap of 256"),
    "deep": (lambda: document(space={"a": [[[[[[[[[[]]]]]]]]]]}), "space: is .*, deeper or longer than any config"),
    "long": (lambda: solver(config={"a": [0] * 5000}), "solver.config: is .*, deeper or longer"),
    "vast number": (lambda: solver(config={"a": 2**70}), "solver.config: holds 1180.*, more than 64 bits"),
    "unknown solver": (
        lambda: solver(scheduler="CogVideoXDPMScheduler"),
        "solver.scheduler: is 'CogVideoXDPMScheduler' where one of FlowMatchEuler.* belongs",
    ),
    "protocol": (lambda: document(protocol="0"), "protocol: is '0' where this release speaks .*; install the same"),
    "order": (lambda: solver(config={"solver_order": 99}), "solver.config: has a solver_order that is not 1, 2, 3"),
    "order of a text": (lambda: solver(config={"solver_order": "2"}), "solver.config: has a solver_order"),
    "step 0": (lambda: document(step=0), "step: is 0 where a number from 1 to 4096 belongs"),
    "step after the last": (lambda: document(step=7), "content: step is 7 of 6, and a run of UniPC.* is not cut there"),
    "tensor missing": (
        lambda: document(step=1), "tensors: 'state.timestep_list.0' is unknown after step 1 of UniPCMultistepScheduler",
    ),
    "history missing": (
        lambda: with_header(lambda h: h.pop("state.last_sample")),
        "tensors: 'state.last_sample' is missing after step 2 of UniPCMultistepScheduler",
    ),
    "tensor unknown": (
        lambda: with_header(lambda h: h.update(weights=h["latent"])),
        "tensors: 'weights' is unknown after step 2",
    ),
    "dtype": (lambda: entry("latent", dtype="I64"), "tensor 'latent': has dtype 'I64' where tensors are F32 or F16 or"),
    "dtype of a time": (lambda: entry("timesteps", dtype="U8"), "tensor 'timesteps': has dtype 'U8' where tensors"),
    "axes": (lambda: entry("latent", shape=[1] * 9), "tensor 'latent': has shape .* where a list of at most 6 sizes"),
    "vast shape": (lambda: entry("latent", shape=[2**40]), "tensor 'latent': has shape .*, more than a file of"),
    "no batch": (lambda: entry("latent", shape=[16]), r"tensor 'latent': has shape \[16\] where a latent \[batch"),
    "history of another shape": (
        lambda: entry("state.last_sample", shape=[4, 1, 2, 2]),
        r"tensor 'state.last_sample': has shape \[4, 1, 2, 2\] where \[1, 4, 2, 2\] belongs",
    ),
    "time of another shape": (
        lambda: entry("state.timestep_list.0", shape=[1]),
        r"tensor 'state.timestep_list.0': has shape \[1\] where \[\] belongs",
    ),
    "grid of another length": (
        lambda: entry("sigmas", shape=[6]), r"tensor 'sigmas': has shape \[6\] where \[7\], one more than timesteps",
    ),
    "times in a table": (lambda: entry("timesteps", shape=[2, 3]), "'timesteps': has shape .* where a list of at most"),
    "texts of another batch": (
        lambda: entry("text.prompt_embeds", shape=[3, 1, 8]), "'text.prompt_embeds': has shape .* the batch of",
    ),
    "generator of another length": (
        lambda: entry("generator.0", shape=[2528, 2]), r"'generator.0': has shape \[2528, 2\] where \[5056\] belongs",
    ),
    "generators without a first": (
        lambda: with_header(lambda h: h.update({"generator.1": h.pop("generator.0")})),
        "tensors: holds 1 generators that are not numbered 0 to 0",
    ),
    "offsets": (lambda: entry("latent", data_offsets=[0, 8]), "tensors: .*; the file is damaged"),
    "counts": (
        lambda: counts(_step_index=5),
        "content: solver.counts._step_index is 5 where UniPCMultistepScheduler has 2 to 2 after step 2",
    ),
    "counts of an order": (lambda: counts(this_order=7), "solver.counts.this_order is 7 where .* has 1 to 2 after"),
    "counts unknown": (lambda: counts(__class__=1), r"solver.counts holds .*__class__.* where UniPC.* has \['_step"),
    "counts missing": (lambda: solver(counts={}), r"content: solver.counts holds \[\], where"),
    "calls": (lambda: document(calls=-1), "content: calls is -1, which no run makes"),
    "call unknown": (
        lambda: document(call={"attention_kwargs": 1}),
        "content: call.attention_kwargs is none of the arguments that cross a split",
    ),
    "call of a text": (lambda: document(call={"height": "64"}), "call.height is '64' where a whole number from 1 to"),
    "call of a pair": (lambda: document(call={"target_size": [1]}), r"call.target_size is \[1\] where two whole"),
    "call of texts": (lambda: document(call={"prompt": [1]}), r"call.prompt is \[1\] where up to 64 texts of together"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_what_a_stranger_wrote_is_refused_by_name(case: str) -> None:
    build, message = HOSTILE[case]
    with pytest.raises(HandoverInvalid, match=message):
        Handover.from_bytes(build())


@pytest.mark.parametrize("case", ["vast shape", "tensor unknown", "dtype", "no batch", "history missing", "protocol"])
def test_nothing_is_allocated_before_the_header_is_sound(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: object) -> None:
        raise AssertionError("allocated")

    monkeypatch.setattr(sealed, "load_tensors", loaded)
    with pytest.raises(HandoverInvalid, match=HOSTILE[case][1]):
        Handover.from_bytes(HOSTILE[case][0]())


def test_values_that_no_run_leaves_behind() -> None:
    made = fuzz.sound("UniPCMultistepScheduler")
    for changes, message in (
        ({"latent": made.latent * torch.nan}, "tensor 'latent': holds NaN or infinity"),
        ({"sigmas": made.sigmas - 2}, "content: sigmas reach out of 0 to 1e"),
        (
            {"generators": (torch.zeros(5056, dtype=torch.uint8),)},
            "content: generator.0 is no state of a CPU",
        ),
    ):
        with pytest.raises(HandoverInvalid, match=message):
            Handover.from_bytes(replace(made, **changes).to_bytes())


def test_the_caps() -> None:
    data = blob()
    with pytest.raises(HandoverInvalid, match=f"file: is over the cap of {len(data) - 1} bytes; this is no handover"):
        Handover.from_bytes(data, cap=len(data) - 1)
    assert Handover.from_bytes(data, cap=len(data)).step == 2
    with pytest.raises(InvalidArgument, match=r"the handover's header has .* use shorter prompts, or send embeddings"):
        replace(fuzz.sound("DDIMScheduler"), call={"prompt": "x" * wire.HEADER_CAP}).to_bytes()


def test_two_thousand_mutations_find_nothing_but_the_named_error() -> None:
    found = fuzz.run(2000, seed=7)
    assert found["other_errors"] == [] and found["mutations"] == 2000
    assert {"checksum", "tensors", "content", "fits"} <= found["outcomes"].keys()
