// Brings the interactive figures of a page to life: <div class="ddpm-widget" data-widget="forward">...</div>.
//
// Jupyter Book loads every .js file under _static on every page, so this is the only one. The rest ends in .mjs, and
// is loaded when a figure comes near the window. What the element holds is shown until then, on paper, and to readers
// without JavaScript. A figure that is drawn has the attribute data-ready.

(() => {
  const folder = document.currentScript.src.replace(/[^/]*$/, "");
  const PARTS = {
    forward: ["diffusion", "ui", "data", "forward"],
    posterior: ["diffusion", "ui", "posterior"],
    schedules: ["diffusion", "ui", "schedules"],
    sampler: ["diffusion", "ui", "data", "network", "sampler"],
  };

  const parts = {}; // each loaded once, in order
  let last = Promise.resolve();
  function load(name) {
    // A <script> element and not import(), which browsers refuse to pages opened from the disk.
    parts[name] ??= last = last.then(
      () =>
        new Promise((resolve, reject) => {
          const script = document.createElement("script");
          script.src = `${folder}${name}.mjs`;
          script.onload = resolve;
          script.onerror = () => reject(new Error(`cannot load ${script.src}`));
          document.head.append(script);
        }),
    );
    return parts[name];
  }

  async function start(element) {
    const name = element.dataset.widget;
    await Promise.all(PARTS[name].map(load));
    const live = document.createElement("div");
    live.className = "ddpm-live";
    element.prepend(live);
    globalThis.ddpm.widgets[name](live);
    element.dataset.ready = "true";
  }

  function watch() {
    const near = new IntersectionObserver(
      (entries) => {
        for (const { isIntersecting, target } of entries) {
          if (!isIntersecting) continue;
          near.unobserve(target);
          start(target);
        }
      },
      { rootMargin: "400px" },
    );
    document.querySelectorAll(".ddpm-widget").forEach((element) => near.observe(element));
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", watch);
  else watch();
})();
