"""Programs under the names that users of vLLM start them by."""
