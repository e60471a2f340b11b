"use strict";

const byId = (id) => document.getElementById(id);

if (byId("pictures")) {
  const pictures = JSON.parse(byId("pictures").textContent);
  const slider = byId("picture-slider");
  const show = () => {
    const { iteration, image } = pictures[Number(slider.value)];
    byId("picture").src = `data:image/webp;base64,${image}`;
    byId("picture").alt = `I, M, I_s and I_g of three scans at iteration ${iteration}`;
    byId("picture-iteration").textContent = iteration;
    slider.setAttribute("aria-valuetext", `iteration ${iteration}`);
  };
  slider.addEventListener("input", show);
  show();
}

if (byId("settings")) {
  const only = byId("only-changed");
  const apply = () => {
    for (const row of byId("settings").tBodies[0].rows) row.hidden = only.checked && !row.classList.contains("differs");
  };
  only.addEventListener("change", apply);
  apply();
}
