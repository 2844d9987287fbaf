"""Every error a caller may want to catch.

ErtacacheError
├── InvalidArgument     an argument has a value that cannot work (also a ValueError)
│   ├── ScheduleInvalid     a schedule that cannot be run
│   └── PredictorInvalid    a coefficient table that does not fit its schedule or its history
├── CalibrationError    calibration cannot reach a result from what it was given
├── ProfileInvalid      a profile file that is damaged, hostile or of another version
├── ProfileMismatch     a sound profile that belongs to another model, solver or call
├── HandoverInvalid     bytes of a handover that are damaged, hostile or of another version
├── SplitMismatch       two models, or a handover and a pipeline, that do not belong together
├── SplitFailed         a server made no usable first part of a split run; its kinds say why
│   ├── ServerUnreachable   no connection, or it was lost as often as it was tried
│   ├── DeadlineExceeded    the time for the server's part is over
│   ├── ServerRefused       the server answered with an error
│   └── AnswerInvalid       the server's answer is not what was asked for
├── PredictionDiverged  a predicted step gave NaN or infinity
├── UnsupportedPipeline a pipeline, denoiser or scheduler that cannot be served
├── CacheConflict       something already caches or predicts on this denoiser
├── MissingExtra        an optional dependency, or the weights of a metric, are not there
└── VBenchFailed        VBench, in its own environment, failed or cannot run
"""

import difflib
from collections.abc import Iterable


class ErtacacheError(Exception):
    """Root of every error raised on purpose by this package; its text says what to do next."""


class InvalidArgument(ErtacacheError, ValueError):
    """An argument has a value that cannot work."""


class ScheduleInvalid(InvalidArgument):
    """A schedule that cannot be run."""


class PredictorInvalid(InvalidArgument):
    """A coefficient table that does not fit its schedule or its history."""


class CalibrationError(ErtacacheError):
    """Calibration cannot reach a result from what it was given."""


class ProfileInvalid(ErtacacheError):
    """A profile file that is damaged, hostile or of another version."""


class ProfileMismatch(ErtacacheError):
    """A sound profile that belongs to another model, solver or call."""


class HandoverInvalid(ErtacacheError):
    """Bytes of a handover that are damaged, hostile or of another version."""


class SplitMismatch(ErtacacheError):
    """Two models, or a sound handover and a pipeline, that do not belong together."""


class SplitFailed(ErtacacheError):
    """A server made no usable first part of a split run; the device can make the whole run itself."""


class ServerUnreachable(SplitFailed):
    """No connection to the server of a split run, or it was lost as often as it was tried."""


class DeadlineExceeded(SplitFailed):
    """The time for the server's part of a split run is over."""


class ServerRefused(SplitFailed):
    """The server of a split run answered with an error."""


class AnswerInvalid(SplitFailed):
    """The server of a split run answered something else than what was asked for."""


class PredictionDiverged(ErtacacheError):
    """A predicted step gave NaN or infinity; the message names the step and what to do."""


class UnsupportedPipeline(ErtacacheError):
    """A pipeline, denoiser or scheduler that cannot be served."""


class CacheConflict(ErtacacheError):
    """Something already caches or predicts on this denoiser."""


class MissingExtra(ErtacacheError):
    """An optional dependency, or the weights of a metric, are not there; the message says how to get them."""


class VBenchFailed(ErtacacheError):
    """VBench, in its own environment, failed or cannot run there; the message holds its last words."""


def meant(name: str, known: Iterable[str]) -> str:
    """ "; did you mean ...?" with the known name that is nearest to an unknown one; empty where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
