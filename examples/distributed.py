"""One private model in several processes, with the epsilon of one: digits, by the trainer or by a loop of one's own.

torchrun --standalone --nproc-per-node 2 examples/distributed.py
torchrun --standalone --nproc-per-node 2 examples/distributed.py --loop
python examples/distributed.py                                            # the same script in one process
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import dplip


def digits() -> tuple[TensorDataset, TensorDataset]:
    """scikit-learn's digits, in a fixed order: 1,500 to train on, 297 to test with."""
    x, y = load_digits(return_X_y=True)
    x, y = torch.as_tensor(x / 16, dtype=torch.float32), torch.as_tensor(y)
    return TensorDataset(x[:1500], y[:1500]), TensorDataset(x[1500:], y[1500:])


def network() -> nn.Module:
    return dplip.nn.bound_gradients(nn.Sequential(nn.Linear(64, 10)), radius=0.1)


def by_trainer(epsilon: float, epochs: int) -> tuple[float, float]:
    train, test = digits()
    model = network().to(dplip.distributed.device())
    trainer = dplip.DPLipTrainer(
        model,
        loss=dplip.losses.CrossEntropy(),
        optimizer=torch.optim.SGD(model.parameters(), lr=3.0, momentum=0.9),
        train_dataset=train,
        eval_dataset=test,
        batch_size=250,  # of all processes together
        epochs=epochs,
        target_epsilon=epsilon,
        progress=False,
        distributed="auto",
    )
    trainer.fit()
    return trainer.get_epsilon(), trainer.evaluate()["accuracy"]


def by_a_loop(epsilon: float, epochs: int) -> tuple[float, float]:
    train, test = digits()
    group, model = dplip.distributed.group(), network().to(dplip.distributed.device())
    wrapped = DistributedDataParallel(model) if group.size > 1 else model  # or model itself: it makes no difference
    engine, loss = dplip.PrivacyEngine(), dplip.losses.CrossEntropy()
    wrapped, optimizer, loader = engine.make_private_with_epsilon(
        module=wrapped,
        optimizer=torch.optim.SGD(wrapped.parameters(), lr=3.0, momentum=0.9),
        data_loader=DataLoader(train, batch_size=250),
        criterion=loss,
        target_epsilon=epsilon,
        target_delta=1e-5,
        epochs=epochs,
        distributed=group,
    )
    wrapped.train()
    for _ in range(epochs):
        for x, y in loader:  # this process's share of a batch
            optimizer.zero_grad()
            loss(wrapped(x), y).backward()
            optimizer.step()
    wrapped.eval()
    with torch.no_grad():
        x, y = test.tensors
        return engine.get_epsilon(1e-5), float((model(x).argmax(1) == y).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epsilon", type=float, default=3.0)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--loop", action="store_true", help="a loop of one's own, by PrivacyEngine")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    group = dplip.distributed.group()
    epsilon, accuracy = (by_a_loop if arguments.loop else by_trainer)(arguments.epsilon, arguments.epochs)
    if group.rank == 0:
        print(f"{group.size} processes: epsilon {epsilon!r}, accuracy {accuracy:.3f}")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
