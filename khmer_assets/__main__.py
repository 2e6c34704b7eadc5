"""The command line: `python -m khmer_assets COMMAND`, of which `--help` tells.

`run` brings the graph up to date and everything up; the Makefile calls it.
"""

import argparse
import os
import resource
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path

import dagster as dg

from jobs.materialize import MaterializationError, Summary, materialize, materialize_stale
from khmer_assets.recipe import Recipe, RecipeError
from khmer_assets.serving.assets import deploy, load_adapter, model_server
from khmer_assets.serving.client import ask
from khmer_assets.serving.keys import KeyFile
from resources.engines import MODEL_NAME, kept_model
from resources.home import HOME_VARIABLE, PROJECT, home
from resources.instance import open_instance
from resources.model_server import ModelServer, ModelServerError
from resources.processes import BackgroundProcess, PortInUse, require_free_port
from resources.storage import MissingArtifact, Store, store_root
from resources.tracking import mark_served, tracking_uri

UI_PORT_VARIABLE, UI_PORT = "KHMER_UI_PORT", 3000
MLFLOW_PORT_VARIABLE, MLFLOW_PORT = "KHMER_MLFLOW_PORT", 5000


def main() -> int:
    """Parse the command line and carry it out; a user's mistake ends with one message and status 2."""
    parser = argparse.ArgumentParser(prog="python -m khmer_assets", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", help="bring everything up to date, start the servers and ask the model a question")
    commands.add_parser("stop", help="end the servers that `run` started")
    commands.add_parser("ask", help="ask the served model").add_argument("question")
    commands.add_parser("resume", help="serve the last release again, after a restart of the machine")
    commands.add_parser("rollback", help="serve the release before the present one")
    adapters = commands.add_parser("adapters", help="adapters of the served model").add_subparsers(
        dest="action", required=True
    )
    adapters.add_parser("list", help="show those that are served")
    adapters.add_parser("retire", help="serve one no longer").add_argument("name")
    commands.add_parser("benchmark", help="put load on the served model and measure what users see")
    commands.add_parser("tune", help="search the engine's best settings for the next deployment")
    keys = commands.add_parser("keys", help="API keys of users").add_subparsers(dest="action", required=True)
    create = keys.add_parser("create", help="make a key; it is shown once")
    create.add_argument("name", help="whose it is")
    create.add_argument("--tier", default="standard", help="one of the recipe's serving.gateway.tiers")
    keys.add_parser("list", help="show all keys")
    keys.add_parser("revoke", help="end a key").add_argument("id")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=dg.BetaWarning)
    warnings.filterwarnings("ignore", category=dg.PreviewWarning)
    os.environ[HOME_VARIABLE] = str(home())  # one place for the processes that are started from here
    try:
        if arguments.command == "run":
            return run()
        if arguments.command == "stop":
            return stop()
        if arguments.command == "rollback":
            digest = _server(Recipe.current()).rollback()
            mark_served(home(), MODEL_NAME, digest, kept_model(home() / "server", digest))
            print(f"served is now {digest}")
            return 0
        if arguments.command == "resume":
            _server(Recipe.current()).resume()
            return 0
        if arguments.command == "adapters":
            return change_adapters(arguments)
        if arguments.command == "benchmark":
            return measure("serving_benchmark", "benchmark.md")
        if arguments.command == "tune":
            return measure("serving_tuning", "tuning.md")
        if arguments.command == "keys":
            return change_keys(arguments)
        print(_ask(Recipe.current(), arguments.question))
        return 0
    except (RecipeError, PortInUse, ModelServerError, MaterializationError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the next run goes on from here", file=sys.stderr)
        return 130


def run() -> int:
    """Materialize what is stale, start what is not running, ask the served model the recipe's question."""
    from khmer_assets.definitions import build_definitions

    started = time.monotonic()
    recipe = Recipe.current()
    defs = build_definitions(recipe)
    instance = open_instance(home())
    start_servers()
    summary = materialize_stale(defs, instance)
    _tell(summary, time.monotonic() - started)
    store = Store(store_root(home()), home() / "cache")
    try:
        release = store.current("release")
    except MissingArtifact:
        print("There is no release to serve yet; the lines above say why.", file=sys.stderr)
        return 1
    server = _server(recipe)
    if server.rolled_back() == release.name:
        print(f"release {release.name[:12]} was rolled back; materialize served_model to serve it all the same")
        server.resume()
    else:
        deploy(server, release, recipe)
    for adapter in recipe.adapters:
        with suppress(MissingArtifact):
            found = store.current("adapter_release", adapter.name)
            if not server.was_retired(found.name):
                load_adapter(server, found)
    print(f"\n  question   {recipe.serving.question}\n  answer     {_ask(recipe, recipe.serving.question)}\n")
    print(f"  Dagster    http://127.0.0.1:{_port(UI_PORT_VARIABLE, UI_PORT)}")
    print(f"  MLflow     http://127.0.0.1:{_port(MLFLOW_PORT_VARIABLE, MLFLOW_PORT)}")
    print(f"  model      {server.base_url}  (key in {server.key_file})")
    print(f"  chat page  {server.address}")
    print(f"  report     {store.current('benchmark_report') / 'report.md'}\n")
    return 1 if summary.failed else 0


def stop() -> int:
    """End the servers. The artifacts stay."""
    stopped = [service.name for service in _services() if service.stop()]
    if _server(Recipe.current()).stop():
        stopped.append("model server")
    print(f"stopped: {', '.join(stopped) or 'nothing was running'}")
    return 0


def change_adapters(arguments: argparse.Namespace) -> int:
    """List or retire the adapters of the served model."""
    server = _server(Recipe.current())
    if arguments.action == "retire":
        server.retire_adapter(arguments.name)
    for adapter in server.adapters():
        print("  ".join(adapter.names))
    return 0


def measure(asset: str, report: str) -> int:
    """Materialize an asset that is made on demand and print its report."""
    from khmer_assets.definitions import build_definitions

    materialize(build_definitions(Recipe.current()), open_instance(home()), asset)
    folder = Store(store_root(home()), home() / "cache").current(asset)
    print(f"\n{(folder / report).read_text()}\n{folder}")
    return 0


def change_keys(arguments: argparse.Namespace) -> int:
    """Create, list or revoke API keys."""
    recipe = Recipe.current()
    keys = KeyFile(home() / "server")
    if arguments.action == "create":
        if arguments.tier not in (tiers := recipe.serving.gateway.tiers):
            raise RecipeError(f"--tier: given {arguments.tier!r}, expected one of {', '.join(tiers)}")
        key, text = keys.create(arguments.name, arguments.tier)
        print(f"{text}\n(id {key.id}, tier {key.tier}; it is not shown again)")
    elif arguments.action == "revoke":
        try:
            print(f"revoked: {keys.revoke(arguments.id).name}")
        except LookupError as error:
            print(error.args[0], file=sys.stderr)
            return 2
    else:
        for key in keys.all():
            state = f"revoked {key.revoked:%Y-%m-%d}" if key.revoked else "valid"
            print(f"{key.id}  {key.tier:12}  {key.created:%Y-%m-%d}  {state:18}  {key.name}")
    return 0


def start_servers() -> None:
    """Start Dagster's UI and daemon and MLflow's UI, those that are not running."""
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
        uri = tracking_uri(home())
        mlflow.start(
            [
                str(programs / "mlflow"),
                "server",
                "--backend-store-uri",
                uri,
                "--workers",
                "1",
                *local,
                str(mlflow_port),
            ],
            env={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # seven processes for what is not used here
            cwd=home(),
        )


def _services() -> tuple[BackgroundProcess, BackgroundProcess, BackgroundProcess]:
    folder = home() / "server"
    return (
        BackgroundProcess(folder, "dagster-webserver"),
        BackgroundProcess(folder, "dagster-daemon"),
        BackgroundProcess(folder, "mlflow"),
    )


def _server(recipe: Recipe) -> ModelServer:
    return model_server(recipe, home())


def _ask(recipe: Recipe, question: str) -> str:
    server = _server(recipe)
    return ask(question, server.base_url, server.api_key(), max_tokens=recipe.evaluation.max_new_tokens)


def _port(variable: str, default: int) -> int:
    text = os.environ.get(variable) or str(default)
    if not text.isdigit() or not 1024 <= int(text) <= 65535:
        raise PortInUse(f"{variable}: given {text!r}, expected a port between 1024 and 65535")
    return int(text)


def _tell(summary: Summary, seconds: float) -> None:
    usage = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f"\n{len(summary.materialized)} materialized, {summary.fresh} up to date, {seconds:.0f} s, ", end="")
    print(f"largest process {usage / 1024:,.0f} MB")
    for name, reason in summary.failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    for name, reason in summary.held_back.items():
        print(f"held back: {name}, because {reason}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
