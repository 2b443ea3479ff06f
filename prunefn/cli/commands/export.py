"""The command `prunefn export`."""

from __future__ import annotations

from collections.abc import Iterable

from ... import export as exports
from ...parameters.transforms import params as params_of
from ...tables import Table, terminal
from ..command import Job, Result
from ..resources import network_of, optional_data, write_json
from ..sections import Config

ENDINGS = {
    "onnx": ".onnx",
    "program": ".pt2",
    "aoti": ".aoti.pt2",
    "torchscript": ".pt",
    "source": "_source.py",
    "state_dict": ".safetensors",
}
"""Format → ending of its file; that of a source keeps its weights apart from a state dict."""


def run(job: Job) -> Result:
    """Run the command."""
    config = job.config
    network = network_of(config, optional_data(config))
    spec, params = network.spec(), params_of(network.model)
    e, result, rows = config.export, {}, []
    for kind in e.formats:
        path = job.folder / f"model{ENDINGS[kind]}"
        if kind == "state_dict":
            done = exports.state_dict(params, path, spec=spec, model=network.model, batches=e.batches, atol=e.atol)
        else:
            done = getattr(exports, kind)(params, path, spec=spec, batches=e.batches, atol=e.atol)
        size = path.stat().st_size
        found = {str(b): d for b, d in done.differences.items()}
        result[kind] = {"path": str(path), "bytes": size, "differences": found}
        shown = ", ".join(f"{d:.1e}" for d in done.differences.values())
        rows.append([kind, str(path), f"{size / 1e6:.2f}", shown])
    write_json(job.folder / "export.json", result)
    columns = ["format", "file", "MB", f"max |Δ| at batch {', '.join(map(str, e.batches))}"]
    job.show(terminal(Table("", columns, rows)))
    return result


def plan(config: Config) -> Iterable[str]:
    """Yield the steps."""
    e = config.export
    yield f"build {config.model.name}, load {config.model.checkpoint or 'no checkpoint: random weights'}, trace it once"
    for kind in e.formats:
        yield f"{kind}: write model{ENDINGS[kind]}, compare at batch {', '.join(map(str, e.batches))}, atol {e.atol}"
