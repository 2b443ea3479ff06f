"""The words that Tab offers for the value of an option. Nothing of torch is imported: a test compares the words with the menus.

A completer is a function from the beginning of a value to the words that continue it. Where it returns none, the shell offers files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from glob import glob
from importlib.util import find_spec
from pathlib import Path

from .layers import shipped_configs

Completer = Callable[[str], list[str]]

WORDS = {
    path: tuple(words.split())
    for path, words in {
        "device": "cpu cuda",
        "data.name": "digits mnist fashion_mnist cifar10",
        "prune.recipe": "best corp depgraph_group_norm dvbp_ob2c flap fpgm isomorphic l1_channels lamp mac_aware minitron "
        "network_slimming taylor vbp wanda_sp",
        "prune.criterion": "activation activation_norm block_influence bn_scale branch_error combined conditional_variance "
        "denoised_variance dissimilar expert_frequency fisher flap fpgm frequency guided hessian lamp mac_aware mac_aware_product "
        "magnitude movement normalized obd_c obs random rank_fusion reap taylor variance wanda_sp weighted_variance",
        "prune.scope": "global isomorphic knapsack local per_kind uniform",
        "prune.compensation": "affine mean none variance_rescale",
        "prune.where": "all branch classes experts groups head_dim heads hidden inputs interface layer outputs residual vocabulary",
        "sparsify.criterion": "magnitude movement movement_since obs random snip taylor wanda",
        "sparsify.scope": "erk global lamp layerwise rows",
        "sparsify.pattern": "blocks n_m slices unstructured",
        "pat.regularizer": "concentration gradual growing l1_group lasso slimming",
    }.items()
}
"""Option → words; a word may take arguments, as in Python."""
WORDS |= {f"sensitivity.{name}": WORDS[f"prune.{name}"] for name in ("criterion", "compensation", "where")}
NETS = ("small_resnet", "small_resnet18", "small_vit")
LIBRARIES = {"timm": "timm/models", "torchvision": "torchvision/models"}
"""Library → folder of its models, each of which is registered under the name of its function."""
REGISTERED = re.compile(r'^@register_model(?:\(name="(\w+)"\)|(?:\(\))?\n(?:@.*\n|[ )].*\n)*def (\w+)\()', re.MULTILINE)
CLASS = re.compile(r'"(\w+(?:Model|ForImageClassification|ForSequenceClassification))"')


def completer_of(path: str, choices: Iterable[str] = ()) -> Completer | None:
    """Return the completer of an option; None for an option that can have any value.

    Args:
        path: of the option, such as `prune.criterion`.
        choices: all values that the option allows, if its type says them; several may be given, separated by commas.

    >>> completer_of("prune.scope")("is"), completer_of("export.formats", ["onnx", "source"])("onnx,s")
    (['isomorphic'], ['onnx,source'])
    """
    if path == "model.name":
        return complete_model
    words = (*WORDS.get(path, ()), *choices)
    return (lambda incomplete: _continued(incomplete, words)) if words else None


def _continued(incomplete: str, words: Iterable[str]) -> list[str]:
    """Return the words that continue the last item of a list."""
    before, comma, last = incomplete.rpartition(",")
    return [before + comma + word for word in words if word.startswith(last)]


def complete_config(incomplete: str) -> list[str]:
    """Return the configs that come with the package and the YAML files that begin so."""
    known = [name for name in shipped_configs() if name.startswith(incomplete)]
    return known + sorted(f for ending in ("yaml", "yml") for f in glob(f"{incomplete}*.{ending}"))


def complete_shipped_config(incomplete: str) -> list[str]:
    """Return the configs that come with the package."""
    return [name for name in shipped_configs() if name.startswith(incomplete)]


def complete_model(incomplete: str) -> list[str]:
    """Return names of models, with and without their library; of nothing, a few to begin with.

    >>> complete_model("small_r")
    ['small_resnet', 'small_resnet18']
    """
    if not incomplete:
        return [*NETS, *(f"{library}/" for library in (*LIBRARIES, "transformers"))]
    out = [name for name in NETS if name.startswith(incomplete)]
    for library in LIBRARIES:
        names = sorted(registered_models(library))
        out += [n for name in names for n in (name, f"{library}/{name}") if n.startswith(incomplete)]
    out += [n for name in classes_of_transformers() if (n := f"transformers/{name}").startswith(incomplete)]
    return list(dict.fromkeys(out))


def registered_models(library: str) -> set[str]:
    """Return the names of a library's models, read from its source, because to import it takes seconds."""
    folder = _folder(library, LIBRARIES[library])
    texts = [] if folder is None else [f.read_text(encoding="utf-8") for f in folder.rglob("*.py")]
    return {given or function for text in texts for given, function in REGISTERED.findall(text)}


def classes_of_transformers() -> list[str]:
    """Return the names of the classes that transformers builds by itself, read from its source."""
    folder = _folder("transformers", "transformers/models/auto")
    file = None if folder is None else folder / "modeling_auto.py"
    return [] if file is None or not file.exists() else sorted(set(CLASS.findall(file.read_text(encoding="utf-8"))))


def _folder(package: str, path: str) -> Path | None:
    found = find_spec(package)
    return None if found is None or found.origin is None else Path(found.origin).parents[1] / path
