"""The options of commands in sections, for YAML files and flags. Every command reads the sections that it needs.

An option is a field of a section: its type is checked, its docstring (or description) is the help. The flag, the key
in YAML and the check of values follow from it; a command reads `config.section.option`.

>>> class Noise(Settings):
...     strength: float = Field(default=0.1, ge=0, description="standard deviation of what is added to the inputs")
>>> Noise(strength=0.2).strength
0.2
>>> Noise(strength=-1)
Traceback (most recent call last):
pydantic_core._pydantic_core.ValidationError: 1 validation error for Noise
...

A new section is a class here and a field of `Config`; the commands that read it name it in their `Command(…)`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from ..report.goal import Goal
from ..settings import Field, Settings, field_validator, model_validator
from ..train.recipe import MOST_ROUNDS, Recipe
from .llm_section import Llm

Runtime = Literal["eager", "compiled", "onnx", "openvino"]
"""Those of `costs.timing.runtimes`, which imports torch."""


class Named(Settings):
    """A section whose name may stand for it: `data: digits` is `data: {name: digits}`."""

    name: str = ""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Model(Named):
    """The network."""

    name: str = ""
    """timm/NAME, torchvision/NAME, transformers/CLASS, the folder of a transformers model, or module:function; a bare NAME is looked
    for in prunefn.nets, timm and torchvision"""
    checkpoint: str | None = None
    """safetensors or a state dict of torch.save, dense or pruned"""
    options: dict[str, Any] = Field(default={})
    """keyword arguments for building it, as {key: value}; the number of classes and of colours is that of the data"""
    pretrained: bool = False
    """load the pretrained weights of its library, which may download them"""
    input_shape: tuple[int, ...] | None = None
    """channels, height, width; by default those of the data or of the model"""


class Data(Named):
    """Images with labels."""

    name: str = ""
    """digits, mnist, fashion_mnist, cifar10, or a folder with train/ and val/"""
    folder: str | None = None
    """folder of the files of mnist, fashion_mnist or cifar10"""
    image_size: int | None = Field(default=None, ge=1)
    """pixels of a side; by default the data's own, 224 for folders"""
    augment: bool = True
    """shift, crop and mirror training images at random"""
    images: int | None = Field(default=None, ge=1)
    """number of training images, drawn by the seed; by default all"""
    validation_fraction: float = Field(default=0.0, ge=0, lt=1)
    """fraction of the training images that chooses epochs and trials; 0: the held-out images choose and are reported"""


class Training(Recipe):
    """A stage of training."""

    def recipe(self, seed: int) -> Recipe:
        """Return the recipe for `prunefn.train`, with this seed unless the section sets one."""
        values: dict[str, Any] = {name: getattr(self, name) for name in Recipe.model_fields}
        if "seed" not in self.model_fields_set:
            values["seed"] = seed
        return Recipe(**values)


Epochs = Annotated[int, Field(ge=0, description="passes over the training data")]
BatchSize = Annotated[int, Field(ge=1, description="samples of all processes together in an update")]
Lr = Annotated[float, Field(gt=0, description="learning rate")]


class Train(Training):
    """Training from scratch."""

    epochs: Epochs = 10
    batch_size: BatchSize = 128
    lr: Lr = 1e-3


class Sparse(Training):
    """Training towards small units before pruning; 0 epochs: none."""

    epochs: Epochs = 0
    batch_size: BatchSize = 64
    lr: Lr = 1e-4


class Between(Training):
    """Training after each round of pruning; 0 epochs: none."""

    epochs: Epochs = 1
    batch_size: BatchSize = 32
    lr: Lr = 1.5e-5


class Finetune(Training):
    """Training at the end; 0 epochs: none."""

    epochs: Epochs = 10
    batch_size: BatchSize = 32
    lr: Lr = 1.5e-5
    hold_zeros: bool = Field(default=False, description="keep the zeros of sparsify at zero")


class Distill(Settings):
    """Learning from the dense network."""

    alpha: float | None = Field(default=None, ge=0, le=1)
    """weight of the labels in the loss, 1 - alpha that of the teacher; default 0.7 with a teacher"""
    temperature: float = Field(default=2.0, gt=0)
    """temperature of both softmaxes"""
    teacher: str | None = None
    """checkpoint of the dense network, for finetune; pat has its own"""


class Prune(Settings):
    """Units to remove, and compensation for them."""

    recipe: str | None = None
    """best, vbp, dvbp_ob2c, corp, network_slimming, l1_channels, taylor, isomorphic, depgraph_group_norm, lamp, fpgm, mac_aware; the
    options below override it; default: best"""
    ratio: float | dict[str, float] | None = None
    """fraction of the units to remove, or {glob of groups: ratio}; 0.5 if no budget is given"""
    macs: float | None = Field(default=None, gt=0, le=1)
    """fraction of the MACs to keep"""
    params: float | None = Field(default=None, gt=0, le=1)
    """fraction of the parameters to keep"""
    activations: float | None = Field(default=None, gt=0, le=1)
    """fraction of the activations to keep"""
    layers: int | dict[str, int] | None = None
    """whole layers to keep, of all or of each container, {glob: number}; they go before what macs, params or ratio remove"""
    layers_criterion: str | None = None
    """what scores layers: block_influence (the default), branch_error, or random, which needs no data"""
    experts: int | dict[str, int] | None = None
    """experts to keep in each mixture, or {glob of groups: number}; they go after layers, and before the rest"""
    experts_criterion: str | None = None
    """what scores experts: reap, expert_frequency, magnitude; default: reap if there are data, else magnitude"""
    latency: str | None = None
    """latency to keep, measured here: 0.5 is half of the dense network's, 8ms are milliseconds of a batch of one; for prune and pat"""
    runtime: Runtime | None = None
    """what measures the latency: eager torch (the default), compiled by torch.compile, onnx or openvino on the CPU"""
    criterion: str | None = None
    """such as weighted_variance, or mac_aware(normalized(magnitude(1)), 0.9)"""
    scope: str | None = None
    """global, local, uniform, isomorphic, per_kind, knapsack"""
    compensation: str | None = None
    """mean, affine(ridge=1e-4), variance_rescale, none"""
    where: str | None = None
    """groups that may shrink: hidden, residual, heads, head_dim, groups, layer, branch, experts, a glob, or kind("hidden") &
    ~module("blocks.0"); all: every group but whole layers, branches and experts"""
    freeze: tuple[str, ...] = ()
    """tensors or modules that must not change"""
    round_to: int = Field(default=1, ge=1)
    """sizes are multiples of this; with a latency, of 16 by default"""
    max_ratio: float = Field(default=1.0, gt=0, le=1)
    """maximal fraction of its units that a group loses"""
    min_units: int = Field(default=1, ge=1)
    """minimal number of units that every group keeps"""
    sequential: bool = False
    """compensate block by block towards the dense outputs; best does so unless it has a criterion"""
    recalibrate: bool = False
    """recompute the statistics of BatchNorms at the end"""
    recover_steps: int = Field(default=0, ge=0)
    """steps of training towards the dense outputs at the end, on the images for statistics, without labels; 0: none"""
    images: int = Field(default=1024, ge=1)
    """number of training images for statistics, without augmentation, drawn by the seed"""
    batch_size: int = Field(default=64, ge=1)
    """images of a batch of statistics"""

    @field_validator("ratio")
    @classmethod
    def _in_range(cls, value: float | dict[str, float] | None) -> float | dict[str, float] | None:
        ratios = value.values() if isinstance(value, dict) else [value]
        if any(r is not None and not 0 <= r < 1 for r in ratios):
            raise ValueError(
                "it is the fraction of the units to remove and must be at least 0 and below 1 (0.5 is half)"
            )
        return value


class Sparsify(Settings):
    """Weights to set to zero."""

    ratio: float = Field(default=0.5, ge=0, lt=1)
    """fraction of the weights to set to zero; n:m patterns have their own"""
    criterion: str = "magnitude"
    """magnitude, taylor, snip, movement, movement_since (the start that the seed gives), wanda, obs, random"""
    scope: str = "layerwise"
    """layerwise, rows, global, lamp, erk"""
    pattern: str = "unstructured"
    """unstructured, n_m(2, 4), blocks(4, 4), slices(4)"""
    weights: tuple[str, ...] = ()
    """globs of weights; by default all of convolutions and linear layers"""
    ridge: float | None = Field(default=None, gt=0)
    """ridge of the least-squares reconstruction of kept weights, such as 0.01; default: no reconstruction"""
    rounds: int = Field(default=1, ge=1, le=MOST_ROUNDS)
    """number of rounds, with the training of `between` after each"""
    schedule: Literal["linear", "geometric", "cubic"] = "cubic"
    """schedule of the ratio over the rounds"""
    images: int = Field(default=1024, ge=1)
    """number of training images for statistics, without augmentation, drawn by the seed"""
    batch_size: int = Field(default=64, ge=1)
    """images of a batch of statistics"""


class Pat(Settings):
    """Pruning-aware training: sparse training, rounds of pruning and training, fine-tuning."""

    ratio: float | None = Field(default=None, gt=0, le=1)
    """fraction to remove in all rounds together; by default that of `prune`"""
    of: Literal["units", "macs", "params"] = "units"
    """quantity of the ratio"""
    steps: int = Field(default=5, ge=1, le=MOST_ROUNDS)
    """number of rounds of pruning"""
    schedule: Literal["linear", "geometric", "cubic"] = "geometric"
    """schedule of the ratio over the rounds"""
    regularizer: str = "l1_group"
    """regularizer of the sparse phase: l1_group(weight=1e-4), lasso, slimming, growing, concentration, gradual(target=0.5)"""
    masked: bool = False
    """keep the dense shapes until the end"""
    target: float | None = Field(default=None, gt=0, lt=1)
    """fraction of the MACs at which pruning stops"""
    carry: bool = True
    """keep the state of the optimizer over rounds"""


class Export(Settings):
    """Files for other runtimes."""

    formats: tuple[Literal["onnx", "program", "aoti", "torchscript", "source", "state_dict"], ...] = ("onnx", "program")
    """formats of the files; each is compared with the network before it is written"""
    batches: tuple[int, ...] = (1, 2, 5)
    """batch sizes of the comparison"""
    atol: float = Field(default=1e-4, gt=0)
    """maximal difference allowed"""


class Profile(Settings):
    """Times."""

    batch_size: int = Field(default=1, ge=1)
    """samples of a forward pass"""
    rounds: int = Field(default=30, ge=2)
    """number of timed rounds, all networks in turns"""
    runtime: Runtime = "eager"
    """what runs the networks: eager torch, compiled by torch.compile, onnx or openvino on the CPU"""


class Sensitivity(Settings):
    """What each group costs alone."""

    ratios: tuple[float, ...] = (0.25, 0.5, 0.75)
    """fractions of a group's units to remove"""
    metric: Literal["top1", "loss", "distance"] = "top1"
    """what is measured: top-1, the cross entropy, or the distance of the outputs from the dense ones, which needs no labels"""
    criterion: str | None = None
    """units are removed in the order of its scores, such as magnitude; default: obs"""
    compensation: str | None = None
    """affine(ridge=1e-4), mean, variance_rescale, none; default: affine, with mean where a weight cannot be rewritten"""
    where: str | None = None
    """groups to look at, as for prune; default: all that have a score"""
    images: int = Field(default=1024, ge=1)
    """number of training images for statistics, without augmentation, drawn by the seed"""
    held_out: int = Field(default=1024, ge=0)
    """number of validation images (else of held-out images) to measure on, drawn by the seed; 0: only predict"""
    batch_size: int = Field(default=64, ge=1)
    """images of a batch"""

    @field_validator("ratios")
    @classmethod
    def _in_range(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or any(not 0 < r < 1 for r in value):
            raise ValueError("each is the fraction of a group's units to remove and must be above 0 and below 1")
        return value


class Sweep(Settings):
    """Many prunings, each fine-tuned."""

    space: dict[str, Any] = Field(
        default={"macs_ratio": [0.3, 0.4, 0.5, 0.6], "lr": [0.001, 0.01, 0.05], "epochs": [20, 30, 40]}
    )
    """setting → list of choices, or {low, high, log, step}: macs_ratio (fraction of the MACs removed), criterion, compensation, lr, …"""
    sampler: Literal["grid", "tpe", "nsga2", "random"] = "tpe"
    """sampler of the trials"""
    trials: int = Field(default=20, ge=1)
    """total number, including those of earlier calls; a grid has its own"""
    workers: int = Field(default=1, ge=1)
    """processes on this machine"""
    storage: str | None = None
    """an optuna URL for many machines; by default a file of SQLite in the folder"""
    min_macs_removed: float = Field(default=Goal().macs_removed, ge=0, le=1)
    """goal: minimal fraction of the MACs removed"""
    max_points_lost: float = Field(default=Goal().points_lost, ge=0)
    """goal: maximal points of accuracy lost"""


class Report(Settings):
    """What results are set beside."""

    beside: tuple[Literal["vbp_table_10", "vbp_models", "vbp_methods", "without_training"], ...] = ()
    """published tables, beside which the runs are set on a page of its own"""


class Config(Settings):
    """All options. A file may have sections that a command does not read."""

    seed: int = 0
    """seed of weights, batches, augmentation and calibration"""
    device: str | None = None
    """cpu or cuda; by default cuda if available"""
    out: str | None = None
    """folder for results; created if necessary"""
    model: Model = Model()
    data: Data = Data()
    train: Train = Train()
    prune: Prune = Prune()
    sparsify: Sparsify = Sparsify()
    pat: Pat = Pat()
    sparse: Sparse = Sparse()
    between: Between = Between()
    finetune: Finetune = Finetune()
    distill: Distill = Distill()
    export: Export = Export()
    profile: Profile = Profile()
    sensitivity: Sensitivity = Sensitivity()
    sweep: Sweep = Sweep()
    llm: Llm = Llm()
    report: Report = Report()
