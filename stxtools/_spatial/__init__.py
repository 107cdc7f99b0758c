"""Geometry of sections: lattices, rasters, neighbour graphs and masks. Arrays in, arrays out."""
