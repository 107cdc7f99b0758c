"""The joint model of U-Net, region graph and GNN."""
