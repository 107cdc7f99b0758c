"""The results as one HTML file: a map, the biomarkers, the training curves and all parameters."""
