"""A new release is deployed once; nothing new, nothing done."""

from pathlib import Path

import dagster as dg
import pytest

from khmer_assets.server.state import ModelVersion, ServerState
from resources.model_server import ModelServer
from resources.storage import FoldersIOManager
from sensors.redeploy import keep_serving_sensor, redeploy_sensor


class Releases:
    """A graph of a release and what serves it, and the redeploy sensor that keeps its cursor between ticks."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance):
        self.folder = folder
        self.instance = instance
        self.text = "ទី១"
        self.refused = False
        self.cursor: str | None = None

    def definitions(self) -> dg.Definitions:
        @dg.asset(io_manager_key="folders")
        def release() -> Path:
            if self.refused:
                raise dg.Failure("a gate is not met")
            made = self.folder / "made"
            made.mkdir(exist_ok=True)
            (made / "model").write_text(self.text)
            return made

        @dg.asset(deps=[release])
        def served_model() -> None: ...

        storage = FoldersIOManager(root=str(self.folder / "store"), cache=str(self.folder / "cache"))
        deploy = dg.define_asset_job("deploy", dg.AssetSelection.assets("served_model"))
        return dg.Definitions(
            [release, served_model],
            jobs=[deploy],
            sensors=[redeploy_sensor("redeploy", "release", deploy)],
            resources={"folders": storage},
        )

    def materialize(self) -> str | None:
        """Materialize `release`; return its digest, or None when it is refused."""
        job = self.definitions().resolve_implicit_global_asset_job_def()
        result = job.execute_in_process(
            instance=self.instance, asset_selection=[dg.AssetKey("release")], raise_on_error=False
        )
        if not result.success:
            return None
        (event,) = result.get_asset_materialization_events()
        return str(event.materialization.metadata["digest"].value)

    def tick(self) -> list[dg.RunRequest]:
        repository = self.definitions().get_repository_def()
        context = dg.build_sensor_context(self.instance, cursor=self.cursor, repository_def=repository)
        tick = repository.get_sensor_def("redeploy").evaluate_tick(context)
        self.cursor = tick.cursor
        return list(tick.run_requests or [])


@pytest.fixture
def releases(tmp_path):
    with dg.DagsterInstance.ephemeral() as instance:
        yield Releases(tmp_path, instance)


def test_nothing_is_deployed_before_the_first_release(releases):
    assert releases.tick() == []


def test_a_new_release_is_deployed_once_by_its_digest(releases):
    for releases.text in ("ទី១", "ទី២"):
        digest = releases.materialize()
        (request,) = releases.tick()
        assert digest is not None
        assert request.run_key is not None
        assert request.run_key.startswith(digest)
        assert releases.tick() == []


def test_going_back_to_an_earlier_release_is_a_deployment_too(releases):
    keys = set()
    for releases.text in ("ទី១", "ទី២", "ទី១"):
        releases.materialize()
        keys |= {request.run_key for request in releases.tick()}
    assert len(keys) == 3


def test_a_refused_release_deploys_nothing(releases):
    releases.materialize()
    releases.tick()
    releases.refused = True
    assert releases.materialize() is None
    assert releases.tick() == []


def test_adapters_wait_for_a_release_and_are_then_all_deployed(tmp_path):
    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(["numbers", "dates"]))
    def adapter_release(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        return dg.MaterializeResult(metadata={"digest": f"{context.partition_key}-{len(context.run_id)}"})

    job = dg.define_asset_job("deploy_adapter", dg.AssetSelection.assets(adapter_release))
    sensor = redeploy_sensor("redeploy_adapter", "adapter_release", job, on_release=True)
    server = ModelServer(home=str(tmp_path), port=8000)
    defs = dg.Definitions([adapter_release], jobs=[job], sensors=[sensor], resources={"model_server": server})
    with dg.DagsterInstance.ephemeral() as instance:

        def tick(cursor: str | None = None):
            repository, resources = defs.get_repository_def(), {"model_server": server}
            return sensor.evaluate_tick(
                dg.build_sensor_context(instance, cursor=cursor, repository_def=repository, resources=resources)
            )

        for partition in ("numbers", "dates", "numbers"):
            dg.materialize([adapter_release], instance=instance, partition_key=partition)
        assert "no release is served yet" in tick().skip_message
        ServerState(release=ModelVersion(digest="a" * 16, max_model_length=8)).write(tmp_path / "server")
        found = tick()
        assert sorted(request.partition_key for request in found.run_requests) == ["dates", "numbers"]
        assert tick(found.cursor).skip_message == "no new adapter_release"


def test_the_sensor_runs_without_being_switched_on(releases):
    sensor = releases.definitions().get_repository_def().get_sensor_def("redeploy")
    assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
    assert sensor.job_name == "deploy"


def test_nothing_is_started_that_was_never_deployed(tmp_path):
    context = dg.build_sensor_context(resources={"model_server": ModelServer(home=str(tmp_path), port=8000)})
    skipped = keep_serving_sensor()(context)
    assert isinstance(skipped, dg.SkipReason)
    assert skipped.skip_message == "nothing to do"
