"""Pure functions from volumes to volumes: resampling, masks, the film grid, optical flow."""
