"""What runs by the clock. Schedules are stopped until a user starts them in the UI, for refreshes cost money."""

from collections.abc import Iterator

import dagster as dg

from jobs.stages import REPORT_JOB, SOURCES_JOB


def all_schedules(sources: list[str]) -> list[dg.ScheduleDefinition]:
    """A weekly refresh of every source and a nightly report."""

    @dg.schedule(
        job_name=SOURCES_JOB,
        cron_schedule="0 2 * * 0",
        description="Collects, normalizes and filters every source again; what depends on them shows as stale.",
    )
    def weekly_refresh(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
        day = context.scheduled_execution_time.date().isoformat()
        for source in sources:
            yield dg.RunRequest(run_key=f"{day}-{source}", partition_key=source)

    nightly_report = dg.ScheduleDefinition(
        name="nightly_report",
        job_name=REPORT_JOB,
        cron_schedule="0 3 * * *",
        description="Measures the variants again and writes the benchmark report.",
    )
    return [weekly_refresh, nightly_report]
