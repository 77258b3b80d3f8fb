"""Analysis: measures and probes of trained models. Nothing here trains a tokenizer or a generator."""
