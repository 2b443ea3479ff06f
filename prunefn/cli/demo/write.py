"""The demo's folder: report, pictures and pruned parameters, written whole or not at all."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import prunefn as pf

from ...display.units import quantity
from ...report import axes, plots
from ...report.page import versions
from ...tables import Table, markdown
from .study import COMPENSATED, MAGNITUDE, RECALIBRATED, TIMED_BATCH, VARIANCE, Network, Result, Study

CLASSES = 10
HOW_TO_READ = """\
Every row is measured right after pruning; nothing is trained again. *Retention* is top-1 over the dense top-1. *MACs* are
multiply-accumulates for one image, *params* the elements of all parameters; both are exact. *ms per batch* is the median
latency of a batch of {batch} images, the networks taking turns in the same run; *× dense* is that over the dense network's.
Where the latencies of single batches spread widely, the machine was busy with other things.

* One image is {image:.2f} points of top-1, and the standard error at 97 % is {error:.1f} points: smaller differences say nothing.
* A tenth of the training images chose the epoch. The held-out images chose nothing: they were measured at the end.
* The networks are tiny. Much of their time goes into starting ops, so the latency may hardly fall where the MACs do, and
  whether a width suits the machine's kernels can matter more than the width.
* *variance* alone removes the units that vary least, however large their mean: it is meant to be followed by *mean*, which
  puts what they contributed on average into the next bias (or into the BatchNorm after it). *magnitude + mean* is a
  control: it shows what the compensation does for another criterion.
* With *mean*, what the removed units contributed on average is no longer missing from the next layer's output; what is left
  is how they varied. How much of their mean square the mean is, stands below each table. A smaller error there does not
  have to mean a better accuracy, and where the mean is a small part, there is little to gain.
* *BN* replaces the running statistics of the BatchNorms by those of the training images, without labels.
* The same seed gives the same table, latency aside, on the same machine, versions and number of CPU threads.
"""
LOADING = """\
```python
import prunefn as pf

data = pf.data.open_data("digits")
image, label = data.held_out[0]
model = pf.nets.{build}
spec = pf.trace(model.eval(), (image[None],))
small = pf.load_params("{file}", spec=spec)
top1 = pf.train.evaluate(pf.to_module(small.params, spec=small.spec), data.held_out)["top1"]
print(top1)  # {top1:.4f}
```"""


class Run(NamedTuple):
    """The call of the command."""

    call: str
    seed: int
    device: str
    threads: int


def check_folder(out: Path) -> None:
    """Create the folder and try to write to it, before anything takes time.

    Raises:
        OSError: it cannot be created or written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise OSError(f"cannot write to the folder {str(out)!r}: {error.strerror}; choose another by --out") from error


def write(studies: Sequence[Study], run: Run, out: Path) -> list[str]:
    """Write all files into a temporary folder inside `out`, then move them to their names.

    Returns:
        The names of the files.
    """
    with tempfile.TemporaryDirectory(dir=out, prefix=".unfinished-") as temporary:
        room = Path(temporary)
        for study in studies:
            name = study.network.name
            axes.axes(study.dense.spec, room / f"axes_{name.lower()}.png", title=f"{name}: its tensors and their axes")
            _save(study, room / file_of(study.network))
        plots.kept([_kept(s) for s in studies], room / "kept.png")
        plots.accuracy([_curves(s) for s in studies], room / "accuracy_macs.png")
        (room / "report.md").write_text(report(studies, run), encoding="utf-8")
        names = sorted(p.name for p in room.iterdir())
        for name in names:
            os.replace(room / name, out / name)
    return names


# ---- words and numbers


def table(study: Study, *, exact: bool = False) -> Table:
    """Return the numbers of a network, dense first; `exact`: MACs and parameters to the last digit."""
    dense = study.dense
    columns = ("method", "top-1\n(%)", "retention\n(%)", "MACs", "params", "ms per\nbatch", "×\ndense")
    rows = []
    for r in (dense, *study.pruned):
        seconds, cost = study.timings[r.name].median, r.cost
        kept = cost.macs / dense.cost.macs
        rows.append(
            (
                r.name,
                f"{100 * r.top1:.2f}",
                f"{100 * r.top1 / dense.top1:.2f}",
                f"{cost.macs:,} ({kept:.1%})" if exact else f"{quantity(cost.macs, '')} {kept:.0%}",
                f"{cost.params:,}" if exact else quantity(cost.params, "", 3),
                f"{1e3 * seconds:.2f}",
                f"{seconds / study.timings[dense.name].median:.2f}",
            )
        )
    return Table(f"{study.network.name}: {study.network.removed}", columns, rows)


def summary(study: Study) -> str:
    """Return what the table shows, in a sentence for each step; drawn from the numbers."""
    top1 = {r.name: r.top1 for r in study.pruned}
    steps = [(MAGNITUDE.name, VARIANCE.name), (VARIANCE.name, COMPENSATED.name), (COMPENSATED.name, RECALIBRATED.name)]
    changes = [
        f"{new} against {old}: {100 * (top1[new] - top1[old]):+.2f} points"
        for old, new in steps
        if old in top1 and new in top1
    ]
    timing = study.timings[study.dense.name]
    return (
        f"{'; '.join(changes)}. The mean accounts for {study.mean_fraction:.1%} of the mean square of the units that variance "
        f"removes. Of ten batches of the dense network, eight took between {1e3 * timing.p10:.2f} and {1e3 * timing.p90:.2f} ms."
    )


def report(studies: Sequence[Study], run: Run) -> str:
    """Return the report in Markdown."""
    images = studies[0].images
    error = 100 * (0.97 * 0.03 / images) ** 0.5
    parts = [
        "# prunefn demo",
        f"`{run.call}`",
        f"Two networks, trained on scikit-learn's digits (8 × 8) and measured on {images} held-out images.",
    ]
    for s in studies:
        lower = s.network.name.lower()
        parts += [
            f"## {s.network.name}",
            f"Removed: {s.network.removed}.",
            markdown(table(s, exact=True)),
            summary(s),
            f"![The tensors of the {s.network.name} and their axes](axes_{lower}.png)",
        ]
    parts += [
        "## How to read the tables",
        HOW_TO_READ.format(batch=TIMED_BATCH, image=100 / images, error=error).strip(),
    ]
    parts += ["## What was kept", "![Units kept in each group](kept.png)"]
    parts += ["## Accuracy against MACs", "![Top-1 against MACs](accuracy_macs.png)"]
    parts += [
        "## The pruned networks",
        f"Parameters of *{COMPENSATED.name}*, with the sizes and the mask.",
    ]
    first = studies[0]
    loading = LOADING.format(
        file=file_of(first.network), build=_call(first.network), top1=_result(first, COMPENSATED.name).top1
    )
    parts += [loading, "## Versions", _versions(run)]
    return "\n\n".join(parts) + "\n"


def file_of(network: Network) -> str:
    """Return the name of the file with the pruned parameters."""
    return f"{network.name.lower()}.safetensors"


def _call(network: Network) -> str:
    """Return the call that builds the network."""
    build: Any = network.build
    return f"{build.func.__name__}({', '.join(f'{k}={v!r}' for k, v in build.keywords.items())})"


def _versions(run: Run) -> str:
    import matplotlib
    import sklearn

    used = {**versions(), "prunefn": pf.__version__, "scikit-learn": sklearn.__version__}
    used["matplotlib"] = matplotlib.__version__
    text = ", ".join(f"{name} {version}" for name, version in used.items())
    return f"{text}; {platform.system()} {platform.machine()}, device {run.device}, {run.threads} CPU thread(s), seed {run.seed}."


# ---- pictures and files


def _result(study: Study, name: str) -> Result:
    return next(r for r in study.pruned if r.name == name)


def _kept(study: Study) -> plots.Kept:
    """Return the bars of the picture; compensation changes no mask, so that there is one set for each criterion."""
    before = {g: len(m) for g, m in study.pruned[0].mask.items()}
    after = {
        name: {g: int(m.sum()) for g, m in _result(study, name).mask.items()}
        for name in (MAGNITUDE.name, VARIANCE.name)
    }
    return plots.Kept(
        f"{study.network.name}: units kept in each hidden group, with or without compensation", before, after
    )


def _curves(study: Study) -> plots.Curves:
    dense = (study.dense.cost.macs, study.dense.top1)
    return plots.Curves(f"{study.network.name}: right after pruning", dense, study.curves, 1 / CLASSES)


def _save(study: Study, path: Path) -> None:
    """Write the parameters after variance and mean, with the sizes and the mask."""
    result = _result(study, COMPENSATED.name)
    params = {name: t.cpu() for name, t in result.params.items()}
    pf.save(params, path, spec=result.spec, masks={g: m.cpu() for g, m in result.mask.items()})
