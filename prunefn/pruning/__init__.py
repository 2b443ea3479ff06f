"""Pruning by a config, in three calls around a training loop: `channel_regularize`, `slice_regularize`, `prune(model, epoch)`.

`Pruning` is an immutable value, and each call returns values: no module, config or file is changed. `prune` returns a `Step`: the
model for the next epoch, the next `Pruning`, the weight masks to hold, and whether a new optimizer is needed. Masks are a pure
function of the parameters. DistributedDataParallel keeps these equal, so every rank gets equal masks without communication; call
`prune(ddp.module, …)` and wrap the model of the step again.

Regularize: add the losses to that of the task.

>>> import torch, prunefn as pf
>>> from torch import nn
>>> def net():
...     return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
...         nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
...         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
>>> config = {
...     "channel_sparsity_args": {
...         "global_pruning": True, "block_size": 2, "start_epoch": 1, "end_epoch": 3, "epoch_rate": 1, "global_prune_rate": 0.5,
...         "pruning_method": "BNScalePruner", "regularize": {"reg": 1e-4}, "layers": ["0", "3"], "input_shape": [1, 1, 6, 6]},
...     "slice_sparsity_args": {
...         "block_size": 2, "start_epoch": 2, "end_epoch": 3, "epoch_rate": 1, "prune_rate": 0.5, "reg": 1e-4}}
>>> _ = torch.manual_seed(0)
>>> model, x, y = net(), torch.randn(16, 1, 6, 6), torch.arange(16) % 3
>>> pruning = Pruning.of(config, model)
>>> loss = nn.functional.cross_entropy(model(x), y) + pruning.channel_regularize(model) + pruning.slice_regularize(model)
>>> loss.backward()
>>> pruning.channel_regularize(model).detach()  # reg · 16 scales of 1
tensor(0.0016)

Prune once an epoch: the new optimizer gets the sliced state, and masked weights stay zero.

>>> with torch.no_grad():
...     _ = model[1].weight.copy_(torch.arange(1, 9)), model[4].weight.copy_(torch.arange(9, 17))
>>> optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
>>> for epoch in range(4):
...     step = pruning.prune(model, epoch)
...     print(step.report)
...     model, pruning = step.model, step.pruning
...     if step.new_optimizer:
...         state = step.optimizer_state(optimizer)
...         optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
...         optimizer.load_state_dict(state)
...     optimizer.zero_grad()
...     nn.functional.cross_entropy(model(x), y).backward()
...     optimizer.step()
...     step.hold_zero(optimizer)
epoch 0: nothing to prune; 16 of 16 channels and 100.0 % of the MACs are left
epoch 1: channels removed; 12 of 16 channels and 50.1 % of the MACs are left
epoch 2: channels removed, slices masked; 8 of 16 channels and 19.5 % of the MACs are left; 50.0 % of the eligible slices are zero
epoch 3: nothing to prune; 8 of 16 channels and 19.5 % of the MACs are left; 50.0 % of the eligible slices are zero

Load: the state of the pruning has the sizes; `at_init` returns a model of these sizes, which loads the weights.

>>> weights, state = model.state_dict(), pruning.state_dict()  # tensors, for torch.save or safetensors
>>> resumed = Pruning.of(config, net(), state=state)
>>> small = resumed.at_init(net()).model
>>> small.load_state_dict(weights)
<All keys matched successfully>
"""

from . import config
from .adapter import Pruning, Step

__all__ = ["Pruning", "Step", "config"]


def __dir__() -> list[str]:
    return __all__
