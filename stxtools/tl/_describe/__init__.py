"""Names of compartments: :func:`stxtools.tl.describe`."""
