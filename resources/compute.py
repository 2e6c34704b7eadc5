"""Runs heavy work in a child process and streams what it reports back into the run.

A payload is a module with a pydantic `Spec` and `main(spec, run)`; it knows nothing of Dagster or of where it runs.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import BaseModel

from khmer_assets.foundation.home import PROJECT


class Compute(dg.ConfigurableResource):
    """This machine. Payloads work in `<home>/work`, one folder an artifact and spec, so that a killed one resumes."""

    home: str

    def run(
        self, context: dg.AssetExecutionContext, payload: str, spec: BaseModel, env: dict[str, str] | None = None
    ) -> dg.Output[Path]:
        """Run `payload` (a module's name) with `spec`; return the folder that it wrote, as the asset's output.

        The figures that the payload returns become metadata of the asset. Raises `dg.Failure` with the payload's own
        message when it refuses its input, and with the end of its output when it breaks.
        """
        partition = context.partition_key if context.has_partition_key else "all"
        work = work_folder(Path(self.home), context.asset_key.to_python_identifier(), partition, spec)
        with (work / "lock").open("w") as lock, (work / "log").open("w+") as log:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise dg.Failure(f"another process is materializing this artifact (it holds {lock.name})") from None
            with dg.open_pipes_session(
                context=context,
                context_injector=dg.PipesEnvContextInjector(),
                message_reader=dg.PipesTempFileMessageReader(),
                extras={"spec": spec.model_dump(mode="json"), "work": str(work)},
            ) as session:
                process = subprocess.Popen(
                    [sys.executable, "-m", "resources.payload", payload],
                    cwd=PROJECT,
                    env={**os.environ, **(env or {}), **session.get_bootstrap_env_vars()},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=[lock.fileno()],  # the lock lives as long as the payload, also when this process dies
                )
                try:
                    code = process.wait()
                finally:
                    if process.poll() is None:
                        process.terminate()
                        process.wait()
            messages: dict[str, Any] = {}
            for message in session.get_custom_messages():
                messages.update(message)
            if code != 0:
                log.seek(0)
                ending = "".join(log.readlines()[-40:])
                raise dg.Failure(
                    messages.get("refusal") or f"{payload} ended with status {code}; the end of its output:\n{ending}",
                    metadata={"log": dg.MetadataValue.path(log.name)},
                    allow_retries="refusal" not in messages,
                )
        context.add_output_metadata(
            {name: dg.MetadataValue.md(v) if _is_markdown(v) else v for name, v in messages["results"].items()}
        )
        shutil.rmtree(work / "state")
        return dg.Output(work / "output")


def work_folder(home: Path, asset: str, partition: str, spec: BaseModel) -> Path:
    """The working folder of an artifact for exactly this spec; those for other specs are removed."""
    digest = hashlib.sha256(spec.model_dump_json().encode()).hexdigest()[:16]
    parent = home / "work" / asset / partition
    parent.mkdir(parents=True, exist_ok=True)
    for other in parent.iterdir():
        if other.name != digest:
            shutil.rmtree(other, ignore_errors=True)
    work = parent / digest
    work.mkdir(exist_ok=True)
    return work


def _is_markdown(value: Any) -> bool:
    return isinstance(value, str) and ("|" in value or "![" in value)
