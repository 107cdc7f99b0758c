"""What compartments are: :func:`stxtools.tl.describe`."""
