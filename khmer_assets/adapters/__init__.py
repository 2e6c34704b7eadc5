"""Adapters for one domain each, from their chats to their release; trained on the merged model and served beside it."""
