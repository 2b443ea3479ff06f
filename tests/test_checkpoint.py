"""Files of pruned tensors: what goes in comes out, and what is damaged, tampered with or foreign is an error that names the file."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import prunefn as pf
from prunefn.errors import FormatError
from prunefn.files import atomic
from prunefn.files.nest import write_nest
from prunefn.files.tensors import NAMES, SEAL, Entry, Reader, Writer, bytes_of, check_seal, save_sealed

from .small import Attention, Tied, Traced, bits, cnn, mlp, randn, same, traced

X = randn(2, 5, 12)
FIRST = {"qkv.heads": bits("1011")}
SECOND = {"qkv.heads": bits("011"), "qkv.head_dim": bits("110110")}


@pytest.fixture(scope="module")
def attention() -> Traced:
    torch.manual_seed(0)
    return traced(Attention(12, 4, 6), X)


def pruned(t: Traced) -> tuple[pf.Params, pf.Spec]:
    """After two rounds."""
    params, spec = t.params, t.spec
    for mask in (FIRST, SECOND):
        params, spec = pf.apply(params, mask, spec=spec), pf.shrink(spec, mask)
    return params, spec


# ---- round trips


def test_params_come_back_with_their_spec_and_the_masks_of_every_round(attention: Traced, tmp_path: Path) -> None:
    params, spec = pruned(attention)
    pf.save(params, tmp_path / "a", spec=spec, masks=[FIRST, SECOND])
    back = pf.load_params(tmp_path / "a", spec=attention.spec)
    same(back.params, params)
    assert back.spec == spec
    assert [list(m) for m in back.masks] == [list(FIRST), list(SECOND)]
    assert all(torch.equal(a[g], b[g]) for a, b in zip(back.masks, (FIRST, SECOND), strict=True) for g in b)
    assert torch.equal(pf.forward(back.params, X, spec=back.spec), pf.forward(params, X, spec=spec))
    same(pf.load_params(tmp_path / "a", spec=attention.spec, verify=False).params, params)
    assert os.listdir(tmp_path) == ["a"]


def test_the_same_content_gives_the_same_bytes_and_others_can_read_them(attention: Traced, tmp_path: Path) -> None:
    params, spec = pruned(attention)
    for name in "ab":
        pf.save(params, tmp_path / name, spec=spec, masks=[FIRST, SECOND])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    same(dict(sorted(load_file(tmp_path / "a").items())), dict(sorted(params.items())))


def test_every_type_of_the_format(tmp_path: Path) -> None:
    tensors = {str(d): torch.ones(3, 5).to(d) for d in NAMES}
    tensors |= {"none": torch.zeros(0, 2), "one": torch.tensor(2.5), "view": randn(4, 6)[::2, 1:].mT}
    tensors["conjugate"] = torch.complex(torch.ones(2), torch.ones(2)).conj()
    save_sealed(tmp_path / "a", tensors, {"é": 'a "\n'})
    check_seal(tmp_path / "a")
    other = load_file(tmp_path / "a")
    with Reader(tmp_path / "a") as reader:
        assert reader.metadata["é"] == 'a "\n'
        assert all(e.start % e.itemsize == 0 for e in reader.entries.values())
        for name, t in tensors.items():
            for found in (reader.tensor(name), other[name]):
                assert (found.dtype, found.shape) == (t.dtype, t.shape)
                assert bytes(bytes_of(found)) == bytes(bytes_of(t))


def test_tied_params_stay_tied(tmp_path: Path) -> None:
    model = Tied()
    spec = pf.trace(model, (torch.tensor([[1, 2]]),))
    params = pf.params(model)
    pf.save(params, tmp_path / "a", spec=spec)
    back = pf.load_params(tmp_path / "a", spec=spec).params
    same(back, params)
    assert back["out.weight"] is back["embed.weight"]
    assert len(load_file(tmp_path / "a")) == len(params) - 1


@pytest.mark.parametrize("of", ["params", "module"])
def test_into_the_original_class(of: str, attention: Traced, tmp_path: Path) -> None:
    """Params are what `forward` computes with: where the class has another scale at the new sizes, it is folded in."""
    params, spec = pruned(attention)
    small = pf.to_module(params, spec=spec, model=attention.model)
    pf.save(params if of == "params" else small, tmp_path / "a", spec=spec, masks=[FIRST, SECOND])
    fresh = Attention(12, 4, 6).double()
    back = pf.load(fresh, tmp_path / "a", spec=attention.spec if of == "params" else None)
    assert (back.heads, back.head_dim) == (2, 4)
    assert torch.equal(back(X), small(X))
    if of == "module":
        with pytest.raises(pf.ParamsError, match=r"holds a pruned module, whose class may compute scales"):
            pf.load_params(tmp_path / "a", spec=attention.spec)
    else:
        with pytest.raises(pf.ParamsError, match=r"give spec=pf.trace"):
            pf.load(fresh, tmp_path / "a")


def test_a_foreign_file_whose_shapes_say_the_sizes(tmp_path: Path) -> None:
    t = traced(cnn(), randn(2, 3, 6, 6))
    mask = {next(iter(t.spec.groups)): torch.arange(t.spec.sizes[next(iter(t.spec.groups))]) != 1}
    small = pf.apply(t.params, mask, spec=t.spec)
    save_file(small, tmp_path / "a.safetensors")
    torch.save(small, tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        back = pf.load_params(tmp_path / name, spec=t.spec)
        same({n: back.params[n] for n in small}, small)
        assert dict(back.spec.sizes) == dict(pf.shrink(t.spec, mask).sizes)
        assert back.masks == ()


@pytest.mark.parametrize("length", [0x280, 0x4B50])
def test_a_header_whose_length_looks_like_a_pickle(length: int, attention: Traced, tmp_path: Path) -> None:
    """`\\x80\\x02` and `PK` are how files of `torch.save` begin."""
    save_file(attention.params, tmp_path / "a", {"text": ""})
    save_file(
        attention.params,
        tmp_path / "a",
        {"text": " " * (length - int.from_bytes((tmp_path / "a").read_bytes()[:8], "little"))},
    )
    assert (tmp_path / "a").read_bytes()[:2] in (b"PK", b"\x80\x02")
    same(pf.load_params(tmp_path / "a", spec=attention.spec).params, dict(sorted(attention.params.items())))


# ---- what is refused


def test_what_does_not_fit_is_not_saved(attention: Traced, tmp_path: Path) -> None:
    params, spec = pruned(attention)
    path = tmp_path / "a"
    with pytest.raises(pf.ParamsError, match="params are saved with their spec"):
        pf.save(params, path)
    with pytest.raises(pf.ParamsError, match=r"'qkv.weight' has shape .*but the spec says"):
        pf.save(params, path, spec=attention.spec)
    with pytest.raises(pf.ParamsError, match=r"leave 3 of 4 units of group 'qkv.heads', but the spec has 2 of 4"):
        pf.save(params, path, spec=spec, masks=FIRST)
    with pytest.raises(pf.ParamsError, match=r"leave 2 of 3 units of group 'qkv.heads', but the spec has 2 of 4"):
        pf.save(params, path, spec=spec, masks=SECOND)
    with pytest.raises(pf.MaskError, match="the first leaves 2 units"):
        pf.save(params, path, spec=spec, masks=[SECOND, FIRST])
    module = pf.to_module(params, spec=spec)
    with pytest.raises(pf.ParamsError, match="give spec=, at the sizes"):
        pf.save(module, path, masks=[FIRST, SECOND])
    with pytest.raises(pf.ParamsError, match="give the spec at the module's sizes"):
        pf.save(module, path, spec=attention.spec)
    with pytest.raises(pf.ParamsError, match="no tensor can be called '__metadata__'"):
        pf.save(nn.ParameterDict({"__metadata__": torch.ones(1)}), path)
    assert os.listdir(tmp_path) == []


def test_a_failed_writing_leaves_the_old_file(attention: Traced, tmp_path: Path) -> None:
    atomic.write_text(tmp_path / "a", "old")

    def half(name: str) -> None:
        Path(name).write_text("ne")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        atomic.write(tmp_path / "a", half)
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"
    with pytest.raises(FormatError, match="12 bytes of its tensors were not written"):
        atomic.write(
            tmp_path / "a", lambda name: Writer(name, {"x": Entry("F32", (3,))}, {}).__exit__(None, None, None)
        )
    assert (tmp_path / "a").read_text() == "old"


def test_another_spec(attention: Traced, tmp_path: Path) -> None:
    params, spec = pruned(attention)
    pf.save(params, tmp_path / "a", spec=spec, masks=[FIRST, SECOND])
    with pytest.raises(pf.ParamsError, match=r"a: the masks leave 2 of 4 units of group 'qkv.heads'"):
        pf.load_params(tmp_path / "a", spec=spec)
    other = traced(mlp(3, 4, 2), randn(2, 3))
    with pytest.raises(pf.ParamsError, match="the spec has no tensor"):
        pf.load_params(tmp_path / "a", spec=other.spec)
    with pytest.raises(FileNotFoundError):
        pf.load_params(tmp_path / "nowhere", spec=spec)


def sealed_again(path: Path, change: Callable[[dict[str, str], dict[str, torch.Tensor]], object]) -> None:
    """Tampered with by somebody who can seal it again."""
    with Reader(path) as reader:
        metadata, tensors = reader.metadata, {n: reader.tensor(n) for n in reader.entries}
    metadata.pop(SEAL)
    change(metadata, tensors)
    save_sealed(path, tensors, metadata)


TAMPERED: dict[str, tuple[Callable[[dict[str, str], dict[str, torch.Tensor]], object], str]] = {
    "tensor": (lambda m, t: t.update({"qkv.weight": t["qkv.weight"][:-1]}), "'qkv.weight' has shape"),
    "no tensor": (lambda m, t: t.pop("qkv.weight"), "qkv.weight"),
    "sizes": (lambda m, t: m.update(sizes=m["sizes"].replace("2", "3")), "masks leave 2 of 4 units"),
    "group": (lambda m, t: m.update(sizes=m["sizes"].replace("heads", "hands")), "is of another spec"),
    "no JSON": (lambda m, t: m.update(sizes="{"), "its metadata cannot be read"),
    "no masks": (lambda m, t: m.pop("masks"), "its metadata cannot be read"),
    "short mask": (lambda m, t: m.update(masks='[{"qkv.heads": [400, "sA=="]}]'), "a mask of 400 units has 1 bytes"),
    "huge mask": (lambda m, t: m.update(masks='[{"qkv.heads": [1e18, "sA=="]}]'), "its metadata cannot be read"),
    "mask": (lambda m, t: m.update(masks=m["masks"].replace("sA==", "8A==")), "first leaves 4 units"),
    "ties": (lambda m, t: m.update(tied='{"a": "b"}'), "its metadata cannot be read"),
    "format": (lambda m, t: m.update(prunefn="3"), "has format '3'; this version reads format '2'"),
    "no format": (lambda m, t: m.pop("prunefn"), "is a file of prunefn that pf.save did not write"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_seal_does_not_make_it_right(what: str, attention: Traced, tmp_path: Path) -> None:
    params, spec = pruned(attention)
    pf.save(params, tmp_path / "a", spec=spec, masks=[FIRST, SECOND])
    change, message = TAMPERED[what]
    sealed_again(tmp_path / "a", change)
    with pytest.raises(pf.PruneError, match=message):
        pf.load_params(tmp_path / "a", spec=attention.spec)


@pytest.mark.parametrize(
    "entry",
    [
        ["", "forward", 3],
        ["", "__class__", 3],
        ["", "training", 1],
        ["", "heads", "os"],
        ["", "heads", [1, 2]],
        ["nowhere", "heads", 2],
        ["qkv", "weight", 2],
        ["", "_modules", 2],
    ],
)
def test_a_file_sets_sizes_and_nothing_else(entry: list[Any], attention: Traced, tmp_path: Path) -> None:
    pf.save(attention.model, tmp_path / "a")
    sealed_again(tmp_path / "a", lambda m, t: m.update(plan=json.dumps([entry])))
    with pytest.raises(pf.ParamsError, match=r"a would set .*; only sizes can be set"):
        pf.load(Attention(12, 4, 6).double(), tmp_path / "a")


# ---- a thousand mutations


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def header(value: object, data: bytes = b"") -> bytes:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return len(text).to_bytes(8, "little") + text + data


def made_up(tmp_path: Path) -> list[bytes]:
    """Files that no damage would make."""
    f32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    torch.save({"a": Evil(tmp_path / "executed")}, tmp_path / "evil.pt")
    evil = [(tmp_path / "evil.pt").read_bytes(), *(pickle.dumps(Evil(tmp_path / "executed"), p) for p in range(6))]
    return [
        *evil,
        b"",
        b"{}",
        bytes(8),
        bytes(100),
        b"\xff" * 100,
        (2**63 - 1).to_bytes(8, "little") + b"{}" * 50,
        (10**8).to_bytes(8, "little") + b"{}" * 50,
        header(b"[" * 100_000),
        header(b'{"a":' * 50_000),
        header(b"9" * 100_000),
        header([]),
        header({"a": None}),
        header({"a": {**f32, "shape": [2**62, 2**62], "data_offsets": [0, 4]}}, b"1234"),
        header({"a": {**f32, "shape": [2**40], "data_offsets": [0, 2**42]}}, b"1234"),
        header({"a": {**f32, "shape": [2] * 100_000}}, b"1234"),
        header({"a": {**f32, "shape": [-1, -1]}}, b"1234"),
        header({"a": {**f32, "shape": [True]}}, b"1234"),
        header({"a": {**f32, "shape": [10**400]}}, b"1234"),
        header({"a": {**f32, "shape": "1"}}, b"1234"),
        header({"a": {**f32, "dtype": "F31"}}, b"1234"),
        header({"a": {**f32, "dtype": ["F32"]}}, b"1234"),
        header({"a": {**f32, "data_offsets": [4, 0]}}, b"1234"),
        header({"a": f32, "b": f32}, b"1234"),
        header({"a": f32}, b"12345"),
        header({"a": f32, "__metadata__": {"a": 1}}, b"1234"),
        header({"a": f32, "__metadata__": []}, b"1234"),
        header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":0}', b"1234"),
        header(b'{"\xff":0}'),
    ]


def damaged(good: bytes, rng: random.Random) -> bytes:
    """One mutation."""
    bad, size = bytearray(good), int.from_bytes(good[:8], "little")
    at = rng.randrange(len(bad))
    match rng.randrange(10):
        case 0:
            return bytes(bad[:at])
        case 1:
            bad[at:at] = rng.randbytes(rng.randrange(1, 20))
        case 2:
            del bad[at : at + rng.randrange(1, 20)]
        case 3:
            bad[:8] = rng.choice([rng.randbytes(8), rng.randrange(2 * len(bad)).to_bytes(8, "little")])
        case 4:  # two names change places
            names = sorted(set(re.findall(rb'"([\w.]+)":\{"dtype', good)))
            a, b = rng.sample(names, 2)
            bad = bytearray(
                good.replace(b'"%s"' % a, b'"\0"').replace(b'"%s"' % b, b'"%s"' % a).replace(b'"\0"', b'"%s"' % b)
            )
        case 5:  # in the header, a digit becomes another
            digits = [i for i in range(8, 8 + size) if chr(bad[i]).isdigit()]
            where = rng.choice(digits)
            bad[where] = ord(rng.choice([c for c in "0123456789" if ord(c) != bad[where]]))
        case 6 | 7:
            bad[8 + rng.randrange(size)] ^= 1 << rng.randrange(8)
        case _:
            bad[8 + size + rng.randrange(len(bad) - 8 - size)] ^= 1 << rng.randrange(8)
    return bytes(bad)


def test_a_thousand_damaged_files_are_a_thousand_errors(attention: Traced, tmp_path: Path) -> None:
    """Every error names the file and is ours; none of them loads, since every bit of a file counts; nothing is executed."""
    params, spec = pruned(attention)
    pf.save(params, tmp_path / "params.safetensors", spec=spec, masks=[FIRST, SECOND])
    pf.save(pf.to_module(params, spec=spec, model=attention.model), tmp_path / "module.safetensors")
    fresh = Attention(12, 4, 6).double()
    jobs: list[tuple[Path, Callable[[Path], object]]] = [
        (tmp_path / "params.safetensors", lambda path: pf.load_params(path, spec=attention.spec)),
        (tmp_path / "module.safetensors", lambda path: pf.load(fresh, path)),
    ]
    rng, begin, mutated = random.Random(0), time.monotonic(), 0
    for path, load in jobs:
        good = path.read_bytes()
        load(path)
        for bad in [*made_up(tmp_path), *(damaged(good, rng) for _ in range(500))]:
            if bad == good:
                continue
            mutated += 1
            path.write_bytes(bad)
            with pytest.raises(pf.PruneError) as raised:
                load(path)
            assert str(path) in str(raised.value)
    assert mutated >= 1000
    assert time.monotonic() - begin < 120  # it does not hang
    assert not (tmp_path / "executed").exists()


def test_damaged_foreign_files_load_or_are_errors_of_ours(attention: Traced, tmp_path: Path) -> None:
    """Files without a seal cannot show every damage; but they are no crash, and nothing in them is executed."""
    plain, rng = {n: p.clone() for n, p in attention.params.items()}, random.Random(0)
    save_file(plain, tmp_path / "a.safetensors")
    torch.save(plain, tmp_path / "a.pt")
    fresh, outcomes = Attention(12, 4, 6).double(), {True: 0, False: 0}
    for path in (tmp_path / "a.safetensors", tmp_path / "a.pt"):
        good = path.read_bytes()
        for n in range(100):
            bad = bytearray(good)
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
            path.write_bytes(bad if n % 4 else bad[: rng.randrange(len(bad))])
            try:
                outcomes[isinstance(pf.load(fresh, path), Attention)] += 1
            except pf.PruneError:
                outcomes[False] += 1
    assert min(outcomes.values()) > 20
    for content in made_up(tmp_path):
        (tmp_path / "b.pt").write_bytes(content)
        with pytest.raises(pf.ParamsError, match=re.escape(str(tmp_path / "b.pt"))):
            pf.load(fresh, tmp_path / "b.pt")
    assert not (tmp_path / "executed").exists()


def test_what_is_no_checkpoint(attention: Traced, tmp_path: Path) -> None:
    write_nest(tmp_path / "nest", {"a": torch.ones(2)})
    with pytest.raises(pf.ParamsError, match=r"nest is a file of prunefn that pf.save did not write"):
        pf.load_params(tmp_path / "nest", spec=attention.spec)
    with pytest.raises(pf.ParamsError, match=r"has neither model.safetensors nor model.safetensors.index.json"):
        pf.load(attention.model, tmp_path)
    for text in (
        "",
        "[]",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": "../nest"}}',
        "[" * 10**5,
    ):
        (tmp_path / "model.safetensors.index.json").write_text(text)
        with pytest.raises(pf.ParamsError, match=r"index.json is damaged, or no index"):
            pf.load(attention.model, tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    for name, file in (("b", "x.safetensors"), ("a", "nest")):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {name: file}}))
        with pytest.raises(pf.ParamsError, match=r"says that .* is in .*, but it is in"):
            pf.load(attention.model, tmp_path)
