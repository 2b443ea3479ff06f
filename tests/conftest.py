"""One thread, a fixed seed for every test, and one profile for all random examples."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

from .marks import is_slow, is_smoke

torch.set_num_threads(1)
torch.backends.mha.set_fastpath_enabled(False)  # the fused kernel of torch's own attention layers rounds differently

# The same examples in every run. The first one that fails is printed at once: to shrink a network takes minutes.
# `--hypothesis-profile=shrink` looks for the smallest.
settings.register_profile(
    "quick",
    deadline=None,
    derandomize=True,
    print_blob=True,
    phases=(Phase.explicit, Phase.generate),
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile("shrink", settings.get_profile("quick"), phases=list(Phase))
settings.load_profile("quick")


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if is_smoke(item.nodeid):
            item.add_marker("smoke")
        if is_slow(item.nodeid):
            item.add_marker("slow")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.default_generator.manual_seed(0)  # of the CPU, which is what the tests draw from


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Commands keep what they measure and trace in a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNEFN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
