"""The router: learned from what the model and its adapters answer to held-out chats, and served as `khmer-auto`."""
