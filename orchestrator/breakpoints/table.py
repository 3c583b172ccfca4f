"""The table of breakpoints: which methods are wrapped in which part of a trial's processes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orchestrator.breakpoints import facts

SUPERVISOR = "supervisor"
TRAINER = "trainer"
# A part of the trainer that is there only where the Trainer of transformers is.
TRANSFORMERS = "transformers"


def _no_facts(owner: Any) -> dict[str, Any]:
    return {}


def _always(*arguments: Any) -> bool:
    return True


def _nothing(*arguments: Any, **options: Any) -> None:
    pass


@dataclass(frozen=True)
class Breakpoint:
    """A method, written ``module:Class.method``, at whose start a process can be held.

    With ``after`` the process is held at the method's end, with ``each`` at each item of a
    generator. ``when`` says whether a call with these arguments counts. ``facts`` returns what
    chaos learns about the process beside its pid. ``record`` returns what the history gets of a
    call, from its arguments; with ``after`` also from its result, which comes first.
    """

    name: str
    method: str
    after: bool = False
    each: bool = False
    when: Callable[..., bool] = _always
    facts: Callable[[Any], dict[str, Any]] = _no_facts
    record: Callable[..., dict[str, Any] | None] = _nothing


_SESSION = "orchestrator.training.session:Session"
_FRAMEWORK = "orchestrator.training.framework_run:FrameworkRun"
_TRAINER = "transformers.trainer:Trainer"
_DISK = "orchestrator.system.durable:Disk"
_DECIDE = "orchestrator.ipc.place_agreement:Deciding.decide"
_SAVING = (
    Breakpoint("create", f"{_DISK}.create", when=facts.path_in_checkpoint),
    Breakpoint("create", f"{_DISK}.create_direct", when=facts.path_in_checkpoint),
    Breakpoint("write", "orchestrator.checkpoint.digesting_writer:DigestingWriter.write"),
    Breakpoint("sync", f"{_DISK}.sync", when=facts.file_in_checkpoint),
    Breakpoint("publish", f"{_DISK}.rename", when=facts.publishes),
    Breakpoint("published", f"{_DISK}.rename", after=True, when=facts.publishes),
)
BREAKPOINTS: dict[str, tuple[Breakpoint, ...]] = {
    SUPERVISOR: (
        *_SAVING,
        Breakpoint(
            "launch",
            "orchestrator.supervisor.attempt.rank:Rank.begin",
            after=True,
            facts=facts.number_of,
            record=facts.launched,
        ),
        Breakpoint("delete", "orchestrator.checkpoint.store:Store.delete"),
        Breakpoint("remove", f"{_DISK}.remove"),
        Breakpoint("deciding", _DECIDE),
        Breakpoint("decided", _DECIDE, after=True),
        Breakpoint("part", f"{_DISK}.create_direct", when=facts.path_of_part),
        Breakpoint("part-sync", f"{_DISK}.sync", when=facts.file_of_part),
    ),
    TRAINER: (
        *_SAVING,
        Breakpoint("load", "orchestrator.training.state.object_restore:ObjectRestore.restore"),
        Breakpoint("batch", f"{_SESSION}._batches", each=True, facts=facts.progress),
        Breakpoint("step", f"{_SESSION}._end_step", facts=facts.progress, record=facts.step),
        Breakpoint("poll", f"{_SESSION}.poll", facts=facts.progress, record=facts.poll),
        Breakpoint("edge", "orchestrator.training.loop.loop_state:LoopState.end_epoch", after=True),
        Breakpoint("begin", "orchestrator.snapshot.slots:Slots.begin", after=True),
        Breakpoint("commit", "orchestrator.snapshot.slots:Slots.commit"),
        Breakpoint("announced", "orchestrator.ipc.place_agreement:Places._attend"),
        Breakpoint("final", f"{_SESSION}._complete"),
        Breakpoint("done", f"{_SESSION}._complete", after=True),
        Breakpoint("left", f"{_SESSION}._leave", after=True),
        Breakpoint("load", f"{_FRAMEWORK}._resume"),
        Breakpoint("begun", f"{_FRAMEWORK}.begin", record=facts.begin_of_framework),
        Breakpoint(
            "step",
            f"{_FRAMEWORK}.step",
            facts=facts.progress_of_framework,
            record=facts.step_of_framework,
        ),
        Breakpoint("log", f"{_FRAMEWORK}.record", record=facts.log_of_framework),
        Breakpoint(
            "poll", f"{_FRAMEWORK}.beat", when=facts.evaluates, facts=facts.progress_of_framework
        ),
        Breakpoint("final", f"{_FRAMEWORK}._complete"),
        Breakpoint("done", f"{_FRAMEWORK}._complete", after=True),
    ),
    TRANSFORMERS: (
        Breakpoint("batch", f"{_TRAINER}.training_step", facts=facts.progress_of_transformers),
        Breakpoint(
            "loss", f"{_TRAINER}.training_step", after=True, record=facts.loss_of_transformers
        ),
        Breakpoint("edge", "orchestrator.integrations.transformers:_RunCallback.on_epoch_end"),
        # The model's file is complete then, and the others are not.
        Breakpoint("saving", f"{_TRAINER}._save_optimizer_and_scheduler"),
        Breakpoint("left", f"{_TRAINER}.train", after=True),
    ),
}
