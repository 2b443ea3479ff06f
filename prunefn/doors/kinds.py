"""Kinds of values by the annotations of public functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from ..errors import BatchError, BudgetError, MaskError, ParamsError, PruneError, StatsError, TraceError
from . import choices, plain, tensors
from .plain import Kind, Refuse

CRITERION = "a criterion, such as pf.criteria.variance()"
TEXTS = "a name, a glob or a list of them, such as ['head', 'layer1.*']"
WHERE = "a glob such as 'layer1.*', pf.kind('hidden'), or a function Group → bool"
PARAMS = "pf.params(model), a dict name → tensor"
MASK = "a dict group → bool tensor, True = kept, such as pf.mask(spec, {'0': [0, 3]})"
WEIGHT_MASKS = "a dict parameter → bool tensor of its shape, True = kept, such as sparse.select(…) gives"
SCORES = "a dict group → float tensor [units], such as pf.score(stats)"
BATCHES = "a list of batches or a DataLoader"
RATIO = "the fraction removed, such as 0.5, or a budget such as pf.budget.macs(0.65)"
BUDGET = "a budget, such as pf.budget.macs(0.65), or a list of them"
STATS = "pf.collect_stats(params, batches, spec=spec)"
NUMBER = "a finite number, such as 0.5"

KINDS: dict[str, Kind] = {
    "int": Kind("a whole number, such as 8", plain.read_int),
    "float": Kind(NUMBER, plain.read_float),
    "bool": Kind("True or False", plain.read_bool),
    "str": Kind("a name", plain.read_text),
    "str | os.PathLike[str]": Kind("a path", plain.read_path),
    "str | os.PathLike[str] | DenseLogits": Kind("a folder, or pf.load_logits(folder)", choices.read_dense_folder),
    "str | os.PathLike[str] | Mapping[str, Tensor]": Kind("a path, or a dict name → tensor", tensors.read_source),
    "Path | str": Kind("a path", plain.read_path),
    "Path": Kind("a path", plain.read_path),
    "torch.device | str": Kind("a device, such as 'cpu' or 'cuda:0'", plain.read_device),
    "torch.dtype": Kind("a dtype, such as torch.float16", plain.read_dtype),
    "RoundTo": Kind("a multiple, such as 8, or a dtype", plain.or_mapping(plain.read_round_to)),
    "float | Mapping[str, float]": Kind("a number, or a dict glob → number", plain.or_mapping(plain.read_float)),
    "int | Mapping[str, int]": Kind("a whole number, or a dict glob → number", plain.or_mapping(plain.read_int)),
    "Sequence[int]": Kind("a list of whole numbers, such as [1, 2, 5]", plain.list_of(plain.read_int)),
    "Sequence[float]": Kind("a list of numbers, such as [1.0, 0.5]", plain.list_of(plain.read_float)),
    "tuple[float, float]": Kind("two numbers, such as (0.7, 2.0)", plain.list_of(plain.read_float)),
    "tuple[Regularizer | Callable[[Spec], Regularizer], Recipe]": Kind(
        "(what to train towards, or a function spec → that; how), such as (train.regularizers.l1_group, train.Recipe())",
        plain.read_pair,
    ),
    "Mapping[str, int]": Kind("a dict name → whole number", plain.mapping_of(plain.read_int)),
    "Mapping[str, float]": Kind("a dict name → number", plain.mapping_of(plain.read_float)),
    "Mapping[str, str]": Kind("a dict name → text", plain.mapping_of(plain.read_text)),
    "Mapping[str, Any]": Kind("a dict by name", plain.read_mapping),
    "Mapping[str, Rule]": Kind("a dict op → rule", plain.mapping_of(choices.function_of())),
    "Space": Kind("a dict setting → choices or range", plain.read_mapping),
    "Objectives": Kind("a dict result → 'maximize' or 'minimize'", plain.mapping_of(plain.read_text)),
    "Params": Kind(PARAMS, tensors.read_params, ParamsError, True),
    "Mask": Kind(MASK, tensors.read_mask, MaskError, True),
    "Mask | Sequence[Mask]": Kind(MASK, tensors.read_masks, MaskError, True),
    "Mapping[str | Group, Iterable[int] | Tensor]": Kind(
        "a dict name → indices to remove, such as {'0': [0, 3]}", tensors.read_removed, MaskError, True
    ),
    "Scores": Kind(SCORES, tensors.read_scores, distinct=True),
    "scores: Mapping[str, Tensor]": Kind(
        "a dict parameter → float tensor of its shape, such as sparse.score(stats)", tensors.read_scores, distinct=True
    ),
    "logits: Mapping[str, Tensor]": Kind(
        "a dict group → float tensor of logits [units]", tensors.read_scores, MaskError, True
    ),
    "masks: Mapping[str, Tensor]": Kind(WEIGHT_MASKS, tensors.read_numbers, MaskError, True),
    "within: Mapping[str, Tensor]": Kind(WEIGHT_MASKS, tensors.read_numbers, MaskError, True),
    "WeightMasks": Kind(WEIGHT_MASKS, tensors.read_numbers, MaskError, True),
    "Mapping[str, Tensor]": Kind("a dict name → tensor", tensors.read_tensors, ParamsError, True),
    "Stats | Mapping[str, Tensor | Moments]": Kind(
        "pf.collect_stats(…), or a dict site → mean tensor", tensors.read_means, StatsError, True
    ),
    "Tensor": Kind("a tensor", tensors.read_tensor, ParamsError),
    "scores: Tensor": Kind("a tensor of scores [units]", tensors.read_values, ParamsError),
    "score: Stats": Kind(STATS, tensors.read_measured, StatsError, True),
    "residual: Stats": Kind(STATS, tensors.read_measured, StatsError, True),
    "export: Params": Kind(PARAMS, tensors.read_numbers, ParamsError, True),
    "compensate: Params": Kind(PARAMS, tensors.read_numbers, ParamsError, True),
    "latency_table: Params": Kind(PARAMS, tensors.read_numbers, ParamsError, True),
    "masks_of: Params": Kind(PARAMS, tensors.read_numbers, ParamsError, True),
    "metrics: Params": Kind(PARAMS, tensors.read_numbers, ParamsError, True),
    "growing: Params": Kind(PARAMS, tensors.read_numbers, ParamsError, True),
    "fill: Params": Kind(PARAMS, tensors.read_numbers, ParamsError, True),
    "save: Params": Kind(PARAMS, tensors.read_numbers, ParamsError, True),
    "Mapping[str, tuple[Params, Spec]]": Kind(
        "a dict name → (params, spec), such as {'small': (pruned.params, pruned.spec)}", tensors.read_networks
    ),
    "tuple[Params, Spec]": Kind("(params, spec) of the dense network", tensors.read_network),
    "Iterable[Batch]": Kind(BATCHES, tensors.read_batches, BatchError),
    "Sequence[Batch]": Kind(BATCHES, tensors.read_batches, BatchError),
    "Source": Kind("a dataset, a DataLoader or a list of batches", tensors.read_batches, BatchError),
    "Documents": Kind(
        "a file, a folder, or a list of texts, chats or arrays of tokens", tensors.read_documents, BatchError
    ),
    "Criterion": Kind(CRITERION, choices.read_criterion),
    "Criterion | Sequence[Criterion]": Kind(f"{CRITERION}, or a list of them", choices.read_criteria),
    "sparse: Criterion": Kind("a criterion, such as pf.sparse.criteria.magnitude()", choices.read_weight_criterion),
    "Mapping[str, Criterion]": Kind("a dict name → criterion", plain.mapping_of(choices.read_criterion)),
    "Mapping[str, Compensation]": Kind("a dict name → compensation", plain.mapping_of(choices.read_compensation)),
    "Weights": Kind(
        "True, False, the name of an input, or a function batch → [samples, positions]", choices.read_weights
    ),
    "Dynamic": Kind(
        '"all", names such as "batch height width", or a dict such as {"x": ("batch", "points", None)}',
        choices.read_dynamic,
    ),
    "Requested": Kind(
        '"vocabulary", "classes", "inputs", names of tensors, or a dict such as {"queries.weight": 0}',
        choices.read_interfaces,
    ),
    "Scope": Kind("a scope, such as pf.scope.local()", choices.read_scope),
    "WeightScope": Kind("a scope of weights, such as pf.sparse.scope.layerwise()", choices.read_weight_scope),
    "Pattern": Kind("a pattern, such as pf.sparse.pattern.n_m(2, 4)", choices.read_pattern),
    "Compensation": Kind("a compensation, such as pf.compensation.mean()", choices.read_compensation),
    "Ratio": Kind(RATIO, choices.read_ratio),
    "Budget | Sequence[Budget]": Kind(BUDGET, choices.read_budgets, BudgetError),
    "Where | str": Kind(WHERE, choices.read_where),
    "Sequence[str] | str": Kind(TEXTS, choices.read_names, ParamsError),
    "Sequence[str]": Kind("a list of names", plain.list_of(plain.read_text)),
    "bool | Normalizer": Kind("True, or a function such as pf.normalizer.min_max", choices.read_normalize),
    "Normalizer": Kind("a function such as pf.normalizer.min_max", choices.function_of("Normalizer")),
    "Reduction": Kind("a function such as pf.reduction.max", choices.function_of("Reduction")),
    "Distance": Kind("a distance, such as pf.distances.kl()", choices.function_of("Distance")),
    "Loss": Kind("a function (output, *rest of the batch) → scalar tensor", choices.function_of(modules=True)),
    "Metrics": Kind("a function (output, *rest of the batch) → dict name → tensor", choices.function_of(modules=True)),
    "Schedule": Kind("a schedule, such as train.schedule.linear(0.5, 4)", choices.function_of("Schedule")),
    "Make": Kind("a function ratio → pipeline, such as pf.recipes.vbp", choices.function_of()),
    "Between": Kind("a function (round, params, masks) → params", choices.function_of()),
    "State": Kind("what optimizer.state_dict() gives, or that by parameter", plain.read_mapping),
    "slice_optimizer: State": Kind("optimizer.state_dict()", plain.read_optimizer_state),
    "Mapping[str, State]": Kind("a dict parameter → its state", plain.mapping_of(plain.read_mapping)),
    "Trial": Kind("a function (settings, folder) → dict of results", choices.function_of()),
}
"""Annotation without None → kind; a prefix with a colon limits it to a parameter, function or room of that name."""

NAMES: dict[str, Kind] = {
    "args": Kind("example inputs of the model, such as (x,)", tensors.read_example, TraceError),
    "device": KINDS["torch.device | str"],
}
"""Name of a parameter → kind, where the annotation is too general."""

CLASSES: dict[str, tuple[str, type[PruneError]]] = {
    "Spec": ("pf.trace(model, example inputs)", ParamsError),
    "Stats": (STATS, StatsError),
    "Module": ("a model, which is an nn.Module", ParamsError),
    "Prune": ("a pipeline, such as pf.pipeline(ratio=0.5)", PruneError),
    "Budget": ("a budget, such as pf.budget.macs(0.65)", BudgetError),
    "LatencyTable": ("pf.latency_table(params, spec=spec)", PruneError),
    "Predictor": ("what predicts a cost, such as pf.latency_table(params, spec=spec)", PruneError),
    "Recipe": ("a recipe, such as train.Recipe(epochs=5)", PruneError),
    "Setup": ("a setup, such as train.Setup(data, held_out)", PruneError),
    "Trained": ("what train returned", PruneError),
    "Distill": ("train.Distill(teacher)", PruneError),
    "DenseLogits": ("pf.load_logits(folder)", PruneError),
    "Phases": ("phases, such as train.Phases(pf.recipes.vbp, 0.5)", PruneError),
}
"""Class → what the user should write for a value of it, and the error for other values."""


def function_kind(text: str) -> Kind:
    """Return the kind of functions of this signature, `Callable[…]`."""
    return Kind(f"a function {text.removeprefix('Callable')}", choices.function_of(takes=text))


def class_kind(kind: type) -> Kind:
    """Return the kind of values of a class."""
    write, error = CLASSES.get(kind.__name__, (f"a {kind.__name__}", PruneError))
    return Kind(write, choices.instance_of(kind), error, distinct=True)


def either(kind: Kind, other: Kind) -> Kind:
    """Return the kind of values that the first or else the second kind takes."""

    def read(value: Any, name: str, refuse: Refuse, given: Mapping[str, Any]) -> Any:
        try:
            return kind.read(value, name, _raise_refused, given)
        except _Refused:
            return other.read(value, name, refuse, given)

    return other._replace(read=read, write=f"{kind.write}, or {other.write}")


class _Refused(Exception):
    """Raised if the first of two kinds does not take a value."""


def _raise_refused(*_: str) -> NoReturn:
    raise _Refused
