"""Every variant of the model, measured on the same held-out text and chats, and the report that compares them."""
