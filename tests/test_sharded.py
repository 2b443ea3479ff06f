"""Models that outgrow one device: blocks of graph modules, and params of DTensors on two processes, by torchrun."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import prunefn as pf
from prunefn.program.compiled import compiled, result

from .ranks import fsdp
from .ranks.nets import identical
from .small import Attention, Recurrent, Residual, Tied, bits, close, cnn, randn, same, traced
from .test_sync import alike

# most networks here are measured on few samples; that it is said has a test of its own
pytestmark = pytest.mark.filterwarnings("ignore:compensation 'affine' estimates weights from few samples")

ROOT = Path(__file__).parent.parent
LIMIT = 300
"""Seconds; a collective that hangs runs into it."""


# ---- blocks


class Block(nn.Module):
    """Reads the batch size and a table that all blocks share, and draws random numbers in train mode."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.BatchNorm1d(width), Attention(width, 2, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm(x.transpose(1, 2)).transpose(1, 2).reshape(x.shape[0], -1, x.shape[-1])
        y = self.attention(y + table) * torch.arange(x.shape[0])[:, None, None]
        return x + self.drop(y), y.mean(1)


class Stack(nn.Module):
    """Blocks that return two values each; a spare one that does not run; a parameter and a constant outside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 6), nn.Linear(6, 2)
        self.table = nn.Parameter(randn(5, 6))
        self.register_buffer("constant", randn(6, seed=1), persistent=False)
        self.layers = nn.ModuleList([Block(6), Block(6), Block(6)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        x, a = self.layers[0](x, self.table * self.constant)
        x, b = self.layers[1](F.gelu(x), self.table)
        return self.head(x), a - b


@pytest.fixture(scope="module", params=[False, True], ids=["eval", "train"])
def stack(request: pytest.FixtureRequest) -> tuple[pf.Params, pf.Spec]:
    torch.manual_seed(0)
    t = traced(Stack(), randn(3, 5, 4), train=request.param)
    mask = {g.name: torch.arange(g.size) % 3 != 1 for g in t.spec.groups.values() if g.kind != "residual"}
    assert mask
    return pf.apply(t.params, mask, spec=t.spec), pf.shrink(t.spec, mask)


def blocks_of(module: nn.Module) -> list[str]:
    return [n for n, m in module.named_modules() if isinstance(m, fx.GraphModule) and n]


def test_blocks_give_the_same_bits(stack: tuple[pf.Params, pf.Spec]) -> None:
    params, spec = stack
    flat, module = (pf.to_module(params, spec=spec, blocks=b) for b in ((), "layers.*"))
    assert blocks_of(module) == ["layers.0", "layers.1"]  # layers.2 has tensors, but runs nothing
    called: list[str] = []
    for name in blocks_of(module):
        module.get_submodule(name).register_forward_hook(lambda *_, name=name: called.append(name))
    for batch in (randn(3, 5, 4), randn(7, 5, 4, seed=2)):
        results = []
        for m in (flat, module):
            torch.manual_seed(3)
            y, z = m(batch)
            (y.square().sum() + z.sum()).backward()
            results.append((y, z))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert called == ["layers.0", "layers.1"] * 2
    same(dict(flat.state_dict()), dict(module.state_dict()))  # updated by BatchNorm in train mode
    assert spec.train == (
        not torch.equal(module.state_dict()["layers.0.norm.running_mean"], params["layers.0.norm.running_mean"])
    )
    assert [n for n, _ in module.named_parameters()] == [n for n, _ in flat.named_parameters()]
    assert [n for n, _ in module.named_buffers()] == [n for n, _ in flat.named_buffers()]
    for (n, a), b in zip(flat.named_parameters(), module.parameters(), strict=True):
        assert n.startswith("layers.2") == (a.grad is None)
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad)


def test_blocks_own_their_tensors(stack: tuple[pf.Params, pf.Spec]) -> None:
    params, spec = stack
    module = pf.to_module(params, spec=spec, blocks=["layers.0", "layers.1*"])
    for name in blocks_of(module):
        block = module.get_submodule(name)
        read = {str(n.target) for n in block.graph.nodes if n.op == "get_attr"}
        assert read == {n.removeprefix(f"{name}.") for n in params if n.startswith(f"{name}.")}
    used = {str(n.target) for n in module.graph.nodes if n.op == "get_attr" and n.users}
    layers = [
        str(n.target) for n in module.graph.nodes if n.op == "call_module" and str(n.target) not in blocks_of(module)
    ]
    used |= {f"{path}.{n}" for path in layers for n, _ in module.get_submodule(path).named_parameters()}
    assert used == {
        *[n for n in params if not n.startswith("layers")],
        *[n for n in used if n.startswith("_constants")],
    }
    assert any(n.startswith("_constants") for n in used)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # of torch 2.11, unpickling a graph module
def test_modules_with_blocks_are_modules_like_any_other(stack: tuple[pf.Params, pf.Spec]) -> None:
    params, spec = stack
    module, x = pf.to_module(params, spec=spec, blocks="layers.*"), randn(4, 5, 4)
    twins = [copy.deepcopy(module), pickle.loads(pickle.dumps(module))]
    fresh = pf.to_module({n: torch.zeros_like(t) for n, t in params.items()}, spec=spec, blocks="layers.*")
    fresh.load_state_dict(module.state_dict(), strict=True)

    def run(m: nn.Module) -> Tensor:
        torch.manual_seed(3)
        return m(x)[0]

    y = run(module)
    for m in (*twins, fresh, torch.compile(twins[0], fullgraph=True, backend="eager")):
        assert torch.equal(run(m), y)
    if not spec.train:
        program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
        assert torch.equal(program.module()(x[:3])[0], module(x[:3])[0])
        assert pf.cost(pf.trace(module, (x,))) == pf.cost(spec)


def test_outermost_of_matching_modules() -> None:
    t = traced(cnn(), randn(2, 3, 6, 6))
    assert blocks_of(pf.to_module(t.params, spec=t.spec, blocks=["[0-4]", "10"])) == ["0", "1", "3", "4", "10"]
    t = traced(Stack(), randn(3, 5, 4))
    module = pf.to_module(t.params, spec=t.spec, blocks=["*.attention*", "layers.1"])
    assert blocks_of(module) == ["layers.0.attention", "layers.1"]
    assert torch.equal(module(randn(2, 5, 4))[0], t.model(randn(2, 5, 4))[0])


def test_a_block_may_be_called_twice_in_a_row() -> None:
    class Net(Recurrent):
        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.b(F.relu(self.a(x)))))

    t = traced(Net(), randn(2, 4))
    module = pf.to_module(t.params, spec=t.spec, blocks="b")
    assert blocks_of(module) == ["b"] and torch.equal(module(randn(3, 4)), t.model(randn(3, 4)))


class Shared(Residual):
    """What is outside reads a weight of `up`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.up.weight.sum()


class Interleaved(nn.Module):
    """Random numbers of one module are drawn between those of another."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = _call(self.a, lambda: F.dropout(self.a.weight, 0.5, True))
        z = F.dropout(x, 0.5, True)
        return _call(self.a, lambda: F.dropout(F.linear(x, y), 0.5, True)) + self.b(z)


def _call(owner: nn.Module, body: Any) -> Tensor:
    """Run something as if it were part of a module."""
    original = owner.forward
    owner.forward = lambda: body()  # type: ignore[method-assign]
    try:
        return owner()
    finally:
        owner.forward = original  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("make", "shape", "blocks", "text"),
    [
        (
            Stack,
            (3, 5, 4),
            "layer.*",
            r"blocks='layer\.\*' matches no module that has tensors and runs.*; did you mean 'layers",
        ),
        (Stack, (3, 5, 4), ["layers.0", "layers.2"], "blocks='layers.2' matches no module"),
        (
            Recurrent,
            (2, 4),
            "b",
            r"block 'b' cannot be called as a whole: .* reads 'linear.*' of it before it ends; choose",
        ),
        (
            lambda: Shared(3, 5, 6, 2),
            (2, 3),
            "up",
            r"parameter 'up.weight' of block 'up' is also read by .*; choose a larger block",
        ),
        (Interleaved, (2, 4), "a", r"block 'a' cannot be called as a whole: .* random numbers in another order"),
    ],
    ids=["nothing", "spare", "interleaved", "shared", "random"],
)
def test_what_is_no_block(make: Any, shape: tuple[int, ...], blocks: Any, text: str) -> None:
    t = traced(make(), randn(*shape))
    with pytest.raises(pf.PruneError, match=text):
        pf.to_module(t.params, spec=t.spec, blocks=blocks)


def test_tied_parameters_are_in_one_block() -> None:
    model, ids = Tied(), torch.tensor([[1, 2]])
    spec, params = pf.trace(model, (ids,)), pf.params(model)
    assert torch.equal(pf.to_module(params, spec=spec, blocks="hidden")(ids), model(ids))
    with pytest.raises(
        pf.PruneError, match=r"'embed.weight' and 'out.weight' are tied, but block 'out' has only one of them"
    ):
        pf.to_module(params, spec=spec, blocks="out")


def test_blocks_of_the_original_class() -> None:
    t = traced(cnn(), randn(2, 3, 6, 6))
    with pytest.raises(pf.PruneError, match="blocks= is for the graph module"):
        pf.to_module(t.params, spec=t.spec, model=t.model, blocks="0")


def test_onnx_of_blocks(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    t = traced(Residual(3, 5, 6, 2), torch.randn(2, 3))
    module, path = pf.to_module(t.params, spec=t.spec, blocks=["up", "down"]).eval(), tmp_path / "net.onnx"
    torch.onnx.export(module, (randn(2, 3).float(),), path, dynamo=True, verbose=False)
    session = runtime.InferenceSession(path)
    x = randn(2, 3, seed=1).float()
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    close(torch.from_numpy(y), module(x), 1e-5)


# ---- plain tensors


def test_plain_tensors_pass_through() -> None:
    t = torch.ones(2, 3)
    assert pf.sharded.gather(t) is t and pf.sharded.spread(t, t) is t
    both = pf.sharded.gathered({"a": t, "b": t})
    assert both["a"] is both["b"] is t


def test_plain_params_are_compiled_as_ever() -> None:
    t = traced(Residual(3, 5, 6, 2), randn(2, 3))
    run = compiled(t.spec, t.params, ("test",), lambda _, env: result(t.spec, env))
    assert run.gathered == ()
    assert not any(n.target is pf.sharded.gather for n in run.call.__self__.graph.nodes)


class Scaled(nn.Module):
    """Has a table that is in no state dict."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.register_buffer("scale", torch.arange(1.0, width + 1), persistent=False)
        self.fc = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x * self.inner.scale)


def test_constants_of_a_model_that_was_traced_on_meta() -> None:
    model, x = Scaled(), torch.randn(3, 4)
    with torch.device("meta"):
        skeleton = Scaled()
    spec, params = pf.trace(skeleton, (x,)), pf.params(model)
    for action in (lambda: pf.forward(params, x, spec=spec), lambda: pf.to_module(params, spec=spec)):
        with pytest.raises(
            pf.TraceError, match=r"constant 'inner.scale' has no numbers, .*with_constants\(spec, model\)"
        ):
            action()
    filled = pf.sharded.with_constants(spec, model)
    assert torch.equal(pf.forward(params, x, spec=filled), model(x))
    assert torch.equal(pf.to_module(params, spec=filled, blocks="fc")(x), model(x))
    for other, has in ((skeleton, "on meta"), (nn.Linear(2, 2), "none"), (Scaled(5), r"torch.float32 \(5,\)")):
        with pytest.raises(
            pf.TraceError, match=rf"constant 'inner.scale' is torch.float32 \(4,\), but the model has .*{has}"
        ):
            pf.sharded.with_constants(spec, other)


# ---- two processes


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """One launch serves all tests: (its folder, what each rank found)."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("ranks")
    fsdp.write_nets(folder)
    run = [sys.executable, "-m", "torch.distributed.run"]
    done = subprocess.run(
        [*run, "--standalone", "--nproc-per-node", "2", "-m", "tests.ranks.fsdp", str(folder)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return folder, [torch.load(folder / f"found.{r}", weights_only=False) for r in range(2)]


Found = tuple[Path, list[dict[str, Any]]]
llamas = pytest.mark.parametrize("name", ["llama", "tied"])


def stats_of(found: Found, name: str) -> list[pf.Stats]:
    net = fsdp.nets()[name]
    return [pf.load_stats(found[0] / f"{name}.stats.{r}", spec=net.spec, params=net.params) for r in range(2)]


@llamas
def test_forward_is_that_of_one_process(found: Found, name: str) -> None:
    net = fsdp.nets()[name]
    for rank, batch in zip(found[1], fsdp.batches(), strict=False):
        assert torch.equal(rank[name]["logits"], pf.forward(net.params, **batch, spec=net.spec)[0])
        same(rank[name]["params"], net.params)


@llamas
def test_statistics_are_those_of_one_process(found: Found, name: str) -> None:
    net = fsdp.nets()[name]
    first, second = stats_of(found, name)
    identical(first, second)
    alike(first, pf.collect_stats(net.params, fsdp.batches(), spec=net.spec, covariance=True))


@llamas
def test_no_process_ever_holds_the_model(found: Found, name: str) -> None:
    """Of 21 tensors, at most two are there at once: the one that is read, and the embedding where the head is tied to it."""
    params = fsdp.nets()[name].params
    sizes = sorted((t.numel() for t in params.values()), reverse=True)
    for rank in found[1]:
        measuring, others = rank[name]["measuring"], [rank[name][n] for n in ("pruning", "scoring")]
        assert measuring["all"] >= 3 * 15  # three batches, and the weights that are read before the last site
        for live in (measuring, *others):
            assert live["now"] == 0
            assert 1 <= live["most"] <= 2 and live["most_elements"] <= sum(sizes[:2])


@llamas
def test_scores_are_those_of_one_process(found: Found, name: str) -> None:
    expected = fsdp.scores(stats_of(found, name)[0])
    assert len(expected) == len(fsdp.CRITERIA)
    for rank in found[1]:
        for criterion, scores in expected.items():
            same(rank[name]["scores"][criterion], scores)


@llamas
def test_pruned_tensors_are_those_of_one_process(found: Found, name: str) -> None:
    net = fsdp.nets()[name]
    expected = fsdp.prune(stats_of(found, name)[0], net.params, net.spec)
    assert set(expected) == {"zero", "mean", "mean, expanded", "affine", "affine, expanded"}
    assert expected["mean"]["model.layers.0.mlp.up_proj.weight"].shape == (31, 32)
    for rank in found[1]:
        for how, params in expected.items():
            same(rank[name]["pruned"][how], params)


@llamas
def test_fine_tuning_is_that_of_one_process(found: Found, name: str) -> None:
    net, stats = fsdp.nets()[name], stats_of(found, name)[0]
    pruned = fsdp.prune(stats, net.params, net.spec)["mean"]
    small = pf.shrink(net.spec, fsdp.chosen(stats, net.spec))
    module = pf.to_module(pruned, spec=small, blocks=fsdp.BLOCKS)
    losses = fsdp.trained(module)
    halves = [rank[name]["losses"] for rank in found[1]]
    assert halves[0] != halves[1]
    close(torch.tensor(halves).mean(0), torch.tensor(losses), 1e-6)
    for n, t in pf.params(module).items():
        assert not torch.equal(t, pruned[n])
        for rank in found[1]:
            close(rank[name]["trained"][n], t, 1e-5)


def test_other_meshes_and_placements(found: Found) -> None:
    net = fsdp.nets()["mlp"]
    stats = pf.collect_stats(net.params, [randn(4, 5, seed=r) for r in range(2)], spec=net.spec)
    mask = {"0": bits("1011011")}
    small = pf.apply(pf.compensate(net.params, stats, mask, spec=net.spec), mask, spec=net.spec)
    for rank in found[1]:
        for site, mean in rank["layouts"]["means"].items():
            close(mean, stats.sites[site].mean)
        assert list(rank["layouts"]["params"]) == list(small)
        for n, t in rank["layouts"]["params"].items():
            close(t, small[n])


def test_the_pipeline_is_that_of_one_process(found: Found) -> None:
    net = fsdp.nets()["llama"]
    small = fsdp.piped(net.params, fsdp.batches(), net.spec, sync=False).params
    assert small["model.layers.0.mlp.up_proj.weight"].shape != net.params["model.layers.0.mlp.up_proj.weight"].shape
    for rank in found[1]:
        same(rank["cases"]["piped"], small)


def test_a_process_without_batches_takes_part(found: Found) -> None:
    net = fsdp.nets()["llama"]
    one = pf.collect_stats(net.params, fsdp.batches()[:1], spec=net.spec)
    for rank in found[1]:
        batches, samples, means = rank["cases"]["one"]
        assert (batches, samples) == (one.batches, one.samples)
        assert all(torch.equal(m, one.sites[n].mean) for n, m in means.items())


@pytest.mark.parametrize(
    ("case", "texts"),
    [
        ("nobody", ["BatchError: there are no batches: the iterables of all processes are empty"]),
        (
            "wrong shape",
            ["StatsError: the statistics of another process failed", "BatchError: input 'input_ids' has shape (2, "],
        ),
        ("raises", ["StatsError: the statistics of another process failed", "BatchError: this file is broken"]),
        ("nan", ["StatsError: the input of site 'model.layers.0.self_attn.q_proj' is not finite"]),
        ("empty", ["StatsError: rank 1 cannot take part: ParamsError: a rank without statistics needs whole tensors"]),
        (
            "gradients",
            ["ParamsError: collector 'mask gradients of cross_entropy' of criterion 'taylor' needs whole tensors"],
        ),
        (
            "resume",
            [
                "ParamsError: collect_stats(…, resume=…) needs whole tensors, but 'model.embed_tokens.weight' is a DTensor"
            ],
        ),
        ("sequential", ["ParamsError: sequential=True needs whole tensors"]),
        ("recalibrate", ["ParamsError: recalibrate needs whole tensors"]),
        ("original", ["ParamsError: to_module(…, model=model) needs whole tensors"]),
        (
            "not sharded",
            ["ParamsError: 'model.embed_tokens.weight' is a DTensor, but not in the module: call fully_shard"],
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_errors_on_every_process(found: Found, case: str, texts: list[str]) -> None:
    messages = [rank["cases"][case] for rank in found[1]]
    for message, text in zip(messages, texts * 2, strict=False):
        assert message.startswith(text)
