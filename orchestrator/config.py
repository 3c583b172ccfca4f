"""The settings of a run, from the command line, the environment, or a configuration file.

The command line wins over the environment, and that over orchestrator.toml or pyproject.toml. All
three give text, which is parsed here: a bad value is refused in the same words wherever it stands.
"""

import re
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self

from orchestrator.adopt import recipes
from orchestrator.adopt.resume_argument import ResumeArgument
from orchestrator.adopt.unit_pattern import UnitPattern
from orchestrator.checkpoint.retention import (
    DEFAULT_KEEP,
    KEEP_ALL,
    MINIMUM_KEEP,
    BestPolicy,
    RetentionPolicy,
)
from orchestrator.config_file import read_config_file
from orchestrator.errors import ConfigError
from orchestrator.system.processors import count_cpus, count_gpus
from orchestrator.system.units import DURATION, parse_duration, parse_size

ENVIRONMENT_PREFIX = "ORCHESTRATOR_"

# The supervisor checks the heartbeat once a second.
DEFAULT_SNAPSHOT_SHARE = 0.01
LEAST_HANG_SECONDS = 2.0
LEAST_LOG_BYTES = 1 << 20
# More than any machine has GPUs; each takes descriptors and a connection of the supervisor.
MOST_RANKS = 32

_SWITCH = {"on": True, "off": False}
_STEPS_OR_EPOCHS = re.compile(r"(\d+)(steps?|epochs?)")


@dataclass(frozen=True)
class Every:
    """The interval between checkpoints: a number of seconds, of steps, or of epochs."""

    amount: float
    unit: Literal["seconds", "steps", "epochs"]


def _parse_positive_duration(text: str) -> float:
    seconds = parse_duration(text)
    if seconds <= 0:
        raise ValueError("it must be longer than 0")
    return seconds


def _parse_every(text: str) -> Every:
    if match := _STEPS_OR_EPOCHS.fullmatch(text.strip()):
        amount = int(match[1])
        if amount < 1:
            raise ValueError("it must be at least 1")
        return Every(amount, "steps" if match[2].startswith("step") else "epochs")
    if DURATION.fullmatch(text.strip()) is None:
        raise ValueError("write a time or a count, such as 10m, 500steps or 1epoch")
    return Every(_parse_positive_duration(text), "seconds")


def _parse_keep(text: str) -> int:
    keep = _parse_count(text)
    if keep < MINIMUM_KEEP:
        raise ValueError(
            f"at least {MINIMUM_KEEP}: with a single checkpoint, damage to it loses the run"
        )
    return keep


def _nonempty(request: str) -> Callable[[str], str]:
    """Return a parser that accepts any text but an empty one, which ``request`` answers."""

    def parse(text: str) -> str:
        if not text.strip():
            raise ValueError(request)
        return text

    return parse


def _path(request: str) -> Callable[[str], Path]:
    parse = _nonempty(request)
    return lambda text: Path(parse(text))


def _parse_count(text: str) -> int:
    if not text.strip().isdecimal():
        raise ValueError("write a whole number, 0 or more")
    return int(text)


def _parse_positive_count(text: str) -> int:
    if not (count := _parse_count(text)):
        raise ValueError("it must be at least 1")
    return count


def _parse_shown_ranks(text: str) -> Literal["main", "all"]:
    match text.strip():
        case "main" | "all" as word:
            return word
    raise ValueError("write main or all")


def _parse_ranks(text: str) -> int | Literal["gpu", "cpu"]:
    match text.strip():
        case "gpu" | "cpu" as word:
            return word
    if not text.strip().isdecimal():
        raise ValueError("write a number of processes, gpu or cpu")
    if not 1 <= (count := int(text)) <= MOST_RANKS:
        raise ValueError(f"from 1 to {MOST_RANKS}")
    return count


def _parse_budget(text: str) -> float | Literal["auto"] | None:
    match text.strip():
        case "auto":
            return "auto"
        case "off":
            return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%", text.strip())
    if match is None or not 0 < float(match[1]) <= 50:
        raise ValueError("write auto, off, or a share of the time above 0% up to 50%, such as 1%")
    return float(match[1]) / 100


def _parse_hang_timeout(text: str) -> float | Literal["auto", "off"]:
    match text.strip():
        case "auto" | "off" as word:
            return word
    seconds = parse_duration(text)
    if seconds < LEAST_HANG_SECONDS:
        raise ValueError(f"at least {LEAST_HANG_SECONDS:g}s, or auto, or off")
    return seconds


def _parse_log_format(text: str) -> Literal["auto", "text", "json"]:
    match text.strip():
        case "auto" | "text" | "json" as word:
            return word
    raise ValueError("write auto, text or json")


def _parse_log_size(text: str) -> int:
    size = parse_size(text)
    if size < LEAST_LOG_BYTES:
        raise ValueError("at least 1M: the end of the output tells why a trainer has failed")
    return size


def _parse_signal(text: str) -> signal.Signals:
    name = text.strip().upper().removeprefix("SIG")
    try:
        number = signal.Signals[f"SIG{name}"]
    except KeyError:
        raise ValueError("name a signal, such as TERM, INT or USR1") from None
    if number in (signal.SIGKILL, signal.SIGSTOP):
        raise ValueError("no program can handle this signal")
    return number


def _parse_switch(text: str) -> bool:
    if text.strip() not in _SWITCH:
        raise ValueError("write on or off")
    return _SWITCH[text.strip()]


def _option(
    parse: Callable[[str], Any], metavar: str, text: str, default: Any, *, repeats: bool = False
) -> Any:
    """Describe a setting. One that ``repeats`` has a text with a line for each value."""
    metadata = {"parse": parse, "metavar": metavar, "help": text, "repeats": repeats}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """The settings of a run. The ``help`` of each field is what ``run --help`` prints."""

    run_dir: Path | None = _option(
        _path("name a directory"),
        "DIR",
        "The run's directory. {name} and {args} in it stand for the script's name and the "
        "arguments. Another script's run is refused; the same script with other arguments "
        "continues the run, and says what differs. Default: runs/<name of the script>.",
        None,
    )
    keep: int | None = _option(
        _parse_keep,
        "N",
        "Keep the N newest checkpoints, at least 2. Default: 3; with --adopt and a pattern of many "
        "names, all.",
        None,
    )
    keep_best: BestPolicy | None = _option(
        BestPolicy.parse,
        "METRIC:min|max[:K]",
        "Also keep the K checkpoints (1 if K is left out) with the lowest or highest METRIC. Only "
        "a checkpoint of the step that reported METRIC counts, so use --every 1epoch.",
        None,
    )
    every: Every = _option(
        _parse_every,
        "10m|500steps|1epoch",
        "Save a checkpoint this often. Steps and epochs are kept exactly; a time is stretched "
        "where writing would cost more than the snapshot budget. Default: 10m.",
        Every(600.0, "seconds"),
    )
    grace: float = _option(
        _parse_positive_duration,
        "30s",
        "Time that a stop may take, including the save. Default: 30s.",
        30.0,
    )
    max_restarts: int = _option(
        _parse_count,
        "N",
        "Restart after at most N failures without progress, then give up. A run that saves "
        "something new between failures is restarted without limit, unless --max-attempts or "
        "--give-up-after sets one. Default: 5.",
        5,
    )
    max_attempts: int | None = _option(
        _parse_positive_count,
        "N",
        "Give up after N attempts in all, whatever progress they made. A run that has given up "
        "counts from 0 when it is started again. Default: no limit.",
        None,
    )
    give_up_after: float | None = _option(
        _parse_positive_duration,
        "12h",
        "Save, stop and give up this long after the first attempt, whatever its progress; pauses "
        "count. A run that has given up counts from 0 when it is started again. Default: never.",
        None,
    )
    hang_timeout: float | Literal["auto", "off"] = _option(
        _parse_hang_timeout,
        "auto|off|5m",
        "Restart a trainer that makes no progress for this long. Default: auto, far longer than "
        "this run's steps so far, and never under 5m.",
        "auto",
    )
    snapshot_budget: float | Literal["auto"] | None = _option(
        _parse_budget,
        "auto|1%|off",
        "Share of the training time that snapshots in memory may cost. Default: auto, 1%, and more "
        "in a run that fails often: as much as loses the least time in all.",
        "auto",
    )
    allow_data_change: bool = _option(
        _parse_switch,
        "on|off",
        "Resume in the middle of an epoch even if the data set's length, the batch size or the "
        "sampler has changed. Default: off; such a resume is refused.",
        False,
    )
    spare: bool = _option(
        _parse_switch,
        "on|off",
        "Keep a standby process with torch imported, which becomes the next trainer. Default: on.",
        True,
    )

    nproc_per_node: int | Literal["gpu", "cpu"] = _option(
        _parse_ranks,
        "N|gpu|cpu",
        "Start the command N times, as the ranks of one DDP training, with the variables that "
        "torchrun sets; gpu and cpu: once for each. FSDP, Lightning, the Hugging Face Trainer and "
        "accelerate do not work with several ranks yet. Default: 1.",
        1,
    )
    show_ranks: Literal["main", "all"] = _option(
        _parse_shown_ranks,
        "main|all",
        "Whose output is printed: that of rank 0 alone, or of all ranks, with `[rank 1]` before "
        "the lines of others. All of it is in attempts/. Default: main.",
        "main",
    )
    adopt: UnitPattern | None = _option(
        UnitPattern.parse,
        "PATTERN|RECIPE",
        "Use the files that an unmodified script saves under these names ('out/checkpoint-*') as "
        "its checkpoints; `orchestrator adopt` finds them. Files that it saves together "
        "('out/net{G,D}_*.pth', or --adopt once for each) count only together. Or name a recipe, "
        "which also sets --resume-arg: "
        + ", ".join(recipe.name for recipe in recipes.RECIPES)
        + "; "
        "RECIPE:DIR names its directory. Default: none; the script opens a Session.",
        None,
        repeats=True,
    )
    resume_arg: ResumeArgument = _option(
        ResumeArgument.parse,
        "WORDS",
        "With --adopt: words to add to the command when there is a checkpoint to resume from, "
        "such as '--resume {path}'; {path} and {step} are filled in. Of files that are saved "
        "together {path} is the first, and each has the word by which its pattern differs, {netG} "
        "and {netD}, or its number, {path1} and {path2}. Default: none.",
        ResumeArgument(),
    )
    stop_signal: signal.Signals = _option(
        _parse_signal,
        "NAME",
        "Signal that asks a command without a Session to end. Default: TERM.",
        signal.SIGTERM,
    )
    slurm_requeue: bool = _option(
        _parse_switch,
        "on|off",
        "In a SLURM job: requeue the job after a stop that no person asked for (a time limit, a "
        "preemption). Default: off.",
        False,
    )
    notice_file: Path | None = _option(
        _path("name a file"), "PATH", "Save and stop when this file appears. Default: none.", None
    )
    notice_command: str | None = _option(
        _nonempty("write a command"),
        "CMD",
        "Save and stop when this shell command, run every 5 s, exits with 0. Default: none.",
        None,
    )
    on_event: str | None = _option(
        _nonempty("write a command"),
        "CMD",
        "Run CMD (with sh, for at most 30 s) when training completes, gives up or hangs, when "
        "checkpoints do not come any more, or when the weights are not finite; ORCHESTRATOR_EVENT "
        "holds done, gave_up, hang, stalled or unhealthy. Default: none.",
        None,
    )
    metrics_file: Path | None = _option(
        _path("name a file"),
        "PATH.prom",
        "Write the metrics of the run every 15 s to this file, which the textfile collector of "
        "Prometheus' node exporter reads. In a directory each run has a file of its own. Needs the "
        "extra `metrics`. Default: none.",
        None,
    )
    log_format: Literal["auto", "text", "json"] = _option(
        _parse_log_format,
        "auto|text|json",
        "Form of the supervisor's messages: text for people, or one JSON object a line. Default: "
        "auto, JSON in the systemd journal and text everywhere else.",
        "auto",
    )
    log_size: int = _option(
        _parse_log_size,
        "SIZE",
        "When output.log or supervisor.log would exceed SIZE, it is renamed to output.1.log or "
        "supervisor.1.log, and the one before that is deleted. A start continues a journal beyond "
        "SIZE in a new file, and keeps the old one. At least 1M. Default: 256M.",
        256 << 20,
    )

    @property
    def adapts_snapshots(self) -> bool:
        """Whether a run that fails often takes more snapshots than its budget allows."""
        return self.snapshot_budget == "auto"

    @property
    def snapshot_share(self) -> float | None:
        """The share of the time that snapshots may take while nothing fails; None: none."""
        return DEFAULT_SNAPSHOT_SHARE if self.snapshot_budget == "auto" else self.snapshot_budget

    @property
    def retention(self) -> RetentionPolicy:
        """The settings that decide which checkpoints are kept."""
        keep = self.keep
        if keep is None:
            # These files are the script's own, and it may have its own rule of how many to keep.
            in_place = self.adopt is not None and not self.adopt.is_one_path
            keep = KEEP_ALL if in_place else DEFAULT_KEEP
        return RetentionPolicy(keep=keep, best=self.keep_best)

    def world_size(self) -> int:
        """Return the number of ranks. Raises ConfigError where there is no GPU to count."""
        if self.nproc_per_node == "cpu":
            return min(MOST_RANKS, count_cpus())
        if self.nproc_per_node != "gpu":
            return self.nproc_per_node
        if not (count := min(MOST_RANKS, count_gpus())):
            raise ConfigError(
                "cannot count the GPUs for --nproc-per-node gpu: neither CUDA_VISIBLE_DEVICES nor "
                "nvidia-smi shows one; write a number of processes"
            )
        return count

    @classmethod
    def resolve(
        cls,
        options: Mapping[str, str | None],
        environment: Mapping[str, str],
        directory: Path,
        command: Sequence[str] = (),
    ) -> Self:
        """Combine the sources; ``options`` holds the command line's texts, None if not given.

        ``command`` is the one that trains, whose options say where a recipe of --adopt looks.
        Raises ConfigError, which names the source and the value.
        """
        given = _given(options, environment, directory)
        _apply_recipe(given, command)
        values: dict[str, Any] = {}
        for name, (source, text) in given.items():
            if "\0" in text:  # no command line, path or environment can hold one
                raise ConfigError(f"cannot use {source}: it has a NUL in it")
            try:
                values[name] = cls.__dataclass_fields__[name].metadata["parse"](text)
            except ValueError as error:
                raise ConfigError(f"cannot use {source} = {text}: {error}") from None
        return cls(**values)


def _given(
    options: Mapping[str, str | None], environment: Mapping[str, str], directory: Path
) -> dict[str, tuple[str, str]]:
    """Return the source and the text of each setting that is given anywhere."""
    names = [setting.name for setting in fields(Config)]
    file_values, file_name = read_config_file(directory, names, REPEATED)
    given = {}
    for name in names:
        variable = ENVIRONMENT_PREFIX + name.upper()
        candidates = (
            ("--" + name.replace("_", "-"), options.get(name)),
            (variable, environment.get(variable)),
            (f"{name} in {file_name}", file_values.get(name)),
        )
        for source, text in candidates:
            if text is not None:
                given[name] = (source, text)
                break
    return given


def _apply_recipe(given: dict[str, tuple[str, str]], command: Sequence[str]) -> None:
    """Replace the name of a recipe in --adopt by what it stands for. Raises ConfigError."""
    # Without a command, as for `status`, nothing is adopted.
    if "adopt" not in given or not command:
        return
    source, text = given["adopt"]
    try:
        preset = recipes.preset(text, command)
    except ValueError as error:
        raise ConfigError(f"cannot use {source} = {text}: {error}") from None
    if preset is not None:
        given["adopt"] = (source, preset.pattern)
        given.setdefault("resume_arg", (source, preset.resume_arg))


REPEATED = {setting.name for setting in fields(Config) if setting.metadata["repeats"]}
"""The settings that may be given several times; their text has a line for each."""


def option_words(options: Mapping[str, str | None]) -> list[str]:
    """Return the settings that are given (not None) as words of a command line."""
    words = []
    for name, text in options.items():
        option = name.replace("_", "-")
        if text is None:
            continue
        if Config.__dataclass_fields__[name].type is bool:
            words.append(f"--{option}" if text == "on" else f"--no-{option}")
        else:
            values = text.split("\n") if name in REPEATED else [text]
            words += [word for value in values for word in (f"--{option}", value)]
    return words
