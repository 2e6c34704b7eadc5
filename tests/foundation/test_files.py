"""A file that is written whole or not at all."""

import os
import resource

import pytest

from khmer_assets.foundation.files import write_whole


def test_a_file_is_replaced_and_only_its_owner_may_read_it_if_that_is_asked(tmp_path):
    file = tmp_path / "keys.json"
    write_whole(file, "កូនសោ")
    write_whole(file, b"secret", 0o600)
    assert file.read_bytes() == b"secret"
    assert file.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["keys.json"]


def test_the_former_file_stays_where_there_is_no_room_for_the_new_one(tmp_path):
    file = tmp_path / "state.json"
    write_whole(file, "former")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # as a full disk, Python ignores its signal
    try:
        with pytest.raises(OSError, match="too large"):
            write_whole(file, "new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_text() == "former"
    assert os.listdir(tmp_path) == ["state.json"]
