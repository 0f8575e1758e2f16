// The player of a film: linked panes with one state, and what the page says about it.

const make = (tag, parent, name = "", text = "") => {
  const node = document.createElement(tag);
  if (name) node.className = name;
  node.textContent = text;
  parent.append(node);
  return node;
};

class Player {
  constructor(root) {
    this.root = root;
    this.film = new Film(JSON.parse(root.querySelector(".film-header").textContent));
    root.append(document.getElementById("film-player").content.cloneNode(true));
    this.parts = {};
    for (const node of root.querySelectorAll("[data-is]")) this.parts[node.dataset.is] = node;
    this.index = this.film.start;
    this.lead = this.film.methods[0]; // the method that is compared
    const [[, level, width]] = this.film.windows;
    this.window = { level, width }; // of the target's unit; a track in another unit keeps its own
    this.span = this.film.difference_end;
    this.flip = ""; // 'source' or 'target': what stands in the lead's place
    this.outline = true;
    this.cursor = null; // [row, column]
    this.speak = false;
    this.playing = false;
    this.forwards = true;
    this.buildPanes();
    this.buildControls();
    new Input(this);
    this.describe();
  }

  buildPanes() {
    const { film, parts } = this;
    const [, tall, wide] = film.spacing_mm;
    this.panes = [...film.images, null].map((track) => {
      const figure = make("figure", parts.panes, "film-pane");
      const title = make("figcaption", figure, "film-title");
      const stage = make("div", figure, "film-stage");
      const canvas = make("canvas", stage);
      [canvas.width, canvas.height] = [film.columns, film.rows];
      canvas.style.aspectRatio = `${film.columns * wide} / ${film.rows * tall}`;
      canvas.setAttribute("role", "img");
      for (const side of "RLAP") make("span", stage, `film-side film-${side}`, side);
      const cross = make("i", stage, "film-cross");
      const value = make("p", figure, "film-value");
      const context = canvas.getContext("2d");
      const image = context.createImageData(film.columns, film.rows);
      const button = make("button", parts.toggles, "", track ? track.name : "difference");
      button.type = "button";
      button.setAttribute("aria-pressed", "true");
      button.addEventListener("click", () => {
        figure.hidden = !figure.hidden;
        button.setAttribute("aria-pressed", String(!figure.hidden));
        this.arrange();
      });
      return { track, figure, title, canvas, cross, value, context, image, pixels: new Uint32Array(image.data.buffer) };
    });
    this.arrange();
    parts.panes.setAttribute("aria-label", `Film of case ${film.case}; arrow keys change the slice`);
  }

  /** Spread the panes over full rows. */
  arrange() {
    const count = this.panes.filter((pane) => !pane.figure.hidden).length;
    const rows = Math.ceil(count / 5);
    this.parts.panes.style.setProperty("--columns", Math.max(1, Math.ceil(count / rows)));
    this.parts.panes.classList.toggle("film-odd", count % 2 === 1);
  }

  buildControls() {
    const { film, parts } = this;
    const { low, step, levels } = film.target;
    const scale = (input, from, to) => Object.assign(input, { min: from, max: to, step });
    scale(parts.level, low, low + levels * step);
    scale(parts.width, step, levels * step);
    scale(parts.span, step, film.difference_end * 5);
    parts.slice.max = film.slices - 1;
    this.presets = film.windows.map(([name, level, width], place) => {
      const button = make("button", parts.presets, "", name);
      button.type = "button";
      make("kbd", button, "", String(place + 1));
      button.addEventListener("click", () => this.setWindow({ level, width }));
      return { button, level, width };
    });
    for (const [place, method] of film.methods.entries()) parts.lead.add(new Option(method.name, place));
    parts["lead-group"].hidden = film.methods.length < 2;
    this.flips = [...this.root.querySelectorAll("[data-flip]")];
    for (const button of this.flips) button.hidden = !film[button.dataset.flip];
    parts.speed.value = matchMedia("(prefers-reduced-motion: reduce)").matches ? "2" : "10";
    parts.whole.hidden = !document.fullscreenEnabled;
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
    this.index = clamp(Math.round(this.index), 0, this.film.slices - 1);
    this.draw();
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

  nextLead() {
    const { methods } = this.film;
    this.set({ lead: methods[(methods.indexOf(this.lead) + 1) % methods.length] });
  }

  /** Move the cross by pixels; it starts in the middle. */
  moveCursor(down, right) {
    const { rows, columns } = this.film;
    const [row, column] = this.cursor ?? [rows >> 1, columns >> 1];
    this.speak = true; // whoever moves the cross by keys may not see the values
    this.set({ cursor: [clamp(row + down, 0, rows - 1), clamp(column + right, 0, columns - 1)] });
  }

  play(on) {
    this.playing = on && this.film.slices > 1;
    // A screen reader would read every slice; it is told again when the film stands.
    this.parts.number.setAttribute("aria-live", this.playing ? "off" : "polite");
    this.draw();
    let last = performance.now();
    const tick = (now) => {
      if (!this.playing) return;
      if (now - last >= 1000 / Number(this.parts.speed.value)) {
        last = now;
        // Back and forth: a jump from head to feet would look like an artefact.
        if (this.index >= this.film.slices - 1) this.forwards = false;
        if (this.index <= 0) this.forwards = true;
        this.set({ index: this.index + (this.forwards ? 1 : -1) });
      }
      requestAnimationFrame(tick);
    };
    if (this.playing) requestAnimationFrame(tick);
  }

  // --- drawing ---

  /** The track in a pane; null in the pane of differences. */
  shown(pane) {
    return this.flip && pane.track === this.lead ? this.film[this.flip] : pane.track;
  }

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
      const { film, index } = this;
      const colours = film.differences(this.span);
      for (const pane of this.panes) {
        const track = this.shown(pane);
        if (track) film.paint(pane.pixels, index, track, film.greys(track, this.windowOf(track)));
        else film.paintDifference(pane.pixels, index, this.compared, colours);
        if (this.outline) film.paintOutline(pane.pixels, index);
        pane.context.putImageData(pane.image, 0, 0);
      }
      this.drawScales(colours);
      this.drawErrors();
      this.describe();
      this.root.dataset.slice = index; // on the screen now
    });
  }

  drawScales(colours) {
    const { parts, film } = this;
    const { levels, step } = film.target;
    const strip = (canvas, colour) => {
      const context = canvas.getContext("2d");
      const image = context.createImageData(canvas.width, 1);
      new Uint32Array(image.data.buffer).set(Array.from({ length: canvas.width }, (_, x) => colour(x)));
      context.putImageData(image, 0, 0);
    };
    strip(parts["grey-bar"], (x) => 0xff000000 | (x * 0x010101));
    strip(parts["difference-bar"], (x) => {
      return colours[clamp(levels + Math.round(((x / 128 - 1) * this.span) / step), 0, 2 * levels)];
    });
    const words = (node, ...texts) => {
      node.replaceChildren();
      for (const text of texts) make("span", node, "", text);
    };
    const { level, width } = this.window;
    words(parts["grey-text"], this.format(level - width / 2), `grey scale [${film.unit}]`, this.format(level + width / 2));
    const end = this.format(this.span);
    words(parts["difference-text"], `−${end}`, `difference to the target [${film.unit}]`, `+${end}`);
  }

  /** Draw the error of each slice, measured before thinning, as a mountain; the current slice as a line. */
  drawErrors() {
    const { film, index } = this;
    const canvas = this.parts.errors;
    const { errors } = this.compared;
    const sharp = window.devicePixelRatio || 1;
    [canvas.width, canvas.height] = [Math.max(1, canvas.clientWidth * sharp), canvas.clientHeight * sharp];
    const context = canvas.getContext("2d");
    const largest = Math.max(...errors.map((error) => error ?? 0)) || 1;
    const step = canvas.width / film.slices;
    for (const [slice, error] of errors.entries()) {
      const tall = ((error ?? 0) / largest) * canvas.height;
      context.fillStyle = slice === index ? "#f2c94c" : "#3f7fb5";
      context.fillRect(slice * step, canvas.height - tall, Math.max(1, step > 4 ? step - 1 : step), tall);
    }
    context.fillStyle = "#f2c94c";
    context.fillRect((index + 0.5) * step - sharp / 2, 0, sharp, canvas.height);
    const text = errors[index] === null ? "–" : `${this.format(errors[index], 1)} ${film.unit}`;
    const where = `${this.compared.name}: MAE of this slice, ${film.region.name}, ${text}`;
    this.parts["errors-text"].textContent = `${where}; highest ${this.format(largest, 1)} ${film.unit}`;
  }

  // --- words ---

  format(value, more = 0, step = this.film.target.step) {
    const digits = Math.max(0, Math.ceil(-Math.log10(step))) + more;
    return value.toFixed(digits).replace(/^-(?=0*\.?0*$)/, "").replace("-", "−");
  }

  describe() {
    const { film, parts } = this;
    const words = `Slice ${film.first + this.index * film.stride + 1} of ${film.total}`;
    const letters = ["RL", "AP", "SI"];
    const along = (mm, axis) => `${letters[axis][mm < 0 ? 1 : 0]} ${Math.abs(mm).toFixed(1)}`;
    const [row, column] = this.cursor ?? [(film.rows - 1) / 2, (film.columns - 1) / 2];
    const place = film.world(this.index, row, column).map(along);
    parts.slice.value = this.index;
    parts.slice.setAttribute("aria-valuetext", `${words}, ${place[2]} mm`);
    if (parts.number.textContent !== words) parts.number.textContent = words;
    const position = this.cursor ? `Cross at ${place.join(" · ")} mm` : `${place[2]} mm · point at a pixel for its values`;
    parts.position.textContent = position;
    for (const pane of this.panes) this.describePane(pane, words);
    if (this.speak) {
      const values = this.panes.map((pane) => `${pane.title.textContent} ${pane.value.textContent}`);
      parts.spoken.textContent = `${position}: ${values.join(", ")}`;
      this.speak = false;
    }
    const press = (button, on) => button.setAttribute("aria-pressed", String(on));
    for (const { button, level, width } of this.presets) {
      press(button, level === this.window.level && width === this.window.width);
    }
    for (const button of this.flips) press(button, button.dataset.flip === this.flip);
    press(parts.outline, this.outline);
    parts.lead.value = film.methods.indexOf(this.lead);
    parts.play.textContent = this.playing ? "❚❚ Pause" : "▶ Play";
    for (const [name, value] of Object.entries({ ...this.window, span: this.span })) {
      parts[name].value = value;
      parts[`${name}-value`].textContent = this.format(value);
    }
  }

  describePane(pane, words) {
    const { film, cursor } = this;
    const track = this.shown(pane);
    const title = track ? track.name : `${this.compared.name} − target`;
    pane.title.textContent = track === pane.track ? title : `${title}, in place of ${pane.track.name}`;
    pane.figure.classList.toggle("film-flipped", track !== pane.track);
    pane.canvas.setAttribute("aria-label", `${title}, axial, ${words.toLowerCase()}`);
    pane.cross.hidden = !cursor;
    pane.value.textContent = "";
    if (!cursor || !this.ready) return;
    const [row, column] = cursor;
    pane.cross.style.left = `${((column + 0.5) / film.columns) * 100}%`;
    pane.cross.style.top = `${((row + 0.5) / film.rows) * 100}%`;
    const spot = [this.index, row, column];
    const value = track ? film.value(track, ...spot) : film.difference(this.compared, ...spot);
    const plus = !track && value > 0 ? "+" : "";
    const unit = track ? track.unit : film.unit;
    pane.value.textContent = value === null ? "–" : `${plus}${this.format(value, 0, track?.step)} ${unit}`.trim();
  }
}
