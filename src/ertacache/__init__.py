"""Calibrated step caching for diffusers pipelines.

import ertacache

profile = ertacache.calibrate(pipe, prompts, speedup=2.0, num_inference_steps=30)
with ertacache.apply(pipe, profile) as stats:
    image = pipe(prompt, num_inference_steps=30).images[0]
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ertacache.calibration.calibrate import calibrate
    from ertacache.calibration.method import Method
    from ertacache.core.schedule import Schedule
    from ertacache.errors import (
        CacheConflict,
        CalibrationError,
        ErtacacheError,
        HandoverInvalid,
        InvalidArgument,
        MissingExtra,
        PredictionDiverged,
        PredictorInvalid,
        ProfileInvalid,
        ProfileMismatch,
        ScheduleInvalid,
        SplitMismatch,
        UnsupportedPipeline,
        VBenchFailed,
    )
    from ertacache.profile.profile import Profile, Provenance
    from ertacache.quantization.calibrate import calibrate_quantized
    from ertacache.runtime.apply import apply, disable, enable
    from ertacache.runtime.run_stats import RunStats

__version__ = "0.1.0"

_HOME = {
    "CacheConflict": "errors",
    "CalibrationError": "errors",
    "ErtacacheError": "errors",
    "HandoverInvalid": "errors",
    "InvalidArgument": "errors",
    "Method": "calibration.method",
    "MissingExtra": "errors",
    "PredictionDiverged": "errors",
    "PredictorInvalid": "errors",
    "Profile": "profile.profile",
    "ProfileInvalid": "errors",
    "ProfileMismatch": "errors",
    "Provenance": "profile.profile",
    "RunStats": "runtime.player",
    "Schedule": "core.schedule",
    "ScheduleInvalid": "errors",
    "SplitMismatch": "errors",
    "UnsupportedPipeline": "errors",
    "VBenchFailed": "errors",
    "apply": "runtime.apply",
    "calibrate": "calibration.calibrate",
    "calibrate_quantized": "quantization.calibrate",
    "disable": "runtime.apply",
    "enable": "runtime.apply",
}

__all__ = [
    "CacheConflict",
    "CalibrationError",
    "ErtacacheError",
    "HandoverInvalid",
    "InvalidArgument",
    "Method",
    "MissingExtra",
    "PredictionDiverged",
    "PredictorInvalid",
    "Profile",
    "ProfileInvalid",
    "ProfileMismatch",
    "Provenance",
    "RunStats",
    "Schedule",
    "ScheduleInvalid",
    "SplitMismatch",
    "UnsupportedPipeline",
    "VBenchFailed",
    "apply",
    "calibrate",
    "calibrate_quantized",
    "disable",
    "enable",
]


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used: `import ertacache` loads no torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'ertacache' has no attribute {name!r}; its names are {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"ertacache.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
