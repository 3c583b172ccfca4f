"""Makes the parts of a supervisor, each after the parts that it talks to."""

from dataclasses import dataclass

import structlog

from orchestrator.adopt.ongoing_saves import OngoingSaves
from orchestrator.adopt.seal_store import SealStore
from orchestrator.checkpoint.checkpoint_journal import CheckpointJournal
from orchestrator.checkpoint.store import Store
from orchestrator.config import Config
from orchestrator.hosts.host_events import HostEvents
from orchestrator.hosts.systemd.notify_socket import Notifier
from orchestrator.hosts.systemd.sd_notify import ServiceNotifications
from orchestrator.rundir.history_index import HistoryIndexer, read_history, rotate_journal
from orchestrator.rundir.journal import Journal
from orchestrator.rundir.lock import RunLock
from orchestrator.rundir.metrics_end import last_recorded_step
from orchestrator.spare.pool import SparePool
from orchestrator.supervisor.adoption import Adoption
from orchestrator.supervisor.attempt.unrelated_processes import UnrelatedProcesses
from orchestrator.supervisor.checkpoints.catalog import CheckpointCatalog
from orchestrator.supervisor.checkpoints.fdstore import FdStore
from orchestrator.supervisor.checkpoints.snapshot_write_queue import SnapshotWriteQueue
from orchestrator.supervisor.coordinator import Coordinator
from orchestrator.supervisor.judge import Judge
from orchestrator.supervisor.live_status import LiveStatus
from orchestrator.supervisor.message_handlers import (
    CommandLineMessages,
    MessageHandlers,
    TrainerMessages,
)
from orchestrator.supervisor.publishing import Publisher
from orchestrator.supervisor.recovery.failure_budget import FailureBudget, TotalLimits
from orchestrator.supervisor.run_facts import RunFacts
from orchestrator.supervisor.save_requests import SaveRequests
from orchestrator.supervisor.session_opening import SessionOpening
from orchestrator.supervisor.stall_watch import StallWatch
from orchestrator.supervisor.stop_request import StopRequest
from orchestrator.supervisor.termination.announcements import Countdown
from orchestrator.supervisor.termination.hang_detector import HangDetector
from orchestrator.supervisor.termination.hang_timeouts import HangTimeouts
from orchestrator.supervisor.termination.stop_ladder import StopLadder
from orchestrator.telemetry.event_hook import EventHook
from orchestrator.telemetry.textfile import Textfile, file_of_run
from orchestrator.terminal.console import Console


@dataclass(frozen=True)
class Parts:
    """What a run was started with, and the parts that supervise it."""

    config: Config
    command: list[str]
    store: Store
    lock: RunLock
    console: Console
    journal: Journal
    facts: RunFacts
    budget: FailureBudget
    spares: SparePool
    catalog: CheckpointCatalog
    save_requests: SaveRequests
    snapshots: SnapshotWriteQueue
    ladder: StopLadder
    hangs: HangDetector
    message_handlers: MessageHandlers
    adoption: Adoption | None
    judge: Judge
    fdstore: FdStore
    service: ServiceNotifications
    textfile: Textfile | None
    host_events: HostEvents
    hook: EventHook
    stalls: StallWatch
    unrelated: UnrelatedProcesses
    coordinator: Coordinator


def wire(
    config: Config,
    command: list[str],
    store: Store,
    lock: RunLock,
    console: Console,
    notifier: Notifier,
) -> Parts:
    """Make all parts of a supervisor for the run in ``store``.

    Raises ConfigError where the journal cannot be read, or there are no GPUs to count.
    """
    journal = Journal(store.run.journal_file)
    rotate_journal(store.run, config.log_size)
    history = read_history(store.run)
    if history.damaged:
        structlog.get_logger().warning(
            "damaged lines in the journal were skipped", lines=history.damaged, path=journal.path
        )
    journal.listeners.append(HistoryIndexer(store.run).on_event)
    stop = StopRequest(config.grace)
    facts = RunFacts.from_history(stop, history)
    journal.listeners.append(facts.goodput.add)
    if facts.was_interrupted:  # before the next trainer goes on in this file
        facts.interrupted_at = last_recorded_step(store.run.metrics_file)
    budget = FailureBudget.from_history(
        config.max_restarts, history, TotalLimits(config.max_attempts, config.give_up_after)
    )
    # A spare is for sessions: it takes over what one has imported.
    spares = SparePool(command, config.spare and config.adopt is None, stop.wanted.is_set)
    checkpoint_journal = CheckpointJournal(journal)
    catalog = CheckpointCatalog(
        store, config.retention, checkpoint_journal, budget, history.published
    )
    save_requests = SaveRequests(facts, is_possible=config.adopt is None)
    publisher = Publisher(facts, catalog, save_requests, checkpoint_journal)
    snapshots = SnapshotWriteQueue(store, catalog, stop, publisher, config.world_size())
    script_saves = None if config.adopt is None else OngoingSaves(config.adopt)
    ladder = StopLadder(facts, snapshots, journal, Countdown(console.set_footer), script_saves)
    hangs = HangDetector(facts, HangTimeouts(config.hang_timeout), snapshots, ladder, journal)
    status = LiveStatus(facts, store, catalog, snapshots, spares, journal)
    message_handlers = MessageHandlers(
        facts,
        SessionOpening(config, command, store, facts, snapshots),
        TrainerMessages(facts, publisher, ladder, snapshots, spares, journal),
        CommandLineMessages(facts, status, ladder, save_requests),
    )
    adoption = None
    if config.adopt is not None:
        adoption = Adoption(
            config.adopt,
            SealStore(store, config.adopt),
            facts,
            catalog,
            publisher,
            checkpoint_journal,
        )
    judge = Judge(budget, catalog, snapshots, facts, journal, command)
    service = ServiceNotifications(
        notifier, status.status, stop.wanted.is_set, snapshots.heartbeat, status.heartbeats
    )
    textfile = None
    if config.metrics_file is not None:
        textfile = Textfile(file_of_run(config.metrics_file, store.run_id), status.status)
    host_events = HostEvents(
        config,
        store.run,
        journal,
        lambda: facts.save_seconds,
        ladder.on_notice,
    )
    hook = EventHook(config.on_event, store.run, host_events.subprocesses)
    stalls = StallWatch(facts, journal, config.every)
    journal.listeners += [hook.on_journal_event, stalls.on_journal_event]
    return Parts(
        config=config,
        command=command,
        store=store,
        lock=lock,
        console=console,
        journal=journal,
        facts=facts,
        budget=budget,
        spares=spares,
        catalog=catalog,
        save_requests=save_requests,
        snapshots=snapshots,
        ladder=ladder,
        hangs=hangs,
        message_handlers=message_handlers,
        adoption=adoption,
        judge=judge,
        fdstore=FdStore(notifier),
        service=service,
        textfile=textfile,
        host_events=host_events,
        hook=hook,
        stalls=stalls,
        unrelated=UnrelatedProcesses(spares, host_events.subprocesses),
        coordinator=Coordinator(config, facts, snapshots, publisher),
    )
