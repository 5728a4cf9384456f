"""Train the Fashion-MNIST classifier that comes inside the package, on the 60,000 training images, on one CPU thread.

    python benchmarks/train_classifier.py --data ROOT [--epochs 10] [--out FILE]

ROOT is laid out as torchvision does. The weights are written with the normalisation folded in, in half precision; FILE defaults to the
packaged file. The accuracy is that of the file as it was written, on the 10,000 test images, which training never looks at. It is
printed and written to benchmarks/results/classifier.json.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import diffnb
from diffnb.data import image_set
from diffnb.metrics import FashionClassifier, fashion_network, fold_normalisation

PACKAGED = Path(diffnb.__file__).parent / "assets" / "fashion_mnist_classifier.safetensors"
RESULT = Path(__file__).parent / "results" / "classifier.json"
SHIFT = 2  # pixels, of the augmentation


def augment(images):
    """Shift each image by up to two pixels, and mirror half of them."""
    n, _, height, width = images.shape
    padded = F.pad(images, [SHIFT] * 4)
    rows = torch.randint(2 * SHIFT + 1, (n, 1)) + torch.arange(height)
    columns = torch.randint(2 * SHIFT + 1, (n, 1)) + torch.arange(width)
    columns = torch.where(torch.rand(n, 1) < 0.5, columns, columns.flip(1))
    return padded[torch.arange(n)[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


def train(network, images, labels, epochs, batch_size, lr):
    """Minimise the cross-entropy; the learning rate rises and falls once."""
    network.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.02)
    per_epoch = len(images) // batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * per_epoch, pct_start=0.2)
    start = time.time()
    for epoch in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(images))[: per_epoch * batch_size].split(batch_size):
            x = augment(images[batch]).float() / 255
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(network(x.contiguous(memory_format=torch.channels_last)), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"  epoch {epoch + 1} of {epochs}: loss {total / per_epoch:.4f}, {time.time() - start:.0f} s", flush=True)
    return network


def main():
    """Train, write, read back, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of the data sets")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=PACKAGED)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    sets = {split: image_set("fashion_mnist", split=split, root=args.data, verbose=False) for split in ("train", "test")}
    start = time.time()
    network = train(fashion_network(), sets["train"].images, sets["train"].labels, args.epochs, args.batch_size, args.lr)
    minutes = (time.time() - start) / 60
    tensors = {k: v.detach().half().contiguous() for k, v in fold_normalisation(network).state_dict().items()}
    save_file(tensors, args.out)

    classifier = FashionClassifier(args.out)
    accuracy, seconds = {}, time.process_time()
    for split, images in sets.items():
        guess = torch.cat([classifier.probabilities(part.float() / 255).argmax(1) for part in images.images.split(1000)])
        accuracy[split] = (guess == images.labels).double().mean().item()
    speed = sum(map(len, sets.values())) / (time.process_time() - seconds)
    print(f"accuracy {accuracy['test']:.4f} on 10,000 test images, {accuracy['train']:.4f} on 60,000 training images")
    print(f"{speed:.0f} images/s on one thread; {args.out.stat().st_size} bytes; trained in {minutes:.1f} minutes")
    result = {"epochs": args.epochs, "batch_size": args.batch_size, "lr": args.lr, "seed": args.seed, "accuracy_test": accuracy["test"]}
    result |= {"accuracy_train": accuracy["train"], "images_per_second": round(speed), "bytes": args.out.stat().st_size, "minutes": round(minutes, 1)}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
