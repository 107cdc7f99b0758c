"""PyTorch Geometric, without the warning of torch about what it calls while it is imported."""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
    from torch_geometric.nn import GATv2Conv as GATv2Conv
    from torch_geometric.nn import GCNConv as GCNConv
    from torch_geometric.typing import OptTensor as OptTensor
    from torch_geometric.utils import degree as degree
    from torch_geometric.utils import scatter as scatter
