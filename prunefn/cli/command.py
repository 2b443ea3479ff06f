"""The common part of all commands: flags for their options, `--config`, `--dry-run`, `--json`, `--debug`, exit codes."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from ..errors import PruneError, PruneWarning
from ..files.atomic import write_text
from .completion import complete_config, complete_model
from .errors import FAILED, MISUSED, fail
from .flags import flags_of, nest, parameters
from .layers import merge, resolve, text_of
from .leftovers import nothing_left_without_work
from .sections import Config
from .streams import PIPE, Stopped, complain, flush, reader_gone, silence, terminable
from .trust import check_trust
from .waiting import silent_libraries, spinner, spinners

Result = dict[str, Any]


class Job(NamedTuple):
    """A call of a command."""

    config: Config
    out: Path | None
    """The folder for results, which exists while the command runs."""
    quiet: bool
    """No bars and no tables: a machine reads."""
    files: list[str]
    """Arguments after the model: checkpoints, folders."""

    def show(self, *what: Any) -> None:
        """Print text or a rich table, for people; under torchrun, once."""
        if not self.quiet and main_process():
            from rich.console import Console

            Console(soft_wrap=True, highlight=False).print(*what, markup=False)

    def note(self, text: str) -> None:
        """Print a remark to stderr; under torchrun, once."""
        if main_process():
            print(f"note: {text}", file=sys.stderr)

    @property
    def folder(self) -> Path:
        """Return the folder for results of a command that needs one."""
        assert self.out is not None
        return self.out


class Command(NamedTuple):
    """A command. Its file is imported when it is run."""

    name: str
    text: str
    """The help."""
    sections: tuple[str, ...]
    own: tuple[str, ...] = ()
    """Sections whose flags need no prefix, the first one first."""
    out: str | None = None
    """Default folder for results; None: results are only shown."""
    files: str = ""
    """Help text of the arguments after the model; empty: there are none."""
    model: bool = True
    """Whether the first argument is a model."""
    fresh: bool = False
    """Whether random weights are expected."""
    whole: bool = False
    """Whether the command writes the folder of `--out` itself, whole or not at all, so that nothing else is put there."""
    files_name: str = "FILES"
    """What the help calls the arguments after the model."""
    only: tuple[str, ...] | None = None
    """Options of the own sections and at the top that the command reads; None: all."""
    file: str = ""
    """File of `commands` with the functions `run` and `plan`; empty: that of the name."""

    def run(self, job: Job) -> Result:
        """Run the command; the return value is printed with `--json`."""
        return self._module().run(job)

    def plan(self, config: Config) -> Iterable[str]:
        """Return the steps, line by line, without opening anything."""
        return self._module().plan(config)

    def _module(self) -> Any:
        with spinner("loading torch", line=False):
            return import_module(f".commands.{self.file or self.name}", __package__)


def main_process() -> bool:
    """Return whether this process prints and writes: the only one, or the first of torchrun's."""
    return os.environ.get("RANK", "0") == "0"


def add_name(app: typer.Typer, command: Command) -> None:
    """Add a command to the app with its help, but without flags."""
    app.command(command.name, help=_help(command))(lambda: None)


def add(app: typer.Typer, command: Command) -> None:
    """Add a command to the app."""
    flags = flags_of(command.sections, command.own, command.only)

    def call(**arguments: Any) -> None:
        debug, quiet = arguments.pop("debug"), arguments.pop("as_json")
        with report_errors(debug, quiet), spinners(not quiet and main_process()):
            config, files = _resolve_config(command, arguments, nest(flags, arguments))
            if command.model and not config.model.name:
                fail("give a model: timm/NAME, torchvision/NAME, transformers/CLASS or module:function", MISUSED)
            if arguments["dry_run"]:
                if command.model:
                    from .networks import check_name

                    check_name(config.model)
                _show_plan(command, config, quiet)
                return
            if config.device is not None:
                from .devices import device_of

                device_of(config.device)
            job = Job(config, _folder(command, config), quiet, files)
            _print_remarks(command, job)
            with _in_folder(command, job), _warnings_as_notes(job):
                result = command.run(job)
            if quiet and main_process():
                print(json.dumps(result, indent=2))

    call.__signature__ = inspect.Signature(
        [*_arguments_of(command), *(p for f in flags for p in parameters(f)), *_common()]
    )  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in call.__signature__.parameters.values()}  # type: ignore[attr-defined]
    app.command(command.name, help=_help(command), no_args_is_help=False)(call)


def _help(command: Command) -> str:
    """Return the help, a line a paragraph."""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(command.text))


def _arguments_of(command: Command) -> list[inspect.Parameter]:
    rows = []
    if command.model:
        text = "timm/NAME, torchvision/NAME, transformers/CLASS or a folder, module:function, or just NAME."
        rows.append(
            (
                "model",
                Annotated[str | None, typer.Argument(help=text, show_default=False, autocompletion=complete_model)],
                None,
            )
        )
    if command.files:
        argument = typer.Argument(help=command.files, show_default=False, metavar=command.files_name)
        rows.append(("files", Annotated[list[Path] | None, argument], None))
    return [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=d, annotation=a) for n, a, d in rows]


def _common() -> list[inspect.Parameter]:
    text = "A YAML file, or a config that comes with the package; several are laid over each other. Flags win."
    panel = "Every command"
    config = typer.Option(
        "--config",
        "-c",
        help=text,
        metavar="FILE",
        rich_help_panel=panel,
        show_default=False,
        autocompletion=complete_config,
    )
    dry = typer.Option("--dry-run", help="Print the resolved options and the steps, and stop.", rich_help_panel=panel)
    as_json = typer.Option("--json", help="Print the results as JSON, and nothing else.", rich_help_panel=panel)
    debug = typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=panel)
    trust = typer.Option("--trust", help="Let a config file name module:function, which runs.", rich_help_panel=panel)
    rows = [("config", Annotated[list[str] | None, config], None), ("trust", Annotated[bool, trust], False)]
    rows += [("dry_run", Annotated[bool, dry], False)]
    rows += [("as_json", Annotated[bool, as_json], False), ("debug", Annotated[bool, debug], False)]
    return [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=d, annotation=a) for n, a, d in rows]


def _positional(arguments: dict[str, Any]) -> list[str]:
    """Return the arguments without a flag."""
    return [str(a) for a in [arguments.get("model"), *(arguments.get("files") or [])] if a is not None]


def _resolve_config(command: Command, values: dict[str, Any], layer: dict[str, Any]) -> tuple[Config, list[str]]:
    """Return the config and the files; the first argument is the model, unless a config or flag names the model."""
    sources, positional = values["config"] or [], _positional(values)
    typed = [*positional, layer.get("model", {}).get("name")]
    try:
        config = resolve(sources, layer)
        if command.model and positional and not (command.files and config.model.name not in ("", positional[0])):
            name, *positional = positional
            config = resolve(sources, merge(layer, {"model": {"name": name}}))
        check_trust(config.model.name, config.model.name in typed, values["trust"])
    except PruneError as error:
        fail(str(error), MISUSED)
    return config, positional


def _folder(command: Command, config: Config) -> Path | None:
    name = config.out or command.out
    if name is None:
        return None
    folder = Path(name)
    if folder.exists() and not folder.is_dir():
        fail(f"--out {name} is a file; give a folder", MISUSED)
    return None if command.whole else folder


@contextlib.contextmanager
def _warnings_as_notes(job: Job) -> Iterator[None]:
    """Print warnings of prunefn as notes; leave those of other packages to `silent_libraries`."""
    others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *rest: Any) -> None:
        if issubclass(category, PruneWarning):
            job.note(str(message))
        else:
            others(message, category, *rest)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=PruneWarning)
        warnings.showwarning = show
        yield


def _print_remarks(command: Command, job: Job) -> None:
    """Print notes on options that may not be intended."""
    m, past = job.config.model, None if job.out is None else job.out / "config.yaml"
    if command.model and not command.fresh and not (m.checkpoint or m.pretrained or job.files):
        job.note("the weights are random: give --checkpoint, or --model.pretrained")
    if (
        past is not None
        and past.exists()
        and past.read_text("utf-8") != text_of(job.config, command.sections, command.own, command.only)
    ):
        job.note(f"{job.out} has the results of other options; --out names another folder")


@contextlib.contextmanager
def _in_folder(command: Command, job: Job) -> Iterator[None]:
    """Create the folder, and write the config: before the run, and over another one after it, as a run may refuse the folder.

    A run that fails before there is any work takes away what it has written.
    """
    if job.out is None or not main_process():
        if job.out is not None:
            job.out.mkdir(parents=True, exist_ok=True)
        yield
        return
    path, text = job.out / "config.yaml", text_of(job.config, command.sections, command.own, command.only)
    with nothing_left_without_work(job.out):
        if not path.exists():
            write_text(path, text)
        yield
        write_text(path, text)


def _show_plan(command: Command, config: Config, quiet: bool) -> None:
    steps = list(command.plan(config))
    if quiet:
        print(json.dumps({"config": config.model_dump(mode="json"), "steps": steps}, indent=2))
        return
    print(text_of(config, command.sections, command.own, command.only), end="")
    print("\nsteps:")
    for number, step in enumerate(steps, 1):
        print(f"  {number}. {step}")
    if (out := config.out or command.out) is not None:
        print(f"results: {out}")
    if config.model.checkpoint is not None and not Path(config.model.checkpoint).exists():
        print(f"(there is no checkpoint {config.model.checkpoint} yet)")


@contextlib.contextmanager
def report_errors(debug: bool, quiet: bool = False) -> Any:
    """Turn errors into a line on stderr and an exit code, with `--json` also into JSON; with `--debug`, raise them.

    Without `--debug`, warnings of other packages are not shown.

    Exit codes: Ctrl-C 130, SIGTERM 143, a closed pipe 141 without a message.
    """
    try:
        with terminable(), contextlib.nullcontext() if debug else silent_libraries():
            yield
            flush()
    except typer.Exit:
        raise
    except KeyboardInterrupt as stop:
        complain("stopped; the same command resumes from the checkpoints of the run, if it writes any")
        raise typer.Exit(143 if isinstance(stop, Stopped) else 130) from None
    except Exception as error:
        if isinstance(error, BrokenPipeError) and reader_gone():
            silence()
            raise typer.Exit(PIPE) from None
        if debug:
            raise
        expected = isinstance(error, PruneError | OSError | ModuleNotFoundError)
        text = str(error) if expected else f"{type(error).__name__}: {error}"
        try:
            if quiet:
                print(json.dumps({"error": text.strip()}))
            flush()
        except OSError:  # the error may have been that of stdout itself: a full device
            silence()
        complain("error: " + text.strip() + ("" if expected else "\n(--debug shows where)"))
        raise typer.Exit(FAILED) from None
