"""The tokenizer service: one process, started with `python -m quire_tokenizer`."""
