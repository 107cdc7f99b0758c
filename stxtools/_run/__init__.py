"""``python -m stxtools``: all steps on one section or several, saved as they end, or one step on a file."""
