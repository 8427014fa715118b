"""Data sets of tests: numbered examples, by which a batch shows what it holds, and items that are no tensors."""

import torch
from torch.utils.data import Dataset, TensorDataset


def numbered(size: int) -> TensorDataset:
    return TensorDataset(torch.arange(size, dtype=torch.float32)[:, None], torch.arange(size) % 10)


class Items(Dataset):
    """A map-style data set without tensors to index."""

    def __init__(self, items: list) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        return self.items[index]
