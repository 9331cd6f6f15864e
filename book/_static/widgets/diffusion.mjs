// The arithmetic of the interactive figures: the formulas of the package, in its notation. No page is needed to
// run it. tests/test_widgets.py holds every function against ddpm_lite.
//
// Arrays over time have T + 1 entries and are indexed by t itself; entry 0 is the clean data. A batch of points is
// one Float64Array, point after point.
//
// There is no import and no export, so that a page opened from the disk can load the file by a <script> element.

globalThis.ddpm = (() => {
  // β_1, ..., β_T -> ᾱ_0, ..., ᾱ_T.
  function alpha_bar_of(beta) {
    const alpha_bar = new Float64Array(beta.length + 1);
    alpha_bar[0] = 1;
    beta.forEach((b, i) => (alpha_bar[i + 1] = alpha_bar[i] * (1 - b)));
    return alpha_bar;
  }

  // ᾱ when β rises evenly. The default range is that of the paper, which belongs to T = 1000, times 1000 / T.
  function linear_schedule(T, first = 0.1 / T, last = 20 / T) {
    const step = T > 1 ? (last - first) / (T - 1) : 0;
    return alpha_bar_of(Array.from({ length: T }, (_, i) => first + step * i));
  }

  // ᾱ that falls like a squared cosine.
  function cosine_schedule(T, offset = 0.008, beta_max = 0.999) {
    const f = (t) => Math.cos(((t / T + offset) / (1 + offset)) * (Math.PI / 2)) ** 2;
    return alpha_bar_of(Array.from({ length: T }, (_, i) => Math.min(1 - f(i + 1) / f(i), beta_max)));
  }

  // ᾱ_1, ..., ᾱ_T evenly spaced in log SNR, from `most` down to `least`.
  function even_schedule(T, most, least) {
    const alpha_bar = new Float64Array(T + 1);
    alpha_bar[0] = 1;
    for (let t = 1; t <= T; t++) {
      alpha_bar[t] = 1 / (1 + Math.exp(-(most + ((least - most) * (t - 1)) / (T - 1))));
    }
    return alpha_bar;
  }

  const snr = (alpha_bar) => alpha_bar / (1 - alpha_bar);

  // T, ..., 0 in `steps` even steps ("trailing").
  function times(T, steps) {
    return Array.from({ length: steps + 1 }, (_, i) =>
      Math.floor(((steps - i) * T + Math.floor(steps / 2)) / steps),
    );
  }

  // The times of an even schedule whose noise is nearest, in log SNR, to that of a sampler which takes `steps` even
  // steps of another schedule; falling, without repetition, the last is 0.
  function times_like(even, alpha_bar, steps) {
    const T = even.length - 1;
    const most = Math.log(snr(even[1]));
    const gap = (most - Math.log(snr(even[T]))) / (T - 1);
    const nearest = times(alpha_bar.length - 1, steps).map((t) => {
      if (t === 0) return 0;
      const wanted = 1 + Math.round((most - Math.log(snr(alpha_bar[t]))) / gap);
      return Math.min(Math.max(wanted, 1), T);
    });
    return nearest.filter((t, i) => i === 0 || t < nearest[i - 1]);
  }

  // x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) ε
  function q_sample(x_0, eps, alpha_bar) {
    const signal = Math.sqrt(alpha_bar);
    const noise = Math.sqrt(1 - alpha_bar);
    return Float64Array.from(x_0, (x, i) => signal * x + noise * eps[i]);
  }

  // q(x_s | x_t, x_0): the weights of x_0 and x_t in the mean, and the variance.
  function q_posterior(alpha_bar_t, alpha_bar_s) {
    const alpha = alpha_bar_t / alpha_bar_s;
    return {
      weight_0: (Math.sqrt(alpha_bar_s) * (1 - alpha)) / (1 - alpha_bar_t),
      weight_t: (Math.sqrt(alpha) * (1 - alpha_bar_s)) / (1 - alpha_bar_t),
      variance: ((1 - alpha) * (1 - alpha_bar_s)) / (1 - alpha_bar_t),
    };
  }

  // x̂_0 = (x_t - √(1 - ᾱ_t) ε) / √ᾱ_t
  function predict_x_0(x_t, eps, alpha_bar) {
    const signal = Math.sqrt(alpha_bar);
    const noise = Math.sqrt(1 - alpha_bar);
    return Float64Array.from(x_t, (x, i) => (x - noise * eps[i]) / signal);
  }

  // One ancestral step from t to s with the posterior's variance, which is 0 at s = 0; z is standard normal.
  function ancestral_step(x_t, eps, alpha_bar_t, alpha_bar_s, z) {
    const x_0 = predict_x_0(x_t, eps, alpha_bar_t);
    const { weight_0, weight_t, variance } = q_posterior(alpha_bar_t, alpha_bar_s);
    const sigma = Math.sqrt(variance);
    return Float64Array.from(x_t, (x, i) => weight_0 * x_0[i] + weight_t * x + sigma * z[i]);
  }

  // One DDIM step from t to s with η = 0.
  function ddim_step(x_t, eps, alpha_bar_t, alpha_bar_s) {
    return q_sample(predict_x_0(x_t, eps, alpha_bar_t), eps, alpha_bar_s);
  }

  const silu = (x) => x / (1 + Math.exp(-x));

  // weight · x + bias for one vector, added to `out` from entry `at`.
  function addLinear({ weight, bias }, x, out, at = 0) {
    const n = x.length;
    for (let i = 0; i < bias.length; i++) {
      let sum = bias[i];
      for (let j = 0, k = i * n; j < n; j++, k++) sum += weight[k] * x[j];
      out[at + i] += sum;
    }
    return out;
  }

  // The ε-network `ddpm_lite.MLP` from its exported weights: a function (x_t, t) -> ε for a batch of points.
  function eps_network({ dim, width, unit, frequencies, layers }) {
    const layer = Object.fromEntries(
      Object.entries(layers).map(([name, values]) => [
        name,
        Float64Array.from(values, (value) => value * unit),
      ]),
    );
    const linear = (name) => ({ weight: layer[`${name}.weight`], bias: layer[`${name}.bias`] });
    const hidden = [];
    while (`hidden.${hidden.length}.weight` in layer) hidden.push(linear(`hidden.${hidden.length}`));
    const [first, last] = [linear("linear_in"), linear("linear_out")];
    const [time1, time2] = [linear("time_embedding.linear_1"), linear("time_embedding.linear_2")];

    function timeEmbedding(t) {
      const angles = frequencies.map((f) => Math.fround((t - 1) * f)); // in float32, as torch has them
      const sinusoids = Float64Array.from([...angles.map(Math.sin), ...angles.map(Math.cos)]);
      return addLinear(
        time2,
        addLinear(time1, sinusoids, new Float64Array(width)).map(silu),
        new Float64Array(width),
      );
    }

    return (x_t, t) => {
      const time = timeEmbedding(t);
      const eps = new Float64Array(x_t.length);
      const h = new Float64Array(width);
      const active = new Float64Array(width);
      for (let at = 0; at < x_t.length; at += dim) {
        addLinear(first, x_t.subarray(at, at + dim), h.fill(0));
        for (const each of hidden) {
          for (let i = 0; i < width; i++) active[i] = silu(h[i] + time[i]);
          addLinear(each, active, h);
        }
        for (let i = 0; i < width; i++) active[i] = silu(h[i]);
        addLinear(last, active, eps, at);
      }
      return eps;
    };
  }

  // n standard normal numbers; the same seed gives the same numbers (mulberry32 and Box-Muller).
  function normals(n, seed) {
    let state = seed >>> 0;
    const uniform = () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let bits = Math.imul(state ^ (state >>> 15), state | 1);
      bits ^= bits + Math.imul(bits ^ (bits >>> 7), bits | 61);
      return (((bits ^ (bits >>> 14)) >>> 0) + 0.5) / 2 ** 32;
    };
    return Float64Array.from(
      { length: n },
      () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform()),
    );
  }

  // Energy distance of two sets of points in the plane: 2 E|x - y| - E|x - x'| - E|y - y'|. For two laws it is 0 if
  // and only if they are the same; for samples of the same law it is small.
  function energy_distance(x, y) {
    const mean = (a, b) => {
      let sum = 0;
      for (let i = 0; i < a.length; i += 2) {
        for (let j = 0; j < b.length; j += 2) {
          sum += Math.sqrt((a[i] - b[j]) ** 2 + (a[i + 1] - b[j + 1]) ** 2);
        }
      }
      return (4 * sum) / (a.length * b.length);
    };
    return 2 * mean(x, y) - mean(x, x) - mean(y, y);
  }

  return {
    linear_schedule,
    cosine_schedule,
    even_schedule,
    snr,
    times,
    times_like,
    q_sample,
    q_posterior,
    predict_x_0,
    ancestral_step,
    ddim_step,
    eps_network,
    normals,
    energy_distance,
    widgets: {},
  };
})();
