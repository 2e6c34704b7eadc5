"""The chat page in Chromium: it streams, stops, repeats, remembers the key, speaks both languages and fits a phone."""

import json
import shutil
from pathlib import Path

import pytest

from khmer_assets.server.state import AdapterVersion, ServerState
from tests.server.gateways import RELEASE, WORDS, front
from tests.server.routers import NUMBER, NUMBERS, ROUTED, serve

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ANSWER = "".join(WORDS)


@pytest.fixture
def gateway(tmp_path):
    with front(tmp_path) as started:
        yield started


@pytest.fixture
def page(gateway):
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 360, "height": 640})
        opened.errors = []
        opened.on("pageerror", lambda error: opened.errors.append(str(error)))
        opened.goto(gateway.address)
        opened.fill("#key", gateway.key)
        opened.press("#key", "Tab")
        opened.wait_for_selector("#model option", state="attached")
        yield opened
        assert opened.errors == []
        browser.close()


def ask(page, question):
    page.fill("#question", question)
    page.press("#question", "Enter")


def test_a_conversation(gateway, page):
    for turn, question in enumerate(("តើអ្នកជានរណា?", "ហើយទន្លេ?")):
        ask(page, question)
        page.wait_for_function(f"turns.length == {2 * turn + 2} && !running")
    assert page.locator(".turn.assistant").nth(1).inner_text().startswith(ANSWER)
    assert RELEASE.digest[:12] in page.locator(".turn.assistant .from").first.inner_text()
    roles = [message["role"] for message in gateway.engines[0].asked[-1]["messages"]]
    assert roles == ["user", "assistant", "user"]
    with page.expect_download() as download:
        page.click("#export")
    assert len(json.loads(Path(download.value.path()).read_text())["turns"]) == 4


def test_an_adapter_is_chosen_and_the_answer_tells_its_digest(gateway, page):
    state = ServerState.read(gateway.folder)
    release = RELEASE.model_copy(update={"base": "b" * 16, "engine": {"enable_lora": True}})
    adapter = AdapterVersion(name="numbers", digest="c" * 16, base="b" * 16)
    state.model_copy(update={"release": release, "adapters": (adapter,)}).write(gateway.folder)
    page.reload()
    page.wait_for_selector("#model option[value=khmer-numbers]", state="attached")
    page.select_option("#model", "khmer-numbers")
    ask(page, "៥៤៣ ជាអក្សរ?")
    page.wait_for_function("turns.length == 2 && !running")
    told = page.locator(".turn.assistant .from").inner_text()
    assert told == f"khmer-numbers · {RELEASE.digest[:12]} · + {adapter.digest[:12]}"


def test_it_shows_who_was_chosen_and_why_and_a_person_may_choose_another(gateway, page):
    serve(gateway)
    page.evaluate("localStorage.clear()")
    page.goto("about:blank")
    page.goto(f"{gateway.address}/#key={gateway.key}")
    page.wait_for_selector("#model option[value=khmer-numbers]", state="attached")
    assert page.input_value("#model") == "khmer-auto"
    ask(page, NUMBER)
    page.wait_for_function("turns.length == 2 && !running")
    told = page.locator(".turn.assistant .from").first.inner_text()
    assert "ឆ្លើយដោយ khmer-numbers · ជ្រើសតាមសំណួរ" in told and NUMBERS.digest[:12] in told
    assert page.locator(".others button").all_inner_texts() == ["khmer"]
    page.click(".others button")
    page.wait_for_function("turns.length == 2 && !running && !turns.at(-1).route")
    assert gateway.engines[0].asked[-1]["model"] == ROUTED.names[1]
    assert page.input_value("#model") == "khmer-auto"
    ask(page, "ខុសហើយ")
    page.wait_for_function("turns.length == 4 && !running")
    assert "ចម្លើយមុនមិនទាន់ល្អ" in page.locator(".turn.assistant .from").nth(1).inner_text()
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.click("#language")
    assert "answered by khmer-numbers" in page.locator(".turn.assistant .from").nth(1).inner_text()
    with page.expect_download() as download:
        page.click("#export")
    turns = json.loads(Path(download.value.path()).read_text())["turns"]
    assert (turns[3]["route"], turns[3]["reason"]) == ("khmer-numbers", "dissatisfied")


def test_an_answer_is_stopped_repeated_and_what_failed_is_told(gateway, page):
    gateway.engines[0].mood = "slow"
    ask(page, "យឺត")
    page.wait_for_function("turns.at(-1).content")
    page.click("#stop")
    page.wait_for_function("!running")
    assert gateway.record("cancelled")["output"] == WORDS[0]
    gateway.engines[0].mood = "refusing"
    page.click("#retry")
    page.wait_for_function("turns.at(-1).failed")
    assert "too many tokens" in page.locator(".failed").inner_text()
    gateway.engines[0].mood = "well"
    page.click("#retry")
    page.wait_for_function(f"turns.at(-1).content == {json.dumps(ANSWER)}")


def test_the_system_prompt_is_sent_and_the_key_kept(gateway, page):
    page.click("#settings summary")
    page.fill("#system", "ឆ្លើយខ្លីៗ")
    page.press("#system", "Tab")
    page.reload()
    page.wait_for_selector("#model option", state="attached")
    assert page.input_value("#key") == gateway.key
    ask(page, "សួស្តី")
    page.wait_for_function("turns.length == 2 && !running")
    assert gateway.engines[0].asked[-1]["messages"][0] == {"role": "system", "content": "ឆ្លើយខ្លីៗ"}


def test_it_opens_with_the_key_of_its_address_which_is_kept_out_of_sight_and_offers_questions(gateway, page):
    page.evaluate("sessionStorage.clear()")
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{gateway.address}/?a=1#key={gateway.key}")
    page.wait_for_selector("#examples")
    assert page.url == f"{gateway.address}/?a=1" and gateway.key not in page.content()
    assert gateway.key not in page.evaluate("JSON.stringify(localStorage)")
    assert page.locator("#examples button").count() == 3
    for selector in ("#examples button", "#question", ".turn.assistant"):
        if selector == ".turn.assistant":
            page.click("#examples button >> nth=1")
            page.wait_for_function("turns.length == 2 && !running")
        assert page.evaluate(f"parseFloat(getComputedStyle(document.querySelector('{selector}')).fontSize)") >= 18
    assert gateway.engines[0].asked[-1]["messages"][0]["content"] == "តើរាជធានីនៃប្រទេសកម្ពុជាឈ្មោះអ្វី?"
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.goto(f"{gateway.address}/?a=1#key=another")
    page.wait_for_function("sessionStorage.getItem('khmer.key') == 'another' && !location.hash")


def test_it_speaks_two_languages_and_fits_a_phone(page):
    assert page.get_attribute("html", "lang") == "km"
    page.click("#language")
    assert page.inner_text("#send") == "Send"
    assert page.evaluate("document.documentElement.scrollWidth") == 360
