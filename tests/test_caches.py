"""Encoder-decoders and caches of transformers: traces have none, and every config is as it was."""

from __future__ import annotations

from typing import Any

import torch
from pytest import mark, raises
from torch import Tensor, nn

import prunefn as pf
from prunefn.tracing.caches import dropped, without_caches

from .zoo import randomize

transformers = __import__("pytest").importorskip("transformers")
V = 50
IDS = torch.randint(3, V, (2, 7), generator=torch.Generator().manual_seed(0))
PAIR = {"input_ids": IDS, "decoder_input_ids": IDS[:, :5]}
SOUND = {
    "input_features": torch.randn(2, 8, 20, generator=torch.Generator().manual_seed(1)),
    "decoder_input_ids": IDS[:, :5],
}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 4}
BART = {
    f"{side}_{what}": n
    for side in ("encoder", "decoder")
    for what, n in (("layers", 1), ("attention_heads", 4), ("ffn_dim", 48))
}
BART |= {
    "d_model": 32,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "forced_eos_token_id": None,
    "max_position_embeddings": 64,
}
WHISPER = {"num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 20, "begin_suppress_tokens": None}
LED = {"attention_window": 4, "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64}
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Tensor], int]] = {
    "T5": ("T5ForConditionalGeneration", T5, PAIR, 3),
    "MT5": ("MT5ForConditionalGeneration", T5, PAIR, 3),
    "Bart": ("BartForConditionalGeneration", BART, PAIR, 3),
    "Marian": ("MarianMTModel", BART, PAIR, 3),
    "Pegasus": ("PegasusForConditionalGeneration", BART, PAIR, 3),
    "Whisper": ("WhisperForConditionalGeneration", {**BART, **WHISPER}, SOUND, 3),
}
"""Config → (class, sizes, inputs, number of groups of heads): T5's layers share a bias of heads on each side, and so their heads."""


def build(name: str) -> tuple[Any, dict[str, Tensor], int]:
    cls, sizes, inputs, heads = KINDS[name]
    config = getattr(transformers, f"{name}Config")(vocab_size=V, decoder_start_token_id=2, **sizes)
    torch.manual_seed(0)
    return randomize(getattr(transformers, cls)(config), 3).eval().requires_grad_(False), inputs, heads


def flags(model: nn.Module) -> list[Any]:
    """The flags of all configs that modules have."""
    return [getattr(getattr(m, "config", None), "use_cache", None) for m in model.modules()]


@mark.parametrize("name", KINDS)
def test_encoder_decoders_are_exported_and_rebuilt(name: str) -> None:
    model, inputs, heads = build(name)
    before = flags(model)
    spec, params = pf.trace(model, inputs), pf.params(model)
    assert (spec.capture, flags(model)) == ("exported", before) and True in before
    of_heads = [g for g in spec.groups.values() if g.kind == "heads"]
    assert len(of_heads) == heads and any("decoder" in g.name for g in of_heads)
    with without_caches(model):
        expected = model(**inputs)
    actual = pf.forward(params, spec=spec, **inputs)
    assert [*actual] == [*expected] == ["logits", "encoder_last_hidden_state"]
    assert torch.equal(actual.logits, expected.logits) and float(expected.logits.std()) > 1e-2
    stats = pf.collect_stats(params, [inputs], spec=spec)
    assert stats.samples == 2 and len(stats.sites) >= 5
    scores = pf.only(pf.score(stats), pf.kind("heads") | pf.kind("hidden"), spec=spec)
    mask = pf.select(scores, 0.25, spec=spec, scope=pf.scope.local())
    small, params = pf.shrink(spec, mask), pf.apply(params, mask, spec=spec)
    assert {small.sizes[g.name] for g in of_heads} == {3}
    module: Any = pf.to_module(params, spec=small, model=model)
    assert type(module) is type(model) and flags(module) == before
    assert torch.equal(module(**inputs, use_cache=False).logits, pf.forward(params, spec=small, **inputs).logits)
    words = {n: x for n, x in inputs.items() if not n.startswith("decoder")}
    cached, plain = (module.generate(**words, max_new_tokens=4, do_sample=False, use_cache=c) for c in (True, False))
    assert torch.equal(cached, plain)


def test_a_model_that_reads_its_data_is_recorded_and_rebuilt() -> None:
    """LED asks in `forward` whether any token attends globally: its control flow depends on data."""
    config = transformers.LEDConfig(vocab_size=V, decoder_start_token_id=2, **BART | LED)
    torch.manual_seed(0)
    model = transformers.LEDForConditionalGeneration(config).eval().requires_grad_(False)
    spec, before = pf.trace(model, PAIR), flags(model)
    assert (spec.capture, True in before) == ("recorded", True) and "; recorded)" in repr(spec)
    hidden = {g.name: range(5) for g in spec.groups.values() if g.kind == "hidden"}
    assert len(hidden) == 2
    mask = pf.mask(spec, hidden)
    module: Any = pf.to_module(pf.apply(pf.params(model), mask, spec=spec), spec=pf.shrink(spec, mask), model=model)
    assert module.led.decoder.layers[0].fc1.out_features == 43 and flags(module) == before
    assert torch.equal(pf.forward(pf.params(model), spec=spec, **PAIR)[0], model(**PAIR, use_cache=False)[0])
    with raises(pf.TraceError, match="data-dependent") as error:
        pf.to_module(pf.params(model), spec=spec)
    assert "use_cache" not in str(error.value)


@mark.parametrize("asked", [{"use_cache": True}, {"use_cache": True, "return_dict": False}])
def test_a_cache_that_is_asked_for_is_no_output(asked: dict[str, bool]) -> None:
    model, inputs, heads = build("T5")
    spec = pf.trace(model, {**inputs, **asked})
    assert spec.capture == "exported" and [g.kind for g in spec.groups.values()].count("heads") == heads
    actual, expected = pf.forward(pf.params(model), spec=spec, **inputs), model(**inputs, use_cache=False)
    assert len(actual) == 2 and torch.equal(actual[0], expected[0])


class Decoder(nn.Module):
    """Holds a flag in a config in a config, and returns caches of two forms."""

    def __init__(self) -> None:
        super().__init__()
        inner = type("Inner", (), {})()
        inner.use_cache = True
        self.settings = type("Outer", (), {"use_cache": True})()
        self.settings.parts = {"text": inner}
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, fail: bool = False) -> dict[str, Any]:
        if fail:
            raise ValueError("no")
        h = self.a(x).relu()
        cached = self.settings.use_cache or self.settings.parts["text"].use_cache
        return {"y": self.b(h), "past_key_values": ((h, h),), **({"seen": h} if cached else {})}


def test_flags_are_restored_after_errors_and_outputs_lose_caches() -> None:
    model = Decoder().eval()
    outer, inner = model.settings, model.settings.parts["text"]
    spec = pf.trace(model, (torch.randn(2, 4),))
    assert [g.size for g in spec.groups.values()] == [8] and [
        *pf.forward(pf.params(model), torch.ones(3, 4), spec=spec)
    ] == ["y"]
    with raises(pf.TraceError, match="no"):
        pf.trace(model, (torch.randn(2, 4), True))
    assert (outer.use_cache, inner.use_cache, "use_cache" in vars(outer)) == (True, True, False)
    assert [*model(torch.ones(1, 4))] == ["y", "past_key_values", "seen"] and not model._forward_hooks
    assert dropped((1, transformers.DynamicCache())) == (1,)
