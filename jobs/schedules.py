"""What runs by the clock. But for the clean-up, schedules are stopped until a user starts them, for they cost money."""

from collections.abc import Iterator

import dagster as dg

from jobs.stages import CLEAN_UP_JOB, REPORT_JOB, SNAPSHOT_JOB, SOURCES_JOB


def all_schedules(sources: list[str]) -> list[dg.ScheduleDefinition]:
    """A weekly refresh of every source and a monthly snapshot, where there are sources; a nightly report and a nightly
    clean-up."""

    @dg.schedule(
        job_name=SOURCES_JOB,
        cron_schedule="0 2 * * 0",
        description="Collects, normalizes and filters every source again; the next snapshot takes in what is new.",
    )
    def weekly_refresh(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
        day = context.scheduled_execution_time.date().isoformat()
        for source in sources:
            yield dg.RunRequest(run_key=f"{day}-{source}", partition_key=source)

    monthly_snapshot = dg.ScheduleDefinition(
        name="monthly_snapshot",
        job_name=SNAPSHOT_JOB,
        cron_schedule="0 6 1 * *",
        description="Takes the corpus as it is then for the next training; what is trained on it shows as stale.",
    )
    nightly_report = dg.ScheduleDefinition(
        name="nightly_report",
        job_name=REPORT_JOB,
        cron_schedule="0 3 * * *",
        description="Measures the variants again and writes the benchmark report.",
    )
    nightly_clean_up = dg.ScheduleDefinition(
        name="nightly_clean_up",
        job_name=CLEAN_UP_JOB,
        cron_schedule="0 4 * * *",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Forgets old runs and old copies of models, as the recipe's `history` says.",
    )
    of_sources = [weekly_refresh, monthly_snapshot] if sources else []
    return [*of_sources, nightly_report, nightly_clean_up]
