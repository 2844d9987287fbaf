"""Many clients at a running server: pictures, streams, clients that go away, bad input.

    python benchmarks/serve_soak.py --requests 500 --clients 8

Every picture is compared with the one that is made alone with its seed, and no job may be lost. The clients are in a
process of their own, so that the memory is the server's. Prints how far it is; writes
benchmarks/results/serve_soak.json and its table in docs/serving.md.
"""

import argparse
import base64
import ctypes
import gc
import importlib.metadata
import json
import os
import platform
import random
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx
import torch

from ertacache.calibration.pipeline_run import call_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.runtime.apply import apply
from ertacache.serving.encoded import picture
from ertacache.serving.job import Job
from ertacache.serving.ladder import Ladder
from ertacache.serving.order import Order
from ertacache.serving.service import Service

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "serve_soak.json"
PAGE = ROOT / "docs" / "serving.md"
#: What stands around the table on the page.
MARKS = ("<!-- serve_soak -->\n", "<!-- /serve_soak -->\n")
#: Parts of the requests, after each of which the memory is read; the first warms up what is kept from then on.
PARTS = 10
VERSIONS = ("torch", "diffusers", "fastapi", "uvicorn", "httpx")
PROMPTS = ("a small red ring", "a large blue square at the top left")
SEEDS, QUALITIES = 2, ("low", "xhigh", "max")
BAD: tuple[tuple[Any, int], ...] = (
    ({"prompt": ""}, 400), ({"prompt": 5}, 400), ({"prompt": "a", "size": "65x64"}, 400),
    ({"prompt": "a", "n": 0}, 400),
    ({"prompt": "a", "model": "another"}, 404), ({"prompt": "a", "num_inference_steps": 10**9}, 400), ("[", 400),
)  # fmt: skip


#: The file of each prompt, seed and quality.
Files = dict[tuple[str, int, str], bytes]


def alone(pipe: Any, ladder: Ladder) -> Files:
    """The file of each prompt, seed and quality, made without a server."""
    found: Files = {}
    for quality in QUALITIES:
        order = Order("", ladder.defaults, quality)
        profile, call = ladder.choose(order)[0].profile, dict(ladder.defaults)
        for text in PROMPTS:
            for seed in range(SEEDS):
                prompts = Prompts((text,), seed)
                if profile is None:
                    image = call_pipeline(pipe, prompts, call)[0]
                else:
                    with apply(pipe, profile):
                        image = call_pipeline(pipe, prompts, call)[0]
                found[text, seed, quality] = picture(image, "png")
    return found


class Client(threading.Thread):
    """One of several, with its share of the requests."""

    def __init__(self, url: str, requests: int, seed: int, expected: Files) -> None:
        super().__init__()
        self._requests, self._chance, self._expected = requests, random.Random(seed), expected
        self._http = httpx.Client(base_url=url, timeout=None)
        self.seen, self.faults = Counter[str](), list[str]()

    def run(self) -> None:
        with self._http:
            for _ in range(self._requests):
                kind = self._chance.choice(("picture", "picture", "stream", "gone", "bad"))
                try:
                    getattr(self, f"_{kind}")()
                except Exception as error:  # what a client must never see
                    self.faults.append(f"{kind}: {type(error).__name__}: {error}")

    def _order(self) -> tuple[dict[str, Any], bytes]:
        chosen = self._chance.choice(list(self._expected))
        return dict(zip(("prompt", "seed", "quality"), chosen, strict=True)), self._expected[chosen]

    def _compare(self, kind: str, found: str, wanted: bytes) -> None:
        self.seen[kind] += 1
        self.seen["not the one made alone"] += base64.b64decode(found) != wanted

    def _picture(self) -> None:
        body, wanted = self._order()
        while (answer := self._http.post("/v1/images/generations", json=body)).status_code == 429:
            self.seen["told to wait"] += 1
            time.sleep(min(0.1, int(answer.headers["retry-after"])))
        self._compare("pictures", answer.raise_for_status().json()["data"][0]["b64_json"], wanted)

    def _stream(self, leave_at: int | None = None) -> None:
        body, wanted = self._order()
        body |= {"stream": True, "progress": True, "partial_images": self._chance.randrange(4)}
        with self._http.stream("POST", "/v1/images/generations", json=body) as answer:
            if answer.status_code == 429:
                self.seen["told to wait"] += 1
                time.sleep(min(0.1, int(answer.headers["retry-after"])))
                return self._stream(leave_at)
            for line in answer.iter_lines():
                event = json.loads(line[6:]) if line.startswith("data: ") else {}
                if leave_at is not None and event.get("step", -1) >= leave_at:
                    self.seen["gone"] += 1
                    return
                if event.get("type") == "image_generation.completed":
                    self._compare("streams", event["b64_json"], wanted)
                    return
        raise ConnectionError("the stream ended without a picture")

    def _gone(self) -> None:
        self._stream(self._chance.randrange(3))

    def _bad(self) -> None:
        body, status = self._chance.choice(BAD)
        content = body if isinstance(body, str) else json.dumps(body)
        answer = self._http.post("/v1/images/generations", content=content)
        if answer.status_code != status or not answer.json()["error"]["message"]:
            raise ValueError(f"{content} was answered with {answer.status_code}: {answer.text}")
        self.seen["bad input"] += 1


def at_work(url: str, shares: Sequence[tuple[int, int]], expected: Files) -> tuple[Counter[str], list[str]]:
    """What clients saw, each with its number of requests and its seed, and what they must never see."""
    clients, seen, faults = [Client(url, *share, expected) for share in shares], Counter[str](), list[str]()
    for client in clients:
        client.start()
    for client in clients:
        client.join()
        seen += client.seen
        faults += client.faults
    return seen, faults


def resident() -> int:
    """MiB of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


class _Mallinfo(ctypes.Structure):
    """What glibc says of its heap, in bytes."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


def live() -> dict[str, float]:
    """What is in use once the collector has run: a leak shows here, and not what an allocator keeps for later."""
    gc.collect()
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Mallinfo
    heap, objects = mallinfo2(), gc.get_objects()
    return {
        "python_objects": len(objects), "python_blocks": sys.getallocatedblocks(),
        "malloc_mib": round((heap.uordblks + heap.hblkhd) / 2**20, 2),
        "jobs": sum(type(one) is Job for one in objects),
    }  # fmt: skip


def dealt(count: int, hands: int) -> list[int]:
    """So many in equal shares, as far as that goes."""
    return [count * (n + 1) // hands - count * n // hands for n in range(hands)]


def soak(url: str, expected: Files, requests: int, clients: int, seed: int, pool: Executor) -> dict[str, Any]:
    """What the clients saw, what the server counted, and its memory after each part of the requests."""
    seen, faults, memory, start = Counter[str](), list[str](), list[int](), time.perf_counter()
    for part, share in enumerate(dealt(requests, PARTS)):
        shares = [(count, seed + 100 * part + n) for n, count in enumerate(dealt(share, clients))]
        more_seen, more_faults = pool.submit(at_work, url, shares, expected).result()
        seen += more_seen
        faults += more_faults
        ended = _ended(url)
        if part == 0:
            warm = live()
        memory.append(resident())
        done, spent = requests * (part + 1) // PARTS, time.perf_counter() - start
        print(f"{done} of {requests} requests, {spent:.0f} s, {memory[-1]} MiB, {len(faults)} faults", flush=True)
    kept = {"warm": warm, "end": live()}
    return {"seen": dict(sorted(seen.items())), "faults": faults, "ended": ended, "memory_mib": memory, "live": kept}


def _ended(url: str) -> dict[str, int]:
    """The jobs by how they ended, when none is left."""
    while True:
        page = httpx.get(f"{url}/metrics").text
        counts = {
            name: float(value) for name, value in re.findall(r"^ertacache:diffusion_(\S+) (\S+)$", page, re.MULTILINE)
        }
        if not any(counts[name] for name in ("num_queue_reqs", "num_running_reqs")):
            return {key: int(value) for key, value in counts.items() if key.startswith("requests_total")}
        time.sleep(0.05)  # those that nobody waits for end at their next step


def wrong(found: dict[str, Any]) -> list[str]:
    """What must not be: a fault, a picture that is another, a job that no client knows of or that never ended."""
    seen, ended = found["seen"], found["ended"]
    known = {"completed": 0, "cancelled": 0, **{key.split('"')[1]: value for key, value in ended.items()}}
    made, gone = seen.get("pictures", 0) + seen.get("streams", 0), seen.get("gone", 0)
    said = list(found["faults"])
    if seen.get("not the one made alone", 0):
        said.append(f"{seen['not the one made alone']} pictures are not the one made alone")
    if sum(known.values()) != made + gone or not made <= known["completed"] <= made + gone:
        said.append(f"{made} were made and {gone} went away, and the server counts {ended}")  # one gone may be done
    return said


def table(result: dict[str, Any]) -> str:
    """The figures of a result file for docs/serving.md."""
    header, seen, memory = result["header"], result["seen"], result["memory_mib"]
    first, last = result["live"]["warm"], result["live"]["end"]
    rows = (
        ("requests, clients", f"{header['requests']}, {header['clients']}"),
        ("pictures, and streams to their end", f"{seen.get('pictures', 0)}, {seen.get('streams', 0)}"),
        ("of these not the one made alone, bit for bit", seen.get("not the one made alone", 0)),
        ("clients that went away within a stream", seen.get("gone", 0)),
        ("bad input, refused as it should be", seen.get("bad input", 0)),
        ("told to wait by 429", seen.get("told to wait", 0)),
        ("faults, lost jobs", len(wrong(result))),
        ("memory of the server after each tenth, MiB", ", ".join(map(str, memory))),
        *(
            (f"{words} after the first tenth, after all", f"{first[name]:,}, {last[name]:,}")
            for name, words in (
                ("python_objects", "objects of Python"),
                ("python_blocks", "blocks of Python's allocator"),
                ("malloc_mib", "MiB in use of malloc"),
                ("jobs", "jobs in memory"),
            )
        ),
        ("seconds, threads of torch", f"{header['seconds']}, {header['threads']}"),
        ("versions", ", ".join(f"{name} {header[name]}" for name in VERSIONS)),
    )
    head = (("soak of tiny-flux, ten steps", ""), ("---", "---"))
    return "".join(f"| {name} | {value} |\n" for name, value in (*head, *rows))


def with_table(page: str, result: dict[str, Any]) -> str:
    """The page with the table in its place."""
    before, rest = page.split(MARKS[0])
    return before + MARKS[0] + table(result) + MARKS[1] + rest.split(MARKS[1])[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    import served
    import served_flux

    service: Service = served_flux.service()
    expected, start = alone(service.pipes[0], service.ladder), time.perf_counter()
    with served.running(service) as url, ProcessPoolExecutor(1, get_context("spawn")) as pool:
        found = soak(url, expected, given.requests, given.clients, given.seed, pool)
    header = {
        "requests": given.requests, "clients": given.clients, "seed": given.seed, "machine": platform.machine(),
        "python": platform.python_version(), "threads": torch.get_num_threads(),
        "seconds": round(time.perf_counter() - start),
        **{name: importlib.metadata.version(name) for name in VERSIONS},
    }  # fmt: skip
    result = {"header": header, **found}
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    if given.out == RESULT:
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), result), encoding="utf-8")
    print(table(result))
    if said := wrong(result):
        raise SystemExit("\n".join(said))


if __name__ == "__main__":
    main()
