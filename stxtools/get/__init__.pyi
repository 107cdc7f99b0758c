from ._biomarkers import biomarkers as biomarkers
from ._compare import compare as compare
from ._describe import describe as describe
from ._evaluation import evaluation as evaluation
from ._probabilities import probabilities as probabilities
from ._regions import regions as regions
from ._segments import segments as segments
