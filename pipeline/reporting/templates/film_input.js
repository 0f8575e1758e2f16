// What a reader does to a film: buttons, sliders, keys, wheel, mouse and touch.

const PAGE = 10; // slices per Page key
const WHEEL = 40; // pixels of wheel per slice; a notch of a mouse is more and still one slice

class Input {
  constructor(player) {
    this.player = player;
    this.drag = null;
    this.wheel = 0;
    const { parts, root, film } = player;
    parts.slice.addEventListener("input", () => player.set({ index: parts.slice.valueAsNumber }));
    parts.span.addEventListener("input", () => player.set({ span: parts.span.valueAsNumber }));
    for (const name of ["level", "width"]) {
      parts[name].addEventListener("input", () => {
        player.setWindow({ ...player.window, [name]: parts[name].valueAsNumber });
      });
    }
    parts.lead.addEventListener("change", () => player.set({ lead: film.methods[parts.lead.value] }));
    parts.play.addEventListener("click", () => player.play(!player.playing));
    parts.outline.addEventListener("click", () => player.set({ outline: !player.outline }));
    parts.whole.addEventListener("click", () => {
      if (document.fullscreenElement) document.exitFullscreen();
      else root.requestFullscreen();
    });
    for (const button of player.flips) button.addEventListener("click", () => player.setFlip(button.dataset.flip));
    root.addEventListener("keydown", (event) => this.key(event));
    parts.panes.addEventListener("wheel", (event) => this.turn(event), { passive: false });
    for (const pane of player.panes) {
      const { canvas } = pane;
      canvas.addEventListener("contextmenu", (event) => event.preventDefault());
      canvas.addEventListener("pointerdown", (event) => this.grab(event, pane));
      canvas.addEventListener("pointermove", (event) => (this.drag ? this.pull(event) : this.point(event, canvas)));
      for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (this.drag = null));
      canvas.addEventListener("pointerleave", (event) => {
        if (event.pointerType === "mouse" && !this.drag) player.set({ cursor: null });
      });
    }
    parts.errors.addEventListener("click", (event) => {
      player.set({ index: Math.floor((event.offsetX / parts.errors.clientWidth) * film.slices) });
    });
    new ResizeObserver(() => player.draw()).observe(parts.errors);
  }

  key(event) {
    const { player } = this;
    const { key, target } = event;
    if (event.ctrlKey || event.metaKey || event.altKey || target.tagName === "SELECT") return;
    const last = player.film.slices - 1;
    const arrows = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1 };
    const steps = { ...arrows, PageUp: PAGE, PageDown: -PAGE, Home: -last, End: last };
    const cross = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const letters = {
      f: () => player.setFlip("source"),
      t: () => player.setFlip("target"),
      m: () => player.nextLead(),
      o: () => player.set({ outline: !player.outline }),
      escape: () => target.blur(),
    };
    // Other sliders keep their arrows, buttons their space.
    if (key in steps && target.type === "range" && target !== player.parts.slice) return;
    if (key === " " && ["BUTTON", "SUMMARY"].includes(target.tagName)) return;
    if (event.shiftKey && key in cross) player.moveCursor(...cross[key]);
    else if (key in steps) player.set({ index: player.index + steps[key] });
    else if (key === " ") player.play(!player.playing);
    else if (player.presets[key - 1]) player.setWindow(player.presets[key - 1]);
    else if (letters[key.toLowerCase()]) letters[key.toLowerCase()]();
    else return;
    event.preventDefault();
  }

  turn(event) {
    const { player } = this;
    // The page keeps the wheel until a reader has chosen this film.
    if (event.ctrlKey || !player.root.contains(document.activeElement)) return;
    event.preventDefault();
    this.wheel += event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? event.deltaY : event.deltaY * WHEEL;
    if (Math.abs(this.wheel) < WHEEL) return;
    const index = player.index - Math.sign(this.wheel);
    this.wheel = 0;
    player.set({ index });
  }

  point(event, canvas) {
    const { rows, columns } = this.player.film;
    const row = clamp(Math.floor((event.offsetY / canvas.clientHeight) * rows), 0, rows - 1);
    const column = clamp(Math.floor((event.offsetX / canvas.clientWidth) * columns), 0, columns - 1);
    this.player.set({ cursor: [row, column] });
  }

  grab(event, pane) {
    const { player } = this;
    const track = player.shown(pane) ?? player.film.target;
    const windowing = event.pointerType !== "touch" && (event.button === 2 || event.shiftKey);
    if (event.pointerType === "touch") this.point(event, pane.canvas);
    pane.canvas.setPointerCapture(event.pointerId);
    const { clientX: x, clientY: y, pointerId: id } = event;
    const pixels = Math.max(3, pane.canvas.clientWidth / player.film.slices); // of movement per slice
    this.drag = { id, x, y, pixels, track, windowing, index: player.index, window: player.windowOf(track) };
  }

  pull(event) {
    const { drag, player } = this;
    if (event.pointerId !== drag.id) return;
    const [right, up] = [event.clientX - drag.x, drag.y - event.clientY];
    if (drag.windowing) {
      // Fine in narrow windows, fast in wide ones.
      const rate = drag.window.width / 250;
      const round = (x) => Math.round(x / drag.track.step) * drag.track.step;
      const level = drag.window.level + round(up * rate);
      player.setWindow({ level, width: drag.window.width + round(right * rate) }, drag.track);
      return;
    }
    // Fingers scrub sideways, so that the page still scrolls up and down.
    const sideways = event.pointerType === "touch" || Math.abs(right) > Math.abs(up);
    player.set({ index: drag.index + (sideways ? right : up) / drag.pixels });
  }
}

// A film is unpacked when a reader comes near it: ten at once would fill a phone's memory.
const watcher = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      watcher.unobserve(target);
      const player = new Player(target);
      player.load().catch((error) => player.fail(error));
    }
  },
  { rootMargin: "800px" },
);
for (const root of document.querySelectorAll(".film")) watcher.observe(root);

// Where a film plays the still slices are one click away; without this script, and in print, they are open.
const openStills = (open) => {
  for (const node of document.querySelectorAll(".stills")) node.open = open;
};
openStills(false);
addEventListener("beforeprint", () => openStills(true));
addEventListener("afterprint", () => openStills(false));
