"""Where cases come from: one file per layout, then the checks and the split that all layouts share."""
