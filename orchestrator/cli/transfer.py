"""The commands that give a checkpoint to other programs, and take over what those have made."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from enum import StrEnum
from pathlib import Path

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.checkpoint_journal import CheckpointJournal
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verification import export_state
from orchestrator.client import chosen_checkpoint, file_errors, open_store
from orchestrator.errors import ConfigError
from orchestrator.rundir.journal import Journal
from orchestrator.rundir.lock import RunLock
from orchestrator.rundir.paths import RunDir

DEFAULT_NAME = "model"
SAFETENSORS_SUFFIX = ".safetensors"


class Form(StrEnum):
    """What ``export`` can make of a checkpoint."""

    WHOLE = "whole"
    STATE_DICT = "state-dict"
    SAFETENSORS = "safetensors"
    CLASSIC = "classic"


def add_export_options(command: ArgumentParser) -> None:
    """What ``export`` takes beside a run and a step."""
    command.add_argument(
        "--as",
        dest="form",
        choices=[form.value for form in Form],
        help="whole: state.pt as it is, the default; state-dict: the state of one object; "
        "safetensors: that too, the default for a file named *.safetensors; classic: {'epoch', "
        "'model_state_dict', 'optimizer_state_dict', 'loss'}",
    )
    command.add_argument("--name", help=f"of the one object ({DEFAULT_NAME})")
    command.add_argument("-o", "--output", type=Path, help="the file")
    command.add_argument("--force", action="store_true", help="replace a file that is there")


def add_import_options(command: ArgumentParser) -> None:
    """What ``import`` takes."""
    command.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="{'epoch', 'model_state_dict', ...}, or weights alone: a state_dict or safetensors",
    )
    command.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="a run, or a new one")
    command.add_argument(
        "--name", default=DEFAULT_NAME, help=f"whose weights alone those are ({DEFAULT_NAME})"
    )
    for name in ("epoch", "step"):
        command.add_argument(
            f"--{name}",
            type=_count,
            metavar="N",
            help=f"completed {name}s, if the file is wrong",
        )


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ArgumentTypeError(f"{text} is not a whole number from 0 on")
    return int(text)


def export(arguments: Namespace) -> None:
    """Write a checkpoint, verified, to a file in the form that was asked for."""
    form, output = _form_and_output(arguments)
    # Before gigabytes are verified; whoever makes it meanwhile is told the same later.
    if output.is_file() and not arguments.force:
        raise ConfigError(
            f"cannot write {output}: there is such a file; choose another name, or --force"
        )
    chosen = chosen_checkpoint(open_store(arguments.run_dir), arguments.step, to_load=True)
    with file_errors(f"cannot write {output}"):
        name = arguments.name or DEFAULT_NAME
        _write(chosen, form, name, output, replace=arguments.force)
    print(f"wrote {output} (step {chosen.manifest.step})")


def _form_and_output(arguments: Namespace) -> tuple[Form, Path]:
    """A file that is named like safetensors is not to become anything else unasked."""
    output: Path | None = arguments.output
    named = output is not None and output.suffix == SAFETENSORS_SUFFIX
    form = Form(arguments.form or (Form.SAFETENSORS if named else Form.WHOLE))
    if arguments.name and form in (Form.WHOLE, Form.CLASSIC):
        raise ConfigError(
            f"cannot export {arguments.name} alone as {form}, which holds everything; "
            f"take --as {Form.STATE_DICT} or --as {Form.SAFETENSORS}"
        )
    if output is None:
        output = Path("checkpoint.pt")
        if form in (Form.STATE_DICT, Form.SAFETENSORS):
            suffix = SAFETENSORS_SUFFIX if form is Form.SAFETENSORS else ".pt"
            output = Path(f"{arguments.name or DEFAULT_NAME}{suffix}")
    return form, output


def _write(checkpoint: Checkpoint, form: Form, name: str, target: Path, *, replace: bool) -> None:
    if form is Form.WHOLE:
        export_state(checkpoint, target, replace=replace)
        return
    # Not above: torch takes seconds, and every command imports this module.
    from orchestrator.training.formats import export

    match form:
        case Form.STATE_DICT:
            export.export_state_dict(checkpoint, name, target, replace=replace)
        case Form.SAFETENSORS:
            export.export_safetensors(checkpoint, name, target, replace=replace)
        case Form.CLASSIC:
            export.export_classic(checkpoint, target, replace=replace)


def import_(arguments: Namespace) -> None:
    """Make a file of another program the newest checkpoint of a run, which may be a new one."""
    if not arguments.name.isidentifier():
        raise ConfigError(
            f"cannot import {arguments.name!r}: that is no name of a keyword of Session; "
            "take the one that the script registers it under"
        )
    from orchestrator.training.formats import classic, import_

    source = arguments.file
    given = {"epoch": arguments.epoch, "step": arguments.step}
    counts = {key: count for key, count in given.items() if count is not None}
    content = classic.read_foreign(source, arguments.name, counts)
    state = import_.state_of(content, source)
    place = RunDir(arguments.run_dir)
    place.create()
    lock = RunLock(place)
    try:
        lock.write_owner()
        store = Store.open(place, command=[])
        _refuse_foreign_run(store, source)
        _refuse_going_back(store, state["step"], source)
        published = import_.publish(store, state, source)
        _note(place, published, source)
    finally:
        lock.close()
    print(f"{source} is now {published.path}")
    if left_out := [str(key) for key in content if key not in state]:
        print(f"left out: {', '.join(left_out)}")


def _refuse_foreign_run(store: Store, source: Path) -> None:
    for manifest in (checkpoint.manifest for checkpoint in store.all()):
        if manifest.framework is None and manifest.adopted is None:
            continue
        others = "a script that saves for itself"
        if manifest.framework is not None:
            others = f"the trainer of {manifest.framework}"
        raise ConfigError(
            f"cannot import {source} into {store.run.root}: what trains there is {others}, "
            "which reads its own files only; import into another run directory"
        )


def _refuse_going_back(store: Store, step: int, source: Path) -> None:
    newer = [c for c in store.all() if c.manifest.healthy and c.manifest.step > step]
    if newer:
        newest = newer[-1].manifest.step
        raise ConfigError(
            f"cannot import {source} as step {step}: {store.run.root} has a checkpoint of step "
            f"{newest}, which it would go on from instead; import into another run directory, or "
            f"say --step {newest + 1} to have the run go on from the file"
        )


def _note(place: RunDir, published: Checkpoint, source: Path) -> None:
    # What was complete has more to do now.
    place.done_file.unlink(missing_ok=True)
    CheckpointJournal(Journal(place.journal_file)).record_publication(published, source=source)
