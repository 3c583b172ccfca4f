"""How long before a job's end the run has to stop, and what cannot fit: pure functions."""

from orchestrator.hosts.slurm.job import JobFacts, StopTimes
from orchestrator.system.units import duration_text

# Asking for the end once more, and having the job queued again, each wait for the controller.
CONTROLLER_SECONDS = 10.0
# Of a short job at least so much is for training.
LEAST_TRAINING_SHARE = 0.5


def seconds_ahead(job: JobFacts, grace_seconds: float, save_seconds: float) -> float:
    """How long before the job's end to stop it, when a save takes up to ``save_seconds``."""
    wanted = max(grace_seconds, save_seconds) + CONTROLLER_SECONDS
    if job.start is None or job.end is None:
        return wanted
    return min(wanted, (1 - LEAST_TRAINING_SHARE) * max(0.0, job.end - job.start))


def misfits(
    job: JobFacts, times: StopTimes, grace_seconds: float, save_seconds: float
) -> list[str]:
    """What to tell at the start: which of the times are too short for which."""
    found = []
    grace = f"--grace, {duration_text(grace_seconds)}"
    wanted = max(grace_seconds, save_seconds) + CONTROLLER_SECONDS
    if seconds_ahead(job, grace_seconds, save_seconds) < wanted:
        limit = (job.end or 0.0) - (job.start or 0.0)
        found.append(
            f"the job may run for {duration_text(limit)}, and stopping it ahead of the end may "
            f"take {duration_text(wanted)}: half of its time is kept for training, and the stop "
            "may be cut off; give it more time (sbatch --time), or lower --grace"
        )
    wait = times.kill_wait_seconds
    if wait is None:
        return found
    kill = f"SLURM kills {duration_text(wait)} after SIGTERM (KillWait)"
    if wait < grace_seconds:
        text = f"{kill}, which is less than {grace}: a stop without notice may be cut off"
        if times.preemption_grace_seconds:
            more = duration_text(times.preemption_grace_seconds)
            text += f", and a preemption gives {more} more only to those who get its notice"
        found.append(f"{text}; set --grace {wait:g}s")
    if save_seconds > min(wait, grace_seconds):
        found.append(
            f"saving may take {duration_text(save_seconds)}, which is more than a stop has: "
            f"{kill}, and {grace}; stops by signal lose the last steps: raise both"
        )
    return found
