"""From the schema of an op to calls that run: tensors of small shapes and ints of a small set are tried out.

A search takes a second an op, and some ops crash on arguments that they do not check; so what is found stays in `calls.jsonl`.
`python -m tests.op_toys.search [words in names of ops]` searches again, each op in a process of its own.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision  # noqa: F401  (its ops are in the table)
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.utils import _pytree as pytree

from prunefn.tracing.composites import definition
from prunefn.tracing.rules import NO_RULE, find, pointwise, why_no_rule
from prunefn.tracing.rules.aliases import ALIASES
from prunefn.tracing.rules.base import TABLE

SIZE = 4
"""Every dim of a first try: dims of any role fit each other, and it is divisible by 2 (groups, chunks, upscaling)."""
SIZES = (1, 2, 8)
"""What a dim is changed to afterwards: it broadcasts, is a part, or is a multiple."""
INTS = (1, 2, 0, -1, 4, 3, 8)
LISTS = (
    [0], [1], [2], [4], [-1], [0, 1], [1, 0], [1, 1], [2, 2], [4, 4], [1, 3], [0, 0], [-1, 4], [2, 1], [2, 8], [3, 3],
    [1, 2], [0, 2, 1], [1, 2, 0], [1, 1, 1], [2, 2, 2], [4, 4, 4], [0, 0, 1, 1], [2, 1, 1, 0], [1, 1, 2, 1, 1, 2],
    [4, 1], [2, 3], [2, -1], [3, 1, 0, 2], [2, 2, 1, 4], [8, 8], [16],
)  # fmt: skip
STRINGS = {
    "reduction": ("none",), "reduce": ("sum", "amax", "mean", "prod"), "rounding_mode": ("floor", "trunc"), "mode": ("constant", "reflect"),
    "padding": ("same", "valid"), "indexing": ("ij", "xy"), "approximate": ("tanh",), "interpolation": ("linear",), "side": ("right",),
    "equation": ("ij,kj->ki", "...i,...i->...", "ij->ji", "ij,jk,kl->li", "bij,bkj->bik", "ij,j->ij"),
}  # fmt: skip
NAMED_LISTS = {
    "stride": ([1], [1, 1], [1, 1, 1], [2], [2, 2]), "dilation": ([1], [1, 1], [1, 1, 1]),
    "padding": ([0], [0, 0], [0, 0, 0], [1], [1, 1], [0, 0, 1, 1], [1, 1, 1, 1, 1, 1]),
    "output_padding": ([0], [0, 0], [0, 0, 0]), "kernel_size": ([2], [2, 2], [2, 2, 2], [1, 1], [3, 3]),
    "output_size": ([3], [3, 3], [3, 3, 3], [5, 5], [8, 8], [8, 8, 8], [8], [1, 1]), "normalized_shape": ([4], [4, 4]),
}  # fmt: skip
"""What lists of ints are by the name of the argument; a list of another name is one of LISTS."""
NAMED_INTS = {"interpolation_mode": (0, 1), "padding_mode": (0, 1, 2), "chunks": (2, 4), "sections": (2, 4)}
SHAPES = {
    "grid": ((4, 4, 4, 2), (4, 3, 5, 2), (4, 4, 4, 4, 3)), "random_samples": ((4, 4, 2), (4, 4, 3)), "rois": ((6, 5),),
    **dict.fromkeys(("running_mean", "running_var", "bias"), ((4,), (4, 4), (8,))), "g": ((4, 1), (4, 1, 1)),
    "offs": ((4,),), "mat2": ((4, 4), (4, 4, 4)), "lengths": ((4,),), "theta": ((4, 2, 3),),
}  # fmt: skip
"""Shapes of tensors that are of no use with all dims alike, by the name of the argument."""
INTEGER = ("index", "indices", "offsets", "repeats", "batch_sizes", "lengths", "counts")
BOOLEAN = ("mask", "condition", "attn_mask")
FIXED = ("dtype", "layout", "device", "pin_memory", "memory_format", "generator", "out_dtype", "non_blocking")
"""Arguments that stay at their default: no axis depends on them, and enums come as ints, which torch does not check."""
BUDGET, PAIRS = 3000, 1500
KEPT, KEPT_SHARED = 8, 3
"""Calls of an op; of one whose rule many ops share, or that has none of its own."""
CALLS = Path(__file__).with_name("calls.jsonl")


class Slot(NamedTuple):
    """A tensor argument of a call: what it holds (`float`, `int`, `bool` or `complex`), and its shape."""

    holds: str
    shape: tuple[int, ...]

    def tensor(self, generator: torch.Generator) -> Tensor:
        """Random numbers between .1 and .9, integers from 0 to 3, or coins."""
        uniform = partial(torch.rand, self.shape, generator=generator, dtype=torch.float64)
        values = uniform() * 0.8 + 0.1
        return torch.complex(values, uniform()) if self.holds == "complex" else values

    def cast(self, t: Tensor) -> Tensor:
        """The tensor as the op takes it."""
        return t > 0.5 if self.holds == "bool" else (t * SIZE).to(torch.int64) if self.holds == "int" else t


Args = tuple[Any, ...]
"""One value for each argument of the schema: a `Slot`, a list of them, or a literal."""


def overloads(name: str) -> list[OpOverload]:
    """The functional overloads, with tensors in and out, of an entry of the table such as `aten.add` or `aten.add.Tensor`."""
    namespace, packet, *overload = name.split(".")
    try:
        found = getattr(getattr(torch.ops, namespace), packet)
    except AttributeError:  # a library that is not imported
        return []
    ops = [getattr(found, o) for o in overload or found.overloads()]
    return [op for op in ops if _is_functional(op)]


def _is_functional(op: OpOverload) -> bool:
    arguments = [str(a.type) for a in op._schema.arguments]
    returns = [str(r.type) for r in op._schema.returns]
    named = any("Dimname" in a for a in arguments)
    return not op._schema.is_mutable and not named and any("Tensor" in r for r in returns)


def calls(op: OpOverload) -> list[Args]:
    """Calls of the op that run, from the plain one to those in which one or two arguments differ from it."""
    bases = _bases(op)
    kept = KEPT_SHARED if find(op, {}) in (pointwise.pointwise, pointwise.untagged, None) else KEPT
    found = [*bases, *_mutated(op, bases[0], kept - len(bases))] if bases else []
    return list({repr(c): c for c in found}.values())


def _bases(op: OpOverload) -> list[Args]:
    """The first calls that run with defaults where there are some, with tensors of several ranks."""
    for defaults in (True, False):
        options = [_options(a, defaults) for a in op._schema.arguments]
        running = (args for args in islice(_from_the_simplest(options), BUDGET) if runs(op, args))
        found = list(islice(running, 2))
        if found:
            return found
    return []


def _from_the_simplest(options: Sequence[Sequence[Any]]) -> Iterator[Args]:
    """The product of the options in the order of the sum of their places."""
    top = sum(len(o) - 1 for o in options)
    for total in range(top + 1):
        yield from _with_total(options, total)


def _with_total(options: Sequence[Sequence[Any]], total: int) -> Iterator[Args]:
    if not options:
        yield from [()] if total == 0 else []
        return
    first, *rest = options
    for i in range(min(total, len(first) - 1) + 1):
        for tail in _with_total(rest, total - i):
            yield (first[i], *tail)


def _options(a: Any, defaults: bool) -> list[Any]:
    """What an argument may be; one with a default may be left at it."""
    if a.name in FIXED:
        return [a.default_value if a.has_default_value() else None]
    first = [a.default_value] if a.has_default_value() else []
    if first and defaults:
        return first
    kind = str(a.type)
    none = [None] if kind.startswith("Optional") and not first else []
    return [*first, *none, *(_tensors(a) if "Tensor" in kind else _literals(a))]


def _tensors(a: Any) -> list[Any]:
    """Tensors, or lists of them, as the type says."""
    holds = "int" if a.name in INTEGER else "bool" if a.name in BOOLEAN else "float"
    others = [h for h in ("float", "int", "bool") if h != holds]
    shapes = SHAPES.get(a.name, ())
    slots = [Slot(holds, s) for s in shapes]
    slots += [Slot(h, s) for h in (holds, *others) for r in (2, 3, 4, 1, 0, 5) if (s := (SIZE,) * r) not in shapes]
    slots.append(Slot("complex", (SIZE,) * 2))
    kind = str(a.type)
    if kind.startswith("List[Optional"):
        return [[s] for s in slots] + [[None, s] for s in slots] + [[s, s] for s in slots]
    return [[s] * n for s in slots for n in (2, 3, 1)] if "List[" in kind else list(slots)


def _literals(a: Any) -> list[Any]:
    kind = str(a.type).removeprefix("Optional[").removesuffix("]")
    if kind in ("int", "SymInt"):
        return list(NAMED_INTS.get(a.name, INTS))
    if kind.startswith(("List[int", "List[SymInt")):
        return list(NAMED_LISTS.get(a.name, LISTS))
    if kind.startswith("List[float"):
        return [[0.5, 0.5], [2.0, 2.0], [2.0]]
    simple = {"float": [0.5, 2.0, -1.0], "number": [0.5, 2.0, -1.0, 1, 3], "Scalar": [0.5, 2.0, -1.0, 1, 3]}
    return {**simple, "bool": [False, True], "str": list(STRINGS.get(a.name, ()))}.get(kind, [])


def _mutated(op: OpOverload, base: Args, kept: int) -> list[Args]:
    """The base with one argument changed, and where that does not run, with two."""
    single = [list(_changes(a, v)) for a, v in zip(op._schema.arguments, base, strict=True)]
    found, failed = [], []
    for i, options in enumerate(single):
        for value in options:
            (found if runs(op, _replaced(base, [(i, value)])) else failed).append((i, value))
    pairs = [(a, b) for a, b in product(failed, failed) if a[0] < b[0]]
    random.Random(0).shuffle(pairs)
    both = (_replaced(base, p) for p in pairs[:PAIRS])
    alone = _spread([_replaced(base, [f]) for f in found], [i for i, _ in found])
    return [*alone[: kept - kept // 3], *islice((args for args in both if runs(op, args)), kept // 3)]


def _spread(found: Sequence[Args], arguments: Sequence[int]) -> list[Args]:
    """Calls in an order in which the changed argument takes turns."""
    turn = [arguments[:k].count(i) for k, i in enumerate(arguments)]
    return [found[k] for k in sorted(range(len(found)), key=lambda k: (turn[k], arguments[k]))]


def _replaced(base: Args, changes: Iterable[tuple[int, Any]]) -> Args:
    args = list(base)
    for i, value in changes:
        args[i] = value
    return tuple(args)


def _changes(a: Any, value: Any) -> Iterator[Any]:
    """Other values of one argument."""
    if a.name in FIXED:
        return
    if isinstance(value, Slot):
        yield from _other_sizes(value)
    elif isinstance(value, list) and value and is_slot(value[0]):
        yield from ([other, *value[1:]] for other in _other_sizes(value[0]))
        yield from (v for v in _tensors(a) if v != value)
    elif "Tensor" in str(a.type):
        yield from _tensors(a)
    else:
        yield from (v for v in _literals(a) if v != value)


def _other_sizes(s: Slot) -> Iterator[Slot]:
    for d, n in product(range(len(s.shape)), SIZES):
        yield s._replace(shape=(*s.shape[:d], n, *s.shape[d + 1 :]))


def tensor_slots(args: Any) -> list[Slot]:
    """The tensor arguments, from left to right."""
    return [s for s in pytree.tree_leaves(args, is_leaf=is_slot) if is_slot(s)]


def is_slot(x: Any) -> bool:
    return isinstance(x, Slot)


def filled(args: Any, tensors: Iterable[Any]) -> Any:
    """The arguments with the tensors in place of the slots."""
    rest = iter(tensors)
    return pytree.tree_map(lambda x: next(rest) if is_slot(x) else x, args, is_leaf=is_slot)


def bound(op: OpOverload, args: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Values in the order of the schema as positional and keyword arguments."""
    pairs = list(zip(op._schema.arguments, args, strict=True))
    return [v for a, v in pairs if not a.kwarg_only], {a.name: v for a, v in pairs if a.kwarg_only}


def runs(op: OpOverload, args: Args) -> bool:
    """Whether the call takes a tensor, gives finite numbers and writes to none of its arguments, as norms do to running statistics."""
    generator = torch.Generator().manual_seed(0)
    slots = tensor_slots(args)
    if not slots and any("Tensor" in str(a.type) for a in op._schema.arguments):
        return False
    given = [s.cast(s.tensor(generator)) for s in slots]
    before = [t.clone() for t in given]
    positional, named = bound(op, filled(args, given))
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            out = op(*positional, **named)
    except Exception:  # torch raises many kinds
        return False
    if not all(map(torch.equal, before, given)):
        return False
    tensors = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
    return bool(tensors) and all(t.numel() and bool(torch.isfinite(t).all()) for t in tensors)


# ---- the file


def names() -> list[str]:
    """All entries of the table, their other names, ops by torch's tag of pointwise ones, and ops that torch defines by others."""
    tagged = (
        f"aten.{n}" for n in dir(torch.ops.aten) if not n.endswith("_") and _is_tagged(getattr(torch.ops.aten, n))
    )
    aliases = (f"aten.{a}" for a in ALIASES if any(find(op, {}) for op in overloads(f"aten.{a}")))
    return sorted({*TABLE, *tagged, *aliases, *composites()})


def composites() -> list[str]:
    """The ops without a rule that torch defines by others, but for those of backward passes and of sparse and nested tensors."""
    everything = sorted(
        {n.split("::")[1].split(".")[0] for n in torch._C._dispatch_get_all_op_names() if n.startswith("aten::")}
    )
    some = (
        f"aten.{n}"
        for n in everything
        if not n.endswith("_") and why_no_rule(f"aten.{n}") == NO_RULE and n not in ALIASES
    )
    return [name for name in some if any(definition(op, {}) is not None for op in overloads(name))]


def _is_tagged(packet: Any) -> bool:
    return isinstance(packet, OpOverloadPacket) and any(
        torch.Tag.pointwise in getattr(packet, o).tags for o in packet.overloads()
    )


def known_calls() -> dict[str, list[Args]]:
    """Name of an overload → its calls, from the file."""
    lines = (json.loads(line) for line in CALLS.read_text().splitlines())
    return {op: [tuple(_decoded(x) for x in call) for call in found] for op, found in lines}


def _encoded(x: Any) -> Any:
    if is_slot(x):
        return f"{x.holds}{list(x.shape)}"
    return [_encoded(y) for y in x] if isinstance(x, list) else x


def _decoded(x: Any) -> Any:
    if isinstance(x, list):
        return [_decoded(y) for y in x]
    found = re.fullmatch(r"(float|int|bool|complex)(\[.*\])", x) if isinstance(x, str) else None
    return Slot(found[1], tuple(json.loads(found[2]))) if found else x


def main(words: Sequence[str]) -> None:
    """Search for the calls of all ops, or of those with one of the words in their name, and write the file."""
    found = known_calls() if words else {}
    ops = [op for name in names() for op in overloads(name) if not words or any(w in str(op) for w in words)]
    for op in ops:
        text = _in_a_process(op)
        found.pop(str(op), None)
        if text:
            found[str(op)] = [tuple(_decoded(x) for x in call) for call in json.loads(text)]
        print(op, len(found.get(str(op), ())), flush=True)
    lines = (json.dumps([op, [[_encoded(x) for x in call] for call in found[op]]]) for op in sorted(found))
    CALLS.write_text("\n".join(lines) + "\n")


def _in_a_process(op: OpOverload) -> str:
    """The calls of an op as JSON; empty where torch crashes, or takes more than 20 seconds."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        signal.alarm(20)
        text = json.dumps([[_encoded(x) for x in call] for call in calls(op)])
        with os.fdopen(write, "w") as file:
            file.write(text if text != "[]" else "")
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        text = file.read()
    os.waitpid(child, 0)
    return text


if __name__ == "__main__":
    main(sys.argv[1:])
