from ._align import align as align
from ._normalize import normalize as normalize
from ._rasterize import rasterize as rasterize
from ._resample import add_noise as add_noise
from ._resample import split_counts as split_counts
