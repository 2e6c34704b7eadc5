"""The programs that `khmer run` starts beside the model server: Dagster's UI and daemon, the one server that tells both
of the graph, and MLflow's UI.
"""

import os
import sys
from pathlib import Path

import yaml

from khmer_assets.commands.steps import GRAPH
from khmer_assets.foundation.home import PROJECT, home
from khmer_assets.foundation.processes import BackgroundProcess, PortInUse, require_free_port
from khmer_assets.foundation.settings import digest_of
from khmer_assets.recipe import RECIPE_VARIABLE, Recipe
from resources.instance import dagster_home, open_instance
from resources.tracking import tracking_uri

UI_PORT_VARIABLE, UI_PORT = "KHMER_UI_PORT", 3000
MLFLOW_PORT_VARIABLE, MLFLOW_PORT = "KHMER_MLFLOW_PORT", 5000
OTHER_PORT = "end that program (`make stop`, if it is the run of another home), or name another port by {}"
LONGEST_SOCKET = 107  # bytes of its path


def start(recipe: Recipe) -> None:
    """Start those that are not running; what tells of the graph also when the recipe or its catalogue has changed.

    Raises `PortInUse`, and has started nothing then.
    """
    code, webserver, daemon, mlflow = _services()
    ui_port, mlflow_port = _port(UI_PORT_VARIABLE, UI_PORT), _port(MLFLOW_PORT_VARIABLE, MLFLOW_PORT)
    if not webserver.is_running():
        require_free_port(ui_port, "Dagster's UI", OTHER_PORT.format(UI_PORT_VARIABLE))
    if not mlflow.is_running():
        require_free_port(mlflow_port, "MLflow", OTHER_PORT.format(MLFLOW_PORT_VARIABLE))
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    socket = folder / "graph.sock"
    if len(str(socket).encode()) > LONGEST_SOCKET:
        raise PortInUse(
            f"{socket}: longer than the {LONGEST_SOCKET} bytes of a socket's name; choose a shorter KHMER_HOME"
        )
    programs = Path(sys.executable).parent
    local = ["--host", "127.0.0.1", "--port"]
    open_instance(home())  # three of them would make its databases at once
    dagster = {"DAGSTER_HOME": str(dagster_home(home()))}
    _end_former_graph(code, recipe)
    code.start(
        [str(programs / "dagster"), "code-server", "start", "--socket", str(socket), "--module-name", GRAPH],
        env=dagster,
        cwd=PROJECT,
    )
    workspace = folder / "workspace.yaml"
    location = {"grpc_server": {"socket": str(socket), "location_name": GRAPH}}
    workspace.write_text(yaml.safe_dump({"load_from": [location]}))
    webserver.start(
        [str(programs / "dagster-webserver"), "-w", str(workspace), *local, str(ui_port)], env=dagster, cwd=PROJECT
    )
    daemon.start([str(programs / "dagster-daemon"), "run", "-w", str(workspace)], env=dagster, cwd=PROJECT)
    store = ["--backend-store-uri", tracking_uri(home()), "--workers", "1"]
    mlflow.start(
        [str(programs / "mlflow"), "server", *store, *local, str(mlflow_port)],
        env={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # seven processes for what is not used here
        cwd=home(),
    )


def _end_former_graph(code: BackgroundProcess, recipe: Recipe) -> None:
    """End the server that tells of the graph when it was started with another recipe or catalogue."""
    sources = [source.model_dump(mode="json") for source in recipe.sources.values()]
    shown = digest_of([os.environ.get(RECIPE_VARIABLE), recipe.model_dump(mode="json"), sources])
    file = _folder() / "graph.digest"
    if file.exists() and file.read_text() != shown:
        code.stop()
    file.write_text(shown)


def stop() -> list[str]:
    """End them; the names of those that ran."""
    return [service.name for service in _services() if service.stop()]


def addresses() -> dict[str, str]:
    """Where people find them, by name."""
    return {
        "Dagster": f"http://127.0.0.1:{_port(UI_PORT_VARIABLE, UI_PORT)}",
        "MLflow": f"http://127.0.0.1:{_port(MLFLOW_PORT_VARIABLE, MLFLOW_PORT)}",
    }


def _folder() -> Path:
    return home() / "server"


def _services() -> tuple[BackgroundProcess, BackgroundProcess, BackgroundProcess, BackgroundProcess]:
    folder = _folder()
    return (
        BackgroundProcess(folder, "dagster-code-server"),
        BackgroundProcess(folder, "dagster-webserver"),
        BackgroundProcess(folder, "dagster-daemon"),
        BackgroundProcess(folder, "mlflow"),
    )


def _port(variable: str, default: int) -> int:
    text = os.environ.get(variable) or str(default)
    if not text.isdigit() or not 1024 <= int(text) <= 65535:
        raise PortInUse(f"{variable}: given {text!r}, expected a port between 1024 and 65535")
    return int(text)
