#!/usr/bin/env python3
"""The multiway cut as a layer under a loss of your own: plain PyTorch, no Detectron2.

    python docs/examples/layer.py

Learns the costs of one small scene, a road (stuff) with two cars (things) that touch each other,
from random ones, by a squared loss on the classes x and the cuts y of the solution.
"""

import torch

from amwc_d2.amwc_layer import AMWCLayer
from amwc_d2.edges import cut_edges
from amwc_d2.estimators import Report

ROAD, CAR = 0, 1
DISTANCES = [1, 3]
HEIGHT, WIDTH = 12, 16


def scene():
    """True classes x (1, K, H, W), cuts y (1, D, 2, H, W) and segments z (1, H, W)."""
    z = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.int64)
    z[:, 4:9, 3:8], z[:, 4:9, 8:13] = 1, 2
    x = torch.nn.functional.one_hot((z > 0).long(), 2).permute(0, 3, 1, 2).float()
    return x, cut_edges(z, DISTANCES).float(), z


def main(steps: int = 20):
    torch.manual_seed(0)
    x_true, y_true, z_true = scene()
    node_costs = torch.randn(x_true.shape, requires_grad=True)
    edge_costs = torch.randn(y_true.shape, requires_grad=True)
    layer = AMWCLayer(
        DISTANCES,
        partitionable=[False, True],  # a road is one segment, cars are as many as there are
        lambda_range=(1.0, 5.0),  # the loss is a sum over cells: derivatives of about 1
    )
    optimizer = torch.optim.Adam([node_costs, edge_costs], lr=0.1)
    for step in range(steps + 1):
        report = Report()
        x, y, z = layer(node_costs, edge_costs, report=report)
        loss = ((x - x_true) ** 2).sum() + ((y - y_true) ** 2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 4 == 0:
            print(
                f"step {step:3d}: loss {loss.item():5.1f}, {int(z.max()) + 1:2d} segments, "
                f"{100 * report.flip_rate:4.1f} % of the cells moved by the perturbation"
            )
    return loss.item(), z, z_true


if __name__ == "__main__":
    main()
