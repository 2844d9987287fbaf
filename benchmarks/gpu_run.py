"""The order of the work, what fits into the minutes, and what becomes of an entry that fails."""

import datetime
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch
from gpu_build import Built, Model, Size, build, release
from gpu_measure import (
    CALIBRATION_STEPS,
    PARTS,
    WARM_UP,
    OutOfTime,
    Row,
    Time,
    calibration_row,
    computed,
    peer_rows,
    plans,
    repetitions,
    warm_up,
)
from gpu_models import COGVIDEOX, FLUX, MODELS, OPEN_SORA, WAN
from gpu_quantised import corrections
from gpu_report import Report
from gpu_variants import VARIANTS

#: Measured on the pipeline as it is, beside the variants.
PEERS, CALIBRATION = "other caches", "calibration"
WORK = (*VARIANTS, PEERS, CALIBRATION)
#: What is worth most comes first; whatever is not named here follows, model by model.
FIRST = (
    (FLUX, "eager"), (FLUX, PEERS), (FLUX, CALIBRATION), (FLUX, "compiled"), (WAN, "eager"), (FLUX, "group offload"),
    (FLUX, "CUDA graphs"), (FLUX, "int8dq"), (FLUX, "fp8wo"), (COGVIDEOX, "eager"), (OPEN_SORA, "eager"),
    (FLUX, "model offload"),
)  # fmt: skip
#: Seconds to build a model of full size.
_BUILD = 15.0


@dataclass
class Machine:
    """Where it runs; a test puts others in place of the clock and the memory.

    Attributes:
        clock: seconds.
        free: free bytes of the device.
        host: free bytes of the host's memory.
    """

    device: torch.device
    clock: Callable[[], float] = time.monotonic
    free: Callable[[], int] = field(default=lambda: torch.cuda.mem_get_info()[0])
    host: Callable[[], int] = field(default=lambda: psutil.virtual_memory().available)

    @classmethod
    def of(cls, device: torch.device) -> "Machine":
        """The real one."""
        machine = cls(device)
        if device.type == "cuda":
            torch.cuda.set_device(device.index or 0)
        else:
            machine.free = machine.host
        return machine

    def facts(self) -> dict[str, str]:
        """For the header of the result file."""
        facts = {"device": "CPU"}
        if self.device.type == "cuda":
            properties = torch.cuda.get_device_properties(self.device)
            memory = f"{properties.total_memory / 2**30:.0f} GiB"
            facts = {"device": properties.name, "memory": memory, "CUDA": str(torch.version.cuda), "driver": _driver()}
        names = ("torch", "diffusers", "transformers", "accelerate", "cache-dit")
        return facts | {name: found for name in names if (found := _version(name))}


@dataclass
class Session:
    """One run of the benchmark."""

    machine: Machine
    left: Time
    report: Report
    tiny: bool
    seed: int
    steps: dict[tuple[str, str], float] = field(default_factory=dict[tuple[str, str], float])
    uncached: dict[str, Row] = field(default_factory=dict[str, Row])
    held: Built | None = None

    def run(self, work: Sequence[tuple[Model, str]]) -> None:
        """Every entry in turn; one that fails ends alone."""
        for model, name in work:
            before = len(self.report.rows)
            try:
                reason = self._entry(model, name)
                status = "skipped" if reason else "measured"
                self.report.entry(model.name, name, status, reason or "")
            except OutOfTime as error:
                status = "in part" if len(self.report.rows) > before else "not reached"
                self.report.entry(model.name, name, status, str(error))
            except Exception as error:  # foreign code on a machine nobody has seen: the others are still worth it
                first = next(iter(str(error).strip().splitlines()), "")
                self.held = None
                self.report.entry(model.name, name, "failed", f"{type(error).__name__}: {first}")
            if name in VARIANTS and name != "eager":
                self.held = None  # it was changed for good

    def _entry(self, model: Model, name: str) -> str | None:
        """Measure one entry; the reason where it cannot be."""
        self.left.need(self.estimate(model, name), "it")
        built = self._built(model)
        if isinstance(built, str):
            return built
        variant = VARIANTS.get(name, VARIANTS["eager"])
        if reason := variant.refusal(built, self.machine.host()):
            return reason
        facts: Row = {"model": model.name, "variant": name, "layers": built.layers}
        if note := variant.prepare(built):
            facts["note"] = note
        for row in self._rows(built, name):
            self.report.row({**facts, **row})
        return None

    def _rows(self, built: Built, name: str) -> Iterator[Row]:
        model = built.model.name
        if (model, name) not in self.steps:
            self.steps[model, name] = warm_up(built, self.seed)
        step = self.steps[model, name]
        if name not in VARIANTS and model not in self.uncached:
            self.uncached[model] = next(plans(built, step, self.left, self.seed))
        if name == PEERS:
            yield from peer_rows(built, self.uncached[model], self.left, self.seed)
        elif name == CALIBRATION:
            yield calibration_row(built, self.uncached[model], self.seed)
        elif VARIANTS[name].scheme:
            yield from corrections(built, step, self.left, self.seed)
        else:
            for row in plans(built, step, self.left, self.seed):
                if name == "eager" and row["plan"] == "uncached":
                    self.uncached[model] = row
                yield row

    def _built(self, model: Model) -> Built | str:
        if self.held is not None and self.held.model is model:
            return self.held
        self.held = None
        release()
        built = build(model, self.size(model), self.machine.device, self.machine.free(), self.seed)
        self.held = None if isinstance(built, str) else built
        return built

    def size(self, model: Model) -> Size:
        return model.tiny if self.tiny else model.full

    def estimate(self, model: Model, name: str) -> float:
        """Seconds that an entry takes, by the steps that were measured before it."""
        size = self.size(model)
        T = size.call["num_inference_steps"]
        measured = [self.steps[key] for key in ((model.name, name), (model.name, "eager")) if key in self.steps]
        step = next(iter(measured), size.step_seconds)
        loop = T * step
        made = 0.0 if self.held is not None and self.held.model is model else _BUILD
        setup = 0.0 if self.tiny else made + (VARIANTS[name].seconds if name in VARIANTS else 0.0)
        if name == CALIBRATION:
            return setup + 4 * CALIBRATION_STEPS * step
        if name in VARIANTS and VARIANTS[name].scheme:
            return setup + WARM_UP * step + 2 * loop * repetitions(loop)
        plans_cost = sum(computed(T, part) for part in PARTS) / T
        if name == PEERS:  # four methods, and the search of one
            return setup + loop * (4 * plans_cost * repetitions(loop, of_peers=True) + 4)
        return setup + WARM_UP * step + loop * (1 + plans_cost) * repetitions(loop)


def ordered(models: Sequence[Model]) -> list[tuple[Model, str]]:
    """All work on these models, what is worth most first."""
    rest = [(model, name) for model in MODELS for name in WORK]
    return [entry for entry in dict.fromkeys((*FIRST, *rest)) if entry[0] in models]


def benchmark(
    machine: Machine, models: Sequence[Model], minutes: float, out: Path, *, tiny: bool, seed: int,
    say: Callable[[str], None],
) -> Report:  # fmt: skip
    """The whole run; the report is on the disk at every moment of it."""
    header = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "seed": seed, "minutes": minutes, "tiny": tiny,
        "machine": machine.facts(),
    }  # fmt: skip
    report = Report(out, header, say)
    Session(machine, Time(machine.clock, machine.clock() + 60 * minutes), report, tiny, seed).run(ordered(models))
    say(report.table())
    return report


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _driver() -> str:
    """As the driver's own file says it; unknown where there is none."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return "unknown"
    return next((word for word in text.split() if word.count(".") == 2 and word[0].isdigit()), "unknown")
