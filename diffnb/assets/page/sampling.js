"use strict";
// Samplers in y = x / alpha, where a process is nothing but its noise levels kappa = sigma / alpha, and one of them is all that a step needs.
const Sampling = (() => {
  // each sampler is a step from one level to the next.
  // `now` is {y, x0, kappa}, `before` the same one step earlier, `noise` draws the numbers of this step.
  const SAMPLERS = {
    // to the end of the flow, and noised again to the next level
    consistency(now, next, before, noise, last) {
      const z = noise();
      const added = Math.sqrt(Math.max(next ** 2 - last ** 2, 0));
      return now.x0.map((x0, i) => x0 + added * z[i]);
    },
    // the prediction stays, the noise shrinks
    ddim: (now, next) => now.x0.map((x0, i) => x0 + (next / now.kappa) * (now.y[i] - x0)),
    // the prediction is a line in half the log-SNR through the newest two, the first step takes the newest alone
    "dpm-solver++2m"(now, next, before) {
      const h = Math.log(now.kappa / next);
      const share = before ? h / (2 * Math.log(before.kappa / now.kappa)) : 0;
      return now.x0.map((x0, i) => {
        const line = before ? x0 + share * (x0 - before.x0[i]) : x0;
        return (next / now.kappa) * now.y[i] - Math.expm1(-h) * line;
      });
    },
  };

  // yields {step, steps, y, x0, kappa} for each evaluation; the x0 of the last is the image. `ask(y, half_log_snr)` is the network,
  // `levels` are the values of half the log-SNR at which it is asked, and where a run ends at one more, that one too: the image is then
  // what the last step leaves there, with the noise of that level.
  async function* sample(ask, levels, { sampler, steps, normal }) {
    const kappas = levels.map((level) => Math.exp(-level));
    let y = normal("prior", 0).map((z) => z * kappas[0]);
    let before = null;
    for (let i = 0; i < steps; i++) {
      const now = { y, kappa: kappas[i], x0: await ask(y, levels[i]) };
      const ends = i + 1 === levels.length; // a closed grid ends at the last level that was asked at
      if (!ends) y = SAMPLERS[sampler](now, kappas[i + 1], before, () => normal("step", i), kappas[kappas.length - 1]);
      yield { step: i + 1, steps, ...now, x0: i + 1 === steps && !ends ? y : now.x0 };
      before = now;
    }
  }

  return { sample };
})();
if (typeof module !== "undefined") module.exports = Sampling;
