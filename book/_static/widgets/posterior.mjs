// q(x_{t-1} | x_t, x_0) of one number: two witnesses, and the product of what they say.

globalThis.ddpm.widgets.posterior = (live) => {
  const { linear_schedule, q_posterior, ui } = globalThis.ddpm;
  const { h, symbol, number } = ui;

  const T = 50;
  const alpha_bar = linear_schedule(T);
  const [from, to] = [-3, 3];
  const grid = Array.from({ length: 601 }, (_, i) => from + ((to - from) * i) / 600);

  const fixed = (x) => (x < 0 ? "−" : "") + Math.abs(x).toFixed(2);
  const t = ui.slider({ name: "t", label: symbol("t"), min: 1, max: T, value: 25 }, draw);
  const x_0 = ui.slider(
    { name: "x_0", label: symbol("x_0"), min: -2, max: 2, step: 0.05, value: 1, says: fixed },
    draw,
  );
  const x_t = ui.slider(
    { name: "x_t", label: symbol("x_t"), min: -2, max: 2, step: 0.05, value: -0.5, says: fixed },
    draw,
  );

  // Mean and variance of what the start says, of what the present state says, and of the posterior.
  function laws() {
    const [now, before] = [alpha_bar[t.value], alpha_bar[t.value - 1]];
    const alpha = now / before;
    const { weight_0, weight_t, variance } = q_posterior(now, before);
    return {
      weight_0,
      weight_t,
      start: [Math.sqrt(before) * x_0.value, 1 - before],
      present: [x_t.value / Math.sqrt(alpha), (1 - alpha) / alpha],
      both: [weight_0 * x_0.value + weight_t * x_t.value, variance],
    };
  }

  const density = (x, [mean, variance]) =>
    Math.exp(-((x - mean) ** 2) / (2 * variance)) / Math.sqrt(2 * Math.PI * variance);
  const COLOURS = { start: "ddpm-blue", present: "ddpm-red", both: "ddpm-green" };

  const picture = ui.chart(
    "Three densities of the state before: what the start says, what the present state says, and their product, which is narrower than both.",
    () => {
      const law = laws();
      const names = Object.keys(COLOURS);
      const wide = names.filter((name) => law[name][1] > 0); // at t = 1 the start and the posterior are points
      return {
        x: [from, to],
        y: [0, 1.1 * Math.max(...wide.map((name) => density(law[name][0], law[name])))],
        xLabel: "state at t − 1",
        curves: wide.map((name) => ({
          class: COLOURS[name],
          points: grid.map((x) => [x, density(x, law[name])]),
        })),
        marks: names
          .filter((name) => law[name][1] === 0)
          .map((name) => ({ class: COLOURS[name], x: law[name][0] })),
      };
    },
    240,
  );

  const before = () => symbol("x_t-1");
  const numbers = ui.table(
    "What each says about the state at t − 1, as a normal law",
    ["mean", "variance", "precision"],
    [
      [[ui.key("ddpm-blue"), "start, ", h("i", {}, "q"), "(", before(), " | ", symbol("x_0"), ")"]],
      [[ui.key("ddpm-red"), "present, ", h("i", {}, "q"), "(", symbol("x_t"), " | ", before(), ")"]],
      [
        [
          ui.key("ddpm-green"),
          "posterior, ",
          h("i", {}, "q"),
          "(",
          before(),
          " | ",
          symbol("x_t"),
          ", ",
          symbol("x_0"),
          ")",
        ],
      ],
    ].map((row) => [...row, 0, 0, 0]),
  );
  const [w0, v0, wT, vT, mean, spread] = [0, 0, 0, 0, 0, 0].map(() => h("b"));
  const status = ui.announcer();
  live.append(
    picture.box,
    h("div", { class: "ddpm-controls" }, t.control, x_0.control, x_t.control),
    h(
      "p",
      { class: "ddpm-numbers" },
      h("span", {}, symbol("μ̃_t"), " = ", w0, " · ", symbol("x_0"), " + ", wT, " · ", symbol("x_t")),
      h("span", {}, "= ", v0, " ", vT, " = ", mean),
      h("span", {}, symbol("β̃_t"), " = ", spread),
    ),
    numbers.element,
    status.element,
  );

  function draw() {
    const law = laws();
    w0.textContent = number(law.weight_0);
    wT.textContent = number(law.weight_t);
    v0.textContent = fixed(law.weight_0 * x_0.value);
    const term = law.weight_t * x_t.value;
    vT.textContent = `${term < 0 ? "−" : "+"} ${fixed(Math.abs(term))}`;
    mean.textContent = fixed(law.both[0]);
    spread.textContent = number(law.both[1]);
    numbers.write(
      Object.keys(COLOURS).map((name) => [
        fixed(law[name][0]),
        number(law[name][1]),
        number(1 / law[name][1]),
      ]),
    );
    picture.draw();
    status.say(`The posterior has mean ${fixed(law.both[0])} and variance ${number(law.both[1])}.`);
  }
  draw();
};
