"""Trains the recommender, and says how good it is beside the simplest predictions."""

import copy
import time

import torch
from torch import Tensor, nn

from dataset import Dataset, Ratings
from recommender import Recommender, untrained
from terminal import Progress

EPOCHS = 15
BATCH = 1024
#: Epochs without a better validation result after which training ends.
PATIENCE = 2


def train(data: Dataset) -> Recommender:
    """Returns the model of the epoch with the best validation result."""
    ratings = data.training
    model = untrained(data.rows, data.num_dense, float(ratings.rating.mean()))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=2e-5)
    generator = torch.Generator().manual_seed(1)
    steps = -(-len(ratings) // BATCH)
    progress = Progress(EPOCHS * steps)
    start = time.monotonic()
    best, best_error, best_epoch = copy.deepcopy(model.state_dict()), float("inf"), 0
    for epoch in range(1, EPOCHS + 1):
        model.train()
        order = torch.randperm(len(ratings), generator=generator)
        for step, positions in enumerate(order.split(BATCH), start=1):
            batch = ratings.take(positions)
            optimizer.zero_grad()
            nn.functional.mse_loss(model(*batch.inputs()), batch.rating).backward()
            optimizer.step()
            reached = f", validation RMSE {best_error:.4f}" if best_epoch else ""
            progress.show((epoch - 1) * steps + step, f"epoch {epoch}{reached}")
        error = rmse(predict(model, data.validation), data.validation.rating)
        if error < best_error:
            best, best_error, best_epoch = copy.deepcopy(model.state_dict()), error, epoch
        elif epoch - best_epoch >= PATIENCE:
            break
    model.load_state_dict(best)
    progress.finish(
        f"trained in {time.monotonic() - start:.0f} s; best of {epoch} epochs: {best_epoch}"
    )
    return model.eval()


@torch.no_grad()
def predict(model: nn.Module, ratings: Ratings) -> Tensor:
    """Returns the model's prediction for every rating."""
    model.eval()
    prediction: Tensor = model(*ratings.inputs())
    return prediction


def rmse(prediction: Tensor, rating: Tensor) -> float:
    """Returns the root of the mean squared error."""
    return float((prediction - rating).square().mean().sqrt())


def baselines(data: Dataset) -> dict[str, float]:
    """Returns the test RMSE of predictions that take no model."""
    training, test = data.training, data.test
    mean = training.rating.mean()
    of_item = _biases(training.item, training.rating - mean, data.rows["item"], 5)
    residual = training.rating - mean - of_item[training.item]
    of_user = _biases(training.user, residual, data.rows["user"], 5)
    with_biases = mean + of_item[test.item] + of_user[test.user]
    return {
        "mean rating": rmse(mean.expand(len(test)), test.rating),
        "mean + movie bias + user bias": rmse(with_biases, test.rating),
    }


def _biases(groups: Tensor, values: Tensor, num_groups: int, strength: float) -> Tensor:
    """Returns each group's mean, drawn towards zero where the group is small."""
    sums = torch.zeros(num_groups).index_add_(0, groups, values)
    return sums / (groups.bincount(minlength=num_groups) + strength)
