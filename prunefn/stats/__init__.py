"""Statistics of the sites' inputs: collected in one pass, merged exactly, shared between processes and saved to disk."""

from ..types import Stats as Stats
from .collect import check_stats as check_stats
from .collect import collect_stats as collect_stats
from .collect import merge_stats as merge_stats
from .collect import stats_bytes as stats_bytes
from .sync import sync_stats as sync_stats
