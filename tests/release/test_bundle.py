"""A bundle gives the model back bit by bit, describes it, and cannot harm who unpacks a forged one."""

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from khmer_assets.recipe import SAMPLE_RECIPE, Recipe
from khmer_assets.release import bundle
from resources.payload import PayloadRun, Refusal

SOURCE = {"name": "village_news", "kind": "files", "language": "khm", "license": "CC-BY-4.0", "settings": {}}


@pytest.fixture
def spec(model) -> bundle.Spec:
    recipe = Recipe.load(SAMPLE_RECIPE).model_dump(mode="json", exclude={"catalogue"}) | {"context_length": 256}
    return bundle.Spec(model=model, variant="merged", recipe=recipe, sources=[SOURCE])


def forged(file: Path, *members: tarfile.TarInfo, content: bytes = b"") -> Path:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for member in members:
            member.size = len(content) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(content))
    file.write_bytes(zstandard.compress(plain.getvalue()))
    return file


def test_a_bundle_unpacks_to_the_same_model(spec, tmp_path):
    run = PayloadRun(tmp_path)
    figures = bundle.main(spec, run)

    assert figures["bit_identical"]
    archive = run.output / "sample-merged.tar.zst"
    assert archive.stat().st_size == figures["archive_bytes"] < figures["bytes"]
    bundle.unpack(archive, tmp_path / "unpacked", max_bytes=figures["bytes"] + bundle.TAR_OVERHEAD)
    folder = tmp_path / "unpacked" / "sample-merged"
    for file in spec.model.iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes()
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True, capture_output=True)


def test_a_run_that_was_killed_while_it_compared_starts_over(spec, tmp_path):
    bundle.main(spec, PayloadRun(tmp_path))
    assert bundle.main(spec, PayloadRun(tmp_path))["bit_identical"]


def test_the_same_model_gives_the_same_archive(spec, tmp_path):
    first, second = (bundle.main(spec, PayloadRun(tmp_path / name)) for name in ("first", "second"))
    assert first == second


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/../../outside"])
def test_a_file_outside_of_the_folder_is_refused(tmp_path, name):
    archive = forged(tmp_path / "forged.tar.zst", tarfile.TarInfo(name), content=b"x")
    with pytest.raises(Refusal, match="outside"):
        bundle.unpack(archive, tmp_path / "unpacked", max_bytes=1 << 20)
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    member = tarfile.TarInfo("model.safetensors")
    member.type, member.linkname = kind, "config.json"
    with pytest.raises(Refusal, match="no regular file"):
        bundle.unpack(forged(tmp_path / "forged.tar.zst", member), tmp_path / "unpacked", max_bytes=1 << 20)


def test_one_file_cannot_replace_another(tmp_path):
    archive = forged(tmp_path / "forged.tar.zst", tarfile.TarInfo("a"), tarfile.TarInfo("a"), content=b"x")
    with pytest.raises(Refusal, match="replace another file"):
        bundle.unpack(archive, tmp_path / "unpacked", max_bytes=1 << 20)


def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_does(tmp_path):
    archive = forged(tmp_path / "forged.tar.zst", tarfile.TarInfo("zeros"), content=bytes(50_000_000))
    assert archive.stat().st_size < 10_000
    with pytest.raises(Refusal, match="more than 1,000,000 bytes"):
        bundle.unpack(archive, tmp_path / "unpacked", max_bytes=1_000_000)
    assert sum(file.stat().st_size for file in (tmp_path / "unpacked").rglob("*")) <= 1_000_000


@settings(max_examples=50)
@given(cut=st.integers(0, 10_000), noise=st.binary(min_size=1, max_size=50))
def test_a_broken_archive_is_refused_or_harmless(tmp_path_factory, cut, noise):
    folder = tmp_path_factory.mktemp("broken")
    archive = forged(folder / "forged.tar.zst", tarfile.TarInfo("a"), content=bytes(range(256)) * 40)
    whole = archive.read_bytes()
    archive.write_bytes(whole[: cut % len(whole)] + noise)
    with pytest.raises(Refusal):
        bundle.unpack(archive, folder / "unpacked", max_bytes=1 << 20)
