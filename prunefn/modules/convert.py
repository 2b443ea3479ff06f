"""`to_module`: params and spec as an `nn.Module`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..doors import door
from ..errors import PruneError
from ..program.sharded import check_plain
from ..spec.spec import Spec, check_runnable
from ..types import Params
from .graph import graph_module
from .rebuild import rebuild


@door
def to_module(
    params: Params, *, spec: Spec, model: nn.Module | None = None, blocks: Sequence[str] | str = ()
) -> nn.Module:
    """Return a module at the spec's sizes whose parameters have their original names.

    Without `model`, the result is a graph module. It takes and returns the same as the traced model; it trains, compiles,
    exports, and supports `load_state_dict`. It runs in the traced mode, whatever `train()` or `eval()` says; traced with
    `train=True`, it updates its BatchNorm buffers. Modules that do what one layer of `torch.nn` does are that layer, except for
    BatchNorm, and everything else calls public functions of torch: quantisers find as many layers as in the class. If the inputs
    are plain tensors and the outputs tensors in tuples, lists or dicts, `torch.jit.script` takes it.

    With `model`, the result is the original class: a copy of its module tree with new tensors, in which the numbers that size
    its ops have the new sizes, also inside dicts, lists, configs, partial functions and closures. `to_module` confirms
    it by running it against `forward` on random inputs like the traced ones. If the class computes a scale from its width
    (attention's 1 / √head_dim), the scale of the traced width is kept by folding the ratio into the layer that feeds it.

    The params are copied: training the module does not write to them. Tied parameters stay tied, and parameters that did not
    require gradients when the model was traced do not here.

    With `blocks`, parts of the graph module become submodules at their original paths, which it calls. Tools that hook modules
    then work on them: `fully_shard`, activation checkpoints. Names, numbers and everything else do not change.

        module = pf.to_module(params, spec=spec, blocks="model.layers.*")
        for layer in module.model.layers.children():
            fully_shard(layer)
        fully_shard(module)

    If the params are DTensors, the module's parameters are on `meta`: `prunefn.program.sharded` shows what to do with them, and
    how to start several processes.

    Args:
        params: params of the spec.
        spec: spec of the params; `shrink(spec, mask)` for pruned params.
        model: the module that was traced, at its traced sizes; it is not changed.
        blocks: globs of module paths; of matching modules inside each other, the outermost becomes a block. A block must run
            as a whole and must not share its parameters.

    Raises:
        ParamsError: the params or the model do not fit the spec.
        TraceError: the spec was recorded, and `model` is None.
        PruneError: the class cannot run at these sizes; the message says where in its source. A block cannot be called as a
            whole, a block shares a parameter with code outside of it, or a pattern matches nothing.

    >>> import torch, prunefn as pf
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> spec = pf.trace(model, (torch.randn(2, 4),))
    >>> mask = {"0": torch.tensor([True, False, True])}
    >>> to_module(pf.apply(pf.params(model), mask, spec=spec), spec=pf.shrink(spec, mask), model=model)
    Sequential(
      (0): Linear(in_features=4, out_features=2, bias=True)
      (1): ReLU()
      (2): Linear(in_features=2, out_features=2, bias=True)
    )
    """
    if model is not None:
        if blocks:
            raise PruneError(
                "blocks= is for the graph module; the original class has modules of its own: leave out one of the two"
            )
        check_plain(params, "to_module(…, model=model)", "leave model out, for a graph module")
        return rebuild(params, spec, model)
    check_runnable(spec)
    return graph_module(params, spec, blocks)
