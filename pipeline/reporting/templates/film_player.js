// The player of a film: linked panes and planes with one state, and what the page says about it.

const PANES = 5; // that are shown at first; other methods are a button away
const NARROW = "(max-width: 640px)";

class Player {
  constructor(root) {
    this.root = root;
    this.film = new Film(JSON.parse(root.querySelector(".film-header").textContent));
    root.append(document.getElementById("film-player").content.cloneNode(true));
    this.parts = {};
    for (const node of root.querySelectorAll("[data-is]")) this.parts[node.dataset.is] = node;
    const { film } = this;
    this.at = film.start; // [slice, row, column] of the cross, which all planes go through
    this.planes = matchMedia(NARROW).matches ? film.planes.slice(0, 1) : [...film.planes]; // that are shown
    this.plane = film.planes[0]; // that keys and play move
    this.lead = film.methods[0]; // the method that is compared
    const [[, level, width]] = film.windows;
    this.window = { level, width }; // of the target's unit; a track in another unit keeps its own
    this.span = film.difference_end;
    this.flip = ""; // 'source' or 'target': what stands in the lead's place
    [this.outline, this.cross] = [true, true];
    this.hover = null; // { plane, pixel } under the pointer
    [this.speak, this.playing, this.forwards] = [false, false, true];
    this.panes = [...film.images, null].map((track) => new Pane(this, track));
    this.buildControls();
    this.buildSliders();
    this.arrange();
    new Input(this);
    this.describe();
  }

  buildControls() {
    const { film, parts } = this;
    const { low, step, levels } = film.target;
    const scale = (input, from, to) => Object.assign(input, { min: from, max: to, step });
    scale(parts.level, low, low + levels * step);
    scale(parts.width, step, levels * step);
    scale(parts.span, step, film.difference_end * 5);
    const button = (parent, text, key, click) => {
      const node = make("button", parent, "", text);
      node.type = "button";
      if (key) make("kbd", node, "", key);
      node.addEventListener("click", click);
      return node;
    };
    this.presets = film.windows.map(([name, level, width], place) => {
      return { level, width, button: button(parts.presets, name, place + 1, () => this.setWindow({ level, width })) };
    });
    const extra = film.images.length + 1 > PANES ? film.methods.slice(Math.max(1, PANES - 3)) : [];
    for (const pane of this.panes) {
      pane.figure.hidden = extra.includes(pane.track);
      const name = pane.track ? pane.track.name : "difference";
      pane.button = button(parts.volumes, name, "", () => this.showPane(pane, pane.figure.hidden));
    }
    this.planeButtons = film.planes.map((plane) => {
      const key = plane.name[0].toUpperCase();
      return button(parts.planes, plane.name, key, () => this.showPlane(plane, !this.planes.includes(plane)));
    });
    for (const [place, method] of film.methods.entries()) parts.lead.add(new Option(method.name, place));
    parts["lead-group"].hidden = film.methods.length < 2;
    this.flips = [...this.root.querySelectorAll("[data-flip]")];
    for (const flip of this.flips) flip.hidden = !film[flip.dataset.flip];
    parts.speed.value = matchMedia("(prefers-reduced-motion: reduce)").matches ? "2" : "10";
    parts.whole.hidden = !document.fullscreenEnabled;
    parts.panes.setAttribute("aria-label", `Film of case ${film.case}; arrow keys turn the slices of a plane`);
  }

  /** One slider per plane. */
  buildSliders() {
    this.sliders = this.film.planes.map((plane) => {
      const line = make("label", this.parts.sliders, "film-line");
      make("span", line, "", plane.name);
      const input = make("input", line, "film-slice");
      Object.assign(input, { type: "range", min: 0, max: plane.count - 1, step: 1 });
      input.setAttribute("aria-label", `${plane.name} slice`);
      return { plane, line, input, number: make("output", line) };
    });
  }

  /** Spread the panes over full rows, so that all planes fit the window's height. */
  arrange() {
    const { film, panes, planes, parts } = this;
    const count = panes.filter((pane) => !pane.figure.hidden).length;
    const rows = Math.ceil(count / PANES);
    const widest = Math.max(...planes.map((plane) => plane.mm.wide));
    parts.panes.style.setProperty("--columns", Math.max(1, Math.ceil(count / rows)));
    parts.panes.style.setProperty("--tall", planes.reduce((sum, plane) => sum + plane.mm.tall, 0) / widest);
    parts.panes.classList.toggle("film-odd", count % 2 === 1);
    for (const pane of panes) {
      pane.arrange(planes);
      pane.button.ariaPressed = String(!pane.figure.hidden);
    }
    for (const [place, plane] of film.planes.entries()) {
      this.planeButtons[place].ariaPressed = String(planes.includes(plane));
      this.sliders[place].line.hidden = !planes.includes(plane);
    }
    this.draw();
  }

  async load() {
    const texts = [...this.root.querySelectorAll(".film-track")];
    await this.film.load(texts.map((node) => node.textContent));
    for (const node of texts) node.remove(); // the codes are what is kept
    this.parts.message.remove();
    this.ready = true;
    this.draw();
  }

  fail(error) {
    this.root.parentElement.querySelector(".stills").open = true;
    this.parts.message.textContent = `This browser cannot unpack the film (${error.message}); the still slices show the case.`;
  }

  // --- state ---

  set(change) {
    Object.assign(this, change);
    this.at = this.at.map((index, axis) => clamp(Math.round(index), 0, this.film.shape[axis] - 1));
    this.draw();
  }

  /** The picture of the plane that keys and play move. */
  get index() {
    return this.at[this.plane.axis];
  }

  /** Turn to a picture of a plane. */
  turn(index, plane = this.plane) {
    const at = [...this.at];
    at[plane.axis] = index;
    this.set({ at, plane });
  }

  /** The voxel whose values are read: under the pointer, else at the cross. */
  get pointed() {
    return this.hover ? this.hover.plane.voxel(this.at, this.hover.pixel) : this.at;
  }

  showPane(pane, on) {
    pane.figure.hidden = !on;
    this.arrange();
  }

  /** Show or hide a plane; the last one stays, and keys move one that is shown. */
  showPlane(plane, on) {
    const planes = this.film.planes.filter((each) => (each === plane ? on : this.planes.includes(each)));
    if (planes.length) this.planes = planes;
    if (!this.planes.includes(this.plane)) [this.plane] = this.planes;
    this.set({ hover: null });
    this.arrange();
  }

  /** Make a plane the one that keys and play move. */
  choosePlane(plane) {
    this.set({ plane });
    this.showPlane(plane, true);
  }

  setWindow({ level, width }, track = this.film.target) {
    const whole = track.levels * track.step;
    const window = { level: clamp(level, track.low, track.low + whole), width: clamp(width, track.step, whole) };
    if (track.window) track.window = [window.level, window.width];
    else this.window = window;
    this.draw();
  }

  windowOf(track) {
    return track.window ? { level: track.window[0], width: track.window[1] } : this.window;
  }

  setFlip(to) {
    this.set({ flip: this.flip === to || !this.film[to] ? "" : to });
  }

  setLead(lead) {
    this.set({ lead });
    this.showPane(this.panes.find((pane) => pane.track === lead), true);
  }

  nextLead() {
    const { methods } = this.film;
    this.setLead(methods[(methods.indexOf(this.lead) + 1) % methods.length]);
  }

  /** Move the cross by pixels of the plane that keys move. */
  moveCross(down, right) {
    const { row, column } = this.plane.pixel(this.at);
    const { rows, columns } = this.plane;
    const pixel = { row: clamp(row + down, 0, rows - 1), column: clamp(column + right, 0, columns - 1) };
    this.speak = true; // whoever moves the cross by keys may not see the values
    this.set({ at: this.plane.voxel(this.at, pixel), hover: null });
  }

  play(on) {
    this.playing = on && this.plane.count > 1;
    // A screen reader would read every slice; it is told again when the film stands.
    this.parts.number.setAttribute("aria-live", this.playing ? "off" : "polite");
    this.draw();
    let last = performance.now();
    const tick = (now) => {
      if (!this.playing) return;
      if (now - last >= 1000 / Number(this.parts.speed.value)) {
        last = now;
        // Back and forth: a jump from head to feet would look like an artefact.
        if (this.index >= this.plane.count - 1) this.forwards = false;
        if (this.index <= 0) this.forwards = true;
        this.turn(this.index + (this.forwards ? 1 : -1));
      }
      requestAnimationFrame(tick);
    };
    if (this.playing) requestAnimationFrame(tick);
  }

  // --- drawing ---

  /** What is compared with the target: the lead, or the source while it is flipped in. */
  get compared() {
    const { source } = this.film;
    return this.flip === "source" && this.film.comparable(source) ? source : this.lead;
  }

  draw() {
    if (!this.ready || this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      const colours = this.film.differences(this.span);
      for (const pane of this.panes) pane.draw(colours);
      drawScales(this, colours);
      drawErrors(this);
      this.describe();
      this.root.dataset.at = this.at; // on the screen now
    });
  }

  // --- words ---

  format(value, more = 0, step = this.film.target.step) {
    const digits = Math.max(0, Math.ceil(-Math.log10(step))) + more;
    return value.toFixed(digits).replace(/^-(?=0*\.?0*$)/, "").replace("-", "−");
  }

  describe() {
    const { film, parts, plane } = this;
    const letters = ["RL", "AP", "SI"];
    const along = (mm, axis) => `${letters[axis][mm < 0 ? 1 : 0]} ${Math.abs(mm).toFixed(1)}`;
    const words = `${plane.name} ${plane.number(this.index)}`;
    if (parts.number.textContent !== words) parts.number.textContent = words;
    const place = film.world(this.pointed).map(along);
    const position = `${this.hover ? "Pointer" : "Cross"} at ${place.join(" · ")} mm`;
    parts.position.textContent = position;
    const press = (button, on) => (button.ariaPressed = String(on));
    for (const { plane: own, line, input, number } of this.sliders) {
      const index = this.at[own.axis];
      const mm = film.world(this.at).map(along)[2 - own.axis];
      input.value = index;
      input.setAttribute("aria-valuetext", `${own.name} ${own.number(index)}, ${mm} mm`);
      number.textContent = own.number(index).replace(" of ", "/");
      line.classList.toggle("film-active", own === plane && this.planes.length > 1);
    }
    for (const pane of this.panes) pane.describe();
    if (this.speak) {
      const values = this.panes.map((pane) => `${pane.title.textContent} ${pane.value.textContent}`);
      parts.spoken.textContent = `${position}: ${values.join(", ")}`;
      this.speak = false;
    }
    for (const { button, level, width } of this.presets) {
      press(button, level === this.window.level && width === this.window.width);
    }
    for (const button of this.flips) press(button, button.dataset.flip === this.flip);
    press(parts.outline, this.outline);
    press(parts.cross, this.cross);
    parts.lead.value = film.methods.indexOf(this.lead);
    parts.play.textContent = this.playing ? "❚❚ Pause" : "▶ Play";
    for (const [name, value] of Object.entries({ ...this.window, span: this.span })) {
      parts[name].value = value;
      parts[`${name}-value`].textContent = this.format(value);
    }
  }
}
