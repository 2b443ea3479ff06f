"""Image data for training and evaluation, from this machine's disk: small data sets in memory, or a folder in ImageNet's layout."""

from .api import NAMES as NAMES
from .api import Data as Data
from .api import Preprocessing as Preprocessing
from .api import open_data as open_data
from .api import preprocessing_of as preprocessing_of
from .embedded import Split as Split
from .embedded import digits as digits

__all__ = ["NAMES", "Data", "Preprocessing", "Split", "digits", "open_data", "preprocessing_of"]


def __dir__() -> list[str]:
    return __all__
