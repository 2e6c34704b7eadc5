"""What is served is a version in MLflow's registry, and the alias follows what is served."""

from mlflow import MlflowClient

from resources.tracking import mark_served, tracking_uri


def test_the_alias_follows_what_is_served(tmp_path):
    for digest, accuracy in (("a" * 16, 0.5), ("b" * 16, 0.6), ("a" * 16, 0.5)):
        mark_served(tmp_path, "khmer", digest, tmp_path / digest, {"answer_accuracy": accuracy})
    client = MlflowClient(tracking_uri(tmp_path))
    served = client.get_model_version_by_alias("khmer", "served")
    assert served.tags == {"digest": "a" * 16, "answer_accuracy": "0.5"}
    assert len(client.search_model_versions("name='khmer'")) == 2, "a version a digest"
