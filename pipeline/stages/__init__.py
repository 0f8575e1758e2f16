"""One verb per file; a stage reads one artifact from disk and writes the next."""
