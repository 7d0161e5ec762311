"use strict";
// Shows one step at a time and draws the embedding. Everything else is in the page already.
(() => {
  const REST = 0, LABELLED = 1, CANDIDATE = 2, CHOSEN = 3;
  const STATES = ["rest", "labelled", "candidate", "chosen"];
  const SIZES = [2, 4, 5, 8]; // pixels of a point, by state
  const CELL = 24; // pixels: how far from a point it can still be hit
  const MARGIN = 14;
  const NOTHING = "No patch is pointed at.";

  const decoded = (text, Type) => new Type(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);

  const arrays = (part, last, Type) => ({
    ids: decoded(part.ids, Uint32Array), xy: decoded(part.xy, Uint16Array), [last]: decoded(part[last], Type),
  });

  /** Of some arrays of x, y, x, y, … in 0..65535: [left, top, width, height] as the view has them, in 0..1. */
  function bounds(parts) {
    const low = [65535, 65535], high = [0, 0];
    for (const part of parts) {
      for (let i = 0; i < part.length; i++) {
        low[i & 1] = Math.min(low[i & 1], part[i]);
        high[i & 1] = Math.max(high[i & 1], part[i]);
      }
    }
    const span = (axis) => Math.max(high[axis] - low[axis], 1) / 65535;
    return [low[0] / 65535, 1 - high[1] / 65535, span(0), span(1)];
  }

  /** The points of one step: x and y in 0..1, a state and a patch each; candidates come last. */
  function view(embedding, pool, number) {
    const at = embedding.steps.find((step) => step.step === number);
    const candidates = at ? at.candidates : { ids: [], xy: [], scores: [] };
    const chosen = new Set(at ? at.chosen : []);
    const moved = new Set(candidates.ids);
    const room = (pool ? pool.ids.length : 0) + candidates.ids.length;
    const points = {
      x: new Float32Array(room), y: new Float32Array(room), state: new Uint8Array(room),
      id: new Uint32Array(room), scores: new Map(), length: 0, order: at ? at.chosen : [],
    };
    const add = (xy, i, id, state) => {
      const n = points.length++;
      points.x[n] = xy[2 * i] / 65535;
      points.y[n] = 1 - xy[2 * i + 1] / 65535;
      points.id[n] = id;
      points.state[n] = state;
    };
    if (pool) {
      for (let i = 0; i < pool.ids.length; i++) {
        if (moved.has(pool.ids[i])) continue;
        const since = pool.since[i];
        add(pool.xy, i, pool.ids[i], since < 0 || since > number ? REST : since < number ? LABELLED : CHOSEN);
      }
    }
    for (let i = 0; i < candidates.ids.length; i++) {
      const id = candidates.ids[i];
      add(candidates.xy, i, id, chosen.has(id) ? CHOSEN : CANDIDATE);
      points.scores.set(id, candidates.scores[i]);
    }
    const before = number ? embedding.labelled[number - 1] : 0;
    const now = embedding.labelled[number] - before;
    const open = at ? [...candidates.ids].filter((id) => !chosen.has(id)).length : 0;
    points.counts = [embedding.patches - before - now - open, before, open, now];
    return points;
  }

  class Embedding {
    constructor(panel, run) {
      this.panel = panel;
      this.run = run;
      this.canvas = panel.querySelector("canvas");
      this.tip = panel.querySelector(".tip");
      const data = run.embedding;
      this.pool = data.pool && arrays(data.pool, "since", Int16Array);
      for (const step of data.steps) step.candidates = arrays(step.candidates, "scores", Float32Array);
      this.bounds = bounds([...(this.pool ? [this.pool.xy] : []), ...data.steps.map((step) => step.candidates.xy)]);
      this.base = document.createElement("canvas");
      this.lit = -1;
      new ResizeObserver(() => this.draw()).observe(this.canvas);
      for (const query of ["(prefers-color-scheme: dark)", "print"]) {
        matchMedia(query).addEventListener("change", () => this.draw());
      }
      this.canvas.addEventListener("pointermove", (event) => this.point(event, true));
      this.canvas.addEventListener("pointerdown", (event) => this.point(event, false));
      this.canvas.addEventListener("keydown", (event) => this.walk(event));
    }

    show(number) {
      this.number = number;
      this.points = view(this.run.embedding, this.pool, number);
      this.points.counts.forEach((count, state) => {
        this.panel.querySelector(`[data-count="${STATES[state]}"]`).textContent = count;
      });
      this.light(-1);
      this.draw();
    }

    place(i) {
      return [this.left + this.points.x[i] * this.side, this.top + this.points.y[i] * this.side];
    }

    /** Everything but the ring, into a canvas of its own: pointing at patches redraws no others. */
    draw() {
      const { clientWidth: width, clientHeight: height } = this.canvas;
      if (!this.points || !width || !height) return;
      const scale = devicePixelRatio || 1;
      for (const canvas of [this.canvas, this.base]) {
        canvas.width = Math.round(width * scale);
        canvas.height = Math.round(height * scale);
      }
      const [left, top, wide, high] = this.bounds;
      this.side = Math.min((width - 2 * MARGIN) / wide, (height - 2 * MARGIN) / high);
      this.left = width / 2 - (left + wide / 2) * this.side;
      this.top = height / 2 - (top + high / 2) * this.side;
      const style = getComputedStyle(this.canvas);
      const pen = this.base.getContext("2d");
      pen.setTransform(scale, 0, 0, scale, 0, 0);
      for (const state of [REST, LABELLED, CANDIDATE, CHOSEN]) {
        pen.fillStyle = style.getPropertyValue("--" + STATES[state]);
        const size = SIZES[state];
        for (let i = 0; i < this.points.length; i++) {
          if (this.points.state[i] !== state) continue;
          const [x, y] = this.place(i);
          if (state < CANDIDATE) {
            pen.fillRect(x - size / 2, y - size / 2, size, size);
          } else {
            pen.beginPath();
            pen.arc(x, y, size / 2, 0, 7);
            pen.fill();
          }
        }
      }
      this.ink = style.color;
      this.index(width, height);
      this.ring();
    }

    /** Which points lie in which cell of CELL pixels: sorted by cell, with the cells' beginnings. */
    index(width, height) {
      this.across = Math.ceil(width / CELL) + 1;
      const cells = this.across * (Math.ceil(height / CELL) + 1);
      const cell = new Uint32Array(this.points.length);
      this.starts = new Uint32Array(cells + 1);
      for (let i = 0; i < this.points.length; i++) {
        const [x, y] = this.place(i);
        cell[i] = Math.floor(y / CELL) * this.across + Math.floor(x / CELL);
        this.starts[cell[i] + 1]++;
      }
      for (let c = 0; c < cells; c++) this.starts[c + 1] += this.starts[c];
      const next = this.starts.slice();
      this.sorted = new Uint32Array(this.points.length);
      for (let i = 0; i < this.points.length; i++) this.sorted[next[cell[i]]++] = i;
    }

    /** The point that is hit at (x, y); of several near ones the more telling state; -1: none. */
    nearest(x, y) {
      let best = -1, least = Infinity;
      const column = Math.floor(x / CELL), row = Math.floor(y / CELL);
      for (let r = Math.max(0, row - 1); r <= row + 1; r++) {
        for (let c = Math.max(0, column - 1); c <= Math.min(this.across - 1, column + 1); c++) {
          const cell = r * this.across + c;
          if (cell + 1 >= this.starts.length) continue;
          for (let at = this.starts[cell]; at < this.starts[cell + 1]; at++) {
            const i = this.sorted[at];
            const [px, py] = this.place(i);
            const distance = Math.hypot(px - x, py - y);
            const bias = distance - 3 * this.points.state[i];
            if (distance <= CELL && bias < least) { best = i; least = bias; }
          }
        }
      }
      return best;
    }

    point(event, hovering) {
      if (hovering && event.pointerType === "touch") return;
      const box = this.canvas.getBoundingClientRect();
      const edge = this.canvas.clientLeft;
      this.light(this.nearest(event.clientX - box.left - edge, event.clientY - box.top - edge));
    }

    walk(event) {
      const turn = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const order = this.points.order;
      if (!turn || !order.length) return;
      event.preventDefault();
      const now = this.lit < 0 ? -1 : order.indexOf(this.points.id[this.lit]);
      const next = now < 0 ? (turn > 0 ? 0 : order.length - 1) : (now + turn + order.length) % order.length;
      this.find(order[next]);
    }

    find(patch) {
      this.light(this.points.id.subarray(0, this.points.length).lastIndexOf(patch));
    }

    light(i) {
      if (i === this.lit && i >= 0) return;
      this.lit = i;
      this.ring();
      this.describe();
    }

    ring() {
      if (!this.side) return;
      const pen = this.canvas.getContext("2d");
      pen.setTransform(1, 0, 0, 1, 0, 0);
      pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
      pen.drawImage(this.base, 0, 0);
      if (this.lit < 0) return;
      const scale = devicePixelRatio || 1;
      pen.setTransform(scale, 0, 0, scale, 0, 0);
      pen.strokeStyle = this.ink;
      pen.lineWidth = 2;
      pen.beginPath();
      pen.arc(...this.place(this.lit), 9, 0, 7);
      pen.stroke();
    }

    /** Caption and thumbnail of the patch under the ring; the gallery's own where it has one. */
    describe() {
      const caption = document.createElement("figcaption");
      for (const card of this.panel.querySelectorAll(".gallery .lit")) card.classList.remove("lit");
      if (this.lit < 0) {
        caption.textContent = NOTHING;
        this.tip.replaceChildren(caption);
        return;
      }
      const { id, state, scores } = this.points;
      const patch = id[this.lit];
      const number = Math.floor(patch / this.run.embedding.perImage);
      const image = this.run.embedding.names[number] ?? `image ${number}`;
      const score = scores.get(patch);
      const facts = [`patch ${patch}`, STATES[state[this.lit]] === "rest" ? "in the pool" : STATES[state[this.lit]]];
      if (Number.isFinite(score)) facts.push(`score ${score.toFixed(4)}`);
      caption.textContent = `${facts.join(" · ")} · ${image}`;
      const cards = [...this.panel.querySelectorAll(`.gallery [data-patch="${patch}"]`)];
      const thumb = cards.map((card) => card.querySelector(".thumb")).find(Boolean);
      for (const card of cards) card.classList.add("lit");
      if (thumb) {
        this.tip.replaceChildren(thumb.cloneNode(true), caption);
      } else if (this.run.details[patch]) {
        const picture = document.createElement("img");
        picture.src = this.run.details[patch];
        picture.alt = `patch ${patch} of ${image}`;
        this.tip.replaceChildren(picture, caption);
      } else {
        caption.textContent += " · no thumbnail in this page";
        this.tip.replaceChildren(caption);
      }
    }
  }

  const percent = (share) => `${(100 * share).toFixed(2)}%`;

  function shares(panel, run, place) {
    const table = panel.querySelector(".shares");
    if (!table) return;
    table.querySelector("output.after").textContent = run.steps[place];
    [...table.tBodies[0].rows].forEach((row, i) => {
      const share = run.shares.steps[place][i];
      row.querySelector("td.after").textContent = percent(share);
      row.querySelector("rect.after").setAttribute("width", (100 * share / run.shares.most).toFixed(2));
    });
  }

  function start(panel, run) {
    const slider = panel.querySelector(".slider input");
    const embedding = run.embedding ? new Embedding(panel, run) : null;
    const show = (place) => {
      const number = run.steps[place];
      if (slider) {
        panel.querySelector(".slider output").textContent = number;
        slider.setAttribute("aria-valuetext", `step ${number}`);
      }
      for (const query of panel.querySelectorAll(".query")) query.hidden = Number(query.dataset.step) !== number;
      shares(panel, run, place);
      if (embedding) embedding.show(number);
    };
    if (slider) slider.addEventListener("input", () => show(Number(slider.value)));
    for (const choice of panel.querySelectorAll(".overlays input")) {
      choice.addEventListener("change", () => { panel.dataset.overlay = choice.value; });
      if (choice.checked) panel.dataset.overlay = choice.value; // a reload keeps what was chosen
    }
    if (embedding) {
      for (const card of panel.querySelectorAll(".gallery [data-patch]")) {
        card.addEventListener("pointerenter", () => embedding.find(Number(card.dataset.patch)));
      }
    }
    show(slider ? Number(slider.value) : 0);
  }

  const runs = JSON.parse(document.getElementById("data").textContent);
  for (const panel of document.querySelectorAll(".explore")) start(panel, runs[Number(panel.dataset.run)]);
})();
