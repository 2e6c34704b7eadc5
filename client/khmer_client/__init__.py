"""Typed questions about Khmer and English texts, for vLLM, llama.cpp or any other OpenAI-compatible server.

    from openai import OpenAI
    from khmer_client import KhmerClient

    khmer = KhmerClient(OpenAI(base_url="http://127.0.0.1:8000/v1", api_key=KEY))
    khmer.correct_grammar("ខ្ញុំទៅសាលារៀន").corrected

What belongs here: the clients. What does not: what is asked (`tasks.py`) and what comes back (`answers.py`).
"""

from khmer_client.answers import Correction, Dialogue, Explanation, Fluency, Vocabulary
from khmer_client.clients import AnswerError, AsyncKhmerClient, KhmerClient

__all__ = [
    "AnswerError",
    "AsyncKhmerClient",
    "Correction",
    "Dialogue",
    "Explanation",
    "Fluency",
    "KhmerClient",
    "Vocabulary",
]
