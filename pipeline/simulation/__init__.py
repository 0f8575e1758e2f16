"""CBCT physics: spectrum, materials, projection, scatter, noise, reconstruction, calibration."""
