"""Three classifiers of handwritten digits, trained: a program as a PyTorch user writes it.

The demo runs this file twice, as it stands and with torch.nn for crossent.nn in its two import lines.
"""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import crossent.nn as nn
import crossent.nn.functional as F

EPOCHS = 30


def images_and_labels():
    """1,797 images of 8 x 8 pixels, as training images, test images, training labels, test labels."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16, dtype=torch.float32).view(-1, 8, 8)
    return train_test_split(images, torch.tensor(labels), test_size=0.25, random_state=0, stratify=labels)


def assembled_from_modules():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return list(model.parameters()), model, nn.CrossEntropyLoss()


class RowReader(nn.Module):
    """Reads an image from top to bottom, one row of pixels a step."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(8, 128, batch_first=True)
        self.head = nn.Linear(128, 10)
        self.log_softmax = nn.LogSoftmax(dim=1)

    def forward(self, images):
        states, _ = self.rnn(images)
        return self.log_softmax(self.head(states[:, -1]))


def recurrent():
    model = RowReader()
    return list(model.parameters()), model, nn.NLLLoss()


def functional():
    weights = [(torch.randn(64, 64) / 8).requires_grad_(), (torch.randn(10, 64) / 8).requires_grad_()]
    biases = [torch.zeros(64, requires_grad=True), torch.zeros(10, requires_grad=True)]

    def model(images):
        hidden = F.relu(F.linear(images.flatten(1), weights[0], biases[0]))
        return F.linear(hidden, weights[1], biases[1])

    return weights + biases, model, F.cross_entropy


CLASSIFIERS = {"modules": assembled_from_modules, "RNN by rows": recurrent, "functions": functional}


def train(build, seed=0):
    """Yields the training loss, the test loss and the test accuracy after each epoch."""
    train_images, test_images, train_labels, test_labels = images_and_labels()
    torch.manual_seed(seed)
    parameters, model, loss_function = build()
    optimizer = torch.optim.Adam(parameters, lr=0.003)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        total = 0.0
        for batch in torch.randperm(len(train_labels)).split(32):
            optimizer.zero_grad()
            loss = loss_function(model(train_images[batch]), train_labels[batch])
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            total += loss.item() * len(batch)
        schedule.step()
        with torch.no_grad():
            scores = model(test_images)
            accuracy = (scores.argmax(dim=1) == test_labels).float().mean()
            yield total / len(train_labels), loss_function(scores, test_labels).item(), accuracy.item()
