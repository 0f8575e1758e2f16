"""Reports of scores: tables, figures and a self-contained page."""
