// What the interactive figures share: controls, a canvas, curves. Native elements, so that keyboard and screen
// reader work as everywhere.

globalThis.ddpm.ui = (() => {
  const SVG = "http://www.w3.org/2000/svg";

  function fill(element, attributes, children) {
    for (const [key, value] of Object.entries(attributes)) {
      if (value !== false && value !== undefined) element.setAttribute(key, value);
    }
    element.append(...children);
    return element;
  }

  // h("p", { class: "x" }, "text", child, ...)
  const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

  const svg = (tag, attributes = {}, ...children) =>
    fill(document.createElementNS(SVG, tag), attributes, children);

  // "x_t-1" -> x with the index t − 1; letters are italic.
  function symbol(text) {
    const [letter, index = ""] = text.split("_");
    const [name, rest] = [index.replace(/[^a-zT].*/, ""), index.replace(/^[a-zT]/, "").replace("-", "−")];
    const sub = index ? [h("sub", {}, ...(name ? [h("i", {}, name)] : []), rest)] : [];
    return h("span", { class: "ddpm-symbol" }, h("i", {}, letter), ...sub);
  }

  // Three significant digits; powers of ten for what is very large or small.
  function number(x) {
    if (!Number.isFinite(x)) return "∞";
    const sign = x < 0 ? "−" : "";
    const size = Math.abs(x);
    if (size === 0 || (size >= 1e-3 && size < 1e5))
      return sign + Number(size.toPrecision(size < 1000 ? 3 : 5));
    const [digits, exponent] = size.toExponential(1).split("e");
    const raised = { "+": "", "-": "⁻" };
    return `${sign}${digits}·10${exponent.replace(/./g, (c) => raised[c] ?? "⁰¹²³⁴⁵⁶⁷⁸⁹"[c])}`;
  }

  let count = 0;

  // A labelled range; `says` turns its value into what is shown beside it and read out.
  function slider({ name, label, min, max, step = 1, value, says = String }, onInput) {
    const id = `ddpm-${name}-${++count}`;
    const input = h("input", { type: "range", id, name, min, max, step, value });
    const shown = h("span", { class: "ddpm-value", "aria-hidden": "true" });
    const control = h("div", { class: "ddpm-control" }, h("label", { for: id }, label, " ", shown), input);
    const tell = () => {
      shown.textContent = says(input.valueAsNumber);
      input.setAttribute("aria-valuetext", shown.textContent);
    };
    input.addEventListener("input", () => {
      tell();
      onInput();
    });
    tell();
    return {
      control,
      get value() {
        return input.valueAsNumber;
      },
      set value(x) {
        input.value = x;
        tell();
      },
      set max(x) {
        input.max = x;
      },
    };
  }

  function select({ name, label, options }, onChange) {
    const id = `ddpm-${name}-${++count}`;
    const input = h(
      "select",
      { id, name },
      ...Object.entries(options).map(([value, text]) => h("option", { value }, text)),
    );
    input.addEventListener("change", onChange);
    const control = h("div", { class: "ddpm-control" }, h("label", { for: id }, label), input);
    return {
      control,
      get value() {
        return input.value;
      },
    };
  }

  function button(name, text, onClick) {
    const element = h("button", { type: "button", name }, text);
    element.addEventListener("click", onClick);
    return element;
  }

  // A line that is read out when it has not changed for a moment, so that a moving slider is not a stream of words;
  // nor is what a page shows at first.
  function announcer() {
    const element = h("p", { class: "ddpm-status", role: "status" });
    let timer = null;
    return {
      element,
      say(text) {
        clearTimeout(timer);
        timer = timer === null ? 0 : setTimeout(() => (element.textContent = text), 500);
      },
    };
  }

  // Calls `draw` now and whenever the width of the element or the theme changes.
  function redraw(element, draw) {
    let width = 0;
    new ResizeObserver(([{ contentRect }]) => {
      if (Math.round(contentRect.width) === width) return;
      width = Math.round(contentRect.width);
      draw();
    }).observe(element);
    new MutationObserver(draw).observe(document.documentElement, {
      attributes: true,
      attributeFilter: ["data-theme"],
    });
    draw();
  }

  // A square canvas that stays sharp; `paint(context, side, colour)` draws in CSS pixels.
  function canvas(label, paint) {
    const element = h("canvas", { role: "img", "aria-label": label });
    const box = h("div", { class: "ddpm-square" }, element);
    const draw = () => {
      const side = box.clientWidth;
      if (!side) return;
      const scale = globalThis.devicePixelRatio || 1;
      const pixels = Math.round(side * scale);
      if (element.width !== pixels) element.width = element.height = pixels;
      const context = element.getContext("2d");
      context.setTransform(scale, 0, 0, scale, 0, 0);
      context.clearRect(0, 0, side, side);
      const style = getComputedStyle(element);
      paint(context, side, (name) => style.getPropertyValue(`--ddpm-${name}`).trim());
    };
    redraw(box, draw);
    return { box, element, draw };
  }

  // Colours between three "#rrggbb", one for each value: the smallest value has the first, the largest the last.
  function ramp(values, ...ends) {
    const rgb = ends.map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
    const order = Array.from(values.keys()).sort((i, j) => values[i] - values[j]);
    const colours = [];
    order.forEach((i, rank) => {
      const u = (rank / values.length) * (rgb.length - 1);
      const [from, to] = [rgb[Math.floor(u)], rgb[Math.floor(u) + 1]];
      colours[i] = `rgb(${from.map((c, k) => Math.round(c + (u % 1) * (to[k] - c)))})`;
    });
    return colours;
  }

  // Points of the plane in [-3, 3]² as dots, each with its colour.
  function dots(context, side, points, radius, colours) {
    for (let i = 0; i < points.length; i += 2) {
      context.fillStyle = colours[(i / 2) % colours.length];
      context.beginPath();
      context.arc(side * (0.5 + points[i] / 6), side * (0.5 - points[i + 1] / 6), radius, 0, 2 * Math.PI);
      context.fill();
    }
  }

  // About four round numbers from `from` to `to`.
  function ticks(from, to) {
    const rough = (to - from) / 4;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((m) => m * power >= rough);
    const first = Math.ceil(from / step);
    return Array.from({ length: Math.floor(to / step) - first + 1 }, (_, i) =>
      Number(((first + i) * step).toPrecision(6)),
    );
  }

  // Curves in a frame. `view()` returns { x: [from, to], y: [from, to], xLabel, curves, marks }: a curve has a class
  // and its points [[x, y], ...], a mark is a vertical line with a class, at x.
  function chart(label, view, height = 220) {
    const element = svg("svg", { class: "ddpm-chart", role: "img", "aria-label": label, height });
    const box = h("div", { class: "ddpm-chart-box" }, element);
    const [left, right, top, bottom] = [44, 12, 8, 38];
    const draw = () => {
      const width = box.clientWidth - left - right;
      if (width <= 0) return;
      const tall = height - top - bottom;
      const { x, y, xLabel, curves, marks = [] } = view();
      const X = (value) => (left + ((value - x[0]) / (x[1] - x[0])) * width).toFixed(1);
      const Y = (value) => (top + ((y[1] - value) / (y[1] - y[0])) * tall).toFixed(1);
      const path = (points) => points.map(([a, b], i) => `${i ? "L" : "M"}${X(a)} ${Y(b)}`).join("");
      const foot = height - bottom;
      element.setAttribute("viewBox", `0 0 ${width + left + right} ${height}`);
      element.replaceChildren(
        ...ticks(...x).flatMap((tick) => [
          svg("path", { class: "ddpm-grid", d: `M${X(tick)} ${top}V${foot}` }),
          svg("text", { x: X(tick), y: foot + 16, "text-anchor": "middle" }, number(tick)),
        ]),
        ...ticks(...y).flatMap((tick) => [
          svg("path", { class: "ddpm-grid", d: `M${left} ${Y(tick)}h${width}` }),
          svg("text", { x: left - 6, y: +Y(tick) + 4, "text-anchor": "end" }, number(tick)),
        ]),
        svg("text", { x: left + width / 2, y: height - 4, "text-anchor": "middle" }, xLabel),
        svg(
          "svg", // cuts off what is outside the frame
          { x: left, y: top, width, height: tall, viewBox: `${left} ${top} ${width} ${tall}` },
          ...marks.map((mark) =>
            svg("path", { class: `ddpm-curve ${mark.class}`, d: `M${X(mark.x)} ${top}V${foot}` }),
          ),
          ...curves.map((curve) =>
            svg("path", { class: `ddpm-curve ${curve.class}`, d: path(curve.points) }),
          ),
        ),
      );
    };
    redraw(box, draw);
    return { box, draw };
  }

  // Numbers in a table whose cells can be written again.
  function table(caption, head, rows) {
    const cells = rows.map((row) => row.slice(1).map(() => h("td")));
    const element = h(
      "table",
      { class: "ddpm-table" },
      h("caption", {}, caption),
      h(
        "thead",
        {},
        h("tr", {}, h("td"), ...head.map((text) => h("th", { scope: "col" }, ...[text].flat()))),
      ),
      h(
        "tbody",
        {},
        ...rows.map((row, i) => h("tr", {}, h("th", { scope: "row" }, ...[row[0]].flat()), ...cells[i])),
      ),
    );
    return {
      element,
      write(values) {
        values.forEach((row, i) => row.forEach((value, j) => (cells[i][j].textContent = value)));
      },
    };
  }

  const key = (className) => h("span", { class: `ddpm-key ${className}`, "aria-hidden": "true" });

  return {
    h,
    symbol,
    number,
    slider,
    select,
    button,
    announcer,
    canvas,
    ramp,
    dots,
    ticks,
    chart,
    table,
    key,
  };
})();
