"""The embedded corpus and chats, and what composes more of them."""
