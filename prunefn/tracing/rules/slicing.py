"""Ops that concatenate tensors or take parts of them: cat, stack, split, slice, pad."""

from __future__ import annotations

from ..axes import ONE, Plus, Term
from .base import Axes, Call, Value, replaced, rule

OUTSIDE = "outside"
"""Mark of positions of a parameter that a slice excludes; at another size of the inputs it may include them."""


@rule("aten.cat", "aten.concat", "aten.concatenate")
def cat(call: Call) -> Axes:
    """Concatenate the axes along a dim, and unify the other dims."""
    values = [v for v in call["tensors"] if len(v.axes) == len(call.shape)]  # torch skips empty 1-d tensors
    (d,) = call.dims(values[0], call["dim"] or call["axis"] or 0)
    out = list(
        call.broadcast([v._replace(axes=replaced(v.axes, {d: ONE})) for v in values], replaced(call.shape, {d: 1}))
    )  # type: ignore[arg-type]
    parts = tuple(v.axes[d] for v in values if call.alg.size(v.axes[d]) > 0)
    out[d] = Plus(parts) if len(parts) > 1 else parts[0] if parts else values[0].axes[d]
    return tuple(out)


@rule("aten.stack", "aten._stack")
def stack(call: Call) -> Axes:
    """Add a dim with one position per tensor, and unify the other dims."""
    values: list[Value] = call["tensors"]
    d = (call["dim"] or 0) % len(call.shape)
    out = list(call.broadcast(values, [n for i, n in enumerate(call.shape) if i != d]))
    out[d:d] = call.frozen([len(values)], "tensors are stacked along it")
    return tuple(out)


@rule("aten.block_diag")
def block_diag(call: Call) -> Axes:
    """Place matrices along a diagonal: their rows and their columns are concatenated."""
    matrices = [(ONE,) * (2 - len(v.axes)) + v.axes for v in call["tensors"]]
    return Plus(tuple(m[0] for m in matrices)), Plus(tuple(m[1] for m in matrices))


@rule(
    "aten.split_with_sizes",
    "aten.split",
    "aten.chunk",
    "aten.tensor_split",
    "aten.split_with_sizes_copy",
    "aten.unsafe_chunk",
    "aten.unsafe_split",
    "aten.unsafe_split_with_sizes",
    "aten.split_copy",
)
def split(call: Call) -> list[Axes]:
    """Cut a dim into parts; the program is rewritten to name each part's size."""
    x = call["self"]
    (d,) = call.dims(x, call["dim"] or 0)
    sizes = [s[d] for s in call.shapes]
    cut = iter(call.alg.cut(x.axes[d], [n for n in sizes if n]) if any(sizes) else ())
    parts = [next(cut) if n else call.frozen([0], "it is empty")[0] for n in sizes]
    call.resize("split_sizes", parts)
    return [replaced(x.axes, {d: p}) for p in parts]


@rule("aten.unbind", "aten.unbind_copy")
def unbind(call: Call) -> list[Axes]:
    """Freeze the dim whose positions become separate tensors."""
    x = call["self"]
    (d,) = call.dims(x, call["dim"] or 0)
    call.freeze(x.axes[d], "its positions are taken apart")
    return [tuple(a for i, a in enumerate(x.axes) if i != d) for _ in call.shapes]


@rule("aten.select", "aten.select_copy")
def select(call: Call) -> Axes:
    """Freeze the dim from which one position is taken, or, if axes are asked for, only the part that it lies in."""
    x, index = call["self"], call["index"]
    (d,) = call.dims(x, call["dim"])
    parts = call.alg.parts(x.axes[d])
    if call.alg.lenient and len(parts) > 1 and isinstance(index, int):
        _select_in_parts(call, parts, index)
    else:
        call.freeze(x.axes[d], "one position of it is taken")
    return tuple(a for i, a in enumerate(x.axes) if i != d)


def _select_in_parts(call: Call, parts: list[Term], index: int) -> None:
    """Freeze the part that a position lies in; parts before it may shrink, which moves the position."""
    rest = index % sum(map(call.alg.size, parts))
    before = list[Term]()
    while rest >= call.alg.size(parts[len(before)]):
        before.append(parts[len(before)])
        rest -= call.alg.size(before[-1])
    call.freeze(parts[len(before)], "one position of it is taken")
    offset = call.frozen([rest], "one position of it is taken") if rest else ()
    if before or offset:
        call.resize("index", Plus((*before, *offset)))


def window(call: Call, n: int) -> tuple[int, int, int]:
    """Return start, end and step of a slice of a dim of size n; the step is 0 if they depend on data."""
    if "length" in call.args:  # narrow
        start, length = call["start"], call["length"]
        if not (isinstance(start, int) and isinstance(length, int)):
            return 0, n, 0
        start = start + n if start < 0 else start
        return start, start + length, 1
    start, end = (n if v is None and last else v or 0 for v, last in ((call["start"], False), (call["end"], True)))
    if not all(isinstance(v, int) for v in (start, end)):
        return 0, n, 0
    start, end = (min(max(v + n if v < 0 else v, 0), n) for v in (start, end))
    return start, max(start, end), call["step"] or 1


@rule("aten.slice", "aten.slice_copy", "aten.narrow", "aten.narrow_copy")
def slice_(call: Call) -> Axes:
    """Cut a dim before and after a range of positions."""
    x = call["self"]
    (d,) = call.dims(x, call["dim"] or 0)
    n = call.alg.size(x.axes[d])
    start, end, step = window(call, n)
    if (end - start, step) == (n, 1):
        if "length" in call.args:
            call.resize("length", x.axes[d])
        return x.axes
    frozen = call.alg.is_frozen(x.axes[d])
    if step > 1 and not frozen and n % step == 0 and start < step and end > n - step + start:
        outer, inner = call.alg.split(x.axes[d], [n // step, step])  # (1 2)(1 2)(1 2) → 1 1 1
        call.freeze(inner, "every other position is taken")
        return replaced(x.axes, {d: outer})
    if step != 1 or end == start or frozen:
        call.freeze(x.axes[d], "a slice with a step is taken" if step != 1 else "a slice is taken")
        return replaced(x.axes, dict(zip([d], call.frozen([call.shape[d]], "a slice"), strict=True)))
    sizes = [n for n in (start, end - start, n - end) if n]
    cut = call.alg.cut(x.axes[d], sizes)
    before, (middle, *after) = cut[: bool(start)], cut[bool(start) :]
    if not x.active:
        call.mark([*before, *after], OUTSIDE)
    call.resize("start", before[0] if before else 0)
    call.resize(*(("length", middle) if "length" in call.args else ("end", Plus((*before, middle)))))
    return replaced(x.axes, {d: middle})


@rule("aten.slice_scatter")
def slice_scatter(call: Call) -> Axes:
    """Overwrite a range of positions: outside the range the dim is unchanged, inside it is unified with the source's."""
    x, src = call["self"], call["src"]
    (d,) = call.dims(x, call["dim"] or 0)
    n = call.alg.size(x.axes[d])
    start, end, step = window(call, n)
    out = call.broadcast(
        [x._replace(axes=replaced(x.axes, {d: ONE})), src._replace(axes=replaced(src.axes, {d: ONE}))],
        replaced(call.shape, {d: 1}),
    )  # type: ignore[arg-type]
    if (start, end, step) == (0, n, 1):
        return replaced(out, {d: call.unify(x.axes[d], src.axes[d])})
    if step != 1 or end == start:
        call.freeze([x.axes[d], src.axes[d]], "positions of it are overwritten")
        return replaced(out, {d: x.axes[d]})
    parts = iter(call.alg.cut(x.axes[d], [m for m in (start, end - start, n - end) if m]))
    before = [next(parts)] if start else []
    middle = call.unify(next(parts), src.axes[d])
    call.resize("start", before[0] if before else 0)
    call.resize("end", Plus((*before, middle)))
    return replaced(out, {d: x.axes[d]})


@rule("aten.select_scatter")
def select_scatter(call: Call) -> Axes:
    """Freeze the dim at which one position is overwritten."""
    x, src = call["self"], call["src"]
    (d,) = call.dims(x, call["dim"])
    call.freeze(x.axes[d], "one position of it is overwritten")
    out = call.broadcast(
        [x._replace(axes=tuple(a for i, a in enumerate(x.axes) if i != d)), src],
        [n for i, n in enumerate(call.shape) if i != d],
    )
    return (*out[:d], x.axes[d], *out[d:])


@rule(
    "aten.pad",
    "aten.constant_pad_nd",
    "aten.reflection_pad1d",
    "aten.reflection_pad2d",
    "aten.replication_pad1d",
    "aten.replication_pad2d",
    "aten.replication_pad3d",
    "aten.reflection_pad3d",
)
def pad(call: Call) -> Axes:
    """Add frozen positions before and after a dim for constant padding; freeze the dim for padding that repeats positions."""
    x = call["self"]
    amounts = list(call["pad"] if call["pad"] is not None else call["padding"])
    constant = call.op.startswith("aten.constant") or (call["mode"] in (None, "constant") and "aten.pad" in call.op)
    out = list(x.axes)
    for i in range(len(amounts) // 2):
        low, high = amounts[2 * i : 2 * i + 2]
        d = len(out) - 1 - i
        if (low, high) == (0, 0):
            continue
        if constant and low >= 0 and high >= 0 and not call.alg.is_frozen(out[d]):
            edge = [call.frozen([n], "padding")[0] if n else None for n in (low, high)]
            out[d] = Plus(tuple(e for e in (edge[0], out[d], edge[1]) if e is not None))
        else:
            call.freeze(out[d], "it is padded")
            out[d] = call.frozen([call.shape[d]], "it is padded")[0]
    return tuple(out)
