"""The assets of the router: its training, and its deployment."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from khmer_assets.evaluation.assets import newest
from khmer_assets.foundation.settings import code_version
from khmer_assets.router import train
from khmer_assets.server.router_file import ABOUT, About
from khmer_assets.server.state import AUTO_NAME, StrongerModel
from resources.blocking_checks import require_checks
from resources.compute import Compute
from resources.instance import GPU_POOL, ON_DEMAND
from resources.model_server import ModelServer, ModelServerError
from resources.served_router import load_router
from resources.storage import FoldersIOManager


def router_assets(
    settings: train.Routing | None,
    stronger: StrongerModel | None,
    model: str,
    others: Mapping[str, tuple[str, str]],
    context_length: int,
    max_new_tokens: int,
    seed: int,
) -> list[Any]:
    """router with its check, and served_router; none without settings.

    `stronger`: who is asked beyond this server. `model` is the asset of the model that the adapters adapt. `others`: of
    adapters that are no partition of domain_adapter, the assets of their weights and chats, by the adapter's name;
    those that are not there yet are left out. An answer has at most `max_new_tokens`, and with its prompt
    `context_length` tokens.
    """
    if settings is None:
        return []
    trained = settings.model_dump(exclude={"stronger"})

    # Adapters come and go, and this asks hundreds of chats of each: when somebody wants it, not at each `make run`.
    @dg.asset(
        group_name="serving",
        io_manager_key="folders",
        kinds={"numpy"},
        pool=GPU_POOL,
        ins={"model": dg.AssetIn(model)},
        deps=[asset for pair in others.values() for asset in pair],
        code_version=code_version(2, settings=trained, seed=seed, tokens=[context_length, max_new_tokens]),
        tags=ON_DEMAND,
    )
    def router(
        context: dg.AssetExecutionContext,
        compute: Compute,
        folders: dg.ResourceParam[FoldersIOManager],
        model: Path,
        chat_dataset: Path,
        domain_adapter: dict[str, Path],
        adapter_chats: dict[str, Path],
    ) -> Iterator[dg.Output[Path]]:
        """`router.json` and `weights.npy`: who answers a question best, the model or an adapter, and how sure the model
        must be; `asked.jsonl` the held-out chats that it was learned from. Its figures are of chats that it had not
        seen."""
        for name, (adapter, chats) in others.items():
            trained_one, its_chats = newest(folders, adapter), newest(folders, chats)
            if trained_one and its_chats:
                domain_adapter[name], adapter_chats[name] = trained_one, its_chats
        spec = train.Spec(
            model=model,
            chats=chat_dataset,
            adapters=domain_adapter,
            adapter_chats=adapter_chats,
            settings=settings,
            context_length=context_length,
            max_new_tokens=max_new_tokens,
            seed=seed,
        )
        yield from compute.materialize(context, train.__name__, spec)

    @dg.asset_check(asset="router", blocking=True)
    def router_gains(router: Path) -> dg.AssetCheckResult:
        """More held-out chats are answered right than by the model alone, and than by an adapter every time."""
        about = About.model_validate_json((router / ABOUT).read_text())
        figures = about.figures
        return dg.AssetCheckResult(
            passed=about.gains,
            description=f"{figures['router']:.1%} right with the router, {figures['never']:.1%} by the model alone, "
            f"{figures['always']:.1%} by an adapter every time, {figures['oracle']:.1%} at best",
            metadata=dict(figures),
        )

    @dg.asset(
        group_name="serving",
        io_manager_key="folders",
        kinds={"vllm"},
        deps=["served_model"],
        code_version=code_version(1, stronger=stronger),
        tags=ON_DEMAND,
    )
    def served_router(context: dg.AssetExecutionContext, model_server: ModelServer, router: Path) -> Path:
        """`endpoint.json`: where `khmer-auto` answers. Refused while a blocking check upstream is not met, of adapters
        that the router does not know left aside."""
        about = About.model_validate_json((router / ABOUT).read_text())
        unknown = [pair for name, pair in others.items() if name not in about.domains]
        require_checks(context, {dg.AssetKey(asset) for pair in unknown for asset in pair})
        try:
            folder = load_router(model_server, router, stronger, context.log.info)
        except ModelServerError as error:
            raise dg.Failure(str(error), allow_retries=False) from None
        context.add_output_metadata(
            {"address": dg.MetadataValue.url(model_server.base_url), "model": AUTO_NAME} | about.figures
        )
        return folder

    return [router, router_gains, served_router]
