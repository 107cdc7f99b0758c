"""``python -m stxtools run``: all steps on one section or several, saved as they end."""
