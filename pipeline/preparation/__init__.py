"""From volumes on disk to films: one case at a time, and the plan that all cases share."""
