// x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) ε for a digit and for points, with t to move.

globalThis.ddpm.widgets.forward = (live) => {
  const { linear_schedule, cosine_schedule, snr, q_sample, normals, ui, data } = globalThis.ddpm;
  const { h, symbol, number } = ui;

  const T = 1000;
  const schedules = { linear: linear_schedule(T), cosine: cosine_schedule(T) };
  const digit = Float64Array.from(data.digit, (grey) => grey / 8 - 1);
  const spiral = Float64Array.from(data.spiral, (x) => x / 1000);
  const radii = Float64Array.from({ length: spiral.length / 2 }, (_, i) =>
    Math.hypot(spiral[2 * i], spiral[2 * i + 1]),
  );
  let seed = 1;

  const t = ui.slider({ name: "t", label: symbol("t"), min: 0, max: T, value: 150 }, draw);
  const schedule = ui.select(
    { name: "schedule", label: "Schedule", options: { linear: "linear", cosine: "cosine" } },
    draw,
  );
  const fresh = ui.button("noise", "New noise ε", () => {
    seed += 1;
    draw();
  });

  const noisy = (x_0, stream) =>
    q_sample(x_0, normals(x_0.length, 2 * seed + stream), schedules[schedule.value][t.value]);

  const image = ui.canvas("A handwritten 3 of 8 by 8 pixels, mixed with noise.", (context, side) => {
    const size = side / 8;
    noisy(digit, 0).forEach((x, i) => {
      const grey = Math.round(127.5 * (1 - Math.min(Math.max(x, -1), 1)));
      context.fillStyle = `rgb(${grey} ${grey} ${grey})`;
      const [column, row] = [i % 8, Math.floor(i / 8)];
      const [left, top] = [Math.floor(column * size), Math.floor(row * size)];
      context.fillRect(left, top, Math.ceil((column + 1) * size) - left, Math.ceil((row + 1) * size) - top);
    });
  });
  const cloud = ui.canvas("600 points of a spiral, mixed with noise.", (context, side, colour) => {
    const colours = ui.ramp(radii, colour("blue"), colour("green"), colour("orange"));
    ui.dots(context, side, noisy(spiral, 1), Math.max(1.4, side / 160), colours);
  });

  const [signal, noise, alpha_bar, ratio] = [0, 0, 0, 0].map(() => h("b"));
  const status = ui.announcer();
  live.append(
    h("div", { class: "ddpm-pair ddpm-small" }, image.box, cloud.box),
    h(
      "p",
      { class: "ddpm-numbers" },
      h("span", {}, symbol("x_t"), " = ", signal, " ", symbol("x_0"), " + ", noise, " ", symbol("ε")),
      h("span", {}, symbol("ᾱ_t"), " = ", alpha_bar),
      h("span", {}, "SNR = ", ratio),
    ),
    h("div", { class: "ddpm-controls" }, t.control, schedule.control, fresh),
    status.element,
  );

  function draw() {
    const a = schedules[schedule.value][t.value];
    signal.textContent = number(Math.sqrt(a));
    noise.textContent = number(Math.sqrt(1 - a));
    alpha_bar.textContent = number(a);
    ratio.textContent = number(snr(a));
    image.draw();
    cloud.draw();
    status.say(`At t = ${t.value}, ᾱ is ${number(a)} and the signal-to-noise ratio ${number(snr(a))}.`);
  }
  draw();
};
