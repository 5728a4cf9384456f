"use strict";
// The random numbers of diffnb (diffnb/core.py): normal numbers addressed by (seed, index, stream, draw), the same in any language.
const Noise = (() => {
  const WORD = 0xffffffffn;
  const MULTIPLIERS = [0xd2511f53, 0xcd9e8d57];
  const WEYL = [0x9e3779b9, 0xbb67ae85];
  const STREAMS = ["prior", "step", "corrector", "churn", "dropout", "probe", "training"];

  const upper = (a, b) => Number((BigInt(a) * BigInt(b)) >> 32n);
  const lower = (a, b) => Math.imul(a, b) >>> 0;

  // Philox4x32-10 of Salmon et al. (2011), section 3.3: four uint32 from a counter of four and a key of two
  function philox(counter, key) {
    let [c0, c1, c2, c3] = counter;
    let [k0, k1] = key;
    for (let round = 0; round < 10; round++) {
      const [m0, m1] = MULTIPLIERS;
      [c0, c1, c2, c3] = [(upper(m1, c2) ^ c1 ^ k0) >>> 0, lower(m1, c2), (upper(m0, c0) ^ c3 ^ k1) >>> 0, lower(m0, c0)];
      k0 = (k0 + WEYL[0]) >>> 0;
      k1 = (k1 + WEYL[1]) >>> 0;
    }
    return [c0, c1, c2, c3];
  }

  // standard normal numbers of one sample, by the transform of Box and Muller; `seed` is a BigInt below 2^64
  function normal(seed, index, stream, draw, size) {
    const key = [Number(seed & WORD), Number(seed >> 32n)];
    const numbers = new Float32Array(Math.ceil(size / 4) * 4);
    for (let block = 0; 4 * block < size; block++) {
      const words = philox([block, draw, index, STREAMS.indexOf(stream)], key);
      for (let pair = 0; pair < 4; pair += 2) {
        const radius = Math.sqrt(-2 * Math.log((words[pair] + 0.5) * 2 ** -32));
        const angle = (words[pair + 1] + 0.5) * (2 * Math.PI * 2 ** -32);
        numbers[4 * block + pair] = radius * Math.cos(angle);
        numbers[4 * block + pair + 1] = radius * Math.sin(angle);
      }
    }
    return numbers.subarray(0, size);
  }

  return { philox, normal };
})();
if (typeof module !== "undefined") module.exports = Noise;
