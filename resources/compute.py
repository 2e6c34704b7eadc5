"""Runs heavy work in a child process and streams what it reports back into the run.

A payload is a module with a pydantic `Spec` and `main(spec, run)`; it knows nothing of Dagster or of where it runs.
"""

import fcntl
import glob
import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import dagster as dg
from pydantic import BaseModel

from khmer_assets.foundation import environments
from khmer_assets.foundation.files import remove_unused
from khmer_assets.foundation.home import PROJECT
from khmer_assets.foundation.processes import PATIENT_THREADS, how_it_ended
from khmer_assets.foundation.settings import digest_of
from khmer_assets.foundation.workers import cores
from resources.payload import FIGURES, REFUSAL

LAUNCH_VARIABLE = "KHMER_LAUNCH"


class Compute(dg.ConfigurableResource):
    """This machine. Payloads work in `<home>/work`, one folder an artifact and spec, so that a killed one resumes.

    `launch` is how a payload is started that can share its work (its module says `DISTRIBUTED = True`): on so many
    processes of this machine, or "auto" for as many as it has GPUs; or the beginning of a command line, such as
    "srun --nodes 2 torchrun --nnodes 2 ...", that starts `-m MODULE ...`, which is put behind it, on several machines.
    They need the same files under the same paths, and the environment.
    """

    home: str
    launch: str = "auto"

    def materialize(
        self, context: dg.AssetExecutionContext, payload: str, spec: BaseModel, env: dict[str, str] | None = None
    ) -> Iterator[dg.Output[Path]]:
        """The folder that `payload` writes, as the asset's output: `yield from compute.materialize(...)`."""
        with self.run(context, payload, spec, env) as folder:
            yield dg.Output(folder)

    @contextmanager
    def run(
        self, context: dg.AssetExecutionContext, payload: str, spec: BaseModel, env: dict[str, str] | None = None
    ) -> Iterator[Path]:
        """Run `payload` (a module's name) with `spec`; the block gets the folder that it wrote, and yields the output.

        Dagster commits an output before it lets the asset go on. So what the payload wrote, and its checkpoints, are
        removed when the block ends, and stay when the commit fails or is killed: the next run commits what is
        whole, and does not make it again. Until the block ends, no other process materializes the artifact.

        The figures that the payload returns become metadata of the asset. Raises `dg.Failure` with the payload's own
        message when it refuses its input, and with the end of its output when it breaks.
        """
        asset = context.asset_key.to_python_identifier()
        place = Path(self.home) / "work" / asset / (context.partition_key if context.has_partition_key else "all")
        place.mkdir(parents=True, exist_ok=True)
        code_version = context.assets_def.code_versions_by_key.get(context.asset_key)
        work = place / digest_of([payload, code_version, spec.model_dump(mode="json")])[:16]
        with (place / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise dg.Failure(f"another process is materializing this artifact (it holds {lock.name})") from None
            for former in place.iterdir():
                if former.is_dir() and former != work:
                    shutil.rmtree(former, ignore_errors=True)
            if (work / FIGURES).exists():
                context.log.info("an earlier run has made this but could not commit it; committing it now")
            else:
                work.mkdir(exist_ok=True)
                (work / REFUSAL).unlink(missing_ok=True)
                _run_in_child(context, _command(payload, self.launch), spec, env or {}, work, lock)
            figures = json.loads((work / FIGURES).read_text())
            context.add_output_metadata(
                {name: dg.MetadataValue.md(v) if _is_markdown(v) else v for name, v in figures.items()},
                output_name="result",  # an asset's own name for it; those that yield checks too have more outputs
            )
            yield work / "output"
            remove_unused(work)  # at once: what is half removed must not be taken for what is half made


def _a_core_for_builds() -> dict[str, str]:
    """What leaves a core to the environments that `make run` still builds: they are waited for in the end, and threads
    that share a core with them hold up the others. A training takes it when they are built."""
    if "OMP_NUM_THREADS" in os.environ or cores() == 1 or not environments.builds_go_on():
        return {}
    return {"OMP_NUM_THREADS": str(cores() - 1), environments.SPARED_CORE_VARIABLE: "1"}


def _run_in_child(
    context: dg.AssetExecutionContext,
    command: list[str],
    spec: BaseModel,
    env: dict[str, str],
    work: Path,
    lock: IO[str],
) -> None:
    with (
        (work.parent / "log").open("w+") as log,
        dg.open_pipes_session(
            context=context,
            context_injector=dg.PipesEnvContextInjector(),
            message_reader=dg.PipesTempFileMessageReader(),
            extras={"spec": spec.model_dump(mode="json"), "work": str(work)},
        ) as session,
    ):
        process = subprocess.Popen(
            command,
            cwd=PROJECT,
            env={**PATIENT_THREADS, **_a_core_for_builds(), **os.environ, **env, **session.get_bootstrap_env_vars()},
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
        if code != 0:
            refused = work / REFUSAL
            log.seek(0)
            ending = "".join(log.readlines()[-40:])
            raise dg.Failure(
                refused.read_text()
                if refused.exists()
                else f"{command[-1]} {how_it_ended(code)}; the end of its output:\n{ending}",
                metadata={"log": dg.MetadataValue.path(log.name)},
                allow_retries=not refused.exists(),
            )


def _command(payload: str, launch: str) -> list[str]:
    """How a payload is started. Torchrun ends all processes when one ends without success."""
    alone = [sys.executable, "-m", "resources.payload", payload]
    if not getattr(importlib.import_module(payload), "DISTRIBUTED", False):
        return alone
    if launch == "auto":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        # asking torch would take seconds
        count = len(glob.glob("/dev/nvidia[0-9]*") if visible is None else list(filter(None, visible.split(","))))
    elif launch.isdecimal() and int(launch):
        count = int(launch)
    else:
        return [*_launcher(launch), *alone[1:]]
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m"]
    return [sys.executable, "-m", *torchrun, *alone[2:]] if count > 1 else alone


def _launcher(launch: str) -> list[str]:
    try:
        words = shlex.split(launch)
    except ValueError:  # a quotation mark without its end
        words = []
    if not words or shutil.which(words[0]) is None:
        raise dg.Failure(
            f'launch is {launch!r}; expected "auto", a number of processes, or a command such as "srun --nodes 2 '
            'torchrun ..." whose program is on the PATH',
            allow_retries=False,
        )
    return words


def _is_markdown(value: Any) -> bool:
    return isinstance(value, str) and ("|" in value or "![" in value)
