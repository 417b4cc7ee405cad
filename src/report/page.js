"use strict";
// Sliders, values under the pointer and CSV; what is drawn comes with the page.
for (const figure of document.querySelectorAll("figure")) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const picture = figure.querySelector(":scope > svg");
  const readout = figure.querySelector(".readout");
  const heat = data.values !== undefined;
  let frame = heat ? data.frames.length - 1 : 0;

  const number = (x) => (x === null ? "undetermined" : Number(x.toPrecision(6)).toString());
  const inPicture = (event) => {
    const at = new DOMPoint(event.clientX, event.clientY);
    return at.matrixTransform(picture.getScreenCTM().inverse());
  };
  // Entries that a cell stands for: "3" or "6..8".
  const entries = (k) => (data.entries === 1 ? `${k}` : `${k * data.entries}..${(k + 1) * data.entries}`);

  const table = () => {
    if (heat) {
      const rows = [[data.frame || "frame", "row", "column", "value"]];
      data.values.forEach((values, f) =>
        values.forEach((v, k) =>
          rows.push([data.frames[f], entries(Math.floor(k / data.columns)), entries(k % data.columns), v])));
      return rows;
    }
    const rows = [["series", data.x, data.y, "error"]];
    for (const line of data.lines)
      line.x.forEach((x, k) => rows.push([line.name, x, line.y[k], line.error ? line.error[k] : null]));
    for (const bars of data.bars) {
      const width = (bars.high - bars.low) / bars.heights.length;
      bars.heights.forEach((h, k) => rows.push([bars.name, bars.low + (k + 0.5) * width, h, null]));
    }
    return rows;
  };
  const cell = (x) => {
    const text = x === null ? "" : String(x);
    return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  figure.querySelector(".csv").addEventListener("click", () => {
    const text = table().map((row) => row.map(cell).join(",")).join("\n") + "\n";
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = data.title.replace(/[^\w.-]+/g, "_") + ".csv";
    link.click();
    URL.revokeObjectURL(link.href);
  });

  if (heat) {
    const cells = picture.querySelectorAll(".cells rect");
    const slider = figure.querySelector("input");
    const colour = (v) => {
      if (v === null) return "none";
      const part = data.high > data.low ? (v - data.low) / (data.high - data.low) : 0.5;
      return data.palette[Math.round(part * (data.palette.length - 1))];
    };
    slider?.addEventListener("input", () => {
      frame = Number(slider.value);
      figure.querySelector(".frame").textContent = data.frames[frame];
      cells.forEach((own, k) => own.setAttribute("fill", colour(data.values[frame][k])));
    });
    cells.forEach((own, k) =>
      own.addEventListener("pointerenter", () => {
        readout.textContent =
          `[${entries(Math.floor(k / data.columns))}, ${entries(k % data.columns)}]: ${number(data.values[frame][k])}`;
      }));
  } else {
    const cursor = picture.querySelector(".cursor");
    const [left, top, right, bottom] = data.pixels;
    const toAxis = (x) => (data.log[0] ? Math.log10(x) : x);
    const toPixel = (x) => left + ((toAxis(x) - data.range[0]) / (data.range[1] - data.range[0])) * (right - left);
    picture.addEventListener("pointermove", (event) => {
      const at = inPicture(event).x;
      const y = inPicture(event).y;
      const near = [];
      for (const line of data.lines) {
        let best = -1;
        line.x.forEach((x, k) => {
          if (best < 0 || Math.abs(toPixel(x) - at) < Math.abs(toPixel(line.x[best]) - at)) best = k;
        });
        if (best >= 0) near.push([line, best]);
      }
      for (const bars of data.bars) {
        const k = Math.floor((((at - left) / (right - left)) * (data.range[1] - data.range[0]) + data.range[0] - bars.low)
          / (bars.high - bars.low) * bars.heights.length);
        if (k >= 0 && k < bars.heights.length)
          near.push([{ name: bars.name, x: bars.heights.map((_, j) => bars.low + (j + 0.5) * (bars.high - bars.low) / bars.heights.length), y: bars.heights }, k]);
      }
      if (near.length === 0) return;
      // Of many lines, the one under the pointer.
      const height = ([line, k]) => {
        const v = data.log[1] ? Math.log10(line.y[k]) : line.y[k];
        return bottom - ((v - data.range[2]) / (data.range[3] - data.range[2])) * (bottom - top);
      };
      near.sort((a, b) => Math.abs(height(a) - y) - Math.abs(height(b) - y));
      const x = near[0][0].x[near[0][1]];
      cursor.setAttribute("x1", toPixel(x));
      cursor.setAttribute("x2", toPixel(x));
      cursor.setAttribute("y1", top);
      cursor.setAttribute("y2", bottom);
      cursor.style.visibility = "visible";
      const shown = near.slice(0, 6).map(([line, k]) =>
        `${line.name}: ${number(line.y[k])}${line.error?.[k] ? ` ± ${Number(line.error[k].toPrecision(2))}` : ""}`);
      readout.textContent = `${data.x} = ${number(x)}; ${shown.join("; ")}`;
    });
    picture.addEventListener("pointerleave", () => { cursor.style.visibility = "hidden"; });
  }
}
