// The mode of a first visit, before anything is painted: the theme decides at the end of the page, which flickers.
{
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.mode ||= "auto";
  root.dataset.theme ||= dark ? "dark" : "light";
}

// A link to a folded solution, or to a figure in it, unfolds it, once the theme has folded them all.
const unfold = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const button = target?.closest(".toggle-hidden")?.querySelector(".toggle-button");
  button?.click();
  if (button) target.scrollIntoView();
};
addEventListener("load", unfold);
addEventListener("hashchange", unfold);

document.addEventListener("DOMContentLoaded", () => {
  // What the theme leaves to be said to assistive technology.
  const sidebar = document.querySelector(".bd-sidebar-primary");
  sidebar?.setAttribute("role", "navigation");
  sidebar?.setAttribute("aria-label", "Book");
  document.querySelector(".search-button-field")?.removeAttribute("aria-label");

  // A table that is wider than its place can be scrolled with the keyboard, as the theme does it for code.
  const reachable = new ResizeObserver((entries) => {
    for (const { target: table } of entries) {
      const place = table.parentElement;
      if (place.scrollWidth > place.clientWidth) place.tabIndex = 0;
      else place.removeAttribute("tabindex");
    }
  });
  document.querySelectorAll(".pst-scrollable-table-container > table").forEach((table) => reachable.observe(table));

  // An equation is shown where it is referred to, when the pointer rests on the link or the keyboard reaches it. The
  // popover is the one that the theme brings along; without it, or without MathJax, the link is a link.
  if (!window.bootstrap?.Popover || !window.equations) return;
  const here = location.pathname.split("/").pop() || "index.html";

  for (const link of document.querySelectorAll('.bd-article a.internal[href*="#equation-"]')) {
    const [page, anchor] = link.getAttribute("href").split("#");
    const tex = window.equations[page || here]?.[anchor];
    if (!tex) continue;

    let popover;
    const wanted = () => link.matches(":hover, :focus-visible");
    const show = async () => {
      if (!popover && window.MathJax?.tex2chtmlPromise) {
        const content = await MathJax.tex2chtmlPromise(tex, { display: true });
        MathJax.startup.document.clear();
        MathJax.startup.document.updateDocument(); // the styles of characters that are new on this page
        popover ??= new bootstrap.Popover(link, {
          content,
          customClass: "equation-preview",
          html: true,
          placement: "top",
          animation: false, // its end would take away a popover that has just come back
          trigger: "manual",
        });
      }
      if (wanted()) popover?.show();
    };
    const hide = () => popover?.hide();
    link.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && show());
    link.addEventListener("pointerleave", hide);
    link.addEventListener("focus", show);
    link.addEventListener("blur", hide);
    link.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  }
});
