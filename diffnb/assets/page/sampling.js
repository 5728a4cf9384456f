"use strict";
// Samplers in y = x / alpha, where a process is nothing but its noise levels kappa = sigma / alpha, and one of them is all that a step needs.
const Sampling = (() => {
  // n levels from kappa = exp(-low) down to exp(-high), equally spaced in `scale` of half the log-SNR
  function spaced(card, n, scale, inverse) {
    const [low, high] = card.half_log_snr;
    const [first, last] = [scale(low), scale(high)];
    return Array.from({ length: n }, (_, i) => {
      if (i === 0) return Math.exp(-low);
      if (i === n - 1) return Math.exp(-high);
      return Math.exp(-inverse(first + ((last - first) * i) / (n - 1)));
    });
  }
  const logSnr = (card, n) => spaced(card, n, (v) => v, (v) => v);
  const karras = (card, n) => spaced(card, n, (v) => Math.exp(-v / 7), (v) => -7 * Math.log(v));

  // each sampler: its levels, and a step from one to the next.
  // `now` is {y, x0, kappa}, `before` the same one step earlier, `noise` draws the numbers of this step.
  const SAMPLERS = {
    consistency: {
      levels: (card, n) => karras(card, n + 1),
      // to the end of the flow, and noised again to the next level
      step(now, next, before, noise, last) {
        const z = noise();
        const added = Math.sqrt(Math.max(next ** 2 - last ** 2, 0));
        return now.x0.map((x0, i) => x0 + added * z[i]);
      },
    },
    ddim: {
      levels: logSnr,
      // the prediction stays, the noise shrinks
      step: (now, next) => now.x0.map((x0, i) => x0 + (next / now.kappa) * (now.y[i] - x0)),
    },
    "dpm-solver++2m": {
      levels: karras,
      // the prediction is a line in half the log-SNR through the newest two, the first step takes the newest alone
      step(now, next, before) {
        const h = Math.log(now.kappa / next);
        const share = before ? h / (2 * Math.log(before.kappa / now.kappa)) : 0;
        return now.x0.map((x0, i) => {
          const line = before ? x0 + share * (x0 - before.x0[i]) : x0;
          return (next / now.kappa) * now.y[i] - Math.expm1(-h) * line;
        });
      },
    },
  };

  // yields {step, steps, y, x0, kappa} for each evaluation; the x0 of the last is the image. `ask(y, half_log_snr)` is the network.
  async function* sample(ask, card, { sampler, steps, normal }) {
    const { levels, step } = SAMPLERS[sampler];
    const kappas = levels(card, steps);
    let y = normal("prior", 0).map((z) => z * kappas[0]);
    let before = null;
    for (let i = 0; i < steps; i++) {
      const now = { y, kappa: kappas[i], x0: await ask(y, -Math.log(kappas[i])) };
      yield { step: i + 1, steps, ...now };
      if (i + 1 === steps) return; // on the levels of `consistency`, which are one more, the next is the image itself
      y = step(now, kappas[i + 1], before, () => normal("step", i), kappas[kappas.length - 1]);
      before = now;
    }
  }

  return { SAMPLERS, sample, karras, logSnr };
})();
if (typeof module !== "undefined") module.exports = Sampling;
