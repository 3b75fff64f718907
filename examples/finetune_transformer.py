"""Fine-tuning a pre-trained transformer encoder with few labels: AdamW against Fisher SAM and Adam-TRACER.

The data is made on the spot. A "language" is a random table of which token follows which. The encoder is pre-trained to
fill in hidden tokens of sequences of all languages and saved; then it learns to tell the languages apart from a few
labelled sequences of each. AdamW also runs with twice the steps, which takes the same time.

    python examples/finetune_transformer.py            five seeds
    python examples/finetune_transformer.py --quick    one seed, few steps
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import sharpkern

LANGUAGES, TOKENS, LENGTH, WIDTH = 8, 12, 24, 32
HIDDEN = TOKENS  # the token that hides another one
FEW, TEST = 4, 125  # labelled sequences of each language
LR = 1e-3

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
# what is compared: title, optimizer, multiple of the steps
METHODS: tuple[tuple[str, Make, int], ...] = (
    ("AdamW", partial(torch.optim.AdamW, lr=LR), 1),
    ("AdamW, twice the steps", partial(torch.optim.AdamW, lr=LR), 2),
    ("Fisher SAM with AdamW", partial(sharpkern.FisherSAM, base_optimizer=torch.optim.AdamW, lr=LR), 1),
    # its penalty wants a larger eps than Adam's own
    ("Adam-TRACER", partial(sharpkern.TRACER, base_optimizer=torch.optim.Adam, lr=LR, eps=1e-4), 1),
)


class Encoder(nn.Module):
    """Tokens (n, LENGTH) to features (n, LENGTH, WIDTH)."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(TOKENS + 1, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, nhead=4, dim_feedforward=2 * WIDTH, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, num_layers=2)

    def forward(self, x: Tensor) -> Tensor:
        """The features."""
        features: Tensor = self.layers(self.tokens(x) + self.places)
        return features


def speak(tables: Tensor, labels: Tensor) -> Tensor:
    """A sequence (LENGTH,) for every label, drawn from the table of its language."""
    x = [torch.randint(TOKENS, labels.shape)]
    for _ in range(LENGTH - 1):
        x.append(torch.multinomial(tables[labels, x[-1]], 1).squeeze(1))
    return torch.stack(x, 1)


def pretrain(tables: Tensor, steps: int, path: Path) -> float:
    """Trains an encoder to fill in a sixth of the tokens, saves it, and gives the loss of the last tenth of steps."""
    encoder, head = Encoder(), nn.Linear(WIDTH, TOKENS)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=3e-3)
    losses = []
    for _ in range(steps):
        x = speak(tables, torch.randint(LANGUAGES, (128,)))
        hidden = torch.rand(x.shape) < 1 / 6
        loss = cross_entropy(head(encoder(x.masked_fill(hidden, HIDDEN)))[hidden], x[hidden])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    torch.save(encoder.state_dict(), path)
    return statistics.mean(losses[-max(1, steps // 10) :])


def finetune(make_optimizer: Make, tables: Tensor, path: Path, steps: int, seed: int) -> float:
    """Trains encoder and classifier from the checkpoint and gives its accuracy on new sequences, in percent."""
    torch.manual_seed(seed)  # the same sequences and initial head for every optimizer
    labels, test_labels = (torch.arange(LANGUAGES).repeat(count) for count in (FEW, TEST))
    x, test_x = speak(tables, labels), speak(tables, test_labels)
    encoder, head = Encoder(), nn.Linear(WIDTH, LANGUAGES)
    encoder.load_state_dict(torch.load(path))
    optimizer = make_optimizer([*encoder.parameters(), *head.parameters()])

    def closure() -> Tensor:  # AdamW calls it once, the others twice
        optimizer.zero_grad()
        loss = cross_entropy(head(encoder(x).mean(1)), labels)
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    with torch.no_grad():
        right = head(encoder(test_x).mean(1)).argmax(1) == test_labels
    return 100 * right.float().mean().item()


def main() -> None:
    """Pre-trains once, fine-tunes with every method and prints the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, few steps")
    quick = parser.parse_args().quick
    seeds, steps, pre_steps = (1, 20, 40) if quick else (5, 100, 1500)
    torch.manual_seed(0)
    tables = torch.distributions.Dirichlet(torch.full((TOKENS,), 0.3)).sample((LANGUAGES, TOKENS))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.pt"
        loss = pretrain(tables, pre_steps, path)
        print(f"pre-trained in {pre_steps} steps: loss {loss:.3f} nats a hidden token")
        print(f"test accuracy in percent, {FEW} labels a language, seeds: {seeds}, steps: {steps}")
        for title, make_optimizer, factor in METHODS:
            found = [finetune(make_optimizer, tables, path, factor * steps, seed) for seed in range(seeds)]
            error = f" ± {statistics.stdev(found) / seeds**0.5:.2f}" if seeds > 1 else ""
            print(f"{title:22} {statistics.mean(found):6.2f}{error}")


if __name__ == "__main__":
    main()
