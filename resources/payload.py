"""The child's side of `compute`: runs one payload's `main` and reports its progress, figures and refusals.

`python -m resources.payload MODULE` reads the spec that the parent passes through Dagster Pipes. Under torchrun several
of them run the same payload; only the first of them reports, but a refusal of any reaches the user.
"""

import importlib
import json
import os
import resource
import shutil
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import psutil
from dagster_pipes import PipesContext, PipesDefaultContextLoader, PipesEnvVarParamsLoader, open_dagster_pipes

from khmer_assets.foundation.files import write_whole

MODEL = "model"  # the folder of a trained model among the files of its MLflow run
FIGURES = "figures.json"  # beside the output; once it is there, the output is whole
REFUSAL = "refusal.txt"  # beside the output: why the payload refuses its input


class Refusal(Exception):
    """Input that a payload cannot use. The message says what was given, what was expected and what to do."""


class PayloadRun:
    """What a payload may use of its surroundings.

    `output` is an empty folder for the artifact. `state` is a folder that survives a kill, for checkpoints. Where
    several processes work on one artifact, `leads` is true in one of them: it alone writes the output, and what the
    others report is not passed on.
    """

    def __init__(self, work: Path, pipes: PipesContext | None = None):
        self.output = work / "output"
        self.state = work / "state"
        self.leads = os.environ.get("RANK", "0") == "0"
        if self.leads:
            shutil.rmtree(self.output, ignore_errors=True)
            self.output.mkdir(parents=True)
        self.state.mkdir(parents=True, exist_ok=True)
        self._pipes = pipes
        self._tracked_run = os.environ.get("MLFLOW_RUN_ID") if self.leads else None

    def log(self, text: str) -> None:
        """Report a line of progress."""
        if not self.leads:
            return
        if self._pipes is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self._pipes.log.info(text)

    def metrics(self, points: Mapping[int, Mapping[str, float]]) -> None:
        """Record points of the training curves, by step, in MLflow, where a run is tracked; all in one request."""
        if self._tracked_run:
            import mlflow

            client = mlflow.MlflowClient()
            now = int(time.time() * 1000)
            metrics = [
                mlflow.entities.Metric(name, value, now, step)
                for step, values in points.items()
                for name, value in values.items()
            ]
            client.log_batch(self._tracked_run, metrics=metrics)

    def parameters(self, **values: Any) -> None:
        """Record the settings of a training run in MLflow, where a run is tracked."""
        if self._tracked_run:
            import mlflow

            parameters = [mlflow.entities.Param(name, str(value)[:500]) for name, value in values.items()]
            mlflow.MlflowClient().log_batch(self._tracked_run, params=parameters)

    def tag(self, name: str, value: str) -> None:
        """Tag the run in MLflow, where a run is tracked."""
        if self._tracked_run:
            import mlflow

            mlflow.MlflowClient().set_tag(self._tracked_run, name, value[:5000])

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


def _end_with_parents(parents: list[int]) -> None:
    """A payload whose parent was killed must not go on writing where the next run works. Torchrun is a parent that
    would go on too when its own is killed."""
    while _parents(len(parents)) == parents:
        time.sleep(0.5)
    os._exit(1)


def _parents(count: int) -> list[int]:
    found = [os.getppid()]
    with suppress(psutil.NoSuchProcess):
        found += [parent.pid for parent in psutil.Process().parents()[1:count]]
    return found


def run_payload(name: str) -> int:
    """Run the payload `name` with the spec that the parent passed; return the exit status."""
    parents = _parents(2 if "TORCHELASTIC_RUN_ID" in os.environ else 1)
    threading.Thread(target=_end_with_parents, args=(parents,), daemon=True).start()
    leads = os.environ.get("RANK", "0") == "0"
    with open_dagster_pipes() if leads else nullcontext() as pipes:
        extras = pipes.extras if pipes else _extras()
        # Transformers imports scikit-learn where it is there, which takes a fifth of its own import, for a way of
        # generating that no payload asks for. It is there because MLflow needs it.
        sys.modules["sklearn"] = None  # type: ignore[assignment]  # so Python marks what must not be imported
        module = importlib.import_module(name)
        run = PayloadRun(Path(extras["work"]), pipes)
        try:
            results = module.main(module.Spec.model_validate(extras["spec"]), run)
        except Refusal as refusal:
            run.output.with_name(REFUSAL).write_text(str(refusal))
            return 2
        if leads:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            write_whole(run.output.with_name(FIGURES), json.dumps({**results, "peak_memory_mb": round(peak)}))
    return 0


def _extras() -> Mapping[str, Any]:
    """What the parent passes, for a process that reports nothing."""
    parameters = PipesEnvVarParamsLoader().load_context_params()  # type: ignore[no-untyped-call]
    with PipesDefaultContextLoader().load_context(parameters) as context:
        return context["extras"] or {}


if __name__ == "__main__":
    from resources.payload import run_payload  # not this module under another name: `Refusal` must be one class

    sys.exit(run_payload(sys.argv[1]))
