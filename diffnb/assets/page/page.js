"use strict";
// The page: reads network and runtime, which are scripts because a page from a disk may read nothing else, and draws.
const Page = (() => {
  const SAMPLER_NAMES = { consistency: "Consistency", ddim: "DDIM", "dpm-solver++2m": "DPM-Solver++(2M)" };
  const card = window.DIFFNB.card;
  const [channels, height, width] = card.shape;
  const size = channels * height * width;
  const at = (id) => document.getElementById(id);

  function say(text, wrong = false) {
    at("status").textContent = text;
    at("status").classList.toggle("wrong", wrong);
  }

  // a script that leaves text in window.DIFFNB[name]: base64 of what gzip made
  async function unpacked(name) {
    await new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = `${name}.js`;
      script.onload = resolve;
      script.onerror = () => reject(new Error(`${name}.js is missing beside this page; make the folder again`));
      document.head.append(script);
    });
    const text = window.DIFFNB[name];
    delete window.DIFFNB[name];
    const packed = await (await fetch(`data:application/octet-stream;base64,${text}`)).blob();
    return new Response(packed.stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  }

  async function start() {
    const [api, glue, binary, model] = await Promise.all(["api", "glue", "wasm", "model"].map(unpacked));
    const place = (data, kind) => URL.createObjectURL(new Blob([data], { type: kind }));
    const ort = await import(place(api, "text/javascript"));
    ort.env.wasm.wasmPaths = { mjs: place(glue, "text/javascript"), wasm: place(binary, "application/wasm") };
    ort.env.wasm.numThreads = 1; // several need headers that only a server can send
    const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
    return { ort, session };
  }

  // the network as a function of y = x / alpha and half the log-SNR; a guided one is asked twice, in one batch
  function asker({ ort, session }, label, scale) {
    const labels = card.labels.length === 0 ? null : label === null || scale === 1 ? [label ?? -1] : [-1, label];
    const n = labels?.length ?? 1;
    return async (y, halfLogSnr) => {
      const x = new Float32Array(n * size);
      for (let k = 0; k < n; k++) x.set(y, k * size);
      const feeds = {
        x: new ort.Tensor("float32", x, [n, channels, height, width]),
        half_log_snr: new ort.Tensor("float32", new Float32Array(n).fill(halfLogSnr), [n]),
      };
      if (labels) feeds.label = new ort.Tensor("int64", BigInt64Array.from(labels.map(BigInt)), [n]);
      const { x0 } = await session.run(feeds);
      if (n === 1) return x0.data.slice();
      return x0.data.slice(0, size).map((without, i) => without + scale * (x0.data[size + i] - without));
    };
  }

  // values in [-1, 1] as pixels
  function paint(canvas, values, scale = 1) {
    canvas.width = width;
    canvas.height = height;
    const pixels = new ImageData(width, height);
    for (let i = 0; i < width * height; i++) {
      for (let c = 0; c < 3; c++) {
        const value = values[(channels === 1 ? 0 : c) * width * height + i] * scale;
        pixels.data[4 * i + c] = Math.round(255 * Math.min(Math.max((value + 1) / 2, 0), 1));
      }
      pixels.data[4 * i + 3] = 255;
    }
    canvas.getContext("2d").putImageData(pixels, 0, 0);
  }

  function addState({ step, steps, y, x0, kappa }) {
    const item = document.createElement("li");
    const noisy = document.createElement("canvas");
    const clean = document.createElement("canvas");
    paint(noisy, y, 1 / Math.hypot(1, kappa));
    paint(clean, x0);
    for (const [canvas, what] of [[noisy, "what the network was given"], [clean, "what it predicts"]]) {
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `Step ${step} of ${steps}, noise level ${kappa.toPrecision(3)}: ${what}`);
    }
    item.append(noisy, clean, Number(kappa.toPrecision(2)).toString());
    at("states").append(item);
  }

  // settings: {seed (BigInt), label (index or null), sampler, steps, scale}; resolves to the image, values in [0, 1]
  async function draw(settings) {
    const model = await ready;
    const { seed, label, sampler, steps, scale } = settings;
    const normal = (stream, number) => Noise.normal(seed, 0, stream, number, size);
    const started = performance.now();
    at("states").replaceChildren();
    let image = null;
    for await (const state of Sampling.sample(asker(model, label, scale), card.levels[sampler][steps - 1], { sampler, steps, normal })) {
      paint(at("picture"), (image = state.x0));
      addState(state);
      say(`Step ${state.step} of ${steps}`);
      await new Promise((resolve) => setTimeout(resolve)); // the browser shows it, and stays awake to its reader
    }
    const seconds = (performance.now() - started) / 1000;
    const what = label === null ? "An image" : `An image of the class ${nameOf(label)}`;
    at("picture").setAttribute("aria-label", `${what}, drawn with seed ${seed}`);
    say(`${steps} ${steps === 1 ? "step" : "steps"} in ${seconds.toFixed(1)} seconds`);
    return { image: Array.from(image, (v) => Math.min(Math.max((v + 1) / 2, 0), 1)), seconds };
  }

  const nameOf = (label) => String((card.names ?? card.labels)[label]);

  function settings() {
    const text = at("seed").value.trim();
    if (!/^\d{1,20}$/.test(text) || BigInt(text) >= 2n ** 64n) throw new Error(`A seed is a whole number from 0 to 2^64 - 1; ${text || "nothing"} is none.`);
    const label = at("class").value === "" ? null : Number(at("class").value);
    const scale = label === null || card.distilled ? 1 : Number(at("guidance").value);
    return { seed: BigInt(text), label, sampler: at("sampler").value, steps: Number(at("steps").value), scale };
  }

  function python({ seed, label, sampler, steps, scale }) {
    const own = card.own === sampler ? "" : `model.sampler = ${JSON.stringify(sampler)}\n`;
    const labels = label === null ? "" : `, class_labels=${JSON.stringify((card.names ?? card.labels)[label])}`;
    const guided = scale === 1 ? "" : `, guidance_scale=${scale}`;
    return `from diffnb import GenerativeModel\n\nmodel = ${card.python}\n${own}model.generate(n_steps=${steps}, seed=${seed}${labels}${guided})`;
  }

  function show() {
    at("steps-shown").textContent = at("steps").value;
    at("guidance-shown").textContent = at("class").value === "" ? "needs a class" : at("guidance").value;
    at("guidance").disabled = at("class").value === "";
    try {
      at("python").textContent = python(settings());
    } catch {
      // a seed that is being typed
    }
  }

  function build() {
    at("class-row").hidden = card.labels.length === 0;
    at("guidance-row").hidden = card.labels.length === 0 || card.distilled;
    at("class").append(new Option("none", ""), ...card.labels.map((_, i) => new Option(nameOf(i), i, i === 0, i === 0)));
    const names = Object.keys(card.levels);
    at("sampler").append(...names.map((name) => new Option(SAMPLER_NAMES[name], name)));
    at("sampler").value = names.includes(card.sampler.name) ? card.sampler.name : names.at(-1);
    at("steps").max = card.levels[names[0]].length;
    at("steps").value = Math.min(card.sampler.n_steps, card.distilled ? 8 : 20);
    at("foot").textContent = card.foot;
    paint(at("picture"), new Float32Array(size));
    at("form").addEventListener("input", show);
    at("another").addEventListener("click", () => {
      at("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
      show();
    });
    at("form").addEventListener("submit", async (event) => {
      event.preventDefault();
      at("draw").disabled = true;
      try {
        await draw(settings());
      } catch (error) {
        say(error.message, true);
      }
      at("draw").disabled = false;
    });
    show();
  }

  build();
  say("The network is being read.");
  const ready = start();
  ready.then(
    () => {
      at("draw").disabled = false;
      say("Ready.");
    },
    (error) => say(`The network cannot run here: ${error.message}`, true),
  );
  return { ready, draw };
})();
