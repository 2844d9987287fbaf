"""Every way in which a profile file can be wrong, and what the message must say."""

import json
from collections.abc import Callable

import torch

from ertacache.profile.profile import MAX_STEPS
from hostile_grids import GRID, GRIDS
from profile_maker import (
    FACTS,
    HASHES,
    deep,
    edited,
    framed,
    make,
    older,
    poisoned,
    reaching_too_far,
    thousands_of_steps,
    with_document,
    with_facts,
    with_header,
    with_tensors,
    with_text,
    without,
)

A = make().predictor.a
AT_COMPUTED = A.clone()
AT_COMPUTED[2, 0, 0, 0] = 1.0
EVERYWHERE = torch.ones(5, 1, 1, 3)

# id: (file content, what the message must say). The ids are the evidence column of docs/profile-format.md.
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    **GRIDS,
    "empty": (lambda: b"", r"file: has 0 bytes"),
    "shorter than its prefix": (lambda: b"\x10\0\0", r"file: has 3 bytes"),
    "truncated header": (lambda: make().to_bytes()[:200], r"header: claims \d+ bytes where 192 are left"),
    "truncated data": (lambda: make().to_bytes()[:-1], r"checksum: is [0-9a-f]{16}... and the content has "),
    "trailing bytes": (lambda: make().to_bytes() + b"\0", r"checksum: is .*; the file is damaged"),
    "truncated data of version 2": (lambda: older(2)[:-1], r"tensors: .*not fully covered"),
    "trailing bytes of version 2": (lambda: older(2) + b"\0", r"tensors: .*not fully covered"),
    "checksum missing": (lambda: with_text(json.dumps({"version": 3})), r"checksum: is None, not 64 hexadecimal"),
    "checksum not hexadecimal": (
        lambda: edited(make(), lambda d: d.update(checksum="A" * 64)),
        r"checksum: is 'AAAA.*', not 64 hexadecimal digits",
    ),
    "checksum of other content": (
        lambda: edited(make(), lambda d: d.update(site="output")),
        r"checksum: is [0-9a-f]{16}... and the content has [0-9a-f]{16}...; the file is damaged",
    ),
    "checksum in version 2": (
        lambda: edited(make(), lambda d: d.update(version=2)),
        r"document: 'checksum' is unknown in version 2",
    ),
    "garbage": (lambda: b"PK\x03\x04" * 99, r"header: claims \d+ bytes, over the cap of 1048576"),
    "oversized header": (
        lambda: (2**20 + 1).to_bytes(8, "little") + b" " * (2**20 + 1),
        r"header: claims 1048577 bytes, over the cap of 1048576",
    ),
    "oversized file": (lambda: bytes(64 * 2**20 + 1), r"file: is over the cap of 67108864 bytes"),
    "header not JSON": (lambda: framed("{'a': 1}"), r"header: is not sound JSON"),
    "header not UTF-8": (lambda: b"\x02" + bytes(7) + b"\xff\xfe", r"header: is not sound JSON"),
    "header not an object": (lambda: framed("[1, 2]"), r"header: is \[1, 2\], not a JSON object"),
    "header nested deeply": (lambda: framed(deep(100_000)), r"header: is not sound JSON \(.*recursion"),
    "header key twice": (
        lambda: framed('{"a": 1, "a": 1}'),
        r"header: is not sound JSON \(key 'a' occurs twice",
    ),
    "no metadata": (
        lambda: with_header(lambda h: h.pop("__metadata__")),
        r"__metadata__: is None, not an object",
    ),
    "metadata not an object": (
        lambda: with_header(lambda h: h.update(__metadata__="x")),
        r"__metadata__: is 'x', not",
    ),
    "metadata key missing": (
        lambda: with_header(lambda h: h.update(__metadata__={})),
        r"__metadata__: holds \[\]",
    ),
    "metadata key too many": (
        lambda: with_header(lambda h: h["__metadata__"].update(format="pt")),
        r"__metadata__: holds \['ertacache', 'format'\]",
    ),
    "metadata not text": (
        lambda: with_header(lambda h: h.update(__metadata__={"ertacache": 1})),
        r"exactly one text",
    ),
    "document not JSON": (lambda: with_text("version 1"), r"__metadata__.ertacache: is not sound JSON"),
    "document not an object": (
        lambda: with_text("[]"),
        r"__metadata__.ertacache: is \[\], not a JSON object",
    ),
    "document nested deeply": (lambda: with_text(deep(50_000)), r"__metadata__.ertacache: .*recursion"),
    "document key twice": (lambda: with_text('{"version": 1, "version": 1}'), r"key 'version' occurs twice"),
    "document with NaN": (
        lambda: with_facts(seed=float("nan")),
        r"__metadata__.ertacache: .*NaN is not a JSON number",
    ),
    "wrong version": (
        lambda: with_document(version=8),
        r"version: is 8 where this release reads 1 to 7; install a newer release: pip install --upgrade ertacache",
    ),
    "no such version": (
        lambda: with_document(version=0),
        r"version: is 0 where this release reads 1 to 7; copy it again",
    ),
    "version not whole": (lambda: with_document(version=True), r"version: is True where"),
    "version missing": (lambda: without("version"), r"version: is None where"),
    "document key missing": (lambda: without("site"), r"document: 'site' is missing"),
    "document key unknown": (lambda: with_document(hook="os.system"), r"document: 'hook' is unknown"),
    "unknown site": (
        lambda: with_document(site="attention"),
        r"site is 'attention'; it must be one of output, guided",
    ),
    "unknown activation": (
        lambda: edited(make(activation="linear"), lambda d: d.update(activation="lineal"), seal=True),
        r"rectifier.activation is 'lineal'; it must be one of linear, sigmoid",
    ),
    "schedule not text": (lambda: with_document(schedule=[True]), r"schedule is \[True\]; it must be a text"),
    "schedule of other marks": (lambda: with_document(schedule="#x#.#"), r"content: '#x#.#' .*'x'"),
    "schedule too long": (
        lambda: with_document(schedule="." * (MAX_STEPS + 1)),
        r"schedule has 4097 steps; use at most 4096",
    ),
    "schedule empty": (lambda: with_document(schedule=""), r"content: a schedule of 0 steps"),
    "first step predicted": (lambda: with_document(schedule="..#.#"), r"content: '\.\.#\.#' predicts step 0"),
    "schedule longer than the grid": (
        lambda: with_document(schedule="#.#.##"),
        r"base_sigmas has shape \[6\] where the schedule of 6 steps needs \[7\]",
    ),
    "schedule unlike the predictor": (
        lambda: with_tensors(predictor__a=A[:1], predictor__d=A[:1, :, 0, 0], predictor__b=A[:1, :, 0, 0]),
        r"predictor.a has shape \[1, 1, 2, 2, 1, 3\] where the 2 predicted steps of '#.#.#' need \[2, ",
    ),
    "schedule unlike the predictor in version 2": (
        lambda: older(2, predictor__a=A[:4], predictor__d=A[:4, :, 0, 0], predictor__b=A[:4, :, 0, 0]),
        r"the predictor has 4 steps and the schedule 5",
    ),
    "names not a list": (
        lambda: with_document(targets="guided"),
        r"targets is 'guided'; it must be a list of texts",
    ),
    "names not texts": (lambda: with_document(sources=["cond", 1]), r"sources is 1; it must be a text"),
    "names none": (lambda: with_document(targets=[]), r"targets are \(\)"),
    "names twice": (lambda: with_document(sources=["cond", "cond"]), r"sources are \('cond', 'cond'\)"),
    "provenance not an object": (lambda: with_document(provenance=[]), r"provenance: is \[\], not an object"),
    "provenance key missing": (
        lambda: with_document(provenance={key: value for key, value in {**FACTS, **HASHES}.items() if key != "seed"}),
        r"provenance: 'seed' is missing",
    ),
    "provenance key unknown": (lambda: with_facts(extra=1), r"provenance: 'extra' is unknown"),
    "provenance of another type": (
        lambda: with_facts(seed="0"),
        r"provenance.seed is '0'; it must be a whole number",
    ),
    "provenance nested deeply": (
        lambda: with_facts(call=json.loads(deep(100))),
        r"provenance.call.*over 16 levels",
    ),
    "tensor missing": (lambda: with_tensors(sigmas=None), r"tensors: 'sigmas' is missing"),
    "tensor unknown": (lambda: with_tensors(weights=torch.ones(2)), r"tensors: 'weights' is unknown"),
    "rectifier half there": (
        lambda: with_tensors("linear", rectifier__beta=None),
        r"'rectifier.beta' is missing",
    ),
    "rectifier without activation": (
        lambda: with_tensors(rectifier__beta=A[:, :, 0, 0], rectifier__kappa=A[:, :, 0, 0]),
        r"tensors: 'rectifier.beta' is unknown",
    ),
    "NaN in the predictor": (
        lambda: poisoned("predictor.a", float("nan")),
        r"tensor 'predictor.a': holds NaN",
    ),
    "infinity in the grid": (lambda: poisoned("sigmas", float("-inf")), r"tensor 'sigmas': holds NaN or inf"),
    "infinity in the rectifier": (
        lambda: poisoned("rectifier.beta", float("inf")),
        r"tensor 'rectifier.beta': holds",
    ),
    "wrong shape of the predictor": (
        lambda: with_tensors(predictor__d=torch.zeros(2, 1)),
        r"content: d has shape \(5, 1\) where \(5, 1, 1, 3\) fits",
    ),
    "wrong shape of the rectifier": (
        lambda: with_tensors("linear", rectifier__beta=torch.zeros(2, 1)),
        r"rectifier.kappa has shape \[5, 1, 1, 3\] and rectifier.beta has \[5, 1\]",
    ),
    "wrong steps of the rectifier": (
        lambda: with_tensors("linear", rectifier__beta=torch.zeros(3, 1), rectifier__kappa=torch.zeros(3, 1)),
        r"rectifier.(beta|kappa) has shape \[3, 1\] where the 2 predicted steps of '#.#.#' need \[2, ",
    ),
    "wrong targets of the rectifier": (
        lambda: with_tensors("linear", rectifier__beta=torch.zeros(2, 3), rectifier__kappa=torch.zeros(2, 3)),
        r"rectifier.kappa has shape \[5, 3\] where 5 steps and 1 targets need \[5, 1, ",
    ),
    "precisions of the rectifier": (
        lambda: with_tensors("linear", rectifier__beta=torch.zeros(2, 1, 1, 3).half()),
        r"in torch.float32 and torch.float16; both must be",
    ),
    "half of the predictor": (
        lambda: with_tensors(predictor__b=torch.zeros(2, 1, 1, 3).half()),
        r"b is torch.float16 on cpu; give table.float\(\)",
    ),
    "rows for thousands of steps": (
        lambda: thousands_of_steps(),
        r"predictor.a takes 536870912 bytes in memory at 4096 steps, over the cap of 268435456",
    ),
    "wrong dtype": (
        lambda: with_tensors(sigmas=GRID.double()),
        r"tensor 'sigmas': has dtype 'F64' where tensors are F32 or F16",
    ),
    "half of the grid": (lambda: with_tensors(sigmas=GRID.half()), r"content: sigmas is torch.float16 on cpu"),
    "half in version 2": (
        lambda: older(2, sigmas=GRID.half()),
        r"tensor 'sigmas': has dtype 'F16' where tensors are F32;",
    ),
    "shape not positive": (
        lambda: with_header(lambda h: h["sigmas"].update(shape=[-1, 6])),
        r"tensor 'sigmas': has shape \[-1, 6\] where a list of at most 12 sizes from 0 on",
    ),
    "shape of nothing": (lambda: with_tensors(sigmas=torch.zeros(0, 6)), r"content: sigmas has shape \[0, 6\] where"),
    "shape of nothing in version 2": (
        lambda: older(2, sigmas=torch.zeros(0, 6)),
        r"tensor 'sigmas': has shape \[0, 6\] where a list of at most 12 sizes from 1 on",
    ),
    "shape of nothing, and vast": (
        lambda: with_header(lambda h: h["sigmas"].update(shape=[0, 2**40], data_offsets=[0, 0])),
        r"tensor 'sigmas': has shape \[0, 1099511627776\], more than a file of 67108864 bytes holds",
    ),
    "shape of too many axes": (
        lambda: with_header(lambda h: h["sigmas"].update(shape=[6] + [1] * 12)),
        r"tensor 'sigmas': has shape \[6, 1, .* at most 12 sizes from 0",
    ),
    "shape unlike its bytes": (
        lambda: with_header(lambda h: h["sigmas"].update(shape=[5])),
        r"tensors: .*shape",
    ),
    "tensor not an object": (
        lambda: with_header(lambda h: h.update(sigmas=[])),
        r"tensor 'sigmas': is \[\], not",
    ),
    "tensor key missing": (
        lambda: with_header(lambda h: h["sigmas"].pop("dtype")),
        r"'sigmas': 'dtype' is missing",
    ),
    "overlapping tensors": (
        lambda: with_header(lambda h: h["sigmas"].update(data_offsets=h["base_sigmas"]["data_offsets"])),
        r"tensors: .*offset.*sigmas",
    ),
    "offsets out of range": (
        lambda: with_header(lambda h: h["sigmas"].update(data_offsets=[10**6, 10**6 + 24])),
        r"tensors: .*(offset|covered)",
    ),
    "history too short": (
        lambda: with_tensors(predictor__a=reaching_too_far()[[1, 3]]),
        r"step 1 of '#.#.#' needs the last 2 computed",
    ),
    "boundaries not rising": (
        lambda: with_facts(boundaries=[2, 2], later_weights=[None, None]),
        r"provenance.boundaries is \[2, 2\]; it must rise within steps 1 to 4",
    ),
    "boundary out of the run": (
        lambda: with_facts(boundaries=[5], later_weights=[None]),
        r"provenance.boundaries is \[5\]; it must rise within steps 1 to 4",
    ),
    "boundary predicted": (
        lambda: with_facts(boundaries=[3], later_weights=[2.5]),
        r"step 3 of '#.#.#' is predicted, and another denoiser takes over there",
    ),
    "later weights missing": (
        lambda: with_facts(boundaries=[2]),
        r"provenance.later_weights has 0 entries and provenance.boundaries 1",
    ),
    "history across a boundary": (
        lambda: with_facts(boundaries=[2], later_weights=[None]),
        r"step 3 of '#.#.#' needs the last 2 computed steps and its denoiser has made 1",
    ),
    "coefficients at a computed step": (
        lambda: older(2, predictor__a=AT_COMPUTED),
        r"content: step 2 .*computed",
    ),
    "input term at site hidden": (
        lambda: edited(make("output"), lambda d: d.update(site="hidden"), seal=True),
        r"predictor.d is not 0 at site 'hidden', which holds residuals; set it to 0",
    ),
    "rectifier at a computed step": (
        lambda: older(2, "linear", rectifier__kappa=EVERYWHERE),
        r"the rectifier is not zero at step 0, which is computed; nothing is corrected there: set it to 0",
    ),
    "offset at a computed step": (
        lambda: older(2, "linear", rectifier__beta=EVERYWHERE),
        r"the rectifier is not zero at step 0, which is computed; nothing is corrected there: set it to 0",
    ),
}
