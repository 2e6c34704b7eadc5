"""The two I/O managers: `frames` carries tables as Parquet, `folders` carries directories.

Both write to `<store>/<asset>/<partition>/<version>/`, where the version is the SHA-256 of the content, and then
replace the small file `current` beside it, which names the version. That replacement is the commit: a process that
is killed before it leaves the former version in place, on a local disk as on an object store.

An object store has no rename, so a version there exists once `<version>.json` stands beside it: its files and their
sizes, written when all of them have been uploaded.
"""

import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any, get_args

import dagster as dg
import polars as pl
from pydantic import PrivateAttr
from upath import UPath

from khmer_assets.foundation.files import (
    SCRATCH,
    digest_of_folder,
    in_turn,
    in_use,
    link_files,
    remove_unused,
    scratch_folder,
    size_of_folder,
)
from khmer_assets.foundation.tables import markdown_table

ABANDONED_AFTER = 24 * 3600  # seconds without a new file after which an upload is taken for one that was killed
ROW_GROUP = 512  # rows that are read together, when a reader wants some of them only
PREVIEW_ROWS = 5
DATA = "data.parquet"
REMOVED = "removed.parquet"
STORE_VARIABLE = "KHMER_STORE"


def store_root(home: Path) -> str:
    """Where artifacts are kept: the address in the environment variable KHMER_STORE, else a folder of the home."""
    return os.environ.get(STORE_VARIABLE) or str(home / "store")


class MissingArtifact(Exception):
    """An artifact that has no committed version."""


class Store:
    """Versioned artifacts under one root, local or any address that universal_pathlib knows.

    Each artifact's current version is kept, the one before it, and those that a process of this machine holds. Of a
    remote store, what this machine has read or written last is kept in `cache`.
    """

    def __init__(self, root: str, cache: Path):
        self.root = UPath(root)
        self.is_local = self.root.protocol in ("", "file")
        if not self.is_local:
            self.root = UPath(root, use_listings_cache=False)  # other machines write there too
        self.cache = cache

    def place(self, asset: str, partition: str | None) -> UPath:
        """The folder that holds the versions of an artifact."""
        return self.root / asset / (partition or "all")

    def _local_place(self, asset: str, partition: str | None) -> Path:
        """Where this machine has its versions of an artifact."""
        root = Path(str(self.root)) if self.is_local else self.cache
        return root / asset / (partition or "all")

    def version(self, asset: str, partition: str | None = None) -> str | None:
        """The committed version, or None when there is none."""
        place = self.place(asset, partition)
        version = _text(place / "current")
        whole = place / (version or "") if self.is_local else place / f"{version}.json"
        return version if version and whole.exists() else None

    def without_files(self, artifacts: Iterable[tuple[str, str | None]]) -> set[tuple[str, str | None]]:
        """Those of the artifacts (asset, and partition where it has some) that have no committed version.

        A remote store is listed once, which is a request for a thousand files and none for an artifact; there, a
        version of which `current` was not read counts too.
        """
        if self.is_local:
            return {(asset, partition) for asset, partition in artifacts if self.version(asset, partition) is None}
        root = PurePosixPath(self.root.path)
        listed = [PurePosixPath(file).parts[len(root.parts) :] for file in self.root.fs.find(str(root))]
        named = {parts[:2] for parts in listed if parts[2:] == ("current",)}
        whole = {parts[:2] for parts in listed if len(parts) == 3 and parts[2].endswith(".json")}
        return {
            (asset, partition) for asset, partition in artifacts if (asset, partition or "all") not in named & whole
        }

    def current(self, asset: str, partition: str | None = None) -> Path:
        """The committed version as a local folder. Raises `MissingArtifact` when there is none."""
        with ExitStack() as held:
            return self.hold(held, asset, partition)

    def hold(self, held: ExitStack, asset: str, partition: str | None = None) -> Path:
        """The committed version as a local folder that stays until `held` is closed, whatever is committed meanwhile.

        Raises `MissingArtifact` when there is none.
        """
        tried = None
        while (version := self.version(asset, partition)) and version != tried:
            folder = self._local_place(asset, partition) / version
            try:
                if not self.is_local:
                    self._fetch(self.place(asset, partition), folder)
                held.enter_context(in_use(folder))
                return folder
            except FileNotFoundError:  # replaced and removed since `current` was read, so there is a newer one
                tried = version
        name = f"{asset} ({partition})" if partition else asset
        raise MissingArtifact(f"{name} has not been materialized yet; materialize it first")

    def scratch(self) -> Path:
        """The folder for scratch folders on the disk where versions are committed from."""
        return (Path(str(self.root)) if self.is_local else self.cache) / ".writing"

    def commit(self, folder: Path, asset: str, partition: str | None = None) -> str:
        """Make the content of `folder` the current version of the artifact and return its version.

        The folder is left as it is, for the caller to remove: a commit that fails can be tried again.
        """
        version = digest_of_folder(folder)
        place, local_place = self.place(asset, partition), self._local_place(asset, partition)
        local = local_place / version
        with in_turn(local_place), scratch_folder(local_place) as aside:
            if not local.exists():
                whole = aside / version
                link_files(folder, whole)
                whole.rename(local)
            with in_use(local):
                former = _text(place / "current")
                if self.is_local:
                    (aside / "current").write_text(version)
                    os.replace(aside / "current", local_place / "current")
                else:
                    whole_there = place / f"{version}.json"
                    while True:
                        if not whole_there.exists():
                            self._upload(local, place)
                        (place / "current").write_text(version)
                        if whole_there.exists():  # else another machine has just removed it as an old version
                            break
                if former != version:  # else the content is what it was; the version before it stays available
                    self._forget(place, local_place, {version, former})
        return version

    def _upload(self, folder: Path, place: UPath) -> None:
        files = {
            file.relative_to(folder).as_posix(): file.stat().st_size
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }
        for name in files:
            self.root.fs.put_file(str(folder / name), (place / folder.name / name).path)
        (place / f"{folder.name}.json").write_text(json.dumps(files, indent=1))

    def _fetch(self, place: UPath, folder: Path) -> None:
        """Bring a version into the cache. Raises FileNotFoundError when it is no longer there."""
        with in_turn(folder.parent):
            if folder.exists():
                return
            files = json.loads((place / f"{folder.name}.json").read_text())
            with scratch_folder(folder.parent) as aside:
                whole = aside / folder.name
                whole.mkdir()
                for name in files:
                    if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
                        raise ValueError(f"{place}: its list of files names {name!r}, which is outside of it")
                    (whole / name).parent.mkdir(parents=True, exist_ok=True)
                    self.root.fs.get_file((place / folder.name / name).path, str(whole / name))
                if digest_of_folder(whole) != folder.name:
                    raise OSError(f"{place / folder.name}: what was read has another digest; materialize it again")
                whole.rename(folder)
            _remove_versions(folder.parent, {folder.name})

    def _forget(self, place: UPath, local_place: Path, keep: set[str | None]) -> None:
        _remove_versions(local_place, keep)
        if self.is_local:
            return
        found = list(place.iterdir())
        listed = {entry.stem for entry in found if entry.suffix == ".json"}
        for version in listed - keep:
            (place / f"{version}.json").unlink()
            self.root.fs.rm((place / version).path, recursive=True)
        for name in {entry.name for entry in found if entry.is_dir()} - listed - keep:
            files = self.root.fs.find((place / name).path)
            newest = max((self.root.fs.modified(file).timestamp() for file in files), default=0.0)
            if time.time() - newest > ABANDONED_AFTER:
                self.root.fs.rm((place / name).path, recursive=True)


def _remove_versions(place: Path, keep: set[str | None]) -> None:
    for folder in place.iterdir():
        if folder.is_dir() and folder.name not in keep and not folder.name.startswith(SCRATCH):
            remove_unused(folder)


def _text(file: UPath) -> str | None:
    try:
        return str(file.read_text()).strip() or None
    except FileNotFoundError:
        return None


class _StoreIOManager(dg.ConfigurableIOManager):
    root: str
    cache: str
    _store: Store | None = PrivateAttr(default=None)
    _held: ExitStack = PrivateAttr(default_factory=ExitStack)

    @property
    def store(self) -> Store:
        if self._store is None:
            self._store = Store(self.root, Path(self.cache))
        return self._store

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """What the run has read may be removed from now on."""
        self._held.close()

    def _read(self, folder: Path, as_folder: bool) -> Any:
        raise NotImplementedError

    def load_input(self, context: dg.InputContext) -> Any:
        """One artifact, or a dict by partition where an unpartitioned asset takes a partitioned one.

        An argument annotated `Path` gets the artifact's folder, of the one partition that the asset takes.
        """
        asset = context.asset_key.to_python_identifier()
        wanted = context.dagster_type.typing_type
        as_folder = Path in (wanted, *get_args(wanted))
        if not context.has_asset_partitions:
            return self._read(self.store.hold(self._held, asset), as_folder)
        if context.has_partition_key:
            return self._read(self.store.hold(self._held, asset, context.asset_partition_key), as_folder)
        found = {}
        for partition in context.asset_partition_keys:
            try:
                found[partition] = self._read(self.store.hold(self._held, asset, partition), as_folder)
            except MissingArtifact as error:
                context.log.warning(f"{error}; going on without it")
        if not found:
            raise dg.Failure(f"no partition of {asset} has been materialized yet; materialize it first")
        if len(context.asset_partition_keys) == 1 and wanted is Path:
            return found.popitem()[1]
        return found

    def _commit(self, context: dg.OutputContext, folder: Path) -> Path:
        asset = context.asset_key.to_python_identifier()
        partition = context.partition_key if context.has_partition_key else None
        size = size_of_folder(folder)
        version = self.store.commit(folder, asset, partition)
        if context.step_context is not None:
            context.step_context.set_data_version(context.asset_key, dg.DataVersion(version))
        path = self.store.place(asset, partition) / version
        context.add_output_metadata({"path": dg.MetadataValue.path(str(path)), "bytes": size, "digest": version})
        return self.store.hold(self._held, asset, partition)


class FramesIOManager(_StoreIOManager):
    """Carries a polars LazyFrame, streamed to `data.parquet`.

    Rows whose column `rule` is not null were set aside by the asset: they go to `removed.parquet` beside it, with
    the rule, the measure and the reason, and are counted by rule in the metadata. Readers get the other rows.
    """

    def _read(self, folder: Path, as_folder: bool) -> Any:
        return folder if as_folder else pl.scan_parquet(folder / DATA)

    def handle_output(self, context: dg.OutputContext, obj: pl.LazyFrame) -> None:
        """Write, commit and describe a frame."""
        with scratch_folder(self.store.scratch()) as folder:
            metadata: dict[str, Any] = {}
            if "rule" in obj.collect_schema():
                removed = obj.filter(pl.col("rule").is_not_null())
                kept = obj.filter(pl.col("rule").is_null()).drop("rule", "measure", "reason")
                sinks = [
                    frame.sink_parquet(folder / file, row_group_size=ROW_GROUP, lazy=True)
                    for frame, file in ((removed, REMOVED), (kept, DATA))
                ]
                pl.collect_all(sinks)
                metadata = _describe_removed(pl.scan_parquet(folder / REMOVED))
            else:
                obj.sink_parquet(folder / DATA, row_group_size=ROW_GROUP)
            folder = self._commit(context, folder)
        frame = pl.scan_parquet(folder / DATA)
        schema = frame.collect_schema()
        context.add_output_metadata(
            {
                _rows_key(context): frame.select(pl.len()).collect().item(),
                "dagster/column_schema": dg.TableSchema(
                    [dg.TableColumn(name, str(dtype)) for name, dtype in schema.items()]
                ),
                "preview": dg.MetadataValue.md(markdown_table(frame.head(PREVIEW_ROWS).collect())),
                **metadata,
            }
        )


def rows_told(metadata: Mapping[str, dg.MetadataValue]) -> tuple[int, int] | None:
    """How many rows a materialization by `frames` kept and set aside; None where nothing could be set aside."""
    if "rows_removed" not in metadata:
        return None
    kept = metadata.get("dagster/partition_row_count", metadata.get("dagster/row_count"))
    return int(str(kept.value)) if kept else 0, int(str(metadata["rows_removed"].value))


def _rows_key(context: dg.OutputContext) -> str:
    """Under which Dagster shows the count as that of the partition, where there are partitions."""
    return "dagster/partition_row_count" if context.has_partition_key else "dagster/row_count"


def _describe_removed(removed: pl.LazyFrame) -> dict[str, Any]:
    by_rule = removed.group_by("rule").len("rows").sort("rows", "rule", descending=[True, False]).collect()
    metadata: dict[str, Any] = {"rows_removed": int(by_rule["rows"].sum())}
    if by_rule.height:
        shown = ["rule", "measure", "reason", *(["text"] if "text" in removed.collect_schema() else [])]
        examples = removed.select(shown).unique("rule", keep="first", maintain_order=True).head(20).collect()
        metadata["removed_by_rule"] = dg.MetadataValue.md(markdown_table(by_rule))
        metadata["removed_examples"] = dg.MetadataValue.md(markdown_table(examples))
    return metadata


class FoldersIOManager(_StoreIOManager):
    """Carries a directory as a Path: a model, a tokenizer, a report. The directory is removed once it is committed."""

    def _read(self, folder: Path, as_folder: bool) -> Any:
        return folder

    def handle_output(self, context: dg.OutputContext, obj: Path) -> None:
        """Commit and describe a folder."""
        folder = self._commit(context, obj)
        shutil.rmtree(obj, ignore_errors=True)
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        listing = pl.DataFrame(
            {"file": [str(f.relative_to(folder)) for f in files], "bytes": [f.stat().st_size for f in files]},
            schema={"file": pl.String, "bytes": pl.Int64},
        )
        context.add_output_metadata(
            {_rows_key(context): len(files), "files": dg.MetadataValue.md(markdown_table(listing.head(40)))}
        )
