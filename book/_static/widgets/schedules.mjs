// Schedules compared: ᾱ and log SNR over t, with T to choose.

globalThis.ddpm.widgets.schedules = (live) => {
  const { linear_schedule, cosine_schedule, snr, ui } = globalThis.ddpm;
  const { h, symbol, number } = ui;

  const SCHEDULES = [
    { class: "ddpm-blue", name: "linear, range × 1000/T", make: (T) => linear_schedule(T) },
    { class: "ddpm-red", name: "linear, 0.0001 to 0.02", make: (T) => linear_schedule(T, 1e-4, 0.02) },
    { class: "ddpm-green", name: "cosine", make: (T) => cosine_schedule(T) },
  ];
  let made = [];

  const length = ui.slider(
    { name: "T", label: symbol("T"), min: 25, max: 2000, step: 25, value: 300 },
    () => {
      const part = t.value / made[0].length;
      t.max = length.value;
      t.value = Math.round(part * (length.value + 1));
      draw();
    },
  );
  const t = ui.slider({ name: "t", label: symbol("t"), min: 1, max: 300, value: 150 }, draw);

  const plot = (label, y, value) =>
    ui.chart(label, () => ({
      x: [0, length.value],
      y,
      xLabel: "t",
      marks: [{ class: "ddpm-cursor", x: t.value }],
      curves: made.map((alpha_bar, i) => ({
        class: SCHEDULES[i].class,
        points: Array.from(alpha_bar, (a, k) => [k, value(a)]).slice(value(1) === Infinity ? 1 : 0),
      })),
    }));

  make();
  const left = plot(
    "The share of signal, alpha bar, falls from 1 towards 0 over t under three schedules.",
    [0, 1],
    (a) => a,
  );
  const right = plot(
    "The logarithm of the signal-to-noise ratio over t under three schedules.",
    [-14, 10],
    (a) => Math.log(snr(a)),
  );
  const numbers = ui.table(
    "At time t, and what is left of the data's amplitude at the end",
    [symbol("ᾱ_t"), "SNR", ["√", symbol("ᾱ_T")]],
    SCHEDULES.map((each) => [[ui.key(each.class), each.name], 0, 0, 0]),
  );
  const status = ui.announcer();
  live.append(
    h(
      "div",
      { class: "ddpm-pair" },
      h("div", {}, h("p", { class: "ddpm-title" }, symbol("ᾱ_t")), left.box),
      h("div", {}, h("p", { class: "ddpm-title" }, "log SNR"), right.box),
    ),
    h("div", { class: "ddpm-controls" }, length.control, t.control),
    numbers.element,
    status.element,
  );

  function make() {
    made = SCHEDULES.map((each) => each.make(length.value));
  }

  function draw() {
    make();
    left.draw();
    right.draw();
    const percent = (x) => `${number(100 * x)} %`;
    numbers.write(
      made.map((alpha_bar) => {
        const [now, end] = [alpha_bar[t.value], alpha_bar[length.value]];
        return [number(now), number(snr(now)), percent(Math.sqrt(end))];
      }),
    );
    const remains = made.map(
      (alpha_bar, i) => `${SCHEDULES[i].name}: ${percent(Math.sqrt(alpha_bar[length.value]))}`,
    );
    status.say(
      `With ${length.value} steps, of the data's amplitude there is left at the end: ${remains.join("; ")}.`,
    );
  }
  draw();
};
