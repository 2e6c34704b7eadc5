"""The evaluation harness against EleutherAI's (lm-eval 0.4.13): items a second of processor time on the same model and
items, and whether both pick and say the same.

Both run in this process, in float32, in turn, with the same number of threads; lm-eval with a batch of 8. What is
compared: every pick of Belebele and SIB-200, and chrF++ of translations. lm-eval reads the files of the tasks through
its own task files, which are written here.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks import open_model
from khmer_assets.evaluation.items import SAMPLES, Benchmark, Item
from khmer_assets.evaluation.tasks import belebele, sib200, translation

CONTEXT = 2048
NEW_TOKENS = 32
BATCH = 8
TASKS = (
    Benchmark(task="belebele", language="eng_Latn"),
    Benchmark(task="belebele", language="eng_Latn", shots=5),
    Benchmark(task="sib200"),
    Benchmark(task="flores200", language="eng_Latn"),
)
READERS: dict[str, Any] = {
    "belebele": belebele.read,
    "sib200": sib200.read,
    "flores200": translation.read,
    "ntrex128": translation.read,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a transformers folder; SmolLM2-135M-Instruct by default")
    parser.add_argument("--rounds", type=int, default=1, help="how often both are measured, in turn")
    arguments = parser.parse_args()
    figures, rows = compare(arguments.model or open_model.folder(), TASKS, arguments.rounds)
    print(f"{'task':28} {'items':>5} {'alike':>5} {'items/s':>8} {'lm-eval':>8} {'ratio':>6}")
    for row in rows:
        rates = f"{row['ours']:8.2f} {row['peer']:8.2f} {row['ours'] / row['peer']:6.2f}"
        print(f"{row['task']:28} {row['items']:5} {row['alike']:5} {rates}")
    print(json.dumps(figures))


def compare(model: Path, tasks: Sequence[Benchmark], rounds: int = 1) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The figures of the last line, and a row a task, where `alike` counts the picks or answers that are the same.
    `equal_picks` is a share; `chrf_difference` the largest."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("HF_DATASETS_CACHE", folder)
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        from transformers import AutoTokenizer

        from khmer_assets.evaluation.engines import TransformersEngine
        from khmer_assets.evaluation.examination import Examination, stops_of
        from khmer_assets.training.models import device, load_model

        loaded = load_model(model).to(device()).eval()
        tokenizer = AutoTokenizer.from_pretrained(model)
        # a model of its own: the engine changes how its model attends
        peer = _Peer(load_model(model).to(device()).eval(), tokenizer, Path(folder))
        context = min(CONTEXT, loaded.config.max_position_embeddings)
        engine = TransformersEngine(loaded, context)
        examination = Examination(engine, tokenizer, NEW_TOKENS, stops_of(loaded, tokenizer))
        examination.asked(["1"])  # the first pass reads the weights from the disk
        rows: list[dict[str, Any]] = []
        seconds, equal, picks, difference = [0.0, 0.0], 0, 0, 0.0
        for task in tasks:
            items: list[Item] = READERS[task.task](task)
            times = [[0.0], [0.0]]
            for _ in range(rounds):
                started = time.process_time()
                ours = _ours(items, examination)
                times[0].append(time.process_time() - started)
                started = time.process_time()
                theirs = peer.results(task, items)
                times[1].append(time.process_time() - started)
            spent = [sum(own) / rounds for own in times]
            seconds = [total + own for total, own in zip(seconds, spent, strict=True)]
            alike = sum(_said(a) == _said(b) for a, b in zip(ours, theirs, strict=True))
            if items[0].choices:
                equal, picks = equal + alike, picks + len(items)
            else:
                scores = [_chrf(answers, items) for answers in (ours, theirs)]
                difference = max(difference, abs(scores[0] - scores[1]))
            rates = {"ours": len(items) / spent[0], "peer": len(items) / spent[1]}
            rows.append({"task": task.name, "items": len(items), "alike": alike, **rates})
    count = sum(row["items"] for row in rows)
    figures = {
        "items_per_second": count / seconds[0],
        "peer_items_per_second": count / seconds[1],
        "equal_picks": equal / picks if picks else 1.0,
        "chrf_difference": difference,
    }
    return figures, rows


def _ours(items: list[Item], examination: Any) -> list[Any]:
    if items[0].choices:
        likelihoods, _ = examination.picks(items)
        return [max(range(len(own)), key=own.__getitem__) for own in likelihoods]
    return [answer.text for answer in examination.asked([item.prompt for item in items])]


def _said(answer: Any) -> Any:
    return answer.strip() if isinstance(answer, str) else answer


def _chrf(answers: Sequence[str], items: Sequence[Item]) -> float:
    from sacrebleu.metrics.chrf import CHRF

    said = [answer.strip().split("\n")[0] for answer in answers]
    return float(CHRF(word_order=2).corpus_score(said, [[item.reference for item in items]]).score)


class _Peer:
    """lm-eval with the same model."""

    def __init__(self, model: Any, tokenizer: Any, folder: Path):
        from lm_eval.models.huggingface import HFLM

        self.folder = folder
        context = min(CONTEXT, model.config.max_position_embeddings)
        self.model = HFLM(pretrained=model, tokenizer=tokenizer, max_length=context, batch_size=BATCH)

    def results(self, task: Benchmark, items: list[Item]) -> list[Any]:
        """The pick, or the answer, of each item."""
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        name = task.name.replace(" ", "_").replace("-", "_")
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(self._task(name, task, items), allow_unicode=True))
        found = simple_evaluate(
            model=self.model,
            tasks=[name],
            num_fewshot=task.shots,
            task_manager=TaskManager(include_path=str(self.folder), include_defaults=False),
            log_samples=True,
            bootstrap_iters=0,
            apply_chat_template=not items[0].choices,
        )
        samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
        if not items[0].choices:
            return [sample["filtered_resps"][0] for sample in samples]
        scores = [[float(response[0][0]) for response in sample["resps"]] for sample in samples]
        return [max(range(len(own)), key=own.__getitem__) for own in scores]

    def _task(self, name: str, task: Benchmark, items: list[Item]) -> dict[str, Any]:
        place = Path(task.data) if task.data else SAMPLES / task.task
        common: dict[str, Any] = {"task": name, "test_split": "test"}
        if task.task == "belebele":
            return common | {
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": {"test": str(place / f"{task.language}.jsonl")}},
                "output_type": "multiple_choice",
                "fewshot_split": "test",
                "fewshot_config": {"sampler": "first_n"},
                "doc_to_text": "P: {{flores_passage}}\nQ: {{question.strip()}}\nA: {{mc_answer1}}\nB: {{mc_answer2}}\n"
                "C: {{mc_answer3}}\nD: {{mc_answer4}}\nAnswer:",
                "doc_to_choice": list(belebele.LETTERS),
                "doc_to_target": "{{['1', '2', '3', '4'].index(correct_answer_num)}}",
                "metric_list": [{"metric": "acc"}],
            }
        if task.task == "sib200":
            topics = ", ".join(sib200.TOPICS)
            file = str(place / task.language / "test.tsv")
            return common | {
                "dataset_path": "csv",
                "dataset_kwargs": {"data_files": {"test": file}, "delimiter": "\t"},
                "output_type": "multiple_choice",
                "doc_to_text": f"Topics: {topics}\n\nText: {{{{text}}}}\nTopic:",
                "doc_to_choice": list(sib200.TOPICS),
                "doc_to_target": "category",
                "metric_list": [{"metric": "acc"}],
            }
        pairs = self.folder / f"{name}.jsonl"
        lines = [json.dumps({"prompt": i.prompt, "reference": i.reference}, ensure_ascii=False) for i in items]
        pairs.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return common | {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(pairs)}},
            "output_type": "generate_until",
            "doc_to_text": "{{prompt}}",
            "doc_to_target": "{{reference}}",
            "generation_kwargs": {"do_sample": False, "temperature": 0.0, "max_gen_toks": NEW_TOKENS, "until": []},
            "metric_list": [{"metric": "chrf"}],
        }


if __name__ == "__main__":
    main()
