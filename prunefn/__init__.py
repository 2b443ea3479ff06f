"""prunefn: functional pruning for PyTorch. Trace once, then pure functions on dicts of tensors.

model ──trace──▶ spec      model ──params─▶ params

params, batches ─collect_stats▶ stats ─score▶ scores ─select▶ mask
params, stats, mask ─compensate▶ params
params, mask ─apply▶ smaller params   ;   spec, mask ─shrink▶ smaller spec
params, x ─forward▶ y                 ;   params ─to_module▶ nn.Module
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import budget as budget
from . import compensation as compensation
from . import criteria as criteria
from . import normalizer as normalizer
from . import recipes as recipes
from . import reduction as reduction
from . import scope as scope
from . import sharded as sharded
from .budget import uniform_ratio as uniform_ratio
from .errors import BatchError as BatchError
from .errors import BudgetError as BudgetError
from .errors import MaskError as MaskError
from .errors import ParamsError as ParamsError
from .errors import PruneError as PruneError
from .errors import PruneWarning as PruneWarning
from .errors import StatsError as StatsError
from .errors import TraceError as TraceError
from .forward import forward as forward
from .forward import forward_train as forward_train
from .io.checkpoint import load as load
from .io.checkpoint import load_params as load_params
from .io.checkpoint import save as save
from .io.lazy import lazy_params as lazy_params
from .io.module import to_module as to_module
from .io.stats_file import load_stats as load_stats
from .io.stats_file import save_stats as save_stats
from .io.stream import apply_checkpoint as apply_checkpoint
from .latency import Call as Call
from .latency import Clock as Clock
from .latency import LatencyTable as LatencyTable
from .latency import latency as latency
from .latency import latency_table as latency_table
from .masks import mask as mask
from .params import apply as apply
from .params import compose as compose
from .params import expand as expand
from .params import kept as kept
from .params import kept_positions as kept_positions
from .params import params as params
from .params import shrink as shrink
from .params import zero as zero
from .pipeline import cost as cost
from .pipeline import pipeline as pipeline
from .recalibrate import recalibrate as recalibrate
from .repair import compensate as compensate
from .repair import residual as residual
from .report.metrics import Metrics as Metrics
from .report.metrics import compare as compare
from .report.metrics import metrics as metrics
from .report.profile import Profile as Profile
from .report.profile import profile as profile
from .score import score as score
from .select import select as select
from .stats import Stats as Stats
from .stats import collect_stats as collect_stats
from .stats import merge_stats as merge_stats
from .stats import stats_bytes as stats_bytes
from .stats import sync_stats as sync_stats
from .trace.api import trace as trace
from .trace.spec import Spec as Spec
from .types import Collector as Collector
from .types import Cost as Cost
from .types import Criterion as Criterion
from .types import Mask as Mask
from .types import Params as Params
from .types import Scores as Scores
from .where import exact as exact
from .where import glob as glob
from .where import kind as kind
from .where import module as module
from .where import only as only
from .where import touches as touches

if TYPE_CHECKING:
    from . import config as config
    from . import data as data
    from . import export as export
    from . import nets as nets
    from . import pruning as pruning
    from . import sparse as sparse
    from . import sweep as sweep
    from . import train as train

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Rooms that need extras are opened when somebody enters."""
    if name in ("config", "data", "export", "nets", "pruning", "sparse", "sweep", "train"):
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
