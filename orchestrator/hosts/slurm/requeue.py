"""Requeues the SLURM job of a run that has stopped."""

import structlog

from orchestrator.hosts.slurm.scontrol import JobQuery
from orchestrator.rundir.journal import Journal, JournalEvent, utc_now
from orchestrator.rundir.paths import RunDir
from orchestrator.system.durable import write_json


async def requeue(query: JobQuery, run: RunDir, journal: Journal) -> None:
    """Requeue the job, unless SLURM has requeued it already or a user has cancelled it.

    If the requeue fails, write a file in the run directory for the batch script.
    """
    log = structlog.get_logger()
    job = query.job
    await query.update()
    if query.facts is not None and query.facts.restarts > job.restarts:
        log.info("SLURM has requeued the job itself")
        return
    if query.facts is not None and query.facts.is_cancelled:
        log.info("the job was cancelled: it is not requeued")
        return
    result = await query.ask(job.requeue_command)
    if result.status == 0:
        journal.write(JournalEvent.REQUEUED, job=job.name)
        log.info("the job is requeued", job=job.name)
        return
    problem = result.problem or f"scontrol ended with {result.status}"
    journal.write(JournalEvent.REQUEUED, job=job.name, problem=problem)
    log.warning(
        "cannot requeue the job; the batch script can do so, or RequeueExit",
        problem=problem,
        marker=str(run.requeue_file),
    )
    try:
        write_json(run.requeue_file, {"time": utc_now(), "job": job.name, "problem": problem})
    except OSError as error:
        log.warning("cannot write the marker for a requeue", problem=error.strerror)
