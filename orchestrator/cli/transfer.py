"""The commands that export a checkpoint for other programs, and import a file of theirs."""

import os
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from enum import StrEnum
from pathlib import Path

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.checkpoint_journal import CheckpointJournal
from orchestrator.checkpoint.disposal import FilesOfAnyRun
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verification import export_state
from orchestrator.client import chosen_checkpoint, file_errors, open_store
from orchestrator.errors import ConfigError
from orchestrator.rundir.journal import Journal
from orchestrator.rundir.lock import RunLock
from orchestrator.rundir.paths import RunDir
from orchestrator.terminal.printing import print_text

DEFAULT_NAME = "model"
SAFETENSORS_SUFFIX = ".safetensors"


class Form(StrEnum):
    """The forms in which ``export`` writes a checkpoint."""

    WHOLE = "whole"
    STATE_DICT = "state-dict"
    SAFETENSORS = "safetensors"
    CLASSIC = "classic"


def add_export_options(command: ArgumentParser) -> None:
    """Add the options of ``export`` other than the run and the step."""
    command.add_argument(
        "--as",
        dest="form",
        choices=[form.value for form in Form],
        help="whole: a copy of state.pt, the default; state-dict: the state_dict of one object; "
        "safetensors: the same in that format, the default for a file named *.safetensors; "
        "classic: {'epoch', 'model_state_dict', 'optimizer_state_dict', 'loss'}",
    )
    command.add_argument(
        "--name", help=f"the object whose state_dict is exported (default: {DEFAULT_NAME})"
    )
    command.add_argument("-o", "--output", type=Path, help="the file to write")
    command.add_argument("--force", action="store_true", help="replace an existing file")


def add_import_options(command: ArgumentParser) -> None:
    """Add the arguments of ``import``."""
    command.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="a file with {'epoch', 'model_state_dict', ...}, or with weights alone: a "
        "state_dict or safetensors",
    )
    command.add_argument(
        "run_dir", type=Path, metavar="RUN_DIR", help="the directory of a run, or of a new one"
    )
    command.add_argument(
        "--name",
        default=DEFAULT_NAME,
        help=f"the object that weights alone belong to (default: {DEFAULT_NAME})",
    )
    for name in ("epoch", "step"):
        command.add_argument(
            f"--{name}",
            type=_count,
            metavar="N",
            help=f"number of completed {name}s, where the file holds none or a wrong one",
        )


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ArgumentTypeError(f"{text} is not a whole number, 0 or more")
    return int(text)


def export(arguments: Namespace) -> None:
    """Verify a checkpoint and write it to a file in the chosen form."""
    form, output = _form_and_output(arguments)
    # This comes before gigabytes are verified. A file that appears later is refused later.
    if os.path.isfile(output) and not arguments.force:
        raise ConfigError(
            f"cannot write {output}: the file exists; choose another name, or add --force"
        )
    chosen = chosen_checkpoint(open_store(arguments.run_dir), arguments.step, to_load=True)
    with file_errors(f"cannot write {output}"):
        name = arguments.name or DEFAULT_NAME
        _write(chosen, form, name, output, replace=arguments.force)
    print_text(f"wrote {output} (step {chosen.manifest.step})")


def _form_and_output(arguments: Namespace) -> tuple[Form, Path]:
    """Return the form and the file to write; the name ``*.safetensors`` implies that form."""
    output: Path | None = arguments.output
    is_safetensors = output is not None and output.suffix == SAFETENSORS_SUFFIX
    form = Form(arguments.form or (Form.SAFETENSORS if is_safetensors else Form.WHOLE))
    if arguments.name and form in (Form.WHOLE, Form.CLASSIC):
        raise ConfigError(
            f"cannot export {arguments.name} alone as {form}, which holds everything; "
            f"use --as {Form.STATE_DICT} or --as {Form.SAFETENSORS}"
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
    # Importing torch takes seconds, and every command imports this module.
    from orchestrator.training.formats import export

    match form:
        case Form.STATE_DICT:
            export.export_state_dict(checkpoint, name, target, replace=replace)
        case Form.SAFETENSORS:
            export.export_safetensors(checkpoint, name, target, replace=replace)
        case Form.CLASSIC:
            export.export_classic(checkpoint, target, replace=replace)


def import_(arguments: Namespace) -> None:
    """Make a file of another program the newest checkpoint of a run, or of a new run."""
    if not arguments.name.isidentifier():
        raise ConfigError(
            f"cannot import {arguments.name!r}: it is not a name that a keyword of Session can "
            "have; use the one under which the script registers the object"
        )
    from orchestrator.training.formats import classic, import_

    source = arguments.file
    options = {"epoch": arguments.epoch, "step": arguments.step}
    counts = {key: count for key, count in options.items() if count is not None}
    content = classic.read_foreign(source, arguments.name, counts)
    state = import_.state_of(content, source)
    run = RunDir(arguments.run_dir)
    run.create()
    lock = RunLock(run)
    try:
        lock.write_owner()
        store = Store.open(run, command=[], disposal=FilesOfAnyRun())
        _refuse_other_format(store, source)
        _refuse_older_step(store, state["step"], source)
        published = import_.publish(store, state, source)
        _record(run, published, source)
    finally:
        lock.close()
    print_text(f"imported {source} as {published.path}")
    if left_out := [str(key) for key in content if key not in state]:
        print_text(f"left out: {', '.join(left_out)}")


def _refuse_other_format(store: Store, source: Path) -> None:
    for manifest in (checkpoint.manifest for checkpoint in store.all()):
        if manifest.framework is None and manifest.adopted is None:
            continue
        trainer = "a script that saves for itself"
        if manifest.framework is not None:
            trainer = f"the trainer of {manifest.framework}"
        raise ConfigError(
            f"cannot import {source} into {store.run.root}: the run belongs to {trainer}, "
            "which reads its own files only; import into another run directory"
        )


def _refuse_older_step(store: Store, step: int, source: Path) -> None:
    newer = [c for c in store.all() if c.manifest.healthy and c.manifest.step > step]
    if newer:
        newest = newer[-1].manifest.step
        raise ConfigError(
            f"cannot import {source} as step {step}: {store.run.root} has a checkpoint of step "
            f"{newest} and would resume from that one; import into another run directory, or add "
            f"--step {newest + 1} to resume from the file"
        )


def _record(run: RunDir, published: Checkpoint, source: Path) -> None:
    # A run that was complete continues from the imported file.
    run.done_file.unlink(missing_ok=True)
    CheckpointJournal(Journal(run.journal_file)).record_publication(published, source=source)
