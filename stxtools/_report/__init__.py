"""One HTML file that shows what was found: a map, the biomarkers, the training, and all parameters."""
