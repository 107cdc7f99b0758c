"""From AnnData to arrays: expression, representations, sections and regions. Never changes the AnnData."""
