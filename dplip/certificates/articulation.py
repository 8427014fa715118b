"""The articulation points of a model: values that all later values are computed from."""

from __future__ import annotations

from torch import fx

from dplip.propagation.traced_model import TracedModel


def articulation_points(model: TracedModel) -> list[fx.Node]:
    """The nodes, in order, such that all later values depend on the input through that node alone."""
    order = {operation.node: i for i, operation in enumerate(model.calls())}
    found: list[fx.Node] = []
    reach = max([-1, *(order.get(user, -1) for user in model.start().users)])
    for node, i in order.items():
        if node is model.output():
            break
        if reach <= i:
            found.append(node)
        reach = max([reach, *(order.get(user, -1) for user in node.users)])
    return found
