"""The two I/O managers: `frames` carries tables as Parquet, `folders` carries directories.

Both write to `<store>/<asset>/<partition>/<version>/`, where the version is the SHA-256 of the content, and then
replace the small file `current` beside it, which names the version. That replacement is the commit: a process that
is killed before it leaves the former version in place, on a local disk as on an object store.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import dagster as dg
import polars as pl
from pydantic import PrivateAttr
from upath import UPath

from khmer_assets.foundation.files import digest_of_folder, size_of_folder
from khmer_assets.foundation.tables import markdown_table

VERSIONS_KEPT = 2
ROW_GROUP = 512  # rows that are read together, when a reader wants some of them only
PREVIEW_ROWS = 5
DATA = "data.parquet"
REMOVED = "removed.parquet"
STORE_VARIABLE = "KHMER_STORE"


def store_root(home: Path) -> str:
    """Where artifacts are kept: the address in the environment variable KHMER_STORE, else a folder of the home."""
    return os.environ.get(STORE_VARIABLE) or str(home / "store")


class MissingArtifact(Exception):
    """An artifact that has no committed version yet."""


class Store:
    """Versioned artifacts under one root, local or any address that universal_pathlib knows.

    A folder is moved into place on a local disk and uploaded elsewhere; a remote version is fetched once into
    `cache`, for a version never changes.
    """

    def __init__(self, root: str, cache: Path):
        self.root = UPath(root)
        self.cache = cache
        self.is_local = self.root.protocol in ("", "file")

    def place(self, asset: str, partition: str | None) -> UPath:
        """The folder that holds the versions of an artifact."""
        return self.root / asset / (partition or "all")

    def current(self, asset: str, partition: str | None = None) -> Path:
        """The committed version as a local folder. Raises `MissingArtifact` when there is none."""
        place = self.place(asset, partition)
        try:
            version = (place / "current").read_text().strip()
        except FileNotFoundError:
            name = f"{asset} ({partition})" if partition else asset
            raise MissingArtifact(f"{name} has not been materialized yet; materialize it first") from None
        if self.is_local:
            return Path(str(place / version))
        local = self.cache / asset / (partition or "all") / version
        if not local.exists():
            with self.aside(local.parent) as folder:
                self.root.fs.get(f"{(place / version).path}/", f"{folder}/", recursive=True)
                folder.rename(local)
        return local

    @contextmanager
    def aside(self, parent: Path | None = None) -> Iterator[Path]:
        """A scratch folder on the store's disk, removed when it has not been moved away."""
        parent = parent or (Path(str(self.root)) if self.is_local else self.cache) / ".writing"
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=".aside-"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def commit(self, folder: Path, asset: str, partition: str | None = None) -> str:
        """Take over `folder` as the current version of the artifact and return its version."""
        version = digest_of_folder(folder)
        place = self.place(asset, partition)
        target = place / version
        place.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            if self.is_local:
                # a rename on one disk; across disks a copy, which only the second rename makes visible
                moving = Path(str(place / ".moving"))
                shutil.rmtree(moving, ignore_errors=True)
                shutil.move(folder, moving)
                os.rename(moving, str(target))
            else:
                self.root.fs.put(f"{folder}/", f"{target.path}/", recursive=True)
        former = (place / "current").read_text().strip() if (place / "current").exists() else None
        if self.is_local:
            Path(str(place / ".current")).write_text(version)
            os.replace(str(place / ".current"), str(place / "current"))
        else:
            (place / "current").write_text(version)
        self._forget_old_versions(place, {version, former})
        return version

    def _forget_old_versions(self, place: UPath, keep: set[str | None]) -> None:
        if len(keep) < VERSIONS_KEPT:
            return  # the content is what it was; the version before it stays available
        for entry in place.iterdir():
            if entry.is_dir() and entry.name not in keep:
                self.root.fs.rm(entry.path, recursive=True)


class _StoreIOManager(dg.ConfigurableIOManager):
    root: str
    cache: str
    _store: Store | None = PrivateAttr(default=None)

    @property
    def store(self) -> Store:
        if self._store is None:
            self._store = Store(self.root, Path(self.cache))
        return self._store

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
            return self._read(self.store.current(asset), as_folder)
        if context.has_partition_key:
            return self._read(self.store.current(asset, context.asset_partition_key), as_folder)
        found = {}
        for partition in context.asset_partition_keys:
            try:
                found[partition] = self._read(self.store.current(asset, partition), as_folder)
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
        return self.store.current(asset, partition)


class FramesIOManager(_StoreIOManager):
    """Carries a polars LazyFrame, streamed to `data.parquet`.

    Rows whose column `rule` is not null were set aside by the asset: they go to `removed.parquet` beside it, with
    the rule, the measure and the reason, and are counted by rule in the metadata. Readers get the other rows.
    """

    def _read(self, folder: Path, as_folder: bool) -> Any:
        return folder if as_folder else pl.scan_parquet(folder / DATA)

    def handle_output(self, context: dg.OutputContext, obj: pl.LazyFrame) -> None:
        """Write, commit and describe a frame."""
        with self.store.aside() as folder:
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
                "dagster/row_count": frame.select(pl.len()).collect().item(),
                "dagster/column_schema": dg.TableSchema(
                    [dg.TableColumn(name, str(dtype)) for name, dtype in schema.items()]
                ),
                "preview": dg.MetadataValue.md(markdown_table(frame.head(PREVIEW_ROWS).collect())),
                **metadata,
            }
        )


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
    """Carries a directory as a Path: a model, a tokenizer, a report. The directory is moved into the store."""

    def _read(self, folder: Path, as_folder: bool) -> Any:
        return folder

    def handle_output(self, context: dg.OutputContext, obj: Path) -> None:
        """Commit and describe a folder."""
        folder = self._commit(context, obj)
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        listing = pl.DataFrame(
            {"file": [str(f.relative_to(folder)) for f in files], "bytes": [f.stat().st_size for f in files]},
            schema={"file": pl.String, "bytes": pl.Int64},
        )
        context.add_output_metadata(
            {"dagster/row_count": len(files), "files": dg.MetadataValue.md(markdown_table(listing.head(40)))}
        )
