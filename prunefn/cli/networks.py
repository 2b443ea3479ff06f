"""Build models by name, with example inputs."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import nets, trees
from .._extras import needs
from ..checkpoints.checkpoint import load
from ..data.value import Data
from ..errors import PruneError, SpecNeededError, nearest
from ..frozen_dict import FrozenDict
from ..spec.spec import Spec
from ..tracing.api import trace
from .classes import check_loaded, check_refused
from .example_inputs import check_inputs, example_inputs
from .known_specs import known_spec, origin_of
from .layers import shipped_configs
from .sections import Model
from .trust import check_options
from .waiting import spinner

LIBRARIES = ("timm", "torchvision", "transformers")
NETS: dict[str, tuple[Callable[..., nn.Module], tuple[int, int, int]]] = {
    "small_resnet": (nets.small_resnet, (1, 8, 8)),
    "small_resnet18": (nets.small_resnet18, (3, 32, 32)),
    "small_vit": (nets.small_vit, (1, 8, 8)),
}
"""Networks of `prunefn.nets`, with the shape of an image."""


class Network(NamedTuple):
    """A model with example inputs."""

    model: nn.Module
    """In eval mode, on the CPU."""
    example: tuple[Tensor, ...]
    """Random inputs, of a batch of two."""
    name: str
    keywords: Mapping[str, Tensor] = FrozenDict()
    """Inputs by name, for models of transformers."""
    origin: tuple[str, ...] = ()
    """As of `origin_of`."""

    def spec(self, **options: Any) -> Spec:
        """Return the spec, kept on disk from command to command; of a recorded model, with the costs of a single sample."""
        inputs = {**{str(n): t for n, t in enumerate(self.example)}, **self.keywords}
        return known_spec(self.origin, self.model, inputs, options, self._traced)

    def _traced(self, **options: Any) -> Spec:
        with spinner(f"tracing {self.name}"):
            spec = trace(self.model, self.example, self.keywords, **options)
            if spec.capture == "exported":
                return spec
            args, keywords = trees.map_tensors(lambda t: t[:1], (self.example, dict(self.keywords)))
            return trace(self.model, args, keywords, **options)


class Built(NamedTuple):
    model: nn.Module
    shape: tuple[int, ...] | None
    """Channels, height, width; None: not known."""


def open_network(config: Model, data: Data | None = None, *, seed: int = 0, dense: bool = False) -> Network:
    """Build a model, and load its checkpoint.

    Args:
        config: its name, options and checkpoint.
        data: says how many classes and colours there are, and the size of an image; None: the model's own.
        seed: of the weights.
        dense: leave the checkpoint out.

    Raises:
        PruneError: there is no such model, it cannot be built with these options, or the checkpoint does not fit.
    """
    check_name(config)
    if config.checkpoint is not None and not dense and not Path(config.checkpoint).exists():
        raise PruneError(f"there is no checkpoint {config.checkpoint}")
    torch.manual_seed(seed)
    built = _build(config, data)
    model = built.model.eval()
    shape = config.input_shape or (data.input_shape if data is not None else built.shape)
    if config.checkpoint is not None and not dense:
        model = _load_checkpoint(model, config, shape, data)
    settings: Any = getattr(model, "config", None)
    if getattr(settings, "use_cache", False):
        settings.use_cache = False  # what it keeps of earlier words is no tensor, and cannot be traced
    example, keywords = example_inputs(model, shape, config.name)
    check_inputs(model, example, keywords, config.name, shape)
    if config.checkpoint is not None and not dense:
        check_loaded(built.model, model, config.checkpoint, data, (example, keywords))
    origin = origin_of(config.name, config.options, seed, None if dense else config.checkpoint)
    return Network(model, example, config.name, keywords, origin)


def _load_checkpoint(model: nn.Module, config: Model, shape: tuple[int, ...] | None, data: Data | None) -> nn.Module:
    """Return the model with the checkpoint's weights; pruned ones of other programs are fitted by the model's spec."""
    assert config.checkpoint is not None
    try:
        try:
            return load(model, config.checkpoint)
        except SpecNeededError:
            example, keywords = example_inputs(model, shape, config.name)
            with spinner(f"tracing {config.name}"):
                spec = trace(model, example, keywords)
            return load(model, config.checkpoint, spec=spec)
    except PruneError as error:
        check_refused(model, config.checkpoint, data)
        raise PruneError(
            f"{error}. The model was built for the classes and colours of the data; --options, such as "
            "'{num_classes: 1000}', builds it as the checkpoint's"
        ) from None


def check_name(config: Model) -> None:
    """Check that there is a model of this name, without building it.

    Raises:
        PruneError: there is none; names similar ones.
    """
    name = config.name
    if ":" not in name:
        check_options(config.options)
    library, _, rest = name.partition("/")
    ours = ":" in name or Path(name).is_dir() or name in NETS
    if not ours and library in LIBRARIES and rest:
        plain = rest.partition(".")[0] if library == "timm" else rest
        if plain not in _names(library) and not (
            library == "transformers" and _class_of_transformers(rest) is not None
        ):
            hub = "; models of a hub are not fetched: give the folder of one" if "/" in rest or "-" in rest else ""
            raise _no_model(library, rest, hub)
    elif not ours and name.partition(".")[0] not in (known := [*NETS, *_names("timm"), *_names("torchvision")]):
        hint = (
            f"; there is a config of that name: -c {name}"
            if name in shipped_configs()
            else nearest(name, dict.fromkeys(known))
        )
        raise PruneError(f"there is no model {name!r}{hint} (a class of your own is module:function)")


def _no_model(library: str, name: str, hint: str = "") -> PruneError:
    return PruneError(f"{library} has no model {name!r}{hint or nearest(name, _names(library))}")


# ---- building


def _build(config: Model, data: Data | None) -> Built:
    name = config.name
    if ":" in name:
        return _of_module(config, data)
    if Path(name).is_dir() and (Path(name) / "config.json").exists():
        return _of_folder(config)
    library, _, rest = name.partition("/")
    if rest and library in LIBRARIES:
        make = {"timm": _of_timm, "torchvision": _of_torchvision, "transformers": _of_transformers}[library]
        built = make(rest, config, data)
        if built is None:
            raise _no_model(library, rest)
        return built
    for make in (_of_nets, _of_timm, _of_torchvision):
        if (built := make(name, config, data)) is not None:
            return built
    raise PruneError(f"there is no model {name!r}")


def _names(library: str) -> list[str]:
    with needs("vision", f"models of {library}"):
        if library == "timm":
            import timm

            return timm.list_models()
        if library == "torchvision":
            import torchvision

            return torchvision.models.list_models()
    with needs("hf", "models of transformers"):
        import transformers
    return [
        n for n in dir(transformers) if n.endswith(("Model", "ForImageClassification", "ForSequenceClassification"))
    ]


def _class_of_transformers(name: str) -> type[nn.Module] | None:
    """Return the model class of this name; None for all else that transformers has."""
    with needs("hf", "models of transformers"):
        import transformers
    model_class: Any = getattr(transformers, name, None)
    is_model = isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)
    return model_class if is_model and getattr(model_class, "config_class", None) is not None else None


def _of_nets(name: str, config: Model, data: Data | None) -> Built | None:
    if name not in NETS:
        return None
    make, shape = NETS[name]
    return Built(_call(make, name, config, data), shape)


def _of_timm(name: str, config: Model, data: Data | None) -> Built | None:
    with needs("vision", "models of timm"):
        import timm
    if not timm.is_model(name.partition(".")[0]):
        return None
    options: dict[str, Any] = {}
    if data is not None:
        options = {"num_classes": len(data.classes), "in_chans": data.input_shape[0]}
    options |= config.options
    sized = data is not None and "img_size" not in options
    if data is not None and sized:
        options["img_size"] = data.input_shape[1]
    try:
        model = timm.create_model(name, pretrained=config.pretrained, **options)
    except TypeError as error:
        if not sized:
            raise _build_error(name, options, error) from None
        options.pop("img_size")  # most convolutional networks take any size
        try:
            model = timm.create_model(name, pretrained=config.pretrained, **options)
        except (TypeError, ValueError, AssertionError, RuntimeError) as second_error:
            raise _build_error(name, options, second_error) from None
    except (ValueError, AssertionError, RuntimeError) as error:
        raise _build_error(name, options, error) from None
    size = getattr(model, "pretrained_cfg", {}).get("input_size")
    return Built(model, None if size is None else tuple(size))


def _of_torchvision(name: str, config: Model, data: Data | None) -> Built | None:
    with needs("vision", "models of torchvision"):
        import torchvision
    if name not in torchvision.models.list_models():
        return None
    options = {} if data is None or config.pretrained else {"num_classes": len(data.classes)}
    options |= config.options
    try:
        model = torchvision.models.get_model(name, weights="DEFAULT" if config.pretrained else None, **options)
    except (TypeError, ValueError) as error:
        raise _build_error(name, options, error) from None
    return Built(model, (3, 299, 299) if name == "inception_v3" else (3, 224, 224))


def _of_transformers(name: str, config: Model, data: Data | None) -> Built | None:
    build: Any = _class_of_transformers(name)
    if build is None:
        return None
    options = (
        {} if data is None else {"num_labels": len(data.classes), "num_channels": data.input_shape[0]}
    ) | config.options
    try:
        model = build(build.config_class(**options))
    except (TypeError, ValueError) as error:
        raise _build_error(name, options, error) from None
    return Built(model, _shape_of(model.config))


def _of_folder(config: Model) -> Built:
    with needs("hf", "a folder of transformers"):
        import transformers
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    settings = transformers.AutoConfig.from_pretrained(config.name, **options, **config.options)
    settings_to_check = {
        k: v for k, v in settings.to_dict().items() if k not in ("auto_map", "pretrained_cfg")
    }  # neither is followed here
    settings_to_check["attn_implementation"] = getattr(settings, "_attn_implementation", None)
    check_options(settings_to_check, f"{config.name}/config.json")
    names = getattr(settings, "architectures", None) or []
    make: Any = _class_of_transformers(names[0]) if names else transformers.AutoModel
    if make is None:
        raise PruneError(f"{config.name}/config.json is of {names[0]!r}, which transformers does not have")
    model = make.from_pretrained(config.name, config=settings, **options)
    return Built(model, _shape_of(settings))


def _shape_of(config: Any) -> tuple[int, ...] | None:
    size = getattr(config, "image_size", None)
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return getattr(config, "num_channels", 3), height, width


def _of_module(config: Model, data: Data | None) -> Built:
    path, _, name = config.name.partition(":")
    sys.path.insert(0, "")  # a file beside where the command is called
    try:
        module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    except ModuleNotFoundError as error:
        raise PruneError(f"there is no module {path!r} to take {name!r} from ({error})") from None
    finally:
        sys.path.remove("")
    make: Any = getattr(module, name, None)
    if not callable(make):
        raise PruneError(
            f"module {path!r} has no function {name!r}{nearest(name, [n for n, v in vars(module).items() if callable(v) and n[0] != '_'])}"
        )
    return Built(_call(make, config.name, config, data), None)


def _call(make: Callable[..., Any], name: str, config: Model, data: Data | None) -> nn.Module:
    """Call a function with the options, and with the data's properties that it has parameters for."""
    known = {} if data is None else {"num_classes": len(data.classes), "in_chans": data.input_shape[0]}
    if data is not None:
        known["img_size"] = data.input_shape[1]
    accepted = inspect.signature(make).parameters
    options = {k: v for k, v in known.items() if k in accepted} | config.options
    try:
        model = make(**options)
    except TypeError as error:
        raise _build_error(name, options, error) from None
    if not isinstance(model, nn.Module):
        raise PruneError(f"{name} gives a {type(model).__name__}, not a module")
    return model


def _build_error(name: str, options: dict[str, Any], error: Exception) -> PruneError:
    shown = ", ".join(f"{k}={v!r}" for k, v in options.items())
    return PruneError(f"{name} cannot be built with {shown or 'no options'}: {str(error).strip()}")
