"""Whether an ONNX file gains by half precision: its weights alone, and all of its computation.

    python benchmarks/half.py [--model fashion_mnist_fast] [--runtime DIR]

writes the model with float32 weights, with float16 weights that are used in float32, and with everything in float16 by the converter of onnxruntime.
It prints the bytes of each file, the seconds of CPU time for a call with 2 images, and the largest difference from the first file at 8 noise levels.
With the folder `dist` of the npm package onnxruntime-web it does so in WebAssembly too, which takes Node. It needs the extra `onnx`.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.transformers.float16 import convert_float_to_float16

from diffnb.model import GenerativeModel

IN_NODE = """
import fs from 'fs';
const [dist, given, ...paths] = process.argv.slice(2), ort = await import(dist + '/ort.wasm.min.mjs');
ort.env.wasm.numThreads = 1; ort.env.wasm.wasmPaths = 'file://' + dist + '/';
const {x, levels, label, shape} = JSON.parse(fs.readFileSync(given)), n = levels.length;
const feeds = {x: new ort.Tensor('float32', Float32Array.from(x), [n, ...shape]),
  half_log_snr: new ort.Tensor('float32', Float32Array.from(levels), [n]),
  label: new ort.Tensor('int64', BigInt64Array.from(label.map(BigInt)), [n])};
const sessions = [];
for (const path of paths) sessions.push(await ort.InferenceSession.create(fs.readFileSync(path)));
const times = paths.map(() => Infinity), out = [];
for (let round = 0; round < 8; round++) for (const [k, session] of sessions.entries()) {
  const begin = process.cpuUsage();
  out[k] = (await session.run(feeds)).x0.data;
  const {user, system} = process.cpuUsage(begin);
  times[k] = Math.min(times[k], (user + system) / 1e6);
}
console.log(JSON.stringify(paths.map((_, k) => [times[k], Math.max(...out[k].map((v, i) => Math.abs(v - out[0][i])))])));
"""


def inputs(card, n):
    """Noisy inputs at levels over the whole range, with all kinds of labels."""
    rng, levels = np.random.default_rng(0), np.linspace(*card["half_log_snr"], n).astype(np.float32)
    x = np.exp(-levels)[:, None, None, None] * rng.standard_normal((n, *card["shape"]))
    return {"x": x.astype(np.float32), "half_log_snr": levels, "label": np.arange(n) % (len(card["labels"]) + 1) - 1}


def in_python(paths, card):
    """Seconds for 2 images, the least of 8 rounds, and the largest difference from the first file at 8 levels."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]) for path in paths]
    times, two = [float("inf")] * len(paths), inputs(card, 2)
    for _ in range(8):
        for k, session in enumerate(sessions):
            start = time.process_time()
            session.run(None, two)
            times[k] = min(times[k], time.process_time() - start)
    answers = [session.run(None, inputs(card, 8))[0] for session in sessions]
    return [(seconds, float(np.abs(one - answers[0]).max())) for seconds, one in zip(times, answers)]


def in_node(paths, card, runtime, folder):
    """The same in WebAssembly; the difference is that of the two images."""
    two = inputs(card, 2)
    given = {"x": two["x"].ravel().tolist(), "levels": two["half_log_snr"].tolist(), "label": two["label"].tolist(), "shape": card["shape"]}
    (folder / "given.json").write_text(json.dumps(given))
    (folder / "run.mjs").write_text(IN_NODE)
    words = ["node", str(folder / "run.mjs"), str(runtime.absolute()), str(folder / "given.json"), *map(str, paths)]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def main():
    """Write, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fashion_mnist_fast", help="packaged model or model file")
    parser.add_argument("--runtime", type=Path, help="folder dist of the unpacked npm package onnxruntime-web")
    wanted = parser.parse_args()
    model = (GenerativeModel.load if Path(wanted.model).exists() else GenerativeModel.pretrained)(wanted.model, "cpu", verbose=False)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        plain, kept = (model.export(folder / f"{weights}.onnx", weights=weights) for weights in ("float32", "float16"))
        onnx.save(convert_float_to_float16(onnx.load(plain.path), keep_io_types=True), folder / "all.onnx")
        paths = [plain.path, kept.path, folder / "all.onnx"]
        found = {"onnxruntime": in_python(paths, plain.card)}
        if wanted.runtime:
            found["onnxruntime-web"] = in_node(paths, plain.card, wanted.runtime, folder)
        for runtime, rows in found.items():
            for path, (seconds, difference) in zip(paths, rows):
                print(f"{runtime:16s} {path.stem:8s} {path.stat().st_size:11,} bytes {seconds:6.3f} s, difference {difference:.1e}", flush=True)


if __name__ == "__main__":
    main()
