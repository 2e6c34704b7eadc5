"""Base checkpoint and chats -> LoRA adapter -> merged model."""
