"""A small router that has really learned, and a gateway that serves it beside a model and its adapter."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from khmer_assets.router import dissatisfaction
from khmer_assets.router.classifier import fit
from khmer_assets.router.learning import as_file
from khmer_assets.server.confidence import Scaling
from khmer_assets.server.kept_models import kept_model
from khmer_assets.server.router_file import Router
from khmer_assets.server.state import AdapterVersion, ModelVersion, RouterVersion, ServerState
from tests.server.gateways import Front, front

BASE = "b" * 16
ROUTED = ModelVersion(digest="a" * 16, max_model_length=64, base=BASE, engine={"enable_lora": True})
NUMBERS = AdapterVersion(name="numbers", digest="c" * 16, base=BASE)
ROUTER = RouterVersion(digest="d" * 16, base=BASE)
NUMBER = "តើលេខ ៥៤៣ សរសេរជាអក្សរដូចម្តេច?"
CAPITAL = "តើរាជធានីនៃប្រទេសកម្ពុជាឈ្មោះអ្វី?"
QUESTIONS = {
    "numbers": [
        *("សូមសរសេរលេខ ៨០ ជាអក្សរ", "៦៨០ ជាអក្សរ?", "លេខ ៥៣ អានថាម៉េច?", "តើលេខ ១២៨ សរសេរជាអក្សរដូចម្តេច?"),
        *("Write 80 in Khmer words", "How is 53 written in words?"),
    ],
    "": [
        *("តើរាជធានីនៃប្រទេសថៃជាទីក្រុងណា?", "សួស្តី", "តើអ្នកជានរណា?", "តើមេឃមានពណ៌អ្វី?", "អរគុណច្រើន"),
        *("តើក្នុងរយៈពេលមួយឆ្នាំមានប៉ុន្មានខែ?", "What is the capital of France?", "Hello, who are you?"),
    ],
}


@cache
def learned(base: str = BASE) -> Router:
    """Knows the domain of numbers from any other, and who is not satisfied."""
    texts = [(text, int(domain == "numbers")) for domain, found in QUESTIONS.items() for text in found]
    domain = fit([("", t) for t, _ in texts], np.zeros((len(texts), 1)), np.array([n for _, n in texts]), 2, 30.0)
    figures = {"never": 0.5, "always": 0.4, "router": 0.9, "oracle": 0.9}
    detector = dissatisfaction.learn([text for text, _ in texts])
    return as_file(domain, detector, ["numbers"], base, 0.8, Scaling(slope=1, offset=0), figures)


@contextmanager
def routed(home: Path, adapters: tuple[AdapterVersion, ...] = (NUMBERS,), **settings: Any) -> Iterator[Front]:
    """A gateway before two engines, with this router."""
    with front(home, engines=2, **settings) as gateway:
        serve(gateway, adapters)
        yield gateway


def serve(gateway: Front, adapters: tuple[AdapterVersion, ...] = (NUMBERS,), router: RouterVersion = ROUTER) -> None:
    """Let the gateway serve these."""
    folder = kept_model(gateway.folder, router.digest)
    if not folder.exists():
        folder.mkdir(parents=True)
        learned().save(folder)
    state = ServerState.read(gateway.folder)
    state.model_copy(update={"release": ROUTED, "adapters": adapters, "router": router}).write(gateway.folder)
