// One pane of the player: a volume, or the differences, in every plane.

const make = (tag, parent, name = "", text = "") => {
  const node = document.createElement(tag);
  if (name) node.className = name;
  node.textContent = text;
  parent.append(node);
  return node;
};

/** Put a mark on a pixel of a picture. */
const place = (mark, plane, { row, column }) => {
  mark.style.left = `${((column + 0.5) / plane.columns) * 100}%`;
  mark.style.top = `${((row + 0.5) / plane.rows) * 100}%`;
};

class Pane {
  /** `track` is what the pane shows; null for the differences. */
  constructor(player, track) {
    this.player = player;
    this.track = track;
    this.figure = make("figure", player.parts.panes, "film-pane");
    this.title = make("figcaption", this.figure, "film-title");
    const stages = make("div", this.figure, "film-stages");
    this.stages = player.film.planes.map((plane) => this.stage(plane, stages));
    this.value = make("p", this.figure, "film-value");
  }

  stage(plane, parent) {
    const frame = make("div", parent, "film-stage");
    const canvas = make("canvas", frame);
    [canvas.width, canvas.height] = [plane.columns, plane.rows];
    canvas.style.aspectRatio = `${plane.mm.wide} / ${plane.mm.tall}`;
    canvas.setAttribute("role", "img");
    for (const [i, side] of ["left", "right", "top", "bottom"].entries()) {
      make("span", frame, `film-side film-${side}`, plane.sides[i]).ariaHidden = "true";
    }
    const cross = make("i", frame, "film-cross");
    const dot = make("i", frame, "film-dot");
    const context = canvas.getContext("2d");
    const image = context.createImageData(plane.columns, plane.rows);
    return { plane, frame, canvas, cross, dot, context, image, pixels: new Uint32Array(image.data.buffer) };
  }

  /** Show these planes, the widest as wide as the pane, all to the same scale. */
  arrange(planes) {
    const widest = Math.max(...planes.map((plane) => plane.mm.wide));
    for (const { plane, frame } of this.stages) {
      frame.hidden = !planes.includes(plane);
      frame.style.width = `${(100 * plane.mm.wide) / widest}%`;
    }
  }

  /** What is shown: the track, or what is flipped into the lead's place. */
  get shown() {
    const { flip, lead, film } = this.player;
    return flip && this.track === lead ? film[flip] : this.track;
  }

  /** Paint the planes that can be seen. `colours` are those of differences. */
  draw(colours) {
    if (this.figure.hidden) return;
    const { player, shown } = this;
    const { film } = player;
    const colour = shown
      ? film.greyOf(shown, film.greys(shown, player.windowOf(shown)))
      : film.differenceOf(player.compared, colours);
    for (const { plane, frame, context, image, pixels } of this.stages) {
      if (frame.hidden) continue;
      film.paint(pixels, plane, player.at[plane.axis], colour);
      if (player.outline) film.paintOutline(pixels, plane, player.at[plane.axis]);
      context.putImageData(image, 0, 0);
    }
  }

  /** Say what is shown, where the cross and the pointer are, and the value there. */
  describe() {
    const { player, shown } = this;
    const { film, at, hover } = player;
    const title = shown ? shown.name : `${player.compared.name} − target`;
    this.title.textContent = shown === this.track ? title : `${title}, in place of ${this.track.name}`;
    this.figure.classList.toggle("film-flipped", shown !== this.track);
    for (const { plane, frame, canvas, cross, dot } of this.stages) {
      canvas.setAttribute("aria-label", `${title}, ${plane.name} ${plane.number(at[plane.axis])}`);
      frame.classList.toggle("film-active", plane === player.plane && player.planes.length > 1);
      cross.hidden = !player.cross;
      place(cross, plane, plane.pixel(at));
      dot.hidden = hover?.plane !== plane;
      if (hover?.plane === plane) place(dot, plane, hover.pixel);
    }
    if (!player.ready) return;
    const voxel = player.pointed;
    const value = shown ? film.value(shown, voxel) : film.difference(player.compared, voxel);
    const plus = !shown && value > 0 ? "+" : "";
    const unit = shown ? shown.unit : film.unit;
    this.value.textContent = value === null ? "–" : `${plus}${player.format(value, 0, shown?.step)} ${unit}`.trim();
  }
}
