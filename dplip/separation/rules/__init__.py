"""Rules of torch's operators: where each takes the dimensions of its arguments, one file for each family."""

from dplip.separation.rules import attention, elementwise, indexing, layers, made, products, reductions, shapes

__all__ = ["attention", "elementwise", "indexing", "layers", "made", "products", "reductions", "shapes"]
