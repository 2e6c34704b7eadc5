"""Chats that teach a base model to answer: written and composed, validated, split."""
