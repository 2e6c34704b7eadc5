"""The child's side of `compute`: runs one payload's `main` and reports its progress, figures and refusals.

`python -m resources.payload MODULE` reads the spec that the parent passes through Dagster Pipes.
"""

import importlib
import json
import os
import resource
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

from dagster_pipes import PipesContext, open_dagster_pipes

MODEL = "model"  # the folder of a trained model among the files of its MLflow run
FIGURES = "figures.json"  # beside the output; once it is there, the output is whole


class Refusal(Exception):
    """Input that a payload cannot use. The message says what was given, what was expected and what to do."""


class PayloadRun:
    """What a payload may use of its surroundings.

    `output` is an empty folder for the artifact. `state` is a folder that survives a kill, for checkpoints.
    """

    def __init__(self, work: Path, pipes: PipesContext | None = None):
        self.output = work / "output"
        self.state = work / "state"
        shutil.rmtree(self.output, ignore_errors=True)
        self.output.mkdir(parents=True)
        self.state.mkdir(exist_ok=True)
        self._pipes = pipes
        self._tracked_run = os.environ.get("MLFLOW_RUN_ID")

    def log(self, text: str) -> None:
        """Report a line of progress."""
        if self._pipes is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self._pipes.log.info(text)

    def metrics(self, step: int, **values: float) -> None:
        """Record a point of the training curves in MLflow, where a run is tracked."""
        if self._tracked_run:
            import mlflow

            client = mlflow.MlflowClient()
            now = int(time.time() * 1000)
            points = [mlflow.entities.Metric(name, value, now, step) for name, value in values.items()]
            client.log_batch(self._tracked_run, metrics=points)

    def parameters(self, **values: Any) -> None:
        """Record the settings of a training run in MLflow, where a run is tracked."""
        if self._tracked_run:
            import mlflow

            parameters = [mlflow.entities.Param(name, str(value)[:500]) for name, value in values.items()]
            mlflow.MlflowClient().log_batch(self._tracked_run, params=parameters)

    def trial(
        self, name: str, parameters: dict[str, Any], metrics: dict[str, float], seconds: float, error: str | None
    ) -> None:
        """Record a finished trial of a search, which took `seconds`, as a run of its own below the tracked one."""
        if self._tracked_run:
            import mlflow

            client, now = mlflow.MlflowClient(), int(time.time() * 1000)
            parent = client.get_run(self._tracked_run).info
            tags = {
                "mlflow.parentRunId": parent.run_id,
                "mlflow.runName": name,
                **({"error": error[:5000]} if error else {}),
            }
            trial = client.create_run(parent.experiment_id, now - int(1000 * seconds), tags).info.run_id
            client.log_batch(
                trial,
                metrics=[mlflow.entities.Metric(key, value, now, 0) for key, value in metrics.items()],
                params=[mlflow.entities.Param(key, str(value)) for key, value in parameters.items()],
            )
            client.set_terminated(trial, "FAILED" if error else "FINISHED")

    def keep_model(self, folder: Path) -> None:
        """Record a trained model's files in MLflow, where a run is tracked."""
        if self._tracked_run:
            import mlflow

            mlflow.MlflowClient().log_artifacts(self._tracked_run, str(folder), MODEL)


def _end_with_parent(parent: int) -> None:
    """A payload whose parent was killed must not go on writing where the next run works."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def run_payload(name: str) -> int:
    """Run the payload `name` with the spec that the parent passed; return the exit status."""
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    with open_dagster_pipes() as pipes:
        module = importlib.import_module(name)
        run = PayloadRun(Path(pipes.get_extra("work")), pipes)
        try:
            results = module.main(module.Spec.model_validate(pipes.get_extra("spec")), run)
        except Refusal as refusal:
            pipes.report_custom_message({"refusal": str(refusal)})
            return 2
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        aside = run.output.with_name(f"{FIGURES}.aside")
        aside.write_text(json.dumps({**results, "peak_memory_mb": round(peak)}))
        aside.replace(run.output.with_name(FIGURES))
    return 0


if __name__ == "__main__":
    from resources.payload import run_payload  # not this module under another name: `Refusal` must be one class

    sys.exit(run_payload(sys.argv[1]))
