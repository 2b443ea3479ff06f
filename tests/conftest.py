"""One thread and a fixed seed for every test."""

import pytest
import torch

torch.set_num_threads(1)
torch.backends.mha.set_fastpath_enabled(False)  # the fused kernel of torch's own attention layers rounds differently


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
