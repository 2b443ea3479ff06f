"""Ids of tokens and names of classes in a rebuilt module and its configs, which follow the units that an interface keeps."""

from __future__ import annotations

from torch import nn

from ..errors import PruneError
from ..spec.interface import Interface
from ..spec.spec import Spec
from ..tracing.token_names import NAMES, TokenName, token_names
from .interface_sizes import lost_interfaces
from .libraries import TRANSFORMERS, configured
from .places import Place, places
from .plan import Plan


def is_token_name(place: Place) -> bool:
    """Return whether a number is the id of a token by its name."""
    return any(NAMES.search(str(n)) for n in place.names)


def renumber(module: nn.Module, spec: Spec) -> Plan:
    """Set ids of tokens and names of classes in a copy of the traced model to those of its new positions.

    Returns:
        The numbers in attributes that changed.

    Raises:
        PruneError: an id was removed, or it has several new ones; names the attribute.
    """
    lost = lost_interfaces(spec)
    vocabularies = {g: i for g, i in lost.items() if i.kind == "vocabulary"}
    if not lost:
        return []
    before = {(path, str(p)): p.value for path, m in module.named_modules() for p in places(m) if is_token_name(p)}
    for name in list(token_names(module)) if vocabularies else []:
        _renumber(name, vocabularies, spec)
    _rename_classes(module, lost, spec)
    if not vocabularies:
        return []
    after = {(path, str(p)): p.value for path, m in module.named_modules() for p in places(m) if is_token_name(p)}
    return [(*key, value) for key, value in after.items() if before.get(key) != value]


def _renumber(name: TokenName, vocabularies: dict[str, Interface], spec: Spec) -> None:
    """Set the ids of an attribute: those of its own table, or else of the only vocabulary in which they change."""
    tables = {g: {m.tensor for m in spec.groups[g].members} for g in vocabularies}
    if name.table:
        vocabularies = {g: i for g, i in vocabularies.items() if name.table in tables[g]}

    def new(traced: int) -> int:
        positions = {i.position(traced) if traced < spec.traced[g] else traced for g, i in vocabularies.items()}
        if len(positions) > 1 or None in positions:
            what = "was removed" if positions == {None} else f"has several new positions, in {', '.join(vocabularies)}"
            raise PruneError(f"{name} is {traced}, which {what}; keep it, or change {name} and trace again")
        (position,) = positions or {traced}
        assert position is not None
        return position

    if vocabularies:
        name.renumber(new)


def _rename_classes(module: nn.Module, lost: dict[str, Interface], spec: Spec) -> None:
    """Drop the names of removed classes from the config of models of transformers."""
    heads = [(g, i) for g, i in lost.items() if i.kind in ("classes", "outputs")]
    for _, model, library in configured(module):
        config = library.config(model)
        names = getattr(config, "id2label", None)
        same = [i for g, i in heads if names and len(names) == spec.traced[g]]
        if library is TRANSFORMERS and len(same) == 1 and names:
            config.id2label = {new: names[old] for new, old in enumerate(same[0].kept)}
            config.label2id = {text: n for n, text in config.id2label.items()}
