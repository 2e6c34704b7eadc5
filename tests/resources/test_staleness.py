"""What is stale here is what Dagster's UI calls stale, and a hundred sources are looked at too."""

from dataclasses import dataclass, field

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from resources.staleness import causes, name_of, partitions_of


@dataclass
class Library:
    """Books by source, all of them together, and the poems by themselves; contents and settings can be changed."""

    instance: dg.DagsterInstance
    contents: dict[str, str] = field(default_factory=lambda: {"news": "ព័ត៌មាន", "poems": "កំណាព្យ"})
    setting: str = "1"
    with_index: bool = False

    def definitions(self) -> dg.Definitions:
        sources = dg.StaticPartitionsDefinition(sorted(self.contents))
        one = dg.AssetDep("books", partition_mapping=dg.SpecificPartitionsPartitionMapping(["poems"]))

        @dg.observable_source_asset(partitions_def=sources)
        def files() -> dg.DataVersionsByPartition:
            return dg.DataVersionsByPartition(self.contents)

        @dg.asset(partitions_def=sources, deps=[files], code_version="1")
        def books(context: dg.AssetExecutionContext) -> dg.Output[None]:
            return dg.Output(None, data_version=dg.DataVersion(self.contents[context.partition_key].strip()))

        @dg.asset
        def index() -> None: ...

        @dg.asset(deps=[books, *([index] if self.with_index else [])], code_version=self.setting)
        def library() -> dg.Output[None]:
            return dg.Output(None, data_version=dg.DataVersion("".join(self.contents.values())))

        @dg.asset(deps=[one], code_version="1")
        def anthology() -> None: ...

        return dg.Definitions([files, books, index, library, anthology])

    def make(self, asset: str, *partitions: str) -> None:
        defs = self.definitions()
        job = defs.resolve_implicit_job_def_def_for_assets([dg.AssetKey(asset)])
        assert job is not None
        for partition in partitions or (None,):
            key = [dg.AssetKey(asset)]
            job.execute_in_process(instance=self.instance, partition_key=partition, asset_selection=key)

    def make_all(self) -> None:
        self.make("files")
        self.make("books", *self.contents)
        for asset in ("index", "library", "anthology"):
            self.make(asset)

    def stale(self) -> dict[str, list[str]]:
        """What is stale, and why. Fails where Dagster's own judgment is another."""
        graph = self.definitions().resolve_asset_graph()
        dagsters = CachingStaleStatusResolver(self.instance, graph, LoadingContextForTest(self.instance))
        found = {}
        for key in graph.materializable_asset_keys:
            for partition in partitions_of(graph, key):
                why = causes(self.instance, graph, (key, partition))
                status = dagsters.get_status(key, partition)
                expected = StaleStatus.STALE if why else StaleStatus.FRESH
                assert status == (StaleStatus.MISSING if [c.kind for c in why] == ["missing"] else expected), key
                if why:
                    found[name_of((key, partition))] = [cause.text for cause in why]
        return found


@pytest.fixture
def library():
    with dg.DagsterInstance.ephemeral() as instance:
        yield Library(instance)


def test_what_was_never_made_is_missing_and_what_was_made_is_up_to_date(library):
    assert set(library.stale()) == {"books (news)", "books (poems)", "index", "library", "anthology"}
    library.make_all()
    assert library.stale() == {}


def test_a_change_goes_on_as_far_as_the_content_changes(library):
    library.make_all()
    library.contents["news"] += "ថ្មី"
    library.make("files")
    assert library.stale() == {"books (news)": ["files (news) changed"]}
    library.make("books", "news")
    assert library.stale() == {"library": ["books (news) changed"]}
    library.make("library")
    library.contents["poems"] += " "
    library.make("files")
    library.make("books", "poems")
    assert library.stale() == {}, "the space is not kept"


def test_content_that_came_back_is_no_change(library):
    library.make_all()
    for library.contents["poems"] in ("ផ្សេង", "កំណាព្យ"):
        library.make("files")
        library.make("books", "poems")
    assert library.stale() == {}


def test_other_settings_and_other_inputs_are_told_as_such(library):
    library.make_all()
    library.setting, library.with_index = "2", True
    assert library.stale() == {"library": ["its settings or code changed", "it is made from index too now"]}
    library.make("library")
    library.with_index = False
    assert library.stale() == {"library": ["it is not made from index any more"]}


def test_a_change_of_one_source_among_hundreds_is_seen(library):
    library.contents |= {f"source_{number}": "អត្ថបទ" for number in range(110)}
    library.make("files")
    library.make("books", "poems", "news", "source_7")
    library.make("library")
    library.contents["source_7"] = "ថ្មី"
    library.make("books", "source_7")
    graph = library.definitions().resolve_asset_graph()
    (cause,) = causes(library.instance, graph, (dg.AssetKey("library"), None))
    assert cause.text == "books (source_7) changed"
