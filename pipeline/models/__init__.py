"""One Lightning module per method, readable top to bottom; a method is `Translator`."""
