"""The programs that `khmer run` starts beside the model server: Dagster's UI and daemon, and MLflow's UI."""

import os
import sys
from pathlib import Path

from khmer_assets.foundation.home import PROJECT, home
from khmer_assets.foundation.processes import BackgroundProcess, PortInUse, require_free_port
from resources.tracking import tracking_uri

UI_PORT_VARIABLE, UI_PORT = "KHMER_UI_PORT", 3000
MLFLOW_PORT_VARIABLE, MLFLOW_PORT = "KHMER_MLFLOW_PORT", 5000


def start() -> None:
    """Start those that are not running. Raises `PortInUse`."""
    webserver, daemon, mlflow = _services()
    ui_port, mlflow_port = _port(UI_PORT_VARIABLE, UI_PORT), _port(MLFLOW_PORT_VARIABLE, MLFLOW_PORT)
    programs = Path(sys.executable).parent
    local = ["--host", "127.0.0.1", "--port"]
    workspace = ["-w", str(PROJECT / "workspace.yaml")]
    if not webserver.is_running():
        require_free_port(ui_port, "Dagster's UI", f"end that program or set {UI_PORT_VARIABLE} to another port")
        webserver.start([str(programs / "dagster-webserver"), *workspace, *local, str(ui_port)], cwd=PROJECT)
    daemon.start([str(programs / "dagster-daemon"), "run", *workspace], cwd=PROJECT)
    if not mlflow.is_running():
        require_free_port(mlflow_port, "MLflow", f"end that program or set {MLFLOW_PORT_VARIABLE} to another port")
        store = ["--backend-store-uri", tracking_uri(home()), "--workers", "1"]
        mlflow.start(
            [str(programs / "mlflow"), "server", *store, *local, str(mlflow_port)],
            env={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # seven processes for what is not used here
            cwd=home(),
        )


def stop() -> list[str]:
    """End them; the names of those that ran."""
    return [service.name for service in _services() if service.stop()]


def addresses() -> dict[str, str]:
    """Where people find them, by name."""
    return {
        "Dagster": f"http://127.0.0.1:{_port(UI_PORT_VARIABLE, UI_PORT)}",
        "MLflow": f"http://127.0.0.1:{_port(MLFLOW_PORT_VARIABLE, MLFLOW_PORT)}",
    }


def _services() -> tuple[BackgroundProcess, BackgroundProcess, BackgroundProcess]:
    folder = home() / "server"
    return (
        BackgroundProcess(folder, "dagster-webserver"),
        BackgroundProcess(folder, "dagster-daemon"),
        BackgroundProcess(folder, "mlflow"),
    )


def _port(variable: str, default: int) -> int:
    text = os.environ.get(variable) or str(default)
    if not text.isdigit() or not 1024 <= int(text) <= 65535:
        raise PortInUse(f"{variable}: given {text!r}, expected a port between 1024 and 65535")
    return int(text)
