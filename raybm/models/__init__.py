"""Where a model comes from: references, the tokenizers trained for one, chat templates, conversion."""
