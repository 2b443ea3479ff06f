"""Data for training and evaluation, from this machine's disk: images in memory or in folders, and texts as tokens."""

from .api import NAMES as NAMES
from .api import Data as Data
from .api import Preprocessing as Preprocessing
from .api import open_data as open_data
from .api import preprocessing_of as preprocessing_of
from .embedded import Split as Split
from .embedded import digits as digits
from .packing import TextBatches as TextBatches
from .packing import text as text

__all__ = ["NAMES", "Data", "Preprocessing", "Split", "TextBatches", "digits", "open_data", "preprocessing_of", "text"]


def __dir__() -> list[str]:
    return __all__
