"""The assets of the release stage: the bundle, the release that passes the gates, and its deployment."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from khmer_assets.compression.variants import artifact_of
from khmer_assets.evaluation.assets import newest
from khmer_assets.evaluation.report import scores_in, scores_of
from khmer_assets.evaluation.served import RECORD, compared_release, keep_scores
from khmer_assets.foundation.settings import code_version, digest_of
from khmer_assets.release import bundle
from khmer_assets.release import release as release_payload
from khmer_assets.release.deployment import Deployment, deploy, registered_answer, served_endpoint
from khmer_assets.release.gates import GATES, Release, judge
from khmer_assets.server.state import ModelVersion
from resources.blocking_checks import require_checks
from resources.compute import Compute
from resources.instance import GPU_POOL
from resources.model_server import MODEL_NAME, ModelServer, ModelServerError
from resources.storage import FoldersIOManager


def release_assets(
    recipe: dict[str, Any],
    sources: list[dict[str, Any]],
    settings: Release,
    model: str,
    brought_in: bool,
    deployment: Deployment,
    has_adapters: bool,
    max_new_tokens: int,
) -> list[Any]:
    """release_bundle, release with its gates, and served_model.

    `recipe` and `sources` are what the model card tells of all settings and of the catalogue. `model` is the asset of
    the whole model, of which smaller variants are made; `brought_in`: it began
    with an open one. An answer of the served model has at most `max_new_tokens` tokens.
    """
    asset, partition = artifact_of(settings.variant, model)
    mapping = dg.SpecificPartitionsPartitionMapping([partition]) if partition else None
    released_model = dg.AssetIn(asset, partition_mapping=mapping)
    deployed = deployment.model_dump(mode="json", include=set(Deployment.model_fields))
    deployed["adapters"] = has_adapters  # engines are started with room for them

    @dg.asset(
        group_name="compression",
        io_manager_key="folders",
        pool=GPU_POOL,
        kinds={"zstandard"},
        ins={"model": released_model, **({"base_model": dg.AssetIn("base_model")} if brought_in else {})},
        code_version=f"2-{settings.variant}",
    )
    def release_bundle(
        context: dg.AssetExecutionContext, compute: Compute, model: Path, benchmark_report: Path, **others: Path
    ) -> Iterator[dg.Output[Path]]:
        """A .tar.zst of the model to be released with model card and checksums; `bundle.json` holds its SHA-256."""
        spec = bundle.Spec(
            model=model,
            variant=settings.variant,
            recipe=recipe,
            sources=sources,
            base=others.get("base_model"),
            report=benchmark_report,
        )
        yield from compute.materialize(context, bundle.__name__, spec)

    @dg.asset_check(asset="release_bundle", blocking=True)
    def bundle_is_bit_identical(release_bundle: Path) -> dg.AssetCheckResult:
        """Unpacking the bundle gives the model back bit by bit, with the checksums that it names."""
        figures = json.loads((release_bundle / bundle.FIGURES).read_text())
        return dg.AssetCheckResult(passed=figures["bit_identical"], metadata=figures)

    @dg.asset(
        group_name="serving",
        io_manager_key="folders",
        kinds={"huggingface"},
        ins={"model": released_model},
        code_version=code_version(4, release=settings),
        check_specs=[dg.AssetCheckSpec(gate, asset="release", description=text) for gate, text in GATES.items()],
    )
    def release(
        context: dg.AssetExecutionContext,
        compute: Compute,
        folders: dg.ResourceParam[FoldersIOManager],
        model: Path,
        benchmark_report: Path,
        release_bundle: Path,
    ) -> Iterator[dg.Output[Path] | dg.AssetCheckResult]:
        """`model/` to be served and `release.json`. Refused while a blocking check of any asset upstream is not met,
        or the variant does not pass the recipe's gates; the former release stays then. It is compared with the release
        that is served, where that is of the same recipe: the model of another is no worse version of this one."""
        require_checks(context)
        variants = json.loads((benchmark_report / "report.json").read_text())["variants"]
        former = compared_release(Path(compute.home), newest(folders, "release"))
        same_recipe = former and json.loads((former / RECORD).read_text()).get("recipe") == recipe["name"]
        verdicts = judge(
            settings,
            variants.get(settings.variant, {}),
            scores_of(benchmark_report, settings.variant),
            scores_in(former) if former and same_recipe else [],
        )
        results = [
            dg.AssetCheckResult(
                check_name=verdict.gate,
                passed=verdict.passed,
                description=verdict.description,
                metadata=verdict.figures,
            )
            for verdict in verdicts
        ]
        if not_passed := [verdict.description for verdict in verdicts if not verdict.passed]:
            yield from results
            raise dg.Failure(
                f"{settings.variant} does not pass the recipe's gates: {'; '.join(not_passed)}", allow_retries=False
            )
        spec = release_payload.Spec(
            recipe=recipe["name"],
            variant=settings.variant,
            model=model,
            report=benchmark_report,
            bundle=release_bundle,
        )
        yield from compute.materialize(context, release_payload.__name__, spec)
        yield from results  # after the output, for they are of this version

    @dg.asset(
        group_name="serving",
        io_manager_key="folders",
        kinds={"vllm"},
        code_version=f"1-{digest_of(deployed)[:12]}",
    )
    def served_model(context: dg.AssetExecutionContext, model_server: ModelServer, release: Path) -> Path:
        """`endpoint.json`: address, model names and digest of what is served. The key is not in it."""
        try:
            keep_scores(Path(model_server.home), release)
            seconds = deploy(model_server, release, deployment.max_model_length, context.log.info)
            answer = registered_answer(model_server, MODEL_NAME, release / "model", deployment.question, max_new_tokens)
        except ModelServerError as error:
            raise dg.Failure(str(error), allow_retries=False) from None
        context.add_output_metadata(
            {
                "address": dg.MetadataValue.url(model_server.base_url),
                "served_digest": release.name,
                "question": deployment.question,
                "answer": answer,
                "seconds_to_healthy": round(seconds, 1),
            }
        )
        names = ModelVersion(digest=release.name, max_model_length=deployment.max_model_length).names
        return served_endpoint(model_server, release.name, names)  # without the adapters, which come and go

    return [
        release_bundle,
        bundle_is_bit_identical,
        release,
        served_model,
    ]
