// A diffusion sampler: points on their way from noise to a spiral, by the network that the package has trained.
//
// The network knows T times that are even in log SNR. To a sampler a schedule is no more than the list of the noise
// levels that it visits, so one network serves all of them: each level is moved to the nearest time that it knows.

globalThis.ddpm.widgets.sampler = (live) => {
  const ddpm = globalThis.ddpm;
  const { h, symbol, number, ...ui } = ddpm.ui;

  const { T, most, least } = ddpm.network.schedule;
  const alpha_bar = ddpm.even_schedule(T, most, least);
  const network = ddpm.eps_network(ddpm.network);
  const SCHEDULES = {
    linear: ddpm.linear_schedule(1000),
    cosine: ddpm.cosine_schedule(1000),
    even: alpha_bar,
  };
  const STEPS = [1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100];
  const POINTS = 800;
  const spiral = Float64Array.from(ddpm.data.spiral, (x) => x / 1000);
  const still = matchMedia("(prefers-reduced-motion: reduce)");

  let seed = 1; // of the noise at the start
  let walk = 0; // how many walks there were; each has noise of its own on the way
  let times = []; // to visit
  let states = []; // found so far, the first at times[0]
  let at = 0; // which of them is shown
  let part = 0; // of the way to the next, while it moves
  let playing = false;

  const sampler = ui.select(
    { name: "sampler", label: "Sampler", options: { ancestral: "ancestral", ddim: "DDIM" } },
    restart,
  );
  const schedule = ui.select(
    {
      name: "schedule",
      label: "Schedule",
      options: { linear: "linear", cosine: "cosine", even: "even in log SNR" },
    },
    restart,
  );
  const steps = ui.slider(
    {
      name: "steps",
      label: "Steps",
      min: 0,
      max: STEPS.length - 1,
      value: STEPS.indexOf(20),
      says: (i) => STEPS[i],
    },
    restart,
  );
  const play = ui.button("play", "Play", () => (playing ? pause() : start()));
  const one = ui.button("step", "One step", () => {
    pause();
    if (at < last()) at += 1;
    draw();
  });
  const again = ui.button("back", "Back to the noise", restart);
  const fresh = ui.button("noise", "New noise", () => {
    seed += 1;
    restart();
  });

  const picture = ui.canvas(
    "800 points, coloured by where they were in the noise, on their way to a spiral, which is drawn in grey.",
    (context, side, colour) => {
      const colours = ui.ramp(
        states[0].filter((_, i) => i % 2 === 0),
        colour("blue"),
        colour("green"),
        colour("orange"),
      );
      ui.dots(context, side, spiral, side / 250, [colour("faint")]);
      const [from, to] = [state(at), part > 0 ? state(at + 1) : null];
      ui.dots(context, side, to ? from.map((x, i) => x + part * (to[i] - x)) : from, side / 190, colours);
    },
  );
  const where = h("p", { class: "ddpm-numbers" });
  const status = ui.announcer();
  live.append(
    h(
      "div",
      { class: "ddpm-sampler" },
      picture.box,
      h(
        "div",
        { class: "ddpm-controls" },
        sampler.control,
        schedule.control,
        steps.control,
        h("div", { class: "ddpm-buttons" }, play, one, again, fresh),
        where,
        status.element,
      ),
    ),
  );

  const last = () => times.length - 1;

  // The state after k steps, computed when it is asked for first.
  function state(k) {
    while (states.length <= k) {
      const [x_t, t, s] = [states.at(-1), times[states.length - 1], times[states.length]];
      const eps = network(x_t, t);
      states.push(
        sampler.value === "ddim"
          ? ddpm.ddim_step(x_t, eps, alpha_bar[t], alpha_bar[s])
          : ddpm.ancestral_step(
              x_t,
              eps,
              alpha_bar[t],
              alpha_bar[s],
              ddpm.normals(x_t.length, 1e6 + 1000 * walk + states.length),
            ),
      );
    }
    return states[k];
  }

  function restart() {
    pause();
    walk += 1;
    times = ddpm.times_like(alpha_bar, SCHEDULES[schedule.value], STEPS[steps.value]);
    states = [ddpm.normals(2 * POINTS, seed)];
    at = 0;
    draw();
  }

  function start() {
    if (at === last()) restart();
    if (still.matches) {
      at = last();
      draw();
      return;
    }
    playing = true;
    play.textContent = "Pause";
    const pace = Math.min(Math.max(4000 / last(), 30), 500); // milliseconds a step
    draw();
    let before = performance.now();
    requestAnimationFrame(function frame(now) {
      if (!playing) return;
      part += (now - before) / pace;
      before = now;
      if (part >= 1) {
        at += 1; // one step a frame at most: a slow machine takes longer, and leaves nothing out
        part = at < last() ? Math.min(part - 1, 0.99) : 0;
      }
      if (at === last()) pause();
      draw();
      requestAnimationFrame(frame);
    });
  }

  function pause() {
    playing = false;
    part = 0;
    play.textContent = "Play";
  }

  function draw() {
    picture.draw();
    const t = times[at];
    const done = at === last();
    const text = [h("span", {}, `Step ${at} of ${last()}`)];
    if (done) {
      const distance = ddpm.energy_distance(states[at], spiral).toFixed(3);
      text.push(h("span", {}, "distance from the data ", h("b", {}, distance)));
      status.say(`Done in ${last()} steps; distance from the data ${distance}.`);
    } else {
      text.push(
        h("span", {}, symbol("ᾱ_t"), " = ", h("b", {}, number(alpha_bar[t]))),
        h("span", {}, "SNR = ", h("b", {}, number(ddpm.snr(alpha_bar[t])))),
      );
      if (!playing) status.say(`Step ${at} of ${last()}.`);
    }
    where.replaceChildren(...text);
    live.dataset.step = at;
    live.dataset.steps = last();
    live.dataset.playing = playing;
  }
  restart();
};
