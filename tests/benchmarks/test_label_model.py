"""The benchmark measures topics of anybody's own texts, and ends with a line for machines."""

import json
import sys

import pytest

from benchmarks import label_model
from tests.labels.conftest import text_of


@pytest.mark.slow
def test_topics_of_a_file_are_measured(tmp_path, monkeypatch, capsys):
    lines = [{"text": text, "topic": topic} for text, topic in map(text_of, range(150))]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["", "--labelled", str(file), "--without-peer", "--rate-documents", "300"])
    label_model.main()
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["macro_f1"]["mine"] > 0.9
    assert told["documents_per_processor_second"] > 100
