"""Architectures, one per file; they arrive in a method as constructor arguments."""
