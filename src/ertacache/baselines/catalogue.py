"""The list of compared methods that commands, tests and documentation share."""

from ertacache.baselines.baseline import Baseline
from ertacache.baselines.budcache import BudCache
from ertacache.baselines.db_cache import DBCache, DBCacheDMD, DBCacheFoCa, DBCacheTaylorSeer
from ertacache.baselines.delta_dit import DeltaDiT
from ertacache.baselines.ertacache import (
    AdjustedTimesteps,
    Ertacache,
    Fitted,
    FittedPolicy,
    FittedTimesteps,
    HiddenErtacache,
    OfflinePolicy,
)
from ertacache.baselines.faster_cache import FasterCache
from ertacache.baselines.fewer_steps import FewerSteps
from ertacache.baselines.first_block_cache import FirstBlockCache
from ertacache.baselines.gcache import GCache
from ertacache.baselines.l2p import L2P
from ertacache.baselines.mag_cache import MagCache
from ertacache.baselines.other_solver import Adams, DPMSolver, UniPC
from ertacache.baselines.pab import PAB
from ertacache.baselines.profiling_dit import ProfilingDiT
from ertacache.baselines.sea_cache import SeaCache
from ertacache.baselines.spectrum import Spectrum
from ertacache.baselines.t_gate import TGate
from ertacache.baselines.taylor_seer import TaylorSeer
from ertacache.baselines.teacache import TeaCache
from ertacache.baselines.uniform import Uniform, UniformExtrapolation, UniformHidden, UniformReuse
from ertacache.baselines.vde import VDE
from ertacache.errors import InvalidArgument
from ertacache.extras import require

#: Every method at its default settings, in the order of tables.
METHODS: tuple[Baseline, ...] = (
    FewerSteps(),
    DPMSolver(),
    UniPC(),
    Adams(),
    UniformReuse(),
    Uniform(),
    UniformHidden(),
    UniformExtrapolation(),
    DeltaDiT(),
    TGate(),
    PAB(),
    FasterCache(),
    ProfilingDiT(),
    TeaCache(),
    FirstBlockCache(),
    MagCache(),
    TaylorSeer(),
    SeaCache(),
    DBCache(),
    DBCacheTaylorSeer(),
    DBCacheDMD(),
    DBCacheFoCa(),
    Spectrum(),
    VDE(),
    L2P(),
    GCache(),
    BudCache(),
    OfflinePolicy(),
    AdjustedTimesteps(),
    Ertacache(),
    HiddenErtacache(),
    FittedPolicy(),
    Fitted(),
    FittedTimesteps(),
)


def method(key: str) -> Baseline:
    """The method of a name.

    Raises:
        InvalidArgument: no such method.
    """
    for known in METHODS:
        if known.key == key:
            return known
    raise InvalidArgument(f"no method {key!r}; there are {', '.join(known.key for known in METHODS)}")


def methods(keys: str) -> tuple[Baseline, ...]:
    """The methods of a comma-separated list of names, or `all`.

    Raises:
        InvalidArgument: an unknown name, or one that comes twice.
        MissingExtra: one that is named needs an extra. Of `all`, it is listed with that reason in place of a result.
    """
    if keys == "all":
        return METHODS
    chosen = [key.strip() for key in keys.split(",") if key.strip()]
    if not chosen or len(set(chosen)) < len(chosen):
        raise InvalidArgument(f"methods is {keys!r}; name different methods separated by commas, or all")
    named = tuple(method(key) for key in chosen)
    for known in named:
        if known.extra:
            require(known.title, known.extra.replace("-", "_"))
    return named
