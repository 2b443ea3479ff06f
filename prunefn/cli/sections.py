"""What commands can be told: sections of options, in a YAML file or as flags. Every command reads the sections it needs.

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
from ..train.recipe import Recipe
from ..train.schedule import MOST_ROUNDS


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
    """with the weights that its library has for it, which it may download"""
    input_shape: tuple[int, ...] | None = None
    """channels, height, width; by default those of the data, or what the model says"""


class Data(Named):
    """Images with labels."""

    name: str = ""
    """digits, mnist, fashion_mnist, cifar10, or a folder with train/ and val/; none where a command needs none"""
    folder: str | None = None
    """where the files of mnist, fashion_mnist or cifar10 are"""
    image_size: int | None = Field(default=None, ge=1)
    """pixels of a side; by default the data's own, 224 for folders"""
    augment: bool = True
    """training images are shifted, cut and mirrored at random"""
    images: int | None = Field(default=None, ge=1)
    """only so many training images, drawn by the seed"""
    validation_share: float = Field(default=0.0, ge=0, lt=1)
    """of the training images, set apart to choose epochs and trials by; 0: the held-out images choose, and are what is reported"""


class Training(Recipe):
    """A stage of training."""

    def recipe(self, seed: int) -> Recipe:
        """What `prunefn.train` takes, with this seed unless the section has one of its own."""
        given: dict[str, Any] = {name: getattr(self, name) for name in Recipe.model_fields}
        if "seed" not in self.model_fields_set:
            given["seed"] = seed
        return Recipe(**given)


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
    hold_zeros: bool = Field(default=False, description="weights that are zero stay zero, as sparsify left them")


class Distill(Settings):
    """Learning from the dense network."""

    alpha: float | None = Field(default=None, ge=0, le=1)
    """weight of the labels in the loss, the rest is the teacher's; none: no teacher, but 0.7 if one is named"""
    temperature: float = Field(default=2.0, gt=0)
    """of both softmaxes"""
    teacher: str | None = None
    """checkpoint of the dense network, for finetune; pat knows its own"""


class Prune(Settings):
    """Which units go, and what makes up for them."""

    recipe: str = "vbp"
    """vbp, dvbp_ob2c, corp, network_slimming, l1_channels, taylor, isomorphic, depgraph_group_norm, lamp, fpgm, mac_aware; the
    options below win over it"""
    ratio: float | dict[str, float] | None = None
    """share of the units removed, or {glob of groups: share}; 0.5 if no budget is given"""
    macs: float | None = Field(default=None, gt=0, le=1)
    """share of the MACs kept"""
    params: float | None = Field(default=None, gt=0, le=1)
    """share of the parameters kept"""
    activations: float | None = Field(default=None, gt=0, le=1)
    """share of the activations kept"""
    criterion: str | None = None
    """such as weighted_variance, or mac_aware(normalized(magnitude(1)), 0.9)"""
    scope: str | None = None
    """global, local, isomorphic, per_kind, knapsack"""
    compensation: str | None = None
    """mean, affine(ridge=1e-4), variance_rescale, none"""
    where: str | None = None
    """groups that may shrink: hidden, residual, heads, head_dim, groups, a glob, or kind("hidden") & ~module("blocks.0"); all: every
    group"""
    freeze: tuple[str, ...] = ()
    """tensors or modules that stay as they are"""
    round_to: int = Field(default=1, ge=1)
    """sizes are multiples of this"""
    max_ratio: float = Field(default=1.0, gt=0, le=1)
    """most that a group may lose"""
    min_units: int = Field(default=1, ge=1)
    """that every group keeps"""
    sequential: bool = False
    """compensate block by block towards the dense outputs"""
    recalibrate: bool = False
    """measure BatchNorms anew at the end"""
    images: int = Field(default=1024, ge=1)
    """clean training images for statistics, drawn by the seed"""
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
    """Which weights become zero."""

    share: float = Field(default=0.5, ge=0, lt=1)
    """of the weights; n:m has its own"""
    criterion: str = "magnitude"
    """magnitude, taylor, snip, movement, movement_since (the start that the seed gives), wanda, obs, random"""
    scope: str = "layerwise"
    """layerwise, rows, global, lamp, erk"""
    pattern: str = "unstructured"
    """unstructured, n_m(2, 4), blocks(4, 4), slices(4)"""
    weights: tuple[str, ...] = ()
    """globs of weights; by default all of convolutions and linear layers"""
    ridge: float | None = Field(default=None, gt=0)
    """reconstruct what is kept by least squares, with this ridge, such as 0.01"""
    rounds: int = Field(default=1, ge=1, le=MOST_ROUNDS)
    """little by little, training between as `between` says"""
    schedule: Literal["linear", "geometric", "cubic"] = "cubic"
    """of the rounds"""
    images: int = Field(default=1024, ge=1)
    """clean training images for statistics, drawn by the seed"""
    batch_size: int = Field(default=64, ge=1)
    """images of a batch of statistics"""


class Pat(Settings):
    """Pruning-aware training: sparse training, rounds of pruning and training, fine-tuning."""

    share: float | None = Field(default=None, gt=0, le=1)
    """removed in the end; by default, what `prune` says"""
    of: Literal["units", "macs", "params"] = "units"
    """what the share is of"""
    steps: int = Field(default=5, ge=1, le=MOST_ROUNDS)
    """rounds of pruning"""
    schedule: Literal["linear", "geometric", "cubic"] = "geometric"
    """what goes in each of them"""
    regularizer: str = "l1_group"
    """of the sparse phase: l1_group(weight=1e-4), lasso, slimming, growing, concentration, gradual(target=0.5)"""
    masked: bool = False
    """keep the dense shapes until the end"""
    target: float | None = Field(default=None, gt=0, lt=1)
    """share of the MACs at which pruning stops"""
    carry: bool = True
    """the optimizer remembers over rounds"""


class Export(Settings):
    """Files for other runtimes."""

    formats: tuple[Literal["onnx", "program", "aoti", "torchscript", "state_dict"], ...] = ("onnx", "program")
    """each is compared with the network before it gets its name"""
    batches: tuple[int, ...] = (1, 2, 5)
    """sizes at which it is compared"""
    limit: float = Field(default=1e-4, gt=0)
    """largest difference allowed"""


class Profile(Settings):
    """Times."""

    batch_size: int = Field(default=1, ge=1)
    """samples of a forward pass"""
    rounds: int = Field(default=30, ge=2)
    """that are timed, all networks in turns"""


class Sweep(Settings):
    """Many prunings, each fine-tuned."""

    space: dict[str, Any] = Field(
        default={"sparsity": [0.3, 0.4, 0.5, 0.6], "lr": [0.001, 0.01, 0.05], "epochs": [20, 30, 40]}
    )
    """setting → list of choices, or {low, high, log, step}: sparsity (of the MACs), criterion, compensation, lr, epochs, …"""
    sampler: Literal["grid", "tpe", "nsga2", "random"] = "tpe"
    """how trials are chosen"""
    trials: int = Field(default=20, ge=1)
    """in all, those before included; a grid has its own number"""
    workers: int = Field(default=1, ge=1)
    """processes on this machine"""
    storage: str | None = None
    """an optuna URL for many machines; by default a file of SQLite in the folder"""
    min_macs_removed: float = Field(default=Goal().macs_removed, ge=0, le=1)
    """the goal: at least so many MACs less"""
    max_points_lost: float = Field(default=Goal().points_lost, ge=0)
    """the goal: at most so many points of accuracy lost"""


class Config(Settings):
    """All that commands can be told. A file may have sections that a command does not read."""

    seed: int = 0
    """of weights, batches, augmentation and calibration"""
    device: str | None = None
    """cpu or cuda; by default what there is"""
    out: str | None = None
    """folder for results; made if it is not there"""
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
    sweep: Sweep = Sweep()
