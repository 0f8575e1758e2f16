// What a reader does to a film: buttons, sliders, keys, wheel, mouse and touch.

const PAGE = 10; // slices per Page key
const WHEEL = 40; // pixels of wheel per slice; a notch of a mouse is more and still one slice
const STILL = 4; // pixels that a click may move

class Input {
  constructor(player) {
    this.player = player;
    this.drag = null;
    this.wheel = 0;
    const { parts, root, film } = player;
    for (const { plane, input } of player.sliders) {
      input.addEventListener("input", () => player.turn(input.valueAsNumber, plane));
      input.addEventListener("focus", () => player.set({ plane }));
    }
    parts.span.addEventListener("input", () => player.set({ span: parts.span.valueAsNumber }));
    for (const name of ["level", "width"]) {
      parts[name].addEventListener("input", () => {
        player.setWindow({ ...player.window, [name]: parts[name].valueAsNumber });
      });
    }
    parts.lead.addEventListener("change", () => player.setLead(film.methods[parts.lead.value]));
    parts.play.addEventListener("click", () => player.play(!player.playing));
    for (const name of ["outline", "cross"]) {
      parts[name].addEventListener("click", () => player.set({ [name]: !player[name] }));
    }
    parts.whole.addEventListener("click", () => {
      if (document.fullscreenElement) document.exitFullscreen();
      else root.requestFullscreen();
    });
    for (const button of player.flips) button.addEventListener("click", () => player.setFlip(button.dataset.flip));
    root.addEventListener("keydown", (event) => this.key(event));
    for (const pane of player.panes) {
      for (const stage of pane.stages) this.listen(pane, stage);
    }
    parts.errors.addEventListener("click", (event) => {
      player.turn(Math.floor((event.offsetX / parts.errors.clientWidth) * film.shape[SLICE]), film.planes[0]);
    });
    new ResizeObserver(() => player.draw()).observe(parts.errors);
  }

  /** Hear the wheel, the mouse and fingers on one picture. */
  listen(pane, { plane, canvas }) {
    const { player } = this;
    canvas.addEventListener("wheel", (event) => this.roll(event, plane), { passive: false });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("pointerdown", (event) => this.grab(event, pane, plane));
    canvas.addEventListener("pointermove", (event) => {
      if (this.drag) this.pull(event);
      else player.set({ hover: { plane, pixel: pixelUnder(event, plane) } });
    });
    canvas.addEventListener("pointerup", (event) => this.release(event, plane));
    canvas.addEventListener("pointercancel", () => (this.drag = null));
    canvas.addEventListener("pointerleave", () => {
      if (!this.drag) player.set({ hover: null });
    });
  }

  key(event) {
    const { player } = this;
    const { key, target } = event;
    if (event.ctrlKey || event.metaKey || event.altKey || target.tagName === "SELECT") return;
    const last = player.plane.count - 1;
    const arrows = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1 };
    const steps = { ...arrows, PageUp: PAGE, PageDown: -PAGE, Home: -last, End: last };
    const cross = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const letters = {
      f: () => player.setFlip("source"),
      t: () => player.setFlip("target"),
      m: () => player.nextLead(),
      o: () => player.set({ outline: !player.outline }),
      x: () => player.set({ cross: !player.cross }),
      escape: () => target.blur(),
    };
    for (const plane of player.film.planes) letters[plane.name[0]] = () => player.choosePlane(plane);
    // Other sliders keep their arrows, buttons their space.
    if (key in steps && target.type === "range" && !player.sliders.some(({ input }) => input === target)) return;
    if (key === " " && ["BUTTON", "SUMMARY"].includes(target.tagName)) return;
    if (event.shiftKey && key in cross) player.moveCross(...cross[key]);
    else if (key in steps) player.turn(player.index + steps[key]);
    else if (key === " ") player.play(!player.playing);
    else if (player.presets[key - 1]) player.setWindow(player.presets[key - 1]);
    else if (letters[key.toLowerCase()]) letters[key.toLowerCase()]();
    else return;
    event.preventDefault();
  }

  roll(event, plane) {
    const { player } = this;
    // The page keeps the wheel until a reader has chosen this film.
    if (event.ctrlKey || !player.root.contains(document.activeElement)) return;
    event.preventDefault();
    this.wheel += event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? event.deltaY : event.deltaY * WHEEL;
    if (Math.abs(this.wheel) < WHEEL) return;
    const index = player.at[plane.axis] - Math.sign(this.wheel);
    this.wheel = 0;
    player.turn(index, plane);
  }

  grab(event, pane, plane) {
    const { player } = this;
    const track = pane.shown ?? player.film.target;
    const windowing = event.pointerType !== "touch" && (event.button === 2 || event.shiftKey);
    event.target.setPointerCapture(event.pointerId);
    const { clientX: x, clientY: y, pointerId: id } = event;
    const pixels = Math.max(3, event.target.clientWidth / plane.count); // of movement per slice
    player.set({ plane, hover: null });
    this.drag = { id, x, y, pixels, track, plane, windowing, index: player.index, window: player.windowOf(track) };
  }

  pull(event) {
    const { drag, player } = this;
    if (event.pointerId !== drag.id) return;
    const [right, up] = [event.clientX - drag.x, drag.y - event.clientY];
    if (Math.hypot(right, up) > STILL) drag.moved = true;
    if (!drag.moved) return;
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
    player.turn(drag.index + (sideways ? right : up) / drag.pixels, drag.plane);
  }

  /** A click or tap that did not move takes the cross, and the other planes, to where it was. */
  release(event, plane) {
    const { drag, player } = this;
    this.drag = null;
    if (!drag || drag.moved || drag.windowing) return;
    player.set({ at: plane.voxel(player.at, pixelUnder(event, plane)), hover: null });
  }
}

/** The pixel of a plane's picture under a pointer. */
function pixelUnder({ offsetX, offsetY, target }, { rows, columns }) {
  return {
    row: clamp(Math.floor((offsetY / target.clientHeight) * rows), 0, rows - 1),
    column: clamp(Math.floor((offsetX / target.clientWidth) * columns), 0, columns - 1),
  };
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
