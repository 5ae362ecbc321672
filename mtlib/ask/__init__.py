"""A multimodal model behind any OpenAI-compatible server: client, replies, ledger, questions and their parsing."""
