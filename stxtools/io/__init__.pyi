from ._annotations import read_annotations as read_annotations
from ._annotations import write_annotations as write_annotations
from ._read import read as read
from ._spatialdata import from_spatialdata as from_spatialdata
from ._spatialdata import to_spatialdata as to_spatialdata
